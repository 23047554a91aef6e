"""The one host loop: load, train epoch by epoch, evaluate, save."""

import dataclasses
import datetime
import importlib.metadata
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax import data, population, rundir
from mnist_jax.config import Config, InputError, to_json
from mnist_jax.data import Dataset
from mnist_jax.progress import progress
from mnist_jax.report import Run, draw, measure
from mnist_jax.train import Recipe, default_recipe, steps_per_epoch

MakeRecipe = Callable[[Config, int, int, int], Recipe]
"""(config, pixels, classes, training images) -> recipe, as `default_recipe` does it."""


def fit(
    config: Config,
    out: Path | None = None,
    make_recipe: MakeRecipe = default_recipe,
    started: float | None = None,
    dataset: Dataset | None = None,
) -> Run:
    """Trains the networks of `config`, counts their test errors once, and keeps it all in `out`.

    Args:
        config: what to train on what.
        out: the run folder; by default a new one under runs/, named after the time and the run.
        make_recipe: gives the ingredients, where they are not the default ones.
        started: `time.perf_counter()` when the process started, for the record of its time.
        dataset: what `data.load` gives for `config`, where it is loaded already;
            the record counts that as startup.

    Raises:
        InputError: the data, the config or the folder cannot be used, and nothing is left behind;
            or the disk is full, and what is left is whole.
    """
    seconds: dict[str, float] = {}
    begun = time.perf_counter()
    started = begun if started is None else started
    seconds["startup"] = begun - started

    if out:
        rundir.require_free(out)
    with _timed(seconds, "data"):
        dataset = dataset or data.load(config.dataset, config.data_dir)
        config = _as_used(config, dataset)
        training, validation = data.hold_out(dataset.train, config.validation_images)
    train_images, (height, width) = len(training.labels), training.images.shape[1:]
    recipe = make_recipe(config, height * width, len(dataset.class_names), train_images)
    info = {
        "train_images": train_images,
        "validation_images": len(validation.labels),
        "test_images": len(dataset.test.labels),
        "image_shape": [height, width],
        "class_names": list(dataset.class_names),
    }
    print(
        f"{dataset.name}: {train_images:,} images to train on, {len(validation.labels):,} to "
        f"validate, {len(dataset.test.labels):,} to test, {height} x {width} pixels; "
        f"on {device_name()}",
        flush=True,
    )

    with _timed(seconds, "compile"), _memory_errors():
        training, validation = jax.device_put((training, validation))
        keys = population.keys(config.all_seeds)
        side_by_side = population.compile_ahead(
            recipe, keys, training, dataset.test, config.batch_size
        )
        states = jax.block_until_ready(population.init(recipe, keys))

    out = out or _new_folder(config)
    rundir.create(out, {**to_json(config), "data": info})
    seen = steps_per_epoch(train_images, config.batch_size) * config.batch_size
    seconds |= {"train": 0.0, "evaluate": 0.0}
    with progress(config.epochs, config.seeds) as show, _memory_errors():
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            states, metrics = population.train_epoch(
                recipe, states, training, keys, config.batch_size, side_by_side
            )
            metrics, step = jax.device_get((metrics, states.step))
            taken = time.perf_counter() - start
            seconds["train"] += taken
            record: dict[str, Any] = {
                "epoch": epoch,
                "step": int(step[0]),
                "train_loss": metrics.loss.tolist(),
                "train_error_percent": (100 * metrics.errors / seen).tolist(),
            }
            if len(validation.labels):
                with _timed(seconds, "evaluate"):
                    evaluation = jax.device_get(population.evaluate(recipe, states, validation))
                percent = 100 * evaluation.errors / len(validation.labels)
                record |= {
                    "validation_loss": evaluation.loss.tolist(),
                    "validation_error_percent": percent.tolist(),
                }
            record |= {"seconds": taken, "images_per_second": seen * config.seeds / taken}
            rundir.append_metrics(out, record)
            show(record)

    run = Run(out, config, (height, width), dataset.class_names, recipe, states)
    with _timed(seconds, "save"):
        rundir.save_checkpoint(out, int(np.asarray(states.step)[0]), states)
    with _timed(seconds, "evaluate"), _memory_errors():
        result = measure(run, dataset.test)
    diverged = config.seeds - int(np.isfinite(result["test_loss"]).sum())
    if diverged:
        print(
            f"{diverged} of {config.seeds} networks diverged: their loss is no finite number; "
            f"lower --learning-rate {config.learning_rate}",
            file=sys.stderr,
        )
    about = {
        "dataset": dataset.name,
        **{name: info[name] for name in ("train_images", "validation_images", "test_images")},
        **{"seed": config.seed, "seeds": config.seeds, "epochs": config.epochs},
    }
    run_on = {"device": device_name(), "versions": versions(), "seconds": seconds}
    try:
        with _timed(seconds, "figures"):
            draw(run, dataset, result)
    finally:  # the result is worth more than its pictures
        seconds["total"] = time.perf_counter() - started
        rundir.write_summary(out, {**about, **result, **run_on})
    return run


def device_name() -> str:
    """The device that runs, in words."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    return device.device_kind


def _as_used(config: Config, dataset: Dataset) -> Config:
    """`config` with the dataset that was had, and the folder it came from."""
    folder = config.data_dir or data.default_folder(dataset.name)
    if dataset.name == "digits" or not folder:
        return dataclasses.replace(config, dataset=dataset.name, data_dir=None)
    return dataclasses.replace(
        config, dataset=dataset.name, data_dir=Path(folder).expanduser().absolute()
    )


def _new_folder(config: Config) -> Path:
    layers = "x".join(map(str, config.hidden)) or "linear"
    when = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    name = f"{when}-{config.dataset.replace('/', '-')}-{layers}"
    paths = (Path("runs") / (f"{name}-{n}" if n > 1 else name) for n in itertools.count(1))
    return next(path for path in paths if not path.exists())


def versions() -> dict[str, str]:
    """What decides the numbers, beside the code."""
    packages = ("mnist_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise InputError(
                "the networks do not fit into memory; lower --hidden, --seeds or --batch-size"
            ) from None
        raise


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
