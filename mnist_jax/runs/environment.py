"""What else decides the last digits of a run, beside its config and its data."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision")


def environment() -> dict[str, str]:
    """The versions, the device and the flags that a run is computed with, each by its name."""
    flags = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    options = {name: str(value) for name in OPTIONS if (value := getattr(jax.config, name))}
    here = {"code": _code(), "device": device_name(), "processor": _processor()}
    return {**versions(), **here, **flags, **options}


def device_name() -> str:
    """The devices that run, in words."""
    device, count = jax.devices()[0], jax.device_count()
    name = device.device_kind
    if device.platform == "cpu":
        name = f"CPU ({platform.machine()}, {_cores()} cores)"
    return name if count == 1 else f"{count} x {name}"


def _cores() -> int | None:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def versions() -> dict[str, str]:
    """Of Python, and of the packages that compute."""
    packages = ("mnist_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


def _code() -> str:
    """64 bits of the SHA-256 of our source, which changes more often than our version."""
    hashed = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:16]


def _processor() -> str:
    """The model of the CPU: programs are compiled for it, where the device is one."""
    if jax.default_backend() != "cpu":
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
