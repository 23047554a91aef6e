"""Where a dataset's four arrays come from: a folder, a cache, the network, or scikit-learn.

Downloads go through TensorFlow Datasets' download manager, which verifies checksums and needs no
TensorFlow. Decoded arrays are cached, so that the next load only reads a file.
"""

import gzip
import math
import os
import sys
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import numpy as np
from jaxtyping import UInt8

from mnist_jax.config import InputError

DATA_VARIABLE = "MNIST_JAX_DATA"
"""The environment variable that names a data folder where no flag does."""

IMPORTING = threading.Lock()
"""For imports of large packages while other threads run: two threads that import parts of one
package at the same time may find it half made."""

LARGEST_FILE = 2**30
"""Bytes, unpacked; EMNIST's largest file has about half of that."""

REACH_SECONDS = 4.0
"""How long a download server may take to answer before it counts as out of reach."""

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of a dataset, which may end in .gz."""

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
"""The same four arrays in Keras' mnist.npz."""

Arrays = tuple[np.ndarray, ...]
"""Training images and labels, test images and labels, as IDX_NAMES has them."""


class DataUnavailable(InputError):
    """The dataset is neither here nor within reach."""


def parse_idx(content: bytes, source: object = "the file") -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        InputError: the header is not that of such a file, or does not fit the content.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in (1, 3):
        start = content[:4].hex(" ") or "nothing"
        raise InputError(
            f"{source} is no IDX file of labels or images: it begins with {start}, "
            "expected 00 00 08 01 or 00 00 08 03; get the official file"
        )
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    size = start + math.prod(shape)
    if len(content) != size:
        raise InputError(
            f"{source} does not fit its header: {' x '.join(map(str, shape))} values take "
            f"{size} bytes, but it has {len(content)}; it is truncated or damaged, get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# From a folder of one's own


def read_data_dir(name: str, path: Path) -> Arrays:
    """The arrays of `name` from an npz file, or a folder that has one or the IDX files."""
    if path.is_file():
        return _read_npz(path)
    folder = path / name if (path / name).is_dir() else path
    if not folder.is_dir():
        raise InputError(f"data folder {path} does not exist; check --data-dir or {DATA_VARIABLE}")
    found = [_find(folder, idx_name) for idx_name in _idx_names(name)]
    if not any(found) and (folder / "mnist.npz").is_file():
        return _read_npz(folder / "mnist.npz")
    for idx_name, file in zip(_idx_names(name), found, strict=True):
        if file is None:
            raise InputError(
                f"{folder} has no {idx_name} or {idx_name}.gz, which {name} needs; "
                f"put it there, or name another folder with --data-dir or {DATA_VARIABLE}"
            )
    files = [file for file in found if file]
    if name in ("fashion_mnist", "kmnist") and all(file.suffix == ".gz" for file in files):
        _fetch(name, manual_dir=folder)  # finds all there, verifies it and downloads nothing
    elif name not in ("mnist", "local"):
        print(f"{folder}: {name}'s checksums here are unknown, not verified", file=sys.stderr)
    return _upright(name, tuple(parse_idx(_read_bytes(file), file) for file in files))


def _idx_names(name: str) -> list[str]:
    if not name.startswith("emnist/"):
        return list(IDX_NAMES)
    prefix = name.replace("/", "-") + "-"
    return [prefix + idx_name.replace("t10k", "test") for idx_name in IDX_NAMES]


def _upright(name: str, arrays: Arrays) -> Arrays:
    """EMNIST's images lie transposed, and its letters count from 1."""
    if not name.startswith("emnist/"):
        return arrays
    first = 1 if name == "emnist/letters" else 0
    x_train, y_train, x_test, y_test = arrays
    return (
        np.ascontiguousarray(x_train.transpose(0, 2, 1)),
        y_train - np.uint8(first),
        np.ascontiguousarray(x_test.transpose(0, 2, 1)),
        y_test - np.uint8(first),
    )


def _find(folder: Path, idx_name: str) -> Path | None:
    for file in (folder / idx_name, folder / f"{idx_name}.gz"):
        if file.is_file():
            return file
    return None


def _read_bytes(file: Path) -> bytes:
    """The content of `file`, unpacked."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check it") from None
    if file.suffix == ".gz":
        # In one call, which lets other threads run; the gzip module would ask for each block.
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            content = unpacker.decompress(content, LARGEST_FILE + 1)
        except zlib.error as error:
            raise InputError(f"{file} is truncated or damaged ({error}); get it again") from None
        if len(content) <= LARGEST_FILE and (not unpacker.eof or unpacker.unused_data):
            raise InputError(f"{file} is truncated or damaged; get it again")
    if len(content) > LARGEST_FILE:
        raise InputError(f"{file} holds more than {LARGEST_FILE} bytes; it is no such dataset")
    return content


def _read_npz(file: Path) -> Arrays:
    """The four arrays of a file like Keras' mnist.npz."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return tuple(archive[key] for key in NPZ_KEYS)
    except Exception as error:  # many kinds, and NumPy's advice is to load what is not safe
        raise InputError(
            f"{file} is no npz file of plain arrays {', '.join(NPZ_KEYS)} "
            f"({type(error).__name__}); get the official one"
        ) from None


# From the network, through a cache


def cache_dir() -> Path:
    """Where decoded datasets and compiled programs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnist_jax"


def _cache_file(name: str) -> Path:
    return cache_dir() / f"{name.replace('/', '-')}.npz"


def read_cache(name: str) -> Arrays | None:
    """What `download` kept of `name`, if it did."""
    if not _cache_file(name).exists():
        return None
    try:
        return _read_npz(_cache_file(name))
    except InputError as error:
        print(f"{error}: fetching {name} anew", file=sys.stderr)
        return None


def download(name: str) -> Arrays:
    """Fetches, verifies, decodes and caches `name`."""
    paths = _fetch(name)
    if name.startswith("emnist/"):
        with zipfile.ZipFile(paths[0]) as archive:
            members = [f"gzip/{idx_name}.gz" for idx_name in _idx_names(name)]
            contents = [gzip.decompress(archive.read(member)) for member in members]
    else:
        contents = [_read_bytes(path) for path in paths]
    sources = [f"{name}'s {idx_name}" for idx_name in _idx_names(name)]
    arrays = _upright(name, tuple(map(parse_idx, contents, sources)))
    temporary = _cache_file(name).with_suffix(f".{os.getpid()}.tmp.npz")
    try:
        np.savez(temporary, **dict(zip(NPZ_KEYS, arrays, strict=True)))
        temporary.replace(_cache_file(name))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        print(f"{name} could not be cached in {cache_dir()}: {error.strerror}", file=sys.stderr)
    return arrays


def _fetch(name: str, manual_dir: Path | None = None) -> list[Path]:
    """Paths of the files of `name` as they are published, checksums verified.

    Those that lie in `manual_dir` are taken from there.
    """
    with IMPORTING:
        import tensorflow_datasets as tfds  # half a second, and needed once
        from tensorflow_datasets.core.download import download_manager

    builders = tfds.image_classification
    builder, _, split = name.partition("/")
    if split:
        urls = [builders.EMNIST.URL]
    else:
        url = {
            "mnist": builders.MNIST.URL,
            "fashion_mnist": builders.FashionMNIST.URL,
            "kmnist": builders.KMNIST.URL,
        }[builder]
        urls = [urljoin(url, f"{idx_name}.gz") for idx_name in IDX_NAMES]
    if manual_dir is None:
        _require_reachable(name, urls[0])
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        manager = tfds.download.DownloadManager(
            download_dir=cache_dir() / "downloads",
            manual_dir=manual_dir,
            dataset_name=builder,
            force_checksums_validation=True,
        )
        return [Path(manager.download(url)) for url in urls]
    except download_manager.NonMatchingChecksumError as error:
        if manual_dir:
            raise InputError(
                f"{manual_dir} does not hold {name}: its files have other checksums; put {name}'s "
                f"into {manual_dir / name}, or name another folder with --data-dir"
            ) from None
        shown = " ".join(str(error).split())
        raise DataUnavailable(f"{name} came damaged, try again: {shown}") from None
    except (tfds.download.DownloadError, OSError) as error:
        raise DataUnavailable(_UNAVAILABLE.format(name=name, error=error)) from None


_UNAVAILABLE = (
    "{name} could not be downloaded ({error}); connect to the network, or put its files in a "
    f"folder and name it with --data-dir or {DATA_VARIABLE}"
)


def _require_reachable(name: str, url: str) -> None:
    """Raises DataUnavailable within REACH_SECONDS where `url` does not answer.

    The download manager itself tries for minutes. The thread bounds slow name look-ups too.
    """
    problem: list[object] = [f"no answer within {REACH_SECONDS:.0f} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
            problem.clear()
        except urllib.error.URLError as error:
            problem[:] = [error.reason]
        except OSError as error:
            problem[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if problem:
        error = f"{urlsplit(url).hostname}: {problem[0]}"
        raise DataUnavailable(_UNAVAILABLE.format(name=name, error=error))


# Embedded


def embedded_digits() -> Arrays:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; the last fifth, by other writers, is the test.

    Source: UCI, Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), its test set.
    """
    with IMPORTING:
        from sklearn.datasets import load_digits  # over a second, and a last resort

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    labels = labels.astype(np.uint8)
    cut = len(labels) * 4 // 5
    return images[:cut], labels[:cut], images[cut:], labels[cut:]
