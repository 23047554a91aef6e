"""What the README and the handbook say, done as they say it."""

import re
from pathlib import Path

import pytest

from mnist_jax.__main__ import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HANDBOOK = (ROOT / "mnist_jax" / "README.md").read_text()


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_library_example_runs(mnist_dir, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_JAX_DATA", str(mnist_dir))
    exec(compile(python_blocks(README)[0], "README.md", "exec"), {})
    errors = int(re.search(r"(\d+) of 10,000", capsys.readouterr().out)[1])
    assert errors < 1500


def test_the_example_of_another_ingredient_runs(mnist_dir, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MNIST_JAX_DATA", str(mnist_dir))
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks(README)[1], "README.md", "exec"), {})
    assert "misread" in capsys.readouterr().out


@pytest.mark.parametrize("block", python_blocks(HANDBOOK.partition("\n## Serving")[0]))
def test_every_example_of_the_handbook_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "mnist_jax/README.md", "exec"), {"__name__": "example"})


def test_the_file_tree_is_the_package():
    tree = README.partition("## The files")[2]
    package = ROOT / "mnist_jax"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"^  (\w+\.py) ", tree, re.M)) == files
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", tree, re.M)) == rooms


def test_the_handbook_names_every_file_of_every_room():
    rows = re.findall(r"^\| \[`(\w+)/`\]\(.*$", HANDBOOK, re.M)
    lines = {line.split("`")[1]: line for line in HANDBOOK.splitlines() if line.startswith("| [`")}
    assert len(rows) == 6
    for room in rows:
        for path in (ROOT / "mnist_jax" / room).glob("*.py"):
            assert path.stem == "__init__" or f"`{path.stem}`" in lines[f"{room}/"], path


def test_every_command_of_the_readme_is_one():
    commands = re.findall(r"`mnist-jax ([^`]*)`", README + HANDBOOK)
    assert len(commands) > 20
    for command in commands:
        if "--help" not in command:
            parse(command.replace("FORMAT", "onnx").split())


def test_the_two_commands_are_those_that_ci_runs():
    commands = re.findall(r"^python -m pip install .*$", README, re.M)
    assert commands == [
        "python -m pip install -e . && mnist-jax train",
        'python -m pip install -e ".[test]" && python -m pytest',
    ]
    ci = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert command in ci


def test_nothing_is_left_to_be_measured():
    assert "MEASURE" not in README + HANDBOOK


@pytest.mark.parametrize("folder", [".", "mnist_jax"])
def test_every_link_leads_somewhere_and_pictures_are_small(folder):
    text = (ROOT / folder / "README.md").read_text()
    for mark, target in re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text):
        path = ROOT / folder / target.partition("#")[0]
        if not target.startswith(("#", "http")):
            assert path.exists(), target
        if mark:
            assert path.stat().st_size < 200_000
