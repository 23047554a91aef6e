import errno
import hashlib
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import InputError
from mnist_jax.runs import checkpoint, rundir

RECORDS = [{"epoch": 1, "loss": [0.5, None]}]


def saved(run, step=1, state=None, **options):
    state = {"weights": np.arange(1000, dtype=np.float32)} if state is None else state
    checkpoint.save(run, step, state, {"a": 1}, RECORDS, **options)
    return run / "checkpoints" / str(step)


def test_a_checkpoint_keeps_every_bit(tmp_path):
    state = {
        "weights": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
        "odd": np.float32([np.nan, np.inf, -0.0, 1e-40]),
        "state": (np.array(7, np.int32), [np.zeros(1, np.float32), np.array(255, np.uint8)], {}),
        "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    }
    folder = saved(tmp_path, 3, state)
    found = checkpoint.load(folder, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state)))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert (leaf.dtype, np.asarray(leaf).tobytes()) == (expected.dtype, expected.tobytes())
    assert rundir.read_config(folder) == {"a": 1}
    assert rundir.read_metrics(folder) == RECORDS


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="nobody to ask for room")
def test_a_save_that_has_no_room_does_not_begin(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    asked = []

    def full(descriptor, start, length):
        asked.append(length)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(rundir.DiskError, match=r"No space left on device; free some space"):
        saved(tmp_path, 2, {"weights": np.zeros(10**6, np.float32)})
    assert asked[0] > 4 * 10**6
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_the_newest_are_kept(tmp_path):
    for step in (9, 10, 11):
        saved(tmp_path, step, keep=2)
    assert [folder.name for folder in checkpoint.all_of(tmp_path)] == ["11", "10"]


def test_the_sums_are_those_of_the_files(tmp_path):
    folder = saved(tmp_path)
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.name != "SHA256SUMS"
    }
    for digest, name in lines:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_any_change_of_any_file_is_noticed(tmp_path):
    folder = saved(tmp_path)
    assert checkpoint.is_whole(folder)
    files = [file for file in folder.rglob("*") if file.is_file()]
    names = {"weights.npy", "config.json", "metrics.jsonl", "SHA256SUMS"}
    assert {file.name for file in files} == names
    for file in files:
        content = file.read_bytes()
        changes = [content + b" ", None]
        if content:
            changes += [content[:-1], bytes([content[0] ^ 1]) + content[1:]]
        for change in changes:
            file.unlink() if change is None else file.write_bytes(change)
            assert not checkpoint.is_whole(folder), (file, change)
            file.write_bytes(content)
        assert checkpoint.is_whole(folder)
    (folder / "more").touch()
    assert not checkpoint.is_whole(folder)
    (folder / "more").rename(folder / ".DS_Store")  # as other programs leave them
    assert checkpoint.is_whole(folder)


def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    """Or a run would begin anew because of a cable."""
    folder = saved(tmp_path)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", broken)
    with pytest.raises(InputError, match=r"checkpoints/1 cannot be read \(Input/output error\)"):
        checkpoint.is_whole(folder)


def test_what_is_later_is_set_aside_and_what_is_half_written_removed(tmp_path):
    folders = [saved(tmp_path, step, keep=9) for step in (1, 2, 10)]
    shutil.copytree(folders[0], tmp_path / "checkpoints" / ".11.tmp")
    (tmp_path / "checkpoints" / "mine").mkdir()
    (tmp_path / "checkpoints" / "12").touch()
    assert checkpoint.all_of(tmp_path) == folders[::-1]
    checkpoint.clear(tmp_path, folders[1])
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"1", "2", "10.damaged", "12", "mine"}
    checkpoint.clear(tmp_path, None)
    assert checkpoint.all_of(tmp_path) == []


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    older = saved(tmp_path, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        saved(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == [older]
    assert checkpoint.is_whole(older)


def test_other_arrays_are_refused(tmp_path):
    folder = saved(tmp_path)
    for other in ({"weights": jnp.arange(999.0)}, {"weights": jnp.arange(1000)}):
        with pytest.raises(InputError, match="arrays of other shapes"):
            checkpoint.load(folder, other)
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.load(folder, {"biases": jnp.arange(1000.0)})


def test_arrays_larger_than_their_files_are_refused_unread(tmp_path, monkeypatch):
    """As a bomb has them, whose sums are right."""
    folder = saved(tmp_path, state={"weights": np.zeros(10**6, np.float32)})
    monkeypatch.setattr(jax, "device_put", lambda *_: pytest.fail("it is read"))
    large = folder / "arrays" / "weights.npy"
    large.write_bytes(large.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.load(folder, {"weights": jnp.zeros(10**6)})
    large.write_bytes(large.read_bytes().replace(b"(1000000,)", b"(9000000,)"))
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.load(folder, {"weights": jnp.zeros(10**6)})


def test_anyone_with_numpy_can_read_it(tmp_path):
    state = {"layer": (np.arange(6.0).reshape(2, 3), {"bias": np.ones(2, np.int32)})}
    arrays = saved(tmp_path, state=state) / "arrays"
    assert {file.name for file in arrays.iterdir()} == {"layer.0.npy", "layer.1.bias.npy"}
    np.testing.assert_array_equal(np.load(arrays / "layer.0.npy"), state["layer"][0])


def test_arrays_that_nobody_asked_for_are_refused(tmp_path):
    folder = saved(tmp_path, state={"weights": np.zeros(3, np.float32), "more": np.zeros(3)})
    with pytest.raises(InputError, match="it holds more arrays than the config asks for"):
        checkpoint.load(folder, {"weights": jnp.zeros(3)})
