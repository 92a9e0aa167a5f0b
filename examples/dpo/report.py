"""A figure and the numbers of what several rules did with the same pairs."""

from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np

NAMES = {
    "adamw": "AdamW, all in float32",
    "rmsprop": "recipe, all in float32",
    "uint8": "recipe, bfloat16 and uint8",
    "nearest": "the same, rounded to nearest",
}


class Result(NamedTuple):
    """What a rule did."""

    parameters: int  # bytes
    state: int  # bytes of the optimizer
    curves: np.ndarray  # accuracy, KL and share of letters, [seeds, measurements, 3]


def spread(values: np.ndarray, digits: int) -> str:
    """Write a mean, with the standard deviation over the seeds if there is one."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def rows(results: dict[str, Result], count: int) -> list[list[str]]:
    """Return a row for each rule, after a heading; bytes are divided by the count of parameters."""
    found = [["rule", "weights", "state", "both", "accuracy, %", "KL", "letters, %"]]
    for name, (parameters, state, curves) in results.items():
        bytes_each = [f"{x / count:.2f}" for x in (parameters, state, parameters + state)]
        accuracy, kl, letters = curves[:, -1].T
        measured = spread(100 * accuracy, 1), spread(kl, 4), spread(100 * letters, 1)
        found.append([NAMES[name], *bytes_each, *measured])
    return found


def draw(path: Path, results: dict[str, Result], part: int) -> None:
    """Draw every seed: accuracy by updates, of which a measurement has `part`, letters by KL."""
    drawn = matplotlib.figure.Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for i, (name, result) in enumerate(results.items()):
        for accuracy, kl, letters in result.curves.transpose(0, 2, 1):
            look = {"color": f"C{i}", "alpha": 0.75, "label": NAMES[name], "lw": 1.2}
            left.plot(part * np.arange(len(accuracy)), 100 * accuracy, **look)
            right.plot(kl, 100 * letters, marker=".", **look)
    left.set(xlabel="update", ylabel="held-out pairs preferred as asked, %")
    right.set(xlabel="KL from the model before, nats a character", ylabel="lower-case letters, %")
    lines = {line.get_label(): line for line in left.get_lines()}
    drawn.legend(handles=[*lines.values()], loc="outside lower center", ncols=2, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"new-{path.name}")
    drawn.savefig(new, dpi=110)
    new.replace(path)
