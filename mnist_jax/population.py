"""Many networks as one program: `train.py`, mapped over seeds and hyperparameters, and compiled.

Every state, key and hyperparameter has a leading axis of networks; for one network its length is 1.
If `jax.set_mesh` has set a mesh, its axis "networks" shards that leading axis, and its axis
"images" shards the images of every batch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from mnist_jax import prng, train
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec, Examples
from mnist_jax.model import PyTree
from mnist_jax.parallel import mesh
from mnist_jax.preprocess import Images, Inputs
from mnist_jax.train import Evaluation, MakeRecipe, Metrics, Recipe, TrainState

CPU_CACHE_BYTES = 4 * 2**20
"""About how many bytes of parameters and optimizer states a CPU trains at once. Networks that do
not fit its cache train faster one after the other."""


class Setup(NamedTuple):
    """What a program is compiled for. It is hashable, so `jit` takes it as a static argument."""

    config: Config
    spec: DataSpec
    make_recipe: MakeRecipe = train.default_recipe

    def recipe(self, hparams: Hparams) -> Recipe:
        """The recipe of one network, with sharded batches if the mesh has an axis for them."""
        return shard_batches(self.make_recipe(self.config, hparams, self.spec))


class Members(NamedTuple):
    """What differs between the networks of a population; leaves have a leading axis of networks."""

    keys: Key[Array, "networks"]
    hparams: Hparams


def members(seeds: Sequence[int], hparams: Sequence[Hparams]) -> Members:
    """The networks with these seeds and hyperparameters, on their devices."""
    columns = (np.array(column, np.float32) for column in zip(*hparams, strict=True))
    keys = _keys(mesh.shard(np.asarray(seeds, np.uint32)))
    return Members(keys, mesh.shard(Hparams(*columns)))


_keys = jax.jit(jax.vmap(prng.key))


def members_of(config: Config) -> Members:
    """One network for each seed of `config`."""
    return members(config.all_seeds, [config.hparams] * config.seeds)


def shard_batches(recipe: Recipe) -> Recipe:
    """`recipe`, with every batch sharded over the mesh axis "images", if there is one.

    The compiler then shards the rest of the step, and sums the gradients over the devices.
    """
    if mesh.axis_size("images") == 1:
        return recipe

    def preprocess(images: Images) -> Inputs:
        return jax.lax.with_sharding_constraint(recipe.preprocess(images), jax.P("images"))

    return recipe._replace(preprocess=preprocess)


def map_networks(
    function: Callable[..., PyTree],
    mapped: tuple[PyTree, ...],
    shared: tuple[PyTree, ...] = (),
    size: int | None = None,
) -> PyTree:
    """`function(*mapped, *shared)` of every network.

    The `mapped` arguments have a leading axis of networks. Each device computes its networks
    without communication, `size` at a time, or all at once if `size` is None.
    """

    def run(mapped, shared):
        def run_one(mapped):
            return function(*mapped, *shared)

        if size is None:
            return jax.vmap(run_one)(mapped)
        # vmap over one network is slower than no vmap: XLA then keeps gradients transposed.
        return jax.lax.map(run_one, mapped, batch_size=None if size == 1 else size)

    if mesh.axis_size("networks") > 1:
        run = jax.shard_map(
            run,
            in_specs=(jax.P("networks"), jax.P()),
            out_specs=jax.P("networks"),
            axis_names={"networks"},
            check_vma=False,
        )
    return run(mapped, shared)


@partial(jax.jit, static_argnames="setup")
def init(setup: Setup, members: Members) -> TrainState:
    """The states before the first step."""

    def init_one(key, hparams):
        return train.init(setup.recipe(hparams), key)

    # One network at a time runs as fast as vmap, and compiles in half the time.
    return map_networks(init_one, tuple(members), size=1)


@partial(jax.jit, static_argnames="setup", donate_argnames="states")
def train_epoch(
    setup: Setup, states: TrainState, members: Members, examples: Examples
) -> tuple[TrainState, Metrics]:
    """One pass of every network over the same images, each seed in its own order."""

    def train_one(state, key, hparams, examples):
        recipe = setup.recipe(hparams)
        return train.train_epoch(recipe, state, examples, key, setup.config.batch_size)

    return map_networks(train_one, (states, *members), (examples,), vmap_size(states))


def vmap_size(states: TrainState) -> int:
    """How many networks a device trains at once; `states` may be shapes.

    An accelerator trains all its networks at once, a CPU as many as fit its cache.
    """
    count = len(states.step) // mesh.axis_size("networks")
    if jax.default_backend() != "cpu":
        return count
    leaves = jax.tree.leaves(states)
    network_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // len(states.step)
    groups = -(-count // max(CPU_CACHE_BYTES // network_bytes, 1))
    # The groups are equal if possible: a smaller last group would need a second program.
    return -(-count // groups)


def recalibrate(setup: Setup, states: TrainState, members: Members, images: Images) -> TrainState:
    """`train.recalibrate` for every network; without batch statistics, `states` unchanged."""
    if not jax.tree.leaves(states.model_state):
        return states
    return states._replace(model_state=_statistics(setup, states, members, images))


@partial(jax.jit, static_argnames="setup")
def _statistics(setup: Setup, states: TrainState, members: Members, images: Images) -> PyTree:
    def recalibrate_one(state, key, hparams, images):
        return train.recalibrate(setup.recipe(hparams), state, images, key).model_state

    # One network at a time, because the activations of so many images take memory.
    return map_networks(recalibrate_one, (states, *members), (images,), size=1)


@partial(jax.jit, static_argnames="setup")
def predict(
    setup: Setup, states: TrainState, members: Members, images: Images
) -> Float[Array, "networks n classes"]:
    """The logits that each network gives each image."""

    def predict_one(state, hparams, images):
        return train.predict(setup.recipe(hparams), state, images)

    return map_networks(predict_one, (states, members.hparams), (images,))


@partial(jax.jit, static_argnames="setup")
def evaluate(setup: Setup, states: TrainState, members: Members, examples: Examples) -> Evaluation:
    """Loss and confusion matrix of every network over all of `examples`."""

    def evaluate_one(state, hparams, examples):
        return train.evaluate(setup.recipe(hparams), state, examples)

    return map_networks(evaluate_one, (states, members.hparams), (examples,))


def compile_programs(setup: Setup, members: Members, training: PyTree, test: PyTree) -> int:
    """Compiles `init`, `train_epoch` and `evaluate` for these arguments, in parallel.

    Later calls find the programs in JAX's cache and start at once. A single compilation would leave
    one of two cores idle.

    Returns: the bytes on a device that the largest program takes, or 0 if that is unknown.
    """
    shapes = jax.eval_shape(partial(init, setup), members)
    states = mesh.sharded_shapes(shapes)
    lowered = [
        init.lower(setup, members),
        train_epoch.lower(setup, states, members, training),
        evaluate.lower(setup, states, members, test),
    ]
    with ThreadPoolExecutor() as pool:
        compiled = list(pool.map(jax.stages.Lowered.compile, lowered))
    return max(map(_bytes, compiled))


def _bytes(program: jax.stages.Compiled) -> int:
    """The bytes of a program's inputs, outputs and temporary arrays; 0 if unknown."""
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    arrays = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return arrays + sizes.temp_size_in_bytes
