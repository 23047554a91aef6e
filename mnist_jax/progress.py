"""What a person sees while a run goes on: a bar in a terminal or notebook, else plain lines."""

import sys
import threading
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm


class Progress:
    """Shows a record an epoch, with images per second and the time left, on standard error."""

    def __init__(self, epochs: int, seeds: int) -> None:
        self.epochs = epochs
        self.name = "epoch" if seeds == 1 else f"epoch, mean of {seeds} seeds"
        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(
            total=epochs,
            disable=not self.live,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {desc} [{elapsed} so far, {remaining} left]",
        )
        self.bar.set_description_str(f"{self.name} 1/{epochs}")
        self.done = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if self.live:
            self.ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.done.set()
        self.bar.close()

    def _tick(self) -> None:
        """Keeps the clock running through a long epoch, which is one call to the device."""
        while not self.done.wait(0.5):
            self.bar.refresh()

    def epoch(self, record: dict[str, Any]) -> None:
        """Shows `record`, a line of metrics.jsonl."""
        seeds = len(record["train_loss"])
        shown = [
            f"{self.name} {record['epoch']}/{self.epochs}",
            f"loss {sum(record['train_loss']) / seeds:.4f}",
            f"accuracy {100 - sum(record['train_error_percent']) / seeds:.2f} %",
        ]
        if "validation_error_percent" in record:
            percent = 100 - sum(record["validation_error_percent"]) / seeds
            shown.append(f"validation {percent:.2f} %")
        shown.append(f"{record['images_per_second']:,.0f} images/s")
        self.bar.set_description_str(", ".join(shown), refresh=False)
        self.bar.update()
        if not self.live:
            left = record["seconds"] * (self.epochs - record["epoch"])
            print(*shown, f"{left:.0f} s left", sep=", ", file=sys.stderr, flush=True)
