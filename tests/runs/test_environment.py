import platform
import re
from pathlib import Path

import jax

from mnist_jax.runs.environment import environment


def test_the_environment_says_what_computes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    found = environment()
    assert found["jax"] == jax.__version__
    assert found["python"] == platform.python_version()
    assert found["XLA_FLAGS"] == "--xla_dump_to="
    assert found["device"].startswith("CPU" if jax.default_backend() == "cpu" else "")
    models = Path("/proc/cpuinfo")
    if jax.default_backend() == "cpu" and models.exists():
        models = re.findall(r"^model name\s*: (.*)$", models.read_text(), re.M)
        assert found["processor"] == (models[0] if models else "")
    with jax.default_matmul_precision("bfloat16"):
        assert environment() == {**found, "jax_default_matmul_precision": "bfloat16"}
