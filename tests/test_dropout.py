"""Dropout masks as training draws them: unbiased, and independent of one another."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import prng
from mnist_jax.config import Config
from mnist_jax.data import Examples
from mnist_jax.model import MLP, Dropout, Model
from mnist_jax.optim import make_optimizer
from mnist_jax.train import Recipe, init, train_step

SEEDS, STEPS, BATCH, UNITS = 4, 5, 100, 60


def draw_masks(input_rate, rate):
    """The masks of three layers in `train_step`: [seed, step, layer, image, unit], True if kept."""
    network = MLP(
        hidden=(UNITS, UNITS),
        classes=3,
        activation=lambda x: x * 0 + 1,  # only dropout makes it zero
        input_dropout=input_rate,
        dropout=rate,
    )

    def apply(params, model_state, inputs, key):
        logits, seen = network.apply(
            {"params": params},
            inputs,
            train=True,
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
        )
        layers = [seen["intermediates"][f"Dropout_{n}"]["__call__"][0] for n in range(3)]
        return logits, {"layers": jnp.stack(layers)}

    def start(key):
        params = network.init(key, jnp.zeros((1, UNITS)), train=False)["params"]
        return params, {"layers": jnp.zeros((3, BATCH, UNITS))}

    recipe = Recipe(Model(start, apply), make_optimizer(Config(), Config().hparams, STEPS))
    step = jax.jit(partial(train_step, recipe))
    batch = Examples(np.full((BATCH, 6, 10), 255, np.uint8), np.zeros(BATCH, np.uint8))
    seeds = []
    for seed in range(SEEDS):
        key = prng.key(seed)
        state, steps = init(recipe, key), []
        for _ in range(STEPS):
            state, _ = step(state, batch, key)
            steps.append(np.asarray(state.model_state["layers"]))
        seeds.append(steps)
    layers = np.array(seeds)
    np.testing.assert_allclose(layers[:, :, 0].max(), 1 / (1 - input_rate), rtol=1e-4)
    np.testing.assert_allclose(layers[:, :, 1:].max(), 1 / (1 - rate), rtol=1e-4)
    return layers > 0


@pytest.fixture(scope="module", params=[(0.1, 0.2), (0.5, 0.5), (0.2, 0.8)], ids=str)
def rates_and_masks(request):
    return request.param, draw_masks(*request.param)


def standardised(masks, rates):
    """The masks with mean 0 and variance 1, if each unit is kept with its probability."""
    keep = 1 - np.array([rates[0], rates[1], rates[1]])[:, None, None]
    return (masks - keep) / np.sqrt(keep * (1 - keep))


def assert_standard_normal(sums, addends):
    """Checks sums of `addends` independent terms of mean 0 and variance 1."""
    z = np.asarray(sums).ravel() / np.sqrt(addends)
    # A normal number goes beyond 5.5 once in 26 million; the mean of z**2 has variance 2 / n.
    assert abs(z).max() < 5.5
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)


def test_masks_are_unbiased_everywhere(rates_and_masks):
    z = standardised(rates_and_masks[1], rates_and_masks[0])
    assert_standard_normal(z.sum(axis=(3, 4)), BATCH * UNITS)  # each mask
    assert_standard_normal(z.sum(axis=(0, 1, 3)), SEEDS * STEPS * BATCH)  # each unit
    assert_standard_normal(z.sum(axis=(0, 1, 4)), SEEDS * STEPS * UNITS)  # each image


def test_masks_of_other_steps_seeds_and_layers_are_independent(rates_and_masks):
    z = standardised(rates_and_masks[1], rates_and_masks[0]).reshape(-1, BATCH * UNITS)
    pairs = [(z[i] * z[j]).sum() for i, j in combinations(range(len(z)), 2)]
    assert len(pairs) == 60 * 59 // 2
    assert_standard_normal(pairs, BATCH * UNITS)


def test_units_within_a_mask_are_independent(rates_and_masks):
    """Neighbours, and draws from one word of random bits, whose parts lie far apart in a mask."""
    z = standardised(rates_and_masks[1], rates_and_masks[0]).reshape(-1, BATCH * UNITS)
    for distance in (1, 2, 3, UNITS, BATCH * UNITS // 4, BATCH * UNITS // 2):
        products = z[:, distance:] * z[:, :-distance]
        assert_standard_normal(products.sum(axis=1), products.shape[1])


def test_each_rate_is_met_to_a_65536th():
    """In 10 million draws. The mean stays, however small or large the rate."""
    for rate in (0.001, 0.3, 0.999):
        x = jnp.ones(10_000_000)
        out = Dropout(rate).apply({}, x, train=True, rngs={"dropout": prng.key(0)})
        sigma = np.sqrt(rate * (1 - rate) / x.size)
        assert abs(float((out == 0).mean()) - rate) < 5 * sigma + 2**-17
        assert abs(float(out.mean()) - 1) < 5 * sigma / (1 - rate)


def test_a_rate_of_nearly_one_drops_less_than_everything():
    out = Dropout(1 - 1e-9).apply(
        {}, jnp.ones(4_000_000), train=True, rngs={"dropout": prng.key(0)}
    )
    assert 20 < int((out > 0).sum()) < 110  # 61 are expected, one in 65,536


@pytest.mark.parametrize(("rate", "train"), [(None, True), (0.5, False)])
def test_nothing_is_dropped_without_a_rate_or_in_evaluation(rate, train):
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, train=train), x)


def test_nothing_is_dropped_at_rate_0():
    """A network in a sweep may have this rate while others of its program have another."""
    x, rngs = jnp.arange(70_000.0), {"dropout": prng.key(0)}
    dropped = jax.jit(lambda rate: Dropout(rate).apply({}, x, train=True, rngs=rngs))(0.0)
    np.testing.assert_array_equal(dropped, x)


def test_jax_keys_of_any_kind_draw_masks():
    for key in (prng.key(0), jax.random.key(0), jax.random.key(0, impl="rbg")):
        out = Dropout(0.5).apply({}, jnp.ones(10_000), train=True, rngs={"dropout": key})
        assert abs(float((out == 0).mean()) - 0.5) < 0.025
