import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_jax.__main__ import COMMANDS, main
from mnist_jax.config import Config
from mnist_jax.runs import rundir
from tests.conftest import tiny_arrays

QUICK = ["--dataset", "digits", "--hidden", "16", "--epochs", "2", "--batch-size", "32"]


def call(capsys, *args) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command in this process."""
    code = 0
    try:
        main([str(arg) for arg in args])
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def command(*args, **options) -> subprocess.CompletedProcess[str]:
    """One command as a person runs it."""
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, "-m", "mnist_jax", *map(str, args)], **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    main(["train", *QUICK, "--seeds", "2", "--out", str(path)])
    return path


# All of it, in processes of their own


def test_train_evaluate_predict_plot(tmp_path, digits):
    run = tmp_path / "run"
    done = command("train", *QUICK, "--seeds", 2, "--out", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("digits: 1,437 images to train on")
    assert re.search(r"^digits test accuracy [\d.]+ \+/- [\d.]+ % \(n = 2\): ", done.stdout, re.M)
    assert len(re.findall(r"^epoch [12]/2, \d+ s left, loss", done.stderr, re.M)) == 2
    summary = rundir.read_summary(run)

    evaluated = command("evaluate", run)
    assert evaluated.returncode == 0, evaluated.stderr
    errors = ", ".join(map(str, summary["test_errors"]))
    assert f"{errors} of 360 images misread" in evaluated.stdout
    assert re.search(r"^ +7 +[\d.]+ %$", evaluated.stdout, re.M)

    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(digits.test.images[i]).save(file)
    predicted = command("predict", run, *files, "--json")
    assert predicted.returncode == 0, predicted.stderr
    answers = json.loads(predicted.stdout)
    assert [answer["file"] for answer in answers] == [str(file) for file in files]
    for answer in answers:
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == int(np.argmax(answer["probabilities"]))

    shutil.rmtree(run / "figures")
    assert command("plot", run).returncode == 0
    assert len(list((run / "figures").glob("*.png"))) == 5


def test_the_script_is_the_same_program(capsys):
    script = shutil.which("mnist-jax", path=str(Path(sys.executable).parent))
    assert script, "the package is not installed with its script"
    help = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert help == command("--help").stdout
    for name in COMMANDS:
        assert name in help


def test_every_option_of_the_config_is_in_the_help():
    help = command("train", "--help", env={**os.environ, "COLUMNS": "200"}).stdout
    for name in vars(Config()):
        assert f"--{name.replace('_', '-')}" in help


def test_flags_reach_the_config(tmp_path, capsys):
    flags = (
        "--dataset digits --validation-images 37 --hidden 12 9 --activation tanh "
        "--initializer lecun_normal --input-dropout 0.1 --dropout 0.3 --epochs 2 --batch-size 64 "
        "--learning-rate 0.05 --schedule cosine --warmup-steps 3 --momentum 0.8 --nesterov "
        "--weight-decay 0.001 --seed 5 --seeds 2 --input-noise 0.01 --noise 0.02 --batch-norm "
        "--rotation-degrees 1.5 --shear-degrees 2.5 --scale 0.03 --shift-pixels 0.5 "
        "--elastic-sigma-pixels 3.5 --elastic-alpha-pixels 4.5 --label-smoothing 0.04 "
        "--optimizer adam --max-norm 5.5 --ema-decay 0.06 --shard-images 640 --precision bfloat16"
    )
    code, _, err = call(capsys, "train", *flags.split(), "--out", tmp_path / "run")
    assert code == 0, err
    config = rundir.read_config(tmp_path / "run")
    del config["data"], config["data_dir"], config["environment"], config["recipe"]
    assert config == {
        "dataset": "digits",
        "validation_images": 37,
        "hidden": [12, 9],
        "input_noise": 0.01,
        "noise": 0.02,
        "batch_norm": True,
        "rotation_degrees": 1.5,
        "shear_degrees": 2.5,
        "scale": 0.03,
        "shift_pixels": 0.5,
        "elastic_sigma_pixels": 3.5,
        "elastic_alpha_pixels": 4.5,
        "label_smoothing": 0.04,
        "optimizer": "adam",
        "max_norm": 5.5,
        "ema_decay": 0.06,
        "shard_images": 640,
        "precision": "bfloat16",
        "activation": "tanh",
        "initializer": "lecun_normal",
        "input_dropout": 0.1,
        "dropout": 0.3,
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": 0.05,
        "schedule": "cosine",
        "warmup_steps": 3,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.001,
        "seed": 5,
        "seeds": 2,
    }


@pytest.fixture(scope="module")
def mnist_run(mnist_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mnist"
    flags = ["--dataset", "mnist", "--hidden", "64", "--epochs", "1", "--seeds", "2"]
    main(["train", *flags, "--data-dir", str(mnist_dir), "--out", str(path)])
    return path


def predicted_labels(capsys, run, files) -> np.ndarray:
    code, out, err = call(capsys, "predict", run, *files, "--json")
    assert code == 0, err
    return np.array([answer["label"] for answer in json.loads(out)])


def test_png_files_of_mnist_are_misread_exactly_as_often(mnist_run, mnist, tmp_path, capsys):
    files = [tmp_path / f"{i}.png" for i in range(10_000)]
    for image, file in zip(mnist.test.images, files, strict=True):
        Image.fromarray(image).save(file)
    errors = int((predicted_labels(capsys, mnist_run, files) != mnist.test.labels).sum())
    assert errors == rundir.read_summary(mnist_run)["test_errors"][0]


@pytest.mark.long
def test_photos_of_mnist_are_read_as_well_as_mnist(mnist_run, mnist, tmp_path, capsys):
    """Dark digits on a light page, ten times as large, off the centre, as JPEG."""
    files = [tmp_path / f"{i}.jpg" for i in range(500)]
    for image, file in zip(mnist.test.images, files, strict=False):
        digit = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        page = Image.new("L", (500, 400), 255)
        page.paste(digit, (190, 20))
        page.save(file)
    errors = int((predicted_labels(capsys, mnist_run, files) != mnist.test.labels[:500]).sum())
    allowed = rundir.read_summary(mnist_run)["test_error_percent_mean"] / 100 * 500
    assert errors <= 1.5 * allowed


# Samples


def test_samples_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    code, out, _ = call(capsys, "samples", "--dataset", "digits")
    assert (code, out) == (0, "digits: the first 4 training images, in samples.png\n")
    with Image.open("samples.png") as picture:
        assert min(picture.size) > 200


# Predictions for people


def test_a_prediction_is_a_line(run, tmp_path, digits, capsys):
    file = tmp_path / "digit.png"
    Image.fromarray(digits.test.images[0]).save(file)
    code, out, _ = call(capsys, "predict", run, file)
    assert code == 0
    (line,) = out.splitlines()
    match = re.fullmatch(rf"{re.escape(str(file))}: (\d) \([\d.]+%; next (\d), [\d.]+%\)", line)
    assert match
    (answer,) = json.loads(call(capsys, "predict", run, file, "--json")[1])
    assert set(answer) == {"file", "label", "name", "probabilities"}
    best_two = np.argsort(answer["probabilities"])[:-3:-1]
    assert [int(label) for label in match.groups()] == best_two.tolist()


def test_a_network_that_diverged_gives_no_answer(tmp_path, digits, capsys):
    options = [*QUICK, "--learning-rate", "1e30", "--out", tmp_path / "run"]
    assert call(capsys, "train", *options)[0] == 0
    Image.fromarray(digits.test.images[0]).save(tmp_path / "digit.png")
    commands = [("predict", tmp_path / "digit.png"), ("explain",), ("page",)]
    commands += [("export", "--format", name) for name in ("stablehlo", "onnx", "safetensors")]
    for command, *more in commands:
        code, out, err = call(capsys, command, tmp_path / "run", *more)
        assert (code, out) == (2, "")
        assert re.fullmatch(r"mnist-jax: the network of \S+ diverged: [^\n]*\n", err)


def test_explain_prints_the_files_of_its_figures(run, capsys):
    code, out, err = call(capsys, "explain", run, "--image", 5)
    assert code == 0, err
    files = [Path(line) for line in out.splitlines()]
    assert [file.stem for file in files][:3] == ["units-1", "message", "pixels"]
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 300
    code, _, err = call(capsys, "explain", run, "--image", 360)
    assert (code, err) == (2, "mnist-jax: --image 360 cannot be used: it takes 0 to 359\n")


def test_predictions_as_a_figure(mnist_run, mnist, tmp_path, capsys):
    Image.fromarray(mnist.test.images[0]).save(tmp_path / "seven.png")
    figure = tmp_path / "answers.png"
    flags = [tmp_path / "seven.png", "--picture", figure]
    plain = call(capsys, "predict", mnist_run, *flags[:1], "--json")
    assert call(capsys, "predict", mnist_run, *flags, "--json") == plain  # nothing else is printed
    with Image.open(figure) as picture:
        assert picture.width > 2 * picture.height > 400


def test_the_error_for_a_bad_photo_names_it_and_the_remedy_in_one_line(
    mnist_run, mnist, tmp_path, capsys
):
    random = np.random.default_rng(0)
    dark = 255 - np.kron(mnist.test.images[:2], np.ones((1, 8, 8), np.uint8))
    bad = {
        "blank": (np.full((200, 300), 190), "blank"),
        "two": (np.hstack(dark), "shows 2 digits or marks"),
        "noise": (random.integers(0, 256, (200, 300)), "no digit stands out"),
        "ball": (np.hypot(*np.mgrid[-90:90, -90:90]) > 40, "no digit stands out"),
    }
    good = tmp_path / "good.png"
    Image.fromarray(dark[0]).save(good)
    for name, (page, expected) in bad.items():
        file = tmp_path / f"{name}.png"
        Image.fromarray((200 * page if page.dtype == bool else page).astype(np.uint8)).save(file)
        code, out, err = call(capsys, "predict", mnist_run, good, file)
        assert (code, out) == (2, "")
        assert err.startswith(f"mnist-jax: {file}: ")
        assert err.count("\n") == 1
        assert expected in err


# Bad input: one line on standard error, exit code 2, nothing half-written

BAD_TRAIN = {
    "unknown dataset": ("--dataset cifar10", "--dataset cifar10 is unknown; choose one of"),
    "unknown flag": ("--drpout 0.3", "--drpout"),
    "word for a number": ("--epochs ten", "ten"),
    "fraction for a count": ("--epochs 2.5", "2.5"),
    "unknown activation": ("--activation swishy", "swishy"),
    "unknown schedule": ("--schedule step", "step"),
    "zero epochs": ("--epochs 0", "--epochs 0 cannot be used: it takes 1 to 1000000"),
    "negative width": ("--hidden 64 -3", "-3"),
    "zero width": ("--hidden 64 0", "--hidden 64 0 cannot be used"),
    "negative batch": ("--batch-size -5", "--batch-size -5"),
    "batch beyond the data": ("--batch-size 2000", "at most the 1437 training images"),
    "dropout of 1": (
        "--dropout 1",
        "--dropout 1.0 cannot be used: it takes",
    ),
    "input dropout above 1": ("--input-dropout 1.5", "--input-dropout 1.5"),
    "learning rate nan": ("--learning-rate nan", "--learning-rate nan"),
    "no seeds": ("--seeds 0", "--seeds 0"),
    "huge seed": ("--seed 5000000000", "--seed 5000000000"),
    "too much validation": ("--validation-images 1437", "--validation-images 1437"),
    "endless warm-up": ("--warmup-steps 9999", "--warmup-steps 9999"),
    "stray word": ("now", "now"),
    "huge width": (
        "--hidden 100000000",
        "--hidden 100000000 cannot be used: it takes up to 1000 widths from 1",
    ),
    "huge population": ("--seeds 1000000000", "--seeds 1000000000 cannot be used"),
    "more than memory holds": (
        "--hidden 1000000 1000000",
        "do not fit into memory; lower --hidden",
    ),
}


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_flags_of_train(name, tmp_path, capsys):
    flags, expected = BAD_TRAIN[name]
    code, out, err = call(capsys, "train", *QUICK, *flags.split(), "--out", tmp_path / "run")
    assert code == 2
    assert out == "" or name == "more than memory holds"  # which is known only after loading
    assert err.startswith("mnist-jax: ")
    assert err.count("\n") == 1
    assert expected in err
    assert "tyro" not in err
    assert list(tmp_path.iterdir()) == []


TRAIN = ["train", *QUICK, "--out"]
SAMPLES = ["samples", "--dataset", "digits"]

# TMP has a digit.png, a blank.png, a text.png that is not an image, an empty folder and a file.
BAD_PLACES = {
    "existing run": ([*TRAIN, "RUN"], "already exists; choose another --out"),
    "run under a file": ([*TRAIN, "TMP/file/run"], "Not a directory"),
    "run where nobody writes": ([*TRAIN, "/proc/run"], "cannot write /proc/run"),
    "no data there": (["train", "--data-dir", "TMP/empty"], "has no train-images-idx3-ubyte"),
    "no data folder": (["train", "--data-dir", "TMP/none"], "none does not exist"),
    "no run": (["evaluate", "TMP/none"], "is not a run folder"),
    "no run in the folder": (["plot", "TMP/empty"], "has no checkpoint"),
    "no picture": (["predict", "RUN", "TMP/text.png"], "cannot be read as a picture"),
    "missing picture": (["predict", "RUN", "TMP/no.png"], "no.png does not exist"),
    "blank picture": (["predict", "RUN", "TMP/blank.png"], "blank.png: the picture is blank"),
    "no images": (["predict", "RUN"], "at least one image"),
    "picture of no format": (
        ["predict", "RUN", "TMP/digit.png", "--picture", "TMP/x.xyz"],
        "it must end in .png",
    ),
    "picture of too many": (
        ["predict", "RUN", *["TMP/digit.png"] * 21, "--picture", "TMP/x.png"],
        "at most 20 images, not 21",
    ),
    "no run to predict": (["predict", "TMP/none", "TMP/blank.png"], "is not a run folder"),
    "zero samples": ([*SAMPLES, "--count", "0"], "--count 0"),
    "samples nowhere": ([*SAMPLES, "--out", "TMP/file/x.png"], "cannot write"),
    "samples of no format": ([*SAMPLES, "--out", "TMP/x.xyz"], "it must end in .png"),
    "samples without a format": (
        [*SAMPLES, "--out", "TMP/x"],
        "x cannot be used: it must end in .png",
    ),
    "samples to a folder": (
        [*SAMPLES, "--out", "TMP/empty"],
        "empty cannot be used: it must end in .png",
    ),
    "too long a name": ([*TRAIN, "x" * 300], "File name too long"),
    "array of no data set": (
        ["train", "--dataset", "local", "--data-dir", "TMP/a.npy"],
        "is not an npz file of plain arrays",
    ),
    "no command": ([], "train"),
    "unknown command": (["trian"], "trian"),
}


@pytest.mark.parametrize("name", BAD_PLACES)
def test_bad_places(name, run, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(digits.test.images[0]).save(tmp_path / "digit.png")
    Image.new("L", (50, 50), 255).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    np.save(tmp_path / "a.npy", np.zeros(3))
    args, expected = BAD_PLACES[name]
    args = [arg.replace("TMP", str(tmp_path)).replace("RUN", str(run)) for arg in args]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(capsys, *args)
    assert code == 2, out
    assert err.startswith("mnist-jax: ")
    assert err.count("\n") == 1
    assert expected in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("rate", ["1e10", "1e30"])
def test_a_network_that_diverges_is_reported_and_saved(rate, tmp_path, capsys):
    run = tmp_path / "run"
    code, out, err = call(capsys, "train", *QUICK, "--learning-rate", rate, "--out", run)
    assert code == 0
    assert "1 of 1 networks diverged: their loss is not finite; lower --learning-rate" in err
    assert "loss nan" in out
    assert len(list((run / "figures").glob("*.png"))) == 5
    assert rundir.read_summary(run)["test_loss"] == [None]
    assert call(capsys, "plot", run)[0] == 0
    assert call(capsys, "evaluate", run)[0] == 0


def test_data_are_read_while_another_thread_imports_jax():
    """Here that thread imports nothing, so JAX is imported only if the main thread needs it."""
    script = """
import importlib, sys
from mnist_jax.__main__ import main

import_module = importlib.import_module


def import_all_but_fit(name, *args):
    if name != "mnist_jax.fit":
        return import_module(name, *args)
    print("data is imported:", hasattr(sys.modules.get("mnist_jax.data"), "load"))


importlib.import_module = import_all_but_fit
try:
    main(["train", "--data-dir", "nowhere"])
finally:
    print("jax is imported:", "jax" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "data folder nowhere does not exist" in done.stderr
    # Two threads that import NumPy at the same time may find it partly initialized.
    assert done.stdout == "data is imported: True\njax is imported: False\n"


def test_a_reader_of_the_output_may_stop_early(run):
    script = f'"{sys.executable}" -m mnist_jax evaluate "{run}" | true'
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True)
    assert done.stderr == ""


def test_data_that_have_moved_can_be_named(tmp_path, capsys):
    x_train, y_train, x_test, y_test = tiny_arrays()
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(old / "mnist.npz", **arrays)
    flags = ["--dataset", "local", "--hidden", "4", "--epochs", "1", "--batch-size", "8"]
    code, _, err = call(capsys, "train", *flags, "--data-dir", old, "--out", tmp_path / "run")
    assert code == 0, err
    old.rename(new)
    code, _, err = call(capsys, "evaluate", tmp_path / "run")
    assert (code, "check --data-dir" in err) == (2, True)
    assert call(capsys, "evaluate", tmp_path / "run", "--data-dir", new)[0] == 0
    np.savez(new / "mnist.npz", **{**arrays, "x_train": x_train[:, :2], "x_test": x_test[:, :2]})
    code, _, err = call(capsys, "evaluate", tmp_path / "run", "--data-dir", new)
    assert code == 2
    assert "is not what" in err


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", "{}"),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", "[1]"),
        ("metrics.jsonl", "{}"),
    ],
)
def test_damaged_metrics_cannot_be_plotted(run, tmp_path, capsys, file, content):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / file).write_text(content)
    code, _, err = call(capsys, "plot", copy)
    assert code == 2
    assert re.search(f"^mnist-jax: .*{file} .*--resume to repair it, or train again$", err, re.M)


def test_a_run_that_is_not_finished_can_be_evaluated(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    code, out, err = call(capsys, "evaluate", copy)
    assert code == 0
    assert err == f"{copy} is not finished: this is its state after epoch 2\n"
    assert out == call(capsys, "evaluate", run)[1]


def test_a_full_disk_is_reported_in_lines_and_the_result_is_printed(tmp_path):
    """A limit on the size of files, some 3 kB, stands for a full disk."""
    train = [sys.executable, "-m", "mnist_jax", "train", *QUICK, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 6 && exec "$@"', "sh", *train], capture_output=True, text=True
    )
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(
        r"mnist-jax: cannot write \S+: File too large; free some space .*"
        r"digits test accuracy .* of 360 images misread, loss [\d.]+",
        last,
    )
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    unfinished = command("evaluate", tmp_path / "run")
    assert unfinished.returncode == 2
    assert "has no checkpoint" in unfinished.stderr


def test_a_first_run_without_network_or_data_trains_on_the_digits(tmp_path):
    """The proxy is a closed port, so that no host can be reached."""
    env = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "https_proxy": "http://127.0.0.1:9",
    }
    out = tmp_path / "run"
    done = command("train", "--hidden", 16, "--epochs", 1, "--out", out, env=env)
    assert done.returncode == 0, done.stderr
    assert "MNIST IS NOT HERE" in done.stderr
    assert "name it with --data-dir or MNIST_JAX_DATA" in " ".join(done.stderr.split())
    assert "digits test accuracy" in done.stdout
    assert rundir.read_summary(out)["dataset"] == "digits"
    assert rundir.read_config(out)["dataset"] == "digits"

    by_name = command("train", "--dataset", "mnist", "--out", tmp_path / "other", env=env)
    assert by_name.returncode == 2
    assert by_name.stdout == ""
    assert re.fullmatch(r"mnist-jax: mnist could not be downloaded \(.*\); .*\n", by_name.stderr)
    assert not (tmp_path / "other").exists()


def test_missing_data_are_reported_in_one_line_while_jax_is_imported(tmp_path):
    done = command("train", "--dataset", "mnist", "--data-dir", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"mnist-jax: .*nowhere.*\n", done.stderr), done.stderr


# Compiled programs, which JAX saves

CACHED = ["train", "--dataset", "digits", "--hidden", "16", "--epochs", "2"]

COUNTING = """
import collections, sys
from mnist_jax.__main__ import main
from mnist_jax.options import keep_compiled_programs

keep_compiled_programs(True)  # before JAX is imported
import jax.monitoring

events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
main(sys.argv[1:])
for name in ("hits", "misses"):
    print(events[f"/jax/compilation_cache/cache_{name}"], file=sys.stderr)
"""


def user_environment(cache, **variables):
    """The environment of a user, whose cache folder is `cache`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return {**env, "XDG_CACHE_HOME": str(cache), **variables}


def programs(folder):
    """The files of the programs in a cache, and the names of the programs."""
    files = sorted(folder.glob("*-cache"))
    return files, [file.name.split("-")[0] for file in files]


def result_of(run):
    """What must not change with the cache: losses and errors, to the bit."""
    losses = [metrics["train_loss"] for metrics in rundir.read_metrics(run)]
    summary = rundir.read_summary(run)
    return losses, summary["test_errors"], summary["test_loss"]


def test_a_second_process_compiles_nothing_and_has_the_same_result(tmp_path):
    cache = tmp_path / "cache" / "mnist_jax" / "programs"
    env = user_environment(tmp_path / "cache")

    def train(name, *flags):
        args = [sys.executable, "-c", COUNTING, *CACHED, "--out", str(tmp_path / name)]
        done = subprocess.run(args, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        *lines, hits, misses = done.stderr.splitlines()
        assert all(line.startswith("epoch") for line in lines), done.stderr
        return int(hits), int(misses)

    hits, misses = train("cold")
    assert hits < misses
    _, names = programs(cache)
    assert len(names) == misses
    assert {"jit_init", "jit_train_epoch", "jit_evaluate", "jit_predict"} <= set(names)
    assert len(names) <= 12  # each costs time to look up
    assert train("warm") == (hits + misses, 0)
    assert result_of(tmp_path / "warm") == result_of(tmp_path / "cold")


def test_without_the_compilation_cache_nothing_is_saved_and_nothing_changes(tmp_path):
    env, results = user_environment(tmp_path / "cache"), []
    for name, flag in (("with", "--compilation-cache"), ("without", "--no-compilation-cache")):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        done = command(*CACHED, flag, "--out", tmp_path / name, env=env)
        assert done.returncode == 0, done.stderr
        results.append(result_of(tmp_path / name))
    assert not (tmp_path / "cache" / "mnist_jax" / "programs").exists()
    assert results[0] == results[1]


def test_a_cache_folder_in_the_environment_is_used_and_no_other(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    env = user_environment(tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(own))
    done = command(*CACHED, "--out", tmp_path / "run", env=env)
    assert done.returncode == 0, done.stderr
    assert "jit_train_epoch" in programs(own)[1]
    assert (own / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "cache" / "mnist_jax" / "programs").exists()


@pytest.mark.parametrize("damage", ["flipped bit", "half", "nothing", "text"])
def test_damaged_compiled_programs_change_nothing(tmp_path, damage):
    """A process may be killed while it writes one, and a disk may flip a bit."""
    env = user_environment(tmp_path / "cache")
    assert command(*CACHED, "--out", tmp_path / "before", env=env).returncode == 0
    files, _ = programs(tmp_path / "cache" / "mnist_jax" / "programs")
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        damaged = {"flipped bit": flipped, "half": content[:middle], "nothing": b""}
        file.write_bytes(damaged.get(damage, b"not a program"))
    done = command(*CACHED, "--out", tmp_path / "after", env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert result_of(tmp_path / "after") == result_of(tmp_path / "before")


@pytest.mark.parametrize("obstacle", ["a file", "a full disk"])
def test_a_run_needs_no_place_for_compiled_programs(tmp_path, obstacle):
    """A limit on the size of files, some 50 kB, stands for the full disk."""
    if obstacle == "a file":
        (tmp_path / "cache").write_text("in the place of the folder")
    env = user_environment(tmp_path / "cache", MPLCONFIGDIR=str(tmp_path))
    limit = "ulimit -f 100; " if obstacle == "a full disk" else ""
    script = f'{limit}exec "$@"'
    args = [sys.executable, "-m", "mnist_jax", *CACHED, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *args], capture_output=True, text=True, env=env
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or obstacle == "a full disk", done.stderr  # figures are larger
    assert len(rundir.read_metrics(tmp_path / "run")) == 2
