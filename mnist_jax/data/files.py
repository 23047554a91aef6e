"""Reads datasets from IDX files, plain or gzipped, and from npz files like Keras' mnist.npz.

A file may be damaged or malicious: no code in it is run, and its unpacked size is limited.
"""

import contextlib
import math
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_jax.data.download import DATA_VARIABLE, IDX_NAMES, is_intact, published
from mnist_jax.errors import InputError

MAX_UNPACKED_BYTES = 2**30
"""Limit for the unpacked size of a file. The largest file of EMNIST has 547 million bytes."""

STAYS_ON_DISK = 3 * 2**28
"""A plain IDX file with more bytes is memory-mapped, not read."""

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
"""The names of the arrays in Keras' mnist.npz, in the order of IDX_NAMES."""

Arrays = tuple[Any, ...]
"""Training images and labels, test images and labels. Large ones may be np.memmap."""


def parse_idx(
    content: UInt8[np.ndarray, "bytes"], source: object = "the file"
) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    It is a view of `content`, which is the whole file.

    Raises:
        InputError: the header is not that of such a file, or does not fit the content.
    """
    header = content[:16].tobytes()
    if len(header) < 4 or header[:3] != b"\0\0\x08" or header[3] not in (1, 3):
        start = header[:4].hex(" ") or "nothing"
        raise InputError(
            f"{source} is not an IDX file of labels or images: it begins with {start}, "
            "expected 00 00 08 01 or 00 00 08 03; get the official file"
        )
    end = 4 + 4 * header[3]
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, end, 4))
    size = end + math.prod(shape)
    if len(content) != size:
        raise InputError(
            f"{source} does not fit its header: {' x '.join(map(str, shape))} values take "
            f"{size} bytes, but it has {len(content)}; it is truncated or damaged, get it again"
        )
    return content[end:].reshape(shape)


def read_data_dir(name: str, path: Path) -> Arrays:
    """The arrays of `name` from an npz file, or from a folder with an npz file or IDX files.

    Raises:
        InputError: files are missing, damaged, too large, or not those of `name`.
    """
    try:
        return read_npz(path) if path.is_file() else _read_folder(name, path)
    except (OSError, MemoryError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); check --data-dir or "
            f"{DATA_VARIABLE}"
        ) from None


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
    return _read_four(name, paths)


def read_published(name: str, paths: Sequence[Path]) -> Arrays:
    """The arrays of `name` from the files that `download.fetch` returns."""
    if not name.startswith("emnist/"):
        return _read_four(name, paths)
    folder = zipfile.Path(paths[0]) / "gzip"
    return _read_four(name, [folder / f"{idx_name}.gz" for idx_name in _idx_names(name)])


def _idx_names(name: str) -> list[str]:
    if not name.startswith("emnist/"):
        return list(IDX_NAMES)
    prefix = name.replace("/", "-") + "-"
    return [prefix + idx_name.replace("t10k", "test") for idx_name in IDX_NAMES]


def _read_four(name: str, paths: Sequence[Path] | Sequence[zipfile.Path]) -> Arrays:
    """The arrays in four IDX files. EMNIST's images are transposed, and its letters start at 1."""
    arrays = tuple(map(_read_idx, paths))
    if not name.startswith("emnist/"):
        return arrays
    first_label = np.uint8(name == "emnist/letters")
    return tuple(
        np.ascontiguousarray(array.transpose(0, 2, 1)) if array.ndim == 3 else array - first_label
        for array in arrays
    )


def _read_idx(path: Path | zipfile.Path) -> np.ndarray:
    if isinstance(path, zipfile.Path) or path.suffix == ".gz":
        content = _unzip(path.read_bytes(), path)
    elif path.stat().st_size > STAYS_ON_DISK:
        content = np.memmap(path, np.uint8, "r")
    else:
        content = np.fromfile(path, np.uint8)
    return parse_idx(content, path)


def _unzip(content: bytes, source: object) -> UInt8[np.ndarray, "bytes"]:
    """The bytes that are gzipped in `content`."""
    # One call to zlib lets other threads run. The gzip module has no limit for the size.
    unpacked, decompressor = b"", zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    with contextlib.suppress(zlib.error):
        unpacked = decompressor.decompress(content, MAX_UNPACKED_BYTES)
    if not decompressor.eof or decompressor.unused_data:
        raise InputError(
            f"{source} is truncated or damaged, or unpacks to more than {MAX_UNPACKED_BYTES} "
            "bytes; get it again"
        )
    return np.frombuffer(unpacked, np.uint8)


def read_npz(path: Path) -> Arrays:
    """The four arrays of a file like Keras' mnist.npz.

    Raises:
        InputError: the file is damaged, too large, or not of this kind.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if sum(member.file_size for member in archive.zip.infolist()) > MAX_UNPACKED_BYTES:
                raise ValueError
            return tuple(np.asarray(archive[key]) for key in NPZ_KEYS)
    except Exception as error:  # of many types; NumPy's messages suggest allowing pickles
        raise InputError(
            f"{path} is not an npz file of plain arrays {', '.join(NPZ_KEYS)} with at most "
            f"{MAX_UNPACKED_BYTES} bytes ({type(error).__name__}); get the official one"
        ) from None


def read_images(
    images: UInt8[Any, "n height width"], start: int, stop: int
) -> UInt8[np.ndarray, "m height width"]:
    """`images[start:stop]` as an array in memory. If `images` is a np.memmap, its file is read.

    Reading through the map has two drawbacks. The pages read count as memory of the process until
    the map is closed. And if the file shrinks meanwhile, the process is killed (SIGBUS).

    Raises:
        InputError: the file has become shorter.
    """
    part = images[start:stop]
    if not isinstance(images, np.memmap) or images.mode != "r" or not images.flags.c_contiguous:
        return np.asarray(part)
    # A slice keeps the offset of the original map, so the slice's offset is computed here.
    parent = images.base if isinstance(images.base, np.memmap) else images
    offset = images.offset + part.ctypes.data - parent.ctypes.data
    pixels = np.fromfile(str(images.filename), images.dtype, part.size, offset=offset)
    if pixels.size < part.size:
        raise InputError(f"{images.filename} has become shorter; get it again")
    return pixels.reshape(part.shape)
