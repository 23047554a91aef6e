import hashlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import InputError
from mnist_jax.runs import checkpoint, rundir

HISTORY = [{"epoch": 1, "loss": [0.5, None]}]


def save(run, step=1, state=None):
    """Saves a checkpoint and returns its folder."""
    state = {"weights": np.arange(1000, dtype=np.float32)} if state is None else state
    checkpoint.save(run, step, state, {"a": 1}, HISTORY)
    return run / "checkpoints" / str(step)


def test_a_checkpoint_saves_every_bit(tmp_path):
    state = {
        "weights": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
        "odd": np.float32([np.nan, np.inf, -0.0, 1e-40]),
        "state": (np.array(7, np.int32), [np.zeros(1, np.float32), np.array(255, np.uint8)], {}),
        "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    }
    folder = save(tmp_path, 3, state)
    loaded = checkpoint.load(folder, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state)))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    for leaf, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert (leaf.dtype, np.asarray(leaf).tobytes()) == (expected.dtype, expected.tobytes())
    assert rundir.read_config(folder) == {"a": 1}
    assert rundir.read_metrics(folder) == HISTORY


def test_a_save_without_enough_space_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands for a full disk."""
    save(tmp_path, 1)
    before, after = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, after))
    try:
        with pytest.raises(rundir.DiskError, match=r"free some space"):
            save(tmp_path, 2, {"weights": np.zeros(10**6, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, after))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_all_but_the_newest_are_removed(tmp_path):
    for step in (9, 10, 11):
        save(tmp_path, step)
    checkpoint.remove_old(tmp_path, keep=2)
    assert [folder.name for folder in checkpoint.all_of(tmp_path)] == ["11", "10"]


def test_the_checksums_are_those_of_the_files(tmp_path):
    folder = save(tmp_path)
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.name != "SHA256SUMS"
    }
    for digest, name in lines:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_any_change_of_any_file_is_detected(tmp_path):
    folder = save(tmp_path)
    assert checkpoint.is_intact(folder)
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
            assert not checkpoint.is_intact(folder), (file, change)
            file.write_bytes(content)
        assert checkpoint.is_intact(folder)
    (folder / "more").touch()
    assert not checkpoint.is_intact(folder)
    (folder / "more").rename(folder / ".DS_Store")  # other programs leave such files
    assert checkpoint.is_intact(folder)


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(tmp_path, monkeypatch):
    """Else a loose cable would restart the run from the beginning."""
    folder = save(tmp_path)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", broken)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.is_intact(folder)


def test_a_checkpoint_in_the_middle_of_an_epoch_is_not_used(tmp_path):
    """Earlier versions saved some, with the metrics of the shards so far."""
    folder = save(tmp_path)
    (folder / "shards.jsonl").write_text("{}\n")
    digest = hashlib.sha256(b"{}\n").hexdigest()
    sums = [*(folder / "SHA256SUMS").read_text().splitlines(), f"{digest}  shards.jsonl"]
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in sums))
    assert not checkpoint.is_intact(folder)


def test_newer_checkpoints_are_set_aside_and_incomplete_ones_removed(tmp_path):
    folders = [save(tmp_path, step) for step in (1, 2, 10)]
    shutil.copytree(folders[0], tmp_path / "checkpoints" / ".11.tmp")
    (tmp_path / "checkpoints" / "mine").mkdir()
    (tmp_path / "checkpoints" / "12").touch()
    assert checkpoint.all_of(tmp_path) == folders[::-1]
    checkpoint.set_aside_newer(tmp_path, folders[1])
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"1", "2", "10.damaged", "12", "mine"}
    checkpoint.set_aside_newer(tmp_path, None)
    assert checkpoint.all_of(tmp_path) == []


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    older = save(tmp_path, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        save(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == [older]
    assert checkpoint.is_intact(older)


def test_other_arrays_are_refused(tmp_path):
    folder = save(tmp_path)
    for other in ({"weights": jnp.arange(999.0)}, {"weights": jnp.arange(1000)}):
        with pytest.raises(InputError, match="another shape"):
            checkpoint.load(folder, other)
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.load(folder, {"biases": jnp.arange(1000.0)})


def test_arrays_larger_than_their_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    """A decompression bomb may have the right checksums."""
    folder = save(tmp_path, state={"weights": np.zeros(10**6, np.float32)})
    monkeypatch.setattr(jax, "device_put", lambda *_: pytest.fail("it was read"))
    large = folder / "arrays" / "weights.npy"
    large.write_bytes(large.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.load(folder, {"weights": jnp.zeros(10**6)})
    large.write_bytes(large.read_bytes().replace(b"(1000000,)", b"(9000000,)"))
    with pytest.raises(InputError, match="cannot be used"):
        checkpoint.load(folder, {"weights": jnp.zeros(10**6)})


def test_numpy_alone_can_read_a_checkpoint(tmp_path):
    state = {"layer": (np.arange(6.0).reshape(2, 3), {"bias": np.ones(2, np.int32)})}
    arrays = save(tmp_path, state=state) / "arrays"
    assert {file.name for file in arrays.iterdir()} == {"layer.0.npy", "layer.1.bias.npy"}
    np.testing.assert_array_equal(np.load(arrays / "layer.0.npy"), state["layer"][0])


def test_more_arrays_than_asked_for_are_refused(tmp_path):
    folder = save(tmp_path, state={"weights": np.zeros(3, np.float32), "more": np.zeros(3)})
    with pytest.raises(InputError, match="too many or too few arrays: more"):
        checkpoint.load(folder, {"weights": jnp.zeros(3)})
