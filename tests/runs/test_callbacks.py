import base64
import io
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from types import SimpleNamespace

import IPython.display
import jax
import matplotlib
import nbformat
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mnist_jax import plots
from mnist_jax.__main__ import main
from mnist_jax.config import Config, SaveOptions
from mnist_jax.errors import say
from mnist_jax.fit import fit
from mnist_jax.runs import callbacks, rundir
from mnist_jax.runs.callbacks import Callback, LiveFigure, ProgressBar, StopTraining, TensorBoard
from mnist_jax.runs.results import load_run
from tests.conftest import executed

SMALL = Config(
    dataset="digits", hidden=(18,), epochs=5, batch_size=32, seeds=2, seed=3, validation_images=37
)
EVERY_EPOCH = SaveOptions(checkpoint_epochs=1)
TAGS = {
    f"{kind}/{part}": f"{part}_{kind}"
    for kind in ("loss", "error_percent")
    for part in ("train", "validation")
}


class Recorder(Callback):
    """Records its calls, and raises `error` after epoch `stop_at`."""

    def __init__(self, stop_at=0, error=RuntimeError):
        self.calls, self.kernels, self.stop_at, self.error = [], {}, stop_at, error

    def on_run_begin(self, run, history):
        self.calls.append(("begin", run.path, [metrics["epoch"] for metrics in history]))

    def on_epoch_end(self, metrics, state):
        epoch = metrics["epoch"]
        self.calls.append(("epoch", epoch))
        assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {2}  # seeds
        self.kernels[epoch] = np.array(state.params["Dense_0"]["kernel"])[0]
        if epoch == self.stop_at:
            raise self.error

    def on_run_end(self, summary):
        self.calls.append(("end", summary["steps"]))


def fit_until(epoch, path, *others):
    """Trains a run that an exception ends after `epoch`."""
    recorder = Recorder(stop_at=epoch)
    with pytest.raises(RuntimeError):
        fit(SMALL, path, callbacks=[*others, recorder], save_options=EVERY_EPOCH)
    return recorder


@pytest.fixture(scope="module")
def recorder():
    return Recorder()


@pytest.fixture(scope="module")
def run(recorder, tmp_path_factory):
    """The folder of a run with TensorBoard's files."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return fit(SMALL, path, callbacks=[TensorBoard(), recorder]).path


# The order of the calls


def test_callbacks_are_called_at_the_beginning_after_each_epoch_and_at_the_end(run, recorder):
    steps = 1400 // 32
    epochs = [("epoch", epoch) for epoch in range(1, 6)]
    assert recorder.calls == [("begin", run, []), *epochs, ("end", 5 * steps)]


def test_a_resumed_run_calls_them_with_the_history_so_far(tmp_path):
    stopped = fit_until(3, tmp_path / "run")
    assert stopped.calls == [("begin", tmp_path / "run", []), *[("epoch", n) for n in (1, 2, 3)]]
    resumed = Recorder()
    fit(SMALL, tmp_path / "run", callbacks=[resumed], resume=True)
    assert resumed.calls[0] == ("begin", tmp_path / "run", [1, 2, 3])
    assert resumed.calls[1:-1] == [("epoch", 4), ("epoch", 5)]


def test_stop_training_ends_a_run_early_and_tests_it(run, tmp_path, capsys):
    stopping, other = Recorder(stop_at=2, error=StopTraining), Recorder()
    path = fit(SMALL, tmp_path / "run", callbacks=[stopping, other]).path
    assert stopping.calls[1:] == other.calls[1:] == [("epoch", 1), ("epoch", 2), ("end", 2 * 43)]
    history, expected = rundir.read_metrics(path), rundir.read_metrics(run)
    losses = [[metrics["train_loss"] for metrics in each] for each in (history, expected)]
    assert losses[0] == losses[1][:2]
    assert len(rundir.read_summary(path)["test_errors"]) == 2
    fit(SMALL, path, resume=True)
    assert "is already finished" in capsys.readouterr().out


# The progress bar

METRICS = {
    "epoch": 3,
    "train_loss": [0.25, 0.75],
    "train_error_percent": [2.0, 4.0],
    "seconds": 2.0,
    "images_per_second": 12345.6,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def bar_of(run, seeds=2, history=()):
    """The bar of a run of ten epochs."""
    bar = ProgressBar()
    bar.on_run_begin(load_run(run)._replace(config=Config(epochs=10, seeds=seeds)), [*history])
    return bar


def test_progress_is_a_line_per_epoch_outside_a_terminal(run, capsys):
    bar = bar_of(run)
    states = load_run(run).states
    bar.on_epoch_end(METRICS, states)
    bar.on_epoch_end({**METRICS, "epoch": 4, "validation_error_percent": [1.0, 2.0]}, states)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 3/10, 14 s left, loss 0.5000, accuracy 97.00 %, 12,346 images/s, means of 2 seeds",
        "epoch 4/10, 12 s left, loss 0.5000, accuracy 97.00 %, validation 98.50 %, "
        "12,346 images/s, means of 2 seeds",
    ]


def test_progress_is_a_bar_on_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = bar_of(run, seeds=1, history=[{}, {}])
    one_seed = {**METRICS, "train_loss": [0.25], "train_error_percent": [2.0]}
    bar.on_epoch_end(one_seed, load_run(run).states)
    bar.close()
    shown = sys.stderr.getvalue()
    assert "\r" in shown
    assert " 2/10, " in shown
    assert " 3/10, " in shown
    assert "left, loss 0.2500, accuracy 98.00 %, 12,346 images/s" in shown


@pytest.mark.parametrize("epochs", [0, 1, 10])
def test_what_follows_a_run_begins_on_a_line_of_its_own(run, monkeypatch, epochs):
    """Also if the run was stopped early, or only its test was missing."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = bar_of(run)
    for epoch in range(1, 1 + epochs):
        bar.on_epoch_end({**METRICS, "epoch": epoch}, load_run(run).states)
    bar.close()
    assert sys.stderr.getvalue().endswith("\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_standard_error_that_is_gone_does_not_end_a_run(run, monkeypatch, is_terminal):
    """The terminal of a background job may be closed, or the disk of its log full."""

    class Gone(io.StringIO):
        def isatty(self):
            return is_terminal

        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    bar = bar_of(run)
    bar.on_epoch_end(METRICS, load_run(run).states)
    bar.close()
    say("more")


# A reader of event files that knows the format, but not the code that writes them


def crc32c(content: bytes) -> int:
    """The Castagnoli checksum of RFC 3720, with a table of bytes that is computed bit by bit."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def read_events(file) -> list[Event]:
    """The records of a TFRecord file: length, checksum, content, checksum."""
    stream, records = io.BytesIO(file.read_bytes()), []
    while header := stream.read(8):
        (length,) = struct.unpack("<Q", header)
        (header_checksum,) = struct.unpack("<I", stream.read(4))
        content = stream.read(length)
        (content_checksum,) = struct.unpack("<I", stream.read(4))
        for part, checksum in ((header, header_checksum), (content, content_checksum)):
            value = crc32c(part)
            assert checksum == ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32
        records.append(Event.FromString(content))
    return records


def read_tags(folder) -> dict[str, list[tuple[int, object]]]:
    """Steps and values by tag, as TensorBoard shows those of a folder: a start purges later ones.

    https://github.com/tensorflow/tensorboard/blob/master/README.md, "How should I handle
    TensorFlow restarts?"
    """
    tags: dict[str, list[tuple[int, object]]] = {}
    for file in sorted(folder.glob("*tfevents*")):
        first, *others = read_events(file)
        assert first.file_version == "brain.Event:2"
        for event in others:
            if event.session_log.status == SessionLog.START:
                for values in tags.values():
                    values[:] = [(step, value) for step, value in values if step < event.step]
            for value in event.summary.value:
                is_image = value.HasField("image")
                content = value.image if is_image else value.simple_value
                tags.setdefault(value.tag, []).append((event.step, content))
    return tags


def steps(tags) -> dict[str, list[int]]:
    return {tag: [step for step, _ in values] for tag, values in tags.items()}


def pixels_of(image) -> np.ndarray:
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        assert (picture.format, *picture.size) == ("PNG", image.width, image.height)
        return np.asarray(picture.convert("RGB"), float)


def rename_event_files(folder):
    """Gives event files another time in their names: those of one second have the same name."""
    for file in folder.rglob("*tfevents*"):
        file.rename(file.with_name("events.out.tfevents.1000000000"))


# TensorBoard


def test_tensorboard_has_the_numbers_of_the_metrics(run):
    history, summary = rundir.read_metrics(run), rundir.read_summary(run)
    folder = run / "tensorboard"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"seed-3", "seed-4"}
    for name, pick in {"": np.mean, "seed-3": lambda x: x[0], "seed-4": lambda x: x[1]}.items():
        tags = read_tags(folder / name)
        for tag, field in TAGS.items():
            expected = [(metrics["epoch"], pick(metrics[field])) for metrics in history]
            np.testing.assert_allclose(tags[tag], expected, rtol=1e-6)
        errors = 100 * pick(summary["test_errors"]) / 360
        np.testing.assert_allclose(tags["error_percent/test"], [(5, errors)], rtol=1e-6)
        np.testing.assert_allclose(tags["loss/test"], [(5, pick(summary["test_loss"]))], rtol=1e-6)
    tags = read_tags(folder)
    speeds = [(metrics["epoch"], metrics["images_per_second"]) for metrics in history]
    np.testing.assert_allclose(tags["images_per_second"], speeds, rtol=1e-6)
    # 1,400 images are 43 steps an epoch, and the rate falls to zero after 215 of them.
    rates = [(epoch, 0.1 * (1 - (43 * epoch - 1) / 215)) for epoch in range(1, 6)]
    np.testing.assert_allclose(tags["learning_rate"], rates, rtol=1e-4)


def test_images_of_the_weights_are_few_and_right(run, recorder):
    images = dict(read_tags(run / "tensorboard")["weights"])
    assert list(images) == [1, 2, 4, 5]
    for epoch, image in images.items():
        kernel = recorder.kernels[epoch]
        relative = np.clip(kernel / np.quantile(np.abs(kernel), 0.999), -1, 1)
        expected = 255 * matplotlib.colormaps["RdBu_r"]((1 + relative) / 2)[..., :3]
        pixels = pixels_of(image)
        for unit in range(18):  # 5 in a row, 8 x 8 weights, 1 pixel apart
            top, left = (9 * place for place in divmod(unit, 5))
            part = pixels[top : top + 8, left : left + 8].reshape(64, 3)
            np.testing.assert_allclose(part, expected[:, unit], atol=4)


def test_tensorboard_has_the_figures_of_the_run(run):
    tags = read_tags(run / "tensorboard")
    for name in ("samples", "curves", "confusion", "mistakes", "weights"):
        ((step, image),) = tags[f"figures/{name}"]
        assert step == 5
        with Image.open(run / "figures" / f"{name}.png") as figure:
            expected = np.asarray(figure.convert("RGB"))
        np.testing.assert_array_equal(pixels_of(image), expected)
        assert expected.std() > 0


def test_tensorboard_changes_nothing_of_the_run(run, tmp_path):
    plain = fit(SMALL, tmp_path / "plain").path
    assert not (plain / "tensorboard").exists()
    for one, other in zip(*map(rundir.read_metrics, (plain, run)), strict=True):
        assert {k: v for k, v in one.items() if "second" not in k}.items() <= other.items()
    assert rundir.read_config(plain) == rundir.read_config(run)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from mnist_jax.config import SaveOptions
from mnist_jax.fit import fit
from mnist_jax.runs.callbacks import Callback, TensorBoard
from tests.runs.test_callbacks import SMALL


class Kill(Callback):
    def on_epoch_end(self, metrics, state):
        if metrics["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)


options = SaveOptions(checkpoint_epochs=1)
fit(SMALL, Path(sys.argv[1]), callbacks=[TensorBoard(), Kill()], save_options=options)
"""


@pytest.mark.parametrize("end", ["exception", "kill"])
def test_a_resumed_run_has_each_epoch_once(run, tmp_path, end):
    """Even if it ended without a last word."""
    path = tmp_path / "run"
    if end == "exception":
        fit_until(3, path, TensorBoard())
    else:
        args = [sys.executable, "-c", KILLED_RUN, str(path)]
        assert subprocess.run(args).returncode == -signal.SIGKILL
    rename_event_files(path)
    fit(SMALL, path, callbacks=[TensorBoard()], resume=True)
    for name in ("", "seed-3", "seed-4"):
        tags, expected = (read_tags(folder / "tensorboard" / name) for folder in (path, run))
        assert steps(tags) == steps(expected)
        assert tags["loss/train"] == expected["loss/train"]


def test_a_run_that_began_without_tensorboard_has_all_epochs(run, tmp_path):
    path = tmp_path / "run"
    fit_until(2, path)
    fit(SMALL, path, callbacks=[TensorBoard()], resume=True)
    tags, expected = (read_tags(folder / "tensorboard" / "seed-4") for folder in (path, run))
    assert tags == expected


def test_a_run_that_only_needs_its_test_is_followed_to_its_end(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "summary.json").unlink()
    shutil.rmtree(path / "tensorboard")
    (path / "tensorboard").mkdir()
    fit(SMALL, path, callbacks=[TensorBoard()], resume=True)
    tags = read_tags(path / "tensorboard")
    assert steps(tags)["loss/test"] == steps(tags)["figures/curves"] == [5]


def test_the_events_of_a_finished_run_stay_as_they_are(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*tfevents*")}
    assert len(before) == 3
    fit(SMALL, run, callbacks=[TensorBoard()], resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*tfevents*")} == before


def test_without_tensorboardx_nothing_is_trained(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    args = ["train", "--dataset", "digits", "--tensorboard", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        main(args)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"mnist-jax: --tensorboard needs tensorboardX \(.*\): pip install tensorboardX\n", err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_a_while_loses_no_event(run, tmp_path, capsys):
    """And neither ends the run nor makes it wait for ever."""
    unlimited, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Disk(Callback):
        """Has space for files of `size` bytes from each epoch until the next callback's turn."""

        def __init__(self, size):
            self.size = size

        def on_epoch_end(self, metrics, state):
            size = self.size if metrics["epoch"] in (1, 2, 4) else unlimited
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    callbacks = [Disk(100), TensorBoard(), Disk(unlimited)]
    path = fit(SMALL, tmp_path / "run", callbacks=callbacks).path
    err = capsys.readouterr().err
    assert err.count("; free some space or choose another --out. The run continues") == 3
    assert "Traceback" not in err
    for name in ("", "seed-3", "seed-4"):
        tags, expected = (read_tags(folder / "tensorboard" / name) for folder in (path, run))
        assert steps(tags) == steps(expected)
        assert tags["loss/train"] == expected["loss/train"]


def test_networks_that_diverged_are_left_out_of_the_means():
    metrics = {"train_loss": [1.0, None, 3.0], "train_error_percent": [1.0, 90.0, 2.0]}
    means = {"loss/train": 2.0, "error_percent/train": 31.0}
    assert callbacks.scalars(metrics, None) == means
    assert np.isnan(callbacks.scalars(metrics, 1)["loss/train"])
    assert np.isnan(callbacks.scalars({"test_loss": [None]}, None)["loss/test"])


def test_many_seeds_have_few_lines_and_many_units_few_images(tmp_path):
    config = Config(dataset="digits", hidden=(2,), epochs=1, seeds=12)
    path = fit(config, tmp_path / "run", callbacks=[TensorBoard()]).path / "tensorboard"
    folders = {str(file.parent.relative_to(path)) for file in path.rglob("*tfevents*")}
    assert folders == {".", *(f"seed-{seed}" for seed in range(10))}
    image = callbacks.unit_images(np.ones((64, 512)), (8, 8))
    assert image.shape == (8 * 9 - 1, 8 * 9 - 1, 3)
    diverged = np.full((64, 3), np.nan)
    diverged[0, 0] = np.inf
    assert callbacks.unit_images(diverged, (8, 8)).shape == (2 * 9 - 1, 2 * 9 - 1, 3)


# The notebook


def test_curves_without_a_summary_have_no_star(run):
    history = rundir.read_metrics(run)
    labels = [
        [line.get_label() for axes in plots.curves(history, summary).axes for line in axes.lines]
        for summary in (None, rundir.read_summary(run))
    ]
    assert [each.count("test") for each in labels] == [0, 2]


def test_drawing_takes_about_a_tenth_of_the_time(run, monkeypatch):
    clock, drawn, updates = [0.0], [], []

    def curves(history, summary, title):
        clock[0] += 0.3
        drawn.append((len(history), summary))
        return title

    display = SimpleNamespace(update=updates.append)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(plots, "curves", curves)
    monkeypatch.setattr(IPython.display, "display", lambda figure, display_id: display)
    loaded, figure = load_run(run), LiveFigure()
    figure.on_run_begin(loaded, [{}, {}])
    for _ in range(300):
        clock[0] += 0.1
        figure.on_epoch_end({}, loaded.states)
    assert drawn[0] == (3, None)  # at once
    assert 0.09 < 0.3 * len(drawn) / clock[0] < 0.11
    figure.on_run_end({"test": 1})
    assert drawn[-1] == (302, {"test": 1})
    assert len(updates) == len(drawn) - 1  # one display, then updates


@pytest.mark.parametrize("ipykernel", ["absent", "imported"])
def test_only_a_notebook_has_a_live_figure(tmp_path, monkeypatch, ipykernel):
    """A program that imports ipykernel, to start kernels, is no notebook."""
    if ipykernel == "imported":
        monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: pytest.fail("displayed"))
    fit(Config(dataset="digits", hidden=(2,), epochs=1), tmp_path / "run")


TRAIN_CELL = "%run -m mnist_jax train --dataset digits --hidden 16 --epochs 5 --batch-size 32 --out"

FIT_CELL = """
from pathlib import Path
from mnist_jax.config import Config
from mnist_jax.fit import fit
run = fit(Config(dataset="digits", hidden=(16,), epochs=5, batch_size=32), Path("fit"))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The folder in which a notebook was executed, and the outputs of each cell."""
    folder = tmp_path_factory.mktemp("notebook")
    sources = [f"{TRAIN_CELL} train", FIT_CELL, f"{TRAIN_CELL} train", f"{TRAIN_CELL} a --seeds 0"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
    return folder, [cell["outputs"] for cell in executed(nbformat.writes(notebook), folder)]


def stream(outputs, name):
    """What a cell wrote to a stream."""
    return "".join(
        "".join(output["text"])
        for output in outputs
        if output["output_type"] == "stream" and output["name"] == name
    )


@pytest.mark.parametrize(("cell", "name"), [(0, "train"), (1, "fit")])
def test_a_notebook_has_one_bar_and_one_figure(cells, cell, name):
    """The bar is of characters here; where ipywidgets are installed, tqdm has one of widgets."""
    folder, outputs = cells[0], cells[1][cell]
    *_, bar = stream(outputs, "stderr").rstrip("\n").split("\r")
    expected = (
        r"epoch █{8} 5/5, \d\d:\d\d elapsed, 00:00 left, loss [\d.]+, accuracy [\d.]+ %, .*/s"
    )
    assert re.fullmatch(expected, bar)
    (figure,) = (output["data"] for output in outputs if output["output_type"] != "stream")
    run = folder / name
    final = plots.curves(rundir.read_metrics(run), rundir.read_summary(run), "digits")
    assert base64.b64decode(figure["image/png"]) == final._repr_png_()
    text = stream(outputs, "stdout")
    assert text.startswith("digits: 1,437 images to train on")
    assert ("of 360 images misread" in text) == (name == "train")


@pytest.mark.parametrize(
    ("cell", "line"),
    [(2, r"mnist-jax: train already exists; .*"), (3, r"mnist-jax: --seeds 0 cannot be used: .*")],
)
def test_a_notebook_shows_an_error_in_one_line(cells, cell, line):
    (output,) = cells[1][cell]
    assert output["output_type"] == "error"
    assert re.fullmatch(line, "\n".join(output["traceback"]))


def test_the_time_of_a_run_does_not_begin_with_its_notebook(cells):
    assert rundir.read_summary(cells[0] / "train")["seconds"]["startup"] < 1
