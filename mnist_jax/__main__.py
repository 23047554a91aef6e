"""`mnist-jax`, or `python -m mnist_jax`: runs a command, and turns its errors into exit codes."""

import atexit
import contextlib
import functools
import gc
import io
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

from mnist_jax import cli
from mnist_jax.errors import InputError, Interrupted, OneLine, SaveError, in_notebook, say

COMMANDS = {
    function.__name__: function
    for function in (
        cli.train,
        cli.sweep,
        cli.evaluate,
        cli.predict,
        cli.plot,
        cli.explain,
        cli.page,
        cli.export,
        cli.samples,
    )
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command.

    Exit codes: 0 done, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 anything else.
    """
    atexit.register(gc.freeze)  # else garbage collection at exit takes half a second
    args = sys.argv[1:] if args is None else args
    try:
        with _sigterm_as_interrupt():
            parse(args)()
    except BrokenPipeError:  # whoever reads the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError) as error:
        _leave(InputError(str(error)), 2)
    except SaveError as error:
        _leave(error, 1)
    except Interrupted as error:
        message = f"{error}; resume with: {_resume_command(args, error.run)}"
        _leave(Interrupted(error.signal_number, error.run, message), 128 + error.signal_number)
    except KeyboardInterrupt as error:
        if in_notebook():
            raise
        say("mnist-jax: interrupted")
        sys.stdout.flush()
        os._exit(128 + (error.args[0] if error.args else signal.SIGINT))  # the device may be busy


def parse(args: Sequence[str]) -> Callable[[], None]:
    """The command in `args`, with its arguments bound.

    Raises:
        InputError: `args` are not a valid command; the message is one line.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in COMMANDS.items()},
                prog="mnist-jax",
                description="Train multilayer perceptrons on handwritten digits, and look inside.",
                args=args,
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        # tyro prints a box: the error, then help, with rules between the paragraphs.
        lines = [line.strip("│╭╮╰╯ \n") for line in output.getvalue().splitlines()[1:-1]]
        paragraphs = [" ".join(part.split()) for part in re.split("─{9,}", " ".join(lines))]
        parts = [part.rstrip(".") for part in paragraphs if not part.startswith("For full help")]
        command = f" {args[0]}" if args and args[0] in COMMANDS else ""
        raise InputError("; ".join([*parts, f"see mnist-jax{command} --help"])) from None


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A function with the parameters of `command` that returns the call instead of making it."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return bind


@contextlib.contextmanager
def _sigterm_as_interrupt():
    """Makes SIGTERM raise KeyboardInterrupt, as SIGINT does."""

    def handle(number: int, _: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    try:
        previous = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # only the main thread handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _resume_command(args: Sequence[str], run: Path) -> str:
    """The command that resumes `run`, which was started with `args`."""
    arguments, skip = [], False
    for arg in args:
        if not skip and arg not in ("--out", "--resume") and not arg.startswith("--out="):
            arguments.append(arg)
        skip = arg == "--out"
    return shlex.join(["mnist-jax", *arguments, "--out", str(run), "--resume"])


def _leave(error: OneLine, code: int) -> NoReturn:
    """Prints the error and exits. In a notebook it raises the error instead."""
    if in_notebook():
        warnings.filterwarnings("ignore", "Unknown failure executing module")  # from %run -m
        raise error from None
    say(f"mnist-jax: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
