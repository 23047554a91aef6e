"""A figure with a title above it and a caption below."""

import textwrap

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from mnist_jax.plots import Picture


def captioned_figure(width: float, height: float, title: str, caption: str) -> Picture:
    """An empty figure of `width` by `height` inches, with a title above and a caption below."""
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=13)
    lines = "\n".join(_wrap(caption, width))
    figure.supxlabel(lines, fontsize=9, color="0.3", x=0.02, ha="left")
    return figure


def captioned_mosaic(
    canvas: Float[np.ndarray, "h w 3"], width: float, title: str, caption: str
) -> tuple[Picture, Axes]:
    """A figure of one coloured picture, `width` inches wide, and the axes that show it."""
    figure_width = max(width, 7.0) + 0.6  # wide enough for the words
    lines = len(_wrap(caption, figure_width))
    height = width * canvas.shape[0] / canvas.shape[1] + 0.9 + 0.17 * lines
    figure = captioned_figure(figure_width, height, title, caption)
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    return figure, axes


def _wrap(caption: str, width: float) -> list[str]:
    return textwrap.wrap(caption, int(13.5 * width))
