"""The layout that shuffled images give away."""

import dataclasses

import numpy as np
import pytest
from deformed import CONFIG
from deslanted import deslanted
from scipy.ndimage import gaussian_filter
from shuffled_pixels import apart, deforming_unseen, found_layout, shuffle_of, upright

from mnist_jax import prng
from mnist_jax.data import DataSpec

DIGITS = dataclasses.replace(CONFIG, dataset="digits", data_dir=None, hidden=(8,))


def test_neighbours_are_found_again():
    """In clouds of grey on 10 x 10 pixels."""
    random = np.random.default_rng(0)
    clouds = gaussian_filter(random.normal(size=(2000, 20, 20)), (0, 2, 2))[:, 5:15, 5:15]
    images = np.clip(128 + 200 * clouds / clouds.std() / 4, 0, 255).astype(np.uint8)
    shuffle = random.permutation(100)
    layout = found_layout(images.reshape(2000, 100)[:, shuffle])
    assert sorted(layout) == list(range(100))
    every = np.ones(100, bool)
    assert (apart(layout, shuffle, every) < 1.5).mean() > 0.95
    assert (apart(random.permutation(100), shuffle, every) < 1.5).mean() < 0.15


def test_a_turned_grid_is_turned_back():
    grid = np.stack(np.divmod(np.arange(49), 7), axis=1).astype(float)
    turn = np.deg2rad(27)
    crooked = 3 * grid @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    straight = upright(crooked)
    np.testing.assert_allclose(
        straight - straight[24], np.round(straight - straight[24]), atol=1e-6
    )
    assert np.ptp(straight, axis=0) == pytest.approx([6, 6])


def test_images_are_deformed_and_come_back_to_their_places(digits):
    images = digits.train.images[:50]
    turning = dataclasses.replace(
        DIGITS, shear_degrees=0.0, scale=0.0, shift_pixels=0.0, elastic_alpha_pixels=0.0
    )
    still = dataclasses.replace(turning, rotation_degrees=0.0)
    spec = DataSpec((8, 8), 10, 1437)
    recipe = deforming_unseen(still, still.hparams, spec)
    np.testing.assert_array_equal(recipe.augment(prng.key(0), images), images)
    recipe = deforming_unseen(turning, turning.hparams, spec)
    turned = np.asarray(recipe.augment(prng.key(0), images))
    same = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, turned, strict=True)]
    assert 0.8 < np.mean(same) < 0.999


def test_a_network_is_shown_images_as_found_and_deslanted(digits):
    flat = digits.train.images.reshape(1437, 64)
    shuffle = shuffle_of(64)
    found = np.empty((5, 64), np.float32)
    found[:, found_layout(flat[:, shuffle])] = flat[:5, shuffle]
    recipe = deforming_unseen(DIGITS, DIGITS.hparams, DataSpec((8, 8), 10, 1437))
    shown = recipe.preprocess(digits.train.images[:5])
    expected = np.stack([deslanted(image) for image in found.reshape(5, 8, 8)]).reshape(5, 64)
    np.testing.assert_allclose(shown, expected / 255, atol=1e-6)
    assert np.abs(expected - found).max() > 10
