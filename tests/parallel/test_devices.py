"""Meshes, on eight CPU devices that XLA simulates in a process of their own."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mnist_jax.config import InputError, parse_mesh
from mnist_jax.parallel import devices

TRAINED = """
import json, sys
from pathlib import Path
import jax, numpy as np
from mnist_jax import population
from mnist_jax.runs import rundir
from mnist_jax.config import Config
from mnist_jax import fit as module
from mnist_jax.fit import fit

module.draw = lambda *_: []  # which takes longest
assert jax.device_count() == 8
folder = Path(sys.argv[1])
options = dict(dataset="digits", epochs=2, batch_size=32, seeds=8, validation_images=100)
kinds = {
    "plain": Config(hidden=(512, 512), **{**options, "epochs": 1}),  # trained one after the other
    "rich": Config(
        hidden=(24,), batch_norm=True, rotation_degrees=9.0, noise=0.1, ema_decay=0.9, **options
    ),
}
found = {}
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: compiled.append(about) if "backend_compile" in event else None
)
train_epoch = population.train_epoch
def places(states):
    return [(str(leaf.sharding), len(leaf.sharding.device_set)) for leaf in jax.tree.leaves(states)]
class Watched:
    lower = train_epoch.lower
    def __call__(self, *args):
        before, placed = len(compiled), places(args[1])
        out = train_epoch(*args)
        late.append(len(compiled) - before)
        kept.append(placed == places(out[0]))
        spread.append(len(out[0].step.sharding.device_set))
        return out
population.train_epoch = Watched()
meshes = {"plain": ((1, 1), (8, 1), None), "rich": ((1, 1), (4, 2), (1, 8))}
for kind, config in kinds.items():
    for mesh in meshes[kind]:
        late, kept, spread = [], [], []
        run = fit(config, folder / f"{kind}-{mesh}", mesh=mesh)
        weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.states.params)])
        np.save(folder / f"{kind}-{mesh}.npy", weights)
        environment = json.loads((run.path / "config.json").read_text())["environment"]
        found[f"{kind}-{mesh}"] = {
            "metrics": rundir.read_metrics(run.path),
            "summary": rundir.read_summary(run.path),
            "late": sum(late), "kept": all(kept), "mesh": environment.get("mesh"),
            "devices": spread[-1],
        }
(folder / "found.json").write_text(json.dumps(found))
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
    folder = tmp_path_factory.mktemp("meshes")
    done = on_eight(TRAINED, folder)
    assert not done.returncode, done.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("mesh", ["(4, 2)", "(1, 8)"])
def test_a_result_does_not_depend_on_the_mesh(trained, mesh):
    """To the rounding that the README states."""
    folder, found = trained
    alone, spread = found["rich-(1, 1)"], found[f"rich-{mesh}"]
    for one, other in zip(alone["metrics"], spread["metrics"], strict=True):
        for name in ("train_loss", "validation_loss"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4)
    for name in ("test_errors", "dataset", "steps"):
        assert alone["summary"][name] == spread["summary"][name]
    weights = [np.load(folder / f"rich-{name}.npy") for name in ("(1, 1)", mesh)]
    np.testing.assert_allclose(*weights, atol=1e-4)


def test_where_networks_do_not_share_devices_every_bit_is_the_same(trained):
    folder, _ = trained
    weights = [np.load(folder / f"plain-{name}.npy") for name in ("(1, 1)", "(8, 1)", "None")]
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_array_equal(weights[0], weights[2])


def test_nothing_compiles_late_or_moves(trained):
    """Compiled ahead for the shardings that there are, which an epoch keeps."""
    _, found = trained
    for name, about in found.items():
        assert about["late"] == 0, name
        assert about["kept"], name
        assert about["devices"] == (1 if "(1, 1)" in name else 8), name


def test_a_run_says_how_it_was_divided(trained):
    _, found = trained
    assert found["plain-(1, 1)"]["mesh"] is None
    assert found["rich-(4, 2)"]["mesh"] == "4x2"
    assert found["plain-None"]["mesh"] == "8x1"
    assert found["plain-None"]["summary"]["device"].startswith("8 x CPU")


COMMUNICATION = """
import json, jax
from mnist_jax import data, population
from mnist_jax.parallel import devices
from mnist_jax.config import Config
from mnist_jax.train import default_recipe

digits, found = data.load("digits"), {}
recipe = default_recipe(Config(dataset="digits"), 64, 10, 1437)
for shape in ((8, 1), (1, 8)):
    with devices.mesh(shape):
        keys = population.keys(range(8))
        states = devices.divide(population.init(recipe, keys))
        args = recipe, states, devices.share(digits.train), keys, 128, 1
        text = population.train_epoch.lower(*args).compile().as_text()
    words = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "infeed", "outfeed")
    found[shape[1]] = {word: text.count(f" {word}(") for word in words}
print(json.dumps(found))
"""


def test_networks_need_no_communication_and_batches_one_sum_of_gradients():
    found = json.loads(on_eight(COMMUNICATION, check=True).stdout)
    assert not any(found["1"].values())
    assert found["8"]["all-reduce"] > 0
    assert not found["8"]["infeed"] + found["8"]["outfeed"]  # nor with the host


@pytest.mark.parametrize(
    ("networks", "batch_size", "shape"),
    [
        *((8, 128, (8, 1)), (4, 128, (4, 2)), (12, 128, (4, 2)), (1, 128, (1, 8))),
        *((7, 128, (1, 8)), (1, 100, (1, 4)), (3, 7, (1, 1)), (1000, 128, (8, 1))),
    ],
)
def test_all_devices_have_a_share_if_they_can(networks, batch_size, shape, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert devices.mesh_shape(networks, batch_size) == shape
    filled = devices.mesh_shape(networks, batch_size, filled=True)
    assert filled == ((8, 1) if networks > 8 else shape)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((4, 4), "--mesh 4x4 cannot be used: it takes at most the 8 devices here"),
        ((4, 1), "first a number that divides the 6 networks"),
        ((2, 3), "last a number that divides --batch-size 128"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(asked, message, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(InputError, match=message):
        devices.mesh_shape(6, 128, asked)


def test_jax_0_7_divides_networks_or_batches(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(devices, "BOTH_AXES", False)
    shapes = [devices.mesh_shape(networks, 128) for networks in (1, 4, 8)]
    assert shapes == [(1, 8), (4, 1), (8, 1)]
    with pytest.raises(InputError, match="a 1 on one side with this version of JAX"):
        devices.mesh_shape(4, 128, (4, 2))


@pytest.mark.parametrize("words", ["4", "4x", "0x2", "4x2x1", "-1x2", "fourxtwo", ""])
def test_a_mesh_is_two_numbers(words):
    with pytest.raises(InputError, match="it takes two numbers of devices, such as 4x2"):
        parse_mesh(words)
    assert parse_mesh("4x2") == (4, 2)


SWEPT = """
import sys
from pathlib import Path
from mnist_jax.config import Config
from mnist_jax.sweep.run import sweep

config = Config(dataset="digits", hidden=(512, 512), epochs=1, seeds=3)
axes = {"learning_rate": (0.03, 0.1, 0.3), "dropout": (0.0, 0.5)}
for mesh in (None, (1, 1), (2, 4)):
    sweep(config, axes, halving=False, out=Path(sys.argv[1]) / str(mesh), mesh=mesh)
"""


def test_a_sweep_fills_the_devices_and_is_the_same(tmp_path):
    done = on_eight(SWEPT, tmp_path)
    assert not done.returncode, done.stderr[-3000:]
    rows = {
        mesh: json.loads((tmp_path / mesh / "table.json").read_text())
        for mesh in ("None", "(1, 1)", "(2, 4)")
    }
    for one, other in zip(rows["(1, 1)"], rows["None"], strict=True):  # 18 networks on 8 devices
        assert one["train_loss"] == other["train_loss"]  # to the bit
    for mesh in ("None", "(2, 4)"):
        for one, other in zip(rows["(1, 1)"], rows[mesh], strict=True):
            assert one["validation_errors"] == other["validation_errors"]
            assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
