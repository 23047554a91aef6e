"""The one digit in a photo becomes an image like those that the network learned from."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from mnist_jax.config import InputError

FAINTEST_INK = 32
"""Grey values, of 255, by which ink must differ from the paper."""

LONGEST_SIDE = 1000
"""Pixels; a larger photo is looked at on a smaller scale."""

INK_SHARE = 0.35
"""Of the strongest ink: what has less is paper, a shadow or a printed line."""

TALL_SHARE = 0.4
"""Of the tallest mark's height: what is less tall is a part of a digit, or a speck."""

Grey = Float[np.ndarray, "down across"]
Mask = Bool[np.ndarray, "down across"]
Photo = UInt8[np.ndarray, "rows columns"]


def to_digit(
    photo: UInt8[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """A photo of one digit, made into an image like those that the network learned from.

    Dark ink on light paper, or light on dark, becomes light ink on black, placed as MNIST's is. A
    picture of that very `shape` whose digit lies well in it is left as it is, but for its colours.

    Raises:
        InputError: the photo is blank, or shows no digit or several.
    """
    if photo.shape == shape:
        edge = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
        paper = np.median(edge)
        image = 255 - photo if paper > 127 else photo
        is_pure = min(paper, 255 - paper) < FAINTEST_INK <= np.ptp(photo)
        if is_pure and (min(shape) < 28 or _lies_well(image)):
            return image
    return centred(_ink_of_one(photo), shape)


def centred(
    ink: Float[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """A digit's `ink`, cropped to its box, as the digits of NIST were laid into MNIST's images.

    It is scaled to fit 20 of the 28 pixels, and shifted until its centre of mass lies in the middle
    (http://yann.lecun.com/exdb/mnist). Images smaller than MNIST's have no margin to leave.
    """
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


def _lies_well(image: UInt8[np.ndarray, "height width"]) -> bool:
    """Whether light ink on black is neither small nor far from the middle, as on a page.

    Of 28 pixels MNIST's digits are 13 to 20 long, and their boxes at most 5.5 from the middle.
    """
    rows, columns = (np.flatnonzero((image > 0.3 * image.max()).any(axis)) for axis in (1, 0))
    starts, ends = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]]) + 1
    longest = ((ends - starts) / image.shape).max()
    off = np.abs((starts + ends) / image.shape - 1).max() / 2
    return bool(longest >= 13 / 28 and off <= 6 / 28)


def _ndimage() -> Any:
    """SciPy's image functions, imported when a photo comes, and without types that fit."""
    from scipy import ndimage

    return ndimage


def _ink_of_one(photo: Photo) -> Float[np.ndarray, "height width"]:
    """The ink, in [0, 1], in the box of the one digit in `photo`."""
    ndimage = _ndimage()
    page = _reduced(photo, -(-max(photo.shape) // LONGEST_SIDE))
    if max(page.shape) < 100:
        page = _stretched(page, tuple(4 * side for side in page.shape))
    paper = _paper(page)
    smooth = ndimage.gaussian_filter(page, 1)
    stands_out = smooth - paper
    if np.abs(stands_out).max() < FAINTEST_INK:
        raise InputError("the picture is blank; it takes a digit that stands out from the paper")
    # A table's edge, or a reflection, may stand out more than the ink: then the other side is next.
    for sign in (-1, 1) if -stands_out.min() > stands_out.max() else (1, -1):
        # What light falls on paper falls on its ink: their ratio is the same in a shadow.
        scale = paper if sign < 0 else paper + 20  # black paper has hardly any light to divide by
        digit = _find_digit(sign * smooth, sign * paper, scale)
        if digit is not None:
            ink = np.where(ndimage.binary_dilation(digit, iterations=2), page - paper, 0) / scale
            share = (ink / np.quantile(ink[digit], 0.5 + 0.4 * sign)).clip(0, 1)
            share = share[ndimage.find_objects(digit.astype(int))[0]]
            return np.round(255 * share) / 255  # as rounding errors must not move a digit
    raise InputError(
        "no digit stands out in the picture; it takes one in clear strokes on plain paper"
    )


def _reduced(page: Photo | Float[np.ndarray, "rows columns"], factor: int) -> Grey:
    """The means of squares of `factor` x `factor` pixels."""
    return np.asarray(Image.fromarray(page).reduce(factor), np.float32)


def _paper(page: Grey) -> Grey:
    """The grey that each pixel would have without ink, light and shadow included.

    The median of a window wider than any stroke is paper, and follows straight edges of light. Its
    second look, a weighted mean of nearby pixels without ink, follows round ones too.
    """
    ndimage = _ndimage()
    short = min(page.shape)
    coarse = _reduced(page, -(-short // 32))
    window = int(0.9 * min(coarse.shape)) | 1
    paper = _stretched(ndimage.median_filter(coarse, window, mode="nearest"), page.shape)

    factor = max(1, short // 100)
    fine, paper = _reduced(page, factor), _reduced(paper, factor)
    sigma = 0.05 * min(fine.shape)
    for _ in range(3):
        off = np.abs(fine - paper)
        ink = ndimage.binary_dilation(off > max(0.25 * off.max(), FAINTEST_INK / 4))
        bare = (~ink).astype(np.float32)
        total = ndimage.gaussian_filter(bare, sigma) + 0.02  # within wide ink the paper stays
        paper = (ndimage.gaussian_filter(fine * bare, sigma) + 0.02 * paper) / total
    return _stretched(paper, page.shape).clip(1, 255)  # as it is divided by


def _stretched(small: Grey, shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    whole = Image.fromarray(small.astype(np.float32))
    height, width = shape
    return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))


def _find_digit(light: Grey, paper: Grey, scale: Grey) -> Mask | None:
    """The pixels of the one digit, where the smoothed `light` rises above the `paper`."""
    ndimage = _ndimage()
    ink = (light - paper) / scale
    noise = 1.4826 * np.median(np.abs(ink - ndimage.uniform_filter(ink, 9)))
    limit = max(INK_SHARE * ink.max(), 3 * noise)
    if ink.max() < max(FAINTEST_INK / 255, 6 * noise):
        return None
    marks, count = ndimage.label(ink > limit, np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    mass = ndimage.sum_labels(ink, marks, numbers)
    radius = ndimage.maximum(ndimage.distance_transform_edt(marks), marks, numbers)

    # A stroke is lighter than what lies on both its sides, the edge of a shadow than on one.
    widest = radius[mass.argmax()]
    even = ndimage.gaussian_filter(light, widest / 3)
    hat = ndimage.white_tophat(even, 4 * int(np.ceil(widest)) + 1)
    good = ndimage.mean(hat, marks, numbers) > 0.5 * ndimage.mean(light - paper, marks, numbers)

    # What touches the edge of the photo is a table or a line, if there is anything else.
    edge = np.isin(numbers, np.concatenate([marks[0], marks[-1], marks[:, 0], marks[:, -1]]))
    lengths = _lengths(marks)
    inside = good & ~edge & (lengths > 0.02 * max(ink.shape))
    chosen = inside if inside.any() else good
    main = np.where(chosen, mass, 0).argmax()
    is_one_of_many = mass[main] < 0.5 * mass.sum() or (lengths > 0.9 * lengths[main]).sum() > 1
    if not chosen[main] or (edge[main] and is_one_of_many):
        return None
    chosen &= mass > 0.03 * mass[main]
    return _together(np.append(False, chosen)[marks], int(lengths[main]))


def _lengths(marks: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, "marks"]:
    """The longer side of each mark's box."""
    ndimage = _ndimage()
    boxes = ndimage.find_objects(marks)
    return np.array([max(side.stop - side.start for side in box) for box in boxes])


def _together(marks: Mask, length: int) -> Mask | None:
    """The digit that the pieces in `marks` make, the main one `length` pixels long; no blob."""
    ndimage = _ndimage()
    reach = 2 * round(0.04 * length) + 1  # pieces with a smaller gap than that are one
    parts, _ = ndimage.label(ndimage.maximum_filter(marks, reach), np.ones((3, 3)))
    parts = np.where(marks, parts, 0)
    boxes = ndimage.find_objects(parts)
    heights = np.array([rows.stop - rows.start for rows, _ in boxes])
    tall = (heights > TALL_SHARE * heights.max()).sum()
    if tall > 1:
        raise InputError(f"the picture shows {tall} digits or marks as tall; crop it to one")
    digit = np.zeros_like(marks)
    for number in np.argsort(-heights) + 1:  # first the tall one; then, say, the bar of a 5
        both = digit | (parts == number)
        if not digit.any() or _lengths(both.astype(int))[0] <= 1.4 * length:
            digit = both
    radius = ndimage.distance_transform_edt(np.pad(digit, 1)).max()
    holes = ndimage.label(~np.pad(digit, 1))[1] - 1
    return digit if radius <= 0.25 * length and holes <= 8 else None
