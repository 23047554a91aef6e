"""A training step beside the bare chain of its matrix products, turn by turn in one process.

The chain is three products forward, three for the gradients of the weights and two for those of the
activations, in the same shapes, each on what the one before it gave. Each gradient takes the place
of its weights, so that no product can be left out or lifted from the loop.
"""

import time
from itertools import pairwise

import common
import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import data, population, train
from mnist_jax.config import Config

asked = common.settings()
BATCH, STEPS, TURNS = asked["batch_size"], 468, 11
mnist = data.load("mnist", asked["data_dir"])
training = jax.device_put(mnist.train)


@jax.jit
def chain(inputs: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
    """The products of 468 steps."""

    def step(weights: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
        layers = [inputs]
        for kernel in weights:
            layers.append(layers[-1] @ kernel)
        error, gradients = layers.pop(), []
        for kernel, layer in zip(reversed(weights), reversed(layers), strict=True):
            gradients.append(layer.T @ error)
            if layer is not inputs:
                error = error @ kernel.T
        return gradients[::-1], None

    return jax.lax.scan(step, weights, length=STEPS)[0]


random = np.random.default_rng(asked["seed"])
sizes = (784, *asked["hidden"], 10)
shapes = list(pairwise(sizes))
# Small inputs keep the numbers from overflowing in the 468 steps; zeros might be a special case.
weights = [jnp.asarray(random.normal(size=s) * 0.03, jnp.float32) for s in shapes]
inputs = jnp.asarray(random.uniform(size=(BATCH, 784)) * 1e-3, jnp.float32)

config = Config(seed=asked["seed"], batch_size=BATCH, hidden=tuple(asked["hidden"]))
recipe = train.default_recipe(config, 784, 10, len(mnist.train.labels))
keys = population.keys(config.all_seeds)
side_by_side = population.compile_ahead(recipe, keys, training, mnist.test, BATCH)
states = population.init(recipe, keys)
chain_ms, step_ms, best_gflops = [], [], []
square = jnp.ones((2048, 2048))
product = jax.jit(jnp.matmul)
for _ in range(TURNS):
    start = time.perf_counter()
    jax.block_until_ready(chain(inputs, weights))
    chain_ms.append((time.perf_counter() - start) / STEPS * 1e3)
    start = time.perf_counter()
    states, metrics = population.train_epoch(recipe, states, training, keys, BATCH, side_by_side)
    jax.block_until_ready(metrics)
    step_ms.append((time.perf_counter() - start) / STEPS * 1e3)
    start = time.perf_counter()
    jax.block_until_ready(product(square, square))
    best_gflops.append(2 * 2048**3 / (time.perf_counter() - start) / 1e9)
ratio = np.array(step_ms[1:]) / np.array(chain_ms[1:])  # the first turn compiles
common.report(
    "step",
    step_ms=float(np.median(step_ms[1:])),
    chain_ms=float(np.median(chain_ms[1:])),
    ratio=float(np.median(ratio)),
    best_gflops=float(np.median(best_gflops[1:])),
)
