"""What is the least error without deformations, where pixels might stand in any order?

python experiments/permutation_invariant.py
"""

import dataclasses
from functools import partial
from typing import Any

from miyato_2018 import virtual_adversarial
from papers import Experiment, main
from rasmus_2015 import COSTS, ladder

from mnist_jax.config import Config
from mnist_jax.train import Recipe

OURS = Config(
    dataset="mnist",
    hidden=(1200, 600, 300, 150),
    noise=0.3,
    dropout=0.0,
    batch_size=100,
    optimizer="adam",
    learning_rate=0.002,
    weight_decay=0.0,
    ema_decay=0.999,
    epochs=30,
    seeds=10,
)


def combined(
    config: Config,
    pixels: int,
    classes: int,
    train_images: int,
    costs: tuple[float, ...] = COSTS,
    epsilon: float = 2.0,
) -> Recipe:
    """A ladder network that is trained with virtual adversarial steps and averages its weights."""
    recipe = ladder(config, pixels, classes, train_images, costs)
    loss = virtual_adversarial(recipe.loss, epsilon) if epsilon else recipe.loss
    return recipe._replace(loss=loss, ema_decay=config.ema_decay)


def row(epsilon: float, costs: tuple[float, ...], **changes: Any) -> Experiment:
    """A network of ours, with changes to it."""
    config = dataclasses.replace(OURS, **changes)
    return Experiment("", "", config, partial(combined, costs=costs, epsilon=epsilon))


BOTTOM = (1000.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NONE = (0.0,) * 6

ROWS = {
    "vat+bottom": row(2.0, BOTTOM),
    "vat+noise": row(2.0, NONE),
    "bottom": row(0.0, BOTTOM),
    "noise": row(0.0, NONE),
    "vat": row(2.0, NONE, noise=0.0),
}

if __name__ == "__main__":
    main(__file__, ROWS)
