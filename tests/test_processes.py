"""Two processes, joined by `jax.distributed` on this machine, as one run."""

import json
import socket
import subprocess
import sys

import pytest

from mnist_jax import processes, rundir
from mnist_jax.config import Config
from mnist_jax.fit import fit

OPTIONS = {"dataset": "digits", "hidden": (24,), "epochs": 2, "batch_size": 32, "seeds": 2}

CODE = """
import json, sys
from pathlib import Path
import jax

port, folder = sys.argv[1], sys.argv[5]
number, across, within = map(int, sys.argv[2:5])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, cluster_detection_method="deactivate")
from mnist_jax import fit as module, processes
from mnist_jax.config import Config, Saving

module.draw = lambda *_: []
options = json.loads(sys.argv[6])
config = Config(**{**options, "hidden": tuple(options["hidden"])})
assert processes.of_all(number, 7) == [(0, 7), (1, 7)]
assert processes.of_leader(lambda: ["of", number]) == ["of", 0]
out, mesh = Path(folder) / f"{across}x{within}", (across, within)
saving = Saving(checkpoint_epochs=1)
module.fit(config, out if processes.leads() else None, mesh=mesh, saving=saving)
again = module.fit(config, out, mesh=mesh, saving=saving, resume=True)  # is finished
assert again.states.step.tolist() == [88, 88], again.states.step
jax.distributed.shutdown()
"""


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)])
def test_two_processes_are_one_run(tmp_path, mesh):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*map(str, mesh), str(tmp_path), json.dumps(OPTIONS)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([sys.executable, "-c", CODE, str(port), str(number), *words], **pipes)
        for number in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=200) for process in both]
    finally:
        for process in both:
            process.kill()
    for process, (_, errors) in zip(both, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    alone = fit(Config(**OPTIONS), tmp_path / "alone")
    (folder,) = (path for path in tmp_path.iterdir() if path != alone.path)
    pairs = zip(rundir.read_metrics(folder), rundir.read_metrics(alone.path), strict=True)
    for together, one in pairs:
        assert together["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    summaries = [rundir.read_summary(path) for path in (folder, alone.path)]
    assert summaries[0]["test_errors"] == summaries[1]["test_errors"]
    assert summaries[0]["device"].startswith("2 x ")


def test_one_process_leads_itself():
    assert processes.leads()
    assert processes.of_all(3, 4) == [(3, 4)]
    assert processes.of_leader(lambda: "as it is") == "as it is"
