"""The table of all results in README.md, made from results/*.json.

python experiments/papers/table.py
"""

import importlib
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from runner import Experiment, Row, is_of, read_results

from mnist_jax.errors import InputError

HERE = Path(__file__).parents[1]
FILES = (
    *("keras_mnist_mlp", "simard_2003", "hinton_2012", "srivastava_2014", "wan_2013", "tang_2013"),
    *("goodfellow_2013", "pereyra_2017", "miyato_2018", "rasmus_2015", "pezeshki_2016"),
    *("ciresan_2010", "meier_2011"),
    *("permutation_invariant", "deformed", "shuffled_pixels"),
)
TICKS = (0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2)
BEGIN, END = "<!-- python experiments/papers/table.py -->\n", "<!-- the end of the table -->\n"


def percent(errors: list[int]) -> str:
    """Mean and standard deviation of counts of 10,000, in percent."""
    values = [count / 100 for count in errors]
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} +/- {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def every(runs: list[Row], key: str) -> list[int]:
    """The counts that `runs` have under `key`, one after the other."""
    return [errors for run in runs if key in run for errors in run[key]]


def line(name: str, experiment: Experiment, kept: Row | None, file: str) -> str:
    """A row of the table.

    Raises:
        InputError: the row was run with another config than the experiment has now.
    """
    published = experiment.published or "ours"
    if kept is None:
        return f"| {name} | {published} | not yet run in full | | | |"
    if not is_of(kept, experiment):
        raise InputError(
            f"row {name} of results/{file}.json was run with another config than {file}.py has "
            f'now; run it again: python experiments/papers/{file}.py --row "{name}"'
        )
    runs = kept["runs"]
    errors = every(runs, "test_errors")
    also = []
    for key, words in (
        ("test_errors_of_last_weights", "last weights"),
        ("test_errors_with_test_time_augmentation", "test-time augmentation"),
    ):
        if found := every(runs, key):
            also.append(f"{words} {percent(found)}")
    largest = max(runs, key=lambda run: len(run["test_errors"]))
    if "test_errors_of_ensemble" in largest:
        count = largest["test_errors_of_ensemble"] / 100
        also.append(f"ensemble of {len(largest['test_errors'])} {count:.2f}")
    seconds = sum(run["train_seconds"] for run in runs) / len(errors)
    took = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    devices = ", ".join(sorted({run["device"] for run in runs}))
    cells = [name, published, percent(errors), str(len(errors)), "; ".join(also)]
    return f"| {' | '.join(cells)} | {took}, {devices} |"


def table() -> str:
    """The whole table in Markdown."""
    lines = [
        "| network | published, % | here, % | n | also, % | training, time / n |",
        "|---|---|---|---|---|---|",
    ]
    for file in FILES:
        module = importlib.import_module(file)
        results = read_results(Path(f"{file}.py"))
        if unknown := set(results) - set(module.ROWS):
            raise InputError(f"results/{file}.json has rows that {file}.py has not: {unknown}")
        lines.append(f"| **[{file}.py](papers/{file}.py)** | | | | | |")
        for name, experiment in module.ROWS.items():
            lines.append(line(name, experiment, results.get(name), file))
    return "\n".join(lines) + "\n"


def sources() -> str:
    """Where each published number stands, as a list."""
    lines = []
    for file in FILES:
        found = {row.source for row in importlib.import_module(file).ROWS.values() if row.source}
        lines += [f"- `{file}.py`: {source}" for source in sorted(found)]
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the table as it should be."""
    text = (HERE / "README.md").read_text()
    before, found, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found and found_end):
        raise InputError(f"README.md has no {BEGIN.strip()} and {END.strip()} around the table")
    return f"{before}{BEGIN}\n{table()}\nPublished where:\n\n{sources()}\n{END}{after}"


def figure() -> Figure:
    """Every row that was run, beside what is published of it."""
    rows = [
        (f"{file}: {name}", experiment.published, kept["runs"])
        for file in FILES
        for name, experiment in importlib.import_module(file).ROWS.items()
        if (kept := read_results(Path(f"{file}.py")).get(name))
    ]
    drawn, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * len(rows)), layout="constrained")
    for place, (_, published, runs) in enumerate(rows):
        values = [errors / 100 for errors in every(runs, "test_errors")]
        spread = statistics.stdev(values) if len(values) > 1 else 0
        mean = statistics.mean(values)
        axes.plot(values, [place] * len(values), "|", color="tab:blue", alpha=0.5)
        axes.errorbar(mean, place, xerr=spread, fmt="o", color="tab:blue", ms=4, capsize=2)
        largest = max(runs, key=lambda run: len(run["test_errors"]))
        if errors := largest.get("test_errors_of_ensemble"):
            axes.plot(errors / 100, place, "o", color="tab:blue", mfc="white", ms=4)
        if errors := every(runs, "test_errors_with_test_time_augmentation"):
            axes.plot(statistics.mean(errors) / 100, place, "s", color="tab:green", ms=4)
        if published:
            fill = "white" if "ensemble" in published else "tab:orange"
            axes.plot(float(published.split()[0]), place, "D", color="tab:orange", mfc=fill, ms=5)
    axes.plot([], [], "D", color="tab:orange", label="published")
    axes.plot([], [], "D", color="tab:orange", mfc="white", label="published of an ensemble")
    axes.errorbar([], [], xerr=[], fmt="o", color="tab:blue", ms=4, capsize=2, label="here")
    axes.plot([], [], "o", color="tab:blue", mfc="white", ms=4, label="ensemble of all seeds")
    axes.plot([], [], "s", color="tab:green", ms=4, label="test-time augmentation")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axes.set(xlabel="test error, % (a stroke for each seed)", xscale="log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return drawn


def main() -> None:
    """Writes the table into README.md, and draws it."""
    try:
        text = readme()
    except InputError as error:
        raise SystemExit(str(error)) from None
    (HERE / "README.md").write_text(text)
    figure().savefig(HERE / "figures" / "published.png", dpi=100)


if __name__ == "__main__":
    main()
