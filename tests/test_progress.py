import io
import sys
from types import SimpleNamespace

import pytest

from mnist_jax.progress import NotebookBar, progress, say

RECORD = {
    "epoch": 3,
    "train_loss": [0.25, 0.75],
    "train_error_percent": [2.0, 4.0],
    "seconds": 2.0,
    "images_per_second": 12345.6,
}


def test_plain_lines_off_a_terminal(capsys):
    with progress(epochs=10, seeds=2) as show:
        show(RECORD)
        show({**RECORD, "epoch": 4, "validation_error_percent": [1.0, 2.0]})
    assert capsys.readouterr().err.splitlines() == [
        "epoch 3/10, 14 s left, loss 0.5000, accuracy 97.00 %, 12,346 images/s, means of 2 seeds",
        "epoch 4/10, 12 s left, loss 0.5000, accuracy 97.00 %, validation 98.50 %, "
        "12,346 images/s, means of 2 seeds",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(epochs=10, seeds=1) as show:
        show({**RECORD, "train_loss": [0.25], "train_error_percent": [2.0]})
    shown = sys.stderr.getvalue()
    assert "\r" in shown
    assert " 1/10, " in shown
    assert "left, loss 0.2500, accuracy 98.00 %, 12,346 images/s" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stderr_that_is_gone_does_not_end_a_run(monkeypatch, terminal):
    """As when the terminal of a background job is closed, or the disk of its log is full."""

    class Gone(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with progress(epochs=10, seeds=2) as show:
        show(RECORD)
    say("more")


@pytest.mark.parametrize(
    ("options", "shown"), [({}, 1), ({"delay": 100}, 0), ({"disable": True}, 0)]
)
def test_a_notebook_has_one_line_or_none(options, shown, monkeypatch):
    """None where the bar is off, or over before it would be of use."""
    lines, later = [], []

    def display(line, **_):
        lines.append(line)
        return SimpleNamespace(update=lambda line, raw: later.append(line))

    monkeypatch.setattr("IPython.display.display", display)
    with NotebookBar(total=2, **options) as bar:
        bar.update()
        bar.update()
    assert len(lines) == shown
    assert bool(later) == bool(shown)
    if shown:
        assert "2/2" in later[-1]["text/plain"]
