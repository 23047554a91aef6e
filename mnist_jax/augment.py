"""Random deformations of an image, as pure functions of one; `vmap` makes the batch.

A deformation says where each pixel of its result is read in the image. Affine and elastic ones add
up, so that one bilinear resampling does for both.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from mnist_jax.config import Config, is_off
from mnist_jax.preprocess import AnyArray, Images, Number

Image = Num[AnyArray, "height width"]
Places = Float[AnyArray, "2 height width"]
"""The row and the column at which each pixel is read, in pixels from the first."""

Pair = Float[AnyArray, "2"]


class Affine(NamedTuple):
    """A digit scaled, then sheared, then rotated about the middle of its image, then shifted."""

    rotation_degrees: Number = 0.0  # counter-clockwise
    shear_degrees: Number = 0.0  # the top to the right
    scale: Pair = np.ones(2, np.float32)  # of height and width
    shift_pixels: Pair = np.zeros(2, np.float32)  # down and to the right


def affine(shape: tuple[int, int], change: Affine) -> Places:
    """Where an image of `shape` is read to make `change` of it."""
    turn, slant = (jnp.deg2rad(jnp.asarray(angle)) for angle in change[:2])
    cos, sin, tan = jnp.cos(turn), jnp.sin(turn), jnp.tan(slant)
    # The way back: the rotation undone, then the shear, then the scale.
    back = jnp.stack([cos, sin, tan * cos - sin, tan * sin + cos]).reshape(2, 2)
    # XLA would work these four numbers out for every pixel, were they not put down first.
    back = jax.lax.optimization_barrier(back / jnp.asarray(change.scale)[:, None])
    centre = (np.array(shape, np.float32)[:, None, None] - 1) / 2
    y, x = np.indices(shape, np.float32) - centre - jnp.asarray(change.shift_pixels)[:, None, None]
    return jnp.stack([row[0] * y + row[1] * x for row in back]) + centre


def elastic(
    noise: Float[AnyArray, "2 height width"], sigma_pixels: float, alpha_pixels: Number
) -> Places:
    """How far each pixel is moved, by `noise` smoothed with a Gaussian and multiplied by alpha.

    `noise` is drawn from [-1, 1] and counts as zero outside the image, so that the border moves
    less. Source: Simard, Steinkraus & Platt, "Best practices for convolutional neural networks
    applied to visual document analysis", ICDAR 2003, section 2.
    """
    down, across = (_gaussian(size, sigma_pixels) for size in noise.shape[1:])
    return alpha_pixels * jnp.einsum("ij,cjk,lk->cil", down, noise, across)


def _gaussian(size: int, sigma: float) -> Float[np.ndarray, "size size"]:
    """The matrix that smooths a line of pixels, its Gaussian cut off at 4 sigma."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    distance = np.arange(size)[:, None] - np.arange(size)
    inside = np.abs(distance) <= radius
    smooth = np.where(inside, weights[np.clip(distance + radius, 0, 2 * radius)], 0)
    return (smooth / weights.sum()).astype(np.float32)


def resample(image: Image, places: Places) -> Float[Array, "height width"]:
    """The image read at `places`, between pixels bilinearly, 0 outside."""
    stride = image.shape[1] + 2
    padded = jnp.pad(jnp.asarray(image, jnp.float32), 1).ravel()
    size = np.array(image.shape, np.float32)[:, None, None]
    inside = jnp.clip(jnp.asarray(places) + 1, 0, size + 1)  # of the padded image
    corner = jnp.minimum(jnp.floor(inside), size)
    row, column = corner.astype(jnp.int32)
    # XLA would work each of these out anew for each of the four pixels that are read.
    padded, first, share = jax.lax.optimization_barrier(
        (padded, row * stride + column, inside - corner)
    )

    def pixel(offset: int) -> Float[Array, "height width"]:
        return padded.at[first + offset].get(mode="promise_in_bounds")

    above = pixel(0) + share[1] * (pixel(1) - pixel(0))
    below = pixel(stride) + share[1] * (pixel(stride + 1) - pixel(stride))
    return above + share[0] * (below - above)


class Strength(NamedTuple):
    """How far a digit is deformed at most; every number is drawn evenly up to it."""

    rotation_degrees: Number = 0.0
    shear_degrees: Number = 0.0
    scale: Number = 0.0  # relative change of height and of width, each drawn by itself
    shift_pixels: Number = 0.0
    elastic_sigma_pixels: float = 4.0
    elastic_alpha_pixels: Number = 0.0


def deform(strength: Strength, key: Key[Array, ""], image: Image) -> Float[Array, "height width"]:
    """`image` deformed at random; the same image where all strengths are 0."""
    affine_key, elastic_key = jax.random.split(key)
    draws = jax.random.uniform(affine_key, (6,), minval=-1)
    change = Affine(
        strength.rotation_degrees * draws[0],
        strength.shear_degrees * draws[1],
        1 + strength.scale * draws[2:4],
        strength.shift_pixels * draws[4:],
    )
    height, width = image.shape
    places = affine((height, width), change)
    if not is_off(strength.elastic_alpha_pixels):
        # 256 steps from -1 to 1 are enough for what is then averaged over many pixels.
        noise = jax.random.bits(elastic_key, (2, height, width), jnp.uint8)
        noise = (noise.astype(jnp.float32) - 127.5) / 127.5
        moved = elastic(noise, strength.elastic_sigma_pixels, strength.elastic_alpha_pixels)
        places = places + moved
    return resample(image, places)


def deform_all(strength: Strength, key: Key[Array, ""], images: Images) -> Images:
    """Each image deformed in its own way, as float32."""
    keys = jax.random.split(key, len(images))
    return jax.vmap(partial(deform, strength))(keys, jnp.asarray(images))


def strength_of(config: Config) -> Strength:
    """How far `config` says that training images are deformed."""
    return Strength(*(getattr(config, name) for name in Strength._fields))
