import contextlib
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from mnist_jax.errors import InputError
from mnist_jax.serve.digit import to_digit
from tests.conftest import drawn


def test_an_image_of_the_right_shape_is_returned_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    image[0] = image[-1] = image[:, 0] = 0
    assert to_digit(image, (28, 28)) is image
    np.testing.assert_array_equal(to_digit(255 - image, (28, 28)), image)  # or inverted


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (230, 60), (20, 140)])
def test_a_bar_on_paper_becomes_a_centred_bar_20_pixels_tall(paper, ink):
    digit = to_digit(drawn(paper=paper, ink=ink), (28, 28))
    expected = np.zeros((28, 28), np.uint8)
    expected[4:24, 12:16] = 255  # 20 tall, a fifth as wide, in the middle
    np.testing.assert_array_equal(digit, expected)


def test_a_wide_shape_is_20_pixels_wide():
    digit = to_digit(drawn(width=400, tall=30, wide=150), (28, 28))
    assert (digit.max(1) > 128).sum() == 4
    assert (digit.max(0) > 128).sum() == 20


def test_the_centre_of_mass_lies_in_the_middle():
    """The box and the mass of an L have different centres; MNIST images are centred by mass."""
    picture = drawn(tall=200, wide=20, left=50)
    picture[210:230, 50:150] = 0
    digit = to_digit(picture, (28, 28)).astype(float)
    for axis in (0, 1):
        centre = np.average(np.arange(28), weights=digit.sum(1 - axis))
        assert abs(centre - 14) <= 0.51


def test_an_image_of_another_shape_is_centred():
    wide = drawn(height=28, width=40, top=5, left=10, tall=15, wide=3)
    assert to_digit(wide, (28, 28)).shape == (28, 28)


def test_a_small_image_has_no_margin():
    digit = to_digit(drawn(), (8, 8))
    assert (digit.max(1) > 128).all()


def test_a_shadow_on_the_paper_is_ignored_and_a_light_stroke_is_not():
    shadowed, light = drawn(), drawn()
    shadowed[150:200, 20:60] = 205  # a fifth as dark as the ink
    light[130:150, 120:140] = 125  # the bar continues, half as dark
    bar = to_digit(drawn(), (28, 28))
    np.testing.assert_array_equal(to_digit(shadowed, (28, 28)).argmax(0), bar.argmax(0))
    assert (to_digit(shadowed, (28, 28)) > 128).sum() == 80
    assert (
        to_digit(light, (28, 28)) > 128
    ).sum() < 80  # it is longer, so thinner when it is scaled to fit


def test_a_glare_on_the_paper_is_ignored():
    picture = drawn(paper=200)
    picture[10:20, 10:60] = 255
    np.testing.assert_array_equal(to_digit(picture, (28, 28)), to_digit(drawn(), (28, 28)))


def test_a_hairline_is_as_bright_as_a_thick_stroke():
    assert to_digit(drawn(height=600, tall=400, wide=3), (28, 28)).max() == 255


def test_a_faint_digit_is_read_and_a_fainter_one_is_refused():
    assert to_digit(drawn(paper=250, ink=200), (28, 28)).max() == 255
    with pytest.raises(InputError, match="blank"):
        to_digit(drawn(paper=250, ink=235), (28, 28))


def test_a_speck_at_the_edge_does_not_invert_the_picture():
    picture = drawn()
    picture[0, :50] = 0
    assert to_digit(picture, (28, 28)).mean() < 128


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_picture_is_refused(grey):
    with pytest.raises(InputError, match="blank"):
        to_digit(np.full((50, 60), grey, np.uint8), (28, 28))


def test_mnist_images_have_the_same_centre_of_mass(mnist):
    """At pixel 14 of 0 to 27, to half a pixel: they were shifted by whole pixels."""
    images = mnist.test.images.astype(float)
    for axis in (1, 2):
        profiles = images.sum(3 - axis)
        centres = (profiles * np.arange(28)).sum(1) / profiles.sum(1)
        assert abs(centres.mean() - 14) < 0.02
        assert np.quantile(np.abs(centres - 14), 0.98) < 0.51


def test_enlarged_inverted_and_shifted_mnist_images_are_recovered(mnist):
    """The result differs from the original only by resampling."""
    distances, other_distances = [], []
    for image, other in zip(mnist.test.images[:100], mnist.test.images[100:200], strict=True):
        large = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        page = Image.new("L", (500, 400), 255)
        page.paste(large, (40, 90))
        digit = to_digit(np.asarray(page), (28, 28)).astype(float)
        distances.append(np.abs(digit - image).mean())
        other_distances.append(np.abs(digit - other).mean())
    assert np.mean(distances) < 0.25 * np.mean(other_distances)


def light_from_right(page, darkest=0.35):
    """The page under a lamp at its right; its left is `darkest` times as bright."""
    light = np.linspace(darkest, 1, page.shape[1])
    return (page * light).round().astype(np.uint8)


def mean_difference(digit, expected):
    """The mean difference at the best shift: the middle of a bar is between two pixels."""
    shifted = [np.roll(digit.astype(int), shift, (0, 1)) for shift in np.ndindex(3, 3)]
    return min(np.abs(np.roll(image, (-1, -1), (0, 1)) - expected).mean() for image in shifted)


def difference_from_bar(picture):
    return mean_difference(to_digit(picture, (28, 28)), to_digit(drawn(), (28, 28)))


@pytest.mark.parametrize(("paper", "ink"), [(240, 40), (40, 220)])
def test_uneven_light_is_ignored(paper, ink):
    """Dark ink in the light is hardly darker than paper in the shade."""
    picture = light_from_right(drawn(height=400, width=600, left=500, top=80, paper=paper, ink=ink))
    assert difference_from_bar(picture) < 3


@pytest.mark.parametrize(("depth", "softness"), [(0.65, 1), (0.5, 60)])
def test_a_shadow_across_the_digit_is_ignored(depth, softness):
    across = np.clip((np.arange(400) - 205) / softness + 0.5, 0, 1)
    light = 1 - (1 - depth) * across
    picture = drawn(height=400, width=400, left=190, top=100, paper=230, ink=60)
    assert difference_from_bar((picture * light).astype(np.uint8)) < 3
    with pytest.raises(InputError, match=r"blank|no digit stands out"):  # the shadow alone
        to_digit((np.full((400, 400), 230) * light).astype(np.uint8), (28, 28))


def test_noise_neither_hides_a_digit_nor_looks_like_one():
    random = np.random.default_rng(0)
    noise = random.normal(0, 25, (300, 300))
    picture = drawn(300, 300, top=60, left=60, tall=200, wide=40, paper=200, ink=80)
    assert difference_from_bar((picture + noise).clip(0, 255).astype(np.uint8)) < 6
    for page in (200 + noise, random.integers(0, 256, (300, 300))):
        with pytest.raises(InputError, match=r"blank|no digit stands out"):
            to_digit(page.clip(0, 255).astype(np.uint8), (28, 28))


def test_the_edge_of_a_table_and_a_dark_rim_are_ignored():
    table, rim = (drawn(400, 500, top=150, left=300, paper=230, ink=40) for _ in range(2))
    table[:80] = table[:, :100] = 60
    rim[:, :25] = 40
    for picture in (table, rim):
        assert difference_from_bar(picture) < 3


@pytest.mark.parametrize(("paper", "ink", "smudge"), [(100, 240, 50), (150, 20, 200)])
def test_the_digit_has_the_sign_of_the_stronger_contrast(paper, ink, smudge):
    picture = drawn(300, 300, paper=paper, ink=ink)
    picture[200:208, 40:80] = smudge
    assert difference_from_bar(picture) < 3


def test_the_round_soft_shadow_of_a_hand_is_ignored():
    down, across = np.mgrid[:300, :300]
    distance = np.hypot(down - 150, across - 80)
    light = 1 - 0.3 / (1 + np.exp((distance - 80) / 12))
    picture = drawn(300, 300, top=100, left=180, paper=230, ink=90) * light
    assert difference_from_bar(picture.astype(np.uint8)) < 3


def test_a_digit_cropped_to_its_bounding_box_is_read(mnist):
    """If it is thin; around a thick one there is too little paper left."""
    distances = []
    for image in mnist.train.images[-30:]:
        page = np.kron(255 - image, np.ones((8, 8), np.uint8))
        rows, columns = (np.flatnonzero((page < 128).any(axis)) for axis in (1, 0))
        tight = page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        with contextlib.suppress(InputError):
            distances.append(mean_difference(to_digit(tight, (28, 28)), to_digit(page, (28, 28))))
    assert len(distances) >= 25
    assert np.median(distances) < 9  # of two different digits it is about 40


def five(gap):
    """A 5 whose top bar is `gap` pixels away from the rest."""
    picture = np.full((300, 300), 240, np.uint8)
    picture[60:75, 150 + gap : 220 + gap] = 20
    picture[60:130, 135:150] = picture[130:145, 135:200] = 20
    picture[145:210, 185:200] = picture[195:210, 130:185] = 20
    return picture


def test_the_bar_of_a_5_may_be_separate():
    connected, separate = (to_digit(five(gap), (28, 28)) for gap in (0, 24))
    rows, columns = slice(4, 8), slice(14, 24)
    assert (connected[rows, columns] > 128).sum() > 5
    assert abs((separate > 128).sum() - (connected > 128).sum()) < 12
    assert (separate[rows, columns] > 128).sum() > 5


def test_specks_and_an_underline_are_ignored():
    picture = drawn(300, 300, top=60)
    bar = to_digit(picture, (28, 28))
    for row, column in ((30, 30), (250, 200), (100, 250), (110, 160)):
        picture[row : row + 7, column : column + 7] = 0
    picture[200:205, 20:280] = 0
    np.testing.assert_array_equal(to_digit(picture, (28, 28)), bar)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (3000, 2), (7, 5), (99, 101), (28, 28)])
def test_any_shape_is_read_or_refused(shape):
    for page in (np.random.default_rng(0).integers(0, 256, shape), np.eye(*shape) * 255):
        with contextlib.suppress(InputError):
            assert to_digit(page.astype(np.uint8), (28, 28)).shape == (28, 28)


@pytest.mark.parametrize("count", [2, 3, 40])
def test_several_digits_are_counted_and_refused(count):
    picture = np.full((400, 900), 240, np.uint8)
    for number in range(count):
        top, left = 100 * (number // 10) + 20, 80 * (number % 10) + 40
        picture[top : top + 60, left : left + 15] = 30
    with pytest.raises(
        InputError, match=f"shows {count} digits or marks of similar height; crop it"
    ):
        to_digit(picture, (28, 28))


def test_a_ball_and_a_grid_are_refused():
    down, across = np.mgrid[:300, :400]
    ball = np.where(np.hypot(down - 150, across - 200) < 60, 40, 230).astype(np.uint8)
    grid = np.where((down % 30 < 3) | (across % 30 < 3), 40, 230).astype(np.uint8)
    framed = np.full((300, 400), 230, np.uint8)
    framed[60:243, 90:273] = grid[60:243, 90:273]
    for picture in (ball, grid, framed):
        with pytest.raises(InputError, match="no digit stands out"):
            to_digit(picture, (28, 28))


def test_faint_lines_on_paper_are_ignored_and_dark_ones_are_refused():
    for line in (180, 30):
        picture = np.full((400, 500), 240, np.uint8)
        picture[15::30] = picture[16::30] = line
        picture[100:300, 200:240] = 30
        if line == 180:
            assert difference_from_bar(picture) < 3
        else:
            with pytest.raises(InputError, match="no digit stands out"):
                to_digit(picture, (28, 28))


def test_all_mnist_and_digits_images_are_returned_unchanged(mnist, digits):
    for images in (mnist.train.images[-5000:], digits.train.images):
        for image in images:
            assert to_digit(image, image.shape) is image


def test_a_small_grey_page_of_the_right_shape_is_segmented(mnist):
    """Such as a photo that was scaled down to 28 x 28 pixels."""
    image = mnist.test.images[0]
    grey = (200 - image * 0.6).astype(np.uint8)
    assert np.abs(to_digit(grey, (28, 28)).astype(int) - image).mean() < 12
    small = np.full((28, 28), 255, np.uint8)
    small[1:13, 14:26] = 255 - np.asarray(Image.fromarray(image[4:28, 2:26]).resize((12, 12)))
    assert np.abs(to_digit(small, (28, 28)).astype(int) - image).mean() < 25
    with pytest.raises(InputError, match="blank"):
        to_digit(np.full((28, 28), 255, np.uint8), (28, 28))


def test_a_digit_of_12_pixels_is_found(mnist):
    distances = []
    for image in mnist.train.images[-40:]:
        page = np.zeros((40, 32), np.uint8)
        page[5:17, 9:21] = np.asarray(Image.fromarray(image[2:26, 2:26]).resize((12, 12)))
        with contextlib.suppress(InputError):
            distances.append(mean_difference(to_digit(page, (28, 28)), image))
    assert len(distances) >= 34
    assert np.mean(distances) < 20


def test_a_large_photo_takes_little_memory():
    picture = drawn(6000, 9000, top=2000, left=4000, tall=1000, wide=200, paper=220, ink=60)
    tracemalloc.start()
    digit = to_digit(picture, (28, 28))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
    assert mean_difference(digit, to_digit(drawn(), (28, 28))) < 3
