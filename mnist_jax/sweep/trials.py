"""The trials of a sweep, trained as few programs, as many at once as memory holds."""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import psutil

from mnist_jax import population
from mnist_jax.config import Config, Hparams
from mnist_jax.data import Dataset, Examples
from mnist_jax.data.loader import DataLoader, plan_shards
from mnist_jax.errors import say
from mnist_jax.fit import resolve, train_epoch
from mnist_jax.parallel.mesh import (
    MeshShape,
    free_bytes,
    gather_to_host,
    mesh_shape,
    shard,
    use_mesh,
)
from mnist_jax.parallel.multihost import max_over_processes
from mnist_jax.population import Networks, Setup
from mnist_jax.preprocess import AnyArray
from mnist_jax.runs.records import add_seconds
from mnist_jax.runs.rundir import Json
from mnist_jax.sweep.space import program_key
from mnist_jax.train import MakeRecipe, TrainState

Report = Callable[[AnyArray], None]


@dataclasses.dataclass(eq=False)
class Trial:
    """One configuration of a sweep, on all of its seeds.

    Attributes:
        setup: that of its program, which other trials may share.
        states: of its networks, on the host between the rungs of successive halving, or None.
        epochs_done: the epochs behind `states`, or 0.
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
        InputError: a configuration does not fit the data.
    """
    configs = [resolve(dataclasses.replace(config, **changes), dataset) for changes in tried]
    by_program: dict[Hashable, list[Config]] = defaultdict(list)
    for own in configs:
        by_program[program_key(own)].append(own)
    setups = {}
    for key, group in by_program.items():
        images_used = plan_shards(group[0], train_images).images_used
        spec = dataset.spec._replace(train_images=images_used)
        for own in group:  # raises if it does not fit the data
            make_recipe(own, own.hparams, spec)
        # The program has every layer that one of its networks needs.
        columns = zip(*(own.hparams for own in group), strict=True)
        largest = Hparams(*map(max, columns))._asdict()
        setups[key] = Setup(dataclasses.replace(group[0], **largest), spec, make_recipe)
    return [
        Trial(number, changes, own, setups[program_key(own)])
        for number, (changes, own) in enumerate(zip(tried, configs, strict=True))
    ]


@dataclasses.dataclass
class Trainer:
    """Trains trials on a mesh, by default of all devices, and adds up the seconds of each part."""

    training: Examples
    validation: Examples
    mesh: MeshShape | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def train(self, trials: Sequence[Trial], epochs: int, report: Report) -> Iterator[list[Json]]:
        """Trains `trials` batch by batch, and yields the rows of each batch.

        Trials that have epochs left are kept for the next call, if the host has memory for them.
        Those that are not kept are trained from the start, to the same bits.

        Args:
            trials: what to train.
            epochs: after how many epochs to stop, if a config does not stop earlier.
            report: called after each epoch of a batch with the training loss of each network.
        """
        groups: dict[Hashable, list[Trial]] = defaultdict(list)
        for trial in trials:
            groups[trial.setup, trial.epochs_done].append(trial)
        for group in groups.values():
            size = len(group)
            while group:
                rows = self._train_batch(group[:size], epochs, report)
                yield rows
                size, group = len(rows), group[len(rows) :]

    def _train_batch(self, trials: list[Trial], epochs: int, report: Report) -> list[Json]:
        """The rows of as many of `trials` as memory holds at once, from the first."""
        setup = trials[0].setup
        while True:
            members = [
                (seed, trial.config.hparams) for trial in trials for seed in trial.config.all_seeds
            ]
            shape = mesh_shape(len(members), setup.config.batch_size, self.mesh, padded=True)
            copies = itertools.islice(itertools.cycle(members), -len(members) % shape[0])
            seeds, hparams = zip(*members, *copies, strict=True)
            with use_mesh(shape):
                with add_seconds(self.seconds, "compile"):
                    loader = DataLoader(setup.config, self.training, self.validation)
                    networks = population.networks(seeds, hparams)
                    needed = population.compile_programs(
                        setup, networks, loader.spec, loader.validation
                    )
                # The process with the least free memory decides.
                needed, negative = max_over_processes(needed, -free_bytes())
                if needed <= -negative or len(trials) == 1:
                    return self._train_at_once(trials, networks, loader, epochs, report)
            count = max(1, len(trials) * -negative // needed)
            say(f"memory holds {count:,} of these {len(trials):,} configurations at once")
            trials = trials[:count]

    def _train_at_once(
        self,
        trials: Sequence[Trial],
        networks: Networks,
        loader: DataLoader,
        epochs: int,
        report: Report,
    ) -> list[Json]:
        setup, seeds = trials[0].setup, trials[0].config.seeds
        start, stop = trials[0].epochs_done, min(epochs, setup.config.epochs)
        if start:
            states = _join([trial.states for trial in trials], len(networks.keys))
        else:
            states = population.init(setup, networks)
        states, train_loss = shard(states), np.array([])
        for epoch in range(start + 1, stop + 1):
            with add_seconds(self.seconds, "train"):
                states, metrics = train_epoch(setup, states, networks, loader, epoch)
            train_loss = metrics.loss[: len(trials) * seeds]  # without copies
            report(train_loss)
        with add_seconds(self.seconds, "evaluate"):
            images = loader.recalibration_images
            calibrated = population.recalibrate(setup, states, networks, images)
            evaluation = population.evaluate(setup, calibrated, networks, loader.validation)
            evaluation = gather_to_host(evaluation)
        keeps = stop < setup.config.epochs and _hosts_have_room(states)
        saved = gather_to_host(states) if keeps else None
        rows = []
        for i, trial in enumerate(trials):
            own = slice(i * seeds, (i + 1) * seeds)
            # A copy: a view would keep the states of all trials in memory.
            trial.states = jax.tree.map(lambda leaf, own=own: leaf[own].copy(), saved)
            trial.epochs_done = stop if keeps else 0
            percent = 100 * evaluation.errors[own] / len(self.validation.labels)
            row = {
                "trial": trial.number,
                **trial.changes,
                "epochs": stop,
                "validation_errors": evaluation.errors[own].tolist(),
                "validation_error_percent_mean": float(percent.mean()),
                "validation_error_percent_std": float(percent.std(ddof=1)) if seeds > 1 else None,
                "validation_loss": _finite_mean(evaluation.loss[own]),
                "train_loss": _finite_mean(train_loss[own]),
            }
            rows.append(row)
        return rows


def _join(states: Sequence[TrainState | None], count: int) -> TrainState:
    """`states` one after the other, then these again until there are `count` networks."""

    def join(*leaves: np.ndarray) -> np.ndarray:
        return np.take(np.concatenate(leaves), range(count), axis=0, mode="wrap")

    return jax.tree.map(join, *states)


def _hosts_have_room(states: TrainState) -> bool:
    """Whether every host has memory for `states`, with a good deal to spare."""
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
    (missing,) = max_over_processes(4 * state_bytes - psutil.virtual_memory().available)
    return missing < 0


def _finite_mean(values: AnyArray) -> float | None:
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None
