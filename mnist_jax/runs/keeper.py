"""What a run writes while it trains, and where that goes when the disk fails."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mnist_jax.config import Rescued, Saving
from mnist_jax.progress import say
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.rundir import DiskError, Json
from mnist_jax.train import TrainState


class Keeper:
    """Keeps a run in its folder; used in a `with` statement, which waits for what is being written.

    Where the disk fails it warns, and tries again after the next epoch. At the end the whole run
    goes to another folder if it has to, and `run` is that folder then.
    """

    def __init__(
        self,
        run: Path,
        config: Json,
        saving: Saving,
        records: list[Json],
        parts: Sequence[Json] = (),
    ) -> None:
        self.run, self.config, self.saving, self.records = run, config, saving, records
        self.parts = [*parts]  # what came of the shards of the epoch under way
        self.failure: DiskError | None = None  # why `run` is not the folder that was asked for
        self.lost: Rescued | None = None
        rundir.write_config(run, config)
        rundir.write_metrics(run, records)
        self._lines: int | None = len(records)  # of metrics.jsonl, if that is known
        self._last_checkpoint = time.monotonic(), len(records)
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def epoch_done(self, record: Json) -> None:
        """Writes the line of an epoch."""
        self.records.append(record)
        self.parts = []
        self._attempt(self._write_metrics)

    def shard_done(self, part: Json) -> None:
        """Remembers what came of a shard, until its epoch is done."""
        self.parts = [*self.parts, part]

    def is_due(self) -> bool:
        """Whether a checkpoint ought to be made now; it also says if the last one failed.

        At most one is being written.
        """
        self._attempt(self._look_after_checkpoint)
        seconds, epoch = self._last_checkpoint
        minutes, epochs = (time.monotonic() - seconds) / 60, len(self.records) - epoch
        due = minutes >= self.saving.checkpoint_minutes or epochs >= self.saving.checkpoint_epochs
        return due and not self._writing

    def begin_checkpoint(self, states: TrainState) -> None:
        """Has another thread write `states`, of NumPy arrays that nobody else overwrites."""
        epoch, parts = len(self.records), self.parts
        self._last_checkpoint = time.monotonic(), epoch
        self._writing = self._pool.submit(self._checkpoint, self.run, states, epoch, parts)

    def training_done(self, states: TrainState) -> None:
        """Writes the last checkpoint; where it cannot be written anywhere, `lost` says why."""
        self._states = states
        try:
            self._wait()
        except DiskError as error:
            say(str(error))
        try:
            self.keep(self._write_all)
        except Rescued as error:
            self.lost = error

    def keep(self, write: Callable[[Path], object]) -> None:
        """Has `write` write to the run's folder, or to another that then holds all of the run.

        Raises:
            Rescued: neither can be written to.
        """
        try:
            write(self.run)
        except DiskError as error:
            if self.failure:
                raise Rescued(self.run, f"{error}; what is there already is whole") from None
            self.failure = error
            self.run = self._other_folder(error)
            self.keep(write)

    def _write_all(self, run: Path) -> None:
        rundir.write_config(run, self.config)
        self._write_metrics(run)
        step = int(self._states.step[0])
        if not (run / "checkpoints" / str(step)).is_dir():
            self._checkpoint(run, self._states, len(self.records), self.parts)

    def _other_folder(self, failure: DiskError) -> Path:
        """A new folder, on another disk as it may be, with all of the run so far."""
        problem: Exception = failure
        for parent in (tempfile.gettempdir, Path.home):
            folder = None
            try:
                name = tempfile.mkdtemp(prefix=f"mnist_jax-{self.run.name}-", dir=parent())
                folder = Path(name)
                self._lines = None
                self._write_all(folder)
                return folder
            except (OSError, RuntimeError, DiskError) as error:
                problem = error
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)
        raise Rescued(
            None,
            f"{failure}. Nor could the run be kept elsewhere: {problem}. What no checkpoint has is "
            "lost",
        )

    def _attempt(self, step: Callable[[Path], None]) -> None:
        try:
            step(self.run)
        except DiskError as error:
            say(f"{error}. Training goes on, and will try again")

    def _write_metrics(self, run: Path) -> None:
        lines, self._lines = self._lines, None  # to be written anew if this fails
        if lines == len(self.records) - 1:
            rundir.append_metrics(run, self.records[-1])
        elif lines != len(self.records):
            rundir.write_metrics(run, self.records)
        self._lines = len(self.records)

    def _checkpoint(self, run: Path, states: TrainState, epoch: int, parts: list[Json]) -> None:
        step, records = int(states.step[0]), self.records[:epoch]
        keep = self.saving.keep_checkpoints
        checkpoint.save(run, step, states, self.config, records, keep, parts)

    def _look_after_checkpoint(self, _: Path) -> None:
        if self._writing and self._writing.done():
            self._wait()

    def _wait(self) -> None:
        """Raises what the thread that writes checkpoints raised, if it did."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()


class Follower(Keeper):
    """The keeper of a process that trains along with another, which writes."""

    def __init__(self, run: Path, config: Json, records: list[Json], parts: list[Json]) -> None:
        self.run, self.config, self.records, self.parts = run, config, records, parts
        self.failure, self.lost = None, None

    def __exit__(self, *_: object) -> None:
        pass

    def epoch_done(self, record: Json) -> None:
        """Remembers the line of an epoch."""
        self.records.append(record)
        self.parts = []

    def is_due(self) -> bool:
        """That is for the other process to say."""
        return False

    def begin_checkpoint(self, states: TrainState) -> None:
        """Writes nothing."""

    def training_done(self, states: TrainState) -> None:
        """Writes nothing."""

    def keep(self, write: Callable[[Path], object]) -> None:
        """Writes nothing."""
