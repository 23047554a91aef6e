"""Callbacks of a run while it trains: progress, a live figure, TensorBoard, or your own."""

import math
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_jax.errors import InputError, is_live, progress_bar, say
from mnist_jax.preprocess import AnyArray
from mnist_jax.runs import rundir
from mnist_jax.runs.figures import first_kernel
from mnist_jax.runs.records import learning_rate
from mnist_jax.runs.results import Run
from mnist_jax.runs.rundir import DiskError, Json
from mnist_jax.train import TrainState


class StopTraining(Exception):
    """Raised by a callback to end training after this epoch; the run is then tested as usual."""


class Callback:
    """Does nothing; override what you need. Only the primary process calls callbacks."""

    def on_run_begin(self, run: Run, history: list[Json]) -> None:
        """Before the first epoch; `history` has the metrics of epochs before a resume."""

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """After each epoch, with its line of metrics.jsonl and the states of all networks.

        The next epoch reuses the memory of `state`: copy what you keep.
        """

    def on_run_end(self, summary: Json) -> None:
        """After the test, and after summary and figures were saved if the disk allowed it."""

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
        means, epoch = scalars(metrics, None), metrics["epoch"]
        text = f"loss {means['loss/train']:.4f}, "
        text += f"accuracy {100 - means['error_percent/train']:.2f} %, "
        if "error_percent/validation" in means:
            text += f"validation {100 - means['error_percent/validation']:.2f} %, "
        text += f"{metrics['images_per_second']:,.0f} images/s"
        if self._seeds > 1:
            text += f", means of {self._seeds} seeds"
        if not is_live():
            seconds_left = metrics["seconds"] * (self._epochs - epoch)
            say(f"epoch {epoch}/{self._epochs}, {seconds_left:.0f} s left, {text}")
            return
        with suppress(OSError):  # a closed terminal must not end the run
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Closes the bar, so that later output begins on a new line."""
        with suppress(OSError):
            self._bar.close()


class LiveFigure(Callback):
    """The curves of a run in a notebook, redrawn in place."""

    def on_run_begin(self, run: Run, history: list[Json]) -> None:
        """Remembers the metrics so far."""
        self._history, self._title = list(history), run.config.dataset
        self._display: Any = None
        self._next_draw = 0.0

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """Redraws the figure, which takes at most a tenth of the time."""
        self._history.append(metrics)
        if time.perf_counter() >= self._next_draw:
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
        end = time.perf_counter()
        self._next_draw = end + 9 * (end - start)


class TensorBoard(Callback):
    """Event files in RUN/tensorboard: the means over seeds, and up to ten single seeds.

    TensorBoard draws the same tag from several folders as lines of one chart. Its steps are epochs.
    tensorboardX makes the events, but this class writes them. If the disk is full, the thread of
    tensorboardX's SummaryWriter dies, and the process waits for it for ever.
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
        """Begins new files. From older ones TensorBoard drops the epochs after the resume."""
        self._run, self._epoch = run, len(history)
        folder, name = run.path / "tensorboard", f"events.out.tfevents.{int(time.time())}"
        self._files: dict[int | None, Path] = {None: folder / name}
        if run.config.seeds > 1:
            for i, seed in enumerate(run.config.all_seeds[: self.MAX_SEEDS]):
                self._files[i] = folder / f"seed-{seed}" / name
        self._unwritten = dict.fromkeys(self._files, b"")
        for index in self._files:
            self._add(index, 0, file_version="brain.Event:2")
            self._add(index, len(history) + 1, session_log={"status": "START"})
        if not folder.exists():  # the run began without TensorBoard
            for metrics in history:
                self._add_metrics(metrics)

    def on_epoch_end(self, metrics: Json, state: TrainState) -> None:
        """Writes the metrics and, after epochs 1, 2, 4, 8, ... and the last, the weights.

        Weights change most at the beginning, and TensorBoard shows ten images of each tag.
        """
        self._epoch = metrics["epoch"]
        self._add_metrics(metrics)
        if self._epoch.bit_count() == 1 or self._epoch == self._run.config.epochs:
            kernel = first_kernel(state, self._run.spec.pixels)
            if kernel is not None:
                self._add_image("weights", unit_images(kernel, self._run.image_shape))
        self._write()

    def on_run_end(self, summary: Json) -> None:
        """Writes the test result and the figures."""
        from PIL import Image

        percent = [100 * errors / summary["test_images"] for errors in summary["test_errors"]]
        result = {"test_loss": summary["test_loss"], "test_error_percent": percent}
        self._add_metrics({"epoch": self._epoch, **result})
        for file in sorted((self._run.path / "figures").glob("*.png")):
            self._add_image(f"figures/{file.stem}", np.asarray(Image.open(file).convert("RGB")))
        self._write()

    def _add_metrics(self, metrics: Json) -> None:
        for index in self._files:
            by_tag = scalars(metrics, index)
            if index is None and "step" in metrics:
                by_tag["learning_rate"] = learning_rate(self._run.config, metrics, metrics["step"])
                by_tag["images_per_second"] = metrics["images_per_second"]
            values = [{"tag": tag, "simple_value": value} for tag, value in by_tag.items()]
            self._add(index, metrics["epoch"], summary={"value": values})

    def _add_image(self, tag: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        from tensorboardX import summary

        self._add(None, self._epoch, summary=summary.image(tag, image, dataformats="HWC"))

    def _add(self, index: int | None, step: int, **content: Any) -> None:
        """Adds an event, as a TensorFlow record: length, checksum, content, checksum."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), step=step, **content).SerializeToString()
        for part in (struct.pack("<Q", len(event)), event):
            self._unwritten[index] += part + struct.pack("<I", masked_crc32c(part))

    def _write(self) -> None:
        """Writes the new events. If that fails, they are written with the next ones."""
        try:
            for index, file in self._files.items():
                rundir.append_bytes(file, self._unwritten[index])
                self._unwritten[index] = b""
        except DiskError as error:
            say(f"{error}. The run continues")


def scalars(metrics: Json, seed_index: int | None) -> dict[str, float]:
    """The losses and errors in `metrics` by TensorBoard tag: of one seed, or means over seeds.

    The means leave out networks that diverged.
    """
    values = {}
    for name, by_seed in metrics.items():
        part, _, kind = name.partition("_")
        if kind in ("loss", "error_percent"):
            numbers = np.array(by_seed, float)
            finite = numbers[np.isfinite(numbers)]
            mean = finite.mean() if finite.size else np.nan
            values[f"{kind}/{part}"] = float(mean if seed_index is None else numbers[seed_index])
    return values


def unit_images(
    kernel: Float[AnyArray, "pixels units"], image_shape: tuple[int, ...], max_units: int = 64
) -> UInt8[np.ndarray, "height width 3"]:
    """The weights of the first units in a grid: red above zero, blue below.

    Each unit keeps its place over epochs, unlike in `plots.weights`, which shows the strongest.
    """
    from mnist_jax.plots import mosaic, red_blue  # matplotlib takes half a second to import

    images = np.asarray(kernel, np.float64).T[:max_units].reshape(-1, *image_shape)
    images = np.nan_to_num(images, posinf=0, neginf=0)  # of a network that diverged
    limit = float(np.quantile(np.abs(images), 0.999))
    columns = math.ceil(math.sqrt(len(images)))
    return np.rint(255 * mosaic(red_blue(images, limit), columns, 1, 1)).astype(np.uint8)
