"""What a sweep found, as figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter

from mnist_jax.plots import TRAINING, VALIDATION, Picture
from mnist_jax.sweep.space import to_text

ERROR = "validation_error_percent_mean"

Row = dict[str, Any]


def heat_map(table: Sequence[Row], across: str, down: str, title: str = "") -> Figure:
    """The error of each pair of values of two fields; the table's first row has the frame."""
    columns, rows = (_values(table, name) for name in (across, down))
    errors = np.full((len(rows), len(columns)), np.nan)
    for row in table:
        errors[rows.index(_key(row[down])), columns.index(_key(row[across]))] = row[ERROR]
    figure = Picture(
        figsize=(2.5 + 0.8 * len(columns), 1.8 + 0.5 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    # What hardly learned would leave the rest in one colour.
    high = np.nanmin(errors) + 3 * (np.nanmedian(errors) - np.nanmin(errors))
    shown = axes.imshow(errors, cmap="viridis_r", vmax=max(high, np.nanmin(errors) + 1e-6))
    middle = (shown.norm.vmin + shown.norm.vmax) / 2  # type: ignore[operator]
    for (i, j), error in np.ndenumerate(errors):
        if not np.isnan(error):
            color = "white" if error > middle else "black"
            axes.text(j, i, f"{error:.2f}", ha="center", va="center", color=color, fontsize=9)
    best = table[0]
    place = columns.index(_key(best[across])), rows.index(_key(best[down]))
    corner = place[0] - 0.5, place[1] - 0.5
    axes.add_patch(_frame(corner))
    axes.set_xticks(range(len(columns)), [str(to_text(value)) for value in columns])
    axes.set_yticks(range(len(rows)), [str(to_text(value)) for value in rows])
    axes.set(xlabel=_words(across), ylabel=_words(down))
    figure.suptitle(title)
    return figure


def marginals(table: Sequence[Row], fields: Sequence[str], title: str = "") -> Figure:
    """The error of every configuration by each of `fields`: what that field alone is worth.

    A circle is a configuration that did not train to the end, the star is the table's first row,
    and a line joins the best of a few values.
    """
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    figure = Picture(figsize=(1 + 3.2 * columns, 0.6 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    longest = max(row["epochs"] for row in table) if "epochs" not in fields else 0
    whole = [row["epochs"] >= longest for row in table]
    errors = np.array([row[ERROR] for row in table])
    for axes, name in zip(grid.flat, fields, strict=False):
        places = _places(axes, table, name)
        for chosen, marker, color in ((True, "o", TRAINING), (False, "o", "none")):
            at = [i for i, full in enumerate(whole) if full == chosen]
            axes.scatter(
                *(places[at], errors[at], 14, color),
                marker=marker,
                edgecolors=TRAINING,
                linewidths=0.8,
                alpha=0.7,
            )
        axes.plot(places[0], errors[0], "*", color=VALIDATION, markersize=13)
        if len(set(places)) <= 12:
            best = {place: errors[places == place].min() for place in sorted(set(places))}
            axes.plot(best.keys(), best.values(), color=TRAINING, lw=0.8, zorder=0)
        axes.set(xlabel=_words(name))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("validation error (%)")
    for axes in grid.flat[len(fields) :]:
        axes.set_axis_off()
    if errors.min() > 0 and errors.max() > 4 * errors.min():
        grid[0, 0].set_yscale("log")
        for which in (grid[0, 0].yaxis.set_major_formatter, grid[0, 0].yaxis.set_minor_formatter):
            which(LogFormatter(minor_thresholds=(2, 0.5)))
    figure.suptitle(title)
    return figure


def _places(axes: Axes, table: Sequence[Row], name: str) -> np.ndarray:
    """Where the values of a field stand on its axis: a few in a row, more where they are."""
    values = [_key(row[name]) for row in table]
    names = _values(table, name)
    if len(names) <= 12:
        axes.set_xticks(range(len(names)), [str(to_text(value)) for value in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        return np.array([names.index(value) for value in values], float)
    if 0 < 100 * names[0] < names[-1]:
        axes.set_xscale("log")
    return np.array(values, float)


def _values(table: Sequence[Row], name: str) -> list[Any]:
    """The values of a field, in order."""
    return sorted({_key(row[name]) for row in table})


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _frame(corner: tuple[float, float]) -> Rectangle:
    return Rectangle(corner, 1, 1, fill=False, edgecolor=VALIDATION, linewidth=2.5)


def _words(field: str) -> str:
    return field.replace("_", " ")
