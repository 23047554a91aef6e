"""A trained run explained in pictures: which images and units they show, and how it came there."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer
from matplotlib.figure import Figure

from mnist_jax import data, population
from mnist_jax.config import unusable
from mnist_jax.data import Dataset, Examples
from mnist_jax.data.shards import Feed
from mnist_jax.explain import analysis, network_plots, training_plots
from mnist_jax.explain.analysis import Network
from mnist_jax.model import Layer, layers
from mnist_jax.preprocess import Inputs, Labels
from mnist_jax.progress import bar, is_live, say
from mnist_jax.runs.report import Run, dense_layers
from mnist_jax.train import TrainState, steps_per_epoch

COST_IMAGES = 1000
"""Training images that a cost is taken over, the first."""

SEARCHED_IMAGES = 10_000
"""Training images among which those are found that excite a unit most, the first."""

FRAMES = 11
"""Moments of training that are kept: the start and ten epochs, the last among them."""

SPOKEN = 10
"""Units of the last hidden layer whose votes are shown."""

SUBNETWORKS = 100
"""Networks that dropout makes of one, to count their answers."""

SEARCHED_FOR_DISPUTES = 2000
"""Test images among which the one is found that twenty of them disagree on most, the first."""

DOTS = 2000
"""Test images whose places among the classes are shown, the first."""

STEPS = 101
"""Places of one weight that are shown: its start, and after each of a hundred steps of SGD."""

GRID = 25
"""Points along a side of the landscape."""


class Trajectory(NamedTuple):
    """The layers of a network at some moments of its training."""

    epochs: tuple[int, ...]
    layers: tuple[tuple[Layer, ...], ...]


def train_again(run: Run, training: Examples) -> Trajectory:
    """The way of the first seed to where `run` is: a run repeats to the bit, so nobody kept it."""
    batch_size, feed = run.config.batch_size, Feed(run.config, training)
    done = int(run.states.step[0]) // steps_per_epoch(feed.plan.used, batch_size)
    kept = sorted({round(epoch) for epoch in np.linspace(0, done, FRAMES)})
    keys = population.keys([run.config.seed])
    states = population.init(run.recipe, keys)

    def taken_apart(states: TrainState) -> tuple[Layer, ...]:
        settled = population.settle(run.recipe, states, feed.settling, keys)
        state = jax.tree.map(lambda leaf: np.array(leaf[0]), settled)
        return layers(state.weights, state.model_state)

    path = [taken_apart(states)]
    if not is_live():
        say(f"training again, {done} epochs, to see how it came there")
    with bar(total=done, desc="training again") as shown:
        for epoch in range(1, done + 1):
            for shard in range(feed.plan.shards):
                states, _ = population.train_epoch(
                    *(run.recipe, states, feed.take(epoch, shard), keys, batch_size, 1)
                )
                jax.block_until_ready(states)  # before one more shard comes
            if epoch in kept:
                path.append(taken_apart(states))
            shown.update()
    ends = jax.tree.map(lambda a, b: np.abs(a - b).max(), path[-1], dense_layers(run))
    if apart := max(jax.tree.leaves(ends)):
        say(
            f"training again ends up to {apart:.1g} from the weights of {run.path}, as rounding, "
            "device, versions or recipe differ: the film and the landscape show the repetition"
        )
    return Trajectory(tuple(kept), tuple(path))


def figures(run: Run, dataset: Dataset, image: int = 0) -> Iterator[tuple[str, Figure]]:
    """Every figure that explains the first seed of `run`, by name, as it is drawn.

    `image` is the test image whose message is followed.

    Raises:
        InputError: the network diverged, or there is no such image.
    """
    network = Network(dense_layers(run), getattr(jax.nn, run.config.activation))
    recipe, test = run.recipe, dataset.test
    if not 0 <= image < len(test.labels):
        raise unusable("--image", image, f"0 to {len(test.labels) - 1}")
    training, _ = data.hold_out(dataset.train, run.config.validation_images)
    hidden = len(network.layers) - 1
    searched = Examples(*(np.asarray(array[:SEARCHED_IMAGES]) for array in training))
    inputs = recipe.preprocess(searched.images)
    signals = [np.asarray(signal) for signal in analysis.activations(network, inputs)]
    for layer in range(max(hidden, 1)):
        yield f"units-{layer + 1}", _units(run, network, layer, searched, inputs, signals)
    if hidden:
        yield "message", _message(run, network, test, image)
    yield "pixels", _pixels(run, network, test)
    few = inputs[:COST_IMAGES], searched.labels[:COST_IMAGES]
    if hidden:
        yield "dropout", _dropout(run, network, test)
        yield "classes", _classes(run, network, test)
    path = train_again(run, training)
    costs = jnp.stack([_cost(network, layers, few) for layers in path.layers])
    rows = 8 if len(path.epochs) > 4 else 4  # few frames make large pictures
    shown = np.sort(_influential(network, 0, signals)[:rows])
    yield "film", _film(run, network, path, costs, shown)
    yield "one-weight", _one_weight(run, network, path, few)
    if len(path.epochs) > 2:
        yield "landscape", _landscape(network, path, costs, few)
    if not hidden:
        say("without hidden layers there is no message, dropout or classes to draw")
    if len(path.epochs) < 3:
        say("one epoch is too short a path for a landscape")


def _influential(
    network: Network, layer: int, signals: list[np.ndarray]
) -> Integer[np.ndarray, "units"]:
    """The units of a layer that move the next one most, from image to image, the first first.

    Without those that fewer than nine images excite, unless all are such.
    """
    values = signals[layer + 1]
    spread = values.std(axis=0)
    if layer + 1 < len(network.layers):
        spread = spread * np.linalg.norm(network.layers[layer + 1].kernel, axis=1)
    order = np.argsort(-spread, kind="stable")
    speaks = np.sort(values, axis=0)[-9:].min(axis=0) > values.min(axis=0)
    return order[speaks[order]] if speaks.any() else order


def _units(
    run: Run,
    network: Network,
    layer: int,
    examples: Examples,
    inputs: Inputs,
    signals: list[np.ndarray],
) -> Figure:
    values, units = signals[layer + 1], np.sort(_influential(network, layer, signals)[:24])
    most = np.argsort(-values[:, units], axis=0, kind="stable").T
    most = most[:, np.arange(9) % most.shape[1]]  # of fewer than nine images, some again
    views = analysis.unit_gradients(network, layer, units, jnp.asarray(inputs)[most])
    pictures = np.asarray(views).reshape(-1, *run.image_shape)
    title, count = "No hidden layer: what each class looks for", values.shape[1]
    if len(network.layers) > 1:
        silent = int((np.ptp(values, axis=0) == 0).sum())
        title = f"Hidden layer {layer + 1}: the {len(units)} of {count} units that say most"
        title += f" ({silent} are silent on all images)" if silent else ""
    names = _names(run, network, units)
    return network_plots.units(pictures, examples.images[most], names, title, layer == 0)


def _names(run: Run, network: Network, units: Integer[np.ndarray, "units"]) -> list[str]:
    """How units of a hidden layer are called, or those of the only one, which are the classes."""
    if len(network.layers) > 1:
        return [f"unit {unit}" for unit in units]
    return [run.class_names[unit] for unit in units]


def _message(run: Run, network: Network, test: Examples, image: int) -> Figure:
    chosen = test.images[image : image + 1]
    inputs = run.recipe.preprocess(chosen)
    votes = np.asarray(analysis.logit_contributions(network, inputs))[0]
    voices = np.abs(votes).max(axis=1)
    loudest = np.argsort(-voices, kind="stable")[: min(SPOKEN, max(1, np.count_nonzero(voices)))]
    repeated = jnp.broadcast_to(inputs, (len(loudest), *inputs.shape))
    views = analysis.unit_gradients(network, len(network.layers) - 2, loudest, repeated)
    activations = [np.asarray(layer)[0] for layer in analysis.activations(network, inputs)[1:-1]]
    return network_plots.message(
        *(chosen[0], activations, np.asarray(views).reshape(-1, *run.image_shape), loudest),
        *(votes, np.asarray(network.layers[-1].bias), run.class_names),
    )


def _pixels(run: Run, network: Network, test: Examples) -> Figure:
    firsts = [np.flatnonzero(test.labels == label)[:1] for label in range(len(run.class_names))]
    chosen = np.concatenate(firsts)[:10]
    inputs = run.recipe.preprocess(test.images[chosen])
    answers = analysis.activations(network, inputs)[-1].argmax(axis=-1)
    shape = (-1, *run.image_shape)
    pushes = np.asarray(analysis.integrated_gradients(network, inputs, answers)).reshape(shape)
    slopes = np.asarray(analysis.input_gradients(network, inputs, answers)).reshape(shape)
    names = [run.class_names[int(answer)] for answer in answers]
    return network_plots.pixels(test.images[chosen], pushes, slopes, names)


def _one_weight(run: Run, network: Network, path: Trajectory, few: tuple[Inputs, Labels]) -> Figure:
    """About the weight of the last layer that matters most to the cost before training."""
    network = network._replace(layers=path.layers[0])
    last = len(network.layers) - 1
    slope = np.asarray(jax.grad(_cost, argnums=1)(network, path.layers[0], few)[last].kernel)
    row, column = map(int, np.unravel_index(np.abs(slope).argmax(), slope.shape))
    at = jax.jit(
        partial(analysis.vary_weight, network, (last, row, column), inputs=few[0], labels=few[1])
    )
    start = float(network.layers[last].kernel[row, column])
    # To the lowest point, were the cost a parabola; three times as far shows that it is a valley.
    nudge = 0.01
    left, right = map(float, at(jnp.array([start - nudge, start + nudge], jnp.float32))[1])
    reach = 3 * np.clip(abs(left + right) / max(right - left, 1e-9) * nudge, 1e-3, 1e3)
    values = np.linspace(start - reach, start + reach, 81, dtype=np.float32)
    costs, slopes = map(np.asarray, at(values))

    def step(weight: Array, _: None) -> tuple[Array, Array]:
        (cost,), (slope,) = at(weight[None])
        return weight - run.config.learning_rate * slope, jnp.stack([weight, cost])

    _, steps = jax.lax.scan(step, jnp.float32(start), length=STEPS)
    name = f"from {'unit' if last else 'pixel'} {row} to class {run.class_names[column]}"
    return training_plots.one_weight(
        values, costs, slopes, np.asarray(steps), run.config.learning_rate, len(few[1]), name
    )


def _dropout(run: Run, network: Network, test: Examples) -> Figure:
    """About the test image that subnetworks disagree on most."""
    rate = run.config.dropout or 0.5
    inputs = run.recipe.preprocess(test.images[:SEARCHED_FOR_DISPUTES])

    def logits_of(inputs: Inputs, key: jax.Array) -> jax.Array:
        return analysis.activations(network, inputs, analysis.dropout_masks(network, key, rate))[-1]

    keys = jax.random.split(jax.random.key(run.config.seed), SUBNETWORKS)
    few = np.stack([logits_of(inputs, key).argmax(axis=-1) for key in keys[:20]])
    classes = len(run.class_names)
    tallies = np.stack([(few == label).sum(axis=0) for label in range(classes)])
    image = int(tallies.max(axis=0).argmin())
    logits = jax.lax.map(partial(logits_of, inputs[image : image + 1]), keys)[:, 0]
    answers = np.asarray(logits.argmax(axis=-1))
    tally = np.bincount(answers, minlength=classes)
    first, second = (int((answers == label).argmax()) for label in np.argsort(-tally)[:2])
    masks = [analysis.dropout_masks(network, keys[number], rate) for number in (first, second)]
    shares = np.asarray(jax.nn.softmax(logits[jnp.array([first, second])]))
    whole = np.asarray(
        jax.nn.softmax(analysis.activations(network, inputs[image : image + 1])[-1])
    )[0]
    return network_plots.dropout(
        *(test.images[image], masks, shares, whole, tally, int(test.labels[image]), rate),
        *(run.class_names, run.config.dropout > 0),
    )


def _classes(run: Run, network: Network, test: Examples) -> Figure:
    inputs = run.recipe.preprocess(test.images[:DOTS])
    last = analysis.activations(network, inputs)[-2]
    pixels, units = (analysis.principal_components(np.asarray(x)) for x in (inputs, last))
    return network_plots.classes(*(pixels, units), test.labels[:DOTS], run.class_names)


def _cost(
    network: Network, layers: tuple[Layer, ...], few: tuple[Inputs, Labels]
) -> Float[Array, ""]:
    return analysis.cost(network._replace(layers=layers), *few)


def _film(
    run: Run,
    network: Network,
    path: Trajectory,
    costs: Float[Array, "frames"],
    units: Integer[np.ndarray, "units"],
) -> Figure:
    kernels = np.stack([layers[0].kernel[:, units].T for layers in path.layers])
    frames = kernels.reshape(*kernels.shape[:2], *run.image_shape)
    return training_plots.film(frames, path.epochs, costs, _names(run, network, units))


def _landscape(
    network: Network, path: Trajectory, costs: Float[Array, "points"], few: tuple[Inputs, Labels]
) -> Figure:
    plane = analysis.principal_plane(path.layers)
    low, high = plane.path.min(axis=0), plane.path.max(axis=0)
    middle, half = (low + high) / 2, 0.65 * (high - low).max()
    across, up = (np.linspace(x - half, x + half, GRID, dtype=np.float32) for x in middle)
    places = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    like = path.layers[0]
    grid = analysis.cost_on_plane(plane, like, places, partial(_cost, network, few=few))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(like))
    return training_plots.landscape(
        *(path.epochs, costs, plane.path, across, up, np.asarray(grid).reshape(GRID, GRID)),
        *(plane.share, parameters, len(few[1])),
    )
