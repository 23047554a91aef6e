"""Functions that draw arrays or the metrics of a run, and return a matplotlib Figure."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnist_jax.preprocess import AnyArray, Images, Labels

TRAINING, VALIDATION, TEST = "#1f77b4", "#d95f02", "black"
RED_BLUE = "RdBu_r"  # red above zero, blue below
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}


class Picture(Figure):
    """A Figure that a notebook shows without pyplot, which would keep it in memory."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=100)
        return stream.getvalue()


def samples(images: Images, labels: Labels, class_names: Sequence[str], title: str = "") -> Figure:
    """A grid of all `images`, each under its label."""
    return picture_grid(images, [class_names[int(label)] for label in labels], title, **GREY)


def curves(
    metrics: Sequence[dict[str, Any]], summary: dict[str, Any] | None, title: str = ""
) -> Figure:
    """Loss and accuracy by epoch: a line for the mean over seeds, a band from lowest to highest.

    `metrics` has one record per epoch, as in metrics.jsonl. `summary` adds the test result as a
    star; it is None while the run is training.
    """
    figure = Picture(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in metrics]
    for part, color in (("train", TRAINING), ("validation", VALIDATION)):
        if metrics[0].get(f"{part}_loss") is None:
            continue
        label = "training, with dropout" if part == "train" else part
        losses = np.array([record[f"{part}_loss"] for record in metrics], float)
        losses = np.ma.masked_invalid(losses)  # leaves out the networks that diverged
        errors = np.array([record[f"{part}_error_percent"] for record in metrics], float)
        for axes, values in ((loss, losses), (accuracy, 100 - errors)):
            axes.plot(epochs, values.mean(axis=1), "o-", markersize=3, color=color, label=label)
            low, high = values.min(axis=1), values.max(axis=1)
            axes.fill_between(epochs, low, high, color=color, alpha=0.25, lw=0)
    if summary:
        star = {"marker": "*", "markersize": 11, "color": TEST, "ls": "none", "label": "test"}
        test_loss = np.ma.masked_invalid(np.array(summary["test_loss"], float)).mean()
        loss.plot(epochs[-1], np.ma.filled(test_loss, np.nan), **star)
        accuracy.plot(epochs[-1], 100 - summary["test_error_percent_mean"], **star)
    loss.set(title="Loss (cross-entropy)", xlabel="epoch", ylim=(0, None))
    accuracy.set(title="Accuracy (%)", xlabel="epoch", ylim=(None, 100))
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        light_grid(axes)
    loss.legend(frameon=False)
    seeds = len(metrics[0]["train_loss"])
    band = f" (mean of {seeds} seeds, band from lowest to highest)" if seeds > 1 else ""
    figure.suptitle(title + band)
    return figure


def confusion(
    counts: Integer[AnyArray, "classes classes"], class_names: Sequence[str], title: str = ""
) -> Figure:
    """How many images of each class (row) were read as each class (column).

    Only mistakes are coloured.
    """
    classes, counts = len(class_names), np.asarray(counts)
    size = min(max(5.0, 1.5 + 0.45 * classes), 14.0)
    figure = Picture(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    mistakes = np.where(np.eye(classes, dtype=bool), 0, counts)
    axes.imshow(mistakes, cmap="Oranges", vmax=max(mistakes.max(), 1))
    if classes <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                is_dark = mistakes[row, column] > 0.6 * mistakes.max()
                color = "white" if is_dark else "0.55" if row == column else "black"
                axes.text(column, row, str(count), color=color, fontsize=9, **CENTRED)
    axes.set_xticks(range(classes), class_names, rotation=name_rotation(class_names))
    axes.set_yticks(range(classes), class_names)
    axes.set(xlabel="read as", ylabel="true class")
    figure.suptitle(title, fontsize=10)
    return figure


def mistakes(
    images: Images,
    labels: Labels,
    probabilities: Float[AnyArray, "n classes"],
    class_names: Sequence[str],
    title: str = "",
    max_images: int = 16,
) -> Figure:
    """The misread images that the network was most certain about, the most certain first."""
    images, labels = np.asarray(images), np.asarray(labels)
    probabilities = np.nan_to_num(probabilities)  # of a network that diverged
    answers, certainty = probabilities.argmax(axis=1), probabilities.max(axis=1)
    percents = np.floor(1000 * certainty) / 10  # rounded down, so that 99.96 is not 100
    wrong = np.flatnonzero(answers != labels)
    indices = wrong[np.argsort(-certainty[wrong], kind="stable")][:max_images]
    captions = [
        f"is {class_names[int(labels[i])]}, read as {class_names[int(answers[i])]}\n"
        f"{percents[i]:.1f} % sure"
        for i in indices
    ]
    return picture_grid(images[indices], captions, title, **GREY)


def weights(
    kernel: Float[AnyArray, "pixels units"],
    image_shape: tuple[int, int],
    title: str = "",
    max_units: int = 36,
) -> Figure:
    """The weights of the units with the largest norms, one picture per unit.

    Ink on red raises the unit's value, ink on blue lowers it. All pictures share one colour scale.
    """
    kernel = np.asarray(kernel, np.float64)  # the squares of weights may overflow float32
    units = np.sort(np.argsort(-np.linalg.norm(kernel, axis=0), kind="stable")[:max_units])
    pictures = kernel.T[units].reshape(-1, *image_shape)
    limit = np.quantile(np.abs(pictures), 0.999) or 1.0
    captions = [f"unit {unit}" for unit in units]
    figure = picture_grid(pictures, captions, title, cmap=RED_BLUE, vmin=-limit, vmax=limit)
    (axes,) = figure.axes
    figure.colorbar(
        axes.images[0], ax=axes, label="weight", location="bottom", shrink=0.5, aspect=40
    )
    return figure


def picture_grid(
    pictures: Images,
    captions: Sequence[str],
    title: str,
    **style: Any,
) -> Picture:
    """Pictures 1.5 inches high, with their captions above them, in about as many rows as columns.

    `style` is passed on to imshow.
    """
    count, height, width = pictures.shape
    columns = max(1, math.ceil(math.sqrt(count)))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    gap, row_gap = math.ceil(0.08 * height), math.ceil((0.06 + 0.13 * lines) * height)
    joined = mosaic(pictures, columns, gap, row_gap)
    above = 0.5 + 0.2 * lines + 0.2 * title.count("\n")  # inches
    inches = 1.5 / height * np.array([joined.shape[1], joined.shape[0]]) + [0.2, above]
    figure = Picture(figsize=tuple(inches), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    axes.imshow(joined, interpolation="nearest", **style)
    axes.set_axis_off()
    for i, caption in enumerate(captions):
        x = i % columns * (width + gap) + width / 2 - 0.5
        y = i // columns * (height + row_gap) - 0.02 * height - 0.5
        axes.text(x, y, caption, ha="center", va="bottom", fontsize=9, linespacing=1.1)
    return figure


def mosaic(
    pictures: Num[AnyArray, "n height width *rgb"], columns: int, gap: int, row_gap: int
) -> Float[np.ndarray, "_ _ *rgb"]:
    """One picture of `pictures` in rows of `columns`, with gaps that are NaN, or white in RGB.

    It is drawn at once, while separate axes for 36 pictures would take a second.
    """
    count, height, width, *rgb = pictures.shape
    rows = max(1, math.ceil(count / columns))
    tiles = np.full((rows * columns, height + row_gap, width + gap, *rgb), 1.0 if rgb else np.nan)
    tiles[:count, :height, :width] = pictures
    strips = [np.concatenate(row, axis=1) for row in np.split(tiles, rows)]
    joined = np.concatenate(strips)
    return joined[: len(joined) - row_gap, : joined.shape[1] - gap]


def red_blue(
    values: Float[AnyArray, "*batch height width"],
    limit: Float[AnyArray, "..."] | float | None = None,
) -> Float[np.ndarray, "*batch height width 3"]:
    """`values` as colours: red above zero, blue below, strongest at `limit` and beyond.

    By default, `limit` is the largest magnitude in each picture.
    """
    values = np.asarray(values, np.float64)
    if limit is None:
        limit = np.abs(values).max(axis=(-2, -1), keepdims=True)
    fractions = (values / np.where(limit, limit, 1) + 1) / 2
    return matplotlib.colormaps[RED_BLUE](fractions)[..., :3]


def show_picture(axes: Axes, values: Num[AnyArray, "h w"], title: str, **style: Any) -> None:
    """Shows `values` without ticks, grey where they are NaN."""
    axes.imshow(values, **style)
    axes.set_facecolor("0.8")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


def draw_bars(
    axes: Axes, names: Sequence[str], heights: Num[AnyArray, "bars"], **style: Any
) -> None:
    """Draws a bar for each name; long names are vertical."""
    axes.bar(names, heights, **style)
    axes.tick_params(axis="x", rotation=name_rotation(names))
    light_grid(axes)


def name_rotation(names: Sequence[str]) -> int:
    """The rotation of names below an axis, in degrees: long ones are vertical."""
    return 90 if max(map(len, names)) > 2 else 0


def light_grid(axes: Axes) -> None:
    """Gives `axes` a faint grid, and removes its upper and right border."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def show(figure: Figure) -> bool:
    """Shows `figure` in a window until it is closed; returns False if there is no screen."""
    from matplotlib import pyplot  # it looks for a screen when it is imported

    if matplotlib.get_backend().lower() == "agg":
        return False
    pyplot.figure(figure)
    pyplot.show()
    return True
