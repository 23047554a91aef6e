"""Checkpoints: everything needed to resume a run, in a folder that is complete or absent.

    RUN/checkpoints/N/arrays/*.npy   the state of all seeds after step N
    RUN/checkpoints/N/config.json    copies of the run's files at that time
    RUN/checkpoints/N/metrics.jsonl
    RUN/checkpoints/N/SHA256SUMS     checksums of all of these; `sha256sum -c` checks them too

A checkpoint is written under another name, then renamed. After that, older ones are removed.
Files are parsed only after their checksums are verified.
"""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.runs import rundir
from mnist_jax.runs.rundir import Json

PyTree = Any

SUMS = "SHA256SUMS"
FORMER_NAMES = {"average": "ema_params"}  # state fields: name in earlier versions, name now


def folder_of(run: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`, which may not exist."""
    return run / "checkpoints" / str(step)


def save(run: Path, step: int, state: PyTree, config: Json, history: list[Json]) -> None:
    """Writes the checkpoint of `step`; `state` is a pytree of NumPy arrays.

    Raises:
        DiskError: the disk is full or cannot be written to. Nothing has changed.
    """
    folder = folder_of(run, step)
    new = folder.with_name(f".{step}.tmp")
    try:
        with rundir.disk_errors(folder):
            shutil.rmtree(new, ignore_errors=True)
            (new / "arrays").mkdir(parents=True)
            for name, array in _named(state).items():
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                rundir.write_bytes(new / "arrays" / f"{name}.npy", content.getvalue())
            rundir.write_json(new / "config.json", config)
            rundir.write_metrics(new, history)
            rundir.write_bytes(new / SUMS, _checksums(new))
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_old(run: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`."""
    for folder in all_of(run)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


def all_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first."""
    folders = (path for path in (run / "checkpoints").glob("*") if path.name.isdecimal())
    return sorted(filter(Path.is_dir, folders), key=lambda path: int(path.name), reverse=True)


def is_intact(folder: Path) -> bool:
    """Whether a checkpoint is unchanged since it was saved, and is from the end of an epoch."""
    if (folder / "shards.jsonl").exists():  # an earlier version saved it within an epoch
        return False
    try:
        return rundir.read_bytes(folder / SUMS) == _checksums(folder)
    except (InputError, FileNotFoundError, NotADirectoryError):
        return False


def set_aside_newer(run: Path, folder: Path | None) -> None:
    """Renames checkpoints newer than `folder` (None: all) to N.damaged; removes incomplete ones."""
    for path in all_of(run):
        if folder is None or int(path.name) > int(folder.name):
            damaged = path.with_suffix(".damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            path.rename(damaged)
    for path in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load(folder: Path, like: PyTree) -> PyTree:
    """The state in an intact checkpoint, on the device, in the structure and shapes of `like`.

    Raises:
        InputError: its arrays do not match those of `like`.
    """
    expected = _named(like)
    files = {}
    for file in (folder / "arrays").glob("*.npy"):
        field, dot, path = file.stem.partition(".")
        files[FORMER_NAMES.get(field, field) + dot + path] = file
    try:
        if differences := ", ".join(sorted(files.keys() ^ expected.keys())):
            raise ValueError(f"it has too many or too few arrays: {differences}")
        leaves = [_read_array(files[name], leaf) for name, leaf in expected.items()]
    except (OSError, ValueError) as error:
        reason = rundir.one_line(error)
        raise InputError(f"{folder} cannot be used ({reason}); train the run again") from None
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(like), leaves))


def _read_array(file: Path, like: Any) -> np.ndarray:
    # A memory map reads nothing yet, so a huge shape in a forged file takes no memory.
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind == "V":  # NumPy has no name for bfloat16
        array = array.view(like.dtype)
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{file.name} has another shape than the config asks for")
    return np.array(array)


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by their paths, such as params.Dense_0.kernel."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _checksums(folder: Path) -> bytes:
    """A line with the SHA-256 of each file in `folder`, except hidden ones, which no run writes."""
    lines = []
    for file in sorted(folder.rglob("[!.]*")):
        if file.is_file() and file != folder / SUMS:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    return "".join(lines).encode()
