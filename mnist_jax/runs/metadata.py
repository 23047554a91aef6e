"""What decides a run to the last digit, as config.json records it."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

import mnist_jax
from mnist_jax.config import Config, to_json
from mnist_jax.data import Dataset
from mnist_jax.parallel.mesh import MeshShape
from mnist_jax.runs.rundir import Json
from mnist_jax.train import MakeRecipe

VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision")


def run_metadata(
    config: Config, make_recipe: MakeRecipe, dataset: Dataset, mesh: MeshShape = (1, 1)
) -> Json:
    """The content of config.json: config, recipe, data and environment."""
    mesh_name = {} if mesh == (1, 1) else {"mesh": f"{mesh[0]}x{mesh[1]}"}
    return {
        **to_json(config),
        "recipe": recipe_name(make_recipe),
        "data": data_metadata(dataset, config.validation_images),
        "environment": environment() | mesh_name,
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


def environment() -> dict[str, str]:
    """The code, versions, device and flags that a run is computed with."""
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    options = {name: str(value) for name in OPTIONS if (value := getattr(jax.config, name))}
    machine = {"code": _code_hash(), "device": device_name(), "processor": _processor()}
    return {**versions(), **machine, **variables, **options}


def device_name() -> str:
    """The devices of this process, or of all processes of its run, for people to read."""
    device, count = jax.devices()[0], jax.device_count()
    name = device.device_kind
    if device.platform == "cpu":
        name = f"CPU ({platform.machine()}, {_cores()} cores)"
    return name if count == 1 else f"{count} x {name}"


def _cores() -> int | None:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
    if jax.default_backend() != "cpu":
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
