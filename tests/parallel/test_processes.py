"""Several processes, joined by `jax.distributed` on this machine, as one run."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from mnist_jax.config import Config, InputError
from mnist_jax.fit import fit
from mnist_jax.parallel import processes
from mnist_jax.runs import checkpoint, rundir

OPTIONS = {"dataset": "digits", "hidden": (24,), "epochs": 2, "batch_size": 32, "seeds": 2}
WORDS = ["--dataset", "digits", "--hidden", "24", "--batch-size", "32", "--seeds", "2"]
GONE = "another process of this run is gone"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(count, words, environment=None, last=()):
    """So many processes of the same `words`, and of a few more for the `last` one.

    Their flags tell who they are, or the `environment` of each number does.
    """
    port, command = free_port(), [sys.executable, "-m", "mnist_jax", *words]
    all_of_them = []
    for number in range(count):
        joining = ["--coordinator", f"127.0.0.1:{port}"]
        joining += ["--processes", str(count), "--process", str(number)]
        own = ["--coordinator", "auto"] if environment else joining
        own += last if number == count - 1 else ()
        variables = os.environ | (environment(number) if environment else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        all_of_them.append(subprocess.Popen([*command, *own], env=variables, **pipes))
    try:
        yield all_of_them
    finally:
        for process in all_of_them:
            process.kill()
            process.wait()


def ended(all_of_them, seconds=200):
    """The exit code, the output and the errors of each, but for that it waited for the others."""
    said = [process.communicate(timeout=seconds) for process in all_of_them]
    return [
        (process.returncode, output, re.sub(r"(process \d: )?waiting for the .*\n", "", errors))
        for process, (output, errors) in zip(all_of_them, said, strict=True)
    ]


@pytest.mark.parametrize(("count", "mesh"), [(2, "1x2"), (4, "2x2")])
def test_processes_are_one_run(tmp_path, count, mesh):
    words = ["train", *WORDS, "--epochs", "2", "--mesh", mesh, "--out", str(tmp_path / "run")]
    with started(count, words) as all_of_them:
        (code, output, errors), *others = ended(all_of_them)
    assert code == 0, errors
    assert others == [(0, "", "")] * (count - 1)
    assert f"on {count} x CPU" in output
    assert f", mesh {mesh}" in output
    assert "Gloo" not in output
    assert [line.split(",")[0] for line in errors.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    alone = fit(Config(**OPTIONS), tmp_path / "alone")
    pairs = [rundir.read_metrics(path) for path in (tmp_path / "run", alone.path)]
    for together, one in zip(*pairs, strict=True):
        assert together["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    summaries = [rundir.read_summary(path) for path in (tmp_path / "run", alone.path)]
    assert summaries[0]["test_errors"] == summaries[1]["test_errors"]


def test_a_step_of_slurm_sweeps_as_one_process_does(tmp_path):
    job = str(free_port())  # JAX makes another port of the job's number

    def step(number):
        about = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": "2"}
        about |= {"PROCID": str(number), "LOCALID": str(number)}
        return {f"SLURM_{name}": value for name, value in about.items()}

    # Of four networks one is left in the end, which with its batches of 25 two can share only by a
    # copy of it.
    words = ["sweep", "--dataset", "digits", "--hidden", "24", "--batch-size", "25", "--halving"]
    words += ["--epochs", "4", "--learning-rate", "0.03", "0.1", "0.3", "1"]
    with started(2, [*words, "--out", str(tmp_path / "both")], step) as both:
        (code, output, errors), other = ended(both)
    assert (code, other) == (0, (0, "", "")), errors
    assert "best of 4" in output
    again = [*words, "--out", str(tmp_path / "both"), "--resume"]
    one = [sys.executable, "-m", "mnist_jax", *words, "--out", str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True, timeout=200)
    tables = [json.loads((tmp_path / name / "table.json").read_text()) for name in ("both", "one")]
    for ours, theirs in zip(*tables, strict=True):
        loss = ours.pop("validation_loss"), ours.pop("train_loss")
        assert loss == pytest.approx(
            (theirs.pop("validation_loss"), theirs.pop("train_loss")), 1e-4
        )
        assert ours == theirs
    with started(2, again) as both:
        (code, output, _), other = ended(both)
    assert (code, other) == (0, (0, "", ""))
    assert "is finished already" in output


def has_checkpoint(run, process):
    """Waits until `run` has one; False when `process` has ended before."""
    while process.poll() is None:
        if checkpoint.all_of(run):
            return True
        time.sleep(0.05)
    return False


def killed(dying, run, words):
    """The epochs that are kept when one of two processes is killed, which the other finds out."""
    with started(2, words) as both:
        assert has_checkpoint(run, both[0]), ended(both)
        both[dying].kill()
        left = ended(both, 60)
    code, _, errors = left[1 - dying]
    assert code == 1
    assert [GONE in line for line in errors.splitlines() if "epoch" not in line] == [True]
    assert left[dying][0] == -signal.SIGKILL
    newest, *_ = checkpoint.all_of(run)
    assert checkpoint.is_whole(newest)
    return int(newest.name) // 44


def test_when_the_first_is_killed_the_other_ends_and_the_checkpoint_is_whole(tmp_path):
    run = tmp_path / "run"
    words = ["train", *WORDS, "--epochs", "10000", "--checkpoint-epochs", "1", "--out", str(run)]
    assert killed(0, run, words)


def test_when_another_is_killed_the_first_ends_and_all_go_on_from_the_checkpoint(tmp_path):
    run, epochs = tmp_path / "run", 100
    words = ["train", *WORDS, "--epochs", str(epochs), "--checkpoint-epochs", "1"]
    words += ["--tensorboard", "--out", str(run), "--resume"]
    done = killed(1, run, words)
    assert 0 < done < epochs
    with started(2, words) as both:
        assert [code for code, *_ in ended(both)] == [0, 0]
    records = rundir.read_metrics(run)
    assert [record["epoch"] for record in records] == list(range(1, epochs + 1))
    assert rundir.read_summary(run)["resumed_from_epoch"] == done
    few = done + 2  # longer, and rounding drives two runs apart
    alone = fit(Config(**OPTIONS | {"epochs": epochs}), tmp_path / "alone")
    for together, one in zip(records[:few], rundir.read_metrics(alone.path)[:few], strict=True):
        assert together["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)


def test_a_signal_to_one_ends_all_at_the_same_epoch(tmp_path):
    run = tmp_path / "run"
    words = ["train", *WORDS, "--epochs", "10000", "--checkpoint-epochs", "1", "--out", str(run)]
    with started(2, words) as both:
        assert has_checkpoint(run, both[0]), ended(both)
        both[1].terminate()
        (code, _, errors), (other, *nothing) = ended(both, 60)
    assert (code, other, nothing) == (143, 143, ["", ""])
    assert "go on with: mnist-jax train" in errors.splitlines()[-1]
    newest, *_ = checkpoint.all_of(run)
    assert checkpoint.is_whole(newest)
    assert int(newest.name) == rundir.read_metrics(run)[-1]["step"]


def test_other_options_than_the_first_process_are_refused(tmp_path):
    words = ["train", *WORDS, "--out", str(tmp_path / "run")]
    with started(2, words, last=["--epochs", "3"]) as both:
        (code, *_), (other, _, errors) = ended(both, 60)
    assert (code, other) == (1, 2)
    (line,) = errors.splitlines()
    assert line.startswith("mnist-jax: process 1: other epochs than the first process")


CODE = """
import sys
from mnist_jax.parallel import processes
from mnist_jax.config import Rescued
number, failing = int(sys.argv[2]), sys.argv[4]
with processes.joined(f"127.0.0.1:{sys.argv[1]}", 2, number, int(sys.argv[3])):
    assert processes.of_all(number, 2**40) == [(0, 2**40), (1, 2**40)]
    assert processes.of_leader(lambda: ["of", number]) == ["of", 0]
    print("done")
    if failing == "first" and number == 0:
        raise Rescued(None, "by this test")
    while failing == "last":
        processes.of_all(number)
        if number == 1:
            raise ZeroDivisionError("by this test")
"""


def joined(failing):
    """What two processes come to that run `CODE`."""
    port = str(free_port())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [[sys.executable, "-c", CODE, port, number, "60", failing] for number in "01"]
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(subprocess.Popen(each, **pipes)) for each in words]
        for process in both:
            stack.callback(process.kill)
        return ended(both, 60)


def test_what_processes_tell_each_other_and_how_an_error_ends_them():
    (code, output, errors), (other, nothing, trace) = joined("last")
    assert (output, nothing) == ("done\n", "")
    assert (code, other) == (1, 1)
    assert GONE in errors
    assert "Traceback" in trace
    assert trace.endswith("mnist-jax: process 1: ZeroDivisionError('by this test')\n")


def test_what_the_first_cannot_keep_is_a_failure_of_all():
    (code, output, errors), (other, nothing, silence) = joined("first")
    assert (code, output, other, nothing, silence) == (1, "done\n", 1, "", "")
    assert "by this test" in errors


def test_where_nobody_answers_it_is_told_in_a_line():
    command = [sys.executable, "-c", CODE, str(free_port()), "1", "3", "nobody"]
    left = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (left.returncode, left.stdout) == (1, "")
    lines = left.stderr.splitlines()
    assert lines[0] == "process 1: waiting for the other processes"
    if jax.__version_info__ >= (0, 10):
        (last,) = lines[1:]
        assert last.startswith("mnist-jax: process 1: not all processes came together at")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("localhost", 2, 0), "takes HOST:PORT"),
        (("localhost:66000", 2, 0), "takes HOST:PORT"),
        (("localhost:4000", 0, 0), "--processes 0 cannot be used"),
        (("localhost:4000", 2, 2), "--process 2 cannot be used: it takes 0 to 1"),
        (("auto", 2, 0), "finds --processes and --process out"),
    ],
)
def test_bad_input_is_named(given, problem):
    with pytest.raises(InputError, match=problem), processes.joined(*given):
        pass


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="choose another port"):
            processes.joined(address, 2, 0).__enter__()


def test_where_nothing_tells_who_is_who_that_is_said(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_")):
            monkeypatch.delenv(name)
    words = [sys.executable, "-m", "mnist_jax", "train", "--coordinator", "auto"]
    left = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert left.returncode == 2
    assert left.stderr.startswith("mnist-jax: --coordinator auto cannot be used: it finds no SLURM")


def test_one_process_leads_itself():
    assert processes.leads()
    assert processes.of_all(3, 4) == [(3, 4)]
    assert processes.of_leader(lambda: "as it is") == "as it is"
