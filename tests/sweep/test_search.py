import dataclasses

import numpy as np
import pytest

from mnist_jax.config import VARIABLE, Config, InputError
from mnist_jax.sweep.search import (
    FIXED,
    SWEPT,
    Range,
    configurations,
    in_a_word,
    parse_axis,
    program,
    rungs,
)


@pytest.mark.parametrize(
    ("name", "words", "values"),
    [
        ("learning_rate", ["0.03", "1e-1"], (0.03, 0.1)),
        ("batch_size", ["32", "64"], (32, 64)),
        ("hidden", ["512x256", "64", "linear"], ((512, 256), (64,), ())),
        ("activation", ["relu", "gelu"], ("relu", "gelu")),
        ("batch_norm", ["true", "False"], (True, False)),
        ("learning_rate", ["0.01:1"], Range(0.01, 1.0, False)),
        ("learning_rate", ["0.01:1:log"], Range(0.01, 1.0, True)),
        ("batch_size", ["16:64:log"], Range(16.0, 64.0, True)),
    ],
)
def test_values_and_ranges_are_read(name, words, values):
    assert parse_axis(Config(), name, words) == values


@pytest.mark.parametrize("name", SWEPT)
def test_every_value_is_spelt_as_it_is_read(name):
    """The defaults, which the command line shows."""
    value = getattr(Config(), name)
    assert parse_axis(Config(), name, [str(in_a_word(value))]) == (value,)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("dropout", ["0", "1.5"], "--dropout 1.5 cannot be used: it takes at least 0 and below 1"),
        ("dropout", ["0:2"], "--dropout 2.0 cannot be used"),
        ("dropout", ["0.1", "0.1"], "--dropout 0.1 0.1 cannot be used: it takes each value once"),
        ("hidden", ["512", "512"], "one word, 512x512"),
        ("hidden", ["5x"], "networks such as 512x256, or linear"),
        ("hidden", ["5:9"], "--hidden 5:9 cannot be used: it takes one value or more"),
        ("epochs", ["2.5"], "--epochs 2.5 cannot be used: it takes whole numbers"),
        ("momentum", ["much"], "--momentum much cannot be used: it takes numbers"),
        ("nesterov", ["1"], "--nesterov 1 cannot be used: it takes true or false"),
        ("learning_rate", ["1:0.1"], "LOW:HIGH:log, with LOW below HIGH"),
        ("learning_rate", ["0.1:nan"], "LOW:HIGH:log, with LOW below HIGH"),
        ("learning_rate", ["0.1:inf"], "LOW:HIGH:log, with LOW below HIGH"),
        ("learning_rate", ["0.1:1:lin"], "LOW:HIGH:log, with LOW below HIGH"),
        ("learning_rate", ["0.1:1", "2"], "one range of numbers"),
        ("weight_decay", ["0:1:log"], "a LOW above 0"),
    ],
)
def test_what_is_no_value_is_refused(name, words, message):
    with pytest.raises(InputError) as error:
        parse_axis(Config(), name, words)
    assert message in str(error.value)


def test_all_combinations_are_tried():
    axes = {"dropout": (0.0, 0.5), "hidden": ((8,), (4, 4)), "learning_rate": (0.1,)}
    found = configurations(Config(), axes)
    assert len(found) == 4
    assert {(trial["dropout"], trial["hidden"]) for trial in found} == {
        *((0.0, (8,)), (0.0, (4, 4)), (0.5, (8,)), (0.5, (4, 4)))
    }


def test_ranges_are_drawn_evenly_in_their_scale():
    axes = {"learning_rate": Range(0.01, 1.0, True), "dropout": Range(0.2, 0.6, False)}
    found = configurations(Config(), {**axes, "activation": ("relu", "gelu")}, samples=2000)
    rates = np.array([trial["learning_rate"] for trial in found])
    shares = np.array([trial["dropout"] for trial in found])
    assert 0.01 <= rates.min() < rates.max() <= 1
    assert abs(np.log10(rates).mean() + 1) < 0.05  # the middle is 0.1
    assert abs(shares.mean() - 0.4) < 0.01
    assert 0.2 <= shares.min() < shares.max() <= 0.6
    assert abs(np.mean([trial["activation"] == "relu" for trial in found]) - 0.5) < 0.05
    for trial in found:  # short to type, and the same when typed
        assert float(f"{trial['learning_rate']:.4g}") == trial["learning_rate"]


def test_whole_numbers_are_drawn_whole():
    found = configurations(Config(), {"batch_size": Range(8.0, 12.0, False)}, samples=200)
    assert {trial["batch_size"] for trial in found} == {8, 9, 10, 11, 12}
    assert all(type(trial["batch_size"]) is int for trial in found)


def test_the_seed_decides_what_is_drawn():
    axes = {"learning_rate": Range(0.01, 1.0, True)}
    first = configurations(Config(seed=1), axes, samples=5)
    assert configurations(Config(seed=1), axes, samples=5) == first
    assert configurations(Config(seed=2), axes, samples=5) != first


def test_lists_are_drawn_without_repeating():
    axes = {"dropout": (0.0, 0.1, 0.2), "momentum": (0.0, 0.5, 0.9)}
    found = configurations(Config(), axes, samples=8)
    assert len({tuple(trial.values()) for trial in found}) == 8


@pytest.mark.parametrize(
    ("axes", "samples", "message"),
    [
        ({}, 0, "there is nothing to compare"),
        ({"dropout": (0.5,)}, 0, "there is nothing to compare"),
        ({"dropout": (0.5,)}, 3, "there is nothing to compare"),
        ({"dropout": Range(0.0, 0.5, False)}, 0, "--dropout has a range: say with --samples"),
        ({"dropout": (0.0, 0.5)}, 2, "--samples 2 cannot be used: it takes fewer than the 2"),
        ({"dropout": (0.0, 0.5)}, -1, "--samples -1 cannot be used"),
        ({"epochs": range(1, 2000), "batch_size": range(1, 2000)}, 0, "1000000 are the most"),
    ],
)
def test_a_sweep_of_nothing_or_too_much_is_refused(axes, samples, message):
    axes = {name: axis if isinstance(axis, Range) else tuple(axis) for name, axis in axes.items()}
    with pytest.raises(InputError, match=message):
        configurations(Config(), axes, samples)


def test_a_program_is_shared_by_what_differs_in_numbers_alone():
    changed = {"momentum": 0.5, "learning_rate": 0.2, "elastic_alpha_pixels": 3.0, "dropout": 0.0}
    assert program(dataclasses.replace(Config(), **changed)) == program(Config())
    for other in ({"hidden": (3,)}, {"batch_size": 3}, {"max_norm": 1.0}, {"ema_decay": 0.9}):
        assert program(dataclasses.replace(Config(), **other)) != program(Config())
    assert not set(VARIABLE) & set(FIXED)


@pytest.mark.parametrize(
    ("configs", "epochs", "ladder"),
    [
        (8, 8, [(1, 4), (2, 2), (4, 1), (8, 0)]),
        (9, 10, [(2, 5), (3, 3), (5, 2), (10, 0)]),
        (1000, 4, [(1, 500), (2, 250), (4, 0)]),
        (3, 100, [(50, 2), (100, 0)]),
        (5, 1, [(1, 0)]),
    ],
)
def test_halving_climbs_a_ladder(configs, epochs, ladder):
    assert rungs(configs, epochs) == ladder
