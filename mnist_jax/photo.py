"""A picture file of one digit becomes an image like those that the network learned from."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from mnist_jax.config import InputError

LARGEST_PHOTO = 100_000_000
"""Pixels; a larger picture is refused before it is unpacked."""

FAINTEST_INK = 32
"""Grey values, of 255, by which ink must differ from the paper."""


def read_photo(file: Path) -> UInt8[np.ndarray, "rows columns"]:
    """The grey values of a PNG, JPEG or other picture file, upright, on white where transparent.

    Raises:
        InputError: the file is missing, no picture, damaged or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # in favour of the check below, which warns nobody
    try:
        with Image.open(file) as picture:
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
    ink = paper - photo if paper > 127 else photo - paper
    if ink.max() < FAINTEST_INK:
        raise InputError("the picture is blank; it takes a digit that stands out from the paper")
    ink = np.clip(ink / ink.max(), 0, 1)
    rows, columns = (np.flatnonzero((ink > 0.3).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    margin = 8 if min(shape) >= 28 else 0
    ratio = min((side - margin) / length for side, length in zip(shape, ink.shape, strict=True))
    height, width = (max(1, round(length * ratio)) for length in ink.shape)
    whole = Image.fromarray(ink.astype(np.float32))
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
