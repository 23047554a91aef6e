"""Training on shards: each image in its turn, and every bit as without an interruption."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_jax import data, fit, population
from mnist_jax.config import Config, InputError, Interrupted
from mnist_jax.data import Examples, files, shards
from mnist_jax.data.shards import Feed, Plan, combined, pieces, plan, read
from mnist_jax.explain import run_figures as explain
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.keeper import Keeper
from mnist_jax.runs.report import load_data, load_run
from mnist_jax.sweep import run as sweep
from mnist_jax.train import Metrics, default_recipe
from tests.conftest import idx_bytes
from tests.data.test_files import write_idx
from tests.runs.test_keeper import OFTEN, Stop, assert_same

SHARDED = Config(
    dataset="digits", hidden=(16,), epochs=3, batch_size=32, seeds=2, shard_images=500
)  # 3 shards of 448 of the 1,437 images


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(fit, "draw", lambda *_: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on shards without an interruption."""
    return fit.fit(SHARDED, tmp_path_factory.mktemp("runs") / "whole")


def same_states(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.states, b.states)


def timeless(path):
    return [
        {name: value for name, value in record.items() if "second" not in name}
        for record in rundir.read_metrics(path)
    ]


# The plan and the order


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(0, 3000))
def test_a_plan_has_as_few_shards_of_whole_batches_as_fit(images, batch_size, more):
    config = Config(batch_size=batch_size, shard_images=batch_size + more)
    if config.shard_images >= images:
        assert plan(config, images) == Plan(images, 1, images)
        return
    found = plan(config, images)
    assert 0 < found.size <= config.shard_images
    assert found.size % batch_size == 0
    assert found.used <= images
    assert (images - found.used) // batch_size < found.shards  # less than a batch of each
    batches, most = images // batch_size, config.shard_images // batch_size
    assert (found.shards - 1) * most < batches <= found.shards * most


def test_without_a_size_all_is_one_shard():
    assert plan(Config(), 60_000) == Plan(60_000, 1, 60_000)
    assert plan(Config(shard_images=128), 129) == Plan(129, 1, 128)  # of one batch each


def listed(plan, seed, epoch, shard):
    """The images of a shard, one by one."""
    return [i for first, end in pieces(plan, seed, epoch, shard) for i in range(first, end)]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_an_epoch_has_each_image_once_at_most(size, count, left, seed):
    found = Plan(size * count + left, count, size)
    epoch = [listed(found, seed, 3, shard) for shard in range(count)]
    assert all(len(each) == size and each == sorted(each) for each in epoch)
    taken = [i for each in epoch for i in each]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(found.images))


@pytest.mark.parametrize("size", [50, 3_000, 40_000])
def test_over_epochs_all_images_come(size):
    found = Plan(size * 3 - 7 + size // 2, 3, size)
    seen = {
        i for epoch in range(1, 20) for shard in range(3) for i in listed(found, 5, epoch, shard)
    }
    assert len(seen) == found.images


@pytest.mark.parametrize(("size", "block"), [(50, 1), (3_000, 30), (40_000, 256)])
def test_neighbours_stay_together_and_shards_are_mixed(size, block):
    found = Plan(size * 4, 4, size)
    first = pieces(found, 0, 1, 0)
    assert np.diff(first).max() == block
    assert len(first) >= 50
    middle = np.mean(listed(found, 0, 1, 0)) / found.images
    assert 0.4 < middle < 0.6  # not the first quarter of the file


def test_the_order_is_of_seed_and_epoch_and_nothing_else():
    found = Plan(1437, 3, 448)
    orders = {}
    for seed, epoch, shard in [(0, 1, 0), (0, 2, 0), (1, 1, 0), (0, 1, 1), (1, 0, 0)]:
        np.random.seed(seed + 7)  # noqa: NPY002 - what others draw is no matter
        orders[seed, epoch, shard] = tuple(listed(found, seed, epoch, shard))
        assert orders[seed, epoch, shard] == tuple(listed(found, seed, epoch, shard))
    assert len(set(orders.values())) == len(orders)


def test_labels_stay_with_their_images():
    numbers = np.arange(1437)
    images = np.stack([numbers % 256, numbers // 256], axis=1).astype(np.uint8)[:, None]
    training = Examples(images, (numbers % 251).astype(np.uint8))
    chosen = pieces(Plan(1437, 3, 448), 0, 1, 1)
    found = read(training, chosen)
    place = found.images[:, 0, 0].astype(int) + 256 * found.images[:, 0, 1].astype(int)
    assert place.tolist() == listed(Plan(1437, 3, 448), 0, 1, 1)
    np.testing.assert_array_equal(found.labels, place % 251)


# Training


def test_a_shard_size_of_all_images_changes_nothing(digits, tmp_path, no_figures):
    config = dataclasses.replace(SHARDED, shard_images=1437, batch_norm=True)
    runs = [
        fit.fit(dataclasses.replace(config, shard_images=count), tmp_path / str(count))
        for count in (0, 1437)
    ]
    same_states(*runs)
    assert timeless(runs[0].path) == timeless(runs[1].path)


def test_training_on_shards_is_training_on_one_after_the_other(whole, digits):
    """Compared with epochs on the images of each shard, picked one by one."""
    found, keys = Plan(1437, 3, 448), population.keys([0, 1])
    recipe = default_recipe(SHARDED, 64, 10, 3 * 448)
    states, records = population.init(recipe, keys), timeless(whole.path)
    for epoch in (1, 2, 3):
        losses, errors = [], 0
        for shard in range(3):
            chosen = np.array(listed(found, 0, epoch, shard))
            examples = Examples(*(jax.device_put(array[chosen]) for array in digits.train))
            states, metrics = population.train_epoch(recipe, states, examples, keys, 32, 2)
            losses.append(np.asarray(metrics.loss))
            errors += np.asarray(metrics.errors)
        record = records[epoch - 1]
        np.testing.assert_allclose(record["train_loss"], np.mean(losses, axis=0), rtol=1e-6)
        np.testing.assert_allclose(record["train_error_percent"], 100 * errors / 1344)
        assert record["step"] == epoch * 42
    jax.tree.map(np.testing.assert_array_equal, states, whole.states)


def test_the_learning_rate_ends_at_zero_with_the_last_step(whole, tmp_path, no_figures):
    def recipe(config, pixels, classes, train_images):
        given.append(train_images)
        return default_recipe(config, pixels, classes, train_images)

    given = []
    run = fit.fit(SHARDED, tmp_path / "run", recipe)
    steps = rundir.read_summary(run.path)["steps"]
    assert given == [steps * 32 // 3]
    schedule = fit.learning_rate_schedule(SHARDED, steps)
    assert float(schedule(steps - 1)) > float(schedule(steps)) == 0
    assert load_run(whole.path).recipe is whole.recipe


def test_divergence_is_counted_up_to_the_shard_in_which_it_happens():
    finite = np.int32([[5, 5, 2], [5, 3, 5], [5, 5, 5]])  # by shard and network, of 5 steps each
    parts = [
        Metrics(np.float32([1, 2, np.nan]) + i, np.int32([1, 2, 3]), finite[i]) for i in (0, 1, 2)
    ]
    found = combined(parts, 5)
    assert found.finite.tolist() == [15, 8, 2]
    assert found.errors.tolist() == [3, 6, 9]
    np.testing.assert_array_equal(found.loss, np.float32([2, 3, np.nan]))
    assert combined(parts[:1], 5) is parts[0]


def test_metrics_of_a_shard_are_restored_from_their_file(tmp_path):
    metrics = Metrics(np.float32([0.1, np.nan]), np.int32([3, 4]), np.int32([5, 0]))
    rundir.write_shards(tmp_path, [{"shard": 0, **shards.to_json(metrics), "seconds": 1.0}])
    (kept,) = rundir.read_shards(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, shards.from_json(kept), metrics)
    (tmp_path / "shards.jsonl").write_text('{"shard": 1}\n')
    with pytest.raises(InputError, match=r"shards.jsonl cannot be read \(its shards are not 0, 1"):
        rundir.read_shards(tmp_path)


# Stopped and resumed


def stop_after(patch, epoch, shard):
    """Waits for every checkpoint, and stops the run after one shard."""
    begin, done = Keeper.begin_checkpoint, Keeper.shard_done

    def begin_checkpoint(self, states):
        begin(self, states)
        self._wait()
        if (len(self.records) + 1, len(self.parts)) == (epoch, shard + 1):
            raise Stop

    def shard_done(self, part):
        done(self, part)
        if (len(self.records) + 1, part["shard"]) == (epoch, shard) and shard == 2:
            raise Stop  # before the epoch is done

    patch.setattr(Keeper, "begin_checkpoint", begin_checkpoint)
    patch.setattr(Keeper, "shard_done", shard_done)


@pytest.mark.parametrize(("epoch", "shard"), [(1, 0), (2, 1), (3, 2)])
def test_a_run_that_stops_after_a_shard_resumes_to_the_same_bits(
    whole, tmp_path, monkeypatch, epoch, shard, capsys
):
    part = tmp_path / "part"
    with monkeypatch.context() as patch:
        stop_after(patch, epoch, shard)
        with pytest.raises(Stop):
            fit.fit(SHARDED, part, saving=OFTEN)
    done = min(shard + 1, 2)  # after the last shard, the checkpoint is the epoch's
    (newest, *_) = checkpoint.all_of(part)
    assert newest.name == str((3 * (epoch - 1) + done) * 14)
    assert len(rundir.read_shards(newest)) == done
    load_run(part)
    assert f"after epoch {epoch - 1} and {done} shards of the next" in capsys.readouterr().err
    fit.fit(SHARDED, part, resume=True)
    assert_same(part, whole)


def test_batch_statistics_averages_and_validation_resume_too(tmp_path, monkeypatch, no_figures):
    config = dataclasses.replace(
        SHARDED, batch_norm=True, ema_decay=0.9, noise=0.2, validation_images=100
    )
    run = fit.fit(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2, 0)
        with pytest.raises(Stop):
            fit.fit(config, tmp_path / "part", saving=OFTEN)
    same_states(fit.fit(config, tmp_path / "part", resume=True), run)
    assert timeless(tmp_path / "part") == timeless(run.path)


def test_a_run_that_a_signal_stops_after_a_shard_can_resume(whole, tmp_path, monkeypatch):
    def and_a_signal(self, part):
        original(self, part)
        if (len(self.records), part["shard"]) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    original, part = Keeper.shard_done, tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "shard_done", and_a_signal)
        told = "stopped after epoch 1 of 3 and 2 of 3 shards of the next"
        with pytest.raises(Interrupted, match=told):
            fit.fit(SHARDED, part)
    fit.fit(SHARDED, part, resume=True)
    assert_same(part, whole)


def test_a_run_cannot_resume_with_other_shards(tmp_path, whole):
    changed = dataclasses.replace(SHARDED, shard_images=600)
    with pytest.raises(InputError, match="shard_images was 500 and is 600"):
        fit.fit(changed, whole.path, resume=True)


# The next shard on its way


def test_the_next_shard_is_read_while_the_present_one_is_used(digits, monkeypatch):
    begun, may_end, calls = threading.Semaphore(0), threading.Event(), []

    def slowly(training, chosen):
        calls.append(chosen)
        begun.release()
        if len(calls) > 1:
            assert may_end.wait(60)
        return read(training, chosen)

    monkeypatch.setattr(shards, "read", slowly)
    config = dataclasses.replace(SHARDED, epochs=1)
    feed = Feed(config, digits.train)
    first = feed.take(1, 0)  # which does not wait for the second
    assert first.labels.shape == (448,)
    assert begun.acquire(timeout=60)
    assert begun.acquire(timeout=60)  # the second is under way, and nobody has asked for it
    assert len(calls) == 2  # but no third one, for which there would be no room
    may_end.set()
    for shard in (1, 2):
        expected = listed(feed.plan, 0, 1, shard)
        np.testing.assert_array_equal(feed.take(1, shard).labels, digits.train.labels[expected])
    assert len(calls) == 3  # none beyond the last


def test_shards_may_be_asked_for_in_any_order(digits):
    feed = Feed(SHARDED, digits.train)
    for epoch, shard in [(2, 1), (1, 0), (1, 1), (3, 2)]:
        expected = digits.train.labels[listed(feed.plan, 0, epoch, shard)]
        np.testing.assert_array_equal(feed.take(epoch, shard).labels, expected)


def test_two_shards_at_most_are_alive(tmp_path, monkeypatch, no_figures):
    """Counted when one is about to come, with it."""
    alive = []

    def counting(training, chosen):
        found = read(training, chosen)
        device = [array for array in jax.live_arrays() if array.shape == (448, 8, 8)]
        alive.append(len(device) + 1)
        return found

    monkeypatch.setattr(shards, "read", counting)
    fit.fit(SHARDED, tmp_path / "run")
    assert len(alive) == 9
    assert max(alive) == 2


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
    monkeypatch.setattr(files, "STAYS_ON_DISK", 1437 * 64)  # less than its file, with its header
    return folder


def test_images_on_disk_train_to_the_same_bits_as_in_memory(on_disk, monkeypatch, tmp_path):
    config = dataclasses.replace(
        SHARDED, dataset="local", data_dir=on_disk, batch_norm=True, validation_images=100
    )
    disk = fit.fit(config, tmp_path / "disk")
    monkeypatch.setattr(files, "STAYS_ON_DISK", 10**9)
    assert type(data.load("local", on_disk).train.images) is np.ndarray
    memory = fit.fit(config, tmp_path / "memory")
    assert_same(disk.path, memory)
    assert load_data(disk).sha256 == memory.data_sha256


def test_images_on_disk_are_divided_into_shards_by_default(
    on_disk, monkeypatch, tmp_path, no_figures
):
    monkeypatch.setattr(shards, "SHARD_BYTES", 500 * 64 + 63)
    config = dataclasses.replace(SHARDED, dataset="local", data_dir=on_disk)
    asked = fit.fit(config, tmp_path / "asked")
    left = fit.fit(dataclasses.replace(config, shard_images=0), tmp_path / "left")
    assert left.config == asked.config
    same_states(left, asked)
    again = fit.fit(dataclasses.replace(config, shard_images=0), left.path, resume=True)
    same_states(again, asked)
    monkeypatch.setattr(shards, "SHARD_BYTES", 64)
    training = data.load("local", on_disk).train
    assert shards.shard_images(Config(batch_size=32), training) == 32
    in_memory = Examples(np.asarray(training.images), training.labels)
    assert shards.shard_images(Config(batch_size=32), in_memory) == 0


@pytest.mark.parametrize("how", ["header", "shorter", "gone", "labels"])
def test_a_large_file_that_is_wrong_is_rejected(on_disk, how, tmp_path, monkeypatch):
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
        expected = "has become shorter" if how == "shorter" else "cannot be read"
    with pytest.raises(InputError, match=expected) as caught:
        fit.fit(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_that_shrinks_during_training_is_reported(on_disk, tmp_path, monkeypatch):
    def and_cut(self, part):
        os.truncate(on_disk / files.IDX_NAMES[0], 1000)

    monkeypatch.setattr(Keeper, "shard_done", and_cut)
    config = dataclasses.replace(SHARDED, dataset="local", data_dir=on_disk)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte has become shorter"):
        fit.fit(config, tmp_path / "run")


MEMORY = """
import dataclasses, re, sys
from pathlib import Path
from mnist_jax.data import shards, files
from mnist_jax.config import Config
from mnist_jax.fit import fit

def peak():  # getrusage would include the peak of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

files.STAYS_ON_DISK, shards.SHARD_BYTES = 2**24, 2**23
folder = Path(sys.argv[1])
config = Config(dataset="local", data_dir=folder / "small", hidden=(8,), epochs=2, batch_size=1000)
fit(dataclasses.replace(config, shard_images=2**23 // 784), folder / "first")
before = peak()
run = fit(dataclasses.replace(config, data_dir=folder / "large"), folder / "second")
assert run.config.shard_images == 2**23 // 784
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_holds_shards_but_not_the_file(tmp_path):
    """A process that has trained on 16 MB trains on 300 MB in hardly more memory."""
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
        env={
            **os.environ,
            "MALLOC_ARENA_MAX": "1",
        },  # or threads keep freed memory
    )
    assert done.returncode == 0, done.stderr
    assert "400,000 images to train on (10,000 at once)" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 150


# Sweeps and explanations


def test_a_sweep_trains_on_shards_as_a_run_does(tmp_path, no_figures):
    config = dataclasses.replace(SHARDED, validation_images=200)
    folder = sweep.sweep(config, {"learning_rate": (0.1, 0.03)}, out=tmp_path / "sweep")
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


def test_explain_trains_again_on_the_same_shards(digits, tmp_path, capsys, no_figures):
    config = dataclasses.replace(SHARDED, seeds=1)
    run = fit.fit(config, tmp_path / "run")
    path = explain.train_again(run, digits.train)
    assert path.epochs == (0, 1, 2, 3)
    assert "from the weights of" not in capsys.readouterr().err
    np.testing.assert_array_equal(
        path.layers[-1][0].kernel, run.states.params["Dense_0"]["kernel"][0]
    )


# Bad input


@pytest.mark.parametrize("count", [-1, 1, 127])
def test_a_shard_smaller_than_a_batch_is_rejected(count):
    with pytest.raises(InputError, match=rf"--shard-images {count} cannot be used: it takes "):
        Config(shard_images=count)
