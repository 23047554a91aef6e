"""The shape of the house: imports run one way, and nothing heavy is imported early."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_jax

PACKAGE = Path(mnist_jax.__file__).parent

# What each module may import.
ALLOWED = {
    "notebook": set(),
    "config": {"notebook"},
    "compiled": {"download"},
    "environment": set(),
    "preprocess": set(),
    "photo": {"config"},
    "ink": {"config"},
    "download": {"config", "progress"},
    "on_disk": {"config"},
    "sources": {"config", "download", "on_disk"},
    "rundir": {"config"},
    "checkpoint": {"config", "rundir"},
    "progress": {"notebook"},
    "interrupts": {"progress"},
    "prng": set(),
    "plots": {"preprocess"},
    "data": {"config", "download", "on_disk", "sources"},
    "model": {"config", "preprocess"},
    "augment": {"config", "preprocess"},
    "optim": {"config", "model", "preprocess"},
    "train": {"augment", "config", "data", "model", "optim", "preprocess"},
    "search": {"config"},
    "devices": {"config"},
    "processes": {"config", "progress"},
    "population": {"data", "devices", "model", "preprocess", "prng", "train"},
    "shards": {"config", "data", "devices", "on_disk", "train"},
    "report": {
        *("checkpoint", "config", "data", "devices", "model", "plots", "population", "preprocess"),
        *("prng", "rundir", "shards", "train"),
    },
    "keeper": {"checkpoint", "config", "progress", "rundir", "train"},
    "resume": {"checkpoint", "config", "progress", "report", "rundir"},
    "inside": {"model", "preprocess"},
    "explain_plots": {"plots", "preprocess"},
    "explain": {
        *("config", "data", "explain_plots", "inside", "model", "population", "preprocess"),
        *("progress", "report", "shards", "train"),
    },
    "page": {"config", "data", "preprocess", "report"},
    "export": {"config", "model", "preprocess", "report", "train"},
    "watch": {
        *("config", "notebook", "optim", "plots", "preprocess", "progress", "report", "rundir"),
        "train",
    },
    "fit": {
        *("checkpoint", "config", "data", "devices", "environment", "interrupts", "keeper"),
        *("optim", "population", "processes", "progress", "report", "resume", "rundir", "shards"),
        *("train", "watch"),
    },
    "trials": {
        *("config", "data", "devices", "model", "population", "processes", "progress", "search"),
        *("shards", "train"),
    },
    "sweep_plots": {"plots", "search"},
    "sweep": {
        *("config", "data", "environment", "fit", "interrupts", "processes", "progress", "report"),
        *("resume", "rundir", "search", "sweep_plots", "train", "trials"),
    },
    "cli": {
        *("compiled", "config", "data", "download", "explain", "export", "fit", "ink"),
        *("interrupts", "notebook", "page", "watch", "photo", "plots", "processes", "report"),
        *("rundir", "search", "sweep"),
    },
}


def imports_of(module: str) -> set[str]:
    """The modules of the package that `module` imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mnist_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnist_jax."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mnist_jax.")}
    return found


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_run_one_way(module):
    assert imports_of(module) <= ALLOWED[module]


def test_allowed_imports_have_no_cycle():
    below: dict[str, set[str]] = {}
    waiting = dict(ALLOWED)
    while waiting:
        ready = [name for name, needs in waiting.items() if needs <= set(below)]
        assert ready, f"these import each other: {sorted(waiting)}"
        below |= {name: waiting.pop(name) for name in ready}


def test_importing_is_light():
    code = (
        "import sys, mnist_jax.fit, mnist_jax.export, mnist_jax.cli\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'PIL'}\n"
        "heavy |= {'tensorboardX', 'IPython', 'onnx', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_answers_before_jax_is_imported():
    code = "import sys, mnist_jax.cli; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_there_is_no_tensorflow():
    assert importlib.util.find_spec("tensorflow") is None
