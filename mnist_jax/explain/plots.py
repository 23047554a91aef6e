"""The figures that show a network think: arrays in, a matplotlib Figure out, a caption below."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from mnist_jax.plots import SIGNED, TEST, TRAINING, VALIDATION, Picture, mosaic, signed
from mnist_jax.preprocess import AnyArray

DECADES = [digit * 10.0**power for power in range(-8, 9) for digit in (1, 3)]
"""Where an axis of costs has its ticks."""


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
    figure, axes = _drawn(
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
    figure = _picture(
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
    figure, axes = _drawn(
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


def one_weight(
    values: Float[AnyArray, "values"],
    costs: Float[AnyArray, "values"],
    slopes: Float[AnyArray, "values"],
    steps: Float[AnyArray, "steps 2"],
    learning_rate: float,
    images: int,
    name: str,
) -> Picture:
    """The cost as one weight moves, tangents to it, and SGD's `steps` (weight, cost) down it."""
    values, costs, slopes, steps = map(np.asarray, (values, costs, slopes, steps))
    figure = _picture(
        *(8.5, 5.4, f"One weight, moved: {name}"),
        f"Before training all weights are random. Here is what the cost, over {images:,} training "
        "images, would be if this one were another and all others stayed. The orange arrows point "
        "downhill; how steep they are is the derivative: how much the cost changes when the weight "
        f"is nudged. SGD moves the weight by {learning_rate:g} times the derivative, downhill, and "
        f"again from there: the dots are every tenth of {len(steps) - 1} such steps, shorter and "
        "shorter as it gets flat. Training does that with every weight at once.",
    )
    axes = figure.subplots()
    (start, first), taken = steps[0], steps[1, 0] - steps[0, 0]
    axes.plot(values, costs, color=TRAINING, lw=2)
    span, height = np.ptp(values) / 8.5, (np.ptp(costs) or 1.0) / 4  # of an inch on the page
    for i in np.linspace(0, len(values) - 1, 9).round().astype(int)[1:-1]:
        length = 0.9 / math.hypot(1, slopes[i] * span / height) * -np.sign(slopes[i])
        end = values[i] + length * span, costs[i] + length * span * slopes[i]
        _arrow(axes, (values[i], costs[i]), end, VALIDATION)
    axes.plot([], [], "-", color=VALIDATION, label="downhill, as steep as the derivative")
    axes.plot(*steps[::10].T, "o", color="tab:green", markersize=5, label="SGD, every tenth step")
    axes.plot(*steps[0], "o", color=TEST, markersize=7, label="where it starts")
    axes.set(xlabel="the weight", ylabel="cost (cross-entropy)")
    axes.legend(frameon=False, fontsize=9, loc="upper left" if taken < 0 else "upper right")
    _plain(axes)

    # The first step is too short to be seen but under a magnifying glass.
    slope = -taken / learning_rate
    near = start + taken * np.linspace(-1, 2, 9)
    glass = axes.inset_axes((0.36, 0.55, 0.26, 0.36))
    glass.plot(near, np.interp(near, values, costs), color=TRAINING, lw=2)
    glass.plot(start, first, "o", color=TEST, markersize=7)
    _arrow(glass, (start, first), (start + taken, first + taken * slope), "tab:green")
    glass.set(xticks=[], yticks=[])
    sign = "left" if taken < 0 else "right"
    glass.set_title(
        f"the first step, near by:\n{learning_rate:g} x {abs(slope):.2g} to the {sign}", fontsize=9
    )
    return figure


def landscape(
    epochs: Sequence[int],
    path_costs: Float[AnyArray, "points"],
    path: Float[AnyArray, "points 2"],
    across: Float[AnyArray, "columns"],
    up: Float[AnyArray, "rows"],
    costs: Float[AnyArray, "rows columns"],
    share: float,
    parameters: int,
    images: int,
) -> Picture:
    """The cost along the path of training, and on the plane in which the path is widest."""
    figure = _picture(
        *(10.5, 5.2, "Rolling downhill: the path of training"),
        f"Left, the cost as training went on, over {images:,} training images without dropout. "
        f"Right, the same cost as a landscape: of the {parameters:,} directions that the weights "
        "can move in, the two along which training moved them most, which hold "
        f"{100 * share:.0f} % of the movement. Contours are closer where it is steep, dark is "
        "low; the path begins at the ring, with random weights, and ends at the star. It runs a "
        "little beside this plane, and is seen from above. "
        f"The dots are those on the left, after {_listed(epochs)} epochs.",
    )
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.plot(epochs, path_costs, "o-", color=TRAINING, markersize=4)
    left.set(xlabel="epoch", ylabel="cost (cross-entropy)", yscale="log")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set(major_locator=FixedLocator(DECADES), major_formatter="{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    _plain(left)
    low, high = max(float(costs.min()), 1e-8), float(costs.max())
    levels = np.geomspace(low, max(high, 1.01 * low), 24)
    scale = LogNorm(levels[0], levels[-1])
    filled = right.contourf(across, up, costs, levels, cmap="viridis", norm=scale, extend="both")
    right.contour(across, up, costs, levels, colors="white", linewidths=0.4, norm=scale)
    right.plot(*np.asarray(path).T, "o-", color="white", markersize=4, lw=1.5)
    right.plot(*path[0], "o", markersize=11, markerfacecolor="none", color="white")
    right.plot(*path[-1], "*", markersize=15, color="white")
    right.set(xlabel="the direction it moved most in", ylabel="the next", aspect="equal")
    ticks = [tick for tick in DECADES if low < tick < high]
    bar = figure.colorbar(filled, ax=right, label="cost", ticks=ticks, format="%g")
    bar.ax.minorticks_off()
    return figure


def film(
    frames: Float[AnyArray, "frames units height width"],
    epochs: Sequence[int],
    costs: Float[AnyArray, "frames"],
    names: Sequence[str],
) -> Picture:
    """The first layer's weights by epoch: a row a unit, a column a frame."""
    count, rows, height, width = frames.shape
    gap = max(1, width // 10)
    limits = np.abs(frames).max(axis=(0, 2, 3))
    strip = [
        [signed(frames[frame, row], float(limits[row])) for frame in range(count)]
        for row in range(rows)
    ]
    figure, axes = _drawn(
        *(mosaic(strip, gap), 1.05 * count, "Training as a film: the first layer"),
        "Each row is one unit's weights, from the random start on the left: ink on red excites it, "
        "ink on blue silences it. Nobody tells a unit what to look for: strokes appear because "
        "they lower the cost, which stands below.",
    )
    for frame in range(count):
        middle = frame * (width + gap) + width / 2
        axes.text(middle, -gap / 2, f"epoch {epochs[frame]}", ha="center", va="bottom", fontsize=9)
        bottom = rows * (height + gap)
        axes.text(middle, bottom, f"{costs[frame]:.2g}", ha="center", va="top", fontsize=9)
    for row in range(rows):
        middle = row * (height + gap) + height / 2
        axes.text(-gap, middle, names[row], ha="right", va="center", fontsize=9)
    axes.text(-gap, rows * (height + gap), "cost", ha="right", va="top", fontsize=9)
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
    figure = _picture(
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
        _plain(middle)
    (_, _, picture), (_, _, counts) = rows
    picture.imshow(image, cmap="gray", vmin=0, vmax=255)
    picture.set_title(f"the image: a {class_names[label]}", fontsize=9)
    picture.set(xticks=[], yticks=[])
    counts.bar(names, np.asarray(tallies)[shown], color=VALIDATION)
    counts.set(ylabel="networks of 100 that read this")
    _plain(counts)
    return figure


def classes(
    before: Float[AnyArray, "n 2"],
    after: Float[AnyArray, "n 2"],
    labels: Integer[AnyArray, "n"],
    class_names: Sequence[str],
) -> Picture:
    """Where images lie by their pixels and by the last hidden layer, two directions of each."""
    figure = _picture(
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


def _picture(width: float, height: float, title: str, caption: str) -> Picture:
    """An empty figure, in inches, with its title above and its caption below."""
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=13)
    figure.supxlabel(
        "\n".join(_wrapped(caption, width)), fontsize=9, color="0.3", x=0.02, ha="left"
    )
    return figure


def _drawn(
    canvas: Float[np.ndarray, "h w 3"], width: float, title: str, caption: str
) -> tuple[Picture, Axes]:
    """A figure of one coloured picture, as high as it needs to be."""
    whole = max(width, 7.0) + 0.6  # for the words
    height = width * canvas.shape[0] / canvas.shape[1] + 0.9 + 0.17 * len(_wrapped(caption, whole))
    figure = _picture(whole, height, title, caption)
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    return figure, axes


def _wrapped(caption: str, width: float) -> list[str]:
    return textwrap.wrap(caption, int(13.5 * width))


def _grid(values: Float[AnyArray, "units"]) -> Float[np.ndarray, "rows columns"]:
    """A layer's units, row by row, as near to twice as wide as high as it gets."""
    columns = max(1, math.ceil(math.sqrt(2 * len(values))))
    rows = math.ceil(len(values) / columns)
    grid = np.full(rows * columns, np.nan)
    grid[: len(values)] = values
    return grid.reshape(rows, columns)


def _grey(image: Num[AnyArray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    return np.repeat(np.asarray(image, float)[..., None] / 255, 3, axis=-1)


def _arrow(axes: Axes, start: tuple[Any, Any], end: tuple[Any, Any], color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
