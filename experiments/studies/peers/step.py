"""A training step beside the bare chain of its matrix products, turn by turn in one process.

The chain is a product forward for each layer, one for the gradient of its weights, and, but for the
first, one for that of its inputs: in the same shapes, each on what the one before it gave. The
first gradient takes the place of its kernel, so that no product can be lifted from the loop.

Beside them stand square products, whose fastest turn is the device's own best: in bfloat16 they
multiply arrays of that type, where the step rounds its float32 weights and activations first.
"""

import time
from functools import reduce
from itertools import pairwise

import common
import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import data, population
from mnist_jax.config import Config
from mnist_jax.data import Examples

asked = common.settings()
BATCH, STEPS = asked["batch_size"], asked["images"] // asked["batch_size"]
SIDES = (1024, 2048, 4096) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
mnist = data.load("mnist", asked["data_dir"])
training = jax.device_put(Examples(*(part[: asked["images"]] for part in mnist.train)))


@jax.jit
def chain(inputs: jax.Array, kernels: list[jax.Array]) -> list[jax.Array]:
    """The products of an epoch; the gradients of its last step."""

    def step(before: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
        weights, layers = [before[0], *kernels[1:]], [inputs]
        for kernel in weights:
            layers.append(layers[-1] @ kernel)
        error, gradients = layers.pop(), []
        for kernel, layer in zip(reversed(weights), reversed(layers), strict=True):
            gradients.append(layer.T @ error)
            if layer is not inputs:
                error = error @ kernel.T
        return gradients[::-1], None

    return jax.lax.scan(step, kernels, length=STEPS)[0]


random = np.random.default_rng(asked["seed"])
sizes = (784, *asked["hidden"], 10)
shapes = list(pairwise(sizes))
kernels = [random.normal(size=s).astype("f") / s[0] ** 0.5 for s in shapes]
inputs = random.uniform(size=(BATCH, 784)).astype("f")
# Each first kernel is linear in the one before it; at this scale they neither grow nor vanish.
inputs /= np.linalg.norm(inputs, 2) * np.linalg.norm(reduce(np.matmul, kernels[1:]), 2)
inputs, kernels = jax.device_put((inputs, kernels))

# The learning rate is so low that the widest network stays finite too.
config = Config(
    seed=asked["seed"], batch_size=BATCH, hidden=tuple(asked["hidden"]), learning_rate=1e-4
)
setup = population.Setup(config, data.DataSpec((28, 28), 10, asked["images"]))
members = population.members_of(config)
population.compile_programs(setup, members, training, mnist.test)
states = population.init(setup, members)
chain_ms, step_ms, best_gflops = [], [], []
kind = jnp.bfloat16 if asked["precision"] == "bfloat16" else jnp.float32
squares = [jax.random.normal(jax.random.key(0), (side, side), kind) for side in SIDES]
product = jax.jit(jnp.matmul)
for _ in range(asked["turns"]):
    start = time.perf_counter()
    gradients = jax.block_until_ready(chain(inputs, kernels))
    chain_ms.append((time.perf_counter() - start) / STEPS * 1e3)
    start = time.perf_counter()
    states, metrics = population.train_epoch(setup, states, members, training)
    jax.block_until_ready(metrics)
    step_ms.append((time.perf_counter() - start) / STEPS * 1e3)
    for square in squares:
        start = time.perf_counter()
        jax.block_until_ready(product(square, square))
        best_gflops.append(2 * len(square) ** 3 / (time.perf_counter() - start) / 1e9)
largest = [float(jnp.abs(found).max()) for found in (*gradients, metrics.loss)]
if not all(0 < number < np.inf for number in largest):
    raise RuntimeError(f"numbers vanished or overflowed: {largest}")
step, bare = float(np.median(step_ms[1:])), float(np.median(chain_ms[1:]))  # the first compiles
best = max(best_gflops)
multiplied = sum(a * b for a, b in shapes) * 3 - shapes[0][0] * shapes[0][1]
gflops = 2 * BATCH * multiplied / step / 1e6
common.report(
    "step",
    step_ms=step,
    chain_ms=bare,
    ratio=float(np.median(np.array(step_ms[1:]) / np.array(chain_ms[1:]))),
    gflops=gflops,
    best_gflops=best,
    share=gflops / best,
)
