import os
import signal
import subprocess
import sys

import pytest

from mnist_jax.runs import compiled

PROGRAM = """
import os, sys
from mnist_jax.runs import compiled
compiled.keep_compiled_programs()
assert "jax" not in sys.modules
import jax, numpy as np
def program(x): return 2 * x + NUMBER
print(jax.jit(program)(np.float32(20)))
"""


def command(cache, number=2, code=PROGRAM, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return {
        "args": [sys.executable, "-c", code.replace("NUMBER", str(number))],
        "env": {**env, "XDG_CACHE_HOME": str(cache), **more},
    }


def answer(cache, number=2, **more):
    """What a process prints that computes 2 * 20 + `number` in a compiled program."""
    done = subprocess.run(**command(cache, number, **more), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return float(done.stdout)


def kept(cache):
    return sorted((cache / "mnist_jax" / "compiled").iterdir())


def test_programs_are_kept_and_read_back(tmp_path):
    assert answer(tmp_path) == 42
    first = {file: file.stat().st_mtime_ns for file in kept(tmp_path)}
    assert [file.name.split("-")[0] for file in first] == ["jit_program"]
    assert answer(tmp_path) == 42
    assert {file: file.stat().st_mtime_ns for file in kept(tmp_path)} == first


def test_a_program_that_is_not_as_it_was_written_is_not_run(tmp_path):
    """Two whole programs change places, which JAX would not notice."""
    answer(tmp_path, 2)
    answer(tmp_path, 7)
    one, other = kept(tmp_path)
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    assert answer(tmp_path, 2) == 42
    assert answer(tmp_path, 7) == 47
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["flipped bit", "half", "nothing", "no sum"])
def test_a_damaged_program_is_compiled_anew_once(tmp_path, damage):
    answer(tmp_path)
    (file,) = kept(tmp_path)
    content, name = file.read_bytes(), file.name
    flipped = bytes([*content[:-9], content[-9] ^ 1, *content[-8:]])
    file.write_bytes(
        {"flipped bit": flipped, "half": content[:-500], "nothing": b""}.get(damage, content)
    )
    if damage == "no sum":  # JAX's own name
        name = "-".join(file.name.split("-")[:2])
        file.rename(file.with_name(f"{name}-cache"))
    assert answer(tmp_path) == 42
    (anew,) = kept(tmp_path)
    stamp = anew.stat().st_mtime_ns
    assert len(anew.read_bytes()) > 1000
    assert answer(tmp_path) == 42
    assert anew.stat().st_mtime_ns == stamp


def test_what_a_killed_process_wrote_is_never_read(tmp_path):
    half_written = """
from pathlib import Path
own = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
for file in own.iterdir(): file.write_bytes(file.read_bytes()[:-500])
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run(**command(tmp_path, code=PROGRAM + half_written), capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    (left,) = kept(tmp_path)
    assert list(left.iterdir())
    assert answer(tmp_path) == 42
    assert left in kept(tmp_path)  # its process might still live
    os.utime(left, times=(0, 0))
    assert answer(tmp_path) == 42
    assert [file.name.split("-")[0] for file in kept(tmp_path)] == ["jit_program"]


def test_half_a_program_on_a_full_disk_is_not_kept(tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    done = subprocess.run(**command(tmp_path, code=full + PROGRAM), capture_output=True)
    assert (done.stdout, done.stderr) == (b"42.0\n", b"")
    assert kept(tmp_path) == []


def test_what_jax_cannot_read_is_forgotten(tmp_path):
    answer(tmp_path)
    (file,) = kept(tmp_path)
    name, key, _, _ = file.name.split("-")
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # its SHA-256
    file.unlink()
    file.with_name(f"{name}-{key}-{nothing}-cache").touch()
    assert answer(tmp_path) == 42
    assert kept(tmp_path) == []


def test_other_warnings_are_still_heard(tmp_path):
    warn = "import warnings; warnings.warn('something else')"
    done = subprocess.run(**command(tmp_path, code=PROGRAM + warn), capture_output=True)
    assert b"UserWarning: something else" in done.stderr


def test_two_processes_at_once(tmp_path):
    both = [subprocess.Popen(**command(tmp_path), stdout=-1, stderr=-1) for _ in range(2)]
    assert [process.communicate() for process in both] == 2 * [(b"42.0\n", b"")]
    assert answer(tmp_path) == 42
    assert all(file.name.endswith("-cache") for file in kept(tmp_path))


def test_a_folder_of_the_users_own_is_left_alone(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / f"jit_old-{64 * 'a'}-cache").write_text("damaged")
    assert answer(tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(own)) == 42
    assert not (tmp_path / "cache").exists()
    assert {file.name.split("-")[0] for file in own.iterdir()} == {"jit_old", "jit_program"}


def test_without_a_place_all_is_compiled_anew(tmp_path):
    (tmp_path / "cache").write_text("a file stands where the folder would be")
    assert answer(tmp_path / "cache") == 42


def test_the_oldest_programs_make_way_and_other_files_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "LARGEST_FOLDER", 2500)
    folder, own = tmp_path / "kept", tmp_path / "own"
    folder.mkdir()
    own.mkdir()
    strangers = [folder / "notes-cache", folder / "notes.txt"]
    for file in strangers:
        file.write_text("mine")
    content = 1000 * b"x"
    sha256 = "44f8354494a5ba03ba1792a8d3e9c534c47a9181980fde7a3f44b06ef2ae7c7f"
    for age, name in enumerate(["new", "middle", "old"]):
        file = folder / f"jit_{name}-{64 * 'a'}-{sha256}-cache"
        file.write_bytes(content)
        os.utime(file, times=(1e9 - age, 1e9 - age))
    compiled._link(folder, own)
    assert sorted(file.name.split("-")[0] for file in own.iterdir()) == ["jit_middle", "jit_new"]
    assert len(list(folder.iterdir())) == 4
    assert all(file.exists() for file in strangers)
