"""Arrays that explain a trained MLP: activations, contributions, gradients, and its cost."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Integer, Key

from mnist_jax.model import Layer, PyTree
from mnist_jax.preprocess import AnyArray, Images, Inputs, Labels, to_inputs

CostOf = Callable[[PyTree], Float[Array, ""]]  # a cost as a function of the parameters alone


class Network(NamedTuple):
    """An MLP as its dense layers, with `activation` after each but the last."""

    layers: tuple[Layer, ...]
    activation: Callable[[Array], Array]
    preprocess: Callable[[Images], Inputs] = to_inputs
    class_names: tuple[str, ...] = ()


def activations(
    network: Network, inputs: Inputs, masks: Sequence[Float[AnyArray, "_"]] = ()
) -> list[Float[Array, "n _"]]:
    """The inputs, the activations of each hidden layer, and the logits.

    `masks` has one mask for each hidden layer, which multiplies its activations as dropout does.
    """
    *hidden, last = network.layers
    outputs = [jnp.asarray(inputs)]
    for i, (kernel, bias) in enumerate(hidden):
        x = network.activation(outputs[-1] @ kernel + bias[None])
        outputs.append(x * masks[i][None] if masks else x)
    return [*outputs, outputs[-1] @ last.kernel + last.bias[None]]


def logit_contributions(network: Network, inputs: Inputs) -> Float[Array, "n units classes"]:
    """What each unit of the last hidden layer adds to each logit: its activation times its weight.

    The contributions of all units and the bias add up to the logit.
    """
    return activations(network, inputs)[-2][:, :, None] * network.layers[-1].kernel[None]


def input_gradients(network: Network, inputs: Inputs, classes: Labels) -> Inputs:
    """The gradient of each image's margin with respect to its pixels (saliency).

    The margin is the logit of the image's entry in `classes` minus the mean of all logits.
    """

    def total_margin(x: Inputs) -> Float[Array, ""]:
        logits = activations(network, x)[-1]
        return (logits[jnp.arange(len(classes)), classes] - logits.mean(axis=1)).sum()

    # A margin depends only on the pixels of its image, so one gradient call is enough for all.
    return jax.grad(total_margin)(jnp.asarray(inputs))


def integrated_gradients(network: Network, inputs: Inputs, classes: Labels) -> Inputs:
    """What each pixel adds to its image's margin, as `input_gradients` defines it.

    The values of an image add up to its margin minus that of a blank page. Source: Sundararajan,
    Taly & Yan, "Axiomatic attribution for deep networks", ICML 2017.
    """
    fractions = (jnp.arange(128) + 0.5) / 128  # the midpoints of 128 steps to the image
    gradients = jax.lax.map(lambda x: input_gradients(network, inputs * x, classes), fractions)
    return inputs * gradients.mean(axis=0)


def unit_gradients(
    network: Network,
    layer: int,
    units: Integer[AnyArray, "units"],
    inputs: Float[AnyArray, "units n p"],
) -> Float[Array, "units p"]:
    """The gradient of each unit's pre-activation by the pixels, averaged over its `inputs`.

    `layer` counts from 0. In the first layer the gradient equals the unit's weights for any inputs.
    """
    below = network._replace(layers=network.layers[: layer + 1])

    def total(x: Float[Array, "n p"], unit: Integer[Array, ""]) -> Float[Array, ""]:
        return activations(below, x)[-1][:, unit].sum()

    gradients = jax.vmap(jax.grad(total))(jnp.asarray(inputs), jnp.asarray(units))
    return gradients.mean(axis=1)


def rank_units(
    network: Network, layer: int, activations: Sequence[Float[AnyArray, "n _"]]
) -> Integer[np.ndarray, "units"]:
    """The units of a layer, most influential first.

    The influence of a unit is the standard deviation of its activation times the norm of its
    outgoing weights. Units that fewer than nine images excite are left out, if any remain.
    """
    values = np.asarray(activations[layer + 1])
    influence = values.std(axis=0)
    if layer + 1 < len(network.layers):
        influence = influence * np.linalg.norm(network.layers[layer + 1].kernel, axis=1)
    order = np.argsort(-influence, kind="stable")
    active = (values > values.min(axis=0)).sum(axis=0) >= 9
    return order[active[order]] if active.any() else order


def cost(network: Network, inputs: Inputs, labels: Labels) -> Float[Array, ""]:
    """The mean cross-entropy, without dropout."""
    logits = activations(network, inputs)[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()


class WeightSweep(NamedTuple):
    """The cost as one weight changes, and the path that SGD takes on that weight alone."""

    place: tuple[int, int, int]  # layer, row and column of the weight
    values: Float[np.ndarray, "values"]  # of the weight
    costs: Float[np.ndarray, "values"]
    derivatives: Float[np.ndarray, "values"]
    steps: Float[np.ndarray, "steps 2"]  # the weight and the cost, from the start


def sweep_weight(layers: tuple[Layer, ...], cost_of: CostOf, learning_rate: float) -> WeightSweep:
    """A sweep of the last layer's weight that the cost is most sensitive to."""
    *lower, last = layers
    gradient = np.asarray(jax.grad(cost_of)(layers)[-1].kernel)
    row, column = map(int, np.unravel_index(np.abs(gradient).argmax(), gradient.shape))
    start, slope = jnp.asarray(last.kernel[row, column]), gradient[row, column]

    def cost_at(value: Float[Array, ""]) -> Float[Array, ""]:
        kernel = jnp.asarray(last.kernel).at[row, column].set(value)
        return cost_of((*lower, last._replace(kernel=kernel)))

    curvature = float(jax.grad(jax.grad(cost_at))(start))
    # Newton's step leads to the lowest point of a parabola. Three times that shows the valley.
    reach = 3 * np.clip(abs(slope) / max(curvature, 1e-9), 1e-3, 1e3)
    values = np.linspace(start - reach, start + reach, 81, dtype=np.float32)
    costs, derivatives = jax.lax.map(jax.value_and_grad(cost_at), values)

    def sgd_step(weight: Float[Array, ""], _: None) -> tuple[Array, Array]:
        cost, derivative = jax.value_and_grad(cost_at)(weight)
        return weight - learning_rate * derivative, jnp.stack([weight, cost])

    _, steps = jax.lax.scan(sgd_step, start, length=101)  # the start and a hundred steps
    place = (len(lower), row, column)
    return WeightSweep(place, values, *jax.device_get((costs, derivatives, steps)))


class Landscape(NamedTuple):
    """The cost on a plane through the end of a path of parameters."""

    path: Float[np.ndarray, "points 2"]  # projected onto the plane; the end is at (0, 0)
    grid: Float[np.ndarray, "size size 2"]  # points on the plane
    costs: Float[np.ndarray, "size size"]  # at these points
    share: float  # of the squared distances from the end that lies in the plane
    parameters: int


def landscape(path: Sequence[PyTree], cost_of: CostOf, size: int) -> Landscape:
    """The cost of parameters on the plane in which `path` extends furthest from its end.

    `path` has at least three points. Source: Li, Xu, Taylor, Studer & Goldstein, "Visualizing the
    loss landscape of neural nets", NeurIPS 2018, section 7.2.
    """
    end, unravel = ravel_pytree(path[-1])
    steps = np.stack([ravel_pytree(params)[0] - end for params in path])
    _, lengths, directions = np.linalg.svd(steps, full_matrices=False)
    share = float((lengths[:2] ** 2).sum() / (lengths**2).sum())
    directions = directions[:2]
    directions *= -np.copysign(1, directions @ steps[0])[:, None]  # the path starts lower left
    projected = steps @ directions.T
    low, high = projected.min(axis=0), projected.max(axis=0)
    centre, half = (low + high) / 2, 0.65 * (high - low).max()
    x, y = np.linspace(centre - half, centre + half, size, axis=1, dtype=np.float32)
    grid = np.stack(np.meshgrid(x, y), axis=-1)

    def cost_at(point: Float[Array, "2"]) -> Float[Array, ""]:
        return cost_of(unravel(end + jnp.dot(point, directions, precision="highest")))

    costs = np.asarray(jax.lax.map(cost_at, grid.reshape(-1, 2))).reshape(size, size)
    return Landscape(projected, grid, costs, share, end.size)


def dropout_masks(network: Network, key: Key[Array, ""], rate: float) -> list[Float[Array, "_"]]:
    """A mask for each hidden layer: 0 with probability `rate`, otherwise 1 / (1 - rate)."""
    return [
        jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, layer.bias.shape) / (1 - rate)
        for i, layer in enumerate(network.layers[:-1])
    ]
