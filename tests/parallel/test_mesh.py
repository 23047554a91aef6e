"""Meshes, on eight CPU devices that XLA simulates in a process of their own."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mnist_jax.errors import InputError
from mnist_jax.parallel import mesh

TRAIN = """
import importlib, json, sys
from pathlib import Path
import jax, numpy as np
from mnist_jax import population
from mnist_jax.config import Config
from mnist_jax.runs import rundir

fit = importlib.import_module("mnist_jax.fit")
fit.save_figures = lambda *_: []  # which takes longest
assert jax.device_count() == 8
folder = Path(sys.argv[1])
options = dict(dataset="digits", epochs=2, batch_size=32, seeds=8, validation_images=100)
configs = {
    "plain": Config(hidden=(512, 512), **{**options, "epochs": 1}),  # trained one after the other
    "rich": Config(
        hidden=(24,), batch_norm=True, rotation_degrees=9.0, noise=0.1, ema_decay=0.9, **options
    ),
}
compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
)
train_epoch = population.train_epoch

def shardings(states):
    return [(str(leaf.sharding), len(leaf.sharding.device_set)) for leaf in jax.tree.leaves(states)]

class Spy:
    lower = train_epoch.lower
    def __call__(self, setup, states, networks, examples):
        compiled, before = len(compilations), shardings(states)
        states, metrics = train_epoch(setup, states, networks, examples)
        late.append(len(compilations) - compiled)
        stays.append(before == shardings(states))
        devices.append(len(states.step.sharding.device_set))
        return states, metrics

population.train_epoch = Spy()
shapes = {"plain": ((1, 1), (8, 1), None), "rich": ((1, 1), (4, 2), (1, 8))}
runs = {}
for kind, config in configs.items():
    for shape in shapes[kind]:
        late, stays, devices = [], [], []
        run = fit.fit(config, folder / f"{kind}-{shape}", mesh=shape)
        params = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.states.params)])
        np.save(folder / f"{kind}-{shape}.npy", params)
        environment = rundir.read_config(run.path)["environment"]
        runs[f"{kind}-{shape}"] = {
            "metrics": rundir.read_metrics(run.path),
            "summary": rundir.read_summary(run.path),
            "compiled_late": sum(late), "shardings_stay": all(stays), "devices": devices[-1],
            "mesh": environment.get("mesh"),
        }
(folder / "runs.json").write_text(json.dumps(runs))
"""


def on_eight(code, *args, **options):
    """Runs Python code where JAX finds eight devices."""
    flags = "--xla_force_host_platform_device_count=8"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with the parameters of each run, and what the script says of them."""
    folder = tmp_path_factory.mktemp("meshes")
    done = on_eight(TRAIN, folder)
    assert not done.returncode, done.stderr[-3000:]
    return folder, json.loads((folder / "runs.json").read_text())


@pytest.mark.parametrize("shape", ["(4, 2)", "(1, 8)"])
def test_a_result_does_not_depend_on_the_mesh(trained, shape):
    """To the rounding that the README states."""
    folder, runs = trained
    one, many = runs["rich-(1, 1)"], runs[f"rich-{shape}"]
    for expected, metrics in zip(one["metrics"], many["metrics"], strict=True):
        for name in ("train_loss", "validation_loss"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)
    for name in ("test_errors", "dataset", "steps"):
        assert many["summary"][name] == one["summary"][name]
    params = [np.load(folder / f"rich-{name}.npy") for name in ("(1, 1)", shape)]
    np.testing.assert_allclose(*params, atol=1e-4)


def test_where_no_batch_is_sharded_every_bit_is_the_same(trained):
    folder, _ = trained
    one, eight, default = (
        np.load(folder / f"plain-{name}.npy") for name in ("(1, 1)", "(8, 1)", "None")
    )
    np.testing.assert_array_equal(eight, one)
    np.testing.assert_array_equal(default, one)


def test_training_compiles_nothing_and_keeps_the_shardings(trained):
    """The programs are compiled before, for the shardings that there are."""
    _, runs = trained
    for name, run in runs.items():
        assert run["compiled_late"] == 0, name
        assert run["shardings_stay"], name
        assert run["devices"] == (1 if "(1, 1)" in name else 8), name


def test_a_run_records_its_mesh(trained):
    _, runs = trained
    assert runs["plain-(1, 1)"]["mesh"] is None
    assert runs["rich-(4, 2)"]["mesh"] == "4x2"
    assert runs["plain-None"]["mesh"] == "8x1"
    assert runs["plain-None"]["summary"]["device"].startswith("8 x CPU")


COMMUNICATION = """
import json
from mnist_jax import data, population
from mnist_jax.config import Config
from mnist_jax.data import DataSpec
from mnist_jax.parallel import mesh

digits, counts = data.load("digits"), {}
config = Config(dataset="digits", seeds=8)
setup = population.Setup(config, DataSpec((8, 8), 10, 1437))
for shape in ((8, 1), (1, 8)):
    with mesh.use_mesh(shape):
        members = population.members_of(config)
        states = mesh.shard(population.init(setup, members))
        args = setup, states, members, mesh.replicate(digits.train)
        text = population.train_epoch.lower(*args).compile().as_text()
    words = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "infeed", "outfeed")
    counts[shape[1]] = {word: text.count(f" {word}(") for word in words}
print(json.dumps(counts))
"""


def test_networks_need_no_communication_and_batches_only_a_sum_of_gradients():
    counts = json.loads(on_eight(COMMUNICATION, check=True).stdout)
    assert not any(counts["1"].values())
    assert counts["8"]["all-reduce"] > 0
    assert not counts["8"]["infeed"] + counts["8"]["outfeed"]  # nor with the host


@pytest.mark.parametrize(
    ("networks", "batch_size", "shape"),
    [
        *((8, 128, (8, 1)), (4, 128, (4, 2)), (12, 128, (4, 2)), (1, 128, (1, 8))),
        *((7, 128, (1, 8)), (1, 100, (1, 4)), (3, 7, (1, 1)), (1000, 128, (8, 1))),
    ],
)
def test_the_default_mesh_uses_as_many_devices_as_it_can(networks, batch_size, shape, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert mesh.mesh_shape(networks, batch_size) == shape
    padded = mesh.mesh_shape(networks, batch_size, padded=True)
    assert padded == ((8, 1) if networks > 8 else shape)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ((4, 4), "--mesh 4x4 cannot be used: it takes at most the 8 devices here"),
        ((4, 1), "first a number that divides the 6 networks"),
        ((2, 3), "last a number that divides --batch-size 128"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(requested, message, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(InputError, match=message):
        mesh.mesh_shape(6, 128, requested)


def test_padded_networks_fit_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert mesh.mesh_shape(6, 128, (4, 1), padded=True) == (4, 1)


def test_jax_0_7_shards_networks_or_batches(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(mesh, "SHARDS_BOTH_AXES", False)
    shapes = [mesh.mesh_shape(networks, 128) for networks in (1, 4, 8)]
    assert shapes == [(1, 8), (4, 1), (8, 1)]
    with pytest.raises(InputError, match="a 1 on one side with this version of JAX"):
        mesh.mesh_shape(4, 128, (4, 2))


@pytest.mark.parametrize("text", ["4", "4x", "0x2", "4x2x1", "-1x2", "fourxtwo", ""])
def test_a_mesh_is_two_numbers(text):
    with pytest.raises(InputError, match="it takes two numbers of devices, such as 4x2"):
        mesh.parse_mesh_shape(text)


def test_a_mesh_is_read_as_it_is_spelled():
    assert mesh.parse_mesh_shape("4x2") == (4, 2)
    assert mesh.parse_mesh_shape(mesh.mesh_name((3, 16))) == (3, 16)
    assert mesh.parse_mesh_shape(None) is None


SWEEP = """
import sys
from pathlib import Path
from mnist_jax.config import Config
from mnist_jax.sweep.run import sweep

config = Config(dataset="digits", hidden=(512, 512), epochs=1, seeds=3)
space = {"learning_rate": (0.03, 0.1, 0.3), "dropout": (0.0, 0.5)}
for shape in (None, (1, 1), (2, 4)):
    sweep(config, space, out=Path(sys.argv[1]) / str(shape), mesh=shape)
"""


def test_a_sweep_fills_the_devices_with_the_same_result(tmp_path):
    done = on_eight(SWEEP, tmp_path)
    assert not done.returncode, done.stderr[-3000:]
    one, eight, two_by_four = (
        json.loads((tmp_path / name / "table.json").read_text())
        for name in ("(1, 1)", "None", "(2, 4)")
    )
    for expected, row in zip(one, eight, strict=True):  # 18 networks on 8 devices
        assert row["train_loss"] == expected["train_loss"]  # to the bit
    for table in (eight, two_by_four):
        for expected, row in zip(one, table, strict=True):
            assert row["validation_errors"] == expected["validation_errors"]
            assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
