"""A picture file of one digit becomes an image like those that the network learned from."""

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from mnist_jax.config import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Plain pixels. Pillow has other programs read some of the rest, as Ghostscript EPS."""

LARGEST_FILE = 100_000_000
"""Bytes; a larger file is not opened."""

LARGEST_PHOTO = 60_000_000
"""Pixels; a larger picture is refused before it is unpacked.

Reading one takes less than a gigabyte of memory.
"""

TILE = 1024
"""Pixels along a side of what is made grey at once: the steps between take many times as much."""

FAINTEST_INK = 32
"""Grey values, of 255, by which ink must differ from the paper."""


def read_photo(file: Path) -> UInt8[np.ndarray, "rows columns"]:
    """The grey values of a PNG, JPEG or other picture file, upright, on white where transparent.

    Raises:
        InputError: the file is missing, no picture, damaged or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # in favour of the check below, which warns nobody
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no plain file")
        if about.st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        with _quiet(), Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PHOTO:
                raise InputError(
                    f"{file} has {picture.width} x {picture.height} pixels; "
                    f"it takes at most {LARGEST_PHOTO:,}: scale it down"
                )
            ImageOps.exif_transpose(picture, in_place=True)
            grey = np.empty((picture.height, picture.width), np.uint8)
            for top in range(0, picture.height, TILE):
                for left in range(0, picture.width, TILE):
                    part = np.s_[top : top + TILE, left : left + TILE]
                    height, width = grey[part].shape
                    grey[part] = _grey(picture.crop((left, top, left + width, top + height)))
            return grey
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; check the name") from None
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        shown = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file} cannot be read as a picture ({shown}); it takes a PNG or JPEG file"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps decoders from printing what they stumble over; libtiff writes to the descriptor."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with (
        warnings.catch_warnings(action="ignore"),
        Path(os.devnull).open("w") as nowhere,
        os.fdopen(os.dup(2), "w") as errors,
    ):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(errors.fileno(), 2)


def _grey(picture: Image.Image) -> UInt8[np.ndarray, "rows columns"]:
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert would cut off
        return (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.asarray(picture.convert("L"))


def to_digit(
    photo: UInt8[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """A picture of one digit, made into an image like those that the network learned from.

    Dark ink on light paper becomes light ink on black. A picture of that very `shape` is then
    left as it is. Any other is cropped to the ink, scaled to fit 20 of the 28 pixels, and shifted
    until its centre of mass lies in the middle, as the digits of NIST were for MNIST
    (http://yann.lecun.com/exdb/mnist). Images smaller than MNIST's have no margin to leave.

    Raises:
        InputError: the picture is blank.
    """
    edge = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
    paper = float(np.median(edge))
    if photo.shape == shape:
        return 255 - photo if paper > 127 else photo
    levels = np.arange(256.0)
    ink = paper - levels if paper > 127 else levels - paper  # in a pixel of each grey value
    strongest = max(ink[photo.min()], ink[photo.max()])
    if strongest < FAINTEST_INK:
        raise InputError("the picture is blank; it takes a digit that stands out from the paper")
    ink = np.clip(ink / strongest, 0, 1)
    page = Image.fromarray(photo)
    box = page.point((ink > 0.3).tolist()).getbbox()
    whole = page.crop(box).point(ink.tolist(), "F")

    margin = 8 if min(shape) >= 28 else 0
    ratio = min(
        (side - margin) / length for side, length in zip(shape, whole.size[::-1], strict=True)
    )
    width, height = (max(1, round(length * ratio)) for length in whole.size)
    digit = np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))

    image = np.zeros(shape)
    top = _start(digit.sum(axis=1), shape[0])
    left = _start(digit.sum(axis=0), shape[1])
    image[top : top + height, left : left + width] = digit / digit.max()
    return np.round(255 * image).astype(np.uint8)


def _start(profile: Float[np.ndarray, "length"], side: int) -> int:
    """Where `profile` begins when its centre of mass lies in the middle of `side` pixels.

    The middle is pixel 14 of 0 to 27: there MNIST's own images have theirs.
    """
    centre = np.average(np.arange(len(profile)), weights=profile)
    return int(np.clip(round(side // 2 - centre), 0, side - len(profile)))
