"""Train A2C with several rules: `python -m examples.a2c`.

python -m examples.a2c                                     # CartPole, four rules, 8 seeds each
python -m examples.a2c --task Acrobot-v1 --rules torch keras --seeds 32
python -m examples.a2c --help
"""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.a2c import a2c, report

Task = Literal[tuple(a2c.TASKS)]


def main(
    task: Task = "CartPole-v1",
    rules: tuple[str, ...] = ("torch", "stable_baselines3", "adam", "sgd"),
    seeds: int = 8,
    workdir: Path = Path("a2c-results"),
) -> None:
    """Train every rule with the same seeds; print a table and write `curves.png`.

    Args:
        task: Of Gymnasium's classic control.
        rules: Of `examples.a2c.a2c.RULES`, or dialects of `optax_rmsprop`.
        seeds: Agents for each rule, which train at once.
        workdir: The folder of the figure.
    """
    if seeds < 1:
        raise SystemExit(f"seeds must be 1 or more, got {seeds}")
    setting, keys = a2c.TASKS[task], jnp.arange(seeds)
    try:
        optimizers = {rule: a2c.optimizer(rule, setting) for rule in rules}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    table = Table(
        "rule", "return, late in training", "worst seed", "return of the likeliest action"
    )
    curves = {}
    with Progress() as bar:
        for rule, tx in optimizers.items():
            line = bar.add_task(rule, total=a2c.PARTS)
            parts = []
            for agents, progress in a2c.train(setting, tx, keys, a2c.PARTS):  # noqa: B007
                parts.append(jax.tree.map(np.asarray, progress))
                known = np.isfinite(parts[-1].episode_return)
                if known.any():
                    now = parts[-1].episode_return[known].mean()
                    bar.update(line, description=f"{rule}: return {now:.1f}")
                bar.advance(line)
            curves[rule] = {
                name: np.stack([getattr(part, name) for part in parts], 1)
                for name in a2c.Progress._fields
            }
            late = report.late(curves[rule]["episode_return"])
            test = np.asarray(a2c.evaluate(setting, agents, keys, 20)).mean(1)
            table.add_row(rule, _spread(late), f"{late.min():.1f}", _spread(test))
    report.draw(workdir / "curves.png", {task: curves}, {task: setting.steps})
    Console().print(table)
    print(f"n = {seeds} seeds, mean ± standard deviation; written to {workdir / 'curves.png'}")


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else 0:.1f}"


if __name__ == "__main__":
    tyro.cli(main)
