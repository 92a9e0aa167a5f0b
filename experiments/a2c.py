"""Does it matter which RMSprop? A2C in several rules: `python -m experiments.a2c`.

Every rule trains the same seeds. What is finished is in `results/a2c/`, a file for a task and a
rule, and is not trained again: a study that was stopped goes on, and one of more seeds adds to it.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from rich.progress import Progress

from examples.a2c import a2c, report
from experiments import common
from tools import environment

CHUNK = 32  # seeds that train together: on a CPU, more are slower each
EPISODES = 20  # of an evaluation, of every seed
# The reward thresholds of Gymnasium 1.4, and the rows of RL Baselines3 Zoo's `benchmark.md` at
# 22e3ff24, of one trained agent each: mean and standard deviation over the episodes.
THRESHOLDS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "MountainCar-v0": -110.0}
PUBLISHED = {
    "CartPole-v1": (500.0, 0.0), "Acrobot-v1": (-83.353, 17.213),
    "MountainCar-v0": (-111.263, 24.087), "Pendulum-v1": (-162.965, 103.210),
}  # fmt: skip


RULES = "torch", "stable_baselines3", "torch-eps-inside", "torch-nu-from-1"
OPEN = "CartPole-v1", "Acrobot-v1"  # tasks where it is asked whether the rule matters
CURVES = "episode_return", "gradient", "update", "rate"

Runs = dict[str, np.ndarray]  # "seed" [n], "evaluation" [n, episodes], and the curves [n, parts]
optimizer = functools.cache(lambda rule, task: a2c.optimizer(rule, a2c.TASKS[task]))


def plan(seeds: int) -> Iterator[tuple[str, str, int]]:
    """Name the task, the rule and the seeds of all trainings; what is beside has an eighth."""
    for task in a2c.TASKS:
        for rule in a2c.RULES:
            whole = task in OPEN and rule in RULES
            yield task, rule, seeds if whole else max(seeds // 8, 1)


def read(path: Path) -> Runs:
    """Return what is trained already."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def extend(path: Path, task: str, rule: str, seeds: range) -> None:
    """Train seeds, and add them to the file of a task and a rule."""
    setting, keys = a2c.TASKS[task], jnp.asarray(seeds)
    parts = []
    for agents, progress in a2c.train(setting, optimizer(rule, task), keys, a2c.PARTS):  # noqa: B007
        parts.append(progress)
    new = {"seed": keys, "evaluation": a2c.evaluate(setting, agents, keys, EPISODES)}
    new |= {name: jnp.stack([getattr(part, name) for part in parts], 1) for name in CURVES}
    rows = {"seed": np.asarray(keys)}
    rows |= {name: np.asarray(new[name], np.float16) for name in ("evaluation", *CURVES)}
    known = read(path)
    whole = {name: np.concatenate([known[name], rows[name]]) for name in rows} if known else rows
    path.parent.mkdir(parents=True, exist_ok=True)
    with environment.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **whole)


def train(results: Path, seeds: int, tasks: Sequence[str]) -> None:
    """Train what is missing, a chunk of every rule in turn."""
    size = CHUNK if jax.default_backend() == "cpu" else 16 * CHUNK
    wanted = {(t, r): n for t, r, n in plan(seeds) if t in tasks}
    paths = {(t, r): results / "a2c" / t / f"{r}.npz" for t, r in wanted}
    done = {name: len(read(path).get("seed", ())) for name, path in paths.items()}
    with Progress() as bar:
        whole = bar.add_task("seeds", total=sum(wanted.values()))
        bar.advance(whole, sum(min(done[name], n) for name, n in wanted.items()))
        while short := [name for name, n in wanted.items() if done[name] < n]:
            task, rule = name = min(short, key=done.__getitem__)
            new = range(done[name], min(done[name] + size, wanted[name]))
            bar.update(whole, description=f"{task}, {rule}, seeds {new.start} to {new.stop - 1}")
            extend(paths[name], task, rule, new)
            done[name] = new.stop
            bar.advance(whole, len(new))


def page(results: Path, seeds: int, tasks: Sequence[str], arguments: Sequence[str] = ()) -> None:
    """Write `a2c.md` and `a2c.png` of what is trained."""
    runs: dict[str, dict[str, Runs]] = {task: {} for task in tasks}
    for task, rule, n in plan(seeds):
        if task in tasks:
            known = read(results / "a2c" / task / f"{rule}.npz")
            if known:
                runs[task][rule] = {name: x[:n].astype(float) for name, x in known.items()}
    if bare := [task for task in tasks if "torch" not in runs[task]]:
        raise SystemExit(f"nothing of {bare[0]} is trained in {results / 'a2c'}")
    lines = environment.heading(
        "Does it matter which RMSprop?", "experiments.a2c", arguments,
        setting="A2C of Stable-Baselines3 with the hyperparameters of RL Baselines3 Zoo",
        numbers="mean ± standard deviation over n seeds; late: in the last 8 % of the steps",
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    for task in tasks:
        lines += [f"## {task}", "", *table(task, runs[task]), ""]
        if task in THRESHOLDS:
            lines += [*causes(runs[task], THRESHOLDS[task]), ""]
    lines += ["## Beside the table of RL Baselines3 Zoo", "", *published(runs)]
    environment.write_text(results / "a2c.md", "\n".join(lines) + "\n")
    drawn = {t: {rule: runs[t][rule] for rule in RULES if rule in runs[t]} for t in tasks}
    steps = {task: a2c.TASKS[task].steps for task in tasks}
    report.draw(results / "a2c.png", drawn, steps)


COLUMNS = (
    "rule", "n", "late return", "worst seed", "return, all steps", "steps to the threshold",
    "ends below it", "p", "fell below it", "p", "effective rate, late", "largest update, late",
)  # fmt: skip


def table(task: str, runs: dict[str, Runs]) -> list[str]:
    """Return a row for each rule; the probabilities are of Fisher's test against torch's."""
    threshold = THRESHOLDS.get(task, np.nan)
    lines = [f"The threshold is {threshold:g}.", ""] if task in THRESHOLDS else []
    lines += [f"| {' | '.join(COLUMNS)} |", f"|---|{'--:|' * (len(COLUMNS) - 1)}"]
    for rule, run in runs.items():
        late = report.late(run["episode_return"])
        rate, update = np.median(run["rate"][:, -1]), np.median(run["update"][:, -2:].max(1))
        reached, ends, fell = falls(run, threshold)
        part = a2c.TASKS[task].steps // a2c.PARTS
        cells = [
            f"`{rule}`", f"{len(late)}", common.mean_and_spread(list(late), 1), f"{late.min():.1f}",
            common.mean_and_spread(list(report.mean(run["episode_return"])), 1),
            f"{part * np.median(reached):,.0f}" if task in THRESHOLDS else "–",
        ]  # fmt: skip
        for mine, its in zip((ends, fell), falls(runs["torch"], threshold)[1:], strict=True):
            low, high = scipy.stats.binomtest(int(mine.sum()), len(mine)).proportion_ci()
            counts = [[x.sum(), (~x).sum()] for x in (mine, its)]
            p = "–" if rule == "torch" else f"{scipy.stats.fisher_exact(counts).pvalue:.1g}"
            shown = f"{mine.sum()}: {mine.mean():.1%} [{low:.1%}, {high:.1%}]", p
            cells += shown if task in THRESHOLDS else ("–", "–")
        lines.append(f"| {' | '.join([*cells, f'{rate:.3g}', f'{update:.3g}'])} |")
    return lines


def falls(run: Runs, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell for each seed the first part above a threshold, and whether it ends or fell below.

    A seed that never reached it has the number of parts, and neither ends nor fell below.
    """
    above = run["episode_return"] >= threshold
    reached = np.where(above.any(1), above.argmax(1) + 1, np.inf)
    below = (run["episode_return"] < threshold) & np.logical_or.accumulate(above, axis=1)
    return reached, above.any(1) & (report.late(run["episode_return"]) < threshold), below.any(1)


def causes(runs: dict[str, Runs], threshold: float) -> list[str]:
    """Return, for each rule, what is seen in the parts of a training in which a run falls."""
    columns = (
        "rule", "parts after one above the threshold", "below it", "least return in these",
        "largest update in these",
        "largest update in the others", "gradient in these", "gradient in the others",
        "effective rate before",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for rule, run in runs.items():
        returns = run["episode_return"]
        before, now = returns[:, :-1] >= threshold, returns[:, 1:] < threshold
        fell, stayed = before & now, before & ~now
        least = f"{returns[:, 1:][fell].min():.1f}" if fell.any() else "–"
        cells = [f"`{rule}`", f"{before.sum():,}", f"{fell.sum()}", least]
        cells += [
            _spread(run[name][:, 1:][where])
            for name in ("update", "gradient")
            for where in (fell, stayed)
        ]
        cells.append(_spread(run["rate"][:, :-1][before]))
        lines.append(f"| {' | '.join(cells)} |")
    return ["Medians, and where 80 % lie:", "", *lines]


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    return "{:.2g} ({:.2g} to {:.2g})".format(*np.percentile(values, [50, 10, 90]))


def published(runs: dict[str, dict[str, Runs]]) -> list[str]:
    """Return a row for each task, with the default of Stable-Baselines3."""
    lines = [
        "The likeliest action is taken. Zoo's row is of one agent, its spread of episodes.",
        "",
        f"| task | Zoo | here, over all episodes | n seeds of {EPISODES} episodes "
        "| mean of a seed: worst, quartiles, best |",
        "|---|--:|--:|--:|--:|",
    ]
    for task, rules in runs.items():
        rewards, (mean, spread) = rules["torch"]["evaluation"], PUBLISHED[task]
        marks = np.quantile(rewards.mean(1), [0, 0.25, 0.5, 0.75, 1])
        lines.append(
            f"| {task} | {mean:.1f} ± {spread:.1f} | {rewards.mean():.1f} ± {rewards.std():.1f} "
            f"| {len(rewards)} | {', '.join(f'{x:.1f}' for x in marks)} |"
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.a2c")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--seeds", type=int, default=512)
    parser.add_argument("--tasks", nargs="+", choices=a2c.TASKS, default=list(OPEN))
    parser.add_argument("--no-train", action="store_true", help="write the page of what is trained")
    options = parser.parse_args(arguments)
    if not options.no_train:
        train(options.results, options.seeds, options.tasks)
    page(options.results, options.seeds, options.tasks, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
