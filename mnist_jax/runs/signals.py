"""Ctrl-C and SIGTERM end training after the epoch, and save it; a test that began is finished."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import jax
import tqdm  # noqa: F401  `say` needs it, and a signal handler may not import it

from mnist_jax.errors import say
from mnist_jax.model import PyTree

POLL_SECONDS = 0.002  # between the moments at which `wait` lets Python handle signals


class Shutdown:
    """The signal that asked training to end, or 0."""

    signal_number: int = 0


@contextmanager
def graceful_shutdown() -> Iterator[Shutdown]:
    """Records the first SIGINT or SIGTERM; a second SIGINT raises KeyboardInterrupt.

    Schedulers may send SIGTERM twice. A signal that is ignored at the start, as under nohup, stays
    ignored. Python handles signals only in the main thread; in other threads this does nothing.
    """
    shutdown = Shutdown()
    if threading.current_thread() is not threading.main_thread():
        yield shutdown
        return

    def handle(number: int, _: object) -> None:
        if shutdown.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not shutdown.signal_number:
            shutdown.signal_number = number
            name = signal.Signals(number).name
            say(f"{name}: training ends after this epoch; Ctrl-C stops it at once")

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handle))
        yield shutdown


def wait(tree: PyTree) -> None:
    """Waits until the arrays of `tree` are computed, and lets Python handle signals meanwhile.

    `jax.block_until_ready` returns to Python only when the device is done with the whole epoch.
    """
    while not all(leaf.is_ready() for leaf in jax.tree.leaves(tree)):
        time.sleep(POLL_SECONDS)
