"""What a checkpoint costs: the seconds that it adds to the epochs beside which it is written.

    python experiments/studies/resuming.py --results experiments/results/resuming.json

trains the default network on MNIST with a checkpoint after every fourth epoch, and takes the wall
clock between the lines that it prints. Of every four epochs, the first two are those around a
checkpoint, and the other two have none. Each such pair is compared with the next one, as the speed
of a machine drifts by more in a minute than a checkpoint costs.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float

from mnist_jax.runs.metadata import device_name, versions


@dataclasses.dataclass(frozen=True)
class Options:
    """What a checkpoint costs."""

    checkpoints: int = 100
    """How many are compared, of four epochs each."""
    results: Path | None = None
    """A JSON file to write."""


def epoch_seconds(checkpoints: int) -> Float[np.ndarray, "checkpoints 4"]:
    """Wall clock of the epochs 4, 5, 6, 7, 8, ... with a checkpoint after each fourth."""
    epochs = 4 * checkpoints + 3
    moments, line = [], ""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_jax", "train", "--dataset", "mnist"]
        command += ["--epochs", str(epochs), "--out", f"{folder}/run"]
        command += ["--checkpoint-minutes", "1e9", "--checkpoint-epochs", "4"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            for line in process.stderr or []:
                if line.startswith("epoch"):
                    moments.append(time.perf_counter())
                print(line, end="", file=sys.stderr, flush=True)
        if process.returncode or len(moments) != epochs:
            sys.exit(f"{shlex.join(command)} failed")
    return np.diff(moments)[2:].reshape(checkpoints, 4)


def main() -> None:
    """Measures, says what a checkpoint costs and keeps the numbers."""
    options = tyro.cli(Options)
    seconds = epoch_seconds(options.checkpoints)
    bare = seconds[:, 2:].sum(axis=1)
    cost = seconds[:, :2].sum(axis=1) - bare
    # Order statistics: 95 % of the time the true median lies between these.
    low, high = np.quantile(cost, np.clip(0.5 + np.array([-1, 1]) / len(cost) ** 0.5, 0, 1))
    epoch = np.median(bare) / 2
    print(
        f"an epoch takes {epoch:.3f} s, and a checkpoint adds {np.median(cost):.3f} s "
        f"({low:.3f} to {high:.3f}, n = {len(cost)}): {np.median(cost) / epoch:.1%} of an epoch "
        f"at one an epoch, {np.median(cost) / 60:.2%} at one a minute, the default"
    )
    if options.results:
        about = {"device": device_name(), "versions": versions()}
        kept = {**about, "epoch_seconds": seconds.round(5).tolist()}
        options.results.write_text(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
