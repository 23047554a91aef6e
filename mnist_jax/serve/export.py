"""A trained network as a file for programs that do not know this one.

StableHLO is the function that the run itself evaluates, compiled where it is loaded. ONNX and
safetensors hold the dense layers, with batch normalisation folded in, and in their metadata what
else it takes to use them. All three are of the network of a run's first seed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mnist_jax.config import Activation, InputError
from mnist_jax.model import Layer
from mnist_jax.preprocess import Images
from mnist_jax.runs.report import Run, dense_layers, first_seed
from mnist_jax.train import Logits

PLATFORMS = ("cpu", "cuda", "tpu")

OPSET = 20
"""Of ONNX' operators the first version with GELU; ONNX Runtime has it since 1.17."""

MOST_NUMBERS = 500_000_000
"""Weights and biases of the largest network in StableHLO or ONNX, whose files end at 2 GiB."""

ACTIVATIONS: dict[Activation, tuple[str, str]] = {
    "relu": ("Relu", "np.maximum(x, 0)"),
    "leaky_relu": ("LeakyRelu", "np.maximum(x, 0.01 * x)"),
    "elu": ("Elu", "np.where(x > 0, x, np.expm1(np.minimum(x, 0)))"),
    "selu": ("Selu", "1.05070099 * np.where(x > 0, x, 1.67326324 * np.expm1(np.minimum(x, 0)))"),
    "gelu": ("Gelu", "x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))"),
    "silu": ("Sigmoid", "x / 2 * (1 + np.tanh(x / 2))"),  # of ONNX' Sigmoid the product with x
    "softplus": ("Softplus", "np.logaddexp(x, 0)"),
    "sigmoid": ("Sigmoid", "(1 + np.tanh(x / 2)) / 2"),
    "tanh": ("Tanh", "np.tanh(x)"),
}
"""What `jax.nn` computes, as an operator of ONNX and in NumPy."""


def to_stablehlo(run: Run) -> bytes:
    """For `jax.export.deserialize`: uint8 images (n, height, width) -> float32 logits (n, classes).

    n may be any number from 1, and the device a CPU, a CUDA GPU or a TPU.

    Raises:
        InputError: the network diverged or is too large.
    """
    _require_size(run, dense_layers(run), "StableHLO")
    state = jax.device_get(first_seed(run))  # the file is for any device, not the one it is on

    @jax.jit
    def logits(images: Images) -> Logits:
        inputs = run.recipe.preprocess(images)
        return run.recipe.model.apply(state.weights, state.model_state, inputs, None)[0]

    height, width = run.image_shape
    shape = jax.export.symbolic_shape(f"n, {height}, {width}")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    with _without_source_files():
        return bytes(jax.export.export(logits, platforms=PLATFORMS)(images).serialize())


def to_onnx(run: Run) -> bytes:
    """An ONNX model: `images`, uint8 (n, height, width) -> `logits`, float32 (n, classes).

    Raises:
        InputError: the package onnx is missing, or the network diverged or is too large.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise _missing("onnx", error) from None
    layers = dense_layers(run)
    _require_size(run, layers, "ONNX")
    activation, node = run.config.activation, helper.make_node
    nodes = [
        node("Cast", ["images"], ["grey"], to=TensorProto.FLOAT),
        node("Div", ["grey", "white"], ["scaled"]),
        node("Flatten", ["scaled"], ["inputs"]),
    ]
    x = "inputs"
    for i in range(len(layers)):
        z = f"{i}.sum" if i + 1 < len(layers) else "logits"
        nodes.append(node("Gemm", [x, f"{i}.kernel", f"{i}.bias"], [z]))
        if z == "logits":
            break
        x = f"{i}.{activation}"
        operator, y = ACTIVATIONS[activation][0], x if activation != "silu" else f"{i}.sigmoid"
        options = {"approximate": "tanh"} if activation == "gelu" else {}
        nodes.append(node(operator, [z], [y], **options))
        if activation == "silu":
            nodes.append(node("Mul", [z, y], [x]))
    arrays = {"white": np.array(255, np.float32), **_arrays(layers)}
    graph = helper.make_graph(
        nodes,
        "mnist_jax",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", *run.image_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(run.class_names)])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    # Not the newest format that onnx knows, which an older runtime refuses.
    version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    helper.set_model_props(model, _about(run))
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def to_safetensors(run: Run) -> bytes:
    """The float32 arrays `0.kernel` (inputs, units), `0.bias` (units,), `1.kernel`, and so on.

    Raises:
        InputError: the package safetensors is missing, or the network diverged.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise _missing("safetensors", error) from None
    return save(_arrays(dense_layers(run)), _about(run))


FORMATS: dict[str, tuple[Callable[[Run], bytes], str]] = {
    "stablehlo": (to_stablehlo, "jax.export.deserialize(pathlib.Path({}).read_bytes())"),
    "onnx": (to_onnx, "onnxruntime.InferenceSession({})"),
    "safetensors": (to_safetensors, "safetensors.numpy.load_file({})"),
}
"""The content of a file in each format, and the call that loads the file."""


@contextmanager
def _without_source_files() -> Iterator[None]:
    """Keeps JAX from noting in programs where on this machine their source is."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _arrays(layers: tuple[Layer, ...]) -> dict[str, np.ndarray]:
    return {
        f"{i}.{name}": np.ascontiguousarray(array)  # safetensors writes memory as it lies
        for i, layer in enumerate(layers)
        for name, array in layer._asdict().items()
    }


def _about(run: Run) -> dict[str, str]:
    """What it takes to use the arrays of `run`, lists as JSON."""
    return {
        "inputs": "x = images.reshape(len(images), -1) / 255",
        "layers": "x = activation(x @ kernel + bias), without the activation in the last one",
        "activation": run.config.activation,
        "activation_formula": ACTIVATIONS[run.config.activation][1],
        "image_shape": json.dumps(run.image_shape),
        "class_names": json.dumps(run.class_names),
    }


def _require_size(run: Run, layers: tuple[Layer, ...], name: str) -> None:
    numbers = sum(array.size for layer in layers for array in layer)
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"{run.path} has {numbers:,} weights; {name} holds {MOST_NUMBERS:,}; "
            "choose --format safetensors"
        )


def _missing(package: str, error: ImportError) -> InputError:
    return InputError(f"--format {package} needs {package} ({error}): pip install {package}")
