"""36 networks of 512-512 take 106 s as one program, and 185 s as one run after the other; 36 of
them make the same validation errors; 36 networks of 64 take 15 s as one program, and 89 s as one
run after the other; 26 of them make the same validation errors. Five epochs each, two CPU cores.

    python experiments/studies/sweep_at_once.py

has `mnist-jax sweep` try three learning rates and three dropout rates with four seeds each, and
then has `mnist-jax train` train each of these 36 networks by itself, with the same images held out
and in a process of its own, as one would without a sweep: it then also reads the test images, draws
its figures and keeps its weights. The small networks of a sweep train side by side, where rounding
differs.
"""

import dataclasses
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from tqdm.auto import tqdm

from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import device_name, versions

RATES = ("0.03", "0.1", "0.3")
DROPOUTS = ("0", "0.2", "0.5")
SEEDS = 4
NETWORKS = {"512-512": ("512", "512"), "64": ("64",)}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a sweep saves."""

    data_dir: Path | None = None
    """Folder with the dataset's files; without it they are downloaded."""
    dataset: str = "mnist"
    """As for mnist-jax train."""
    epochs: int = 5
    """Of each network."""
    results: Path = Path(__file__).parents[1] / "results" / "sweep_at_once.json"
    """The JSON file to write."""


def seconds_of(*words: str) -> float:
    """How long a command of mnist-jax takes."""
    command = [sys.executable, "-m", "mnist_jax", *words]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def compared(hidden: tuple[str, ...], options: Options, folder: Path) -> rundir.Json:
    """The seconds and the validation errors of the sweep, and of each network by itself."""
    shared = ["--dataset", options.dataset, "--epochs", str(options.epochs)]
    shared += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    out = folder / f"sweep-{'-'.join(hidden)}"
    tried = ["--learning-rate", *RATES, "--dropout", *DROPOUTS, "--seeds", str(SEEDS)]
    widths = ["--hidden", "x".join(hidden)]
    swept = seconds_of("sweep", *shared, *tried, *widths, "--out", str(out))
    rows = json.loads((out / "table.json").read_text())
    together = {(row["learning_rate"], row["dropout"]): row["validation_errors"] for row in rows}
    held_out = rundir.read_summary(out)["validation_images"]
    seconds, pairs = [], []
    each = list(itertools.product(RATES, DROPOUTS, range(SEEDS)))
    for number, (rate, dropout, seed) in enumerate(tqdm(each, desc="-".join(hidden))):
        run = folder / f"{'-'.join(hidden)}-{number}"
        own = ["--learning-rate", rate, "--dropout", dropout, "--seed", str(seed)]
        own += ["--hidden", *hidden, "--validation-images", str(held_out), "--out", str(run)]
        seconds.append(seconds_of("train", *shared, *own))
        (percent,) = rundir.read_metrics(run)[-1]["validation_error_percent"]
        alone = round(percent * held_out / 100)
        pairs.append([together[float(rate), float(dropout)][seed], alone])
    return {"sweep_seconds": swept, "train_seconds": seconds, "validation_errors": pairs}


def claim(found: rundir.Json) -> str:
    """What came of it, in a sentence for each network."""
    parts = []
    for name, each in found["networks"].items():
        together, alone = each["sweep_seconds"], sum(each["train_seconds"])
        same = sum(a == b for a, b in each["validation_errors"])
        parts.append(
            f"{len(each['train_seconds'])} networks of {name} take {together:.0f} s as one "
            f"program, and {alone:.0f} s as one run after the other; {same} of them make the same "
            "validation errors"
        )
    return "; ".join(parts) + "."


def main(options: Options) -> None:
    """Measures, prints the claim and writes the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            name: compared(hidden, options, Path(folder)) for name, hidden in NETWORKS.items()
        }
    found = {"epochs": options.epochs, "networks": networks}
    print(claim(found))
    found |= {"device": device_name(), "versions": versions()}
    rundir.write_bytes(options.results, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Options))
