"""Training as pure functions: state in, state out.

Each function handles one network. `jax.vmap` over the state and the key makes it a population,
and `jax.jit` makes it fast; neither changes what is computed.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mnist_jax.augment import deform_all, strength_of
from mnist_jax.config import Config, Varied, is_off, unusable
from mnist_jax.data import Examples
from mnist_jax.model import Model, PyTree, mlp
from mnist_jax.optim import optimizer
from mnist_jax.preprocess import AnyArray, Images, Inputs, Labels, Number, one_hot, to_inputs

SETTLING_IMAGES = 10_000
"""About how many training images, evenly spaced, statistics for the evaluation are taken over."""

EVALUATION_BATCH = 1000
"""Images evaluated at once. It is fixed so that one image gets the same logits in any company."""

INIT, ORDER, NOISE, SETTLE = range(4)
"""The streams of random numbers that a seed's key splits into."""

Logits = Float[Array, "n classes"]
Loss = Callable[
    [Model, PyTree, PyTree, Inputs, Labels, Key[Array, ""]],
    tuple[Float[Array, ""], tuple[Logits, PyTree]],
]


class TrainState(NamedTuple):
    """All that changes while a network trains."""

    params: PyTree
    model_state: PyTree  # what else the network carries; {} for an MLP
    opt_state: PyTree
    step: Int[Array, ""]
    average: PyTree = None  # the moving average of params, where the recipe takes one
    numbers: PyTree = ()  # those its recipe takes by name, where networks differ in them

    @property
    def weights(self) -> PyTree:
        """The parameters that are evaluated: the averaged ones, or else the last."""
        return self.params if self.average is None else self.average


class Metrics(NamedTuple):
    """How the training batches went, dropout included."""

    loss: Float[AnyArray, "*seeds"]  # mean over the images
    errors: Int[AnyArray, "*seeds"]  # images misread
    finite: Int[AnyArray, "*seeds"]  # steps before the first whose loss is no finite number


class Evaluation(NamedTuple):
    """How a set of images is read, each counted once."""

    loss: Float[AnyArray, "*seeds"]  # mean over the images
    confusion: Int[AnyArray, "*seeds classes classes"]  # [i, j]: images of class i read as class j

    @property
    def errors(self) -> Int[AnyArray, "*seeds"]:
        """Images misread."""
        return self.confusion.sum((-2, -1)) - self.confusion.trace(axis1=-2, axis2=-1)


def cross_entropy(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Labels,
    key: Key[Array, ""],
    label_smoothing: Number = 0.0,
) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
    """Mean cross-entropy of softmax(logits) with the labels, and the logits it came from."""
    logits, model_state = model.apply(params, model_state, inputs, key)
    targets = one_hot(labels, logits.shape[-1])
    if not is_off(label_smoothing):
        targets = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean(), (logits, model_state)


def as_they_are(key: Key[Array, ""], images: Images) -> Images:
    """No augmentation."""
    return images


class Recipe(NamedTuple):
    """The ingredients of a training run: pure functions, hence static under `jit`.

    To try another loss, network, optimizer, preprocessing or augmentation, replace a field.
    """

    model: Model
    optimizer: optax.GradientTransformation
    loss: Loss = cross_entropy
    preprocess: Callable[[Images], Inputs] = to_inputs
    augment: Callable[[Key[Array, ""], Images], Images] = as_they_are  # grey values in [0, 255]
    ema_decay: Number = 0.0  # of the moving average of the weights; 0 takes none
    vary: Callable[..., "Recipe"] | None = None  # with a state's `numbers` for its own, by name

    def of(self, state: TrainState) -> "Recipe":
        """The recipe of one network."""
        return self.vary(**state.numbers) if self.vary else self


def default_recipe(config: Config, pixels: int, classes: int, train_images: int) -> Recipe:
    """The recipe that `config` describes for data of this size; the same object each time.

    Raises:
        InputError: there are fewer images than one batch takes, or the warm-up never ends.
    """
    make = _recipe if isinstance(config, Varied) else _kept_recipe
    return make(config, pixels, classes, train_images)


def _recipe(config: Config, pixels: int, classes: int, train_images: int) -> Recipe:
    steps = config.epochs * steps_per_epoch(train_images, config.batch_size)
    recipe = Recipe(mlp(config, pixels, classes), optimizer(config, steps))
    strength = strength_of(config)
    if not all(map(is_off, strength._replace(elastic_sigma_pixels=0))):
        recipe = recipe._replace(augment=partial(deform_all, strength))
    if not is_off(config.label_smoothing):
        loss = partial(cross_entropy, label_smoothing=config.label_smoothing)
        recipe = recipe._replace(loss=loss)
    return recipe._replace(ema_decay=config.ema_decay)


_kept_recipe = lru_cache(_recipe)
"""JAX keeps the programs that it compiled for a recipe, and knows this one again."""


MakeRecipe = Callable[[Config, int, int, int], Recipe]
"""(config, pixels, classes, training images) -> recipe, as `default_recipe` does it."""


def varied(
    make_recipe: MakeRecipe, config: Config, pixels: int, classes: int, train_images: int
) -> Recipe:
    """The recipe of `config` for networks that differ in numbers, which their states hold.

    The states of its `init` hold none yet: `state._replace(numbers=...)` gives them, by the names
    of `VARIABLE` fields.
    """

    def vary(**numbers: Number) -> Recipe:
        return make_recipe(Varied(config, **numbers), pixels, classes, train_images)

    return make_recipe(config, pixels, classes, train_images)._replace(vary=vary)


def steps_per_epoch(train_images: int, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        InputError: there is not one.
    """
    if batch_size > train_images:
        raise unusable("--batch-size", batch_size, f"at most the {train_images} training images")
    return train_images // batch_size


def init(recipe: Recipe, key: Key[Array, ""]) -> TrainState:
    """The state of step 0."""
    params, model_state = recipe.model.init(jax.random.fold_in(key, INIT))
    average = None if is_off(recipe.ema_decay) else params
    return TrainState(params, model_state, recipe.optimizer.init(params), jnp.int32(0), average)


@partial(jax.jit, static_argnames="recipe")
def train_step(
    recipe: Recipe, state: TrainState, images: Images, labels: Labels, key: Key[Array, ""]
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent. `key` is the seed's; the step number makes it this step's."""
    recipe = recipe.of(state)
    noise = jax.random.fold_in(jax.random.fold_in(key, NOISE), state.step)
    augment_key, loss_key = jax.random.split(noise)
    inputs = recipe.preprocess(recipe.augment(augment_key, images))

    def loss_of(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        return recipe.loss(recipe.model, params, state.model_state, inputs, labels, loss_key)

    (loss, (logits, model_state)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    errors = jnp.sum(jnp.argmax(logits, axis=-1) != labels)
    metrics = Metrics(loss, errors, jnp.isfinite(loss).astype(jnp.int32))
    average = state.average
    if not is_off(recipe.ema_decay):
        # The mean of all steps so far, until there are so many that the decay forgets the first.
        share = jnp.maximum(1 - recipe.ema_decay, 1 / (state.step + 1))
        average = optax.incremental_update(params, average, share)
    step = state.step + 1
    return TrainState(params, model_state, opt_state, step, average, state.numbers), metrics


@partial(jax.jit, static_argnames=("recipe", "batch_size"))
def train_epoch(
    recipe: Recipe, state: TrainState, examples: Examples, key: Key[Array, ""], batch_size: int
) -> tuple[TrainState, Metrics]:
    """One pass over the images in a fresh order, as one scan.

    Returns the state after it, and the mean loss, the count of errors and the count of steps before
    the first loss that is no finite number.
    """
    images, labels = examples
    steps = steps_per_epoch(len(labels), batch_size)
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, ORDER), state.step // steps)
    # Sorting random numbers once shuffles in half the time of jax.random.permutation, which sorts
    # twice in case two of them are equal; those then keep their order, once in 2**32 pairs.
    order = jnp.argsort(jax.random.bits(epoch_key, labels.shape))[: steps * batch_size]

    def step(state: TrainState, batch: Int[Array, "batch"]) -> tuple[TrainState, Metrics]:
        return train_step(recipe, state, images[batch], labels[batch], key)

    state, metrics = jax.lax.scan(step, state, order.reshape(steps, batch_size))
    finite = jnp.cumprod(metrics.finite).sum()
    return state, Metrics(jnp.mean(metrics.loss), jnp.sum(metrics.errors), finite)


@partial(jax.jit, static_argnames="recipe")
def settle(recipe: Recipe, state: TrainState, images: Images, key: Key[Array, ""]) -> TrainState:
    """`state` with the statistics of its evaluated weights over the training `images`.

    Images are deformed as in training, as that is what the weights were trained for. Training does
    not read what this changes, so that it may go on as if nothing had happened.
    """
    recipe = recipe.of(state)
    few = images[:: max(1, len(images) // SETTLING_IMAGES)]
    inputs = recipe.preprocess(recipe.augment(jax.random.fold_in(key, SETTLE), few))
    model_state = recipe.model.settle(state.weights, state.model_state, inputs)
    return state._replace(model_state=model_state)


@partial(jax.jit, static_argnames="recipe")
def predict(recipe: Recipe, state: TrainState, images: Images) -> Logits:
    """The logits of each image, dropout off."""
    batches = -(-len(images) // EVALUATION_BATCH)
    missing = batches * EVALUATION_BATCH - len(images)
    padded = jnp.pad(images, ((0, missing), (0, 0), (0, 0)))

    def logits_of(batch: Images) -> Logits:
        inputs = recipe.preprocess(batch)
        return recipe.model.apply(state.weights, state.model_state, inputs, None)[0]

    logits = jax.lax.map(logits_of, padded.reshape(batches, EVALUATION_BATCH, *images.shape[1:]))
    return logits.reshape(-1, logits.shape[-1])[: len(images)]


@partial(jax.jit, static_argnames="recipe")
def evaluate(recipe: Recipe, state: TrainState, examples: Examples) -> Evaluation:
    """Loss and confusion matrix over all of `examples`."""
    logits = predict(recipe, state, examples.images)
    classes = logits.shape[-1]
    loss = optax.softmax_cross_entropy(logits, one_hot(examples.labels, classes)).mean()
    answers = jnp.argmax(logits, axis=-1)
    confusion = jnp.zeros((classes, classes), jnp.int32).at[examples.labels, answers].add(1)
    return Evaluation(loss, confusion)
