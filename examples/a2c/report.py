"""A figure of what several rules did with the same seeds."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.figure
import numpy as np

LABELS = {
    "episode_return": "return of an episode",
    "rate": "effective rate, η / (√ν and ε)",
    "update": "largest norm of an update",
}


def draw(
    path: Path,
    tasks: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    steps: Mapping[str, int],
) -> None:
    """Draw, for each task, the median of each rule's curves [seeds, parts], and where 90 % lie."""
    size = (4.2 * len(LABELS), 3.2 * len(tasks))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(tasks), len(LABELS), squeeze=False)
    for axes, (task, rules) in zip(rows, tasks.items(), strict=True):
        for ax, (name, label) in zip(axes, LABELS.items(), strict=True):
            for rule, curves in rules.items():
                values = np.asarray(curves[name], float)
                known = np.isfinite(values).any(0)  # In a part of a training, no episode may end.
                if not known.any():
                    continue
                low, middle, high = np.nanpercentile(values[:, known], [5, 50, 95], axis=0)
                x = np.linspace(0, steps[task], len(known) + 1)[1:][known]
                (line,) = ax.plot(x, middle, label=f"{rule} (n = {len(curves[name])})")
                ax.fill_between(x, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
            ax.set(title=task, xlabel="steps", ylabel=label)
            if name != "episode_return":
                ax.set_yscale("log")
            ax.grid(alpha=0.3)
        axes[-1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"new-{path.name}")
    figure.savefig(new, dpi=110)
    new.replace(path)


def late(returns: np.ndarray) -> np.ndarray:
    """Return each seed's mean of the last two parts, of [seeds, parts]."""
    return mean(returns[:, -2:])


def mean(returns: np.ndarray) -> np.ndarray:
    """Return each seed's mean, of [seeds, parts]; NaN for one without an episode's end."""
    return np.ma.masked_invalid(np.asarray(returns, float)).mean(axis=1).filled(np.nan)
