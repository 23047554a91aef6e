"""A run that is stopped, damaged or moved, and goes on: the same bits as if nothing had been."""

import json
import shutil
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from mnist_jax.config import Config, InputError, Interrupted, Rescued, Saving
from mnist_jax.data import registry
from mnist_jax.fit import fit
from mnist_jax.parallel import devices
from mnist_jax.runs import checkpoint, report, rundir
from mnist_jax.runs.keeper import Keeper
from mnist_jax.runs.report import load_run
from mnist_jax.train import TrainState, default_recipe

SMALL = Config(dataset="digits", hidden=(16,), epochs=4, batch_size=32, seeds=2)
OFTEN = Saving(checkpoint_minutes=0.0, keep_checkpoints=9)


class Stop(Exception):
    pass


def stopping_after(epoch):
    """A method for Keeper that lets the checkpoint of `epoch` be finished, and stops the run."""

    def begin_checkpoint(self, states):
        original(self, states)
        self._wait()  # so that there is one for every epoch
        if len(self.records) == epoch:
            raise Stop

    original = Keeper.begin_checkpoint
    return begin_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def part(tmp_path, monkeypatch):
    """The folder of a run that was stopped after epoch 3, with a checkpoint of each epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "begin_checkpoint", stopping_after(3))
        with pytest.raises(Stop):
            fit(SMALL, tmp_path / "part", saving=OFTEN)
    assert [folder.name for folder in checkpoint.all_of(tmp_path / "part")] == ["132", "88", "44"]
    return tmp_path / "part"


def assert_same(path, whole):
    """Parameters, metrics, test results and figures are the same, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, load_run(path).states, whole.states)
    for name in ("metrics.jsonl", "summary.json"):
        texts = [
            [line for line in (folder / name).read_text().splitlines() if "seconds" not in line]
            for folder in (path, whole.path)
        ]
        if name == "summary.json":  # its sum is over the seconds too
            texts = [[line for line in text if "sha256" not in line] for text in texts]
            texts = [[line for line in text if "resumed_from" not in line] for text in texts]
        assert texts[0] == texts[1]
    timeless = [
        [
            {name: value for name, value in record.items() if "second" not in name}
            for record in rundir.read_metrics(folder)
        ]
        for folder in (path, whole.path)
    ]
    assert timeless[0] == timeless[1]
    figures = sorted((whole.path / "figures").iterdir())
    assert len(figures) >= 5
    assert len(list((path / "figures").iterdir())) == len(figures)
    for figure in figures:
        assert figure.read_bytes() == (path / "figures" / figure.name).read_bytes()


def test_a_resumed_run_is_the_run_that_was_not_stopped(part, whole):
    run = fit(SMALL, part, resume=True)
    assert_same(part, whole)
    jax.tree.map(np.testing.assert_array_equal, run.states, whole.states)
    summary = rundir.read_summary(part)
    assert summary["resumed_from_epoch"] == 3
    records = rundir.read_metrics(part)
    assert summary["seconds"]["train"] == pytest.approx(sum(r["seconds"] for r in records))


@pytest.mark.parametrize("epoch", [1, 3])
def test_statistics_averages_noise_and_deformations_resume_too(epoch, tmp_path, monkeypatch):
    """Also where the last epoch is kept, but not yet settled."""
    config = Config(
        dataset="digits", hidden=(16,), epochs=3, batch_size=32, batch_norm=True, ema_decay=0.9,
        noise=0.2, rotation_degrees=9.0, elastic_alpha_pixels=5.0, optimizer="adam",
        learning_rate=0.01,
    )  # fmt: skip
    whole = fit(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "begin_checkpoint", stopping_after(epoch))
        with pytest.raises(Stop):
            fit(config, tmp_path / "part", saving=OFTEN)
    fit(config, tmp_path / "part", resume=True)
    assert_same(tmp_path / "part", whole)


def test_a_finished_run_is_said_to_be_and_left_alone(whole, tmp_path, capsys):
    shutil.copytree(whole.path, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*.png")}
    run = fit(SMALL, whole.path, resume=True)
    assert "is finished already" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, run.states, whole.states)
    assert before == {path: path.stat().st_mtime_ns for path in whole.path.rglob("*.png")}


def test_a_summary_of_another_step_does_not_end_a_run(part, whole):
    shutil.copy(whole.path / "summary.json", part)
    fit(SMALL, part, resume=True)
    assert_same(part, whole)


def test_metrics_beyond_the_checkpoint_are_dropped(part, whole):
    rundir.append_metrics(part, {"epoch": 4, "step": 176, "train_loss": [9.0, 9.0]})
    checkpoint.clear(part, part / "checkpoints" / "88")
    fit(SMALL, part, resume=True)
    assert [record["epoch"] for record in rundir.read_metrics(part)] == [1, 2, 3, 4]
    assert_same(part, whole)


@pytest.mark.parametrize("spoiled", [1, 2, 3])
def test_damaged_checkpoints_are_left_out(part, whole, spoiled, capsys):
    for folder in checkpoint.all_of(part)[:spoiled]:
        file = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    fit(SMALL, part, resume=True)
    err = capsys.readouterr().err
    assert err.count("is damaged and left out") == spoiled
    assert ("it starts from the beginning" in err) == (spoiled == 3)
    assert_same(part, whole)


def test_a_damaged_last_checkpoint_makes_way_for_another(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    (folder,) = checkpoint.all_of(run)
    (folder / "SHA256SUMS").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "begin_checkpoint", stopping_after(2))
        with pytest.raises(Stop):
            fit(SMALL, run, resume=True, saving=OFTEN)
    assert not (run / "summary.json").exists()  # it would be about a run that is not done
    fit(SMALL, run, resume=True)
    assert_same(run, whole)
    assert folder.with_suffix(".damaged").is_dir()


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"epochs": 1'])
def test_where_nothing_is_whole_it_starts_anew(part, whole, content, capsys):
    for folder in checkpoint.all_of(part):
        (folder / "config.json").write_bytes(b"?")
    (part / "config.json").unlink()
    if content is not None:
        (part / "config.json").write_bytes(content)
    fit(SMALL, part, resume=True)
    assert "it starts from the beginning" in capsys.readouterr().err
    assert_same(part, whole)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "summary.json"])
def test_a_finished_run_is_mended(whole, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    (run / name).write_bytes((run / name).read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{name}.*--resume"):
        load_run(run), rundir.read_summary(run)
    fit(SMALL, run, resume=True)
    assert_same(run, whole)


def test_a_run_that_is_not_whole_is_not_loaded(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seed": 7}))
    with pytest.raises(InputError, match=r"config.json is not what .* was made with; .*--resume"):
        load_run(run)
    (run / "config.json").write_text(json.dumps(config))
    load_run(run)
    files = [file for file in (run / "checkpoints").rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)  # of weights, which may be any number
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoints/176 is damaged; .*--resume"):
        load_run(run)


def test_an_edited_number_in_a_summary_is_noticed(whole, tmp_path):
    shutil.copy(whole.path / "summary.json", tmp_path)
    text = (tmp_path / "summary.json").read_text()
    (tmp_path / "summary.json").write_text(text.replace('"epochs": 4', '"epochs": 5'))
    with pytest.raises(InputError, match=r"summary.json is damaged or was edited"):
        rundir.read_summary(tmp_path)


def test_a_changed_config_is_refused_by_its_fields(part):
    before = sorted(part.rglob("*"))
    changed = Config(**{**vars(SMALL), "epochs": 5, "hidden": (16, 8)})
    with pytest.raises(InputError) as caught:
        fit(changed, part, resume=True)
    assert "hidden was [16] and is [16, 8]; epochs was 4 and is 5" in str(caught.value)
    assert "seed" not in str(caught.value)
    assert sorted(part.rglob("*")) == before


def test_changed_data_are_refused(part, digits, monkeypatch):
    x, y = (array.copy() for array in digits.train)
    x[7, 3, 3] ^= 1
    arrays = x, y, *digits.test
    altered = registry._checked("digits", arrays)
    with pytest.raises(InputError, match="the images or labels are others"):
        fit(SMALL, part, resume=True, dataset=altered)


def test_another_recipe_is_refused(part):
    def recipe(*args):
        return default_recipe(*args)

    with pytest.raises(InputError, match=r"recipe was default_recipe and is \S+\.recipe"):
        fit(SMALL, part, recipe, resume=True)


def test_data_may_move(tmp_path, monkeypatch):
    """Only what is in them counts, and the folder that is named last is the one to remember."""
    from tests.data.test_files import tiny_arrays, write_idx

    config = Config(dataset="local", hidden=(4,), epochs=2, batch_size=8)
    places = [tmp_path / "old", tmp_path / "new"]
    for place in places:
        write_idx(place, tiny_arrays())
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "begin_checkpoint", stopping_after(1))
        with pytest.raises(Stop):
            fit(Config(**{**vars(config), "data_dir": places[0]}), tmp_path / "run", saving=OFTEN)
    fit(Config(**{**vars(config), "data_dir": places[1]}), tmp_path / "run", resume=True)
    assert rundir.read_config(tmp_path / "run")["data_dir"] == str(places[1])
    run = load_run(tmp_path / "run")
    assert run.config.data_dir == places[1]

    images, *others = tiny_arrays()
    write_idx(tmp_path / "others", (images ^ 1, *others))
    assert report.load_data(run, places[0]).sha256 == run.data_sha256
    with pytest.raises(InputError, match=r"is not what .* was trained on: its images or labels"):
        report.load_data(run, tmp_path / "others")


def test_another_environment_is_warned_of(part, whole, monkeypatch, capsys):
    monkeypatch.setattr("mnist_jax.runs.environment.device_name", lambda: "an abacus")
    monkeypatch.setattr("mnist_jax.runs.environment._code", lambda: "newer")
    monkeypatch.setenv("XLA_FLAGS", os_flags := "--xla_dump_to=")
    fit(SMALL, part, resume=True)
    err = capsys.readouterr().err
    assert "device was CPU" in err
    assert "and is an abacus" in err
    assert "and is newer" in err
    assert f"XLA_FLAGS was None and is {os_flags}" in err
    assert "numpy" not in err
    assert rundir.read_config(part) == rundir.read_config(whole.path)


def test_what_is_no_run_is_not_resumed(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists already and is no run"):
        fit(SMALL, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="--resume needs --out"):
        fit(SMALL, resume=True)


def test_a_run_in_use_is_refused(tmp_path):
    with (
        rundir.claimed(tmp_path / "run"),
        pytest.raises(InputError, match="in use by another process"),
    ):
        fit(SMALL, tmp_path / "run", resume=True)


def test_a_folder_that_another_process_took_meanwhile_is_refused(tmp_path):
    file = tmp_path / "run" / "config.json"

    def recipe(*args):
        file.parent.mkdir()
        file.write_text("another's")
        return default_recipe(*args)

    with pytest.raises(InputError, match="exists already; choose another --out"):
        fit(SMALL, tmp_path / "run", recipe)
    assert file.read_text() == "another's"


# A disk that fails


def failing(times, original):
    """`original`, which fails as on a full disk the first `times`."""
    calls = iter(range(10**9))

    def write(*args, **options):
        if next(calls) < times:
            raise rundir.DiskError("cannot write: No space left on device")
        return original(*args, **options)

    return write


def test_metrics_that_cannot_be_written_keep_no_checkpoint_back(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "append_metrics", failing(10**9, None))
    monkeypatch.setattr(Keeper, "begin_checkpoint", stopping_after(3))
    with pytest.raises(Stop):
        fit(SMALL, tmp_path / "run", saving=OFTEN)
    folders = checkpoint.all_of(tmp_path / "run")
    assert [folder.name for folder in folders] == ["132", "88", "44"]
    assert len(rundir.read_metrics(folders[0])) == 3


@pytest.mark.parametrize("what", ["append_metrics", "save"])
def test_space_that_is_freed_again_leaves_no_trace(tmp_path, whole, monkeypatch, capsys, what):
    module = rundir if what == "append_metrics" else checkpoint
    monkeypatch.setattr(module, what, failing(1, getattr(module, what)))
    run = fit(SMALL, tmp_path / "run", saving=Saving(checkpoint_epochs=1))
    assert run.path == tmp_path / "run"
    assert "No space left on device" in capsys.readouterr().err
    assert_same(run.path, whole)


def test_half_a_line_is_written_anew(tmp_path, whole, monkeypatch):
    def half(run, record):
        if record["epoch"] == 4:
            file = run / "metrics.jsonl"
            file.write_text(file.read_text() + '{"epo')
            raise rundir.DiskError("cannot write: No space left on device")
        original(run, record)

    original = rundir.append_metrics
    monkeypatch.setattr(rundir, "append_metrics", half)
    fit(SMALL, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_a_checkpoint_is_of_the_epoch_after_which_it_was_begun(tmp_path, monkeypatch):
    """Training goes on in the same memory while it is written, and waits for it at the end."""
    begun, written = threading.Event(), []

    def slow(run, step, states, config, records, keep, parts):
        begun.wait(60)
        written.append((step, states.params["w"].tolist(), records.copy()))

    monkeypatch.setattr(checkpoint, "save", slow)
    states = TrainState({"w": np.zeros(3)}, {}, (), np.array([44]))
    with Keeper(tmp_path, {}, Saving(checkpoint_epochs=1), []) as keeper:
        keeper.epoch_done({"epoch": 1})
        assert keeper.is_due()
        keeper.begin_checkpoint(devices.to_host(states))
        for leaf in (states.params["w"], states.step):
            leaf += 44
        keeper.epoch_done({"epoch": 2})
        assert not keeper.is_due()  # one is being written
        begun.set()
    assert written == [(44, [0.0, 0.0, 0.0], [{"epoch": 1}])]


def test_a_disk_that_stays_full_sends_the_run_elsewhere(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    original = checkpoint.save

    def full(run, *args, **options):
        if run == tmp_path / "run":
            raise rundir.DiskError("cannot write: No space left on device")
        original(run, *args, **options)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(Rescued, match=r"No space left.*The whole run is in") as caught:
        fit(SMALL, tmp_path / "run")
    assert caught.value.run
    assert caught.value.run.parent == tmp_path
    assert_same(caught.value.run, whole)


def test_a_run_without_an_epoch_is_sent_elsewhere_too(tmp_path, monkeypatch):
    """A signal came before the first one, and the disk is full."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = fit(SMALL, tmp_path / "other").states
    (tmp_path / "run").mkdir()
    with Keeper(tmp_path / "run", {}, Saving(), []) as keeper:
        monkeypatch.setattr(rundir, "write_config", failing(1, rundir.write_config))
        keeper.training_done(states)
    assert keeper.lost is None
    assert keeper.run.name.startswith("mnist_jax-run-")
    assert rundir.read_metrics(keeper.run) == []


def test_a_run_that_cannot_be_kept_says_so_and_what_it_came_to(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(checkpoint, "save", failing(10**9, None))
    with pytest.raises(Rescued, match="What no checkpoint has is lost") as caught:
        fit(SMALL, tmp_path / "run")
    errors = ", ".join(map(str, rundir.read_summary(whole.path)["test_errors"]))
    assert f"{errors} of 360 images misread" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# A network that diverges


def test_one_network_stops_and_the_others_go_on(tmp_path, whole, capsys):
    """Seed 1 gets a loss that is no number in step 61; for seed 0 nothing changes."""
    from mnist_jax import prng
    from mnist_jax.train import NOISE

    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(prng.key(1), NOISE), 60))
    fatal = jax.random.key_data(keys[0])

    def recipe(*args):
        def augment(key, images):
            hit = (jax.random.key_data(key) == fatal).all()
            return jax.numpy.where(hit, jax.numpy.nan, images.astype(jax.numpy.float32))

        return default_recipe(*args)._replace(augment=augment)

    run = fit(SMALL, tmp_path / "run", recipe)
    rate = SMALL.learning_rate * (1 - 60 / 176)
    err = capsys.readouterr().err
    assert err.count("its loss is no finite number") == 1
    assert f"seed 1 stopped in epoch 2, step 61, at learning rate {rate:.3g}: its loss" in err
    assert "1 of 2 networks diverged" in err
    (found,) = rundir.read_summary(run.path)["diverged"]
    assert found == {"seed": 1, "epoch": 2, "step": 61, "learning_rate": pytest.approx(rate)}
    records = rundir.read_metrics(run.path)
    assert [record.get("stopped_at_step") for record in records] == [None, *3 * [[0, 61]]]
    for record, alone in zip(records, rundir.read_metrics(whole.path), strict=True):
        assert record["train_loss"][0] == pytest.approx(alone["train_loss"][0], rel=1e-4)
        assert (record["train_loss"][1] is None) == (record["epoch"] > 1)


def test_a_run_ends_when_its_last_network_has_stopped(tmp_path):
    config = Config(**{**vars(SMALL), "learning_rate": 1e30})
    run = fit(config, tmp_path / "run")
    assert len(rundir.read_metrics(run.path)) == 1
    summary = rundir.read_summary(run.path)
    assert [found["seed"] for found in summary["diverged"]] == [0, 1]
    assert fit(config, tmp_path / "run", resume=True).path == run.path
    (run.path / "summary.json").unlink()
    fit(config, tmp_path / "run", resume=True)
    again = rundir.read_summary(run.path)
    assert {**again, "seconds": 0, "resumed_from_epoch": 0} == {
        **summary,
        "seconds": 0,
        "resumed_from_epoch": 0,
    }


def test_the_last_step_may_be_the_one_that_diverges(tmp_path):
    """All losses in training were finite, and those of the weights that came of it are not."""
    config = Config(
        dataset="digits", hidden=(16,), epochs=1, batch_size=1437, learning_rate=1e30, seeds=2
    )
    run = fit(config, tmp_path / "run")
    (record,) = rundir.read_metrics(run.path)
    assert None not in record["train_loss"]
    found = [(where["seed"], where["step"]) for where in rundir.read_summary(run.path)["diverged"]]
    assert found == [(0, 1), (1, 1)]


def test_hostile_configs_are_refused(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    kept = json.loads((whole.path / "config.json").read_text())
    for change in (
        {"hidden": [10**9]},
        {"hidden": [[]]},
        {"dataset": ["digits"]},
        {"data_dir": 3},
        {"seeds": 1e6},
        {"nesterov": "yes"},
        {"data": {**kept["data"], "image_shape": [10**9, 8]}},
        {"data": {**kept["data"], "image_shape": [8]}},
        {"data": {**kept["data"], "class_names": [7]}},
        {"data": []},
        {"environment": None},
        {"environment": {"jax": 1}},
        {"hidden": 1001 * [1]},
        {"recipe": 3},
        {"more": 1},
    ):
        (tmp_path / "run" / "config.json").write_text(json.dumps({**kept, **change}))
        with pytest.raises(InputError, match=r"config.json") as caught:
            load_run(tmp_path / "run")
        assert "\n" not in str(caught.value)


def test_a_signal_while_testing_comes_too_late(tmp_path, whole, monkeypatch):
    def and_a_signal(*args):
        signal.raise_signal(signal.SIGTERM)
        return original(*args)

    original = report.measure
    monkeypatch.setattr("mnist_jax.fit.measure", and_a_signal)
    fit(SMALL, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_a_signal_while_training_ends_the_epoch(tmp_path, whole, monkeypatch):
    def and_a_signal(self, record):
        if record["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)
        original(self, record)

    original = Keeper.epoch_done
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "epoch_done", and_a_signal)
        with pytest.raises(Interrupted, match="stopped after epoch 2 of 4") as caught:
            fit(SMALL, tmp_path / "run")
    assert (caught.value.number, caught.value.run) == (2, tmp_path / "run")
    fit(SMALL, Path(caught.value.run), resume=True)
    assert_same(tmp_path / "run", whole)
