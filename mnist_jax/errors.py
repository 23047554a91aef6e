"""What the user sees: one-line errors, messages and progress bars."""

import contextlib
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")


def is_live() -> bool:
    """Whether messages go to a terminal or a notebook, which can show a moving bar."""
    return sys.stderr.isatty() or in_notebook()


def progress_bar(*args: Any, **options: Any) -> "tqdm":
    """tqdm's bar in a terminal or notebook, and no bar elsewhere."""
    with warnings.catch_warnings(action="ignore"):  # about missing ipywidgets
        from tqdm.auto import tqdm  # takes a tenth of a second; only a bar needs it

    return tqdm(*args, disable=not is_live(), dynamic_ncols=True, **options)


def say(message: str) -> None:
    """Prints a line to standard error, above the progress bar if there is one."""
    from tqdm import tqdm

    with contextlib.suppress(OSError):  # a closed terminal must not end a run
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


class OneLine(BaseException):
    """An error that a notebook shows in a line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"mnist-jax: {self}"]


class InputError(OneLine, Exception):
    """Something the user gave cannot be used; the message says what, why and what to do."""


class SaveError(OneLine, Exception):
    """A run ended, but could not be saved; the message says what is missing."""


class Interrupted(OneLine, KeyboardInterrupt):
    """A signal stopped a run, which can be resumed from the folder `run`."""

    def __init__(self, signal_number: int, run: Path, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.run = run


def unusable(flag: str, value: object, expected: str) -> InputError:
    """The error for a `value` that `flag` does not accept."""
    return InputError(f"{flag} {value} cannot be used: it takes {expected}")
