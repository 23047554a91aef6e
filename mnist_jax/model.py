"""The network: a Flax MLP, handed to the rest as a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnist_jax.config import Config
from mnist_jax.preprocess import Inputs

PyTree = Any
"""Nested containers of arrays."""


class Model(NamedTuple):
    """A network as the training code sees it, whichever library it was written in.

    `init(key) -> (params, model_state)`: what gradient descent moves, and what else the network
    carries from step to step, such as batch statistics (`{}` for an MLP).

    `apply(params, model_state, inputs, key) -> (logits, model_state)`: `key` draws the dropout
    masks; with None the network is deterministic, as it is when it is evaluated.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    apply: Callable[
        [PyTree, PyTree, Inputs, Key[Array, ""] | None],
        tuple[Float[Array, "n classes"], PyTree],
    ]


class MLP(nn.Module):
    """Dropout on the inputs, then dense, activation, dropout for each width, then the logits."""

    hidden: tuple[int, ...]
    classes: int
    activation: Callable[[Array], Array] = nn.relu
    initializer: nn.initializers.Initializer = nn.initializers.he_normal()
    input_dropout: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool) -> Float[Array, "n classes"]:
        """The logits; dropout is on when `train` is."""
        x = nn.Dropout(self.input_dropout, deterministic=not train)(inputs)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=self.initializer)(x)
            x = self.activation(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, kernel_init=self.initializer)(x)


def from_linen(module: nn.Module, pixels: int) -> Model:
    """The pure pair of a Linen module that is called with `(inputs, train)`."""

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

    return Model(init, apply)


def mlp(config: Config, pixels: int, classes: int) -> Model:
    """The network that `config` describes, for data of `pixels` inputs and `classes` answers."""
    module = MLP(
        hidden=config.hidden,
        classes=classes,
        activation=getattr(jax.nn, config.activation),
        initializer=getattr(jax.nn.initializers, config.initializer)(),
        input_dropout=config.input_dropout,
        dropout=config.dropout,
    )
    return from_linen(module, pixels)
