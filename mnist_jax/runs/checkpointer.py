"""Saves a run while it trains, and finds the checkpoint to resume from."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from mnist_jax.config import SaveOptions
from mnist_jax.errors import InputError, say
from mnist_jax.parallel.mesh import gather_to_host
from mnist_jax.parallel.multihost import (
    arrays_from_primary,
    broadcast_from_primary,
    is_primary,
    max_over_processes,
)
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.metadata import require_same_run
from mnist_jax.runs.results import is_finished, parse_config
from mnist_jax.runs.rundir import DiskError, Json
from mnist_jax.train import TrainState


@contextmanager
def open_run(
    path: Path, metadata: Json, options: SaveOptions, resume: bool
) -> Iterator["Checkpointer"]:
    """Locks the folder of a run, which must be new unless `resume` is true.

    Raises:
        InputError: the folder is in use, is another run's, or cannot be written to.
    """
    with rundir.claim(path) if is_primary() else nullcontext():
        yield Checkpointer(path, metadata, options, resume)


class Checkpointer:
    """The folder of a run that trains: its config, its metrics and its checkpoints.

    A save that fails is reported and repeated after the next epoch. Only the primary process reads
    and writes files; it tells the others where to resume.

    Attributes:
        history: the metrics of each epoch so far.
        failure: why the folder is not up to date, or None if it is.
    """

    def __init__(self, path: Path, metadata: Json, options: SaveOptions, resume: bool) -> None:
        self.path, self.metadata, self.options = path, metadata, options
        self.failure: DiskError | None = None
        folder = None  # of the checkpoint to resume from
        if is_primary():
            rundir.require_free(path, resume)  # another process may have used it
            if not rundir.is_free(path):
                folder, self.metadata = find_checkpoint(path, metadata)
        self._folder = folder

        def progress() -> tuple[bool, bool, list[Json]]:
            if folder is None:
                return False, False, []
            return True, is_finished(path, folder), rundir.read_metrics(folder)

        self.resumes, self.is_finished, self.history = broadcast_from_primary(progress)
        self._last_save = time.monotonic(), len(self.history)

    def restore(self, shapes: TrainState) -> TrainState:
        """The states to resume from, which have these shapes."""
        folder = self._folder or Path()  # only the primary process has and loads it
        return arrays_from_primary(lambda: checkpoint.load(folder, shapes), shapes)

    def refresh(self) -> None:
        """Writes the config and the metrics so far. If the run continues, removes its summary."""
        if is_primary():
            if not self.is_finished:
                (self.path / "summary.json").unlink(missing_ok=True)
            rundir.write_json(self.path / "config.json", self.metadata)
            rundir.write_metrics(self.path, self.history)

    def log(self, metrics: Json) -> None:
        """Adds the metrics of an epoch."""
        self.history.append(metrics)
        if self.failure:  # earlier lines may be missing
            self.write(partial(rundir.write_metrics, self.path, self.history))
        else:
            self.write(partial(rundir.append_metrics, self.path, metrics))

    def is_due(self) -> bool:
        """Whether to save a checkpoint now; the same in every process."""
        saved_at, saved_epoch = self._last_save
        minutes, epochs = (time.monotonic() - saved_at) / 60, len(self.history) - saved_epoch
        due = minutes >= self.options.checkpoint_minutes
        due = due or epochs >= self.options.checkpoint_epochs or self.failure is not None
        (due,) = max_over_processes(due and is_primary())
        return bool(due)

    def save(self, states: TrainState) -> None:
        """Saves a checkpoint of `states`, unless their step already has one."""
        states = gather_to_host(states)
        step = int(states.step[0])

        def write() -> None:
            if self.failure:
                rundir.write_metrics(self.path, self.history)
            if not checkpoint.folder_of(self.path, step).is_dir():
                checkpoint.save(self.path, step, states, self.metadata, self.history)
                checkpoint.remove_old(self.path, self.options.keep_checkpoints)
            self.failure = None

        self.write(write)
        self._last_save = time.monotonic(), len(self.history)

    def write(self, write: Callable[[], object]) -> None:
        """Calls `write` in the primary process. A failure is reported and remembered."""
        if not is_primary():
            return
        try:
            write()
        except DiskError as error:
            say(f"{error}. The run continues")
            self.failure = error


def find_checkpoint(path: Path, metadata: Json) -> tuple[Path | None, Json]:
    """The newest intact checkpoint of the run in `path`, if there is one, and its config.json.

    Damaged checkpoints are set aside. `metadata` is the config.json of the run to train now.

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
        saved = metadata  # there is no intact config to compare
    require_same_run(path, saved, metadata)
    checkpoint.set_aside_newer(path, folder)
    if not folder:
        say(f"{path} has no intact checkpoint: training starts from the beginning")
        return None, metadata
    return folder, {**saved, "data_dir": metadata["data_dir"]}
