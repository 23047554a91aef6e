"""Pereyra et al. 2017: a penalty on confident answers.

1.408 +/- 0.052 % test errors with dropout, 1.294 +/- 0.053 % with label smoothing and
1.272 +/- 0.049 % with the penalty (n = 5 each), where 1.28, 1.23 and 1.17, +/- 0.06 each, are
published.

The paper gives neither epochs nor batch size for MNIST; here it is 30 epochs in batches of 32, with
which label smoothing made fewer errors on validation images than after 50 in batches of 128. With
dropout it is 60, which made fewer there than 30. The paper's rate for dropout is 0.001, at which so
few epochs do little; here it is 0.05 as for the others.

    python experiments/papers/pereyra_2017.py
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key
from runner import Experiment, main

from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec
from mnist_jax.model import MLP, Model, PyTree, from_linen
from mnist_jax.preprocess import Inputs, Labels
from mnist_jax.train import Logits, Recipe, cross_entropy, default_recipe


def confidence_penalty(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Labels,
    key: Key[Array, ""],
    beta: float,
) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
    """Cross-entropy, less `beta` times the entropy of the answers."""
    loss, (logits, state) = cross_entropy(model, params, model_state, inputs, labels, key)
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(axis=-1).mean()
    return loss - beta * entropy, (logits, state)


def small_at_first(config: Config, hparams: Hparams, spec: DataSpec, beta: float = 0.0) -> Recipe:
    """The default recipe with small weights at first and, if `beta`, a confidence penalty."""
    initializer = nn.initializers.normal(0.01)
    module = MLP(
        config.hidden, spec.classes, initializer=initializer, dropout=config.dropout or None
    )
    recipe = default_recipe(config, hparams, spec)
    recipe = recipe._replace(model=from_linen(module, spec.pixels))
    return recipe._replace(loss=partial(confidence_penalty, beta=beta)) if beta else recipe


SOURCE = (
    '"Regularizing neural networks by penalizing confident output distributions", table 1, read'
)

CONFIG = Config(
    dataset="mnist",
    hidden=(1024, 1024),
    dropout=0.0,
    learning_rate=0.05,
    momentum=0.0,
    schedule="constant",
    weight_decay=0.0,
    batch_size=32,
    epochs=30,
    seeds=5,
)

ROWS = {
    "2 x 1024, dropout": Experiment(
        "1.28 +/- 0.06",
        SOURCE,
        dataclasses.replace(CONFIG, dropout=0.5, epochs=60),
        small_at_first,
    ),
    "2 x 1024, label smoothing": Experiment(
        "1.23 +/- 0.06",
        SOURCE,
        dataclasses.replace(CONFIG, label_smoothing=0.1),
        small_at_first,
    ),
    "2 x 1024, confidence penalty": Experiment(
        "1.17 +/- 0.06", SOURCE, CONFIG, partial(small_at_first, beta=1.0)
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
