"""What a person watches while a run trains: TensorBoard's files, and a figure in a notebook."""

import io
import math
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from mnist_jax.config import InputError
from mnist_jax.notebook import in_notebook
from mnist_jax.optim import learning_rate_schedule
from mnist_jax.preprocess import AnyArray
from mnist_jax.progress import say
from mnist_jax.runs import rundir
from mnist_jax.runs.report import Run, first_kernel
from mnist_jax.runs.rundir import DiskError, Json
from mnist_jax.train import TrainState

MOST_SEEDS = 10
"""How many seeds have a line of their own; no chart of TensorBoard is legible with more."""

TAGS = {
    f"{kind}/{part}": f"{part}_{kind}"
    for kind in ("loss", "error_percent")
    for part in ("train", "validation", "test")
}
"""What TensorBoard calls the numbers that a record has by seed."""


@runtime_checkable
class Watcher(Protocol):
    """Is told what happens in a run, and changes nothing of what comes of it."""

    def epoch_done(self, record: Json, states: TrainState) -> None:
        """After each epoch, with its line of metrics.jsonl."""

    def run_done(self, folder: Path, summary: Json) -> None:
        """At the end, when the run with its figures is whole in `folder`."""


def watchers(run: Run, records: list[Json], tensorboard: bool) -> list[Watcher]:
    """Those of a run of which `records` are done: the figure, in a notebook, and TensorBoard's."""
    figure: list[Watcher] = [LiveFigure(run, records)] if in_notebook() else []
    return [*figure, TensorBoard(run, records)] if tensorboard else figure


class LiveFigure:
    """The curves of a run in a notebook, drawn again in place as they grow."""

    def __init__(self, run: Run, records: list[Json]) -> None:
        self._records, self._title = list(records), run.config.dataset
        self._begun, self._drawing = time.perf_counter(), 0.0
        self._handle: Any = None

    def epoch_done(self, record: Json, states: TrainState) -> None:
        """Draws, if drawing has taken less than a tenth of the time so far."""
        self._records.append(record)
        if self._drawing < 0.1 * (time.perf_counter() - self._begun):
            self._draw(None)

    def run_done(self, folder: Path, summary: Json) -> None:
        """Draws the test result too."""
        self._draw(summary)

    def _draw(self, summary: Json | None) -> None:
        from IPython.display import display

        from mnist_jax import plots  # matplotlib takes half a second

        start = time.perf_counter()
        figure = plots.curves(self._records, summary, self._title)
        if self._handle:
            self._handle.update(figure)
        else:
            self._handle = display(figure, display_id=True)
        self._drawing += time.perf_counter() - start


def require_tensorboard() -> None:
    """Raises InputError where tensorboardX is missing."""
    try:
        import tensorboardX.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--tensorboard needs tensorboardX ({error}): pip install tensorboardX"
        ) from None


class TensorBoard:
    """Writes RUN/tensorboard: the means over seeds and, where there are several, a folder a seed.

    TensorBoard draws what has the same tag in several folders as lines of one chart. Its steps are
    epochs here. tensorboardX' own SummaryWriter is not used: the thread in which that writes dies
    with a traceback when the disk is full, and then the run waits for it forever. Of a run that
    ends up in another folder the event files stay where it began.
    """

    def __init__(self, run: Run, records: list[Json]) -> None:
        self._config, self._image_shape = run.config, run.image_shape
        self._epoch, self._failed = len(records), False
        folder, seeds = run.path / "tensorboard", run.config.all_seeds
        folders: dict[int | None, Path] = {None: folder}
        if len(seeds) > 1:
            folders |= {i: folder / f"seed-{seeds[i]}" for i in range(len(seeds))[:MOST_SEEDS]}
        name = f"events.out.tfevents.{time.time():.0f}"  # files are read in the order of names
        self._files = {line: path / name for line, path in folders.items()}
        self._waiting: dict[int | None, bytes] = {}
        for line in folders:
            self._waiting[line] = beginning(len(records) + 1)
        for record in [] if folder.exists() else records:  # of a run begun without --tensorboard
            self._add_record(record)

    def epoch_done(self, record: Json, states: TrainState) -> None:
        """Writes the numbers and, after epochs 1, 2, 4, 8, ... and the last, the weights.

        So there are few pictures of a long run too, and most are of its beginning, where the
        weights change most; of each tag, TensorBoard shows ten.
        """
        self._add_record(record)
        epoch = record["epoch"]
        if epoch & (epoch - 1) == 0 or epoch == self._config.epochs:
            kernel = first_kernel(states, self._image_shape)
            if kernel is not None:
                picture = to_png(unit_pictures(kernel, self._image_shape))
                self._waiting[None] += event(epoch, {}, {"weights": picture})
        self._write()

    def run_done(self, folder: Path, summary: Json) -> None:
        """Writes the test result and the figures, at the last epoch that was trained."""
        percent = [100 * errors / summary["test_images"] for errors in summary["test_errors"]]
        result = {"test_loss": summary["test_loss"], "test_error_percent": percent}
        self._add_record({"epoch": self._epoch, **result})
        with suppress(OSError):  # a disk that cannot be read
            figures = sorted((folder / "figures").glob("*.png"))
            pictures = {f"figures/{file.stem}": file.read_bytes() for file in figures}
            self._waiting[None] += event(self._epoch, {}, pictures)
        self._write()

    def _add_record(self, record: Json) -> None:
        for line in self._files:
            self._waiting[line] += event(record["epoch"], scalars(record, line))
        if "step" in record:
            steps = record["step"] // record["epoch"] * self._config.epochs
            rate = learning_rate_schedule(self._config, steps)(record["step"] - 1)
            speed = record["images_per_second"]
            numbers = {"learning_rate": float(np.asarray(rate)), "images_per_second": speed}
            self._waiting[None] += event(record["epoch"], numbers)
        self._epoch = record["epoch"]

    def _write(self) -> None:
        """Writes what waits; where the disk fails that waits on."""
        for line, file in self._files.items():
            try:
                rundir.append_bytes(file, self._waiting[line])
                self._waiting[line] = b""
            except DiskError as error:
                if not self._failed:
                    say(f"{error}. The run goes on, and will try again")
                self._failed = True
                return


def scalars(record: Json, seed: int | None) -> dict[str, float]:
    """The numbers in `record` by their tags: those of the seed at this place, or their means."""
    found = {tag: np.array(record[name], float) for tag, name in TAGS.items() if name in record}
    if seed is not None:
        return {tag: float(values[seed]) for tag, values in found.items()}
    # As in `plots.curves`, without the networks that diverged.
    means = {tag: np.ma.masked_invalid(values).mean() for tag, values in found.items()}
    return {tag: float(np.ma.filled(mean, np.nan)) for tag, mean in means.items()}


def unit_pictures(
    kernel: Float[AnyArray, "pixels units"], image_shape: tuple[int, int], most: int = 64
) -> UInt8[np.ndarray, "height width 3"]:
    """The weights of the first units, each where it is at every epoch: red above zero, blue below.

    `plots.weights` shows the strongest units, which are not the same at every epoch.
    """
    from mnist_jax.plots import mosaic, signed  # matplotlib takes half a second

    pictures = np.asarray(kernel, np.float64).T[:most].reshape(-1, *image_shape)
    pictures = np.nan_to_num(pictures, posinf=0, neginf=0)  # of a network that diverged
    limit = float(np.quantile(np.abs(pictures), 0.999))  # as in `plots.weights`
    size = max(1, 56 // image_shape[0])  # 28 x 28 pixels of a weight are too small to see
    colors = [signed(picture, limit).repeat(size, 0).repeat(size, 1) for picture in pictures]
    across = math.ceil(math.sqrt(len(colors)))
    rows = [colors[place : place + across] for place in range(0, len(colors), across)]
    return np.rint(255 * mosaic(rows, 2)).astype(np.uint8)


def to_png(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """`picture` as the content of a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()


def beginning(epoch: int) -> bytes:
    """What a file begins with: TensorBoard then forgets what it read of `epoch` and later."""
    return _record(file_version="brain.Event:2") + _record(
        step=epoch, session_log={"status": "START"}
    )


def event(epoch: int, numbers: dict[str, float], pngs: dict[str, bytes] | None = None) -> bytes:
    """What TensorBoard shows at `epoch`: numbers, and the content of PNG files, by their tags."""
    values: list[Json] = [{"tag": tag, "simple_value": number} for tag, number in numbers.items()]
    for tag, png in (pngs or {}).items():
        width, height = struct.unpack(">II", png[16:24])
        size = {"width": width, "height": height, "colorspace": 3}
        values.append({"tag": tag, "image": {**size, "encoded_image_string": png}})
    return _record(step=epoch, summary={"value": values})


def _record(**fields: Any) -> bytes:
    """An event as an event file has it, in the TFRecord format: length, itself, a sum of each."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c

    content = Event(wall_time=time.time(), **fields).SerializeToString()
    parts = struct.pack("<Q", len(content)), content
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts)
