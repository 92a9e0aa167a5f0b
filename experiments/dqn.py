"""Centred or not, and what "momentum 0.95" does to DQN: `python -m experiments.dqn`.

The rules are that of the Nature paper, as DQN Zoo has it, and what others make of its words. A
heavy ball of 0.95 adds up to twenty times the rate, so both are also compared at equal sums.
A chunk of seeds that is finished is a line of `dqn.jsonl` and is not trained again.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np

from examples.cifar10.configs import UserError
from examples.cifar10.main import exit_code
from examples.dqn import dqn
from experiments import common
from tools import environment

RATE = 2.5e-4
RULES = {
    "as published: centred, no momentum": {},
    "uncentred": {"centered": False},
    "a heavy ball of 0.95": {"momentum": 0.95},
    "a heavy ball of 0.95, a twentieth of the rate": {"momentum": 0.95, "learning_rate": RATE / 20},
    "no momentum, twenty times the rate": {"learning_rate": RATE * 20},
    "MinAtar's: ε outside the root": {"recipe": "minatar_dqn"},
}
CHUNK, PARTS = 8, 40  # seeds trained at once; points of a curve
Row = dict[str, Any]


class Study(NamedTuple):
    """What is done on a task, if the command line does not say."""

    title: str
    seeds: int


STUDIES = {
    "cartpole": Study("CartPole-v1", 16),
    "breakout": Study("Breakout of MinAtar", 8),
}


def trial(name: str, rule: str, seeds: range, frames: int) -> Row:
    """Train a chunk of seeds; return a line of the file."""
    began = time.process_time()
    task, tx = dqn.TASKS[name], dqn.optimizer(**RULES[rule])
    _, counts, totals = dqn.train(task, tx, seeds, frames)
    added = [[part.sum(0) for part in parted(values)] for values in (counts, totals)]
    return {
        "task": name, "rule": rule, "seeds": [seeds.start, seeds.stop], "frames": frames,
        "episodes": np.transpose(added[0]).tolist(), "returns": np.transpose(added[1]).tolist(),
        "cpu_seconds": round(time.process_time() - began), "date": time.strftime("%Y-%m-%d"),
        **environment.facts(),
    }  # fmt: skip


def parted(values: np.ndarray) -> list[np.ndarray]:
    """Cut cycles into the parts of a curve, whose lengths differ by a cycle at most."""
    return np.array_split(values, min(PARTS, len(values)))


def ends(name: str, rows: list[Row]) -> np.ndarray:
    """Return the frame with which each part ends."""
    frames = next(row["frames"] for row in rows if row["task"] == name)
    cycle = dqn.TASKS[name].cycle
    return np.array([part[-1] for part in parted(np.arange(0, frames, cycle) + cycle)])


def run(
    path: Path, names: Sequence[str], seeds: int | None, steps: int | None,
    say: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Train what is missing, every rule at the same pace; return the rows that were asked for."""
    key = lambda row: (row["task"], row["rule"], *row["seeds"], row["frames"])  # noqa: E731
    rows = {key(row): row for row in common.finished(path)}
    found = []
    for name in names:
        count, frames = seeds or STUDIES[name].seeds, steps or dqn.TASKS[name].frames
        for first, rule in itertools.product(range(0, count, CHUNK), RULES):
            chunk = range(first, min(first + CHUNK, count))
            wanted = name, rule, chunk.start, chunk.stop, frames
            if wanted not in rows:
                say(f"{name}, {rule}, seeds {chunk.start} to {chunk.stop - 1}")
                rows[wanted] = trial(name, rule, chunk, frames)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[wanted]) + "\n")
            found.append(rows[wanted])
    return found


def curves(rows: list[Row], name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the episodes and the sums of their returns, [seeds, parts]."""
    chosen = [row for row in rows if (row["task"], row["rule"]) == (name, rule)]
    return tuple(np.concatenate([row[key] for row in chosen]) for key in ("episodes", "returns"))


def mean_return(episodes: np.ndarray, returns: np.ndarray) -> list[float]:
    """Return of every seed the mean return of its episodes in these parts; NaN without one."""
    with np.errstate(invalid="ignore"):
        return list(returns.sum(1) / episodes.sum(1))


def table(rows: list[Row], name: str) -> Iterator[str]:
    """Yield the lines of a task's table."""
    yield "| rule | n | last tenth | difference | worst, best seed | all of training | CPU s |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    frames = ends(name, rows)
    tenth = frames > 0.9 * frames[-1]
    reference: list[float] | None = None
    for rule in RULES:
        episodes, returns = curves(rows, name, rule)
        last = mean_return(episodes[:, tenth], returns[:, tenth])
        reference = reference or last
        seconds = sum(r["cpu_seconds"] for r in rows if (r["task"], r["rule"]) == (name, rule))
        yield (
            f"| {rule} | {len(last)} | {common.mean_and_spread(last)} | "
            f"{difference(last, reference) if last is not reference else '–'} | "
            f"{min(last):.2f}, {max(last):.2f} | "
            f"{common.mean_and_spread(mean_return(episodes, returns))} | {seconds} |"
        )


def difference(a: list[float], b: list[float]) -> str:
    """Write the difference of two means with its standard error."""
    mean = f"{statistics.fmean(a) - statistics.fmean(b):+.2f}"
    if min(len(a), len(b)) == 1:
        return mean
    variance = statistics.variance(a) / len(a) + statistics.variance(b) / len(b)
    return f"{mean} ± {math.sqrt(variance):.2f}"


def figure(rows: list[Row], names: Sequence[str]) -> matplotlib.figure.Figure:
    """Draw the mean over seeds of each rule, and its standard deviation as a band."""
    drawn = matplotlib.figure.Figure(figsize=(5.5 * len(names), 4.6), layout="constrained")
    axes = np.atleast_1d(drawn.subplots(1, len(names)))
    for ax, name in zip(axes, names, strict=True):
        frames = ends(name, rows)
        for rule in RULES:
            episodes, returns = curves(rows, name, rule)
            each = np.divide(returns, episodes, np.full(returns.shape, np.nan), where=episodes > 0)
            mean, spread = np.nanmean(each, 0), np.nanstd(each, 0)
            (line,) = ax.plot(frames, mean, label=rule)
            ax.fill_between(
                frames, mean - spread, mean + spread, color=line.get_color(), alpha=0.12
            )
        ax.set(
            title=STUDIES[name].title, xlabel="frames with updates", ylabel="return of an episode"
        )
        ax.grid(alpha=0.3)
    lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    drawn.legend(handles=[*lines.values()], loc="outside lower center", ncols=2, fontsize=8)
    return drawn


def describe(name: str, rows: list[Row]) -> str:
    """Say in a line what was trained."""
    task, frames = dqn.TASKS[name], next(row["frames"] for row in rows if row["task"] == name)
    convolution = f"{task.filters} filters 3 × 3, " if task.filters else ""
    return (
        f"{frames} frames after {task.fill} random ones, an update every {task.train_every}, "
        f"memory {task.capacity}, a new target every {task.target_every} updates, exploration "
        f"{task.random} after {task.exploration} frames, {convolution}hidden {task.hidden}, "
        f"batch {task.batch}, discount {task.discount}"
    )


def study(
    results: Path, names: Sequence[str], seeds: int | None, steps: int | None,
    arguments: Sequence[str] = (),
) -> None:  # fmt: skip
    """Train what is missing, and write `dqn.md` and `dqn.png`."""
    results.mkdir(parents=True, exist_ok=True)
    say = functools.partial(print, flush=True)
    rows = run(results / "dqn.jsonl", names, seeds, steps, say)
    # The lines tell where they were trained, which may be elsewhere and before.
    facts = {
        key: "; ".join(sorted({row[key] for row in rows}))
        for key in ("device", "processor", "versions", "date")
    }
    lines = environment.heading(
        "Centring and momentum in DQN", "experiments.dqn", arguments, **facts,
        **{STUDIES[name].title: describe(name, rows) for name in names},
    )  # fmt: skip
    lines += [TEXT]
    for name in names:
        lines += ["", f"## {STUDIES[name].title}", "", *table(rows, name)]
    environment.write_text(results / "dqn.md", "\n".join(lines) + "\n")
    with environment.replacing(results / "dqn.png") as new:
        figure(rows, names).savefig(new, dpi=120)


TEXT = """\
All rules have a decay of 0.95 and, where none is named, a rate of 2.5e-4; ε is 0.01 / 32² inside
the root for the mean of a batch, and 0.01 outside it in MinAtar's. Returns are those of training,
exploration included, as the mean ± standard deviation over n seeds. "Last tenth" is the mean over
the episodes that ended in the last tenth of the frames, and "difference" is its distance from the
rule as published, ± the standard error of that distance."""


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dqn", description=__doc__)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the files")
    parser.add_argument("--tasks", nargs="+", choices=STUDIES, default=[*STUDIES])
    parser.add_argument("--seeds", type=int, help="of every rule; by default of each task its own")
    parser.add_argument("--steps", type=int, help="frames with updates; by default of each task")
    options = parser.parse_args(arguments)

    def work() -> None:
        for name in ("seeds", "steps"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")
        study(options.results, options.tasks, options.seeds, options.steps, arguments)

    sys.exit(exit_code(work))


if __name__ == "__main__":
    main(sys.argv[1:])
