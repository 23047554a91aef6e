"""What 8, 64 and 1,024 devices give for many networks and for a wide one: see scaling.md.

    python experiments/studies/many_devices.py

A device is a CPU core here. On one of them a step is timed of a population of eight networks, and
of one wide network with batches of several sizes. What is computed from these rates is then
measured: on processes with a core each, joined by `jax.distributed`, and on 1, 2, 4 and 8 simulated
devices of one process, which share all cores, so that dividing the work among them can gain
nothing, but shows what it costs. The numbers go to results/many_devices.json, the figure to
figures/many_devices.png, and the table is printed.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import AxisType, NamedSharding
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mnist_jax import data, population
from mnist_jax.config import Config, from_json, to_json
from mnist_jax.data import DataSpec, Examples
from mnist_jax.errors import say
from mnist_jax.parallel import multihost
from mnist_jax.parallel.mesh import MeshShape, replicate, use_mesh
from mnist_jax.runs import rundir
from mnist_jax.runs.metadata import device_name, versions

Found = dict[str, Any]

HERE = Path(__file__).parents[1]

MANY = Config(seeds=8)
"""Eight default networks."""

WIDE = Config(hidden=(4096, 4096), batch_size=1024)

COUNTS = (8, 64, 1024)

BANDWIDTHS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
"""Bytes a second between any two devices."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed on what."""

    config: Config
    steps: int
    mesh: MeshShape = (1, 1)
    processes: int = 1
    cores: int | None = None  # of each process; None are all there are


@dataclasses.dataclass(frozen=True)
class Options:
    """What more devices give."""

    data_dir: Path | None = None
    """Folder with the MNIST files; without it they are downloaded."""
    rounds: int = 7
    """How often each case is timed, some steps each time."""
    results: Path = HERE / "results" / "many_devices.json"
    """The JSON file to write."""
    figure: Path = HERE / "figures" / "many_devices.png"
    """The picture to write."""


def measured(case: Case, rounds: int, data_dir: Path | None) -> list[float]:
    """Seconds of a step, `rounds` times, each process of `case` running `work` below.

    Where several share a network, the last are those of adding up its gradients, and no more.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    simulated = case.mesh[0] * case.mesh[1] // case.processes
    flags = f"--xla_force_host_platform_device_count={simulated}"
    told = {"config": to_json(case.config), "steps": case.steps, "mesh": case.mesh}
    told |= {"processes": case.processes, "rounds": rounds, "address": address}
    told["data_dir"] = str(data_dir or "")
    command = [sys.executable, __file__, json.dumps(told)]
    started = []
    for number in range(case.processes):
        cores = sorted(os.sched_getaffinity(0))
        if case.cores:
            cores = cores[number * case.cores : (number + 1) * case.cores]
        started.append(
            subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores)), *command, str(number)],
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a process failed, as it says above")
    return json.loads(said[0])


def work(case: Case, rounds: int, data_dir: Path | None, address: str, number: int) -> None:
    """Prints the seconds of a step of `case`, of which this process computes its part."""
    several = case.processes > 1
    with multihost.join(address, case.processes, number) if several else contextlib.nullcontext():
        config = case.config
        images, labels = data.load("mnist", data_dir).train
        few = np.resize(np.arange(len(labels)), case.steps * config.batch_size)
        training = Examples(np.asarray(images)[few], labels[few])
        setup = population.Setup(config, DataSpec((28, 28), 10, len(few)))
        seconds = []
        with use_mesh(case.mesh):
            members, training = population.members_of(config), replicate(training)
            states = population.init(setup, members)
            for _ in range(rounds + 1):
                multihost.all_gather(0)  # they begin at the same time
                start = time.perf_counter()
                states, _ = population.train_epoch(setup, states, members, training)
                jax.block_until_ready(states)
                taken = multihost.all_gather(int(1e9 * (time.perf_counter() - start)))
                seconds.append(max(taken)[0] / 1e9 / case.steps)
        if several and case.mesh[1] > 1:
            seconds.append(all_reduce_seconds(parameters(config)))
        if multihost.is_primary():
            print(json.dumps(seconds[1:]))


def all_reduce_seconds(count: int) -> float:
    """The median time in which all devices add up `count` numbers that each has."""
    mesh = jax.make_mesh((jax.device_count(),), ("images",), axis_types=(AxisType.Auto,))
    shape, place = (jax.device_count(), count), NamedSharding(mesh, jax.P("images"))
    numbers = jax.make_array_from_callback(shape, place, lambda _: np.ones((1, count), np.float32))
    psum = partial(jax.lax.psum, axis_name="images")
    shared = jax.shard_map(psum, mesh=mesh, in_specs=jax.P("images"), out_specs=jax.P())
    add = jax.jit(shared)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(add(numbers))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def parameters(config: Config) -> int:
    """How many a network of `config` has."""
    widths = [784, *config.hidden, 10]
    return sum((before + 1) * after for before, after in itertools.pairwise(widths))


def fitted(seconds: dict[int, float]) -> tuple[float, float]:
    """What a step takes anyway, and for each image, of its seconds by batch size."""
    sizes = np.array(list(seconds))
    # Relative errors count: a step of 64 images is as good a measurement as one of 1,024.
    weights = 1 / np.array(list(seconds.values()))
    rows = np.stack([np.ones(len(sizes)), sizes], axis=1) * weights[:, None]
    (fixed, each), *_ = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)
    return float(fixed), float(each)


def wide_speedup(found: Found, count: int, bandwidth: float) -> float:
    """Of the wide network on `count` devices, each with its part of every batch.

    A ring adds gradients up: each device sends and receives 2 (count - 1) / count of their bytes.
    And each draws its part of the dropout's bits, two bytes for a unit and image, most of which
    others need.
    """
    fixed, each = found["wide"]["fixed_seconds"], found["wide"]["seconds_an_image"]
    size = WIDE.batch_size
    gradients, bits = 4 * parameters(WIDE), 2 * sum(WIDE.hidden) * size / count
    sent = (count - 1) / count * (2 * gradients + bits) / bandwidth
    return (fixed + each * size) / (fixed + each * size / count + sent)


def population_speedup(found: Found, count: int, whole: bool = False) -> float:
    """Of training 1,024 default networks, or of the whole run, of which a part is not divided."""
    work = 1024 * 10 * 468 * found["many"]["seconds_a_step_of_one"]
    alone = found["undivided_seconds"] if whole else 0.0
    return (work + alone) / (work / count + alone)


def last_worth(speedup: Callable[[int], float]) -> int:
    """The number of devices up to which each doubling saves a quarter of the time or more."""
    count = 1
    while count < 1024 and speedup(2 * count) / speedup(count) >= 4 / 3:
        count *= 2
    return count


def curves(found: Found) -> dict[str, Callable[[int], float]]:
    """The speed-up by the number of devices, of each kind of work."""
    over = {
        f"one network of 2 x 4096, {name}": partial(wide_speedup, found, bandwidth=bandwidth)
        for name, bandwidth in BANDWIDTHS.items()
    }
    many = partial(population_speedup, found)
    whole = partial(many, whole=True)
    return {"1,024 networks, training": many, "and the whole run": whole, **over}


def table(found: Found) -> str:
    """The speed-ups as a table for scaling.md."""
    lines = ["| | " + " | ".join(f"{count:,}" for count in COUNTS) + " | worth it up to |"]
    lines.append("|---" * (len(COUNTS) + 2) + "|")
    for name, speedup in curves(found).items():
        values = " | ".join(f"{speedup(count):,.1f}" for count in COUNTS)
        lines.append(f"| {name} | {values} | {last_worth(speedup):,} |")
    return "\n".join(lines)


def sentences(found: Found) -> list[str]:
    """What scaling.md says of the measurements."""
    many, wide = found["many"], found["wide"]
    fixed, each = 1e3 * wide["fixed_seconds"], 1e3 * wide["seconds_an_image"]
    added = wide["all_reduce_seconds"]["2"]
    computed = (fixed + each * WIDE.batch_size / 2) / 1e3 + added
    faster = {
        (kind, where): found[kind][where]["1"] / found[kind][where][count]
        for kind in ("many", "wide")
        for where, count in (("processes", "2"), ("simulated", "8"))
    }
    return [
        f"A step of one of them takes a device {1e3 * many['seconds_a_step_of_one']:.1f} ms",
        f"{found['undivided_seconds']:.1f} s of a run are not divided",
        f"are {faster['many', 'processes']:.2f} times as fast as one",
        f"{fixed:.0f} ms, and {each:.2f} ms more for",
        f"added up in {added:.2f} s, a step ought to take {computed:.2f} s, and takes "
        f"{wide['processes']['2']:.2f} s: {faster['wide', 'processes']:.2f} times as fast as one",
        f"eight of them train the eight networks {faster['many', 'simulated']:.2f} times as fast "
        f"as one, and the wide one {faster['wide', 'simulated']:.2f} times",
    ]


def drawn(found: Found) -> Figure:
    """Speed-ups by devices: lines as computed, points as measured."""
    figure = Figure(figsize=(7.6, 5), layout="constrained")
    axes = figure.subplots()
    counts = 2 ** np.arange(11)
    for name, speedup in curves(found).items():
        axes.plot(counts, [speedup(int(count)) for count in counts], lw=1.6, label=name)
    axes.plot(counts, counts, ":", color="0.6", lw=1, label="N devices, N times as fast")
    for kind, name, marker in (("many", "eight networks", "o"), ("wide", "2 x 4096", "s")):
        for place, face in (("processes", "k"), ("simulated", "none")):
            points = {int(n): seconds for n, seconds in found[kind][place].items()}
            values = [points[1] / seconds for seconds in points.values()]
            where = "processes of a core" if place == "processes" else "simulated, all on two cores"
            label = f"measured: {name}, {where}"
            axes.plot(list(points), values, marker, mfc=face, mec="k", label=label)
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="times as fast as one device")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 64, 256, 1024]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def main(options: Options) -> None:
    """Measures, computes, and writes the numbers and the figure."""
    many: Found = {"processes": {}, "simulated": {}}
    wide: Found = {"processes": {}, "simulated": {}, "all_reduce_seconds": {}, "by_batch_size": {}}

    def median(case: Case) -> float:
        seconds = measured(case, options.rounds, options.data_dir)
        if case.processes > 1 and case.mesh[1] > 1:
            wide["all_reduce_seconds"][case.processes] = seconds.pop()
        middle = statistics.median(seconds)
        where = f"{case.processes} of a core" if case.cores else "one"
        say(f"mesh {case.mesh[0]}x{case.mesh[1]}, processes: {where}: {middle:.4f} s a step")
        return middle

    for count in (1, 2, 4, 8):
        across, within = Case(MANY, 60, (count, 1)), Case(WIDE, 2, (1, count))
        many["simulated"][count] = median(across)
        wide["simulated"][count] = median(within)
        if count <= len(os.sched_getaffinity(0)):
            there = {"processes": count, "cores": 1}
            many["processes"][count] = median(dataclasses.replace(across, **there))
            wide["processes"][count] = median(dataclasses.replace(within, **there))
    for size in (1024, 256, 64, 16):
        config = dataclasses.replace(WIDE, batch_size=size)
        wide["by_batch_size"][size] = median(Case(config, 2 * 1024 // size, cores=1))
    wide["fixed_seconds"], wide["seconds_an_image"] = fitted(wide["by_batch_size"])
    many["seconds_a_step_of_one"] = many["processes"][1] / MANY.seeds
    found: Found = json.loads(json.dumps({"many": many, "wide": wide}))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_jax", "train", "--dataset", "mnist"]
        command += ["--data-dir", str(options.data_dir)] if options.data_dir else []
        command += ["--out", f"{folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = rundir.read_summary(Path(folder) / "run")["seconds"]
    found["undivided_seconds"] = seconds["total"] - seconds["train"]
    found |= {"device": device_name(), "versions": versions()}
    print(table(found))
    rundir.write_bytes(options.results, (json.dumps(found, indent=1) + "\n").encode())
    drawn(found).savefig(options.figure, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):  # a process that `measured` started
        told = json.loads(sys.argv[1])
        rounds, folder, address = told["rounds"], told["data_dir"], told["address"]
        case = Case(
            from_json(told["config"]), told["steps"], tuple(told["mesh"]), told["processes"]
        )
        work(case, rounds, Path(folder) if folder else None, address, int(sys.argv[2]))
    else:
        main(tyro.cli(Options))
