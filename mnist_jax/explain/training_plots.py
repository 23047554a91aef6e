"""Figures of training: one weight, the landscape of the cost, the first layer by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mnist_jax.explain.analysis import Landscape, WeightSweep
from mnist_jax.explain.captioned import captioned_figure, picture_table
from mnist_jax.plots import TEST, TRAINING, VALIDATION, Picture, light_grid, red_blue
from mnist_jax.preprocess import AnyArray

ARROWS: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "zorder": 3}


def weight_sweep(
    sweep: WeightSweep, learning_rate: float, images: int, class_names: Sequence[str]
) -> Picture:
    """The cost as one weight moves, with its tangents and the steps of SGD.

    `images` is the number of images that the cost is averaged over.
    """
    (layer, row, column), values, costs, derivatives, steps = sweep
    source = f"{'unit' if layer else 'pixel'} {row}"
    title = f"One weight: from {source} to class {class_names[column]}"
    caption = (
        f"The cost over {images:,} training images, before training, if only this weight changed. "
        "The slope of an orange arrow is the derivative there. SGD moves the weight downhill by "
        f"{learning_rate:g} times the derivative, then again from where it is: the green dots are "
        f"every tenth of {len(steps) - 1} steps. Training does this with all weights at once."
    )
    figure = captioned_figure(8.5, 4.6, title, caption)
    axes = figure.subplots()
    axes.plot(values, costs, color=TRAINING, lw=2)
    tenth = slice(10, 80, 10)
    run = -0.1 * np.ptp(values) * np.sign(derivatives[tenth])
    arrows = values[tenth], costs[tenth], run, run * derivatives[tenth]
    axes.quiver(*arrows, color=VALIDATION, width=0.004, label="tangents, downhill", **ARROWS)
    axes.plot(*steps[::10].T, "o", color="tab:green", markersize=5, label="SGD, every tenth step")
    axes.plot(*steps[0], "o", color=TEST, markersize=7, label="the start")
    axes.set(xlabel="the weight", ylabel="cost (cross-entropy)")
    step = float(steps[1, 0] - steps[0, 0])
    side = "left" if step < 0 else "right"
    axes.legend(frameon=False, fontsize=9, loc="upper left" if step < 0 else "upper right")
    light_grid(axes)

    # The first step is too short to be seen without an enlargement.
    slope = -step / learning_rate
    nearby = steps[0, 0] + step * np.linspace(-1, 2, 9)
    inset = axes.inset_axes((0.36, 0.55, 0.26, 0.34))
    inset.plot(nearby, np.interp(nearby, values, costs), color=TRAINING, lw=2)
    inset.plot(*steps[0], "o", color=TEST, markersize=7)
    inset.quiver(*steps[0], step, step * slope, color="tab:green", width=0.015, **ARROWS)
    inset.set(xticks=[], yticks=[])
    title = f"the first step, enlarged:\n{learning_rate:g} x {abs(slope):.2g} to the {side}"
    inset.set_title(title, fontsize=9)
    return figure


def landscape(landscape: Landscape, costs: Mapping[int, float], images: int) -> Picture:
    """The cost by epoch, and as a landscape with the path of training.

    `images` is the number of images that the cost is averaged over.
    """
    caption = (
        f"Left: the cost over {images:,} training images, without dropout. Right: the same cost as "
        f"a landscape, seen from above. The weights can move in {landscape.parameters:,} "
        "directions; the map shows the two in which training moved them most, which hold "
        f"{100 * landscape.share:.0f} % of the movement. The path begins at the ring, with random "
        "weights, and ends at the star. It does not lie exactly in this plane, so the colour "
        "beside a dot is not exactly its cost."
    )
    figure = captioned_figure(10.5, 4.6, "Rolling downhill: the path of training", caption)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.plot(list(costs), list(costs.values()), "o-", color=TRAINING, markersize=4)
    left.set(xlabel="epoch", ylabel="cost (cross-entropy)", yscale="log")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    light_grid(left)
    low = max(landscape.costs.min(), 1e-8)
    levels = np.geomspace(low, max(landscape.costs.max(), 1.01 * low), 24)
    scale = LogNorm(levels[0], levels[-1])
    surface = landscape.grid[..., 0], landscape.grid[..., 1], landscape.costs
    filled = right.contourf(*surface, levels, cmap="viridis", norm=scale, extend="both")
    right.contour(*surface, levels, colors="white", linewidths=0.4)
    path = landscape.path
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
    costs: Mapping[int, float],
    names: Sequence[str],
) -> Picture:
    """The weights of some units of the first layer: a row for each unit, a column for each epoch.

    `costs` has an entry for each of these epochs.
    """
    limits = np.abs(frames).max(axis=(0, 2, 3), keepdims=True)  # each row has its own scale
    epochs = [f"epoch {epoch}\ncost {cost:.2g}" for epoch, cost in costs.items()]
    caption = (
        "Each row shows the weights of one unit, from its random start on the left. Ink on red "
        "excites it, ink on blue silences it. Nobody tells a unit what to look for. Strokes appear "
        "because they lower the cost."
    )
    pictures = red_blue(frames, limits).swapaxes(0, 1)
    return picture_table(pictures, names, epochs, "Training as a film: the first layer", caption)
