"""Loads training examples to the devices: all at once, or one shard after the other.

While networks train on a shard, the next one is loaded. The seed and the epoch determine the images
of a shard. Each network then shuffles them in a different order (see `train.train_epoch`).
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Int

from mnist_jax.config import Config
from mnist_jax.data.files import read_images
from mnist_jax.data.registry import Examples, whole_batches
from mnist_jax.errors import unusable
from mnist_jax.parallel.mesh import put, sharding

DEFAULT_SHARD_BYTES = 2**27
"""Size of a shard of images that stay on disk, if the config does not give a number of images."""

MAX_BLOCK_IMAGES = 256
"""Images are shuffled in blocks of at most this many neighbours, which a disk reads fast."""

MIN_BLOCKS = 100
"""A shard has at least this many blocks, so that it resembles the whole set. In a small shard a
block is a single image."""

RECALIBRATION_IMAGES = 10_000
"""Batch statistics are recomputed on about this many training images, evenly spaced."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """How the images of an epoch are divided into shards, all of the same size."""

    images: int  # all training images
    count: int
    size: int  # images in a shard: all of them, or whole batches

    @property
    def images_used(self) -> int:
        """The number of images in an epoch. Each epoch leaves out different images."""
        return self.count * self.size

    @property
    def is_single(self) -> bool:
        """Whether one shard has all images, so that it stays on the devices."""
        return self.size == self.images


def plan_shards(config: Config, train_images: int) -> Shards:
    """As few shards as `config.shard_images` allows.

    Raises:
        InputError: all images, or those of a shard, do not fill a batch.
    """
    batches = whole_batches(train_images, config.batch_size)
    if config.shard_images == 0 or config.shard_images >= train_images:
        return Shards(train_images, 1, train_images)
    if config.shard_images < config.batch_size:
        expected = f"--batch-size {config.batch_size} or more, or 0"
        raise unusable("--shard-images", config.shard_images, expected)
    count = -(-batches // (config.shard_images // config.batch_size))
    return Shards(train_images, count, batches // count * config.batch_size)


def default_shard_images(config: Config, training: Examples) -> int:
    """The shard size to train with: that of `config`, or a default for images that stay on disk.

    0 stands for all images.
    """
    images = training.images
    if config.shard_images or not isinstance(images, np.memmap):
        return config.shard_images
    return max(DEFAULT_SHARD_BYTES * len(images) // images.size, config.batch_size)


def shard_slices(shards: Shards, seed: int, epoch: int, shard: int) -> Int[np.ndarray, "slices 2"]:
    """The images of shard number `shard` in an epoch, as ascending slices of the training set.

    An epoch is a shuffled sequence of blocks. A shard is a section of it, so the first and last
    block in the shard may be incomplete.
    """
    block_size = min(MAX_BLOCK_IMAGES, max(1, shards.size // MIN_BLOCKS))
    starts = np.arange(0, shards.images, block_size)
    starts = np.random.default_rng([seed, epoch]).permutation(starts)
    stops = np.minimum(starts + block_size, shards.images)
    # Image i of a block comes at position i + shift of the epoch.
    shift = np.cumsum(stops - starts) - stops
    starts = np.maximum(starts, shard * shards.size - shift)
    stops = np.minimum(stops, (shard + 1) * shards.size - shift)
    slices = np.stack([starts, stops], axis=1)[starts < stops]
    return slices[np.argsort(slices[:, 0])]


def read_shard(training: Examples, slices: Int[np.ndarray, "slices 2"]) -> Examples:
    """The examples in `slices`, in new arrays in memory."""
    size = int(np.diff(slices).sum())
    images = np.empty((size, *training.images.shape[1:]), training.images.dtype)
    end = 0
    for start, stop in slices.tolist():
        begin, end = end, end + stop - start
        images[begin:end] = read_images(training.images, start, stop)
    labels = np.concatenate([training.labels[start:stop] for start, stop in slices.tolist()])
    return Examples(images, labels)


class DataLoader:
    """Puts the training examples of a run on its devices, epoch by epoch.

    Attributes:
        shards: how an epoch is divided.
        shard_spec: the arrays of a single shard, else the shapes of each shard, to compile for.
        recalibration_images: evenly spaced, to recalibrate batch statistics on; on the devices.
        validation: the validation examples, on the devices.
    """

    def __init__(
        self, config: Config, training: Examples, validation: Examples | None = None
    ) -> None:
        self.shards = plan_shards(config, len(training.labels))
        self._config, self._training = config, training
        self._sharding = sharding()  # here: other threads do not have the mesh
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._loading: dict[int, Future[Examples]] = {}  # by number of the shard in the run
        self.validation = put(validation, self._sharding)
        step = max(1, self.shards.images // min(RECALIBRATION_IMAGES, self.shards.size))
        if self.shards.is_single:
            images = read_images(training.images, 0, self.shards.images)
            self.shard_spec = put(Examples(images, training.labels), self._sharding)
            spaced = images[::step]
        else:
            self.shard_spec = Examples(*map(self._shape, training))
            rows = range(0, self.shards.images, step)
            spaced = np.concatenate([read_images(training.images, i, i + 1) for i in rows])
        self.recalibration_images = put(spaced, self._sharding)

    def epoch(self, epoch: int) -> Iterator[Examples]:
        """The shards of an epoch. Each is loaded while the one before it is used.

        At most two are in memory if the caller deletes each one before asking for the next.

        Args:
            epoch: its number, from 1 on. Epochs may come in any order, but only the next one is
                loaded in advance.
        """
        if self.shards.is_single:
            yield self.shard_spec
            return
        count = self.shards.count
        for number in range((epoch - 1) * count, epoch * count):
            future = self._loading.get(number) or self._executor.submit(self._load, number)
            examples = future.result()
            self._loading.clear()
            if number + 1 < self._config.epochs * count:
                self._loading[number + 1] = self._executor.submit(self._load, number + 1)
            yield examples

    def _load(self, number: int) -> Examples:
        epoch, shard = divmod(number, self.shards.count)
        slices = shard_slices(self.shards, self._config.seed, epoch + 1, shard)
        return jax.block_until_ready(put(read_shard(self._training, slices), self._sharding))

    def _shape(self, array: np.ndarray) -> jax.ShapeDtypeStruct:
        shape = (self.shards.size, *array.shape[1:])
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=self._sharding)
