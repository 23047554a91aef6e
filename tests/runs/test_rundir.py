import json
import math
import os
import resource
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

from mnist_jax.errors import InputError
from mnist_jax.runs import rundir


def test_what_is_written_is_read_back(tmp_path):
    run = tmp_path / "deep" / "run"
    run.mkdir(parents=True)
    rundir.write_json(run / "config.json", {"a": [1, 2], "b": None})
    assert rundir.read_config(run) == {"a": [1, 2], "b": None}
    rundir.append_metrics(run, {"epoch": 1, "loss": [0.5]})
    rundir.append_metrics(run, {"epoch": 2, "loss": [math.nan]})
    assert rundir.read_metrics(run) == [{"epoch": 1, "loss": [0.5]}, {"epoch": 2, "loss": [None]}]
    rundir.write_metrics(run, [{"epoch": 1, "loss": [math.inf]}])
    assert rundir.read_metrics(run) == [{"epoch": 1, "loss": [None]}]
    rundir.write_summary(run, {"x": math.inf})
    assert rundir.read_summary(run) == {"x": None}
    for file in run.iterdir():  # strict JSON has no NaN
        text = file.read_text()
        for part in [text] if file.suffix == ".json" else text.splitlines():
            json.loads(part, parse_constant=lambda word: pytest.fail(word))


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_is_not_a_run_is_not_overwritten(tmp_path, kind):
    run = tmp_path / "run"
    if kind == "file":
        run.write_text("precious")
    else:
        run.mkdir()
        (run / "precious").touch()
    with pytest.raises(
        InputError, match="run already exists and is not a run; choose another --out"
    ):
        rundir.require_free(run, resume=True)


def test_a_run_is_not_overwritten_but_may_be_resumed(tmp_path):
    rundir.write_json(tmp_path / "config.json", {})
    with pytest.raises(InputError, match="already exists; choose another --out, or add --resume"):
        rundir.require_free(tmp_path)
    rundir.require_free(tmp_path, resume=True)


def test_an_empty_folder_can_be_claimed_and_a_new_one_that_stays_empty_is_removed(tmp_path):
    rundir.require_free(tmp_path)
    for run in (tmp_path, tmp_path / "deep" / "run"):
        with rundir.claim(run):
            assert run.is_dir()
    assert tmp_path.is_dir()
    assert not (tmp_path / "deep" / "run").exists()
    with rundir.claim(tmp_path / "run"):
        rundir.write_json(tmp_path / "run" / "config.json", {})
    assert rundir.read_config(tmp_path / "run") == {}


def test_a_folder_in_use_is_refused_until_it_is_released(tmp_path):
    with rundir.claim(tmp_path):
        for _ in range(2):
            with pytest.raises(InputError, match="in use by another process"):
                rundir.claim(tmp_path).__enter__()
    with rundir.claim(tmp_path):
        pass


def test_a_folder_that_cannot_be_created_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory"):
        rundir.claim(tmp_path / "file" / "run").__enter__()


@contextmanager
def limited_files(size):
    """Lets no file grow beyond `size` bytes."""
    before, after = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, after))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, after))


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with (
        pytest.raises(InputError, match=r"config.json: No space left on device"),
        rundir.claim(tmp_path / "run"),
    ):
        rundir.write_json(tmp_path / "run" / "config.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_summary(tmp_path, monkeypatch):
    rundir.write_summary(tmp_path, {"old": True})
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(InputError, match="free some space"):
        rundir.write_summary(tmp_path, {"old": False})
    monkeypatch.undo()
    assert rundir.read_summary(tmp_path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_leaves_no_incomplete_figure(tmp_path):
    with limited_files(20), pytest.raises(InputError, match=r"curves.png: .*free some space"):
        rundir.save_figure(tmp_path / "figures" / "curves.png", Figure())
    assert list((tmp_path / "figures").iterdir()) == []


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    for run in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"config.json cannot be read \(No such file"):
            rundir.read_config(run)
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read"):
        rundir.read_metrics(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", 10**6 * b"["])
def test_the_error_names_a_damaged_json_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json cannot be read") as caught:
        rundir.read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_regular_is_not_opened(tmp_path):
    """A pipe would wait for its other end, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"config.json is not a regular file"):
        rundir.read_config(tmp_path)
    with pytest.raises(InputError, match=r"metrics.jsonl is not a regular file"):
        rundir.read_metrics(tmp_path)


def test_nothing_is_written_through_a_symbolic_link(tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("precious")
    run.mkdir()
    for name in (".config.json.tmp", "config.json", "metrics.jsonl"):
        (run / name).symlink_to(precious)
    rundir.write_json(run / "config.json", {})
    rundir.write_metrics(run, [])
    assert precious.read_text() == "precious"


def test_an_incomplete_line_of_metrics_is_removed(tmp_path):
    """A limit on the size of files stands for a disk that is full in the middle of a line."""
    rundir.append_metrics(tmp_path, {"epoch": 1})
    with limited_files(20), pytest.raises(InputError, match=r"metrics.jsonl: .*free some space"):
        rundir.append_metrics(tmp_path, {"epoch": 2, "loss": [1.0, 2.0]})
    assert rundir.read_metrics(tmp_path) == [{"epoch": 1}]


def test_metrics_that_miss_an_epoch_are_refused(tmp_path):
    rundir.write_metrics(tmp_path, [{"epoch": 1}, {"epoch": 3}])
    with pytest.raises(InputError, match="its epochs are not 1, 2, 3"):
        rundir.read_metrics(tmp_path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "MAX_JSON_BYTES", 10)
    (tmp_path / "config.json").write_text('{"a": 12345}')
    with pytest.raises(InputError, match="more than 10 bytes"):
        rundir.read_config(tmp_path)
