"""The trials of a sweep, trained as few programs, as many at once as memory holds."""

import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil

from mnist_jax import population
from mnist_jax.config import VARIABLE, Config, Shape
from mnist_jax.data import Examples, shards
from mnist_jax.data.shards import Feed
from mnist_jax.model import PyTree
from mnist_jax.parallel import devices, processes
from mnist_jax.progress import say
from mnist_jax.sweep.search import program
from mnist_jax.train import MakeRecipe, Recipe, TrainState, steps_per_epoch, varied

Row = dict[str, Any]
"""How a trial came out, as its line of the table has it."""


class Trial(NamedTuple):
    """One configuration of a sweep, on all of its seeds."""

    number: int
    changes: dict[str, Any]
    config: Config


class Networks(NamedTuple):
    """What some trials of one program train with; repeated ones fill the devices up."""

    recipe: Recipe
    seeds: list[int]
    numbers: PyTree  # by name, where they differ
    mesh: Shape


class Trainer:
    """Trains trials, and keeps their states on the host between the rungs of a ladder."""

    def __init__(
        self,
        trials: Sequence[Trial],
        make_recipe: MakeRecipe,
        classes: int,
        training: Examples,
        validation: Examples,
        mesh: Shape | None,
    ) -> None:
        self.training, self.validation, self.mesh = training, validation, mesh
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.programs: dict[Hashable, tuple[Recipe, tuple[str, ...]]] = {}
        self._states: dict[int, tuple[int, TrainState]] = {}  # by trial, and after how many epochs
        height, width = training.images.shape[1:]
        for key, alike in _by(_program, trials):
            config = alike[0].config
            devices.mesh_shape(len(alike) * config.seeds, config.batch_size, mesh, filled=True)
            configs = [trial.config for trial in alike]
            values = {name: {getattr(config, name) for config in configs} for name in VARIABLE}
            varying = tuple(name for name in VARIABLE if len(values[name]) > 1)
            make = partial(varied, make_recipe) if varying else make_recipe
            used = shards.plan(configs[0], len(training.labels)).used
            sizes = height * width, classes, used
            for config in configs:
                make_recipe(config, *sizes)  # refuses what does not fit the data
            self.programs[key] = make(configs[0], *sizes), varying

    def train(
        self,
        trials: Sequence[Trial],
        before: int,
        epochs: int,
        keep: bool,
        tell: Callable[[int, str], None],
    ) -> Iterator[tuple[list[Trial], list[Row]]]:
        """Trains `trials`, part by part, and gives how each part came out.

        They were trained for `before` epochs, and now are up to `epochs`, or to their end. `tell`
        is told how many networks have done a new epoch, and how it went. States are kept for the
        next call if `keep` and where the host has memory for them; those that are not there are
        trained from the start, to the same bits.
        """
        groups = _by(lambda trial: (_program(trial), self._so_far(trial)), trials)
        for (key, so_far), alike in groups:
            until = min(epochs, alike[0].config.epochs)
            count = len(alike)
            while alike:
                count = self._at_once(key, alike[:count])
                part, alike = alike[:count], alike[count:]
                networks = self._networks(key, part)
                yield part, self._train(networks, part, so_far, before, until, keep, tell)

    def forget(self, trials: Iterable[Trial]) -> None:
        """Drops what is kept of `trials`."""
        for trial in trials:
            self._states.pop(trial.number, None)

    def _so_far(self, trial: Trial) -> int:
        return self._states[trial.number][0] if trial.number in self._states else 0

    def _networks(self, key: Hashable, part: Sequence[Trial]) -> Networks:
        recipe, varying = self.programs[key]
        each = [(trial.config, seed) for trial in part for seed in trial.config.all_seeds]
        mesh = devices.mesh_shape(len(each), part[0].config.batch_size, self.mesh, filled=True)
        each += itertools.islice(itertools.cycle(each), -len(each) % mesh[0])
        numbers = {
            name: np.array([getattr(config, name) for config, _ in each], np.float32)
            for name in varying
        }
        return Networks(recipe, [seed for _, seed in each], numbers or (), mesh)

    def _at_once(self, key: Hashable, trials: Sequence[Trial]) -> int:
        """How many of `trials` memory holds together; their program is compiled then."""
        count = len(trials)
        while True:
            recipe, seeds, numbers, mesh = self._networks(key, trials[:count])
            config = trials[0].config
            with self._timed("compile"), devices.mesh(mesh):
                *_, needed = population.compile_ahead(
                    *(recipe, population.keys(seeds)),
                    *(Feed(config, self.training).like, devices.share(self.validation)),
                    config.batch_size,
                    devices.divide(numbers),
                )
            each = processes.of_all(needed, devices.free_bytes())
            needed, free = max(each)[0], min(free for _, free in each)
            if needed <= free or count == 1:
                return count
            count = max(1, min(count - 1, count * free // needed))
            say(f"memory holds {count:,} of these {len(trials):,} configurations at once")

    def _train(
        self,
        networks: Networks,
        part: Sequence[Trial],
        so_far: int,
        before: int,
        epochs: int,
        keep: bool,
        tell: Callable[[int, str], None],
    ) -> list[Row]:
        recipe, all_seeds, numbers, mesh = networks
        config, seeds = part[0].config, part[0].config.seeds
        count = len(part) * seeds  # without those that fill up
        loss = np.array([])
        with devices.mesh(mesh):
            feed, validation = Feed(config, self.training), devices.share(self.validation)
            steps = steps_per_epoch(feed.plan.size, config.batch_size)
            keys, numbers = population.keys(all_seeds), devices.divide(numbers)
            states = population.init(recipe, keys)._replace(numbers=numbers)
            if so_far:
                kept = [self._states[trial.number][1] for trial in part]
                whole = jax.tree.map(lambda *leaves: _filled(leaves, len(keys)), *kept)
                states = devices.divide(whole)
            together = population.side_by_side(states)
            for epoch in range(so_far, epochs):
                with self._timed("train"):
                    parts = []
                    for shard in range(feed.plan.shards):
                        states, metrics = population.train_epoch(
                            *(recipe, states, feed.take(epoch + 1, shard), keys),
                            *(config.batch_size, together),
                        )
                        parts.append(devices.to_host(metrics))
                    loss = shards.combined(parts, steps).loss[:count]
                finite = loss[np.isfinite(loss)]
                words = f"training loss {finite.mean():.4f}" if len(finite) else "all diverged"
                tell(count * (epoch >= before), words)
            with self._timed("evaluate"):
                settled = population.settle(recipe, states, feed.settling, keys)
                evaluation = devices.to_host(population.evaluate(recipe, settled, validation))
            room = psutil.virtual_memory().available > 4 * _bytes(states)
            if keep and all(there for (there,) in processes.of_all(room)):
                host = devices.to_host(states)
                for i, trial in enumerate(part):
                    own = slice(i * seeds, (i + 1) * seeds)
                    state = jax.tree.map(lambda leaf, own=own: leaf[own].copy(), host)
                    self._states[trial.number] = epochs, state
        errors = evaluation.errors.reshape(-1, seeds)[: len(part)]
        losses = evaluation.loss.reshape(-1, seeds)[: len(part)]
        percent = 100 * errors / len(self.validation.labels)
        spread = percent.std(axis=1, ddof=1) if seeds > 1 else [None] * len(part)
        return [
            {
                **{"trial": trial.number, **trial.changes, "epochs": epochs},
                "validation_errors": errors[i].tolist(),
                "validation_error_percent_mean": float(percent[i].mean()),
                "validation_error_percent_std": _finite(spread[i]),
                "validation_loss": _finite(losses[i].mean()),
                "train_loss": _finite(loss.reshape(-1, seeds)[i].mean()),
            }
            for i, trial in enumerate(part)
        ]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def _program(trial: Trial) -> Hashable:
    return program(trial.config)


def _by(key: Callable[[Trial], Hashable], trials: Iterable[Trial]) -> list[tuple[Any, list[Trial]]]:
    """`trials` in groups of the same `key`, in the order in which those first come."""
    groups: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), []).append(trial)
    return list(groups.items())


def _finite(number: jax.Array | np.floating | None) -> float | None:
    return None if number is None or not np.isfinite(number) else float(number)


def _filled(leaves: Sequence[np.ndarray], count: int) -> np.ndarray:
    """One after the other, and again from the first until there are `count`."""
    whole = np.concatenate(leaves)
    return whole[np.arange(count) % len(whole)]


def _bytes(states: TrainState) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(states))
