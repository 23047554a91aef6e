"""What the figures say, read back from their artists; how they look, only eyes can tell."""

import numpy as np

from mnist_jax.explain import network_plots

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
    figure = network_plots.units(views, images, list("abcde"), "some units", first=True)
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
    figure = network_plots.message(image, layers, views, numbers, votes, bias, NAMES)
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
    figure = network_plots.pixels(images, pushes, slopes, ["one", "two"])
    assert texts(figure) == ["one", "two", "read as", "the image", "its ink", "more ink"]
    drawn = canvas(figure)
    assert drawn[4, 6, 2] > 2 * drawn[4, 6, 0]  # blue, in the second picture of the second row
    assert drawn[10, 4, 0] > 2 * drawn[10, 4, 2]  # red, in that of the third


def test_dropout_shows_who_is_off_and_who_says_what():
    masks = [[np.array([1.25, 0, 1.25, 1.25])], [np.array([0, 0, 1.25, 1.25])]]
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    whole, tally = np.array([0.5, 0.2, 0.3]), np.array([60, 10, 30])
    figure = network_plots.dropout(
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
    figure = network_plots.classes(before, after, labels, NAMES)
    for axes, places in zip(figure.axes, (before, after), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), places[labels == 0])
        np.testing.assert_array_equal(axes.lines[1].get_xydata(), places[labels == 2])
        assert [text.get_text() for text in axes.texts] == ["zero", "two"]


def test_a_layer_is_a_grid_about_twice_as_wide_as_high():
    grid = network_plots._grid(np.arange(7.0))
    assert grid.shape == (2, 4)
    assert grid[1, 2] == 6
    assert np.isnan(grid[1, 3])
