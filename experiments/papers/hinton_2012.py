"""Hinton et al. 2012: dropout, first of the hidden units and then of the pixels too.

1.454 +/- 0.067 % test errors without, 1.404 +/- 0.027 % with dropout of hidden units, and
1.322 +/- 0.019 % with dropout of pixels too (n = 5), where 1.60, 1.30 and 1.10 are published: each
helps here too, but by less.

They train for 3,000 epochs under a momentum that climbs to 0.99, in batches of 100; here it is 100
epochs under 0.95 in batches of 128, under a rate that falls linearly. What they quote for no
dropout is the best that others published; here it is the same network with neither dropout nor
limits on its weights, trained for 30 epochs.

    python experiments/papers/hinton_2012.py
"""

import dataclasses

from runner import Experiment, main

from mnist_jax.config import Config

SOURCE = '"Improving neural networks by preventing co-adaptation", arXiv 1207.0580; second-hand'

PLAIN = Config(
    dataset="mnist",
    hidden=(800, 800),
    dropout=0.0,
    learning_rate=0.05,
    momentum=0.95,
    weight_decay=0.0,
    epochs=30,
    seeds=5,
)
HIDDEN = dataclasses.replace(PLAIN, dropout=0.5, max_norm=15**0.5, epochs=100)

ROWS = {
    "800-800": Experiment("1.60", SOURCE, PLAIN),
    "800-800, dropout": Experiment("1.30", SOURCE, HIDDEN),
    "800-800, dropout of pixels too": Experiment(
        "1.10", SOURCE, dataclasses.replace(HIDDEN, input_dropout=0.2)
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
