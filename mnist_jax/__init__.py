"""mnist_jax: multilayer perceptrons on MNIST in functional JAX.

Names for scripts and notebooks are imported on first use: `from mnist_jax import Config`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_jax.config import Config as Config
    from mnist_jax.data import DataSpec as DataSpec
    from mnist_jax.data import Examples as Examples
    from mnist_jax.runs.callbacks import Callback as Callback
    from mnist_jax.runs.callbacks import StopTraining as StopTraining
    from mnist_jax.runs.results import load_run as load_run
    from mnist_jax.runs.results import summary_line as summary_line
    from mnist_jax.train import Recipe as Recipe
    from mnist_jax.train import default_recipe as default_recipe

__version__ = "0.1.0"

_MODULES = {
    "Config": "config",
    "DataSpec": "data",
    "Examples": "data",
    "Callback": "runs.callbacks",
    "StopTraining": "runs.callbacks",
    "load_run": "runs.results",
    "summary_line": "runs.results",
    "Recipe": "train",
    "default_recipe": "train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mnist_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mnist_jax.{_MODULES[name]}"), name)
