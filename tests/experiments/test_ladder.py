"""Ladder networks and virtual adversarial steps, against NumPy and the algebra of small cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from miyato_2018 import (
    START,
    finite_difference,
    hessian_product,
    unit_length,
    virtual_adversarial,
)
from pezeshki_2016 import amlp
from rasmus_2015 import GAUSSIAN, encode, gaussian_guess, ladder

from mnist_jax import prng
from mnist_jax.config import Config
from mnist_jax.data import DataSpec
from mnist_jax.model import Model
from mnist_jax.train import cross_entropy

CONFIG = Config(hidden=(7, 5), noise=0.3, dropout=0.0, batch_size=20, optimizer="adam")
SPEC = DataSpec((2, 3), 3, 100)


def random_inputs(count=20, pixels=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, pixels)).astype(np.float32)


def test_an_encoder_without_noise_normalises_every_layer():
    params, _ = ladder(CONFIG, CONFIG.hparams, SPEC).model.init(prng.key(0))
    random = np.random.default_rng(1)
    for layer in params["encoder"]:  # which start at 0 and 1
        layer["shift"] = random.normal(size=layer["shift"].shape).astype(np.float32)
        layer["scale"] = random.normal(size=layer["scale"].shape).astype(np.float32)
    h = random_inputs().astype(np.float64)
    *hidden, last = [{k: np.float64(v) for k, v in layer.items()} for layer in params["encoder"]]
    for layer in hidden:
        z = h @ layer["kernel"]
        h = np.maximum((z - z.mean(0)) / z.std(0) + layer["shift"], 0)
    z = h @ last["kernel"]
    expected = last["scale"] * ((z - z.mean(0)) / z.std(0) + last["shift"])
    np.testing.assert_allclose(
        encode(params, random_inputs(), (0.3, 0.3), None).logits, expected, atol=1e-4
    )


def test_pixels_and_layers_have_noise_of_their_own():
    recipe = ladder(CONFIG, CONFIG.hparams, SPEC, pixel_noise=0.1)
    params, state = recipe.model.init(prng.key(0))
    inputs, key = random_inputs(5000), prng.key(1)
    clean = encode(params, inputs, (0.0, 0.0), key)
    for noise, layer, std in (((0.1, 0.0), 0, 0.1), ((0.0, 0.3), 0, 0), ((0.0, 0.3), 1, 0.3)):
        added = encode(params, inputs, noise, key).z[layer] - clean.z[layer]
        assert float(added.std()) == pytest.approx(std, rel=0.02)
    with_both = encode(params, inputs, (0.1, 0.3), key).logits
    np.testing.assert_array_equal(recipe.model.apply(params, state, inputs, key)[0], with_both)


def test_one_image_is_answered_with_statistics_of_the_training_images():
    model = ladder(CONFIG, CONFIG.hparams, SPEC).model
    params, state = model.init(prng.key(0))
    assert model.recalibrate is not None
    state = model.recalibrate(params, state, random_inputs())
    together, _ = model.apply(params, state, random_inputs(), None)
    alone, _ = model.apply(params, state, random_inputs()[:1], None)
    np.testing.assert_allclose(alone, together[:1], atol=1e-5)
    np.testing.assert_allclose(
        together, encode(params, random_inputs(), (0.3, 0.3), None).logits, atol=1e-5
    )


def test_the_gaussian_guess_is_the_best_where_all_is_gaussian():
    """Clean sums of mean 1 and variance 4, seen with noise of variance 1: the gain is 4 / 5."""
    random = np.random.default_rng(0)
    clean = random.normal(1, 2, (50_000, 1)).astype(np.float32)
    noisy = clean + random.normal(0, 1, clean.shape).astype(np.float32)

    def error(mean, gain):
        weights = jnp.zeros((10, 1)).at[jnp.array([4, 9]), 0].set(jnp.array([mean, gain]))
        return float(
            np.square(gaussian_guess(weights, noisy, jnp.zeros_like(noisy)) - clean).mean()
        )

    assert error(1.0, 0.8) == pytest.approx(0.8, abs=0.02)  # 4 * 1 / (4 + 1)
    assert error(1.0, 0.8) < min(error(1.0, 0.7), error(1.0, 0.9), error(0.5, 0.8), error(1.5, 0.8))
    start = GAUSSIAN.init(prng.key(0), 1)
    np.testing.assert_array_equal(gaussian_guess(start, noisy, noisy), 0)


@pytest.mark.parametrize("make", [ladder, amlp])
def test_a_decoder_learns_to_restore_the_pixels(make):
    recipe = make(CONFIG, CONFIG.hparams, SPEC)
    mixing = random_inputs(2, 6, seed=2)
    inputs = random_inputs(20, 2, seed=3) @ mixing  # so that pixels tell of each other
    labels = np.arange(20, dtype=np.uint8) % 3
    params, state = recipe.model.init(prng.key(0))

    def cost(params, key):
        return recipe.loss(recipe.model, params, state, inputs, labels, key)[0]

    @jax.jit
    def step(params, opt_state, key):
        updates, opt_state = recipe.optimizer.update(jax.grad(cost)(params, key), opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    before, opt_state = cost(params, prng.key(1)), recipe.optimizer.init(params)
    for key in jax.random.split(prng.key(2), 300):
        params, opt_state = step(params, opt_state, key)
    assert cost(params, prng.key(1)) < 0.06 * before  # at first, it restores nothing


def test_a_virtual_adversarial_step_goes_where_the_divergence_grows_fastest():
    """Of a linear model: along H d for a random d, where H is the divergence's Hessian."""
    kernel = random_inputs(6, 3, seed=4)
    inputs, labels = random_inputs(4), np.zeros(4, np.uint8)

    def apply(params, model_state, inputs, key):
        return jnp.asarray(inputs) @ params, model_state

    model = Model(lambda key: (kernel, {}), apply)
    loss = virtual_adversarial(cross_entropy, 0.7)
    key = prng.key(0)
    total, (logits, _) = loss(model, kernel, {}, inputs, labels, key)
    base, _ = cross_entropy(model, kernel, {}, inputs, labels, key)

    exact = inputs.astype(np.float64)
    p = np.exp(exact @ kernel)
    p /= p.sum(1, keepdims=True)
    start = np.asarray(jax.random.normal(jax.random.fold_in(key, START), inputs.shape))
    steps = []
    for image_p, d in zip(p, start, strict=True):
        of_logits = np.diag(image_p) - np.outer(image_p, image_p)
        worst = kernel @ of_logits @ kernel.T @ d
        steps.append(0.7 * worst / np.linalg.norm(worst))
    q = np.exp((exact + steps) @ kernel)
    q /= q.sum(1, keepdims=True)
    expected = (p * np.log(p / q)).sum(1).mean()
    assert float(total - base) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(logits, inputs @ kernel, rtol=1e-5)


def test_finite_differences_find_the_exact_direction_where_nothing_is_rounded_away():
    with jax.enable_x64(True):
        shapes = ((6, 8), (8, 3), (4, 6), (4, 6))
        random = [random_inputs(*shape, seed=n) for n, shape in enumerate(shapes)]
        first, second, inputs, step = (jnp.asarray(x, jnp.float64) for x in random)

        def logits_of(inputs):
            return jnp.tanh(inputs @ first) @ second

        found, exact = (
            unit_length(direction(logits_of, inputs, unit_length(step)))
            for direction in (finite_difference, hessian_product)
        )
        np.testing.assert_allclose(found, exact, atol=1e-4)
