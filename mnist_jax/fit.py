"""The one host loop: load, train epoch by epoch, evaluate, save."""

import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from mnist_jax import data, population
from mnist_jax.config import (
    Config,
    InputError,
    Interrupted,
    Rescued,
    Saving,
    Shape,
    to_json,
)
from mnist_jax.data import Dataset, Examples, shards
from mnist_jax.data.shards import Feed
from mnist_jax.optim import learning_rate_schedule
from mnist_jax.parallel import devices, processes
from mnist_jax.progress import progress, say
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.environment import device_name, environment, versions
from mnist_jax.runs.interrupts import Received, listening
from mnist_jax.runs.keeper import Follower, Keeper
from mnist_jax.runs.report import Run, draw, in_words, is_finished, measure, memory_errors
from mnist_jax.runs.resume import find_checkpoint, mend
from mnist_jax.runs.rundir import Json
from mnist_jax.runs.watch import Watcher, require_tensorboard, watchers
from mnist_jax.train import MakeRecipe, TrainState, default_recipe, steps_per_epoch

SAVING = Saving()


def fit(
    config: Config,
    out: Path | None = None,
    make_recipe: MakeRecipe = default_recipe,
    started: float | None = None,
    dataset: Dataset | None = None,
    saving: Saving = SAVING,
    resume: bool = False,
    tensorboard: bool = False,
    mesh: Shape | None = None,
) -> Run:
    """Trains the networks of `config`, counts their test errors once, and keeps it all in `out`.

    Args:
        config: what to train on what.
        out: the run folder; by default a new one under runs/, named after the time and the run.
        make_recipe: gives the ingredients, where they are not the default ones.
        started: `time.perf_counter()` when the process started, for the record of its time.
        dataset: what `data.load` gives for `config`, where it is loaded already;
            the record counts that as startup.
        saving: when checkpoints are made.
        resume: go on with the run in `out` from its newest whole checkpoint, as if it had never
            stopped; start it where there is none, and leave it alone where it is finished.
        tensorboard: also write event files for TensorBoard, to `out`/tensorboard.
        mesh: among how many devices networks and batches are divided (see `devices.mesh_shape`).

    Raises:
        InputError: the data, the config or the folder cannot be used, and nothing is left behind.
        Interrupted: Ctrl-C or SIGTERM came; what is done is kept.
        Rescued: all is done, but the disk failed.
    """
    seconds: dict[str, float] = {}
    begun = time.perf_counter()
    started = begun if started is None else started
    seconds["startup"] = begun - started

    if tensorboard:
        require_tensorboard()
    if resume and not out:
        raise InputError("--resume needs --out RUN, the folder of the run to go on with")
    if out and processes.leads():
        rundir.require_free(out, resume)
    with _timed(seconds, "data"):
        dataset = dataset or data.load(config.dataset, config.data_dir)
        config = as_used(config, dataset)
        training, validation = data.hold_out(dataset.train, config.validation_images)
    train_images, (height, width) = len(training.labels), training.images.shape[1:]
    plan = shards.plan(config, train_images)
    recipe = make_recipe(config, height * width, len(dataset.class_names), plan.used)
    shape = devices.mesh_shape(config.seeds, config.batch_size, mesh)
    about = {
        **to_json(config),
        "recipe": name_of(make_recipe),
        "data": describe(dataset, training, validation),
        "environment": environment() | devices.in_words(shape),
    }
    own = ("data_dir", "environment", "device", "processor")
    alike = {**about, **about["environment"]}
    processes.require_alike({name: value for name, value in alike.items() if name not in own})
    out = Path(processes.of_leader(lambda: str(out or new_folder(config))))
    shapes = jax.eval_shape(partial(population.init, recipe), population.keys(config.all_seeds))
    run = Run(out, config, (height, width), dataset.class_names, dataset.sha256, recipe, shapes)

    with _folder(out, resume, about) as (folder, about):
        records = processes.of_leader(lambda: rundir.read_metrics(folder) if folder else [])
        parts = processes.of_leader(lambda: rundir.read_shards(folder) if folder else [])
        finished = processes.of_leader(lambda: bool(folder and is_finished(out, folder)))
        resuming = processes.of_leader(lambda: folder is not None)

        def kept() -> TrainState:
            load = partial(checkpoint.load, folder or out, shapes)
            return processes.arrays_of_leader(load, shapes)

        if finished:
            if folder:
                mend(out, folder)
            nothing = "; there is nothing for TensorBoard to watch" if tensorboard else ""
            print(f"{out} is finished already{nothing}", flush=True)
            return run._replace(states=kept())
        at_once = "" if plan.is_whole else f" ({plan.size:,} at once)"
        divided = "".join(f", {name} {value}" for name, value in devices.in_words(shape).items())
        print(
            f"{dataset.name}: {train_images:,} images to train on{at_once}, "
            f"{len(validation.labels):,} to validate, {len(dataset.test.labels):,} to test, "
            f"{height} x {width} pixels; on {device_name()}{divided}",
            flush=True,
        )
        with _timed(seconds, "compile"), memory_errors(config), devices.mesh(shape):
            keys = population.keys(config.all_seeds)
            feed, validation = Feed(config, training), devices.share(validation)
            side_by_side, _ = population.compile_ahead(
                *(recipe, keys, feed.like, devices.share(dataset.test), config.batch_size)
            )
            states = kept() if resuming else population.init(recipe, keys)
            run = run._replace(states=jax.block_until_ready(devices.divide(states)))
        with (
            listening(patient=True) as received,
            _keeper(out, about, saving, list(records), parts) as keeper,
        ):
            watching = watchers(run, records, tensorboard) if processes.leads() else []
            with devices.mesh(shape):
                run = _train(
                    *(run, keys, feed, validation, side_by_side),
                    *(keeper, watching, seconds, received),
                )
                summary = _test(run, dataset, keys, feed, keeper, seconds)
            if shape != (1, 1):
                run = run._replace(states=devices.to_host(run.states))
            if keeper.lost:
                raise Rescued(None, f"{keeper.lost}. What it came to: {in_words(summary)}")
            summary |= {"resumed_from_epoch": len(records), "seconds": seconds}

            def write(path: Path) -> None:
                try:
                    with _timed(seconds, "figures"):
                        draw(run, dataset, summary, path)
                finally:  # the result is worth more than its pictures
                    seconds["total"] = time.perf_counter() - started
                    rundir.write_summary(path, summary)

            keeper.keep(write)
            for watcher in watching:
                watcher.run_done(keeper.run, summary)
        if keeper.failure:
            raise Rescued(keeper.run, f"{keeper.failure}. The whole run is in {keeper.run} instead")
        return run._replace(path=keeper.run)


@contextmanager
def _folder(out: Path, resume: bool, about: Json) -> Iterator[tuple[Path | None, Json]]:
    """Makes `out` a run's folder, and finds the checkpoint to go on from, and its config.json.

    Of several processes that is for the first to do.
    """
    if not processes.leads():
        yield None, about
        return
    with rundir.claimed(out):
        rundir.require_free(out, resume)  # another process may have been here
        folder, about = (None, about) if rundir.is_free(out) else find_checkpoint(out, about)
        if not (folder and is_finished(out, folder)):
            (out / "summary.json").unlink(missing_ok=True)
        yield folder, about


def _keeper(
    out: Path, about: Json, saving: Saving, records: list[Json], parts: list[Json]
) -> Keeper:
    if processes.leads():
        return Keeper(out, about, saving, records, parts)
    return Follower(out, about, records, parts)


def describe(dataset: Dataset, training: Examples, validation: Examples) -> Json:
    """What config.json says of the data."""
    return {
        "train_images": len(training.labels),
        "validation_images": len(validation.labels),
        "test_images": len(dataset.test.labels),
        "image_shape": list(training.images.shape[1:]),
        "class_names": list(dataset.class_names),
        "sha256": list(dataset.sha256),
    }


def name_of(make_recipe: Callable[..., object]) -> str:
    """What tells a recipe from others in config.json: its function, and what a `partial` gave."""
    if isinstance(make_recipe, partial):

        def told(value: object) -> str:
            return name_of(value) if callable(value) else repr(value)

        given = [told(value) for value in make_recipe.args]
        given += [f"{name}={told(value)}" for name, value in make_recipe.keywords.items()]
        return f"{name_of(make_recipe.func)}({', '.join(given)})"
    return getattr(make_recipe, "__qualname__", type(make_recipe).__name__)


def _train(
    run: Run,
    keys: Key[Array, "seeds"],
    feed: Feed,
    validation: Examples,
    side_by_side: int,
    keeper: Keeper,
    watching: list[Watcher],
    seconds: dict[str, float],
    received: Received,
) -> Run:
    """`run` after its last epoch, or after the one in which the last of its networks stopped."""
    config, recipe, states, records = run.config, run.recipe, run.states, keeper.records
    steps = steps_per_epoch(feed.plan.used, config.batch_size)
    seen = steps * config.batch_size
    stopped = _stopped(records, config)
    before = [*records, *keeper.parts]
    seconds |= {"train": sum(record["seconds"] for record in before), "evaluate": 0.0}
    _, stopping = _agreed(keeper, received)
    with progress(config.epochs, config.seeds, len(records)) as show, memory_errors(config):
        for epoch in range(len(records) + 1, config.epochs + 1):
            if stopping or all(stopped):
                break
            for shard in range(len(keeper.parts), feed.plan.shards):
                start = time.perf_counter()
                states, metrics = population.train_epoch(
                    *(recipe, states, feed.take(epoch, shard), keys, config.batch_size),
                    side_by_side,
                )
                metrics = devices.to_host(metrics)
                taken = time.perf_counter() - start
                seconds["train"] += taken
                keeper.shard_done({"shard": shard, **shards.to_json(metrics), "seconds": taken})
                if len(keeper.parts) < feed.plan.shards:  # the last one ends the epoch, see below
                    due, stopping = _agreed(keeper, received)
                    if due:
                        keeper.begin_checkpoint(devices.to_host(states))
                    if stopping:
                        break
            if len(keeper.parts) < feed.plan.shards:
                break
            parts = list(map(shards.from_json, keeper.parts))
            metrics = shards.combined(parts, steps // len(parts))
            taken = sum(part["seconds"] for part in keeper.parts)
            record: Json = {
                "epoch": epoch,
                "step": epoch * steps,
                "train_loss": metrics.loss.tolist(),
                "train_error_percent": (100 * metrics.errors / seen).tolist(),
            }
            if epoch == config.epochs:  # as it is kept
                states = population.settle(recipe, states, feed.settling, keys)
            if len(validation.labels):
                with _timed(seconds, "evaluate"):
                    settled = population.settle(recipe, states, feed.settling, keys)
                    evaluation = devices.to_host(population.evaluate(recipe, settled, validation))
                percent = 100 * evaluation.errors / len(validation.labels)
                record |= {
                    "validation_loss": evaluation.loss.tolist(),
                    "validation_error_percent": percent.tolist(),
                }
            for i in np.flatnonzero((metrics.finite < steps) & (stopped == 0)):
                stopped[i] = (epoch - 1) * steps + metrics.finite[i] + 1
                where = _divergence(config, steps, int(i), int(stopped[i]))
                say(
                    f"seed {where['seed']} stopped in epoch {epoch}, step {where['step']}, at "
                    f"learning rate {where['learning_rate']:.3g}: its loss is no finite number"
                )
            if any(stopped):
                record["stopped_at_step"] = stopped.tolist()
            record |= {"seconds": taken, "images_per_second": seen * config.seeds / taken}
            keeper.epoch_done(record)
            due, stopping = _agreed(keeper, received)
            if due:
                keeper.begin_checkpoint(devices.to_host(states))
            show(record)
            for watcher in watching:
                watcher.epoch_done(record, states)
    with _timed(seconds, "save"):
        keeper.training_done(devices.to_host(states))
    if stopping:
        done = f"stopped after epoch {len(records)} of {config.epochs}"
        if keeper.parts:
            done += f" and {len(keeper.parts)} of {feed.plan.shards} shards of the next"
        if keeper.lost:
            raise Interrupted(stopping, None, f"{done}. {keeper.lost}")
        raise Interrupted(
            stopping, keeper.run, f"{keeper.failure}; {done}" if keeper.failure else done
        )
    return run._replace(states=states)


def _agreed(keeper: Keeper, received: Received) -> tuple[bool, int]:
    """Whether a checkpoint is made now, and the signal that any process received, or 0."""
    due, signals = zip(*processes.of_all(keeper.is_due(), received.number or 0), strict=True)
    return any(due), max(signals)


def _test(
    run: Run,
    dataset: Dataset,
    keys: Key[Array, "seeds"],
    feed: Feed,
    keeper: Keeper,
    seconds: dict[str, float],
) -> Json:
    """The summary of `run`, but for the time it took."""
    config, parts = run.config, keeper.config["data"]
    with _timed(seconds, "evaluate"):
        result = measure(run, dataset.test)
        if run.states.average is not None:
            last = run.states._replace(average=None)
            last = population.settle(run.recipe, last, feed.settling, keys)
            evaluation = devices.to_host(population.evaluate(run.recipe, last, dataset.test))
            result["test_errors_of_last_weights"] = evaluation.errors.tolist()
    steps = steps_per_epoch(feed.plan.used, config.batch_size)
    stopped, last_step = _stopped(keeper.records, config), keeper.records[-1]["step"]
    finite = np.isfinite(np.array(result["test_loss"], float))
    stopped = np.where((stopped == 0) & ~finite, last_step, stopped)
    diverged = [
        _divergence(config, steps, i, step) for i, step in enumerate(stopped.tolist()) if step
    ]
    if diverged:
        say(
            f"{len(diverged)} of {config.seeds} networks diverged: their loss is no finite number; "
            f"lower --learning-rate {config.learning_rate}"
        )
    return {
        "dataset": dataset.name,
        **{f"{part}_images": parts[f"{part}_images"] for part in ("train", "validation", "test")},
        **{"seed": config.seed, "seeds": config.seeds, "epochs": config.epochs},
        **{"steps": last_step, **result, "diverged": diverged},
        **{"device": device_name(), "versions": versions()},
    }


def _stopped(records: list[Json], config: Config) -> Int[np.ndarray, "seeds"]:
    """The step, from 1, with the first loss of each network that is no finite number, or 0."""
    last = records[-1] if records else {}
    return np.array(last.get("stopped_at_step", [0] * config.seeds))


def _divergence(config: Config, steps_per_epoch: int, i: int, step: int) -> Json:
    """Where network `i` stopped, and the learning rate there by the config's schedule."""
    schedule = learning_rate_schedule(config, config.epochs * steps_per_epoch)
    return {
        "seed": config.seed + i,
        "epoch": (step - 1) // steps_per_epoch + 1,
        "step": step,
        "learning_rate": float(np.asarray(schedule(step - 1))),
    }


def as_used(config: Config, dataset: Dataset) -> Config:
    """`config` with the dataset that was had, the folder it came from, and shards it can have."""
    config = dataclasses.replace(config, shard_images=shards.shard_images(config, dataset.train))
    folder = config.data_dir or data.default_folder(dataset.name)
    if dataset.name == "digits" or not folder:
        return dataclasses.replace(config, dataset=dataset.name, data_dir=None)
    return dataclasses.replace(
        config, dataset=dataset.name, data_dir=Path(folder).expanduser().absolute()
    )


def new_folder(config: Config, kind: str = "") -> Path:
    """A name under runs/ that nothing has, of the time and of what is trained."""
    layers = "x".join(map(str, config.hidden)) or "linear"
    when = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    name = f"{when}-{kind}{config.dataset.replace('/', '-')}-{layers}"
    paths = (Path("runs") / (f"{name}-{n}" if n > 1 else name) for n in itertools.count(1))
    return next(path for path in paths if not path.exists())


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
