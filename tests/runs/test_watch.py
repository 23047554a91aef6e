import base64
import io
import re
import shutil
import signal
import struct
import sys
from types import SimpleNamespace

import IPython.display
import matplotlib
import nbformat
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mnist_jax import cli, plots
from mnist_jax import fit as fitting
from mnist_jax.config import Config, Saving
from mnist_jax.fit import fit
from mnist_jax.runs import rundir, watch
from mnist_jax.runs.interrupts import listening
from mnist_jax.runs.report import load_run
from tests.conftest import executed

SMALL = Config(
    dataset="digits", hidden=(18,), epochs=5, batch_size=32, seeds=2, seed=3, validation_images=37
)
OFTEN = Saving(checkpoint_epochs=1)
MEASURED = {
    f"{kind}/{part}": f"{part}_{kind}"
    for kind in ("loss", "error_percent")
    for part in ("train", "validation")
}


# A reader of event files that knows the format, and not the code that wrote them


def crc32c(content: bytes) -> int:
    """Castagnoli's sum, as RFC 3720 has it; bit by bit in a table of bytes."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def events(file) -> list[Event]:
    """The records of a TFRecord file: length, its sum, content, its sum."""
    stream, found = io.BytesIO(file.read_bytes()), []
    while header := stream.read(8):
        (length,) = struct.unpack("<Q", header)
        (header_sum,) = struct.unpack("<I", stream.read(4))
        content = stream.read(length)
        (content_sum,) = struct.unpack("<I", stream.read(4))
        for part, kept in ((header, header_sum), (content, content_sum)):
            value = crc32c(part)
            assert kept == ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32
        found.append(Event.FromString(content))
    return found


def shown(folder) -> dict[str, list[tuple[int, object]]]:
    """Steps and values by tag, as TensorBoard shows those of a folder: a start purges later ones.

    https://github.com/tensorflow/tensorboard/blob/master/README.md, "How should I handle
    TensorFlow restarts?"
    """
    tags: dict[str, list[tuple[int, object]]] = {}
    for file in sorted(folder.glob("*tfevents*")):
        first, *others = events(file)
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


def opened(image) -> np.ndarray:
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        assert (picture.format, *picture.size) == ("PNG", image.width, image.height)
        return np.asarray(picture.convert("RGB"), float)


class Recorder:
    """Another watcher: it keeps the weights of the first seed, and can stop a run."""

    def __init__(self, stop_at=0):
        self.kernels, self.stop_at = {}, stop_at

    def epoch_done(self, record, states):
        kernel = states.params["Dense_0"]["kernel"]
        self.kernels[record["epoch"]] = np.array(kernel)[0]
        if record["epoch"] == self.stop_at:
            raise RuntimeError("stopped")

    def run_done(self, folder, summary):
        pass


def watched(recorder, *args, **options):
    """`fit` with TensorBoard's files and `recorder`."""
    usual = fitting.watchers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "watchers", lambda *about: [*usual(*about), recorder])
        return fit(*args, **{"tensorboard": True, **options})


@pytest.fixture(scope="module")
def recorder():
    return Recorder()


@pytest.fixture(scope="module")
def run(recorder, tmp_path_factory):
    return watched(recorder, SMALL, tmp_path_factory.mktemp("runs") / "run").path


def test_tensorboard_has_the_numbers_of_the_metrics(run):
    records, summary = rundir.read_metrics(run), rundir.read_summary(run)
    folder = run / "tensorboard"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"seed-3", "seed-4"}
    for name, pick in {"": np.mean, "seed-3": lambda x: x[0], "seed-4": lambda x: x[1]}.items():
        tags = shown(folder / name)
        for tag, kept in MEASURED.items():
            expected = [(record["epoch"], pick(record[kept])) for record in records]
            np.testing.assert_allclose(tags[tag], expected, rtol=1e-6)
        errors = 100 * pick(summary["test_errors"]) / 360
        np.testing.assert_allclose(tags["error_percent/test"], [(5, errors)], rtol=1e-6)
        np.testing.assert_allclose(tags["loss/test"], [(5, pick(summary["test_loss"]))], rtol=1e-6)
    tags = shown(folder)
    speeds = [(record["epoch"], record["images_per_second"]) for record in records]
    np.testing.assert_allclose(tags["images_per_second"], speeds, rtol=1e-6)
    # 1,400 images are 43 steps an epoch, and the rate falls to zero after 215 of them.
    rates = [(epoch, 0.1 * (1 - (43 * epoch - 1) / 215)) for epoch in range(1, 6)]
    np.testing.assert_allclose(tags["learning_rate"], rates, rtol=1e-4)


def test_pictures_of_the_weights_are_few_and_right(run, recorder):
    pictures = dict(shown(run / "tensorboard")["weights"])
    assert list(pictures) == [1, 2, 4, 5]
    for epoch, image in pictures.items():
        kernel = recorder.kernels[epoch]
        shares = np.clip(kernel / np.quantile(np.abs(kernel), 0.999), -1, 1)
        expected = 255 * matplotlib.colormaps["RdBu_r"]((1 + shares) / 2)[..., :3]
        drawn = opened(image)
        for unit in range(18):  # 5 in a row, 8 x 8 weights of 7 x 7 pixels, 2 apart
            top, left = (58 * place for place in divmod(unit, 5))
            squares = drawn[top : top + 56, left : left + 56].reshape(8, 7, 8, 7, 3)
            for part in (squares.min(axis=(1, 3)), squares.max(axis=(1, 3))):
                np.testing.assert_allclose(part.reshape(64, 3), expected[:, unit], atol=4)


def test_tensorboard_has_the_figures_of_the_run(run):
    tags = shown(run / "tensorboard")
    for name in ("samples", "curves", "confusion", "mistakes", "weights"):
        ((step, image),) = tags[f"figures/{name}"]
        assert step == 5
        assert image.encoded_image_string == (run / "figures" / f"{name}.png").read_bytes()
        assert opened(image).std() > 0


def test_it_changes_nothing_of_the_run(run, tmp_path):
    plain = fit(SMALL, tmp_path / "plain").path
    assert not (plain / "tensorboard").exists()
    for one, other in zip(*map(rundir.read_metrics, (plain, run)), strict=True):
        assert {k: v for k, v in one.items() if "second" not in k}.items() <= other.items()
    assert rundir.read_config(plain) == rundir.read_config(run)


def test_a_run_that_goes_on_has_each_epoch_once(run, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        watched(Recorder(stop_at=3), SMALL, out, saving=OFTEN)
    assert steps(shown(out / "tensorboard"))["loss/train"] == [1, 2, 3]
    (first,) = (out / "tensorboard").glob("*tfevents*")
    first.rename(first.with_name("events.out.tfevents.1000000000"))  # some years ago
    fit(SMALL, out, resume=True, tensorboard=True)
    for name in ("", "seed-3", "seed-4"):
        found, expected = shown(out / "tensorboard" / name), shown(run / "tensorboard" / name)
        assert steps(found) == steps(expected)
        assert found["loss/train"] == expected["loss/train"]


def test_a_run_that_began_without_it_has_all_epochs(run, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        watched(Recorder(stop_at=2), SMALL, out, saving=OFTEN, tensorboard=False)
    fit(SMALL, out, resume=True, tensorboard=True)
    found, expected = (shown(path / "tensorboard" / "seed-4") for path in (out, run))
    assert found == expected


def test_a_run_that_has_but_to_be_tested_is_watched_to_its_end(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    shutil.rmtree(out / "tensorboard")
    (out / "tensorboard").mkdir()
    fit(SMALL, out, resume=True, tensorboard=True)
    tags = shown(out / "tensorboard")
    assert steps(tags)["loss/test"] == steps(tags)["figures/curves"] == [5]


def test_a_finished_run_is_left_alone(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*tfevents*")}
    fit(SMALL, run, resume=True, tensorboard=True)
    assert "nothing for TensorBoard to watch" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*tfevents*")} == before


def test_without_tensorboardx_nothing_is_trained(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    args = ["train", "--dataset", "digits", "--tensorboard", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        cli.main(args)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"mnist-jax: --tensorboard needs tensorboardX \(.*\): pip install tensorboardX\n", err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_for_a_while_costs_nothing(run, tmp_path, monkeypatch, capsys):
    append, calls = rundir.append_bytes, []

    def failing(file, content):
        if "tensorboard" in file.parts:
            calls.append(file)
            if 4 <= len(calls) <= 6:  # 1 to 3 are the files of the first epoch
                raise rundir.cannot_write(file, OSError(28, "No space left on device"))
        append(file, content)

    monkeypatch.setattr(rundir, "append_bytes", failing)
    out = fit(SMALL, tmp_path / "run", tensorboard=True).path
    err = capsys.readouterr().err
    assert err.count("No space left on device; free some space") == 1
    assert "Traceback" not in err
    for name in ("", "seed-3", "seed-4"):
        found, expected = shown(out / "tensorboard" / name), shown(run / "tensorboard" / name)
        assert steps(found) == steps(expected)
        assert found["loss/train"] == expected["loss/train"]


def test_a_network_that_diverged_is_left_out_of_the_means():
    record = {"train_loss": [1.0, None, 3.0], "train_error_percent": [1.0, 90.0, 2.0]}
    means = {"loss/train": 2.0, "error_percent/train": 31.0}
    assert watch.scalars(record, None) == means
    assert np.isnan(watch.scalars(record, 1)["loss/train"])
    assert np.isnan(watch.scalars({"test_loss": [None]}, None)["loss/test"])


def test_many_seeds_have_few_lines_and_many_units_few_pictures(run, tmp_path):
    config = Config(dataset="digits", seeds=1000)
    board = watch.TensorBoard(load_run(run)._replace(path=tmp_path, config=config), [])
    assert len(board._files) == 1 + 10
    assert watch.unit_pictures(np.ones((64, 512)), (8, 8)).shape == (8 * 58 - 2, 8 * 58 - 2, 3)
    broken = np.full((64, 3), np.nan)
    broken[0, 0] = np.inf
    assert watch.unit_pictures(broken, (8, 8)).shape == (2 * 58 - 2, 2 * 58 - 2, 3)


# The notebook


def test_curves_without_a_summary_have_no_star(run):
    records = rundir.read_metrics(run)
    stars = [
        [line.get_label() for axes in plots.curves(records, summary).axes for line in axes.lines]
        for summary in (None, rundir.read_summary(run))
    ]
    assert [labels.count("test") for labels in stars] == [0, 2]


def test_drawing_takes_about_a_tenth_of_the_time(run, monkeypatch):
    clock, drawn, handled = [0.0], [], []

    def curves(records, summary, title):
        clock[0] += 0.3
        drawn.append((len(records), summary))
        return title

    handle = SimpleNamespace(update=handled.append)
    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(plots, "curves", curves)
    monkeypatch.setattr(IPython.display, "display", lambda figure, display_id: handle)
    loaded = load_run(run)
    figure = watch.LiveFigure(loaded, [{}, {}])
    for _ in range(300):
        clock[0] += 0.1
        figure.epoch_done({}, loaded.states)
    assert drawn[0] == (3, None)  # at once
    assert 0.09 < 0.3 * len(drawn) / clock[0] < 0.11
    figure.run_done(run, {"test": 1})
    assert drawn[-1] == (302, {"test": 1})
    assert len(handled) == len(drawn) - 1  # one display, then updates


def test_only_a_notebook_has_a_figure(run, monkeypatch):
    assert watch.watchers(load_run(run), [], False) == []
    monkeypatch.setitem(sys.modules, "ipykernel", None)  # as where a program talks to kernels
    assert watch.watchers(load_run(run), [], False) == []


TRAIN_CELL = "%run -m mnist_jax train --dataset digits --hidden 16 --epochs 5 --batch-size 32 --out"

FIT_CELL = """
from pathlib import Path
from mnist_jax.config import Config
from mnist_jax.fit import fit
run = fit(Config(dataset="digits", hidden=(16,), epochs=5, batch_size=32), Path("fit"))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """What is under each cell of a notebook that a kernel has executed, and where that was."""
    folder = tmp_path_factory.mktemp("notebook")
    sources = [f"{TRAIN_CELL} train", FIT_CELL, f"{TRAIN_CELL} train", f"{TRAIN_CELL} a --seeds 0"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
    return folder, [cell["outputs"] for cell in executed(nbformat.writes(notebook), folder)]


@pytest.mark.parametrize(("cell", "name"), [(0, "train"), (1, "fit")])
def test_a_notebook_has_one_bar_and_one_figure(cells, cell, name):
    folder, outputs = cells[0], cells[1][cell]
    streams = {output["name"] for output in outputs if output["output_type"] == "stream"}
    assert streams == {"stdout"}, outputs
    bar, figure = (output["data"] for output in outputs if output["output_type"] != "stream")
    assert set(bar) == {"text/plain"}
    expected = (
        r"█{8} 5/5, \d\d:\d\d so far, 00:00 left, loss [\d.]+, accuracy [\d.]+ %, .* images/s"
    )
    assert re.fullmatch(expected, "".join(bar["text/plain"]))
    run = folder / name
    final = plots.curves(rundir.read_metrics(run), rundir.read_summary(run), "digits")
    assert base64.b64decode(figure["image/png"]) == final._repr_png_()
    text = "".join("".join(output["text"]) for output in outputs if "text" in output)
    assert text.startswith("digits: 1,437 images to train on")
    assert ("of 360 images misread" in text) == (name == "train")


@pytest.mark.parametrize(
    ("cell", "line"),
    [(2, r"mnist-jax: train exists already; .*"), (3, r"mnist-jax: --seeds 0 cannot be used: .*")],
)
def test_a_notebook_says_in_a_line_what_is_wrong(cells, cell, line):
    (output,) = cells[1][cell]
    assert output["output_type"] == "error"
    assert re.fullmatch(line, "\n".join(output["traceback"]))


def test_the_time_of_a_run_does_not_begin_with_its_notebook(cells):
    assert rundir.read_summary(cells[0] / "train")["seconds"]["startup"] < 1


def test_the_first_interrupt_stops_a_cell_that_does_not_train(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    with listening(patient=False), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
