"""Options that several commands share, and the cache of compiled programs."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Annotated

import tyro

from mnist_jax.errors import InputError, in_notebook

STARTED = None if in_notebook() else time.perf_counter() - time.process_time()
"""When the process started, estimated from its CPU time."""

MAX_CACHE_BYTES = 2**26
"""Limit for all compiled programs; JAX removes the least recently used ones first."""

RunFolder = Annotated[
    tyro.conf.Positional[Path],
    tyro.conf.arg(metavar="RUN", help="A run folder that train made."),
]
Photos = Annotated[
    tyro.conf.Positional[tuple[Path, ...]],
    tyro.conf.arg(metavar="IMAGE...", help="Image files with one digit each."),
]
DataDir = Annotated[Path | None, tyro.conf.arg(help="The data folder, if it has moved.")]
Mesh = Annotated[
    str | None,
    tyro.conf.arg(help="How many devices to shard networks and batches over, such as 4x2."),
]
CompilationCache = Annotated[
    bool, tyro.conf.arg(help="Keep compiled programs, to start faster the next time.")
]


@dataclasses.dataclass(frozen=True)
class Processes:
    """How several processes join to train as one run."""

    coordinator: str | None = None
    """HOST:PORT of the first process, if several train one run, each on its own devices; auto
    under SLURM, Open MPI or Kubernetes, or on a TPU pod."""

    processes: int = 0
    """How many processes --coordinator joins."""

    process: int = 0
    """The number of this process, from 0."""

    def join(self) -> contextlib.AbstractContextManager[None]:
        """Joins the other processes, if there are any."""
        if self.coordinator is None:
            if self.processes or self.process:
                raise InputError("--processes and --process need --coordinator HOST:PORT")
            return contextlib.nullcontext()
        from mnist_jax.parallel.multihost import join

        return join(self.coordinator, self.processes, self.process)


def keep_compiled_programs(keep: bool) -> None:
    """Makes JAX keep compiled programs in the cache folder. Call it before importing JAX.

    Environment variables that are already set do not change.
    """
    # On some CPUs XLA logs pages of text for each program that it reads (openxla/xla#44565).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if keep:
        # Not in "compiled", where an earlier version left files that older JAX cannot evict.
        from mnist_jax.data.download import cache_dir

        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "programs"))
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_CACHE_BYTES))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
