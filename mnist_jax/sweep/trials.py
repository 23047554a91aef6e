"""The trials of a sweep, trained as few programs, as many at once as memory holds."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil

from mnist_jax import population
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec, Examples
from mnist_jax.data.loader import DataLoader, plan_shards
from mnist_jax.errors import say
from mnist_jax.fit import train_epoch
from mnist_jax.parallel.mesh import (
    MeshShape,
    free_bytes,
    gather_to_host,
    mesh_shape,
    shard,
    use_mesh,
)
from mnist_jax.parallel.multihost import all_gather
from mnist_jax.population import Networks, Setup
from mnist_jax.sweep.space import program_key
from mnist_jax.train import MakeRecipe, TrainState

Row = dict[str, Any]
"""The result of a trial, as a row of the table."""


class Trial(NamedTuple):
    """One configuration of a sweep, on all of its seeds."""

    number: int
    changes: dict[str, Any]
    config: Config


class Batch(NamedTuple):
    """Trials that are trained at once, on a mesh that their copies may fill up."""

    setup: Setup
    trials: list[Trial]
    mesh: MeshShape

    @property
    def networks(self) -> Networks:
        """Every seed of every trial, then copies of the first until the mesh is full."""
        members = [(trial.config, seed) for trial in self.trials for seed in trial.config.all_seeds]
        members += itertools.islice(itertools.cycle(members), -len(members) % self.mesh[0])
        return population.networks(
            [seed for _, seed in members], [config.hparams for config, _ in members]
        )


class Trainer:
    """Trains trials, and keeps their states on the host between the rungs of successive halving."""

    def __init__(
        self,
        trials: Sequence[Trial],
        make_recipe: MakeRecipe,
        classes: int,
        training: Examples,
        validation: Examples,
        mesh: MeshShape | None,
    ) -> None:
        self.training, self.validation, self.mesh = training, validation, mesh
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.setups: dict[Hashable, Setup] = {}
        self._states: dict[int, tuple[int, TrainState]] = {}  # by trial: epochs so far, states
        for key, group in _group_by(_key, trials):
            config = group[0].config
            mesh_shape(len(group) * config.seeds, config.batch_size, mesh, padded=True)
            images_used = plan_shards(config, len(training.labels)).images_used
            spec = DataSpec(training.images.shape[1:], classes, images_used)
            for trial in group:  # raises if a config does not fit the data
                make_recipe(trial.config, trial.config.hparams, spec)
            self.setups[key] = Setup(_representative(group), spec, make_recipe)

    def train(
        self,
        trials: Sequence[Trial],
        epochs_before: int,
        epochs: int,
        keep: bool,
        report: Callable[[int, str], None],
    ) -> Iterator[tuple[list[Trial], list[Row]]]:
        """Trains `trials` batch by batch, and yields each batch with its results.

        Args:
            trials: what to train.
            epochs_before: after how many epochs the trials were reported last.
            epochs: after how many epochs to stop, if their configs do not stop earlier.
            keep: keep the states for the next call, if the host has memory for them. Trials without
                a state are trained from the start, to the same bits.
            report: called with how many networks have finished a new epoch, and how it went.
        """
        groups = _group_by(lambda trial: (_key(trial), self._epochs_done(trial)), trials)
        for (key, epochs_done), remaining in groups:
            until = min(epochs, remaining[0].config.epochs)
            count = len(remaining)
            while remaining:
                batch = self._fitting_batch(key, remaining[:count])
                count = len(batch.trials)
                remaining = remaining[count:]
                rows = self._train_batch(batch, (epochs_done, epochs_before, until), keep, report)
                yield batch.trials, rows

    def forget(self, trials: Iterable[Trial]) -> None:
        """Drops the states of `trials`."""
        for trial in trials:
            self._states.pop(trial.number, None)

    def _epochs_done(self, trial: Trial) -> int:
        return self._states[trial.number][0] if trial.number in self._states else 0

    def _batch(self, key: Hashable, trials: list[Trial]) -> Batch:
        config = trials[0].config
        networks = len(trials) * config.seeds
        shape = mesh_shape(networks, config.batch_size, self.mesh, padded=True)
        return Batch(self.setups[key], trials, shape)

    def _fitting_batch(self, key: Hashable, trials: list[Trial]) -> Batch:
        """As many of `trials` as memory holds at once, with their programs compiled."""
        while True:
            batch = self._batch(key, trials)
            with self._measure("compile"), use_mesh(batch.mesh):
                loader = self._loader(batch)
                needed = population.compile_programs(
                    batch.setup, batch.networks, loader.spec, loader.validation
                )
            by_process = all_gather(needed, free_bytes())
            needed, free = max(by_process)[0], min(free for _, free in by_process)
            if needed <= free or len(trials) == 1:
                return batch
            count = max(1, min(len(trials) - 1, len(trials) * free // needed))
            say(f"memory holds {count:,} of these {len(trials):,} configurations at once")
            trials = trials[:count]

    def _loader(self, batch: Batch) -> DataLoader:
        return DataLoader(batch.setup.config, self.training, self.validation)

    def _train_batch(
        self,
        batch: Batch,
        epochs: tuple[int, int, int],
        keep: bool,
        report: Callable[[int, str], None],
    ) -> list[Row]:
        """The results of the trials in `batch`, trained from the first to the last of `epochs`."""
        epochs_done, epochs_before, until = epochs
        setup, seeds = batch.setup, batch.setup.config.seeds
        count = len(batch.trials) * seeds  # without copies
        train_loss = np.array([])
        with use_mesh(batch.mesh):
            loader, networks = self._loader(batch), batch.networks
            if epochs_done:
                saved = [self._states[trial.number][1] for trial in batch.trials]
                size = len(networks.keys)
                states = shard(jax.tree.map(lambda *leaves: _fill(leaves, size), *saved))
            else:
                states = shard(population.init(setup, networks))
            for epoch in range(epochs_done + 1, until + 1):
                with self._measure("train"):
                    states, metrics = train_epoch(setup, states, networks, loader, epoch)
                train_loss = metrics.loss[:count]
                finite = train_loss[np.isfinite(train_loss)]
                words = f"training loss {finite.mean():.4f}" if len(finite) else "all diverged"
                report(count if epoch > epochs_before else 0, words)
            with self._measure("evaluate"):
                calibrated = population.recalibrate(
                    setup, states, networks, loader.recalibration_images
                )
                evaluation = population.evaluate(setup, calibrated, networks, loader.validation)
                evaluation = gather_to_host(evaluation)
            if keep:
                self._keep(batch.trials, until, states)
        errors, losses = evaluation.errors[:count], evaluation.loss[:count]
        by_trial = (
            array.reshape(len(batch.trials), seeds) for array in (errors, losses, train_loss)
        )
        rows = zip(batch.trials, *by_trial, strict=True)
        return [self._row(trial, until, *results) for trial, *results in rows]

    def _row(
        self,
        trial: Trial,
        epochs: int,
        errors: np.ndarray,
        losses: np.ndarray,
        train_losses: np.ndarray,
    ) -> Row:
        percent = 100 * errors / len(self.validation.labels)
        std = _finite(percent.std(ddof=1)) if len(errors) > 1 else None
        return {
            "trial": trial.number,
            **trial.changes,
            "epochs": epochs,
            "validation_errors": errors.tolist(),
            "validation_error_percent_mean": float(percent.mean()),
            "validation_error_percent_std": std,
            "validation_loss": _finite(losses.mean()),
            "train_loss": _finite(train_losses.mean()),
        }

    def _keep(self, trials: Sequence[Trial], epochs: int, states: TrainState) -> None:
        """Keeps the states of `trials` on the host, if all hosts have memory for them."""
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
        has_room = psutil.virtual_memory().available > 4 * state_bytes
        if not all(room for (room,) in all_gather(has_room)):
            return
        host, start = gather_to_host(states), 0
        for trial in trials:
            own = slice(start, start + trial.config.seeds)
            state = jax.tree.map(lambda leaf, own=own: leaf[own].copy(), host)
            self._states[trial.number] = epochs, state
            start = own.stop

    @contextmanager
    def _measure(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


def _representative(trials: Sequence[Trial]) -> Config:
    """A config whose program has every layer that one of `trials` needs."""
    largest = {
        name: max(getattr(trial.config, name) for trial in trials) for name in Hparams._fields
    }
    return dataclasses.replace(trials[0].config, **largest)


def _key(trial: Trial) -> Hashable:
    return program_key(trial.config)


def _group_by(
    key: Callable[[Trial], Hashable], trials: Iterable[Trial]
) -> list[tuple[Any, list[Trial]]]:
    """`trials` grouped by `key`, in the order in which the keys first come."""
    groups: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), []).append(trial)
    return list(groups.items())


def _finite(number: np.floating) -> float | None:
    return float(number) if np.isfinite(number) else None


def _fill(leaves: Sequence[np.ndarray], count: int) -> np.ndarray:
    """`leaves` one after the other, then again from the first until there are `count` rows."""
    rows = np.concatenate(leaves)
    return rows[np.arange(count) % len(rows)]
