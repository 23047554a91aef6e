import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import population, prng, train
from mnist_jax.config import Config
from mnist_jax.data import DataSpec, Examples
from mnist_jax.population import Setup
from mnist_jax.train import TrainState
from tests.conftest import tiny_arrays

SEEDS = (3, 4, 5)
TINY = DataSpec((3, 2), 3, 40)


def networks_of_seeds(config, seeds):
    return population.members(seeds, [config.hparams] * len(seeds))


@pytest.fixture
def set_vmap_size(monkeypatch):
    """A function that sets how many networks train at once, whatever the machine."""

    def set_size(size):
        monkeypatch.setattr(population, "vmap_size", lambda states: size)
        population.train_epoch.clear_cache()  # it is compiled for another size

    yield set_size
    population.train_epoch.clear_cache()


@pytest.fixture
def compilations():
    """A list that grows by one entry with each program that is compiled."""
    events: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.clear_event_listeners()


def train_two_epochs(seeds):
    """The setup, the networks, the images, the states after two epochs, and the last metrics."""
    config = Config(hidden=(8,), batch_size=10, epochs=2, dropout=0.5)
    setup, members = Setup(config, TINY), networks_of_seeds(config, seeds)
    data = Examples(*map(jnp.asarray, tiny_arrays()[:2]))
    states = population.init(setup, members)
    for _ in range(2):
        states, metrics = population.train_epoch(setup, states, members, data)
    return setup, members, data, states, metrics


def test_keys_are_those_of_the_seeds():
    seeds = (0, 7, 2**32 - 1)
    for seed, key in zip(seeds, networks_of_seeds(Config(), seeds).keys, strict=True):
        np.testing.assert_array_equal(
            jax.random.key_data(key), jax.random.key_data(jax.random.key(np.uint32(seed)))
        )


def test_the_networks_of_a_config_are_its_seeds():
    members = population.members_of(Config(seed=7, seeds=3, dropout=0.25))
    data = [jax.random.key_data(jax.random.key(np.uint32(seed))) for seed in (7, 8, 9)]
    np.testing.assert_array_equal(jax.random.key_data(members.keys), data)
    np.testing.assert_array_equal(members.hparams.dropout, np.float32([0.25] * 3))
    assert {leaf.shape for leaf in jax.tree.leaves(members.hparams)} == {(3,)}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_member_is_its_solo_run(size, set_vmap_size):
    """To the rounding of float32: a batched matrix product may add in another order."""
    set_vmap_size(size)
    setup, members, data, states, metrics = train_two_epochs(SEEDS)
    logits = population.predict(setup, states, members, data.images)
    evaluation = population.evaluate(setup, states, members, data)
    assert evaluation.errors.shape == (3,)

    recipe = setup.recipe(setup.config.hparams)
    train_epoch = jax.jit(train.train_epoch, static_argnames=("recipe", "batch_size"))
    for i, seed in enumerate(SEEDS):
        key = prng.key(seed)
        solo = train.init(recipe, key)
        for _ in range(2):
            solo, solo_metrics = train_epoch(recipe, solo, data, key, 10)
        member = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), member, solo
        )
        np.testing.assert_allclose(metrics.loss[i], solo_metrics.loss, rtol=1e-5)
        assert metrics.errors[i] == solo_metrics.errors
        solo_logits = train.predict(recipe, solo, data.images)
        np.testing.assert_allclose(logits[i], solo_logits, rtol=1e-3, atol=1e-5)
        solo_evaluation = train.evaluate(recipe, solo, data)
        np.testing.assert_array_equal(evaluation.confusion[i], solo_evaluation.confusion)


def test_each_member_is_recalibrated_on_images_of_its_own():
    """As it is alone, though all have the same parameters here."""
    config = Config(hidden=(8,), batch_size=10, batch_norm=True, rotation_degrees=40.0)
    setup, members = Setup(config, TINY), networks_of_seeds(config, SEEDS)
    recipe = setup.recipe(config.hparams)
    images = jnp.asarray(tiny_arrays()[0])
    solo = train.init(recipe, prng.key(0))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(SEEDS)), solo)
    model_state = population.recalibrate(setup, states, members, images).model_state
    for i, seed in enumerate(SEEDS):
        alone = train.recalibrate(recipe, solo, images, prng.key(seed)).model_state
        member = jax.tree.map(lambda leaf, i=i: leaf[i], model_state)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), member, alone
        )
    means = model_state["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(means[0] - means[1]).max() > 1e-3


def test_recalibration_leaves_networks_without_statistics_as_they_are():
    setup, members, data, states, _ = train_two_epochs(SEEDS)
    assert population.recalibrate(setup, states, members, data.images) is states


def test_one_after_the_other_a_member_is_its_solo_run_to_the_bit(digits, set_vmap_size):
    """The default network, which no CPU trains several of at once; the README promises it."""
    config = Config(epochs=1)
    setup = Setup(config, DataSpec((8, 8), 10, len(digits.train.labels)))
    data = jax.device_put(digits.train)

    def train_seeds(seeds):
        members = networks_of_seeds(config, seeds)
        states = population.init(setup, members)
        if jax.default_backend() == "cpu":
            assert population.vmap_size(states) == 1
        set_vmap_size(1)
        return population.train_epoch(setup, states, members, data)

    member = jax.tree.map(lambda leaf: leaf[1], train_seeds(SEEDS))
    solo = train_seeds(SEEDS[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), member, solo)


def test_trained_at_once_a_member_stays_near_its_solo_run_on_mnist(mnist, set_vmap_size):
    """As near as the README says: rounding differs, and three epochs of training amplify that."""
    config = Config(hidden=(128, 64), epochs=3)
    setup = Setup(config, DataSpec((28, 28), 10, 60_000))
    data = jax.device_put(mnist.train)

    def train_seeds(seeds):
        set_vmap_size(len(seeds))
        members = networks_of_seeds(config, seeds)
        states = population.init(setup, members)
        for _ in range(3):
            states, metrics = population.train_epoch(setup, states, members, data)
        evaluation = population.evaluate(setup, states, members, mnist.test)
        return metrics.loss[-1], evaluation.errors[-1]

    (loss, errors), (solo_loss, solo_errors) = train_seeds((0, 1, 2, 3)), train_seeds((3,))
    assert abs(loss - solo_loss) < 1e-3
    assert abs(errors - solo_errors) <= 20


def test_members_differ():
    *_, states, metrics = train_two_epochs(SEEDS)
    kernels = np.asarray(states.params["Dense_0"]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])
    assert len(set(metrics.loss.tolist())) == 3


def test_the_same_population_twice_has_the_same_bits():
    first, second = train_two_epochs(SEEDS)[3:], train_two_epochs(SEEDS)[3:]
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_an_epoch_donates_its_states():
    """Otherwise the device would have to hold the states before and after it."""
    setup, members, data, states, _ = train_two_epochs(SEEDS)
    population.train_epoch(setup, states, members, data)
    assert states.params["Dense_0"]["kernel"].is_deleted()


def test_nothing_compiles_after_compile_programs(compilations):
    config = Config(hidden=(7,), batch_size=10, epochs=1)
    setup, members = Setup(config, TINY), networks_of_seeds(config, SEEDS)
    images, labels, test_images, test_labels = map(jnp.asarray, tiny_arrays())
    training, test = Examples(images, labels), Examples(test_images, test_labels)
    population.compile_programs(setup, members, training, test)
    compilations.clear()
    states = population.init(setup, members)
    states, _ = population.train_epoch(setup, states, members, training)
    population.evaluate(setup, states, members, test)
    assert compilations == []
    population.predict(setup, states, members, test.images)
    assert len(compilations) == 1  # so it would have been noticed


def test_equal_setups_share_a_program(compilations):
    """A recipe is made anew each time, but a setup is compiled once."""
    train_two_epochs(SEEDS)
    compilations.clear()
    train_two_epochs(SEEDS)
    assert compilations == []


def test_compile_programs_returns_at_least_the_bytes_of_the_arrays():
    config = Config(hidden=(7,), batch_size=10, epochs=1)
    setup, members = Setup(config, TINY), networks_of_seeds(config, SEEDS)
    images, labels, test_images, test_labels = map(jnp.asarray, tiny_arrays())
    training, test = Examples(images, labels), Examples(test_images, test_labels)
    needed = population.compile_programs(setup, members, training, test)
    arrays = jax.tree.leaves((population.init(setup, members), training))
    assert needed >= sum(array.nbytes for array in arrays)


@pytest.mark.parametrize(("mib", "count", "size"), [(5, 8, 1), (1, 3, 3), (1, 8, 4), (1, 5, 3)])
def test_a_cpu_trains_equal_groups_that_fit_its_cache(mib, count, size, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    opt_state = jax.ShapeDtypeStruct((count, mib, 2**20 - 4), jnp.uint8)  # the step takes 4 more
    states = TrainState({}, {}, opt_state, jax.ShapeDtypeStruct((count,), jnp.int32))
    assert population.vmap_size(states) == size


def test_an_accelerator_trains_all_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    opt_state = jax.ShapeDtypeStruct((8, 2**30), jnp.float32)
    states = TrainState({}, {}, opt_state, jax.ShapeDtypeStruct((8,), jnp.int32))
    assert population.vmap_size(states) == 8
