"""How the weights move: the learning rate over time, and SGD."""

import jax
import optax

from mnist_jax.config import Config, InputError


def learning_rate_schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: up over `warmup_steps`, then down to 0 at `steps`.

    Raises:
        InputError: the warm-up does not end before the run does.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise InputError(
            f"--warmup-steps {warmup} cannot be used: it takes fewer than the run's {steps} steps"
        )
    after_warmup = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
    }[config.schedule]
    climb = optax.linear_schedule(0.0, peak, max(warmup, 1))
    return optax.join_schedules([climb, after_warmup], [warmup]) if warmup else after_warmup


def sgd(config: Config, steps: int) -> optax.GradientTransformation:
    """SGD with momentum and weight decay for a run of `steps` steps."""

    def is_kernel(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_kernel),
        optax.sgd(learning_rate_schedule(config, steps), config.momentum, config.nesterov),
    )
