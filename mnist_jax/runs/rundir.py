"""All that a run leaves on disk, and the way back from it.

    RUN/config.json      what decides the run, its data, and where it began
    RUN/metrics.jsonl    a line an epoch, a list entry a seed
    RUN/checkpoints/     what it needs to go on (see checkpoint.py)
    RUN/summary.json     what came of it
    RUN/figures/*.png
    RUN/page.html        the page of `mnist-jax page`, if it was asked for
    RUN/model.*          the files of `mnist-jax export`, likewise
    RUN/tensorboard/     the event files of --tensorboard, likewise

Every file is whole or absent: it is written under another name and renamed.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mnist_jax.config import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REMEDY = "repeat the train command with --resume to mend it, or train anew"

LARGEST_JSON = 2**26
"""Bytes of config.json or summary.json that are read back; a million seeds take half of that."""

LARGEST_METRICS = 2**28
"""Bytes of metrics.jsonl that are read back; a thousand seeds write that in 4,000 epochs."""


class DiskError(InputError):
    """A file or folder cannot be written."""


def is_free(run: Path) -> bool:
    """Whether a new run can go to `run`: nothing is there, or nothing but hidden files."""
    if not run.exists():
        return True
    return run.is_dir() and all(path.name.startswith(".") for path in run.iterdir())


def require_free(run: Path, resume: bool = False) -> None:
    """Raises InputError unless a new run can go to `run`, or, to `resume`, a run is there."""
    with _disk_errors(run):
        if is_free(run):
            return
        is_run = (run / "config.json").exists() or (run / "checkpoints").exists()
    if not is_run:
        raise InputError(f"{run} exists already and is no run; choose another --out")
    if not resume:
        raise InputError(f"{run} exists already; choose another --out, or add --resume to go on")


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Makes the folder, keeps other processes out of it, and removes it if it stays empty.

    Raises:
        InputError: another process is in it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / ".lock", timeout=0)
    existed = run.exists()
    with _disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{run} is in use by another process; wait for its end, or choose another --out"
            ) from None
    try:
        yield
    finally:
        lock.release()
        if is_free(run):  # nothing came of it
            with suppress(OSError):
                (run / ".lock").unlink(missing_ok=True)
                if not existed:
                    run.rmdir()


def write_config(run: Path, config: Json) -> None:
    """Writes `config.json`."""
    write_json(run / "config.json", config)


def read_config(run: Path) -> Json:
    """What `write_config` wrote."""
    if not run.is_dir():
        raise InputError(f"{run} is no run folder; name one that mnist-jax train made")
    return read_json(run / "config.json")


def write_metrics(run: Path, records: list[Json]) -> None:
    """Writes `metrics.jsonl` anew, a line for each of `records`."""
    write_bytes(run / "metrics.jsonl", "".join(map(_line, records)).encode())


def append_metrics(run: Path, record: Json) -> None:
    """Adds one line; where that fails, the file stays as it was."""
    append_bytes(run / "metrics.jsonl", _line(record).encode())


def read_metrics(run: Path) -> list[Json]:
    """One record an epoch, from the first."""
    return _read_lines(run / "metrics.jsonl", "epoch", 1)


def write_shards(run: Path, parts: list[Json]) -> None:
    """Writes `shards.jsonl`, a line for each shard of an epoch that is under way."""
    write_bytes(run / "shards.jsonl", "".join(map(_line, parts)).encode())


def read_shards(run: Path) -> list[Json]:
    """What `write_shards` wrote, if it did."""
    file = run / "shards.jsonl"
    return _read_lines(file, "shard", 0) if file.exists() else []


def _read_lines(file: Path, number: str, first: int) -> list[Json]:
    try:
        records = [json.loads(line) for line in read_bytes(file).decode().splitlines()]
        if [record[number] for record in records] != [*range(first, first + len(records))]:
            raise ValueError(f"its {number}s are not {first}, {first + 1}, {first + 2}, ...")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); {REMEDY}") from None
    return records


def write_summary(run: Path, summary: Json) -> None:
    """Writes `summary.json`, which tells a finished run, with a sum that tells a damaged one."""
    summary = _finite(summary)
    write_json(run / "summary.json", {**summary, "sha256": _sum(summary)})


def read_summary(run: Path) -> Json:
    """What `write_summary` wrote."""
    summary = read_json(run / "summary.json")
    if summary.pop("sha256", None) != _sum(summary):
        raise InputError(f"{run / 'summary.json'} is damaged or was edited; {REMEDY}")
    return summary


def _sum(summary: Json) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def save_figure(run: Path, name: str, figure: "Figure") -> None:
    """Writes figures/`name`.png."""
    file = run / "figures" / f"{name}.png"
    with _disk_errors(file):
        file.parent.mkdir(exist_ok=True)
        with _replacing(file) as stream:
            figure.savefig(stream, format="png", dpi=150)


def write_bytes(file: Path, content: bytes) -> None:
    """Writes `content`, and has it reach the disk before `file` is what was written."""
    with _disk_errors(file), _replacing(file) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def append_bytes(file: Path, content: bytes) -> None:
    """Adds all of `content`, or leaves `file` as it was."""
    with _disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as stream:
            size = stream.tell()
            if stream.write(content) < len(content):
                stream.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_bytes(file: Path, most: int = LARGEST_METRICS) -> bytes:
    """The content of a plain file of at most `most` bytes."""
    if file.exists() and not file.is_file():
        raise InputError(f"{file} is no plain file; {REMEDY}")
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{file} has more than {most} bytes; {REMEDY}")
    return content


def _line(record: Json) -> str:
    return json.dumps(_finite(record)) + "\n"


def write_json(file: Path, value: Json) -> None:
    """Writes an object, a line a key."""
    fields = (f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in _finite(value).items())
    write_bytes(file, ("{\n" + ",\n".join(fields) + "\n}\n").encode())


def read_json(file: Path) -> Json:
    """What `write_json` wrote."""
    try:
        value = json.loads(read_bytes(file, LARGEST_JSON))
    except FileNotFoundError:
        raise InputError(
            f"{file.parent} is no finished run: it has no {file.name}; "
            "name a folder that mnist-jax train made"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); {REMEDY}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} cannot be read: expected a JSON object; {REMEDY}")
    return value


@contextmanager
def _replacing(file: Path) -> Iterator[IO[bytes]]:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.unlink(missing_ok=True)  # it may be a link to somewhere
    try:
        with temporary.open("xb") as stream:
            yield stream
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: Exception) -> DiskError:
    """The DiskError that says why `path` could not be written, and what to do."""
    reason = error.strerror if isinstance(error, OSError) else None
    full = reason in [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    remedy = "free some space or choose another --out" if full else "choose another --out"
    return DiskError(f"cannot write {path}: {reason or one_line(error)}; {remedy}")


def one_line(error: Exception) -> str:
    """What `error` says, without its line breaks and at most 200 characters of it."""
    return " ".join(str(error).split())[:200]


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
