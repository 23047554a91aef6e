"""Ctrl-C and SIGTERM: what trains ends its epoch or shard and is saved, all else ends at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Received:
    """The first signal that came, or None."""

    number: int | None = None


@contextmanager
def listening(patient: bool) -> Iterator[Received]:
    """Takes signals down, if `patient`, and ends the process at the first one, or after that.

    Python raises KeyboardInterrupt anywhere, or only when the device is done with an epoch. Here
    another thread reads from a socket which signal came, as soon as it comes. Only the main
    thread can have signals handled: elsewhere this changes nothing.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def receive(number: int, _: object) -> None:
        if "ipykernel" in sys.modules and (received.number or not patient):
            raise KeyboardInterrupt  # a notebook outlives what it runs
        received.number = received.number or number

    def watch() -> None:
        waiting = patient
        while byte := reader.recv(1):
            number = byte[0]
            if number in SIGNALS and waiting:
                from mnist_jax.progress import say  # a tenth of a second, for a rare case

                waiting, name = False, signal.Signals(number).name
                say(f"{name}: ending what is under way; Ctrl-C now stops at once")
                continue
            # A scheduler may send SIGTERM twice.
            ends = number == signal.SIGINT or (number == signal.SIGTERM and not patient)
            if ends and "ipykernel" not in sys.modules:
                print("mnist-jax: interrupted", file=sys.stderr, flush=True)
                os._exit(128 + number)

    # One that the parent had us ignore, as nohup does, stays ignored.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, receive) for number in handled]
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()
