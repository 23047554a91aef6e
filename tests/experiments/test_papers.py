"""The table of results: what is kept of a run, and that it is of the network that it names."""

import dataclasses
import importlib
import json
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import runner
import table
import tang_2013
from runner import Experiment

from mnist_jax import fit, prng, train
from mnist_jax.config import Config
from mnist_jax.data import DataSpec, Examples
from mnist_jax.errors import InputError, Interrupted
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import recipe_name
from mnist_jax.train import default_recipe

SCRIPT = Path("some_2020.py")
CONFIG = Config(dataset="digits", hidden=(8,), epochs=1, seeds=2)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go; and runs without their figures, which take longer than the training."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(fit, "save_figures", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "some_2020.json"


@pytest.mark.long
@pytest.mark.parametrize("file", table.FILES)
def test_the_first_and_the_last_row_of_every_paper_train_quickly(file, results, capsys):
    rows = importlib.import_module(file).ROWS
    names = list(rows)
    ends = {name: rows[name] for name in (names[0], names[-1])}
    runner._run(Path(f"{file}.py"), ends, quick=True)
    told = re.findall(r"% errors \(n = 2: [\d.]+, [\d.]+\)", capsys.readouterr().out)
    assert len(told) == len(ends)
    assert not list(results.parent.iterdir())  # it leaves nothing


@pytest.mark.parametrize("file", table.FILES)
def test_every_row_makes_a_step_at_its_full_size(file):
    """Not computed, but traced: its ingredients fit together and leave a state like the first."""
    for experiment in importlib.import_module(file).ROWS.values():
        config = dataclasses.replace(experiment.config, dataset="digits", data_dir=None)
        recipe = experiment.recipe(config, config.hparams, DataSpec((8, 8), 10, 60_000))
        key = prng.key(0)
        state = jax.eval_shape(partial(train.init, recipe), key)
        images = jax.ShapeDtypeStruct((config.batch_size, 8, 8), np.uint8)
        labels = jax.ShapeDtypeStruct((config.batch_size,), np.uint8)
        step = partial(train.train_step, recipe)
        after, metrics = jax.eval_shape(step, state, Examples(images, labels), key)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, state, after))
        assert metrics.loss.shape == ()
        assert max(config.hidden) in {n for leaf in jax.tree.leaves(state) for n in leaf.shape}


def test_seeds_add_up_and_another_config_starts_anew(results):
    rows = {"a": Experiment("1.0", "", CONFIG), "b": Experiment("", "", CONFIG)}
    runner._run(SCRIPT, rows, row=("a",))
    runner._run(SCRIPT, rows, row=("a",), seed=2, seeds=1)
    runner._run(SCRIPT, rows)  # seeds 0 and 1 again, in the same folder
    found = json.loads(results.read_text())
    assert {name: [run["seed"] for run in row["runs"]] for name, row in found.items()} == {
        "a": [0, 2],
        "b": [0],
    }
    for name, folder in (("a", "a-0-2"), ("b", "b-0-2")):
        summary = rundir.read_summary(Path("runs") / "some_2020" / folder)
        run = found[name]["runs"][0]
        assert run["test_errors"] == summary["test_errors"]
        assert run["test_errors_of_ensemble"] == summary["test_errors_of_ensemble"]
        assert run["train_seconds"] == summary["seconds"]["train"]
    rows["a"] = rows["a"]._replace(config=dataclasses.replace(CONFIG, dropout=0.1))
    runner._run(SCRIPT, rows, row=("a",), out=Path("other"))
    found = json.loads(results.read_text())
    assert [run["seed"] for run in found["a"]["runs"]] == [0]
    assert found["a"]["config"]["dropout"] == 0.1


def test_choices_are_made_on_training_images(results, monkeypatch, capsys):
    """And nothing is kept of them."""
    seen = []
    real = fit.fit

    def small(config, *arguments, **options):
        seen.append(config.validation_images)
        return real(dataclasses.replace(config, validation_images=400), *arguments, **options)

    monkeypatch.setattr(fit, "fit", small)
    runner._run(SCRIPT, {"a": Experiment("", "", CONFIG)}, validate=True)
    assert seen == [10_000]
    record = rundir.read_metrics(Path("runs") / "some_2020" / "a-0-2-validate")[-1]
    mean = np.mean(record["validation_error_percent"])
    assert f"{mean:.3f} +/- " in capsys.readouterr().out
    assert not results.exists()


def test_a_row_that_is_not_there_is_refused(results):
    with pytest.raises(SystemExit, match=r"there is no row c; there are \['a'\]"):
        runner._run(SCRIPT, {"a": Experiment("", "", CONFIG)}, row=("c",))


def test_the_last_weights_of_tang_and_no_others_have_a_cost():
    """A step without any gradient shrinks them by the rate times the cost."""
    config = dataclasses.replace(tang_2013.CONFIG, dataset="digits", hidden=(8, 8), momentum=0.0)
    recipe = tang_2013.svm(
        config, config.hparams, DataSpec((8, 8), 10, 1437), train.cross_entropy, noise=0.0
    )
    params, _ = recipe.model.init(prng.key(0))
    none = jax.tree.map(np.zeros_like, params)
    updates, _ = recipe.optimizer.update(none, recipe.optimizer.init(params), params)
    last = updates.pop("Dense_2")
    np.testing.assert_allclose(
        last["kernel"], -0.1 * 0.001 * params["Dense_2"]["kernel"], rtol=1e-5
    )
    assert not jax.tree.reduce(lambda some, leaf: some | leaf.any(), (updates, last["bias"]), False)


KEPT = {
    "config": runner.fingerprint(Experiment("", "", CONFIG)),
    "runs": [
        {"seed": 0, "test_errors": [50, 60], "test_errors_of_last_weights": [51, 71],
         "test_errors_of_ensemble": 40, "train_seconds": 120.0, "device": "some CPU"},
        {"seed": 2, "test_errors": [70], "test_errors_of_last_weights": [70],
         "train_seconds": 240.0, "device": "some GPU"},
    ],
}  # fmt: skip


def test_a_line_has_the_mean_and_spread_of_all_seeds():
    told = table.line("net", Experiment("0.7", "", CONFIG), KEPT, "some_2020")
    assert told == (
        "| net | 0.7 | 0.600 +/- 0.100 | 3 | last weights 0.640 +/- 0.113; ensemble of 2 0.40 | "
        "2.0 min, some CPU, some GPU |"
    )
    alone = {**KEPT, "runs": KEPT["runs"][1:]}
    told = table.line("net", Experiment("", "", CONFIG), alone, "some_2020")
    assert told.startswith("| net | ours | 0.700 | 1 | last weights 0.700 | 4.0 min")
    quick = {**KEPT, "runs": [{**KEPT["runs"][1], "train_seconds": 9.6}]}
    assert "| 10 s, " in table.line("net", Experiment("", "", CONFIG), quick, "some_2020")
    assert "not yet run in full" in table.line("net", Experiment("", "", CONFIG), None, "some_2020")


@pytest.mark.parametrize(
    "changed",
    [
        Experiment("0.7", "", dataclasses.replace(CONFIG, epochs=2)),
        Experiment("0.7", "", CONFIG, partial(default_recipe, spec=3)),
    ],
)
def test_a_row_of_another_config_or_recipe_is_refused(changed):
    with pytest.raises(InputError, match=r'another config.*some_2020\.py --row "net"'):
        table.line("net", changed, KEPT, "some_2020")


def test_a_field_that_is_newer_than_a_row_had_its_default():
    older = {name: value for name, value in KEPT["config"].items() if name != "label_smoothing"}
    kept = {**KEPT, "config": older}
    table.line("net", Experiment("0.7", "", CONFIG), kept, "some_2020")
    changed = dataclasses.replace(CONFIG, label_smoothing=0.1)
    with pytest.raises(InputError, match="another config"):
        table.line("net", Experiment("0.7", "", changed), kept, "some_2020")


def test_seeds_and_the_place_of_the_data_are_no_other_config():
    elsewhere = dataclasses.replace(CONFIG, seed=4, seeds=9, data_dir=Path("there"))
    table.line("net", Experiment("0.7", "", elsewhere), KEPT, "some_2020")


def loss(): ...


def test_a_recipe_is_named_alike_in_every_process():
    """The text of a function has its place in memory."""
    name = recipe_name(partial(default_recipe, loss, noise=1.0, words="a"))
    assert name == "default_recipe(loss, noise=1.0, words='a')"
    for file in table.FILES:
        for experiment in importlib.import_module(file).ROWS.values():
            assert " at 0x" not in recipe_name(experiment.recipe)


@pytest.mark.parametrize(("seed", "seeds"), [(0, 0), (-1, None)])
def test_seeds_out_of_range_are_refused_in_a_line(seed, seeds, results):
    with pytest.raises(SystemExit, match=r"^--seeds? \S+ cannot be used"):
        runner._run(SCRIPT, {"a": Experiment("", "", CONFIG)}, seed=seed, seeds=seeds)


def test_a_row_that_is_stopped_says_how_it_goes_on(results, monkeypatch, capsys):
    """With the exit code of its signal, here SIGTERM's."""

    def stopped(*_, **__):
        raise Interrupted(15, Path("run"), "stopped after epoch 1 of 2")

    monkeypatch.setattr(fit, "fit", stopped)
    with pytest.raises(SystemExit) as caught:
        runner._run(SCRIPT, {"a": Experiment("", "", CONFIG)})
    assert caught.value.code == 143
    assert capsys.readouterr().err == "stopped after epoch 1 of 2; the same command goes on\n"


def test_what_was_run_in_full_is_claimed_at_the_head_of_its_file():
    for file in table.FILES:
        for row in runner.read_results(Path(f"{file}.py")).values():
            errors = [count for run in row["runs"] for count in run["test_errors"]]
            assert table.percent(errors) in importlib.import_module(file).__doc__


def test_the_readme_has_the_table_of_the_results():
    assert table.readme() == (table.HERE / "README.md").read_text()
