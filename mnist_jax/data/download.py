"""Downloads the published files of a dataset to the cache folder, and verifies them.

TensorFlow Datasets knows their addresses, sizes and SHA-256 checksums. TensorFlow is not needed.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from mnist_jax.errors import InputError, progress_bar

DATA_VARIABLE = "MNIST_JAX_DATA"
"""The environment variable that names the data folder if --data-dir does not."""

IMPORT_LOCK = threading.Lock()
"""Held while a large package is imported. `mnist-jax train` imports JAX in one thread while another
loads the data. If both import parts of the same package, one may see modules that are incomplete.
"""

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of a dataset. Their names may end in .gz."""

RESPONSE_TIMEOUT_SECONDS = 4.0
"""A server must begin its answer within this time, which includes looking up its address."""

READ_TIMEOUT_SECONDS = 30.0
"""A server may pause for this long while it sends a file."""


class DataUnavailable(InputError):
    """The dataset is not on this machine and cannot be downloaded."""


class PublishedFile(NamedTuple):
    """A file of a dataset, as its authors publish it."""

    url: str
    size: int  # in bytes
    sha256: str


def cache_dir() -> Path:
    """The folder for downloads, decoded datasets and compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnist_jax"


def published(name: str) -> list[PublishedFile]:
    """The files of `name`: four in the order of IDX_NAMES, or the one archive of EMNIST."""
    with IMPORT_LOCK:
        import tensorflow_datasets as tfds  # takes a third of a second
        from tensorflow_datasets.core.download import checksums

        builder: Any = tfds.builder_cls(name.partition("/")[0])
    url = builder.URL
    archive = url.endswith(".zip")
    urls = [url] if archive else [urljoin(url, f"{idx_name}.gz") for idx_name in IDX_NAMES]
    infos = checksums.get_all_url_infos()
    return [PublishedFile(url, int(infos[url].size), infos[url].checksum) for url in urls]


def is_intact(path: Path, source: PublishedFile) -> bool:
    """Whether `path` is a file of the size and SHA-256 of `source`."""
    if not path.is_file() or path.stat().st_size != source.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == source.sha256


def fetch(name: str) -> list[Path]:
    """The published files of `name` in the cache folder; missing or damaged ones are downloaded.

    Raises:
        DataUnavailable: there is no network, the server fails or sends something else, or the disk
            is full.
    """
    sources = published(name)
    folder = cache_dir() / "downloads" / name.partition("/")[0]
    paths = [folder / source.url.rpartition("/")[2] for source in sources]
    try:
        for path, source in zip(paths, sources, strict=True):
            if not is_intact(path, source):
                _download(source, path)
    except OSError as error:  # of the network or the disk
        cause: BaseException = error
        while cause.__context__:  # `requests` wraps it in three errors with longer messages
            cause = cause.__context__
        raise DataUnavailable(
            f"{name} could not be downloaded ({urlsplit(sources[0].url).hostname}: "
            f"{str(cause) or 'no answer'}); check the network and the room in {folder}, or put its "
            f"files in a folder and name it with --data-dir or {DATA_VARIABLE}"
        ) from None
    return paths


def _download(source: PublishedFile, path: Path) -> None:
    """Downloads `source` to `path`, which appears only when the whole file is verified."""
    with (
        _get(source.url) as response,
        atomic_write(path) as stream,
        progress_bar(total=source.size, desc=path.name, unit="B", unit_scale=True) as bar,
    ):
        response.raise_for_status()
        for block in response.iter_content(2**16):
            stream.write(block)
            bar.update(len(block))
            if stream.tell() > source.size:
                break
        stream.flush()
        if not is_intact(Path(stream.name), source):
            raise DataUnavailable(f"{source.url} arrived damaged, or is another file; try again")


def _get(url: str) -> Any:
    """The response of the server, whose body is not read yet.

    The request runs in a thread, because `requests` cannot limit the time of an address look-up.
    """
    with IMPORT_LOCK:
        import requests

    response: Future[requests.Response] = Future()

    def request() -> None:
        timeout = RESPONSE_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS
        headers = {"Accept-Encoding": "identity"}  # do not compress the file again
        try:
            response.set_result(requests.get(url, stream=True, timeout=timeout, headers=headers))
        except Exception as error:
            response.set_exception(error)

    threading.Thread(target=request, daemon=True).start()  # does not keep the process from exiting
    return response.result(RESPONSE_TIMEOUT_SECONDS)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` when the block ends without an error.

    Until then it is in a separate folder, so that two processes can write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".part", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(path)
