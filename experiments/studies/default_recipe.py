"""Which SGD suits the default network: a linear fall of the rate, and a weight decay of 2e-4.

Validation error on the last 10,000 training images, training on the other 50,000, of the last of
10 epochs, mean +/- std over 5 seeds; one ingredient of the default recipe is changed at a time.
The table stands in experiments/README.md, the numbers in results/default_recipe.json:

    python experiments/studies/default_recipe.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mnist_jax.config import Config
from mnist_jax.fit import fit
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import device_name

VARIANTS: dict[str, dict[str, Any]] = {
    "the default": {},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 5e-4": {"weight_decay": 5e-4},
    "cosine fall": {"schedule": "cosine"},
    "constant learning rate": {"schedule": "constant"},
    "learning rate 0.05": {"learning_rate": 0.05},
    "learning rate 0.2": {"learning_rate": 0.2},
    "no momentum": {"momentum": 0.0},
    "Nesterov": {"nesterov": True},
    "warm-up of 200 steps": {"warmup_steps": 200},
    "input dropout 0.1": {"input_dropout": 0.1},
    "Glorot uniform weights": {"initializer": "glorot_uniform"},
}


def main(
    data_dir: Path | None = None,
    out: Path = Path("runs/default_recipe"),
    results: Path = Path(__file__).parents[1] / "results" / "default_recipe.json",
) -> None:
    """Trains every variant, prints the table and writes the numbers.

    Args:
        data_dir: folder with the MNIST files; without it they are downloaded.
        out: folder for the run folders.
        results: the JSON file to write.
    """
    errors: dict[str, list[float]] = {}
    for name, change in VARIANTS.items():
        run = out / name.replace(" ", "-")
        common = Config(dataset="mnist", data_dir=data_dir, validation_images=10_000, seeds=5)
        fit(Config(**{**vars(common), **change}), run)
        errors[name] = rundir.read_metrics(run)[-1]["validation_error_percent"]
        print(f"| {name} | {np.mean(errors[name]):.2f} +/- {np.std(errors[name], ddof=1):.2f} |")
    kept = {"validation_error_percent": errors, "seeds": 5, "device": device_name()}
    results.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
