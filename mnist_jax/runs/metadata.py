"""The content of config.json: all that determines a run's result to the last digit."""

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

import mnist_jax
from mnist_jax.config import Config, to_json
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError, say
from mnist_jax.parallel import multihost
from mnist_jax.parallel.mesh import MeshShape
from mnist_jax.runs.rundir import Json
from mnist_jax.train import MakeRecipe

VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision")


def run_metadata(
    config: Config, make_recipe: MakeRecipe, dataset: Dataset, mesh: MeshShape = (1, 1)
) -> Json:
    """The content of config.json: config, recipe, data and environment."""
    return {
        **to_json(config),
        "recipe": recipe_name(make_recipe),
        "data": data_metadata(dataset, config.validation_images),
        "environment": environment(mesh),
    }


def data_metadata(dataset: Dataset, validation_images: int) -> Json:
    """Sizes, shapes, class names and checksums of the data."""
    return {
        "train_images": len(dataset.train.labels) - validation_images,
        "validation_images": validation_images,
        "test_images": len(dataset.test.labels),
        "image_shape": list(dataset.train.images.shape[1:]),
        "class_names": list(dataset.class_names),
        "sha256": list(dataset.sha256),
    }


def recipe_name(make_recipe: Callable[..., object]) -> str:
    """The name of a function that makes recipes, with the arguments that a `partial` binds."""
    if not isinstance(make_recipe, partial):
        return getattr(make_recipe, "__qualname__", type(make_recipe).__name__)

    def text(value: object) -> str:
        return recipe_name(value) if callable(value) else repr(value)

    arguments = [text(value) for value in make_recipe.args]
    arguments += [f"{name}={text(value)}" for name, value in make_recipe.keywords.items()]
    return f"{recipe_name(make_recipe.func)}({', '.join(arguments)})"


def require_same_run(path: Path, saved: Json, metadata: Json) -> None:
    """Raises InputError unless `saved`, read from folder `path`, and `metadata` are of one run.

    The data may have moved. A field that is newer than the folder takes its default. If only the
    environment differs, this is reported.
    """
    if differences := changes(_identity(saved), _identity(metadata)):
        raise InputError(
            f"{path} was made with other options: {'; '.join(differences)}. Repeat those options, "
            "or choose another --out"
        )
    if differences := changes(saved["environment"], metadata["environment"]):
        say(f"{'; '.join(differences)}: the last digits of the result may differ")


def require_same_in_all_processes(metadata: Json) -> None:
    """Raises InputError unless all processes of a run have the same options, data and code."""
    local = ("device", "processor")
    shared = {name: value for name, value in metadata["environment"].items() if name not in local}
    multihost.require_same({**_identity(metadata), **shared})


def _identity(metadata: Json) -> Json:
    """The fields that identify a run or a sweep."""
    fields = {**to_json(Config()), **metadata.get("config", {}), **metadata}
    return {name: fields[name] for name in fields.keys() - {"config", "data_dir", "environment"}}


def changes(before: Json, after: Json) -> list[str]:
    """The fields that differ between two JSON objects, with both values if they are short."""
    lines = []
    for name in sorted({*before, *after}):
        values = f"was {before.get(name)} and is {after.get(name)}"
        if before.get(name) != after.get(name):
            lines.append(f"{name} {values if len(values) < 200 else 'differs'}")
    return lines


def environment(mesh: MeshShape | None = None) -> dict[str, str]:
    """The code, versions, devices and flags that a run is computed with."""
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    options = {name: str(value) for name in OPTIONS if (value := getattr(jax.config, name))}
    machine = {"code": _code_hash(), "device": device_name(), "processor": _processor()}
    mesh_name = {"mesh": f"{mesh[0]}x{mesh[1]}"} if mesh and mesh != (1, 1) else {}
    return {**versions(), **machine, **variables, **options, **mesh_name}


def device_name() -> str:
    """The devices of this process, or of all processes of its run, as readable text."""
    device, count = jax.devices()[0], jax.device_count()
    name = device.device_kind
    if device.platform == "cpu":
        has_affinity = hasattr(os, "sched_getaffinity")  # the cores that this process may use
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        name = f"CPU ({platform.machine()}, {cores} cores)"
    return name if count == 1 else f"{count} x {name}"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "mnist_jax": mnist_jax.__version__,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def _code_hash() -> str:
    """64 bits of the SHA-256 of the package's source, which changes more often than its version."""
    sha256 = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        sha256.update(file.read_bytes())
    return sha256.hexdigest()[:16]


def _processor() -> str:
    """The CPU's model, if the CPU is the device: programs are compiled for it."""
    file = Path("/proc/cpuinfo")  # on Linux
    if jax.default_backend() != "cpu" or not file.exists():
        return ""
    match = re.search(r"model name\s*: (.*)", file.read_text())
    return match[1] if match else ""
