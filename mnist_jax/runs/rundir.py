"""Writes and reads the files of a run folder.

    RUN/config.json      config, data, versions and device: everything that determines the run
    RUN/metrics.jsonl    one line per epoch, one list entry per seed
    RUN/checkpoints/     everything needed to resume (see checkpoint.py)
    RUN/summary.json     the result
    RUN/figures/*.png
    RUN/tensorboard/     event files, with --tensorboard
    RUN/page.html        from `mnist-jax page`
    RUN/model.*          from `mnist-jax export`

A file is complete or absent: it is written under another name, then renamed.
"""

import datetime
import errno
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.config import Config
from mnist_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REMEDY = "repeat the train command with --resume to repair it, or train again"

MAX_JSON_BYTES = 2**26  # read limit; a summary of a million seeds has half of that
MAX_METRICS_BYTES = 2**30  # what a thousand seeds write in 16,000 epochs


class DiskError(InputError):
    """A file or folder cannot be written."""


def new_path(config: Config, kind: str = "") -> Path:
    """A new path under runs/, named after the time, the dataset and the layers."""
    layers = "x".join(map(str, config.hidden)) or "linear"
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    name = f"{now}-{kind}{config.dataset.replace('/', '-')}-{layers}"
    paths = (Path("runs") / (f"{name}-{n}" if n > 1 else name) for n in itertools.count(1))
    return next(path for path in paths if not path.exists())


def is_free(run: Path) -> bool:
    """Whether a new run can be written to `run`: it is absent, or has only hidden files."""
    if not run.exists():
        return True
    return run.is_dir() and all(path.name.startswith(".") for path in run.iterdir())


def require_free(run: Path, resume: bool = False, kind: str = "run") -> None:
    """Raises InputError unless `run` is free, or is of this kind and `resume` is true."""
    with disk_errors(run):
        if is_free(run):
            return
        markers = {"run": ("config.json", "checkpoints"), "sweep": ("sweep.json",)}[kind]
        is_resumable = any((run / name).exists() for name in markers)
    if not is_resumable:
        raise InputError(f"{run} already exists and is not a {kind}; choose another --out")
    if not resume:
        raise InputError(f"{run} already exists; choose another --out, or add --resume")


@contextmanager
def claim(run: Path) -> Iterator[None]:
    """Creates the folder, locks out other processes, and removes the folder if it stays empty.

    Raises:
        InputError: another process uses the folder, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / ".lock", timeout=0)
    existed = run.exists()
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{run} is in use by another process; wait until it ends, or choose another --out"
            ) from None
    try:
        yield
    finally:
        lock.release()
        if is_free(run):
            with suppress(OSError):
                (run / ".lock").unlink(missing_ok=True)
                if not existed:
                    run.rmdir()


def read_config(folder: Path) -> Json:
    """The config.json of a run or a checkpoint."""
    return read_json(folder / "config.json")


def write_metrics(run: Path, history: list[Json]) -> None:
    """Writes metrics.jsonl, one line for each epoch of `history`."""
    write_bytes(run / "metrics.jsonl", b"".join(map(json_line, history)))


def append_metrics(run: Path, metrics: Json) -> None:
    """Appends one line to metrics.jsonl. If that fails, the file stays as it was."""
    append_bytes(run / "metrics.jsonl", json_line(metrics))


def read_metrics(run: Path) -> list[Json]:
    """The metrics of each epoch, from the first."""
    file = run / "metrics.jsonl"
    try:
        history = [json.loads(line) for line in read_bytes(file).decode().splitlines()]
        if [metrics["epoch"] for metrics in history] != [*range(1, 1 + len(history))]:
            raise ValueError("its epochs are not 1, 2, 3, ...")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); {REMEDY}") from None
    return history


def write_summary(run: Path, summary: Json) -> None:
    """Writes summary.json, which has a checksum and marks the run as finished."""
    summary = _finite(summary)
    write_json(run / "summary.json", {**summary, "sha256": _checksum(summary)})


def read_summary(run: Path) -> Json:
    """The summary that `write_summary` wrote."""
    summary = read_json(run / "summary.json")
    if summary.pop("sha256", None) != _checksum(summary):
        raise InputError(f"{run / 'summary.json'} is damaged or was edited; {REMEDY}")
    return summary


def _checksum(summary: Json) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def save_figure(file: Path, figure: "Figure") -> Path:
    """Writes `figure` to `file`, in the format that the ending names, and returns `file`."""
    kind = file.suffix[1:].lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{file} cannot be used: it must end in .png, .jpg, .pdf or .svg")
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    with disk_errors(file):
        file.parent.mkdir(exist_ok=True)
    write_bytes(file, content.getvalue())
    return file


def write_bytes(file: Path, content: bytes) -> None:
    """Writes `content` to disk, and only then replaces `file` with it."""
    temporary = file.with_name(f".{file.name}.tmp")
    with disk_errors(file):
        try:
            temporary.unlink(missing_ok=True)  # it may be a symbolic link
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def append_bytes(file: Path, content: bytes) -> None:
    """Appends all of `content`, or leaves `file` as it was."""
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as stream:
            size = stream.tell()
            if stream.write(content) < len(content):
                stream.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_bytes(file: Path, max_bytes: int = MAX_METRICS_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes`."""
    if file.exists() and not file.is_file():
        raise InputError(f"{file} is not a regular file; {REMEDY}")
    with file.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{file} has more than {max_bytes} bytes; {REMEDY}")
    return content


def json_line(value: Json) -> bytes:
    """`value` as a line of a .jsonl file."""
    return (json.dumps(_finite(value)) + "\n").encode()


def write_json(file: Path, value: Json) -> None:
    """Writes an object, one line per key."""
    fields = (f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in _finite(value).items())
    write_bytes(file, ("{\n" + ",\n".join(fields) + "\n}\n").encode())


def read_json(file: Path) -> Json:
    """The object that `write_json` wrote."""
    try:
        value = json.loads(read_bytes(file, MAX_JSON_BYTES))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); {REMEDY}") from None
    return value


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a DiskError that says why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space or choose another --out" if is_full else "choose another --out"
        raise DiskError(f"cannot write {path}: {error.strerror or error}; {remedy}") from None


def one_line(error: Exception) -> str:
    """The message of `error` without line breaks, cut to 200 characters."""
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split())[:200]


def _finite(value: Json) -> Json:
    """`value` with NaN and infinity, which JSON does not have, as None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
