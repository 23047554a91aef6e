"""What a figure shows, read back from its artists. How it looks is for people to judge."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mnist_jax import plots

NAMES = ("zero", "one", "two")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def pictures(figure: Figure, height: int, width: int) -> list[np.ndarray]:
    """The pictures under the captions of a grid."""
    axes = figure.axes[0]
    grid = np.ma.filled(axes.images[0].get_array(), np.nan)
    found = []
    for text in axes.texts:
        x, y = text.get_position()
        left, top = round(x - (width - 1) / 2), round(y + 1)
        found.append(grid[top : top + height, left : left + width])
    return found


def test_samples_are_the_images_in_order_under_their_labels():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5), np.uint8)
    figure = plots.samples(images, np.array([2, 0, 1, 0]), NAMES, "some digits")
    assert texts(figure) == ["two", "zero", "one", "zero"]
    for picture, image in zip(pictures(figure, 5, 5), images, strict=True):
        np.testing.assert_array_equal(picture, image)
    grid = np.ma.masked_invalid(figure.axes[0].images[0].get_array())
    assert grid.count() == images.size
    places = [text.get_position() for text in figure.axes[0].texts]
    assert len({x for x, _ in places}) == len({y for _, y in places}) == 2  # a 2 x 2 grid
    assert places[1][0] > places[0][0]  # the second stands right of the first
    assert places[2][1] > places[0][1]  # the third below


def test_a_notebook_shows_a_figure():
    """IPython asks an object for its picture under this name."""
    figure = plots.samples(np.zeros((1, 5, 5), np.uint8), np.array([0]), NAMES)
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100


def metrics(seeds, validation):
    records = []
    for epoch in (1, 2, 3):
        record = {
            "epoch": epoch,
            "train_loss": [1 / epoch + 0.1 * seed for seed in range(seeds)],
            "train_error_percent": [10 / epoch + seed for seed in range(seeds)],
        }
        if validation:
            record["validation_loss"] = [2.0 / epoch] * seeds
            record["validation_error_percent"] = [20 / epoch] * seeds
        records.append(record)
    return records


SUMMARY = {"test_loss": [0.5, 0.7], "test_error_percent_mean": 4.0}


@pytest.mark.parametrize("validation", [False, True])
def test_curves_show_means_bands_and_the_test_result(validation):
    figure = plots.curves(metrics(2, validation), SUMMARY)
    loss, accuracy = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_xydata()[:, 0], [1, 2, 3])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.05, 0.55, 1 / 3 + 0.05])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [89.5, 94.5, 100 - 10 / 3 - 0.5])
    assert len(loss.lines) == (3 if validation else 2)
    assert loss.lines[-1].get_xydata().tolist() == [[3, 0.6]]
    assert accuracy.lines[-1].get_xydata().tolist() == [[3, 96]]
    corners = loss.collections[0].get_paths()[0].vertices
    assert {1.0, 1.1} <= set(corners[corners[:, 0] == 1][:, 1].round(6))
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert ("validation" in labels) == validation
    assert "2 seeds" in figure.get_suptitle()


def test_a_network_that_diverged_is_left_out_of_the_mean_loss():
    records, summary = metrics(2, False), {**SUMMARY, "test_loss": [0.6, None]}
    records[1]["train_loss"][1] = records[2]["train_loss"][1] = None
    (loss, _) = plots.curves(records, summary).axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.05, 0.5, 1 / 3])
    assert loss.lines[-1].get_xydata().tolist() == [[3, 0.6]]


def test_confusion_counts_stand_in_their_cells():
    counts = np.array([[50, 1, 0], [0, 40, 7], [0, 0, 30]])
    figure = plots.confusion(counts, NAMES)
    (axes,) = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row), that is (read as, true class); zeros are left out
    assert cells == {(0, 0): "50", (1, 0): "1", (1, 1): "40", (2, 1): "7", (2, 2): "30"}
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 1, 0], [0, 0, 7], [0, 0, 0]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("read as", "true class")


def test_mistakes_come_in_order_of_certainty():
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1])
    shares = np.array(
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.9, 0.1, 0], [0.1, 0.2, 0.7], [0.0004, 0, 0.9996]]
    )
    figure = plots.mistakes(images, labels, shares, NAMES, max_images=3)
    assert [int(picture[0, 0]) for picture in pictures(figure, 3, 3)] == [4, 2, 3]
    assert texts(figure) == [
        "is one, read as two\n99.9 % sure",
        "is two, read as zero\n90.0 % sure",
        "is zero, read as two\n70.0 % sure",
    ]


def test_a_perfect_network_has_no_mistakes_to_show():
    figure = plots.mistakes(np.zeros((2, 3, 3), np.uint8), np.array([0, 1]), np.eye(3)[:2], NAMES)
    assert texts(figure) == []
    assert np.ma.masked_invalid(figure.axes[0].images[0].get_array()).count() == 0


def test_weights_are_the_strongest_columns_as_pictures():
    kernel = np.random.default_rng(0).normal(size=(6, 5))
    kernel[:, [1, 3]] *= 100
    figure = plots.weights(kernel, (2, 3), max_units=2)
    assert texts(figure) == ["unit 1", "unit 3"]
    np.testing.assert_allclose(pictures(figure, 2, 3)[1], kernel[:, 3].reshape(2, 3))
    image = figure.axes[0].images[0]
    low, high = image.get_clim()
    assert low == -high  # zero is white
    assert image.cmap(0.0)[2] > image.cmap(0.0)[0]  # negative is blue
    assert image.cmap(1.0)[0] > image.cmap(1.0)[2]  # positive is red


def test_a_mosaic_has_gaps_between_its_pictures_and_after_the_last():
    black = np.zeros((3, 2, 3, 3))
    expected = np.ones((5, 8, 3))
    expected[:2, :3] = expected[:2, 5:] = expected[3:, :3] = 0
    np.testing.assert_array_equal(plots.mosaic(black, 2, gap=2, row_gap=1), expected)
    grey = plots.mosaic(black[..., 0], 2, gap=2, row_gap=1)
    np.testing.assert_array_equal(grey, np.where(expected[..., 0], np.nan, 0))


def test_red_is_above_zero_and_blue_below():
    values = np.array([[[0.0, 2], [-2, 1]], [[0, 9], [0, 0]], [[0, 0], [0, 0]]])
    colors = plots.red_blue(values)
    white, red, blue = colors[0, 0, 0], colors[0, 0, 1], colors[0, 1, 0]
    assert white.min() > 0.95
    assert red[0] > 3 * red[2]
    assert blue[2] > 3 * blue[0]
    np.testing.assert_array_equal(colors[1, 0, 1], red)  # each picture has its own scale
    np.testing.assert_array_equal(colors[2], np.broadcast_to(white, (2, 2, 3)))
    np.testing.assert_array_equal(plots.red_blue(values, 1.0)[0, 1, 1], red)


def test_nothing_is_shown_without_a_screen(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not plots.show(Figure())
