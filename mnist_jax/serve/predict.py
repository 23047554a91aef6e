"""Digits in photos: each photo prepared, read by a network, and shown with the answer."""

import json
import math
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
    """What a network makes of a photo."""

    file: Path
    thumbnail: UInt8[np.ndarray, "rows columns"]
    digit: UInt8[np.ndarray, "height width"]  # what the network saw
    probabilities: Float[np.ndarray, "classes"]
    class_names: tuple[str, ...]


def read_photos(run: Run, files: Sequence[Path]) -> list[Prediction]:
    """What the network of the first seed of `run` makes of each photo.

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
    answers = probabilities(run, np.stack(digits))
    rows = zip(files, thumbnails, digits, answers, strict=True)
    return [Prediction(*row, run.class_names) for row in rows]


def figure(predictions: Sequence[Prediction]) -> "Figure":
    """A figure with a row for each photo.

    Raises:
        InputError: there are too many photos for a figure.
    """
    if len(predictions) > MAX_ROWS:
        raise InputError(f"--picture shows at most {MAX_ROWS} images, not {len(predictions)}")
    from mnist_jax import plots

    return plots.answers(
        [prediction.thumbnail for prediction in predictions],
        np.stack([prediction.digit for prediction in predictions]),
        np.stack([prediction.probabilities for prediction in predictions]),
        predictions[0].class_names,
        [prediction.file.name for prediction in predictions],
    )


def to_text(predictions: Sequence[Prediction]) -> str:
    """A line for each photo: the answer and the next likely one."""
    lines = []
    for prediction in predictions:
        names, answer = prediction.class_names, prediction.probabilities
        second, first = np.argsort(answer)[-2:].tolist()
        lines.append(
            f"{prediction.file}: {names[first]} ({_percent(float(answer[first]))}; "
            f"next {names[second]}, {_percent(float(answer[second]))})"
        )
    return "\n".join(lines)


def to_json(predictions: Sequence[Prediction]) -> str:
    """A JSON list with an object for each photo."""
    objects = []
    for prediction in predictions:
        label = int(prediction.probabilities.argmax())
        objects.append(
            {
                "file": str(prediction.file),
                "label": label,
                "name": prediction.class_names[label],
                "probabilities": prediction.probabilities.tolist(),
            }
        )
    return json.dumps(objects, indent=2)


def _percent(probability: float) -> str:
    """Rounded down, so that nothing is 100 % sure."""
    return f"{math.floor(1000 * probability) / 10:.1f}%"
