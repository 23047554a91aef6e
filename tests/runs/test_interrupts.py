"""Signals to a process that trains, as a person or a scheduler sends them."""

import re
import shlex
import signal
import subprocess
import sys
import threading

import pytest

from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.interrupts import listening

# Small, but of so many epochs that it never ends by itself.
ENDLESS = "train --dataset digits --hidden 8 --batch-size 32 --epochs 1000000"


@pytest.fixture
def training(tmp_path):
    """Starts a process, waits for its first epoch, and gives it and its standard error so far."""
    started = []

    def start(flags, *, prefix=()):
        args = [*prefix, sys.executable, "-m", "mnist_jax", *shlex.split(flags)]
        process = subprocess.Popen(
            [*args, "--out", str(tmp_path / "run")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_epoch_and_the_last_line_goes_on(training, tmp_path, number, code):
    process = training(ENDLESS)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{number.name}: ending what is under way; Ctrl-C now stops at once" in err
    run = tmp_path / "run"
    last = err.splitlines()[-1]
    found = re.fullmatch(
        r"mnist-jax: stopped after epoch (\d+) of 1000000; go on with: mnist-jax (.*)", last
    )
    assert found, last
    assert found[2] == f"{ENDLESS} --out {run} --resume"
    records = rundir.read_metrics(run)
    assert len(records) == int(found[1])
    (folder,) = checkpoint.all_of(run)
    assert checkpoint.is_whole(folder)
    assert rundir.read_metrics(folder) == records


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_a_run_begins_a_signal_ends_it_at_once(number, code):
    script = """
import sys
from mnist_jax import cli

cli.Samples.run = lambda self: print("ready", flush=True) or sys.stdin.read()
cli.main(["samples"])
"""
    pipe = subprocess.PIPE
    args = [sys.executable, "-c", script]
    with subprocess.Popen(args, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        assert process.stderr.read() == "mnist-jax: interrupted\n"


@pytest.mark.parametrize("first", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_ctrl_c_after_a_signal_stops_in_the_middle_of_an_epoch(tmp_path, first):
    """The epochs of this network take minutes; all signals come in its first one.

    A scheduler may send SIGTERM twice, and only Ctrl-C is somebody who does not want to wait.
    """
    wide = "train --dataset digits --hidden 4000 4000 4000 --batch-size 1 --epochs 9"
    args = [sys.executable, "-m", "mnist_jax", *wide.split(), "--out", str(tmp_path / "wide")]
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        while process.poll() is None and not (tmp_path / "wide" / "metrics.jsonl").exists():
            pass
        process.send_signal(first[0])
        assert "ending what is under way" in process.stderr.readline()
        for number in (*first[1:], signal.SIGINT):
            process.send_signal(number)
        assert process.stderr.readline() == "mnist-jax: interrupted\n"
        assert process.wait() == 130
        watch.cancel()
    assert rundir.read_metrics(tmp_path / "wide") == []


def test_what_the_parent_had_us_ignore_stays_ignored(training):
    """As nohup does, and a shell for what it runs in the background."""
    process = training(ENDLESS, prefix=["sh", "-c", 'trap "" INT; exec "$@"', "sh"])
    process.send_signal(signal.SIGINT)
    for _ in range(50):
        assert process.stderr.readline().startswith("epoch")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with listening(patient=True) as received:
        signal.raise_signal(signal.SIGTERM)
    assert received.number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_stops_a_cell_of_a_notebook_and_not_its_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    with listening(patient=True) as received:
        signal.raise_signal(signal.SIGINT)
        assert received.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_changes_nothing():
    found = []

    def listen():
        with listening(patient=True) as received:
            found.append((received.number, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [(None, before)]
