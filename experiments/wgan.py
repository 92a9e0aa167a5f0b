"""Does momentum make a Wasserstein GAN less stable? `python -m experiments.wgan`.

Every rule is trained with the published rate. `--tune` names tasks on which it is also trained with
the best of five rates, which other seeds choose. A trial that is finished is a line of `wgan.jsonl`
and is not run again.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from scipy import stats

from examples.cifar10.configs import UserError
from examples.cifar10.main import exit_code
from examples.wgan import pictures, wgan
from experiments import common
from tools import environment

PARTS = 40  # points of a curve
KEPT = 128  # samples of the first training
RATES = [wgan.RATE * factor for factor in (0.1, 0.1**0.5, 1.0, 10**0.5, 10.0)]
CHOOSING = range(100, 103)  # the seeds that choose a rate
RULES = {
    "RMSprop, as published": "rmsprop",
    "RMSprop, momentum 0.9": "rmsprop-momentum-0.9",
    "Adam, β₁ = 0.9": "adam-0.9",
    "Adam, β₁ = 0.5": "adam-0.5",
    "Adam, β₁ = 0": "adam-0",
}
# A heavy ball adds up to ten times the rate, so both are also tried at equal sums.
OTHER_RATES = {
    "RMSprop, momentum 0.9, a tenth of the rate": ("rmsprop-momentum-0.9", RATES[0]),
    "RMSprop, ten times the rate": ("rmsprop", RATES[-1]),
}
BOUND = 0.01  # as published
SEEDS = {"ring": 8, "digits": 5}
TITLES = {"ring": "Ring of eight Gaussians", "digits": "Digits, 8 × 8"}
Row = dict[str, Any]


class Trial(NamedTuple):
    """What is trained in one program: all pairs of a rate and a seed."""

    task: str
    rule: str
    rates: tuple[float, ...]
    seeds: tuple[int, int]  # from the first, up to but not including the second
    steps: int
    bound: float


def run(trial: Trial) -> Row:
    """Train; return a line of the file."""
    began, parts = time.process_time(), []
    task = wgan.TASKS[trial.task]()._replace(bound=trial.bound)
    seeds = np.arange(*trial.seeds)
    rates, keys = np.repeat(trial.rates, len(seeds)), np.tile(seeds, len(trial.rates))
    trained = wgan.train(task, wgan.RULES[trial.rule], rates, keys, trial.steps, PARTS)
    for samples, log, distance in trained:  # noqa: B007
        parts.append({"distance": distance, **log._asdict()})
    significant = np.vectorize(lambda x: float(f"{x:.4g}"))
    curves = {name: significant([part[name] for part in parts]).T.tolist() for name in parts[0]}
    return {
        **trial._asdict(), **curves, "samples": samples[0, :KEPT].astype(float).round(2).tolist(),
        "cpu_seconds": round(time.process_time() - began), "date": time.strftime("%Y-%m-%d"),
        **environment.facts(),
    }  # fmt: skip


class Study:
    """The finished trials of a file, and those that are run when they are asked for."""

    def __init__(self, path: Path, seeds: int | None, steps: int | None, say: Callable[..., None]):
        self.path, self.seeds, self.steps, self.say = path, seeds, steps, say
        self.used: list[Row] = []
        self.rows: dict[str, Row] = {}
        for row in common.finished(path):
            self.rows[json.dumps([row[name] for name in Trial._fields])] = row

    def row(
        self, task: str, rule: str, rates: Sequence[float], seeds: range, bound: float | None = None
    ) -> Row:
        """Return the row of a trial."""
        setting = wgan.TASKS[task]()
        steps, bound = self.steps or setting.steps, setting.bound if bound is None else bound
        trial = Trial(task, rule, tuple(rates), (seeds.start, seeds.stop), steps, bound)
        if (key := json.dumps(trial)) not in self.rows:
            self.say(f"{task}, {rule}, {len(rates)} rates, seeds {seeds.start} to {seeds.stop - 1}")
            self.rows[key] = run(trial)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[key]) + "\n")
        if self.rows[key] not in self.used:
            self.used.append(self.rows[key])
        return self.rows[key]

    def measured(self, task: str, rule: str, rate: float, bound: float | None = None) -> Row:
        """Return the row of one rate."""
        return self.row(task, rule, [rate], range(self.seeds or SEEDS[task]), bound)

    def choice(self, task: str, rule: str) -> list[float]:
        """Return the mean distance in the end for each of `RATES`."""
        ends = late(self.row(task, rule, RATES, CHOOSING)["distance"])
        return ends.reshape(len(RATES), -1).mean(1).tolist()

    def best(self, task: str, rule: str) -> float:
        """Return the rate with which the mean distance in the end is least."""
        return RATES[int(np.argmin(self.choice(task, rule)))]


def late(curves: list[list[float]]) -> np.ndarray:
    """Return the mean over the last tenth of each training."""
    return np.asarray(curves)[:, -PARTS // 10 :].mean(1)


def rise(curves: list[list[float]]) -> np.ndarray:
    """Return how far the end of each training is above its own least."""
    return late(curves) - np.min(curves, 1)


def agreement(row: Row) -> np.ndarray:
    """Return for each training the rank correlation of the critic's estimate and the distance."""
    pairs = zip(row["estimate"], row["distance"], strict=True)
    return np.array([stats.spearmanr(*pair).statistic for pair in pairs])


HEAD = [
    "| rule | rate | n | distance | difference | worst seed | above its least | rank correlation "
    "| cosine | negative |",
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
]


def difference(row: Row, reference: Row) -> str:
    """Write the mean difference of the ends of the same seeds, and its standard error."""
    pairs = late(row["distance"]) - late(reference["distance"])
    return f"{pairs.mean():+.2f} ± {pairs.std(ddof=1) / len(pairs) ** 0.5:.2f}"


def line(label: str, row: Row, reference: Row) -> str:
    """Write a line of a table."""
    end, rate = late(row["distance"]), row["rates"][0]
    cells = [common.mean_and_spread(values) for values in (
        end, rise(row["distance"]), agreement(row), np.mean(row["cosine"], 1)
    )]  # fmt: skip
    apart = "–" if row is reference else difference(row, reference)
    return (
        f"| {label} | {rate:.2g} | {len(end)} | {cells[0]} | {apart} | {end.max():.2f} | "
        f"{cells[1]} | {cells[2]} | {cells[3]} | {100 * np.mean(row['uphill']):.1f} % |"
    )


def floors(task: wgan.Task, draws: int = 20) -> Iterator[str]:
    """Yield what the distance is where nothing was learnt, and where all was."""
    rng, held_out = np.random.default_rng(0), task.held_out
    real = [
        wgan.distance(rng.permutation(task.data)[: len(held_out)], held_out) for _ in range(draws)
    ]
    mean = np.broadcast_to(task.data.mean(0), held_out.shape)
    yield (
        f"Distances are between {len(held_out)} samples and {len(held_out)} held-out rows. For as "
        f"many rows of the training data it is {common.mean_and_spread(real)} (n = {draws} draws), "
        f"and for the mean of the data {wgan.distance(mean, held_out):.2f}."
    )


def section(study: Study, name: str) -> Iterator[str]:
    """Train what is missing of a task, and yield the lines of its section."""
    task = wgan.TASKS[name]()
    steps = study.steps or task.steps
    yield from (
        "", f"## {TITLES[name]}", "",
        f"{steps} steps of the generator, hidden {task.hidden}, noise {task.noise}, batch "
        f"{wgan.BATCH}, critic's weights within ±{task.bound}.", "", *floors(task), "", *HEAD,
    )  # fmt: skip
    published = study.measured(name, "rmsprop", wgan.RATE)
    for label, rule in RULES.items():
        yield line(label, study.measured(name, rule, wgan.RATE), published)
    for label, (rule, rate) in OTHER_RATES.items():
        yield line(label, study.measured(name, rule, rate), published)
    if task.bound != BOUND:
        row = study.measured(name, "rmsprop", wgan.RATE, BOUND)
        yield line(f"RMSprop, as published, weights within ±{BOUND}", row, published)
    nine, five, none = (study.measured(name, f"adam-{b}", wgan.RATE) for b in ("0.9", "0.5", "0"))
    yield from (
        "",
        f"From Adam with β₁ = 0, that with 0.9 differs by {difference(nine, none)}, "
        f"and that with 0.5 by {difference(five, none)}.",
    )


def tuned(study: Study, name: str) -> Iterator[str]:
    """Choose rates and train with them, and yield the lines of two tables."""
    yield from ("", f"## {TITLES[name]}, rates chosen for each rule", "", *HEAD)
    first = study.measured(name, "rmsprop", study.best(name, "rmsprop"))
    for label, rule in RULES.items():
        yield line(label, study.measured(name, rule, study.best(name, rule)), first)
    rates = " | ".join(f"{rate:.2g}" for rate in RATES)
    yield from ("", f"The distance in the end, by the rate, n = {len(CHOOSING)}:", "")
    yield from (f"| rule | {rates} |", "|---|" + "--:|" * len(RATES))
    for label, rule in RULES.items():
        yield f"| {label} | " + " | ".join(f"{x:.2f}" for x in study.choice(name, rule)) + " |"


def figure(study: Study, names: Sequence[str]) -> matplotlib.figure.Figure:
    """Draw the distances at the published rate, and what the published rule generates."""
    drawn = matplotlib.figure.Figure(figsize=(12, 4.2 * len(names)), layout="constrained")
    grid = drawn.subplots(len(names), 3, squeeze=False, width_ratios=[2, 1, 1])
    for (curve, *shown), name in zip(grid, names, strict=True):
        task = wgan.TASKS[name]()
        rows = {rule: study.measured(name, rule, wgan.RATE) for rule in RULES.values()}
        for label, rule in RULES.items():
            values = np.asarray(rows[rule]["distance"])
            mean, spread = values.mean(0), values.std(0)
            steps = np.arange(1, PARTS + 1) * rows[rule]["steps"] / PARTS
            (drawn_line,) = curve.plot(steps, mean, label=f"{label} (n = {len(values)})")
            colour = drawn_line.get_color()
            curve.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.12)
        curve.set(title=TITLES[name], xlabel="steps of the generator", ylabel="Wasserstein-1")
        curve.grid(alpha=0.3)
        curve.legend(fontsize=8)
        for ax, rule, title in zip(
            shown, ("rmsprop", "adam-0.9"), ("RMSprop, as published", "Adam, β₁ = 0.9"), strict=True
        ):
            pictures.show(ax, np.asarray(rows[rule]["samples"]), task.held_out)
            ax.set_title(title)
    return drawn


TEXT = """\
Numbers are the mean ± standard deviation over n seeds. "Distance" is the mean Wasserstein-1
distance of the last tenth of training, exact for its samples. "Difference" is how far that is from
the first line's with the same seeds, ± its standard error, and "above its least" how far it is
above the least distance of the same training. "Rank correlation" is Spearman's, of the critic's
estimate and the distance over the forty parts of a training. "Cosine" is that of the angle between
an update of the critic and the descent of its gradient, the mean over training; "negative" is the
share of updates for which it is negative. Adam has β₂ = 0.999. A rule and a rate are those of both
networks."""


def write(
    results: Path, study: Study, names: Sequence[str], tune: Sequence[str], arguments: Sequence[str]
) -> None:
    """Train what is missing, and write `wgan.md` and `wgan.png`."""
    lines = [TEXT]
    for name in names:
        lines += section(study, name)
    for name in tune:
        lines += tuned(study, name)
    rows = study.used
    # The lines tell where they were trained, which may be elsewhere and before.
    facts = {
        key: "; ".join(sorted({row[key] for row in rows}))
        for key in ("device", "processor", "versions", "date")
    }
    facts["CPU seconds of all trials"] = str(sum(row["cpu_seconds"] for row in rows))
    head = environment.heading(
        "Momentum in a Wasserstein GAN", "experiments.wgan", arguments, **facts
    )
    environment.write_text(results / "wgan.md", "\n".join([*head, *lines]) + "\n")
    with environment.replacing(results / "wgan.png") as new:
        figure(study, names).savefig(new, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.wgan", description=__doc__)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the files")
    parser.add_argument("--tasks", nargs="+", choices=SEEDS, default=[*SEEDS])
    parser.add_argument(
        "--tune", nargs="+", choices=SEEDS, default=[], help="choose rates on these"
    )
    parser.add_argument("--seeds", type=int, help="of every rule; by default of each task its own")
    parser.add_argument("--steps", type=int, help="of the generator; by default of each task")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.seeds is not None and options.seeds < 2:
            raise UserError(f"--seeds must be at least 2, got {options.seeds}")
        if options.steps is not None and (options.steps < 1 or options.steps % PARTS):
            raise UserError(f"--steps must be a multiple of {PARTS}, got {options.steps}")
        say = functools.partial(print, flush=True)
        options.results.mkdir(parents=True, exist_ok=True)
        study = Study(options.results / "wgan.jsonl", options.seeds, options.steps, say)
        write(options.results, study, options.tasks, options.tune, arguments)

    sys.exit(exit_code(work))


if __name__ == "__main__":
    main(sys.argv[1:])
