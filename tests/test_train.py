from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnist_jax import prng, train
from mnist_jax.config import Config
from mnist_jax.data import DataSpec, Examples
from mnist_jax.errors import InputError
from mnist_jax.model import Model, from_linen
from mnist_jax.preprocess import standardize, to_inputs
from mnist_jax.train import (
    EVALUATION_BATCH,
    INIT,
    ORDER,
    RECALIBRATE,
    STEP,
    Recipe,
    cross_entropy,
    default_recipe,
    no_augmentation,
)
from tests.conftest import tiny_arrays

KEY = prng.key(0)

# Compiled, because the tests call them often.
init = jax.jit(train.init, static_argnames="recipe")
train_step = jax.jit(train.train_step, static_argnames="recipe")
train_epoch = jax.jit(train.train_epoch, static_argnames=("recipe", "batch_size"))
recalibrate = jax.jit(train.recalibrate, static_argnames="recipe")
predict = jax.jit(train.predict, static_argnames="recipe")
evaluate = jax.jit(train.evaluate, static_argnames="recipe")


def examples(n=40, **sizes) -> Examples:
    return Examples(*map(jnp.asarray, tiny_arrays(train=n, **sizes)[:2]))


def small_recipe(n=40, **changes) -> Recipe:
    config = Config(**{"hidden": (8,), "batch_size": 10, "epochs": 3, **changes})
    return default_recipe(config, config.hparams, DataSpec((3, 2), 3, n))


def softmax(logits):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


# The step


def test_a_step_of_softmax_regression_by_hand():
    """Its gradient is known in closed form: X^T (p - y) / n."""
    recipe = small_recipe(
        hidden=(), momentum=0.0, weight_decay=0.0, learning_rate=0.5, schedule="constant"
    )
    images, labels = batch = examples(10)
    state = init(recipe, KEY)
    after, metrics = train_step(recipe, state, batch, KEY)

    kernel, bias = (np.asarray(state.params["Dense_0"][name], float) for name in ("kernel", "bias"))
    x = np.asarray(images, float).reshape(10, 6) / 255
    p, y = softmax(x @ kernel + bias), np.eye(3)[np.asarray(labels)]
    new = after.params["Dense_0"]
    np.testing.assert_allclose(new["kernel"], kernel - 0.5 * x.T @ (p - y) / 10, rtol=1e-4)
    np.testing.assert_allclose(new["bias"], bias - 0.5 * (p - y).mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(metrics.loss, -np.log((p * y).sum(1)).mean(), rtol=1e-5)
    assert metrics.errors == (p.argmax(1) != np.asarray(labels)).sum()
    assert after.step == 1


def test_gradients_agree_with_finite_differences():
    recipe = small_recipe(activation="tanh", dropout=0.5)
    images, labels = examples(10)
    params = init(recipe, KEY).params

    def loss(params):
        return cross_entropy(recipe.model, params, {}, to_inputs(images), labels, KEY)[0]

    random = np.random.default_rng(7)
    direction = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / 9), params)
    ahead = loss(jax.tree.map(lambda p, d: p + 0.01 * d, params, direction))
    behind = loss(jax.tree.map(lambda p, d: p - 0.01 * d, params, direction))
    gradients = jax.grad(loss)(params)
    products = jax.tree.map(lambda g, d: (g * d).sum(), gradients, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), (ahead - behind) / 0.02, rtol=2e-3)


def test_golden_loss_of_the_first_step(digits):
    """The loss of the untrained default network on the first 128 digits."""
    recipe = default_recipe(Config(), Config().hparams, DataSpec((8, 8), 10, 1437))
    state = init(recipe, KEY)
    batch = Examples(digits.train.images[:128], digits.train.labels[:128])
    _, metrics = train_step(recipe, state, batch, KEY)
    np.testing.assert_allclose(
        metrics.loss,
        GOLDEN_LOSS,
        rtol=1e-4,
        err_msg="The first step changed. That is right only if you meant to change the initial "
        "weights, the dropout masks, the preprocessing, the loss or the streams of random "
        "numbers; then no seed repeats an earlier result: say so in the commit.",
    )


GOLDEN_LOSS = 2.480934


def test_labels_are_smoothed_by_hand():
    recipe = small_recipe(hidden=(), label_smoothing=0.3)
    images, labels = batch = examples(10)
    state = init(recipe, KEY)
    logits = np.asarray(predict(recipe, state, images), float)
    targets = 0.7 * np.eye(3)[np.asarray(labels)] + 0.1
    expected = -(targets * np.log(softmax(logits))).sum(1).mean()
    _, metrics = train_step(recipe, state, batch, KEY)
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


def test_the_moving_average_is_the_plain_mean_at_first():
    recipe = small_recipe(dropout=0.0, ema_decay=0.75)
    images, _ = batch = examples(10)
    state = init(recipe, KEY)
    seen = []
    for _ in range(9):
        state, _ = train_step(recipe, state, batch, KEY)
        seen.append(np.asarray(state.params["Dense_0"]["kernel"], float))
        # From the fifth on, a plain mean would give the newest less than the decay's quarter.
        mean = np.mean(seen, axis=0)
        expected = mean if len(seen) <= 4 else 0.75 * expected + 0.25 * seen[-1]
        np.testing.assert_allclose(state.ema_params["Dense_0"]["kernel"], expected, rtol=1e-4)
    logits = predict(recipe, state, images)
    averaged = recipe.model.apply(state.ema_params, {}, to_inputs(images), None)[0]
    np.testing.assert_allclose(logits, averaged, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits, predict(recipe, state._replace(ema_params=None), images))


def test_averaging_does_not_change_the_training():
    plain, averaging = small_recipe(), small_recipe(ema_decay=0.9)
    data = examples(40)
    without, _ = train_epoch(plain, init(plain, KEY), data, KEY, 10)
    state, _ = train_epoch(averaging, init(averaging, KEY), data, KEY, 10)
    jax.tree.map(np.testing.assert_array_equal, state.params, without.params)
    assert without.ema_params is None


def test_the_config_decides_what_is_deformed():
    assert small_recipe(elastic_sigma_pixels=9.0).augment is no_augmentation
    images, _ = examples(10)
    for strength in ("rotation_degrees", "shear_degrees", "shift_pixels", "elastic_alpha_pixels"):
        deformed = small_recipe(**{strength: 5.0}).augment(KEY, images)
        assert np.abs(np.asarray(deformed) - images).max() > 1
    assert np.abs(np.asarray(small_recipe(scale=0.5).augment(KEY, images)) - images).max() > 1


def test_recalibrated_statistics_are_those_of_the_evaluated_parameters():
    """Averaged parameters need statistics of their own: those of the last ones would not fit.

    The images are augmented as in training, which here inverts them.
    """
    recipe = small_recipe(batch_norm=True, ema_decay=0.9, dropout=0.5)
    recipe = recipe._replace(augment=lambda key, images: 255.0 - images)
    data = examples(40)
    state, _ = train_epoch(recipe, init(recipe, KEY), data, KEY, 10)
    inputs = np.asarray(to_inputs(255 - data.images))
    for trained in (state, state._replace(ema_params=None)):
        recalibrated = recalibrate(recipe, trained, data.images, KEY)
        dense = jax.tree.map(np.asarray, trained.eval_params["Dense_0"])
        sums = inputs @ dense["kernel"] + dense["bias"]
        statistics = recalibrated.model_state["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(statistics["mean"], sums.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(statistics["var"], sums.var(axis=0), rtol=1e-3)
        jax.tree.map(np.testing.assert_array_equal, recalibrated.params, trained.params)


def test_training_does_not_read_the_recalibrated_statistics():
    recipe = small_recipe(batch_norm=True)
    data = examples(40)
    state, _ = train_epoch(recipe, init(recipe, KEY), data, KEY, 10)
    recalibrated = recalibrate(recipe, state, data.images, KEY)
    after, same = (train_epoch(recipe, s, data, KEY, 10)[0] for s in (state, recalibrated))
    jax.tree.map(np.testing.assert_array_equal, after.params, same.params)


# The epoch


def test_an_epoch_is_a_plain_loop_over_the_shuffled_batches():
    recipe, data = small_recipe(n=43, dropout=0.5), examples(43)
    scanned, metrics = train_epoch(recipe, init(recipe, KEY), data, KEY, 10)

    draws = jax.random.bits(jax.random.fold_in(jax.random.fold_in(KEY, ORDER), 0), (43,))
    order = np.array(sorted(range(43), key=draws.tolist().__getitem__))
    looped, losses, errors = init(recipe, KEY), [], 0
    for start in (0, 10, 20, 30):  # the last three images wait for the next shuffle
        indices = order[start : start + 10]
        batch = Examples(data.images[indices], data.labels[indices])
        looped, step = train.train_step(recipe, looped, batch, KEY)
        losses.append(float(step.loss))
        errors += int(step.errors)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), scanned, looped)
    assert scanned.step == 4
    np.testing.assert_allclose(metrics.loss, np.mean(losses), rtol=1e-5)
    assert metrics.errors == errors


def counting_recipe(n: int) -> Recipe:
    """A network that learns nothing and counts in its state how often it saw each image.

    The pixels of image k are all k. `model_state` has a row for each epoch, of 4 steps.
    """

    def apply(params, model_state, inputs, key):
        ids = jnp.round(inputs[:, 0] * 255).astype(jnp.int32)
        if key is not None:
            step = model_state["step"]
            model_state = {
                "seen": model_state["seen"].at[step // 4, ids].add(1),
                "step": step + 1,
            }
        return jnp.zeros((len(inputs), 3)) + params["bias"], model_state

    def start(key):
        return {"bias": jnp.zeros(())}, {"seen": jnp.zeros((3, n), jnp.int32), "step": 0}

    return Recipe(Model(start, apply), optax.sgd(0.1))


def test_an_epoch_shows_every_image_at_most_once_and_in_a_new_order():
    n = 43
    images = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint8)[:, None, None], (n, 3, 2))
    data = Examples(images, jnp.zeros(n, jnp.uint8))
    recipe = counting_recipe(n)
    state = init(recipe, KEY)
    for _ in range(3):
        state, _ = train_epoch(recipe, state, data, KEY, 10)
    seen = np.asarray(state.model_state["seen"])
    assert seen.max() == 1
    assert (seen.sum(1) == 40).all()
    left_out = [frozenset(np.flatnonzero(row == 0)) for row in seen]
    assert len(set(left_out)) == 3


def test_no_two_streams_of_random_numbers_share_a_key():
    """Initial weights, order, noise and recalibration have their own, and so does each step."""
    keys = [jax.random.fold_in(KEY, stream) for stream in (INIT, ORDER, STEP, RECALIBRATE)]
    keys += [jax.random.fold_in(keys[STEP], step) for step in range(3)]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 7


def test_noise_differs_between_steps_and_repeats_between_runs():
    recipe = small_recipe(dropout=0.9)
    batch, state = examples(10), init(recipe, KEY)
    losses = [
        float(train_step(recipe, state._replace(step=jnp.int32(step)), batch, KEY)[1].loss)
        for step in (0, 1, 2, 0)
    ]
    assert len(set(losses)) == 3
    assert losses[0] == losses[3]


def test_training_learns():
    recipe, data = small_recipe(n=10, dropout=0.0, epochs=300), examples(10)
    state = init(recipe, KEY)
    for _ in range(300):
        state, metrics = train_epoch(recipe, state, data, KEY, 10)
    assert metrics.errors == 0
    assert metrics.loss < 0.1


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match=r"--batch-size 64 .* 40 training images"):
        small_recipe(batch_size=64)


# Evaluation


@pytest.mark.parametrize(
    "n", [1, 7, EVALUATION_BATCH - 1, EVALUATION_BATCH, EVALUATION_BATCH + 1, 2345]
)
def test_evaluation_counts_every_image_once(n):
    recipe, data = small_recipe(n=n, batch_size=1), examples(n)
    state = init(recipe, KEY)
    result = evaluate(recipe, state, data)

    x = np.asarray(data.images, float).reshape(n, 6) / 255
    first, last = state.params["Dense_0"], state.params["Dense_1"]
    hidden = np.maximum(x @ np.asarray(first["kernel"], float), 0)
    p = softmax(hidden @ np.asarray(last["kernel"], float))
    labels = np.asarray(data.labels)
    confusion = np.zeros((3, 3), int)
    for label, answer in zip(labels, p.argmax(1), strict=True):
        confusion[label, answer] += 1
    np.testing.assert_array_equal(result.confusion, confusion)
    assert result.errors == (p.argmax(1) != labels).sum()
    np.testing.assert_allclose(result.loss, -np.log(p[np.arange(n), labels]).mean(), rtol=1e-4)


def test_the_logits_of_an_image_do_not_depend_on_the_other_images():
    recipe, data = small_recipe(n=2345), examples(2345)
    state = init(recipe, KEY)
    everyone = predict(recipe, state, data.images)
    np.testing.assert_array_equal(
        everyone[1700:1703], predict(recipe, state, data.images[1700:1703])
    )


# The extension point: a researcher replaces a field


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 32, rngs=rngs)
        self.drop = nnx.Dropout(0.2)
        self.last = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x, rngs=None):
        x = self.drop(nnx.relu(self.first(x)), deterministic=rngs is None, rngs=rngs)
        return self.last(x)


def nnx_model() -> Model:
    graph = nnx.graphdef(Nnx(nnx.Rngs(0)))

    def start(key):
        return nnx.state(Nnx(nnx.Rngs(key))), {}

    def apply(params, model_state, inputs, key):
        network = nnx.merge(graph, params)
        return network(inputs, None if key is None else nnx.Rngs(dropout=key)), model_state

    return Model(start, apply)


class BatchNormNet(nn.Module):
    @nn.compact
    def __call__(self, inputs, train: bool):
        x = nn.Dense(32)(inputs)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(10)(nn.relu(x))


def smoothed(model, params, model_state, inputs, labels, key):
    """Cross-entropy with smoothed labels."""
    logits, model_state = model.apply(params, model_state, inputs, key)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)
    return optax.softmax_cross_entropy(logits, targets).mean(), (logits, model_state)


def shifted(key, images):
    """Each image moved by up to a pixel."""
    keys = jax.random.split(key, len(images))
    return jax.vmap(lambda key, image: jnp.roll(image, jax.random.randint(key, (), -1, 2)))(
        keys, images
    )


INGREDIENTS = {
    "model: flax.nnx": {"model": nnx_model()},
    "model: batch norm": {"model": from_linen(BatchNormNet(), 64)},
    "optimizer": {"optimizer": optax.adam(0.01)},
    "loss": {"loss": smoothed},
    "preprocess": {"preprocess": lambda images: standardize(to_inputs(images), 0.3, 0.4)},
    "augment": {"augment": shifted},
}


def digits_recipe(train_images: int, **ingredients) -> Recipe:
    config = Config(hidden=(32,), batch_size=32, epochs=5)
    spec = DataSpec((8, 8), 10, train_images)
    return default_recipe(config, config.hparams, spec)._replace(**ingredients)


@pytest.mark.parametrize("name", INGREDIENTS)
def test_any_ingredient_can_be_replaced(name, digits):
    recipe = digits_recipe(len(digits.train.labels), **INGREDIENTS[name])
    state, data = init(recipe, KEY), jax.device_put(digits.train)
    for _ in range(5):
        state, _ = train_epoch(recipe, state, data, KEY, 32)
    before = evaluate(recipe, init(recipe, KEY), digits.test)
    after = evaluate(recipe, state, digits.test)
    assert after.errors < 0.2 * len(digits.test.labels) < before.errors


def test_batch_statistics_are_carried_and_used(digits):
    recipe = digits_recipe(len(digits.train.labels), **INGREDIENTS["model: batch norm"])
    start = state = init(recipe, KEY)
    assert (start.model_state["batch_stats"]["BatchNorm_0"]["mean"] == 0).all()
    for _ in range(5):
        state, _ = train_epoch(recipe, state, jax.device_put(digits.train), KEY, 32)
    dense = jax.tree.map(np.asarray, state.params["Dense_0"])
    expected = (to_inputs(digits.train.images) @ dense["kernel"]).mean(0) + dense["bias"]
    mean = state.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.corrcoef(mean, expected)[0, 1] > 0.95
    without = state._replace(model_state=start.model_state)
    images = digits.test.images
    assert not np.allclose(predict(recipe, state, images), predict(recipe, without, images))


def test_augmentation_is_for_training_only():
    recipe, data = small_recipe(), examples(40)
    state = init(recipe, KEY)
    altered = recipe._replace(augment=lambda key, images: 0 * images)
    np.testing.assert_array_equal(
        predict(recipe, state, data.images), predict(altered, state, data.images)
    )
    blank, _ = train_step(altered, state, data, KEY)
    seeing, _ = train_step(recipe, state, data, KEY)

    def moved(after):
        return np.abs(after.params["Dense_0"]["kernel"] - state.params["Dense_0"]["kernel"]).max()

    assert moved(blank) < 1e-4 < moved(seeing)  # black images leave weight decay alone to act
