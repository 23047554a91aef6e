"""A sweep: many configurations, compared on held-out training images. No test image is used.

SWEEP/sweep.json        config, configurations, data, versions and device
SWEEP/trials.jsonl      one line per result, as trials finish
SWEEP/table.csv, .json  one row per configuration, the best first
SWEEP/summary.json      the best configuration, and the command that trains it
SWEEP/figures/*.png
"""

import csv
import dataclasses
import io
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from mnist_jax import data
from mnist_jax.config import Config, to_flags, to_json, validate
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError, say
from mnist_jax.fit import resolve
from mnist_jax.parallel import multihost
from mnist_jax.parallel.mesh import MeshShape, mesh_shape
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import (
    data_metadata,
    device_name,
    environment,
    recipe_name,
    require_same_in_all_processes,
    require_same_run,
    versions,
)
from mnist_jax.runs.results import memory_errors
from mnist_jax.runs.rundir import Json
from mnist_jax.runs.signals import graceful_shutdown
from mnist_jax.sweep.space import Values, configurations, halving_rungs, to_text
from mnist_jax.sweep.trials import Trainer, Trial, make_trials
from mnist_jax.train import MakeRecipe, default_recipe


def sweep(
    config: Config,
    space: Mapping[str, Values],
    *,
    samples: int = 0,
    halving: bool = False,
    out: Path | None = None,
    resume: bool = False,
    make_recipe: MakeRecipe = default_recipe,
    dataset: Dataset | None = None,
    mesh: MeshShape | None = None,
    started: float | None = None,
) -> Path:
    """Trains `config` with the values in `space`, and finds which does best on held-out images.

    Networks that differ only in seeds and hyperparameters share a program, and as many train at
    once as fit in memory. Each is the same network that `fit` trains from its config.

    Args:
        config: what the configurations have in common. By default as many of the last training
            images are held out as there are test images, or a fifth if that is fewer.
        space: the values or the range of each field to try.
        samples: how many configurations to draw; 0 tries all combinations.
        halving: successive halving, see `space.halving_rungs`.
        out: the folder; by default a new one under runs/.
        resume: continue the sweep in `out`, or start it.
        make_recipe, dataset, mesh, started: as for `fit`.

    Returns: the folder.

    Raises:
        InputError: the data, a config or the folder cannot be used.
        Interrupted: Ctrl-C or SIGTERM came. The finished trials are saved.
    """
    started = time.perf_counter() if started is None else started
    if halving and "epochs" in space:
        raise InputError("--halving compares after the same epochs: give --epochs one value")
    if resume and not out:
        raise InputError("--resume needs --out SWEEP, the folder of the sweep to resume")
    if out and multihost.is_primary():
        rundir.require_free(out, resume, "sweep")
    tried = configurations(validate(config), space, samples)
    dataset = dataset or data.load(config.dataset, config.data_dir)
    config = resolve(config, dataset)
    default = min(len(dataset.test.labels), len(dataset.train.labels) // 5)
    validation_images = config.validation_images or default
    training, validation = data.train_val_split(dataset.train, validation_images)
    trials = make_trials(config, tried, dataset, len(training.labels), make_recipe)
    for trial in trials:  # raises if the mesh does not fit
        mesh_shape(trial.config.seeds, trial.config.batch_size, mesh, padded=True)
    metadata = {
        "config": to_json(config),
        "tried": tried,
        "halving": halving,
        "recipe": recipe_name(make_recipe),
        "data": data_metadata(dataset, validation_images),
        "environment": environment(mesh),
    }
    require_same_in_all_processes(metadata)
    path = out or rundir.new_path(config, "sweep-")
    out = Path(multihost.broadcast_from_primary(lambda: str(path)))
    with rundir.claim(out) if multihost.is_primary() else nullcontext():
        rows = multihost.broadcast_from_primary(lambda: _begin(out, metadata))
        if rows is None:
            print(f"{out} is already finished", flush=True)
            return out
        rows = [{**row, **tried[row["trial"]]} for row in rows]  # JSON turns tuples into lists
        with memory_errors(config), graceful_shutdown() as shutdown:
            trainer = Trainer(training, validation, mesh, shutdown, out)
            _print_start(config, trials, trainer)
            table = _train_rungs(trials, trainer, rows, halving)
        if multihost.is_primary():
            from mnist_jax.sweep import plots  # matplotlib takes half a second to import

            _save_table(out, table)
            plots.save_figures(out, table, space, dataset.name)
            summary = _summarize(config, metadata, table)
            summary["seconds"] = {**trainer.seconds, "total": time.perf_counter() - started}
            rundir.write_summary(out, summary)
    return out


def summary_line(summary: Json) -> str:
    """The best configuration of a sweep's summary, and the command that trains it."""
    best = summary["best"]
    error = f"{best['validation_error_percent_mean']:.2f}"
    if best["validation_error_percent_std"] is not None:
        error += f" +/- {best['validation_error_percent_std']:.2f}"
    return (
        f"best of {summary['configurations']:,}: {error} % of {summary['validation_images']:,} "
        f"{summary['dataset']} validation images misread (n = {summary['seeds']})\n"
        f"train it on all training images, and test it: {summary['command']}"
    )


def _begin(out: Path, metadata: Json) -> list[Json] | None:
    """The rows so far of the sweep in `out`, which is created if new; None if it is finished."""
    if rundir.is_free(out):
        rundir.write_json(out / "sweep.json", metadata)
        return []
    # Tuples become lists, as in the file.
    require_same_run(out, rundir.read_json(out / "sweep.json"), json.loads(json.dumps(metadata)))
    with suppress(InputError):
        rundir.read_summary(out)
        return None
    rows: list[Json] = []
    file = out / "trials.jsonl"
    for line in rundir.read_bytes(file).splitlines() if file.exists() else []:
        with suppress(ValueError):  # an incomplete line
            rows.append(json.loads(line))
    rundir.write_bytes(file, b"".join(map(rundir.json_line, rows)))
    return rows


def _train_rungs(
    trials: Sequence[Trial], trainer: Trainer, rows: Sequence[Json], halving: bool
) -> list[Json]:
    """The last row of each trial, the best first: later rungs first, then fewer errors.

    `rows` are the results from before a resume, which are not computed again.
    """
    longest = max(trial.config.epochs for trial in trials)
    rungs = halving_rungs(len(trials), longest) if halving else [(longest, 0)]
    table: list[Json] = []
    for epochs, survivors in rungs:
        results = {row["trial"]: row for row in rows if row["epochs"] == epochs or not halving}
        remaining = [trial for trial in trials if trial.number not in results]
        if halving:
            say(f"epoch {epochs} of {longest} is next; configurations left: {len(trials):,}")
        for batch in trainer.train(remaining, epochs):
            if multihost.is_primary():
                lines = b"".join(map(rundir.json_line, batch))
                rundir.append_bytes(trainer.out / "trials.jsonl", lines)
            results |= {row["trial"]: row for row in batch}
        trials = sorted(trials, key=lambda trial: _rank(results[trial.number]))
        table = [results[trial.number] for trial in trials[survivors:]] + table
        for trial in trials[survivors:]:
            trial.states = None
        trials = sorted(trials[:survivors], key=lambda trial: trial.number)
    return table


def _rank(row: Json) -> tuple[float, float, int]:
    """A sort key: fewer errors first, then lower loss; networks that diverged have no loss."""
    loss = row["validation_loss"]
    return row["validation_error_percent_mean"], math.inf if loss is None else loss, row["trial"]


def _print_start(config: Config, trials: Sequence[Trial], trainer: Trainer) -> None:
    seeds = f" of {config.seeds} seeds" if config.seeds > 1 else ""
    programs = len({trial.setup for trial in trials})
    print(
        f"{config.dataset}: {len(trials):,} configurations{seeds} in {programs} "
        f"program{'s' if programs > 1 else ''}; {len(trainer.training.labels):,} images to train "
        f"on, {len(trainer.validation.labels):,} to choose with; on {device_name()}",
        flush=True,
    )


def _summarize(config: Config, metadata: Json, table: Sequence[Json]) -> Json:
    """The content of summary.json, except the seconds."""
    best = dataclasses.replace(config, **metadata["tried"][table[0]["trial"]])
    return {
        "dataset": config.dataset,
        "configurations": len(table),
        "seeds": config.seeds,
        "train_images": metadata["data"]["train_images"],
        "validation_images": metadata["data"]["validation_images"],
        "best": table[0],
        "config": to_json(best),
        "command": shlex.join(["mnist-jax", "train", *to_flags(best)]),
        "device": device_name(),
        "versions": versions(),
    }


def _save_table(out: Path, table: Sequence[Json]) -> None:
    rundir.write_bytes(out / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    stream = io.StringIO()
    csv.writer(stream).writerows([table[0], *(map(to_text, row.values()) for row in table)])
    rundir.write_bytes(out / "table.csv", stream.getvalue().encode())
