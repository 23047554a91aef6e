"""Tang 2013: the squared hinge loss of a linear SVM on top, in place of the softmax.

0.950 +/- 0.043 % test errors, and 0.952 +/- 0.053 % with the softmax (n = 5 each), where 0.87 and
0.99 are published: here the loss makes no difference.

The images are cut down to 70 principal components; noise on these falls to nothing. The paper's
rate of 0.1 is kept for the softmax. The SVM diverges at it, unless the rate climbs first, and makes
fewer errors on validation images with 0.02 after a climb of ten epochs. The momentum of 0.9 is a
guess.

    python experiments/papers/tang_2013.py
"""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from runner import Experiment, main

from mnist_jax import data
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec
from mnist_jax.model import Model, PyTree, mlp
from mnist_jax.preprocess import Images, Inputs, Labels, one_hot, to_inputs
from mnist_jax.train import Logits, LossFunction, Recipe, cross_entropy, default_recipe

COMPONENTS = 70
WEIGHT_COST = 0.001
"""Of the squares of the weights of the last layer, halved; from memory, not checked."""


def squared_hinge(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Labels,
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
    """Of ten SVMs, each of which tells its class from the others (L2-SVM)."""
    scores, model_state = model.apply(params, model_state, inputs, key)
    side = 2 * one_hot(labels, scores.shape[-1]) - 1
    misses = jnp.square(jax.nn.relu(1 - side * scores)).sum(axis=-1)
    return misses.mean(), (scores, model_state)


def top_weights(params: PyTree) -> PyTree:
    """Which parameters are the weights of the last layer."""
    last = f"Dense_{len(params) - 1}"
    return {name: {"kernel": name == last, "bias": False} for name in params}


def falling_noise(model: Model, std: float, steps: int) -> Model:
    """`model` with Gaussian noise on its inputs that falls linearly to 0 over `steps`."""

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        params, inner = model.init(key)
        return params, {"inner": inner, "step": jnp.int32(0)}

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, key: Key[Array, ""] | None
    ) -> tuple[Logits, PyTree]:
        step = model_state["step"]
        if key is not None:
            left = std * jnp.maximum(1 - step / steps, 0)
            noise = jax.random.normal(jax.random.fold_in(key, 1), inputs.shape)
            inputs, step = inputs + left * noise, step + 1
        logits, inner = model.apply(params, model_state["inner"], inputs, key)
        return logits, {"inner": inner, "step": step}

    return Model(init, apply)


@functools.cache
def principal_components(
    config: Config, train_images: int
) -> tuple[Float[np.ndarray, "pixels"], Float[np.ndarray, "pixels components"]]:
    """Mean of the training images, and the directions in which they vary most."""
    images = data.load(config.dataset, config.data_dir).train.images[:train_images]
    with jax.ensure_compile_time_eval():  # recipes are made while a program is traced
        inputs = np.asarray(to_inputs(images), np.float64)
    mean = inputs.mean(axis=0)
    _, directions = np.linalg.eigh((inputs - mean).T @ (inputs - mean))
    widest = directions[:, : -COMPONENTS - 1 : -1]
    return mean.astype(np.float32), widest.astype(np.float32)


def svm(
    config: Config, hparams: Hparams, spec: DataSpec, loss: LossFunction, noise: float
) -> Recipe:
    """The default recipe with `loss`, on principal components with noise that falls to nothing."""
    mean, widest = principal_components(config, spec.train_images)

    def preprocess(images: Images) -> Inputs:
        return (to_inputs(images) - mean[None]) @ widest

    steps = config.epochs * spec.steps_per_epoch(config.batch_size)
    model = falling_noise(mlp(config, hparams, widest.shape[1], spec.classes), noise, steps)
    recipe = default_recipe(config, hparams, spec)
    weight_cost = optax.add_decayed_weights(WEIGHT_COST, top_weights)
    optimizer = optax.chain(weight_cost, recipe.optimizer)
    return recipe._replace(model=model, optimizer=optimizer, loss=loss, preprocess=preprocess)


CONFIG = Config(
    dataset="mnist",
    hidden=(512, 512),
    dropout=0.0,
    batch_size=200,
    learning_rate=0.1,
    weight_decay=0.0,
    epochs=400,
    seeds=5,
)
SOURCE = '"Deep learning using linear support vector machines", 2013; from memory, not checked'

ROWS = {
    "512-512, L2-SVM": Experiment(
        "0.87",
        SOURCE,
        dataclasses.replace(CONFIG, learning_rate=0.02, warmup_steps=3000),
        partial(svm, loss=squared_hinge, noise=1.0),
    ),
    "512-512, softmax": Experiment(
        "0.99", SOURCE, CONFIG, partial(svm, loss=cross_entropy, noise=1.0)
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
