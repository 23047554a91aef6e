"""What goes on inside a network, against Flax, NumPy in float64 and scikit-learn."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from mnist_jax.config import Activation, Config
from mnist_jax.explain import analysis
from mnist_jax.explain.analysis import Network
from mnist_jax.model import layers, mlp


def network(hidden=(7, 5), activation="relu", pixels=12, classes=4):
    """A random network, taken apart, and the model and parameters that it is."""
    model = mlp(Config(hidden=hidden, activation=activation, dropout=0.0), pixels, classes)
    params, state = model.init(jax.random.key(0))
    key = jax.random.key(1)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), params)
    return Network(layers(params, {}), getattr(jax.nn, activation)), model, params, state


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
def test_the_last_signals_are_the_logits_of_the_model(activation):
    net, model, params, state = network(activation=activation)
    signals = analysis.activations(net, images())
    assert [signal.shape[1] for signal in signals] == [12, 7, 5, 4]
    np.testing.assert_array_equal(signals[0], images())
    expected, _ = model.apply(params, state, images(), None)
    np.testing.assert_allclose(signals[-1], expected, atol=1e-5)


def test_more_than_ten_layers_keep_their_order():
    net, model, params, state = network(hidden=(3,) * 11)
    expected, _ = model.apply(params, state, images(), None)
    np.testing.assert_allclose(analysis.activations(net, images())[-1], expected, atol=1e-5)


def test_a_mask_silences_and_scales():
    net, *_ = network()
    masks = [np.array([0, 2, 1, 0, 1, 1, 3.0]), np.array([1, 0, 1, 1, 0.5])]
    found = analysis.activations(net, images(), [mask.astype(np.float32) for mask in masks])
    np.testing.assert_allclose(found[-1], relu_logits(net, images(), masks), atol=1e-5)
    assert (np.asarray(found[1])[:, [0, 3]] == 0).all()


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_votes_and_bias_add_up_to_the_logits(hidden):
    net, *_ = network(hidden)
    votes = analysis.logit_contributions(net, images())
    assert votes.shape == (6, hidden[-1] if hidden else 12, 4)
    np.testing.assert_allclose(
        np.asarray(votes).sum(axis=1) + np.asarray(net.layers[-1].bias),
        relu_logits(net, images()),
        atol=1e-5,
    )


def test_slopes_are_what_a_little_ink_does():
    net, *_ = network()
    labels = np.array([0, 1, 2, 3, 0, 1])
    slopes = analysis.input_gradients(net, images(), labels)

    def lead(x):
        logits = relu_logits(net, x)
        return logits[np.arange(6), labels] - logits.mean(axis=1)

    for pixel in range(12):
        nudge = np.zeros(12)
        nudge[pixel] = 1e-6
        rise = (lead(images() + nudge) - lead(images() - nudge)) / 2e-6
        np.testing.assert_allclose(slopes[:, pixel], rise, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_pushes_add_up_to_what_the_ink_changed(activation):
    net, *_ = network(activation=activation)
    labels = np.array([0, 1, 2, 3, 0, 1])
    pushes = np.asarray(analysis.integrated_gradients(net, images(), labels))

    def lead(x):
        logits = np.asarray(analysis.activations(net, x)[-1])
        return logits[np.arange(6), labels] - logits.mean(axis=1)

    change = lead(images()) - lead(np.zeros_like(images()))
    np.testing.assert_allclose(pushes.sum(axis=1), change, atol=0.02)


def test_without_hidden_layers_a_push_is_ink_times_weight():
    net, *_ = network(())
    kernel = np.asarray(net.layers[0].kernel)
    expected = images() * (kernel[:, 2] - kernel.mean(axis=1))
    found = analysis.integrated_gradients(net, images(), np.full(6, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_view_is_the_weights_or_what_the_pixels_do_through_them():
    net, *_ = network()
    few = np.stack([images()[:2], images()[2:4]])
    (first, bias), (second, _) = net.layers[:2]
    found = analysis.unit_gradients(net, 0, np.array([4, 0]), few)
    np.testing.assert_allclose(found, np.asarray(first).T[[4, 0]], atol=1e-6)
    speaks = (few @ np.asarray(first) + np.asarray(bias) > 0)[
        ..., None
    ]  # (units, images, first layer, 1)
    through = np.asarray(second)[:, [3, 1]].T[:, None, :, None] * speaks
    expected = (np.asarray(first) @ through)[..., 0].mean(axis=1)
    found = analysis.unit_gradients(net, 1, np.array([3, 1]), few)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("place", [(0, 3, 2), (1, 6, 4), (2, 1, 3)])
def test_the_cost_along_one_weight_and_its_derivative(place):
    net, *_ = network()
    labels = np.array([0, 1, 2, 3, 0, 1])
    values = np.array([-1.5, 0.2, 2.0], np.float32)
    costs, slopes = analysis.vary_weight(net, place, values, images(), labels)

    def at(value):
        layer, row, column = place
        kernels = [np.array(kernel, np.float64) for kernel, _ in net.layers]
        kernels[layer][row, column] = value
        moved = [old._replace(kernel=new) for old, new in zip(net.layers, kernels, strict=True)]
        return relu_cost(net._replace(layers=tuple(moved)), images(), labels)

    np.testing.assert_allclose(costs, [at(value) for value in values], atol=1e-5)
    rises = [(at(value + 1e-5) - at(value - 1e-5)) / 2e-5 for value in values.astype(float)]
    np.testing.assert_allclose(slopes, rises, atol=1e-4)


def test_a_path_within_a_plane_is_seen_as_it_is():
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(20, 2)))[0].T
    end = random.normal(size=20)
    flat = np.array([[4.0, -1], [2, 2], [1, 0.5], [0, 0]])
    path = [{"a": jnp.asarray(point[:15].reshape(3, 5)), "b": jnp.asarray(point[15:])}
            for point in (end + flat @ directions).astype(np.float32)]  # fmt: skip
    plane = analysis.principal_plane(path)
    assert plane.share == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(plane.path @ plane.path.T, flat @ flat.T, atol=1e-4)
    # The sum of all parameters, a cost that anyone can compute, where the path was and elsewhere.
    found = analysis.cost_on_plane(
        plane, path[0], plane.path, lambda params: params["a"].sum() + params["b"].sum()
    )
    np.testing.assert_allclose(found, (end + flat @ directions).sum(axis=1), atol=1e-4)


def test_the_share_of_a_plane_is_that_of_the_squared_distances():
    steps = np.diag([3.0, 2, 1, 0]).astype(np.float32)[:, :3]
    assert analysis.principal_plane(list(jnp.asarray(steps))).share == pytest.approx(13 / 14)


def test_principal_components_are_scikit_learns():
    x = np.random.default_rng(0).normal(size=(50, 6)) * [1, 5, 2, 9, 1, 1]
    expected = PCA(2).fit_transform(x)
    np.testing.assert_allclose(
        np.abs(analysis.principal_components(x)), np.abs(expected), atol=1e-9
    )


def test_dropout_masks_keep_the_mean():
    net, *_ = network((4000, 3000))
    masks = analysis.dropout_masks(net, jax.random.key(0), 0.2)
    assert [mask.shape for mask in masks] == [(4000,), (3000,)]
    for mask in masks:
        assert set(np.unique(mask).tolist()) == {0, np.float32(1.25)}
        assert abs(float((mask == 0).mean()) - 0.2) < 0.03
    assert (np.asarray(masks[0][:3000]) != np.asarray(masks[1])).any()
