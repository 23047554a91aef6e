"""What is the least error without deformations, where pixels might stand in any order?

Virtual adversarial training, whose steps are longer in directions in which an image differs from
its nearest of the same class, and shorter in those in which no images differ, such as the corners.

    python experiments/permutation_invariant.py
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from miyato_2018 import virtual_adversarial
from papers import Experiment, main
from rasmus_2015 import ladder

from mnist_jax import data
from mnist_jax.config import Config
from mnist_jax.preprocess import Inputs, to_inputs
from mnist_jax.progress import say
from mnist_jax.train import Recipe

NEIGHBOURS, SEARCHED = 6, 500
"""Of so many images of each class, so many nearest of the same class are looked at."""


def stretching(
    config: Config, train_images: int, share: float
) -> Float[np.ndarray, "pixels pixels"]:
    """What makes steps of equal length in all directions steps between neighbours.

    The square root of the covariance of the differences between neighbours, scaled to mean 1, with
    a `share` of it and the rest of the identity.
    """
    say("looking for neighbours among the training images")
    images, labels = data.load(config.dataset, config.data_dir).train
    inputs = np.asarray(to_inputs(images[:train_images]))
    differences = []
    for label in np.unique(labels):
        mine = inputs[labels[:train_images] == label]
        some = mine[:SEARCHED]
        squares = np.square(mine).sum(axis=1)[None] - 2 * some @ mine.T
        nearest = np.argpartition(squares, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]  # and itself
        differences += [some - mine[column] for column in nearest.T]
    stacked = np.concatenate(differences)
    covariance = stacked.T @ stacked
    pixels = len(covariance)
    mixed = share * covariance * pixels / covariance.trace() + (1 - share) * np.eye(pixels)
    values, directions = np.linalg.eigh(mixed)
    return ((directions * np.sqrt(values)) @ directions.T).astype(np.float32)


def ours(
    config: Config,
    pixels: int,
    classes: int,
    train_images: int,
    costs: tuple[float, ...],
    epsilon: float,
    share: float,
) -> Recipe:
    """A ladder network with virtual adversarial steps along differences, its weights averaged."""
    recipe = ladder(config, pixels, classes, train_images, costs)
    if epsilon:
        along = jnp.asarray(stretching(config, train_images, share)) if share else None

        def stretch(step: Inputs) -> Inputs:
            return step if along is None else step @ along

        recipe = recipe._replace(loss=virtual_adversarial(recipe.loss, epsilon, stretch))
    return recipe._replace(ema_decay=config.ema_decay)


CONFIG = Config(
    dataset="mnist",
    hidden=(1200, 600, 300, 150),
    noise=0.0,
    dropout=0.0,
    batch_size=100,
    optimizer="adam",
    learning_rate=0.002,
    weight_decay=0.0,
    ema_decay=0.999,
    epochs=60,
    seeds=10,
)
BOTTOM = (1000.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def row(
    costs: tuple[float, ...] = (), epsilon: float = 1.0, share: float = 0.9, **changes: Any
) -> Experiment:
    """A network of ours, with changes to it."""
    config = dataclasses.replace(CONFIG, **changes)
    return Experiment("", "", config, partial(ours, costs=costs, epsilon=epsilon, share=share))


ROWS = {
    "steps along differences": row(),
    "with reconstruction": row(BOTTOM),
    "steps alike in all directions": row(epsilon=2.0, share=0.0),
    "with noise": row(noise=0.3),
    "without averaging": row(ema_decay=0.0),
    "without steps": row(epsilon=0.0),
}

if __name__ == "__main__":
    main(__file__, ROWS)
