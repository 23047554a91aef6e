"""A web page that contains a trained network and reads the digits that you draw.

The page needs no server and makes no requests. page.html is its template, page.js its program.
Weights are stored with 24 bits, as whole multiples of a scale for each array. The logits are as
accurate as with float32, and the page is a quarter smaller.
"""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

from mnist_jax.data import Dataset, Examples
from mnist_jax.errors import InputError
from mnist_jax.preprocess import AnyArray
from mnist_jax.runs.results import Run, first_layers, probabilities

MAX_INT24 = 2**23 - 1  # three bytes are four characters in base64
MAX_WEIGHTS = 50_000_000  # with biases; browsers limit the size of a page
CLASS_SAMPLES, MISREAD_SAMPLES = 30, 10  # test images from all classes in turn, and misread ones


class Page(str):
    """The text of an HTML page, which a notebook shows in a frame."""

    def __repr__(self) -> str:
        return f"<page of {len(self):,} characters>"

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self)}" sandbox="allow-scripts" '
            'title="A network that reads what you draw" '
            'style="width: 100%; height: 780px; border: 0"></iframe>'
        )


def html(run: Run, dataset: Dataset) -> Page:
    """A page with the network of the first seed and some test images of `dataset`.

    Raises:
        InputError: the network diverged, or is too large for a page.
    """
    layers = first_layers(run)
    size = sum(array.size for layer in layers for array in layer)
    if size > MAX_WEIGHTS:
        raise InputError(f"{run.path} has {size:,} weights; a page takes at most {MAX_WEIGHTS:,}")
    predictions = probabilities(run, dataset.test.images).argmax(axis=1)
    data = {
        "dataset": dataset.name,
        "train_images": len(dataset.train.labels) - run.config.validation_images,
        "test_images": len(dataset.test.labels),
        "test_errors": int((predictions != dataset.test.labels).sum()),
        "seed": run.config.seed,
        "activation": run.config.activation,
        "image_shape": run.image_shape,
        "class_names": run.class_names,
        "samples": _samples(dataset.test, predictions, len(run.class_names)),
        "layers": [
            {"units": len(bias), "kernel": _quantize(kernel), "bias": _quantize(bias)}
            for kernel, bias in layers
        ],
    }
    folder = Path(__file__).parent
    template = (folder / "page.html").read_text(encoding="utf-8")
    program = (folder / "page.js").read_text(encoding="utf-8")
    text = json.dumps(data).replace("<", r"\u003c")  # else "</script>" in it would end the script
    page = template.replace('type="application/json">', f'type="application/json">{text}')
    return Page(page.replace('<script src="page.js">', f"<script>\n{program}"))


def _quantize(array: Float[AnyArray, "*shape"]) -> dict[str, Any]:
    """`array` as multiples of a scale, each a signed 24-bit big-endian integer, in base64."""
    scale = float(np.abs(array).max()) / MAX_INT24 or 1.0
    integers = np.rint(np.asarray(array, np.float64) / scale).astype(">i4")
    return {"scale": scale, "base64": _base64(integers.reshape(-1, 1).view(np.uint8)[:, 1:])}


def _samples(
    test: Examples, predictions: Num[AnyArray, "n"], classes: int
) -> list[dict[str, int | str]]:
    """The first images of each class, one class after another, then the first misread ones."""
    images, labels = np.asarray(test.images), np.asarray(test.labels)
    by_class = [np.flatnonzero(labels == label) for label in range(classes)]
    rounds = range(max(1, CLASS_SAMPLES // classes))
    indices = [int(members[i]) for i in rounds for members in by_class if i < len(members)]
    misread = np.flatnonzero(predictions != labels)
    indices += misread[~np.isin(misread, indices)][:MISREAD_SAMPLES].tolist()
    return [
        {"label": int(labels[i]), "prediction": int(predictions[i]), "pixels": _base64(images[i])}
        for i in indices
    ]


def _base64(values: UInt8[np.ndarray, "*shape"]) -> str:
    return base64.b64encode(values.tobytes()).decode()
