"""How the weights move: the learning rate over time, SGD and Adam, and the limits they keep."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mnist_jax.config import Config, is_off, unusable
from mnist_jax.model import PyTree
from mnist_jax.preprocess import Number


def learning_rate_schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: up over `warmup_steps`, then down to 0 at `steps`.

    Raises:
        InputError: the warm-up does not end before the run does.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise unusable("--warmup-steps", warmup, f"fewer than the run's {steps} steps")
    after_warmup = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
    }[config.schedule]
    climb = optax.linear_schedule(0.0, peak, max(warmup, 1))
    return optax.join_schedules([climb, after_warmup], [warmup]) if warmup else after_warmup


def limit_norms(longest: Number) -> optax.GradientTransformation:
    """Shortens the weights into each unit to length `longest` after a step that left them longer.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 2014, section 5.1.
    """

    def shorten(updates: PyTree, params: PyTree | None) -> PyTree:
        assert params is not None

        def shortened(update: Array, param: Array) -> Array:
            if param.ndim < 2:
                return update
            moved = param + update
            length = jnp.linalg.norm(moved, axis=0, keepdims=True)
            return moved * jnp.minimum(1, longest / jnp.maximum(length, 1e-12)) - param

        return jax.tree.map(shortened, updates, params)

    return optax.stateless(shorten)


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """SGD or Adam with weight decay and limited norms, for a run of `steps` steps."""

    def is_kernel(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    rate, momentum = learning_rate_schedule(config, steps), config.momentum
    steps_of = {
        "sgd": partial(optax.sgd, rate, momentum, config.nesterov),
        "adam": partial(optax.adam, rate, momentum, nesterov=config.nesterov),
    }[config.optimizer]
    chain = [optax.add_decayed_weights(config.weight_decay, mask=is_kernel), steps_of()]
    return optax.chain(*chain, *([] if is_off(config.max_norm) else [limit_norms(config.max_norm)]))
