"""Several processes as one run: how they come together, what they tell each other, how they end.

JAX joins them (`jax.distributed`). The first one leads: it alone writes and shows progress, and the
others know from it how the run begins and goes on. Everything else all of them compute alike. When
one is gone, none can go on: each says so in a line and ends, and what is written is whole.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_jax.config import InputError, Interrupted, Rescued, unusable
from mnist_jax.progress import say

PyTree = Any
Json = dict[str, Any]

AUTO = "auto"
"""The coordinator where JAX finds out from SLURM, Open MPI, Kubernetes or a TPU pod who is who."""

WAIT_SECONDS = 120
"""How long a process waits for the others to start."""

SILENT_SECONDS = 20
"""After how long without a sign of life a process counts as gone."""

_GONE = "another process of this run is gone, so this one ends; --resume goes on from the last save"
_BROKEN = ("gloo", "nccl", "coordination", "distributed service", "barrier")
"""What is in the words of JAX's errors where another process is gone."""


@contextmanager
def joined(
    coordinator: str, count: int = 0, number: int = 0, wait_seconds: int = WAIT_SECONDS
) -> Iterator[None]:
    """Joins this process with the others of its run, and leaves together with them.

    Only the process that leads prints from here on. An error ends the process at once, as the
    others, who find it gone, do then.

    Args:
        coordinator: HOST:PORT of the first process, or `AUTO`.
        count: of all processes, unless `AUTO`.
        number: which of them this is, from 0.
        wait_seconds: how long to wait for the others.

    Raises:
        InputError: the address or the numbers cannot be used, or nothing tells who is who.
    """
    whose = _join(coordinator, count, number, wait_seconds)
    _hush()
    lost: Rescued | None = None
    try:
        if jax.device_count() != jax.process_count() * jax.local_device_count():
            raise InputError("processes need the same number of devices each; start others")
        of_all(0)  # connects them, which must not wait for the data of one of them
        try:
            yield
        except Rescued as error:
            lost = error
        except Interrupted:  # of all of them
            jax.distributed.shutdown()
            raise
        if (1,) in of_all(lost is not None):
            lost = lost or Rescued(None, "the first process says what is lost")
        jax.distributed.shutdown()
    except Interrupted:
        raise
    except (InputError, OSError) as error:
        _end(f"{whose}{error}", 2)
    except BaseException as error:
        words = " ".join(str(error).split())
        if any(word in words.lower() for word in _BROKEN):
            _end(f"{whose}{_GONE} ({words[:200]})", 1)
        traceback.print_exc(file=sys.__stderr__)
        _end(f"{whose}{error!r}", 1)
    if lost:
        raise lost


def _join(coordinator: str, count: int, number: int, wait_seconds: int) -> str:
    """Joins the others, and gives what lines about this process begin with."""
    if coordinator == AUTO and (count or number):
        raise InputError(f"--coordinator {AUTO} finds --processes and --process out by itself")
    by_hand = {} if coordinator == AUTO else _by_hand(coordinator, count, number)
    if jax.__version_info__ >= (0, 10):  # an older one ends the process itself, with these words
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or it prints the stack of each failure
    whose = f"process {number}: " if by_hand else ""
    _at_abort(
        f"{whose}not all processes came together at {coordinator} in {wait_seconds} s; start all "
        "of them, each with the same --coordinator and its own number"
    )
    waiting = threading.Timer(2, lambda: say(f"{whose}waiting for the other processes"))
    waiting.start()
    try:
        jax.distributed.initialize(
            **by_hand,
            initialization_timeout=wait_seconds,
            heartbeat_timeout_seconds=SILENT_SECONDS,
        )
    except Exception as error:  # of JAX, or of what tells it who is who
        why = " ".join(str(error).split())
        if "should be defined" in why:
            why = "it finds no SLURM step, Open MPI, Kubernetes job or TPU pod"
        raise InputError(
            f"--coordinator {coordinator} cannot be used: {why}; give --coordinator HOST:PORT, "
            "--processes N and --process K"
        ) from None
    finally:
        waiting.cancel()
    whose = f"process {jax.process_index()}: "
    _at_abort(whose + _GONE)
    if threading.current_thread() is threading.main_thread():  # JAX has taken SIGTERM to itself
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return whose


def _by_hand(coordinator: str, count: int, number: int) -> dict[str, Any]:
    """What `jax.distributed.initialize` takes, of what the user gave."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise unusable("--coordinator", coordinator, f"HOST:PORT of the first process, or {AUTO}")
    if count < 1:
        raise unusable("--processes", count, "the number of processes")
    if not 0 <= number < count:
        raise unusable("--process", number, f"0 to {count - 1}")
    if number == 0:
        try:  # JAX would crash, or share it
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise InputError(
                f"--coordinator {coordinator} cannot be used: {error.strerror}; choose another port"
            ) from None
    return {
        "coordinator_address": coordinator,
        **{"num_processes": count, "process_id": number},
        "cluster_detection_method": "deactivate",
    }


def _at_abort(line: str) -> None:
    """Has the process end with `line` where JAX aborts it, which would print its stack."""
    global _handler  # as long as C may call it

    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _end(line, 1))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


def _hush() -> None:
    """Has only the process that leads print, and no library write into its output."""
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115  it stays open
    if leads():
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    else:
        sys.stdout = sys.stderr = nowhere
    os.dup2(nowhere.fileno(), 1)  # gloo prints a line for each connection


def _end(line: str, code: int) -> NoReturn:
    """Ends the process at once: Python's own way waits for minutes for processes that are gone."""
    _ending.acquire()  # of two threads the first one tells
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"mnist-jax: {line}\n".encode())
    os._exit(code)


_ending = threading.Lock()


def leads() -> bool:
    """Whether this process writes, and shows how it goes."""
    return jax.process_index() == 0


def of_all(*numbers: int) -> list[tuple[int, ...]]:
    """The `numbers` of every process, by process."""
    if jax.process_count() == 1:
        return [numbers]
    halves = np.array(numbers, np.int64).view(np.int32)  # as JAX has no wider ones by default
    rows = np.ascontiguousarray(multihost_utils.process_allgather(halves)).view(np.int64)
    return [tuple(row) for row in rows.tolist()]


def of_leader(value: Callable[[], Any]) -> Any:
    """What the process that leads makes, as JSON has it."""
    if jax.process_count() == 1:
        return value()
    words = np.frombuffer(json.dumps(value()).encode() if leads() else b"", np.uint8)
    ((size,), *_) = of_all(len(words))
    words = words if leads() else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(words).tobytes())


def require_alike(about: Json) -> None:
    """Raises InputError unless all processes have the same `about`."""
    if jax.process_count() == 1:
        return
    first, own = of_leader(lambda: about), json.loads(json.dumps(about))
    if differing := [name for name in own if first.get(name) != own[name]]:
        raise InputError(
            f"other {' and '.join(differing)} than the first process; give all of them the same "
            "options and data"
        )


def arrays_of_leader(arrays: Callable[[], PyTree], shapes: PyTree) -> PyTree:
    """The arrays that the process that leads makes, which have the `shapes`."""
    if jax.process_count() == 1:
        return arrays()
    own = arrays() if leads() else jax.tree.map(lambda at: np.zeros(at.shape, at.dtype), shapes)
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, own))
