"""Training on shards, from memory or from disk: the same networks as from all images at once."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mnist_jax import data, fit, population
from mnist_jax.config import Config, SaveOptions, validate
from mnist_jax.data import DataSpec, Examples, files, loader
from mnist_jax.data.loader import Shards, shard_slices
from mnist_jax.errors import InputError
from mnist_jax.explain import run_figures
from mnist_jax.optim import learning_rate_schedule
from mnist_jax.population import Setup
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.callbacks import Callback
from mnist_jax.runs.results import load_data, load_run
from mnist_jax.sweep.run import sweep
from mnist_jax.train import Metrics, default_recipe
from tests.conftest import idx_bytes
from tests.data.test_files import write_idx
from tests.runs.test_checkpointer import assert_same

SHARDED = Config(
    dataset="digits", hidden=(16,), epochs=3, batch_size=32, seeds=2, shard_images=500
)  # 3 shards of 448 of the 1,437 images
THREE = Shards(images=1437, count=3, size=448)
EVERY_EPOCH = SaveOptions(checkpoint_minutes=0.0, keep_checkpoints=9)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(fit, "save_figures", lambda *_: [])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit.fit(SHARDED, tmp_path_factory.mktemp("runs") / "uninterrupted")


def assert_same_states(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.states, b.states)


def timeless(path):
    return [
        {name: value for name, value in record.items() if "second" not in name}
        for record in rundir.read_metrics(path)
    ]


def test_one_shard_that_holds_all_images_is_no_sharding(tmp_path, no_figures):
    config = dataclasses.replace(SHARDED, batch_norm=True)
    runs = [
        fit.fit(dataclasses.replace(config, shard_images=count), tmp_path / str(count))
        for count in (0, 1437)
    ]
    assert_same_states(*runs)
    assert timeless(runs[0].path) == timeless(runs[1].path)


def test_an_epoch_trains_on_one_shard_after_the_other(uninterrupted, digits):
    """By hand: the images of each shard looked up one by one, and the same epochs on them."""
    setup = Setup(SHARDED, DataSpec((8, 8), 10, THREE.images_used))
    members = population.members_of(SHARDED)
    states, records = population.init(setup, members), timeless(uninterrupted.path)
    for epoch in (1, 2, 3):
        losses, errors = [], 0
        for shard in range(3):
            slices = shard_slices(THREE, 0, epoch, shard)
            chosen = np.concatenate([np.arange(start, stop) for start, stop in slices])
            examples = Examples(*(jax.device_put(array[chosen]) for array in digits.train))
            states, metrics = population.train_epoch(setup, states, members, examples)
            losses.append(np.asarray(metrics.loss))
            errors += np.asarray(metrics.errors)
        record = records[epoch - 1]
        np.testing.assert_allclose(record["train_loss"], np.mean(losses, axis=0), rtol=1e-6)
        np.testing.assert_allclose(record["train_error_percent"], 100 * errors / 1344)
        assert record["step"] == epoch * 42
    jax.tree.map(np.testing.assert_array_equal, states, uninterrupted.states)


def test_the_learning_rate_ends_at_zero_with_the_last_step(uninterrupted, tmp_path, no_figures):
    specs = set()

    def recipe(config, hparams, spec):
        specs.add(spec)
        return default_recipe(config, hparams, spec)

    run = fit.fit(SHARDED, tmp_path / "run", make_recipe=recipe)
    steps = rundir.read_summary(run.path)["steps"]
    assert {spec.train_images for spec in specs} == {steps * 32 // 3}
    schedule = learning_rate_schedule(SHARDED, SHARDED.learning_rate, steps)
    assert float(schedule(steps - 1)) > float(schedule(steps)) == 0
    assert load_run(uninterrupted.path).spec == uninterrupted.spec


def test_a_divergence_is_counted_from_the_shard_where_it_happened():
    finite = np.int32([[5, 5, 2], [5, 3, 5], [5, 5, 5]])  # by shard and network, of 5 steps each
    by_shard = [
        Metrics(np.float32([1, 2, np.nan]) + i, np.int32([1, 2, 3]), finite[i]) for i in (0, 1, 2)
    ]
    metrics = fit.combine_metrics(by_shard, 5)
    assert metrics.finite_steps.tolist() == [15, 8, 2]
    assert metrics.errors.tolist() == [3, 6, 9]
    np.testing.assert_array_equal(metrics.loss, np.float32([2, 3, np.nan]))


class Stopped(Exception):
    pass


class StopAfter(Callback):
    """Ends a run with an error, as a kill would, after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, metrics, state):
        if metrics["epoch"] == self.epoch:
            raise Stopped


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_stops_after_an_epoch_resumes_to_the_same_bits(uninterrupted, tmp_path, epoch):
    path = tmp_path / "run"
    with pytest.raises(Stopped):
        fit.fit(SHARDED, path, save_options=EVERY_EPOCH, callbacks=[StopAfter(epoch)])
    (newest, *_) = checkpoint.all_of(path)
    assert newest.name == str(epoch * 42)
    fit.fit(SHARDED, path, resume=True)
    assert_same(path, uninterrupted)


def test_a_checkpoint_of_an_earlier_version_in_mid_epoch_is_not_resumed_from(
    uninterrupted, tmp_path
):
    """Those had a file of the shards that were done; the epoch starts again."""
    path = tmp_path / "run"
    with pytest.raises(Stopped):
        fit.fit(SHARDED, path, save_options=EVERY_EPOCH, callbacks=[StopAfter(2)])
    newest, before = checkpoint.all_of(path)
    (newest / "shards.jsonl").write_text('{"shard": 0}\n')
    fit.fit(SHARDED, path, resume=True)
    assert rundir.read_summary(path)["resumed_from_epoch"] == 1
    assert before.name == "42"
    assert_same(path, uninterrupted)


def test_other_shards_are_another_run(uninterrupted):
    changed = dataclasses.replace(SHARDED, shard_images=600)
    with pytest.raises(InputError, match="shard_images was 500 and is 600"):
        fit.fit(changed, uninterrupted.path, resume=True)


def test_two_shards_at_most_are_in_memory(tmp_path, monkeypatch, no_figures):
    """They are counted when one has been read, which is about to go to the devices."""
    counts, read = [], loader.read_shard

    def read_and_count(training, slices):
        examples = read(training, slices)
        on_devices = [array for array in jax.live_arrays() if array.shape == (448, 8, 8)]
        counts.append(len(on_devices) + 1)
        return examples

    monkeypatch.setattr(loader, "read_shard", read_and_count)
    fit.fit(SHARDED, tmp_path / "run")
    assert len(counts) == 9
    assert max(counts) == 2


def test_nothing_compiles_late(tmp_path, caplog, no_figures):
    config = dataclasses.replace(SHARDED, hidden=(17,), epochs=1)
    late = []

    class Watched:
        lower = staticmethod(population.train_epoch.lower)

        def __call__(self, *args):
            before = len(caplog.records)
            result = original(*args)
            late.extend(r for r in caplog.records[before:] if "Finished XLA" in r.getMessage())
            return result

    original = population.train_epoch
    with pytest.MonkeyPatch.context() as patch, jax.log_compiles():
        patch.setattr(population, "train_epoch", Watched())
        fit.fit(config, tmp_path / "run")
    assert caplog.records
    assert not late


# On disk


@pytest.fixture
def on_disk(tmp_path, digits, monkeypatch):
    """A folder with the digits, whose training images stay on disk."""
    folder = tmp_path / "large"
    write_idx(folder, (*digits.train, *digits.test), "")
    monkeypatch.setattr(files, "STAYS_ON_DISK", 1437 * 64)  # less than the file and its header
    return folder


def test_from_disk_come_the_same_bits_as_from_memory(on_disk, monkeypatch, tmp_path):
    config = dataclasses.replace(
        SHARDED, dataset="local", data_dir=on_disk, batch_norm=True, validation_images=100
    )
    disk = fit.fit(config, tmp_path / "disk")
    monkeypatch.setattr(files, "STAYS_ON_DISK", 10**9)
    assert type(data.load("local", on_disk).train.images) is np.ndarray
    memory = fit.fit(config, tmp_path / "memory")
    assert_same(disk.path, memory)
    assert load_data(disk).sha256 == memory.data_sha256


def test_what_stays_on_disk_is_divided_without_being_asked(
    on_disk, monkeypatch, tmp_path, no_figures
):
    monkeypatch.setattr(loader, "DEFAULT_SHARD_BYTES", 500 * 64 + 63)
    config = dataclasses.replace(SHARDED, dataset="local", data_dir=on_disk)
    asked = fit.fit(config, tmp_path / "asked")
    left = fit.fit(dataclasses.replace(config, shard_images=0), tmp_path / "left")
    assert left.config == asked.config
    assert_same_states(left, asked)
    again = fit.fit(dataclasses.replace(config, shard_images=0), left.path, resume=True)
    assert_same_states(again, asked)
    monkeypatch.setattr(loader, "DEFAULT_SHARD_BYTES", 64)
    training = data.load("local", on_disk).train
    assert loader.default_shard_images(Config(batch_size=32), training) == 32
    in_memory = Examples(np.asarray(training.images), training.labels)
    assert loader.default_shard_images(Config(batch_size=32), in_memory) == 0


@pytest.mark.parametrize("how", ["header", "shorter", "gone", "labels"])
def test_a_large_file_that_is_not_right_is_refused(on_disk, how, tmp_path, monkeypatch):
    file = on_disk / files.IDX_NAMES[0]
    config = dataclasses.replace(SHARDED, dataset="local", data_dir=on_disk)
    if how == "header":
        with file.open("ab") as stream:
            stream.write(b"one more")
        expected = "does not fit its header: 1437 x 8 x 8"
    if how == "labels":
        file.write_bytes(idx_bytes(np.zeros(100_000, np.uint8)))
        expected = r"training images are uint8 \(100000,\)"
    if how in ("shorter", "gone"):
        large = data.load("local", on_disk)
        os.truncate(file, 1000) if how == "shorter" else file.unlink()
        monkeypatch.setattr(data, "load", lambda *_: large)
        expected = "has become shorter" if how == "shorter" else "No such file"
    with pytest.raises((InputError, OSError), match=expected) as caught:
        fit.fit(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_that_shrinks_while_a_run_trains_ends_it_in_one_line(on_disk, tmp_path, monkeypatch):
    class Cut(Callback):
        def on_epoch_end(self, metrics, state):
            os.truncate(on_disk / files.IDX_NAMES[0], 1000)

    config = dataclasses.replace(SHARDED, dataset="local", data_dir=on_disk)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte has become shorter"):
        fit.fit(config, tmp_path / "run", callbacks=[Cut()])


MEMORY = """
import dataclasses, re, sys
from pathlib import Path
from mnist_jax.data import files, loader
from mnist_jax.config import Config
from mnist_jax.fit import fit

def peak():  # getrusage would give that of the process that started this one, if it was higher
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

files.STAYS_ON_DISK, loader.DEFAULT_SHARD_BYTES = 2**24, 2**23
folder = Path(sys.argv[1])
config = Config(dataset="local", data_dir=folder / "small", hidden=(8,), epochs=2, batch_size=1000)
fit(dataclasses.replace(config, shard_images=2**23 // 784), folder / "first")
before = peak()
run = fit(dataclasses.replace(config, data_dir=folder / "large"), folder / "second")
assert run.config.shard_images == 2**23 // 784
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file tells the peak")
def test_memory_holds_shards_and_not_the_file(tmp_path):
    """A file of 300 MB, by a process that has trained on 16 MB in the same way before."""
    random = np.random.default_rng(0)
    test = random.integers(0, 256, (100, 28, 28), np.uint8), np.arange(100, dtype=np.uint8) % 10
    for name, count in (("small", 20_000), ("large", 400_000)):
        images = np.resize(random.integers(0, 256, (10_000, 28, 28), np.uint8), (count, 28, 28))
        labels = np.resize(np.arange(10, dtype=np.uint8), count)
        write_idx(tmp_path / name, (images, labels, *test), "")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # else each thread hoards what it has freed
    )
    assert done.returncode == 0, done.stderr
    assert "400,000 images to train on (10,000 at once)" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 150


# What else trains


def test_a_sweep_trains_in_shards_what_a_run_does(tmp_path, no_figures):
    config = dataclasses.replace(SHARDED, validation_images=200)
    folder = sweep(config, {"learning_rate": (0.1, 0.03)}, out=tmp_path / "sweep")
    rows = rundir.read_json(folder / "summary.json")
    best = rows["best"]
    run = fit.fit(
        dataclasses.replace(config, learning_rate=best["learning_rate"]), tmp_path / "run"
    )
    last = rundir.read_metrics(run.path)[-1]
    errors = [round(percent * 200 / 100) for percent in last["validation_error_percent"]]
    assert best["validation_errors"] == errors
    assert best["train_loss"] == pytest.approx(np.mean(last["train_loss"]), rel=1e-4)
    assert "--shard-images 500" in rows["command"]


def test_a_run_in_shards_is_explained_by_training_as_it_did(digits, tmp_path, capsys, no_figures):
    config = dataclasses.replace(SHARDED, seeds=1)
    run = fit.fit(config, tmp_path / "run")
    path = run_figures.train_again(run, digits.train)
    assert list(path) == [0, 1, 2, 3]
    assert "from the weights of" not in capsys.readouterr().err
    np.testing.assert_array_equal(path[3][0].kernel, run.states.params["Dense_0"]["kernel"][0])


# Bad input


@pytest.mark.parametrize("count", [-1, 1, 127])
def test_a_shard_smaller_than_a_batch_is_refused(count):
    with pytest.raises(InputError, match=rf"--shard-images {count} cannot be used: it takes "):
        loader.plan_shards(validate(Config(shard_images=count)), 60_000)
