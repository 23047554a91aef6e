"""Signals to a process that trains, as a person or a scheduler sends them."""

import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.signals import graceful_shutdown, wait

# A small network, with so many epochs that it never ends by itself.
ENDLESS = "train --dataset digits --hidden 8 --batch-size 32 --epochs 1000000"


@pytest.fixture
def training(tmp_path):
    """A function that starts a process, and returns it after its first epoch."""
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
def test_a_signal_ends_training_after_the_epoch_and_the_last_line_resumes_it(
    training, tmp_path, number, code
):
    process = training(ENDLESS)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{number.name}: training ends after this epoch; Ctrl-C stops it at once" in err
    run = tmp_path / "run"
    last = err.splitlines()[-1]
    match = re.fullmatch(
        r"mnist-jax: stopped after epoch (\d+) of 1000000; resume with: mnist-jax (.*)", last
    )
    assert match, last
    assert match[2] == f"{ENDLESS} --out {run} --resume"
    history = rundir.read_metrics(run)
    assert len(history) == int(match[1])
    (folder,) = checkpoint.all_of(run)
    assert checkpoint.is_intact(folder)
    assert rundir.read_metrics(folder) == history


@pytest.mark.parametrize("command", ["train", "samples"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_training_ends_the_process_at_once(tmp_path, number, code, command):
    script = """
import sys, time
from mnist_jax import data
from mnist_jax.__main__ import main


def load(*_):
    print("ready", flush=True)
    while True:
        time.sleep(0.1)


data.load = load
main(sys.argv[1:])
"""
    pipe = subprocess.PIPE
    args = [sys.executable, "-c", script, command, "--out", str(tmp_path / "out.png")]
    with subprocess.Popen(args, stdout=pipe, stderr=pipe, text=True) as process:
        timeout = threading.Timer(60, process.kill)
        timeout.start()
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stderr.read() == "mnist-jax: interrupted\n"
        assert process.wait() == code
        timeout.cancel()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_ctrl_c_after_a_signal_stops_in_the_middle_of_an_epoch(tmp_path, first):
    """The epochs of this network take minutes; all signals come in its first one.

    A scheduler may send SIGTERM twice; only Ctrl-C comes from a person who does not want to wait.
    """
    wide = "train --dataset digits --hidden 4000 4000 4000 --batch-size 1 --epochs 9"
    args = [sys.executable, "-m", "mnist_jax", *wide.split(), "--out", str(tmp_path / "wide")]
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True) as process:
        timeout = threading.Timer(60, process.kill)
        timeout.start()
        while process.poll() is None and not (tmp_path / "wide" / "metrics.jsonl").exists():
            pass
        process.send_signal(first[0])
        assert "training ends after this epoch" in process.stderr.readline()
        time.sleep(3)  # by then the device computes, and Python waits
        for number in (*first[1:], signal.SIGINT):
            process.send_signal(number)
        assert process.stderr.readline() == "mnist-jax: interrupted\n"
        assert process.wait() == 130
        timeout.cancel()
    assert rundir.read_metrics(tmp_path / "wide") == []


def test_a_signal_that_the_parent_process_ignores_stays_ignored(training):
    """nohup ignores one, and so does a shell for what it runs in the background."""
    process = training(ENDLESS, prefix=["sh", "-c", 'trap "" INT; exec "$@"', "sh"])
    process.send_signal(signal.SIGINT)
    for _ in range(50):
        assert process.stderr.readline().startswith("epoch")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_the_previous_handlers_return():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with graceful_shutdown() as shutdown:
        assert not shutdown.signal_number
        signal.raise_signal(signal.SIGTERM)
    assert shutdown.signal_number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_raises_keyboard_interrupt(first):
    """In a notebook it ends the cell, and the kernel lives on."""
    with graceful_shutdown() as shutdown:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert shutdown.signal_number == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_changes_no_handler():
    seen = []

    def enter():
        with graceful_shutdown() as shutdown:
            seen.append((shutdown.signal_number, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def test_signals_are_handled_while_the_device_computes():
    """The product takes seconds; a signal that comes early is handled long before it is done."""
    product = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ x), x))
    x = jnp.eye(1000)
    start = time.perf_counter()
    product(x).block_until_ready()
    whole = time.perf_counter() - start
    handled = []
    previous = signal.signal(signal.SIGALRM, lambda *_: handled.append(time.perf_counter()))
    try:
        signal.setitimer(signal.ITIMER_REAL, whole / 10)
        result = product(x)
        wait({"result": result})
        end = time.perf_counter()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert result.is_ready()
    assert end - handled[0] > whole / 4


def test_a_signal_may_come_while_the_progress_bar_is_imported():
    script = """
import signal, sys
from mnist_jax.runs.signals import graceful_shutdown


class Finder:
    def find_spec(self, name, *_):
        if name in ("tqdm.std", "tqdm.auto"):
            signal.raise_signal(signal.SIGTERM)


sys.meta_path.insert(0, Finder())
with graceful_shutdown() as shutdown:
    import tqdm.auto
print(shutdown.signal_number)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{signal.SIGTERM.value}\n", done.stderr
    assert "training ends after this epoch" in done.stderr
