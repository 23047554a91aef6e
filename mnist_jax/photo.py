"""A picture file of one digit becomes an image like those that the network learned from."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from mnist_jax.config import InputError

LARGEST_PHOTO = 100_000_000
"""Pixels; a larger picture is refused before it is unpacked."""


def read_photo(file: Path) -> UInt8[np.ndarray, "rows columns"]:
    """The grey values of a PNG, JPEG or other picture file, upright, on white where transparent.

    Raises:
        InputError: the file is missing, no picture, damaged or too large.
    """
    try:
        with warnings.catch_warnings(), Image.open(file) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if picture.width * picture.height > LARGEST_PHOTO:
                raise InputError(
                    f"{file} has {picture.width} x {picture.height} pixels; "
                    f"it takes at most {LARGEST_PHOTO:,}: scale it down"
                )
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16 bits a pixel, which convert would cut off
                return (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            if picture.has_transparency_data:
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            return np.asarray(picture.convert("L"))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; check the name") from None
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        shown = " ".join(str(error).split())
        raise InputError(
            f"{file} cannot be read as a picture ({shown}); it takes a PNG or JPEG file"
        ) from None


def to_digit(
    photo: UInt8[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """A picture of one digit, made into an image like those that the network learned from.

    A picture of that very `shape` is taken as it is. Any other becomes light ink on black, is
    cropped to the ink, scaled to fit the box that leaves a seventh of the image free as margin
    on every side (20 of MNIST's 28 pixels), and laid with its centre of mass in the middle, as
    NIST's digits were for MNIST (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist).

    Raises:
        InputError: the picture is blank.
    """
    if photo.shape == shape:
        return photo
    edge = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
    background = float(np.median(edge))
    ink = (background - photo) if background > 127 else (photo - background)
    if ink.max() < 32:
        raise InputError("the picture is blank; it takes a digit that stands out from the paper")
    ink = np.clip(ink / ink.max(), 0, 1)
    rows, columns = (np.flatnonzero((ink > 0.3).any(axis)) for axis in (1, 0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    box = [side - 2 * (side // 7) for side in shape]
    ratio = min(box[0] / cropped.shape[0], box[1] / cropped.shape[1])
    height, width = (max(1, round(side * ratio)) for side in cropped.shape)
    small = np.asarray(
        Image.fromarray(cropped.astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    )
    digit = small / small.max()

    canvas = np.zeros(shape)
    top, left = (
        int(np.clip(round(side / 2 - 0.5 - centre), 0, side - length))
        for side, length, centre in zip(
            shape,
            digit.shape,
            (
                np.average(np.arange(height), weights=digit.sum(1)),
                np.average(np.arange(width), weights=digit.sum(0)),
            ),
            strict=True,
        )
    )
    canvas[top : top + height, left : left + width] = digit
    return np.round(255 * canvas).astype(np.uint8)
