"""Figures of what a network computes: its units, votes, pixels, subnetworks and classes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from mnist_jax import plots
from mnist_jax.explain import analysis
from mnist_jax.explain.analysis import Network
from mnist_jax.explain.captioned import captioned_figure, picture_table
from mnist_jax.plots import Picture, red_blue
from mnist_jax.preprocess import AnyArray, Images, Labels

MAX_UNITS = 12  # units that are shown with the images that excite them
MAX_VOTERS = 10  # units of the last hidden layer whose votes are shown


def units(network: Network, layer: int, images: Images) -> Picture:
    """What each unit of a layer looks for, beside the nine of `images` that excite it most."""
    inputs = network.preprocess(images)
    activations = analysis.activations(network, inputs)
    values = np.asarray(activations[layer + 1])
    numbers = np.sort(analysis.rank_units(network, layer, activations)[:MAX_UNITS])
    top = np.argsort(-values[:, numbers], axis=0, kind="stable").T
    top = top[:, np.arange(9) % len(images)]  # images repeat where there are fewer than nine
    gradients = analysis.unit_gradients(network, layer, numbers, np.asarray(inputs)[top])
    gradients = np.asarray(gradients).reshape(-1, 1, *images.shape[1:])
    pictures = np.concatenate([red_blue(gradients), _grey(images[top])], axis=1)
    title = "No hidden layer: what each class looks for"
    if len(network.layers) > 1:
        silent, count = int((np.ptp(values, axis=0) == 0).sum()), values.shape[1]
        title = f"Hidden layer {layer + 1}: the {len(numbers)} most influential of {count} units"
        title += f" ({silent} are silent on all images)" if silent else ""
    caption = (
        "Each row shows one unit. First what it looks for: ink on red excites it, ink on blue "
        "silences it. Then the nine training images that excite it most, in order."
    )
    if layer > 0:
        caption += (
            " This layer sees the pixels only through the units before it: the first picture is "
            "the effect of each pixel through them, averaged over the nine images."
        )
    columns = ["looks for", *map(str, range(1, 10))]
    return picture_table(pictures, unit_names(network, numbers), columns, title, caption)


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
    units = np.argsort(-np.abs(votes).max(axis=1), kind="stable")[:MAX_VOTERS]
    others = votes.sum(axis=0) - votes[units].sum(axis=0)
    bias = np.asarray(network.layers[-1].bias)
    scores = votes.sum(axis=0) + bias
    silent = sum(int((layer == 0).sum()) for layer in activations)
    total = sum(len(layer) for layer in activations)
    title = f"From the image to the answer: the network reads {class_names[scores.argmax()]}"
    caption = (
        f"Left: the activations of the hidden units; {silent} of {total} stay silent. "
        "Right: each unit of the last hidden layer votes for or against every class. A vote is the "
        f"unit's activation times its weight to that class. The {len(units)} units with the "
        "largest votes are listed, with what excites them in this image. The votes of all units "
        "and the bias add up to the score. The highest score is the answer."
    )
    figure = captioned_figure(max(11.0, 3.6 + 0.75 * len(class_names)), 5.7, title, caption)
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 3))
    _draw_activations(figure.add_subfigure(left), image, activations)
    axes = figure.add_subfigure(right).subplots()
    _draw_table(axes, np.vstack([votes[units], others, bias, scores]))
    names = [f"unit {unit}" for unit in units]
    names += [f"{len(votes) - len(units)} others", "bias", "score"]
    axes.set_yticks(range(len(names)), names)
    rotation = plots.name_rotation(class_names)
    axes.set_xticks(range(len(class_names)), class_names, rotation=rotation)
    repeated = jnp.broadcast_to(inputs, (len(units), *inputs.shape))
    gradients = analysis.unit_gradients(network, len(network.layers) - 2, units, repeated)
    pictures = red_blue(np.asarray(gradients).reshape(-1, *image.shape))
    for row, picture in enumerate(pictures):
        small = OffsetImage(picture, zoom=27 / max(image.shape), interpolation="nearest")
        axes.add_artist(AnnotationBbox(small, (-1.0, row), frameon=False))
    return figure


def _draw_activations(figure: SubFigure, image: AnyArray, layers: list[np.ndarray]) -> None:
    """Draws the image, and below it the activations of each hidden layer."""
    first, *panels = figure.subplots(1 + len(layers), 1)
    plots.show_picture(first, image, "the image", **plots.GREY)
    for number, (axes, layer) in enumerate(zip(panels, layers, strict=True), 1):
        limit = float(np.abs(layer).max()) or 1.0
        style = {"cmap": plots.RED_BLUE, "vmin": -limit, "vmax": limit}
        title = f"hidden layer {number}: {len(layer)} units"
        plots.show_picture(axes, _grid(layer), title, **style)


def _draw_table(axes: Axes, table: Float[np.ndarray, "rows classes"]) -> None:
    """Draws a row for each unit, then one each for the other units, the bias and the scores."""
    rows, classes = table.shape
    coloured = table.copy()
    coloured[-3:] = 0  # these rows have another scale
    axes.imshow(red_blue(coloured), aspect="auto")
    dark = np.abs(coloured) > 0.6 * np.abs(coloured).max()
    for (row, column), value in np.ndenumerate(table):
        color = "white" if dark[row, column] else "black"
        number = f"{value:z.2f}"  # z: not -0.00
        axes.text(column, row, number, fontsize=8, color=color, **plots.CENTRED)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlim(-1.5, classes - 0.5)
    axes.axhline(rows - 1.5, color="black", lw=1)
    axes.spines[:].set_visible(False)


def attributions(network: Network, images: Images) -> Picture:
    """Images, what each of their pixels contributed to the answer, and what more ink would do."""
    inputs = network.preprocess(images)
    answers = analysis.activations(network, inputs)[-1].argmax(axis=-1)
    contributions = analysis.integrated_gradients(network, inputs, answers)
    gradients = analysis.input_gradients(network, inputs, answers)
    effects = np.stack([contributions, gradients]).reshape(2, *images.shape)
    pictures = np.concatenate([_grey(images)[None], red_blue(effects)])
    rows = ["the image", "its ink", "more ink"]
    columns = [f"read as {network.class_names[answer]}" for answer in answers.tolist()]
    title = "Which pixels spoke for the answer, and which against it"
    caption = (
        "Middle: what the ink in each pixel did. Red raised the score of the answer above the mean "
        "of all scores, blue lowered it; all pixels add up to the difference from a blank page. "
        "Bottom: what a little more ink would do. A gap that must stay empty is blue."
    )
    return picture_table(pictures, rows, columns, title, caption)


def subnetworks(
    network: Network, images: Images, labels: Labels, dropout: float, seed: int
) -> Picture:
    """Two networks that `dropout` makes of one, and how many of a hundred give each answer.

    They read the image that the whole network is least certain about. If `dropout` is 0, units
    are switched off with probability 0.5.
    """
    rate, class_names = dropout or 0.5, network.class_names
    inputs = network.preprocess(images)
    by_all = np.asarray(jax.nn.softmax(analysis.activations(network, inputs)[-1]))
    disputed = int(by_all.max(axis=1).argmin())
    by_all, inputs = by_all[disputed], inputs[disputed : disputed + 1]
    keys = jax.random.split(jax.random.key(seed), 100)
    masks = jax.vmap(partial(analysis.dropout_masks, network, rate=rate))(keys)
    logits = jax.vmap(lambda masks: analysis.activations(network, inputs, masks)[-1][0])(masks)
    answers = np.asarray(logits.argmax(axis=-1))
    counts = np.bincount(answers, minlength=len(class_names))
    classes = np.sort(np.argsort(-counts - by_all, kind="stable")[:10])
    names = [class_names[i] for i in classes]

    caption = (
        f"In each step of training, dropout switches hidden units off (dark), each with "
        f"probability {rate:g}, so that another network answers each time. Here two such networks, "
        "A and B, read the same image; outlined bars are the answer of all units together. The "
        "last panel counts the answers of a hundred such networks. As no unit can rely on the "
        "others, each learns to be useful by itself."
    )
    caption += "" if dropout else " This network was trained without dropout."
    figure = captioned_figure(11.0, 5.5, "Dropout: many networks in one", caption)
    rows = figure.subplots(2, 3, width_ratios=(1.2, 1.4, 1.2))
    two_most_frequent = np.argsort(-counts, kind="stable")[:2]
    for (left, middle, _), name, answer in zip(rows, "AB", two_most_frequent, strict=True):
        index = int((answers == answer).argmax())  # of the first network that gives this answer
        active = np.concatenate([np.asarray(mask[index]) > 0 for mask in masks])
        title = f"network {name}: {active.sum()} of {len(active)} hidden units"
        plots.show_picture(left, _grid(active.astype(float)), title, cmap="gray", vmin=-0.3, vmax=1)
        probabilities = np.asarray(jax.nn.softmax(logits[index]))
        plots.draw_bars(middle, names, 100 * probabilities[classes], color=plots.TRAINING)
        middle.bar(names, 100 * by_all[classes], color="none", edgecolor=plots.TEST)
        middle.set(ylim=(0, 100), ylabel=f"probability by {name} (%)")
    picture, bars = rows[:, 2]
    title = f"the image, of class {class_names[int(labels[disputed])]}"
    plots.show_picture(picture, images[disputed], title, **plots.GREY)
    plots.draw_bars(bars, names, counts[classes], color=plots.VALIDATION)
    bars.set(ylabel="networks out of 100")
    return figure


def class_map(network: Network, images: Images, labels: Labels) -> Picture:
    """Images in two principal components of their pixels and of the last hidden layer."""
    caption = (
        f"Each dot is one of {len(labels):,} test images, placed along the two directions in which "
        "they differ most (PCA). By their pixels, most classes overlap. By the activations of the "
        "last hidden layer they are further apart, so that the last weights can tell them apart."
    )
    from sklearn.decomposition import PCA  # takes more than a second

    figure = captioned_figure(11.0, 5.5, "Where the classes lie", caption)
    inputs, *_, hidden, _ = analysis.activations(network, network.preprocess(images))
    left, right = figure.subplots(1, 2)
    panels = ((left, inputs, "pixels"), (right, hidden, "the last hidden layer"))
    count = len(network.class_names)
    colors = matplotlib.colormaps["tab10" if count <= 10 else "turbo"].resampled(max(count, 10))
    box = {"boxstyle": "circle,pad=0.2", "color": "white", "alpha": 0.8}
    for axes, features, title in panels:
        points = PCA(2).fit_transform(np.asarray(features))
        for label in np.unique(labels):
            places, name = points[labels == label], network.class_names[label]
            color = colors(int(label))
            axes.plot(*places.T, ".", markersize=3, alpha=0.5, color=color)
            x, y = np.median(places, axis=0)
            axes.text(x, y, name, color=color, weight="bold", bbox=box, zorder=3, **plots.CENTRED)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _grid(values: Float[AnyArray, "units"]) -> Float[np.ndarray, "rows columns"]:
    """The units of a layer in rows, about twice as wide as high, with NaN after the last."""
    columns = max(1, math.ceil(math.sqrt(2 * len(values))))
    rows = math.ceil(len(values) / columns)
    padding = rows * columns - len(values)
    return np.pad(values, (0, padding), constant_values=np.nan).reshape(rows, columns)


def _grey(images: Num[AnyArray, "*n h w"]) -> Float[np.ndarray, "*n h w 3"]:
    return np.repeat(np.asarray(images, float)[..., None] / 255, 3, axis=-1)
