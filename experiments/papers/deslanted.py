"""Digits set upright, which networks of several files here are shown."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnist_jax.augment import Image, resample
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec
from mnist_jax.preprocess import Images, Inputs
from mnist_jax.train import MakeRecipe, Recipe, default_recipe


def deslanted(image: Image) -> Float[Array, "height width"]:
    """`image` sheared about the middle of its ink, so that the ink slants neither way.

    That is, the rows and the columns of its ink, weighted by how dark it is, are uncorrelated then.
    """
    ink = jnp.asarray(image, jnp.float32)
    shares = ink / jnp.maximum(ink.sum(), 1)
    y, x = np.indices(ink.shape, np.float32)
    down, across = (places - jnp.sum(shares * places) for places in (y, x))
    variance = jnp.maximum(jnp.sum(shares * down**2), 1e-6)  # of ink in a single row it is 0
    slant = jnp.sum(shares * down * across) / variance
    return resample(ink, jnp.stack([jnp.asarray(y), x + slant * down]))


def deslanting(
    config: Config,
    hparams: Hparams,
    spec: DataSpec,
    make_recipe: MakeRecipe = default_recipe,
) -> Recipe:
    """Another recipe, but that the network sees all digits deslanted."""
    recipe = make_recipe(config, hparams, spec)

    def preprocess(images: Images) -> Inputs:
        return recipe.preprocess(jax.vmap(deslanted)(jnp.asarray(images)))

    return recipe._replace(preprocess=preprocess)
