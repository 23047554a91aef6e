"""A run that is stopped, damaged or moved resumes to the same bits as without an interruption."""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from mnist_jax.config import Config, SaveOptions
from mnist_jax.errors import InputError, Interrupted, SaveError
from mnist_jax.fit import fit
from mnist_jax.runs import checkpoint, metadata, results, rundir
from mnist_jax.runs.callbacks import Callback
from mnist_jax.runs.results import load_data, load_run
from mnist_jax.train import default_recipe
from tests.conftest import tiny_arrays

SMALL = Config(dataset="digits", hidden=(16,), epochs=4, batch_size=32, seeds=2)
EVERY_EPOCH = SaveOptions(checkpoint_minutes=0.0, keep_checkpoints=9)


class Stopped(Exception):
    pass


class StopAfter(Callback):
    """Ends a run with an exception after `epoch`, as if its process had died there."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, metrics, state):
        if metrics["epoch"] == self.epoch:
            raise Stopped


def fit_until(epoch, config, path, **options):
    """Trains a run that stops after `epoch`, with a checkpoint of each epoch."""
    options = {"save_options": EVERY_EPOCH, **options}
    with pytest.raises(Stopped):
        fit(config, path, callbacks=[StopAfter(epoch)], **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("runs") / "uninterrupted")


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that stopped after epoch 3, with a checkpoint of each epoch."""
    fit_until(3, SMALL, tmp_path / "stopped")
    folders = checkpoint.all_of(tmp_path / "stopped")
    assert [folder.name for folder in folders] == ["132", "88", "44"]
    return tmp_path / "stopped"


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of the folder of the finished run."""
    return Path(shutil.copytree(uninterrupted.path, tmp_path / "copy"))


def without_times(path):
    """Summary and metrics of a run, except how long they took and where it was resumed."""
    summary = rundir.read_summary(path)
    del summary["seconds"], summary["resumed_from_epoch"]
    history = [
        {name: value for name, value in metrics.items() if "second" not in name}
        for metrics in rundir.read_metrics(path)
    ]
    return summary, history


def assert_same(path, expected):
    """States, metrics, test results and figures are the same, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, load_run(path).states, expected.states)
    assert without_times(path) == without_times(expected.path)
    figures = sorted((expected.path / "figures").iterdir())
    assert len(figures) >= 5
    assert len(list((path / "figures").iterdir())) == len(figures)
    for figure in figures:
        assert figure.read_bytes() == (path / "figures" / figure.name).read_bytes()


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest_file(folder):
    """A file of weights, in which any bit may be flipped and the weights remain numbers."""
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size)


def test_a_resumed_run_is_the_run_that_was_not_stopped(stopped, uninterrupted):
    run = fit(SMALL, stopped, resume=True)
    assert_same(stopped, uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, run.states, uninterrupted.states)
    summary, history = rundir.read_summary(stopped), rundir.read_metrics(stopped)
    assert summary["resumed_from_epoch"] == 3
    seconds = sum(metrics["seconds"] for metrics in history)
    assert summary["seconds"]["train"] == pytest.approx(seconds)


def test_statistics_averages_noise_and_deformations_are_resumed_too(tmp_path):
    config = Config(
        dataset="digits", hidden=(16,), epochs=3, batch_size=32, batch_norm=True, ema_decay=0.9,
        noise=0.2, rotation_degrees=9.0, elastic_alpha_pixels=5.0, optimizer="adam",
        learning_rate=0.01,
    )  # fmt: skip
    expected = fit(config, tmp_path / "uninterrupted")
    fit_until(1, config, tmp_path / "stopped")
    fit(config, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", expected)
    for name in ("summary.json", "figures"):  # as if the run had been killed before its test
        path = tmp_path / "stopped" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fit(config, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", expected)


def test_a_finished_run_stays_as_it_is(copy, uninterrupted, capsys):
    before = {path: path.read_bytes() for path in copy.rglob("*.*") if path.is_file()}
    run = fit(SMALL, copy, resume=True)
    assert "is already finished" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, run.states, uninterrupted.states)
    assert before == {path: path.read_bytes() for path in copy.rglob("*.*") if path.is_file()}


def test_the_summary_of_another_step_does_not_finish_a_run(stopped, uninterrupted):
    shutil.copy(uninterrupted.path / "summary.json", stopped)
    fit(SMALL, stopped, resume=True)
    assert_same(stopped, uninterrupted)


def test_metrics_beyond_the_checkpoint_are_dropped(stopped, uninterrupted):
    rundir.append_metrics(stopped, {"epoch": 4, "step": 176, "train_loss": [9.0, 9.0]})
    checkpoint.set_aside_newer(stopped, stopped / "checkpoints" / "88")
    fit(SMALL, stopped, resume=True)
    assert [metrics["epoch"] for metrics in rundir.read_metrics(stopped)] == [1, 2, 3, 4]
    assert_same(stopped, uninterrupted)


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_damaged_checkpoints_are_ignored(stopped, uninterrupted, damaged, capsys):
    for folder in checkpoint.all_of(stopped)[:damaged]:
        flip_bit(largest_file(folder))
    fit(SMALL, stopped, resume=True)
    err = capsys.readouterr().err
    assert err.count("is damaged and is ignored") == damaged
    assert ("training starts from the beginning" in err) == (damaged == 3)
    assert_same(stopped, uninterrupted)


def test_a_damaged_last_checkpoint_is_replaced(copy, uninterrupted):
    (folder,) = checkpoint.all_of(copy)
    (folder / "SHA256SUMS").write_bytes(b"")
    fit_until(2, SMALL, copy, resume=True)
    assert not (copy / "summary.json").exists()  # the run is not finished any more
    fit(SMALL, copy, resume=True)
    assert_same(copy, uninterrupted)
    assert folder.with_suffix(".damaged").is_dir()


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"epochs": 1'])
def test_with_nothing_intact_a_run_starts_from_the_beginning(
    stopped, uninterrupted, content, capsys
):
    for folder in checkpoint.all_of(stopped):
        (folder / "config.json").write_bytes(b"?")
    (stopped / "config.json").unlink()
    if content is not None:
        (stopped / "config.json").write_bytes(content)
    fit(SMALL, stopped, resume=True)
    assert "training starts from the beginning" in capsys.readouterr().err
    assert_same(stopped, uninterrupted)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "summary.json"])
def test_a_finished_run_is_repaired(copy, uninterrupted, name):
    before = (copy / name).read_bytes()
    (copy / name).write_bytes(before[:-20])
    fit(SMALL, copy, resume=True)
    assert_same(copy, uninterrupted)
    if name != "summary.json":  # it has the seconds
        assert (copy / name).read_bytes() == before


def test_the_network_that_is_loaded_is_that_of_the_checkpoint(copy, uninterrupted):
    """Edits of the copies for people do not change it, and a damaged checkpoint is refused."""
    config = json.loads((copy / "config.json").read_text())
    for content in (json.dumps({**config, "seed": 7, "hidden": [3]}), "{", ""):
        (copy / "config.json").write_text(content)
        (copy / "metrics.jsonl").write_text(content)
        run = load_run(copy)
        assert run.config == uninterrupted.config
        jax.tree.map(np.testing.assert_array_equal, run.states, uninterrupted.states)
    flip_bit(largest_file(copy / "checkpoints"))
    with pytest.raises(InputError, match=r"checkpoints/176 is damaged; .*--resume"):
        load_run(copy)


def test_an_edited_number_in_a_summary_is_detected(copy):
    file = copy / "summary.json"
    file.write_text(file.read_text().replace('"epochs": 4', '"epochs": 5'))
    with pytest.raises(InputError, match=r"summary.json is damaged or was edited"):
        rundir.read_summary(copy)


def test_the_error_for_another_config_names_the_fields(stopped):
    before = sorted(stopped.rglob("*"))
    changed = Config(**{**vars(SMALL), "epochs": 5, "hidden": (16, 8)})
    with pytest.raises(InputError) as caught:
        fit(changed, stopped, resume=True)
    assert "epochs was 4 and is 5; hidden was [16] and is [16, 8]" in str(caught.value)
    assert "seed" not in str(caught.value)
    assert sorted(stopped.rglob("*")) == before


def test_another_recipe_is_refused(stopped):
    def recipe(*args):
        return default_recipe(*args)

    with pytest.raises(InputError, match=r"recipe was default_recipe and is \S+\.recipe"):
        fit(SMALL, stopped, make_recipe=recipe, resume=True)


LOCAL = {"dataset": "local", "hidden": (4,), "epochs": 2, "batch_size": 8}


def write_local(folder, images, *others):
    """A folder of one's own data, with these training images, and its config."""
    folder.mkdir()
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(folder / "mnist.npz", **dict(zip(names, (images, *others), strict=True)))
    return Config(**LOCAL, data_dir=folder)


def test_data_may_move(tmp_path):
    """The data identify the run, not their folder; the folder named last is recorded."""
    old, new = (write_local(tmp_path / name, *tiny_arrays()) for name in ("old", "new"))
    fit_until(1, old, tmp_path / "run")
    fit(new, tmp_path / "run", resume=True)
    assert rundir.read_config(tmp_path / "run")["data_dir"] == str(new.data_dir)
    run = load_run(tmp_path / "run")
    assert run.config.data_dir == new.data_dir
    assert load_data(run, old.data_dir).sha256 == run.data_sha256


def test_other_data_are_refused(tmp_path):
    images, *others = tiny_arrays()
    config = write_local(tmp_path / "data", images, *others)
    images[7, 1, 1] ^= 1
    changed = write_local(tmp_path / "changed", images, *others)
    fit_until(1, config, tmp_path / "run")
    with pytest.raises(InputError, match="data differs"):
        fit(changed, tmp_path / "run", resume=True)
    run = load_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"is not what .* was trained on: its images or labels"):
        load_data(run, changed.data_dir)


def test_another_environment_causes_a_warning(stopped, uninterrupted, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    now = metadata.environment() | {"device": "an abacus", "code": "newer"}
    monkeypatch.setattr(metadata, "environment", lambda mesh: now)
    fit(SMALL, stopped, resume=True)
    err = capsys.readouterr().err
    assert "device was CPU" in err
    assert "and is an abacus" in err
    assert "and is newer" in err
    assert "XLA_FLAGS was None and is --xla_dump_to=" in err
    assert "numpy" not in err
    assert rundir.read_config(stopped) == rundir.read_config(uninterrupted.path)


def test_a_folder_that_is_not_a_run_is_not_resumed(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="already exists and is not a run"):
        fit(SMALL, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="--resume needs --out"):
        fit(SMALL, resume=True)


def test_a_run_in_use_is_refused(tmp_path):
    with (
        rundir.claim(tmp_path / "run"),
        pytest.raises(InputError, match="in use by another process"),
    ):
        fit(SMALL, tmp_path / "run", resume=True)


def test_a_folder_that_another_process_took_meanwhile_is_refused(tmp_path):
    file = tmp_path / "run" / "config.json"

    def recipe(*args):
        file.parent.mkdir(exist_ok=True)
        file.write_text("another's")
        return default_recipe(*args)

    with pytest.raises(InputError, match="already exists; choose another --out"):
        fit(SMALL, tmp_path / "run", make_recipe=recipe)
    assert file.read_text() == "another's"


# A disk that fails


def failing(times, write):
    """`write`, which fails as on a full disk the first `times`."""
    calls = iter(range(10**9))

    def write_or_fail(*args, **options):
        if next(calls) < times:
            raise rundir.DiskError("cannot write: No space left on device")
        return write(*args, **options)

    return write_or_fail


def test_metrics_that_cannot_be_written_hold_up_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "append_metrics", failing(10**9, rundir.append_metrics))
    fit_until(3, SMALL, tmp_path / "run")
    folders = checkpoint.all_of(tmp_path / "run")
    assert [folder.name for folder in folders] == ["132", "88", "44"]
    assert len(rundir.read_metrics(folders[0])) == 3


@pytest.mark.parametrize("what", ["append_metrics", "save"])
def test_a_disk_that_is_full_for_a_while_leaves_no_trace(
    tmp_path, uninterrupted, monkeypatch, capsys, what
):
    module = rundir if what == "append_metrics" else checkpoint
    monkeypatch.setattr(module, what, failing(1, getattr(module, what)))
    run = fit(SMALL, tmp_path / "run", save_options=SaveOptions(checkpoint_epochs=1))
    assert "No space left on device" in capsys.readouterr().err
    assert_same(run.path, uninterrupted)


def test_an_incomplete_line_of_metrics_is_written_again(tmp_path, uninterrupted, monkeypatch):
    append = rundir.append_metrics

    def append_half(run, metrics):
        if metrics["epoch"] == 4:
            file = run / "metrics.jsonl"
            file.write_text(file.read_text() + '{"epo')
            raise rundir.DiskError("cannot write: No space left on device")
        append(run, metrics)

    monkeypatch.setattr(rundir, "append_metrics", append_half)
    fit(SMALL, tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


def result_of(path):
    errors = ", ".join(map(str, rundir.read_summary(path)["test_errors"]))
    return f"{errors} of 360 images misread"


def test_a_failed_checkpoint_is_saved_after_the_next_epoch(tmp_path, monkeypatch):
    """Else a run would wait for its next due time with an old checkpoint."""
    monkeypatch.setattr(checkpoint, "save", failing(1, checkpoint.save))
    options = SaveOptions(checkpoint_epochs=2)
    fit_until(3, SMALL, tmp_path / "run", save_options=options)
    assert [folder.name for folder in checkpoint.all_of(tmp_path / "run")] == ["132"]


def test_a_run_that_could_not_be_saved_says_so_and_its_result(tmp_path, uninterrupted, monkeypatch):
    """The last intact checkpoint stays, and the run can be resumed from it once there is space."""
    save = checkpoint.save

    def fail_late(run, step, *args):
        if step > 88:
            raise rundir.DiskError("cannot write: No space left on device")
        save(run, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fail_late)
        with pytest.raises(SaveError, match="No space left on device") as caught:
            fit(SMALL, tmp_path / "run", save_options=SaveOptions(checkpoint_epochs=1))
    assert result_of(uninterrupted.path) in str(caught.value)
    folders = checkpoint.all_of(tmp_path / "run")
    assert [folder.name for folder in folders] == ["88", "44"]
    assert all(map(checkpoint.is_intact, folders))
    fit(SMALL, tmp_path / "run", resume=True)
    assert rundir.read_summary(tmp_path / "run")["resumed_from_epoch"] == 2
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("what", ["save_figure", "write_summary"])
def test_a_result_that_could_not_be_saved_is_in_the_error(
    tmp_path, uninterrupted, monkeypatch, what
):
    with monkeypatch.context() as patch:
        patch.setattr(rundir, what, failing(10**9, None))
        with pytest.raises(SaveError, match="No space left on device") as caught:
            fit(SMALL, tmp_path / "run")
    assert result_of(uninterrupted.path) in str(caught.value)
    assert not (tmp_path / "run" / "summary.json").exists()
    fit(SMALL, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", uninterrupted)


def test_a_signal_on_a_full_disk_reports_both(tmp_path, monkeypatch):
    """The run resumes from an older checkpoint than the epoch in which it stopped."""
    monkeypatch.setattr(checkpoint, "save", failing(10**9, None))
    with pytest.raises(Interrupted, match="stopped after epoch 2 of 4") as caught:
        fit(SMALL, tmp_path / "run", callbacks=[SignalAfter(2, signal.SIGTERM)])
    assert "No space left on device" in str(caught.value)


# A network that diverges


def test_one_network_diverges_and_the_others_continue(tmp_path, uninterrupted, capsys):
    """Seed 1 gets a loss that is not a number in step 61; for seed 0 nothing changes."""
    from mnist_jax import prng
    from mnist_jax.train import STEP

    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(prng.key(1), STEP), 60))
    fatal = jax.random.key_data(keys[0])

    def recipe(*args):
        def augment(key, images):
            is_fatal = (jax.random.key_data(key) == fatal).all()
            return jax.numpy.where(is_fatal, jax.numpy.nan, images.astype(jax.numpy.float32))

        return default_recipe(*args)._replace(augment=augment)

    run = fit(SMALL, tmp_path / "run", make_recipe=recipe)
    rate = SMALL.learning_rate * (1 - 60 / 176)
    err = capsys.readouterr().err
    assert err.count("its loss is not finite") == 1
    assert f"seed 1 diverged in epoch 2, step 61, at learning rate {rate:.3g}: its loss" in err
    assert "1 of 2 networks diverged" in err
    (place,) = rundir.read_summary(run.path)["diverged"]
    assert place == {"seed": 1, "epoch": 2, "step": 61, "learning_rate": pytest.approx(rate)}
    history = rundir.read_metrics(run.path)
    assert [metrics.get("stopped_at_step") for metrics in history] == [None, *3 * [[0, 61]]]
    for metrics, expected in zip(history, rundir.read_metrics(uninterrupted.path), strict=True):
        assert metrics["train_loss"][0] == pytest.approx(expected["train_loss"][0], rel=1e-4)
        assert (metrics["train_loss"][1] is None) == (metrics["epoch"] > 1)


def test_a_run_ends_when_its_last_network_has_diverged(tmp_path):
    config = Config(**{**vars(SMALL), "learning_rate": 1e30})
    run = fit(config, tmp_path / "run")
    assert len(rundir.read_metrics(run.path)) == 1
    summary = rundir.read_summary(run.path)
    assert [place["seed"] for place in summary["diverged"]] == [0, 1]
    assert fit(config, tmp_path / "run", resume=True).path == run.path
    before = without_times(run.path)
    (run.path / "summary.json").unlink()
    fit(config, tmp_path / "run", resume=True)
    assert without_times(run.path) == before


def test_the_last_step_may_be_the_one_that_diverges(tmp_path):
    """Every loss in training was finite, but not those of the weights after the last step."""
    config = Config(
        dataset="digits", hidden=(16,), epochs=1, batch_size=1437, learning_rate=1e30, seeds=2
    )
    run = fit(config, tmp_path / "run")
    (metrics,) = rundir.read_metrics(run.path)
    assert None not in metrics["train_loss"]
    places = rundir.read_summary(run.path)["diverged"]
    assert [(place["seed"], place["step"]) for place in places] == [(0, 1), (1, 1)]


# Configs and signals


def test_hostile_configs_are_refused(copy):
    """Even with the right checksums."""
    (folder,) = checkpoint.all_of(copy)
    saved, states = rundir.read_config(folder), load_run(copy).states
    for change in (
        {"hidden": [10**9]},
        {"hidden": [[]]},
        {"dataset": ["digits"]},
        {"data_dir": 3},
        {"seeds": 1e6},
        {"nesterov": "yes"},
        {"data": {**saved["data"], "image_shape": [10**9, 8]}},
        {"data": {**saved["data"], "image_shape": [8]}},
        {"data": {**saved["data"], "class_names": [7]}},
        {"data": []},
        {"environment": None},
        {"environment": {"jax": 1}},
        {"hidden": 1001 * [1]},
        {"recipe": 3},
        {"more": 1},
    ):
        shutil.rmtree(folder)
        checkpoint.save(copy, int(folder.name), states, {**saved, **change}, [])
        with pytest.raises(InputError, match=r"config.json") as caught:
            load_run(copy)
        assert "\n" not in str(caught.value)


class SignalAfter(Callback):
    """Sends this process a signal after `epoch`, or at the end of the run."""

    def __init__(self, epoch, number):
        self.epoch, self.number = epoch, number

    def on_epoch_end(self, metrics, state):
        if metrics["epoch"] == self.epoch:
            signal.raise_signal(self.number)

    def on_run_end(self, summary):
        if self.epoch is None:
            signal.raise_signal(self.number)


def test_a_signal_during_training_ends_it_after_the_epoch(tmp_path, uninterrupted):
    with pytest.raises(Interrupted, match="stopped after epoch 2 of 4") as caught:
        fit(SMALL, tmp_path / "run", callbacks=[SignalAfter(2, signal.SIGINT)])
    assert caught.value.signal_number == signal.SIGINT
    assert caught.value.run == tmp_path / "run"
    fit(SMALL, caught.value.run, resume=True)
    assert rundir.read_summary(tmp_path / "run")["resumed_from_epoch"] == 2
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("when", ["the test", "on_run_end"])
def test_a_signal_after_training_changes_nothing(tmp_path, uninterrupted, monkeypatch, when):
    measure = results.measure

    def signal_and_measure(*args):
        signal.raise_signal(signal.SIGTERM)
        return measure(*args)

    if when == "the test":
        monkeypatch.setattr("mnist_jax.fit.measure", signal_and_measure)
    callbacks = [SignalAfter(None, signal.SIGTERM)] if when == "on_run_end" else []
    fit(SMALL, tmp_path / "run", callbacks=callbacks)
    assert_same(tmp_path / "run", uninterrupted)
