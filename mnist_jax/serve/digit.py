"""Turns a photo of one digit into an image like those that the network was trained on.

The digit is segmented from the paper, cropped to its bounding box, scaled and centred by mass.
"""

import math
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from mnist_jax.errors import InputError

ndimage: Any = scipy.ndimage  # SciPy has no annotations, and the types inferred for it are wrong

MIN_CONTRAST = 32  # grey values, of 255, by which a digit must differ from the paper
MAX_SIDE = 1000  # pixels; a larger photo is scaled down before the digit is segmented
THRESHOLD = 0.35  # of the strongest contrast; less is paper, a shadow or a printed line
MIN_DIGIT_HEIGHT = 0.4  # of the tallest mark's: a shorter mark is part of a digit, or a speck

Photo = UInt8[np.ndarray, "rows columns"]
Grey = Float[np.ndarray, "rows columns"]
Mask = Bool[np.ndarray, "rows columns"]


def to_digit(photo: Photo, shape: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """An image of `shape`, light on black, of the one digit in `photo`.

    The digit may be dark on light paper or light on dark paper. If the photo already has this
    `shape`, and a large digit in its middle, it is only inverted if needed.

    Raises:
        InputError: the photo is blank, or shows no digit or several.
    """
    if photo.shape == shape:
        paper = np.median(np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]]))
        image = 255 - photo if paper > 127 else photo
        is_pure = min(paper, 255 - paper) < MIN_CONTRAST <= np.ptp(photo)
        if is_pure and (min(shape) < 28 or _is_centred(image)):
            return image
    return centre_by_mass(segment_digit(photo), shape)


def _is_centred(image: Photo) -> bool:
    """Whether a light digit on black is as large and as near the middle as MNIST's are.

    MNIST's are 13 to 20 of 28 pixels long; their boxes are at most 5.5 pixels off the middle.
    """
    box = bounding_box(image > 0.3 * image.max())
    starts, ends = np.array([(side.start, side.stop) for side in box]).T
    length = ((ends - starts) / image.shape).max()
    offset = np.abs((starts + ends) / image.shape - 1).max() / 2
    return bool(length >= 13 / 28 and offset <= 6 / 28)


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """The rows and the columns that `mask` spans."""
    return ndimage.find_objects(mask.astype(int))[0]


def centre_by_mass(digit: Grey, shape: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """An image of `shape` with the `digit`, which is cropped to its bounding box.

    As in MNIST, the digit is scaled to fit 20 of the 28 pixels, and its centre of mass is in the
    middle (http://yann.lecun.com/exdb/mnist). Smaller images have no margin.
    """
    margin = 8 if min(shape) >= 28 else 0
    ratio = ((np.array(shape) - margin) / digit.shape).min()
    height, width = np.maximum(1, np.round(ratio * np.array(digit.shape))).astype(int).tolist()
    scaled = _resize(digit, height, width).astype(float)
    # The middle of 28 pixels is number 14, counted from 0: MNIST's images are centred there.
    corner = np.round(np.array(shape) // 2 - ndimage.center_of_mass(scaled))
    top, left = np.clip(corner, 0, np.subtract(shape, scaled.shape)).astype(int)
    image = np.zeros(shape)
    image[top : top + height, left : left + width] = scaled / scaled.max()
    return np.round(255 * image).astype(np.uint8)


def segment_digit(photo: Photo) -> Float[np.ndarray, "height width"]:
    """The one digit in `photo`, cropped to its bounding box: 0 is paper, 1 is a full stroke.

    Raises:
        InputError: the photo is blank, or shows no digit or several.
    """
    image = _downsample(photo, math.ceil(max(photo.shape) / MAX_SIDE))
    if max(image.shape) < 100:
        image = _resize(image, 4 * image.shape[0], 4 * image.shape[1])
    background = _estimate_background(image)
    smooth = ndimage.gaussian_filter(image, 1)
    contrast = smooth - background
    if np.abs(contrast).max() < MIN_CONTRAST:
        raise InputError("the picture is blank; it must show a digit that contrasts with the paper")
    # If the strongest contrast is a table's edge or a reflection, the digit has the other sign.
    for sign in (-1, 1) if -contrast.min() > contrast.max() else (1, -1):
        # Paper and strokes are lit alike, so their ratio is the same in light and shadow.
        scale = background if sign < 0 else background + 20  # black paper reflects little light
        mask = _find_digit(sign * smooth, sign * background, scale)
        if mask is not None:
            near = ndimage.binary_dilation(mask, iterations=2)
            digit = np.where(near, image - background, 0) / scale
            digit = (digit / np.quantile(digit[mask], 0.5 + 0.4 * sign)).clip(0, 1)
            # Without rounding, floating-point errors could shift the digit by a pixel.
            return np.round(255 * digit[bounding_box(mask)]) / 255
    raise InputError(
        "no digit stands out in the picture; it must show one in clear strokes on plain paper"
    )


def _downsample(image: Photo | Grey, factor: int) -> Float[np.ndarray, "height width"]:
    """The means of squares of `factor` x `factor` pixels."""
    return np.asarray(Image.fromarray(image).reduce(factor), np.float32)


def _resize(image: Grey, height: int, width: int) -> Float[np.ndarray, "height width"]:
    picture = Image.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _estimate_background(image: Grey) -> Grey:
    """The grey value of the paper at each pixel, including light and shadow.

    A median over a window wider than any stroke follows light with straight edges. It is refined by
    a weighted mean of the nearby paper, which follows light with round edges too.
    """
    shorter = min(image.shape)
    coarse = _downsample(image, math.ceil(shorter / 32))
    window = int(0.9 * min(coarse.shape)) | 1  # odd
    background = _resize(ndimage.median_filter(coarse, window, mode="nearest"), *image.shape)

    factor = max(1, shorter // 100)
    fine, background = _downsample(image, factor), _downsample(background, factor)
    sigma = 0.05 * min(fine.shape)
    for _ in range(3):
        contrast = np.abs(fine - background)
        strokes = contrast > max(0.25 * contrast.max(), MIN_CONTRAST / 4)
        paper = (~ndimage.binary_dilation(strokes)).astype(np.float32)
        # The 0.02 keeps the old estimate inside a wide stroke, which has no paper nearby.
        total = ndimage.gaussian_filter(paper, sigma) + 0.02
        background = (ndimage.gaussian_filter(fine * paper, sigma) + 0.02 * background) / total
    return _resize(background, *image.shape).clip(1, 255)  # not 0: it is a divisor


def _find_digit(smooth: Grey, background: Grey, scale: Grey) -> Mask | None:
    """The pixels of the one digit, where `smooth` is above `background`; None if there is none."""
    contrast = (smooth - background) / scale
    noise = 1.4826 * np.median(np.abs(contrast - ndimage.uniform_filter(contrast, 9)))
    if contrast.max() < max(MIN_CONTRAST / 255, 6 * noise):
        return None
    is_mark = contrast > max(THRESHOLD * contrast.max(), 3 * noise)
    labels, count = ndimage.label(is_mark, np.ones((3, 3)))
    index = np.arange(1, count + 1)  # of the marks
    mass = ndimage.sum_labels(contrast, labels, index)
    radius = ndimage.maximum(ndimage.distance_transform_edt(labels), labels, index)

    # A stroke is lighter than both of its sides; the edge of a shadow is lighter than one side.
    main_radius = radius[mass.argmax()]
    smoother = ndimage.gaussian_filter(smooth, main_radius / 3)
    top_hat = ndimage.white_tophat(smoother, 4 * math.ceil(main_radius) + 1)
    height = ndimage.mean(smooth - background, labels, index)
    is_stroke = ndimage.mean(top_hat, labels, index) > 0.5 * height

    # A mark that touches the photo's border is a table or a line, unless there is nothing else.
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    on_border = np.isin(index, border)
    lengths = _box_sizes(labels).max(axis=1)
    inside = is_stroke & ~on_border & (lengths > 0.02 * max(contrast.shape))
    candidates = inside if inside.any() else is_stroke
    main = np.where(candidates, mass, 0).argmax()
    has_rivals = mass[main] < 0.5 * mass.sum() or (lengths > 0.9 * lengths[main]).sum() > 1
    if not candidates[main] or (on_border[main] and has_rivals):
        return None
    candidates &= mass > 0.03 * mass[main]
    return _merge_strokes(np.append(False, candidates)[labels], int(lengths[main]))


def _box_sizes(labels: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, "components 2"]:
    """The height and the width of each component's bounding box, in pixels."""
    boxes = ndimage.find_objects(labels)
    return np.array([[side.stop - side.start for side in box] for box in boxes])


def _merge_strokes(strokes: Mask, length: int) -> Mask | None:
    """The digit that the `strokes` form; None if they form a blob or a grid.

    `length` is the longer side of the main stroke's box, in pixels.
    """
    window = 2 * round(0.04 * length) + 1  # strokes with smaller gaps than this are joined
    parts, _ = ndimage.label(ndimage.maximum_filter(strokes, window), np.ones((3, 3)))
    parts = np.where(strokes, parts, 0)
    heights = _box_sizes(parts)[:, 0]
    count = (heights > MIN_DIGIT_HEIGHT * heights.max()).sum()
    if count > 1:
        raise InputError(
            f"the picture shows {count} digits or marks of similar height; crop it to one digit"
        )
    tallest, *smaller = np.argsort(-heights) + 1
    digit = parts == tallest
    for part in smaller:  # such as the bar of a 5
        union = digit | (parts == part)
        if _box_sizes(union.astype(int)).max() <= 1.4 * length:
            digit = union
    radius = ndimage.distance_transform_edt(np.pad(digit, 1)).max()
    holes = ndimage.label(~np.pad(digit, 1))[1] - 1
    return digit if radius <= 0.25 * length and holes <= 8 else None
