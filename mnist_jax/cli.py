"""The command line, made from the config's own fields."""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import io
import json
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mnist_jax.config import Config, InputError, Interrupted, Rescued, Saving
from mnist_jax.interrupts import listening

STARTED = time.perf_counter() - time.process_time()
"""When the process started: what it has computed so far is what it took to get here."""

PICTURE_FORMATS = (".png", ".jpg", ".pdf", ".svg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiling:
    """What the commands that run a network share."""

    compilation_cache: bool = True
    """Keep compiled programs in the cache folder, and save half a second at the next start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRun(Compiling):
    """What the commands share that need a run and its data."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder that train made."""
    data_dir: Path | None = None
    """Where the data are now, if they have moved since."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Compiling):
    """Train networks, count their test errors, and keep it all in a run folder."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Path | None = None
    """The run folder; by default a new one under runs/."""
    resume: bool = False
    """Go on with the run in --out, or start it there, or say that it is finished."""
    saving: tyro.conf.OmitArgPrefixes[Saving]

    def run(self) -> None:
        """Trains, then says what came of it and where it is."""
        from mnist_jax import data, rundir
        from mnist_jax.download import IMPORTING

        if self.out:
            rundir.require_free(self.out, self.resume)

        def import_fit() -> None:
            with IMPORTING:
                importlib.import_module("mnist_jax.fit")

        # Importing JAX keeps one core busy for half a second; another reads the data meanwhile.
        importing = threading.Thread(target=import_fit)
        importing.start()
        try:
            dataset = data.load(self.config.dataset, self.config.data_dir)
        finally:
            importing.join()  # Python cannot leave well in the middle of an import
        from mnist_jax.fit import fit
        from mnist_jax.report import in_words

        path = fit(
            *(self.config, self.out),
            started=STARTED,
            dataset=dataset,
            saving=self.saving,
            resume=self.resume,
        ).path
        summary = rundir.read_summary(path)
        print(in_words(summary))
        print(
            f"{summary['seconds']['total']:.1f} s in all; kept in {path}\n"
            f"look at {path / 'figures'}, then try: mnist-jax predict {path} IMAGE.png"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OfRun):
    """Count the test errors of a run again, from its checkpoint."""

    def run(self) -> None:
        """Prints the result and the accuracy of each class."""
        from mnist_jax.report import in_words, load_data, load_run, measure

        run = load_run(self.run_folder)
        dataset = load_data(run, self.data_dir)
        result = measure(run, dataset.test)
        about = {"dataset": dataset.name, "test_images": len(dataset.test.labels)}
        print(in_words({**about, **result}))
        for name, percent in result["class_accuracy_percent"].items():
            print(f"  {name:>12}  {percent:6.2f} %")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(Compiling):
    """Read digits in image files (PNG, JPEG, ...) with the network of a run's first seed."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder that train made."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Pictures of one digit each."""
    json: bool = False
    """Print a JSON list, one object an image."""

    def run(self) -> None:
        """Prints an answer for each image."""
        if not self.images:
            raise InputError("predict needs at least one image after the run folder")
        import numpy as np

        from mnist_jax.photo import read_photo, to_digit
        from mnist_jax.report import load_run, probabilities

        pictures = [(file, read_photo(file)) for file in self.images]
        run = load_run(self.run_folder)
        digits = []
        for file, picture in pictures:
            try:
                digits.append(to_digit(picture, run.image_shape))
            except InputError as error:
                raise InputError(f"{file}: {error}") from None
        answers = []
        for file, shares in zip(self.images, probabilities(run, np.stack(digits)), strict=True):
            answers.append(
                {
                    "file": str(file),
                    "label": int(shares.argmax()),
                    "name": run.class_names[shares.argmax()],
                    "probabilities": shares.tolist(),
                }
            )
        if self.json:
            print(json.dumps(answers, indent=2))
            return
        for answer in answers:
            shares = answer["probabilities"]
            second = int(np.argsort(shares)[-2])
            print(
                f"{answer['file']}: {answer['name']} ({shares[answer['label']]:.1%}; "
                f"next {run.class_names[second]}, {shares[second]:.1%})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot(OfRun):
    """Draw the figures of a run again."""

    def run(self) -> None:
        """Prints the path of each figure."""
        from mnist_jax import rundir
        from mnist_jax.report import draw, load_data, load_run

        run = load_run(self.run_folder)
        dataset, summary = load_data(run, self.data_dir), rundir.read_summary(run.path)
        try:
            names = draw(run, dataset, summary, run.path)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{run.path}'s metrics.jsonl or summary.json is damaged ({error!r}); "
                f"{rundir.REMEDY}"
            ) from None
        for name in names:
            print(run.path / "figures" / f"{name}.png")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Show the first training images of a dataset, in a window where there is a screen."""

    dataset: str = Config.dataset
    """mnist, fashion_mnist, kmnist, emnist/SPLIT, digits, local or auto, as for train."""
    data_dir: Path | None = None
    """Folder with the dataset's files, as for train."""
    count: int = 4
    """How many images."""
    out: Path = Path("samples.png")
    """The file to write the picture to."""

    def run(self) -> None:
        """Writes the picture, and shows it."""
        if not 1 <= self.count <= 400:
            raise InputError(f"--count {self.count} cannot be used: it takes 1 to 400")
        if self.out.suffix.lower() not in PICTURE_FORMATS or self.out.is_dir():
            known = ", ".join(PICTURE_FORMATS)
            raise InputError(f"--out {self.out} cannot be used: it takes a file name in {known}")
        from mnist_jax import data, plots

        dataset = data.load(self.dataset, self.data_dir)
        first = dataset.train.images[: self.count], dataset.train.labels[: self.count]
        figure = plots.samples(*first, dataset.class_names, f"{dataset.name}: the first images")
        try:
            figure.savefig(self.out, dpi=150)
        except OSError as error:
            raise InputError(
                f"cannot write {self.out}: {error.strerror}; choose another --out"
            ) from None
        print(f"{dataset.name}: the first {len(first[1])} training images, in {self.out}")
        plots.show(figure)


COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "plot": Plot,
    "samples": Samples,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command.

    Exit codes: 0 done, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 anything else.
    """
    atexit.register(gc.freeze)  # or Python spends half a second looking for garbage as it leaves
    args = sys.argv[1:] if args is None else args
    try:
        with listening(patient=False):
            command = _parse(args)
            if isinstance(command, Compiling) and command.compilation_cache:
                from mnist_jax.compiled import keep_compiled_programs

                keep_compiled_programs()
            command.run()
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        print(f"mnist-jax: {error}", file=sys.stderr)
        sys.exit(2)
    except Rescued as rescued:
        print(f"mnist-jax: {rescued}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stopped:
        going_on = f"; go on with: {_resuming(args, stopped.run)}" if stopped.run else ""
        print(f"mnist-jax: {stopped}{going_on}", file=sys.stderr)
        sys.exit(128 + stopped.number)


def _resuming(args: Sequence[str], run: Path) -> str:
    """The command that goes on with `run`, which a train command with `args` began."""
    kept = []
    skip = False
    for arg in args:
        if not skip and arg != "--out" and not arg.startswith("--out=") and arg != "--resume":
            kept.append(arg)
        skip = arg == "--out"
    return shlex.join(["mnist-jax", *kept, "--out", str(run), "--resume"])


def _parse(args: Sequence[str]) -> Train | Evaluate | Predict | Plot | Samples:
    """The command that `args` spell, or an InputError in one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="mnist-jax",
                description="Train multilayer perceptrons on handwritten digits, and look inside.",
                args=args,
            )
    except SystemExit as stopped:
        if stopped.code in (0, None):
            raise
        # tyro draws a box: what is wrong, then help, paragraph by paragraph.
        lines = [line.strip("│╭╮╰╯ \n") for line in complaint.getvalue().splitlines()[1:-1]]
        paragraphs = [" ".join(part.split()) for part in re.split("─{9,}", " ".join(lines))]
        said = [part.rstrip(".") for part in paragraphs if not part.startswith("For full help")]
        command = f" {args[0]}" if args and args[0] in COMMANDS else ""
        raise InputError("; ".join([*said, f"see mnist-jax{command} --help"])) from None
