"""Digits of other widths, and members of a committee that see them so."""

import jax
import numpy as np
import pytest
from ciresan_2010 import deep_and_simple
from deslanted import deslanted
from meier_2011 import ROWS, WIDTHS, made_wide, member

from mnist_jax import prng
from mnist_jax.config import Config
from mnist_jax.data import DataSpec
from mnist_jax.train import default_recipe

SPEC = DataSpec((8, 8), 10, 1437)


def bar(width, left, columns=28):
    image = np.zeros((20, columns), np.float32)
    image[3:15, left : left + width] = 1
    return image


@pytest.mark.parametrize(("width", "left"), [(3, 2), (10, 0), (10, 18), (17, 6)])
@pytest.mark.parametrize("wanted", [10.0, 14.0, 20.0])
def test_a_bar_becomes_as_wide_as_wanted(width, left, wanted):
    """Wherever it was; between its rows, and with as much ink as that makes."""
    made = np.asarray(made_wide(bar(width, left), wanted))
    rows, columns = np.flatnonzero(made.max(axis=1)), np.flatnonzero(made.max(axis=0) > 0.5)
    assert (rows[0], rows[-1]) == (3, 14)
    assert columns[-1] + 1 - columns[0] == wanted
    assert columns[0] + columns[-1] == 27  # in the middle
    np.testing.assert_allclose(made.sum(), 12 * wanted, rtol=0.1)


def test_a_mirrored_digit_becomes_a_mirrored_one(digits):
    image = digits.train.images[0] / np.float32(255)
    made, mirrored = made_wide(image, 5.0), made_wide(image[:, ::-1], 5.0)
    np.testing.assert_allclose(mirrored, made[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("image", [bar(3, 2), np.zeros((20, 28), np.float32)])
def test_no_width_and_no_ink_change_nothing(image):
    np.testing.assert_array_equal(made_wide(image, 0.0), image)
    np.testing.assert_array_equal(made_wide(0 * image, 10.0), 0 * image)


@pytest.mark.parametrize(
    ("make", "paper", "ink"), [(default_recipe, 0, 1), (deep_and_simple, -1, 1)]
)
def test_a_member_reads_digits_of_its_width(make, paper, ink, digits):
    config = Config(dataset="digits", hidden=(8,), dropout=0.0)
    plain = make(config, config.hparams, SPEC)
    model = member(config, config.hparams, SPEC, make).model
    images = digits.test.images[:5] / np.float32(255)
    drawn = set()
    for seed in range(60):
        params, state = model.init(prng.key(seed))
        drawn.add(width := float(state["width"]))
    wide = np.stack([made_wide(image, width) for image in images])
    logits, after = model.apply(params, state, plain.preprocess(digits.test.images[:5]), None)
    seen = paper + (ink - paper) * wide.reshape(5, 64)
    expected, _ = plain.model.apply(params, {}, seen, None)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, state))
    assert drawn == set(WIDTHS)


@pytest.mark.parametrize(("row", "paper"), list(zip(ROWS, (0, -1), strict=True)))
def test_members_of_a_committee_see_deslanted_digits(row, paper, digits):
    config = Config(dataset="digits", hidden=(8,), dropout=0.0)
    images = digits.test.images[:5]
    shown = ROWS[row].recipe(config, config.hparams, SPEC).preprocess(images)
    each = np.stack([deslanted(image) for image in images]).reshape(5, 64) / 255
    np.testing.assert_allclose(shown, paper + (1 - paper) * each, atol=1e-6)
