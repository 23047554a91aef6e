"""Checkpoints: all that a run needs to go on, in a folder that is whole or absent.

    RUN/checkpoints/N/arrays/*.npy   the state of all seeds after step N, as NumPy writes it
    RUN/checkpoints/N/config.json    the run's own, as it was then
    RUN/checkpoints/N/metrics.jsonl
    RUN/checkpoints/N/shards.jsonl   what came of an epoch so far, if step N is in the middle of one
    RUN/checkpoints/N/SHA256SUMS     of all of these, as sha256sum(1) writes and checks them

A checkpoint is made under another name and renamed, the older ones are removed after that, and
nothing but a hash function reads a file whose sum is not yet found right.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.config import InputError
from mnist_jax.runs import rundir
from mnist_jax.runs.rundir import DiskError, Json

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
    folder = run / "checkpoints"
    new = folder / f".{step}.tmp"
    arrays = _named(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, sum(array.nbytes for array in arrays.values()) + ROOM)
        shutil.rmtree(new, ignore_errors=True)
        (new / "arrays").mkdir(parents=True)
        for name, array in arrays.items():
            with (new / "arrays" / f"{name}.npy").open("xb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        rundir.write_config(new, config)
        rundir.write_metrics(new, records)
        if parts:
            rundir.write_shards(new, [*parts])
        rundir.write_bytes(new / SUMS, _sums(new))
        new.rename(folder / str(step))
        _sync(folder)
    except (OSError, DiskError) as error:
        shutil.rmtree(new, ignore_errors=True)
        known = isinstance(error, DiskError)
        raise (error if known else rundir.cannot_write(folder, error)) from None
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

    It takes no more memory than the files of `folder` take on the disk.

    Raises:
        InputError: it holds other arrays.
    """
    paths = {path.stem: path for path in (folder / "arrays").glob("*.npy")}
    problem, found = "", {}
    for name, leaf in _named(like).items():
        try:
            # What it takes on the disk is known before it is read.
            array = np.load(paths[name], mmap_mode="r", allow_pickle=False)
            if array.dtype.kind == "V":  # NumPy has no name for bfloat16
                array = array.view(leaf.dtype)
            if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                problem = "it holds arrays of other shapes than the config asks for"
            found[name] = array
        except KeyError:
            problem = f"it has no {name}"
        except (OSError, ValueError) as error:
            problem = rundir.one_line(error)
    if problem or len(found) < len(paths):
        problem = problem or "it holds more arrays than the config asks for"
        raise InputError(f"{folder} cannot be used ({problem}); train the run anew")
    leaves = [np.array(array) for array in found.values()]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(like), leaves))


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by their way from its root, such as params.Dense_0.kernel."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _require_room(folder: Path, size: int) -> None:
    """Raises OSError where a full disk or a quota leaves no room for `size` bytes."""
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


def _sums(folder: Path) -> bytes:
    """The SHA-256 of every file in `folder` but hidden ones, which are not ours, a line each."""
    lines = []
    for file in sorted(folder.rglob("[!.]*")):
        if file.is_file() and file != folder / SUMS:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    return "".join(lines).encode()
