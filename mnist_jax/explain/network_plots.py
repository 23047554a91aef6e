"""Figures of what a network computes: its units, votes, pixels, subnetworks and classes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Integer, Num
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from mnist_jax import plots
from mnist_jax.data import Examples
from mnist_jax.explain import analysis
from mnist_jax.explain.analysis import Network
from mnist_jax.explain.captioned import captioned_figure, captioned_mosaic
from mnist_jax.plots import Picture, light_grid, mosaic, signed
from mnist_jax.preprocess import AnyArray, Images, Inputs, Labels

MAX_VOTERS = 10  # units of the last hidden layer whose votes are shown


def units(network: Network, layer: int, images: Images) -> Picture:
    """What each unit of a layer looks for, beside the nine of `images` that excite it most."""
    inputs = network.preprocess(images)
    activations = analysis.activations(network, inputs)
    values = np.asarray(activations[layer + 1])
    numbers = np.sort(analysis.rank_units(network, layer, activations)[:24])
    top = np.argsort(-values[:, numbers], axis=0, kind="stable").T
    top = top[:, np.arange(9) % len(images)]  # images repeat where there are fewer than nine
    gradients = analysis.unit_gradients(network, layer, numbers, np.asarray(inputs)[top])
    pictures = np.asarray(gradients).reshape(-1, *images.shape[1:])
    pairs = [_pair(*unit) for unit in zip(pictures, images[top], strict=True)]
    title = "No hidden layer: what each class looks for"
    if len(network.layers) > 1:
        silent, count = int((np.ptp(values, axis=0) == 0).sum()), values.shape[1]
        title = f"Hidden layer {layer + 1}: the {len(numbers)} most influential of {count} units"
        title += f" ({silent} are silent on all images)" if silent else ""
    caption = (
        "Each pair shows one unit. On the left is what it looks for: ink on red excites the unit, "
        "ink on blue silences it. On the right are the nine training images that excite it most. "
        "They often belong to one class, or share a stroke, a loop or a corner."
    )
    if layer > 0:
        caption += (
            " A unit of this layer does not see the pixels but the units before it. Its picture "
            "shows how each pixel affects it through them, on average over its nine images."
        )
    columns, gap = min(4, len(pairs)), max(2, images.shape[2] // 2)
    height, width = pairs[0].shape[0] + gap, pairs[0].shape[1] + gap
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    figure, axes = captioned_mosaic(mosaic(rows, gap), 2.9 * columns, title, caption)
    for i, name in enumerate(unit_names(network, numbers)):
        left, top = i % columns * width, i // columns * height - 2
        axes.text(left, top, name, ha="left", va="bottom", fontsize=9)
    return figure


def _pair(
    gradient: Float[np.ndarray, "h w"], images: Num[AnyArray, "9 h w"]
) -> Float[np.ndarray, "_ _ 3"]:
    """The gradient of a unit, enlarged and in colour, beside three rows of images."""
    enlarged = signed(gradient).repeat(3, 0).repeat(3, 1)
    framed = np.pad(enlarged, ((1, 1), (1, 1), (0, 0)), constant_values=1)
    rows = [[_grey(image) for image in images[i : i + 3]] for i in (0, 3, 6)]
    return mosaic([[framed, mosaic(rows, 1)]], 2)


def unit_names(network: Network, units: Integer[np.ndarray, "units"]) -> list[str]:
    """The numbers of hidden units; without a hidden layer, the classes that the units stand for."""
    if len(network.layers) > 1:
        return [f"unit {unit}" for unit in units]
    return [network.class_names[unit] for unit in units]


def contributions(network: Network, image: Num[AnyArray, "height width"]) -> Picture:
    """The activations that an image causes, the votes of the last hidden layer, and the scores."""
    inputs, class_names = network.preprocess(image[None]), network.class_names
    activations = [np.asarray(layer)[0] for layer in analysis.activations(network, inputs)[1:-1]]
    votes = np.asarray(analysis.logit_contributions(network, inputs))[0]
    strength = np.abs(votes).max(axis=1)
    count = min(MAX_VOTERS, max(1, np.count_nonzero(strength)))
    units = np.argsort(-strength, kind="stable")[:count]
    rest = votes.sum(axis=0) - votes[units].sum(axis=0)
    bias = np.asarray(network.layers[-1].bias)
    scores = votes.sum(axis=0) + bias
    silent = sum(int((layer == 0).sum()) for layer in activations)
    total = sum(len(layer) for layer in activations)
    silence = f"; {silent} of {total} stay silent" if silent else ""
    title = f"From the image to the answer: the network reads {class_names[scores.argmax()]}"
    caption = (
        f"The image excites some of the units (left{silence}). Each unit of the last hidden layer "
        "then votes for or against every class. A vote is the unit's activation times its weight "
        f"to that class. The table lists the {count} units with the largest votes, with small "
        "pictures of what excites them in this image. No single unit decides: the others together "
        "often say more. Each column adds up to the score of its class. The highest score is the "
        "answer."
    )
    figure = captioned_figure(max(11.0, 3.6 + 0.75 * len(class_names)), 6.4, title, caption)
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 3))
    _draw_activations(figure.add_subfigure(left), image, activations)
    axes = figure.add_subfigure(right).subplots()
    _draw_table(axes, np.vstack([votes[units], rest, bias, scores]))
    names = [*(f"unit {unit}" for unit in units), f"{len(votes) - count} others", "bias", "score"]
    axes.set_yticks(range(len(names)), names)
    rotation = 90 if len(class_names) > 10 else 0
    axes.set_xticks(range(len(class_names)), class_names, rotation=rotation)
    repeated = jnp.broadcast_to(inputs, (count, *inputs.shape))
    gradients = analysis.unit_gradients(network, len(network.layers) - 2, units, repeated)
    for row, gradient in enumerate(np.asarray(gradients).reshape(-1, *image.shape)):
        zoom = 27 / max(gradient.shape)
        picture = OffsetImage(signed(gradient), zoom=zoom, interpolation="nearest")
        axes.add_artist(AnnotationBbox(picture, (-1.0, row), frameon=False))
    return figure


def _draw_activations(figure: SubFigure, image: AnyArray, layers: list[np.ndarray]) -> None:
    """Draws the image, and below it the activations of each hidden layer."""
    first, *panels = figure.subplots(1 + len(layers), 1, squeeze=False)[:, 0]
    _panel(first, image, "the image", **plots.GREY)
    for number, (axes, layer) in enumerate(zip(panels, layers, strict=True), 1):
        limit = float(np.abs(layer).max()) or 1.0
        cmap, low = (plots.SIGNED, -limit) if layer.min() < 0 else ("inferno", 0)
        title = f"hidden layer {number}: {len(layer)} units"
        _panel(axes, _grid(layer), title, cmap=cmap, vmin=low, vmax=limit)


def _draw_table(axes: Axes, table: Float[np.ndarray, "rows classes"]) -> None:
    """Draws a row for each unit, then one each for the other units, the bias and the scores."""
    rows, classes = table.shape
    colored = table.copy()
    colored[-3:] = 0  # these rows have another scale
    limit = np.abs(colored).max() or 1.0
    axes.imshow(colored, cmap=plots.SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        color = "white" if abs(colored[row, column]) > 0.6 * limit else "black"
        is_answer = row == rows - 1 and column == table[-1].argmax()
        weight = "bold" if is_answer else "normal"
        number = f"{round(float(value), 2) + 0:.2f}"  # not -0.00
        axes.text(column, row, number, fontsize=8, color=color, weight=weight, **plots.CENTRED)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    axes.set(xlim=(-1.5, classes - 0.5), ylim=(rows - 0.5, -0.5))
    axes.axhline(rows - 1.5, color="black", lw=1)
    axes.spines[:].set_visible(False)


def attributions(network: Network, images: Images) -> Picture:
    """Images, what each of their pixels contributed to the answer, and what more ink would do."""
    inputs = network.preprocess(images)
    answers = analysis.activations(network, inputs)[-1].argmax(axis=-1)
    contributions = analysis.integrated_gradients(network, inputs, answers)
    gradients = analysis.input_gradients(network, inputs, answers)
    count, height, width = images.shape
    rows = [
        [_grey(image) for image in images],
        [signed(pixels) for pixels in np.asarray(contributions).reshape(images.shape)],
        [signed(pixels) for pixels in np.asarray(gradients).reshape(images.shape)],
    ]
    gap = max(1, width // 10)
    title = "Which pixels spoke for the answer, and which against it"
    caption = (
        "Middle: what the ink in each pixel did. Red raised the score of the answer above the mean "
        "of all scores, blue lowered it. All pixels together add up to the difference between the "
        "image and a blank page. Bottom: what a little more ink would do, in empty places too. A "
        "gap that must stay empty is blue."
    )
    figure, axes = captioned_mosaic(mosaic(rows, gap), 1.15 * count, title, caption)
    for i, answer in enumerate(answers):
        middle, name = i * (width + gap) + width / 2, network.class_names[int(answer)]
        axes.text(middle, -gap / 2, name, ha="center", va="bottom", fontsize=10)
    axes.text(-gap, -gap / 2, "read as", ha="right", va="bottom", fontsize=10)
    for i, label in enumerate(("the image", "its ink", "more ink")):
        middle = i * (height + gap) + height / 2
        axes.text(-gap, middle, label, ha="right", va="center", fontsize=10)
    return figure


def subnetworks(network: Network, examples: Examples, dropout: float, seed: int) -> Picture:
    """Two networks that `dropout` makes of one, and how many of a hundred give each answer.

    They read the one of `examples` about which the first twenty networks disagree most. Where
    `dropout` is 0, units are switched off with probability 0.5.
    """
    rate, class_names = dropout or 0.5, network.class_names
    inputs = network.preprocess(examples.images)
    keys = jax.random.split(jax.random.key(seed), 100)
    masks = [analysis.dropout_masks(network, key, rate) for key in keys]

    def logits_of(inputs: Inputs, count: int) -> Float[Array, "count n classes"]:
        logits = [analysis.activations(network, inputs, mask)[-1] for mask in masks[:count]]
        return jnp.stack(logits)

    votes = jax.nn.one_hot(logits_of(inputs, 20).argmax(axis=-1), len(class_names)).sum(axis=0)
    disputed = int(votes.max(axis=1).argmin())
    inputs, label = inputs[disputed : disputed + 1], class_names[int(examples.labels[disputed])]
    logits = logits_of(inputs, 100)[:, 0]
    answers = np.asarray(logits.argmax(axis=-1))
    counts = np.bincount(answers, minlength=len(class_names))
    pair = [int((answers == answer).argmax()) for answer in np.argsort(-counts)[:2]]
    by_pair = np.asarray(jax.nn.softmax(logits[np.array(pair)]))
    by_all = np.asarray(jax.nn.softmax(analysis.activations(network, inputs)[-1]))[0]
    likelihood = counts + by_all + by_pair.max(axis=0)
    classes = np.sort(np.argsort(-likelihood, kind="stable")[:10])

    caption = (
        "In every step of training, dropout switches each hidden unit off with probability "
        f"{rate:g} (dark), so that a different network answers each time. Here two of these "
        "networks, A and B, read the same image. Such networks disagree about it: the last panel "
        "counts the answers of a hundred. No unit can rely on the others, so each learns to be "
        "useful by itself. Outlined bars show the answer of the trained network, with all of its "
        "units."
    )
    caption += "" if dropout else " This network was trained without dropout."
    figure = captioned_figure(11.0, 6.0, "Dropout: many networks in one", caption)
    rows = figure.subplots(2, 3, width_ratios=(1.2, 1.4, 1.2))
    names = [class_names[i] for i in classes]
    for (left, middle, _), name, i, probabilities in zip(rows, "AB", pair, by_pair, strict=True):
        active = np.concatenate([np.asarray(mask) > 0 for mask in masks[i]])
        title = f"network {name}: {active.sum()} of {len(active)} hidden units"
        _panel(left, _grid(active.astype(float)), title, cmap="gray", vmin=-0.3, vmax=1)
        middle.bar(names, 100 * probabilities[classes], color=plots.TRAINING)
        middle.bar(names, 100 * by_all[classes], color="none", edgecolor=plots.TEST)
        middle.set(ylim=(0, 100), ylabel=f"probability by {name} (%)")
        light_grid(middle)
    picture, bars = rows[:, 2]
    _panel(picture, examples.images[disputed], f"the image, of class {label}", **plots.GREY)
    bars.bar(names, counts[classes], color=plots.VALIDATION)
    bars.set(ylabel="networks out of 100")
    light_grid(bars)
    return figure


def class_map(network: Network, images: Images, labels: Labels) -> Picture:
    """Images in two principal components of their pixels and of the last hidden layer."""
    caption = (
        f"Each dot is one of {len(labels):,} test images, placed along the two directions in which "
        "the images differ most (PCA). By their pixels, most classes overlap. By the activations "
        "of the last hidden layer they have moved apart, as far as two directions can show it. "
        "That lets the last layer of weights tell them apart."
    )
    figure = captioned_figure(11.0, 6.0, "Where the classes lie", caption)
    inputs, *_, hidden, _ = analysis.activations(network, network.preprocess(images))
    left, right = figure.subplots(1, 2)
    panels = ((left, inputs, "pixels"), (right, hidden, "the last hidden layer"))
    count = len(network.class_names)
    colors = matplotlib.colormaps["tab10" if count <= 10 else "turbo"].resampled(max(count, 10))
    box = {"boxstyle": "circle,pad=0.2", "color": "white", "alpha": 0.8}
    for axes, features, title in panels:
        points = analysis.principal_components(np.asarray(features))
        for label in np.unique(labels):
            places, name = points[labels == label], network.class_names[label]
            color = colors(int(label))
            axes.plot(*places.T, ".", markersize=3, alpha=0.5, color=color)
            style = {"color": color, "weight": "bold", "fontsize": 10, "bbox": box, "zorder": 3}
            axes.text(*np.median(places, axis=0), name, **style, **plots.CENTRED)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _panel(axes: Axes, values: Num[AnyArray, "h w"], title: str, **style: Any) -> None:
    """Shows `values` as a picture without ticks, grey where there is no unit (NaN)."""
    axes.imshow(values, **style)
    axes.set_facecolor("0.8")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


def _grid(values: Float[AnyArray, "units"]) -> Float[np.ndarray, "rows columns"]:
    """The units of a layer in rows, about twice as wide as high, with NaN after the last."""
    columns = max(1, math.ceil(math.sqrt(2 * len(values))))
    rows = math.ceil(len(values) / columns)
    padding = rows * columns - len(values)
    return np.pad(values, (0, padding), constant_values=np.nan).reshape(rows, columns)


def _grey(image: Num[AnyArray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    return np.repeat(np.asarray(image, float)[..., None] / 255, 3, axis=-1)
