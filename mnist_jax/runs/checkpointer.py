"""Saves a run while it trains, and finds what is there to resume."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from mnist_jax.config import Config, SaveOptions, to_json
from mnist_jax.errors import InputError, say
from mnist_jax.parallel.mesh import gather_to_host
from mnist_jax.parallel.multihost import (
    arrays_from_primary,
    broadcast_from_primary,
    is_primary,
    max_over_processes,
)
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.results import is_finished, parse_config
from mnist_jax.runs.rundir import DiskError, Json
from mnist_jax.train import TrainState


@contextmanager
def open_run(
    path: Path, metadata: Json, options: SaveOptions, resume: bool
) -> Iterator["Checkpointer"]:
    """Locks the folder of a run, which is new or, if `resume` is true, may be there already.

    Raises:
        InputError: the folder is in use, is another run's, or cannot be written to.
    """
    with rundir.claim(path) if is_primary() else nullcontext():
        yield Checkpointer(path, metadata, options, resume)


class Checkpointer:
    """The folder of a run that trains: its config, its metrics and its checkpoints.

    A save that fails is reported and repeated after the next epoch. Of several processes only the
    primary one writes, and the others learn from it what there is to resume.
    """

    def __init__(self, path: Path, metadata: Json, options: SaveOptions, resume: bool) -> None:
        self.path, self.metadata, self.options = path, metadata, options
        self._latest: Path | None = None  # the checkpoint to resume from
        self._failures: dict[str, DiskError] = {}  # by what is not on the disk
        if is_primary():
            rundir.require_free(path, resume)  # another process may have been here
            if not rundir.is_free(path):
                self._latest, self.metadata = find_checkpoint(path, metadata)
        latest = self._latest
        self.resumes: bool = broadcast_from_primary(lambda: latest is not None)
        self.is_finished: bool = broadcast_from_primary(
            lambda: latest is not None and is_finished(path, latest)
        )
        self.history: list[Json] = broadcast_from_primary(
            lambda: rundir.read_metrics(latest) if latest else []
        )
        self._last_save = time.monotonic(), len(self.history)

    @property
    def failure(self) -> DiskError | None:
        """Why the folder is not up to date, or None if it is."""
        return next(iter(self._failures.values()), None)

    def restore(self, shapes: TrainState) -> TrainState:
        """The states to resume from, which have these shapes."""
        return arrays_from_primary(partial(self._load, shapes), shapes)

    def begin(self) -> None:
        """Writes the config and the metrics so far, and removes the summary of another state."""
        if is_primary():
            (self.path / "summary.json").unlink(missing_ok=True)
            rundir.write_config(self.path, self.metadata)
            rundir.write_metrics(self.path, self.history)

    def repair(self) -> None:
        """Makes config.json and metrics.jsonl of a finished run those of its checkpoint."""
        if self._latest is None:
            return
        for name in ("config.json", "metrics.jsonl"):
            content = rundir.read_bytes(self._latest / name)
            with suppress(OSError, InputError):
                if rundir.read_bytes(self.path / name) == content:
                    continue
            rundir.write_bytes(self.path / name, content)

    def log(self, metrics: Json) -> None:
        """Adds the metrics of an epoch."""
        self.history.append(metrics)
        self.write("metrics", self._append_metrics)

    def is_due(self) -> bool:
        """Whether to save a checkpoint now; the same in every process."""
        saved_at, saved_epoch = self._last_save
        minutes, epochs = (time.monotonic() - saved_at) / 60, len(self.history) - saved_epoch
        due = minutes >= self.options.checkpoint_minutes
        due = due or epochs >= self.options.checkpoint_epochs or "checkpoint" in self._failures
        (due,) = max_over_processes(due and is_primary())
        return bool(due)

    def save(self, states: TrainState) -> None:
        """Saves a checkpoint of `states`, unless there is one of their step."""
        states = gather_to_host(states)
        if "metrics" in self._failures:
            self.write("metrics", self._rewrite_metrics)
        if not (self.path / "checkpoints" / str(int(states.step[0]))).is_dir():
            self.write("checkpoint", partial(self._save_checkpoint, states))
        self._last_save = time.monotonic(), len(self.history)

    def _load(self, shapes: TrainState) -> TrainState:
        assert self._latest is not None
        return checkpoint.load(self._latest, shapes)

    def _append_metrics(self) -> None:
        if "metrics" in self._failures:  # lines are missing
            self._rewrite_metrics()
        else:
            rundir.append_metrics(self.path, self.history[-1])

    def _rewrite_metrics(self) -> None:
        rundir.write_metrics(self.path, self.history)

    def _save_checkpoint(self, states: TrainState) -> None:
        step = int(states.step[0])
        checkpoint.save(self.path, step, states, self.metadata, self.history)
        checkpoint.remove_old(self.path, self.options.keep_checkpoints)

    def write(self, what: str, write: Callable[[], object]) -> None:
        """Calls `write` in the primary process. A failure is reported, and remembered as `what`."""
        if not is_primary():
            return
        try:
            write()
            self._failures.pop(what, None)
        except DiskError as error:
            say(f"{error}. The run continues")
            self._failures[what] = error


def find_checkpoint(path: Path, metadata: Json) -> tuple[Path | None, Json]:
    """The newest intact checkpoint of the run in `path`, if there is one, and its config.json.

    Damaged checkpoints are set aside.

    Args:
        path: the run folder.
        metadata: the config.json of the run that is to be trained now.

    Raises:
        InputError: the folder holds another run.
    """
    folder = None
    for candidate in checkpoint.all_of(path):
        if checkpoint.is_intact(candidate):
            folder = candidate
            break
        say(f"{candidate} is damaged and is ignored")
    try:
        saved = rundir.read_config(folder or path)
        parse_config(saved, folder or path)
    except InputError:
        if folder:
            raise
        saved = metadata  # with nothing intact in it, it may be any run
    differences = changes(_identity(saved), _identity(metadata))
    if not differences and saved["data"] != metadata["data"]:
        differences = ["the images or labels differ"]
    if differences:
        raise InputError(
            f"{path} is another run: {'; '.join(differences)}. Repeat the options of that run, or "
            "choose another --out"
        )
    checkpoint.set_aside_newer(path, folder)
    if not folder:
        say(f"{path} has no intact checkpoint: training starts from the beginning")
        return None, metadata
    if differences := changes(saved["environment"], metadata["environment"]):
        say(f"{'; '.join(differences)}: the last digits may differ from an uninterrupted run's")
    return folder, {**saved, "data_dir": metadata["data_dir"]}


def _identity(metadata: Json) -> Json:
    """What makes a run another run, apart from its data, which may have moved.

    A field that is newer than the run has its default.
    """
    fields = {**to_json(Config()), **metadata}
    others = ("data_dir", "data", "environment")
    return {name: value for name, value in fields.items() if name not in others}


def changes(before: Json, after: Json) -> list[str]:
    """The fields that differ between two JSON objects, with both values."""
    return [
        f"{name} was {before.get(name)} and is {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
