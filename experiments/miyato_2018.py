"""Miyato et al. 2015-18: virtual adversarial training, which keeps answers still around an image.

0.830 % test errors with one seed, where 0.637 +/- 0.046 is published: it does not reproduce here so
far. How close by the direction of a step is found (XI; 1e-6 in the released code, and up to 1)
makes no difference that a run each on the last 10,000 training images could show.

    python experiments/miyato_2018.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key
from papers import Experiment, main
from rasmus_2015 import ladder

from mnist_jax.config import Config
from mnist_jax.model import Model, PyTree
from mnist_jax.preprocess import Inputs, Labels
from mnist_jax.train import Logits, Loss, Recipe, steps_per_epoch

XI = 1e-2
"""Length of the step over which the direction is found that moves the answers most."""


def divergence(logits: Logits, others: Logits) -> Float[Array, ""]:
    """Mean Kullback-Leibler divergence of the answers `others` from the answers `logits`."""
    target = jax.nn.softmax(logits)
    moved = jax.nn.log_softmax(logits) - jax.nn.log_softmax(others)
    return (target * moved).sum(axis=-1).mean()


def unit_length(x: Inputs) -> Inputs:
    """Each row, made of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def virtual_adversarial(loss: Loss, epsilon: float) -> Loss:
    """`loss`, plus how far the worst step of length `epsilon` from each image moves its answer.

    The worst one takes one power iteration. Source: Miyato, Maeda, Koyama & Ishii, "Virtual
    adversarial training", TPAMI 2018, section 3.3.
    """

    def both(
        model: Model,
        params: PyTree,
        model_state: PyTree,
        inputs: Inputs,
        labels: Labels,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
        base, (logits, state) = loss(model, params, model_state, inputs, labels, key)
        target = jax.lax.stop_gradient(logits)

        def moved_by(step: Inputs) -> Float[Array, ""]:  # the same noise, if there is any
            moved, _ = model.apply(params, model_state, inputs + step, key)
            return divergence(target, moved)

        start = jax.random.normal(jax.random.fold_in(key, 1), inputs.shape)
        worst = jax.grad(moved_by)(XI * unit_length(start))
        worst = epsilon * unit_length(jax.lax.stop_gradient(worst))
        return base + moved_by(worst), (logits, state)

    return both


def vat(
    config: Config, pixels: int, classes: int, train_images: int, epsilon: float, fall: float
) -> Recipe:
    """A network that normalises every layer, and a rate of Adam's times `fall` an epoch."""
    recipe = ladder(config, pixels, classes, train_images, costs=())
    steps = steps_per_epoch(train_images, config.batch_size)
    rate = optax.exponential_decay(config.learning_rate, steps, fall, staircase=True)
    optimizer = optax.adam(rate, config.momentum)
    return recipe._replace(optimizer=optimizer, loss=virtual_adversarial(recipe.loss, epsilon))


ROWS = {
    "1200-600-300-150, VAT": Experiment(
        published="0.637 +/- 0.046 (n = 10)",
        source='"Distributional smoothing with virtual adversarial training", ICLR 2016; '
        "second-hand, the recipe from takerum/vat, read there",
        config=Config(
            dataset="mnist",
            hidden=(1200, 600, 300, 150),
            dropout=0.0,
            batch_size=100,
            optimizer="adam",
            learning_rate=0.002,
            weight_decay=0.0,
            epochs=100,
            seeds=5,
        ),
        recipe=partial(vat, epsilon=2.1, fall=0.9),
    )
}

if __name__ == "__main__":
    main(__file__, ROWS)
