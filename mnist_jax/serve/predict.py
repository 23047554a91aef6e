"""Reads the digits in photos with a network, and shows the answers as text or a figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mnist_jax.errors import InputError
from mnist_jax.runs.results import Run, first_layers, probabilities
from mnist_jax.serve.digit import to_digit
from mnist_jax.serve.photo import read_photo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL_PIXELS, MAX_ROWS = 256, 20


class Prediction(NamedTuple):
    """What a network reads in a photo."""

    file: Path
    thumbnail: UInt8[np.ndarray, "rows columns"]
    digit: UInt8[np.ndarray, "height width"]  # what the network saw
    probabilities: Float[np.ndarray, "classes"]
    class_names: tuple[str, ...]


def read_photos(run: Run, files: Sequence[Path]) -> list[Prediction]:
    """What the network of the first seed of `run` reads in each photo.

    Raises:
        InputError: a file shows no single digit, or the network diverged.
    """
    first_layers(run)  # raises if it diverged
    height, width = run.image_shape
    thumbnails, digits = [], []
    for file in files:
        photo = read_photo(file)
        try:
            digits.append(to_digit(photo, (height, width)))
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        thumbnail = Image.fromarray(photo)
        thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        thumbnails.append(np.asarray(thumbnail))
    rows = zip(files, thumbnails, digits, probabilities(run, np.stack(digits)), strict=True)
    return [Prediction(*row, run.class_names) for row in rows]


def to_text(predictions: Sequence[Prediction]) -> str:
    """A line for each photo: the most likely class and the second most likely."""
    lines = []
    for file, _, _, answer, names in predictions:
        percents = np.floor(1000 * answer) / 10  # rounded down, so that 99.96 is not 100
        second, first = np.argsort(answer)[-2:].tolist()
        lines.append(
            f"{file}: {names[first]} ({percents[first]:.1f}%; "
            f"next {names[second]}, {percents[second]:.1f}%)"
        )
    return "\n".join(lines)


def to_json(predictions: Sequence[Prediction]) -> str:
    """A JSON list with an object for each photo."""
    objects = [
        {
            "file": str(file),
            "label": int(answer.argmax()),
            "name": names[answer.argmax()],
            "probabilities": answer.tolist(),
        }
        for file, _, _, answer, names in predictions
    ]
    return json.dumps(objects, indent=2)


def figure(predictions: Sequence[Prediction]) -> "Figure":
    """A row for each photo: the photo, what the network saw of it, and the probabilities.

    Only the ten most probable classes are shown.

    Raises:
        InputError: there are too many photos for a figure.
    """
    if len(predictions) > MAX_ROWS:
        raise InputError(f"--picture shows at most {MAX_ROWS} images, not {len(predictions)}")
    from mnist_jax import plots  # matplotlib takes half a second to import

    figure = plots.Picture(figsize=(7, 1.9 * len(predictions)), layout="constrained")
    rows = figure.subplots(len(predictions), 3, squeeze=False, width_ratios=(1, 1, 1.8))
    for (left, middle, right), prediction in zip(rows, predictions, strict=True):
        file, photo, digit, answer, names = prediction
        plots.show_picture(left, photo, file.name[-24:], **plots.GREY)
        plots.show_picture(middle, digit, "what the network saw", **plots.GREY)
        classes = np.sort(np.argsort(-answer, kind="stable")[:10])
        names, percents = [names[i] for i in classes], 100 * answer[classes]
        plots.draw_bars(right, names, percents, color="0.75")
        best = int(percents.argmax())
        sure = np.floor(10 * percents[best]) / 10
        right.patches[best].set_color(plots.TRAINING)
        right.set(ylim=(0, 100), ylabel="%")
        right.set_title(f"{names[best]}, {sure:.1f} % sure", fontsize=9)
    return figure
