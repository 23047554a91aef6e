"""Many configurations, compared on held-out training images; the test images are not looked at.

SWEEP/sweep.json       what decides it: config, what is tried, data, versions, device
SWEEP/trials.jsonl     a line for each configuration as it is trained
SWEEP/table.csv, .json a line a configuration, the best one first
SWEEP/summary.json     the best one, and the command that trains it
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
from mnist_jax.config import Config, InputError, Interrupted, Shape, to_flags, to_json
from mnist_jax.data import Dataset
from mnist_jax.fit import as_used, describe, name_of, new_folder
from mnist_jax.parallel import processes
from mnist_jax.progress import counting, say
from mnist_jax.runs import rundir
from mnist_jax.runs.environment import device_name, environment, versions
from mnist_jax.runs.interrupts import Received, listening
from mnist_jax.runs.report import memory_errors
from mnist_jax.runs.resume import changes
from mnist_jax.runs.rundir import Json
from mnist_jax.sweep.search import Axis, Range, configurations, in_a_word, rungs
from mnist_jax.sweep.trials import Row, Trainer, Trial
from mnist_jax.train import MakeRecipe, default_recipe


def sweep(
    config: Config,
    axes: Mapping[str, Axis],
    samples: int = 0,
    halving: bool = False,
    out: Path | None = None,
    make_recipe: MakeRecipe = default_recipe,
    started: float | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
    mesh: Shape | None = None,
) -> Path:
    """Trains `config` with the values of `axes`, and finds which does best on held-out images.

    Networks that differ in seeds and `VARIABLE` fields alone are one program, as many of them at
    once as memory holds. Each is the network that `fit` trains of its config.

    Args:
        config: what they have in common; without validation images of its own, as many of the last
            training images are held out as there are test images, or a fifth where that is fewer.
        axes: the values or the range of each field that is tried.
        samples: how many configurations to draw; 0 tries all combinations.
        halving: only the better half goes on after a part of the epochs, and so forth (see
            `search.rungs`).
        out: the folder; by default a new one under runs/.
        make_recipe: gives the ingredients, with arrays for the numbers that vary.
        started: `time.perf_counter()` when the process started.
        dataset: what `data.load` gives for `config`, where it is loaded already.
        resume: go on with the sweep in `out`, or start it there.
        mesh: among how many devices networks and batches are divided (see `devices.mesh_shape`).

    Returns: the folder.

    Raises:
        InputError: the data, a config or the folder cannot be used.
        Interrupted: Ctrl-C or SIGTERM came; what is trained is kept.
    """
    started = time.perf_counter() if started is None else started
    if halving and "epochs" in axes:
        raise InputError("--halving compares after the same epochs: give --epochs one value")
    if resume and not out:
        raise InputError("--resume needs --out SWEEP, the folder of the sweep to go on with")
    if out and processes.leads():
        _require_free(out, resume)
    tried = configurations(config, axes, samples)
    dataset = dataset or data.load(config.dataset, config.data_dir)
    config = as_used(config, dataset)
    default = min(len(dataset.test.labels), len(dataset.train.labels) // 5)
    training, validation = data.hold_out(dataset.train, config.validation_images or default)
    trials = [
        Trial(number, changes, as_used(dataclasses.replace(config, **changes), dataset))
        for number, changes in enumerate(tried)
    ]
    classes = len(dataset.class_names)
    trainer = Trainer(trials, make_recipe, classes, training, validation, mesh)
    info = describe(dataset, training, validation)
    about = {
        **{"config": to_json(config), "tried": tried, "halving": halving},
        **{"recipe": name_of(make_recipe), "data": info, "environment": environment()},
    }
    same = {name: about["environment"][name] for name in (*versions(), "code")}
    same |= {"tried": tried, "data": info, "mesh": mesh}
    processes.require_alike({**_deciding(about), **same})
    out = Path(processes.of_leader(lambda: str(out or new_folder(config, "sweep-"))))
    with rundir.claimed(out) if processes.leads() else nullcontext():
        rows = processes.of_leader(lambda: _begin(out, json.loads(json.dumps(about)), resume))
        if rows is None:
            print(f"{out} is finished already", flush=True)
            return out
        known = {(row["trial"], row["epochs"]): row for row in rows}
        longest = max(trial.config.epochs for trial in trials)
        ladder = rungs(len(trials), longest) if halving else [(longest, 0)]
        seeds = f" of {config.seeds} seeds" if config.seeds > 1 else ""
        programs = len(trainer.programs)
        with memory_errors(config), listening(patient=True) as received:
            print(
                f"{dataset.name}: {len(trials):,} configurations{seeds} in {programs} "
                f"program{'s' * (programs > 1)}; {len(training.labels):,} images to train on, "
                f"{len(validation.labels):,} to choose with; on {device_name()}",
                flush=True,
            )
            table = _climb(trials, ladder, trainer, known, out, received)
        if not processes.leads():
            return out
        best = dataclasses.replace(config, **tried[table[0]["trial"]])
        _write_table(out, table)
        _draw(out, table, axes, dataset.name)
        summary = {
            **{"dataset": dataset.name, "configurations": len(trials), "seeds": config.seeds},
            **{name: info[name] for name in ("train_images", "validation_images")},
            **{"best": table[0], "config": to_json(best)},
            "command": shlex.join(["mnist-jax", "train", *to_flags(best)]),
            **{"device": device_name(), "versions": versions()},
            "seconds": {**trainer.seconds, "total": time.perf_counter() - started},
        }
        rundir.write_summary(out, summary)
    return out


def in_words(summary: Json) -> str:
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


def _climb(
    trials: Sequence[Trial],
    ladder: Sequence[tuple[int, int]],
    trainer: Trainer,
    known: dict[tuple[int, int], Row],
    out: Path,
    received: Received,
) -> list[Row]:
    """The last row of each trial, the best first: those that came farthest, by their errors then.

    `known` has the rows of an earlier start, by trial and epochs.
    """
    work, count, before = 0, len(trials), 0
    for epochs, left in ladder:
        work += sum(
            t.config.seeds * (min(epochs, t.config.epochs) - before) for t in trials[:count]
        )
        count, before = left, epochs
    table: list[Row] = []
    before = 0
    with counting(work, "network-epochs") as add:

        def tell(networks: int, words: str) -> None:
            add(networks, words)
            if signal := max(processes.of_all(received.number or 0))[0]:
                stopped = f"stopped with {len(known):,} results of {len(trials):,} configurations"
                raise Interrupted(signal, out, stopped)

        for epochs, left in ladder:
            until = {trial.number: min(epochs, trial.config.epochs) for trial in trials}
            todo = [trial for trial in trials if (trial.number, until[trial.number]) not in known]
            for trial in trials:
                if (trial.number, until[trial.number]) in known:
                    tell(trial.config.seeds * (until[trial.number] - before), "as it was")
            for part, rows in trainer.train(todo, before, epochs, left > 0, tell):
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                if processes.leads():
                    rundir.append_bytes(out / "trials.jsonl", lines.encode())
                for trial, row in zip(part, rows, strict=True):
                    known[trial.number, until[trial.number]] = row
            ranked = sorted((known[number, until[number]] for number in until), key=_rank)
            better = {row["trial"] for row in ranked[:left]}
            table, before = [*ranked[left:], *table], epochs
            trainer.forget([trial for trial in trials if trial.number not in better])
            trials = [trial for trial in trials if trial.number in better]
    return table


def _rank(row: Row) -> tuple[float, float, int]:
    """Fewer errors first, then a lower loss; what diverged has no loss."""
    loss = row["validation_loss"]
    finite = math.inf if loss is None or math.isnan(loss) else loss
    return row["validation_error_percent_mean"], finite, row["trial"]


def _require_free(out: Path, resume: bool) -> None:
    """Raises InputError unless a new sweep can go to `out`, or, to `resume`, one is there."""
    if rundir.is_free(out):
        return
    if not (out / "sweep.json").exists():
        raise InputError(f"{out} exists already and is no sweep; choose another --out")
    if not resume:
        raise InputError(f"{out} exists already; choose another --out, or add --resume to go on")


def _begin(out: Path, about: Json, resume: bool) -> list[Row] | None:
    """Makes `out` the folder of the sweep `about`, and gives its rows; None once it is finished."""
    _require_free(out, resume)  # another process may have been here
    if rundir.is_free(out):
        rundir.write_json(out / "sweep.json", about)
        return []
    kept = rundir.read_json(out / "sweep.json")
    if kept.get("tried") != about["tried"]:
        differing = ["other configurations are tried"]
    elif not (differing := changes(_deciding(kept), _deciding(about))):
        differing = ["the images or labels are others"] * (kept["data"] != about["data"])
    if differing:
        raise InputError(
            f"{out} is another sweep: {'; '.join(differing)}. Repeat the options of that sweep, or "
            "choose another --out"
        )
    if differing := changes(kept["environment"], about["environment"]):
        say(f"{'; '.join(differing)}: the last digits may differ from an uninterrupted sweep's")
    rows = {}
    file = out / "trials.jsonl"
    for line in rundir.read_bytes(file).decode().splitlines() if file.exists() else []:
        with suppress(ValueError, KeyError, TypeError):  # half a line, or no row
            row = json.loads(line)
            rows[row["trial"], row["epochs"]] = row
    rundir.write_bytes(file, "".join(json.dumps(row) + "\n" for row in rows.values()).encode())
    with suppress(InputError):
        rundir.read_summary(out)
        return None
    return list(rows.values())


def _deciding(about: Json) -> Json:
    """What makes a sweep another sweep."""
    config = {name: value for name, value in about["config"].items() if name != "data_dir"}
    return {**config, "halving": about["halving"], "recipe": about["recipe"]}


def _write_table(out: Path, table: Sequence[Row]) -> None:
    rundir.write_bytes(out / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    stream = io.StringIO()
    writer = csv.DictWriter(stream, table[0])
    writer.writeheader()
    for row in table:
        writer.writerow({name: in_a_word(value) for name, value in row.items()})
    rundir.write_bytes(out / "table.csv", stream.getvalue().encode())


def _draw(out: Path, table: Sequence[Row], axes: Mapping[str, Axis], dataset: str) -> None:
    """Saves the heat map of two lists of values, else what each field is worth by itself."""
    from mnist_jax.sweep import plots as sweep_plots

    tried = [name for name, axis in axes.items() if isinstance(axis, Range) or len(axis) > 1]
    title = f"{dataset}: validation error (%) of {len(table):,} configurations"
    figures = {"marginals": sweep_plots.marginals(table, tried, title)}
    grid = math.prod(len(axes[name]) for name in tried) == len(table)
    if len(tried) == 2 and grid:
        figures["heat_map"] = sweep_plots.heat_map(table, tried[0], tried[1], title)
    for name, figure in figures.items():
        rundir.save_figure(out, name, figure)
