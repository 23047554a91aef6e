"""The figures that explain a trained run, and the images and epochs that they show."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from mnist_jax import data, population
from mnist_jax.data import Dataset, Examples
from mnist_jax.data.loader import DataLoader
from mnist_jax.errors import is_live, progress_bar, say, unusable
from mnist_jax.explain import analysis, network_plots, training_plots
from mnist_jax.explain.analysis import Network
from mnist_jax.fit import run_epoch
from mnist_jax.model import Layer, dense_layers
from mnist_jax.preprocess import Images
from mnist_jax.runs.results import Run, first_layers
from mnist_jax.train import TrainState

UNIT_IMAGES = 10_000  # training images searched for those that excite a unit most
COST_IMAGES = 1000  # training images that the cost is averaged over
TEST_IMAGES = 2000  # test images for the class map and the dropout figure
FRAMES = 11  # states of training that are shown: the start and at most ten epochs
GRID_SIZE = 25  # points along a side of the landscape


def train_again(run: Run, training: Examples) -> dict[int, tuple[Layer, ...]]:
    """The layers of the first seed of `run` after some epochs, from training it again.

    A run repeats bit for bit in the same environment. If it does not, a warning says so.
    """
    setup, config = run.setup, run.config
    members = population.members([config.seed], [config.hparams])
    loader = DataLoader(config, training)
    epochs = int(run.states.step[0]) // run.spec.steps_per_epoch(config.batch_size)
    frames = np.linspace(0, epochs, FRAMES).round()

    def layers_of(states: TrainState) -> tuple[Layer, ...]:
        images = loader.recalibration_images
        states = population.recalibrate(setup, states, members, images)
        state = jax.tree.map(lambda leaf: np.array(leaf[0]), states)
        return dense_layers(state.eval_params, state.model_state)

    states = population.init(setup, members)
    path = {0: layers_of(states)}
    if not is_live():
        say(f"training again, {epochs} epochs, to draw the path of training")
    for epoch in progress_bar(range(1, epochs + 1), desc="training again"):
        states, _ = run_epoch(setup, states, members, loader, epoch)
        if epoch in frames:
            path[epoch] = layers_of(states)
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), path[epochs], first_layers(run))
    if largest := max(jax.tree.leaves(differences)):
        say(
            f"training again ends up to {largest:.1g} from the weights of {run.path}, because of "
            "another device, version or recipe: the film and the landscape show the new training"
        )
    return path


def figures(run: Run, dataset: Dataset, image: int = 0) -> Iterator[tuple[str, Figure]]:
    """The figures that explain the first seed of `run`, with their names, drawn one by one.

    `image` is the test image to follow through the network.

    Raises:
        InputError: the network diverged, or there is no such image.
    """
    config, test = run.config, dataset.test
    activation = getattr(jax.nn, config.activation)
    network = Network(first_layers(run), activation, run.recipe.preprocess, run.class_names)
    if not 0 <= image < len(test.labels):
        raise unusable("--image", image, f"0 to {len(test.labels) - 1}")
    training, _ = data.train_val_split(dataset.train, config.validation_images)
    images = np.asarray(training.images[:UNIT_IMAGES])
    hidden_layers = len(network.layers) - 1
    for layer in range(max(hidden_layers, 1)):
        yield f"units-{layer + 1}", network_plots.units(network, layer, images)
    if hidden_layers:
        yield "message", network_plots.contributions(network, test.images[image])
    _, firsts = np.unique(test.labels, return_index=True)  # of each class
    yield "pixels", network_plots.attributions(network, test.images[firsts[:10]])
    if hidden_layers:
        sample = test.images[:TEST_IMAGES], test.labels[:TEST_IMAGES]
        yield "dropout", network_plots.subnetworks(network, *sample, config.dropout, config.seed)
        yield "classes", network_plots.class_map(network, *sample)
    else:
        say("a network without hidden layers has no message, dropout or classes to draw")
    yield from _training_figures(run, network, images, training)


def _training_figures(
    run: Run, network: Network, images: Images, training: Examples
) -> Iterator[tuple[str, Figure]]:
    inputs, labels = network.preprocess(images), training.labels[:COST_IMAGES]

    def cost_of(layers: tuple[Layer, ...]) -> Float[Array, ""]:
        return analysis.cost(network._replace(layers=layers), inputs[: len(labels)], labels)

    path = train_again(run, training)
    costs = {epoch: float(cost_of(layers)) for epoch, layers in path.items()}
    ranked = analysis.rank_units(network, 0, analysis.activations(network, inputs))
    units = np.sort(ranked[: 8 if len(path) > 4 else 4])  # with few frames each picture is large
    kernels = np.stack([layers[0].kernel[:, units].T for layers in path.values()])
    frames = kernels.reshape(*kernels.shape[:2], *run.image_shape)
    names = network_plots.unit_names(network, units)
    yield "film", training_plots.weight_history(frames, costs, names)
    learning_rate = run.config.learning_rate
    sweep = analysis.sweep_weight(path[0], cost_of, learning_rate)
    figure = training_plots.weight_sweep(sweep, learning_rate, len(labels), run.class_names)
    yield "one-weight", figure
    if len(path) > 2:
        landscape = analysis.landscape(list(path.values()), cost_of, GRID_SIZE)
        yield "landscape", training_plots.landscape(landscape, costs, len(labels))
    else:
        say("one epoch is too short a path for a landscape")
