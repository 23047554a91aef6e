"""Training one network, as plain functions of arrays: state in, state out.

Nothing here is compiled, or depends on other networks or devices. The functions work with
`jax.jit`, `jax.grad` and `jax.vmap`; `population.py` applies these.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mnist_jax.augment import deform_batch, strength_of
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec, Examples
from mnist_jax.model import Logits, Model, PyTree, mlp
from mnist_jax.optim import make_optimizer
from mnist_jax.preprocess import AnyArray, Images, Inputs, Labels, Scalar, one_hot, to_inputs

INIT, ORDER, STEP, RECALIBRATE = range(4)
"""The streams of random numbers that are derived from a seed's key."""

EVALUATION_BATCH = 1000
"""Images evaluated at once: fixed, so that the size of a data set does not change the logits."""

LossFunction = Callable[
    [Model, PyTree, PyTree, Inputs, Labels, Key[Array, ""]],
    tuple[Float[Array, ""], tuple[Logits, PyTree]],
]
"""(model, params, model_state, inputs, labels, key) -> loss, (logits, next model_state)."""


class TrainState(NamedTuple):
    """Everything that changes while a network trains."""

    params: PyTree
    model_state: PyTree  # other state of the network, such as batch statistics
    opt_state: PyTree
    step: Int[Array, ""]
    ema_params: PyTree = None  # moving average of params, if the recipe asks for one

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate: the averaged ones if there are any."""
        return self.params if self.ema_params is None else self.ema_params


class Metrics(NamedTuple):
    """The metrics of a training step or epoch, computed with dropout."""

    loss: Float[AnyArray, "*networks"]  # mean over the images
    errors: Int[AnyArray, "*networks"]  # images misclassified
    finite_steps: Int[AnyArray, "*networks"]  # steps before the first loss that is inf or nan


class Evaluation(NamedTuple):
    """The result on a set of images; each image counts once."""

    loss: Float[AnyArray, "*networks"]  # mean over the images
    confusion: Int[AnyArray, "*networks classes classes"]  # [i, j]: images of class i taken for j

    @property
    def errors(self) -> Int[AnyArray, "*networks"]:
        """Images misclassified."""
        return self.confusion.sum((-2, -1)) - self.confusion.trace(axis1=-2, axis2=-1)


def cross_entropy(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Labels,
    key: Key[Array, ""],
    *,
    label_smoothing: Scalar = 0.0,
) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
    """Mean cross-entropy between softmax(logits) and the labels, which may be smoothed."""
    logits, model_state = model.apply(params, model_state, inputs, key)
    targets = optax.smooth_labels(one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean(), (logits, model_state)


def no_augmentation(key: Key[Array, ""], images: Images) -> Images:
    """The images, unchanged."""
    return images


class Recipe(NamedTuple):
    """The ingredients of training: replace one to try another."""

    model: Model
    optimizer: optax.GradientTransformation
    loss: LossFunction = cross_entropy
    preprocess: Callable[[Images], Inputs] = to_inputs
    augment: Callable[[Key[Array, ""], Images], Images] = no_augmentation  # of pixels in [0, 255]
    ema_decay: Scalar | None = None  # of the moving average of the parameters


MakeRecipe = Callable[[Config, Hparams, DataSpec], Recipe]
"""Makes the recipe of one network while a program is traced.

The config is static, so branch only on it. The hyperparameters are those of this network and may be
traced, so only compute with them. In a sweep the config has the largest value of each, but
`max_norm` and `ema_decay` are 0 if they are 0 for this network.
"""


def default_recipe(config: Config, hparams: Hparams, spec: DataSpec) -> Recipe:
    """The recipe that `config` describes.

    `config` decides which ingredients there are, and `hparams` how strong they are.

    Raises:
        InputError: the images do not fill a batch, or the warm-up is as long as the run.
    """
    steps = config.epochs * spec.steps_per_epoch(config.batch_size)
    strength = strength_of(config, hparams)
    loss = cross_entropy
    if config.label_smoothing:
        loss = partial(cross_entropy, label_smoothing=hparams.label_smoothing)
    return Recipe(
        model=mlp(config, hparams, spec.pixels, spec.classes),
        optimizer=make_optimizer(config, hparams, steps),
        loss=loss,
        augment=no_augmentation if strength is None else partial(deform_batch, strength),
        ema_decay=hparams.ema_decay if config.ema_decay else None,
    )


def init(recipe: Recipe, key: Key[Array, ""]) -> TrainState:
    """The state before the first step."""
    params, model_state = recipe.model.init(jax.random.fold_in(key, INIT))
    ema_params = None if recipe.ema_decay is None else params
    return TrainState(params, model_state, recipe.optimizer.init(params), jnp.int32(0), ema_params)


def train_step(
    recipe: Recipe, state: TrainState, batch: Examples, key: Key[Array, ""]
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on a batch of images and labels.

    `key` is the seed's key. It and the step number determine the random numbers of the step.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, STEP), state.step)
    augment_key, loss_key = jax.random.split(step_key)
    inputs = recipe.preprocess(recipe.augment(augment_key, batch.images))

    def loss_of(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        return recipe.loss(recipe.model, params, state.model_state, inputs, batch.labels, loss_key)

    (loss, (logits, model_state)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    ema_params = state.ema_params
    if recipe.ema_decay is not None:
        # A plain mean of all steps at first. After 1 / (1 - decay) steps the decay takes over.
        weight = jnp.maximum(1 - recipe.ema_decay, 1 / (state.step + 1))
        ema_params = optax.incremental_update(params, ema_params, weight)

    errors = jnp.sum(jnp.argmax(logits, axis=-1) != batch.labels)
    metrics = Metrics(loss, errors, jnp.isfinite(loss).astype(jnp.int32))
    return TrainState(params, model_state, opt_state, state.step + 1, ema_params), metrics


def train_epoch(
    recipe: Recipe, state: TrainState, examples: Examples, key: Key[Array, ""], batch_size: int
) -> tuple[TrainState, Metrics]:
    """One pass over `examples` in a new order, as one scan; the incomplete last batch is dropped.

    The metrics are the mean loss, the number of errors, and the number of steps before the first
    loss that is not finite.
    """
    images, labels = examples
    steps = len(labels) // batch_size
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, ORDER), state.step // steps)
    # Sorting random numbers once shuffles in half the time of jax.random.permutation, which sorts
    # twice in case two are equal. Here equal ones, one pair in 2**32, keep their order.
    order = jnp.argsort(jax.random.bits(epoch_key, labels.shape))[: steps * batch_size]

    def step(state: TrainState, indices: Int[Array, "batch"]) -> tuple[TrainState, Metrics]:
        return train_step(recipe, state, Examples(images[indices], labels[indices]), key)

    state, metrics = jax.lax.scan(step, state, order.reshape(steps, batch_size))
    finite_steps = jnp.cumprod(metrics.finite_steps).sum()
    return state, Metrics(jnp.mean(metrics.loss), jnp.sum(metrics.errors), finite_steps)


def recalibrate(
    recipe: Recipe, state: TrainState, images: Images, key: Key[Array, ""]
) -> TrainState:
    """`state` with the batch statistics of its `eval_params` on the training `images`.

    The images are augmented as in training, because the parameters were trained for that. Training
    does not read these statistics, so it can continue from the result or from `state`.
    """
    inputs = recipe.preprocess(recipe.augment(jax.random.fold_in(key, RECALIBRATE), images))
    model_state = recipe.model.recalibrate(state.eval_params, state.model_state, inputs)
    return state._replace(model_state=model_state)


def predict(recipe: Recipe, state: TrainState, images: Images) -> Logits:
    """The logits of each image, in evaluation mode."""
    batches = -(-len(images) // EVALUATION_BATCH)
    missing = batches * EVALUATION_BATCH - len(images)
    padded = jnp.pad(images, ((0, missing), (0, 0), (0, 0)))

    def logits_of(batch: Images) -> Logits:
        inputs = recipe.preprocess(batch)
        return recipe.model.apply(state.eval_params, state.model_state, inputs, None)[0]

    logits = jax.lax.map(logits_of, padded.reshape(batches, EVALUATION_BATCH, *images.shape[1:]))
    return logits.reshape(-1, logits.shape[-1])[: len(images)]


def evaluate(recipe: Recipe, state: TrainState, examples: Examples) -> Evaluation:
    """Loss and confusion matrix over all of `examples`."""
    logits = predict(recipe, state, examples.images)
    classes = logits.shape[-1]
    loss = optax.softmax_cross_entropy(logits, one_hot(examples.labels, classes)).mean()
    answers = jnp.argmax(logits, axis=-1)
    confusion = jnp.zeros((classes, classes), jnp.int32).at[examples.labels, answers].add(1)
    return Evaluation(loss, confusion)
