"""What is worth more, a wider network or more images?

One hidden layer of 2 to 1,024 units, trained on the first 100 to 60,000 training images, five
seeds each: 400 networks, 6,000 steps of SGD each. 64 units that saw 60,000 images misread 2.43 %
of the test images, 1,024 that saw 25,000 of them 2.39 %. All errors are in
results/width_by_data.json, and drawn as figures/width_by_data.png, by

    python experiments/studies/width_by_data.py
"""

import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from tqdm.auto import tqdm

from mnist_jax import data, population
from mnist_jax.config import Config
from mnist_jax.data import DataSpec, Examples
from mnist_jax.errors import InputError, say
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import device_name, versions

HERE = Path(__file__).parents[1]
WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
IMAGES = (100, 250, 600, 1500, 4000, 10_000, 25_000, 60_000)
SEEDS = 5
PERCENT = (1, 2, 3, 5, 10, 20, 30, 50, 100)
STEPS = 6000  # whole epochs of any of these numbers of images
QUICK_STEPS = 10


def test_errors(width: int, training: Examples, test: Examples, steps: int) -> list[int]:
    """Of `SEEDS` networks that are trained at once."""
    images = len(training.labels)
    config = Config(
        hidden=(width,),
        dropout=0.0,
        weight_decay=0.0,
        batch_size=min(100, images),
        epochs=max(1, steps // max(1, images // 100)),
        learning_rate=0.05,
        seeds=SEEDS,
    )
    spec = DataSpec(training.images.shape[1:], 10, images)
    setup, members = population.Setup(config, spec), population.members_of(config)
    population.compile_programs(setup, members, training, test)
    states = population.init(setup, members)
    for _ in range(config.epochs):
        states, _ = population.train_epoch(setup, states, members, training)
    assert int(states.step[0]) == config.epochs * spec.steps_per_epoch(config.batch_size)
    return population.evaluate(setup, states, members, test).errors.tolist()


def figure(percent: Float[np.ndarray, "widths images seeds"]) -> Figure:
    """Test error by images, a line a width; and by width, a line a number of images."""
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    mean, std = percent.mean(axis=-1), percent.std(axis=-1, ddof=1)
    for axis, lines, places, names, what in (
        (axes[0], zip(mean, std, strict=True), IMAGES, WIDTHS, "units"),
        (axes[1], zip(mean.T, std.T, strict=True), WIDTHS, IMAGES, "images"),
    ):
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(names)))
        for (values, spread), name, colour in zip(lines, names, colours, strict=True):
            axis.errorbar(
                *(places[: len(values)], values, spread),
                **{"color": colour, "capsize": 2, "lw": 1.4, "label": f"{name:,} {what}"},
            )
        axis.set(xscale="log", yscale="log")
        for ticks, along in ((places, axis.xaxis), (PERCENT, axis.yaxis)):
            along.set_major_locator(FixedLocator(ticks))
            along.set_minor_locator(NullLocator())
            along.set_major_formatter("{x:,g}")
        axis.tick_params(axis="x", labelrotation=45)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2, frameon=False)
    axes[0].set(xlabel="training images", ylabel="test error, %")
    axes[1].set(xlabel="hidden units")
    drawn.suptitle(
        f"MNIST: {percent.size} networks of one hidden layer, mean and standard deviation over "
        f"{percent.shape[-1]} seeds",
        fontsize=10,
    )
    return drawn


def main(
    data_dir: Path | None = None,
    results: Path | None = None,
    figures: Path | None = None,
    quick: bool = False,
) -> None:
    """Trains all networks, writes their errors and draws the figure.

    Args:
        data_dir: folder with the MNIST files; without it they are downloaded.
        results: the JSON file to write; results/width_by_data.json by default.
        figures: folder for the figure; figures by default.
        quick: scikit-learn's digits and few steps, to see that it works; nothing is kept but where
            `results` and `figures` say.
    """
    if not quick:
        results = results or HERE / "results" / "width_by_data.json"
        figures = figures or HERE / "figures"
    for folder in (results and results.parent, figures):
        if folder and not folder.is_dir():
            raise SystemExit(f"folder {folder} does not exist; make it, or name another")
    try:
        dataset = data.load("digits" if quick else "mnist", data_dir)
    except InputError as error:
        raise SystemExit(str(error)) from None
    images, labels = dataset.train
    errors, steps = [], QUICK_STEPS if quick else STEPS
    with tqdm(total=len(WIDTHS) * len(IMAGES), desc="networks") as shown:
        for width in WIDTHS:
            errors.append([])
            for count in IMAGES:
                training = jax.device_put(Examples(images[:count], labels[:count]))
                errors[-1].append(test_errors(width, training, dataset.test, steps))
                shown.update()
            with_all = 100 * np.mean(errors[-1][-1]) / len(dataset.test.labels)
            say(f"{width:,} units: {with_all:.2f} % errors with all images")
    if results:
        found = {"widths": WIDTHS, "images": IMAGES, "steps": steps, "test_errors": errors}
        found |= {"device": device_name(), "versions": versions()}
        rundir.write_bytes(results, (json.dumps(found) + "\n").encode())
    if figures:
        percent = 100 * np.array(errors) / len(dataset.test.labels)
        figure(percent).savefig(figures / "width_by_data.png", dpi=110)


if __name__ == "__main__":
    tyro.cli(main)
