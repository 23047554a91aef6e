"""The network: a Flax MLP, handed to the rest as a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnist_jax.config import Config, Precision, is_off
from mnist_jax.preprocess import AnyArray, Inputs, Number

PyTree = Any
"""Nested containers of arrays."""


PRECISIONS: dict[Precision, dict[str, Any]] = {
    "auto": {},  # as XLA does it on each device
    "float32": {"precision": jax.lax.Precision.HIGHEST},
    "tf32": {"precision": jax.lax.Precision.HIGH},
    "bfloat16": {"dtype": jnp.bfloat16},
}
"""The options of a dense layer."""

EPSILON = 1e-5
"""What batch normalisation adds to a variance before it divides."""


class Model(NamedTuple):
    """A network as the training code sees it, whichever library it was written in.

    `init(key) -> (params, model_state)`: what gradient descent moves, and what else the network
    carries from step to step, such as batch statistics (`{}` for an MLP).

    `apply(params, model_state, inputs, key) -> (logits, model_state)`: `key` draws the dropout
    masks and the noise; with None the network is deterministic, as it is when it is evaluated.

    `settle(params, model_state, inputs) -> model_state`: what a network carries for its evaluation,
    from training inputs and without noise. An MLP with batch normalisation takes its statistics.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    apply: Callable[
        [PyTree, PyTree, Inputs, Key[Array, ""] | None],
        tuple[Float[Array, "n classes"], PyTree],
    ]
    settle: Callable[[PyTree, PyTree, Inputs], PyTree] = lambda params, model_state, _: model_state


class Noise(nn.Module):
    """Adds Gaussian noise of standard deviation `std` in training."""

    std: Number

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*shape"], train: bool) -> Float[AnyArray, "*shape"]:
        """`x` with its noise; the same `x` when not in training."""
        if not train or is_off(self.std):
            return x
        return x + self.std * jax.random.normal(self.make_rng("dropout"), x.shape)


class Dropout(nn.Module):
    """Sets each number to zero with probability `rate`, and scales the others to keep the mean.

    16 random bits decide for one number, where Flax' own layer draws 32: `rate` is rounded to the
    nearest 65,536th, and the scale is that of the rounded rate.
    """

    rate: Number

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*shape"], train: bool) -> Float[AnyArray, "*shape"]:
        """`x` with its dropouts; the same `x` when not in training."""
        if not train or is_off(self.rate):
            return x
        threshold = self.rate * 2**16
        if isinstance(threshold, float):
            threshold = min(round(threshold), 2**16 - 1)
        else:
            threshold = jnp.minimum(jnp.round(threshold), 2**16 - 1).astype(jnp.uint16)
        bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16)
        # XLA multiplies by the inverse of a constant, but divides by what a sweep varies.
        scale = 1 / jnp.float32(1 - threshold / 2**16)
        return jnp.where(bits >= threshold, x * scale, 0)


def into_few_columns(
    inputs: Array, kernel: Array, dimension_numbers: jax.lax.DotDimensionNumbers, **options: Any
) -> Array:
    """`jax.lax.dot_general`, whose gradient CPUs compute as a product into few rows.

    The gradient of a kernel with ten columns is a product into ten columns. On a CPU, XLA takes far
    longer for that than for its transpose, which is what this makes of it.
    """
    kernel = jax.lax.optimization_barrier(kernel.T).T
    return jax.lax.dot_general(inputs, kernel, dimension_numbers, **options)


class MLP(nn.Module):
    """Noise and dropout on the inputs, hidden layers of the widths, then the logits.

    A hidden layer is dense, batch normalisation, noise, activation, dropout.
    """

    hidden: tuple[int, ...]
    classes: int
    activation: Callable[[Array], Array] = nn.relu
    initializer: nn.initializers.Initializer = nn.initializers.he_normal()
    input_dropout: Number = 0.0
    dropout: Number = 0.0
    input_noise: Number = 0.0
    noise: Number = 0.0
    precision: Precision = "auto"
    batch_norm: bool = False
    batch_norm_decay: float = 0.99  # of the statistics, which are for evaluation alone

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool) -> Float[Array, "n classes"]:
        """The logits; noise, dropout and the statistics of the batch are on when `train` is."""
        options = PRECISIONS[self.precision]
        x = Noise(self.input_noise)(inputs, train)
        x = Dropout(self.input_dropout)(x, train)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=self.initializer, **options)(x)
            if self.batch_norm:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=self.batch_norm_decay,
                    epsilon=EPSILON,
                    dtype=options.get("dtype"),
                )(x)
            x = Noise(self.noise)(x, train)
            x = self.activation(jnp.asarray(x))
            x = Dropout(self.dropout)(x, train)
        logits = nn.Dense(
            self.classes, kernel_init=self.initializer, dot_general=into_few_columns, **options
        )
        return logits(x).astype(jnp.float32)


class Layer(NamedTuple):
    """The numbers of a dense layer: it computes `inputs @ kernel + bias`."""

    kernel: Float[AnyArray, "inputs units"]
    bias: Float[AnyArray, "units"]


def layers(params: PyTree, model_state: PyTree) -> tuple[Layer, ...]:
    """The dense layers of an `MLP`, from the pixels to the logits.

    Batch normalisation, which is linear once its statistics stand still, is part of the layers.
    """
    found = []
    for i in range(sum(name.startswith("Dense") for name in params)):
        kernel, bias = params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]
        name = f"BatchNorm_{i}"
        if name in params:
            statistics, scale = model_state["batch_stats"][name], params[name]["scale"]
            gain = scale / (statistics["var"] + EPSILON) ** 0.5
            kernel, bias = kernel * gain[None], (bias - statistics["mean"]) * gain
            bias = bias + params[name]["bias"]
        found.append(Layer(kernel, bias))
    return tuple(found)


def from_linen(module: nn.Module, pixels: int, clean: nn.Module | None = None) -> Model:
    """The pure triple of a Linen module that is called with `(inputs, train)`.

    `clean` is the module without noise, whose state after one batch is that batch's alone; a
    network that carries nothing needs none.
    """

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, jnp.zeros((1, pixels)), train=False))
        return variables.pop("params"), variables

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, key: Array | None
    ) -> tuple[Float[Array, "n classes"], PyTree]:
        variables = {"params": params, **model_state}
        if key is None:
            return jnp.asarray(module.apply(variables, inputs, train=False)), model_state
        logits, model_state = module.apply(
            variables, inputs, train=True, rngs={"dropout": key}, mutable=list(model_state)
        )
        return logits, model_state

    def settle(params: PyTree, model_state: PyTree, inputs: Inputs) -> PyTree:
        if not model_state or clean is None:
            return model_state
        variables = {"params": params, **model_state}
        return clean.apply(variables, inputs, train=True, mutable=list(model_state))[1]

    return Model(init, apply, settle)


def mlp(config: Config, pixels: int, classes: int) -> Model:
    """The network that `config` describes, for data of `pixels` inputs and `classes` answers."""
    clean = MLP(
        hidden=config.hidden,
        classes=classes,
        activation=getattr(jax.nn, config.activation),
        initializer=getattr(jax.nn.initializers, config.initializer)(),
        precision=config.precision,
        batch_norm=config.batch_norm,
        batch_norm_decay=0.0,
    )
    module = clean.copy(
        input_dropout=config.input_dropout,
        dropout=config.dropout,
        input_noise=config.input_noise,
        noise=config.noise,
        batch_norm_decay=MLP.batch_norm_decay,
    )
    return from_linen(module, pixels, clean)
