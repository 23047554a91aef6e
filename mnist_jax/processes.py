"""Several processes as one run, once `jax.distributed` has joined them: what they tell each other.

The first process leads: it alone writes and shows progress, and the others know from it how the run
begins and goes on. Everything else all of them compute alike.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any


def leads() -> bool:
    """Whether this process writes, and shows how it goes."""
    return jax.process_index() == 0


def of_all(*numbers: int) -> list[tuple[int, ...]]:
    """The `numbers` of every process, by process."""
    if jax.process_count() == 1:
        return [numbers]
    return [tuple(row) for row in multihost_utils.process_allgather(np.array(numbers)).tolist()]


def of_leader(value: Callable[[], Any]) -> Any:
    """What the process that leads makes, as JSON has it."""
    if jax.process_count() == 1:
        return value()
    words = np.frombuffer(json.dumps(value()).encode() if leads() else b"", np.uint8)
    ((size,), *_) = of_all(len(words))
    words = words if leads() else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(words).tobytes())


def arrays_of_leader(arrays: Callable[[], PyTree], shapes: PyTree) -> PyTree:
    """The arrays that the process that leads makes, which have the `shapes`."""
    if jax.process_count() == 1:
        return arrays()
    own = arrays() if leads() else jax.tree.map(lambda at: np.zeros(at.shape, at.dtype), shapes)
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, own))
