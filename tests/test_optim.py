import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Config, InputError
from mnist_jax.optim import learning_rate_schedule, sgd


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Worked out by hand: peak 0.8, 2 steps of warm-up, 8 steps of fall.
        ("constant", [0, 0.4, 0.8, 0.8, 0.8, 0.8]),
        ("linear", [0, 0.4, 0.8, 0.6, 0.4, 0.0]),
        ("cosine", [0, 0.4, 0.8, 0.8 * (1 + 0.5**0.5) / 2, 0.4, 0.0]),
    ],
)
def test_schedule_by_hand(schedule, expected):
    rate = learning_rate_schedule(
        Config(learning_rate=0.8, warmup_steps=2, schedule=schedule), steps=10
    )
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 4, 6, 10)], expected, atol=1e-7)


def test_without_warmup_the_first_step_is_the_largest():
    rate = learning_rate_schedule(Config(learning_rate=0.3, schedule="linear"), steps=3)
    np.testing.assert_allclose([rate(step) for step in range(4)], [0.3, 0.2, 0.1, 0], atol=1e-7)


def test_a_warmup_that_never_ends_is_refused():
    with pytest.raises(InputError, match="--warmup-steps 10"):
        learning_rate_schedule(Config(warmup_steps=10), steps=10)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbook_loop(nesterov):
    config = Config(
        learning_rate=0.5, momentum=0.9, nesterov=nesterov, weight_decay=0.1, schedule="linear"
    )
    optimizer = sgd(config, steps=5)
    params = {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([3.0])}
    opt_state = optimizer.init(params)
    by_hand = {name: np.asarray(value) for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in by_hand.items()}
    gradients = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for step, (a, b, c) in enumerate(gradients):
        gradient = {"kernel": jnp.array([[a, b]]), "bias": jnp.array([c])}
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = {name: params[name] + updates[name] for name in params}
        rate = 0.5 * (1 - step / 5)
        for name, decay in (("kernel", 0.1), ("bias", 0.0)):  # biases do not decay
            g = np.asarray(gradient[name]) + decay * by_hand[name]
            velocity[name] = 0.9 * velocity[name] + g
            move = g + 0.9 * velocity[name] if nesterov else velocity[name]
            by_hand[name] = by_hand[name] - rate * move
    for name, value in params.items():
        np.testing.assert_allclose(value, by_hand[name], rtol=1e-5)
