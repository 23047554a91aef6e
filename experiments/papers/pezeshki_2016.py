"""Pezeshki et al. 2016: a ladder network that restores nothing but the pixels.

0.730 +/- 0.057 % test errors (n = 2 only, the second of which took 38 minutes on two CPU cores),
where 0.569 is published.

In each layer one small network of two and two units restores every sum, from its noisy value, from
what comes down from above, and from the product of the two. How much the restored pixels count is
a guess, that of the ladder network, and so is what is added to variances, 0.01, where that has
1e-10.

    python experiments/papers/pezeshki_2016.py
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from rasmus_2015 import CONFIG, Combinator, Units, ladder
from runner import Experiment, main

from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec
from mnist_jax.model import PyTree
from mnist_jax.train import Recipe

WIDTHS = (3, 2, 2, 1)
STD = 0.025
"""Of the initial weights."""

EPSILON = 0.01
"""Added to the variances of what comes down from above, which these weights make small at first.

With the ladder network's 1e-10 the gradients of units that hardly vary are so large that the
network hardly learns.
"""


def init(key: Key[Array, ""], units: int) -> PyTree:
    """The weights of the small network, which all units of a layer share."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    pairs = itertools.pairwise(WIDTHS)
    return [
        {"kernel": STD * jax.random.normal(k, pair), "bias": jnp.zeros(pair[1])}
        for k, pair in zip(keys, pairs, strict=True)
    ]


def guess(layers: PyTree, z: Units, u: Units) -> Units:
    """What the small network makes of each unit's `z`, `u` and `z * u`."""
    x = jnp.stack([z, u, z * u], axis=-1)
    for layer in layers:
        x = x @ layer["kernel"] + layer["bias"][None, None]
        x = jax.nn.leaky_relu(x, 0.1) if layer is not layers[-1] else x
    return x[..., 0]


def amlp(config: Config, hparams: Hparams, spec: DataSpec) -> Recipe:
    """A ladder network with such combinators, that restores the pixels."""
    costs = (1000.0, *(0.0,) * (len(config.hidden) + 1))
    combinator = Combinator(init, guess, EPSILON)
    return ladder(config, hparams, spec, costs, combinator)


ROWS = {
    "ladder 1000-500-250-250-250, AMLP": Experiment(
        published="0.569 +/- 0.010 (standard error)",
        source='"Deconstructing the ladder network architecture", ICML 2016; 0.57 read in its '
        "abstract, the rest second-hand, the combinator from sakishinoda/tf-ssl, read there",
        config=CONFIG,
        recipe=amlp,
    )
}

if __name__ == "__main__":
    main(__file__, ROWS)
