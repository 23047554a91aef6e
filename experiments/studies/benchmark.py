"""How fast mnist_jax is beside the frameworks that one would pick instead.

The same network, data, batch, optimizer and schedule here and in Keras (on TensorFlow, JAX and
PyTorch), PyTorch (eager, compiled, bfloat16) and Flax NNX, each in a process of its own, round by
round in turn. README.md has the table, results/benchmark.json every number of

    python -m pip install -e ".[bench]" && python experiments/studies/benchmark.py

The network is 784-512-512-10 with ReLU and dropout 0.2, in batches of 128, under SGD with momentum
0.9 and a learning rate that falls from 0.1 to 0 over 4 epochs. The number of epochs is the smallest
that brings the error on the last 10,000 training images below 2 %. The sprint is the same race with
the recipe of speedrun.py, the fastest to 98 % that we know. float32 means float32: products in
TF32, to which most frameworks round on recent GPUs, are a precision of their own.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tyro
from matplotlib.figure import Figure
from speedrun import RECIPE

from mnist_jax import data
from mnist_jax.errors import InputError
from mnist_jax.preprocess import to_inputs
from mnist_jax.runs.metadata import versions

HERE = Path(__file__).parents[1]
SAME: dict[str, Any] = {
    "images": 60_000,
    "hidden": [512, 512],
    "dropout": 0.2,
    "batch_size": 128,
    "epochs": 4,
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "momentum": 0.9,
    "nesterov": False,
    "seed": 0,
    "seeds": 1,
    "evaluate": False,
    "backend": "jax",
    "precision": "float32",
    "compiled": False,
    "turns": 11,
}
PRECISIONS = {"float32": "float32", "tf32": "TF32_TF32_F32", "bfloat16": "BF16_BF16_F32"}  # in JAX
TARGET_ERRORS = 200  # of 10,000 test images: 98 %
Study = Literal["race", "sprint", "start", "seeds", "width", "images", "step"]


class Peer(NamedTuple):
    """A framework and how it is run."""

    name: str
    script: str  # in peers/
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012  (nobody writes to it)


KERAS, TORCH = "keras_peer.py", "torch_peer.py"
ON_TORCH = {"backend": "torch"}
OURS = Peer("mnist_jax", "mnist_jax_peer.py")
BFLOAT16 = {**ON_TORCH, "precision": "bfloat16"}
PEERS = (
    OURS,
    Peer("Flax NNX", "nnx_peer.py"),
    Peer("Keras on JAX", KERAS, ("keras",), {"backend": "jax"}),
    Peer("Keras on TensorFlow", KERAS, ("keras", "tensorflow"), {"backend": "tensorflow"}),
    Peer("Keras on PyTorch", KERAS, ("keras", "torch"), ON_TORCH),
    Peer("PyTorch", TORCH, ("torch",), ON_TORCH),
    Peer("PyTorch, bfloat16", TORCH, ("torch",), BFLOAT16),
    Peer("PyTorch, compiled", TORCH, ("torch",), {**ON_TORCH, "compiled": True}),
    Peer("PyTorch, compiled, bfloat16", TORCH, ("torch",), {**BFLOAT16, "compiled": True}),
)
ON_ACCELERATORS = Peer("mnist_jax, bfloat16", OURS.script, (), {"precision": "bfloat16"})
SCALED = ("mnist_jax", "Keras on JAX", "PyTorch", "PyTorch, bfloat16")  # against width and images


class Measured(NamedTuple):
    """What one process told, and what it took."""

    events: list[dict[str, Any]]  # with `since_start`, the seconds since the process was started
    seconds: float  # until it had ended


def measure(
    peer: Peer, common: dict[str, Any], cache: Path | None = None, **changed: Any
) -> Measured:
    """Runs one process of `peer` to its end; `cache` keeps what compilers may reuse.

    Raises:
        RuntimeError: it failed.
    """
    settings = SAME | common | peer.settings | changed
    with tempfile.TemporaryDirectory() as empty:
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache or empty)}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        env["JAX_DEFAULT_MATMUL_PRECISION"] = PRECISIONS[settings["precision"]]
        env.pop("NVIDIA_TF32_OVERRIDE", None)
        if settings["precision"] == "float32":
            env["NVIDIA_TF32_OVERRIDE"] = "0"
        if cache:
            env |= {
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        script = HERE / "studies" / "peers" / peer.script
        started = time.time()
        with (Path(empty) / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(script), json.dumps(settings)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=env,
            )
        assert process.stdout is not None
        with process.stdout as lines:
            events = [json.loads(line) for line in lines if line.startswith("{")]
        status = process.wait()
        ended = time.time()
        if status:
            said = (Path(empty) / "stderr").read_text()
            errors = re.findall(r"^[\w.]+: .+", said, re.MULTILINE)  # JAX adds notes after them
            raise RuntimeError(errors[-1] if errors else f"exit status {status}")
    for event in events:
        event["since_start"] = event.pop("time") - started
    return Measured(events, ended - started)


def seconds_to_target(measured: Measured) -> float | None:
    """From the start of the process to the first epoch with at most 2 % of test errors."""
    reached = [e["since_start"] for e in measured.events if e["errors"] <= TARGET_ERRORS]
    return reached[0] if reached else None


def steady_seconds(measured: Measured) -> float:
    """The median of the epochs after the first, which may still compile."""
    return float(np.median([event["seconds"] for event in measured.events[1:]]))


class Bench:
    """The studies; whoever fails in one is left out of the rest of it."""

    def __init__(self, peers: list[Peer], common: dict[str, Any], rounds: int) -> None:
        self.peers, self.common, self.rounds = peers, common, rounds
        self.failed: dict[str, str] = {}

    def in_turn(self, study: str, peers: list[Peer]) -> Iterator[tuple[int, Peer]]:
        """Every peer, round by round, saying so."""
        for turn in range(self.rounds):
            for peer in peers:
                if peer.name not in self.failed:
                    print(f"{study}, round {turn + 1}/{self.rounds}: {peer.name}", flush=True)
                    yield turn, peer

    def run(self, peer: Peer, **changed: Any) -> Measured | None:
        """One process; a peer that fails is named and left out from then on."""
        try:
            return measure(peer, self.common, **changed)
        except RuntimeError as error:
            if peer is OURS:
                raise
            self.failed[peer.name] = str(error)
            print(f"  {peer.name} fails and is left out: {error}", file=sys.stderr)
            return None

    def race(self) -> dict[str, Any]:
        """Speed in steady state, seconds to 98 % and to the end, peak memory."""
        return self._race("race", {})

    def sprint(self) -> dict[str, Any]:
        """The same with the speed run's recipe."""
        return self._race("sprint", RECIPE)

    def _race(self, study: str, recipe: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for turn, peer in self.in_turn(study, self.peers):
            if measured := self.run(peer, seed=turn, evaluate=True, **recipe):
                for name, value in {
                    "epoch_seconds": steady_seconds(measured),
                    "seconds_to_98": seconds_to_target(measured),
                    "seconds_in_all": measured.events[-1]["since_start"],
                    "errors": [event["errors"] for event in measured.events],
                    "peak_mib": measured.events[-1]["peak_mib"],
                }.items():
                    found.setdefault(peer.name, {}).setdefault(name, []).append(value)
        return found

    def start(self) -> dict[str, Any]:
        """Seconds from the start of the process to the end of its first step."""
        found: dict[str, Any] = {"import jax": {"seconds": []}}
        with tempfile.TemporaryDirectory() as caches:
            for turn, peer in self.in_turn("start", self.peers):
                if peer is OURS:
                    started = time.time()
                    subprocess.run([sys.executable, "-c", "import jax"], check=True)
                    found["import jax"]["seconds"].append(time.time() - started)
                kept = found.setdefault(peer.name, {"cold": [], "warm": []})
                cache = Path(caches) / str(self.peers.index(peer))  # compilers dislike spaces
                step = {"images": 128, "epochs": 1}
                if turn == 0:  # fills the cache
                    cache.mkdir()
                    self.run(peer, cache=cache, **step)
                for name, where in (("cold", None), ("warm", cache)):
                    if measured := self.run(peer, cache=where, **step):
                        kept[name].append(measured.events[0]["since_start"])
        return found

    def seeds(self) -> dict[str, Any]:
        """Seconds an epoch and a seed, of many networks in one process."""
        found: dict[str, Any] = {}
        for hidden, counts in (([512, 512], (1, 2, 4, 8, 32)), ([32], (1, 2, 4, 8, 32, 64))):
            kept = found.setdefault("-".join(map(str, hidden)), {"seeds": counts, "seconds": []})
            whole: dict[int, list[float]] = {counts[0]: [], counts[-1]: []}
            change = {"hidden": hidden, "epochs": 10 if hidden == [32] else 3}
            for turn, _ in self.in_turn(f"seeds of {hidden}", [OURS]):
                per_seed = []
                for seeds in counts:
                    measured = measure(OURS, self.common, seeds=seeds, seed=turn, **change)
                    per_seed.append(steady_seconds(measured) / seeds)
                    if seeds in whole:
                        whole[seeds].append(measured.seconds)
                kept["seconds"].append(per_seed)
            kept["whole_process"] = {str(seeds): seconds for seeds, seconds in whole.items()}
        return found

    def width(self) -> dict[str, Any]:
        """Seconds an epoch against the width of two hidden layers."""
        return self._scaling("width", (32, 128, 512, 1024, 2048), lambda n: {"hidden": [n, n]})

    def images(self) -> dict[str, Any]:
        """Seconds an epoch against the number of training images."""
        return self._scaling("images", (1000, 4000, 16_000, 60_000), lambda n: {"images": n})

    def _scaling(self, study: str, sizes: tuple[int, ...], change: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"sizes": sizes}
        for turn, peer in self.in_turn(study, [p for p in self.peers if p.name in SCALED]):
            kept = found.setdefault(peer.name, [])
            runs = [self.run(peer, seed=turn, epochs=2, **change(size)) for size in sizes]
            if all(runs):
                kept.append([steady_seconds(run) for run in runs if run])
        return found

    def step(self) -> dict[str, Any]:
        """A step beside its bare chain of matrix products and the device's best, in one process."""
        on_cpu = device().startswith("CPU")
        many = {"images": 3072 if on_cpu else 60_000, "batch_size": 1024, "turns": 5}
        networks = [Peer("512-512, float32", "step.py")]
        for width in (2500,) if on_cpu else (2500, 4096, 8192):
            for precision in ("float32",) if on_cpu else PRECISIONS:
                settings = {"hidden": [width] * 5, "precision": precision, **many}
                networks.append(Peer(f"5 x {width}, {precision}", "step.py", settings=settings))
        found: dict[str, Any] = {}
        for turn, network in self.in_turn("step", networks):
            if measured := self.run(network, seed=turn):
                for name in ("step_ms", "chain_ms", "ratio", "gflops", "best_gflops", "share"):
                    kept = found.setdefault(network.name, {}).setdefault(name, [])
                    kept.append(measured.events[0][name])
        return found


def installed(module: str) -> bool:
    """Whether `module` can be imported."""
    return importlib.util.find_spec(module) is not None


def device() -> str:
    """The name of what runs; another process asks, as JAX takes most of a GPU's memory."""
    asking = "from mnist_jax.runs.metadata import device_name; print(device_name())"
    return subprocess.run(
        [sys.executable, "-c", asking], check=True, capture_output=True, text=True
    ).stdout.strip()


def machine() -> dict[str, Any]:
    """What it ran on."""
    found = versions()
    for package in ("keras", "tensorflow", "tensorflow-cpu", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"device": device(), "versions": found}


def reached(seconds: Sequence[float | None]) -> np.ndarray:
    """`seconds` as an array; what was not reached takes for ever."""
    return np.array([np.inf if second is None else second for second in seconds])


def ratios(seconds: Sequence[float | None], beside: Sequence[float | None]) -> np.ndarray:
    """`seconds` as multiples of `beside`, in each round in which `beside` was reached."""
    pairs = zip(reached(seconds), reached(beside), strict=False)
    return np.array([a / b for a, b in pairs if np.isfinite(b)])


def described(seconds: Sequence[float | None], beside: Sequence[float | None]) -> str:
    """Median and range, and the same of the ratios to `beside`."""
    if not np.isfinite(np.median(reached(seconds))):
        return "not reached"
    told = [
        f"{np.median(values):.3g}{unit} ({values.min():.3g}-{values.max():.3g})"
        for values, unit in ((reached(seconds), " s"), (ratios(seconds, beside), " x"))
        if len(values)
    ]
    return told[0] if seconds == beside else ", ".join(told)


def table(found: dict[str, Any]) -> str:
    """The race, the sprint and the starts beside those of mnist_jax, in Markdown."""
    race, sprint, start = (found.get(study, {}) for study in ("race", "sprint", "start"))
    columns = {
        "an epoch": (race, "epoch_seconds"),
        "to 98 %": (race, "seconds_to_98"),
        "four epochs": (race, "seconds_in_all"),
        "sprint to 98 %": (sprint, "seconds_to_98"),
        "first step, cold": (start, "cold"),
        "warm": (start, "warm"),
    }
    lines = [f"| | {' | '.join(columns)} | images/s | memory |", "|---" * 9 + "|"]
    for peer, kept in race.items():
        cells = [
            described(study[peer][name], study[OURS.name][name])
            if study.get(peer, {}).get(name)
            else ""
            for study, name in columns.values()
        ]
        cells.append(f"{468 * 128 / np.median(kept['epoch_seconds']):,.0f}")
        unknown = None in kept["peak_mib"]
        cells.append("" if unknown else f"{np.median(kept['peak_mib']):.0f} MiB")
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes_table(found: dict[str, Any], study: str) -> str:
    """Seconds an epoch against width or images beside mnist_jax, in Markdown.

    In `seeds` they are seconds an epoch and network, beside those of a network alone.
    """
    if study == "seeds":
        sizes = max((kept["seeds"] for kept in found[study].values()), key=len)
        rows = {f"784-{name}-10": kept["seconds"] for name, kept in found[study].items()}
    else:
        sizes = found[study]["sizes"]
        rows = {name: found[study][name] for name in SCALED if found[study].get(name)}
    lines = [f"| {study} | {' | '.join(f'{n:,}' for n in sizes)} |", "|---" * len(sizes) + "|---|"]
    for name, rounds in rows.items():
        columns = list(zip(*rounds, strict=True))
        alone = [columns[0]] * len(columns)
        beside = alone if study == "seeds" else zip(*rows[OURS.name], strict=True)
        cells = [described(*pair) for pair in zip(columns, beside, strict=True)]
        cells += [""] * (len(sizes) - len(cells))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_table(found: dict[str, Any]) -> str:
    """The steps beside their chains and the device's best, in Markdown."""
    lines = [
        "| network | a step | its products alone | ratio | of the best GFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for network, kept in found["step"].items():
        step, chain, ratio, best, share = (
            float(np.median(kept[name]))
            for name in ("step_ms", "chain_ms", "ratio", "best_gflops", "share")
        )
        cells = f"{step:.2f} ms | {chain:.2f} ms | {ratio:.2f} | {share:.0%} of {best:,.0f}"
        lines.append(f"| {network} | {cells} |")
    return "\n".join(lines)


def race_figure(found: dict[str, Any]) -> Figure:
    """The race as bars, with the ratio to mnist_jax."""
    drawn = Figure(figsize=(11, 3.8), layout="constrained")
    race, panels = found["race"], drawn.subplots(1, 2, sharey=True)
    names = sorted(race, key=lambda name: -np.median(race[name]["epoch_seconds"]))
    shown = (("epoch_seconds", "an epoch"), ("seconds_to_98", "process start to 98 % accuracy"))
    for axis, (key, title) in zip(panels, shown, strict=True):
        medians = np.array([np.median(reached(race[name][key])) for name in names])
        shares = [np.median(ratios(race[name][key], race[OURS.name][key])) for name in names]
        colours = ["tab:orange" if name.startswith(OURS.name) else "tab:blue" for name in names]
        bars = axis.barh(names, np.where(np.isfinite(medians), medians, 0), color=colours)
        labels = [
            f" {median:.1f} s, {share:.1f} x" if np.isfinite(median) else " not reached"
            for median, share in zip(medians, shares, strict=True)
        ]
        axis.bar_label(bars, labels, fontsize=8)
        axis.set_xlim(0, 1.35 * medians[np.isfinite(medians)].max(initial=0.0))
        axis.set_xlabel("seconds")
        axis.set_title(title, fontsize=10)
    drawn.suptitle(f"784-512-512-10 on MNIST, {found['machine']['device']}", fontsize=11)
    return drawn


def scaling_figure(found: dict[str, Any]) -> Figure:
    """Time against width and images, and the cost of a network among many."""
    drawn = Figure(figsize=(11, 3.8), layout="constrained")
    *panels, cost = drawn.subplots(1, 3)
    labels = {"width": "units in each of two layers", "images": "training images"}
    for axis, (study, label) in zip(panels, labels.items(), strict=True):
        for name in SCALED:
            if found[study].get(name):
                axis.plot(found[study]["sizes"], np.median(found[study][name], 0), "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds an epoch")
        axis.legend(fontsize=8)
    for name, kept in found["seeds"].items():
        shares = [[seconds / each[0] for seconds in each] for each in kept["seconds"]]
        cost.plot(kept["seeds"], np.median(shares, axis=0), "o-", label=f"784-{name}-10")
    cost.set_xscale("log", base=2)
    cost.set(xlabel="networks at once", ylabel="an epoch of one, beside one alone", ylim=(0, 1.2))
    cost.legend(fontsize=8)
    for axis in (*panels, cost):
        axis.grid(alpha=0.3)
    return drawn


def main(
    data_dir: Path | None = None,
    rounds: int = 5,
    only: tuple[Study, ...] = get_args(Study),
    results: Path = HERE / "results" / "benchmark.json",
    figures: Path = HERE / "figures",
) -> None:
    """Measures, prints the tables, and writes the numbers and the figures.

    Args:
        data_dir: folder with the MNIST files; without it they are downloaded.
        rounds: how often everything is measured.
        only: the studies to run.
        results: the JSON file to write; it holds the numbers of one command alone.
        figures: the folder for benchmark.png and scaling.png.
    """
    if rounds < 1:
        sys.exit(f"--rounds {rounds} cannot be used: nothing is measured in less than 1")
    for folder in (results.parent, figures):
        if not folder.is_dir():
            sys.exit(f"folder {folder} does not exist; make it, or check --results and --figures")
    try:
        mnist = data.load("mnist", data_dir)
    except InputError as error:
        sys.exit(str(error))
    peers = []
    for peer in PEERS:
        missing = [module for module in peer.needs if not installed(module)]
        if missing:
            print(f"{peer.name} is skipped: {', '.join(missing)} not installed (the extra: bench)")
        else:
            peers.append(peer)
    found: dict[str, Any] = {"machine": machine(), "failed": {}}
    if not found["machine"]["device"].startswith("CPU"):  # which gain little
        peers.append(ON_ACCELERATORS)
    with tempfile.TemporaryDirectory() as folder:
        for part, (images, labels) in (("train", mnist.train), ("test", mnist.test)):
            np.save(Path(folder) / f"x_{part}.npy", np.asarray(to_inputs(images)))
            np.save(Path(folder) / f"y_{part}.npy", labels.astype(np.int64))
        common = {"data": folder, "data_dir": None if data_dir is None else str(data_dir)}
        for study in only:
            bench = Bench(peers, common, rounds)
            found[study] = getattr(bench, study)()
            found["failed"][study] = bench.failed
            results.write_text(json.dumps(found, indent=1) + "\n")
    if "race" in found:
        print(table(found))
        race_figure(found).savefig(figures / "benchmark.png", dpi=100)
    if {"width", "images", "seeds"} <= set(found):
        scaling_figure(found).savefig(figures / "scaling.png", dpi=100)
    for study in ("seeds", "width", "images"):
        if study in found:
            print(f"\n{sizes_table(found, study)}")
    if "step" in found:
        print(f"\n{step_table(found)}")
    print(f"all numbers are in {results}")


if __name__ == "__main__":
    tyro.cli(main)
