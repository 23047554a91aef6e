"""The configuration of a run: one frozen dataclass with each default, flag and help text."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from mnist_jax.errors import InputError, unusable

Activation = Literal[
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "sigmoid", "tanh"
]
Initializer = Literal[
    "he_normal",
    "he_uniform",
    "glorot_normal",
    "glorot_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
]
Optimizer = Literal["sgd", "adam"]
Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "float32", "tf32", "bfloat16"]

MAX_COUNT = 10**6
"""Largest width, batch size, and number of epochs or seeds; memory often sets a lower limit."""


class Hparams(NamedTuple):
    """The hyperparameters that change no array's shape.

    They are arguments of a compiled program, so networks with different values can share it.
    Each is a number, or a float32 scalar array while a program is traced.
    """

    learning_rate: Any
    momentum: Any
    weight_decay: Any
    max_norm: Any
    ema_decay: Any
    label_smoothing: Any
    input_dropout: Any
    dropout: Any
    input_noise: Any
    noise: Any
    rotation_degrees: Any
    shear_degrees: Any
    scale: Any
    shift_pixels: Any
    elastic_alpha_pixels: Any


@dataclasses.dataclass(frozen=True)
class Config:
    """The options of a run. They and the data determine its result. `validate` checks them."""

    dataset: str = "auto"
    """mnist, fashion_mnist, kmnist, emnist/SPLIT, digits, or local (your own files in --data-dir);
    auto is mnist, or the embedded digits if mnist is not available."""

    data_dir: Path | None = None
    """Folder with the dataset's IDX files (plain or .gz) or Keras' mnist.npz, or that file itself.
    By default the folder in the variable MNIST_JAX_DATA, then the cache, then a download."""

    validation_images: int = 0
    """How many of the last training images are held out for validation."""

    hidden: tuple[int, ...] = (512, 512)
    """Width of each hidden layer; without any, the network is softmax regression."""

    activation: Activation = "relu"
    """Activation function of the hidden layers."""

    initializer: Initializer = "he_normal"
    """Distribution of the initial weights; biases start at zero."""

    input_dropout: float = 0.0
    """Dropout rate of the pixels."""

    dropout: float = 0.2
    """Dropout rate of the hidden units."""

    input_noise: float = 0.0
    """Standard deviation of Gaussian noise on the pixels, which are in [0, 1], in training."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise on the input of each activation, in training."""

    batch_norm: bool = False
    """Batch normalisation before each activation."""

    rotation_degrees: float = 0.0
    """Rotate each training image by a random angle up to this, anew in every epoch."""

    shear_degrees: float = 0.0
    """Shear each training image by a random angle up to this."""

    scale: float = 0.0
    """Change the height and width of each training image by random fractions up to this."""

    shift_pixels: float = 0.0
    """Shift each training image by random distances up to this."""

    elastic_sigma_pixels: float = 4.0
    """Standard deviation of the Gaussian that smooths the elastic deformation."""

    elastic_alpha_pixels: float = 0.0
    """Strength of the elastic deformation; 34 with sigma 4 moves a pixel by about 1.4."""

    label_smoothing: float = 0.0
    """Fraction of each label's probability that is spread evenly over all classes."""

    epochs: int = 10
    """Passes over the training images."""

    batch_size: int = 128
    """Images in one step; the incomplete batch at the end of an epoch is dropped."""

    shard_images: int = 0
    """How many training images the device holds at once, while it loads as many again; 0 means
    all of them, or 128 MiB of a dataset that is read from disk."""

    optimizer: Optimizer = "sgd"
    """Gradient descent with momentum, or Adam."""

    learning_rate: float = 0.1
    """Learning rate at its peak."""

    schedule: Schedule = "linear"
    """How the learning rate falls after the peak; linear and cosine reach zero at the end."""

    warmup_steps: int = 0
    """Steps in which the learning rate rises from zero to its peak."""

    momentum: float = 0.9
    """Momentum of SGD, or Adam's first beta."""

    nesterov: bool = False
    """Nesterov momentum."""

    weight_decay: float = 2e-4
    """L2 regularisation: this times the weights (not the biases) is added to the gradient."""

    max_norm: float = 0.0
    """Largest norm of the weights into a unit; 0 sets no limit."""

    precision: Precision = "auto"
    """Precision of the matrix products: float32; tf32, with 11-bit factors, on GPUs that have it;
    bfloat16, with 8-bit factors and results. auto is float32 on CPUs, tf32 on GPUs and bfloat16
    factors on TPUs. Weights, updates and losses are always float32."""

    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights, which is then evaluated; 0 evaluates
    the last weights."""

    seed: int = 0
    """The first seed: it decides the initial weights, the order of the images and the dropout."""

    seeds: int = 1
    """How many networks are trained at once, with the seeds SEED, SEED + 1, ..."""

    @property
    def all_seeds(self) -> range:
        """The seed of each network."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def hparams(self) -> Hparams:
        """The values of the fields that are hyperparameters."""
        return Hparams(*(getattr(self, name) for name in Hparams._fields))


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """When a run is saved while it trains; this does not change its result.

    Raises:
        InputError: a value is out of range.
    """

    checkpoint_minutes: float = 1.0
    """Minutes of training between checkpoints; there is always one at the end."""

    checkpoint_epochs: int = MAX_COUNT
    """Epochs between checkpoints, if they take less than the minutes."""

    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep; if one is damaged, an older one is used."""

    def __post_init__(self) -> None:
        if not self.checkpoint_minutes >= 0:
            raise unusable("--checkpoint-minutes", self.checkpoint_minutes, "0 or more")
        for name in ("checkpoint_epochs", "keep_checkpoints"):
            if not 1 <= getattr(self, name) <= MAX_COUNT:
                flag = "--" + name.replace("_", "-")
                raise unusable(flag, getattr(self, name), f"1 to {MAX_COUNT}")


def validate(config: Config) -> Config:
    """Returns `config` if all its values can be used.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """
    for field in dataclasses.fields(Config):
        _check_type(config, field.name, field.type)
    _check(config, "hidden", _are_widths(config.hidden), f"up to 1000 widths from 1 to {MAX_COUNT}")
    for name in ("epochs", "batch_size", "seeds"):
        _check(config, name, 1 <= getattr(config, name) <= MAX_COUNT, f"1 to {MAX_COUNT}")
    for name in ("validation_images", "shard_images", "warmup_steps"):
        _check(config, name, getattr(config, name) >= 0, "0 or more")
    for name in ("input_dropout", "dropout", "momentum", "label_smoothing", "ema_decay", "scale"):
        _check(config, name, 0 <= getattr(config, name) < 1, "at least 0 and below 1")
    for name in ("rotation_degrees", "shear_degrees"):
        _check(config, name, 0 <= getattr(config, name) < 90, "at least 0 and below 90")
    unbounded = ("input_noise", "noise", "max_norm", "weight_decay")
    for name in (*unbounded, "shift_pixels", "elastic_alpha_pixels"):
        _check(config, name, 0 <= getattr(config, name) < 1e38, "at least 0 and below 1e38")
    _check(config, "learning_rate", 0 < config.learning_rate < 1e38, "above 0 and below 1e38")
    sigma = config.elastic_sigma_pixels
    _check(config, "elastic_sigma_pixels", 0 < sigma <= 1000, "above 0 and at most 1000")
    seeds_fit = config.seed >= 0 and config.seed + config.seeds <= 2**32
    _check(config, "seed", seeds_fit, "seeds from 0 to 4294967295")
    return config


def _check_type(config: Config, name: str, kind: Any) -> None:
    value = getattr(config, name)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        _check(config, name, value in choices, f"one of {', '.join(choices)}")
    elif kind is float:
        _check(config, name, type(value) in (int, float), "a number")
    elif kind in (int, bool, str):
        expected = {int: "a whole number", bool: "true or false", str: "a name"}[kind]
        _check(config, name, type(value) is kind, expected)


def _are_widths(hidden: tuple[int, ...]) -> bool:
    widths = all(type(width) is int and 1 <= width <= MAX_COUNT for width in hidden)
    return widths and len(hidden) <= 1000


def _check(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        value = getattr(config, name)
        text = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise unusable("--" + name.replace("_", "-"), text, expected)


def to_json(config: Config) -> dict[str, Any]:
    """`config` as a JSON object, which `from_json` reads."""
    data_dir = None if config.data_dir is None else str(config.data_dir)
    return {**vars(config), "data_dir": data_dir, "hidden": list(config.hidden)}


def from_json(fields: dict[str, Any]) -> Config:
    """The config that `to_json` wrote, in this version or an earlier one.

    A field that is newer than the file takes its default.

    Raises:
        InputError: a field is unknown, or its value is out of range.
    """
    defaults = to_json(Config())
    if unknown := ", ".join(sorted(set(fields) - set(defaults))):
        raise InputError(f"the config has unknown fields: {unknown}")
    fields = {**defaults, **fields}
    data_dir, hidden = fields["data_dir"], fields["hidden"]
    if not isinstance(data_dir, str | None) or not isinstance(hidden, list):
        raise InputError(f"data_dir {data_dir} or hidden {hidden} is of the wrong type")
    data_dir = None if data_dir is None else Path(data_dir)
    return validate(Config(**{**fields, "data_dir": data_dir, "hidden": tuple(hidden)}))


def to_flags(config: Config) -> list[str]:
    """The options of `mnist-jax train` that give `config`; defaults are left out."""
    flags = []
    for name, value in vars(config).items():
        flag = name.replace("_", "-")
        if value == getattr(Config, name):
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags
