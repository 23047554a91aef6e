"""Digits set upright."""

import numpy as np
from deslanted import deslanted, deslanting

from mnist_jax.config import Config
from mnist_jax.data import DataSpec

CONFIG = Config(dataset="digits", hidden=(8,), epochs=1, seeds=2)


def test_a_slanted_bar_is_set_upright():
    """Each row's share of a bar that leans by 20 degrees is then where its middle is."""
    y, x = np.indices((28, 28))
    slope = np.tan(np.deg2rad(20))
    bar = 255 * np.clip(2.5 - np.abs(x - 14 + slope * (y - 13)), 0, 1) * (np.abs(y - 13) < 8)
    middle = (bar.sum(0) * np.arange(28)).sum() / bar.sum()
    upright = np.asarray(deslanted(bar.astype(np.float32)))
    rows = upright[6:21]
    assert np.abs((rows * np.arange(28)[None]).sum(1) / rows.sum(1) - middle).max() < 0.05
    np.testing.assert_allclose(upright.sum(1), bar.sum(1), rtol=0.02)
    np.testing.assert_allclose(deslanted(upright), upright, atol=3)
    blank, line = np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.uint8)
    line[3, 5:20] = 255
    for still in (blank, line):
        np.testing.assert_allclose(deslanted(still), still, atol=1e-3)


def test_a_network_is_shown_deslanted_digits(digits):
    recipe = deslanting(CONFIG, CONFIG.hparams, DataSpec((8, 8), 10, 1437))
    shown = np.asarray(recipe.preprocess(digits.train.images[:5])).reshape(5, 8, 8)
    each = np.stack([deslanted(image) for image in digits.train.images[:5]])
    np.testing.assert_allclose(shown, each / 255, atol=1e-6)
    assert np.abs(each - digits.train.images[:5]).max() > 10
