"""A picture file becomes grey values, whatever it may be."""

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
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
