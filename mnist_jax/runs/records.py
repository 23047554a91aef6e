"""The lines of metrics.jsonl, the content of summary.json, and the networks that diverged."""

import numpy as np
from jaxtyping import Int

from mnist_jax.config import Config
from mnist_jax.errors import say
from mnist_jax.optim import learning_rate_schedule
from mnist_jax.runs.metadata import device_name, versions
from mnist_jax.runs.results import Run
from mnist_jax.runs.rundir import Json
from mnist_jax.train import Metrics


def epoch_record(run: Run, epoch: int, metrics: Metrics, seconds: float) -> Json:
    """A line of metrics.jsonl; lists have an entry for each seed."""
    config = run.config
    steps = run.spec.steps_per_epoch(config.batch_size)
    images = steps * config.batch_size
    return {
        "epoch": epoch,
        "step": epoch * steps,
        "train_loss": metrics.loss.tolist(),
        "train_error_percent": (100 * metrics.errors / images).tolist(),
        "seconds": seconds,
        "images_per_second": images * config.seeds / seconds,
    }


def diverged_steps(history: list[Json], config: Config) -> Int[np.ndarray, "seeds"]:
    """The step of each network, from 1, whose loss was the first not to be finite; 0 if none."""
    last = history[-1] if history else {}
    return np.array(last.get("stopped_at_step", [0] * config.seeds))


def all_diverged(history: list[Json], config: Config) -> bool:
    """Whether no network is left whose loss is finite."""
    return bool(diverged_steps(history, config).all())


def note_divergence(record: Json, metrics: Metrics, history: list[Json], config: Config) -> None:
    """Reports the networks that diverged in this epoch, and adds their steps to its `record`."""
    diverged = diverged_steps(history, config)
    steps = record["step"] // record["epoch"]
    for i in np.flatnonzero((metrics.finite_steps < steps) & (diverged == 0)):
        diverged[i] = record["step"] - steps + metrics.finite_steps[i] + 1
        place = divergence(config, steps, int(i), int(diverged[i]))
        say(
            f"seed {place['seed']} diverged in epoch {record['epoch']}, step {place['step']}, at "
            f"learning rate {place['learning_rate']:.3g}: its loss is not finite"
        )
    if diverged.any():
        record["stopped_at_step"] = diverged.tolist()


def divergences(history: list[Json], test_loss: list[float], config: Config) -> list[Json]:
    """Where each network diverged that did, for the summary; all of them are reported once."""
    last = history[-1]
    diverged = diverged_steps(history, config)
    only_in_test = (diverged == 0) & ~np.isfinite(np.array(test_loss, float))
    diverged = np.where(only_in_test, last["step"], diverged)
    steps = last["step"] // last["epoch"]
    places = [
        divergence(config, steps, i, step) for i, step in enumerate(diverged.tolist()) if step
    ]
    if places:
        say(
            f"{len(places)} of {config.seeds} networks diverged: their loss is not finite; "
            f"lower --learning-rate {config.learning_rate}"
        )
    return places


def divergence(config: Config, steps_per_epoch: int, i: int, step: int) -> Json:
    """Where network `i` diverged, and the learning rate there."""
    steps = config.epochs * steps_per_epoch
    schedule = learning_rate_schedule(config, config.learning_rate, steps)
    return {
        "seed": config.seed + i,
        "epoch": (step - 1) // steps_per_epoch + 1,
        "step": step,
        "learning_rate": float(np.asarray(schedule(step - 1))),
    }


def summarize(run: Run, metadata: Json, history: list[Json], result: Json) -> Json:
    """The content of summary.json, except what is known only at the end."""
    config, sizes = run.config, metadata["data"]
    return {
        "dataset": config.dataset,
        "train_images": sizes["train_images"],
        "validation_images": sizes["validation_images"],
        "test_images": sizes["test_images"],
        "seed": config.seed,
        "seeds": config.seeds,
        "epochs": config.epochs,
        "steps": history[-1]["step"],
        **result,
        "diverged": divergences(history, result["test_loss"], config),
        "device": device_name(),
        "versions": versions(),
    }
