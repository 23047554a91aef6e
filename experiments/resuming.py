"""Claim: checkpoints cost nothing that can be seen, and every epoch one costs a few percent.

    python experiments/resuming.py --results experiments/results/resuming.json

trains the default network on MNIST without checkpoints before the end, with one a minute (the
default) and with one an epoch, in turn, and takes the wall clock from the end of the first epoch
to the end of the last. Ratios are taken within a round; the median of all rounds is reported.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from mnist_jax.environment import device_name, versions

SETTINGS = {
    "none": ["--checkpoint-minutes", "1e9"],
    "one a minute": [],
    "one an epoch": ["--checkpoint-epochs", "1"],
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What checkpoints cost."""

    rounds: int = 3
    """How often each setting is run."""
    epochs: int = 120
    """Epochs of one run."""
    results: Path | None = None
    """A JSON file to write."""


def seconds_per_epoch(epochs: int, flags: list[str]) -> float:
    """Of one run, in a process of its own, from the lines that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        train = f"train --dataset mnist --epochs {epochs} --out {folder}/run".split()
        command = [sys.executable, "-m", "mnist_jax", *train, *flags]
        moments = []
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            for line in process.stderr or []:
                if line.startswith("epoch"):
                    moments.append(time.perf_counter())
        if process.returncode or len(moments) != epochs:
            raise RuntimeError(f"{' '.join(command)} failed")
        return (moments[-1] - moments[0]) / (epochs - 1)


def measured(rounds: int, epochs: int) -> dict[str, list[float]]:
    """Seconds an epoch of each setting, a number a round."""
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for number in range(rounds):
        turn = number % len(SETTINGS)
        for name in [*SETTINGS, *SETTINGS][turn : turn + len(SETTINGS)]:
            os.sync()  # what the last run wrote is not this one's burden
            seconds[name].append(seconds_per_epoch(epochs, SETTINGS[name]))
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.4f} s an epoch", flush=True)
    return seconds


def main() -> None:
    """Measures, prints a table and keeps the numbers."""
    options = tyro.cli(Options)
    seconds = measured(options.rounds, options.epochs)
    ratios = {name: np.divide(found, seconds["none"]).tolist() for name, found in seconds.items()}
    for name, found in seconds.items():
        print(f"{name:>14}  {np.median(found):.4f} s  {np.median(ratios[name]):.3f}")
    if options.results:
        about = {"device": device_name(), "versions": versions(), "epochs": options.epochs}
        kept = {**about, "seconds_per_epoch": seconds, "ratios": ratios}
        options.results.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
