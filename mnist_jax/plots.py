"""Pictures: arrays or a run's metrics in, a matplotlib Figure out."""

import io
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnist_jax.preprocess import AnyArray

TRAINING, VALIDATION, TEST = "#1f77b4", "#d95f02", "black"

SIGNED = "RdBu_r"
"""Red raises, blue lowers, white does neither."""


class Picture(Figure):
    """A Figure that a notebook shows without pyplot, which would also keep it in memory."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=100)
        return stream.getvalue()


def samples(
    images: Num[AnyArray, "n height width"],
    labels: Integer[AnyArray, "n"],
    class_names: Sequence[str],
    title: str = "",
) -> Figure:
    """All `images` in a grid of grey pictures, each under its label."""
    captions = [class_names[int(label)] for label in labels]
    return _pictures(images, captions, title, cmap="gray", vmin=0, vmax=255)


def curves(
    metrics: Sequence[dict[str, Any]], summary: dict[str, Any] | None, title: str = ""
) -> Figure:
    """Loss and accuracy by epoch: a line for the mean over seeds, a band from lowest to highest.

    `metrics` is a record an epoch, as metrics.jsonl holds them; `summary` gives the test result,
    a star at the end, as it is measured once; there is none before.
    """
    figure = Picture(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in metrics]
    for part, color in (("train", TRAINING), ("validation", VALIDATION)):
        if metrics[0].get(f"{part}_loss") is None:
            continue
        name = "training, with dropout" if part == "train" else part
        losses = np.array([record[f"{part}_loss"] for record in metrics], float)
        losses = np.ma.masked_invalid(losses)  # without the networks that diverged
        errors = np.array([record[f"{part}_error_percent"] for record in metrics], float)
        for axes, values in ((loss, losses), (accuracy, 100 - errors)):
            axes.plot(epochs, values.mean(axis=1), "o-", markersize=3, color=color, label=name)
            axes.fill_between(
                epochs, values.min(axis=1), values.max(axis=1), color=color, alpha=0.25, lw=0
            )
    if summary:
        star = {"marker": "*", "markersize": 11, "color": TEST, "ls": "none", "label": "test"}
        tested = np.ma.masked_invalid(np.array(summary["test_loss"], float))
        loss.plot(epochs[-1], np.ma.filled(tested.mean(), np.nan), **star)
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
    """Row: what an image is. Column: what it was read as. Colour shows the mistakes alone."""
    classes, counts = len(class_names), np.asarray(counts)
    size = min(max(5.0, 1.5 + 0.45 * classes), 14.0)
    figure = Picture(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    mistakes = np.where(np.eye(classes, dtype=bool), 0, counts)
    axes.imshow(mistakes, cmap="Oranges", vmax=max(mistakes.max(), 1))
    if classes <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                bright = mistakes[row, column] > 0.6 * mistakes.max()
                shown = f"{count:.0f}" if count == int(count) else f"{count:.1f}"
                axes.text(
                    *(column, row, shown),
                    ha="center",
                    va="center",
                    color="white" if bright else "0.55" if row == column else "black",
                    fontsize=9,
                )
    ticks, turn = range(classes), 90 if max(map(len, class_names)) > 2 else 0
    axes.set_xticks(ticks, class_names, rotation=turn)
    axes.set_yticks(ticks, class_names)
    axes.set(xlabel="read as", ylabel="true class", title=title)
    return figure


def mistakes(
    images: Num[AnyArray, "n height width"],
    labels: Integer[AnyArray, "n"],
    probabilities: Float[AnyArray, "n classes"],
    class_names: Sequence[str],
    title: str = "",
    most: int = 16,
) -> Figure:
    """The misread images that the network was surest of, surest first."""
    images, labels, shares = (np.asarray(array) for array in (images, labels, probabilities))
    shares = np.nan_to_num(shares)  # a network that diverged is sure of nothing
    answers, sureness = shares.argmax(axis=1), shares.max(axis=1)
    wrong = np.flatnonzero(answers != labels)
    chosen = wrong[np.argsort(-sureness[wrong], kind="stable")][:most]
    captions = [
        f"is {class_names[int(labels[i])]}, read as {class_names[int(answers[i])]}\n"
        f"{math.floor(1000 * sureness[i]) / 10} % sure"
        for i in chosen
    ]
    return _pictures(images[chosen], captions, title, cmap="gray", vmin=0, vmax=255)


def weights(
    kernel: Float[AnyArray, "pixels units"],
    image_shape: tuple[int, int],
    title: str = "",
    most: int = 36,
) -> Figure:
    """What each of the units with the largest weights looks for in an image.

    Ink on red raises the unit's value, ink on blue lowers it. All share one colour scale.
    """
    kernel = np.asarray(kernel, np.float64)  # squares of float32 may be too large for it
    strongest = np.sort(np.argsort(-np.linalg.norm(kernel, axis=0), kind="stable")[:most])
    pictures = kernel.T[strongest].reshape(-1, *image_shape)
    limit = np.quantile(np.abs(pictures), 0.999) or 1.0
    captions = [f"unit {unit}" for unit in strongest]
    return _pictures(
        pictures, captions, title, cmap=SIGNED, vmin=-limit, vmax=limit, scale_label="weight"
    )


def answers(
    photos: Sequence[Num[AnyArray, "_ _"]],  # of any sizes
    digits: Num[AnyArray, "n height width"],
    probabilities: Float[AnyArray, "n classes"],
    class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """A row for each photo: itself under its title, what the network saw, what it makes of that.

    Of many classes, the ten that the network finds most probable are shown.
    """
    shares = np.nan_to_num(np.asarray(probabilities))  # a network that diverged is sure of nothing
    figure = Picture(figsize=(7, 1.9 * len(digits)), layout="constrained")
    rows = figure.subplots(len(digits), 3, squeeze=False, width_ratios=(1, 1, 1.8))
    for axes, photo, digit, share, title in zip(rows, photos, digits, shares, titles, strict=True):
        axes[0].imshow(photo, cmap="gray", vmin=0, vmax=255)
        axes[0].set_title(
            title if len(title) <= 24 else f"{title[:10]}...{title[-11:]}", fontsize=9
        )
        axes[1].imshow(digit, cmap="gray", vmin=0, vmax=255)
        axes[1].set_title("what the network saw", fontsize=9)
        for image in axes[:2]:
            image.set_axis_off()
        best = int(share.argmax())
        shown = np.sort(np.argsort(-share, kind="stable")[:10])
        colors = [TRAINING if place == best else "0.75" for place in shown]
        axes[2].bar(range(len(shown)), share[shown], color=colors)
        names = [class_names[place] for place in shown]
        axes[2].set_xticks(range(len(shown)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes[2].set_yticks([0, 1], ["0", "100 %"])
        axes[2].set_ylim(0, 1)
        axes[2].spines[["top", "right"]].set_visible(False)
        percent = math.floor(1000 * share[best]) / 10
        axes[2].set_title(f"{class_names[best]}, {percent} % sure", fontsize=9)
    return figure


def signed(
    values: Float[AnyArray, "height width"], limit: float | None = None
) -> Float[np.ndarray, "height width 3"]:
    """Red above zero, blue below; in full colour at `limit`, or else at the largest value."""
    limit = (float(np.abs(values).max()) if limit is None else limit) or 1.0
    shares = Normalize(-limit, limit)(np.asarray(values, np.float64))
    return matplotlib.colormaps[SIGNED](shares)[..., :3]


def mosaic(
    rows: Sequence[Sequence[Float[np.ndarray, "height width 3"]]], gap: int
) -> Float[np.ndarray, "_ _ 3"]:
    """Coloured pictures of one size in rows, on white: an axes for each would take seconds."""
    height, width, _ = rows[0][0].shape
    canvas = np.ones((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def light_grid(axes: Axes) -> None:
    """Gives `axes` a faint grid, and takes its upper and right border away."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def show(figure: Figure) -> bool:
    """Opens a window and waits until it is closed; False where there is no screen."""
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


def _pictures(
    pictures: Num[AnyArray, "n height width"],
    captions: Sequence[str],
    title: str,
    scale_label: str = "",
    **style: Any,
) -> Figure:
    """A grid, as near to a square as it gets, of one picture and caption each.

    It is drawn as one mosaic: an axes for each of 36 pictures takes seconds.
    """
    count, height, width = pictures.shape
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    inches = 1.5  # the width of a picture, and 0.19 for a line of caption above it
    above, gap = 0.19 * lines / inches * width, 0.08 * width
    down, across = height + above + gap, width + gap

    head = 0.3 + 0.2 * (title.count("\n") + 1)
    foot = 0.8 if scale_label else 0.0
    size = np.array([across * columns, down * rows]) * inches / width
    figure = Picture(figsize=(size[0] + 0.2, size[1] + head + foot))
    whole = np.array([figure.get_figwidth(), figure.get_figheight()])
    axes = figure.add_axes((*np.divide((0.1, 0.1 + foot), whole), *(size / whole)))
    image = None
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        top, left = place // columns * down + above, place % columns * across + gap / 2
        image = axes.imshow(picture, extent=(left, left + width, top + height, top), **style)
        axes.text(
            *(left + width / 2, top - 0.02 * width, caption),
            ha="center",
            va="bottom",
            fontsize=9,
            linespacing=1.1,
        )
    axes.set(xlim=(0, across * columns), ylim=(down * rows, 0))
    axes.set_axis_off()
    if scale_label and image:
        bar = figure.add_axes((0.25, 0.5 / whole[1], 0.5, 0.12 / whole[1]))
        figure.colorbar(image, cax=bar, label=scale_label, orientation="horizontal")
    figure.suptitle(title, y=1 - 0.12 / whole[1], va="top")
    return figure
