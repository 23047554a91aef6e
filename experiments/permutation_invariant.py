"""What is the least error without deformations, where pixels might stand in any order?

What the best published networks of this kind do, all at once: a batch-normalised encoder with noise
on every layer, reconstruction of the pixels (Pezeshki et al. 2016), virtual adversarial training
(VAT, Miyato et al. 2018) and an exponential moving average of the weights (EMA); and what each is
worth.

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
    config: Config, pixels: int, classes: int, train_images: int, reconstruction: bool, vat: bool
) -> Recipe:
    """A ladder network, with `reconstruction` of its pixels or of nothing, and `vat` or not."""
    make = amlp if reconstruction else partial(ladder, costs=())
    recipe = make(config, pixels, classes, train_images)
    return recipe._replace(loss=virtual_adversarial(recipe.loss, EPSILON)) if vat else recipe


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


def row(reconstruction: bool = True, vat: bool = True, **changes: Any) -> Experiment:
    """A network of ours, with changes to it."""
    config = dataclasses.replace(CONFIG, **changes)
    return Experiment("", "", config, partial(ours, reconstruction=reconstruction, vat=vat))


ROWS = {
    "noise, reconstruction, VAT, EMA": row(),
    "without reconstruction": row(reconstruction=False),
    "without VAT": row(vat=False),
    "without EMA": row(ema_decay=0.0),
    "VAT and EMA": row(reconstruction=False, noise=0.0),
    "EMA": row(reconstruction=False, vat=False, noise=0.0),
}

if __name__ == "__main__":
    main(__file__, ROWS)
