"""What the figures say, read back from their artists; how they look, only eyes can tell."""

import numpy as np
import pytest

from mnist_jax.explain import plots as explain_plots

NAMES = ("zero", "one", "two")


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def canvas(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_a_unit_stands_beside_its_nine_images():
    views = np.zeros((5, 2, 2), np.float32)
    views[4, 0, 0], views[4, 1, 1] = 3, -3
    images = np.zeros((5, 9, 2, 2), np.uint8)
    images[4, 2], images[4, 8] = 255, 255
    figure = explain_plots.units(views, images, list("abcde"), "some units", first=True)
    assert texts(figure) == list("abcde")
    drawn = canvas(figure)
    place = figure.axes[0].texts[4].get_position()
    left, top = int(place[0]), int(place[1]) + 2
    assert (left, top) == (0, 10)  # the fifth begins the second row: 8 pixels and a gap of 2
    red, blue = drawn[top + 2, left + 2], drawn[top + 5, left + 5]
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    np.testing.assert_array_equal(drawn[top + 6 : top + 8, left + 16 : left + 18], 1)  # the ninth
    np.testing.assert_array_equal(drawn[top : top + 2, left + 16 : left + 18], 1)  # the third
    np.testing.assert_array_equal(drawn[top : top + 2, left + 10 : left + 12], 0)  # the first
    assert "Below the first layer" not in figure._supxlabel.get_text()


def test_the_table_of_votes_adds_up():
    random = np.random.default_rng(0)
    votes, bias = random.normal(size=(6, 3)), np.array([0.25, 0, -0.5])
    numbers, image = np.array([5, 2]), np.zeros((4, 4), np.uint8)
    layers = [np.array([0, 1, 0, 2.0]), np.arange(6.0)]
    views = random.normal(size=(2, 4, 4))
    figure = explain_plots.message(image, layers, views, numbers, votes, bias, NAMES)
    table = figure.axes[-1]
    cells = np.full((5, 3), np.nan)
    for text in table.texts:
        if text.get_text():  # a picture of a unit is an annotation without words
            column, row = text.get_position()
            cells[row, column] = float(text.get_text())
    np.testing.assert_allclose(cells[:2], votes[[5, 2]], atol=0.005)
    np.testing.assert_allclose(cells[:4].sum(axis=0), cells[4], atol=0.026)
    np.testing.assert_allclose(cells[3], bias)
    np.testing.assert_allclose(cells[4], votes.sum(axis=0) + bias, atol=0.005)
    rows = [label.get_text() for label in table.get_yticklabels()]
    assert rows == ["unit 5", "unit 2", "4 others", "bias", "score"]
    assert f"it reads {NAMES[int(cells[4].argmax())]}" in figure.get_suptitle()
    assert "3 of 10 stay silent" in figure._supxlabel.get_text()


def test_pixels_stand_under_their_image():
    images = np.zeros((2, 3, 3), np.uint8)
    pushes, slopes = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))
    pushes[1, 0, 2], slopes[1, 2, 0] = -1, 1
    figure = explain_plots.pixels(images, pushes, slopes, ["one", "two"])
    assert texts(figure) == ["one", "two", "read as", "the image", "its ink", "more ink"]
    drawn = canvas(figure)
    assert drawn[4, 6, 2] > 2 * drawn[4, 6, 0]  # blue, in the second picture of the second row
    assert drawn[10, 4, 0] > 2 * drawn[10, 4, 2]  # red, in that of the third


@pytest.mark.parametrize("side", [-1, 1])
def test_tangents_touch_the_curve_and_point_down(side):
    values = np.linspace(-2, 2, 81)
    costs, slopes = values**2, 2 * values
    weights = side * 1.5 * 0.8 ** np.arange(20)
    steps = np.stack([weights, weights**2], axis=1)
    figure = explain_plots.one_weight(values, costs, slopes, steps, 0.1, 1000, "a weight")
    axes, glass = figure.axes[0], figure.axes[0].child_axes[0]
    arrows = [text for text in axes.texts if hasattr(text, "arrow_patch")]
    assert len(arrows) == 7
    for arrow in arrows:
        (x, y), (end, height) = arrow.xyann, arrow.xy
        assert y == pytest.approx(x**2)
        assert height - y == pytest.approx(2 * x * (end - x), abs=1e-9)
        assert height <= y
    (first,) = glass.texts
    assert first.xyann == pytest.approx((side * 1.5, 2.25))
    assert first.xy[0] == pytest.approx(side * 1.2)
    dots = axes.lines[-2].get_xydata()
    np.testing.assert_allclose(dots, steps[::10])
    assert f"0.1 x 3 to the {'left' if side > 0 else 'right'}" in glass.get_title()


def test_the_landscape_draws_the_path():
    path = np.array([[-2, 1], [-1, 1], [0, 0.0]])
    grid = np.linspace(-3, 3, 9)
    costs = 0.1 + grid[None] ** 2 + grid[:, None] ** 2
    figure = explain_plots.landscape([0, 1, 2], np.array([5, 2, 0.1]), path, grid, grid,
                                     costs, 0.876, 1234, 100)  # fmt: skip
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0, 5], [1, 2], [2, 0.1]])
    np.testing.assert_array_equal(right.lines[0].get_xydata(), path)
    caption = figure._supxlabel.get_text().replace("\n", " ")
    assert "of the 1,234 directions" in caption
    assert "which hold 88 % of the movement" in caption
    assert "after 0, 1, 2 epochs" in caption


def test_a_flat_landscape_is_drawn():
    flat = np.full((5, 5), 0.5)
    axis = np.linspace(-1, 1, 5)
    figure = explain_plots.landscape([0, 1, 2], np.full(3, 0.5), np.zeros((3, 2)), axis, axis,
                                     flat, 1.0, 10, 10)  # fmt: skip
    figure._repr_png_()


def test_the_film_has_a_row_a_unit_and_a_column_an_epoch():
    frames = np.zeros((3, 2, 4, 4))
    frames[2, 1], frames[1, 1] = 1, 0.5
    figure = explain_plots.film(frames, [0, 5, 10], np.array([2.345, 0.5, 0.1]), ["a", "b"])
    said = texts(figure)
    assert said[:6] == ["epoch 0", "2.3", "epoch 5", "0.5", "epoch 10", "0.1"]
    assert said[6:] == ["a", "b", "cost"]
    red = 1 - canvas(figure)[:, :, 2]  # the lack of blue
    assert red[7, 12] > red[7, 7] > red[7, 2]  # one scale a row
    assert red[2, 12] == red[7, 2]


def test_dropout_shows_who_is_off_and_who_says_what():
    masks = [[np.array([1.25, 0, 1.25, 1.25])], [np.array([0, 0, 1.25, 1.25])]]
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    whole, tally = np.array([0.5, 0.2, 0.3]), np.array([60, 10, 30])
    figure = explain_plots.dropout(
        np.zeros((4, 4), np.uint8), masks, shares, whole, tally, 1, 0.2, NAMES, False
    )
    first, bars, _, second, _, counts = figure.axes
    assert first.get_title() == "network A: 3 of 4 hidden units"
    assert second.get_title() == "network B: 2 of 4 hidden units"
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, [70, 20, 10, 50, 20, 30])
    assert [bar.get_height() for bar in counts.patches] == [60, 10, 30]
    caption = figure._supxlabel.get_text().replace("\n", " ")
    assert "probability 0.2" in caption
    assert caption.endswith("This network was trained without it.")


def test_each_class_has_its_dots_and_its_name():
    before, after = np.random.default_rng(0).normal(size=(2, 7, 2))
    labels = np.array([0, 0, 2, 2, 2, 0, 0])
    figure = explain_plots.classes(before, after, labels, NAMES)
    for axes, places in zip(figure.axes, (before, after), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), places[labels == 0])
        np.testing.assert_array_equal(axes.lines[1].get_xydata(), places[labels == 2])
        assert [text.get_text() for text in axes.texts] == ["zero", "two"]


def test_a_layer_is_a_grid_about_twice_as_wide_as_high():
    grid = explain_plots._grid(np.arange(7.0))
    assert grid.shape == (2, 4)
    assert grid[1, 2] == 6
    assert np.isnan(grid[1, 3])
