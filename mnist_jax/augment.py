"""Random deformations of one image, as pure functions; `vmap` applies them to a batch.

A deformation says from where in the image each pixel of the result is read. Affine and elastic
deformations are added, so that one bilinear resampling applies both.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from mnist_jax.config import Config, Hparams
from mnist_jax.preprocess import AnyArray, Images, Scalar

Image = Num[AnyArray, "height width"]
Coordinates = Float[AnyArray, "2 height width"]
"""The row and the column from which each pixel is read, in pixels, counted from 0."""

Pair = Float[AnyArray, "2"]


class Affine(NamedTuple):
    """Scaling, then shear, then rotation about the centre of the image, then a shift."""

    rotation_degrees: Scalar = 0.0  # counter-clockwise
    shear_degrees: Scalar = 0.0  # the top to the right
    scale: Pair = np.ones(2, np.float32)  # of height and width
    shift_pixels: Pair = np.zeros(2, np.float32)  # down and to the right


def affine(shape: tuple[int, int], change: Affine) -> Coordinates:
    """Where to read an image of `shape` in order to apply `change` to it."""
    rotation, shear = (jnp.deg2rad(jnp.asarray(angle)) for angle in change[:2])
    cos, sin, tan = jnp.cos(rotation), jnp.sin(rotation), jnp.tan(shear)
    # The inverse: undo the rotation, then the shear, then the scaling.
    inverse = jnp.stack([cos, sin, tan * cos - sin, tan * sin + cos]).reshape(2, 2)
    # Without the barrier XLA computes these four numbers again for every pixel.
    inverse = jax.lax.optimization_barrier(inverse / jnp.asarray(change.scale)[:, None])
    centre = (np.array(shape, np.float32)[:, None, None] - 1) / 2
    y, x = np.indices(shape, np.float32) - centre - jnp.asarray(change.shift_pixels)[:, None, None]
    return jnp.stack([row[0] * y + row[1] * x for row in inverse]) + centre


def elastic(
    noise: Float[AnyArray, "2 height width"], sigma_pixels: float, alpha_pixels: Scalar
) -> Coordinates:
    """How far each pixel moves: `noise`, smoothed with a Gaussian and multiplied by alpha.

    `noise` is drawn from [-1, 1], and is zero outside the image, so that the border moves less.
    Source: Simard, Steinkraus & Platt, "Best practices for convolutional neural networks
    applied to visual document analysis", ICDAR 2003, section 2.
    """
    down, across = (_gaussian(size, sigma_pixels) for size in noise.shape[1:])
    return alpha_pixels * jnp.einsum("ij,cjk,lk->cil", down, noise, across)


def _gaussian(size: int, sigma: float) -> Float[np.ndarray, "size size"]:
    """The matrix that smooths a line of pixels with a Gaussian, truncated at 4 sigma."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    distance = np.arange(size)[:, None] - np.arange(size)
    inside = np.abs(distance) <= radius
    smooth = np.where(inside, weights[np.clip(distance + radius, 0, 2 * radius)], 0)
    return (smooth / weights.sum()).astype(np.float32)


def resample(image: Image, coordinates: Coordinates) -> Float[Array, "height width"]:
    """The image read at `coordinates` by bilinear interpolation; it is 0 outside."""
    stride = image.shape[1] + 2
    padded = jnp.pad(jnp.asarray(image, jnp.float32), 1).ravel()
    size = np.array(image.shape, np.float32)[:, None, None]
    inside = jnp.clip(jnp.asarray(coordinates) + 1, 0, size + 1)  # of the padded image
    corner = jnp.minimum(jnp.floor(inside), size)
    row, column = corner.astype(jnp.int32)
    # Without the barrier XLA computes each of these again for each of the four pixels.
    padded, first, weight = jax.lax.optimization_barrier(
        (padded, row * stride + column, inside - corner)
    )

    def pixel(offset: int) -> Float[Array, "height width"]:
        return padded.at[first + offset].get(mode="promise_in_bounds")

    above = pixel(0) + weight[1] * (pixel(1) - pixel(0))
    below = pixel(stride) + weight[1] * (pixel(stride + 1) - pixel(stride))
    return above + weight[0] * (below - above)


class Strength(NamedTuple):
    """The limits of a random deformation; each amount is drawn uniformly from [-limit, limit]."""

    rotation_degrees: Scalar = 0.0
    shear_degrees: Scalar = 0.0
    scale: Scalar = 0.0  # relative change of height and of width, drawn separately
    shift_pixels: Scalar = 0.0
    elastic_sigma_pixels: float = 4.0
    elastic_alpha_pixels: Scalar | None = None  # None: no elastic deformation


def strength_of(config: Config, hparams: Hparams) -> Strength | None:
    """How far training images are deformed; None if `config` does not deform them."""
    affine_fields = ("rotation_degrees", "shear_degrees", "scale", "shift_pixels")
    is_elastic = config.elastic_alpha_pixels > 0
    if not is_elastic and not any(getattr(config, name) for name in affine_fields):
        return None
    return Strength(
        *(getattr(hparams, name) for name in affine_fields),
        elastic_sigma_pixels=config.elastic_sigma_pixels,
        elastic_alpha_pixels=hparams.elastic_alpha_pixels if is_elastic else None,
    )


def deform(strength: Strength, key: Key[Array, ""], image: Image) -> Float[Array, "height width"]:
    """`image`, deformed at random."""
    affine_key, elastic_key = jax.random.split(key)
    draws = jax.random.uniform(affine_key, (6,), minval=-1)
    change = Affine(
        strength.rotation_degrees * draws[0],
        strength.shear_degrees * draws[1],
        1 + strength.scale * draws[2:4],
        strength.shift_pixels * draws[4:],
    )
    height, width = image.shape
    coordinates = affine((height, width), change)
    if strength.elastic_alpha_pixels is not None:
        # 256 values from -1 to 1 are enough: the noise is then averaged over many pixels.
        noise = jax.random.bits(elastic_key, (2, height, width), jnp.uint8)
        noise = (noise.astype(jnp.float32) - 127.5) / 127.5
        sigma, alpha = strength.elastic_sigma_pixels, strength.elastic_alpha_pixels
        coordinates = coordinates + elastic(noise, sigma, alpha)
    return resample(image, coordinates)


def deform_batch(strength: Strength, key: Key[Array, ""], images: Images) -> Images:
    """Every image deformed differently, as float32."""
    keys = jax.random.split(key, len(images))
    return jax.vmap(partial(deform, strength))(keys, jnp.asarray(images))
