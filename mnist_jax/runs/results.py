"""A trained run: read back from its folder, tested, and used to classify images."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from mnist_jax import data, population
from mnist_jax.config import MAX_COUNT, Config, from_json
from mnist_jax.data import Dataset, DataSpec, Examples
from mnist_jax.data.loader import plan_shards
from mnist_jax.errors import InputError, say
from mnist_jax.model import Layer, dense_layers
from mnist_jax.parallel.mesh import gather_to_host
from mnist_jax.population import Members, Setup
from mnist_jax.preprocess import AnyArray, Images
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.rundir import Json
from mnist_jax.train import MakeRecipe, Recipe, TrainState, default_recipe


class Run(NamedTuple):
    """The networks of a run, just trained or read back from its folder."""

    path: Path
    config: Config
    spec: DataSpec
    class_names: tuple[str, ...]
    data_sha256: tuple[str, ...]  # as in Dataset
    states: TrainState  # every leaf with a leading axis of seeds
    make_recipe: MakeRecipe = default_recipe

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image."""
        return self.spec.image_shape

    @property
    def setup(self) -> Setup:
        """What the functions of `population` are compiled for."""
        return Setup(self.config, self.spec, self.make_recipe)

    @property
    def members(self) -> Members:
        """The keys and hyperparameters of the networks."""
        return population.members_of(self.config)

    @property
    def recipe(self) -> Recipe:
        """The ingredients, with the hyperparameters of the config."""
        return self.make_recipe(self.config, self.config.hparams, self.spec)


def load_run(path: Path) -> Run:
    """The run in folder `path`, read with the default recipe of its config.

    If the run did not finish, its newest checkpoint is read. A line on standard error says so. It
    also says if the run was trained with another recipe, because the network may then differ.

    Raises:
        InputError: there is no run, it has no checkpoint yet, or it is damaged.
    """
    folder = next(iter(checkpoint.all_of(path)), None)
    if not folder:
        raise InputError(
            f"{path} is not a run folder, or has no checkpoint yet; name one that train made"
        )
    if not checkpoint.is_intact(folder):
        raise InputError(f"{folder} is damaged; {rundir.REMEDY}")
    metadata = rundir.read_config(folder)
    config, data_info = parse_config(metadata, folder)
    if metadata["recipe"] != default_recipe.__name__:
        say(
            f"{path} was trained with the recipe {metadata['recipe']}, and is read with the "
            "default one; that is right only if network and preprocessing are the same"
        )
    if not is_finished(path, folder):
        epoch = len(rundir.read_metrics(folder))
        say(f"{path} is not finished: this is its state after epoch {epoch}")
    run = untrained(path, config, data_info, default_recipe)
    return run._replace(states=checkpoint.load(folder, run.states))


def untrained(path: Path, config: Config, data_info: Json, make_recipe: MakeRecipe) -> Run:
    """A run whose states are shapes; `data_info` is the description of its data in config.json.

    Raises:
        InputError: the config does not fit the data.
    """
    class_names, sha256 = tuple(data_info["class_names"]), tuple(data_info["sha256"])
    images_used = plan_shards(config, data_info["train_images"]).images_used
    spec = DataSpec(tuple(data_info["image_shape"]), len(class_names), images_used)
    setup, members = Setup(config, spec, make_recipe), population.members_of(config)
    shapes = jax.eval_shape(partial(population.init, setup), members)
    return Run(path, config, spec, class_names, sha256, shapes, make_recipe)


def is_finished(path: Path, folder: Path) -> bool:
    """Whether the summary of the run in `path` describes its checkpoint in `folder`."""
    try:
        return rundir.read_summary(path).get("steps") == int(folder.name)
    except InputError:
        return False


def parse_config(metadata: Json, folder: Path) -> tuple[Config, Json]:
    """The config and the data description in `metadata`, the content of `folder`/config.json.

    Raises:
        InputError: `metadata` is not what a run writes.
    """
    others = ("recipe", "data", "environment")
    try:
        recipe, data_info, environment = (metadata[name] for name in others)
        config = from_json({name: metadata[name] for name in metadata if name not in others})
        height, width = data_info["image_shape"]
        sizes = [height, width, data_info["train_images"], data_info["test_images"]]
        texts = [recipe, *data_info["class_names"], *data_info["sha256"], *environment.values()]
        are_sizes = all(type(size) is int and 0 < size <= MAX_COUNT**2 for size in sizes)
        are_texts = all(isinstance(text, str) for text in texts)
        if not are_sizes or not are_texts or height * width > MAX_COUNT:
            raise ValueError(f"its data are {data_info}")
    except (InputError, LookupError, TypeError, ValueError, AttributeError) as error:
        file, reason = folder / "config.json", rundir.one_line(error)
        raise InputError(f"{file} cannot be used ({reason}); {rundir.REMEDY}") from None
    return config, data_info


def load_data(run: Run, data_dir: Path | None = None) -> Dataset:
    """The data that `run` was trained on, from `data_dir` if they have moved.

    Raises:
        InputError: the data are not found, or are not those of the run.
    """
    dataset = data.load(run.config.dataset, data_dir or run.config.data_dir)
    if dataset.sha256 != run.data_sha256:
        raise InputError(
            f"{dataset.name} is not what {run.path} was trained on: its images or labels differ; "
            "name the folder of its data with --data-dir"
        )
    return dataset


def measure(run: Run, examples: Examples) -> Json:
    """The test results for a summary. The standard deviation (n - 1) is None for one seed."""
    setup, states, members = run.setup, run.states, run.members
    with memory_errors(run.config):
        evaluation = gather_to_host(population.evaluate(setup, states, members, examples))
        ensemble_errors = {}
        if run.config.seeds > 1:
            logits = population.predict(setup, states, members, examples.images)
            wrong = ensemble(gather_to_host(logits)) != examples.labels
            ensemble_errors["test_errors_of_ensemble"] = int(wrong.sum())
    confusion = evaluation.confusion.sum(axis=0)
    percent = 100 * evaluation.errors / len(examples.labels)
    by_class = 100 * np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)
    return {
        "test_errors": evaluation.errors.tolist(),
        "test_error_percent_mean": float(percent.mean()),
        "test_error_percent_std": float(percent.std(ddof=1)) if len(percent) > 1 else None,
        "test_loss": evaluation.loss.tolist(),
        "class_accuracy_percent": dict(zip(run.class_names, by_class.tolist(), strict=True)),
        "confusion": confusion.tolist(),  # summed over seeds
        **ensemble_errors,
    }


def ensemble(logits: Float[AnyArray, "networks n classes"]) -> Int[np.ndarray, "n"]:
    """The class with the highest mean probability over the networks, for each image."""
    return np.asarray(jax.nn.softmax(logits).mean(axis=0).argmax(axis=-1))


def summary_line(summary: Json) -> str:
    """The test result of a summary in one line."""
    errors, std = summary["test_errors"], summary["test_error_percent_std"]
    accuracy = f"{100 - summary['test_error_percent_mean']:.2f}"
    if std is not None:
        accuracy += f" +/- {std:.2f}"
    return (
        f"{summary['dataset']} test accuracy {accuracy} % (n = {len(errors)}): "
        f"{', '.join(map(str, errors))} of {summary['test_images']:,} images misread, "
        f"loss {np.mean(np.array(summary['test_loss'], float)):.4f}"
    )


def first_network(run: Run) -> TrainState:
    """The state of the network of the first seed, which figures and exports show."""
    return jax.tree.map(lambda leaf: leaf[0], run.states)


def first_layers(run: Run) -> tuple[Layer, ...]:
    """The dense layers of the network of the first seed, which is an MLP.

    Raises:
        InputError: the network diverged.
    """
    state = first_network(run)
    layers = dense_layers(state.eval_params, state.model_state)
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(layers)):
        raise InputError(
            f"the network of {run.path} diverged: some weights are not finite; train it with a "
            f"--learning-rate below {run.config.learning_rate}"
        )
    return layers


def probabilities(run: Run, images: Images) -> Float[np.ndarray, "n classes"]:
    """The class probabilities of each image, from the network of the first seed."""
    with memory_errors(run.config):
        logits = population.predict(run.setup, run.states, run.members, images)
        logits = np.asarray(logits)[0]
    with np.errstate(invalid="ignore"):  # a network that diverged has nan logits
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))  # JAX would compile for 0.2 s
        return odds / odds.sum(axis=1, keepdims=True)


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Turns an out-of-memory error into an InputError that says which sizes to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        widths = " ".join(map(str, config.hidden))
        raise InputError(
            f"the networks do not fit into memory; lower --hidden {widths}, --seeds {config.seeds} "
            f"or --batch-size {config.batch_size}, or use fewer --shard-images"
        ) from None
