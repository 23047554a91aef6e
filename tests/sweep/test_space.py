import dataclasses

import numpy as np
import pytest

from mnist_jax.config import Config, Hparams
from mnist_jax.errors import InputError
from mnist_jax.sweep.space import (
    SEARCH_FIELDS,
    SHARED_FIELDS,
    Range,
    SearchSpace,
    configurations,
    halving_rungs,
    parse_space,
    parse_values,
    program_config,
    to_text,
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
    assert parse_values(name, words) == values


@pytest.mark.parametrize("name", SEARCH_FIELDS)
def test_values_are_spelled_as_they_are_read(name):
    """The defaults, as the command line shows them."""
    value = getattr(Config(), name)
    assert parse_values(name, [str(to_text(value))]) == (value,)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("dropout", ["0.1", "0.1"], "--dropout 0.1 0.1 cannot be used: it takes each value once"),
        ("hidden", ["512", "512"], "one word, 512x512"),
        ("hidden", ["5x"], "--hidden 5x cannot be used: it takes values such as 512x512"),
        ("hidden", ["5:9"], "--hidden 5:9 cannot be used: it takes values such as 512x512"),
        ("epochs", ["2.5"], "--epochs 2.5 cannot be used: it takes values such as 10"),
        ("momentum", ["much"], "--momentum much cannot be used: it takes values such as 0.9"),
        ("nesterov", ["1"], "--nesterov 1 cannot be used: it takes values such as False"),
        ("learning_rate", ["1:0.1"], "LOW:HIGH with LOW below HIGH"),
        ("learning_rate", ["0.1:nan"], "LOW:HIGH with LOW below HIGH"),
        ("learning_rate", ["0.1:inf"], "LOW:HIGH with LOW below HIGH"),
        ("learning_rate", ["0.1:1:lin"], "LOW:HIGH with LOW below HIGH"),
        ("learning_rate", ["0.1:1", "2"], "one range"),
        ("weight_decay", ["0:1:log"], "LOW:HIGH:log with LOW above 0"),
    ],
)
def test_words_that_are_no_value_are_refused(name, words, message):
    with pytest.raises(InputError) as error:
        parse_values(name, words)
    assert message in str(error.value)


def test_all_combinations_are_tried():
    space = {"dropout": (0.0, 0.5), "hidden": ((8,), (4, 4)), "learning_rate": (0.1,)}
    pairs = [(trial["dropout"], trial["hidden"]) for trial in configurations(Config(), space)]
    assert len(pairs) == 4
    assert set(pairs) == {(0.0, (8,)), (0.0, (4, 4)), (0.5, (8,)), (0.5, (4, 4))}


def test_ranges_are_drawn_uniformly_on_their_scale():
    space = {"learning_rate": Range(0.01, 1.0, True), "dropout": Range(0.2, 0.6, False)}
    drawn = configurations(Config(), {**space, "activation": ("relu", "gelu")}, samples=2000)
    rates = np.array([trial["learning_rate"] for trial in drawn])
    dropout_rates = np.array([trial["dropout"] for trial in drawn])
    assert 0.01 <= rates.min() < rates.max() <= 1
    assert abs(np.log10(rates).mean() + 1) < 0.05  # the middle is 0.1
    assert abs(dropout_rates.mean() - 0.4) < 0.01
    assert 0.2 <= dropout_rates.min() < dropout_rates.max() <= 0.6
    assert abs(np.mean([trial["activation"] == "relu" for trial in drawn]) - 0.5) < 0.05
    for trial in drawn:  # four digits are easy to type again
        assert float(f"{trial['learning_rate']:.4g}") == trial["learning_rate"]


def test_ranges_of_whole_numbers_give_whole_numbers():
    drawn = configurations(Config(), {"batch_size": Range(8.0, 12.0, False)}, samples=200)
    assert {trial["batch_size"] for trial in drawn} == {8, 9, 10, 11, 12}
    assert all(type(trial["batch_size"]) is int for trial in drawn)


def test_the_seed_decides_what_is_drawn():
    space = {"learning_rate": Range(0.01, 1.0, True)}
    first = configurations(Config(seed=1), space, samples=5)
    assert configurations(Config(seed=1), space, samples=5) == first
    assert configurations(Config(seed=2), space, samples=5) != first


def test_combinations_of_lists_are_drawn_once():
    space = {"dropout": (0.0, 0.1, 0.2), "momentum": (0.0, 0.5, 0.9)}
    drawn = configurations(Config(), space, samples=8)
    assert len({tuple(trial.values()) for trial in drawn}) == 8


@pytest.mark.parametrize(
    ("space", "samples", "message"),
    [
        ({}, 0, "there is nothing to compare"),
        ({"dropout": (0.5,)}, 0, "there is nothing to compare"),
        ({"dropout": (0.5,)}, 3, "there is nothing to compare"),
        ({"dropout": Range(0.0, 0.5, False)}, 0, "--dropout has a range: say with --samples"),
        ({"dropout": (0.0, 0.5)}, 2, "--samples 2 cannot be used: it takes 1 to 1; without it all"),
        ({"dropout": (0.0, 0.5)}, -1, "--samples -1 cannot be used"),
        ({"epochs": range(1, 2000), "batch_size": range(1, 2000)}, 0, "at most 1000000"),
    ],
)
def test_a_sweep_of_nothing_or_too_much_is_refused(space, samples, message):
    space = {
        name: values if isinstance(values, Range) else tuple(values)
        for name, values in space.items()
    }
    with pytest.raises(InputError, match=message):
        configurations(Config(), space, samples)


def test_configurations_that_differ_only_in_hyperparameters_share_a_program():
    largest = Config(max_norm=2.0, ema_decay=0.9).hparams
    own = program_config(Config(), largest)
    changed = {"momentum": 0.5, "learning_rate": 0.2, "elastic_alpha_pixels": 3.0, "dropout": 0.0}
    assert program_config(dataclasses.replace(Config(), **changed), largest) == own
    for other in ({"hidden": (3,)}, {"batch_size": 3}, {"max_norm": 1.0}, {"ema_decay": 0.9}):
        assert program_config(dataclasses.replace(Config(), **other), largest) != own
    limited = (dataclasses.replace(Config(), max_norm=norm) for norm in (1.0, 2.0))
    assert len({program_config(config, largest) for config in limited}) == 1
    assert not set(Hparams._fields) & set(SHARED_FIELDS)


@pytest.mark.parametrize(
    ("count", "epochs", "rungs"),
    [
        (8, 8, [(1, 4), (2, 2), (4, 1), (8, 0)]),
        (9, 10, [(2, 5), (3, 3), (5, 2), (10, 0)]),
        (1000, 4, [(1, 500), (2, 250), (4, 0)]),
        (3, 100, [(50, 2), (100, 0)]),
        (5, 1, [(1, 0)]),
    ],
)
def test_the_rungs_of_successive_halving(count, epochs, rungs):
    assert halving_rungs(count, epochs) == rungs


def test_a_search_space_is_a_config_and_the_fields_that_vary():
    shared = Config(dataset="digits", seed=3)
    space = SearchSpace(dropout=("0", "0.5"), hidden=("64x32",), noise=("0.1:0.3",))
    config, values = parse_space(shared, space)
    assert config == dataclasses.replace(shared, hidden=(64, 32))
    assert values == {"dropout": (0.0, 0.5), "noise": Range(0.1, 0.3, False)}
