"""Turns pixels into network inputs, with pure, deterministic functions of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num

AnyArray = Array | np.ndarray
"""An array on the device or on the host."""

Images = Num[AnyArray, "n height width"]
"""Grey values in [0, 255]: uint8 as loaded, float32 once deformed."""

Inputs = Float[AnyArray, "n pixels"]
"""The inputs of a network."""

Labels = Integer[AnyArray, "n"]
"""Class numbers from 0."""

Scalar = Float[AnyArray, ""] | float
"""A number: a constant of a compiled program, or an argument of it."""


def scale(images: Images) -> Float[AnyArray, "n height width"]:
    """Grey values from [0, 255] to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def flatten(images: Images) -> Num[AnyArray, "n pixels"]:
    """Each image as one row of pixels, top row first."""
    return images.reshape(images.shape[0], -1)


def to_inputs(images: Images) -> Inputs:
    """The inputs of a network: `images` scaled to [0, 1] and flattened."""
    return flatten(scale(images))


def standardize(
    inputs: Inputs,
    mean: Float[AnyArray, "*pixels"] | float,
    std: Float[AnyArray, "*pixels"] | float,
) -> Inputs:
    """`inputs` shifted and scaled so that the training set has zero mean and unit variance.

    `mean` and `std` are those of the training set: numbers, or rows with one entry per pixel. A
    pixel that never varies (`std` 0) is only shifted, which avoids a division by zero.
    """
    mean, std = (jnp.broadcast_to(value, inputs.shape) for value in (mean, std))
    return (inputs - mean) / jnp.where(std > 0, std, 1)


def one_hot(labels: Labels, classes: int) -> Float[Array, "n classes"]:
    """A row for each label k: zeros, with a one at index k."""
    return jax.nn.one_hot(labels, classes)
