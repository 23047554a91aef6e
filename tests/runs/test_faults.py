"""Faults on purpose. `python -m pytest -m faults --rounds 200` kills 200 processes, and so on.

A table at the end shows the rounds, the faults, how many were survived and how many were not.
"""

import contextlib
import gzip
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mnist_jax import data
from mnist_jax.data import download
from mnist_jax.data.download import IDX_NAMES
from mnist_jax.data.files import NPZ_KEYS
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.results import load_run
from tests.conftest import idx_bytes, tally, tiny_arrays
from tests.data.test_download import (  # noqa: F401
    assert_tiny,
    downloading,
    left_over,
    server,
    small_mnist,
)

pytestmark = pytest.mark.faults

TRAIN = "train --dataset digits --hidden 24 --epochs 300 --seeds 2 --checkpoint-epochs 1 --resume"
HANGS = 120
"""The seconds after which a process counts as one that hangs."""


def start(*args, **options) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, "-m", "mnist_jax", *map(str, args)], **options)


def finish(process) -> tuple[int, str]:
    """The exit code and standard error of a process."""
    try:
        _, err = process.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        return -1, f"it hangs: {err}"
    return process.returncode, err


def content_of(run: Path) -> dict[str, object]:
    """Every bit of a run, except the time it took."""
    arrays = [
        (str(path), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(load_run(run).states)
    ]
    history = [
        {name: value for name, value in metrics.items() if "second" not in name}
        for metrics in rundir.read_metrics(run)
    ]
    summary = rundir.read_summary(run)
    del summary["seconds"], summary["resumed_from_epoch"]
    return {
        "arrays": arrays,
        "metrics": history,
        "summary": summary,
        "figures": {file.name: file.read_bytes() for file in (run / "figures").glob("*")},
        "config": rundir.read_config(run),
    }


def differences(run: Path, expected: dict[str, object]) -> list[str]:
    """The parts of a run that are not as `expected`."""
    content = content_of(run)
    return [name for name in expected if content[name] != expected[name]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The environment of a user, for whom JAX saves compiled programs."""
    folder = tmp_path_factory.mktemp("cache")
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return {**env, "XDG_CACHE_HOME": str(folder)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache):
    """A run that nothing interrupted, its content, and the seconds that it took."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    before = time.monotonic()
    code, err = finish(start(*TRAIN.split(), "--out", run, env=cache))
    assert code == 0, err
    return run, content_of(run), time.monotonic() - before


def steps_saved(run: Path) -> int:
    return max((int(path.name) for path in run.glob("checkpoints/[0-9]*")), default=0)


def kill_at_random(process, run: Path, rng: random.Random, seconds: float) -> bool:
    """Sends a signal at a random moment. Returns False if the process ended before it."""
    number = rng.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
    moment = rng.choice(["any", "any", "training", "saving", "ending"])
    deadline = time.monotonic() + (rng.uniform(0, seconds) if moment == "any" else seconds)
    saved = steps_saved(run)
    while process.poll() is None and time.monotonic() < deadline:
        if moment == "training" and steps_saved(run) > saved and rng.random() < 0.02:
            break
        if moment == "saving" and any(run.glob("checkpoints/.*.tmp/*")) and rng.random() < 0.2:
            break
        if moment == "ending" and (run / "figures").exists() and rng.random() < 0.02:
            break
    if process.poll() is not None:
        return False
    process.send_signal(number)
    return True


def test_killed_and_resumed_runs_are_the_run_that_was_not(reference, cache, tmp_path, rounds):
    _, expected, seconds = reference
    rng, kills, runs = random.Random(rounds), 0, 0
    while kills < rounds:
        run, saved, code = tmp_path / f"run{runs}", 0, None
        for _ in range(1000):
            process = start(*TRAIN.split(), "--out", run, env=cache)
            killed = kills < rounds and kill_at_random(process, run, rng, seconds)
            kills += killed
            code, err = finish(process)
            assert "Traceback" not in err, err
            assert code in ((0, -9, -2, -15, 130, 143) if killed else (0,)), (code, err)
            assert steps_saved(run) >= saved, "a checkpoint was lost"
            saved = steps_saved(run)
            if code == 0:
                break
        assert code == 0
        different = differences(run, expected)
        tally("kills", lost=len(different) > 0)
        assert not different, run
        assert not list(run.glob("checkpoints/.*")) + list(run.glob(".*.tmp"))
        runs += 1
        shutil.rmtree(run)
    tally("kills", rounds=runs, faults=kills)


DISK_DAMAGE = ("flip", "flip", "flip", "truncate", "truncate", "empty", "noise", "more", "missing")
HOSTILE_DAMAGE = ("pickle", "pipe", "folder", "zeros", "nested", "number", "word")


def damage(file: Path, rng: random.Random, ways=DISK_DAMAGE + HOSTILE_DAMAGE) -> str:
    """Damages `file` in one of many ways, and returns which."""
    content = file.read_bytes()
    place = rng.randrange(max(len(content), 1))
    how = rng.choice(ways)
    if how == "flip" and content:
        byte = bytes([content[place] ^ (1 << rng.randrange(8))])
        file.write_bytes(content[:place] + byte + content[place + 1 :])
    elif how == "truncate":
        file.write_bytes(content[:place])
    elif how == "noise":
        file.write_bytes(content[:place] + rng.randbytes(64) + content[place + 64 :])
    elif how == "more":
        file.write_bytes(content + rng.randbytes(100))
    elif how == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    elif how == "nested":
        file.write_bytes(b"[" * 10**5)
    elif how in ("number", "word"):  # in the place of another, if this is text
        new = rb"1e999" if how == "number" else rb'"\\u0000../../x"'
        parts = re.split(rb"(-?\b[0-9][0-9.e-]*\b)", content)
        if len(parts) > 2:
            parts[2 * rng.randrange(len(parts) // 2) + 1] = new
        file.write_bytes(b"".join(parts))
    else:
        file.unlink()
        if how == "pipe":
            os.mkfifo(file)
        elif how == "folder":
            file.mkdir()
        elif how == "zeros":
            file.symlink_to("/dev/zero")
        elif how == "empty":
            file.touch()
    return how


class Bomb:
    """Its pickle runs code when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path(BOMB),)


BOMB = "/tmp/mnist_jax-a-pickle-was-run"


class Commands:
    """A process that runs one command after the other, as its start takes longer than they do."""

    script = """
import contextlib, io, json, resource, sys, traceback
from mnist_jax.__main__ import main

for line in sys.stdin:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(json.loads(line))
        except SystemExit as exit:
            code = int(exit.code or 0)
        except BaseException:
            code, _ = 1, traceback.print_exc()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([code, out.getvalue(), err.getvalue(), kilobytes]), flush=True)
"""

    def __init__(self, env):
        self.env, self.process = env, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        """Makes the next command run in a new process."""
        if self.process:
            self.process.communicate()
            self.process = None

    def __call__(self, *args) -> tuple[int, str, str, int]:
        """Exit code, standard output and error, and the maximum memory so far in kilobytes."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self.env,
            )
        timeout = threading.Timer(HANGS, self.process.kill)
        timeout.start()
        print(json.dumps([str(arg) for arg in args]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        timeout.cancel()
        if not answer:
            process, self.process = self.process, None
            process.wait()
            return process.returncode, "", f"it crashed or hangs: {process.stderr.read()}", 0
        return tuple(json.loads(answer))


def test_damaged_files_are_reported_in_one_line(reference, cache, tmp_path, rounds):
    """Every kind of file that a command reads, damaged in every way, five for a round."""
    original, expected, _ = reference
    rng = random.Random(rounds)
    pictures, folders = tmp_path / "pictures", tmp_path / "data"
    pictures.mkdir()
    for i, kind in enumerate(("png", "jpg", "gif", "tif", "webp", "bmp", "ppm")):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30), np.uint8))
        image.save(pictures / f"digit.{kind}")
    for name in ("gz", "idx", "npz"):
        (folders / name).mkdir(parents=True)
    arrays = tiny_arrays(train=200, height=8, width=8)
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        (folders / "idx" / name).write_bytes(idx_bytes(array))
        (folders / "gz" / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    np.savez_compressed(folders / "npz" / "mnist.npz", **dict(zip(NPZ_KEYS, arrays, strict=True)))
    Path(BOMB).unlink(missing_ok=True)

    failures = []
    with Commands(cache) as command:
        baseline = command("evaluate", original)[3]
        for number in range(5 * rounds):
            if number % 50 == 0:  # so that memory is that of a few commands
                command.stop()
            run, place = tmp_path / "run", tmp_path / "copy"
            kind = rng.choice(["run", "run", "run", "picture", "data"])
            source = {"run": original, "picture": pictures, "data": folders}[kind]
            copy = run if kind == "run" else place
            shutil.copytree(source, copy, symlinks=True)
            files = sorted(
                file for file in copy.rglob("*") if file.is_file() and file.stat().st_size
            )
            file = rng.choice([file for file in files if "figures" not in file.parts])
            how = damage(file, rng)
            if kind == "picture":
                args = ["predict", original, file]
            elif kind == "data":
                flags = "samples --dataset local --data-dir"
                args = [*flags.split(), file.parent, "--out", tmp_path / "samples.png"]
            else:
                commands = [["evaluate", run], ["plot", run], [*TRAIN.split(), "--out", run]]
                args = rng.choice(commands)
            code, out, err, kilobytes = command(*args)
            lines = [line for line in err.splitlines() if not line.startswith("epoch ")]
            survived = code in (0, 2) and "Traceback" not in err and not Path(BOMB).exists()
            survived &= code == 0 or (len(lines) <= 3 and lines[-1].startswith("mnist-jax: "))
            survived &= kilobytes < baseline + 2**20
            if code == 0 and args[0] == "train":
                survived &= not differences(run, expected)
            if code == 0 and args[0] == "evaluate":
                survived &= result_of(expected) in out
            if not survived:
                what = f"{number}: {how} {file.relative_to(copy)}, {args[0]}"
                failures.append(f"{what}: {code} {out} {err}")
            shutil.rmtree(copy)
    tally("damaged files", rounds=rounds, faults=5 * rounds, lost=len(failures))
    assert not failures, "\n".join(failures)


def result_of(content: dict) -> str:
    """The part of a summary line with the test errors."""
    errors = ", ".join(map(str, content["summary"]["test_errors"]))
    return f"{errors} of 360 images misread"


ON_SMALL_DISK = """
mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99
disk=$2 copy=$3
shift 3
"$@"
code=$?
cp -r "$disk/run" "$copy"
exit $code
"""


def on_a_disk_of(kilobytes: int, disk: Path, copy: Path, *flags, env) -> tuple[int, str]:
    """Trains in `disk`/run, and copies that to `copy`.

    Without the right to mount a disk, the size of each file is limited instead.
    """
    train = [sys.executable, "-m", "mnist_jax", *TRAIN.split(), *flags, "--out", str(disk / "run")]
    train = ["timeout", "-s", "KILL", str(HANGS), *train]
    script = ["sh", "-c", ON_SMALL_DISK, "sh", str(kilobytes), str(disk), str(copy), *train]
    done = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True, env=env)
    if done.returncode in (1, 99) and re.search("unshare|mount", done.stderr):
        limited = 'ulimit -f $0 && "$@"; code=$?; cp -r "$disk/run" "$copy"; exit $code'
        env = {**env, "disk": str(disk), "copy": str(copy)}
        script = ["sh", "-c", limited, str(kilobytes // 8), *train]
        done = subprocess.run(script, capture_output=True, text=True, env=env)
    return done.returncode, done.stderr


def test_a_run_on_a_full_disk_ends_with_its_result_and_can_be_resumed(
    reference, cache, tmp_path, rounds
):
    """Its last intact checkpoint stays. Event files for TensorBoard change nothing of that."""
    rng, lost, full = random.Random(rounds), 0, 0
    for number in range(rounds):
        disk, copy = tmp_path / f"disk{number}", tmp_path / f"copy{number}"
        disk.mkdir()
        flags = ["--tensorboard"] if number % 2 else []
        code, err = on_a_disk_of(rng.randrange(8, 1200), disk, copy, *flags, env=cache)
        full += code != 0
        last = err.splitlines()[-1]
        if code == 1:
            survived = last.startswith("mnist-jax: cannot write ")
            survived &= result_of(reference[1]) in last
            survived &= finish(start(*TRAIN.split(), "--out", copy, env=cache))[0] == 0
        else:
            cannot_begin = re.match("mnist-jax: cannot write .*: (No space|File too)", last)
            survived = code == 0 or (code == 2 and bool(cannot_begin))
        if code in (0, 1):
            survived = survived and not differences(copy, reference[1])
        lost += not survived
        assert survived, (code, err[-900:])
        assert "Traceback" not in err
    tally("full disks", rounds=rounds, faults=full, lost=lost)


def test_of_two_processes_one_refuses(reference, cache, tmp_path, rounds):
    rng, refused = random.Random(rounds), 0
    for number in range(-(-rounds // 3)):
        run, processes = tmp_path / f"run{number}", []
        for _ in range(3):
            processes.append(start(*TRAIN.split(), "--out", run, env=cache))
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[-1].wait(timeout=rng.uniform(0, 1))
        ends = [finish(process) for process in processes]
        codes = sorted(code for code, _ in ends)
        assert codes[0] == 0
        assert set(codes) <= {0, 2}, ends
        for code, err in ends:
            assert code == 0 or f"{run} is in use by another process" in err
        assert not differences(run, reference[1])
        refused += sum(code == 2 for code in codes)
    tally("two at once", rounds=-(-rounds // 3), faults=refused)
    assert refused


def test_damaged_compiled_programs_neither_end_nor_change_a_run(reference, cache, tmp_path, rounds):
    """JAX reports and ignores them, as their compression has checksums."""
    rng = random.Random(rounds)
    programs = Path(cache["XDG_CACHE_HOME"]) / "mnist_jax" / "programs"
    for number in range(-(-rounds // 3)):
        files = sorted(programs.glob("*-cache"))
        assert files
        intact = {file: file.read_bytes() for file in files}
        for file in files:
            damage(file, rng, DISK_DAMAGE)
        run = tmp_path / f"run{number}"
        code, err = finish(start(*TRAIN.split(), "--out", run, env=cache))
        assert code == 0, err
        assert "Traceback" not in err
        assert not differences(run, reference[1])
        tally("damaged programs", faults=len(files))
        for file, content in intact.items():  # JAX does not replace a damaged program
            file.write_bytes(content)
    tally("damaged programs", rounds=-(-rounds // 3))


def test_broken_downloads_leave_nothing_that_is_trusted(server, rounds):  # noqa: F811
    """The connection drops at any byte, or the process is killed there; the next one succeeds."""
    rng = random.Random(rounds)
    for _ in range(rounds):
        shutil.rmtree(download.cache_dir(), ignore_errors=True)
        server.at = rng.random()
        server.how = rng.choice(["drop", "drop", "drop", "stall"])
        if server.how == "drop":
            with pytest.raises(data.DataUnavailable):
                data.load("mnist")
        else:
            with downloading() as process:
                while not left_over():
                    assert process.poll() is None
                process.kill()
        server.how = None
        assert_tiny(data.load("mnist"))
        assert_tiny(data.load("mnist"))
    tally("broken downloads", rounds=rounds, faults=rounds)


BOMBS = ("gz", "npz", "png", "jpg", "json", "arrays")
MEASURED = """
import resource, sys
from mnist_jax.__main__ import main

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(sys.argv[1:])
finally:
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(after - before)
"""


def bomb(kind: str, folder: Path, run: Path) -> list[object]:
    """Makes a small file that unpacks to a large one, and returns the command that reads it."""
    read = ["samples", "--dataset", "local", "--out", folder / "x.png", "--data-dir", folder]
    if kind == "gz":
        for name in IDX_NAMES:
            (folder / f"{name}.gz").touch()
        with gzip.open(folder / f"{IDX_NAMES[0]}.gz", "wb", compresslevel=1) as stream:
            for _ in range(2**11):
                stream.write(bytes(2**20))
    elif kind == "npz":
        with zipfile.ZipFile(folder / "mnist.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for key in NPZ_KEYS:
                archive.writestr(f"{key}.npy", bytes(2**29))
    elif kind in ("png", "jpg"):
        Image.new("RGB", (7700, 7700), "white").save(folder / f"large.{kind}")
        read = ["predict", run, folder / f"large.{kind}"]
    else:
        shutil.copytree(run, folder / "run")
        read = ["evaluate", folder / "run"]
        config = rundir.read_config(run)
        shutil.rmtree(folder / "run" / "checkpoints")
        state = {"weights": np.zeros(3)}
        checkpoint.save(folder / "run", 1, state, {**config, "hidden": [10**6, 10**6]}, [])
        if kind == "json":  # with the right checksums
            saved = folder / "run" / "checkpoints" / "1"
            (saved / "config.json").write_bytes(b"[" + b"[0]," * 2**25)
            names = sorted(path for path in saved.rglob("*") if path.is_file())
            sums = [
                f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(saved)}\n"
                for path in names
                if path.name != "SHA256SUMS"
            ]
            (saved / "SHA256SUMS").write_text("".join(sums))
    return read


@pytest.mark.parametrize("kind", BOMBS)
def test_a_decompression_bomb_takes_little_memory(reference, tmp_path, kind):
    """Data of a gigabyte take at most three while they are unpacked; all else takes below one."""
    args = bomb(kind, tmp_path, reference[0])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, args)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    *notes, last = done.stderr.splitlines()
    assert last.startswith("mnist-jax: ")
    assert all("is not finished" in note for note in notes)
    max_kilobytes = 3 * 2**20 if kind == "gz" else 2**20
    assert int(done.stdout.splitlines()[-1]) < max_kilobytes
    tally("bombs", rounds=1, faults=1)
