import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.errors import InputError
from mnist_jax.optim import learning_rate_schedule, make_optimizer


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
    config = Config(warmup_steps=2, schedule=schedule)
    rate = learning_rate_schedule(config, peak=0.8, steps=10)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 4, 6, 10)], expected, atol=1e-7)


def test_without_warmup_the_first_step_is_the_largest():
    rate = learning_rate_schedule(Config(schedule="linear"), peak=0.3, steps=3)
    np.testing.assert_allclose([rate(step) for step in range(4)], [0.3, 0.2, 0.1, 0], atol=1e-7)


def test_a_warmup_that_never_ends_is_refused():
    with pytest.raises(InputError, match="--warmup-steps 10"):
        learning_rate_schedule(Config(warmup_steps=10), peak=0.1, steps=10)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbook_loop(nesterov):
    config = Config(
        learning_rate=0.5, momentum=0.9, nesterov=nesterov, weight_decay=0.1, schedule="linear"
    )
    transformation = make_optimizer(config, config.hparams, steps=5)
    params = {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([3.0])}
    opt_state = transformation.init(params)
    by_hand = {name: np.asarray(value) for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in by_hand.items()}
    gradients = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for step, (a, b, c) in enumerate(gradients):
        gradient = {"kernel": jnp.array([[a, b]]), "bias": jnp.array([c])}
        updates, opt_state = transformation.update(gradient, opt_state, params)
        params = {name: params[name] + updates[name] for name in params}
        rate = 0.5 * (1 - step / 5)
        for name, decay in (("kernel", 0.1), ("bias", 0.0)):  # biases do not decay
            g = np.asarray(gradient[name]) + decay * by_hand[name]
            velocity[name] = 0.9 * velocity[name] + g
            move = g + 0.9 * velocity[name] if nesterov else velocity[name]
            by_hand[name] = by_hand[name] - rate * move
    for name, value in params.items():
        np.testing.assert_allclose(value, by_hand[name], rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_adam_is_the_papers_loop(nesterov):
    """Kingma & Ba, ICLR 2015, algorithm 1; with Nesterov as in Dozat, 2016."""
    config = Config(
        optimizer="adam", learning_rate=0.1, momentum=0.8, schedule="constant", weight_decay=0.0,
        nesterov=nesterov,
    )  # fmt: skip
    transformation = make_optimizer(config, config.hparams, steps=5)
    params = {"kernel": jnp.array([[2.0, -1.0]])}
    opt_state = transformation.init(params)
    by_hand, first, second = np.array([[2.0, -1.0]]), np.zeros((1, 2)), np.zeros((1, 2))
    for step, gradient in enumerate(np.random.default_rng(0).normal(size=(5, 1, 2)), start=1):
        updates, opt_state = transformation.update(
            {"kernel": jnp.asarray(gradient, jnp.float32)}, opt_state, params
        )
        params = {"kernel": params["kernel"] + updates["kernel"]}
        first = 0.8 * first + 0.2 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        mean = first / (1 - 0.8**step)
        if nesterov:
            mean = 0.8 * first / (1 - 0.8 ** (step + 1)) + 0.2 * gradient / (1 - 0.8**step)
        by_hand = by_hand - 0.1 * mean / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(params["kernel"], by_hand, rtol=1e-4)


def test_norms_are_limited_after_the_step():
    """A column that a step makes too long is scaled down to the limit; others stay."""
    config = Config(
        learning_rate=1.0, momentum=0.0, schedule="constant", weight_decay=0.0, max_norm=2.0
    )
    transformation = make_optimizer(config, config.hparams, steps=5)
    params = {"kernel": jnp.array([[3.0, 0.5, 0.0], [0.0, 0.5, 0.0]]), "bias": jnp.array([9.0] * 3)}
    gradient = {"kernel": jnp.array([[0.0, -0.5, 0.0], [-4.0, 0.0, 0.0]]), "bias": jnp.zeros(3)}
    updates, _ = transformation.update(gradient, transformation.init(params), params)
    moved = params["kernel"] + updates["kernel"]
    # (3, 4) has length 5 and is cut to 2; (1, 0.5) is short enough; (0, 0) has no length.
    np.testing.assert_allclose(moved, [[1.2, 1.0, 0.0], [1.6, 0.5, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros(3))
