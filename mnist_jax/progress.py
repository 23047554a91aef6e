"""What a person sees while a run goes on: a bar in a terminal or notebook, else plain lines.

A terminal that is gone or a full disk takes the words, and not the run.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm.auto import tqdm


@contextmanager
def progress(epochs: int, seeds: int, done: int = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that shows a record of metrics.jsonl, on standard error.

    It shows the loss and accuracy so far, images per second and the time left. `done` epochs are
    over already.
    """
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    layout = "{bar:8} {n}/{total}, {elapsed} so far, {remaining} left, {desc}"
    bar = tqdm(total=epochs, initial=done, disable=not live, dynamic_ncols=True, bar_format=layout)
    bar.set_description_str("in the first epoch" if not done else f"in epoch {done + 1}")

    def show(record: dict[str, Any]) -> None:
        words = [
            f"loss {sum(record['train_loss']) / seeds:.4f}",
            f"accuracy {100 - sum(record['train_error_percent']) / seeds:.2f} %",
        ]
        if "validation_error_percent" in record:
            percent = 100 - sum(record["validation_error_percent"]) / seeds
            words.append(f"validation {percent:.2f} %")
        words.append(f"{record['images_per_second']:,.0f} images/s")
        if seeds > 1:
            words.append(f"means of {seeds} seeds")
        bar.set_description_str(", ".join(words), refresh=False)
        with suppress(OSError):
            bar.update()
        if not live:
            left = record["seconds"] * (epochs - record["epoch"])
            words = [f"epoch {record['epoch']}/{epochs}", f"{left:.0f} s left", *words]
            say(", ".join(words))

    ended = threading.Event()

    def tick() -> None:
        """Keeps the clock running through a long epoch, which is one call to the device."""
        while not ended.wait(0.5):
            with suppress(OSError):
                bar.refresh()

    if live:
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield show
    finally:
        ended.set()
        with suppress(OSError):
            bar.close()


def say(message: str) -> None:
    """Prints a line to standard error, above the bar where there is one."""
    with suppress(OSError):
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
