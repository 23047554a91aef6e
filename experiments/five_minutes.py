"""0.530 +/- 0.024 % test error, n = 5, in 4.5 minutes on 2 CPU cores, everything included.

Each run is a process of `mnist-jax train` with the flags below: it imports JAX, reads MNIST,
compiles, trains on all 60,000 images and as many deformations of them as there is time for, counts
the test errors of the averaged weights once, and draws its figures. results/five_minutes.json has
every run of

    python experiments/five_minutes.py

Choices were made on the last 10,000 training images (`--validate`), training on the other 50,000.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from mnist_jax import rundir
from mnist_jax.environment import device_name, versions

FLAGS = (
    "--hidden 1024 512 256 --activation gelu --dropout 0 --batch-norm --nesterov --schedule cosine "
    "--weight-decay 5e-4 --ema-decay 0.999 --rotation-degrees 12 --shear-degrees 12 --scale 0.12 "
    "--shift-pixels 1 --elastic-sigma-pixels 5 --elastic-alpha-pixels 32 --epochs 70"
)


def run_once(seed: int, more: list[str]) -> tuple[rundir.Json, rundir.Json, float]:
    """A run in a process of its own: its summary, its last line of metrics, and its seconds."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "mnist_jax", "train", "--dataset", "mnist", *FLAGS.split()]
        command += ["--seed", str(seed), "--out", str(out), "--no-compilation-cache", *more]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL)  # where test errors are told
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"seed {seed} failed; its message stands above")
        return rundir.read_summary(out), rundir.read_metrics(out)[-1], seconds


def main(
    data_dir: Path | None = None,
    seeds: int = 5,
    validate: bool = False,
    quick: bool = False,
    results: Path | None = None,
) -> None:
    """Runs every seed in a process of its own, prints the claim and writes the numbers.

    Args:
        data_dir: folder with the MNIST files; without it they are downloaded.
        seeds: how many seeds, from 0.
        validate: train without the last 10,000 training images and show the errors on those.
        quick: one epoch of a small network, to see that it works; nothing is kept but in `results`.
        results: the JSON file to write; results/five_minutes.json by default.
    """
    more = ["--data-dir", str(data_dir)] if data_dir else []
    more += ["--validation-images", "10000"] if validate else []
    more += ["--hidden", "32", "--epochs", "1"] if quick else []
    errors, last_weights, seconds = [], [], []
    for seed in range(seeds):
        summary, record, taken = run_once(seed, more)
        if validate:
            print(f"seed {seed}: {record['validation_error_percent'][0]:.2f} %, {taken:.0f} s")
            continue
        errors += summary["test_errors"]
        last_weights += summary["test_errors_of_last_weights"]
        seconds.append(taken)
        print(f"seed {seed}: {errors[-1]} test errors, {taken:.0f} s", flush=True)
    if validate:
        return
    percent = [count / 100 for count in errors]
    spread = f" +/- {statistics.stdev(percent):.3f}" if seeds > 1 else ""
    claim = (
        f"{statistics.mean(percent):.3f}{spread} % test error, n = {seeds}, "
        f"{max(seconds) / 60:.1f} minutes at most"
    )
    print(claim)
    found = {"claim": claim, "test_errors": errors, "test_errors_of_last_weights": last_weights}
    found |= {"seconds": seconds, "flags": FLAGS, "device": device_name(), "versions": versions()}
    if not quick:
        results = results or Path(__file__).parent / "results" / "five_minutes.json"
    if results:
        rundir.write_bytes(results, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    tyro.cli(main)
