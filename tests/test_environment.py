import platform

import jax

from mnist_jax.environment import changes, environment


def test_the_environment_says_what_computes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["flags"] == {"XLA_FLAGS": "--xla_dump_to="}
    assert changes(found, found) == []
    with jax.default_matmul_precision("bfloat16"):
        now = environment()
    assert changes(found, now) == ["jax_default_matmul_precision was None and is bfloat16"]
    now["versions"]["numpy"] = "1.0"
    del now["flags"]["jax_default_matmul_precision"]
    assert changes(now, found) == [f"numpy was 1.0 and is {found['versions']['numpy']}"]
