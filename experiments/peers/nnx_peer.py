"""The network in Flax NNX, in the loop of Flax' own guides: `nnx.jit`, graph traversal cached."""

import time
from itertools import pairwise

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

asked = common.settings()
x_train, y_train, x_test, y_test = (jnp.asarray(array) for array in common.arrays(asked))
steps = asked["images"] // asked["batch_size"]


class MLP(nnx.Module):
    """Dense, ReLU, dropout for each width, then the logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths = (x_train.shape[1], *asked["hidden"])
        he_normal = nnx.initializers.he_normal()
        self.hidden = nnx.List(
            nnx.Linear(a, b, kernel_init=he_normal, rngs=rngs) for a, b in pairwise(widths)
        )
        self.dropout = nnx.Dropout(asked["dropout"], rngs=rngs)
        self.last = nnx.Linear(widths[-1], 10, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits."""
        for layer in self.hidden:
            x = self.dropout(nnx.relu(layer(x)))
        return self.last(x)


model = MLP(nnx.Rngs(asked["seed"]))
if asked["own_recipe"]:
    transform = optax.adam(1e-3)  # Flax' own MNIST tutorial is about a convolutional network
else:
    falling = optax.linear_schedule(asked["learning_rate"], 0.0, steps * asked["epochs"])
    transform = optax.sgd(falling, asked["momentum"])
optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)


@nnx.jit
def train_step(
    model: MLP, optimizer: nnx.Optimizer, inputs: jax.Array, labels: jax.Array
) -> jax.Array:
    """One step of gradient descent."""

    def loss_of(model: MLP) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def errors_of(model: MLP, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Images misread."""
    return (model(inputs).argmax(-1) != labels).sum()


cached_step = nnx.cached_partial(train_step, model, optimizer)
order = np.random.default_rng(asked["seed"])
for _ in range(asked["epochs"]):
    start = time.perf_counter()
    shuffled = order.permutation(len(x_train))[: steps * asked["batch_size"]]
    for batch in shuffled.reshape(steps, asked["batch_size"]):
        loss = cached_step(x_train[batch], y_train[batch])
    jax.block_until_ready(loss)
    seconds, errors = time.perf_counter() - start, None
    if asked["evaluate"]:
        model.eval()
        errors = int(errors_of(model, x_test, y_test))
        model.train()
    common.report("epoch", seconds=seconds, errors=errors)
    if errors is not None and errors <= asked["stop_errors"]:
        break
