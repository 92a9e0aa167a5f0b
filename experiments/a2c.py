"""Does it matter which RMSprop? A2C in the rules of several frameworks: `python -m experiments.a2c`.

Every rule trains the same seeds. What is finished is in `results/a2c/`, a file for a task and a
rule, and is not trained again; so a study that was stopped goes on, and one of more seeds adds to it.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from examples.a2c import a2c
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
    """Name the task, the rule and the seeds of all trainings; an eighth of the seeds for the rest."""
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
    for agents, progress in a2c.train(setting, optimizer(rule, task), keys, a2c.PARTS):
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
    """Train what is missing, a chunk of every rule in turn, so that all have about as many seeds."""
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


def study(results: Path, seeds: int, tasks: Sequence[str], arguments: Sequence[str] = ()) -> None:
    """Train every rule, and write the page and its figures."""
    train(results, seeds, tasks)


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.a2c")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--seeds", type=int, default=512)
    parser.add_argument("--tasks", nargs="+", choices=a2c.TASKS, default=list(a2c.TASKS))
    options = parser.parse_args(arguments)
    study(options.results, options.seeds, options.tasks, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
