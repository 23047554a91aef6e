"""Figures of the results of a sweep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter

from mnist_jax.plots import CENTRED, TRAINING, VALIDATION, Picture, light_grid
from mnist_jax.runs import rundir
from mnist_jax.runs.rundir import Json
from mnist_jax.sweep.space import Range, Values, to_text

ERROR = "validation_error_percent_mean"


def save_figures(
    out: Path, table: Sequence[Json], space: Mapping[str, Values], dataset: str
) -> None:
    """Saves a figure of the error by each field, and a heat map if two lists make a grid."""
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    varying = [name for name, values in space.items() if name in ranges or len(values) > 1]
    title = f"{dataset}: validation error (%) of {len(table):,} configurations"
    figure = marginals(table, {name: space[name] for name in varying}, title)
    rundir.save_figure(out / "figures" / "marginals.png", figure)
    combinations = math.prod(len(space[name]) for name in varying)
    if len(varying) == 2 and not ranges and combinations == len(table):
        across, down = varying
        figure = heat_map(table, across, down, title)
        rundir.save_figure(out / "figures" / "heat_map.png", figure)


def heat_map(table: Sequence[Json], across: str, down: str, title: str = "") -> Figure:
    """The error of each pair of values of two fields; a frame marks the table's first row.

    The table has a row for every pair.
    """
    columns, rows = (sorted({row[name] for row in table}) for name in (across, down))
    by_place = sorted(table, key=lambda row: (row[down], row[across]))
    errors = np.reshape([row[ERROR] for row in by_place], (len(rows), len(columns)))
    figure = Picture(
        figsize=(2.5 + 0.8 * len(columns), 1.8 + 0.5 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    # Without a limit, a network that hardly learned would leave the rest in one colour.
    low = errors.min()
    high = max(low + 3 * (np.median(errors) - low), low + 1e-6)
    axes.imshow(errors, cmap="viridis_r", vmin=low, vmax=high)
    for (i, j), error in np.ndenumerate(errors):
        color = "white" if error > (low + high) / 2 else "black"
        axes.text(j, i, f"{error:.2f}", color=color, fontsize=9, **CENTRED)
    corner = columns.index(table[0][across]) - 0.5, rows.index(table[0][down]) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VALIDATION, linewidth=2.5))
    axes.set_xticks(range(len(columns)), [str(to_text(value)) for value in columns])
    axes.set_yticks(range(len(rows)), [str(to_text(value)) for value in rows])
    axes.set(xlabel=across.replace("_", " "), ylabel=down.replace("_", " "))
    figure.suptitle(title)
    return figure


def marginals(table: Sequence[Json], space: Mapping[str, Values], title: str = "") -> Figure:
    """The error of every configuration, plotted against each field of `space`.

    A circle is a configuration that was not trained to the end, the star is the table's first row,
    and a line joins the lowest error of each listed value.
    """
    columns = min(3, len(space))
    rows = -(-len(space) // columns)
    figure = Picture(figsize=(1 + 3.2 * columns, 0.6 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    errors = np.array([row[ERROR] for row in table])
    longest = 0 if "epochs" in space else max(row["epochs"] for row in table)
    colors = ["white" if row["epochs"] < longest else TRAINING for row in table]
    for axes, (name, values) in zip(grid.flat, space.items(), strict=False):
        if isinstance(values, Range):
            places = np.array([row[name] for row in table])
            axes.set_xscale("log" if values.log else "linear")
        else:
            names = sorted({row[name] for row in table})
            places = np.array([names.index(row[name]) for row in table])
            best = [errors[places == place].min() for place in range(len(names))]
            axes.plot(best, color=TRAINING, lw=0.8, zorder=0)
            axes.set_xticks(range(len(names)), [str(to_text(value)) for value in names])
            axes.tick_params("x", rotation=90 if len(names) > 6 else 0)
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.scatter(
            places, errors, 14, facecolors=colors, edgecolors=TRAINING, linewidths=0.8, alpha=0.7
        )
        axes.plot(places[0], errors[0], "*", color=VALIDATION, markersize=13)
        axes.set(xlabel=name.replace("_", " "))
        light_grid(axes)
    figure.supylabel("validation error (%)", fontsize="medium")
    for axes in grid.flat[len(space) :]:
        axes.set_axis_off()
    if errors.min() > 0 and errors.max() > 4 * errors.min():
        axis = grid[0, 0].yaxis
        grid[0, 0].set_yscale("log")
        axis.set_major_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    figure.suptitle(title)
    return figure
