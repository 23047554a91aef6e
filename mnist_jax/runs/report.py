"""What a trained run is worth: its test errors, its answers and its figures."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mnist_jax import data, population, prng
from mnist_jax.config import MOST, Config, InputError, from_json
from mnist_jax.data import Dataset, Examples, shards
from mnist_jax.model import Layer, layers
from mnist_jax.parallel import devices
from mnist_jax.preprocess import AnyArray, Images
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.train import Recipe, TrainState, as_they_are, default_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run(NamedTuple):
    """A trained population, fresh or read back from its folder."""

    path: Path
    config: Config
    image_shape: tuple[int, int]
    class_names: tuple[str, ...]
    data_sha256: tuple[str, ...]  # as Dataset has them
    recipe: Recipe
    states: TrainState  # each leaf with a leading axis of seeds


def load_run(path: Path) -> Run:
    """The run that `fit` kept in `path`, with the default recipe of its config.

    Of a run that is not finished, the newest checkpoint. It says so on standard error, and if the
    run was trained by another recipe, whose network or preprocessing may be others.

    Raises:
        InputError: there is no such run, it has no checkpoint yet, or it is damaged.
    """
    kept = rundir.read_config(path)
    config, info = parse_config(kept, path)
    if kept["recipe"] != default_recipe.__name__:
        print(
            f"{path} was trained by the recipe {kept['recipe']}, and read as by the default one; "
            "that is right only if the network and its preprocessing are the same",
            file=sys.stderr,
        )
    folders = checkpoint.all_of(path)
    if not folders:
        raise InputError(f"{path} has no checkpoint; it did not finish: {rundir.REMEDY}")
    folder = folders[0]
    if not checkpoint.is_whole(folder):
        raise InputError(f"{folder} is damaged; {rundir.REMEDY}")
    if {**kept, "data_dir": 0} != {**rundir.read_config(folder), "data_dir": 0}:
        raise InputError(
            f"{path / 'config.json'} is not what {folder} was made with; {rundir.REMEDY}"
        )
    if not _metrics(path).startswith(_metrics(folder)):
        raise InputError(
            f"{path / 'metrics.jsonl'} is not what {folder} was made with; {rundir.REMEDY}"
        )
    if not is_finished(path, folder):
        epoch, parts = len(rundir.read_metrics(folder)), len(rundir.read_shards(folder))
        more = f" and {parts} shards of the next" if parts else ""
        print(
            f"{path} is not finished: this is how it stood after epoch {epoch}{more}",
            file=sys.stderr,
        )
    height, width = info["image_shape"]
    class_names = tuple(info["class_names"])
    used = shards.plan(config, info["train_images"]).used
    recipe = default_recipe(config, height * width, len(class_names), used)
    keys = population.keys(config.all_seeds)
    states = checkpoint.load(folder, jax.eval_shape(partial(population.init, recipe), keys))
    return Run(path, config, (height, width), class_names, tuple(info["sha256"]), recipe, states)


def _metrics(folder: Path) -> bytes:
    try:
        return rundir.read_bytes(folder / "metrics.jsonl")
    except OSError:
        return b""


def is_finished(run: Path, folder: Path) -> bool:
    """Whether the summary of `run` is about the checkpoint in `folder`."""
    try:
        return rundir.read_summary(run).get("steps") == int(folder.name)
    except InputError:
        return False


def parse_config(kept: dict[str, Any], folder: Path) -> tuple[Config, dict[str, Any]]:
    """The config in `folder`/config.json, and what it says about the data.

    Raises:
        InputError: it is not as `fit` writes it.
    """
    try:
        about = {name: kept[name] for name in ("recipe", "data", "environment")}
        config = from_json({name: value for name, value in kept.items() if name not in about})
        info = kept["data"]
        sizes = [*info["image_shape"], info["test_images"], info["train_images"]]
        most = (MOST, MOST, MOST, 2**32 - 1)  # as many training images as an IDX file can count
        words = [kept["recipe"], *kept["environment"].values(), *info["class_names"]]
        words += info["sha256"]
        pairs = zip(sizes, most, strict=True)
        if not all(type(size) is int and 0 < size <= limit for size, limit in pairs):
            raise InputError(f"sizes of {sizes}")
        if not all(type(word) is str for word in words):
            raise InputError(f"data of {info}")
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        shown = error if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"{folder / 'config.json'} cannot be used ({shown}); {rundir.REMEDY}"
        ) from None
    return config, info


def load_data(run: Run, data_dir: Path | None = None) -> Dataset:
    """The data that `run` was trained on, from `data_dir` if they have moved.

    Raises:
        InputError: the data cannot be had, or are other data.
    """
    dataset = data.load(run.config.dataset, data_dir or run.config.data_dir)
    if dataset.sha256 != run.data_sha256:
        raise InputError(
            f"{dataset.name} is not what {run.path} was trained on: its images or labels differ; "
            "name the folder of its data with --data-dir"
        )
    return dataset


def measure(run: Run, examples: Examples) -> dict[str, Any]:
    """What goes into the summary about the test set; std is over seeds (n - 1), None for one."""
    with memory_errors(run.config):
        evaluation = devices.to_host(population.evaluate(run.recipe, run.states, examples))
        answers = None
        if len(evaluation.loss) > 1:
            logits = population.predict(run.recipe, run.states, examples.images)
            answers = ensemble(devices.to_host(logits))
    errors, counts = evaluation.errors, evaluation.confusion.sum(axis=0)
    percent = 100 * errors / len(examples.labels)
    by_class = 100 * np.diag(counts) / np.maximum(counts.sum(axis=1), 1)
    result = {
        "test_errors": errors.tolist(),
        "test_error_percent_mean": float(percent.mean()),
        "test_error_percent_std": float(percent.std(ddof=1)) if len(percent) > 1 else None,
        "test_loss": evaluation.loss.tolist(),
        "class_accuracy_percent": dict(zip(run.class_names, by_class.tolist(), strict=True)),
        "confusion": counts.tolist(),  # over all seeds
    }
    if answers is not None:
        result["test_errors_of_ensemble"] = int((answers != examples.labels).sum())
    return result


def ensemble(logits: Float[AnyArray, "networks n classes"]) -> Int[np.ndarray, "n"]:
    """The class to which networks give the highest probability on average, for each image."""
    return np.asarray(jax.nn.softmax(logits).mean(axis=0).argmax(axis=-1))


def in_words(summary: dict[str, Any]) -> str:
    """The test result of a summary, in a line."""
    errors, std = summary["test_errors"], summary["test_error_percent_std"]
    accuracy = f"{100 - summary['test_error_percent_mean']:.2f}"
    if std is not None:
        accuracy += f" +/- {std:.2f}"
    return (
        f"{summary['dataset']} test accuracy {accuracy} % (n = {len(errors)}): "
        f"{', '.join(map(str, errors))} of {summary['test_images']:,} images misread, "
        f"loss {np.mean(np.array(summary['test_loss'], float)):.4f}"
    )


def first_seed(run: Run) -> TrainState:
    """The network of the first seed, which stands for all in pictures."""
    return jax.tree.map(lambda leaf: leaf[0], run.states)


def dense_layers(run: Run) -> tuple[Layer, ...]:
    """The layers of the network of the first seed, an MLP's.

    Raises:
        InputError: it diverged.
    """
    state = first_seed(run)
    found = layers(state.weights, state.model_state)
    if not all(bool(jnp.isfinite(array).all()) for layer in found for array in layer):
        raise InputError(
            f"the network of {run.path} diverged: some weights are no finite numbers; train it "
            f"with a --learning-rate below {run.config.learning_rate}"
        )
    return found


def probabilities(run: Run, images: Images) -> Float[np.ndarray, "n classes"]:
    """What the network of the first seed makes of `images`."""
    with memory_errors(run.config):
        logits = np.asarray(population.predict(run.recipe, run.states, images))[0]
    with np.errstate(invalid="ignore"):  # a network that diverged has no answers
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


def draw(run: Run, dataset: Dataset, summary: dict[str, Any], path: Path) -> list[str]:
    """Saves the figures of `run` in the run folder `path`, and returns their names.

    The first seed stands for all but the curves, which are those of the metrics in `path`.
    """
    from mnist_jax import plots  # matplotlib takes half a second

    name, test = dataset.name, dataset.test
    answers = probabilities(run, test.images)
    counts = np.zeros((len(run.class_names),) * 2, int)
    np.add.at(counts, (test.labels, answers.argmax(axis=1)), 1)
    network = f"{name}, seed {run.config.seed}"
    figures: dict[str, Figure] = {
        "samples": plots.samples(
            *(np.asarray(dataset.train.images[:4]), dataset.train.labels[:4], run.class_names),
            f"{name}: the first images",
        ),
        "curves": plots.curves(rundir.read_metrics(path), summary, name),
        "confusion": plots.confusion(
            *(counts, run.class_names),
            f"{network}: how {len(answers):,} test images were read (colour: mistakes)",
        ),
        "mistakes": plots.mistakes(
            *(test.images, test.labels, answers, run.class_names),
            f"{network}: the surest mistakes",
        ),
    }
    if run.recipe.augment is not as_they_are:
        first, label = np.asarray(dataset.train.images[:1]), dataset.train.labels[:1]
        deformed = run.recipe.augment(prng.key(run.config.seed), first.repeat(25, axis=0))
        figures["deformations"] = plots.samples(
            *(np.asarray(deformed), label.repeat(25), run.class_names),
            f"{network}: the first image, as training might see it 25 times",
        )
    kernel = first_kernel(run.states, run.image_shape)
    if kernel is not None:
        shown = f"what the strongest of the {kernel.shape[1]} first-layer units look for"
        title = f"{network}: {shown}\nink on red excites the unit, ink on blue inhibits it"
        figures["weights"] = plots.weights(kernel, run.image_shape, title)
    for figure_name, figure in figures.items():
        rundir.save_figure(path, figure_name, figure)
    return list(figures)


def first_kernel(
    states: TrainState, image_shape: tuple[int, int]
) -> Float[np.ndarray, "pixels units"] | None:
    """The weights of the first seed's first layer, if it has one of the form of a dense layer."""
    pixels = image_shape[0] * image_shape[1]
    weights = states.weights

    def on_host(leaf: Array) -> np.ndarray:  # on the device it would be one more to compile
        # Of networks divided among processes, this one has some.
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        return np.asarray(leaf if whole else leaf.addressable_data(0))[0]

    if isinstance(weights, dict) and "BatchNorm_0" in weights:  # it may turn a unit's sign
        first = {name: weights[name] for name in ("Dense_0", "BatchNorm_0")}
        found = layers(*jax.tree.map(on_host, (first, states.model_state)))
        return np.asarray(found[0].kernel)
    leaves = jax.tree.leaves(weights)
    kernels = (leaf for leaf in leaves if leaf.ndim == 3 and leaf.shape[1] == pixels)
    return next(map(on_host, kernels), None)


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Says which sizes to lower where the memory of the device or the host runs out."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            hidden = " ".join(map(str, config.hidden))
            shard = f"--shard-images {config.shard_images}, " * (config.shard_images > 0)
            raise InputError(
                f"the networks do not fit into memory; lower --hidden {hidden}, {shard}"
                f"--seeds {config.seeds} or --batch-size {config.batch_size}"
            ) from None
        raise
