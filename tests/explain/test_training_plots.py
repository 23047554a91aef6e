"""What the figures of training show, read back from their artists."""

import numpy as np
import pytest

from mnist_jax.explain import training_plots
from mnist_jax.explain.analysis import Landscape, WeightSweep


def canvas(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("side", [-1, 1])
def test_tangents_touch_the_curve_and_point_down(side):
    values = np.linspace(-2, 2, 81)
    costs, slopes = values**2, 2 * values
    weights = side * 1.5 * 0.8 ** np.arange(20)
    steps = np.stack([weights, weights**2], axis=1)
    sweep = WeightSweep((1, 7, 2), values, costs, slopes, steps)
    figure = training_plots.weight_sweep(sweep, 0.1, 1000, ("zero", "one", "two"))
    assert "from unit 7 to class two" in figure.get_suptitle()
    axes, glass = figure.axes[0], figure.axes[0].child_axes[0]
    (arrows,), (first,) = axes.collections, glass.collections
    assert len(arrows.X) == 7
    np.testing.assert_allclose(arrows.Y, arrows.X**2)
    np.testing.assert_allclose(arrows.V, 2 * arrows.X * arrows.U, atol=1e-9)
    assert (arrows.V <= 0).all()
    arrow = first.X[0], first.Y[0], first.U[0]
    np.testing.assert_allclose(arrow, (side * 1.5, 2.25, side * -0.3))
    dots = axes.lines[-2].get_xydata()
    np.testing.assert_allclose(dots, steps[::10])
    assert f"0.1 x 3 to the {'left' if side > 0 else 'right'}" in glass.get_title()


def square(side, size):
    """A grid of points (x, y) around (0, 0)."""
    axis = np.linspace(-side, side, size)
    return np.stack(np.meshgrid(axis, axis), axis=-1)


def test_the_landscape_draws_the_path():
    path = np.array([[-2, 1], [-1, 1], [0, 0.0]])
    grid = square(3, 9)
    landscape = Landscape(path, grid, 0.1 + (grid**2).sum(axis=-1), 0.876, 1234)
    figure = training_plots.landscape(landscape, {0: 5.0, 1: 2.0, 2: 0.1}, 100)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0, 5], [1, 2], [2, 0.1]])
    np.testing.assert_array_equal(right.lines[0].get_xydata(), path)
    caption = figure._supxlabel.get_text().replace("\n", " ")
    for fact in ("100 training images", "1,234 directions", "88 % of the movement"):
        assert fact in caption


def test_a_flat_landscape_is_drawn():
    landscape = Landscape(np.zeros((3, 2)), square(1, 5), np.full((5, 5), 0.5), 1.0, 10)
    figure = training_plots.landscape(landscape, {0: 0.5, 1: 0.5, 2: 0.5}, 10)
    figure._repr_png_()


def test_the_film_has_a_row_for_each_unit_and_a_column_for_each_epoch():
    frames = np.zeros((3, 2, 4, 4))
    frames[2, 1], frames[1, 1] = 1, 0.5
    figure = training_plots.weight_history(frames, {0: 2.345, 5: 0.5, 10: 0.1}, ["a", "b"])
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["epoch 0\ncost 2.3", "epoch 5\ncost 0.5", "epoch 10\ncost 0.1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    red = 1 - canvas(figure)[:, :, 2]  # the lack of blue
    assert red[7, 12] > red[7, 7] > red[7, 2]  # each row has one scale
    assert red[2, 12] == red[7, 2]
