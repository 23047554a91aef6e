import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mnist_jax.augment import (
    Affine,
    Strength,
    affine,
    deform,
    deform_batch,
    elastic,
    resample,
    strength_of,
)
from mnist_jax.config import Config
from mnist_jax.prng import key

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (28, 28)).astype(np.uint8)


def by_scipy(image, coordinates):
    return ndimage.map_coordinates(
        image.astype(np.float64), np.asarray(coordinates, np.float64), order=1, mode="grid-constant"
    )


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (5, 9)])
def test_resampling_is_scipys(shape):
    image = RANDOM.integers(0, 256, shape).astype(np.uint8)
    coordinates = np.indices(shape) + RANDOM.normal(scale=4, size=(2, *shape))  # many lie outside
    coordinates = coordinates.astype(np.float32)
    actual = resample(image, coordinates)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual / 255, by_scipy(image, coordinates) / 255, atol=1e-4)


@settings(max_examples=30)
@given(
    st.floats(-180, 180), st.floats(-60, 60), st.floats(0.5, 2), st.floats(0.5, 2),
    st.floats(-9, 9), st.floats(-9, 9),
)  # fmt: skip
def test_affine_is_scipys(rotation, shear, tall, wide, down, right):
    """SciPy takes the inverse matrix, which is computed here from the forward one."""
    shape = (9, 13)
    image = RANDOM.integers(0, 256, shape).astype(np.uint8)
    turn, slant = np.deg2rad(rotation), np.deg2rad(shear)
    # Rows point down: what turns counter-clockwise on the page takes the right side upwards.
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    there = rotate @ np.array([[1, 0], [-np.tan(slant), 1]]) @ np.diag([tall, wide])
    back, centre = np.linalg.inv(there), (np.array(shape) - 1) / 2
    offset = centre - back @ (centre + np.array([down, right]))
    expected = ndimage.affine_transform(
        image.astype(np.float64), back, offset, order=1, mode="grid-constant"
    )
    change = Affine(rotation, shear, np.float32([tall, wide]), np.float32([down, right]))
    coordinates = affine(shape, change)
    back_coordinates = np.einsum("ij,jkl->ikl", back, np.indices(shape)) + offset[:, None, None]
    np.testing.assert_allclose(coordinates, back_coordinates, atol=1e-4)
    np.testing.assert_allclose(resample(image, coordinates) / 255, expected / 255, atol=1e-4)


def test_the_directions_are_those_of_the_page():
    dot = np.zeros((9, 9), np.float32)
    dot[1, 4] = 1  # above the middle

    def moved(**change):
        return np.unravel_index(np.argmax(resample(dot, affine((9, 9), Affine(**change)))), (9, 9))

    assert moved(rotation_degrees=90.0) == (4, 1)  # counter-clockwise: from the top to the left
    assert moved(shear_degrees=45.0) == (1, 7)  # the top to the right
    assert moved(shift_pixels=np.float32([2, 3])) == (3, 7)  # down, right
    assert moved(scale=np.float32([1 / 3, 1])) == (3, 4)  # less tall


@pytest.mark.parametrize(("sigma", "alpha"), [(4.0, 34.0), (5.5, 37.0), (0.4, 3.0), (20.0, 100.0)])
def test_elastic_is_scipys(sigma, alpha):
    noise = RANDOM.uniform(-1, 1, (2, 28, 20)).astype(np.float32)
    expected = [
        alpha * ndimage.gaussian_filter(field.astype(np.float64), sigma, mode="constant")
        for field in noise
    ]
    np.testing.assert_allclose(elastic(noise, sigma, alpha), expected, atol=1e-4)


def test_no_strength_is_the_identity():
    images = RANDOM.integers(0, 256, (3, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(deform_batch(Strength(), key(0), images), images)
    elastic_alone = Strength(elastic_alpha_pixels=1e-30)
    np.testing.assert_allclose(deform_batch(elastic_alone, key(0), images), images, atol=1e-4)


@pytest.mark.parametrize(
    "strength",
    [
        Strength(rotation_degrees=15.0),
        Strength(shear_degrees=15.0),
        Strength(scale=0.15),
        Strength(shift_pixels=2.0),
        Strength(elastic_alpha_pixels=34.0),
    ],
)
def test_each_strength_deforms_each_image_in_its_own_way_each_time(strength):
    same = np.stack([IMAGE] * 3)
    once, again = (np.asarray(deform_batch(strength, key(n), same)) for n in (0, 1))
    assert once.dtype == np.float32
    assert 0 <= once.min() <= once.max() <= 255
    for a, b in [(once[0], once[1]), (once[0], again[0]), (once[0], IMAGE)]:
        assert np.abs(a - b).mean() > 1
    np.testing.assert_array_equal(once, deform_batch(strength, key(0), same))


def test_shifts_are_drawn_uniformly_up_to_the_strength():
    """How far the centre of mass moves."""
    dot = np.zeros((21, 21), np.float32)
    dot[10, 10] = 255
    moved = np.asarray(deform_batch(Strength(shift_pixels=4.0), key(5), np.stack([dot] * 3000)))
    mass = moved / moved.sum((1, 2), keepdims=True)
    for axis in (0, 1):
        middle = (mass.sum(2 - axis) * np.arange(21)[None]).sum(-1) - 10
        assert -4 <= middle.min() < -3.9
        assert 3.9 < middle.max() <= 4
        assert abs(middle.mean()) < 0.2
        assert middle.std() == pytest.approx(4 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("strength", "axis"), [(Strength(scale=0.4), 0), (Strength(scale=0.4), 1)])
def test_scales_are_drawn_uniformly(strength, axis):
    """How tall and how wide the same square becomes, over many draws."""
    square = np.zeros((41, 41), np.float32)
    square[10:31, 10:31] = 255
    deformed = np.asarray(deform_batch(strength, key(6), np.stack([square] * 1000)))
    sizes = deformed[:, 20].sum(1) if axis else deformed[:, :, 20].sum(1)
    factors = sizes / (21 * 255)
    assert factors.min() == pytest.approx(0.6, abs=0.02)
    assert factors.max() == pytest.approx(1.4, abs=0.02)
    assert factors.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["rotation_degrees", "shear_degrees"])
def test_angles_are_drawn_evenly_to_both_sides(name):
    dot = np.zeros((41, 41), np.float32)
    dot[10, 20] = 255  # ten pixels above the middle
    deformed = np.asarray(deform_batch(Strength(**{name: 30.0}), key(7), np.stack([dot] * 1000)))
    columns = (deformed.sum(1) * np.arange(41)[None]).sum(1) / deformed.sum((1, 2)) - 20
    reach = 10 * (np.sin if name == "rotation_degrees" else np.tan)(np.deg2rad(30))
    assert columns.min() == pytest.approx(-reach, abs=0.4)
    assert columns.max() == pytest.approx(reach, abs=0.4)
    assert abs(columns.mean()) < 0.4


def test_elastic_displacements_have_the_spread_of_uniform_noise():
    """A pixel far from the border moves by alpha times 1 / sqrt(3), over 2 sigma sqrt(pi)."""

    def place(number):
        image = np.tile(np.arange(64, dtype=np.float32), (64, 1))  # grey is the column
        return deform(Strength(elastic_alpha_pixels=34.0), key(number), image)[32, 32] - 32

    moves = jax.vmap(place)(np.arange(500, dtype=np.uint32))
    expected = 34 / 3**0.5 / (2 * 4 * np.pi**0.5)
    assert np.std(moves) == pytest.approx(expected, rel=0.12)
    assert abs(np.mean(moves)) < 0.3


def test_a_batch_is_its_images_one_by_one():
    strength = Strength(10.0, 10.0, 0.1, 1.0, 4.0, 34.0)
    images = RANDOM.integers(0, 256, (4, 28, 28)).astype(np.uint8)
    keys = jax.random.split(key(3), 4)
    alone = np.stack([deform(strength, keys[i], images[i]) for i in range(4)])
    np.testing.assert_allclose(deform_batch(strength, key(3), images), alone, atol=1e-2)


def test_the_strength_is_that_of_the_config():
    affine_alone = Config(rotation_degrees=1.0, scale=0.2, elastic_sigma_pixels=5.0)
    assert strength_of(affine_alone, affine_alone.hparams) == Strength(
        rotation_degrees=1.0, scale=0.2, elastic_sigma_pixels=5.0, elastic_alpha_pixels=None
    )
    elastic_alone = Config(elastic_alpha_pixels=34.0)
    assert strength_of(elastic_alone, elastic_alone.hparams) == Strength(elastic_alpha_pixels=34.0)


def test_a_config_without_deformations_has_no_strength():
    config = Config(elastic_sigma_pixels=5.0)
    assert strength_of(config, config.hparams) is None


def test_the_config_decides_what_is_deformed_and_the_hparams_how_far():
    config = Config(rotation_degrees=9.0, elastic_alpha_pixels=5.0)
    hparams = config.hparams._replace(rotation_degrees=2.0, elastic_alpha_pixels=0.0, scale=0.1)
    strength = strength_of(config, hparams)
    assert strength == Strength(rotation_degrees=2.0, scale=0.1, elastic_alpha_pixels=0.0)
