"""10 GB of images train the default network in 0.85 GB of memory, at 0.98 of the speed of MNIST in
memory, and a run that is killed in the middle and resumed ends with the same bits (two CPU cores).

    python experiments/studies/larger_than_memory.py

writes shifted and noisy copies of MNIST's training images to a temporary folder. `mnist-jax train`
trains the default network on them for an epoch, and the system reports its peak memory. A second
run is killed in the middle with SIGKILL and goes on with --resume; all that both runs leave is
compared. Then one process trains in turn on a shard of the large set, while the next shard is read,
and for an epoch on MNIST in memory. The ratio of their images per second is the median over all
such pairs.
"""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro

from mnist_jax import data, population
from mnist_jax.config import Config
from mnist_jax.data import Dataset, Examples
from mnist_jax.data.download import IDX_NAMES
from mnist_jax.data.loader import DataLoader, plan_shards
from mnist_jax.fit import as_used
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.environment import device_name, versions
from mnist_jax.runs.report import load_run
from mnist_jax.train import default_recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """Memory and speed of training on more images than memory holds, and whether it can resume."""

    data_dir: Path | None = None
    """Folder with the MNIST files; without one they are downloaded."""
    gigabytes: float = 10.0
    """Size of the training images, of 10**9 bytes."""
    shard_images: int = 0
    """As for mnist-jax train."""
    rounds: int = 21
    """How many shards, and as many epochs of MNIST, are timed."""
    folder: Path | None = None
    """Folder for the large files, which are deleted at the end; by default a temporary one."""
    results: Path = Path(__file__).parents[1] / "results" / "larger_than_memory.json"
    """The JSON file to write."""


def write(mnist: Dataset, count: int, folder: Path) -> None:
    """Four IDX files: `count` training images and their labels, and MNIST's own test images."""
    images, labels = mnist.train
    with (folder / IDX_NAMES[0]).open("wb") as stream:
        stream.write(header(count, *images.shape[1:]))
        for copy, first in enumerate(range(0, count, len(labels))):
            rng = np.random.default_rng(copy)
            shifted = np.roll(images, rng.integers(-2, 3, 2), axis=(1, 2))
            noisy = np.maximum(shifted, rng.integers(0, 64, shifted.shape, np.uint8))
            stream.write(noisy[: count - first].data)
    small_arrays = np.resize(labels, count), *mnist.test
    for name, array in zip(IDX_NAMES[1:], small_arrays, strict=True):
        (folder / name).write_bytes(header(*array.shape) + array.tobytes())


def header(*shape: int) -> bytes:
    """The header of an IDX file of bytes."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def train(folder: Path, name: str, shard_images: int, kill_at: int | None = None) -> float:
    """Trains the run `folder`/`name`, and returns the peak memory of the process in bytes.

    The process is killed when there is a checkpoint of step `kill_at` or a later one.
    """
    run = folder / name
    command = [sys.executable, "-m", "mnist_jax", "train", "--dataset", "local", "--epochs", "1"]
    command += ["--data-dir", str(folder), "--shard-images", str(shard_images)]
    command += ["--checkpoint-minutes", "0", "--out", str(run), "--resume"]
    process = subprocess.Popen(command)
    while kill_at is not None and process.poll() is None:
        if any(int(step.name) >= kill_at for step in checkpoint.all_of(run)):
            process.kill()
            break
        time.sleep(0.01)
    _, status, usage = os.wait4(process.pid, 0)
    expected = 0 if kill_at is None else -signal.SIGKILL
    if os.waitstatus_to_exitcode(status) != expected:
        sys.exit(f"{' '.join(command)} ended with status {status}, expected {expected}")
    return usage.ru_maxrss * 1024


def left_by(run: Path) -> tuple[object, ...]:
    """All that a run leaves except times: weights, metrics, summary and figures."""

    def timeless(record: rundir.Json) -> rundir.Json:
        return {
            name: value
            for name, value in record.items()
            if "second" not in name and name != "resumed_from_epoch"
        }

    weights = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_run(run).states)]
    figures = {file.name: file.read_bytes() for file in (run / "figures").iterdir()}
    metrics = [timeless(record) for record in rundir.read_metrics(run)]
    return weights, metrics, timeless(rundir.read_summary(run)), figures


def all_shards(loader: DataLoader, epochs: int) -> Iterator[Examples]:
    """The shards of all epochs, one after the other; there is at least one in an epoch."""
    return itertools.chain.from_iterable(map(loader.epoch, range(1, epochs + 1)))


def measure_speeds(
    mnist: Dataset, large: Dataset, config: Config, rounds: int
) -> dict[str, list[float]]:
    """Images per second on each shard and on each epoch of MNIST, in turn, without the first."""
    epochs, batch_size = rounds + 1, config.batch_size
    loaders = {
        "shards": DataLoader(dataclasses.replace(config, epochs=epochs), large.train),
        "in memory": DataLoader(Config(epochs=epochs), mnist.train),
    }
    keys, recipes, states = population.keys([0]), {}, {}
    for name, loader in loaders.items():
        recipes[name] = default_recipe(config, 784, 10, loader.shards.images_used)
        states[name] = population.init(recipes[name], keys)
    shards = {name: all_shards(loader, epochs) for name, loader in loaders.items()}
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds + 1):
        for name, recipe in recipes.items():
            start = time.perf_counter()
            examples = next(shards[name])
            states[name], _ = population.train_epoch(
                recipe, states[name], examples, keys, batch_size, 1
            )
            jax.block_until_ready(states[name])
            seconds = time.perf_counter() - start
            speeds[name].append(len(examples.labels) // batch_size * batch_size / seconds)
            del examples
    return {name: each[1:] for name, each in speeds.items()}


def main() -> None:
    """Measures, prints the claim and writes the numbers."""
    options = tyro.cli(Options)
    mnist = data.load("mnist", options.data_dir)
    count = int(options.gigabytes * 1e9) // 784
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 1.1 * options.gigabytes * 1e9:
            sys.exit(f"{folder} has no room for {options.gigabytes} GB; name another --folder")
        write(mnist, count, folder)
        peaks = [train(folder, "complete", options.shard_images)]
        complete = load_run(folder / "complete")
        shards = plan_shards(complete.config, count)
        steps = shards.images_used // complete.config.batch_size
        train(folder, "killed", options.shard_images, kill_at=steps // 2)
        (newest, *_) = checkpoint.all_of(folder / "killed")
        killed_at = int(newest.name)
        peaks.append(train(folder, "killed", options.shard_images))
        same = left_by(folder / "complete") == left_by(folder / "killed")
        record, summary = rundir.read_metrics(complete.path)[0], rundir.read_summary(complete.path)
        large = data.load("local", folder)
        config = as_used(Config(dataset="local", shard_images=options.shard_images), large)
        speeds = measure_speeds(mnist, large, config, options.rounds)
    ratio = statistics.median(a / b for a, b in zip(*speeds.values(), strict=True))
    claim = (
        f"{options.gigabytes:g} GB of images train the default network in "
        f"{max(peaks) / 1e9:.2f} GB of memory, at {ratio:.2f} of the speed of MNIST in memory"
    )
    print(claim)
    print(
        f"killed after step {killed_at:,} of {steps:,} and resumed, the run has "
        f"{'the same bits' if same else 'OTHER BITS'}; an epoch of {count:,} images takes "
        f"{record['seconds']:.0f} s of the {summary['seconds']['total']:.0f} s of the complete run"
    )
    results = {
        "claim": claim,
        "images": count,
        "shards": shards.count,
        "shard_images": shards.size,
        "peak_bytes": peaks,
        "steps": steps,
        "killed_at_step": killed_at,
        "same_bits": same,
        "images_per_second": speeds,
        "ratio": ratio,
        "seconds": summary["seconds"],
        "epoch_seconds": record["seconds"],
        "test_errors": summary["test_errors"],
        "device": device_name(),
        "versions": versions(),
    }
    rundir.write_bytes(options.results, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
