"""What is told of a run while it trains: progress, a live figure, TensorBoard, or your own."""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_jax.errors import InputError, is_live, progress_bar, say
from mnist_jax.optim import learning_rate_schedule
from mnist_jax.preprocess import AnyArray
from mnist_jax.runs.figures import first_kernel
from mnist_jax.runs.results import Run
from mnist_jax.runs.rundir import Json
from mnist_jax.train import TrainState


class StopTraining(Exception):
    """Raised by a callback to end training after this epoch; the run is then tested as usual."""


class Callback:
    """Does nothing; override what you need. Callbacks are called in the primary process alone."""

    def on_run_begin(self, run: Run, history: list[Json]) -> None:
        """Before the first epoch; `history` has the metrics of epochs before a resume."""

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """After each epoch, with its line of metrics.jsonl and the states of all networks.

        The next epoch reuses the memory of `state`: copy what you keep.
        """

    def on_run_end(self, summary: Json) -> None:
        """When summary and figures are in the run folder."""

    def close(self) -> None:
        """After the run, however it ended, to release files and the like."""


class ProgressBar(Callback):
    """A bar in a terminal or a notebook, a line per epoch elsewhere, on standard error."""

    def on_run_begin(self, run: Run, history: list[Json]) -> None:
        """Shows the bar."""
        self._epochs, self._seeds = run.config.epochs, run.config.seeds
        layout = "{desc} {bar:8} {n}/{total}, {elapsed} elapsed, {remaining} left{postfix}"
        done = len(history)
        self._bar = progress_bar(desc="epoch", total=self._epochs, initial=done, bar_format=layout)

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """Shows the means over seeds, the speed and the time left."""
        words = [
            f"loss {np.mean(np.array(metrics['train_loss'], float)):.4f}",
            f"accuracy {100 - np.mean(metrics['train_error_percent']):.2f} %",
        ]
        if "validation_error_percent" in metrics:
            words.append(f"validation {100 - np.mean(metrics['validation_error_percent']):.2f} %")
        words.append(f"{metrics['images_per_second']:,.0f} images/s")
        if self._seeds > 1:
            words.append(f"means of {self._seeds} seeds")
        epoch = metrics["epoch"]
        if not is_live():
            seconds_left = metrics["seconds"] * (self._epochs - epoch)
            say(f"epoch {epoch}/{self._epochs}, {seconds_left:.0f} s left, {', '.join(words)}")
            return
        with suppress(OSError):  # a terminal that is gone does not end the run
            self._bar.set_postfix_str(", ".join(words), refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Closes the bar, so that what follows begins on a line of its own."""
        with suppress(OSError):
            self._bar.close()


class LiveFigure(Callback):
    """The curves of a run in a notebook, redrawn in place."""

    def on_run_begin(self, run: Run, history: list[Json]) -> None:
        """Remembers the metrics so far."""
        self._history, self._title = list(history), run.config.dataset
        self._started, self._draw_seconds = time.perf_counter(), 0.0
        self._display: Any = None

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """Redraws, unless that has taken more than a tenth of the time so far."""
        self._history.append(metrics)
        if self._draw_seconds < 0.1 * (time.perf_counter() - self._started):
            self._draw(None)

    def on_run_end(self, summary: Json) -> None:
        """Adds the test result."""
        self._draw(summary)

    def _draw(self, summary: Json | None) -> None:
        from IPython.display import display

        from mnist_jax import plots  # matplotlib takes half a second to import

        start = time.perf_counter()
        figure = plots.curves(self._history, summary, self._title)
        if self._display:
            self._display.update(figure)
        else:
            self._display = display(figure, display_id=True)
        self._draw_seconds += time.perf_counter() - start


class TensorBoard(Callback):
    """Event files in RUN/tensorboard: the means over seeds, and up to ten seeds each on their own.

    TensorBoard draws the same tag from several folders as lines of one chart. Its steps are epochs.
    The files are written by tensorboardX, but not by its SummaryWriter: the thread in which that
    writes dies on a full disk, and then the process waits for it for ever.
    """

    MAX_SEEDS = 10  # charts with more lines are illegible

    def __init__(self) -> None:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"--tensorboard needs tensorboardX ({error}): pip install tensorboardX"
            ) from None

    def on_run_begin(self, run: Run, history: list[Json]) -> None:
        """Opens the files. TensorBoard forgets what earlier files say of later epochs."""
        from tensorboardX.event_file_writer import EventsWriter

        self._run, self._epoch, self._failed = run, len(history), False
        folder, seeds = run.path / "tensorboard", run.config.all_seeds[: self.MAX_SEEDS]
        is_new = not folder.exists()
        folders: dict[int | None, Path] = {None: folder}
        if run.config.seeds > 1:
            folders |= {i: folder / f"seed-{seed}" for i, seed in enumerate(seeds)}
        self._writers: dict[int | None, Any] = {}
        for index, path in folders.items():
            path.mkdir(parents=True, exist_ok=True)
            self._writers[index] = EventsWriter(str(path / "events"))
            self._add(index, len(history) + 1, session_log={"status": "START"})
        for metrics in history if is_new else []:  # of a run begun without TensorBoard
            self._add_metrics(metrics)

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """Writes the metrics and, after epochs 1, 2, 4, 8, ... and the last, the weights.

        Weights change most at the beginning, and TensorBoard shows ten images of each tag.
        """
        self._epoch = metrics["epoch"]
        self._add_metrics(metrics)
        is_power_of_two = self._epoch & (self._epoch - 1) == 0
        if is_power_of_two or self._epoch == self._run.config.epochs:
            kernel = first_kernel(state, self._run.spec.pixels)
            if kernel is not None:
                self._add_image("weights", unit_images(kernel, self._run.image_shape))
        self._flush()

    def on_run_end(self, summary: Json) -> None:
        """Writes the test result and the figures."""
        from PIL import Image

        percent = [100 * errors / summary["test_images"] for errors in summary["test_errors"]]
        result = {"test_loss": summary["test_loss"], "test_error_percent": percent}
        self._add_metrics({"epoch": self._epoch, **result})
        for file in sorted((self._run.path / "figures").glob("*.png")):
            pixels = np.asarray(Image.open(file).convert("RGB"))
            self._add_image(f"figures/{file.stem}", pixels)
        self._flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            with suppress(OSError):
                writer.close()

    def _add_metrics(self, metrics: Json) -> None:
        from tensorboardX import summary

        epoch, config = metrics["epoch"], self._run.config
        by_index = {index: scalars(metrics, index) for index in self._writers}
        if "step" in metrics:
            steps = metrics["step"] // epoch * config.epochs
            rate = learning_rate_schedule(config, config.learning_rate, steps)(metrics["step"] - 1)
            by_index[None]["learning_rate"] = float(np.asarray(rate))
            by_index[None]["images_per_second"] = metrics["images_per_second"]
        for index, values in by_index.items():
            for tag, value in values.items():
                self._add(index, epoch, summary=summary.scalar(tag, value))

    def _add_image(self, tag: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        from tensorboardX import summary

        self._add(None, self._epoch, summary=summary.image(tag, image, dataformats="HWC"))

    def _add(self, index: int | None, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        event = Event(wall_time=time.time(), step=step, **content)
        with suppress(OSError):  # reported by the flush
            self._writers[index].write_event(event)

    def _flush(self) -> None:
        """Writes what is in memory. If the disk fails, that is reported once, and tried again."""
        try:
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            if not self._failed:
                say(f"cannot write {self._run.path / 'tensorboard'}: {error.strerror}")
            self._failed = True


def scalars(metrics: Json, seed_index: int | None) -> dict[str, float]:
    """The values in `metrics` by TensorBoard tag: of one seed, or the means over seeds."""
    values = {}
    for kind in ("loss", "error_percent"):
        for part in ("train", "validation", "test"):
            if f"{part}_{kind}" not in metrics:
                continue
            by_seed = np.array(metrics[f"{part}_{kind}"], float)
            if seed_index is None:  # without networks that diverged
                value = np.ma.filled(np.ma.masked_invalid(by_seed).mean(), np.nan)
            else:
                value = by_seed[seed_index]
            values[f"{kind}/{part}"] = float(value)
    return values


def unit_images(
    kernel: Float[AnyArray, "pixels units"], image_shape: tuple[int, ...], max_units: int = 64
) -> UInt8[np.ndarray, "height width 3"]:
    """The weights of the first units in a grid: red above zero, blue below.

    Unlike in `plots.weights`, which shows the strongest units, each keeps its place over epochs.
    """
    from mnist_jax.plots import mosaic, red_blue  # matplotlib takes half a second to import

    images = np.asarray(kernel, np.float64).T[:max_units].reshape(-1, *image_shape)
    images = np.nan_to_num(images, posinf=0, neginf=0)  # of a network that diverged
    limit = float(np.quantile(np.abs(images), 0.999))
    zoom = max(1, 56 // image_shape[0])
    coloured = red_blue(images, limit).repeat(zoom, 1).repeat(zoom, 2)
    columns = math.ceil(math.sqrt(len(coloured)))
    return np.rint(255 * mosaic(coloured, columns, 2, 2)).astype(np.uint8)
