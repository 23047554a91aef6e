import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax import data, plots, population
from mnist_jax.config import Config
from mnist_jax.data import DataSpec
from mnist_jax.errors import InputError
from mnist_jax.fit import fit
from mnist_jax.population import Setup
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.figures import first_kernel, save_figures
from mnist_jax.runs.results import ensemble, load_data, load_run, measure, probabilities
from mnist_jax.train import default_recipe
from tests.conftest import tiny_arrays
from tests.data.test_files import write_cache, write_idx

SMALL = Config(dataset="digits", hidden=(16,), epochs=3, batch_size=32, seeds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("runs") / "small")


def test_a_run_folder_has_everything_that_the_design_promises(run):
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints"} <= names
    figures = {path.stem for path in (run.path / "figures").glob("*.png")}
    assert figures == {"samples", "curves", "confusion", "mistakes", "weights"}
    summary = rundir.read_summary(run.path)
    assert summary["dataset"] == "digits"
    assert (summary["train_images"], summary["test_images"]) == (1437, 360)
    assert (summary["seeds"], summary["epochs"]) == (2, 3)
    seconds = summary["seconds"]
    assert set(seconds) >= {"startup", "data", "compile", "train", "evaluate", "total"}
    assert seconds["total"] >= sum(seconds.values()) - seconds["total"] > 0
    assert {"jax", "flax", "python"} <= set(summary["versions"])
    assert summary["device"]


def test_a_repeated_run_compiles_nothing_again(run, tmp_path, caplog):
    def compilations():
        return [record for record in caplog.records if "Finished XLA comp" in record.getMessage()]

    with jax.log_compiles():
        fit(SMALL, tmp_path / "again")
        assert not compilations()
        jax.jit(lambda x: x + 1)(1)
        assert compilations()


def test_if_memory_runs_out_in_the_test_the_error_says_what_to_lower(tmp_path, monkeypatch):
    class OutOfMemory:
        lower = staticmethod(population.evaluate.lower)

        def __call__(self, *args):
            raise MemoryError

    monkeypatch.setattr(population, "evaluate", OutOfMemory())
    with pytest.raises(InputError, match="do not fit into memory; lower --hidden"):
        fit(SMALL, tmp_path / "run")


def test_if_memory_runs_out_for_a_figure_the_result_is_saved(tmp_path, monkeypatch):
    def out_of_memory(*args):
        raise MemoryError

    monkeypatch.setattr(population, "predict", out_of_memory)
    one_seed = Config(**{**vars(SMALL), "seeds": 1})  # an ensemble would call predict in the test
    with pytest.raises(InputError, match="do not fit into memory; lower --hidden"):
        fit(one_seed, tmp_path / "run")
    assert rundir.read_summary(tmp_path / "run")["seeds"] == 1


def test_the_summary_is_right(run, digits):
    """Computed again in plain NumPy from the weights."""
    errors, losses = [], []
    for seed in range(2):
        x = digits.test.images.reshape(360, -1) / 255
        for name in ("Dense_0", "Dense_1"):
            layer = run.states.params[name]
            kernel, bias = (np.asarray(layer[part][seed], float) for part in ("kernel", "bias"))
            x = x @ kernel + bias
            x = np.maximum(x, 0) if name == "Dense_0" else x
        errors.append(int((x.argmax(1) != digits.test.labels).sum()))
        odds = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        losses.append(-np.log(odds[np.arange(360), digits.test.labels]).mean())
    summary = rundir.read_summary(run.path)
    assert summary["test_errors"] == errors
    np.testing.assert_allclose(summary["test_loss"], losses, rtol=1e-4)
    a, b = (100 * count / 360 for count in errors)
    assert summary["test_error_percent_mean"] == pytest.approx((a + b) / 2)
    assert summary["test_error_percent_std"] == pytest.approx(abs(a - b) / 2**0.5)
    confusion = np.array(summary["confusion"])
    assert confusion.sum() == 2 * 360
    assert confusion.sum() - np.trace(confusion) == sum(errors)
    for name, percent in summary["class_accuracy_percent"].items():
        row = confusion[int(name)]
        assert percent == pytest.approx(100 * row[int(name)] / row.sum())


def test_the_metrics_have_a_line_per_epoch_and_an_entry_per_seed(run):
    history = rundir.read_metrics(run.path)
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3]
    assert [metrics["step"] for metrics in history] == [44, 88, 132]
    for metrics in history:
        assert len(metrics["train_loss"]) == len(metrics["train_error_percent"]) == 2
        images = metrics["images_per_second"] * metrics["seconds"]
        assert images == pytest.approx(44 * 32 * 2)  # steps, batch, seeds
        for percent in metrics["train_error_percent"]:
            errors = percent / 100 * 44 * 32
            assert errors == pytest.approx(round(errors), abs=0.01)
        assert "validation_loss" not in metrics


def test_a_run_is_read_back_from_its_folder(run):
    again = load_run(run.path)
    assert again.config == run.config
    assert (again.spec, again.class_names) == (run.spec, run.class_names)
    jax.tree.map(np.testing.assert_array_equal, again.states, run.states)
    result = measure(again, load_data(again).test)
    summary = rundir.read_summary(run.path)
    assert result == {name: summary[name] for name in result}


def test_the_ensemble_chooses_the_class_with_the_highest_mean_probability(run, digits):
    logits = population.predict(run.setup, run.states, run.members, digits.test.images)
    odds = np.exp(np.asarray(logits, float))
    mean_probability = (odds / odds.sum(-1, keepdims=True)).mean(0)
    errors = (mean_probability.argmax(-1) != digits.test.labels).sum()
    assert rundir.read_summary(run.path)["test_errors_of_ensemble"] == errors


def test_an_ensemble_averages_probabilities_not_logits():
    """One network is sure of class 0; its logit would outweigh the two that say 1."""
    logits = np.array([[[10.0, 0.0]], [[0.0, 4.0]], [[0.0, 4.0]]], np.float32)
    assert ensemble(logits).tolist() == [1]


def test_the_errors_of_the_last_weights_stand_beside_those_of_the_average(digits, tmp_path):
    config = Config(
        dataset="digits", hidden=(16,), epochs=3, batch_norm=True, ema_decay=0.98, learning_rate=0.3
    )
    run = fit(config, tmp_path / "run", dataset=digits)
    summary = rundir.read_summary(run.path)
    assert "test_errors_of_ensemble" not in summary
    errors = {}
    for name, ema_params in (("", run.states.ema_params), ("_of_last_weights", None)):
        states = run.states._replace(ema_params=ema_params)
        members, images = run.members, digits.train.images
        states = population.recalibrate(run.setup, states, members, images)
        logits = population.predict(run.setup, states, members, digits.test.images)
        errors[name] = (np.asarray(logits)[0].argmax(-1) != digits.test.labels).sum()
        assert summary[f"test_errors{name}"] == [errors[name]]
    assert errors[""] != errors["_of_last_weights"]
    again = load_run(run.path)  # its saved statistics are recalibrated
    jax.tree.map(np.testing.assert_array_equal, again.states, run.states)
    answers = probabilities(again, digits.test.images).argmax(-1)
    assert (answers != digits.test.labels).sum() == errors[""]


def test_the_weights_in_the_figure_have_the_sign_of_the_normalised_unit():
    """Ink on red excites the unit: a negative scale in batch normalisation flips the sign."""
    setup = Setup(Config(hidden=(5,), batch_norm=True, seeds=2), DataSpec((2, 3), 3, 200))
    states = population.init(setup, population.members_of(setup.config))
    states.params["BatchNorm_0"]["scale"] *= -2
    kernel = np.asarray(states.params["Dense_0"]["kernel"])[0]
    expected = -2 * kernel  # the statistics are 0 and 1
    np.testing.assert_allclose(first_kernel(states, 6), expected, rtol=1e-4)


def test_a_run_that_deforms_its_images_has_a_figure_of_that(digits, tmp_path, monkeypatch):
    drawn = []
    draw = plots.samples
    monkeypatch.setattr(plots, "samples", lambda *args: drawn.append(args) or draw(*args))
    config = Config(dataset="digits", hidden=(4,), epochs=1, rotation_degrees=20.0, seed=3)
    run = fit(config, tmp_path / "run", dataset=digits)
    assert (run.path / "figures" / "deformations.png").exists()
    (_, deformed) = drawn
    assert deformed[1].tolist() == [0] * 25  # the first digit is a zero
    assert len(np.unique(deformed[0], axis=0)) == 25
    mean = deformed[0].mean(axis=0)  # the mean of many small rotations resembles the image
    assert np.corrcoef(mean.ravel(), digits.train.images[0].ravel())[0, 1] > 0.9


def test_the_same_run_twice_has_the_same_bits(run, tmp_path):
    again = fit(SMALL, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.states, run.states)

    def without_time(path):
        return [
            {name: value for name, value in metrics.items() if "second" not in name}
            for metrics in rundir.read_metrics(path)
        ]

    assert without_time(again.path) == without_time(run.path)


def test_another_seed_is_another_run(run, tmp_path):
    other = fit(Config(**{**vars(SMALL), "seed": 1, "seeds": 1}), tmp_path / "other")
    kernel = other.states.params["Dense_0"]["kernel"]
    kernels = run.states.params["Dense_0"]["kernel"]  # of seeds 0 and 1
    np.testing.assert_allclose(kernel[0], kernels[1], rtol=1e-3, atol=1e-5)
    assert not np.allclose(kernel[0], kernels[0])


def test_probabilities_are_those_of_the_first_seed(run, digits):
    answers = probabilities(run, digits.test.images)
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)
    errors = (answers.argmax(1) != digits.test.labels).sum()
    assert errors == rundir.read_summary(run.path)["test_errors"][0]


def test_figures_that_are_drawn_again_are_the_same(run):
    before = {path: path.read_bytes() for path in (run.path / "figures").iterdir()}
    assert len(before) == 5
    for path in before:
        path.unlink()
    again = load_run(run.path)
    save_figures(again, load_data(again), rundir.read_summary(run.path))
    assert {path: path.read_bytes() for path in (run.path / "figures").iterdir()} == before


def test_the_figures_show_the_test_images_and_the_first_layer(run, digits, monkeypatch):
    drawn = {}

    def record(name):
        draw = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *args: drawn.update({name: args}) or draw(*args))

    for name in ("mistakes", "weights", "confusion", "samples"):
        record(name)
    save_figures(run, digits, rundir.read_summary(run.path))
    images, labels, answers, _, _ = drawn["mistakes"]
    np.testing.assert_array_equal(images, digits.test.images)
    np.testing.assert_array_equal(labels, digits.test.labels)
    errors = rundir.read_summary(run.path)["test_errors"][0]
    assert (answers.argmax(1) != labels).sum() == errors
    counts = drawn["confusion"][0]
    assert counts.sum() - np.trace(counts) == errors
    np.testing.assert_array_equal(drawn["weights"][0], run.states.params["Dense_0"]["kernel"][0])
    np.testing.assert_array_equal(drawn["samples"][0], digits.train.images[:4])


def test_validation_images_are_evaluated_each_epoch_and_never_trained_on(
    tmp_path, digits, monkeypatch
):
    """The held-out images are blank, with a label that no other has, so it cannot be learned."""
    x, y = (array.copy() for array in digits.train)
    x[-100:], y[-100:] = 0, 9
    x, y = (
        np.delete(x, np.flatnonzero(y[:-100] == 9), 0),
        np.delete(y, np.flatnonzero(y[:-100] == 9)),
    )
    altered = digits._replace(train=data.Examples(x, y))
    monkeypatch.setattr(data, "load", lambda *_: altered)
    config = Config(**{**vars(SMALL), "validation_images": 100, "seeds": 1})
    run = fit(config, tmp_path / "run")
    history = rundir.read_metrics(run.path)
    assert all(metrics["validation_error_percent"] == [100.0] for metrics in history)
    summary = rundir.read_summary(run.path)
    assert (summary["train_images"], summary["validation_images"]) == (len(y) - 100, 100)
    assert summary["test_error_percent_std"] is None


def test_a_researcher_brings_their_own_recipe(tmp_path, capsys):
    def with_adam(config, hparams, spec):
        assert spec == DataSpec((8, 8), 10, 1437 - 37)
        return default_recipe(config, hparams, spec)._replace(optimizer=optax.adam(0.003))

    config = Config(**{**vars(SMALL), "validation_images": 37})
    run = fit(config, tmp_path / "run", make_recipe=with_adam)
    assert type(run.states.opt_state[0]) is optax.ScaleByAdamState
    assert rundir.read_summary(run.path)["test_error_percent_mean"] < 50
    assert "recipe" not in capsys.readouterr().err
    with pytest.raises(InputError):  # its optimizer has other states
        load_run(run.path)
    assert "with_adam, and is read with the default one" in capsys.readouterr().err


def test_a_run_records_the_folder_that_it_read_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_JAX_DATA", str(tmp_path))  # it has no kmnist
    write_cache("kmnist", tiny_arrays())
    small = {"hidden": (4,), "epochs": 1, "batch_size": 8}
    run = fit(Config(dataset="kmnist", **small), tmp_path / "cached")
    assert load_run(run.path).config.data_dir is None
    write_idx(tmp_path, tiny_arrays())
    run = fit(Config(dataset="local", **small), tmp_path / "local")
    assert load_run(run.path).config.data_dir == tmp_path


def test_softmax_regression_and_its_figure(tmp_path):
    run = fit(Config(**{**vars(SMALL), "hidden": ()}), tmp_path / "run")
    assert (run.path / "figures" / "weights.png").exists()
    assert jax.tree.leaves(run.states.params)[1].shape == (2, 64, 10)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 5000}, {"validation_images": 1437}, {"warmup_steps": 132}],
)
def test_a_config_that_does_not_fit_the_data_leaves_nothing_behind(tmp_path, change):
    with pytest.raises(InputError, match="--" + next(iter(change)).replace("_", "-")):
        fit(Config(**{**vars(SMALL), **change}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_refused_before_anything_is_loaded(run, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="already exists"):
        fit(SMALL, run.path)


def test_a_run_without_a_name_gets_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(**{**vars(SMALL), "epochs": 1})
    first, second = fit(config).path, fit(config).path
    assert first != second
    assert first.parent.name == second.parent.name == "runs"
    assert "-digits-16" in first.name


def test_a_config_that_does_not_fit_the_states_is_refused(run, tmp_path):
    config = {**json.loads((run.path / "config.json").read_text()), "hidden": [17]}
    checkpoint.save(tmp_path, 1, run.states, config, [])
    with pytest.raises(InputError, match="another shape than the config asks for"):
        load_run(tmp_path)


def test_the_default_network_learns_mnist_in_an_epoch(mnist_dir, tmp_path):
    run = fit(Config(dataset="mnist", data_dir=mnist_dir, epochs=1), tmp_path / "run")
    summary = rundir.read_summary(run.path)
    assert summary["test_error_percent_mean"] < 4
    assert (summary["train_images"], summary["test_images"]) == (60_000, 10_000)


def test_every_array_of_a_run_has_a_leading_axis_of_seeds(run):
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(run.states))
    start = population.init(run.setup, run.members)
    assert jax.tree.structure(start) == jax.tree.structure(run.states)
    assert jnp.array_equal(start.step, jnp.zeros(2, jnp.int32))
