"""How the experiments of this folder are run and kept: one row of the table, one network.

A file for a paper says in `ROWS` what the paper published and what is trained here, and ends in
`main(__file__, ROWS)`. Choices are made with `--validate`, which trains on the first 50,000 images
and shows the errors on the other 10,000. Without it all 60,000 are trained on for a fixed number of
epochs, the errors of the last (or averaged) weights on the test set are counted once, and kept in
results/. What is interrupted goes on where it was when it is started again.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from mnist_jax import fit
from mnist_jax.config import Config, to_json
from mnist_jax.errors import InputError, Interrupted, SaveError
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import recipe_name
from mnist_jax.runs.results import Run
from mnist_jax.train import MakeRecipe, default_recipe

RESULTS = Path(__file__).parents[1] / "results"

Row = dict[str, Any]


class Experiment(NamedTuple):
    """A row of the table: what is published, and what is trained here."""

    published: str  # test error in percent, as it stands there; "" for a network of ours
    source: str  # where that stands, and whether it was read there
    config: Config  # `seeds` is how many there are to be
    recipe: MakeRecipe = default_recipe
    measure: Callable[[Run], Row] | None = None  # more errors to count


def fingerprint(experiment: Experiment) -> Row:
    """What is trained: the config but for the seeds, and the name of the recipe."""
    config = to_json(experiment.config)
    for name in ("data_dir", "seed", "seeds"):
        del config[name]
    return {**config, "recipe": recipe_name(experiment.recipe)}


def is_of(kept: Row, experiment: Experiment) -> bool:
    """Whether a row of results was trained with the config that `experiment` has now.

    A field that is newer than the row had its default then.
    """
    return {**to_json(Config()), **kept["config"]} == {
        **to_json(Config()),
        **fingerprint(experiment),
    }


def read_results(script: Path) -> dict[str, Row]:
    """The rows that are kept of a script, by name."""
    path = RESULTS / f"{script.stem}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(file: str, experiments: dict[str, Experiment]) -> None:
    """The command line of a file with these `experiments`."""
    tyro.cli(partial(_run, Path(file), experiments), prog=Path(file).name, description="")


def _run(
    script: Path,
    experiments: dict[str, Experiment],
    row: tuple[str, ...] = (),
    seed: int = 0,
    seeds: int | None = None,
    validate: bool = False,
    quick: bool = False,
    data_dir: Path | None = None,
    out: Path | None = None,
) -> None:
    """Trains the rows of a paper and keeps their errors.

    Args:
        row: the rows to train; all of them by default.
        seed: the first seed.
        seeds: how many seeds; by default as many as the row asks for.
        validate: train without the last 10,000 training images and show the errors on those;
            nothing is kept.
        quick: at most two small layers on scikit-learn's digits, two epochs, to see that it
            works; nothing is kept.
        data_dir: folder with the MNIST files; without it they are downloaded.
        out: folder for the run folders; runs/NAME by default.
    """
    if unknown := set(row) - set(experiments):
        raise SystemExit(f"there is no row {', '.join(unknown)}; there are {list(experiments)}")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) if quick else out or Path("runs") / script.stem
        for name in row or experiments:
            experiment = experiments[name]
            count = experiment.config.seeds if seeds is None else seeds
            words = [*name.replace("+", "and").replace(",", "").split(), str(seed), str(count)]
            print(f"== {script.stem}: {name}", flush=True)
            folder = out / "-".join(words + ["validate"] * validate)
            try:
                config = dataclasses.replace(
                    experiment.config, data_dir=data_dir, seed=seed, seeds=count
                )
                if quick:
                    config = _quick(config)
                elif validate:
                    config = dataclasses.replace(config, validation_images=10_000)
                run = fit.fit(config, folder, make_recipe=experiment.recipe, resume=True)
            except (InputError, SaveError) as error:
                raise SystemExit(str(error)) from None
            except Interrupted as stopped:
                print(f"{stopped}; the same command goes on", file=sys.stderr)
                raise SystemExit(128 + stopped.signal_number) from None
            if validate:
                print(_in_words(rundir.read_metrics(run.path)[-1]["validation_error_percent"]))
                continue
            summary = rundir.read_summary(run.path)
            percent = [100 * errors / summary["test_images"] for errors in summary["test_errors"]]
            print(_in_words(percent), flush=True)
            more = experiment.measure(run) if experiment.measure else {}
            if not quick:
                _keep(script, name, experiment, summary, more)


def _quick(config: Config) -> Config:
    return dataclasses.replace(
        config,
        dataset="digits",
        data_dir=None,
        hidden=tuple(min(width, 16) for width in config.hidden[:2]),
        epochs=2,
        warmup_steps=min(config.warmup_steps, 2),
        seeds=2,
    )


def _in_words(percent: list[float]) -> str:
    spread = f" +/- {np.std(percent, ddof=1):.3f}" if len(percent) > 1 else ""
    each = ", ".join(f"{value:.2f}" for value in percent)
    return f"{np.mean(percent):.3f}{spread} % errors (n = {len(percent)}: {each})"


def _keep(script: Path, name: str, experiment: Experiment, summary: Row, more: Row) -> None:
    """Puts a run into the results of `script`; runs of another config make way."""
    results, config = read_results(script), fingerprint(experiment)
    kept = results.get(name, {})
    runs = kept["runs"] if kept and is_of(kept, experiment) else []
    mine = range(summary["seed"], summary["seed"] + summary["seeds"])
    runs = [run for run in runs if not set(_seeds(run)) & set(mine)]
    counts = {key: value for key, value in summary.items() if key.startswith("test_errors")}
    runs.append(
        {
            "seed": summary["seed"],
            **{**counts, **more},
            "train_seconds": summary["seconds"]["train"],
            **{"device": summary["device"], "versions": summary["versions"]},
        }
    )
    results[name] = {"config": config, "runs": sorted(runs, key=lambda run: run["seed"])}
    rundir.write_bytes(RESULTS / f"{script.stem}.json", _in_lines(results).encode())


def _in_lines(results: dict[str, Row]) -> str:
    """`results` in JSON, with a line for each config and each run."""
    rows = []
    for name, row in results.items():
        runs = ",\n".join(f"   {json.dumps(run)}" for run in row["runs"])
        config = json.dumps(row["config"])
        rows.append(
            f' {json.dumps(name)}: {{\n  "config": {config},\n  "runs": [\n{runs}\n  ]\n }}'
        )
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _seeds(run: Row) -> range:
    return range(run["seed"], run["seed"] + len(run["test_errors"]))
