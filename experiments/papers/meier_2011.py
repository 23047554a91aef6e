"""Meier et al. and Ciresan et al. 2011: committees, each member of which sees digits of a width.

25 networks of 800 units make 0.630 +/- 0.040 % test errors each, and 0.54 % as a committee, where
0.39 is published. With digits as they are such a network makes 0.664 %, and five of them 0.59 %
(simard_2003.py).

The answers of the members are averaged. As far as we remember, each width is that of as many
members there as any other, and digits are deslanted. Here a member draws its width at random, and
digits are deformed, then deslanted, then made that wide.

    python experiments/papers/meier_2011.py
"""

import dataclasses
from functools import partial
from math import isqrt

import jax
import jax.numpy as jnp
import numpy as np
from ciresan_2010 import ROWS as DEEP
from deslanted import deslanting
from jaxtyping import Array, Float, Key
from runner import Experiment, main
from simard_2003 import ROWS as SHALLOW

from mnist_jax.augment import Affine, Image, affine, resample
from mnist_jax.config import Config, Hparams
from mnist_jax.data import DataSpec
from mnist_jax.model import Model, PyTree
from mnist_jax.preprocess import Inputs, Scalar
from mnist_jax.train import Logits, MakeRecipe, Recipe

WIDTHS = (10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 0.0)
"""In pixels, from the first column with ink to the last; 0 leaves the digits as they are."""

INK = 0.1
"""A column has ink if its darkest pixel is above this, where paper is 0 and ink is 1."""


def made_wide(image: Image, width: Scalar) -> Float[Array, "height _"]:
    """The digit made `width` pixels wide, in the middle of its image; as it is where that is 0."""
    inked = jnp.asarray(image).max(axis=0) > INK
    first, last = jnp.argmax(inked), len(inked) - 1 - jnp.argmax(inked[::-1])
    scale = width / (last + 1.0 - first)
    off_middle = (first + last + 1.0 - len(inked)) / 2
    change = Affine(
        scale=jnp.where(width > 0, jnp.stack([jnp.ones(()), scale]), 1),
        shift_pixels=jnp.where(width > 0, jnp.stack([jnp.zeros(()), -scale * off_middle]), 0),
    )
    height, columns = image.shape
    return resample(image, affine((height, columns), change))


def member(config: Config, hparams: Hparams, spec: DataSpec, make_recipe: MakeRecipe) -> Recipe:
    """Another recipe, whose network makes all digits as wide as it has drawn at first.

    It is for networks that carry nothing else: statistics of batch normalisation would be lost.
    """
    recipe = make_recipe(config, hparams, spec)
    model, side = recipe.model, isqrt(spec.pixels)
    shades = np.repeat(np.array([[0], [255]], np.uint8), spec.pixels, axis=1)
    with jax.ensure_compile_time_eval():  # recipes are made while a program is traced
        paper, ink = np.asarray(recipe.preprocess(shades.reshape(2, side, side)))[:, 0].tolist()

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        width = jax.random.choice(jax.random.fold_in(key, 1), jnp.array(WIDTHS))
        return model.init(key)[0], {"width": width}

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, key: Key[Array, ""] | None
    ) -> tuple[Logits, PyTree]:
        images = (jnp.asarray(inputs).reshape(-1, side, side) - paper) / (ink - paper)
        wide = jax.vmap(made_wide, (0, None))(images, model_state["width"])
        seen = paper + (ink - paper) * wide.reshape(inputs.shape)
        return model.apply(params, {}, seen, key)[0], model_state

    return recipe._replace(model=Model(init, apply))


def committee(published: str, source: str, one: Experiment, members: int) -> Experiment:
    """So many members, each like `one`, but shown digits deslanted and of a width of its own."""
    config = dataclasses.replace(one.config, seeds=members)
    deslanted = partial(deslanting, make_recipe=one.recipe)
    return Experiment(published, source, config, partial(member, make_recipe=deslanted))


ROWS = {
    "25 x 800, elastic": committee(
        "0.39 of an ensemble",
        '"Better digit recognition with a committee of simple neural nets", ICDAR 2011; '
        "second-hand, the widths from memory",
        SHALLOW["800, elastic"],
        25,
    ),
    "7 x 2500-2000-1500-1000-500": committee(
        "0.31 of an ensemble",
        '"Handwritten digit recognition with a committee of deep neural nets on GPUs", '
        "arXiv 1103.4487; read in its abstract, the widths from memory",
        DEEP["2500-2000-1500-1000-500"],
        7,
    ),
}

if __name__ == "__main__":
    main(__file__, ROWS)
