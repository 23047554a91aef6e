"""Several processes that train one run: how they join, communicate and end.

`jax.distributed` joins them. Only the primary process writes and reports, and it tells the others
where the run begins. All processes compute the rest in the same way. If one dies, the others end
with a nonzero exit code, and the files on disk are complete.
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
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_jax.errors import InputError, Interrupted, SaveError, say, unusable

PyTree = Any
Json = dict[str, Any]

AUTO = "auto"
"""JAX finds the coordinator itself, from SLURM, Open MPI, Kubernetes or a TPU pod."""

JOIN_SECONDS = 120
"""How long a process waits for the others to start."""

HEARTBEAT_SECONDS = 20
"""A process that has sent nothing for this long counts as dead."""


@contextmanager
def join(coordinator: str, processes: int = 0, process: int = 0) -> Iterator[None]:
    """Joins the processes of a run, and leaves together with them.

    Inside, only the primary process prints. An error ends this process at once; the others end
    when they notice.

    Args:
        coordinator: HOST:PORT of the primary process, or `AUTO`.
        processes: how many there are, unless `AUTO`.
        process: the number of this one, from 0, unless `AUTO`.

    Raises:
        InputError: the address or the numbers cannot be used, or no cluster is found.
    """
    _initialize(coordinator, processes, process)
    failure = None
    try:
        if jax.device_count() != jax.process_count() * jax.local_device_count():
            raise InputError("all processes need the same number of devices")
        max_over_processes(0)  # connects them now, before one of them is busy loading data
        try:
            yield
        except (Interrupted, SaveError) as error:  # then all processes still leave together
            failure = error
        (failed,) = max_over_processes(failure is not None)
        jax.distributed.shutdown()
    except BaseException as error:
        is_known = isinstance(error, (InputError, OSError))
        if not is_known:
            traceback.print_exc(file=sys.__stderr__)
        message = error if is_known else repr(error)
        print(f"mnist-jax: process {jax.process_index()}: {message}", file=sys.__stderr__)
        sys.stdout.flush()
        os._exit(2 if is_known else 1)  # a normal exit waits minutes for processes that have died
    if failed:
        raise failure or SaveError("the primary process could not save the run")


def _initialize(coordinator: str, processes: int, process: int) -> None:
    """Joins the processes. After that, only the primary one prints, and libraries do not."""
    arguments = _arguments(coordinator, processes, process)
    say("waiting for the other processes")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # many types, from JAX and from cluster software
        raise InputError(
            f"--coordinator {coordinator} cannot be used: {' '.join(str(error).split())}; outside "
            "SLURM, Open MPI, Kubernetes and TPU pods give --coordinator HOST:PORT, --processes N "
            "and --process K"
        ) from None
    if threading.current_thread() is threading.main_thread():  # JAX has replaced the handler
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    devnull = Path(os.devnull).open("w")  # noqa: SIM115  it stays open
    if is_primary():
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    else:
        sys.stdout = sys.stderr = devnull
    os.dup2(devnull.fileno(), 1)  # gloo prints a line for each connection


def _arguments(coordinator: str, processes: int, process: int) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`, checked."""
    if coordinator == AUTO:
        if processes or process:
            raise InputError(f"--coordinator {AUTO} finds --processes and --process by itself")
        return {}
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise unusable("--coordinator", coordinator, f"HOST:PORT of the first process, or {AUTO}")
    if processes < 1:
        raise unusable("--processes", processes, "the number of processes")
    if not 0 <= process < processes:
        raise unusable("--process", process, f"0 to {processes - 1}")
    if process == 0:
        try:  # if the port is taken, JAX would crash or share it
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


def is_primary() -> bool:
    """Whether this is the process that writes and reports."""
    return jax.process_index() == 0


def all_gather(*numbers: int) -> list[tuple[int, ...]]:
    """The `numbers` of every process, in process order."""
    halves = np.array(numbers, np.int64).view(np.int32)  # JAX has no int64 by default
    rows = np.ascontiguousarray(multihost_utils.process_allgather(halves)).view(np.int64)
    return [tuple(row) for row in rows.tolist()]


def max_over_processes(*numbers: int) -> list[int]:
    """For each of these numbers, the largest value in any process."""
    return [max(column) for column in zip(*all_gather(*numbers), strict=True)]


def broadcast_from_primary(value: Callable[[], Any]) -> Any:
    """What `value()` returns in the primary process; it must be JSON-serializable."""
    content = json.dumps(value()).encode() if is_primary() else b""
    (size,) = max_over_processes(len(content))
    message = np.resize(np.frombuffer(content, np.uint8), size)  # zeros in the other processes
    return json.loads(multihost_utils.broadcast_one_to_all(message).tobytes())


def arrays_from_primary(arrays: Callable[[], PyTree], shapes: PyTree) -> PyTree:
    """The arrays, of these shapes, that `arrays()` returns in the primary process."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return multihost_utils.broadcast_one_to_all(arrays() if is_primary() else zeros)


def require_same(values: Json) -> None:
    """Raises InputError unless all processes have the same values."""
    primary, local = broadcast_from_primary(lambda: values), json.loads(json.dumps(values))
    if differing := [name for name in local if primary.get(name) != local[name]]:
        raise InputError(
            f"{' and '.join(differing)} differ from the first process; give all processes the same "
            "options and data"
        )
