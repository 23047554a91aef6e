"""The figures of a run, drawn with `plots` and saved in its folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float

from mnist_jax import prng
from mnist_jax.data import Dataset
from mnist_jax.model import dense_layers
from mnist_jax.runs import rundir
from mnist_jax.runs.results import Run, probabilities
from mnist_jax.runs.rundir import Json
from mnist_jax.train import TrainState, no_augmentation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figures(run: Run, dataset: Dataset, summary: Json) -> list[Path]:
    """Draws the figures of `run` into its folder, and returns their files.

    All show the network of the first seed, except the curves, which show all seeds.
    """
    figures = draw_figures(run, dataset, summary, rundir.read_metrics(run.path))
    return [rundir.save_figure(run.path, name, figure) for name, figure in figures]


def draw_figures(
    run: Run, dataset: Dataset, summary: Json, history: list[Json]
) -> Iterator[tuple[str, "Figure"]]:
    """The name of each figure, and the figure."""
    from mnist_jax import plots  # matplotlib takes half a second to import

    network = f"{dataset.name}, seed {run.config.seed}"
    images, labels = np.asarray(dataset.train.images[:4]), dataset.train.labels[:4]
    test, names = dataset.test, run.class_names
    yield "samples", plots.samples(images, labels, names, f"{dataset.name}: the first images")
    yield "curves", plots.curves(history, summary, dataset.name)

    answers = probabilities(run, test.images)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (test.labels, answers.argmax(axis=1)), 1)
    title = f"{network}: how {len(answers):,} test images were classified (colour: mistakes)"
    yield "confusion", plots.confusion(confusion, names, title)
    title = f"{network}: the most confident mistakes"
    yield "mistakes", plots.mistakes(test.images, test.labels, answers, names, title)

    augment = run.recipe.augment
    if augment is not no_augmentation:
        deformed = augment(prng.key(run.config.seed), images[:1].repeat(25, axis=0))
        title = f"{network}: the first image, as training might see it 25 times"
        yield (
            "deformations",
            plots.samples(np.asarray(deformed), labels[:1].repeat(25), names, title),
        )

    kernel = first_kernel(run.states, run.spec.pixels)
    if kernel is not None:
        title = (
            f"{network}: what the strongest of the {kernel.shape[1]} first-layer units look for\n"
            "ink on red excites the unit, ink on blue inhibits it"
        )
        height, width = run.image_shape
        yield "weights", plots.weights(kernel, (height, width), title)


def first_kernel(states: TrainState, pixels: int) -> Float[np.ndarray, "pixels units"] | None:
    """The first layer's kernel of the first seed, if the network has a dense first layer."""
    params = states.eval_params
    if isinstance(params, dict) and "BatchNorm_0" in params:  # it may flip the sign of a unit
        first = {name: params[name] for name in ("Dense_0", "BatchNorm_0")}
        layers = dense_layers(*jax.tree.map(_of_first_seed, (first, states.model_state)))
        return np.asarray(layers[0].kernel)
    leaves = jax.tree.leaves(params)
    kernels = (leaf for leaf in leaves if leaf.ndim == 3 and leaf.shape[1] == pixels)
    return next(map(_of_first_seed, kernels), None)


def _of_first_seed(leaf: Array | np.ndarray) -> np.ndarray:
    """The first entry of `leaf`, taken on the host, where nothing needs to be compiled."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # some seeds are elsewhere
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)[0]
