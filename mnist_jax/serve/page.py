"""A trained network in one web page: no server, no request, the weights inside.

page.html is the template and page.js all of its program. A weight takes 24 bits: a whole number of
equal steps, of which the largest weight of its array is 2**23 - 1. For logits that is as good as
float32 itself, and three quarters of the size.
"""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

from mnist_jax.config import InputError
from mnist_jax.data import Dataset, Examples
from mnist_jax.preprocess import AnyArray
from mnist_jax.runs import report
from mnist_jax.runs.report import Run

STEPS = 2**23 - 1
"""The largest number of steps; with its sign it fills three bytes, four characters in base64."""

MOST_NUMBERS = 50_000_000
"""Weights and biases of the largest network that a page holds; browsers limit its text."""

SAMPLES, MISTAKES = 30, 10
"""Test images that the page offers: some of each class, and some that the network misreads."""


class Page(str):
    """The text of an HTML page, which a notebook shows in a frame."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<a page of {len(self):,} characters>"

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 780px; border: 0"
        title = "A network that reads what you draw"
        return (
            f'<iframe srcdoc="{escape(self)}" sandbox="allow-scripts" title="{title}" '
            f'style="{style}"></iframe>'
        )


def html(run: Run, dataset: Dataset) -> Page:
    """One page with the network of the first seed, and some of the test images of `dataset`.

    Raises:
        InputError: the network diverged, or is too large for a page.
    """
    layers = report.dense_layers(run)
    arrays = [np.asarray(array) for layer in layers for array in layer]
    if (numbers := sum(array.size for array in arrays)) > MOST_NUMBERS:
        raise InputError(f"{run.path} has {numbers:,} weights; a page holds {MOST_NUMBERS:,}")
    answers = report.probabilities(run, dataset.test.images).argmax(axis=1)
    about = {
        "dataset": dataset.name,
        "train_images": len(dataset.train.labels) - run.config.validation_images,
        "test_images": len(dataset.test.labels),
        "test_errors": int((answers != dataset.test.labels).sum()),
        "seed": run.config.seed,
        "activation": run.config.activation,
        "image_shape": run.image_shape,
        "class_names": run.class_names,
        "samples": _samples(dataset.test, answers, len(run.class_names)),
        "layers": [
            {
                "units": len(layer.bias),
                "kernel": _encoded(np.asarray(layer.kernel)),
                "bias": _encoded(np.asarray(layer.bias)),
            }
            for layer in layers
        ],
    }
    here = Path(__file__)
    # In a script, "<" could begin its end.
    data = json.dumps(about).replace("<", r"\u003c")
    script = here.with_name("page.js").read_text(encoding="utf-8")
    template = here.with_name("page.html").read_text(encoding="utf-8")
    head, places, tail = template.partition(
        '<script id="about" type="application/json"></script>\n<script src="page.js"></script>\n'
    )
    assert places, "page.html has no place for its data and its program"
    return Page(
        f'{head}<script id="about" type="application/json">{data}</script>\n'
        f"<script>\n{script}</script>\n{tail}"
    )


def _encoded(array: Float[np.ndarray, "*shape"]) -> dict[str, Any]:
    """`array` as base64 of 24-bit whole numbers, the first byte the highest, and their step."""
    step = float(np.abs(array).max()) / STEPS or 1.0
    steps = np.rint(array.astype(np.float64) / step).astype(">i4")
    return {"step": step, "code": _base64(steps.reshape(-1, 1).view(np.uint8)[:, 1:])}


def _samples(
    test: Examples, answers: Num[AnyArray, "n"], classes: int
) -> list[dict[str, int | str]]:
    """The first images of each class, one class after another, then the first misread ones."""
    images, labels = np.asarray(test.images), np.asarray(test.labels)
    rounds = range(max(1, SAMPLES // classes))
    of_class = [np.flatnonzero(labels == label) for label in range(classes)]
    chosen = [int(found[i]) for i in rounds for found in of_class if i < len(found)]
    wrong = np.flatnonzero(answers != labels)
    chosen += [int(i) for i in wrong[~np.isin(wrong, chosen)][:MISTAKES]]
    return [
        {"label": int(labels[i]), "read": int(answers[i]), "pixels": _base64(images[i])}
        for i in chosen
    ]


def _base64(values: UInt8[np.ndarray, "*shape"]) -> str:
    return base64.b64encode(values.tobytes()).decode()
