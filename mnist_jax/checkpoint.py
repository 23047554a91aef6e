"""Checkpoints: all that a run needs to go on, in a folder that is whole or absent.

    RUN/checkpoints/N/arrays/        the state of all seeds after step N, as Orbax writes it
    RUN/checkpoints/N/config.json    the run's own, as it was then
    RUN/checkpoints/N/metrics.jsonl
    RUN/checkpoints/N/shards.jsonl   what came of an epoch so far, if step N is in the middle of one
    RUN/checkpoints/N/SHA256SUMS     of all of these, as sha256sum(1) writes and checks them

A checkpoint is made under another name and renamed, the older ones are removed after that, and
nothing but a hash function reads a file whose sum is not yet found right.
"""

import gc
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax import rundir
from mnist_jax.config import InputError
from mnist_jax.rundir import DiskError, Json

PyTree = Any

SUMS = "SHA256SUMS"

ROOM = 2**18
"""Bytes that a checkpoint takes at most beside its arrays, metrics of many epochs aside."""


def save(
    run: Path,
    step: int,
    state: PyTree,
    config: Json,
    records: list[Json],
    keep: int = 1,
    parts: Sequence[Json] = (),
) -> None:
    """Writes the checkpoint of `step`, then removes all but the newest `keep`.

    `state` is a pytree of NumPy arrays; `parts` are the shards of the epoch under way.

    Raises:
        DiskError: the disk is full or not to be written to, and all is as it was before.
    """
    from orbax.checkpoint import v1 as ocp  # a quarter of a second

    folder = run / "checkpoints"
    new = folder / f".{step}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + ROOM)
    except OSError as error:
        raise rundir.cannot_write(folder, error) from None
    problem = None
    with _quiet_array_store():
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            context = ocp.Context()
            # Then no array takes more memory than its file takes on the disk.
            context.array.saving.use_compression = False
            with context:
                ocp.save(str(new.absolute() / "arrays"), state)
            rundir.write_config(new, config)
            rundir.write_metrics(new, records)
            if parts:
                rundir.write_shards(new, [*parts])
            rundir.write_bytes(new / SUMS, _sums(new))
            new.rename(folder / str(step))
            _sync(folder)
        except Exception as error:  # the array store has many kinds
            problem = error if isinstance(error, DiskError) else rundir.cannot_write(folder, error)
            gc.collect()  # now, not when someone listens again
    if problem:
        shutil.rmtree(new, ignore_errors=True)
        raise problem
    for old in all_of(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def all_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first."""
    found = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    return sorted(filter(Path.is_dir, found), key=lambda path: int(path.name), reverse=True)


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is as it was written.

    Raises:
        InputError: the disk does not say.
    """
    try:
        return rundir.read_bytes(folder / SUMS) == _sums(folder)
    except (InputError, FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check the disk") from None


def clear(run: Path, folder: Path | None) -> None:
    """Renames checkpoints newer than `folder`, or all, to N.damaged; removes half-written ones."""
    for path in all_of(run):
        if folder is None or int(path.name) > int(folder.name):
            aside = path.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    for path in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load(folder: Path, like: PyTree) -> PyTree:
    """The state of a whole checkpoint, on the device, in the structure and shapes of `like`.

    It takes no more memory than the files of `folder` take on the disk, twice.

    Raises:
        InputError: it holds other arrays.
    """
    from orbax.checkpoint import v1 as ocp

    path = folder / "arrays"
    # One zero each, which all entries share.
    wanted = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like)
    problem, state = "", None
    with _quiet_array_store():
        try:
            found = ocp.metadata(str(path.absolute())).metadata
            on_disk = sum(file.stat().st_size for file in path.rglob("*"))
            # The array store takes shapes that differ badly, so they are compared first.
            if _shapes(found) != _shapes(wanted):
                problem = "it holds arrays of other shapes than the config asks for"
            elif sum(leaf.nbytes for leaf in jax.tree.leaves(wanted)) > on_disk:
                problem = "its files are smaller than its arrays"
            else:
                state = ocp.load(str(path.absolute()), wanted)
        except MemoryError:
            raise
        except Exception as error:  # whatever a strange file makes the array store raise
            problem = rundir.one_line(error)
        gc.collect()  # now, not when someone listens again
    if problem:
        raise InputError(f"{folder} cannot be used ({problem}); train the run anew")
    return jax.device_put(state)


def _require_room(folder: Path, size: int) -> None:
    """Raises OSError where a full disk or a quota leaves no room for `size` bytes.

    Where the array store finds that out, its threads print tracebacks that nothing can catch.
    """
    if hasattr(os, "posix_fallocate"):  # everywhere but on macOS and Windows
        with tempfile.TemporaryFile(dir=folder) as stream:
            os.posix_fallocate(stream.fileno(), 0, size)


def _sync(folder: Path) -> None:
    """Has a name in `folder` reach the disk, before the older ones go."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _shapes(state: PyTree) -> list[str]:
    return sorted(f"{leaf.dtype}{tuple(leaf.shape)}" for leaf in jax.tree.leaves(state))


def _sums(folder: Path) -> bytes:
    """The SHA-256 of every file in `folder` but hidden ones, which are not ours, a line each."""
    lines = []
    for file in sorted(folder.rglob("[!.]*")):
        if file.is_file() and file != folder / SUMS:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    return "".join(lines).encode()


@contextmanager
def _quiet_array_store() -> Iterator[None]:
    """Keeps Orbax from logging what it raises, and the tasks it drops then from complaining."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
