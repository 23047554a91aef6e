"""Many networks as one program: the functions of `train.py` over a leading axis of seeds.

One seed is the ordinary case: an axis of length 1.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from mnist_jax import train
from mnist_jax.data import Examples
from mnist_jax.preprocess import Images
from mnist_jax.train import Evaluation, Metrics, Recipe, TrainState


def keys(seeds: Sequence[int]) -> Key[Array, "seeds"]:
    """The key of each seed."""
    return jax.jit(jax.vmap(jax.random.key))(np.asarray(seeds, np.uint32))


@partial(jax.jit, static_argnames="recipe")
def init(recipe: Recipe, keys: Key[Array, "seeds"]) -> TrainState:
    """The states of step 0."""
    # One after the other: it takes no time, and compiles in half the time that vmap's takes.
    return jax.lax.map(partial(train.init, recipe), keys)


@partial(jax.jit, static_argnames=("recipe", "batch_size"), donate_argnames="states")
def train_epoch(
    recipe: Recipe,
    states: TrainState,
    examples: Examples,
    keys: Key[Array, "seeds"],
    batch_size: int,
) -> tuple[TrainState, Metrics]:
    """One pass of every network over the same images, each in its own order."""
    epoch = partial(train.train_epoch, recipe, batch_size=batch_size)
    return jax.vmap(epoch, in_axes=(0, None, 0))(states, examples, keys)


@partial(jax.jit, static_argnames="recipe")
def predict(recipe: Recipe, states: TrainState, images: Images) -> Float[Array, "seeds n classes"]:
    """The logits that each network gives each image."""
    return jax.vmap(partial(train.predict, recipe), in_axes=(0, None))(states, images)


@partial(jax.jit, static_argnames="recipe")
def evaluate(recipe: Recipe, states: TrainState, examples: Examples) -> Evaluation:
    """Loss and confusion matrix of every network over all of `examples`."""
    return jax.vmap(partial(train.evaluate, recipe), in_axes=(0, None))(states, examples)
