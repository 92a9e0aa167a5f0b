"""Train Wasserstein GANs: `python -m examples.wgan`.

python -m examples.wgan                            # a ring of Gaussians, eight seeds
python -m examples.wgan --task digits              # scikit-learn's digits, 8 × 8
python -m examples.wgan --rule adam-0.9            # Adam in place of RMSprop
python -m examples.wgan --help
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich import progress

from examples.wgan import pictures, wgan

PARTS = 40


@dataclasses.dataclass(frozen=True)
class Options:
    """Train Wasserstein GANs, print the critic's estimate and the exact distance, and draw."""

    task: Literal[tuple(wgan.TASKS)] = "ring"
    rule: Literal[tuple(wgan.RULES)] = "rmsprop"
    """The optimizer of critic and generator. The first is the published one."""
    learning_rate: float = wgan.RATE
    """Of both."""
    bound: float | None = None
    """Of the critic's weights; by default 0.1 on the ring, and the published 0.01 on digits."""
    steps: int | None = None
    """Updates of the generator, a multiple of 40; by default 4,000 or 3,000."""
    seeds: int = 8
    """Trainings, all at once."""
    seed: int = 0
    """Of the first."""
    workdir: Path = Path("wgan-results")
    """The folder of the picture."""


def main(options: Options) -> int:
    """Train with a progress bar and a line for each tenth of the steps; return the exit code."""
    task = wgan.TASKS[options.task]()
    steps = task.steps if options.steps is None else options.steps
    bound = task.bound if options.bound is None else options.bound
    try:
        if steps < 1 or steps % PARTS:
            raise ValueError(f"--steps must be a multiple of {PARTS}, got {steps}")
        if options.seeds < 1 or options.seed < 0:
            name, least = ("seeds", 1) if options.seeds < 1 else ("seed", 0)
            raise ValueError(f"--{name} must be at least {least}, got {getattr(options, name)}")
        for name, value in (("learning-rate", options.learning_rate), ("bound", bound)):
            if not 0 < value < np.inf:
                raise ValueError(f"--{name} must be greater than 0 and finite, got {value}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    task = task._replace(bound=bound)
    seeds = np.arange(options.seed, options.seed + options.seeds)
    rates = np.full(len(seeds), options.learning_rate)
    trained = wgan.train(task, wgan.RULES[options.rule], rates, seeds, steps, PARTS)
    columns = "{task.description}", progress.BarColumn(), progress.TimeRemainingColumn()
    with progress.Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        item = bar.add_task("compiling", total=PARTS)
        for part, (samples, log, distances) in enumerate(trained, 1):  # noqa: B007
            now = f"estimate {log.estimate.mean():.2e}  distance {spread(distances)}"
            bar.update(item, completed=part, description=now)
            if part % (PARTS // 10) == 0:
                bar.console.print(f"{part * steps // PARTS:>6} steps  {now}", highlight=False)
    pictures.draw(options.workdir / "samples.png", samples[0], task.held_out)
    real = wgan.distance(task.data[: len(task.held_out)], task.held_out)
    print(f"n = {len(seeds)} seeds, mean ± standard deviation; of training data, {real:.3f}")
    print(f"written to {options.workdir / 'samples.png'}")
    return 0


def spread(values: np.ndarray) -> str:
    """Write a mean and a standard deviation."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
