"""Datasets by name: what their labels mean, their checksums, and `load`.

`mnist`, `fashion_mnist`, `kmnist` and `emnist/SPLIT` are read from a folder or downloaded, `digits`
comes with scikit-learn, and `local` is whatever the data folder holds.
"""

import hashlib
import math
import os
import sys
import textwrap
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from mnist_jax.data import download, files
from mnist_jax.data.download import DATA_VARIABLE, IDX_NAMES, IMPORT_LOCK, DataUnavailable
from mnist_jax.data.files import NPZ_KEYS, Arrays
from mnist_jax.errors import InputError, unusable

MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
"""Checksums of the four unpacked IDX files; they verify gzipped, plain and npz files."""

FASHION = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": tuple(digits),
    "fashion_mnist": tuple(FASHION.split(", ")),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "emnist/byclass": tuple(digits + ascii_uppercase + ascii_lowercase),
    "emnist/bymerge": tuple(digits + ascii_uppercase + "abdefghnqrt"),
    "emnist/balanced": tuple(digits + ascii_uppercase + "abdefghnqrt"),
    "emnist/letters": tuple(ascii_uppercase),
    "emnist/digits": tuple(digits),
    "emnist/mnist": tuple(digits),
    "digits": tuple(digits),
}
"""What the labels 0, 1, ... of each dataset mean."""

FALLBACK = """
========================================================================
{}

MNIST IS NOT HERE. Going on with `digits` instead: 1,797 small digits of
8 x 8 pixels that come with scikit-learn. Nothing below is about MNIST.
========================================================================
"""


class Examples(NamedTuple):
    """Images with their labels; a pytree."""

    # Any: arrays of NumPy or JAX. Naming JAX's type would need its import (half a second).
    images: UInt8[Any, "n height width"]
    labels: Integer[Any, "n"]


class Dataset(NamedTuple):
    """Training and test examples in their official order."""

    name: str
    train: Examples  # a large file of images is a np.memmap, to read with `files.read_images`
    test: Examples
    class_names: tuple[str, ...]
    sha256: tuple[str, ...]  # of training images and labels, test images and labels, as IDX files

    @property
    def spec(self) -> "DataSpec":
        """The shapes and sizes of these data, for a network that is trained on all of them."""
        images, labels = self.train
        return DataSpec(images.shape[1:], len(self.class_names), len(labels))


class DataSpec(NamedTuple):
    """The shapes and sizes that a network needs to know about its data."""

    image_shape: tuple[int, ...]
    classes: int
    train_images: int  # of which an epoch uses as many as fill whole batches

    @property
    def pixels(self) -> int:
        """Pixels in an image."""
        return math.prod(self.image_shape)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch. Raises InputError if there are none."""
        return whole_batches(self.train_images, batch_size)


def whole_batches(train_images: int, batch_size: int) -> int:
    """The number of batches that `train_images` fill. Raises InputError if it is 0."""
    if batch_size > train_images:
        raise unusable("--batch-size", batch_size, f"at most the {train_images} training images")
    return train_images // batch_size


def load(name: str = "mnist", data_dir: Path | str | None = None) -> Dataset:
    """The dataset `name`, from `data_dir` or $MNIST_JAX_DATA, or else from the cache or a download.

    The files are in the data folder or in its subfolder `name`. In the folder that $MNIST_JAX_DATA
    names, datasets other than `mnist` and `local` must be in such a subfolder.
    `auto` is mnist; if that is not available, it is digits, with a warning on standard error.

    Raises:
        InputError: the name is unknown, or files are missing, damaged or of another dataset.
        DataUnavailable: the dataset is not here and cannot be downloaded.
    """
    if name == "auto":
        try:
            return load("mnist", data_dir)
        except DataUnavailable as error:
            print(FALLBACK.format(textwrap.fill(str(error), 72)), file=sys.stderr, flush=True)
            return load("digits")
    if name == "digits":
        return _validate(name, _embedded_digits())
    if name not in (*CLASS_NAMES, "local"):
        known = ", ".join(("auto", *CLASS_NAMES, "local"))
        raise InputError(f"--dataset {name} is unknown; choose one of {known}")
    folder = data_dir or default_folder(name)
    if folder:
        return _validate(name, files.read_data_dir(name, Path(folder).expanduser()))
    if name == "local":
        raise InputError(f"--dataset local needs --data-dir DIR, or {DATA_VARIABLE}, to read from")
    return _cached_or_downloaded(name)


def default_folder(name: str) -> str | None:
    """The folder that $MNIST_JAX_DATA names, if it may have the dataset `name`; see `load`."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder and (name in ("mnist", "local") or (Path(folder).expanduser() / name).is_dir()):
        return folder
    return None


def _embedded_digits() -> Arrays:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; the last fifth (other writers) is the test set.

    Source: UCI, Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), its test set.
    """
    with IMPORT_LOCK:
        from sklearn.datasets import load_digits  # takes more than a second

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    split = len(labels) * 4 // 5
    return images[:split], labels[:split], images[split:], labels[split:]


def _cached_or_downloaded(name: str) -> Dataset:
    """The dataset `name` from the cache. If it is not there, it is downloaded and cached.

    Raises:
        DataUnavailable: it cannot be downloaded.
    """
    path = download.cache_dir() / f"{name.replace('/', '-')}.npz"
    if path.is_file():
        try:
            return _validate(name, files.read_npz(path))
        except InputError as error:
            print(f"{error}: downloading {name} again", file=sys.stderr)
    arrays = files.read_published(name, download.fetch(name))
    try:
        with download.atomic_write(path) as stream:
            np.savez(stream, **dict(zip(NPZ_KEYS, arrays, strict=True)))
    except OSError as error:
        print(f"{name} could not be cached in {path}: {error.strerror}", file=sys.stderr)
    return _validate(name, arrays)


def _validate(name: str, arrays: Arrays) -> Dataset:
    """The dataset `name`, made of these four arrays.

    Raises:
        InputError: the arrays do not fit each other, or are not those of `name`.
    """
    x_train, y_train, x_test, y_test = arrays
    class_names = CLASS_NAMES.get(name) or tuple(map(str, range(256)))
    _check_examples(f"{name}'s training", x_train, y_train, len(class_names))
    if name not in CLASS_NAMES:
        class_names = class_names[: int(y_train.max()) + 1]
    _check_examples(f"{name}'s test", x_test, y_test, len(class_names))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(
            f"{name} has training images of {x_train.shape[1:]} pixels but test images of "
            f"{x_test.shape[1:]}; get the files from one source"
        )
    train = Examples(x_train, np.asarray(y_train, np.uint8))
    test = Examples(x_test, np.asarray(y_test, np.uint8))
    checksums = tuple(map(sha256_as_idx, (*train, *test)))
    for checksum, idx_name, expected in zip(checksums, IDX_NAMES, MNIST_SHA256, strict=True):
        if name == "mnist" and checksum != expected:
            raise InputError(
                f"{idx_name} is not MNIST's: its SHA-256 is {checksum}, expected {expected}; "
                "get the official file, or use your own data with --dataset local"
            )
    return Dataset(name, train, test, class_names, checksums)


def _check_examples(part: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    is_uint8 = images.ndim == 3 and images.dtype == np.uint8
    if not is_uint8 or images.size == 0 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{part} images are {images.dtype} {images.shape}, its labels {labels.shape}; "
            "expected uint8 (n, height, width) and (n,): get the files from one source"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        values = np.unique(labels)
        raise InputError(
            f"{part} labels are {labels.dtype} from {values[0]} to {values[-1]}; expected whole "
            f"numbers from 0 to {classes - 1}: the file is damaged or another dataset's"
        )


def sha256_as_idx(array: UInt8[np.ndarray, "..."]) -> str:
    """SHA-256 of `array` as a plain IDX file. If it is a memory map of one, that file is read."""
    if isinstance(array, np.memmap):
        with Path(str(array.filename)).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def train_val_split(examples: Examples, validation_images: int) -> tuple[Examples, Examples]:
    """Training and validation examples: the last `validation_images` are held out for validation.

    Validation images are in memory; training images may be a np.memmap.

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
