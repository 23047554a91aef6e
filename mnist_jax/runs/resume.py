"""The way back into a run: from which checkpoint, and whether it is the same run."""

from contextlib import suppress
from pathlib import Path

from mnist_jax.config import Config, InputError, to_json
from mnist_jax.progress import say
from mnist_jax.runs import checkpoint, rundir
from mnist_jax.runs.report import parse_config
from mnist_jax.runs.rundir import Json


def find_checkpoint(out: Path, config: Json) -> tuple[Path | None, Json]:
    """The checkpoint from which the run in `out` goes on, if one is whole, and its config.json.

    Checkpoints that are damaged are set aside.

    Args:
        out: the run folder.
        config: the config.json of the run that is to be trained now.

    Raises:
        InputError: the run in `out` is another one.
    """
    for folder in checkpoint.all_of(out):
        if checkpoint.is_whole(folder):
            break
        say(f"{folder} is damaged and left out")
    else:
        folder = None
    try:
        kept = rundir.read_config(folder or out)
        parse_config(kept, folder or out)
    except InputError:
        if folder:
            raise
        kept = config  # with nothing whole in it, it may be any run
    differing = changes(_fields(kept), _fields(config))
    if not differing and kept["data"] != config["data"]:
        differing = ["the images or labels are others"]
    if differing:
        raise InputError(
            f"{out} is another run: {'; '.join(differing)}. Repeat the options of that run, or "
            "choose another --out"
        )
    checkpoint.clear(out, folder)
    if not folder:
        say(f"{out} has no whole checkpoint: it starts from the beginning")
        return None, config
    if differing := changes(kept["environment"], config["environment"]):
        say(f"{'; '.join(differing)}: the last digits may differ from an uninterrupted run's")
    return folder, {**kept, "data_dir": config["data_dir"]}


def mend(run: Path, folder: Path) -> None:
    """Makes the config and the metrics of `run` those of a checkpoint, if they are not."""
    for name in ("config.json", "metrics.jsonl"):
        content = rundir.read_bytes(folder / name)
        with suppress(OSError, InputError):
            if rundir.read_bytes(run / name) == content:
                continue
        rundir.write_bytes(run / name, content)


def _fields(config: Json) -> Json:
    """What makes a run another run, beside its data. Where those lie is no matter.

    A field that is newer than the run has its default.
    """
    others = ("data_dir", "data", "environment")
    fields = {**to_json(Config()), **config}
    return {name: value for name, value in fields.items() if name not in others}


def changes(then: Json, now: Json) -> list[str]:
    """What differs between two objects, in words."""
    return [
        f"{name} was {then.get(name)} and is {now.get(name)}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
