"""All that a run leaves on disk, and the way back from it.

    RUN/config.json      what decides the run, and the shape of its data
    RUN/metrics.jsonl    a line an epoch, a list entry a seed
    RUN/checkpoints/N/   the state of all seeds after step N
    RUN/summary.json     what came of it
    RUN/figures/*.png

Every file is whole or absent: it is written under another name and renamed.
"""

import errno
import gc
import json
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jax

from mnist_jax.config import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
Json = dict[str, Any]


def require_free(run: Path) -> None:
    """Raises InputError unless a new run can go to `run`."""
    with _disk_errors(run):
        if run.exists() and not (run.is_dir() and not any(run.iterdir())):
            raise InputError(f"{run} exists already; choose another --out")


def create(run: Path, config: Json) -> None:
    """Makes the folder and writes `config`."""
    require_free(run)
    with _disk_errors(run):
        existed = run.exists()
        run.mkdir(parents=True, exist_ok=True)
    try:
        _write_json(run / "config.json", config)
    except InputError:
        if not existed:
            run.rmdir()
        raise


def read_config(run: Path) -> Json:
    """What `create` wrote."""
    if not run.is_dir():
        raise InputError(f"{run} is no run folder; name one that mnist-jax train made")
    return _read_json(run / "config.json")


def append_metrics(run: Path, record: Json) -> None:
    """Adds one line; where that fails, the file stays as it was."""
    file = run / "metrics.jsonl"
    line = json.dumps(_finite(record)) + "\n"
    with _disk_errors(file), file.open("a", encoding="utf-8") as stream:
        size = stream.tell()
        try:
            stream.write(line)
            stream.flush()
        except OSError:
            os.truncate(file, size)
            raise


def read_metrics(run: Path) -> list[Json]:
    """One record an epoch."""
    file = run / "metrics.jsonl"
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); train the run anew") from None


def write_summary(run: Path, summary: Json) -> None:
    """Writes `summary.json`, which tells a finished run."""
    _write_json(run / "summary.json", summary)


def read_summary(run: Path) -> Json:
    """What `write_summary` wrote."""
    return _read_json(run / "summary.json")


def save_checkpoint(run: Path, step: int, state: PyTree) -> None:
    """Writes `state`, any pytree of arrays."""
    from orbax.checkpoint import v1 as ocp  # half a second

    folder = run / "checkpoints"
    problem = None
    with _quiet_array_store():
        try:
            ocp.save(str(folder.absolute() / str(step)), state)
        except (OSError, ValueError) as error:
            problem = _cannot_write(folder, error)
    if problem:
        shutil.rmtree(folder, ignore_errors=True)
        raise problem


def load_checkpoint(run: Path, like: PyTree) -> PyTree:
    """The newest checkpoint, in the structure, shapes and types of `like`."""
    from orbax.checkpoint import v1 as ocp

    folder = run / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise InputError(f"{run} has no checkpoint; it did not finish: train it anew")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like
    )
    path = folder.absolute() / str(max(steps))
    problem = ""
    with _quiet_array_store():
        try:
            # The array store takes shapes that differ badly, so they are compared first.
            if _shapes(ocp.metadata(str(path)).metadata) != _shapes(abstract):
                problem = "it holds arrays of other shapes than the config asks for"
            else:
                return ocp.load(str(path), abstract)
        except Exception as error:  # whatever a damaged file makes the array store raise
            problem = _one_line(error)
    raise InputError(f"{path} cannot be read ({problem}); train the run anew")


def _shapes(state: PyTree) -> list[str]:
    return sorted(f"{leaf.dtype}{leaf.shape}" for leaf in jax.tree.leaves(state))


def save_figure(run: Path, name: str, figure: "Figure") -> None:
    """Writes figures/`name`.png."""
    file = run / "figures" / f"{name}.png"
    with _disk_errors(file):
        file.parent.mkdir(exist_ok=True)
        with _replacing(file) as stream:
            figure.savefig(stream, format="png", dpi=150)


def _write_json(file: Path, value: Json) -> None:
    fields = (f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in _finite(value).items())
    text = "{\n" + ",\n".join(fields) + "\n}\n"
    with _disk_errors(file), _replacing(file) as stream:
        stream.write(text.encode())


def _read_json(file: Path) -> Json:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{file.parent} is no finished run: it has no {file.name}; "
            "name a folder that mnist-jax train made"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); train the run anew") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} cannot be read: expected a JSON object; train the run anew")
    return value


@contextmanager
def _replacing(file: Path) -> Iterator[IO[bytes]]:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError | ValueError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else None
    if number := re.search(r"os_error_code='(\d+)'", str(error)):  # from the array store
        reason = os.strerror(int(number[1]))
    full = reason in [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    remedy = "free some space or choose another --out" if full else "choose another --out"
    return InputError(f"cannot write {path}: {reason or _one_line(error)}; {remedy}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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
            gc.collect()  # now, not when someone listens again
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
