"""Reads datasets from IDX files, plain or gzipped, and from npz files like Keras' mnist.npz.

A file may be damaged or malicious. Its header is checked before memory is allocated, at most
MAX_DATASET_BYTES are unpacked, and no code in it is run.
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

from mnist_jax.data.download import DATA_VARIABLE, IDX_NAMES, is_intact, published
from mnist_jax.errors import InputError

MAX_DATASET_BYTES = 2**30
"""Limit for the four arrays together. The largest splits of EMNIST have 638 million bytes.

Reading takes up to three times as much memory: the file, and twice what is unpacked from it.
"""

STAYS_ON_DISK = 3 * 2**28
"""The user's own training images in a plain file with more bytes are memory-mapped, not read. The
rest of MAX_DATASET_BYTES is for the other arrays."""

MAX_DIRECTORY_BYTES = 2**16
"""Limit for the directory of an npz file. That of four arrays has about 250 bytes."""

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
"""The names in Keras' mnist.npz of what the files in IDX_NAMES contain."""

Arrays = tuple[Any, ...]
"""Training images and labels, test images and labels. The training images may be a np.memmap."""


def parse_idx(content: bytes, source: object = "the file") -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        InputError: the header is not that of such a file, or does not fit the content.
    """
    shape = _parse_header(content, len(content), source)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _parse_header(content: bytes, length: int, source: object) -> tuple[int, ...]:
    """The shape of the array in an IDX file of `length` bytes that begins with `content`."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in (1, 3):
        start = content[:4].hex(" ") or "nothing"
        raise InputError(
            f"{source} is not an IDX file of labels or images: it begins with {start}, "
            "expected 00 00 08 01 or 00 00 08 03; get the official file"
        )
    end = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, end, 4))
    size = end + math.prod(shape)
    if length != size:
        raise InputError(
            f"{source} does not fit its header: {' x '.join(map(str, shape))} values take "
            f"{size} bytes, but it has {length}; it is truncated or damaged, get it again"
        )
    return shape


def read_data_dir(name: str, path: Path) -> Arrays:
    """The arrays of `name` from an npz file, or from a folder with an npz file or IDX files.

    Raises:
        InputError: files are missing, damaged, too large, or not those of `name`.
    """
    try:
        return read_npz(path) if path.is_file() else _read_folder(name, path)
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
    plain = [folder / idx_name for idx_name in _idx_names(name)]
    paths = [path if path.is_file() else path.with_name(f"{path.name}.gz") for path in plain]
    missing = [path.stem for path in paths if not path.is_file()]
    if len(missing) == len(paths) and (folder / "mnist.npz").is_file():
        return read_npz(folder / "mnist.npz")
    if missing:
        raise InputError(
            f"{folder} has no {missing[0]} or {missing[0]}.gz, which {name} needs; "
            f"put it there, or name another folder with --data-dir or {DATA_VARIABLE}"
        )
    if name in ("fashion_mnist", "kmnist") and all(path.suffix == ".gz" for path in paths):
        if not all(map(is_intact, paths, published(name))):
            raise InputError(
                f"{folder} does not hold {name}: its files have other checksums; put {name}'s "
                f"into {folder / name}, or name another folder with --data-dir"
            )
    elif name not in ("mnist", "local"):
        print(f"{folder}: no checksums are known for these files of {name}", file=sys.stderr)
    images = paths[0]
    if name == "local" and images.suffix != ".gz" and images.stat().st_size > STAYS_ON_DISK:
        return _map(images), *map(parse_idx, _read_files(paths[1:]), paths[1:])
    return _decode(name, _read_files(paths), paths)


def read_published(name: str, paths: Sequence[Path]) -> Arrays:
    """The arrays of `name` from the files that `download.fetch` returns."""
    idx_names = _idx_names(name)
    if not name.startswith("emnist/"):
        return _decode(name, _read_files(paths), paths)
    with zipfile.ZipFile(paths[0]) as archive:
        members = _members(archive, [f"gzip/{idx_name}.gz" for idx_name in idx_names])
        contents = [_unpack(member, paths[0], MAX_DATASET_BYTES) for member in members]
    return _decode(name, contents, idx_names)


def _idx_names(name: str) -> list[str]:
    if not name.startswith("emnist/"):
        return list(IDX_NAMES)
    prefix = name.replace("/", "-") + "-"
    return [prefix + idx_name.replace("t10k", "test") for idx_name in IDX_NAMES]


def _decode(name: str, contents: Sequence[bytes], sources: Sequence[object]) -> Arrays:
    """The arrays in four IDX files. EMNIST's images are transposed, and its letters start at 1."""
    arrays = tuple(map(parse_idx, contents, sources))
    if not name.startswith("emnist/"):
        return arrays
    first_label = np.uint8(name == "emnist/letters")
    return tuple(
        np.ascontiguousarray(array.transpose(0, 2, 1)) if array.ndim == 3 else array - first_label
        for array in arrays
    )


def _read_files(paths: Sequence[Path]) -> list[bytes]:
    """The unpacked contents of `paths`, together at most MAX_DATASET_BYTES."""
    contents: list[bytes] = []
    bytes_left = MAX_DATASET_BYTES
    for path in paths:
        with path.open("rb") as stream:
            content = stream.read(MAX_DATASET_BYTES + 1)
        if path.suffix == ".gz":
            content = _unpack(content, path, bytes_left)
        contents.append(content)
        bytes_left -= len(content)
        if bytes_left < 0:
            raise _too_large(path)
    return contents


def _unpack(content: bytes, source: object, max_bytes: int) -> bytes:
    """What the gzipped `content` unpacks to, at most `max_bytes`."""
    # One call to zlib lets other threads run. The gzip module takes the lock for each block.
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = decompressor.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"{source} is truncated or damaged ({error}); get it again") from None
    if len(unpacked) > max_bytes:
        raise _too_large(source)
    if not decompressor.eof or decompressor.unused_data:
        raise InputError(f"{source} is truncated or damaged; get it again")
    return unpacked


def _too_large(source: object) -> InputError:
    return InputError(
        f"{source} is too large: a dataset may have at most {MAX_DATASET_BYTES} bytes, unpacked"
    )


def read_npz(path: Path) -> Arrays:
    """The four arrays of a file like Keras' mnist.npz.

    Raises:
        InputError: the file is damaged, too large, or not of this kind.
    """
    try:
        with path.open("rb") as stream:
            _check_directory(stream)
            with zipfile.ZipFile(stream) as archive:
                return tuple(
                    np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
                    for content in _members(archive, [f"{key}.npy" for key in NPZ_KEYS])
                )
    except InputError:
        raise
    except Exception as error:  # of many kinds; NumPy's messages advise to allow pickles
        raise InputError(
            f"{path} is not an npz file of plain arrays {', '.join(NPZ_KEYS)} "
            f"({type(error).__name__}); get the official one"
        ) from None


def _check_directory(stream: IO[bytes]) -> None:
    """Raises BadZipFile if the directory of a zip file is long, as zipfile reads all of it.

    Source: APPNOTE.TXT 4.3.15 and 4.3.16, the two records that end a zip file.
    """
    stream.seek(-42, os.SEEK_END)
    end = stream.read(42)
    size = int.from_bytes(end[32:36], "little")
    if end[:4] == b"PK\x06\x07" or end[20:24] != b"PK\x05\x06" or size > MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile


def _members(archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[bytes]:
    """The contents of `names` in `archive`: at most as long as declared, and MAX_DATASET_BYTES.

    Raises:
        zipfile.BadZipFile: a member is damaged, there twice, or compressed in an unusual way.
    """
    members = [archive.getinfo(name) for name in names]
    if sum(member.file_size for member in members) > MAX_DATASET_BYTES:
        raise _too_large(archive.filename)
    for member in members:
        usual = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not usual or archive.namelist().count(member.filename) > 1:
            raise zipfile.BadZipFile
        with archive.open(member) as stream:
            yield stream.read(member.file_size)  # read() alone unpacks more than is declared


def _map(path: Path) -> np.memmap:
    """A memory map of the array in a plain IDX file."""
    with path.open("rb") as stream:
        header = stream.read(16)
    shape = _parse_header(header, path.stat().st_size, path)
    return np.memmap(path, np.uint8, "r", offset=4 + 4 * len(shape), shape=shape)


def read_images(
    images: UInt8[Any, "n height width"], start: int, stop: int
) -> UInt8[np.ndarray, "m height width"]:
    """`images[start:stop]` as an array in memory. If `images` is a np.memmap, its file is read.

    Reading through the map has two drawbacks. What is read counts as memory of the process until
    the map is closed. And if the file shrinks meanwhile, the process is killed (SIGBUS).

    Raises:
        InputError: the file cannot be read, or has become shorter.
    """
    part = images[start:stop]
    if not isinstance(images, np.memmap) or images.mode != "r" or not images.flags.c_contiguous:
        return np.asarray(part)
    # A slice keeps the offset of the map that it was cut from, so its own is computed here.
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
