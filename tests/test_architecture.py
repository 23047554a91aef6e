"""The shape of the house: imports run one way, and nothing heavy is imported early."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_run_one_way():
    """As pyproject.toml says, a rule a room."""
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_is_light():
    code = (
        "import sys, mnist_jax.fit, mnist_jax.serve.export, mnist_jax.cli\n"
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
