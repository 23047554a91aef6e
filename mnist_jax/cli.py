"""The command line: each command is a function, and its parameters are the options."""

import importlib
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from mnist_jax import data, options
from mnist_jax.config import Config, SaveOptions, validate
from mnist_jax.errors import InputError, unusable
from mnist_jax.runs import rundir
from mnist_jax.sweep.space import SearchSpace, parse_space

NO_PROCESSES, SAVE_OPTIONS = options.Processes(), SaveOptions()


def train(
    *,
    config: tyro.conf.OmitArgPrefixes[Config],
    out: Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    save_options: tyro.conf.OmitArgPrefixes[SaveOptions] = SAVE_OPTIONS,
    mesh: options.Mesh = None,
    processes: tyro.conf.OmitArgPrefixes[options.Processes] = NO_PROCESSES,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Train networks, count their test errors, and save it all in a run folder.

    Args:
        out: The run folder; by default a new one under runs/.
        resume: Continue the run in --out, or start it, or say that it is finished.
        tensorboard: Also write event files for TensorBoard, to RUN/tensorboard.
    """
    options.keep_compiled_programs(compilation_cache and not processes.coordinator)
    validate(config)
    with processes.join():
        if out and processes.coordinator is None:  # else fit checks in the first process
            rundir.require_free(out, resume)
        # Importing JAX keeps one core busy for half a second. Another one reads the data meanwhile.
        importing = threading.Thread(target=_import_fit)
        importing.start()
        try:
            dataset = data.load(config.dataset, config.data_dir)
        finally:
            importing.join()
        from mnist_jax.fit import fit
        from mnist_jax.parallel.mesh import parse_mesh_shape
        from mnist_jax.parallel.multihost import is_primary
        from mnist_jax.runs.callbacks import TensorBoard
        from mnist_jax.runs.results import summary_line

        run = fit(
            config,
            out,
            dataset=dataset,
            callbacks=[TensorBoard()] if tensorboard else [],
            save_options=save_options,
            resume=resume,
            mesh=parse_mesh_shape(mesh),
            started=options.STARTED,
        )
        if is_primary():
            summary = rundir.read_summary(run.path)
            seconds = summary["seconds"]["total"]
            print(f"{summary_line(summary)}\n{seconds:.1f} s in all; saved in {run.path}")
            print(f"look at {run.path}/figures, then try: mnist-jax predict {run.path} IMAGE.png")


def _import_fit() -> None:
    from mnist_jax.data.download import IMPORT_LOCK

    with IMPORT_LOCK:
        importlib.import_module("mnist_jax.fit")


def sweep(
    *,
    space: tyro.conf.OmitArgPrefixes[SearchSpace],
    dataset: str = Config.dataset,
    data_dir: Path | None = None,
    validation_images: int = 0,
    seed: int = Config.seed,
    seeds: int = Config.seeds,
    samples: int = 0,
    halving: bool = False,
    out: Path | None = None,
    resume: bool = False,
    mesh: options.Mesh = None,
    processes: tyro.conf.OmitArgPrefixes[options.Processes] = NO_PROCESSES,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Train networks of many configurations, and find which does best on held-out images.

    An option takes several values, or a range to draw from, such as 0.01:1 or 0.01:1:log. The
    widths of a network are one value: 512x512.

    Args:
        dataset: The dataset, as for train.
        data_dir: Folder with the dataset's files, as for train.
        validation_images: How many of the last training images to compare on; by default as many
            as there are test images, or a fifth of the training images if that is fewer.
        seed: The first seed of each configuration; it also seeds the random draws.
        seeds: How many networks of each configuration are trained.
        samples: How many configurations to draw at random; 0 tries all combinations.
        halving: Repeatedly drop the worse half and double the epochs (successive halving).
        out: The folder of the sweep; by default a new one under runs/.
        resume: Continue the sweep in --out, or start it, or say that it is finished.
    """
    options.keep_compiled_programs(compilation_cache and not processes.coordinator)
    shared = Config(dataset, data_dir, validation_images, seed=seed, seeds=seeds)
    config, values = parse_space(shared, space)
    with processes.join():
        from mnist_jax.parallel.mesh import parse_mesh_shape
        from mnist_jax.parallel.multihost import is_primary
        from mnist_jax.sweep.run import summary_line, sweep

        path = sweep(
            config,
            values,
            samples=samples,
            halving=halving,
            out=out,
            resume=resume,
            mesh=parse_mesh_shape(mesh),
            started=options.STARTED,
        )
        if is_primary():
            summary = rundir.read_summary(path)
            seconds = summary["seconds"]["total"]
            print(f"{summary_line(summary)}\n{seconds:.1f} s in all; the table is {path}/table.csv")


def evaluate(
    run_folder: options.RunFolder,
    *,
    data_dir: options.DataDir = None,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Count the test errors of a run again, from its checkpoint."""
    options.keep_compiled_programs(compilation_cache)
    from mnist_jax.runs.results import load_data, load_run, measure, summary_line

    run = load_run(run_folder)
    dataset = load_data(run, data_dir)
    result = measure(run, dataset.test)
    sizes = {"dataset": dataset.name, "test_images": len(dataset.test.labels)}
    print(summary_line({**sizes, **result}))
    for name, percent in result["class_accuracy_percent"].items():
        print(f"  {name:>12}  {percent:6.2f} %")


def predict(
    run_folder: options.RunFolder,
    images: options.Photos,
    *,
    json: bool = False,
    picture: Path | None = None,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Read digits in image files (PNG, JPEG, ...) with the network of a run's first seed.

    Args:
        json: Print a JSON list, with one object per image.
        picture: A file for a figure: each photo, what the network saw, and the probabilities.
    """
    options.keep_compiled_programs(compilation_cache)
    if not images:
        raise InputError("predict needs at least one image after the run folder")
    from mnist_jax.runs.results import load_run
    from mnist_jax.serve import predict

    predictions = predict.read_photos(load_run(run_folder), images)
    print(predict.to_json(predictions) if json else predict.to_text(predictions))
    if picture:
        rundir.save_figure(picture, predict.figure(predictions))


def plot(
    run_folder: options.RunFolder,
    *,
    data_dir: options.DataDir = None,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Draw the figures of a run again."""
    options.keep_compiled_programs(compilation_cache)
    from mnist_jax.runs.figures import save_figures
    from mnist_jax.runs.results import load_data, load_run

    run = load_run(run_folder)
    dataset, summary = load_data(run, data_dir), rundir.read_summary(run.path)
    try:
        files = save_figures(run, dataset, summary)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"metrics.jsonl or summary.json in {run.path} is damaged ({error!r}); {rundir.REMEDY}"
        ) from None
    print(*files, sep="\n")


def explain(
    run_folder: options.RunFolder,
    *,
    image: int = 0,
    data_dir: options.DataDir = None,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Draw what the network of a run's first seed knows, and how it learned it.

    Args:
        image: The test image to follow through the network, counted from 0.
    """
    options.keep_compiled_programs(compilation_cache)
    from mnist_jax.explain.run_figures import figures
    from mnist_jax.runs.results import load_data, load_run, memory_errors

    run = load_run(run_folder)
    dataset = load_data(run, data_dir)
    with memory_errors(run.config):
        for name, figure in figures(run, dataset, image):
            print(rundir.save_figure(run.path / "figures" / f"{name}.png", figure), flush=True)


def page(
    run_folder: options.RunFolder,
    *,
    out: Path | None = None,
    data_dir: options.DataDir = None,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Write a web page that reads what you draw, with the network of a run's first seed inside.

    Args:
        out: The file to write; by default page.html in the run folder.
    """
    options.keep_compiled_programs(compilation_cache)
    from mnist_jax.runs.results import load_data, load_run
    from mnist_jax.serve.page import html

    run = load_run(run_folder)
    file = out or run.path / "page.html"
    content = html(run, load_data(run, data_dir)).encode()
    rundir.write_bytes(file, content)
    print(f"{file} ({len(content) / 1e6:.2f} MB): open it in a browser and draw")


def export(
    run_folder: options.RunFolder,
    *,
    format: Literal["stablehlo", "onnx", "safetensors"],
    out: Path | None = None,
    compilation_cache: options.CompilationCache = True,
) -> None:
    """Write the network of a run's first seed to a file that other programs load.

    Args:
        format: stablehlo for JAX on any device, onnx for ONNX Runtime and others, safetensors for
            the bare weights.
        out: The file to write; by default model.FORMAT in the run folder.
    """
    options.keep_compiled_programs(compilation_cache)
    from mnist_jax.runs.results import load_run
    from mnist_jax.serve.export import FORMATS

    run = load_run(run_folder)
    file = out or run.path / f"model.{format}"
    encode, load_call = FORMATS[format]
    content = encode(run)
    rundir.write_bytes(file, content)
    print(f"{file} ({len(content) / 1e6:.2f} MB): load it with {load_call.format(repr(str(file)))}")


def samples(
    *,
    dataset: str = Config.dataset,
    data_dir: options.DataDir = None,
    count: int = 4,
    out: Path = Path("samples.png"),
) -> None:
    """Show the first training images of a dataset, in a window if there is a screen.

    Args:
        dataset: mnist, fashion_mnist, kmnist, emnist/SPLIT, digits, local or auto, as for train.
        data_dir: Folder with the dataset's files, as for train.
        count: How many images.
        out: The file to write the picture to.
    """
    if not 1 <= count <= 400:
        raise unusable("--count", count, "1 to 400")
    from mnist_jax import plots

    loaded = data.load(dataset, data_dir)
    images, labels = np.asarray(loaded.train.images[:count]), loaded.train.labels[:count]
    figure = plots.samples(images, labels, loaded.class_names, f"{loaded.name}: the first images")
    rundir.save_figure(out, figure)
    print(f"{loaded.name}: the first {len(labels)} training images, in {out}")
    plots.show(figure)
