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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from mnist_jax import data
from mnist_jax.config import Config, to_flags, to_json, validate
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError, Interrupted, is_live, progress_bar, say
from mnist_jax.fit import resolve
from mnist_jax.parallel import multihost
from mnist_jax.parallel.mesh import MeshShape
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
from mnist_jax.runs.signals import Shutdown, graceful_shutdown
from mnist_jax.sweep.space import Range, Values, configurations, halving_rungs, to_text
from mnist_jax.sweep.trials import Row, Trainer, Trial
from mnist_jax.train import MakeRecipe, default_recipe


def sweep(
    config: Config,
    space: Mapping[str, Values],
    *,
    samples: int = 0,
    halving: bool = False,
    out: Path | None = None,
    make_recipe: MakeRecipe = default_recipe,
    dataset: Dataset | None = None,
    resume: bool = False,
    mesh: MeshShape | None = None,
    started: float | None = None,
) -> Path:
    """Trains `config` with the values in `space`, and finds which does best on held-out images.

    Networks that differ only in seeds and hyperparameters are one program, and as many train at
    once as memory holds. Each is the network that `fit` trains from its config.

    Args:
        config: what the configurations have in common. By default as many of the last training
            images are held out as there are test images, or a fifth if that is fewer.
        space: the values or the range of each field to try.
        samples: how many configurations to draw; 0 tries all combinations.
        halving: successive halving, see `space.halving_rungs`.
        out: the folder; by default a new one under runs/.
        make_recipe: makes the ingredients of training.
        dataset: what `data.load` returns for `config`, if it is loaded already.
        resume: continue the sweep in `out`, or start it.
        mesh: how many devices to shard the networks and each batch over; by default all.
        started: `time.perf_counter()` at the start of the process, for the record.

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
    changes_by_trial = configurations(config, space, samples)
    dataset = dataset or data.load(config.dataset, config.data_dir)
    config = resolve(validate(config), dataset)
    default = min(len(dataset.test.labels), len(dataset.train.labels) // 5)
    validation_images = config.validation_images or default
    training, validation = data.train_val_split(dataset.train, validation_images)
    trials = [
        Trial(number, fields, resolve(dataclasses.replace(config, **fields), dataset))
        for number, fields in enumerate(changes_by_trial)
    ]
    trainer = Trainer(trials, make_recipe, len(dataset.class_names), training, validation, mesh)
    metadata = {
        "config": to_json(config),
        "tried": changes_by_trial,
        "halving": halving,
        "recipe": recipe_name(make_recipe),
        "data": data_metadata(dataset, validation_images),
        "environment": environment(mesh),
    }
    require_same_in_all_processes(metadata)
    path = out or rundir.new_path(config, "sweep-")
    out = Path(multihost.broadcast_from_primary(lambda: str(path)))
    with rundir.claim(out) if multihost.is_primary() else nullcontext():
        rows = multihost.broadcast_from_primary(lambda: _begin(out, metadata, resume))
        if rows is None:
            print(f"{out} is already finished", flush=True)
            return out
        with memory_errors(config), graceful_shutdown() as shutdown:
            _print_start(metadata, len(trainer.setups))
            table = _train_rungs(trials, trainer, rows, out, halving, shutdown)
        if multihost.is_primary():
            _write_table(out, table)
            _save_figures(out, table, space, dataset.name)
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


def _train_rungs(
    trials: Sequence[Trial],
    trainer: Trainer,
    rows: Sequence[Row],
    out: Path,
    halving: bool,
    shutdown: Shutdown,
) -> list[Row]:
    """The last row of each trial, the best first: those of later rungs, then by their errors.

    `rows` are the results of an earlier start, which are not computed again.
    """
    longest = max(trial.config.epochs for trial in trials)
    rungs = halving_rungs(len(trials), longest) if halving else [(longest, 0)]
    known = {(row["trial"], row["epochs"]): row for row in rows}
    configurations = len(trials)
    table: list[Row] = []
    epochs_before = 0
    with _progress(_work(trials, rungs)) as advance:

        def report(networks: int, words: str) -> None:
            advance(networks, words)
            (number,) = multihost.max_over_processes(shutdown.signal_number)
            if number:
                done = f"{len(known):,} results of {configurations:,} configurations"
                raise Interrupted(number, out, f"stopped with {done}")

        for epochs, survivors in rungs:
            until = {trial.number: min(epochs, trial.config.epochs) for trial in trials}
            remaining = []
            for trial in trials:
                if (trial.number, until[trial.number]) in known:
                    report(trial.config.seeds * (until[trial.number] - epochs_before), "as before")
                else:
                    remaining.append(trial)
            for batch, results in trainer.train(
                remaining, epochs_before, epochs, survivors > 0, report
            ):
                if multihost.is_primary():
                    lines = b"".join(map(rundir.json_line, results))
                    rundir.append_bytes(out / "trials.jsonl", lines)
                for trial, row in zip(batch, results, strict=True):
                    known[trial.number, until[trial.number]] = row
            ranked = sorted((known[number, until[number]] for number in until), key=_rank)
            better = {row["trial"] for row in ranked[:survivors]}
            table, epochs_before = [*ranked[survivors:], *table], epochs
            trainer.forget([trial for trial in trials if trial.number not in better])
            trials = [trial for trial in trials if trial.number in better]
    return table


def _work(trials: Sequence[Trial], rungs: Sequence[tuple[int, int]]) -> int:
    """The epochs of all networks."""
    work, epochs_before = 0, 0
    for epochs, survivors in rungs:
        for trial in trials:
            work += trial.config.seeds * (min(epochs, trial.config.epochs) - epochs_before)
        trials, epochs_before = trials[:survivors], epochs
    return work


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """Yields a function that adds to a count of network-epochs and shows it on standard error.

    That is a bar in a terminal or notebook, and elsewhere a line at every tenth of `total`.
    """
    done = 0
    layout = "{desc} {bar:8} {n}/{total} network-epochs, {elapsed} elapsed, {remaining} left"
    with progress_bar(total=total, bar_format=layout) as bar:

        def advance(count: int, words: str) -> None:
            nonlocal done
            before, done = done, done + count
            if is_live():
                bar.set_description_str(words, refresh=False)
                bar.update(count)
            elif 10 * before // total < 10 * done // total:
                say(f"{done:,} of {total:,} network-epochs, {words}")

        yield advance


def _rank(row: Row) -> tuple[float, float, int]:
    """Fewer errors first, then a lower loss, which a network that diverged does not have."""
    loss = row["validation_loss"]
    finite = math.inf if loss is None or math.isnan(loss) else loss
    return row["validation_error_percent_mean"], finite, row["trial"]


def _begin(out: Path, metadata: Json, resume: bool) -> list[Row] | None:
    """Makes `out` the folder of the sweep, and returns its rows so far; None if it is finished."""
    rundir.require_free(out, resume, "sweep")  # another process may have been here
    if rundir.is_free(out):
        rundir.write_json(out / "sweep.json", metadata)
        return []
    # Tuples become lists, as in the file.
    require_same_run(out, rundir.read_json(out / "sweep.json"), json.loads(json.dumps(metadata)))
    rows: list[Row] = []
    file = out / "trials.jsonl"
    for line in rundir.read_bytes(file).splitlines() if file.exists() else []:
        with suppress(ValueError):  # an incomplete line
            rows.append(json.loads(line))
    rundir.write_bytes(file, b"".join(map(rundir.json_line, rows)))
    with suppress(InputError):
        rundir.read_summary(out)
        return None
    return rows


def _print_start(metadata: Json, programs: int) -> None:
    config, sizes = metadata["config"], metadata["data"]
    seeds = f" of {config['seeds']} seeds" if config["seeds"] > 1 else ""
    print(
        f"{config['dataset']}: {len(metadata['tried']):,} configurations{seeds} in {programs} "
        f"program{'s' if programs > 1 else ''}; {sizes['train_images']:,} images to train on, "
        f"{sizes['validation_images']:,} to choose with; on {device_name()}",
        flush=True,
    )


def _summarize(config: Config, metadata: Json, table: Sequence[Row]) -> Json:
    """The content of summary.json, except the seconds."""
    best = dataclasses.replace(config, **metadata["tried"][table[0]["trial"]])
    return {
        "dataset": config.dataset,
        "configurations": len(metadata["tried"]),
        "seeds": config.seeds,
        "train_images": metadata["data"]["train_images"],
        "validation_images": metadata["data"]["validation_images"],
        "best": table[0],
        "config": to_json(best),
        "command": shlex.join(["mnist-jax", "train", *to_flags(best)]),
        "device": device_name(),
        "versions": versions(),
    }


def _write_table(out: Path, table: Sequence[Row]) -> None:
    rundir.write_bytes(out / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    stream = io.StringIO()
    writer = csv.DictWriter(stream, table[0])
    writer.writeheader()
    for row in table:
        writer.writerow({name: to_text(value) for name, value in row.items()})
    rundir.write_bytes(out / "table.csv", stream.getvalue().encode())


def _save_figures(
    out: Path, table: Sequence[Row], space: Mapping[str, Values], dataset: str
) -> None:
    """Saves what each field is worth by itself, and a heat map if two fields make a grid."""
    from mnist_jax.sweep import plots  # matplotlib takes half a second to import

    fields = [
        name for name, values in space.items() if isinstance(values, Range) or len(values) > 1
    ]
    title = f"{dataset}: validation error (%) of {len(table):,} configurations"
    rundir.save_figure(out, "marginals", plots.marginals(table, fields, title))
    is_grid = math.prod(len(space[name]) for name in fields) == len(table)
    if len(fields) == 2 and is_grid:
        rundir.save_figure(out, "heat_map", plots.heat_map(table, fields[0], fields[1], title))
