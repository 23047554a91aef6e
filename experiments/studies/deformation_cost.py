"""An affine and elastic deformation of every image adds 0.31 of a step of the default network.

Epochs of the default network with images deformed anew in each step, and without, in turn in one
process; medians, and their ratio. results/deformation_cost.json has every epoch of

    python experiments/studies/deformation_cost.py
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import tyro

from mnist_jax import data, population
from mnist_jax.config import Config
from mnist_jax.data import DataSpec, Examples
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import device_name, versions

AFFINE = Config(rotation_degrees=15.0, shear_degrees=15.0, scale=0.15, shift_pixels=1.0)
CONFIGS = {
    "as they are": Config(),
    "affine": AFFINE,
    "affine and elastic": dataclasses.replace(AFFINE, elastic_alpha_pixels=34.0),
}


def epoch_seconds(config: Config, training: Examples, rounds: int) -> list[float]:
    """Seconds of each epoch after the first."""
    setup = population.Setup(config, DataSpec((28, 28), 10, len(training.labels)))
    members = population.members_of(config)
    states = population.init(setup, members)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        states, _ = population.train_epoch(setup, states, members, training)
        jax.block_until_ready(states)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main(
    data_dir: Path | None = None,
    rounds: int = 11,
    results: Path = Path(__file__).parents[1] / "results" / "deformation_cost.json",
) -> None:
    """Measures, prints the claim and writes the numbers.

    Args:
        data_dir: folder with the MNIST files; without it they are downloaded.
        rounds: how often each kind of epoch is timed.
        results: the JSON file to write.
    """
    training = jax.device_put(data.load("mnist", data_dir).train)
    seconds: dict[str, list[float]] = {name: [] for name in CONFIGS}
    for _ in range(rounds):
        for name, config in CONFIGS.items():
            seconds[name] += epoch_seconds(config, training, 1)
    plain = seconds["as they are"]
    claims = {}
    for name in list(CONFIGS)[1:]:
        added = [there / here - 1 for there, here in zip(seconds[name], plain, strict=True)]
        claims[name] = f"{statistics.median(added):.2f}"
        print(f"{name}: {claims[name]} of an epoch of {statistics.median(plain):.2f} s")
    found = {"epoch_seconds": seconds, "added": claims}
    found |= {"device": device_name(), "versions": versions()}
    rundir.write_bytes(results, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    tyro.cli(main)
