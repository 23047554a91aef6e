"""A name becomes images and labels, in their official order and checked.

`mnist`, `fashion_mnist`, `kmnist` and `emnist/SPLIT` come from a folder or the network, `digits`
with scikit-learn; `files.py` fetches them.
"""

import hashlib
import os
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from mnist_jax.config import InputError, unusable
from mnist_jax.data import files
from mnist_jax.data.download import DATA_VARIABLE, IDX_NAMES, DataUnavailable
from mnist_jax.data.files import Arrays

MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
"""Of the four files unpacked, so that gzip, plain IDX and npz are verified alike."""

_DIGITS = tuple("0123456789")
_CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_EMNIST_NAMES = {
    "byclass": _DIGITS + _CAPITALS + tuple("abcdefghijklmnopqrstuvwxyz"),
    "bymerge": _DIGITS + _CAPITALS + tuple("abdefghnqrt"),
    "balanced": _DIGITS + _CAPITALS + tuple("abdefghnqrt"),
    "letters": _CAPITALS,
    "digits": _DIGITS,
    "mnist": _DIGITS,
}
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    **{f"emnist/{split}": names for split, names in _EMNIST_NAMES.items()},
    "digits": _DIGITS,
}
"""Every dataset with a name of its own, and what its labels 0, 1, ... stand for."""


class Examples(NamedTuple):
    """Images with their labels; a pytree, so it goes to the device as one."""

    # Any: arrays of NumPy (a memory map too) or JAX. Naming JAX's would import it, and it is
    # imported while data load.
    images: UInt8[Any, "n height width"]
    labels: Integer[Any, "n"]


class Dataset(NamedTuple):
    """Training and test examples in their official order."""

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    sha256: tuple[str, ...]  # of training images and labels, test images and labels, as IDX files


def load(name: str = "mnist", data_dir: Path | str | None = None) -> Dataset:
    """The dataset called `name`, from `data_dir` or $MNIST_JAX_DATA, else cached or downloaded.

    A data folder holds the dataset's files itself, or in a subfolder of its name; where it comes
    from the environment, the first is for mnist and local alone. `auto` is mnist, or digits, with
    a warning on standard error, where mnist cannot be had. `local` is whatever the data folder
    holds, under no checksum.

    Raises:
        InputError: an unknown name, or files that are missing or not what they should be.
        DataUnavailable: there is no such data here, and no way to download it.
    """
    if name == "auto":
        try:
            return load("mnist", data_dir)
        except DataUnavailable as error:
            said = _FALLBACK.format(line=72 * "=", error=textwrap.fill(str(error), 72))
            print(said, file=sys.stderr, flush=True)
            return load("digits")
    folder = data_dir or default_folder(name)
    if name == "digits":
        arrays = files.embedded_digits()
    elif name not in (*CLASS_NAMES, "local"):
        known = ", ".join(("auto", *CLASS_NAMES, "local"))
        raise InputError(f"--dataset {name} is unknown; choose one of {known}")
    elif folder:
        arrays = files.read_data_dir(name, Path(folder).expanduser())
    elif name == "local":
        raise InputError(f"--dataset local needs --data-dir DIR, or {DATA_VARIABLE}, to read from")
    else:
        return _cached(name) or _checked(name, files.download(name))
    return _checked(name, arrays)


def _cached(name: str) -> Dataset | None:
    """What the cache has of `name`, if it is right."""
    try:
        arrays = files.read_cache(name)
        return _checked(name, arrays) if arrays else None
    except InputError as error:
        print(f"{error}: fetching {name} anew", file=sys.stderr)
        return None


_FALLBACK = """
{line}
{error}

MNIST IS NOT HERE. Going on with `digits` instead: 1,797 small digits of
8 x 8 pixels that come with scikit-learn. Nothing below is about MNIST.
{line}
"""


def default_folder(name: str) -> str | None:
    """The folder in the environment: MNIST's or one's own, or with a subfolder for `name`."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder and (name in ("mnist", "local") or (Path(folder).expanduser() / name).is_dir()):
        return folder
    return None


def train_val_split(examples: Examples, validation_images: int) -> tuple[Examples, Examples]:
    """Training and validation examples: the last `validation_images` are held out for validation.

    Validation images are read into memory; training images may stay on disk.

    Raises:
        InputError: no image would be left to train on.
    """
    images, labels = examples
    split = len(labels) - validation_images
    if split < 1:
        expected = f"fewer than the {len(labels)} training images"
        raise unusable("--validation-images", validation_images, expected)
    training = Examples(images[:split], labels[:split])
    return training, Examples(files.read_images(images, split, len(labels)), labels[split:])


def sha256_as_idx(array: UInt8[np.ndarray, "..."]) -> str:
    """SHA-256 of the plain IDX file that has `array`, or would have it."""
    if isinstance(array, np.memmap):
        with Path(str(array.filename)).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _checked(name: str, arrays: Arrays) -> Dataset:
    """The four `arrays` as the dataset `name`, if they can be."""
    x_train, y_train, x_test, y_test = arrays
    for array in arrays:
        if array.dtype.kind not in "iuf":
            raise InputError(f"{name} has arrays of {array.dtype}; it takes numbers")
    if name != "local":
        class_names = CLASS_NAMES[name]
    elif y_train.dtype.kind in "iu" and y_train.max(initial=0) < 256:
        class_names = tuple(map(str, range(int(y_train.max(initial=0)) + 1)))
    else:
        raise InputError(
            f"{name}'s training labels are {y_train.dtype} up to {y_train.max(initial=0)}; "
            "expected whole numbers from 0 to 255"
        )
    for part, images, labels in (("training", x_train, y_train), ("test", x_test, y_test)):
        if images.ndim != 3 or images.dtype != np.uint8 or labels.ndim != 1:
            raise InputError(
                f"{name}'s {part} images are {images.dtype} {images.shape}, its labels "
                f"{labels.shape}; expected uint8 (n, height, width) and (n,)"
            )
        if len(images) != len(labels) or images.size == 0:
            raise InputError(
                f"{name} has {len(images)} {part} images and {len(labels)} labels; "
                "it takes as many of both, and some: get the files from one source"
            )
        low, high, highest = labels.min(), labels.max(), len(class_names) - 1
        if labels.dtype.kind not in "iu" or low < 0 or high > highest:
            raise InputError(
                f"{name}'s {part} labels run from {low} to {high}; expected whole numbers from "
                f"0 to {highest}: the file is damaged or another dataset's"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(
            f"{name} has training images of {x_train.shape[1:]} pixels but test images of "
            f"{x_test.shape[1:]}; get the files from one source"
        )
    arrays = (x_train, y_train.astype(np.uint8), x_test, y_test.astype(np.uint8))
    sums = tuple(map(sha256_as_idx, arrays))
    if name == "mnist":
        for found, idx_name, expected in zip(sums, IDX_NAMES, MNIST_SHA256, strict=True):
            if found != expected:
                raise InputError(
                    f"{idx_name} is not MNIST's: its SHA-256 is {found}, expected {expected}; "
                    "get the official file, or use your own data with --dataset local"
                )
    return Dataset(name, Examples(*arrays[:2]), Examples(*arrays[2:]), class_names, sums)
