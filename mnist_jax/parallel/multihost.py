"""Several processes as one run: how they join, what they tell each other, and how they end.

`jax.distributed` joins them. The primary process alone writes and reports; the others learn from it
where the run begins. Everything else all of them compute alike. When one dies, the others end with
exit code 1, and what is on the disk is complete.
"""

import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_jax.errors import InputError, Interrupted, SaveError, say, unusable

PyTree = Any
Json = dict[str, Any]

AUTO = "auto"
"""Has JAX find the coordinator: from SLURM, Open MPI, Kubernetes or a TPU pod."""

JOIN_SECONDS = 120
"""How long a process waits for the others to start."""

HEARTBEAT_SECONDS = 20
"""After how long without a sign of life a process counts as dead."""

PEER_DIED = "another process of this run died, so this one ends; --resume continues the run"
PEER_ERRORS = ("gloo", "nccl", "coordination", "distributed service", "barrier")
"""Words in JAX's error messages when another process has died."""


@contextmanager
def join(
    coordinator: str, processes: int = 0, process: int = 0, join_seconds: int = JOIN_SECONDS
) -> Iterator[None]:
    """Joins the processes of a run, and leaves together with them.

    Inside, only the primary process prints. An error ends this process at once, and then the
    others, which find it gone. If a process never starts or dies, JAX may abort the others itself;
    their exit code is not 0 either.

    Args:
        coordinator: HOST:PORT of the primary process, or `AUTO`.
        processes: how many there are, unless `AUTO`.
        process: the number of this one, from 0, unless `AUTO`.
        join_seconds: how long to wait for the others.

    Raises:
        InputError: the address or the numbers cannot be used, or no cluster is found.
    """
    _initialize(coordinator, processes, process, join_seconds)
    name = f"process {jax.process_index()}"
    _silence_others()
    save_error: SaveError | None = None
    try:
        if jax.device_count() != jax.process_count() * jax.local_device_count():
            raise InputError("all processes need the same number of devices")
        max_over_processes(0)  # connects them now, before one of them is busy loading data
        try:
            yield
        except SaveError as error:
            save_error = error
        except Interrupted:  # in all of them
            jax.distributed.shutdown()
            raise
        (failed,) = max_over_processes(save_error is not None)
        if failed and save_error is None:
            save_error = SaveError("the primary process could not save the run")
        jax.distributed.shutdown()
    except Interrupted:
        raise
    except (InputError, OSError) as error:
        _exit(f"{name}: {error}", 2)
    except BaseException as error:
        message = " ".join(str(error).split())
        if any(word in message.lower() for word in PEER_ERRORS):
            _exit(f"{name}: {PEER_DIED} ({message[:200]})", 1)
        traceback.print_exc(file=sys.__stderr__)
        _exit(f"{name}: {error!r}", 1)
    if save_error:
        raise save_error


def _initialize(coordinator: str, processes: int, process: int, join_seconds: int) -> None:
    if coordinator == AUTO and (processes or process):
        raise InputError(f"--coordinator {AUTO} finds --processes and --process by itself")
    arguments = {} if coordinator == AUTO else _arguments(coordinator, processes, process)
    say("waiting for the other processes")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # many kinds, of JAX and of the clusters that it asks
        reason = " ".join(str(error).split())
        if "should be defined" in reason:
            reason = "there is no SLURM step, Open MPI, Kubernetes job or TPU pod"
        raise InputError(
            f"--coordinator {coordinator} cannot be used: {reason}; give --coordinator HOST:PORT, "
            "--processes N and --process K"
        ) from None
    if threading.current_thread() is threading.main_thread():  # JAX has replaced the handler
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _arguments(coordinator: str, processes: int, process: int) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`, checked."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise unusable("--coordinator", coordinator, f"HOST:PORT of the first process, or {AUTO}")
    if processes < 1:
        raise unusable("--processes", processes, "the number of processes")
    if not 0 <= process < processes:
        raise unusable("--process", process, f"0 to {processes - 1}")
    if process == 0:
        try:  # JAX would crash if the port is taken, or share it
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise InputError(
                f"--coordinator {coordinator} cannot be used: {error.strerror}; choose another port"
            ) from None
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _silence_others() -> None:
    """Lets only the primary process print, and no library write to its standard output."""
    devnull = Path(os.devnull).open("w")  # noqa: SIM115  it stays open
    if is_primary():
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    else:
        sys.stdout = sys.stderr = devnull
    os.dup2(devnull.fileno(), 1)  # gloo prints a line for each connection


def _exit(message: str, code: int) -> NoReturn:
    """Ends the process at once: a normal exit waits minutes for processes that have died."""
    sys.stdout.flush()
    os.write(2, f"mnist-jax: {message}\n".encode())
    os._exit(code)


def is_primary() -> bool:
    """Whether this is the process that writes and reports."""
    return jax.process_index() == 0


def all_gather(*numbers: int) -> list[tuple[int, ...]]:
    """The `numbers` of every process, by process."""
    if jax.process_count() == 1:
        return [numbers]
    halves = np.array(numbers, np.int64).view(np.int32)  # JAX has no int64 by default
    rows = np.ascontiguousarray(multihost_utils.process_allgather(halves)).view(np.int64)
    return [tuple(row) for row in rows.tolist()]


def max_over_processes(*numbers: int) -> list[int]:
    """The largest of each of these numbers in any process."""
    return [max(column) for column in zip(*all_gather(*numbers), strict=True)]


def broadcast_from_primary(value: Callable[[], Any]) -> Any:
    """What `value()` returns in the primary process, which JSON must be able to hold."""
    if jax.process_count() == 1:
        return value()
    message = np.frombuffer(json.dumps(value()).encode() if is_primary() else b"", np.uint8)
    (size, *_) = max_over_processes(len(message))
    message = message if is_primary() else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(message).tobytes())


def arrays_from_primary(arrays: Callable[[], PyTree], shapes: PyTree) -> PyTree:
    """What `arrays()` returns in the primary process, which has these shapes."""
    if jax.process_count() == 1:
        return arrays()
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    own = arrays() if is_primary() else empty
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, own))


def require_same(values: Json) -> None:
    """Raises InputError unless all processes have the same values."""
    if jax.process_count() == 1:
        return
    primary, own = broadcast_from_primary(lambda: values), json.loads(json.dumps(values))
    if differing := [name for name in own if primary.get(name) != own[name]]:
        raise InputError(
            f"{' and '.join(differing)} differ from the first process; give all processes the same "
            "options and data"
        )
