"""Figures of training: one weight, the landscape of the cost, the first layer by epoch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from mnist_jax.explain.captioned import captioned_figure, captioned_mosaic, light_grid
from mnist_jax.plots import TEST, TRAINING, VALIDATION, Picture, mosaic, signed
from mnist_jax.preprocess import AnyArray

DECADES = [digit * 10.0**power for power in range(-8, 9) for digit in (1, 3)]
"""Where an axis of costs has its ticks."""


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
    figure = captioned_figure(
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
    light_grid(axes)

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
    figure = captioned_figure(
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
    light_grid(left)
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
    figure, axes = captioned_mosaic(
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


def _arrow(axes: Axes, start: tuple[Any, Any], end: tuple[Any, Any], color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
