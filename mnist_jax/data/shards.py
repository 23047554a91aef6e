"""Training examples on the device: all of them, or shard by shard with the next one on its way.

Which images a shard has, the first seed and the epoch decide. All networks train on it, each in an
order of its own (see `train.train_epoch`), before the next one comes.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from mnist_jax.config import Config
from mnist_jax.data import Examples
from mnist_jax.data.files import read_images
from mnist_jax.parallel import devices
from mnist_jax.train import SETTLING_IMAGES, Metrics, steps_per_epoch

SHARD_BYTES = 2**27
"""Of the images in a shard of a dataset that stays on disk, where nobody says how many."""

BLOCK_IMAGES = 256
"""Images that stay together, at most: neighbours, which a disk reads faster than scattered ones."""

BLOCKS = 100
"""Blocks in a shard, at least, if it has so many images: so it is like the whole."""


class Plan(NamedTuple):
    """Into what the images of an epoch are divided; one program is compiled for all shards."""

    images: int  # to choose from
    shards: int
    size: int  # of each shard: whole batches, if there is more than one

    @property
    def used(self) -> int:
        """Images of an epoch; what is left over waits for the next shuffle."""
        return self.shards * self.size

    @property
    def is_whole(self) -> bool:
        """Whether all images are on the device at once."""
        return self.size == self.images


def plan(config: Config, images: int) -> Plan:
    """As few shards as `config` allows for so many training images.

    Raises:
        InputError: there are fewer than one batch takes.
    """
    if config.shard_images == 0 or config.shard_images >= images:
        return Plan(images, 1, images)
    batches = steps_per_epoch(images, config.batch_size)
    count = -(-batches // (config.shard_images // config.batch_size))
    return Plan(images, count, batches // count * config.batch_size)


def shard_images(config: Config, training: Examples) -> int:
    """`config.shard_images`, or a number of images that any machine holds if they are on disk."""
    images = training.images
    if config.shard_images or not isinstance(images, np.memmap):
        return config.shard_images
    return max(SHARD_BYTES * len(images) // images.size, config.batch_size)


def pieces(plan: Plan, seed: int, epoch: int, shard: int) -> Int[np.ndarray, "pieces 2"]:
    """The images of a shard, as the first of each piece and the one after its last, ascending.

    Blocks of neighbours are shuffled; a shard has those of its turn, and parts of the two that lie
    across its ends.
    """
    block = min(BLOCK_IMAGES, max(1, plan.size // BLOCKS))
    first = np.random.default_rng([seed, epoch]).permutation(np.arange(0, plan.images, block))
    end = np.minimum(first + block, plan.images)
    place = np.cumsum(end - first) - end  # of image i in the order of the epoch, less i
    first = np.maximum(first, shard * plan.size - place)
    end = np.minimum(end, (shard + 1) * plan.size - place)
    found = np.stack([first, end], axis=1)[first < end]
    return found[np.argsort(found[:, 0])]


def read(training: Examples, pieces: Int[np.ndarray, "pieces 2"]) -> Examples:
    """The examples in `pieces`, in new arrays on the host."""
    images, labels = training
    found = np.empty((int(np.diff(pieces).sum()), *images.shape[1:]), images.dtype)
    at = 0
    for first, end in pieces.tolist():
        found[at : at + end - first] = read_images(images, first, end)
        at += end - first
    return Examples(found, np.concatenate([labels[first:end] for first, end in pieces.tolist()]))


def combined(parts: Sequence[Metrics], steps: int) -> Metrics:
    """The metrics of an epoch from those of its shards, of `steps` each; all on the host."""
    if len(parts) == 1:
        return parts[0]
    loss, errors, finite = (np.stack(each) for each in zip(*parts, strict=True))
    reached = np.cumprod(finite == steps, axis=0)  # whether a network was finite to a shard's end
    finite[1:] *= reached[:-1]
    return Metrics(loss.mean(axis=0), errors.sum(axis=0), finite.sum(axis=0))


def to_json(metrics: Metrics) -> dict[str, Any]:
    """The metrics of a shard as a checkpoint keeps them; `from_json` is the way back."""
    return {name: array.tolist() for name, array in metrics._asdict().items()}


def from_json(part: dict[str, Any]) -> Metrics:
    """What `to_json` made; a loss that is no finite number is NaN."""
    loss = np.array(part["loss"], np.float32)
    return Metrics(loss, np.array(part["errors"]), np.array(part["finite"]))


class Feed:
    """The training examples of a run on its devices, for one epoch after the other."""

    def __init__(self, config: Config, training: Examples) -> None:
        self.plan = plan(config, len(training.labels))
        self._config, self._training = config, training
        self._place = devices.everywhere()  # which a thread of its own does not know
        self._coming: tuple[tuple[int, int], Future[Examples]] | None = None
        if self.plan.is_whole:
            self._pool = None
            images = read_images(training.images, 0, self.plan.images)
            self.like = devices.share(Examples(images, training.labels))
            self.settling = self.like.images
        else:
            self._pool = ThreadPoolExecutor(1)
            self.like = jax.tree.map(self._shape, Examples(*training))
            # Those that `settle` chooses of all, or fewer if a shard has; it takes all of these.
            count = min(SETTLING_IMAGES, self.plan.size)
            evenly = range(0, self.plan.images, max(1, self.plan.images // count))
            few = [read_images(training.images, i, i + 1) for i in evenly]
            self.settling = devices.share(np.concatenate(few))

    def take(self, epoch: int, shard: int) -> Examples:
        """Shard `shard`, counted from 0, of an epoch, counted from 1.

        The next one is read and brought to the device from now on. That makes two at a time, if
        nobody asks before the one that was taken last is used up, and keeps it then.
        """
        if self._pool is None:
            return self.like
        (at, coming), self._coming = self._coming or (None, None), None
        if not coming or at != (epoch, shard):
            coming = self._pool.submit(self._bring, epoch, shard)
        examples = coming.result()
        following = (epoch, shard + 1) if shard + 1 < self.plan.shards else (epoch + 1, 0)
        if following[0] <= self._config.epochs:
            self._coming = following, self._pool.submit(self._bring, *following)
        return examples

    def _bring(self, epoch: int, shard: int) -> Examples:
        chosen = pieces(self.plan, self._config.seed, epoch, shard)
        examples = devices.put(read(self._training, chosen), self._place)
        return jax.block_until_ready(examples)

    def _shape(self, array: np.ndarray) -> jax.ShapeDtypeStruct:
        shape = (self.plan.size, *array.shape[1:])
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=self._place)
