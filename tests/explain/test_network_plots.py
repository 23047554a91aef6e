"""What the figures of a network show, read back from their artists and worked out in NumPy."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA

from mnist_jax.explain import network_plots
from mnist_jax.explain.analysis import Network
from mnist_jax.model import Layer
from mnist_jax.plots import red_blue
from mnist_jax.preprocess import to_inputs

NAMES = ("zero", "one", "two")


def network(*sizes, seed=0) -> Network:
    """A random ReLU network of three classes."""
    random = np.random.default_rng(seed)
    layers = tuple(
        Layer(random.normal(size=shape).astype(np.float32),
              0.1 * random.normal(size=shape[1]).astype(np.float32))
        for shape in zip(sizes, (*sizes[1:], 3), strict=True)
    )  # fmt: skip
    return Network(layers, jax.nn.relu, class_names=NAMES)


def random_images(n, side):
    return np.random.default_rng(1).integers(0, 256, (n, side, side), np.uint8)


def hidden(net, images, masks=None):
    """The activations of each hidden layer, and the logits."""
    x, outputs = np.asarray(to_inputs(images)), []
    for i, (kernel, bias) in enumerate(net.layers):
        x = x @ kernel + bias
        if i < len(net.layers) - 1:
            x = np.maximum(x, 0) * (masks[i] if masks else 1)
        outputs.append(x)
    return outputs


def row_names(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def canvas(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def caption(figure) -> str:
    return figure._supxlabel.get_text().replace("\n", " ")


def test_a_unit_stands_beside_its_nine_images():
    kernel = np.zeros((4, 5), np.float32)
    kernel[:, :4] = 0.1 * np.eye(4)
    kernel[0, 4], kernel[3, 4] = 3, -3
    first = Layer(kernel, np.zeros(5, np.float32))
    net = network(4, 5)._replace(layers=(first, network(5).layers[0]))
    images = random_images(40, 2)
    figure = network_plots.units(net, 0, images)
    assert row_names(figure) == [f"unit {unit}" for unit in range(5)]
    assert "Hidden layer 1: the 5 most influential of 5 units" in figure.get_suptitle()
    row = canvas(figure)[12:14]  # the fifth, as pictures are 2 pixels high with a gap of 1
    red, blue = row[0, 0], row[1, 1]
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    best = np.argsort(-hidden(net, images)[0][:, 4])[:9]
    for i, image in enumerate(images[best]):
        x = 3 * (i + 1)
        np.testing.assert_allclose(row[:, x : x + 2, 1], image / 255)


def test_only_the_caption_of_a_deeper_layer_explains_its_pictures():
    net, images = network(4, 5, 6), random_images(40, 2)
    first, second = (caption(network_plots.units(net, layer, images)) for layer in (0, 1))
    assert second.startswith(first)
    assert len(second) > len(first)


def test_the_units_of_a_network_without_hidden_layers_are_the_classes():
    figure = network_plots.units(network(4), 0, random_images(40, 2))
    assert row_names(figure) == list(NAMES)
    assert figure.get_suptitle() == "No hidden layer: what each class looks for"


def test_the_table_of_votes_adds_up(monkeypatch):
    monkeypatch.setattr(network_plots, "MAX_VOTERS", 2)
    net, (image,) = network(16, 4, 6), random_images(1, 4)
    figure = network_plots.contributions(net, image)
    *layers, scores = hidden(net, image[None])
    votes = layers[-1][0][:, None] * net.layers[-1].kernel
    loudest = np.argsort(-np.abs(votes).max(axis=1))[:2]
    table = figure.axes[-1]
    cells = np.full((5, 3), np.nan)
    for text in table.texts:
        if text.get_text():  # a picture of a unit is an annotation without words
            column, row = text.get_position()
            cells[row, column] = float(text.get_text())
    np.testing.assert_allclose(cells[:2], votes[loudest], atol=0.006)
    np.testing.assert_allclose(cells[:4].sum(axis=0), cells[4], atol=0.026)
    np.testing.assert_allclose(cells[3], net.layers[-1].bias, atol=0.006)
    np.testing.assert_allclose(cells[4], scores[0], atol=0.006)
    rows = [label.get_text() for label in table.get_yticklabels()]
    assert rows == [*(f"unit {unit}" for unit in loudest), "4 others", "bias", "score"]
    assert f"the network reads {NAMES[int(scores.argmax())]}" in figure.get_suptitle()
    silent = sum(int((layer == 0).sum()) for layer in layers)
    assert silent > 0
    assert f"{silent} of 10 stay silent" in caption(figure)


def test_attributions_stand_under_their_image():
    net, images = network(9), random_images(2, 3)
    figure = network_plots.attributions(net, images)
    answers = hidden(net, images)[-1].argmax(axis=1)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [f"read as {NAMES[answer]}" for answer in answers]
    assert row_names(figure) == ["the image", "its ink", "more ink"]
    np.testing.assert_array_equal(axes.get_xticks(), [1, 5])  # the middles of the pictures
    np.testing.assert_array_equal(axes.get_yticks(), [1, 5, 9])
    drawn = canvas(figure)
    kernel = np.asarray(net.layers[0].kernel)
    for i, (image, answer) in enumerate(zip(images, answers, strict=True)):
        gradient = (kernel[:, answer] - kernel.mean(axis=1)).reshape(3, 3)
        grey = np.repeat(image[..., None] / 255, 3, axis=-1)
        effect = red_blue(gradient * image / 255)
        for row, expected in enumerate((grey, effect, red_blue(gradient))):
            y, x = 4 * row, 4 * i  # 3 pixels and a gap of 1
            np.testing.assert_allclose(drawn[y : y + 3, x : x + 3], expected, atol=0.03)


def test_two_subnetworks_answer_by_the_units_that_dropout_leaves_them():
    net, images = network(16, 7, 5, seed=4), random_images(30, 4)
    labels = np.arange(30, dtype=np.uint8) % 3
    figure = network_plots.subnetworks(net, images, labels, 0.0, 3)
    mask_a, bars_a, picture, mask_b, bars_b, counts = figure.axes
    image = np.asarray(picture.images[0].get_array())
    index = int(np.flatnonzero((images == image).all((1, 2)))[0])
    assert picture.get_title() == f"the image, of class {NAMES[index % 3]}"
    probabilities = np.asarray(jax.nn.softmax(hidden(net, images)[-1]))
    assert index == probabilities.max(axis=1).argmin()
    full = 100 * probabilities[index]
    for name, mask, bars in (("A", mask_a, bars_a), ("B", mask_b, bars_b)):
        active = np.ma.compressed(mask.images[0].get_array())
        assert mask.get_title() == f"network {name}: {active.sum():.0f} of 12 hidden units"
        masks = np.split(2 * active, [7])  # the units that are on count twice
        logits = hidden(net, image[None], masks)[-1][0]
        heights = [bar.get_height() for bar in bars.patches]
        expected = [*(100 * np.asarray(jax.nn.softmax(logits))), *full]
        np.testing.assert_allclose(heights, expected, rtol=1e-3, atol=1e-3)
    assert sum(bar.get_height() for bar in counts.patches) == 100
    assert "probability 0.5" in caption(figure)
    assert caption(figure).endswith("This network was trained without dropout.")


@pytest.mark.parametrize("sizes", [(16, 7), (16, 9, 8)])
def test_each_class_has_its_dots_and_its_name(sizes):
    net, images = network(*sizes), random_images(7, 4)
    labels = np.array([0, 0, 2, 2, 2, 0, 0])
    figure = network_plots.class_map(net, images, labels)
    features = np.asarray(to_inputs(images)), hidden(net, images)[-2]
    for axes, values in zip(figure.axes, features, strict=True):
        points = PCA(2).fit_transform(values)
        for line, label in zip(axes.lines, (0, 2), strict=True):
            np.testing.assert_allclose(
                np.abs(line.get_xydata()), np.abs(points[labels == label]), atol=1e-4
            )
        assert [text.get_text() for text in axes.texts] == ["zero", "two"]


def test_a_layer_is_a_grid_about_twice_as_wide_as_high():
    grid = network_plots._grid(np.arange(7.0))
    assert grid.shape == (2, 4)
    assert grid[1, 2] == 6
    assert np.isnan(grid[1, 3])
