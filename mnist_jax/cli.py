"""The command line, made from the config's own fields."""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import io
import json
import math
import os
import re
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from mnist_jax.config import (
    Config,
    InputError,
    Interrupted,
    Rescued,
    Saving,
    Shape,
    documentation,
    parse_mesh,
    unusable,
)
from mnist_jax.notebook import in_notebook
from mnist_jax.runs.interrupts import listening
from mnist_jax.sweep.search import FIXED, SWEPT, in_a_word, parse_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
class Training(Compiling):
    """What the commands share that train."""

    mesh: str | None = None
    """Among how many devices networks, and each batch, are divided, such as 4x2."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes that train together, each on its devices; auto
    where SLURM, Open MPI, Kubernetes or a TPU pod has started them."""
    processes: int = 0
    """How many processes --coordinator joins."""
    process: int = 0
    """Which of them this is, from 0."""

    def run(self) -> None:
        """Trains, alone or together with other processes."""
        mesh = parse_mesh(self.mesh)
        if self.coordinator is None:
            if self.processes or self.process:
                raise InputError("--processes and --process need --coordinator HOST:PORT")
            self.train(mesh)
            return
        from mnist_jax.parallel.processes import joined

        with joined(self.coordinator, self.processes, self.process):
            self.train(mesh)

    def train(self, mesh: Shape | None) -> None:
        """What the command does."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Train networks, count their test errors, and keep it all in a run folder."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Path | None = None
    """The run folder; by default a new one under runs/."""
    resume: bool = False
    """Go on with the run in --out, or start it there, or say that it is finished."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, to RUN/tensorboard; needs tensorboardX."""
    saving: tyro.conf.OmitArgPrefixes[Saving]

    def train(self, mesh: Shape | None) -> None:
        """Trains, then says what came of it and where it is."""
        from mnist_jax import data
        from mnist_jax.data.download import IMPORTING
        from mnist_jax.runs import rundir

        if self.out and self.coordinator is None:  # else fit has the first process look
            rundir.require_free(self.out, self.resume)
        if self.tensorboard:
            from mnist_jax.runs.watch import require_tensorboard

            require_tensorboard()  # before data are fetched

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
        from mnist_jax.parallel.processes import leads
        from mnist_jax.runs.report import in_words

        path = fit(
            *(self.config, self.out),
            started=None if in_notebook() else STARTED,
            dataset=dataset,
            saving=self.saving,
            resume=self.resume,
            tensorboard=self.tensorboard,
            mesh=mesh,
        ).path
        if not leads():
            return
        summary = rundir.read_summary(path)
        print(in_words(summary))
        print(
            f"{summary['seconds']['total']:.1f} s in all; kept in {path}\n"
            f"look at {path / 'figures'}, then try: mnist-jax predict {path} IMAGE.png"
        )


if TYPE_CHECKING:
    Tried = Any
else:
    Tried = dataclasses.make_dataclass(
        "Tried",
        [
            (
                name,
                Annotated[tuple[str, ...], tyro.conf.arg(metavar="VALUE...", help=text)],
                (str(in_a_word(getattr(Config, name))),),
            )
            for name, text in documentation().items()
            if name in SWEPT
        ],
        frozen=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Training):
    """Train networks of many configurations, and find which does best on held-out images.

    An option takes several values, or a range to draw from, such as 0.01:1 or 0.01:1:log. The
    widths of a network are one value: 512x512.
    """

    tried: tyro.conf.OmitArgPrefixes[Tried]
    dataset: str = Config.dataset
    """The dataset, as for train."""
    data_dir: Path | None = None
    """Folder with the dataset's files, as for train."""
    validation_images: int = 0
    """How many of the last training images are held out to choose with; by default as many as there
    are test images, or a fifth where that is fewer."""
    seed: int = Config.seed
    """The first seed of each configuration; it also decides what is drawn."""
    seeds: int = Config.seeds
    """How many networks of each configuration are trained."""
    samples: int = 0
    """How many configurations to draw at random; 0 tries all combinations."""
    halving: bool = False
    """Let only the better half go on, after twice as many epochs each time."""
    out: Path | None = None
    """The folder of the sweep; by default a new one under runs/."""
    resume: bool = False
    """Go on with the sweep in --out, or start it there, or say that it is finished."""

    def train(self, mesh: Shape | None) -> None:
        """Trains, then says which configuration is best and how to train it."""
        config = Config(**{name: getattr(self, name) for name in FIXED})
        axes = {name: parse_axis(config, name, each) for name, each in vars(self.tried).items()}
        single = {name: axis[0] for name, axis in axes.items() if len(axis) == 1}
        axes = {name: axis for name, axis in axes.items() if name not in single}
        from mnist_jax.parallel.processes import leads
        from mnist_jax.runs import rundir
        from mnist_jax.sweep.run import in_words, sweep

        path = sweep(
            *(dataclasses.replace(config, **single), axes, self.samples, self.halving, self.out),
            started=None if in_notebook() else STARTED,
            resume=self.resume,
            mesh=mesh,
        )
        if not leads():
            return
        summary = rundir.read_summary(path)
        print(in_words(summary))
        print(f"{summary['seconds']['total']:.1f} s in all; the table is {path / 'table.csv'}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OfRun):
    """Count the test errors of a run again, from its checkpoint."""

    def run(self) -> None:
        """Prints the result and the accuracy of each class."""
        from mnist_jax.runs.report import in_words, load_data, load_run, measure

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
    picture: Path | None = None
    """A file for a figure: each photo, what the network saw of it, and the probabilities."""

    def run(self) -> None:
        """Prints an answer for each image."""
        if not self.images:
            raise InputError("predict needs at least one image after the run folder")
        if self.picture:
            _require_picture_file("--picture", self.picture)
            if len(self.images) > 20:
                count = len(self.images)
                raise InputError(f"--picture shows at most 20 images, and here are {count}")
        import numpy as np
        from PIL import Image

        from mnist_jax.runs.report import dense_layers, load_run, probabilities
        from mnist_jax.serve.digit import to_digit
        from mnist_jax.serve.photo import read_photo

        run = load_run(self.run_folder)
        digits, small = [], []
        for file in self.images:
            photo = read_photo(file)
            try:
                digits.append(to_digit(photo, run.image_shape))
            except InputError as error:
                raise InputError(f"{file}: {error}") from None
            if self.picture:
                thumbnail = Image.fromarray(photo)
                thumbnail.thumbnail((256, 256))
                small.append(np.asarray(thumbnail))
        dense_layers(run)  # refuses a network that diverged, which has no answer
        shares = probabilities(run, np.stack(digits))
        if self.picture:
            from mnist_jax import plots

            names = [file.name for file in self.images]
            figure = plots.answers(small, np.stack(digits), shares, run.class_names, names)
            _save_picture("--picture", self.picture, figure)
        answers = []
        for file, share in zip(self.images, shares, strict=True):
            first, second = int(share.argmax()), int(np.argsort(share)[-2])
            name = run.class_names[first]
            values = {"label": first, "name": name, "probabilities": share.tolist()}
            answers.append({"file": str(file), **values})
            if not self.json:
                others = f"next {run.class_names[second]}, {_percent(float(share[second]))}"
                print(f"{file}: {name} ({_percent(float(share[first]))}; {others})")
        if self.json:
            print(json.dumps(answers, indent=2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot(OfRun):
    """Draw the figures of a run again."""

    def run(self) -> None:
        """Prints the path of each figure."""
        from mnist_jax.runs import rundir
        from mnist_jax.runs.report import draw, load_data, load_run

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(OfRun):
    """Draw what the network of a run's first seed knows, and how it came to know it."""

    image: int = 0
    """The test image whose way through the network is shown, counted from 0."""

    def run(self) -> None:
        """Prints the path of each figure as it is drawn."""
        from mnist_jax.explain.run_figures import figures
        from mnist_jax.runs import rundir
        from mnist_jax.runs.report import load_data, load_run, memory_errors

        run = load_run(self.run_folder)
        dataset = load_data(run, self.data_dir)
        with memory_errors(run.config):
            for name, figure in figures(run, dataset, self.image):
                rundir.save_figure(run.path, name, figure)
                print(run.path / "figures" / f"{name}.png", flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page(OfRun):
    """Write a web page that reads what one draws, with the network of a run's first seed inside."""

    out: Path | None = None
    """The file to write; by default page.html in the run folder."""

    def run(self) -> None:
        """Writes the page, and says where it is and how large."""
        from mnist_jax.runs import rundir
        from mnist_jax.runs.report import load_data, load_run
        from mnist_jax.serve.page import html

        run = load_run(self.run_folder)
        file = self.out or run.path / "page.html"
        if file.is_dir():
            raise InputError(f"--out {file} cannot be used: it is a folder; name a file")
        content = html(run, load_data(run, self.data_dir)).encode()
        rundir.write_bytes(file, content)
        print(f"{file} ({len(content) / 1e6:.2f} MB): open it in a browser and draw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Compiling):
    """Write the network of a run's first seed to a file that other programs load."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder that train made."""
    format: Literal["stablehlo", "onnx", "safetensors"]
    """stablehlo is for JAX on any device, onnx for ONNX Runtime and its like, safetensors the bare
    weights."""
    out: Path | None = None
    """The file to write; by default model.FORMAT in the run folder."""

    def run(self) -> None:
        """Writes the file, and says where it is, how large, and how to load it."""
        from mnist_jax.runs import rundir
        from mnist_jax.runs.report import load_run
        from mnist_jax.serve.export import FORMATS

        run = load_run(self.run_folder)
        file = self.out or run.path / f"model.{self.format}"
        if file.is_dir():
            raise InputError(f"--out {file} cannot be used: it is a folder; name a file")
        encode, load = FORMATS[self.format]
        content = encode(run)
        rundir.write_bytes(file, content)
        size = f"{len(content) / 1e6:.2f} MB"
        print(f"{file} ({size}): load it with {load.format(repr(str(file)))}")


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
            raise unusable("--count", self.count, "1 to 400")
        _require_picture_file("--out", self.out)
        import numpy as np

        from mnist_jax import data, plots

        dataset = data.load(self.dataset, self.data_dir)
        images, labels = dataset.train
        first = np.asarray(images[: self.count]), labels[: self.count]
        figure = plots.samples(*first, dataset.class_names, f"{dataset.name}: the first images")
        _save_picture("--out", self.out, figure)
        print(f"{dataset.name}: the first {len(first[1])} training images, in {self.out}")
        plots.show(figure)


COMMANDS = {
    "train": Train,
    "sweep": Sweep,
    "evaluate": Evaluate,
    "predict": Predict,
    "plot": Plot,
    "explain": Explain,
    "page": Page,
    "export": Export,
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
            # Processes would wait for each other if some had programs that others compile.
            several = isinstance(command, Training) and command.coordinator is not None
            if isinstance(command, Compiling) and command.compilation_cache and not several:
                from mnist_jax.runs.compiled import keep_compiled_programs

                keep_compiled_programs()
            command.run()
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        _leave(InputError(str(error)), 2)
    except Rescued as rescued:
        _leave(rescued, 1)
    except Interrupted as stopped:
        going_on = f"; go on with: {_resuming(args, stopped.run)}" if stopped.run else ""
        number, run = stopped.number, stopped.run
        _leave(Interrupted(number, run, f"{stopped}{going_on}"), 128 + number)


def _require_picture_file(flag: str, file: Path) -> None:
    """Raises InputError unless a picture can have the name `file`."""
    if file.suffix.lower() not in PICTURE_FORMATS or file.is_dir():
        known = ", ".join(PICTURE_FORMATS)
        raise unusable(flag, file, f"a file name in {known}")
    if not file.parent.is_dir():
        missing = f"there is no folder {file.parent}"
        raise InputError(f"cannot write {file}: {missing}; choose another {flag}")


def _save_picture(flag: str, file: Path, figure: "Figure") -> None:
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; choose another {flag}") from None


def _percent(share: float) -> str:
    """Rounded down, as in the figures: nothing is 100 % sure."""
    return f"{math.floor(1000 * share) / 10:.1f}%"


def _leave(why: InputError | Rescued | Interrupted, code: int) -> NoReturn:
    """Says `why` in a line and exits; a notebook, which stays, says it itself."""
    if in_notebook():
        warnings.filterwarnings("ignore", "Unknown failure executing module")  # so %run -m adds
        raise why from None
    print(f"mnist-jax: {why}", file=sys.stderr)
    sys.exit(code)


def _resuming(args: Sequence[str], run: Path) -> str:
    """The command that goes on with `run`, which a train command with `args` began."""
    kept = []
    skip = False
    for arg in args:
        if not skip and arg != "--out" and not arg.startswith("--out=") and arg != "--resume":
            kept.append(arg)
        skip = arg == "--out"
    return shlex.join(["mnist-jax", *kept, "--out", str(run), "--resume"])


Command = Train | Sweep | Evaluate | Predict | Plot | Explain | Page | Export | Samples


def _parse(args: Sequence[str]) -> Command:
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
