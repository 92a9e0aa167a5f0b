"""Train what is missing, and write `fields.md` and `fields.png`: `python -m experiments.fields`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from examples.cifar10.configs import UserError
from examples.cifar10.main import exit_code
from experiments import common
from experiments.fields import cifar10, page
from experiments.fields.study import Trials, optimizers
from experiments.fields.tasks import TASKS
from tools import environment

CIFAR10 = "cifar10-small"


def study(
    results: Path, names: Sequence[str], seeds: int, steps: int | None = None,
    arguments: Sequence[str] = (),
) -> None:  # fmt: skip
    """Search a rate for every optimizer of every task, and write the page."""
    files = page.paths(results)
    every = {name: Trials(files[name], name, seeds, steps) for name in names}
    pairs = [(trials, rule) for name, trials in every.items() for rule in optimizers(name)]
    with Progress() as bar:
        whole = bar.add_task("optimizers", total=len(pairs))
        for trials, rule in pairs:
            bar.update(whole, description=f"{trials.name}, {rule}")
            trials.search(rule)
            bar.advance(whole)
    rows = [row for trials in every.values() for row in trials.rows.values()]
    # The lines tell where they were trained, which may be elsewhere and before.
    facts = {
        key: "; ".join(sorted({row[key] for row in rows}))
        for key in ("device", "processor", "versions", "date")
    }
    heading = environment.heading(
        "RMSprop beside SGD and Adam", "experiments.fields", arguments, **facts,
        seeds=f"{seeds} to choose a rate, {2 * seeds} others to report",
    )  # fmt: skip
    environment.write_text(results / "fields.md", "\n".join([*heading, *page.lines(every)]) + "\n")
    with environment.replacing(results / "fields.png") as new:
        page.figure(every).savefig(new, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fields", description=__doc__)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the files")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, CIFAR10], default=[*TASKS])
    parser.add_argument("--data-dir", help=f"with the binary CIFAR-10, for the task {CIFAR10}")
    parser.add_argument("--accept-unverified", action="store_true", help="as of the example")
    parser.add_argument("--seeds", type=int, default=5, help="to choose a rate; twice that report")
    parser.add_argument("--steps", type=int, help="of a training; by default of each task its own")
    options = parser.parse_args(arguments)

    def work() -> None:
        for name, least in {"seeds": 1, "steps": 1}.items():
            value = getattr(options, name)
            if value is not None and value < least:
                raise UserError(f"--{name} must be at least {least}, got {value}")
        if CIFAR10 in options.tasks:
            if options.data_dir is None:
                raise UserError(f"--tasks {CIFAR10} needs the --data-dir of CIFAR-10")
            accept = ["--accept-unverified"] * options.accept_unverified
            TASKS[CIFAR10] = cifar10.task(["--data-dir", options.data_dir, *accept])
        study(options.results, options.tasks, options.seeds, options.steps, arguments)

    sys.exit(exit_code(work))


if __name__ == "__main__":
    main(sys.argv[1:])
