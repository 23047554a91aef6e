"""The analysis of a network, checked against Flax, NumPy in float64 and scikit-learn."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Activation, Config
from mnist_jax.explain import analysis
from mnist_jax.explain.analysis import Network
from mnist_jax.model import Layer, dense_layers, mlp


def network(hidden=(7, 5), activation="relu", pixels=12, classes=4):
    """A random network as its layers, and the model, parameters and state that it comes from."""
    config = Config(hidden=hidden, activation=activation, dropout=0.0)
    model = mlp(config, config.hparams, pixels, classes)
    params, state = model.init(jax.random.key(0))
    key = jax.random.key(1)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), params)
    return Network(dense_layers(params, {}), getattr(jax.nn, activation)), model, params, state


def images(n=6, pixels=12):
    return np.random.default_rng(0).random((n, pixels)).astype(np.float32)


def relu_logits(net, x, masks=()):
    """The forward pass of a ReLU network in float64."""
    x = np.asarray(x, np.float64)
    for i, (kernel, bias) in enumerate(net.layers):
        x = x @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        if i < len(net.layers) - 1:
            x = np.maximum(x, 0) * (np.asarray(masks[i]) if masks else 1)
    return x


def relu_cost(net, x, labels):
    logits = relu_logits(net, x)
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])


@pytest.mark.parametrize("activation", get_args(Activation))
def test_the_last_activations_are_the_logits_of_the_model(activation):
    net, model, params, state = network(activation=activation)
    inputs, *hidden, logits = analysis.activations(net, images())
    assert [layer.shape for layer in hidden] == [(6, 7), (6, 5)]
    np.testing.assert_array_equal(inputs, images())
    expected, _ = model.apply(params, state, images(), None)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_more_than_ten_layers_keep_their_order():
    net, model, params, state = network(hidden=(3,) * 11)
    expected, _ = model.apply(params, state, images(), None)
    np.testing.assert_allclose(analysis.activations(net, images())[-1], expected, atol=1e-5)


def test_a_mask_silences_and_scales():
    net, *_ = network()
    masks = [np.array([0, 2, 1, 0, 1, 1, 3.0]), np.array([1, 0, 1, 1, 0.5])]
    layers = analysis.activations(net, images(), [mask.astype(np.float32) for mask in masks])
    np.testing.assert_allclose(layers[-1], relu_logits(net, images(), masks), atol=1e-5)
    assert (np.asarray(layers[1])[:, [0, 3]] == 0).all()


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_contributions_and_bias_add_up_to_the_logits(hidden):
    net, *_ = network(hidden)
    contributions = analysis.logit_contributions(net, images())
    assert contributions.shape == (6, hidden[-1] if hidden else 12, 4)
    np.testing.assert_allclose(
        np.asarray(contributions).sum(axis=1) + np.asarray(net.layers[-1].bias),
        relu_logits(net, images()),
        atol=1e-5,
    )


def margins(logits, labels):
    return logits[np.arange(len(labels)), labels] - logits.mean(axis=1)


def test_input_gradients_are_what_a_little_ink_does():
    net, *_ = network()
    labels = np.array([0, 1, 2, 3, 0, 1])
    gradients = analysis.input_gradients(net, images(), labels)
    for pixel in range(12):
        nudge = np.zeros(12)
        nudge[pixel] = 1e-6
        low, high = (margins(relu_logits(net, images() + x), labels) for x in (-nudge, nudge))
        np.testing.assert_allclose(gradients[:, pixel], (high - low) / 2e-6, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_integrated_gradients_add_up_to_what_the_ink_changed(activation):
    net, *_ = network(activation=activation)
    labels = np.array([0, 1, 2, 3, 0, 1])
    contributions = np.asarray(analysis.integrated_gradients(net, images(), labels))
    after, before = (
        margins(np.asarray(analysis.activations(net, x)[-1]), labels)
        for x in (images(), np.zeros_like(images()))
    )
    np.testing.assert_allclose(contributions.sum(axis=1), after - before, atol=0.02)


def test_without_hidden_layers_integrated_gradients_are_ink_times_weight():
    net, *_ = network(())
    kernel = np.asarray(net.layers[0].kernel)
    expected = images() * (kernel[:, 2] - kernel.mean(axis=1))
    contributions = analysis.integrated_gradients(net, images(), np.full(6, 2))
    np.testing.assert_allclose(contributions, expected, atol=1e-5)


def test_unit_gradients_are_the_weights_or_what_the_pixels_do_through_them():
    net, *_ = network()
    inputs = np.stack([images()[:2], images()[2:4]])
    (first, bias), (second, _) = net.layers[:2]
    gradients = analysis.unit_gradients(net, 0, np.array([4, 0]), inputs)
    np.testing.assert_allclose(gradients, np.asarray(first).T[[4, 0]], atol=1e-6)
    active = (inputs @ np.asarray(first) + np.asarray(bias) > 0)[..., None]
    through = np.asarray(second)[:, [3, 1]].T[:, None, :, None] * active
    expected = (np.asarray(first) @ through)[..., 0].mean(axis=1)
    gradients = analysis.unit_gradients(net, 1, np.array([3, 1]), inputs)
    np.testing.assert_allclose(gradients, expected, atol=1e-5)


def test_units_are_ranked_by_how_much_they_move_the_next_layer():
    random = np.random.default_rng(0)
    values = random.random((20, 4)).astype(np.float32) * [1, 2, 3, 9]
    values[8:, 3] = 0  # eight images excite the last unit
    after = Layer(np.diag([6.0, 1, 1, 1]).astype(np.float32), np.zeros(4, np.float32))
    net = Network((after, after), jax.nn.relu)
    assert analysis.rank_units(net, 0, [values, values, values]).tolist() == [0, 2, 1]
    assert analysis.rank_units(net, 1, [values, values, values]).tolist() == [2, 1, 0]
    values[8:] = 0
    assert len(analysis.rank_units(net, 0, [values, values, values])) == 4


@pytest.mark.parametrize("hidden", [(), (7, 5)])
def test_a_sweep_has_the_cost_along_the_weight_that_changes_it_most(hidden):
    net, *_ = network(hidden)
    labels = np.array([0, 1, 2, 3, 0, 1])
    kernel = np.array(net.layers[-1].kernel, np.float64)

    def cost_at(row, column, value):
        changed = kernel.copy()
        changed[row, column] = value
        last = net.layers[-1]._replace(kernel=changed)
        return relu_cost(net._replace(layers=(*net.layers[:-1], last)), images(), labels)

    def derivative_at(row, column, value):
        low, high = (cost_at(row, column, value + nudge) for nudge in (-1e-5, 1e-5))
        return (high - low) / 2e-5

    sweep = analysis.sweep_weight(
        net.layers,
        lambda layers: analysis.cost(net._replace(layers=layers), images(), labels),
        learning_rate=0.5,
    )
    gradient = np.array([[derivative_at(row, column, kernel[row, column]) for column in range(4)]
                         for row in range(len(kernel))])  # fmt: skip
    row, column = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    assert sweep.place == (len(hidden), row, column)
    values = sweep.values.astype(float)
    expected = [cost_at(row, column, value) for value in values]
    np.testing.assert_allclose(sweep.costs, expected, atol=1e-5)
    expected = [derivative_at(row, column, value) for value in values]
    np.testing.assert_allclose(sweep.derivatives, expected, atol=1e-4)
    weight = kernel[row, column]
    assert values[40] == pytest.approx(weight, abs=1e-5)  # the start is in the middle
    assert sweep.steps.shape == (101, 2)
    for step in sweep.steps:
        assert step == pytest.approx([weight, cost_at(row, column, weight)], abs=1e-3)
        weight -= 0.5 * derivative_at(row, column, weight)


def test_a_landscape_shows_a_path_within_a_plane_as_it_is():
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(20, 2)))[0].T
    end = random.normal(size=20)
    flat = np.array([[4.0, -1], [2, 2], [1, 0.5], [0, 0]])
    points = (end + flat @ directions).astype(np.float32)
    path = [{"a": jnp.asarray(point[:15].reshape(3, 5)), "b": jnp.asarray(point[15:])}
            for point in points]  # fmt: skip

    def squared_distance_from_the_second_point(params):
        return sum(((params[name] - path[1][name]) ** 2).sum() for name in "ab")

    landscape = analysis.landscape(path, squared_distance_from_the_second_point, 7)
    assert landscape.share == pytest.approx(1, abs=1e-5)
    assert landscape.parameters == 20
    np.testing.assert_allclose(landscape.path @ landscape.path.T, flat @ flat.T, atol=1e-4)
    assert (landscape.path[0] < 0).all()  # it starts lower left
    expected = ((landscape.grid - landscape.path[1]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(landscape.costs, expected, rtol=1e-4, atol=1e-4)
    x, y = landscape.grid[..., 0], landscape.grid[..., 1]
    for grid, axis in ((x, 0), (y, 1)):
        assert grid.min() < landscape.path[:, axis].min()
        assert grid.max() > landscape.path[:, axis].max()
    assert np.ptp(x) == pytest.approx(np.ptp(y))
    np.testing.assert_allclose(np.diff(x, axis=1), np.ptp(x) / 6, rtol=1e-5)


def test_the_share_of_a_landscape_is_that_of_the_squared_distances():
    steps = np.diag([3.0, 2, 1, 0]).astype(np.float32)[:, :3]
    landscape = analysis.landscape(list(jnp.asarray(steps)), jnp.sum, 3)
    assert landscape.share == pytest.approx(13 / 14)


def test_dropout_masks_keep_the_mean():
    net, *_ = network((4000, 3000))
    masks = analysis.dropout_masks(net, jax.random.key(0), 0.2)
    assert [mask.shape for mask in masks] == [(4000,), (3000,)]
    for mask in masks:
        assert set(np.unique(mask).tolist()) == {0, np.float32(1.25)}
        assert abs(float((mask == 0).mean()) - 0.2) < 0.03
    assert (np.asarray(masks[0][:3000]) != np.asarray(masks[1])).any()
