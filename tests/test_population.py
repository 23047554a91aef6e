import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import population, prng, train
from mnist_jax.config import Config
from mnist_jax.data import Examples
from tests.conftest import tiny_arrays

SEEDS = (3, 4, 5)


def trained(seeds, side_by_side=3):
    """The population after two epochs, and its last metrics."""
    config = Config(hidden=(8,), batch_size=10, epochs=2, dropout=0.5)
    recipe = train.default_recipe(config, pixels=6, classes=3, train_images=40)
    data = Examples(*map(jnp.asarray, tiny_arrays()[:2]))
    keys = population.keys(seeds)
    states = population.init(recipe, keys)
    for _ in range(2):
        states, metrics = population.train_epoch(recipe, states, data, keys, 10, side_by_side)
    return recipe, data, states, metrics


def test_keys_are_those_of_the_seeds():
    for seed, key in zip((0, 7, 2**32 - 1), population.keys((0, 7, 2**32 - 1)), strict=True):
        np.testing.assert_array_equal(
            jax.random.key_data(key), jax.random.key_data(jax.random.key(np.uint32(seed)))
        )


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
@pytest.mark.parametrize("place", range(len(SEEDS)))
def test_each_member_is_its_solo_run(place, side_by_side):
    """To the rounding of float32: a batched matrix product may add in another order."""
    recipe, data, states, metrics = trained(SEEDS, side_by_side)
    key = prng.key(SEEDS[place])
    solo = train.init(recipe, key)
    for _ in range(2):
        solo, solo_metrics = train.train_epoch(recipe, solo, data, key, 10)
    member = jax.tree.map(lambda leaf: leaf[place], states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), member, solo)
    np.testing.assert_allclose(metrics.loss[place], solo_metrics.loss, rtol=1e-5)
    assert metrics.errors[place] == solo_metrics.errors
    np.testing.assert_allclose(
        population.predict(recipe, states, data.images)[place],
        train.predict(recipe, solo, data.images),
        rtol=1e-3,
        atol=1e-5,
    )
    everyone = population.evaluate(recipe, states, data)
    np.testing.assert_array_equal(
        everyone.confusion[place], train.evaluate(recipe, solo, data).confusion
    )
    assert everyone.errors.shape == (3,)


def test_each_member_settles_over_images_of_its_own():
    """As it does alone, though all have the same weights here."""
    config = Config(hidden=(8,), batch_size=10, batch_norm=True, rotation_degrees=40.0)
    recipe = train.default_recipe(config, pixels=6, classes=3, train_images=40)
    images = jnp.asarray(tiny_arrays()[0])
    solo, keys = train.init(recipe, prng.key(0)), population.keys(SEEDS)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(SEEDS)), solo)
    found = population.settle(recipe, states, images, keys).model_state
    for place, seed in enumerate(SEEDS):
        alone = train.settle(recipe, solo, images, prng.key(seed)).model_state
        member = jax.tree.map(lambda leaf, place=place: leaf[place], found)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), member, alone
        )
    means = found["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(means[0] - means[1]).max() > 1e-3


def test_one_after_the_other_a_member_is_its_solo_run_to_the_bit(digits):
    """The default network, which no CPU trains side by side; the README promises it."""
    config = Config(epochs=1)
    recipe = train.default_recipe(config, 64, 10, len(digits.train.labels))
    data = jax.device_put(digits.train)

    def trained(seeds):
        keys = population.keys(seeds)
        states = population.init(recipe, keys)
        return population.train_epoch(recipe, states, data, keys, 128, side_by_side=1)

    if jax.default_backend() == "cpu":
        assert population.side_by_side(jax.eval_shape(lambda: trained(SEEDS))[0]) == 1
    member, solo = jax.tree.map(lambda leaf: leaf[1], trained(SEEDS)), trained(SEEDS[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), member, solo)


def test_side_by_side_a_member_of_mnist_stays_near_its_solo_run(mnist):
    """As near as the README says: rounding differs, and three epochs of training amplify that."""
    config = Config(hidden=(128, 64), epochs=3)
    recipe = train.default_recipe(config, 784, 10, 60_000)
    data = jax.device_put(mnist.train)

    def trained(seeds):
        keys = population.keys(seeds)
        states = population.init(recipe, keys)
        for _ in range(3):
            states, metrics = population.train_epoch(recipe, states, data, keys, 128, len(seeds))
        return metrics.loss[-1], population.evaluate(recipe, states, mnist.test).errors[-1]

    (loss, errors), (solo_loss, solo_errors) = trained((0, 1, 2, 3)), trained((3,))
    assert abs(loss - solo_loss) < 1e-3
    assert abs(errors - solo_errors) <= 20


def test_members_differ():
    _, _, states, metrics = trained(SEEDS)
    kernels = np.asarray(states.params["Dense_0"]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])
    assert len(set(metrics.loss.tolist())) == 3


def test_the_same_population_twice_has_the_same_bits():
    first, second = trained(SEEDS)[2], trained(SEEDS)[2]
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_nothing_compiles_after_compile_ahead():
    config = Config(hidden=(7,), batch_size=10, epochs=1)
    recipe = train.default_recipe(config, pixels=6, classes=3, train_images=40)
    images, labels, test_images, test_labels = map(jnp.asarray, tiny_arrays())
    training, test = Examples(images, labels), Examples(test_images, test_labels)
    keys = population.keys(SEEDS)
    side_by_side, _ = population.compile_ahead(recipe, keys, training, test, 10)
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        states = population.init(recipe, keys)
        states, _ = population.train_epoch(recipe, states, training, keys, 10, side_by_side)
        population.evaluate(recipe, states, test)
        assert compiled == []
        population.predict(recipe, states, test.images)
        assert len(compiled) == 1  # so it would have been noticed
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize(("mib", "seeds", "together"), [(5, 8, 1), (1, 3, 3), (1, 8, 4), (1, 5, 3)])
def test_a_cpu_trains_equal_groups_that_fit_its_cache(mib, seeds, together, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    bytes_ = jax.ShapeDtypeStruct((seeds, mib, 2**20 - 4), jnp.uint8)  # and 4 of the step
    states = train.TrainState({}, {}, bytes_, jax.ShapeDtypeStruct((seeds,), jnp.int32))
    assert population.side_by_side(states) == together


def test_an_accelerator_trains_all_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    big = jax.ShapeDtypeStruct((8, 2**30), jnp.float32)
    states = train.TrainState({}, {}, big, jax.ShapeDtypeStruct((8,), jnp.int32))
    assert population.side_by_side(states) == 8
