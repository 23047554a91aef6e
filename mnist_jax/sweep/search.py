"""What a sweep tries: its configurations, which of them make one program, and which go on."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_origin

import numpy as np

from mnist_jax.config import MOST, VARIABLE, Config, InputError, unusable

FIXED = ("dataset", "data_dir", "validation_images", "seed", "seeds")
"""The fields that all configurations of a sweep share."""

SWEPT = tuple(field.name for field in dataclasses.fields(Config) if field.name not in FIXED)
"""The fields that may differ from one to the next."""


class Range(NamedTuple):
    """Numbers from `low` to `high`, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool


Axis = tuple[Any, ...] | Range
"""The values of a field that are tried."""


def parse_axis(config: Config, name: str, words: Sequence[str]) -> Axis:
    """The values of a field as the command line spells them, or its range, LOW:HIGH[:log].

    A value is spelt as for `train`, but the widths of a network are one word, such as 512x256, or
    linear where there are none.

    Raises:
        InputError: they are no such values, or one of them stands there twice.
    """
    if any(":" in word for word in words):
        found = _range(name, words)
        for end in found[:2]:
            dataclasses.replace(config, **{name: _of_kind(name, end)})
        return found
    values = tuple(_value(name, word) for word in words)
    for value in values:
        dataclasses.replace(config, **{name: value})
    if len(set(values)) < len(values):
        widths = "; a network of two layers is one word, 512x512" if name == "hidden" else ""
        raise _unusable(name, words, f"each value once{widths}")
    return values


def configurations(
    config: Config, axes: Mapping[str, Axis], samples: int = 0
) -> list[dict[str, Any]]:
    """What each configuration of a sweep changes in `config`.

    They are all combinations of the values of `axes`, or `samples` of them at random: values that
    are listed are drawn evenly, and `config.seed` decides.

    Raises:
        InputError: there is nothing to compare, or too much.
    """
    ranges = [name for name, axis in axes.items() if isinstance(axis, Range)]
    if ranges and not samples:
        flag = _flag(ranges[0])
        raise InputError(f"{flag} has a range: say with --samples how many values to draw of it")
    if not 0 <= samples <= MOST:
        raise unusable("--samples", samples, f"1 to {MOST}")
    lists = {name: axis for name, axis in axes.items() if not isinstance(axis, Range)}
    combinations = math.prod(map(len, lists.values()))
    if combinations > MOST:
        raise InputError(f"that is {combinations} configurations; {MOST} are the most")
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
        drawn.append({name: _draw(rng, name, axis, listed) for name, axis in axes.items()})
    return drawn


def program(config: Config) -> tuple[object, ...]:
    """What networks have in common that one program can train side by side, each in its way."""
    fixed = {name: value for name, value in vars(config).items() if name not in VARIABLE}
    return (*fixed.values(), config.max_norm > 0, config.ema_decay > 0)


def rungs(configurations: int, epochs: int) -> list[tuple[int, int]]:
    """The ladder of successive halving: after how many epochs how many configurations go on.

    The last rung has all `epochs`, and none goes on. Each has twice the epochs of the one before
    and half its configurations, but that halves are rounded up. Source: Jamieson & Talwalkar,
    "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016,
    section 3.
    """
    halvings = int(math.log2(min(configurations, epochs)))
    found = []
    for left in range(halvings, -1, -1):
        configurations = math.ceil(configurations / 2) if left else 0
        found.append((math.ceil(epochs / 2**left), configurations))
    return found


def in_a_word(value: Any) -> Any:
    """A value of a field as `parse_axis` reads it; of a list, its items in a row."""
    if isinstance(value, tuple | list):
        numbers = list(map(str, value))
        return ("x" if isinstance(value, tuple) else " ").join(numbers) or "linear"
    return value


def _range(name: str, words: Sequence[str]) -> Range:
    kind = _kind(name)
    expected = "one range of numbers, LOW:HIGH or LOW:HIGH:log, with LOW below HIGH"
    if kind not in (int, float) or len(words) > 1:
        raise _unusable(name, words, "one value or more" if kind not in (int, float) else expected)
    low, high, *scale = words[0].split(":")
    try:
        found = Range(float(low), float(high), bool(scale))
    except ValueError:
        raise _unusable(name, words, expected) from None
    if scale not in ([], ["log"]) or not -math.inf < found.low < found.high < math.inf:
        raise _unusable(name, words, expected)
    if found.log and found.low <= 0:
        raise _unusable(name, words, "a LOW above 0 where the range is logarithmic")
    return found


def _draw(rng: np.random.Generator, name: str, axis: Axis, listed: Mapping[str, Any]) -> Any:
    if not isinstance(axis, Range):
        return listed[name]
    if axis.log:
        number = math.exp(rng.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        number = rng.uniform(axis.low, axis.high)
    return _of_kind(name, min(max(float(f"{number:.4g}"), axis.low), axis.high))


def _value(name: str, word: str) -> Any:
    kind = _kind(name)
    try:
        if name == "hidden":
            return () if word == "linear" else tuple(map(int, word.split("x")))
        if kind is bool:
            return {"true": True, "false": False}[word.lower()]
        return kind(word) if kind in (int, float) else word
    except (ValueError, KeyError):
        expected = {int: "whole numbers", float: "numbers", bool: "true or false"}
        raise _unusable(
            name, [word], expected.get(kind, "networks such as 512x256, or linear")
        ) from None


def _of_kind(name: str, number: float) -> int | float:
    return round(number) if _kind(name) is int else number


def _kind(name: str) -> Any:
    kind = next(field.type for field in dataclasses.fields(Config) if field.name == name)
    return str if get_origin(kind) is Literal else kind


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unusable(name: str, words: Sequence[str], expected: str) -> InputError:
    return unusable(_flag(name), " ".join(words), expected)
