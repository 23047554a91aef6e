"""The folder of compiled programs, from which nothing runs that is not as it was written.

JAX writes its programs in place and reads them unchecked, so that a killed process leaves half of
one for good, and a flipped bit is a wrong instruction. Here every process has a folder of its own.
Kept programs have their SHA-256 in their names; those that are right are linked into it, and new
ones are moved out of it when the process ends. One that is killed leaves nothing to the next.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from mnist_jax.data.download import ABANDONED_SECONDS, cache_dir

LARGEST_FOLDER = 2**24
"""Bytes of the programs that are kept; the oldest make way for new ones."""

_PROGRAMS = f"*-{64 * '[0-9a-f]'}-cache"
"""How JAX calls its files, name-KEY-cache; the kept ones are called name-KEY-SHA256-cache."""


def keep_compiled_programs() -> None:
    """Tells JAX, which is not imported yet, where compiled programs are and where new ones go.

    What the environment says already stands, and a folder that it names is left alone. Without a
    place to keep programs in, all are compiled anew.
    """
    # On some CPUs XLA prints pages about each program that it reads back (openxla/xla#44565).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # XLA's other caches have no checksums, and some JAX would compile anew for their new place.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
    kept = cache_dir() / "compiled"
    with contextlib.suppress(OSError):
        kept.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix="process-", dir=kept))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(own)
        atexit.register(_keep, own, kept, _failures())
        _link(kept, own)


def _failures() -> list[str]:
    """A list to which each warning of JAX goes that it could not write or read a program."""
    failures: list[str] = []
    show = warnings.showwarning

    def heed(message: Warning | str, *about: Any) -> None:
        if "persistent compilation cache entry" in str(message):
            failures.append(str(message))
        else:
            show(message, *about)

    warnings.showwarning = heed
    return failures


def _link(kept: Path, own: Path) -> None:
    """Links the programs in `kept` into `own`, and deletes those that are damaged or too many."""
    for left in kept.glob("process-*"):
        with contextlib.suppress(OSError):  # its process has just ended
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left)
    room = LARGEST_FOLDER
    newest_first = sorted(kept.glob(_PROGRAMS), key=lambda file: -file.lstat().st_mtime_ns)
    for program in newest_first:
        with contextlib.suppress(OSError):  # another process kept or deleted the same
            room -= program.lstat().st_size
            name, _, sha256 = program.name.removesuffix("-cache").rpartition("-")
            plain = room >= 0 and stat.S_ISREG(program.lstat().st_mode)  # others may never end
            if plain and hashlib.sha256(program.read_bytes()).hexdigest() == sha256:
                (own / f"{name}-cache").hardlink_to(program)
            else:
                program.unlink()


def _keep(own: Path, kept: Path, failures: list[str]) -> None:
    """Moves new programs from `own` to `kept`; after a failure none are kept, to begin anew."""
    with contextlib.suppress(OSError):
        for program in (kept if failures else own).glob(_PROGRAMS):
            if failures:
                program.unlink()
            elif program.stat().st_nlink == 1:  # others are links, hashed before
                sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
                program.replace(kept / f"{program.name.removesuffix('-cache')}-{sha256}-cache")
    shutil.rmtree(own, ignore_errors=True)
