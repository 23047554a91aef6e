from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Activation, Config, Initializer
from mnist_jax.model import MLP, Model, dense_layers, from_linen, mlp


def make_mlp(config, pixels, classes) -> Model:
    return mlp(config, config.hparams, pixels, classes)


def test_an_mlp_is_matrix_products_and_relus():
    model = make_mlp(Config(hidden=(5, 4)), pixels=6, classes=3)
    params, model_state = model.init(jax.random.key(0))
    assert model_state == {}
    inputs = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    x = inputs
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        x = x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        x = np.maximum(x, 0) if name != "Dense_2" else x
    logits, _ = model.apply(params, model_state, inputs, None)
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-5)


def test_the_default_is_the_tutorials_784_512_512_10():
    params, _ = make_mlp(Config(), pixels=784, classes=10).init(jax.random.key(0))
    kernels = [layer["kernel"].shape for layer in params.values()]
    assert kernels == [(784, 512), (512, 512), (512, 10)]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 669_706  # Keras' summary says so


def test_no_hidden_layer_is_softmax_regression():
    params, _ = make_mlp(Config(hidden=()), pixels=6, classes=3).init(jax.random.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(3,), (6, 3)]


def test_the_gradients_of_softmax_regression_are_those_of_the_textbook():
    """With respect to the kernel x^T (p - y), with respect to the inputs (p - y) kernel^T."""
    model = make_mlp(Config(hidden=()), pixels=6, classes=3)
    params, _ = model.init(jax.random.key(0))
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(7, 6)), random.integers(3, size=7)

    def loss(params, inputs):
        logits, _ = model.apply(params, {}, inputs, None)
        return -jax.nn.log_softmax(logits)[np.arange(7), labels].sum()

    gradients, to_inputs = jax.grad(loss, (0, 1))(params, inputs.astype(np.float32))
    kernel = np.asarray(params["Dense_0"]["kernel"], np.float64)
    exponentials = np.exp(inputs @ kernel)
    error = exponentials / exponentials.sum(1, keepdims=True) - np.eye(3)[labels]
    np.testing.assert_allclose(gradients["Dense_0"]["kernel"], inputs.T @ error, 1e-4, 1e-5)
    np.testing.assert_allclose(gradients["Dense_0"]["bias"], error.sum(0), 1e-4, 1e-5)
    np.testing.assert_allclose(to_inputs, error @ kernel.T, 1e-4, 1e-5)


def masks(input_dropout, dropout, hidden=(), rows=2000, seed=1):
    """Ones after they pass through identity layers with dropout."""
    size = 50
    module = MLP(
        hidden=hidden,
        classes=size,
        activation=lambda x: x,
        initializer=lambda key, shape, dtype: jnp.eye(shape[0], dtype=dtype),
        input_dropout=input_dropout,
        dropout=dropout,
    )
    model = from_linen(module, size)
    params, _ = model.init(jax.random.key(0))
    logits, _ = model.apply(params, {}, jnp.ones((rows, size)), jax.random.key(seed))
    return np.asarray(logits)


@pytest.mark.parametrize(
    ("where", "rate"), [("input", 0.2), ("input", 0.5), ("hidden", 0.2), ("hidden", 0.5)]
)
def test_dropout_drops_at_its_rate_and_keeps_the_mean(where, rate):
    out = masks(rate, None) if where == "input" else masks(None, rate, hidden=(50,))
    assert set(np.unique(out.round(4))) == {0, np.float32(1 / (1 - rate)).round(4)}
    # 100,000 draws: five standard deviations of a rate of 0.2 to 0.5 are below 0.008.
    assert abs((out == 0).mean() - rate) < 0.008
    assert abs(out.mean() - 1) < 0.016


def test_inputs_and_hidden_units_have_rates_of_their_own():
    both = masks(0.5, 0.2, hidden=(50,))
    assert abs((both == 0).mean() - (1 - 0.5 * 0.8)) < 0.008
    assert (masks(None, 0.9) == 1).all()  # no hidden layer: the hidden rate has nothing to drop


def test_masks_depend_on_the_key_alone():
    assert (masks(0.5, None, seed=1) == masks(0.5, None, seed=1)).all()
    # Two independent masks of rate 1/2 agree on half of the units.
    agreement = (masks(0.5, None, seed=1) == masks(0.5, None, seed=2)).mean()
    assert abs(agreement - 0.5) < 0.008


def test_without_a_key_nothing_is_dropped():
    model = make_mlp(Config(input_dropout=0.9, dropout=0.9), pixels=4, classes=2)
    params, _ = model.init(jax.random.key(0))
    ones = jnp.ones((3, 4))
    first, second = (model.apply(params, {}, ones, None)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    plain = make_mlp(Config(dropout=0.0), pixels=4, classes=2)
    np.testing.assert_array_equal(first, plain.apply(params, {}, ones, None)[0])


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_by_name(activation):
    def formula(x):
        return {
            "relu": np.maximum(x, 0),
            "leaky_relu": np.where(x > 0, x, 0.01 * x),
            "elu": np.where(x > 0, x, np.exp(x) - 1),
            "selu": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
            "gelu": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
            "silu": x / (1 + np.exp(-x)),
            "softplus": np.log1p(np.exp(x)),
            "sigmoid": 1 / (1 + np.exp(-x)),
            "tanh": np.tanh(x),
        }[activation]

    model = make_mlp(Config(hidden=(8,), activation=activation), pixels=4, classes=2)
    params, _ = model.init(jax.random.key(3))
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    first, last = params["Dense_0"], params["Dense_1"]
    hidden = formula(inputs @ np.asarray(first["kernel"], np.float64))
    expected = hidden @ np.asarray(last["kernel"], np.float64)
    np.testing.assert_allclose(
        model.apply(params, {}, inputs, None)[0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("initializer", get_args(Initializer))
def test_every_initializer_by_name(initializer):
    params, _ = make_mlp(Config(hidden=(300,), initializer=initializer), 400, 10).init(
        jax.random.key(0)
    )
    kernel = np.asarray(params["Dense_0"]["kernel"])
    variance = {
        "he": 2 / 400,
        "glorot": 2 / 700,
        "lecun": 1 / 400,
        "orthogonal": 1 / 400,
    }[initializer.split("_")[0]]
    np.testing.assert_allclose(kernel.var(), variance, rtol=0.03)
    if initializer == "orthogonal":
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(300), atol=1e-4)
    if initializer.endswith("uniform"):
        np.testing.assert_allclose(np.abs(kernel).max(), np.sqrt(3 * variance), rtol=0.01)
    assert (np.asarray(params["Dense_0"]["bias"]) == 0).all()


def batch_norm_network(**options):
    """A network with batch normalisation, with random parameters as NumPy arrays."""
    model = make_mlp(Config(hidden=(5, 4), batch_norm=True, **options), pixels=6, classes=3)
    params, model_state = model.init(jax.random.key(0))
    random = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params)
    return model, params, model_state


def normalise_over_batch(params, x):
    """The logits, computed in NumPy from the statistics of the batch; and those statistics."""
    statistics = {}
    for i in (0, 1):
        x = x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
        mean, var = x.mean(axis=0), x.var(axis=0)
        statistics[f"BatchNorm_{i}"] = {"mean": mean, "var": var}
        norm = params[f"BatchNorm_{i}"]
        x = (x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"], statistics


INPUTS = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def test_batch_normalisation_is_that_of_the_paper():
    """Ioffe & Szegedy, ICML 2015, algorithm 1."""
    model, params, model_state = batch_norm_network(dropout=0.0)
    logits, after = model.apply(params, model_state, INPUTS, jax.random.key(0))
    expected, statistics = normalise_over_batch(params, INPUTS)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    for name, running in after["batch_stats"].items():
        mean, var = statistics[name]["mean"], statistics[name]["var"]
        np.testing.assert_allclose(running["mean"], 0.01 * mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(running["var"], 0.99 + 0.01 * var, rtol=1e-3)


def test_recalibrated_statistics_are_those_of_the_images_without_noise():
    model, params, model_state = batch_norm_network(dropout=0.5, noise=0.7, input_dropout=0.1)
    recalibrated = model.recalibrate(params, model_state, INPUTS)
    expected, statistics = normalise_over_batch(params, INPUTS)
    for name, actual in recalibrated["batch_stats"].items():
        for moment in ("mean", "var"):
            expected_moment = statistics[name][moment]
            np.testing.assert_allclose(actual[moment], expected_moment, rtol=1e-3, atol=1e-5)
    logits, same = model.apply(params, recalibrated, INPUTS, None)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, same, recalibrated)


def test_dense_layers_have_batch_normalisation_folded_in():
    model, params, model_state = batch_norm_network()
    recalibrated = jax.tree.map(np.asarray, model.recalibrate(params, model_state, INPUTS))
    x = INPUTS
    layers = dense_layers(params, recalibrated)
    for i, (kernel, bias) in enumerate(layers):
        x = x @ kernel + bias
        x = np.maximum(x, 0) if i < 2 else x
    assert [layer.kernel.shape for layer in layers] == [(6, 5), (5, 4), (4, 3)]
    np.testing.assert_allclose(x, model.apply(params, recalibrated, INPUTS, None)[0], 1e-3, 1e-3)


@pytest.mark.parametrize("where", ["input_noise", "noise"])
def test_noise_is_gaussian_and_only_added_in_training(where):
    module = MLP(
        hidden=(50,),
        classes=50,
        activation=lambda x: x,
        initializer=lambda key, shape, dtype: jnp.eye(shape[0], dtype=dtype),
        **{where: 0.3},
    )
    model = from_linen(module, 50)
    params, _ = model.init(jax.random.key(0))
    ones = jnp.ones((2000, 50))
    np.testing.assert_array_equal(model.apply(params, {}, ones, None)[0], ones)
    noise = np.asarray(model.apply(params, {}, ones, jax.random.key(1))[0]) - 1
    assert abs(noise.mean()) < 0.006  # 100,000 draws: six standard deviations
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    assert (np.abs(noise) < 0.3).mean() == pytest.approx(0.6827, abs=0.01)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.15


def test_recalibration_leaves_a_network_without_statistics_as_it_is():
    model = make_mlp(Config(hidden=(4,)), pixels=6, classes=3)
    params, model_state = model.init(jax.random.key(0))
    assert model.recalibrate(params, model_state, INPUTS) == {}


@pytest.mark.parametrize(
    ("precision", "text"),
    [("float32", "precision = [HIGHEST, HIGHEST]"), ("tf32", "precision = [HIGH, HIGH]")],
)
def test_matrix_products_have_the_precision_of_the_config(precision, text):
    """Forward and backward: those of three layers and of their gradients."""
    model = make_mlp(Config(hidden=(5, 4), precision=precision), pixels=6, classes=3)
    params, _ = model.init(jax.random.key(0))

    def loss(params):
        return model.apply(params, {}, jnp.ones((2, 6)), None)[0].sum()

    program = jax.jit(jax.grad(loss)).lower(params).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 7
    assert all(text in line for line in products)


def test_only_matrix_products_are_in_bfloat16():
    config = Config(hidden=(5,), precision="bfloat16", batch_norm=True)
    model = make_mlp(config, pixels=6, classes=3)
    params, model_state = model.init(jax.random.key(0))
    inputs = jnp.linspace(0, 1, 12).reshape(2, 6)
    logits, state = model.apply(params, model_state, inputs, jax.random.key(1))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, model_state, state, logits))}
    assert dtypes == {jnp.dtype(jnp.float32)}
    text = jax.jit(lambda p: model.apply(p, model_state, inputs, None)[0]).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert all("xbf16>" in line and "xf32>" not in line for line in products)
    plain = make_mlp(Config(hidden=(5,), batch_norm=True), pixels=6, classes=3)
    exact = plain.apply(params, model_state, inputs, None)[0]
    near = model.apply(params, model_state, inputs, None)[0]
    np.testing.assert_allclose(near, exact, atol=0.05)
    assert not np.array_equal(near, exact)
