"""The tables of what is trained, and the figure."""

import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib.figure
import numpy as np
import scipy.stats

from experiments import common
from experiments.fields.study import Row, Trials, best, optimizers, width
from experiments.fields.tasks import TASKS

REFERENCES = "RMSprop", "Adam"
COLUMNS = (
    "optimizer", "best rate", "on test", "worst seed", "n",
    *(f"less {name}'s [95 %]" for name in REFERENCES),
    "good rates, decades", "rates tried", "CPU s",
)  # fmt: skip
Pair = tuple[str, str, str]  # a task, and two optimizers


def scores(rows: list[Row]) -> list[float]:
    """Return the test scores of rows; infinite is that of a seed that was lost."""
    # A mean in float32 may miss 0 by a rounding.
    return [math.inf if x is None else round(x, 4) + 0.0 for row in rows for x in row["test"]]


def shown(values: list[float]) -> str:
    """Write the mean and the standard deviation of the seeds that were not lost."""
    kept = [x for x in values if math.isfinite(x)]
    lost = f", {len(values) - len(kept)} lost" if len(kept) < len(values) else ""
    return (common.mean_and_spread(kept) if kept else "–") + lost


def rate(exponent: int) -> str:
    """Write a rate of the grid."""
    return f"{10 ** (exponent / 4):.2g}"


def comparisons(found: Mapping[str, Mapping[str, list[float]]]) -> dict[Pair, np.ndarray]:
    """Return the differences, seed by seed, of each optimizer and each reference of each task."""
    return {
        (task, name, reference): np.subtract(values, tests[reference])
        for task, tests in found.items()
        for place, reference in enumerate(REFERENCES)
        for name, values in tests.items()
        if name not in REFERENCES[: place + 1] and np.isfinite([values, tests[reference]]).all()
    }


def adjusted(differences: Mapping[Pair, np.ndarray]) -> dict[Pair, float]:
    """Return the probabilities of paired t-tests, corrected for their number (Holm, 1979)."""
    plain = {pair: _probability(values) for pair, values in differences.items()}
    ordered = sorted(plain, key=plain.__getitem__)
    rising = np.maximum.accumulate(
        [min(1.0, plain[pair] * (len(plain) - place)) for place, pair in enumerate(ordered)]
    )
    return dict(zip(ordered, map(float, rising), strict=True))


def _probability(differences: np.ndarray) -> float:
    if np.ptp(differences) == 0:  # The test divides by their deviation.
        return float(differences[0] == 0)
    return float(scipy.stats.ttest_1samp(differences, 0).pvalue)


def _interval(differences: np.ndarray) -> str:
    """Write the mean of some differences, and its 95 % interval."""
    mean, spread = differences.mean(), differences.std(ddof=1) / len(differences) ** 0.5
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * spread
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def table(
    trials: Trials,
    tests: Mapping[str, list[float]],
    differences: Mapping[Pair, np.ndarray],
    probabilities: Mapping[Pair, float],
) -> Iterator[str]:
    """Yield the lines of a task's table; a difference that is seen is bold."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|---|{'--:|' * (len(COLUMNS) - 1)}"
    for name, values in tests.items():
        rates = trials.curve(name)
        decades, whole = width(rates, trials.task.tolerance)
        rows = [row for key, row in trials.rows.items() if key[0] == name]
        worst = max(values)
        cells = [name, rate(best(rates)), shown(values)]
        cells += [f"{worst:.2f}" if math.isfinite(worst) else "lost", str(len(values))]
        for reference in REFERENCES:
            pair = trials.name, name, reference
            interval = _interval(differences[pair]) if pair in differences else "–"
            cells.append(f"**{interval}**" if probabilities.get(pair, 1.0) < 0.05 else interval)
        ends = f"{rate(min(rates))} to {rate(max(rates))}"
        cells += [f"{'' if whole else '> '}{decades:.1f}", ends]
        cells.append(f"{sum(row['cpu_seconds'] for row in rows):.0f}")
        yield f"| {' | '.join(cells)} |"


def lines(every: Mapping[str, Trials]) -> list[str]:
    """Return the lines of all tables, with an overview before them."""
    found = {
        task: {name: scores(trials.fresh(name)) for name in optimizers(task)}
        for task, trials in every.items()
    }
    differences = comparisons(found)
    probabilities = adjusted(differences)
    text = [
        EXPLANATION.format(count=len(differences)), "",
        "![Validation score by rate](fields.png)", "",
        *overview(every, found, probabilities),
    ]  # fmt: skip
    for task, trials in every.items():
        about = trials.task
        clipping = f"gradients clipped to {about.clip:g}, " if about.clip else ""
        text += [
            "", f"## {about.title}", "",
            f"{about.measure}; {trials.steps} steps, {clipping}tolerance {about.tolerance:g}.", "",
            *table(trials, found[task], differences, probabilities),
        ]  # fmt: skip
    return text


def overview(
    every: Mapping[str, Trials],
    found: Mapping[str, Mapping[str, list[float]]],
    probabilities: Mapping[Pair, float],
) -> Iterator[str]:
    """Yield the scores and the best rates of all tasks, and how often a rule beats another."""
    names = list(optimizers(""))
    titles = {task: trials.task.title for task, trials in every.items()}
    yield f"| task, and its score | {' | '.join(names)} |"
    yield f"|---|{'--:|' * len(names)}"
    for task, tests in found.items():
        cells = [shown(tests[name]) for name in names]
        yield f"| {titles[task]}: {every[task].task.measure} | {' | '.join(cells)} |"
    yield from ("", f"| task, and its best rate | {' | '.join(names)} |")
    yield f"|---|{'--:|' * len(names)}"
    for task, trials in every.items():
        cells = [rate(best(trials.curve(name))) for name in names]
        yield f"| {titles[task]} | {' | '.join(cells)} |"
    yield from ("", "| beside | rule | lower score | higher score | no difference seen |")
    yield "|---|---|--:|--:|--:|"
    for reference in REFERENCES:
        for name in names:
            seen = [
                np.sign(statistics.fmean(tests[name]) - statistics.fmean(tests[reference]))
                for task, tests in found.items()
                if probabilities.get((task, name, reference), 1.0) < 0.05
            ]
            if name != reference and (name, reference) != REFERENCES:
                counts = seen.count(-1), seen.count(1), len(found) - len(seen)
                yield f"| {reference} | {name} | {' | '.join(map(str, counts))} |"


EXPLANATION = """\
Every score is a loss: lower is better. A rate is chosen by the mean validation score of the first
seeds, among half-decades, which go on until both ends are worse than the best by more than the
task's tolerance, and then the quarter-decades beside the best. The chosen rate is then trained with
n other seeds, and the score of these on test is shown, as the mean ± standard deviation. A
difference is the mean over seeds of the score less that of the same seed with the other rule, which
had the same first weights and, where data are fixed, the same batches. In brackets is its 95 %
interval of Student's t, for one comparison; bold are those with p < 0.05 after Holm's correction
for all {count} comparisons of this page. A seed is lost if its score is not finite, and a rule that
lost one is not compared on that task. "Good rates" is the stretch of rates around the best within
the tolerance, in decades, on validation."""


def figure(every: Mapping[str, Trials]) -> matplotlib.figure.Figure:
    """Draw the validation score of each rate: the mean over seeds, and the standard deviation."""
    columns = min(len(every), 4)
    rows = -(-len(every) // columns)
    drawn = matplotlib.figure.Figure(
        figsize=(3.4 * columns, 2.7 * rows + 0.6), layout="constrained"
    )
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for ax, trials in zip(axes, every.values(), strict=False):
        lowest, highest = math.inf, -math.inf
        for name in optimizers(""):
            known = [
                trials.get(name, exponent, range(trials.seeds)) for exponent in trials.curve(name)
            ]
            known = [row for row in known if None not in row["validation"]]
            x = [10 ** (row["quarter_decades"] / 4) for row in known]
            y = np.array([row["validation"] for row in known])
            (line,) = ax.plot(x, y.mean(1), ".-", label=name)
            low, high = y.mean(1) - y.std(1), y.mean(1) + y.std(1)
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
            ax.plot(x[y.mean(1).argmin()], y.mean(1).min(), "o", color=line.get_color())
            lowest = min(lowest, y.mean(1).min())
            highest = max(highest, np.median(y.mean(1)))
        room = max(highest - lowest, 4 * trials.task.tolerance)
        ax.set_ylim(lowest - 0.1 * room, lowest + 1.2 * room)
        ax.set_xscale("log")
        ax.set_title(trials.task.title, fontsize=9)
        ax.set_xlabel("learning rate", fontsize=8)
        ax.set_ylabel(trials.task.measure, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
    for ax in axes[len(every) :]:
        ax.remove()
    named = axes[0].get_lines()[::2]
    drawn.legend(handles=named, loc="outside lower center", ncols=len(named), fontsize=8)
    return drawn


def paths(results: Path) -> dict[str, Path]:
    """Return the file of each task."""
    return {name: results / "fields" / f"{name}.jsonl" for name in TASKS}
