"""All that decides a run, in one frozen dataclass: default, flag and help text stand together."""

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mnist_jax.notebook import OneLine

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


MOST = 10**6
"""The largest width, batch and count of epochs and seeds; what fits in memory is often less."""


VARIABLE = (
    *("learning_rate", "momentum", "weight_decay", "max_norm", "ema_decay", "label_smoothing"),
    *("input_dropout", "dropout", "input_noise", "noise", "rotation_degrees", "shear_degrees"),
    *("scale", "shift_pixels", "elastic_alpha_pixels"),
)
"""The fields that change the shape of no array, so that networks of one program may differ in them;
but where a norm is limited or an average taken, it is so for all of them."""


class InputError(OneLine, Exception):
    """Something a person gave cannot be used; the message says what, why and what to do."""


class Interrupted(OneLine, KeyboardInterrupt):
    """A signal stopped a run, which can go on; the message says how far it came."""

    def __init__(self, number: int, run: Path | None, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.run = run


class Rescued(OneLine, Exception):
    """The disk failed a run that is done; the message says where it is now, or that it is lost."""

    def __init__(self, run: Path | None, message: str) -> None:
        super().__init__(message)
        self.run = run


@dataclasses.dataclass(frozen=True)
class Config:
    """A run is a pure function of this, the data and the seed.

    Raises:
        InputError: a value is out of its range.
    """

    dataset: str = "auto"
    """mnist, fashion_mnist, kmnist, emnist/SPLIT, digits, or local (your own files in --data-dir);
    auto is mnist, or the embedded digits where mnist cannot be had."""

    data_dir: Path | None = None
    """Folder with the dataset's IDX files (plain or .gz) or Keras' mnist.npz, or that file itself.
    Without it the variable MNIST_JAX_DATA counts, then the cache, then a download."""

    validation_images: int = 0
    """How many of the last training images are held out to watch the training."""

    hidden: tuple[int, ...] = (512, 512)
    """Width of each hidden layer; none is softmax regression."""

    activation: Activation = "relu"
    """Non-linearity after each hidden layer."""

    initializer: Initializer = "he_normal"
    """Distribution the weights start from; biases start at zero."""

    input_dropout: float = 0.0
    """Share of the pixels dropped in training."""

    dropout: float = 0.2
    """Share of the hidden units dropped in training."""

    input_noise: float = 0.0
    """Standard deviation of Gaussian noise on the pixels, from 0 to 1, in training."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise on what each hidden unit reads, in training."""

    batch_norm: bool = False
    """Normalise what each hidden unit reads over the batch."""

    rotation_degrees: float = 0.0
    """Training images are rotated by up to this angle, each time anew."""

    shear_degrees: float = 0.0
    """They are sheared by up to this angle."""

    scale: float = 0.0
    """They are made taller and wider, or less so, by up to this share."""

    shift_pixels: float = 0.0
    """They are shifted by up to this many pixels."""

    elastic_sigma_pixels: float = 4.0
    """How smooth their elastic deformation is: the width of its Gaussian."""

    elastic_alpha_pixels: float = 0.0
    """How strong their elastic deformation is; 34 and sigma 4 move a pixel by 1.4, typically."""

    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""

    epochs: int = 10
    """Passes over the training images."""

    batch_size: int = 128
    """Images in one step; what is left over at the end of an epoch waits for the next shuffle."""

    shard_images: int = 0
    """How many training images are on the device at once, at most (and as many that are on their
    way); 0 is all, or 128 MiB of them where the dataset stays on disk."""

    optimizer: Optimizer = "sgd"
    """What takes the steps."""

    learning_rate: float = 0.1
    """Peak step size."""

    schedule: Schedule = "linear"
    """How the learning rate falls, to zero at the last step unless constant."""

    warmup_steps: int = 0
    """Steps over which the learning rate first climbs from zero."""

    momentum: float = 0.9
    """Share of the last update that the next one keeps (Adam's first beta)."""

    nesterov: bool = False
    """Look ahead along the momentum."""

    weight_decay: float = 2e-4
    """L2 pull of the weights (not the biases) towards zero, added to the gradient."""

    max_norm: float = 0.0
    """Largest length of the weights into a unit; 0 is no limit."""

    precision: Precision = "auto"
    """Of the products in a layer: float32; tf32, with factors of 11 bits, on GPUs that have it;
    bfloat16, with factors and results of 8. auto is float32 on CPUs, tf32 on GPUs and factors of
    bfloat16 on TPUs. Weights, their updates and losses are float32."""

    ema_decay: float = 0.0
    """Decay, a step, of the moving average of the weights that is tested; 0 tests the last ones."""

    seed: int = 0
    """The first seed; it decides initial weights, order of images and dropout masks."""

    seeds: int = 1
    """How many networks are trained at once, on seeds SEED, SEED + 1, ..."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, kind, value = field.name, field.type, getattr(self, field.name)
            if get_origin(kind) is Literal:
                choices = get_args(kind)
                require(self, name, value in choices, f"one of {', '.join(choices)}")
            elif kind is int:
                require(self, name, type(value) is int, "a whole number")
            elif kind is float:
                require(self, name, type(value) in (int, float), "a number")
            elif kind is str:
                require(self, name, type(value) is str, "a name")
            elif kind is bool:
                require(self, name, type(value) is bool, "true or false")
        widths = all(type(width) is int and 1 <= width <= MOST for width in self.hidden)
        widths = widths and len(self.hidden) <= 1000
        require(self, "hidden", widths, f"widths from 1 to {MOST}, 1000 at most")
        for name in ("epochs", "batch_size", "seeds"):
            require(self, name, 1 <= getattr(self, name) <= MOST, f"1 to {MOST}")
        enough = self.shard_images == 0 or self.shard_images >= self.batch_size
        require(self, "shard_images", enough, f"--batch-size {self.batch_size} or more, or 0")
        for name in ("validation_images", "warmup_steps"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        shares = ("input_dropout", "dropout", "momentum", "label_smoothing", "ema_decay", "scale")
        for name in shares:
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        angles = ("rotation_degrees", "shear_degrees")
        for name in angles:
            require(self, name, 0 <= getattr(self, name) < 90, "at least 0 and below 90")
        for name in ("input_noise", "noise", "max_norm", "shift_pixels", "elastic_alpha_pixels"):
            require(self, name, 0 <= getattr(self, name) < 1e38, "at least 0 and below 1e38")
        sigma = self.elastic_sigma_pixels
        require(self, "elastic_sigma_pixels", 0 < sigma <= 1000, "above 0, at most 1000")
        require(self, "learning_rate", 0 < self.learning_rate < 1e38, "above 0 and below 1e38")
        require(self, "weight_decay", 0 <= self.weight_decay < 1e38, "at least 0 and below 1e38")
        last_seed = self.seed + self.seeds - 1
        require(self, "seed", self.seed >= 0 and last_seed < 2**32, "seeds from 0 to 4294967295")

    @property
    def all_seeds(self) -> range:
        """The seed of each network."""
        return range(self.seed, self.seed + self.seeds)


class Varied(Config):
    """A config in which some of the `VARIABLE` numbers are arrays, and so not checked."""

    def __init__(self, config: Config, **numbers: Any) -> None:
        vars(self).update(vars(config), **numbers)


def is_off(strength: object) -> bool:
    """Whether `strength` is the number 0; an array holds another number for each network."""
    return isinstance(strength, int | float) and strength == 0


@dataclasses.dataclass(frozen=True)
class Saving:
    """When a run that trains is kept on disk, which changes nothing of what comes of it.

    Raises:
        InputError: a value is out of its range.
    """

    checkpoint_minutes: float = 1.0
    """Minutes of training from one checkpoint to the next; there is always one at the end."""

    checkpoint_epochs: int = MOST
    """Epochs from one checkpoint to the next, where they pass sooner than the minutes."""

    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay; a damaged one costs less where there is another."""

    def __post_init__(self) -> None:
        require(self, "checkpoint_minutes", self.checkpoint_minutes >= 0, "0 or more")
        for name in ("checkpoint_epochs", "keep_checkpoints"):
            require(self, name, 1 <= getattr(self, name) <= MOST, f"1 to {MOST}")


def require(options: Config | Saving, name: str, holds: bool, expected: str) -> None:
    """Raises InputError about the flag `name` unless its value `holds`."""
    if not holds:
        flag, value = "--" + name.replace("_", "-"), getattr(options, name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise unusable(flag, shown, expected)


def unusable(flag: str, value: object, expected: str) -> InputError:
    """What to raise where the `value` of a flag is not what it takes."""
    return InputError(f"{flag} {value} cannot be used: it takes {expected}")


def documentation() -> dict[str, str]:
    """What each field of `Config` means, as the text under it says."""
    source: Any = ast.parse(inspect.getsource(Config)).body[0]
    return {
        ast.unparse(field.target): " ".join(text.value.value.split())
        for field, text in itertools.pairwise(source.body)
        if isinstance(field, ast.AnnAssign)
    }


Shape = tuple[int, int]
"""Of a mesh: among how many devices networks are divided, and each batch among those of one."""


def parse_mesh(words: str | None) -> Shape | None:
    """The shape that the command line spells as 4x2; None is for nobody to say.

    Raises:
        InputError: it spells none.
    """
    if words is None:
        return None
    try:
        across, within = map(int, words.split("x"))
        if min(across, within) < 1:
            raise ValueError
    except ValueError:
        expected = "two numbers of devices, such as 4x2: one that divides the networks, and one "
        raise unusable("--mesh", words, expected + "that divides each batch") from None
    return across, within


def to_json(config: Config) -> dict[str, Any]:
    """`config` in JSON's own types; `from_json` is the way back."""
    fields = dataclasses.asdict(config)
    return {
        **fields,
        "data_dir": None if config.data_dir is None else str(config.data_dir),
        "hidden": list(config.hidden),
    }


def to_flags(config: Config) -> list[str]:
    """The options of `mnist-jax train` that give `config`, where it is not the default one."""
    flags = []
    for name, value in vars(config).items():
        if value != getattr(Config, name):
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags += [f"--{flag}" if value else f"--no-{flag}"]
            else:
                flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def from_json(fields: dict[str, Any]) -> Config:
    """The config that `to_json` wrote, in this version or an earlier one.

    A missing field takes its default: it is newer than the file.

    Raises:
        InputError: a field is unknown, or its value out of range.
    """
    defaults = to_json(Config())
    if unknown := ", ".join(sorted(set(fields) - set(defaults))):
        raise InputError(f"the config has unknown fields: {unknown}")
    fields = {**defaults, **fields}
    data_dir, hidden = fields["data_dir"], fields["hidden"]
    if not isinstance(data_dir, str | None) or not isinstance(hidden, list):
        raise InputError(f"data_dir {data_dir} or hidden {hidden} is of the wrong type")
    return Config(**{**fields, "data_dir": data_dir and Path(data_dir), "hidden": tuple(hidden)})
