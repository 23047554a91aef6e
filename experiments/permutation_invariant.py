"""What is the least error without deformations, where pixels might stand in any order?

What the best published networks of this kind do, all at once: a batch-normalised encoder with noise
on every layer, which restores the pixels (Pezeshki et al. 2016) and keeps its answer along virtual
adversarial steps (Miyato et al. 2018), and whose weights are averaged; and what each is worth.

    python experiments/permutation_invariant.py
"""

import dataclasses
from functools import partial
from typing import Any

from miyato_2018 import virtual_adversarial
from papers import Experiment, main
from pezeshki_2016 import amlp
from rasmus_2015 import ladder

from mnist_jax.config import Config
from mnist_jax.train import Recipe

EPSILON = 2.1


def ours(
    config: Config, pixels: int, classes: int, train_images: int, restoring: bool, steps: bool
) -> Recipe:
    """A ladder network, `restoring` its pixels or nothing, with virtual adversarial `steps`."""
    make = amlp if restoring else partial(ladder, costs=())
    recipe = make(config, pixels, classes, train_images)
    if steps:
        recipe = recipe._replace(loss=virtual_adversarial(recipe.loss, EPSILON))
    return recipe._replace(ema_decay=config.ema_decay)


CONFIG = Config(
    dataset="mnist",
    hidden=(1200, 600, 300, 150),
    noise=0.3,
    dropout=0.0,
    batch_size=250,
    optimizer="adam",
    learning_rate=0.003,
    weight_decay=0.0,
    ema_decay=0.999,
    epochs=60,
    seeds=3,
)


def row(restoring: bool = True, steps: bool = True, **changes: Any) -> Experiment:
    """A network of ours, with changes to it."""
    config = dataclasses.replace(CONFIG, **changes)
    return Experiment("", "", config, partial(ours, restoring=restoring, steps=steps))


ROWS = {
    "noise, restored pixels, steps, averaging": row(),
    "without restored pixels": row(restoring=False),
    "without steps": row(steps=False),
    "without averaging": row(ema_decay=0.0),
    "steps and averaging alone": row(restoring=False, noise=0.0),
    "averaging alone": row(restoring=False, steps=False, noise=0.0),
}

if __name__ == "__main__":
    main(__file__, ROWS)
