"""Figures with a title above and a caption below."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mnist_jax.plots import Picture, mosaic


def captioned_figure(width: float, height: float, title: str, caption: str) -> Picture:
    """An empty figure, with `width` by `height` inches above the caption."""
    lines = textwrap.wrap(caption, int(13.5 * width))
    figure = Picture(figsize=(width, height + 0.17 * len(lines)), layout="constrained")
    figure.suptitle(title, fontsize=13)
    figure.supxlabel("\n".join(lines), fontsize=9, color="0.3", x=0.02, ha="left")
    return figure


def picture_table(
    pictures: Float[np.ndarray, "rows columns height width 3"],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    caption: str,
) -> Picture:
    """Pictures in named rows and columns."""
    rows, columns, height, width, _ = pictures.shape
    gap = max(1, width // 10)
    joined = mosaic(pictures.reshape(-1, height, width, 3), columns, gap, gap)
    inches = 1.05 / width * np.array(joined.shape)
    figure = captioned_figure(max(inches[1], 7.0) + 0.6, inches[0] + 0.7, title, caption)
    axes = figure.subplots()
    axes.imshow(joined, interpolation="nearest")
    axes.set_xticks(np.arange(columns) * (width + gap) + (width - 1) / 2, column_names)
    axes.set_yticks(np.arange(rows) * (height + gap) + (height - 1) / 2, row_names)
    axes.tick_params(length=0, labelsize=9, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)
    return figure
