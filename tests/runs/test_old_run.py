"""A run folder that an earlier version left can be read, evaluated, resumed and exported.

`old_run/` was made by commit cdcbf4f, with a checkpoint of epochs 1 and 3 of 3:

    mnist-jax train --dataset digits --hidden 8 --epochs 3 --seeds 2 --batch-size 64 --batch-norm \\
        --ema-decay 0.9 --validation-images 300 --checkpoint-epochs 1 --checkpoint-minutes 0
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from mnist_jax.config import Config
from mnist_jax.errors import InputError
from mnist_jax.fit import fit
from mnist_jax.runs import rundir
from mnist_jax.runs.results import load_data, load_run, measure
from mnist_jax.serve.export import to_safetensors

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def edit_config(folder: Path, **changes) -> None:
    """Changes fields of config.json, and of every checkpoint's; None removes a field."""
    for file in folder.rglob("config.json"):
        fields = {**json.loads(file.read_text()), **changes}
        fields = {name: value for name, value in fields.items() if value is not None}
        file.write_text(json.dumps(fields))
    for checkpoint in folder.glob("checkpoints/*"):
        sums = checkpoint / "SHA256SUMS"
        names = [line.split("  ")[1] for line in sums.read_text().splitlines()]
        digests = [hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names]
        lines = (f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
        sums.write_text("".join(lines))


def test_it_makes_the_same_errors(folder):
    run = load_run(folder)
    summary = rundir.read_summary(OLD)
    result = measure(run, load_data(run).test)
    assert result["test_errors"] == summary["test_errors"]
    assert result["confusion"] == summary["confusion"]
    np.testing.assert_allclose(result["test_loss"], summary["test_loss"], rtol=1e-5)


def test_it_exports_the_same_arrays(folder):
    arrays, expected = load(to_safetensors(load_run(folder))), load_file(OLD / "model.safetensors")
    assert set(arrays) == set(expected)
    for name in expected:
        np.testing.assert_allclose(arrays[name], expected[name], rtol=1e-6, atol=1e-7)


def test_it_is_finished(folder, capsys):
    fit(load_run(folder).config, folder, resume=True)
    assert "already finished" in capsys.readouterr().out


def test_it_resumes_from_its_first_checkpoint(folder):
    """The result is the same, except for how another machine or version rounds."""
    shutil.rmtree(folder / "checkpoints" / "51")
    (folder / "summary.json").unlink()
    fit(load_run(OLD).config, folder, resume=True)
    history, expected = rundir.read_metrics(folder), rundir.read_metrics(OLD)
    assert history[0] == expected[0]
    for name in ("train_loss", "validation_loss"):
        losses = [[metrics[name] for metrics in each] for each in (history, expected)]
        np.testing.assert_allclose(*losses, rtol=0.01)
    summary = rundir.read_summary(folder)
    assert summary["resumed_from_epoch"] == 1
    np.testing.assert_allclose(
        summary["test_errors"], rundir.read_summary(OLD)["test_errors"], atol=5
    )


def test_fields_that_are_newer_than_the_run_take_their_defaults(folder):
    edit_config(folder, label_smoothing=None, noise=None, precision=None)
    run = load_run(folder)
    assert run.config == load_run(OLD).config
    shutil.rmtree(folder / "checkpoints" / "51")
    (folder / "summary.json").unlink()
    fit(run.config, folder, resume=True)
    assert rundir.read_summary(folder)["resumed_from_epoch"] == 1


def test_fields_that_no_version_knows_are_refused(folder):
    edit_config(folder, layers=3)
    with pytest.raises(InputError, match="unknown fields: layers"):
        load_run(folder)


def test_the_config_is_the_one_it_was_made_with(folder):
    assert load_run(folder).config == Config(
        dataset="digits",
        validation_images=300,
        hidden=(8,),
        batch_norm=True,
        epochs=3,
        batch_size=64,
        ema_decay=0.9,
        seeds=2,
    )
