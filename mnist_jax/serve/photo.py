"""Reads a picture file as an array of grey values."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from mnist_jax.errors import InputError

# Pillow decodes these itself. For some other formats, such as EPS, it runs another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 60_000_000  # reading that many takes less than a gigabyte


def read_photo(file: Path) -> UInt8[np.ndarray, "rows columns"]:
    """The grey values of a PNG, JPEG or other picture, upright; transparent pixels become white.

    Raises:
        InputError: the file is missing, damaged, too large or not a picture.
    """
    try:
        if file.exists() and not file.is_file():  # such as a named pipe, which would block
            raise ValueError("it is not a regular file")
        with _silence(), Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            ImageOps.exif_transpose(picture, in_place=True)
            return _to_grey(picture)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; check the name") from None
    except Exception as error:  # Pillow's decoders raise many types on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file} cannot be read as a picture ({reason}); "
            f"use a PNG or JPEG file of at most {MAX_PIXELS:,} pixels"
        ) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides warnings, and what libtiff writes to the file descriptor of standard error."""
    stderr = os.dup(2)
    with warnings.catch_warnings(action="ignore"), Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _to_grey(picture: Image.Image) -> UInt8[np.ndarray, "rows columns"]:
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert would clip
        return (np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        grey = Image.new("L", picture.size, "white")
        grey.paste(picture.convert("L"), mask=picture.getchannel("A"))
        return np.asarray(grey)
    return np.asarray(picture.convert("L"))
