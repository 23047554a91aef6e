"""What goes on inside a trained MLP, as arrays: who spoke, for what, and how the cost bends."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from mnist_jax.model import Layer, PyTree
from mnist_jax.preprocess import AnyArray, Inputs, Labels

INTEGRATION_STEPS = 128
"""Points between a blank page and an image at which `integrated_gradients` takes gradients."""


class Network(NamedTuple):
    """An MLP taken apart: dense layers, with `activation` after each but the last."""

    layers: tuple[Layer, ...]
    activation: Callable[[Array], Array]


def activations(
    network: Network, inputs: Inputs, masks: Sequence[Float[AnyArray, "_"]] = ()
) -> list[Float[Array, "n _"]]:
    """What each layer passes on: the inputs, the activations of each hidden layer, the logits.

    Each hidden layer's activations are multiplied by its mask, if there are masks.
    """
    passed = [jnp.asarray(inputs)]
    for i, (kernel, bias) in enumerate(network.layers):
        x = passed[-1] @ kernel + bias[None]
        if i < len(network.layers) - 1:
            x = network.activation(x) * (masks[i][None] if masks else 1)
        passed.append(x)
    return passed


def logit_contributions(network: Network, inputs: Inputs) -> Float[Array, "n units classes"]:
    """What each unit of the last hidden layer adds to each logit: activation times weight.

    Their sum over the units, plus the bias, is the logit.
    """
    return activations(network, inputs)[-2][:, :, None] * network.layers[-1].kernel[None]


def _logit_margin(network: Network, x: Float[Array, "pixels"], label: Array) -> Float[Array, ""]:
    """How far the logit of `label` stands above the mean of all logits."""
    logits = activations(network, x[None])[-1][0]
    return logits[label] - logits.mean()


def input_gradients(network: Network, inputs: Inputs, classes: Labels) -> Inputs:
    """How far a little more ink in each pixel would raise the logit of `classes` above the mean."""
    lead = jax.grad(partial(_logit_margin, network))
    return jax.vmap(lead)(jnp.asarray(inputs), jnp.asarray(classes))


def integrated_gradients(network: Network, inputs: Inputs, classes: Labels) -> Inputs:
    """How far each pixel's ink did raise the logit of `classes` above the mean of all logits.

    These are integrated gradients from a blank page: over the pixels of an image they add up to
    what its ink as a whole changed. Source: Sundararajan, Taly & Yan, "Axiomatic attribution for
    deep networks", ICML 2017.
    """

    def add(total: Array, share: Array) -> tuple[Array, None]:
        return total + input_gradients(network, inputs * share, classes), None

    shares = (jnp.arange(INTEGRATION_STEPS) + 0.5) / INTEGRATION_STEPS
    total, _ = jax.lax.scan(add, jnp.zeros(inputs.shape), shares)
    return inputs * total / INTEGRATION_STEPS


def unit_gradients(
    network: Network,
    layer: int,
    units: Int[AnyArray, "units"],
    inputs: Float[AnyArray, "units n p"],
) -> Float[Array, "units p"]:
    """How each pixel moves the sum that a unit of hidden `layer` takes: the mean over its `inputs`.

    That is its weights for the first layer, whatever the inputs.
    """

    below = network._replace(layers=network.layers[: layer + 1])  # whose logits are the sums

    def total(x: Float[Array, "p"], unit: Int[Array, ""]) -> Float[Array, ""]:
        return activations(below, x[None])[-1][0, unit]

    def view(unit: Int[Array, ""], images: Float[Array, "n p"]) -> Float[Array, "p"]:
        return jax.vmap(jax.grad(total), in_axes=(0, None))(images, unit).mean(axis=0)

    return jax.vmap(view)(jnp.asarray(units), jnp.asarray(inputs))


def cost(network: Network, inputs: Inputs, labels: Labels) -> Float[Array, ""]:
    """Mean cross-entropy, dropout off."""
    logits = activations(network, inputs)[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()


def vary_weight(
    network: Network,
    place: tuple[int, int, int],
    values: Float[AnyArray, "values"],
    inputs: Inputs,
    labels: Labels,
) -> tuple[Float[Array, "values"], Float[Array, "values"]]:
    """The cost, and its derivative, with the weight at `place` moved to each of `values`.

    `place` is (layer, row, column); every other weight stays where it is.
    """
    layer, row, column = place
    # What comes before the weight's layer is the same for all values.
    before = activations(network._replace(layers=network.layers[:layer]), inputs)[-1]
    before = network.activation(before) if layer else before
    kernel, bias = network.layers[layer]

    def at(value: Float[Array, ""]) -> Float[Array, ""]:
        moved = Layer(jnp.asarray(kernel).at[row, column].set(value), bias)
        rest = network._replace(layers=(moved, *network.layers[layer + 1 :]))
        return cost(rest, before, labels)

    return jax.lax.map(jax.value_and_grad(at), jnp.asarray(values))


class Plane(NamedTuple):
    """The plane through the end of a path of training along which the path is widest."""

    origin: Float[np.ndarray, "parameters"]  # the end of the path
    directions: Float[np.ndarray, "2 parameters"]  # orthogonal, of length 1
    path: Float[np.ndarray, "points 2"]  # each point of the path, seen in the plane
    share: float  # of the path's squared distances from its end


def principal_plane(path: Sequence[PyTree]) -> Plane:
    """The plane of a path of parameters, of at least three points.

    Source: Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets",
    NeurIPS 2018, section 7.2.
    """
    points = np.stack([np.asarray(ravel_pytree(params)[0]) for params in path])
    steps: np.ndarray = (
        points - points[-1:]
    )  # on the host, as accelerators round what they multiply
    # The directions are combinations of the few steps: their products hold all there is to know.
    spreads, combinations = np.linalg.eigh((steps @ steps.T).astype(np.float64))
    widest = combinations[:, [-1, -2]] / np.sqrt(np.maximum(spreads[[-1, -2]], 1e-30))
    directions = widest.T.astype(np.float32) @ steps
    share = float(spreads[-2:].sum() / max(spreads.sum(), 1e-30))
    return Plane(points[-1], directions, steps @ directions.T, share)


def cost_on_plane(
    plane: Plane,
    like: PyTree,
    places: Float[AnyArray, "places 2"],
    cost_of: Callable[[PyTree], Float[Array, ""]],
) -> Float[Array, "places"]:
    """`cost_of` the parameters at each of `places` in the plane, in the structure of `like`."""
    unravel = ravel_pytree(like)[1]
    origin, directions = map(jnp.asarray, plane[:2])

    def at(place: Float[Array, "2"]) -> Float[Array, ""]:
        return cost_of(unravel(origin + jnp.dot(place, directions, precision="highest")))

    return jax.lax.map(at, jnp.asarray(places, jnp.float32))


def principal_components(x: Float[AnyArray, "n features"]) -> Float[np.ndarray, "n 2"]:
    """Each row seen from the side on which the rows lie widest apart (PCA)."""
    centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return centred @ directions[:, [-1, -2]]


def dropout_masks(network: Network, key: Key[Array, ""], rate: float) -> list[Float[Array, "_"]]:
    """A mask for each hidden layer: 0 with probability `rate`, or else what keeps the mean."""
    hidden = network.layers[:-1]
    keys = jax.random.split(key, len(hidden))
    return [
        jax.random.bernoulli(key, 1 - rate, layer.bias.shape) / (1 - rate)
        for key, layer in zip(keys, hidden, strict=True)
    ]
