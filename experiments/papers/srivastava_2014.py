"""Srivastava et al. 2014: dropout with ReLU, limited norms and ever wider layers.

1.834 +/- 0.053 % test errors with three logistic layers, 1.626 +/- 0.036 % with ReLU, and
1.340 +/- 0.046 % with limits on their weights too; 1.356 +/- 0.057 % with a wider third layer, and
1.098 +/- 0.036 % with two layers of 4,096 (n = 5 each), where 1.35, 1.25, 1.06, 1.05 and 1.01 are
published. They train for a million steps, 1,667 epochs; here it is 100 epochs.

    python experiments/papers/srivastava_2014.py
"""

import dataclasses

from runner import Experiment, main

from mnist_jax.config import Config

TABLE_2 = '"Dropout: a simple way", JMLR 2014, table 2; second-hand'

RELU = Config(
    dataset="mnist",
    hidden=(1024, 1024, 1024),
    input_dropout=0.2,
    dropout=0.5,
    batch_size=100,
    learning_rate=0.05,
    momentum=0.95,
    weight_decay=0.0,
    epochs=100,
    seeds=5,
)
LIMITED = dataclasses.replace(RELU, max_norm=2.0)

ROWS = {
    "3 x 1024, logistic": Experiment(
        "1.35",
        TABLE_2,
        dataclasses.replace(RELU, activation="sigmoid", initializer="glorot_normal"),
    ),
    "3 x 1024": Experiment("1.25", TABLE_2, RELU),
    "3 x 1024, max-norm": Experiment("1.06", TABLE_2, LIMITED),
    "1024-1024-2048, max-norm": Experiment(
        "1.05",
        '"Dropout: a simple way", JMLR 2014, table 9; from memory, not checked',
        dataclasses.replace(LIMITED, hidden=(1024, 1024, 2048)),
    ),
    "2 x 4096, max-norm": Experiment(
        "1.01",
        '"Dropout: a simple way", JMLR 2014, table 2; from memory, not checked',
        dataclasses.replace(LIMITED, hidden=(4096, 4096)),
    ),
    "2 x 8192, max-norm": Experiment(
        "0.95", TABLE_2, dataclasses.replace(LIMITED, hidden=(8192, 8192))
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
