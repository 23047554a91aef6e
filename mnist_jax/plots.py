"""Figures: arrays or the metrics of a run in, a matplotlib Figure out."""

import io
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnist_jax.preprocess import AnyArray, Images, Labels

TRAINING, VALIDATION, TEST = "#1f77b4", "#d95f02", "black"
SIGNED = "RdBu_r"  # red above zero, blue below
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
    return _picture_grid(images, [class_names[int(label)] for label in labels], title, **GREY)


def curves(
    metrics: Sequence[dict[str, Any]], summary: dict[str, Any] | None, title: str = ""
) -> Figure:
    """Loss and accuracy by epoch: a line for the mean over seeds, a band from lowest to highest.

    `metrics` has a record for each epoch, as metrics.jsonl has. `summary` adds the test result as
    a star; it is None while the run is training.
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
    band = f"mean of {seeds} seeds, band from lowest to highest" if seeds > 1 else ""
    figure.suptitle(", ".join(filter(None, (title, band))))
    return figure


def confusion(
    counts: Num[AnyArray, "classes classes"], class_names: Sequence[str], title: str = ""
) -> Figure:
    """How many images of each class (row) were read as each class (column).

    The colour shows mistakes alone.
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
                text = f"{count:.0f}" if count == int(count) else f"{count:.1f}"
                axes.text(column, row, text, color=color, fontsize=9, **CENTRED)
    rotation = 90 if max(map(len, class_names)) > 2 else 0
    axes.set_xticks(range(classes), class_names, rotation=rotation)
    axes.set_yticks(range(classes), class_names)
    axes.set(xlabel="read as", ylabel="true class", title=title)
    return figure


def mistakes(
    images: Images,
    labels: Labels,
    probabilities: Float[AnyArray, "n classes"],
    class_names: Sequence[str],
    title: str = "",
    max_images: int = 16,
) -> Figure:
    """The misread images of which the network was most certain, the most certain first."""
    images, labels = np.asarray(images), np.asarray(labels)
    probabilities = np.nan_to_num(probabilities)  # a network that diverged is certain of nothing
    answers, certainty = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != labels)
    chosen = wrong[np.argsort(-certainty[wrong], kind="stable")][:max_images]
    captions = [
        f"is {class_names[int(labels[i])]}, read as {class_names[int(answers[i])]}\n"
        f"{math.floor(1000 * certainty[i]) / 10} % sure"
        for i in chosen
    ]
    return _picture_grid(images[chosen], captions, title, **GREY)


def weights(
    kernel: Float[AnyArray, "pixels units"],
    image_shape: tuple[int, int],
    title: str = "",
    max_units: int = 36,
) -> Figure:
    """The weights of the units whose weights are largest, each unit as a picture.

    Ink on red raises the unit's value, ink on blue lowers it. All pictures share one colour scale.
    """
    kernel = np.asarray(kernel, np.float64)  # the squares of weights may overflow float32
    units = np.sort(np.argsort(-np.linalg.norm(kernel, axis=0), kind="stable")[:max_units])
    pictures = kernel.T[units].reshape(-1, *image_shape)
    limit = np.quantile(np.abs(pictures), 0.999) or 1.0
    captions = [f"unit {unit}" for unit in units]
    return _picture_grid(pictures, captions, title, "weight", cmap=SIGNED, vmin=-limit, vmax=limit)


def answers(
    photos: Sequence[Num[AnyArray, "_ _"]],  # of any sizes
    digits: Images,
    probabilities: Float[AnyArray, "n classes"],
    class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """A row for each photo: the photo, what the network saw of it, and the probabilities.

    Of many classes, the ten most probable are shown.
    """
    probabilities = np.nan_to_num(probabilities)  # a network that diverged is certain of nothing
    figure = Picture(figsize=(7, 1.9 * len(digits)), layout="constrained")
    rows = figure.subplots(len(digits), 3, squeeze=False, width_ratios=(1, 1, 1.8))
    for (left, middle, bars), photo, digit, row, title in zip(
        rows, photos, digits, probabilities, titles, strict=True
    ):
        left.imshow(photo, **GREY)
        short_title = title if len(title) <= 24 else f"{title[:10]}...{title[-11:]}"
        left.set_title(short_title, fontsize=9)
        middle.imshow(digit, **GREY)
        middle.set_title("what the network saw", fontsize=9)
        left.set_axis_off()
        middle.set_axis_off()
        best = int(row.argmax())
        classes = np.sort(np.argsort(-row, kind="stable")[:10])
        names = [class_names[i] for i in classes]
        colors = [TRAINING if i == best else "0.75" for i in classes]
        bars.bar(range(len(names)), row[classes], color=colors)
        bars.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        bars.set_yticks([0, 1], ["0", "100 %"])
        bars.set_ylim(0, 1)
        bars.spines[["top", "right"]].set_visible(False)
        percent = math.floor(1000 * row[best]) / 10
        bars.set_title(f"{class_names[best]}, {percent} % sure", fontsize=9)
    return figure


def signed(
    values: Float[AnyArray, "height width"], limit: float | None = None
) -> Float[np.ndarray, "height width 3"]:
    """`values` as colours: red above zero, blue below.

    The colours are strongest at `limit`, or else at the largest magnitude.
    """
    limit = (float(np.abs(values).max()) if limit is None else limit) or 1.0
    fractions = Normalize(-limit, limit)(np.asarray(values, np.float64))
    return matplotlib.colormaps[SIGNED](fractions)[..., :3]


def mosaic(
    rows: Sequence[Sequence[Float[np.ndarray, "height width 3"]]], gap: int
) -> Float[np.ndarray, "_ _ 3"]:
    """Pictures of one size in rows, joined into one picture with white gaps.

    The first row is the longest. One picture draws at once; an axes for each would take seconds.
    """
    height, width, _ = rows[0][0].shape
    canvas = np.ones((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def light_grid(axes: Axes) -> None:
    """Gives `axes` a faint grid, and removes its upper and right border."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def show(figure: Figure) -> bool:
    """Shows `figure` in a window until it is closed; returns False where there is no screen."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    from matplotlib import pyplot  # it looks for a screen when it is imported

    if matplotlib.get_backend().lower() == "agg":
        return False
    pyplot.figure(figure)
    pyplot.show()
    return True


def _picture_grid(
    pictures: Images, captions: Sequence[str], title: str, scale_label: str = "", **style: Any
) -> Figure:
    """Pictures with their captions above them, in a grid that is about as wide as high.

    One axes holds them all, as an axes for each of 36 pictures would take seconds.
    """
    count, height, width = pictures.shape
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    inch = width / 1.5  # in pixels of a picture
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    above, gap = 0.19 * lines * inch, 0.08 * width
    row_height, column_width = height + above + gap, width + gap
    size = np.array([column_width * columns, row_height * rows]) / inch
    foot = 0.8 if scale_label else 0.0
    figure_size = size + np.array([0.2, 0.3 + 0.2 * (title.count("\n") + 1) + foot])
    figure = Picture(figsize=tuple(figure_size))
    axes = figure.add_axes((*(np.array([0.1, 0.1 + foot]) / figure_size), *(size / figure_size)))
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        top, left = i // columns * row_height + above, i % columns * column_width + gap / 2
        axes.imshow(picture, extent=(left, left + width, top + height, top), **style)
        x, y = left + width / 2, top - 0.02 * width
        axes.text(x, y, caption, ha="center", va="bottom", fontsize=9, linespacing=1.1)
    axes.set(xlim=(0, column_width * columns), ylim=(row_height * rows, 0))
    axes.set_axis_off()
    if scale_label and axes.images:
        bar = figure.add_axes((0.25, 0.5 / figure_size[1], 0.5, 0.12 / figure_size[1]))
        figure.colorbar(axes.images[-1], cax=bar, label=scale_label, orientation="horizontal")
    figure.suptitle(title, y=1 - 0.12 / figure_size[1], va="top")
    return figure
