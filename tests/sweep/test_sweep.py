import csv
import dataclasses
import json
import shlex
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest

from mnist_jax import population, train
from mnist_jax.__main__ import parse
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec, Examples
from mnist_jax.errors import InputError
from mnist_jax.fit import fit
from mnist_jax.population import Setup
from mnist_jax.runs import rundir
from mnist_jax.sweep import plots as sweep_plots
from mnist_jax.sweep import trials
from mnist_jax.sweep.run import sweep
from mnist_jax.sweep.space import Range
from mnist_jax.sweep.trials import make_trials

SMALL = Config(dataset="digits", hidden=(16,), epochs=3, batch_size=32, seeds=2)
SPACE = {"learning_rate": (0.03, 0.3), "hidden": ((16,), (8, 8)), "dropout": (0.0, 0.5)}

VALUES = (
    {"learning_rate": (0.1, 0.02), "momentum": (0.9, 0.5), "weight_decay": (0.0, 1e-2)},
    {"max_norm": (1.0, 2.0), "ema_decay": (0.3, 0.6)},
    {"input_dropout": (0.2, 0.0), "dropout": (0.0, 0.5), "label_smoothing": (0.0, 0.2)},
    {"input_noise": (0.2, 0.0), "noise": (0.0, 0.3)},
    {"rotation_degrees": (15.0, 0.0), "shear_degrees": (0.0, 10.0), "scale": (0.1, 0.0)},
    {"shift_pixels": (0.0, 1.0), "elastic_alpha_pixels": (10.0, 0.0)},
)


def results(folder):
    """The rows of a sweep's table by trial, the best first."""
    return {row["trial"]: row for row in json.loads((folder / "table.json").read_text())}


def test_networks_that_train_one_after_the_other_have_the_bits_of_their_runs(tmp_path):
    """The loss of the last epoch depends on every parameter after the one before."""
    config = Config(dataset="digits", hidden=(512, 1024), epochs=2)
    space = {"dropout": (0.2, 0.3)}
    for row in results(sweep(config, space, out=tmp_path / "sweep")).values():
        own = dataclasses.replace(config, dropout=row["dropout"], validation_images=287)
        last = rundir.read_metrics(fit(own, tmp_path / str(row["trial"])).path)[-1]
        assert [row["train_loss"]] == last["train_loss"]
        # Several networks are evaluated at once, where rounding differs.
        assert row["validation_loss"] == pytest.approx(last["validation_loss"][0], rel=1e-6)


def test_every_hyperparameter_is_tested():
    assert sorted(name for values in VALUES for name in values) == sorted(Hparams._fields)


@pytest.mark.parametrize("values", VALUES)
def test_networks_of_one_program_train_as_their_configs_say(values, digits):
    """Each is what its own config alone trains, whatever the other network does."""
    examples = jax.device_put(Examples(*(array[:200] for array in digits.train)))
    config = Config(hidden=(8,), epochs=2, batch_size=20, batch_norm=True, seed=5)
    changes = [{name: pair[i] for name, pair in values.items()} for i in (0, 1)]
    configs = [dataclasses.replace(config, **fields) for fields in changes]
    dataset = digits._replace(train=examples)
    pair = make_trials(config, changes, dataset, 200, train.default_recipe)
    setup = pair[0].setup
    assert pair[1].setup == setup
    members = population.members([5, 5], [own.hparams for own in configs])
    states = population.init(setup, members)
    with jax.checking_leaks():
        states, metrics = population.train_epoch(setup, states, members, examples)
    states = population.recalibrate(setup, states, members, examples.images)

    @partial(jax.jit, static_argnames="config")
    def train_alone(key, examples, config):
        recipe = train.default_recipe(config, config.hparams, DataSpec((8, 8), 10, 200))
        state = train.init(recipe, key)
        state, metrics = train.train_epoch(recipe, state, examples, key, 20)
        return train.recalibrate(recipe, state, examples.images, key), metrics

    for i, own in enumerate(configs):
        solo, solo_metrics = train_alone(members.keys[i], examples, own)
        member = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), member, solo
        )
        np.testing.assert_allclose(metrics.loss[i], solo_metrics.loss, rtol=1e-5)
    kernels = np.asarray(states.eval_params["Dense_0"]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4  # it makes a difference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sweep(SMALL, SPACE, out=tmp_path_factory.mktemp("sweeps") / "small")


def test_each_row_is_the_run_of_its_config(folder, tmp_path, digits):
    rows = results(folder)
    assert len(rows) == 8
    for number in (0, 5):
        row = rows[number]
        changes = {**{name: row[name] for name in SPACE}, "hidden": tuple(row["hidden"])}
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
    config = parse(args).keywords["config"]
    expected = {name: table[0][name] for name in SPACE} | {"hidden": tuple(table[0]["hidden"])}
    assert config == dataclasses.replace(SMALL, **expected)
    assert (summary["train_images"], summary["validation_images"]) == (1150, 287)


def test_the_table_is_also_a_csv_file(folder):
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    table = json.loads((folder / "table.json").read_text())
    assert [int(row["trial"]) for row in rows] == [row["trial"] for row in table]
    assert {row["hidden"] for row in rows} == {"16", "8x8"}
    assert rows[0]["validation_errors"] == " ".join(map(str, table[0]["validation_errors"]))


def test_test_images_make_no_difference(digits, tmp_path):
    blind = digits._replace(test=Examples(digits.test.images * 0, digits.test.labels * 0))
    space = {"learning_rate": (0.03, 0.3)}
    seeing, unseeing = (
        results(sweep(SMALL, space, out=tmp_path / name, dataset=dataset))
        for name, dataset in (("seeing", digits), ("blind", blind))
    )
    assert seeing == unseeing


def test_a_sweep_is_a_pure_function(folder, tmp_path):
    assert results(sweep(SMALL, SPACE, out=tmp_path / "again")) == results(folder)


def test_what_memory_does_not_hold_is_trained_in_turn(folder, tmp_path, monkeypatch, capsys):
    counts = []
    compile_programs = population.compile_programs

    def counting(setup, members, *shapes):
        counts.append(len(members.keys))
        return compile_programs(setup, members, *shapes)

    monkeypatch.setattr(population, "compile_programs", counting)
    images, labels = np.zeros((1150, 8, 8), np.uint8), np.zeros(1150, np.uint8)
    few = Examples(images[:287], labels[:287])
    setup = Setup(SMALL, DataSpec((8, 8), 10, 1150))
    six = population.members(range(6), [SMALL.hparams] * 6)
    bytes_of_six = compile_programs(setup, six, Examples(images, labels), few)
    monkeypatch.setattr(trials, "free_bytes", lambda: bytes_of_six)
    out = sweep(SMALL, SPACE, out=tmp_path / "small")
    assert min(counts) < 8 == max(counts)
    assert "memory holds" in capsys.readouterr().err
    rows, expected = results(out), results(folder)
    for number, row in rows.items():
        loss = expected[number]["validation_loss"]
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("has_memory", [True, False])
def test_halving_trains_fewer_for_longer(folder, tmp_path, monkeypatch, has_memory):
    if not has_memory:  # the states of a rung are not kept, but trained again
        monkeypatch.setattr(trials, "free_bytes", lambda: 2**40)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    out = sweep(SMALL, SPACE, halving=True, out=tmp_path / "halving")
    rows, expected = results(out), results(folder)
    assert [row["epochs"] for row in rows.values()] == [3, 3, 3, 3, 2, 2, 2, 2]
    best = next(iter(rows.values()))
    assert best["validation_errors"] == expected[best["trial"]]["validation_errors"]
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == 8 + 4


def test_a_sweep_that_was_stopped_resumes(folder, tmp_path):
    out = tmp_path / "sweep"
    out.mkdir()
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (out / "trials.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # half a line
    (out / "sweep.json").write_text((folder / "sweep.json").read_text())
    sweep(SMALL, SPACE, out=out, resume=True)
    rows, expected = results(out), results(folder)
    assert rows.keys() == expected.keys()
    for number, row in rows.items():
        loss = expected[number]["validation_loss"]
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)
    for line in lines[:3]:
        assert json.loads(line) == rows[json.loads(line)["trial"]]
    with (out / "table.csv").open() as stream:
        assert {row["hidden"] for row in csv.DictReader(stream)} == {"16", "8x8"}


def test_a_signal_stops_after_the_epoch_and_the_error_says_how_to_resume(tmp_path):
    out = tmp_path / "sweep"
    args = f"sweep --dataset digits --hidden 16 --epochs 100000 --dropout 0 0.5 --out {out}"
    command = [sys.executable, "-m", "mnist_jax", *args.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        assert "2 configurations in 1 program" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert errors.rstrip().endswith(f"mnist-jax {args} --resume")
    assert "Traceback" not in errors


def test_a_finished_sweep_stays_as_it_is(folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sweep(SMALL, SPACE, out=folder, resume=True)
    assert "already finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "space", "message"),
    [
        ({"seeds": 1}, SPACE, "other options: seeds was 2 and is 1"),
        ({}, {"dropout": (0.0, 0.1)}, "other options: tried differs"),
    ],
)
def test_another_sweep_is_not_resumed(folder, change, space, message):
    with pytest.raises(InputError, match=message):
        sweep(dataclasses.replace(SMALL, **change), space, out=folder, resume=True)


def test_a_folder_in_use_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"already exists; .*--out, .*--resume"):
        sweep(SMALL, SPACE, out=folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"is not a sweep; .*--out"):
        sweep(SMALL, SPACE, out=tmp_path)
    with pytest.raises(InputError, match=r"is not a run; .*--out"):
        fit(SMALL, folder, resume=True)
    with pytest.raises(InputError, match="needs --out SWEEP"):
        sweep(SMALL, SPACE, resume=True)
    with pytest.raises(InputError, match=r"--halving .*--epochs"):
        sweep(SMALL, {"epochs": (1, 2)}, halving=True)


@pytest.mark.parametrize(
    ("space", "samples"),
    [
        ({"batch_size": (32, 5000)}, 0),
        ({"warmup_steps": (0, 105)}, 0),
        ({"dropout": (0.0, 1.5)}, 0),
        ({"dropout": Range(1.0, 2.0, False)}, 3),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(tmp_path, space, samples):
    with pytest.raises(InputError, match="--" + next(iter(space)).replace("_", "-")):
        sweep(SMALL, space, samples=samples, out=tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_compared_with_the_batches_of_the_sweep(tmp_path):
    """And not with the default batch, which is larger."""
    config = Config(dataset="digits", hidden=(4,), epochs=1, shard_images=64)
    out = sweep(config, {"batch_size": (32, 64)}, out=tmp_path / "fits")
    assert {row["batch_size"] for row in results(out).values()} == {32, 64}
    with pytest.raises(InputError, match="--shard-images 64 cannot be used"):
        sweep(config, {"batch_size": (32, 100)}, out=tmp_path / "does not fit")


def test_a_network_that_diverges_is_the_last(tmp_path):
    space = {"learning_rate": (1e30, 0.1)}
    table = list(results(sweep(SMALL, space, out=tmp_path / "sweep")).values())
    assert [row["learning_rate"] for row in table] == [0.1, 1e30]
    assert table[1]["validation_loss"] is None


def test_the_figures_show_every_configuration(folder):
    table = json.loads((folder / "table.json").read_text())
    assert {path.name for path in (folder / "figures").iterdir()} == {"marginals.png"}
    for row in table:
        row["hidden"] = tuple(row["hidden"])
    figure = sweep_plots.marginals(table, SPACE)
    for axes, name in zip(figure.axes, SPACE, strict=True):
        assert axes.get_xlabel() == name.replace("_", " ")
        points = np.concatenate([scatter.get_offsets() for scatter in axes.collections])
        errors = sorted(row["validation_error_percent_mean"] for row in table)
        np.testing.assert_allclose(np.sort(points[:, 1]), errors)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["8x8", "16"]


def test_a_heat_map_has_each_error_in_its_place(tmp_path):
    space = {"learning_rate": (0.3, 0.03), "dropout": (0.0, 0.5, 0.2)}
    out = sweep(dataclasses.replace(SMALL, epochs=1, seeds=1), space, out=tmp_path / "sweep")
    assert (out / "figures" / "heat_map.png").exists()
    table = json.loads((out / "table.json").read_text())
    axes, *_ = sweep_plots.heat_map(table, "learning_rate", "dropout").axes
    errors = np.asarray(axes.images[0].get_array())
    assert errors.shape == (3, 2)
    for row in table:
        place = [0.0, 0.2, 0.5].index(row["dropout"]), [0.03, 0.3].index(row["learning_rate"])
        assert errors[place] == row["validation_error_percent_mean"]


def test_a_range_has_no_heat_map(tmp_path):
    space = {"learning_rate": Range(0.01, 1.0, True), "dropout": (0.0, 0.5)}
    small = dataclasses.replace(SMALL, epochs=1, seeds=1)
    out = sweep(small, space, samples=3, out=tmp_path / "sweep")
    assert {path.name for path in (out / "figures").iterdir()} == {"marginals.png"}
