"""The lines of metrics.jsonl, the content of summary.json, and the networks that diverged."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mnist_jax.config import Config
from mnist_jax.errors import say
from mnist_jax.optim import learning_rate_schedule
from mnist_jax.runs.metadata import device_name, versions
from mnist_jax.runs.results import Run
from mnist_jax.runs.rundir import Json
from mnist_jax.train import Metrics


def epoch_record(
    run: Run, epoch: int, metrics: Metrics, seconds: float, history: list[Json]
) -> Json:
    """A line of metrics.jsonl; lists have an entry for each seed. New divergences are reported.

    Once a network has diverged, `stopped_at_step` has for each network the first step whose loss
    was not finite, counted from 1, or 0 if there is none.
    """
    config, steps = run.config, run.spec.steps_per_epoch(run.config.batch_size)
    images = steps * config.batch_size
    record = {
        "epoch": epoch,
        "step": epoch * steps,
        "train_loss": metrics.loss.tolist(),
        "train_error_percent": (100 * metrics.errors / images).tolist(),
        "seconds": seconds,
        "images_per_second": images * config.seeds / seconds,
    }
    earlier = history[-1].get("stopped_at_step", 0) if history else 0
    diverges_now = (metrics.finite_steps < steps) & (np.array(earlier) == 0)
    step = (epoch - 1) * steps + metrics.finite_steps + 1
    stopped = np.where(diverges_now, step, earlier)
    if stopped.any():
        record["stopped_at_step"] = stopped.tolist()
        for place in divergences(record, config):
            if place["epoch"] == epoch:
                say(
                    f"seed {place['seed']} diverged in epoch {epoch}, step {place['step']}, at "
                    f"learning rate {place['learning_rate']:.3g}: its loss is not finite"
                )
    return record


def all_diverged(history: list[Json]) -> bool:
    """Whether all networks have diverged."""
    return bool(history) and all(history[-1].get("stopped_at_step", [0]))


def divergences(record: Json, config: Config) -> list[Json]:
    """When each network diverged, and at what learning rate, up to the epoch of `record`."""
    steps_per_epoch = record["step"] // record["epoch"]
    return [
        {
            "seed": config.seed + i,
            "epoch": (step - 1) // steps_per_epoch + 1,
            "step": step,
            "learning_rate": learning_rate(config, record, step),
        }
        for i, step in enumerate(record.get("stopped_at_step", []))
        if step
    ]


def learning_rate(config: Config, record: Json, step: int) -> float:
    """The learning rate of a step, counted from 1; `record` is of any epoch of the run."""
    steps = config.epochs * record["step"] // record["epoch"]
    schedule = learning_rate_schedule(config, config.learning_rate, steps)
    return float(np.asarray(schedule(step - 1)))


def summarize(run: Run, metadata: Json, history: list[Json], result: Json) -> Json:
    """The content of summary.json, except what is known only at the end."""
    config, last = run.config, history[-1]
    # After the last step a network may have diverged although its training loss was finite.
    stopped = np.array(last.get("stopped_at_step", [0] * config.seeds))
    only_in_test = (stopped == 0) & ~np.isfinite(np.array(result["test_loss"], float))
    stopped = np.where(only_in_test, last["step"], stopped)
    diverged = divergences({**last, "stopped_at_step": stopped.tolist()}, config)
    if diverged:
        say(
            f"{len(diverged)} of {config.seeds} networks diverged: their loss is not finite; "
            f"lower --learning-rate {config.learning_rate}"
        )
    sizes = ("train_images", "validation_images", "test_images")
    return {
        "dataset": config.dataset,
        **{name: metadata["data"][name] for name in sizes},
        "seed": config.seed,
        "seeds": config.seeds,
        "epochs": config.epochs,
        "steps": last["step"],
        **result,
        "diverged": diverged,
        "device": device_name(),
        "versions": versions(),
    }


@contextmanager
def add_seconds(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Adds the seconds that the `with` block takes to `part` of `seconds`."""
    start = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
