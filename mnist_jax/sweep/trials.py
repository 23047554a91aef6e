"""The trials of a sweep. They share programs, and as many train at once as fit in memory."""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from tqdm import tqdm

from mnist_jax import population
from mnist_jax.config import Config, Hparams, validate
from mnist_jax.data import Dataset, Examples
from mnist_jax.data.loader import DataLoader, plan_shards
from mnist_jax.errors import Interrupted, is_live, progress_bar, say
from mnist_jax.fit import resolve, run_epoch
from mnist_jax.parallel.mesh import (
    MeshShape,
    free_bytes,
    gather_to_host,
    mesh_shape,
    shard,
    use_mesh,
)
from mnist_jax.parallel.multihost import max_over_processes
from mnist_jax.population import Members, Setup
from mnist_jax.preprocess import AnyArray
from mnist_jax.runs.records import add_seconds
from mnist_jax.runs.rundir import Json
from mnist_jax.runs.signals import Shutdown
from mnist_jax.sweep.space import program_config
from mnist_jax.train import MakeRecipe, TrainState

PROGRESS = "{desc} {bar:8} {n}/{total} network-epochs, {elapsed} elapsed, {remaining} left"


@dataclasses.dataclass(eq=False)
class Trial:
    """One configuration of a sweep, on all of its seeds.

    Attributes:
        setup: what its program is compiled for; other trials may share it.
        states: those of its networks, on the host between rungs of successive halving, or None.
        epochs_done: how many epochs `states` were trained for.
    """

    number: int
    changes: Mapping[str, Any]
    config: Config
    setup: Setup
    states: TrainState | None = None
    epochs_done: int = 0


def make_trials(
    config: Config,
    tried: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    train_images: int,
    make_recipe: MakeRecipe,
) -> list[Trial]:
    """A trial for each of the changes to `config` that are `tried`.

    Raises:
        InputError: a configuration cannot be used, or does not fit the data.
    """
    configs = [
        resolve(validate(dataclasses.replace(config, **changes)), dataset) for changes in tried
    ]
    columns = zip(*(trial_config.hparams for trial_config in configs), strict=True)
    largest = Hparams(*map(max, columns))
    trials = []
    for number, trial_config in enumerate(configs):
        images_used = plan_shards(trial_config, train_images).images_used
        spec = dataset.spec._replace(train_images=images_used)
        make_recipe(trial_config, trial_config.hparams, spec)  # raises if it does not fit the data
        setup = Setup(program_config(trial_config, largest), spec, make_recipe)
        trials.append(Trial(number, tried[number], trial_config, setup))
    return trials


@dataclasses.dataclass
class Trainer:
    """Trains trials on a mesh, by default of all devices, until a signal comes.

    Attributes:
        out: the folder of the sweep.
        seconds: how long each part has taken so far.
    """

    training: Examples
    validation: Examples
    mesh: MeshShape | None
    shutdown: Shutdown
    out: Path
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def train(self, trials: Sequence[Trial], epochs: int) -> Iterator[list[Json]]:
        """Trains `trials` batch by batch until `epochs`, and yields the rows of each batch.

        If the host has memory, the states of trials with epochs left are kept for the next call.
        Otherwise that call trains from the start, with the same result bit for bit.

        Raises:
            Interrupted: a signal came.
        """
        groups: dict[Hashable, list[Trial]] = defaultdict(list)
        total = 0
        for trial in trials:
            groups[trial.setup, trial.epochs_done].append(trial)
            total += trial.config.seeds * (min(epochs, trial.config.epochs) - trial.epochs_done)
        with progress_bar(total=total, bar_format=PROGRESS, leave=False) as bar:
            for group in groups.values():
                size = len(group)
                while group:
                    rows = self._train_batch(group[:size], epochs, bar)
                    yield rows
                    size, group = len(rows), group[len(rows) :]

    def _train_batch(self, trials: list[Trial], epochs: int, bar: tqdm) -> list[Json]:
        """The rows of the first of `trials`, as many as fit in memory at once."""
        setup = trials[0].setup
        while True:
            pairs = [
                (seed, trial.config.hparams) for trial in trials for seed in trial.config.all_seeds
            ]
            shape = mesh_shape(len(pairs), setup.config.batch_size, self.mesh, padded=True)
            copies = itertools.islice(itertools.cycle(pairs), -len(pairs) % shape[0])
            seeds, hparams = zip(*pairs, *copies, strict=True)
            with use_mesh(shape):
                with add_seconds(self.seconds, "compile"):
                    loader = DataLoader(setup.config, self.training, self.validation)
                    members = population.members(seeds, hparams)
                    needed = population.compile_programs(
                        setup, members, loader.shard_spec, loader.validation
                    )
                # The process with the least free memory decides.
                needed, negative = max_over_processes(needed, -free_bytes())
                free = -negative
                if needed <= free or len(trials) == 1:
                    return self._train_at_once(trials, members, loader, epochs, bar)
            count = max(1, len(trials) * free // needed)
            say(f"memory holds {count:,} of these {len(trials):,} configurations at once")
            trials = trials[:count]

    def _train_at_once(
        self,
        trials: Sequence[Trial],
        members: Members,
        loader: DataLoader,
        epochs: int,
        bar: tqdm,
    ) -> list[Json]:
        """The rows of `trials`. If they continue and the hosts have memory, keeps their states."""
        setup, seeds = trials[0].setup, trials[0].config.seeds
        start, stop = trials[0].epochs_done, min(epochs, setup.config.epochs)
        if start:
            places = range(len(members.keys))  # for copies they wrap around
            states = jax.tree.map(
                lambda *leaves: np.take(np.concatenate(leaves), places, axis=0, mode="wrap"),
                *(trial.states for trial in trials),
            )
        else:
            states = population.init(setup, members)
        states, train_loss = shard(states), np.array([])
        for epoch in range(start + 1, stop + 1):
            with add_seconds(self.seconds, "train"):
                states, metrics = run_epoch(setup, states, members, loader, epoch)
            train_loss = metrics.loss[: len(trials) * seeds]  # without copies
            self._report(train_loss, bar)
        with add_seconds(self.seconds, "evaluate"):
            images = loader.recalibration_images
            calibrated = population.recalibrate(setup, states, members, images)
            evaluation = population.evaluate(setup, calibrated, members, loader.validation)
            evaluation = gather_to_host(evaluation)

        keeps = stop < setup.config.epochs and _hosts_have_room(states)
        saved = gather_to_host(states) if keeps else None
        rows = []
        for i, trial in enumerate(trials):
            part = slice(i * seeds, (i + 1) * seeds)
            # A copy: a view would keep the states of all trials in memory.
            trial.states = jax.tree.map(lambda leaf, part=part: leaf[part].copy(), saved)
            trial.epochs_done = stop if keeps else 0
            percent = 100 * evaluation.errors[part] / len(self.validation.labels)
            row = {
                "trial": trial.number,
                **trial.changes,
                "epochs": stop,
                "validation_errors": evaluation.errors[part].tolist(),
                "validation_error_percent_mean": float(percent.mean()),
                "validation_error_percent_std": float(percent.std(ddof=1)) if seeds > 1 else None,
                "validation_loss": _finite_mean(evaluation.loss[part]),
                "train_loss": _finite_mean(train_loss[part]),
            }
            rows.append(row)
        return rows

    def _report(self, train_loss: AnyArray, bar: tqdm) -> None:
        """Reports an epoch of some networks, in the bar or in a line per tenth of the total."""
        finite = train_loss[np.isfinite(train_loss)]
        loss = f"training loss {finite.mean():.4f}" if len(finite) else "all diverged"
        before = bar.n
        bar.n += len(train_loss)
        bar.set_description_str(loss)
        if not is_live() and 10 * before // bar.total < 10 * bar.n // bar.total:
            say(f"{bar.n:,} of {bar.total:,} network-epochs, {loss}")
        (number,) = max_over_processes(self.shutdown.signal_number)
        if number:
            raise Interrupted(number, self.out, "stopped; finished trials are saved")


def _hosts_have_room(states: TrainState) -> bool:
    """Whether every host has four times the memory that `states` take."""
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
    (missing,) = max_over_processes(4 * state_bytes - psutil.virtual_memory().available)
    return missing < 0


def _finite_mean(values: AnyArray) -> float | None:
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None
