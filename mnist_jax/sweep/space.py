"""The search space of a sweep: its values, its configurations, and successive halving."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro
from docstring_parser import parse_from_object

from mnist_jax.config import MAX_COUNT, Config, Hparams
from mnist_jax.errors import InputError, unusable

SHARED_FIELDS = ("dataset", "data_dir", "validation_images", "seed", "seeds")
"""The fields that all configurations of a sweep share."""

SEARCH_FIELDS = tuple(
    field.name for field in dataclasses.fields(Config) if field.name not in SHARED_FIELDS
)
"""The fields that may differ between configurations."""

HELP = {param.arg_name: param.description for param in parse_from_object(Config).params}
"""The help text of each field of `Config`."""


def to_text(value: Any) -> Any:
    """A value of a field as `parse_values` reads it, or a list as its items with spaces."""
    if isinstance(value, tuple | list):
        separator = "x" if isinstance(value, tuple) else " "
        return separator.join(map(str, value)) or "linear"
    return value


def _option(name: str) -> tuple[str, Any, tuple[str]]:
    """A field of `SearchSpace`, with the help text that the field of `Config` has."""
    option = tyro.conf.arg(metavar="VALUE...", help=HELP[name])
    default = (str(to_text(getattr(Config, name))),)
    return name, Annotated[tuple[str, ...], option], default


if TYPE_CHECKING:
    SearchSpace = Any
else:
    SearchSpace = dataclasses.make_dataclass(
        "SearchSpace", map(_option, SEARCH_FIELDS), frozen=True
    )
    """The options of `mnist-jax sweep`: one or more words for each field."""


class Range(NamedTuple):
    """Numbers from `low` to `high`, drawn uniformly, or with a uniform logarithm."""

    low: float
    high: float
    log: bool


Values = tuple[Any, ...] | Range
"""The values of a field to try."""


def parse_space(config: Config, space: SearchSpace) -> tuple[Config, dict[str, Values]]:
    """`config` with the fields that have a single value, and the values of the others.

    Raises:
        InputError: a value cannot be read, or is listed twice.
    """
    values = {name: parse_values(name, words) for name, words in vars(space).items()}
    several = {
        name: each for name, each in values.items() if isinstance(each, Range) or len(each) > 1
    }
    single = {name: each[0] for name, each in values.items() if name not in several}
    return dataclasses.replace(config, **single), several


def parse_values(name: str, words: Sequence[str]) -> Values:
    """The values of a field from the words of an option, or its range, LOW:HIGH[:log].

    Values are written as for `train`, except that the widths of a network are one word: 512x256,
    or linear if there are none.
    """
    default, flag = getattr(Config, name), "--" + name.replace("_", "-")
    is_number = type(default) in (int, float)
    expected = f"values such as {to_text(default)}"
    if is_number:
        expected += ", or one range, LOW:HIGH with LOW below HIGH, or LOW:HIGH:log with LOW above 0"
    try:
        if is_number and ":" in "".join(words):
            return _parse_range(words)
        values = tuple(_parse_value(word, default) for word in words)
    except (KeyError, ValueError):
        raise unusable(flag, " ".join(words), expected) from None
    if len(set(values)) < len(values):
        hint = "; a network of two layers is one word, 512x512" if name == "hidden" else ""
        raise unusable(flag, " ".join(words), f"each value once{hint}")
    return values


def _parse_value(word: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return () if word == "linear" else tuple(map(int, word.split("x")))
    if isinstance(default, bool):
        return {"true": True, "false": False}[word.lower()]
    return type(default)(word)


def _parse_range(words: Sequence[str]) -> Range:
    (word,) = words
    low, high, *scale = word.split(":")
    values = Range(float(low), float(high), log=scale == ["log"])
    lowest = 0 if values.log else -math.inf  # there is no logarithm of 0
    if scale not in ([], ["log"]) or not lowest < values.low < values.high < math.inf:
        raise ValueError
    return values


def configurations(
    config: Config, space: Mapping[str, Values], samples: int = 0
) -> list[dict[str, Any]]:
    """The fields of `config` that each configuration of a sweep changes, with their values.

    These are all combinations of the values in `space`, or `samples` of them drawn at random with
    the seed of `config`. Listed values are equally likely.

    Raises:
        InputError: there is nothing to compare, or too much.
    """
    ranges = {name: values for name, values in space.items() if isinstance(values, Range)}
    # In each combination, a range holds the place of the number that is drawn from it.
    lists = {name: [values] if name in ranges else values for name, values in space.items()}
    combinations = math.prod(map(len, lists.values()))
    if ranges and not samples:
        flag = "--" + next(iter(ranges)).replace("_", "-")
        raise InputError(f"{flag} has a range: say with --samples how many values to draw from it")
    if combinations > MAX_COUNT:
        raise InputError(f"that makes {combinations} configurations; at most {MAX_COUNT} are tried")
    if combinations < 2 and not ranges:
        raise InputError(
            "there is nothing to compare: give an option two values or more, such as "
            "--learning-rate 0.03 0.1 0.3"
        )
    limit = MAX_COUNT if ranges else combinations - 1
    if not 0 <= samples <= limit:
        expected = f"1 to {limit}; without it all combinations of listed values are tried"
        raise unusable("--samples", samples, expected)
    grid = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    if not samples:
        return grid
    rng = np.random.default_rng(config.seed)
    if not ranges:
        return [grid[i] for i in np.sort(rng.choice(combinations, samples, replace=False))]
    drawn = []
    for _ in range(samples):
        changes = dict(grid[rng.integers(combinations)])
        for name, values in ranges.items():
            changes[name] = _draw(rng, name, values)
        drawn.append(changes)
    return drawn


def _draw(rng: np.random.Generator, name: str, values: Range) -> int | float:
    """A random number, rounded to four digits so that it is easy to type."""
    if values.log:
        number = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    else:
        number = rng.uniform(values.low, values.high)
    number = min(max(float(f"{number:.4g}"), values.low), values.high)
    return round(number) if isinstance(getattr(Config, name), int) else number


def program_config(config: Config, largest: Hparams) -> Config:
    """`config` with the largest hyperparameters of a sweep, so that it has every layer they need.

    Configurations for which it is equal share a program. Max-norm and averaged weights each need a
    program that other configurations do not use.
    """
    without = {name: 0.0 for name in ("max_norm", "ema_decay") if not getattr(config, name)}
    return dataclasses.replace(config, **{**largest._asdict(), **without})


def halving_rungs(configurations: int, epochs: int) -> list[tuple[int, int]]:
    """The rungs of successive halving: (epochs, how many configurations continue).

    Each rung has twice the epochs of the one before, and half its configurations, rounded up. The
    last has all `epochs`, and none continue. Source: Jamieson & Talwalkar, "Non-stochastic best arm
    identification and hyperparameter optimization", AISTATS 2016, section 3.
    """
    halvings = int(math.log2(min(configurations, epochs)))
    rungs = []
    for left in range(halvings, 0, -1):
        configurations = math.ceil(configurations / 2)
        rungs.append((math.ceil(epochs / 2**left), configurations))
    return [*rungs, (epochs, 0)]
