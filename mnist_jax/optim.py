"""The optimizer: learning-rate schedules, SGD and Adam, weight decay and max-norm."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mnist_jax.config import Config, Hparams
from mnist_jax.errors import unusable
from mnist_jax.model import PyTree
from mnist_jax.preprocess import Scalar


def learning_rate_schedule(config: Config, peak: Scalar, steps: int) -> optax.Schedule:
    """Learning rate by step: up to `peak` over `warmup_steps`, then as `config.schedule` says.

    Raises:
        InputError: the warm-up is as long as the run, or longer.
    """
    warmup = config.warmup_steps
    if warmup >= steps:
        raise unusable("--warmup-steps", warmup, f"fewer than the run's {steps} steps")
    after_warmup = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
    }[config.schedule]
    if warmup == 0:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])


def limit_norms(max_norm: Scalar) -> optax.GradientTransformation:
    """After each step, scales the weights into a unit down to norm `max_norm` if they exceed it.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 2014, section 5.1.
    """

    def limit(updates: PyTree, params: PyTree | None) -> PyTree:
        assert params is not None

        def limited(update: Array, param: Array) -> Array:
            if param.ndim < 2:
                return update
            moved = param + update
            norm = jnp.linalg.norm(moved, axis=0, keepdims=True)
            return moved * jnp.minimum(1, max_norm / jnp.maximum(norm, 1e-12)) - param

        return jax.tree.map(limited, updates, params)

    return optax.stateless(limit)


def make_optimizer(config: Config, hparams: Hparams, steps: int) -> optax.GradientTransformation:
    """SGD or Adam with weight decay and max-norm, for a run of `steps` steps."""

    def is_kernel(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    rate = learning_rate_schedule(config, hparams.learning_rate, steps)
    make = {"sgd": optax.sgd, "adam": optax.adam}[config.optimizer]
    transformations = [
        optax.add_decayed_weights(hparams.weight_decay, mask=is_kernel),
        make(rate, hparams.momentum, nesterov=config.nesterov),
    ]
    if config.max_norm > 0:
        transformations.append(limit_norms(hparams.max_norm))
    return optax.chain(*transformations)
