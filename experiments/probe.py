"""How much of a run names its rule: `python -m experiments.probe --workdir runs/probe`.

Random rules of every dialect, with random hyperparameters, are recorded for a number of steps and
in a precision, and `identify_log` names them; `identify` gets the same rules as boxes. A trial that
is in `--workdir` is not made again.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from examples.cifar10.main import exit_code
from experiments import common
from optax_rmsprop import probe
from tools import boxes, environment

STEPS, SIZE = (2, 3, 5, 10, 25, 50), 30
# What the box computes in, what it keeps its parameters in, and how near a number must come.
PRECISIONS = {
    "float64": (np.float64, np.float64, 1e-6),
    "float32": (np.float32, np.float32, 1e-3),
    "bfloat16": (np.float32, jnp.bfloat16, 0.05),
}
RIGHT, ALIKE, NONE, WRONG = OUTCOMES = ("right", "alike", "none", "wrong")
TEXT = """A report is right if every switch has the value of the rule, or is said to be open with
that value among those that remain. Numbers are equal to 1e-6 in float64, 1e-3 in float32 and 5e-2
in bfloat16. Another report is alike if one of its calls goes on as the rule does, on as many fresh
gradients as recorded ones: the largest error is that part of the largest step. Then what the report
misses is too small to be seen. A report without a call says that nothing explains the run.

Rates are from 1e-5 to 1, and the parameters of a log are of size 1. In bfloat16, where half a unit
in the last place is 2e-3, the small rates do not move these; the parameters of a box are made as
small as its steps. The optimizer's state is float32 there.
"""

Cell = tuple[str, int]  # a precision and a number of steps; 0 steps is a box


def cells() -> list[Cell]:
    """Return every cell of the table."""
    return [(precision, steps) for precision in PRECISIONS for steps in (0, *STEPS)]


def trial(cell: Cell, index: int) -> dict[str, Any]:
    """Probe one random rule; the rule and the gradients are those of the index, in every cell."""
    precision, steps = cell
    dtype, stored, tolerance = PRECISIONS[precision]
    names = boxes.names()
    rng = np.random.default_rng(index)
    params, grads = boxes.inputs(rng, 2 * max(STEPS), SIZE)
    grads = grads.astype(stored).astype(float)
    rule = boxes.draw(names[index % len(names)], rng, grads)
    start = boxes.box(rule, dtype, stored=stored)
    began = time.process_time()
    if steps:
        params = params.astype(stored).astype(dtype)
        log = boxes.played(start, params, grads[:steps].astype(dtype))
        report = probe.identify_log(log.astype(stored), grads[:steps].astype(stored))
    else:
        report = probe.identify(start)
    seconds = time.process_time() - began
    wrong = boxes.wrong(report, rule.switches, tolerance) if report.calls else {}
    outcome = WRONG if wrong else RIGHT if report.calls else NONE
    if wrong and alike(report, rule, params, grads[: 2 * (steps or 25)], tolerance):
        outcome = ALIKE
    return {
        "precision": precision, "steps": steps, "index": index, "call": rule.call,
        "outcome": outcome,
        "open": len(report.undetermined), "wrong": sorted(wrong), "seconds": seconds,
    }  # fmt: skip


def alike(report: Any, rule: boxes.Rule, params: Any, grads: Any, tolerance: float) -> bool:
    """Return whether a call goes on as the rule does, both without rounding."""
    params = params.astype(float)
    expected = boxes.played(boxes.box(rule), params, grads)
    size = np.abs(np.diff(expected, axis=0)).max()
    runs = [boxes.continued(boxes.evaluate(call), params, grads) for call in report.calls]
    return bool(min(np.abs(run - expected).max() for run in runs) <= tolerance * size)


def run(path: Path, trials: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Make the trials that are missing, and return all; those of every cell at the same pace."""
    rows = common.finished(path)
    done = {(row["precision"], row["steps"], row["index"]) for row in rows}
    for index in range(trials):
        for cell in cells():
            if (*cell, index) not in done:
                rows.append(trial(cell, index))
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        say(f"rule {index + 1} of {trials}")
    return [row for row in rows if row["index"] < trials]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: a row for each cell."""
    yield (
        "| precision | steps | n | right | alike | no call | wrong | open switches, median | "
        "CPU seconds, median (largest) |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for precision, steps in cells():
        cell = [r for r in rows if (r["precision"], r["steps"]) == (precision, steps)]
        if not cell:
            continue
        counts = [sum(row["outcome"] == name for row in cell) for name in OUTCOMES]
        left = [row["open"] for row in cell if row["outcome"] == RIGHT]
        seconds = [row["seconds"] for row in cell]
        yield (
            f"| {precision} | {steps or '`identify`'} | {len(cell)} | "
            f"{' | '.join(map(str, counts))} | {statistics.median(left) if left else '–'} | "
            f"{statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
        )


def study(results: Path, workdir: Path, trials: int, arguments: Sequence[str] = ()) -> None:
    """Probe `trials` rules in every cell, and write `probe.md`."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = run(workdir / "trials.jsonl", trials, lambda text: print(text, flush=True))
    lines = environment.heading(
        "Which rule, from how many steps and in which precision", "experiments.probe", arguments,
        data=f"random rules, of {len(boxes.names())} dialects in turn; {SIZE} parameters",
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    environment.write_text(results / "probe.md", "\n".join([*lines, TEXT, *table(rows)]) + "\n")


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.probe", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--trials", type=int, default=40, help="rules, each in every cell")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    call = lambda: study(options.results, options.workdir, options.trials, arguments)  # noqa: E731
    sys.exit(exit_code(call))


if __name__ == "__main__":
    main(sys.argv[1:])
