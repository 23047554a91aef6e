"""A dataset's files as they are published: fetched, verified and kept in the cache folder.

TensorFlow Datasets knows their addresses, sizes and SHA-256, and needs no TensorFlow for that.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from mnist_jax.config import InputError

DATA_VARIABLE = "MNIST_JAX_DATA"
"""The environment variable that names a data folder where no flag does."""

IMPORTING = threading.Lock()
"""For imports of large packages while other threads run: two threads that import parts of one
package at the same time may find it half made."""

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of a dataset, which may end in .gz."""

REACH_SECONDS = 4.0
"""How long a server may take to begin its answer before it counts as out of reach."""

STALL_SECONDS = 30.0
"""How long it may then send nothing before the connection counts as lost."""

ABANDONED_SECONDS = 24 * 3600.0
"""How long nobody wrote to a temporary file before it counts as left by a killed process."""


class DataUnavailable(InputError):
    """The dataset is neither here nor within reach."""


class Published(NamedTuple):
    """A file of a dataset, as its makers publish it."""

    url: str
    size: int
    sha256: str


def cache_dir() -> Path:
    """Where downloads, decoded datasets and compiled programs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnist_jax"


def published(name: str) -> list[Published]:
    """The files of `name`: four in the order of IDX_NAMES, or EMNIST's one archive."""
    with IMPORTING:
        import tensorflow_datasets as tfds  # a third of a second, and needed once
        from tensorflow_datasets.core.download import checksums

    builders = tfds.image_classification
    if name.startswith("emnist/"):
        urls = [builders.EMNIST.URL]
    else:
        folders = {
            "mnist": builders.MNIST.URL,
            "fashion_mnist": builders.FashionMNIST.URL,
            "kmnist": builders.KMNIST.URL,
        }
        urls = [urljoin(folders[name], f"{idx_name}.gz") for idx_name in IDX_NAMES]
    known = checksums.get_all_url_infos()
    return [Published(url, int(known[url].size), known[url].checksum) for url in urls]


def is_intact(file: Path, source: Published) -> bool:
    """Whether `file` is there and has the size and SHA-256 of `source`."""
    if not file.is_file() or file.stat().st_size != source.size:
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == source.sha256


def fetch(name: str) -> list[Path]:
    """The files of `name` in the cache folder, all intact; those that are not are fetched.

    Raises:
        DataUnavailable: no network, a server that fails, stalls or sends something else, or no
            room for the files.
    """
    files = published(name)
    folder = cache_dir() / "downloads" / name.partition("/")[0]
    paths = [folder / source.url.rpartition("/")[2] for source in files]
    with IMPORTING:
        import requests
    try:
        for path, source in zip(paths, files, strict=True):
            if not is_intact(path, source):
                _download(source, path)
    except requests.RequestException as error:
        raise DataUnavailable(
            f"{name} could not be downloaded ({urlsplit(files[0].url).hostname}: {_cause(error)}); "
            "connect to the network, or put its files in a folder and name it with --data-dir or "
            f"{DATA_VARIABLE}"
        ) from None
    except OSError as error:
        raise DataUnavailable(
            f"{name} cannot be kept in {folder} ({error.strerror}); make room there, or name "
            "another cache folder in XDG_CACHE_HOME"
        ) from None
    return paths


def _download(source: Published, path: Path) -> None:
    """Fetches `source`, of which nothing counts before its last byte is verified, to `path`."""
    with IMPORTING:
        from mnist_jax.progress import bar

    received, hashed = 0, hashlib.sha256()
    look = {"unit": "B", "unit_scale": True, "delay": 2}
    with (
        _open(source.url) as response,
        replacing(path) as stream,
        bar(total=source.size, desc=path.name, **look) as shown,
    ):
        response.raise_for_status()
        for block in response.iter_content(2**16):
            received += len(block)
            if received > source.size:
                break
            hashed.update(block)
            stream.write(block)
            shown.update(len(block))
        if received != source.size or hashed.hexdigest() != source.sha256:
            raise DataUnavailable(
                f"{source.url} came damaged, try again: {received:,} bytes with the SHA-256 "
                f"{hashed.hexdigest()}, expected {source.size:,} with {source.sha256}"
            )


def _open(url: str) -> Any:
    """The answer to a request for `url`, its body still to be read, or RequestException.

    The thread bounds slow look-ups of names too, for which `requests` has no limit.
    """
    import requests

    answers = []

    def ask() -> None:
        limits = (REACH_SECONDS, STALL_SECONDS)
        plain = {"Accept-Encoding": "identity"}  # the file as it is, not packed once more
        try:
            answers.append(requests.get(url, stream=True, timeout=limits, headers=plain))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if not answers:
        raise requests.Timeout(f"no answer within {REACH_SECONDS:.0f} s")
    if isinstance(answers[0], Exception):
        raise requests.RequestException from answers[0]
    return answers[0]


def _cause(error: BaseException) -> BaseException:
    """What was first: `requests` wraps it in three layers, each with a longer message."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` when the block has ended well.

    Until then it has a name of its own, so that two processes may write the same file at once.
    What killed processes left behind is cleared away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()
    descriptor, name = tempfile.mkstemp(".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
