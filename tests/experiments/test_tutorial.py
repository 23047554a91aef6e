"""The lesson, executed from top to bottom as a reader does, with MNIST and without a network."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import executed

FILE = Path(__file__).parents[2] / "experiments" / "tutorial.ipynb"
NOTEBOOK = FILE.read_text(encoding="utf-8")


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK)["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def is_bar(output) -> bool:
    """Whether all that an output shows is how far a bar has come."""
    parts = re.split(r"[\r\n]", "".join(output["text"]))
    return all(not part or part.startswith(("epoch ", "training again:")) for part in parts)


def shown(cells) -> tuple[str, list[str], list[str]]:
    """What the cells printed, the kinds of what they showed, and what went wrong."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    kinds = [kind for output in outputs for kind in output.get("data", {}) if "/plain" not in kind]
    errors = [output for output in outputs if output["output_type"] == "error"]
    told = [output for output in outputs if output.get("name") == "stderr" and not is_bar(output)]
    return text, kinds, ["".join(error["traceback"]) for error in errors] + told


@pytest.mark.long
def test_the_lesson_runs_on_mnist(mnist_dir, tmp_path):
    text, kinds, errors = shown(executed(NOTEBOOK, tmp_path, MNIST_JAX_DATA=str(mnist_dir)))
    assert not errors
    assert "mnist (60000, 28, 28) uint8 to learn from" in text
    accuracy = re.search(r"mnist test accuracy ([\d.]+) %", text)
    assert float(accuracy[1]) > 98
    # Four digits, the curves, the mistakes, eight explanations, and the page to draw on.
    assert kinds == [*["image/png"] * 11, "text/html"]
    (page,) = tmp_path.glob("runs/*/page.html")
    assert page.stat().st_size < 3_000_000


@pytest.mark.long
def test_the_lesson_runs_without_a_network(tmp_path):
    lesson = json.loads(NOTEBOOK)
    # What a network knows is drawn above, and takes longest.
    sources = ["".join(cell["source"]) for cell in lesson["cells"]]
    lesson["cells"] = [
        cell
        for cell, source in zip(lesson["cells"], sources, strict=True)
        if "figures" not in source or "import run_figures" in source
    ]
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    _, kinds, errors = shown(executed(json.dumps(lesson), tmp_path, **nowhere))
    assert not [error for error in errors if isinstance(error, str)]  # no traceback
    assert "MNIST IS NOT HERE" in "".join("".join(banner["text"]) for banner in errors)
    assert kinds == [*["image/png"] * 3, "text/html"]


@pytest.mark.parametrize("word", ["grad", "jit", "vmap", "scan"])
def test_each_transformation_is_met_before_it_is_used(word):
    cells = json.loads(NOTEBOOK)["cells"]
    first = {
        kind: next(
            place
            for place, cell in enumerate(cells)
            if cell["cell_type"] == kind
            and re.search(rf"jax\.(lax\.)?{word}\b", "".join(cell["source"]))
        )
        for kind in ("markdown", "code")
    }
    assert first["markdown"] == first["code"] - 1
