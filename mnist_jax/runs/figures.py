"""The figures of a run, drawn with `plots` and saved in its folder."""

from pathlib import Path

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


def save_figures(run: Run, dataset: Dataset, summary: Json) -> list[Path]:
    """Draws the figures of `run` into its folder, and returns their files.

    All show the network of the first seed, except the curves, which show all seeds.
    """
    from mnist_jax import plots  # matplotlib takes half a second to import

    history = rundir.read_metrics(run.path)
    network = f"{dataset.name}, seed {run.config.seed}"
    images, labels = np.asarray(dataset.train.images[:4]), dataset.train.labels[:4]
    test, names = dataset.test, run.class_names
    answers = probabilities(run, test.images)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (test.labels, answers.argmax(axis=1)), 1)
    title = f"{network}: how {len(answers):,} test images were classified (colour: mistakes)"
    figures = {
        "samples": plots.samples(images, labels, names, f"{dataset.name}: the first images"),
        "curves": plots.curves(history, summary, dataset.name),
        "confusion": plots.confusion(confusion, names, title),
        "mistakes": plots.mistakes(
            test.images, test.labels, answers, names, f"{network}: the most confident mistakes"
        ),
    }
    augment = run.recipe.augment
    if augment is not no_augmentation:
        deformed = augment(prng.key(run.config.seed), images[:1].repeat(25, axis=0))
        title = f"{network}: the first image, as training might see it 25 times"
        same_labels = labels[:1].repeat(25)
        figures["deformations"] = plots.samples(np.asarray(deformed), same_labels, names, title)
    kernel = first_kernel(run.states, run.spec.pixels)
    if kernel is not None:
        title = (
            f"{network}: what the strongest of the {kernel.shape[1]} first-layer units look for\n"
            "ink on red excites the unit, ink on blue inhibits it"
        )
        height, width = run.image_shape
        figures["weights"] = plots.weights(kernel, (height, width), title)
    folder = run.path / "figures"
    return [rundir.save_figure(folder / f"{name}.png", figure) for name, figure in figures.items()]


def first_kernel(states: TrainState, pixels: int) -> Float[np.ndarray, "pixels units"] | None:
    """The first layer's kernel of the first seed, if the network has a dense first layer."""
    params = states.eval_params
    if isinstance(params, dict) and "BatchNorm_0" in params:  # it may flip the sign of a unit
        network = jax.tree.map(_of_first_seed, (params, states.model_state))
        return np.asarray(dense_layers(*network)[0].kernel)
    for leaf in jax.tree.leaves(params):
        if leaf.ndim == 3 and leaf.shape[1] == pixels:
            return _of_first_seed(leaf)
    return None


def _of_first_seed(leaf: Array | np.ndarray) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # others have some seeds
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)[0]
