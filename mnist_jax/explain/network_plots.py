"""Figures of what a network computes: its units, its pixels, its subnetworks, its classes."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from mnist_jax.explain.captioned import captioned_figure, captioned_mosaic, light_grid
from mnist_jax.plots import SIGNED, TEST, TRAINING, VALIDATION, Picture, mosaic, signed
from mnist_jax.preprocess import AnyArray


def units(
    views: Float[AnyArray, "units height width"],
    images: Num[AnyArray, "units 9 height width"],
    names: Sequence[str],
    title: str,
    first: bool,
) -> Picture:
    """What each unit looks for, beside the nine images that excite it most."""
    across, gap = min(4, len(names)), max(2, views.shape[2] // 2)
    pairs = []
    for view, nine in zip(views, np.asarray(images), strict=True):
        colors = signed(view).repeat(3, 0).repeat(3, 1)
        framed = np.pad(colors, ((1, 1), (1, 1), (0, 0)), constant_values=1)
        grey = [[_grey(image) for image in nine[row : row + 3]] for row in (0, 3, 6)]
        pairs.append(mosaic([[framed, mosaic(grey, 1)]], 2))
    pairs += [np.ones_like(pairs[0])] * (-len(pairs) % across)
    rows = [pairs[place : place + across] for place in range(0, len(pairs), across)]
    deeper = (
        " After the first layer a unit sees no pixels but other units; shown is how each pixel "
        "moved it, on average over its nine images."
    )
    figure, axes = captioned_mosaic(
        *(mosaic(rows, gap), 2.9 * across, title),
        "Each pair is one unit. Left, what it looks for: ink on red excites it, ink on blue "
        "silences it. Right, the nine training images that excite it most: often of one class, or "
        "of several that share a stroke, a loop or a corner." + ("" if first else deeper),
    )
    down, right = pairs[0].shape[0] + gap, pairs[0].shape[1] + gap
    for place, name in enumerate(names):
        left, top = place % across * right, place // across * down
        axes.text(left, top - 2, name, ha="left", va="bottom", fontsize=9)
    return figure


def message(
    image: Num[AnyArray, "height width"],
    activations: Sequence[Float[AnyArray, "_"]],
    views: Float[AnyArray, "spoke height width"],
    numbers: Integer[AnyArray, "spoke"],
    votes: Float[AnyArray, "units classes"],
    bias: Float[AnyArray, "classes"],
    class_names: Sequence[str],
) -> Picture:
    """From pixels to units to votes to scores: `numbers` are the units whose votes are shown."""
    spoke, classes = len(numbers), len(class_names)
    chosen = np.asarray(votes)[np.asarray(numbers)]
    others = votes.sum(axis=0) - chosen.sum(axis=0)
    scores = votes.sum(axis=0) + bias
    table = np.vstack([chosen, others, bias, scores])
    answer = class_names[int(scores.argmax())]
    silent = sum(int((np.asarray(layer) == 0).sum()) for layer in activations)
    total = sum(len(layer) for layer in activations)
    quiet = f"; {silent} of {total} stay silent" if silent else ""
    figure = captioned_figure(
        *(max(11.0, 3.6 + 0.75 * classes), 6.4, f"The path of the message: it reads {answer}"),
        f"The image lights some of the units (left{quiet}). Each unit of the last hidden layer "
        "then votes for and against every class: its activation times its weight. The "
        f"{spoke} loudest voters are shown with what moves them in this image. No voter decides: "
        "the many others together often say most. Each column adds up to the score of its class, "
        "and the highest score is the answer.",
    )
    grid = figure.add_gridspec(1, 2, width_ratios=(1, 3))
    left, right = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = left.subplots(1 + len(activations), 1, squeeze=False)[:, 0]
    panels[0].imshow(image, cmap="gray", vmin=0, vmax=255)
    panels[0].set_title("the image", fontsize=9)
    for number, (axes, layer) in enumerate(zip(panels[1:], activations, strict=True), 1):
        most = float(np.abs(layer).max()) or 1.0
        signed_too = np.min(layer) < 0
        style = {"cmap": SIGNED, "vmin": -most} if signed_too else {"cmap": "inferno", "vmin": 0}
        axes.imshow(_grid(layer), vmax=most, **style)
        axes.set_facecolor("0.8")  # of places without a unit
        axes.set_title(f"hidden layer {number}: {len(layer)} units", fontsize=9)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
    axes = right.subplots()
    limit = np.abs(chosen).max() or 1.0
    colored = np.vstack([chosen, np.zeros((3, classes))])  # sums are on another scale
    axes.imshow(colored, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        bright = row < spoke and abs(value) > 0.6 * limit
        best = row == len(table) - 1 and column == scores.argmax()
        axes.text(
            *(column, row, f"{round(float(value), 2) + 0:.2f}"),  # not -0.00
            ha="center",
            va="center",
            fontsize=8,
            color="white" if bright else "black",
            weight="bold" if best else "normal",
        )
    for row, view in enumerate(views):
        colors = signed(view)
        zoom = 27 / max(view.shape)
        box = OffsetImage(colors, zoom=zoom, interpolation="nearest")
        axes.add_artist(AnnotationBbox(box, (-1.0, row), frameon=False))
    names = [*(f"unit {number}" for number in numbers), f"{len(votes) - spoke} others"]
    axes.set_yticks(range(len(table)), [*names, "bias", "score"])
    axes.set_xticks(range(classes), class_names, rotation=90 if classes > 10 else 0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    axes.set(xlim=(-1.5, classes - 0.5), ylim=(len(table) - 0.5, -0.5))
    axes.axhline(len(table) - 1.5, color="black", lw=1)
    axes.spines[:].set_visible(False)
    return figure


def pixels(
    images: Num[AnyArray, "n height width"],
    pushes: Float[AnyArray, "n height width"],
    slopes: Float[AnyArray, "n height width"],
    answers: Sequence[str],
) -> Picture:
    """Each image, which of its ink pushed toward the answer and against, and where more would."""
    count, height, width = images.shape
    gap = max(1, width // 10)
    rows = [
        [_grey(image) for image in images],
        [signed(push) for push in pushes],
        [signed(slope) for slope in slopes],
    ]
    title = "Which pixels pushed toward the answer, and which against"
    figure, axes = captioned_mosaic(
        *(mosaic(rows, gap), 1.15 * count, title),
        "In the middle, what each pixel's ink did: red raised the score of the answer above the "
        "mean of all scores, blue lowered it, and all of an image's pixels together add up to what "
        "its ink changed, compared with a blank page. Below, what a little more ink would do, in "
        "empty places too: a gap that must stay empty is blue.",
    )
    for place, answer in enumerate(answers):
        middle = place * (width + gap) + width / 2
        axes.text(middle, -gap / 2, answer, ha="center", va="bottom", fontsize=10)
    axes.text(-gap, -gap / 2, "read as", ha="right", va="bottom", fontsize=10)
    for row, label in enumerate(("the image", "its ink", "more ink")):
        middle = row * (height + gap) + height / 2
        axes.text(-gap, middle, label, ha="right", va="center", fontsize=10)
    return figure


def dropout(
    image: Num[AnyArray, "height width"],
    masks: Sequence[Sequence[Float[AnyArray, "_"]]],
    answers: Float[AnyArray, "2 classes"],
    whole: Float[AnyArray, "classes"],
    tallies: Integer[AnyArray, "classes"],
    label: int,
    rate: float,
    class_names: Sequence[str],
    trained_with: bool,
) -> Picture:
    """Two masks, the probabilities of the two subnetworks that they leave, and how many agree."""
    shown = np.sort(np.argsort(-(tallies + whole + answers.max(axis=0)), kind="stable")[:10])
    names = [class_names[int(i)] for i in shown]
    without = "" if trained_with else " This network was trained without it."
    figure = captioned_figure(
        *(11.0, 6.0, "Dropout: many networks in one"),
        "In every step of training, dropout switches each hidden unit off with probability "
        f"{rate:g} (dark), so that each time another network answers. Here are two of them, A and "
        f"B, and what they make of one image (a {class_names[label]}), about which such networks "
        "disagree: the last panel counts the answers of a hundred. As no unit can rely on another, "
        "each must be of use by itself. Once trained, the whole network answers (outlined)."
        + without,
    )
    rows = figure.subplots(2, 3, width_ratios=(1.2, 1.4, 1.2))
    for (left, middle, _), name, mask, shares in zip(rows, "AB", masks, answers, strict=True):
        kept = np.concatenate([np.asarray(layer) > 0 for layer in mask])
        left.imshow(_grid(kept.astype(float)), cmap="gray", vmin=-0.3, vmax=1)
        left.set_facecolor("0.8")  # of places without a unit
        left.set_title(f"network {name}: {kept.sum()} of {len(kept)} hidden units", fontsize=9)
        left.set(xticks=[], yticks=[])
        middle.bar(names, 100 * np.asarray(shares)[shown], color=TRAINING)
        middle.bar(names, 100 * np.asarray(whole)[shown], color="none", edgecolor=TEST)
        middle.set(ylim=(0, 100), ylabel=f"probability by {name}, %")
        light_grid(middle)
    (_, _, picture), (_, _, counts) = rows
    picture.imshow(image, cmap="gray", vmin=0, vmax=255)
    picture.set_title(f"the image: a {class_names[label]}", fontsize=9)
    picture.set(xticks=[], yticks=[])
    counts.bar(names, np.asarray(tallies)[shown], color=VALIDATION)
    counts.set(ylabel="networks of 100 that read this")
    light_grid(counts)
    return figure


def classes(
    before: Float[AnyArray, "n 2"],
    after: Float[AnyArray, "n 2"],
    labels: Integer[AnyArray, "n"],
    class_names: Sequence[str],
) -> Picture:
    """Where images lie by their pixels and by the last hidden layer, two directions of each."""
    figure = captioned_figure(
        *(11.0, 6.0, "Where the classes lie"),
        f"Each dot is one of {len(labels):,} test images, in the two directions along which they "
        "lie widest apart (PCA). By their pixels, most classes lie in one heap. By the activations "
        "of the last hidden layer they have drawn apart, as far as two directions can show it, so "
        "that the last layer of weights can tell them from each other.",
    )
    colors = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "turbo"]
    for axes, places, title in zip(
        figure.subplots(1, 2), (before, after), ("pixels", "the last hidden layer"), strict=True
    ):
        for i, name in enumerate(class_names):
            own = np.asarray(places)[np.asarray(labels) == i]
            if not len(own):
                continue
            color = colors(i / 9.99 if len(class_names) <= 10 else i / len(class_names))
            axes.plot(*own.T, ".", markersize=3, alpha=0.5, color=color)
            box = {"boxstyle": "circle,pad=0.2", "color": "white", "alpha": 0.8}
            axes.text(
                *np.median(own, axis=0),
                name,
                ha="center",
                va="center",
                bbox=box,
                color=color,
                weight="bold",
                fontsize=10,
                zorder=3,
            )
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _grid(values: Float[AnyArray, "units"]) -> Float[np.ndarray, "rows columns"]:
    """A layer's units, row by row, as near to twice as wide as high as it gets."""
    columns = max(1, math.ceil(math.sqrt(2 * len(values))))
    rows = math.ceil(len(values) / columns)
    grid = np.full(rows * columns, np.nan)
    grid[: len(values)] = values
    return grid.reshape(rows, columns)


def _grey(image: Num[AnyArray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    return np.repeat(np.asarray(image, float)[..., None] / 255, 3, axis=-1)
