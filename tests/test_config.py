import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_jax.config import Config, Hparams, from_json, to_json, validate
from mnist_jax.errors import InputError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", (512, 0)),
        ("hidden", (-1,)),
        ("epochs", 0),
        ("epochs", -3),
        ("batch_size", 0),
        ("seeds", 0),
        ("validation_images", -1),
        ("warmup_steps", -1),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
        ("input_dropout", 1.5),
        ("momentum", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", math.inf),
        ("hidden", 1001 * (1,)),
        ("learning_rate", math.nan),
        ("learning_rate", 1e39),  # float32 has no such number
        ("weight_decay", -1e-4),
        ("input_noise", -0.1),
        ("noise", math.nan),
        ("rotation_degrees", 90.0),
        ("shear_degrees", -1.0),
        ("scale", 1.0),
        ("shift_pixels", math.inf),
        ("elastic_sigma_pixels", 0.0),
        ("elastic_alpha_pixels", -34.0),
        ("label_smoothing", 1.0),
        ("max_norm", -1.0),
        ("ema_decay", 1.0),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_value_out_of_range_is_named_with_its_flag(field, value):
    config = Config(**{field: value})
    with pytest.raises(InputError) as caught:
        validate(config)
    message = str(caught.value)
    assert message.startswith("--" + field.replace("_", "-"))
    assert "it takes" in message
    assert "\n" not in message


def test_the_last_seed_must_fit_too():
    validate(Config(seed=2**32 - 2, seeds=2))
    with pytest.raises(InputError, match="--seed"):
        validate(Config(seed=2**32 - 2, seeds=3))


def test_validate_returns_a_config_that_can_be_used():
    config = Config(dropout=0.5)
    assert validate(config) is config


def test_hparams_are_the_values_of_the_fields():
    config = Config(learning_rate=0.25, elastic_alpha_pixels=3.0)
    hparams = config.hparams
    assert hparams.learning_rate == 0.25
    assert hparams == Hparams(**{name: getattr(config, name) for name in Hparams._fields})


@given(
    hidden=st.lists(st.integers(1, 9999), max_size=4).map(tuple),
    dropout=st.floats(0, 0.99),
    data_dir=st.none() | st.just("some/where"),
    seed=st.integers(0, 2**32 - 1),
)
def test_json_keeps_everything(hidden, dropout, data_dir, seed):
    from pathlib import Path

    config = Config(hidden=hidden, dropout=dropout, seed=seed, data_dir=data_dir and Path(data_dir))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_values_of_another_type_are_named():
    """In a process of its own, because here beartype refuses them first."""
    code = """
import math
from mnist_jax.config import Config, from_json, to_json
from mnist_jax.errors import InputError
for change in (
    {"epochs": "ten"}, {"epochs": 2.5}, {"seeds": True}, {"dropout": None}, {"dropout": "high"},
    {"activation": "swishy"}, {"hidden": 5}, {"hidden": ["wide"]}, {"data_dir": 7}, {"layers": 3},
):
    try:
        from_json({**to_json(Config()), **change})
    except InputError as error:
        (name,) = change
        assert name in str(error).replace("-", "_"), error
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["refused"] * 10, done.stderr


def test_a_missing_field_takes_its_default():
    fields = to_json(Config(epochs=3, momentum=0.5))
    del fields["momentum"]
    assert from_json(fields) == Config(epochs=3)


def test_config_is_hashable_and_frozen():
    assert len({Config(), Config(), Config(seed=1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]
