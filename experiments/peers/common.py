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
    now = time.time()
    # Not getrusage: on Linux its peak begins with that of the process which started this one.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    told = {"event": event, "time": now, "peak_mib": peaks[0] if peaks else None}
    print(json.dumps(told | values), flush=True)
