"""Many networks as one program: the functions of `train.py` over a leading axis of seeds.

One seed is the ordinary case: an axis of length 1. Where `jax.set_mesh` has set a mesh, its axis
"networks" divides the networks among devices, and its axis "images" the images of every batch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from mnist_jax import prng, train
from mnist_jax.data import Examples
from mnist_jax.model import PyTree
from mnist_jax.parallel import devices
from mnist_jax.preprocess import Images, Inputs
from mnist_jax.train import Evaluation, Metrics, Recipe, TrainState

CPU_CACHE_BYTES = 4 * 2**20
"""The parameters and optimizer states that train side by side on a CPU take at most about this."""


def divided(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of (what every network has for itself, what they share), on every device.

    A device computes its own networks as if there were no others; none waits for another.
    """
    if jax.sharding.get_abstract_mesh().shape.get("networks", 1) == 1:
        return function
    specs = jax.P("networks"), jax.P()
    return jax.shard_map(
        function, in_specs=specs, out_specs=specs[0], axis_names={"networks"}, check_vma=False
    )


def with_divided_batches(recipe: Recipe) -> Recipe:
    """`recipe`, each batch of which is divided among the devices that share a network.

    The compiler follows the images through the step, and adds up what the devices find.
    """
    if jax.sharding.get_abstract_mesh().shape.get("images", 1) == 1:
        return recipe

    def preprocess(images: Images) -> Inputs:
        return jax.lax.with_sharding_constraint(recipe.preprocess(images), jax.P("images"))

    def vary(**numbers: Any) -> Recipe:
        assert recipe.vary
        return with_divided_batches(recipe.vary(**numbers))

    return recipe._replace(preprocess=preprocess, vary=recipe.vary and vary)


def keys(seeds: Sequence[int]) -> Key[Array, "seeds"]:
    """The key of each seed."""
    return _keys(devices.divide(np.asarray(seeds, np.uint32)))


_keys = jax.jit(jax.vmap(prng.key))


@partial(jax.jit, static_argnames="recipe")
def init(recipe: Recipe, keys: Key[Array, "seeds"]) -> TrainState:
    """The states of step 0."""
    # One after the other: it takes no time, and compiles in half the time that vmap's takes.
    return divided(lambda keys, _: jax.lax.map(partial(train.init, recipe), keys))(keys, ())


def side_by_side(states: TrainState) -> int:
    """How many of these networks (or of their shapes) train fastest at the same time.

    On an accelerator all that are its own. On a CPU as many as its cache holds: there a step of
    more takes longer than the steps of fewer, one after the other.
    """
    seeds = len(states.step) // jax.sharding.get_abstract_mesh().shape.get("networks", 1)
    if jax.default_backend() != "cpu":
        return seeds
    leaves = jax.tree.leaves(states)
    bytes_each = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // len(states.step)
    groups = -(-seeds // max(CPU_CACHE_BYTES // bytes_each, 1))
    # Of one size if they can be: a smaller last group is compiled as a program of its own.
    return -(-seeds // groups)


@partial(
    jax.jit, static_argnames=("recipe", "batch_size", "side_by_side"), donate_argnames="states"
)
def train_epoch(
    recipe: Recipe,
    states: TrainState,
    examples: Examples,
    keys: Key[Array, "seeds"],
    batch_size: int,
    side_by_side: int,
) -> tuple[TrainState, Metrics]:
    """One pass of every network over the same images, each in its own order."""

    recipe = with_divided_batches(recipe)

    def epochs(
        networks: tuple[TrainState, Key[Array, "seeds"]], examples: Examples
    ) -> tuple[TrainState, Metrics]:
        def epoch(network: tuple[TrainState, Key[Array, ""]]) -> tuple[TrainState, Metrics]:
            state, key = network
            return train.train_epoch(recipe, state, examples, key, batch_size)

        # vmap of one network is slower than the network: XLA then keeps gradients transposed.
        vmapped = None if side_by_side == 1 else side_by_side
        return jax.lax.map(epoch, networks, batch_size=vmapped)

    return divided(epochs)((states, keys), examples)


def settle(
    recipe: Recipe, states: TrainState, images: Images, keys: Key[Array, "seeds"]
) -> TrainState:
    """`train.settle` for every network; the same `states` where there is nothing to settle."""
    return _settle(recipe, states, images, keys) if jax.tree.leaves(states.model_state) else states


@partial(jax.jit, static_argnames="recipe")
def _settle(
    recipe: Recipe, states: TrainState, images: Images, keys: Key[Array, "seeds"]
) -> TrainState:
    def all_settled(networks: tuple[TrainState, Key[Array, "seeds"]], images: Images) -> TrainState:
        def settled(network: tuple[TrainState, Key[Array, ""]]) -> TrainState:
            state, key = network
            return train.settle(recipe, state, images, key)

        # One after the other, as the activations of so many images take memory.
        return jax.lax.map(settled, networks)

    return divided(all_settled)((states, keys), images)


@partial(jax.jit, static_argnames="recipe")
def predict(recipe: Recipe, states: TrainState, images: Images) -> Float[Array, "seeds n classes"]:
    """The logits that each network gives each image."""
    each = jax.vmap(partial(train.predict, recipe), in_axes=(0, None))
    return divided(each)(states, images)


@partial(jax.jit, static_argnames="recipe")
def evaluate(recipe: Recipe, states: TrainState, examples: Examples) -> Evaluation:
    """Loss and confusion matrix of every network over all of `examples`."""
    each = jax.vmap(partial(train.evaluate, recipe), in_axes=(0, None))
    return divided(each)(states, examples)


def compile_ahead(
    recipe: Recipe,
    keys: Key[Array, "seeds"],
    training: Examples,
    test: Examples,
    batch_size: int,
    numbers: PyTree = (),
) -> tuple[int, int]:
    """Compiles `init`, `train_epoch` and `evaluate` for these arguments, all at the same time.

    Calls of them then start at once. One compilation by itself leaves half of two cores idle.

    Returns: how many networks `train_epoch` is compiled to train side by side, and how many bytes
    the hungriest program takes on the device; 0 where that is not known.
    """
    with ThreadPoolExecutor() as pool:
        compiling = [pool.submit(init.lower(recipe, keys).compile)]
        shapes = jax.eval_shape(partial(init, recipe), keys)._replace(numbers=numbers)
        states = devices.divided_shapes(shapes)
        together = side_by_side(states)
        epoch = train_epoch.lower(recipe, states, training, keys, batch_size, together)
        compiling.append(pool.submit(epoch.compile))
        compiling.append(pool.submit(evaluate.lower(recipe, states, test).compile))
        compiled = [compilation.result() for compilation in compiling]
    return together, max(map(_bytes, compiled))


def _bytes(program: jax.stages.Compiled) -> int:
    """What a program takes at once: what it reads, writes and computes meanwhile."""
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    arrays = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return arrays + sizes.temp_size_in_bytes
