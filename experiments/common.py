"""What all studies do: run trials, skip those that are finished, and write a table."""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.figure

from examples.cifar10 import configs
from examples.cifar10.main import exit_code
from tools import environment

RESULTS = Path(__file__).parent / "results"

Trials = Mapping[str, Sequence[str]]
Rows = dict[str, list[list[dict]]]  # of every trial, of every seed: the metrics


def main(study: Callable[[Path, Sequence[str]], None]) -> None:
    """Run a study: `--results` is the folder for its files, all other flags are the example's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS)
    known, others = parser.parse_known_args()
    sys.exit(exit_code(lambda: study(known.results, others)))


def run(trials: Trials, arguments: Sequence[str]) -> Rows:
    """Train with every trial's flags, then the command line's; return all metrics.

    A trial that is finished in `--workdir` is not run again, and one that was stopped goes on.
    """
    every = {name: configs.parse([*flags, *arguments]) for name, flags in trials.items()}
    # After the flags are known to be right, because JAX takes seconds to import.
    from examples.cifar10 import data, devices, loop, report

    devices.start(next(iter(every.values())))
    metrics: Rows = {}
    for name, options in every.items():
        if options.workdir is None:
            raise configs.UserError("a study needs a --workdir")
        dataset = data.load(options, report.say)
        metrics[name] = []
        for seed in range(options.recipe.seed, options.recipe.seed + options.seeds):
            folder = options.workdir / name / f"seed-{seed}"
            report.say(f"{name}, seed {seed}")
            if not _finished(folder):
                recipe = dataclasses.replace(options.recipe, seed=seed)
                resume = (folder / "config.json").exists()
                loop.train_and_evaluate(recipe, dataset, folder, resume, devices.layout(options))
            metrics[name].append(report.read_metrics(folder))
    return metrics


def _finished(folder: Path) -> bool:
    from examples.cifar10 import report

    return (folder / "metrics.jsonl").exists() and any(
        row["kind"] == "result" for row in report.read_metrics(folder)
    )


def finished(path: Path) -> list[dict]:
    """Return the whole lines of a file of trials, and cut off what a kill left of another one."""
    text = path.read_text("utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    environment.write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def result(rows: list[dict]) -> dict:
    """Return the row of a run's result."""
    return next(row for row in rows if row["kind"] == "result")


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Write a mean, with the standard deviation if there is one."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def header(title: str, module: str, arguments: Sequence[str], metrics: Rows) -> list[str]:
    """Return the first lines of a results file: command, machine, versions, data."""
    first = result(next(iter(metrics.values()))[0])
    data, date = f"{first['data']}, {first['split']} images", time.strftime("%Y-%m-%d")
    return environment.heading(title, module, arguments, data=data, date=date)


def write(path: Path, lines: Sequence[str]) -> None:
    """Write a results file, in the first process."""
    from examples.cifar10 import devices, report

    if devices.first_process():
        environment.write_text(path, "\n".join(lines) + "\n")
    report.say(f"written to {path}")


def save_figure(path: Path, figure: matplotlib.figure.Figure) -> None:
    """Write a PNG, in the first process."""
    from examples.cifar10 import devices

    if devices.first_process():
        with environment.replacing(path) as new:
            figure.savefig(new, dpi=120)
