"""The network: a Flax MLP, and the pure functions that other modules call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnist_jax.config import Config, Hparams, Precision
from mnist_jax.preprocess import AnyArray, Inputs, Scalar

PyTree = Any
"""Nested containers of arrays."""

Logits = Float[Array, "n classes"]

EPSILON = 1e-5
"""Batch normalisation adds this to a variance, so that it never divides by zero."""

DENSE_OPTIONS: dict[Precision, dict[str, Any]] = {
    "auto": {},  # whatever XLA chooses for the device
    "float32": {"precision": jax.lax.Precision.HIGHEST},
    "tf32": {"precision": jax.lax.Precision.HIGH},
    "bfloat16": {"dtype": jnp.bfloat16},
}


def no_state_to_recalibrate(params: PyTree, model_state: PyTree, inputs: Inputs) -> PyTree:
    """`model_state`, unchanged: the network has no batch statistics."""
    return model_state


class Model(NamedTuple):
    """A network as pure functions. It may be written in any library.

    `init(key)` returns the parameters, and the other state that the network carries from step to
    step, such as batch statistics (`{}` for an MLP without batch normalisation).

    `apply(params, model_state, inputs, key)` returns the logits and the next `model_state`. The
    key draws dropout masks and noise. With None the network is in evaluation mode.

    `recalibrate(params, model_state, inputs)` returns the `model_state` with the statistics of
    `params` on those inputs, without dropout and noise.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Inputs, Key[Array, ""] | None], tuple[Logits, PyTree]]
    recalibrate: Callable[[PyTree, PyTree, Inputs], PyTree] = no_state_to_recalibrate


class Noise(nn.Module):
    """Adds Gaussian noise of standard deviation `std` in training, unless `std` is None."""

    std: Scalar | None

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*shape"], train: bool) -> Float[AnyArray, "*shape"]:
        """`x` with noise, or unchanged outside training."""
        if not train or self.std is None:
            return x
        return x + self.std * jax.random.normal(self.make_rng("dropout"), x.shape)


class Dropout(nn.Module):
    """Sets entries to zero with probability `rate`, and scales the rest to keep the mean.

    It draws 16 random bits per entry, half as many as Flax's layer. So `rate` is rounded to a
    multiple of 1/65,536, and the scale fits the rounded rate. None drops nothing.
    """

    rate: Scalar | None

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*shape"], train: bool) -> Float[AnyArray, "*shape"]:
        """`x` with dropout, or unchanged outside training."""
        if not train or self.rate is None:
            return x
        threshold = jnp.minimum(jnp.round(jnp.float32(self.rate) * 2**16), 2**16 - 1)
        bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16)
        scale = 1 / (1 - threshold / 2**16)
        return jnp.where(bits >= threshold.astype(jnp.uint16), x * scale, 0)


def dot_with_few_columns(
    inputs: Array, kernel: Array, dimension_numbers: jax.lax.DotDimensionNumbers, **options: Any
) -> Array:
    """`jax.lax.dot_general`, faster on CPUs if the kernel has few columns.

    The gradient of a kernel with ten columns is a product with ten columns. XLA's CPU backend takes
    far longer for that than for its transpose, which the barrier makes it compute instead.
    """
    kernel = jax.lax.optimization_barrier(kernel.T).T
    return jax.lax.dot_general(inputs, kernel, dimension_numbers, **options)


class MLP(nn.Module):
    """Hidden layers of dense, batch normalisation, noise, activation and dropout; then the logits.

    Noise and dropout may act on the inputs too. A rate or noise of None leaves its layer out.
    """

    hidden: tuple[int, ...]
    classes: int
    activation: Callable[[Array], Array] = nn.relu
    initializer: nn.initializers.Initializer = nn.initializers.he_normal()
    input_dropout: Scalar | None = None
    dropout: Scalar | None = None
    input_noise: Scalar | None = None
    noise: Scalar | None = None
    precision: Precision = "auto"
    batch_norm: bool = False
    batch_norm_decay: float = 0.99  # of the running statistics, which only evaluation uses

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool) -> Float[Array, "n classes"]:
        """The logits; noise, dropout and the statistics of the batch are used in training."""
        options = DENSE_OPTIONS[self.precision]
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
        last = nn.Dense(
            self.classes, kernel_init=self.initializer, dot_general=dot_with_few_columns, **options
        )
        return last(x).astype(jnp.float32)


def from_linen(module: nn.Module, pixels: int, noiseless: nn.Module | None = None) -> Model:
    """The pure functions of a Linen module that is called with `(inputs, train)`.

    Args:
        module: the network; its dropout and noise draw from the stream "dropout".
        pixels: how many inputs it has.
        noiseless: the same network without dropout and noise, whose running statistics are those of
            the last batch alone, for `recalibrate`. A network without statistics needs none.
    """

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, jnp.zeros((1, pixels)), train=False))
        return variables.pop("params"), variables

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, key: Array | None
    ) -> tuple[Logits, PyTree]:
        variables = {"params": params, **model_state}
        if key is None:
            return jnp.asarray(module.apply(variables, inputs, train=False)), model_state
        logits, model_state = module.apply(
            variables, inputs, train=True, rngs={"dropout": key}, mutable=list(model_state)
        )
        return logits, model_state

    def recalibrate(params: PyTree, model_state: PyTree, inputs: Inputs) -> PyTree:
        if not model_state or noiseless is None:
            return model_state
        variables = {"params": params, **model_state}
        return noiseless.apply(variables, inputs, train=True, mutable=list(model_state))[1]

    return Model(init, apply, recalibrate)


def mlp(config: Config, hparams: Hparams, pixels: int, classes: int) -> Model:
    """The network that `config` describes, without layers for rates and noise that are 0 in it."""
    noiseless = MLP(
        hidden=config.hidden,
        classes=classes,
        activation=getattr(jax.nn, config.activation),
        initializer=getattr(jax.nn.initializers, config.initializer)(),
        precision=config.precision,
        batch_norm=config.batch_norm,
        batch_norm_decay=0.0,
    )
    module = noiseless.copy(
        input_dropout=hparams.input_dropout if config.input_dropout else None,
        dropout=hparams.dropout if config.dropout else None,
        input_noise=hparams.input_noise if config.input_noise else None,
        noise=hparams.noise if config.noise else None,
        batch_norm_decay=MLP.batch_norm_decay,
    )
    return from_linen(module, pixels, noiseless)


class Layer(NamedTuple):
    """The arrays of a dense layer: it computes `inputs @ kernel + bias`."""

    kernel: Float[AnyArray, "inputs units"]
    bias: Float[AnyArray, "units"]


def dense_layers(params: PyTree, model_state: PyTree) -> tuple[Layer, ...]:
    """The dense layers of an `MLP`, from the pixels to the logits.

    Batch normalisation is folded into them: in evaluation mode it is linear.
    """
    layers = []
    for i in range(sum(name.startswith("Dense") for name in params)):
        kernel, bias = params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]
        name = f"BatchNorm_{i}"
        if name in params:
            statistics, scale = model_state["batch_stats"][name], params[name]["scale"]
            gain = scale / (statistics["var"] + EPSILON) ** 0.5
            kernel, bias = kernel * gain[None], (bias - statistics["mean"]) * gain
            bias = bias + params[name]["bias"]
        layers.append(Layer(kernel, bias))
    return tuple(layers)
