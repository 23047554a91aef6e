"""The search space of a sweep: its values, its configurations, and successive halving."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro
from docstring_parser import parse_from_object

from mnist_jax.config import MAX_COUNT, Config, Hparams, validate
from mnist_jax.errors import InputError, unusable

SHARED_FIELDS = ("dataset", "data_dir", "validation_images", "seed", "seeds")
"""The fields that all configurations of a sweep share."""

SEARCH_FIELDS = tuple(
    field.name for field in dataclasses.fields(Config) if field.name not in SHARED_FIELDS
)
"""The fields that may differ between them."""

HELP = {param.arg_name: param.description for param in parse_from_object(Config).params}
"""The text under each field of `Config`."""


def to_text(value: Any) -> Any:
    """A value of a field as `parse_values` reads it, or a list with its items in a row."""
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


def parse_values(config: Config, name: str, words: Sequence[str]) -> Values:
    """The values of a field as the command line spells them, or its range, LOW:HIGH[:log].

    Values are spelled as for `train`, except that the widths of a network are one word: 512x256,
    or linear if there are none.

    Raises:
        InputError: a value cannot be used, or is listed twice.
    """
    if any(":" in word for word in words):
        values = _parse_range(name, words)
        for end in (values.low, values.high):
            validate(dataclasses.replace(config, **{name: _as_type(name, end)}))
        return values
    values = tuple(_parse_value(name, word) for word in words)
    for value in values:
        validate(dataclasses.replace(config, **{name: value}))
    if len(set(values)) < len(values):
        hint = "; a network of two layers is one word, 512x512" if name == "hidden" else ""
        raise _unusable(name, words, f"each value once{hint}")
    return values


def parse_space(config: Config, space: SearchSpace) -> tuple[Config, dict[str, Values]]:
    """`config` with the fields that have a single value, and the values of the others."""
    words = vars(space)
    single = {
        name: _parse_value(name, options[0])
        for name, options in words.items()
        if len(options) == 1 and ":" not in options[0]
    }
    config = validate(dataclasses.replace(config, **single))
    several = {
        name: parse_values(config, name, options)
        for name, options in words.items()
        if name not in single
    }
    return config, several


def configurations(
    config: Config, space: Mapping[str, Values], samples: int = 0
) -> list[dict[str, Any]]:
    """What each configuration of a sweep changes in `config`.

    These are all combinations of the values in `space`, or `samples` of them drawn at random with
    the seed of `config`. Listed values are equally likely.

    Raises:
        InputError: there is nothing to compare, or too much.
    """
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if ranges and not samples:
        flag = "--" + ranges[0].replace("_", "-")
        raise InputError(f"{flag} has a range: say with --samples how many values to draw from it")
    if not 0 <= samples <= MAX_COUNT:
        raise unusable("--samples", samples, f"1 to {MAX_COUNT}")
    lists = {name: values for name, values in space.items() if not isinstance(values, Range)}
    combinations = math.prod(map(len, lists.values()))
    if combinations > MAX_COUNT:
        raise InputError(f"that makes {combinations} configurations; at most {MAX_COUNT} are tried")
    if not ranges and combinations < 2:
        raise InputError(
            "there is nothing to compare: give an option two values or more, such as "
            "--learning-rate 0.03 0.1 0.3"
        )
    grid = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    if not samples:
        return grid
    rng = np.random.default_rng(config.seed)
    if not ranges:
        if samples >= combinations:
            fewer = f"fewer than the {combinations} combinations, all of which are tried without it"
            raise unusable("--samples", samples, fewer)
        return [grid[i] for i in np.sort(rng.choice(combinations, samples, replace=False))]
    drawn = []
    for _ in range(samples):
        listed = grid[rng.integers(combinations)]
        drawn.append({name: _draw(rng, name, values, listed) for name, values in space.items()})
    return drawn


def program_key(config: Config) -> tuple[object, ...]:
    """What configurations must have in common to be networks of one compiled program."""
    static = {name: value for name, value in vars(config).items() if name not in Hparams._fields}
    return (*static.values(), config.max_norm > 0, config.ema_decay > 0)


def halving_rungs(configurations: int, epochs: int) -> list[tuple[int, int]]:
    """The rungs of successive halving: (epochs, how many configurations go on after them).

    Each rung has twice the epochs of the one before, and half its configurations, rounded up. The
    last has all `epochs`, and none goes on. Source: Jamieson & Talwalkar, "Non-stochastic best arm
    identification and hyperparameter optimization", AISTATS 2016, section 3.
    """
    halvings = int(math.log2(min(configurations, epochs)))
    rungs = []
    for left in range(halvings, 0, -1):
        configurations = math.ceil(configurations / 2)
        rungs.append((math.ceil(epochs / 2**left), configurations))
    return [*rungs, (epochs, 0)]


def _parse_range(name: str, words: Sequence[str]) -> Range:
    if _kind(name) not in (int, float):
        raise _unusable(name, words, "one value or more")
    expected = "one range of numbers, LOW:HIGH or LOW:HIGH:log, with LOW below HIGH"
    try:
        (word,) = words
        low, high, *scale = word.split(":")
        values = Range(float(low), float(high), scale == ["log"])
    except ValueError:
        raise _unusable(name, words, expected) from None
    if scale not in ([], ["log"]) or not -math.inf < values.low < values.high < math.inf:
        raise _unusable(name, words, expected)
    if values.log and values.low <= 0:
        raise _unusable(name, words, "a LOW above 0 where the range is logarithmic")
    return values


def _draw(rng: np.random.Generator, name: str, values: Values, listed: Mapping[str, Any]) -> Any:
    if not isinstance(values, Range):
        return listed[name]
    if values.log:
        number = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    else:
        number = rng.uniform(values.low, values.high)
    return _as_type(name, min(max(float(f"{number:.4g}"), values.low), values.high))


def _parse_value(name: str, word: str) -> Any:
    parse, expected = {
        tuple[int, ...]: (_parse_widths, "networks such as 512x256, or linear"),
        bool: (_parse_bool, "true or false"),
        int: (int, "whole numbers"),
        float: (float, "numbers"),
    }.get(_kind(name), (str, ""))
    try:
        return parse(word)
    except (ValueError, KeyError):
        raise _unusable(name, [word], expected) from None


def _parse_widths(word: str) -> tuple[int, ...]:
    return () if word == "linear" else tuple(map(int, word.split("x")))


def _parse_bool(word: str) -> bool:
    return {"true": True, "false": False}[word.lower()]


def _as_type(name: str, number: float) -> int | float:
    return round(number) if _kind(name) is int else number


def _kind(name: str) -> Any:
    return next(field.type for field in dataclasses.fields(Config) if field.name == name)


def _unusable(name: str, words: Sequence[str], expected: str) -> InputError:
    return unusable("--" + name.replace("_", "-"), " ".join(words), expected)
