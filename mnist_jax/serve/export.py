"""A trained network as a file for other programs: StableHLO, ONNX or safetensors.

A StableHLO file holds the function that evaluates the run. The other two hold the dense layers,
with batch normalisation folded in, and metadata that say how to apply them.
Each file has the network of the run's first seed.
"""

import importlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mnist_jax.config import Activation
from mnist_jax.errors import InputError
from mnist_jax.model import Layer
from mnist_jax.preprocess import Images
from mnist_jax.runs.results import Run, first_layers, first_network
from mnist_jax.train import Logits

PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 20  # the first version of ONNX's operators with GELU; ONNX Runtime has it since 1.17

ACTIVATIONS: dict[Activation, tuple[str, str]] = {
    "relu": ("Relu", "np.maximum(x, 0)"),
    "leaky_relu": ("LeakyRelu", "np.maximum(x, 0.01 * x)"),
    "elu": ("Elu", "np.where(x > 0, x, np.expm1(np.minimum(x, 0)))"),
    "selu": ("Selu", "1.05070099 * np.where(x > 0, x, 1.67326324 * np.expm1(np.minimum(x, 0)))"),
    "gelu": ("Gelu", "x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))"),
    "silu": ("Silu", "x / 2 * (1 + np.tanh(x / 2))"),  # no operator, but x * Sigmoid(x)
    "softplus": ("Softplus", "np.logaddexp(x, 0)"),
    "sigmoid": ("Sigmoid", "(1 + np.tanh(x / 2)) / 2"),
    "tanh": ("Tanh", "np.tanh(x)"),
}
"""The functions of `jax.nn`, as operators of ONNX and as NumPy expressions."""


def to_stablehlo(run: Run) -> bytes:
    """A function for `jax.export.deserialize`, which runs on a CPU, a CUDA GPU or a TPU.

    It maps uint8 images (n, height, width) to float32 logits (n, classes), for any n from 1.

    Raises:
        InputError: the network diverged.
    """
    first_layers(run)  # raises if it diverged
    state = jax.device_get(first_network(run))  # else the file would name a device

    @jax.jit
    def logits(images: Images) -> Logits:
        inputs = run.recipe.preprocess(images)
        return run.recipe.model.apply(state.eval_params, state.model_state, inputs, None)[0]

    height, width = run.image_shape
    shape = jax.export.symbolic_shape(f"n, {height}, {width}")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of source files
    try:
        return bytes(jax.export.export(logits, platforms=PLATFORMS)(images).serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def to_onnx(run: Run) -> bytes:
    """An ONNX model: `images`, uint8 (n, height, width) -> `logits`, float32 (n, classes).

    Raises:
        InputError: the package onnx is missing, or the network diverged.
    """
    onnx = _import("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    layers = first_layers(run)
    operator, _ = ACTIVATIONS[run.config.activation]
    options = {"approximate": "tanh"} if operator == "Gelu" else {}
    nodes = [
        helper.make_node("Cast", ["images"], ["grey"], to=kinds.FLOAT),
        helper.make_node("Div", ["grey", "white"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["0.inputs"]),
    ]
    for i in range(len(layers)):
        inputs, outputs = f"{i}.inputs", f"{i}.outputs"
        if i > 0 and operator == "Silu":
            nodes.append(helper.make_node("Sigmoid", [f"{i - 1}.outputs"], [f"{i}.gate"]))
            nodes.append(helper.make_node("Mul", [f"{i - 1}.outputs", f"{i}.gate"], [inputs]))
        elif i > 0:
            nodes.append(helper.make_node(operator, [f"{i - 1}.outputs"], [inputs], **options))
        nodes.append(helper.make_node("Gemm", [inputs, f"{i}.kernel", f"{i}.bias"], [outputs]))
    nodes[-1].output[0] = "logits"
    arrays = {"white": np.array(255, np.float32), **_arrays(layers)}
    graph = helper.make_graph(
        nodes,
        "mnist_jax",
        [helper.make_tensor_value_info("images", kinds.UINT8, ["n", *run.image_shape])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["n", len(run.class_names)])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    # Not the newest format that this version of onnx can write: older runtimes reject that.
    version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    helper.set_model_props(model, _metadata(run))
    return model.SerializeToString()


def to_safetensors(run: Run) -> bytes:
    """The float32 arrays `0.kernel` (inputs, units), `0.bias` (units,), `1.kernel`, and so on.

    Raises:
        InputError: the package safetensors is missing, or the network diverged.
    """
    return _import("safetensors.numpy").save(_arrays(first_layers(run)), _metadata(run))


FORMATS: dict[str, tuple[Callable[[Run], bytes], str]] = {
    "stablehlo": (to_stablehlo, "jax.export.deserialize(pathlib.Path({}).read_bytes())"),
    "onnx": (to_onnx, "onnxruntime.InferenceSession({})"),
    "safetensors": (to_safetensors, "safetensors.numpy.load_file({})"),
}
"""For each format, the function that makes the file's content and the call that loads the file."""


def _arrays(layers: tuple[Layer, ...]) -> dict[str, np.ndarray]:
    return {
        f"{i}.{name}": np.ascontiguousarray(array)  # safetensors ignores strides
        for i, layer in enumerate(layers)
        for name, array in layer._asdict().items()
    }


def _metadata(run: Run) -> dict[str, str]:
    """How to apply the arrays of `run`; lists are JSON."""
    return {
        "inputs": "x = images.reshape(len(images), -1) / 255",
        "layers": "x = activation(x @ kernel + bias), without the activation in the last one",
        "activation": run.config.activation,
        "activation_formula": ACTIVATIONS[run.config.activation][1],
        "image_shape": json.dumps(run.image_shape),
        "class_names": json.dumps(run.class_names),
    }


def _import(module: str) -> Any:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--format {package} needs {package} ({error}): pip install {package}"
        ) from None
