"""Figures of training: one weight, the landscape of the cost, the first layer by epoch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mnist_jax.explain.analysis import Landscape, WeightSweep
from mnist_jax.explain.captioned import captioned_figure, captioned_mosaic
from mnist_jax.plots import TEST, TRAINING, VALIDATION, Picture, light_grid, mosaic, signed
from mnist_jax.preprocess import AnyArray


def weight_sweep(
    sweep: WeightSweep, learning_rate: float, images: int, class_names: Sequence[str]
) -> Picture:
    """The cost as one weight moves, with its tangents and the steps of SGD.

    `images` is the number of images over which the cost is taken.
    """
    (layer, row, column), values, costs, derivatives, steps = sweep
    source = f"{'unit' if layer else 'pixel'} {row}"
    title = f"One weight: from {source} to class {class_names[column]}"
    caption = (
        "Before training, all weights are random. The curve shows what the cost, over "
        f"{images:,} training images, would be if this weight had another value and all others "
        "stayed as they are. The orange arrows point downhill. Their slope is the derivative: how "
        "much the cost changes when the weight is nudged. SGD moves the weight downhill by "
        f"{learning_rate:g} times the derivative, and again from there. The green dots are every "
        f"tenth of {len(steps) - 1} such steps, which get shorter as the curve gets flatter. "
        "Training does this with every weight at once."
    )
    figure = captioned_figure(8.5, 5.4, title, caption)
    axes = figure.subplots()
    axes.plot(values, costs, color=TRAINING, lw=2)
    # About an inch along each axis, so that all arrows have the same length on the page.
    inch = float(np.ptp(values)) / 8.5, (float(np.ptp(costs)) or 1.0) / 4
    for i in np.linspace(0, len(values) - 1, 9).round().astype(int)[1:-1]:
        slope = float(derivatives[i])
        run = -np.sign(slope) * 0.9 * inch[0] / math.hypot(1, slope * inch[0] / inch[1])
        _arrow(axes, (values[i], costs[i]), run, slope, VALIDATION)
    axes.plot([], [], "-", color=VALIDATION, label="tangents, pointing downhill")
    axes.plot(*steps[::10].T, "o", color="tab:green", markersize=5, label="SGD, every tenth step")
    axes.plot(*steps[0], "o", color=TEST, markersize=7, label="where it starts")
    step = float(steps[1, 0] - steps[0, 0])
    axes.set(xlabel="the weight", ylabel="cost (cross-entropy)")
    axes.legend(frameon=False, fontsize=9, loc="upper left" if step < 0 else "upper right")
    light_grid(axes)

    # The first step is too short to be seen without an enlargement.
    slope = -step / learning_rate
    nearby = steps[0, 0] + step * np.linspace(-1, 2, 9)
    inset = axes.inset_axes((0.36, 0.55, 0.26, 0.36))
    inset.plot(nearby, np.interp(nearby, values, costs), color=TRAINING, lw=2)
    inset.plot(*steps[0], "o", color=TEST, markersize=7)
    _arrow(inset, steps[0], step, slope, "tab:green")
    inset.set(xticks=[], yticks=[])
    side = "left" if step < 0 else "right"
    title = f"the first step, enlarged:\n{learning_rate:g} x {abs(slope):.2g} to the {side}"
    inset.set_title(title, fontsize=9)
    return figure


def landscape(
    landscape: Landscape,
    epochs: Sequence[int],
    path_costs: Float[AnyArray, "points"],
    images: int,
) -> Picture:
    """The cost after each of `epochs`, and as a landscape with the path of training.

    `images` is the number of images over which the cost is taken.
    """
    path, grid, costs, share, parameters = landscape
    caption = (
        f"Left: the cost during training, over {images:,} training images and without dropout. "
        "Right: the same cost as a landscape, seen from above. The weights can move in "
        f"{parameters:,} directions. The map shows the two in which training moved them most, "
        f"which hold {100 * share:.0f} % of the movement. Dark is low, and contours are closer "
        "where it is steep. The path begins at the ring, with random weights, and ends at the "
        "star. Its dots are those on the left. The path does not lie exactly in this plane, so the "
        "colour beside a dot is not exactly its cost."
    )
    figure = captioned_figure(10.5, 5.2, "Rolling downhill: the path of training", caption)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.plot(epochs, path_costs, "o-", color=TRAINING, markersize=4)
    left.set(xlabel="epoch", ylabel="cost (cross-entropy)", yscale="log")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    light_grid(left)
    low, high = max(float(np.min(costs)), 1e-8), float(np.max(costs))
    levels = np.geomspace(low, max(high, 1.01 * low), 24)
    scale = LogNorm(levels[0], levels[-1])
    x, y = grid[..., 0], grid[..., 1]
    filled = right.contourf(x, y, costs, levels, cmap="viridis", norm=scale, extend="both")
    right.contour(x, y, costs, levels, colors="white", linewidths=0.4, norm=scale)
    right.plot(*path.T, "o-", color="white", markersize=4, lw=1.5)
    right.plot(*path[0], "o", markersize=11, markerfacecolor="none", color="white")
    right.plot(*path[-1], "*", markersize=15, color="white")
    right.set(xlabel="direction of most movement", ylabel="second direction", aspect="equal")
    ticks = LogLocator(subs=(1, 3))
    bar = figure.colorbar(filled, ax=right, label="cost", ticks=ticks, format="%g")
    bar.ax.minorticks_off()
    return figure


def weight_history(
    frames: Float[AnyArray, "frames units height width"],
    epochs: Sequence[int],
    costs: Float[AnyArray, "frames"],
    names: Sequence[str],
) -> Picture:
    """The weights of some units of the first layer: a row for each unit, a column for each epoch.

    `costs` are those after each of `epochs`.
    """
    count, _, height, width = frames.shape
    gap = max(1, width // 10)
    limits = np.abs(frames).max(axis=(0, 2, 3))
    rows = [
        [signed(frame, float(limit)) for frame in unit]
        for unit, limit in zip(frames.swapaxes(0, 1), limits, strict=True)
    ]
    caption = (
        "Each row shows the weights of one unit, from its random start on the left: ink on red "
        "excites it, ink on blue silences it. Nobody tells a unit what to look for. Strokes appear "
        "because they lower the cost (below)."
    )
    title = "Training as a film: the first layer"
    figure, axes = captioned_mosaic(mosaic(rows, gap), 1.05 * count, title, caption)
    bottom = len(rows) * (height + gap)
    for i, (epoch, cost) in enumerate(zip(epochs, costs, strict=True)):
        middle = i * (width + gap) + width / 2
        axes.text(middle, -gap / 2, f"epoch {epoch}", ha="center", va="bottom", fontsize=9)
        axes.text(middle, bottom, f"{cost:.2g}", ha="center", va="top", fontsize=9)
    for i, name in enumerate(names):
        middle = i * (height + gap) + height / 2
        axes.text(-gap, middle, name, ha="right", va="center", fontsize=9)
    axes.text(-gap, bottom, "cost", ha="right", va="top", fontsize=9)
    return figure


def _arrow(axes: Axes, start: Any, run: float, slope: float, color: str) -> None:
    """Draws an arrow from `start` (x, y) to the place `run` further along a line of `slope`."""
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (start[0] + run, start[1] + run * slope), start, arrowprops=style)
