"""The host loop: load, compile, train epoch by epoch, evaluate, save, then test and draw."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mnist_jax import data, population
from mnist_jax.config import Config, SaveOptions, validate
from mnist_jax.data import Dataset, Examples
from mnist_jax.data.loader import DataLoader, default_shard_images, plan_shards
from mnist_jax.errors import InputError, Interrupted, SaveError, in_notebook
from mnist_jax.parallel import multihost
from mnist_jax.parallel.mesh import (
    MeshShape,
    gather_to_host,
    mesh_shape,
    replicate,
    shard,
    use_mesh,
)
from mnist_jax.population import Members, Setup
from mnist_jax.runs import rundir
from mnist_jax.runs.callbacks import Callback, LiveFigure, ProgressBar, StopTraining
from mnist_jax.runs.checkpointer import Checkpointer, open_run
from mnist_jax.runs.figures import save_figures
from mnist_jax.runs.metadata import device_name, require_same_in_all_processes, run_metadata
from mnist_jax.runs.records import add_seconds, all_diverged, epoch_record, summarize
from mnist_jax.runs.results import Run, measure, memory_errors, summary_line, untrained
from mnist_jax.runs.rundir import Json
from mnist_jax.runs.signals import Shutdown, graceful_shutdown, wait
from mnist_jax.train import MakeRecipe, Metrics, TrainState, default_recipe

DEFAULT_SAVE_OPTIONS = SaveOptions()


def fit(
    config: Config,
    out: Path | None = None,
    *,
    make_recipe: MakeRecipe = default_recipe,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    save_options: SaveOptions = DEFAULT_SAVE_OPTIONS,
    resume: bool = False,
    mesh: MeshShape | None = None,
    started: float | None = None,
) -> Run:
    """Trains the networks of `config`, tests them once, and saves everything in a run folder.

    Args:
        config: what to train, on which data.
        out: the run folder; by default a new one under runs/.
        make_recipe: makes the ingredients of training.
        dataset: what `data.load` returns for `config`, if it is loaded already.
        callbacks: called after each epoch and at the end, see `runs/callbacks.py`.
        save_options: when checkpoints are saved.
        resume: continue the run in `out` from its newest intact checkpoint. The result is the same
            as without the interruption. Without a checkpoint the run starts; a finished run does
            not change.
        mesh: how many devices to shard the networks and each batch over; by default all.
        started: `time.perf_counter()` at the start of the process, for the record.

    Raises:
        InputError: the data, the config or the folder cannot be used. Nothing is left behind.
        Interrupted: Ctrl-C or SIGTERM came. The epochs that ended are saved.
        SaveError: the run ended, but could not be saved.
    """
    now = time.perf_counter()
    started = now if started is None else started
    config, seconds = validate(config), {"startup": now - started}
    if resume and not out:
        raise InputError("--resume needs --out RUN, the folder of the run to resume")
    if out and multihost.is_primary():
        rundir.require_free(out, resume)
    with add_seconds(seconds, "data"):
        dataset = dataset or data.load(config.dataset, config.data_dir)
        config = resolve(config, dataset)
        training, validation = data.train_val_split(dataset.train, config.validation_images)
    shape = mesh_shape(config.seeds, config.batch_size, mesh)
    metadata = run_metadata(config, make_recipe, dataset, shape)
    require_same_in_all_processes(metadata)
    out = Path(multihost.broadcast_from_primary(lambda: str(out or rundir.new_path(config))))
    run = untrained(out, config, metadata["data"], make_recipe)

    with memory_errors(config), open_run(out, metadata, save_options, resume) as checkpointer:
        if checkpointer.is_finished:
            checkpointer.refresh()
            print(f"{out} is already finished", flush=True)
            return run._replace(states=checkpointer.restore(run.states))
        _print_start(run, metadata)
        with add_seconds(seconds, "compile"), use_mesh(shape):
            loader = DataLoader(config, training, validation)
            test = replicate(dataset.test)
            population.compile_programs(run.setup, run.members, loader.shard_spec, test)
            if checkpointer.resumes:
                states = checkpointer.restore(run.states)
            else:
                states = population.init(run.setup, run.members)
            states = jax.block_until_ready(shard(states))  # raises here if memory runs out
            run = run._replace(states=states)
        callbacks = [*_default_callbacks(), *callbacks] if multihost.is_primary() else []
        resumed_from_epoch = len(checkpointer.history)

        with graceful_shutdown() as shutdown, ExitStack() as stack:
            checkpointer.refresh()  # not earlier: if memory runs out, no folder is left behind
            for callback in callbacks:
                callback.on_run_begin(run, checkpointer.history)
                stack.callback(callback.close)
            with use_mesh(shape):
                run = _train(run, loader, checkpointer, callbacks, seconds, shutdown)
                with add_seconds(seconds, "evaluate"):
                    result = measure(run, test) | _result_of_last_params(run, loader, test)
                run = run._replace(states=gather_to_host(run.states))
            summary = summarize(run, metadata, checkpointer.history, result)
            summary |= {"resumed_from_epoch": resumed_from_epoch, "seconds": seconds}
            try:
                with add_seconds(seconds, "figures"):
                    checkpointer.write(lambda: save_figures(run, dataset, summary))
            finally:  # save the result even if the figures fail
                seconds["total"] = time.perf_counter() - started
                if not checkpointer.failure:  # a summary marks the folder as complete
                    checkpointer.write(lambda: rundir.write_summary(out, summary))
            for callback in callbacks:
                callback.on_run_end(summary)
        if checkpointer.failure:
            raise SaveError(f"{checkpointer.failure}. The result: {summary_line(summary)}")
        return run


def _train(
    run: Run,
    loader: DataLoader,
    checkpointer: Checkpointer,
    callbacks: Sequence[Callback],
    seconds: dict[str, float],
    shutdown: Shutdown,
) -> Run:
    """`run` after its last epoch, or after the epoch in which it was stopped.

    Raises:
        Interrupted: a signal came.
    """
    config, setup, members, states = run.config, run.setup, run.members, run.states
    history = checkpointer.history  # `checkpointer.log` adds to it
    signal_number, stop = 0, all_diverged(history)
    recalibrate = partial(
        population.recalibrate, setup, members=members, images=loader.recalibration_images
    )
    for epoch in range(len(history) + 1, config.epochs + 1):
        if signal_number or stop:
            break
        start = time.perf_counter()
        states, metrics = run_epoch(setup, states, members, loader, epoch)
        record = epoch_record(run, epoch, metrics, time.perf_counter() - start, history)
        if config.validation_images:
            with add_seconds(seconds, "evaluate"):
                record |= _validate(run._replace(states=recalibrate(states)), loader)
        checkpointer.log(record)
        if epoch < config.epochs and checkpointer.is_due():
            checkpointer.save(recalibrate(states))
        stop = _call(callbacks, record, states) or all_diverged(history)
        signal_number, stop = multihost.max_over_processes(shutdown.signal_number, stop)

    seconds["train"] = sum(record["seconds"] for record in history)
    with add_seconds(seconds, "save"):
        states = recalibrate(states)
        checkpointer.save(states)
    if signal_number:
        message = f"stopped after epoch {len(history)} of {config.epochs}"
        if checkpointer.failure:
            message += f", but that is not saved: {checkpointer.failure}"
        raise Interrupted(signal_number, run.path, message)
    return run._replace(states=states)


def run_epoch(
    setup: Setup, states: TrainState, members: Members, loader: DataLoader, epoch: int
) -> tuple[TrainState, Metrics]:
    """The states after an epoch, and its metrics on the host."""
    by_shard = []
    for examples in loader.epoch(epoch):
        states, metrics = population.train_epoch(setup, states, members, examples)
        wait(metrics)  # meanwhile Python handles signals
        by_shard.append(gather_to_host(metrics))
        del examples  # the device has memory for this shard and the next one
    return states, combine_metrics(by_shard, loader.shards.size // setup.config.batch_size)


def combine_metrics(by_shard: Sequence[Metrics], steps: int) -> Metrics:
    """The metrics of an epoch from those of its shards, of `steps` each; all on the host."""
    loss, errors, finite_steps = (np.stack(arrays) for arrays in zip(*by_shard, strict=True))
    # Once a network has diverged, the steps of later shards do not count.
    finite_so_far = np.cumprod(finite_steps == steps, axis=0)
    finite_steps[1:] *= finite_so_far[:-1]
    return Metrics(loss.mean(axis=0), errors.sum(axis=0), finite_steps.sum(axis=0))


def _validate(run: Run, loader: DataLoader) -> Json:
    """The validation metrics, for a line of metrics.jsonl."""
    evaluation = population.evaluate(run.setup, run.states, run.members, loader.validation)
    evaluation = gather_to_host(evaluation)
    return {
        "validation_loss": evaluation.loss.tolist(),
        "validation_error_percent": (
            100 * evaluation.errors / len(loader.validation.labels)
        ).tolist(),
    }


def _result_of_last_params(run: Run, loader: DataLoader, test: Examples) -> Json:
    """The test errors of the last parameters, if the averaged ones are evaluated."""
    if run.states.ema_params is None:
        return {}
    states = population.recalibrate(
        run.setup, run.states._replace(ema_params=None), run.members, loader.recalibration_images
    )
    evaluation = population.evaluate(run.setup, states, run.members, test)
    return {"test_errors_of_last_weights": gather_to_host(evaluation).errors.tolist()}


def _call(callbacks: Sequence[Callback], record: Json, states: TrainState) -> bool:
    """Calls the callbacks after an epoch; returns whether one of them stops training."""
    stop = False
    for callback in callbacks:
        try:
            callback.on_epoch_end(record, states)
        except StopTraining:
            stop = True
    return stop


def _default_callbacks() -> list[Callback]:
    return [LiveFigure(), ProgressBar()] if in_notebook() else [ProgressBar()]


def resolve(config: Config, dataset: Dataset) -> Config:
    """`config` with the name and folder of the data that was loaded, and the size of its shards."""
    is_embedded = dataset.name == "digits"
    folder = None if is_embedded else config.data_dir or data.default_folder(dataset.name)
    data_dir = Path(folder).expanduser().absolute() if folder else None
    shard_images = default_shard_images(config, dataset.train)
    return dataclasses.replace(
        config, dataset=dataset.name, data_dir=data_dir, shard_images=shard_images
    )


def _print_start(run: Run, metadata: Json) -> None:
    sizes, environment = metadata["data"], metadata["environment"]
    shards = plan_shards(run.config, sizes["train_images"])
    shard_size = "" if shards.is_single else f" ({shards.size:,} at once)"
    mesh = f", mesh {environment['mesh']}" if "mesh" in environment else ""
    height, width = run.image_shape
    print(
        f"{run.config.dataset}: {sizes['train_images']:,} images to train on{shard_size}, "
        f"{sizes['validation_images']:,} to validate, {sizes['test_images']:,} to test, "
        f"{height} x {width} pixels; on {device_name()}{mesh}",
        flush=True,
    )
