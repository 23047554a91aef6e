"""Simard, Steinkraus & Platt 2003: 800 hidden units, and what deformed images are worth to them.

1.600 +/- 0.038 % test errors without deformations, 0.982 +/- 0.053 % with affine and
0.664 +/- 0.032 % with elastic ones (n = 5), where 1.6, 1.1 and 0.7 are published: they reproduce.

    python experiments/papers/simard_2003.py
"""

from runner import Experiment, main

from mnist_jax.config import Config

SOURCE = '"Best practices for convolutional neural networks", ICDAR 2003, table 1; second-hand'

PLAIN = Config(
    dataset="mnist",
    hidden=(800,),
    dropout=0.0,
    learning_rate=0.1,
    weight_decay=0.0,
    epochs=50,
    seeds=5,
)
DEFORMED = {**vars(PLAIN), "epochs": 100}

ROWS = {
    "800": Experiment("1.6", SOURCE, PLAIN),
    "800, affine": Experiment(
        "1.1",
        SOURCE,
        Config(**{**DEFORMED, "rotation_degrees": 10.0, "shear_degrees": 10.0, "scale": 0.1}),
    ),
    "800, elastic": Experiment(
        "0.7",
        SOURCE,
        Config(**{**DEFORMED, "elastic_sigma_pixels": 4.0, "elastic_alpha_pixels": 34.0}),
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
