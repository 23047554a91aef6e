import json
import platform
import re
from functools import partial
from pathlib import Path

import jax
import optax
import pytest

from mnist_jax.config import Config, from_json
from mnist_jax.runs.metadata import environment, recipe_name, run_metadata
from mnist_jax.train import default_recipe


def test_the_environment_names_what_computes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    values = environment()
    assert values["jax"] == jax.__version__
    assert values["python"] == platform.python_version()
    assert values["XLA_FLAGS"] == "--xla_dump_to="
    assert values["device"].startswith("CPU" if jax.default_backend() == "cpu" else "")
    models = Path("/proc/cpuinfo")
    if jax.default_backend() == "cpu" and models.exists():
        models = re.findall(r"^model name\s*: (.*)$", models.read_text(), re.M)
        assert values["processor"] == (models[0] if models else "")
    with jax.default_matmul_precision("bfloat16"):
        assert environment() == {**values, "jax_default_matmul_precision": "bfloat16"}


def test_the_metadata_of_a_run_are_config_recipe_data_and_environment(digits):
    config = Config(dataset="digits", hidden=(7,), validation_images=37)
    values = json.loads(json.dumps(run_metadata(config, default_recipe, digits, (1, 1))))
    recipe, data, computer = (values.pop(name) for name in ("recipe", "data", "environment"))
    assert from_json(values) == config
    assert recipe == "default_recipe"
    sizes = [data[f"{part}_images"] for part in ("train", "validation", "test")]
    assert sizes == [1437 - 37, 37, 360]
    assert data["image_shape"] == [8, 8]
    assert data["class_names"] == list("0123456789")
    assert data["sha256"] == list(digits.sha256)
    assert computer == environment()
    sharded = run_metadata(config, default_recipe, digits, (2, 4))
    assert sharded["environment"] == {**computer, "mesh": "2x4"}


class Recipe:
    def __call__(self, *_):
        """An object may make recipes too."""


@pytest.mark.parametrize(
    ("make_recipe", "name"),
    [
        (default_recipe, "default_recipe"),
        (Recipe(), "Recipe"),
        (partial(default_recipe, 3, rate=0.5), "default_recipe(3, rate=0.5)"),
        (partial(default_recipe, make=optax.adam), "default_recipe(make=adam)"),
        (partial(partial(default_recipe, 1), 2), "default_recipe(1, 2)"),
    ],
)
def test_a_recipe_is_named_after_its_function_and_arguments(make_recipe, name):
    assert recipe_name(make_recipe) == name
