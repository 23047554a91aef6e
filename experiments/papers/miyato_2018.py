"""Miyato et al. 2015-18: virtual adversarial training, which keeps answers still around an image.

1.200 +/- 0.026 % test errors without it (n = 3), 0.794 +/- 0.046 % with exact directions, and
0.812 +/- 0.056 % with those of the released code (n = 10), where 1.11 and 0.637 +/- 0.046 are
published: it does not reproduce here, and why is not known. The network, its start, the losses and
the optimizer are those of the released code. The statistics for the test are taken of 10,000
training images at once, there of all 60,000 in batches of 100; and for the rows with VAT matrices
are multiplied in TF32 here.

    python experiments/papers/miyato_2018.py
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key
from runner import Experiment, main

from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec
from mnist_jax.model import Model, PyTree, from_linen
from mnist_jax.preprocess import Inputs, Labels
from mnist_jax.train import (
    Logits,
    LossFunction,
    Recipe,
    cross_entropy,
    default_recipe,
)

Direction = Callable[[Callable[[Inputs], Logits], Inputs, Inputs], Inputs]
"""(inputs -> logits, inputs, random steps) -> the directions in which answers change most."""

START = 2**16
"""The stream of random numbers for the first guess at a step; those of layers come before."""


def divergence(logits: Logits, others: Logits) -> Float[Array, ""]:
    """Mean Kullback-Leibler divergence of the answers `others` from the answers `logits`."""
    target = jax.nn.softmax(logits)
    moved = jax.nn.log_softmax(logits) - jax.nn.log_softmax(others)
    return (target * moved).sum(axis=-1).mean()


def unit_length(x: Inputs) -> Inputs:
    """Each row, made of length 1, however short it is; 0 stays 0."""
    x = x / jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), 1e-30)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)


def hessian_product(logits_of: Callable[[Inputs], Logits], inputs: Inputs, step: Inputs) -> Inputs:
    """The Hessian of the divergence from the answers to `inputs`, times `step`.

    It is J' F J, where J is the Jacobian of the logits and F the Fisher information of softmax.
    """
    logits, moved = jax.jvp(logits_of, (inputs,), (step,))
    shares = jax.nn.softmax(logits)
    # What moves all logits alike moves no answer; next to the surest one nothing is rounded away.
    surest = jnp.take_along_axis(moved, shares.argmax(axis=-1)[:, None], axis=-1)
    moved = moved - surest
    moved = shares * (moved - (shares * moved).sum(axis=-1, keepdims=True))
    return jax.vjp(logits_of, inputs)[1](moved)[0]


def finite_difference(
    logits_of: Callable[[Inputs], Logits], inputs: Inputs, step: Inputs
) -> Inputs:
    """The same as takerum/vat has it: the gradient of the divergence a millionth of `step` away.

    In single precision, and more so in TF32, that is so short a way that most of it is lost. What
    is left are rounding errors, most of them along the direction which changes the surest answer,
    uphill or down.
    """
    shares = jax.nn.softmax(logits_of(inputs))

    def cross_entropy_at(moved: Inputs) -> Float[Array, ""]:
        others = jax.nn.softmax(logits_of(moved))
        return -(shares * jnp.log(others + 1e-30)).sum(axis=-1).mean()

    return jax.grad(cross_entropy_at)(inputs + 1e-6 * step)


def virtual_adversarial(
    loss: LossFunction, epsilon: float, direction: Direction = hessian_product
) -> LossFunction:
    """`loss`, plus how far the worst step of length `epsilon` from each image moves its answer.

    The worst one takes one power iteration. Source: Miyato, Maeda, Koyama & Ishii, "Virtual
    adversarial training", TPAMI 2018, section 3.3.
    """

    def both(
        model: Model,
        params: PyTree,
        model_state: PyTree,
        inputs: Inputs,
        labels: Labels,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
        base, (logits, state) = loss(model, params, model_state, inputs, labels, key)

        def logits_of(inputs: Inputs) -> Logits:  # with the same noise, if there is any
            return model.apply(params, model_state, inputs, key)[0]

        start_key = jax.random.fold_in(key, START)
        start = unit_length(jax.random.normal(start_key, inputs.shape))
        worst = direction(logits_of, jnp.asarray(inputs), start)
        worst = epsilon * unit_length(jax.lax.stop_gradient(worst))
        moved = divergence(jax.lax.stop_gradient(logits), logits_of(inputs + worst))
        return base + moved, (logits, state)

    return both


class Normalised(nn.Module):
    """ReLU layers with batch normalisation on each, the logits too."""

    hidden: tuple[int, ...]
    classes: int
    decay: float = 0.99  # of the statistics, which are for evaluation alone

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool) -> Float[Array, "n classes"]:
        """The logits; the statistics are those of the batch when `train` is."""
        initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

        def layer(x: Inputs, units: int) -> Float[Array, "n units"]:
            sums = nn.Dense(units, kernel_init=initializer)(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=self.decay, epsilon=1e-6)
            return jnp.asarray(norm(sums))

        x = inputs
        for width in self.hidden:
            x = nn.relu(layer(x, width))
        return layer(x, self.classes)


def vat(
    config: Config,
    hparams: Hparams,
    spec: DataSpec,
    epsilon: float,
    decay: float,
    direction: Direction | None,
) -> Recipe:
    """The default recipe with such a network, and a rate of Adam's times `decay` an epoch.

    VAT steps along `direction`; None is no VAT.
    """
    module = Normalised(config.hidden, spec.classes)
    steps = spec.steps_per_epoch(config.batch_size)
    rate = optax.exponential_decay(config.learning_rate, steps, decay, staircase=True)
    return default_recipe(config, hparams, spec)._replace(
        model=from_linen(module, spec.pixels, module.copy(decay=0.0)),
        optimizer=optax.adam(rate, config.momentum),
        loss=virtual_adversarial(cross_entropy, epsilon, direction) if direction else cross_entropy,
    )


def row(published: str, direction: Direction | None) -> Experiment:
    """A row with this way to find the worst steps, or without VAT."""
    return Experiment(
        published=published,
        source='"Distributional smoothing with virtual adversarial training", ICLR 2016; '
        "second-hand, 1.11 from memory, the recipe from takerum/vat, read there",
        config=Config(
            dataset="mnist",
            hidden=(1200, 600, 300, 150),
            dropout=0.0,
            batch_size=100,
            optimizer="adam",
            learning_rate=0.002,
            weight_decay=0.0,
            epochs=100,
            seeds=10,
        ),
        recipe=partial(vat, epsilon=2.1, decay=0.9, direction=direction),
    )


ROWS = {
    "1200-600-300-150": row("1.11", None),
    "1200-600-300-150, VAT as released": row("0.637 +/- 0.046 (n = 10)", finite_difference),
    "1200-600-300-150, VAT": row("0.637 +/- 0.046 (n = 10)", hessian_product),
}

if __name__ == "__main__":
    main(__file__, ROWS)
