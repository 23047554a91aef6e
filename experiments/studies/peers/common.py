"""What each peer's process needs to be measured: its settings, the arrays, and a way to report."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def settings() -> dict[str, Any]:
    """What `benchmark.py` asks for."""
    return json.loads(sys.argv[1])


def arrays(asked: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs in [0, 1], float32 (n, 784), and labels, int64, to train on and to test with.

    They come decoded and scaled from plain files, which is faster than any framework's own loader.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    x_train, y_train, x_test, y_test = (np.load(Path(asked["data"]) / f"{n}.npy") for n in names)
    return x_train[: asked["images"]], y_train[: asked["images"]], x_test, y_test


def report(event: str, **values: Any) -> None:
    """Tells `benchmark.py` what has just finished, when, and the most memory used so far."""
    told = {"event": event, "time": time.time(), "peak_mib": peak_mib()}
    print(json.dumps(told | values), flush=True)


def peak_mib() -> float | None:
    """The most memory taken so far: of the accelerator, or of this process where there is none."""
    backend = settings()["backend"]
    framework = sys.modules[backend]
    if backend == "torch" and framework.cuda.is_available():
        return framework.cuda.max_memory_allocated() / 2**20
    if backend == "jax" and (stats := framework.local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"] / 2**20
    if backend == "tensorflow" and framework.config.list_physical_devices("GPU"):
        return framework.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    # Not getrusage: on Linux its peak begins with that of the process which started this one.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else None
