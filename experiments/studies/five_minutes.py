"""How few errors do two CPU cores make in five minutes, everything included?

0.482 +/- 0.030 % (n = 5), with the row of deformed.py that is named below. Each seed is a process
of its own that imports JAX, reads MNIST, compiles, trains on all 60,000 images and as many
deformations of them as there is time for, counts the test errors of the averaged weights once, and
draws its figures. None took more than 4.1 minutes.

    python experiments/studies/five_minutes.py
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import device_name, versions

RESULTS = Path(__file__).parents[1] / "results"
SCRIPT = Path(__file__).parents[1] / "papers" / "deformed.py"
ROW = "1024-512-256, GELU, deslanted, five minutes"


def main(data_dir: Path | None = None, seeds: int = 5, quick: bool = False) -> None:
    """Runs every seed in a process of its own, and keeps how long each took.

    Args:
        data_dir: folder with the MNIST files; without it they are downloaded.
        seeds: how many seeds, from 0.
        quick: small networks on scikit-learn's digits, to see that it works; nothing is kept.
    """
    if seeds < 1:
        raise SystemExit(f"--seeds {seeds} cannot be used: it takes 1 or more")
    more = ["--data-dir", str(data_dir)] if data_dir else []
    more += ["--quick"] if quick else []
    seconds = []
    for seed in range(seeds):
        with TemporaryDirectory() as folder:
            command = [sys.executable, str(SCRIPT), "--row", ROW, "--seed", str(seed)]
            command += ["--seeds", "1", "--out", folder, *more]
            start = time.perf_counter()
            code = subprocess.run(command).returncode
            seconds.append(time.perf_counter() - start)
        if code:
            raise SystemExit(code)
        print(f"seed {seed}: {seconds[-1]:.0f} s", flush=True)
    if not quick:
        found = {"seconds": seconds, "device": device_name(), "versions": versions()}
        written = (json.dumps(found, indent=1) + "\n").encode()
        rundir.write_bytes(RESULTS / "five_minutes.json", written)


if __name__ == "__main__":
    tyro.cli(main)
