"""What a person sees while a run goes on: a bar in a terminal or notebook, else plain lines.

A terminal that is gone or a full disk takes the words, and not the run.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

from mnist_jax.notebook import in_notebook


class NotebookBar(tqdm):
    """The bar as a line of text that a notebook replaces, and keeps when it is saved.

    tqdm's own bar for notebooks needs ipywidgets, and warns where they are missing.
    """

    def __init__(self, **options: Any) -> None:
        self._handle: Any = None
        super().__init__(**{**options, "dynamic_ncols": False}, gui=True)  # no terminal is used
        if not self.disable and not self.delay:
            self.display()

    def _line(self) -> dict[str, str]:
        return {"text/plain": str(self)}

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows the line, or replaces it."""
        from IPython.display import display

        if self._handle:
            self._handle.update(self._line(), raw=True)
        else:
            self._handle = display(self._line(), raw=True, display_id=True)

    def clear(self, nolock: bool = False) -> None:
        """Leaves the line, which other output is not mixed with."""

    def close(self) -> None:
        """Shows how it ended."""
        if self._handle:
            self.display()
        super().close()


def is_live() -> bool:
    """Whether a person watches who can see a bar move."""
    return sys.stderr.isatty() or in_notebook()


def bar(**options: Any) -> tqdm:
    """tqdm's bar, or the same in a notebook; none where nobody watches."""
    return (NotebookBar if in_notebook() else tqdm)(**options, disable=not is_live())


@contextmanager
def progress(epochs: int, seeds: int, done: int = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that shows a record of metrics.jsonl, on standard error.

    It shows the loss and accuracy so far, images per second and the time left. `done` epochs are
    over already.
    """
    live = is_live()
    layout = "{bar:8} {n}/{total}, {elapsed} so far, {remaining} left, {desc}"
    shown = bar(total=epochs, initial=done, dynamic_ncols=True, bar_format=layout)
    shown.set_description_str("in the first epoch" if not done else f"in epoch {done + 1}")

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
        shown.set_description_str(", ".join(words), refresh=False)
        with suppress(OSError):
            shown.update()
        if not live:
            left = record["seconds"] * (epochs - record["epoch"])
            words = [f"epoch {record['epoch']}/{epochs}", f"{left:.0f} s left", *words]
            say(", ".join(words))

    with _ticking(shown):
        yield show


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int, str], None]]:
    """Gives a function that adds to a count of `total` and tells how it stands, on standard error.

    Where nobody watches, it is told at every tenth of the total.
    """
    layout = "{bar:8} {n}/{total} " + what + ", {elapsed} so far, {remaining} left, {desc}"
    shown = bar(total=total, dynamic_ncols=True, bar_format=layout)
    live, done = is_live(), 0

    def add(count: int, words: str) -> None:
        nonlocal done
        before, done = done, done + count
        shown.set_description_str(words, refresh=False)
        with suppress(OSError):
            shown.update(count)
        if not live and 10 * before // total < 10 * done // total:
            say(f"{done:,} of {total:,} {what}, {words}")

    with _ticking(shown):
        yield add


@contextmanager
def _ticking(shown: tqdm) -> Iterator[None]:
    """Keeps the clock of a bar running through a long epoch, which is one call to the device."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(0.5):
            with suppress(OSError):
                shown.refresh()

    if not shown.disable:
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            shown.close()


def say(message: str) -> None:
    """Prints a line to standard error, above the bar where there is one."""
    with suppress(OSError):
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
