"""What the figure of predictions shows, read back from its artists."""

from pathlib import Path

import numpy as np

from mnist_jax.serve import predict
from mnist_jax.serve.predict import Prediction

NAMES = ("zero", "one", "two")


def test_each_photo_stands_beside_what_the_network_saw_and_the_probabilities():
    photos = [np.full((30, 40), 200, np.uint8), np.full((9, 5), 100, np.uint8)]
    digits = np.random.default_rng(0).integers(0, 256, (2, 4, 4), np.uint8)
    shares = np.array([[0.2, 0.0004, 0.7996], [0, 1, 0.0]])
    files = [Path("folder/a.png"), Path("folder/a-very-long-name-of-a-photo.png")]
    rows = zip(files, photos, digits, shares, [NAMES, NAMES], strict=True)
    figure = predict.figure([Prediction(*row) for row in rows])
    for row in (0, 1):
        photo, digit, bars = figure.axes[3 * row : 3 * row + 3]
        np.testing.assert_array_equal(photo.images[0].get_array(), photos[row])
        np.testing.assert_array_equal(digit.images[0].get_array(), digits[row])
        heights = [bar.get_height() for bar in bars.patches]
        np.testing.assert_allclose(heights, 100 * shares[row])
        assert [tick.get_text() for tick in bars.get_xticklabels()] == list(NAMES)
    assert figure.axes[0].get_title() == "a.png"
    assert figure.axes[3].get_title() == "y-long-name-of-a-photo.png"[-24:]
    assert figure.axes[2].get_title() == "two, 79.9 % sure"


def test_the_ten_most_probable_of_many_classes_are_shown_in_order():
    names = tuple(str(place) for place in range(47))
    blank, shares = np.zeros((3, 3), np.uint8), np.arange(47.0) / np.arange(47).sum()
    figure = predict.figure([Prediction(Path("a.png"), blank, blank, shares, names)])
    ticks = [tick.get_text() for tick in figure.axes[2].get_xticklabels()]
    assert ticks == list(names[37:])
