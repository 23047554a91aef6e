import csv
import dataclasses
import json
import shlex
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import population
from mnist_jax.cli import _parse
from mnist_jax.config import VARIABLE, Config, InputError, Varied
from mnist_jax.data import Examples
from mnist_jax.fit import fit
from mnist_jax.parallel import devices
from mnist_jax.runs import rundir
from mnist_jax.sweep import plots as sweep_plots
from mnist_jax.sweep import trials
from mnist_jax.sweep.run import sweep
from mnist_jax.sweep.search import Range
from mnist_jax.train import default_recipe, init, train_epoch, varied

SMALL = Config(dataset="digits", hidden=(16,), epochs=3, batch_size=32, seeds=2)
AXES = {"learning_rate": (0.03, 0.3), "hidden": ((16,), (8, 8)), "dropout": (0.0, 0.5)}

VALUES = (
    {"learning_rate": (0.1, 0.02), "momentum": (0.9, 0.5), "weight_decay": (0.0, 1e-2)},
    {"max_norm": (1.0, 2.0), "ema_decay": (0.3, 0.6)},
    {"input_dropout": (0.2, 0.0), "dropout": (0.0, 0.5), "label_smoothing": (0.0, 0.2)},
    {"input_noise": (0.2, 0.0), "noise": (0.0, 0.3)},
    {"rotation_degrees": (15.0, 0.0), "shear_degrees": (0.0, 10.0), "scale": (0.1, 0.0)},
    {"shift_pixels": (0.0, 1.0), "elastic_alpha_pixels": (10.0, 0.0)},
)


def results(folder):
    """The rows of a sweep by trial, without what depends on the machine's mood."""
    return {row["trial"]: row for row in json.loads((folder / "table.json").read_text())}


def test_networks_that_train_one_after_the_other_have_the_bits_of_their_runs(tmp_path):
    config = Config(dataset="digits", hidden=(512, 1024), epochs=1)
    axes = {"dropout": (0.2, 0.3)}
    for row in results(sweep(config, axes, out=tmp_path / "sweep")).values():
        same = {name: row[name] for name in axes}
        own = dataclasses.replace(config, **same, validation_images=287)
        (record,) = rundir.read_metrics(fit(own, tmp_path / str(row["trial"])).path)
        assert [row["train_loss"]] == record["train_loss"]
        # Evaluated side by side, where rounding differs.
        assert row["validation_loss"] == pytest.approx(record["validation_loss"][0], rel=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sweep(SMALL, AXES, out=tmp_path_factory.mktemp("sweeps") / "small")


def test_every_variable_number_is_tested():
    assert sorted(name for numbers in VALUES for name in numbers) == sorted(VARIABLE)


@pytest.mark.parametrize("values", VALUES)
def test_networks_of_one_program_differ_in_numbers_as_their_configs_do(values, digits):
    """Each is what its own config alone trains, whatever the other network does."""
    examples = jax.device_put(Examples(*(array[:200] for array in digits.train)))
    config = Config(hidden=(8,), epochs=2, batch_size=20, batch_norm=True)
    configs = [
        dataclasses.replace(config, **{name: both[place] for name, both in values.items()})
        for place in (0, 1)
    ]
    recipe = varied(default_recipe, configs[0], 64, 10, 200)
    keys = population.keys([5, 5])
    numbers = {name: np.array(both, np.float32) for name, both in values.items()}
    states = population.init(recipe, keys)._replace(numbers=numbers)
    with jax.checking_leaks():
        states, metrics = population.train_epoch(recipe, states, examples, keys, 20, 1)
    states = population.settle(recipe, states, examples.images, keys)
    for place, own in enumerate(configs):
        solo_recipe = default_recipe(own, 64, 10, 200)
        solo, solo_metrics = train_epoch(
            solo_recipe, init(solo_recipe, keys[place]), examples, keys[place], 20
        )
        solo_states = jax.tree.map(lambda leaf: leaf[None], solo)
        solo = population.settle(solo_recipe, solo_states, examples.images, keys[place : place + 1])
        member = jax.tree.map(lambda leaf, place=place: leaf[place], states._replace(numbers=()))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b[0], rtol=2e-4, atol=2e-6), member, solo
        )
        np.testing.assert_allclose(metrics.loss[place], solo_metrics.loss, rtol=1e-5)
    weights = np.asarray(states.weights["Dense_0"]["kernel"])
    assert np.abs(weights[0] - weights[1]).max() > 1e-4  # it makes a difference


def test_each_row_is_the_run_of_its_config(folder, tmp_path, digits):
    rows = results(folder)
    assert len(rows) == 8
    for number in (0, 5):
        row = rows[number]
        changes = {**{name: row[name] for name in AXES}, "hidden": tuple(row["hidden"])}
        config = dataclasses.replace(SMALL, validation_images=287, **changes)
        run = fit(config, tmp_path / str(number))
        last = rundir.read_metrics(run.path)[-1]
        errors = [round(percent * 287 / 100) for percent in last["validation_error_percent"]]
        assert row["validation_errors"] == errors
        assert row["validation_error_percent_mean"] == pytest.approx(100 * np.mean(errors) / 287)
        assert row["validation_loss"] == pytest.approx(np.mean(last["validation_loss"]), rel=1e-4)
        assert row["train_loss"] == pytest.approx(np.mean(last["train_loss"]), rel=1e-4)


def test_the_best_comes_first_and_its_command_trains_it(folder):
    table = json.loads((folder / "table.json").read_text())
    means = [row["validation_error_percent_mean"] for row in table]
    assert means == sorted(means)
    summary = rundir.read_summary(folder)
    assert summary["best"] == table[0]
    program, *args = shlex.split(summary["command"])
    assert program == "mnist-jax"
    config = _parse(args).config
    expected = {name: table[0][name] for name in AXES} | {"hidden": tuple(table[0]["hidden"])}
    assert config == dataclasses.replace(SMALL, **expected)
    assert (summary["train_images"], summary["validation_images"]) == (1150, 287)


def test_the_table_is_written_for_people_too(folder):
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    table = json.loads((folder / "table.json").read_text())
    assert [int(row["trial"]) for row in rows] == [row["trial"] for row in table]
    assert {row["hidden"] for row in rows} == {"16", "8x8"}
    assert rows[0]["validation_errors"] == " ".join(map(str, table[0]["validation_errors"]))


def test_no_test_image_is_looked_at(digits, tmp_path):
    blind = digits._replace(test=Examples(digits.test.images * 0, digits.test.labels * 0))
    axes = {"learning_rate": (0.03, 0.3)}
    found = [
        results(sweep(SMALL, axes, out=tmp_path / name, dataset=dataset))
        for name, dataset in (("seeing", digits), ("blind", blind))
    ]
    assert found[0] == found[1]


def test_a_sweep_is_a_pure_function(folder, tmp_path):
    assert results(sweep(SMALL, AXES, out=tmp_path / "again")) == results(folder)


def test_what_memory_does_not_hold_is_trained_in_turn(folder, tmp_path, monkeypatch, capsys):
    asked = []
    needed = population.compile_ahead

    def compile_ahead(recipe, keys, *args):
        asked.append(len(keys))
        return needed(recipe, keys, *args)

    monkeypatch.setattr(population, "compile_ahead", compile_ahead)
    keys = population.keys(range(6))
    recipe = default_recipe(dataclasses.replace(SMALL), 64, 10, 1150)
    images, labels = np.zeros((1150, 8, 8), np.uint8), np.zeros(1150, np.uint8)
    few = Examples(images[:287], labels[:287])
    _, bytes_of_six = needed(recipe, keys, Examples(images, labels), few, 32)
    monkeypatch.setattr(devices, "free_bytes", lambda: bytes_of_six)
    out = sweep(SMALL, AXES, out=tmp_path / "small")
    assert min(asked) < 8 == max(asked)
    assert "memory holds" in capsys.readouterr().err
    rows, whole = results(out), results(folder)
    for number, row in rows.items():
        assert row["validation_loss"] == pytest.approx(whole[number]["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_halving_trains_fewer_for_longer(folder, tmp_path, monkeypatch, kept):
    if not kept:  # a host without memory trains anew
        monkeypatch.setattr(trials, "_bytes", lambda _: 1e18)
    out = sweep(SMALL, AXES, halving=True, out=tmp_path / "halving")
    rows, whole = results(out), results(folder)
    assert [row["epochs"] for row in rows.values()] == [3, 3, 3, 3, 2, 2, 2, 2]
    best = next(iter(rows.values()))
    assert best["validation_errors"] == whole[best["trial"]]["validation_errors"]
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == 8 + 4


def test_a_sweep_that_was_stopped_goes_on(folder, tmp_path):
    out = tmp_path / "sweep"
    out.mkdir()
    kept = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (out / "trials.jsonl").write_text("".join(kept[:3]) + kept[3][:20])  # half a line
    (out / "sweep.json").write_text((folder / "sweep.json").read_text())
    sweep(SMALL, AXES, out=out, resume=True)
    rows, whole = results(out), results(folder)
    assert rows.keys() == whole.keys()
    for number, row in rows.items():
        assert row["validation_loss"] == pytest.approx(whole[number]["validation_loss"], rel=1e-4)
    for line in kept[:3]:
        assert json.loads(line) == rows[json.loads(line)["trial"]]


def test_a_signal_ends_the_epoch_and_names_the_way_back(tmp_path):
    out = tmp_path / "sweep"
    args = f"sweep --dataset digits --hidden 16 --epochs 100000 --dropout 0 0.5 --out {out}"
    command = [sys.executable, "-m", "mnist_jax", *args.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        assert "2 configurations in 1 program" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143
    assert "go on with: mnist-jax sweep" in said
    assert said.rstrip().endswith(f"--out {out} --resume")


def test_a_finished_sweep_stays_as_it_is(folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sweep(SMALL, AXES, out=folder, resume=True)
    assert "is finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "axes", "message"),
    [
        ({"seeds": 1}, AXES, "is another sweep: seeds was 2 and is 1"),
        ({}, {"dropout": (0.0, 0.1)}, "is another sweep: other configurations are tried"),
    ],
)
def test_another_sweep_is_not_gone_on_with(folder, change, axes, message):
    with pytest.raises(InputError, match=message):
        sweep(dataclasses.replace(SMALL, **change), axes, out=folder, resume=True)


def test_a_folder_in_use_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="exists already; choose another --out, or add --resume"):
        sweep(SMALL, AXES, out=folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists already and is no sweep"):
        sweep(SMALL, AXES, out=tmp_path)
    with pytest.raises(InputError, match="exists already and is no run"):
        fit(SMALL, folder, resume=True)
    with pytest.raises(InputError, match="needs --out SWEEP"):
        sweep(SMALL, AXES, resume=True)
    with pytest.raises(InputError, match="--halving compares after the same epochs"):
        sweep(SMALL, {"epochs": (1, 2)}, halving=True)


@pytest.mark.parametrize("axes", [{"batch_size": (32, 5000)}, {"warmup_steps": (0, 105)}])
def test_what_does_not_fit_the_data_leaves_nothing_behind(tmp_path, axes):
    with pytest.raises(InputError, match="--" + next(iter(axes)).replace("_", "-")):
        sweep(SMALL, axes, out=tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_diverges_is_the_last(tmp_path):
    axes = {"learning_rate": (1e30, 0.1)}
    table = list(results(sweep(SMALL, axes, out=tmp_path / "sweep")).values())
    assert [row["learning_rate"] for row in table] == [0.1, 1e30]
    assert table[1]["validation_loss"] is None


def test_a_config_of_arrays_is_not_checked_and_not_kept():
    config = Varied(Config(), dropout=jnp.float32(2))
    assert float(config.dropout) == 2
    assert config.hidden == Config().hidden


def test_the_figures_show_every_configuration(folder):
    table = json.loads((folder / "table.json").read_text())
    assert {path.name for path in (folder / "figures").iterdir()} == {"marginals.png"}
    figure = sweep_plots.marginals(table, list(AXES))
    for axes, name in zip(figure.axes, AXES, strict=True):
        assert axes.get_xlabel() == name.replace("_", " ")
        shown = np.concatenate([scatter.get_offsets() for scatter in axes.collections])
        errors = sorted(row["validation_error_percent_mean"] for row in table)
        np.testing.assert_allclose(np.sort(shown[:, 1]), errors)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["8x8", "16"]


def test_a_heat_map_has_each_error_in_its_place(tmp_path):
    axes = {"learning_rate": (0.3, 0.03), "dropout": (0.0, 0.5, 0.2)}
    out = sweep(dataclasses.replace(SMALL, epochs=1, seeds=1), axes, out=tmp_path / "sweep")
    assert (out / "figures" / "heat_map.png").exists()
    table = json.loads((out / "table.json").read_text())
    (axes_, *_) = sweep_plots.heat_map(table, "learning_rate", "dropout").axes
    shown = np.asarray(axes_.images[0].get_array())
    assert shown.shape == (3, 2)
    for row in table:
        place = [0.0, 0.2, 0.5].index(row["dropout"]), [0.03, 0.3].index(row["learning_rate"])
        assert shown[place] == row["validation_error_percent_mean"]


def test_a_range_has_no_heat_map(tmp_path):
    axes = {"learning_rate": Range(0.01, 1.0, True), "dropout": (0.0, 0.5)}
    small = dataclasses.replace(SMALL, epochs=1, seeds=1)
    out = sweep(small, axes, samples=3, out=tmp_path / "sweep")
    assert {path.name for path in (out / "figures").iterdir()} == {"marginals.png"}
