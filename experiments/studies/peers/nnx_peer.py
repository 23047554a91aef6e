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
warmup, peak = asked["warmup_steps"], asked["learning_rate"]
climb = optax.linear_schedule(0.0, peak, max(warmup, 1))
fall = optax.linear_schedule(peak, 0.0, steps * asked["epochs"] - warmup)
rate = optax.join_schedules([climb, fall], [warmup])
sgd = optax.sgd(rate, asked["momentum"], asked["nesterov"])
optimizer = nnx.Optimizer(model, sgd, wrt=nnx.Param)


@nnx.jit
def train_step(
    model: MLP, optimizer: nnx.Optimizer, inputs: jax.Array, labels: jax.Array, batch: jax.Array
) -> jax.Array:
    """One step of gradient descent, on the images whose numbers are `batch`."""

    def loss_of(model: MLP) -> jax.Array:
        logits = model(inputs[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

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
    shuffled = order.permutation(len(x_train))[: steps * asked["batch_size"]].astype(np.int32)
    for batch in shuffled.reshape(steps, asked["batch_size"]):
        loss = cached_step(x_train, y_train, batch)
    jax.block_until_ready(loss)
    seconds, errors = time.perf_counter() - start, None
    if asked["evaluate"]:
        model.eval()
        errors = int(errors_of(model, x_test, y_test))
        model.train()
    common.report("epoch", seconds=seconds, errors=errors)
