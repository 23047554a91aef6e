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

import pytest

from mnist_jax.config import Config
from mnist_jax.errors import InputError
from mnist_jax.fit import fit
from mnist_jax.parallel import multihost
from mnist_jax.runs import checkpoint, rundir

OPTIONS = {"dataset": "digits", "hidden": (24,), "epochs": 2, "batch_size": 32, "seeds": 2}
ARGS = ["--dataset", "digits", "--hidden", "24", "--batch-size", "32", "--seeds", "2"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def start(count, args, environment=None, last=()):
    """Processes of the same command line, with a few more arguments for the `last` one.

    They join by their flags, or by the variables that `environment` gives for each number.
    """
    port, command = free_port(), [sys.executable, "-m", "mnist_jax", *args]
    processes = []
    for number in range(count):
        joining = ["--coordinator", f"127.0.0.1:{port}"]
        joining += ["--processes", str(count), "--process", str(number)]
        own = ["--coordinator", "auto"] if environment else joining
        own += last if number == count - 1 else ()
        variables = os.environ | (environment(number) if environment else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, *own], env=variables, **pipes))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def results(processes, seconds=200):
    """The exit code, output and errors of each, without the line that it waits for the others."""
    texts = [process.communicate(timeout=seconds) for process in processes]
    return [
        (process.returncode, output, re.sub(r"waiting for the other processes\n", "", errors))
        for process, (output, errors) in zip(processes, texts, strict=True)
    ]


@pytest.mark.parametrize(("count", "mesh"), [(2, "1x2"), (4, "2x2")])
def test_processes_are_one_run(tmp_path, count, mesh):
    args = ["train", *ARGS, "--epochs", "2", "--mesh", mesh, "--out", str(tmp_path / "run")]
    with start(count, args) as processes:
        (code, output, errors), *others = results(processes)
    assert code == 0, errors
    assert others == [(0, "", "")] * (count - 1)
    assert f"on {count} x CPU" in output
    assert f", mesh {mesh}" in output
    assert "Gloo" not in output
    assert [line.split(",")[0] for line in errors.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    alone = fit(Config(**OPTIONS), tmp_path / "alone")
    histories = [rundir.read_metrics(path) for path in (tmp_path / "run", alone.path)]
    for metrics, expected in zip(*histories, strict=True):
        assert metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    summaries = [rundir.read_summary(path) for path in (tmp_path / "run", alone.path)]
    assert summaries[0]["test_errors"] == summaries[1]["test_errors"]


def test_a_slurm_step_sweeps_as_one_process_does(tmp_path):
    job = str(free_port())  # JAX derives a port from the job's number

    def step(number):
        variables = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": "2"}
        variables |= {"PROCID": str(number), "LOCALID": str(number)}
        return {f"SLURM_{name}": value for name, value in variables.items()}

    # Of four networks one is left in the end. Two processes cannot share its batches of 25, so a
    # copy of it fills the second.
    args = ["sweep", "--dataset", "digits", "--hidden", "24", "--batch-size", "25", "--halving"]
    args += ["--epochs", "4", "--learning-rate", "0.03", "0.1", "0.3", "1"]
    with start(2, [*args, "--out", str(tmp_path / "both")], step) as both:
        (code, output, errors), other = results(both)
    assert (code, other) == (0, (0, "", "")), errors
    assert "best of 4" in output
    one = [sys.executable, "-m", "mnist_jax", *args, "--out", str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True, timeout=200)
    tables = [json.loads((tmp_path / name / "table.json").read_text()) for name in ("both", "one")]
    for row, expected in zip(*tables, strict=True):
        for name in ("validation_loss", "train_loss"):
            assert row.pop(name) == pytest.approx(expected.pop(name), 1e-4)
        assert row == expected
    with start(2, [*args, "--out", str(tmp_path / "both"), "--resume"]) as both:
        (code, output, _), other = results(both)
    assert (code, other) == (0, (0, "", ""))
    assert "already finished" in output


def has_checkpoint(run, process):
    """Waits until `run` has one; False if `process` ends before."""
    while process.poll() is None:
        if checkpoint.all_of(run):
            return True
        time.sleep(0.05)
    return False


def kill_one(victim, run, args):
    """The epochs that are saved when one of two processes is killed; the other must end too."""
    with start(2, args) as both:
        assert has_checkpoint(run, both[0]), results(both)
        both[victim].kill()
        ends = results(both, 60)
    assert ends[victim][0] == -signal.SIGKILL
    code, _, errors = ends[1 - victim]
    assert code != 0
    assert [line for line in errors.splitlines() if not line.startswith("epoch")]
    newest, *_ = checkpoint.all_of(run)
    assert checkpoint.is_intact(newest)
    return int(newest.name) // 44


def test_when_the_primary_process_is_killed_the_other_ends_and_the_checkpoint_is_intact(tmp_path):
    run = tmp_path / "run"
    args = ["train", *ARGS, "--epochs", "10000", "--checkpoint-epochs", "1", "--out", str(run)]
    assert kill_one(0, run, args)


def test_when_another_process_is_killed_the_run_ends_and_resumes_from_the_checkpoint(tmp_path):
    run, epochs = tmp_path / "run", 100
    args = ["train", *ARGS, "--epochs", str(epochs), "--checkpoint-epochs", "1"]
    args += ["--tensorboard", "--out", str(run), "--resume"]
    saved = kill_one(1, run, args)
    assert 0 < saved < epochs
    with start(2, args) as both:
        assert [code for code, *_ in results(both)] == [0, 0]
    history = rundir.read_metrics(run)
    assert [metrics["epoch"] for metrics in history] == list(range(1, epochs + 1))
    assert rundir.read_summary(run)["resumed_from_epoch"] == saved
    alone = rundir.read_metrics(
        fit(Config(**OPTIONS | {"epochs": epochs}), tmp_path / "alone").path
    )
    few = saved + 2  # after more epochs rounding drives two runs apart
    for metrics, expected in zip(history[:few], alone[:few], strict=True):
        assert metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)


def test_a_signal_to_one_ends_all_after_the_same_epoch(tmp_path):
    run = tmp_path / "run"
    args = ["train", *ARGS, "--epochs", "10000", "--checkpoint-epochs", "1", "--out", str(run)]
    with start(2, args) as both:
        assert has_checkpoint(run, both[0]), results(both)
        both[1].terminate()
        (code, _, errors), (other, *texts) = results(both, 60)
    assert (code, other, texts) == (143, 143, ["", ""])
    assert errors.splitlines()[-1].endswith(f"--out {run} --resume")
    newest, *_ = checkpoint.all_of(run)
    assert checkpoint.is_intact(newest)
    assert int(newest.name) == rundir.read_metrics(run)[-1]["step"]


def test_other_options_than_the_first_process_are_refused(tmp_path):
    args = ["train", *ARGS, "--out", str(tmp_path / "run")]
    with start(2, args, last=["--epochs", "3"]) as both:
        (code, *_), (other, _, errors) = results(both, 60)
    assert (code != 0, other) == (True, 2)
    (line,) = errors.splitlines()
    assert line.startswith("mnist-jax: process 1: epochs ")


CODE = """
import sys
import numpy as np
from mnist_jax.errors import SaveError
from mnist_jax.parallel import multihost
number, failing = int(sys.argv[2]), sys.argv[4]
multihost.JOIN_SECONDS = int(sys.argv[3])
with multihost.join(f"127.0.0.1:{sys.argv[1]}", 2, number):
    assert multihost.is_primary() == (number == 0)
    assert multihost.all_gather(number, 2**40) == [(0, 2**40), (1, 2**40)]
    assert multihost.max_over_processes(number, 3 - number) == [1, 3]
    assert multihost.broadcast_from_primary(lambda: ["of", number]) == ["of", 0]
    own = {"a": np.full(3, number + 7), "b": np.float32(number + 0.5)}
    arrays = multihost.arrays_from_primary(lambda: own, own)
    assert arrays["a"].tolist() == [7, 7, 7] and arrays["b"] == 0.5
    print("done")
    if failing == "first" and number == 0:
        raise SaveError("by this test")
    while failing == "last":
        multihost.all_gather(number)
        if number == 1:
            raise ZeroDivisionError("by this test")
"""


def run_code(failing):
    """The results of two processes that run `CODE`."""
    port = str(free_port())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    args = [[sys.executable, "-c", CODE, port, number, "60", failing] for number in "01"]
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(subprocess.Popen(each, **pipes)) for each in args]
        for process in both:
            stack.callback(process.kill)
        return results(both, 60)


def test_processes_exchange_values_and_end_after_nothing_failed():
    assert run_code("none") == [(0, "done\n", ""), (0, "", "")]


def test_an_error_in_one_process_ends_the_other():
    (code, output, errors), (other, silence, trace) = run_code("last")
    assert (output, silence) == ("done\n", "")
    assert code != 0
    assert errors
    assert other == 1
    assert "Traceback" in trace
    assert trace.endswith("mnist-jax: process 1: ZeroDivisionError('by this test')\n")


def test_what_the_primary_process_cannot_save_is_a_failure_of_all():
    (code, output, errors), (other, *texts) = run_code("first")
    assert (code, output, other, texts) == (1, "done\n", 1, ["", ""])
    assert "by this test" in errors


def test_a_process_that_nobody_answers_ends():
    command = [sys.executable, "-c", CODE, str(free_port()), "1", "3", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "waiting for the other processes"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("localhost", 2, 0), "takes HOST:PORT"),
        (("localhost:66000", 2, 0), "takes HOST:PORT"),
        (("localhost:4000", 0, 0), "--processes 0 cannot be used"),
        (("localhost:4000", 2, 2), "--process 2 cannot be used: it takes 0 to 1"),
        (("auto", 2, 0), "finds --processes and --process"),
    ],
)
def test_bad_input_is_named(given, problem):
    with pytest.raises(InputError, match=problem), multihost.join(*given):
        pass


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="choose another port"):
            multihost.join(address, 2, 0).__enter__()


def test_where_there_is_no_cluster_auto_is_refused(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_")):
            monkeypatch.delenv(name)
    args = [sys.executable, "-m", "mnist_jax", "train", "--coordinator", "auto"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mnist-jax: --coordinator auto cannot be used")
    assert "SLURM" in last
    assert "--coordinator HOST:PORT" in last


def test_one_process_is_its_own_primary():
    assert multihost.is_primary()
    assert multihost.all_gather(3, 4) == [(3, 4)]
    assert multihost.max_over_processes(3, 4) == [3, 4]
    assert multihost.broadcast_from_primary(lambda: "as it is") == "as it is"
    multihost.require_same({"epochs": 3})
