"""What is the least error of one plain network with deformed images?

python experiments/deformed.py
"""

import dataclasses

import jax
import numpy as np
from papers import Experiment, Row, main

from mnist_jax import population, prng, report
from mnist_jax.augment import Strength, deform_all
from mnist_jax.config import Config
from mnist_jax.report import Run

MILD = Strength(7.0, 7.0, 0.08, 0.5, 4.0, 20.0)
"""How far the copies of a test image are deformed whose answers are averaged."""

COPIES = 64


def with_test_time_augmentation(run: Run) -> Row:
    """Test errors of each network where it averages its answers to mildly deformed copies."""
    test = report.load_data(run).test
    images = jax.device_put(test.images)

    @jax.jit
    def shares(key: jax.Array) -> jax.Array:
        deformed = deform_all(MILD, key, images)
        return jax.nn.softmax(population.predict(run.recipe, run.states, deformed))

    total = sum(np.asarray(shares(key)) for key in jax.random.split(prng.key(0), COPIES))
    assert isinstance(total, np.ndarray)
    return {
        "test_errors_with_test_time_augmentation": (total.argmax(-1) != test.labels[None])
        .sum(-1)
        .tolist()
    }


CONFIG = Config(
    dataset="mnist",
    hidden=(1024, 512, 256),
    dropout=0.0,
    batch_norm=True,
    rotation_degrees=10.0,
    shear_degrees=8.0,
    scale=0.1,
    shift_pixels=1.0,
    elastic_sigma_pixels=5.0,
    elastic_alpha_pixels=28.0,
    learning_rate=0.1,
    schedule="cosine",
    nesterov=True,
    weight_decay=5e-4,
    ema_decay=0.999,
    epochs=300,
    seeds=5,
)
WIDE = dataclasses.replace(CONFIG, hidden=(2500, 2000, 1500, 1000, 500))

ROWS = {
    "1024-512-256, 300 epochs": Experiment("", "", CONFIG, measure=with_test_time_augmentation),
    "2500-2000-1500-1000-500, 300 epochs": Experiment(
        "", "", WIDE, measure=with_test_time_augmentation
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
