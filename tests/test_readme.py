"""What the README says, done as it says it."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_library_example_runs(mnist_dir, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_JAX_DATA", str(mnist_dir))
    exec(compile(python_blocks()[0], "README.md", "exec"), {})
    errors = int(re.search(r"(\d+) of 10,000", capsys.readouterr().out)[1])
    assert errors < 1500


def test_the_example_of_another_ingredient_runs(mnist_dir, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MNIST_JAX_DATA", str(mnist_dir))
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks()[1], "README.md", "exec"), {})
    assert "misread" in capsys.readouterr().out


def test_the_file_tree_is_the_package():
    listed = set(re.findall(r"^  (\w+\.py) ", README, re.M))
    package = Path(__file__).parents[1] / "mnist_jax"
    assert listed == {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}


def test_the_two_commands_are_those_that_ci_runs():
    commands = re.findall(r"^python -m pip install .*$", README, re.M)
    assert commands == [
        "python -m pip install -e . && mnist-jax train",
        'python -m pip install -e ".[test]" && python -m pytest',
    ]
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    for command in commands:
        assert command in ci


def test_every_picture_is_there_and_small():
    for file in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).parents[1] / file).stat().st_size < 200_000
