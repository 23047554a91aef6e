"""Where a dataset's four arrays come from: a folder, a cache, the network, or scikit-learn.

Files of one's own may be anything, so each is bounded before it is unpacked and runs no code.
Decoded downloads are cached, so that the next load only reads a file.
"""

import io
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from mnist_jax.config import InputError
from mnist_jax.data.download import (
    DATA_VARIABLE,
    IDX_NAMES,
    IMPORTING,
    cache_dir,
    fetch,
    is_intact,
    published,
    replacing,
)

LARGEST_DATASET = 2**30
"""Bytes of the four arrays together; EMNIST's largest have 638 million.

Reading takes at most three times as much memory: a file as it is, and twice what it unpacks to.
"""

STAYS_ON_DISK = 3 * 2**28
"""Bytes of a plain file of one's own training images that are read when they are needed, if it has
more; the rest of LARGEST_DATASET is for the other arrays."""

LARGEST_DIRECTORY = 2**16
"""Bytes of an npz file's list of contents; that of four arrays has some 250."""

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
"""The four arrays of IDX_NAMES in Keras' mnist.npz."""

Arrays = tuple[Any, ...]
"""Training images and labels, test images and labels, as IDX_NAMES has them: arrays of NumPy, but
that training images may be on disk."""


def parse_idx(content: bytes, source: object = "the file") -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        InputError: the header is not that of such a file, or does not fit the content.
    """
    shape = _shape(content, len(content), source)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _shape(content: bytes, length: int, source: object) -> tuple[int, ...]:
    """What the header says that `content` begins with, where it fits the whole `length`."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in (1, 3):
        start = content[:4].hex(" ") or "nothing"
        raise InputError(
            f"{source} is no IDX file of labels or images: it begins with {start}, "
            "expected 00 00 08 01 or 00 00 08 03; get the official file"
        )
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    size = start + math.prod(shape)
    if length != size:
        raise InputError(
            f"{source} does not fit its header: {' x '.join(map(str, shape))} values take "
            f"{size} bytes, but it has {length}; it is truncated or damaged, get it again"
        )
    return shape


# Images that stay on disk


def _map(path: Path) -> np.memmap:
    """The array in a plain IDX file, as a memory map."""
    with path.open("rb") as stream:
        header = stream.read(16)
    shape = _shape(header, path.stat().st_size, path)
    return np.memmap(path, np.uint8, "r", offset=4 + 4 * len(shape), shape=shape)


def read_images(
    images: UInt8[Any, "n height width"], start: int, stop: int
) -> UInt8[np.ndarray, "m height width"]:
    """`images[start:stop]` in memory.

    Those of a memory map are read from its file. What is read through a map counts as memory of the
    process until the map is closed, and a file that shrinks meanwhile kills the process (SIGBUS).

    Raises:
        InputError: the file cannot be read, or has become shorter.
    """
    part = images[start:stop]
    if not isinstance(images, np.memmap) or images.mode != "r" or not images.flags.c_contiguous:
        return np.asarray(part)
    # A slice keeps the offset of the map that it was cut from, so its own is worked out here.
    parent = images.base if isinstance(images.base, np.memmap) else images
    offset = images.offset + part.ctypes.data - parent.ctypes.data
    path = str(images.filename)
    try:
        pixels = np.fromfile(path, images.dtype, part.size, offset=offset)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if pixels.size < part.size:
        raise InputError(f"{path} has become shorter; get it again")
    return pixels.reshape(part.shape)


# From a folder of one's own


def read_data_dir(name: str, path: Path) -> Arrays:
    """The arrays of `name` from an npz file, or a folder that has one or the IDX files.

    Raises:
        InputError: files that are missing, damaged, not `name`'s or too large.
    """
    try:
        return _read_npz(path) if path.is_file() else _read_folder(name, path)
    except OSError as error:
        raise InputError(
            f"{error.filename or path} cannot be read ({error.strerror}); check --data-dir or "
            f"{DATA_VARIABLE}"
        ) from None
    except MemoryError:
        raise InputError(f"{path} does not fit in memory; use a smaller dataset") from None


def _read_folder(name: str, path: Path) -> Arrays:
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
        if not all(map(is_intact, files, published(name))):
            raise InputError(
                f"{folder} does not hold {name}: its files have other checksums; put {name}'s "
                f"into {folder / name}, or name another folder with --data-dir"
            )
    elif name not in ("mnist", "local"):
        print(f"{folder}: {name}'s checksums here are unknown, not verified", file=sys.stderr)
    if name == "local" and files[0].suffix != ".gz" and files[0].stat().st_size > STAYS_ON_DISK:
        return _map(files[0]), *_decoded(name, files[1:], _read_files(files[1:]))
    return _decoded(name, files, _read_files(files))


def _idx_names(name: str) -> list[str]:
    if not name.startswith("emnist/"):
        return list(IDX_NAMES)
    prefix = name.replace("/", "-") + "-"
    return [prefix + idx_name.replace("t10k", "test") for idx_name in IDX_NAMES]


def _find(folder: Path, idx_name: str) -> Path | None:
    for file in (folder / idx_name, folder / f"{idx_name}.gz"):
        if file.is_file():
            return file
    return None


def _decoded(name: str, sources: Sequence[object], contents: Sequence[bytes]) -> Arrays:
    """The arrays in four IDX files; EMNIST's images lie transposed, its letters count from 1."""
    arrays = tuple(map(parse_idx, contents, sources))
    if not name.startswith("emnist/"):
        return arrays
    first = np.uint8(name == "emnist/letters")
    return tuple(
        np.ascontiguousarray(array.transpose(0, 2, 1)) if array.ndim == 3 else array - first
        for array in arrays
    )


def _too_large(source: object) -> InputError:
    return InputError(
        f"{source} makes more than {LARGEST_DATASET} bytes of data; it is no such dataset"
    )


def _read_files(files: Sequence[Path]) -> list[bytes]:
    """What `files` hold, unpacked: together no more than LARGEST_DATASET bytes."""
    contents: list[bytes] = []
    room = LARGEST_DATASET
    for file in files:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_DATASET + 1)
        contents.append(_unpacked(content, file, room) if file.suffix == ".gz" else content)
        room -= len(contents[-1])
        if room < 0:
            raise _too_large(file)
    return contents


def _unpacked(content: bytes, source: object, room: int) -> bytes:
    """The gzipped `content`, which may take `room` bytes."""
    # In one call, which lets other threads run; the gzip module would ask for each block.
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(content, room + 1)
    except zlib.error as error:
        raise InputError(f"{source} is truncated or damaged ({error}); get it again") from None
    if len(unpacked) > room:
        raise _too_large(source)
    if not unpacker.eof or unpacker.unused_data:
        raise InputError(f"{source} is truncated or damaged; get it again")
    return unpacked


def _read_npz(file: Path) -> Arrays:
    """The four arrays of a file like Keras' mnist.npz."""
    try:
        with file.open("rb") as stream:
            _require_short_directory(stream)
            with zipfile.ZipFile(stream) as archive:
                return tuple(
                    np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
                    for content in _members(archive, [f"{key}.npy" for key in NPZ_KEYS])
                )
    except InputError:
        raise
    except Exception as error:  # many kinds, and NumPy's advice is to load what is not safe
        raise InputError(
            f"{file} is no npz file of plain arrays {', '.join(NPZ_KEYS)} "
            f"({type(error).__name__}); get the official one"
        ) from None


def _require_short_directory(stream: IO[bytes]) -> None:
    """Raises BadZipFile where a zip file's list of contents, which is read whole, is long.

    Source: APPNOTE.TXT 4.3.15 and 4.3.16, the two records that end a zip file.
    """
    stream.seek(-42, os.SEEK_END)
    tail = stream.read(42)
    size = int.from_bytes(tail[32:36], "little")
    if tail[:4] == b"PK\x06\x07" or tail[20:24] != b"PK\x05\x06" or size > LARGEST_DIRECTORY:
        raise zipfile.BadZipFile


def _members(archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[bytes]:
    """What `archive` holds under `names`: no more than it declares, nor than LARGEST_DATASET.

    Raises:
        zipfile.BadZipFile: a member is damaged, there twice, or packed in a way without bounds.
    """
    members = [archive.getinfo(name) for name in names]
    if sum(member.file_size for member in members) > LARGEST_DATASET:
        raise _too_large(archive.filename)
    for member in members:
        plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not plain or archive.namelist().count(member.filename) > 1:
            raise zipfile.BadZipFile
        with archive.open(member) as stream:
            content = stream.read(member.file_size)  # without a number it unpacks all there is
        if len(content) != member.file_size:
            raise zipfile.BadZipFile
        yield content


# From the network, through a cache


def _cache_file(name: str) -> Path:
    return cache_dir() / f"{name.replace('/', '-')}.npz"


def read_cache(name: str) -> Arrays | None:
    """What `download` kept of `name`, if it did."""
    return _read_npz(_cache_file(name)) if _cache_file(name).is_file() else None


def download(name: str) -> Arrays:
    """Fetches, decodes and caches `name`.

    Raises:
        DataUnavailable: see `fetch`.
    """
    paths, idx_names = fetch(name), _idx_names(name)
    if name.startswith("emnist/"):
        with zipfile.ZipFile(paths[0]) as archive:
            packed = _members(archive, [f"gzip/{idx_name}.gz" for idx_name in idx_names])
            contents = [
                _unpacked(content, idx_name, LARGEST_DATASET)
                for content, idx_name in zip(packed, idx_names, strict=True)
            ]
    else:
        contents = _read_files(paths)
    arrays = _decoded(name, [f"{name}'s {idx_name}" for idx_name in idx_names], contents)
    try:
        with replacing(_cache_file(name)) as stream:
            np.savez(stream, **dict(zip(NPZ_KEYS, arrays, strict=True)))
    except OSError as error:
        print(f"{name} could not be cached in {cache_dir()}: {error.strerror}", file=sys.stderr)
    return arrays


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
