"""Strict rules for every test, and the data and helpers that they share."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # else XLA prints a page for each program in the cache

from jaxtyping import install_import_hook

# Shapes and types of public functions are checked while the tests run.
install_import_hook("mnist_jax", "beartype.beartype")

import hypothesis
import jax
import matplotlib
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("no clock", deadline=None)  # machines may be busy
hypothesis.settings.load_profile("no clock")

# A shell makes what it runs in the background ignore SIGINT, and so would the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests compile many programs again. Processes that they start use no cache, unless it is tested.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
COMPILED = tempfile.mkdtemp()
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Only tests that ask for MNIST see it. The processes of -n 2 inherit the other name.
if "MNIST_JAX_DATA" in os.environ:
    os.environ["MNIST_FOR_TESTS"] = os.environ.pop("MNIST_JAX_DATA")
MNIST_DIR = os.environ.get("MNIST_FOR_TESTS")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache or data folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("MNIST_JAX_DATA", raising=False)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the official files, as MNIST_JAX_DATA names it."""
    if MNIST_DIR is None:
        pytest.skip("set MNIST_JAX_DATA to a folder with the MNIST files to run this test")
    return Path(MNIST_DIR)


@pytest.fixture(scope="session")
def mnist(mnist_dir):
    from mnist_jax import data

    return data.load("mnist", mnist_dir)


@pytest.fixture(scope="session")
def digits():
    from mnist_jax import data

    return data.load("digits")


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=3, help="how often the tests of faults repeat")


@pytest.fixture
def rounds(request) -> int:
    return request.config.getoption("rounds")


TALLY: dict[str, dict[str, int]] = {}


def tally(kind: str, **counts: int) -> None:
    """Adds to the table that ends a round of faults."""
    row = TALLY.setdefault(kind, {"rounds": 0, "faults": 0, "lost": 0})
    for name, count in counts.items():
        row[name] += count


def pytest_sessionfinish(session):
    """Each of several processes that share the tests (-n 2) sends its counts to the first."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = TALLY


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for kind, counts in getattr(node, "workeroutput", {}).get("tally", {}).items():
        tally(kind, **counts)


def pytest_terminal_summary(terminalreporter):
    if TALLY:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'':24} rounds  faults  survived  lost")
    for kind, row in TALLY.items():
        survived = row["faults"] - row["lost"]
        counts = f"{row['rounds']:6}  {row['faults']:6}  {survived:8}  {row['lost']:4}"
        terminalreporter.write_line(f"{kind:24} {counts}")


def tiny_arrays(train=40, test=20, height=3, width=2, classes=3):
    """The arrays of a small dataset: random pixels, and the labels 0 1 2 0 1 2 ..."""
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, (train, height, width), np.uint8),
        np.arange(train, dtype=np.uint8) % classes,
        random.integers(0, 256, (test, height, width), np.uint8),
        np.arange(test, dtype=np.uint8) % classes,
    )


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.reads(sys.stdin.read(), as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3", allow_errors=True).execute()
print(nbformat.writes(notebook))
"""


def executed(notebook: str, folder: Path, **env: str) -> list[dict]:
    """The cells of a notebook (its JSON), after a kernel has executed it in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE],
        input=notebook,
        cwd=folder,
        env={
            **os.environ,
            "MPLCONFIGDIR": matplotlib.get_cachedir(),  # to look for fonts takes seconds
            **{name: str(folder / name) for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR")},
            **env,
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["cells"]


def drawn(height=280, width=200, top=30, left=120, tall=100, wide=20, paper=255, ink=0):
    """A picture of an upright bar, off the centre."""
    picture = np.full((height, width), paper, np.uint8)
    picture[top : top + tall, left : left + wide] = ink
    return picture


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, written from the description of the format."""
    sizes = b"".join(np.array(size, ">u4").tobytes() for size in array.shape)
    return b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes()
