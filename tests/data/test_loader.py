"""Shards: which images they have, and that each arrives in its turn while memory holds two."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_jax.config import Config
from mnist_jax.data import Examples, loader
from mnist_jax.data.loader import (
    DataLoader,
    Shards,
    default_shard_images,
    plan_shards,
    read_shard,
    shard_slices,
)
from mnist_jax.errors import InputError
from tests.conftest import idx_bytes

SHARDED = Config(dataset="digits", epochs=3, batch_size=32, shard_images=500)
THREE = Shards(images=1437, count=3, size=448)  # as SHARDED divides the digits


def indices(shards, seed, epoch, shard):
    """The images of a shard, one by one."""
    return [
        i for start, stop in shard_slices(shards, seed, epoch, shard) for i in range(start, stop)
    ]


# How an epoch is divided


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(0, 3000))
def test_shards_are_as_few_as_fit_and_have_whole_batches(images, batch_size, more):
    config = Config(batch_size=batch_size, shard_images=batch_size + more)
    if batch_size > images:
        with pytest.raises(
            InputError, match=rf"--batch-size {batch_size} .* the {images} training"
        ):
            plan_shards(config, images)
        return
    shards = plan_shards(config, images)
    if config.shard_images >= images:
        assert shards == Shards(images, 1, images)
        assert shards.is_single
        return
    assert not shards.is_single
    assert 0 < shards.size <= config.shard_images
    assert shards.size % batch_size == 0
    assert shards.images_used <= images
    assert (images - shards.images_used) // batch_size < shards.count  # under a batch per shard
    batches, max_batches = images // batch_size, config.shard_images // batch_size
    assert (shards.count - 1) * max_batches < batches <= shards.count * max_batches


def test_without_a_shard_size_all_images_are_one_shard():
    assert plan_shards(Config(), 60_000) == Shards(60_000, 1, 60_000)
    assert plan_shards(SHARDED, 1437) == THREE


def test_one_shard_that_leaves_an_image_out_is_not_single():
    shards = plan_shards(Config(shard_images=128), 129)
    assert shards == Shards(129, 1, 128)
    assert not shards.is_single
    assert plan_shards(Config(shard_images=128), 128).is_single


def test_images_on_disk_have_a_default_shard_size(tmp_path, monkeypatch):
    images = np.zeros((1000, 28, 28), np.uint8)
    images.tofile(tmp_path / "images")
    on_disk = Examples(np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape), images)
    monkeypatch.setattr(loader, "DEFAULT_SHARD_BYTES", 500 * 784 + 783)
    assert default_shard_images(Config(), on_disk) == 500
    assert default_shard_images(Config(batch_size=600), on_disk) == 600  # one batch at least
    assert default_shard_images(Config(shard_images=200), on_disk) == 200
    assert default_shard_images(Config(), Examples(images, images)) == 0


# Which images a shard has


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_an_epoch_has_each_image_at_most_once(size, count, left_over, seed):
    shards = Shards(size * count + left_over, count, size)
    epoch = [indices(shards, seed, 3, shard) for shard in range(count)]
    assert all(len(shard) == size and shard == sorted(shard) for shard in epoch)
    images = [i for shard in epoch for i in shard]
    assert len(set(images)) == len(images)
    assert set(images) <= set(range(shards.images))


@pytest.mark.parametrize("size", [50, 3_000, 40_000])
def test_every_image_is_used_in_some_epoch(size):
    shards = Shards(size * 3 - 7 + size // 2, 3, size)
    used = {
        i for epoch in range(1, 20) for shard in range(3) for i in indices(shards, 5, epoch, shard)
    }
    assert len(used) == shards.images


@pytest.mark.parametrize(("size", "block"), [(50, 1), (3_000, 30), (40_000, 256)])
def test_neighbours_stay_together_and_each_shard_has_images_from_everywhere(size, block):
    shards = Shards(size * 4, 4, size)
    slices = shard_slices(shards, 0, 1, 0)
    assert np.diff(slices).max() == block
    assert len(slices) >= 50
    middle = np.mean(indices(shards, 0, 1, 0)) / shards.images
    assert 0.4 < middle < 0.6  # not the first quarter of the file


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    orders = {}
    for seed, epoch, shard in [(0, 1, 0), (0, 2, 0), (1, 1, 0), (0, 1, 1), (1, 0, 0)]:
        np.random.seed(seed + 7)  # noqa: NPY002 - global random numbers have no effect
        orders[seed, epoch, shard] = tuple(indices(THREE, seed, epoch, shard))
        assert orders[seed, epoch, shard] == tuple(indices(THREE, seed, epoch, shard))
    assert len(set(orders.values())) == len(orders)


def test_the_order_is_that_of_earlier_versions():
    """Runs that they left can be resumed. The numbers were written down from them."""
    assert indices(THREE, 0, 1, 0)[:12] == [4, 5, 6, 7, 8, 9, 10, 11, 28, 29, 30, 31]
    assert sum(indices(THREE, 7, 3, 2)) == 292_276
    large = shard_slices(Shards(60_000, 3, 19_968), 3, 2, 1)
    assert large.shape == (101, 2)
    assert large[:3].tolist() == [[0, 199], [1393, 1592], [2587, 2786]]


def test_labels_stay_with_their_images():
    numbers = np.arange(1437)
    images = np.stack([numbers % 256, numbers // 256], axis=1).astype(np.uint8)[:, None]
    training = Examples(images, (numbers % 251).astype(np.uint8))
    examples = read_shard(training, shard_slices(THREE, 0, 1, 1))
    number = examples.images[:, 0, 0].astype(int) + 256 * examples.images[:, 0, 1].astype(int)
    assert number.tolist() == indices(THREE, 0, 1, 1)
    np.testing.assert_array_equal(examples.labels, number % 251)


# How shards get to the devices


def assert_shard(examples, digits, epoch, shard):
    chosen = indices(THREE, 0, epoch, shard)
    np.testing.assert_array_equal(examples.images, digits.train.images[chosen])
    np.testing.assert_array_equal(examples.labels, digits.train.labels[chosen])


def test_each_epoch_has_its_shards_in_their_order(digits):
    data_loader = DataLoader(SHARDED, digits.train)
    assert data_loader.shards == THREE
    for epoch in (1, 2, 3):
        shards = list(data_loader.epoch(epoch))
        assert len(shards) == 3
        for number, examples in enumerate(shards):
            assert_shard(examples, digits, epoch, number)


def test_the_spec_is_what_a_shard_is(digits):
    for config in (SHARDED, dataclasses.replace(SHARDED, shard_images=0)):
        data_loader = DataLoader(config, digits.train)
        examples = next(data_loader.epoch(1))
        for spec, array in zip(data_loader.shard_spec, examples, strict=True):
            assert (spec.shape, spec.dtype) == (array.shape, array.dtype)
        jax.jit(lambda examples: examples.labels).lower(data_loader.shard_spec).compile()(examples)


def test_a_single_shard_is_the_same_arrays_in_every_epoch(digits):
    data_loader = DataLoader(dataclasses.replace(SHARDED, shard_images=0), digits.train)
    (first,), (second,) = data_loader.epoch(1), data_loader.epoch(2)
    assert first is second
    assert len(data_loader.recalibration_images) == len(first.images)
    np.testing.assert_array_equal(first.images, digits.train.images)
    np.testing.assert_array_equal(first.labels, digits.train.labels)


def test_epochs_may_be_abandoned_mixed_and_in_any_order(digits):
    data_loader = DataLoader(SHARDED, digits.train)
    abandoned = data_loader.epoch(1)
    assert_shard(next(abandoned), digits, 1, 0)
    late, early = data_loader.epoch(3), data_loader.epoch(1)
    assert_shard(next(late), digits, 3, 0)
    assert_shard(next(early), digits, 1, 0)
    assert_shard(next(late), digits, 3, 1)
    assert_shard(next(abandoned), digits, 1, 1)
    for number, examples in enumerate(data_loader.epoch(3)):
        assert_shard(examples, digits, 3, number)


def test_the_next_shard_is_read_while_the_present_one_is_used(digits, monkeypatch):
    started, may_end, reads = threading.Semaphore(0), threading.Event(), []

    def slow_read(training, slices):
        reads.append(slices)
        started.release()
        if len(reads) > 1:
            assert may_end.wait(60)
        return read_shard(training, slices)

    monkeypatch.setattr(loader, "read_shard", slow_read)
    data_loader = DataLoader(dataclasses.replace(SHARDED, epochs=2), digits.train)
    first_epoch = data_loader.epoch(1)
    assert_shard(next(first_epoch), digits, 1, 0)  # which does not wait for the second
    assert started.acquire(timeout=60)
    assert started.acquire(timeout=60)  # the second is being read, and nobody has asked for it
    assert len(reads) == 2  # but not the third, for which there is no room
    may_end.set()
    for shard in (1, 2):
        assert_shard(next(first_epoch), digits, 1, shard)
    for _ in (3, 4):
        assert started.acquire(timeout=60)  # the last is of the second epoch
    assert next(first_epoch, None) is None
    np.testing.assert_array_equal(reads[-1], shard_slices(THREE, 0, 2, 0))
    for shard, examples in enumerate(data_loader.epoch(2)):
        assert_shard(examples, digits, 2, shard)
    assert len(reads) == 6  # none beyond the last epoch


def test_at_most_two_shards_are_in_memory(digits, monkeypatch):
    """They are counted when one has been read, which is about to go to the devices."""
    counts, was_read = [], [threading.Event() for _ in range(10)]

    def counting_read(training, slices):
        examples = read_shard(training, slices)
        on_devices = [array for array in jax.live_arrays() if array.shape == (448, 8, 8)]
        counts.append(len(on_devices) + 1)
        was_read[len(counts) - 1].set()
        return examples

    monkeypatch.setattr(loader, "read_shard", counting_read)
    was_read[9].set()  # there is no tenth shard
    data_loader, used = DataLoader(SHARDED, digits.train), 0
    for epoch in (1, 2, 3):
        for examples in data_loader.epoch(epoch):
            used += 1
            assert was_read[used].wait(60)
            assert examples.labels.shape == (448,)  # it has been in use until now
            del examples
    assert (used, len(counts)) == (9, 9)
    assert counts == [1] + 8 * [2]


def test_a_shard_that_cannot_be_read_is_reported(tmp_path, digits):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(digits.train.images))
    images = np.memmap(path, np.uint8, "r", 16, digits.train.images.shape)
    data_loader = DataLoader(SHARDED, Examples(images, digits.train.labels))
    assert_shard(next(data_loader.epoch(2)), digits, 2, 0)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="images"):
        next(data_loader.epoch(1))


def test_recalibration_images_are_evenly_spaced(digits, monkeypatch):
    monkeypatch.setattr(loader, "RECALIBRATION_IMAGES", 300)
    images = DataLoader(SHARDED, digits.train).recalibration_images
    np.testing.assert_array_equal(images, digits.train.images[::4])
    monkeypatch.setattr(loader, "RECALIBRATION_IMAGES", 10_000)
    images = DataLoader(SHARDED, digits.train).recalibration_images
    np.testing.assert_array_equal(images, digits.train.images[::3])  # about as many as a shard has
