"""Exported networks, loaded without this package."""

import json
import pathlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.numpy

from mnist_jax import train
from mnist_jax.config import Activation, Config
from mnist_jax.errors import InputError
from mnist_jax.fit import fit
from mnist_jax.runs.results import Run, first_network
from mnist_jax.serve import export
from tests.conftest import tiny_arrays
from tests.serve.test_page import untrained
from tests.test_cli import call

README = (Path(__file__).parents[2] / "mnist_jax" / "README.md").read_text()
SERVING = README.partition("## Serving\n")[2].partition("\n## ")[0]
BLOCKS = dict(zip(export.FORMATS, re.findall(r"```python\n(.*?)```", SERVING, re.S), strict=True))
TOLERANCE = {"rtol": 0, "atol": 3e-5}  # of logits up to 21, whose last bit is worth 0.2e-5


@pytest.fixture(scope="module", params=["the default network", "other ingredients"])
def trained(request, mnist, mnist_dir, tmp_path_factory) -> Run:
    """A network that was trained for one epoch."""
    options = {}
    if request.param == "other ingredients":
        options = {"hidden": (96, 64), "activation": "gelu", "batch_norm": True}
        options |= {"ema_decay": 0.99, "seed": 3, "seeds": 2}
    config = Config(dataset="mnist", data_dir=mnist_dir, epochs=1, **options)
    return fit(config, tmp_path_factory.mktemp("runs") / "run", dataset=mnist)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Run:
    """A tiny run."""
    train_images, train_labels, images, labels = tiny_arrays()
    arrays = {"x_train": train_images, "y_train": train_labels, "x_test": images, "y_test": labels}
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "mnist.npz", **arrays)
    config = Config(dataset="local", data_dir=folder, hidden=(3,), epochs=1, batch_size=20)
    return fit(config, tmp_path_factory.mktemp("runs") / "small")


def logits_of(run: Run, images: np.ndarray) -> np.ndarray:
    """The logits of the run itself."""
    return np.asarray(train.predict(run.recipe, first_network(run), images))


def with_stablehlo(content: bytes, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.export.deserialize(bytearray(content)).call(images))


def with_onnx(content: bytes, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(content).run(["logits"], {"images": images})[0]


def with_safetensors(content: bytes, images: np.ndarray) -> np.ndarray:
    """The logits for someone who has only the file and NumPy."""
    arrays, formula = safetensors.numpy.load(content), metadata(content)["activation_formula"]
    x = images.reshape(len(images), -1) / 255
    for i in range(len(arrays) // 2):
        x = x if i == 0 else eval(formula, {"np": np, "x": x})
        x = x @ arrays[f"{i}.kernel"] + arrays[f"{i}.bias"]
    return x


RUNTIMES = {"stablehlo": with_stablehlo, "onnx": with_onnx, "safetensors": with_safetensors}


def metadata(content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")  # the header's size, by the format's specification
    return json.loads(content[8 : 8 + size])["__metadata__"]


# The command, then the lines of the README in a process without this package


def logits_of_block(file: Path, images: np.ndarray, block: str) -> np.ndarray:
    """The logits that `block` computes in a new process; RUN in it is the folder of `file`."""
    inputs, outputs = file.with_name("images.npy"), file.with_name("logits.npy")
    np.save(inputs, images)
    code = (
        "import sys\n"
        "import numpy as np\n"
        f"images = np.load({str(inputs)!r})\n"
        f"{block.replace('RUN', str(file.parent))}"
        f"np.save({str(outputs)!r}, logits)\n"
        "assert 'mnist_jax' not in sys.modules\n"
    )
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return np.load(outputs)


@pytest.mark.parametrize("name", export.FORMATS)
def test_all_test_images_get_the_same_answers_as_from_the_run(
    name, trained, mnist, tmp_path, capsys
):
    file = tmp_path / f"model.{name}"
    code, _, err = call(capsys, "export", trained.path, "--format", name, "--out", file)
    assert (code, err) == (0, "")
    block = BLOCKS[name]
    if trained.config.activation == "gelu":  # the README's lines are for ReLU
        formula = export.ACTIVATIONS["gelu"][1].replace("x", "logits")
        block = block.replace("logits.clip(0)", formula)
    logits = logits_of_block(file, mnist.test.images, block)
    expected = logits_of(trained, mnist.test.images)
    assert logits.shape == (10_000, 10)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("name", export.FORMATS)
def test_the_command_prints_how_to_load_the_file(name, small, capsys):
    code, out, err = call(capsys, "export", small.path, "--format", name)
    assert (code, err) == (0, "")
    file, load = re.fullmatch(r"(\S+) \(0\.\d\d MB\): load it with (.*)\n", out).groups()
    assert Path(file) == small.path / f"model.{name}"
    modules = {"jax": jax, "onnxruntime": onnxruntime, "safetensors": safetensors}
    assert eval(load, {"pathlib": pathlib, **modules})


# Each format, compared with the run


@pytest.mark.parametrize("name", export.FORMATS)
@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation(activation, name, digits):
    run, _ = untrained((8, 8), hidden=(24, 16), activation=activation)
    images = digits.test.images
    logits = RUNTIMES[name](export.FORMATS[name][0](run), images)
    np.testing.assert_allclose(logits, logits_of(run, images), **TOLERANCE)


@pytest.mark.parametrize("name", export.FORMATS)
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_any_number_of_images_of_any_shape(hidden, name):
    run, dataset = untrained((3, 2), tuple("abc"), hidden=hidden)
    content = export.FORMATS[name][0](run)
    for n in (1, 7, 60):
        images = dataset.test.images[:n]
        logits = RUNTIMES[name](content, images)
        assert logits.shape == (n, 3)
        np.testing.assert_allclose(logits, logits_of(run, images), **TOLERANCE)


def test_stablehlo_is_for_three_platforms_and_has_no_source_paths():
    run, _ = untrained(hidden=(5,))
    limit = jax.config.jax_traceback_in_locations_limit
    content = export.to_stablehlo(run)
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert program.nr_devices == 1
    (images,), (logits,) = program.in_avals, program.out_avals
    assert (str(images.shape), images.dtype) == ("(n, 28, 28)", jnp.uint8)
    assert (str(logits.shape), logits.dtype) == ("(n, 10)", jnp.float32)
    assert b".py" not in content
    assert jax.config.jax_traceback_in_locations_limit == limit


def test_onnx_has_the_expected_operators_and_versions():
    run, _ = untrained(hidden=(5,), activation="gelu")
    model = onnx.load_from_string(export.to_onnx(run))
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert model.ir_version == 9  # what ONNX Runtime 1.17 reads
    operators = ["Cast", "Div", "Flatten", "Gemm", "Gelu", "Gemm"]
    assert [node.op_type for node in model.graph.node] == operators
    (images,), (logits,) = model.graph.input, model.graph.output
    for tensor, kind, shape in (
        (images, onnx.TensorProto.UINT8, ["n", 28, 28]),
        (logits, onnx.TensorProto.FLOAT, ["n", 10]),
    ):
        sizes = [size.dim_param or size.dim_value for size in tensor.type.tensor_type.shape.dim]
        assert (tensor.type.tensor_type.elem_type, sizes) == (kind, shape)


def test_safetensors_and_onnx_have_metadata():
    run, _ = untrained((3, 2), ("a", "ü", '"'), hidden=(5, 4), activation="tanh")
    content = export.to_safetensors(run)
    expected = {
        "inputs": "x = images.reshape(len(images), -1) / 255",
        "layers": "x = activation(x @ kernel + bias), without the activation in the last one",
        "activation": "tanh",
        "activation_formula": "np.tanh(x)",
        "image_shape": "[3, 2]",
        "class_names": json.dumps(["a", "ü", '"']),
    }
    assert metadata(content) == expected
    network = onnxruntime.InferenceSession(export.to_onnx(run))
    assert network.get_modelmeta().custom_metadata_map == expected
    shapes = {name: array.shape for name, array in safetensors.numpy.load(content).items()}
    kernels = {"0.kernel": (6, 5), "1.kernel": (5, 4), "2.kernel": (4, 3)}
    assert shapes == {**kernels, "0.bias": (5,), "1.bias": (4,), "2.bias": (3,)}


# Bad input


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["TMP/none", "--format", "onnx"], "is not a run folder"),
        (["RUN", "--format", "onnx", "--out", "TMP"], "Is a directory"),
        (["RUN", "--format", "onnx", "--out", "TMP/none/model.onnx"], "cannot write"),
        (["RUN", "--format", "onnx", "--out", "/proc/model"], "cannot write /proc/model"),
        (["RUN", "--format", "pickle"], "pickle"),
        (["RUN"], "--format"),
    ],
)
def test_bad_input_is_one_line(args, expected, small, tmp_path, capsys):
    args = [arg.replace("TMP", str(tmp_path)).replace("RUN", str(small.path)) for arg in args]
    code, _, err = call(capsys, "export", *args)
    assert (code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert expected in err


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_a_missing_package_is_named(name, small, tmp_path, capsys, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    args = ["export", small.path, "--format", name, "--out", tmp_path / "model"]
    code, out, err = call(capsys, *args)
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    expected = rf"mnist-jax: --format {name} needs {name} \(.*\): pip install {name}\n"
    assert re.fullmatch(expected, err)


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_network_that_diverged_is_refused(name):
    run, _ = untrained(hidden=(3,))
    params = run.states.params
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"].at[0, 0].set(jnp.nan)
    with pytest.raises(InputError, match="of run diverged: "):
        export.FORMATS[name][0](run)
