import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from mnist_jax import rundir
from mnist_jax.config import InputError


def test_what_is_written_is_read_back(tmp_path):
    run = tmp_path / "deep" / "run"
    rundir.create(run, {"a": [1, 2], "b": None})
    assert rundir.read_config(run) == {"a": [1, 2], "b": None}
    rundir.append_metrics(run, {"epoch": 1, "loss": [0.5]})
    rundir.append_metrics(run, {"epoch": 2, "loss": [math.nan]})
    assert rundir.read_metrics(run) == [{"epoch": 1, "loss": [0.5]}, {"epoch": 2, "loss": [None]}]
    rundir.write_summary(run, {"x": math.inf})
    assert rundir.read_summary(run) == {"x": None}
    for file in run.iterdir():  # every line is JSON that any reader takes
        text = file.read_text()
        for part in [text] if file.suffix == ".json" else text.splitlines():
            json.loads(part, parse_constant=lambda word: pytest.fail(word))


def test_a_checkpoint_keeps_every_bit(tmp_path):
    rundir.create(tmp_path / "run", {})
    state = {
        "weights": jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32),
        "state": (jnp.int32(7), [jnp.zeros(1), jnp.uint8(255)], {}),
    }
    rundir.save_checkpoint(tmp_path / "run", 3, state)
    later = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(1), state)
    rundir.save_checkpoint(tmp_path / "run", 12, later)
    found = rundir.load_checkpoint(tmp_path / "run", jax.eval_shape(lambda: state))
    assert jax.tree.structure(found) == jax.tree.structure(later)
    jax.tree.map(np.testing.assert_array_equal, found, later)


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_exists_is_not_overwritten(tmp_path, kind):
    run = tmp_path / "run"
    if kind == "file":
        run.write_text("precious")
    else:
        run.mkdir()
        (run / "precious").touch()
    for attempt in (rundir.require_free, lambda run: rundir.create(run, {})):
        with pytest.raises(InputError, match="run exists already; choose another --out"):
            attempt(run)


def test_an_empty_folder_will_do(tmp_path):
    rundir.create(tmp_path, {"a": 1})
    assert rundir.read_config(tmp_path) == {"a": 1}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory"):
        rundir.create(tmp_path / "file" / "run", {})


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(InputError, match=r"config.json: No space left on device"):
        rundir.create(tmp_path / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_summary(tmp_path, monkeypatch):
    rundir.write_summary(tmp_path, {"old": True})
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(InputError, match="free some space"):
        rundir.write_summary(tmp_path, {"old": False})
    monkeypatch.undo()
    assert rundir.read_summary(tmp_path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_leaves_no_half_figure(tmp_path, monkeypatch):
    figure = Figure()
    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(InputError, match=r"curves.png: No space left"):
        rundir.save_figure(tmp_path, "curves", figure)
    assert list((tmp_path / "figures").iterdir()) == []


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        rundir.read_config(tmp_path / "none")
    with pytest.raises(InputError, match=r"it has no config.json"):
        rundir.read_config(tmp_path)
    with pytest.raises(InputError, match="has no checkpoint"):
        rundir.load_checkpoint(tmp_path, {})
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read"):
        rundir.read_metrics(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json cannot be read") as caught:
        rundir.read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_named(tmp_path):
    state = {"weights": jnp.arange(1000.0)}
    rundir.save_checkpoint(tmp_path, 1, state)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="checkpoints/1 cannot be read") as caught:
        rundir.load_checkpoint(tmp_path, state)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    rundir.save_checkpoint(tmp_path, 1, {"weights": jnp.arange(4.0)})
    with pytest.raises(InputError, match="arrays of other shapes"):
        rundir.load_checkpoint(tmp_path, {"weights": jnp.arange(5.0)})
    with pytest.raises(InputError, match="cannot be read"):
        rundir.load_checkpoint(tmp_path, {"biases": jnp.arange(4.0)})
