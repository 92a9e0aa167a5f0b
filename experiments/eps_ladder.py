"""RMSprop contains SGD: with epsilon far above the mean squares, the root is a constant.

Inside the root, epsilon ends the step η·√(ε + v)·g/√(ν + ε), which is SGD's η·g for ε far above ν,
and a step of the same length for a coordinate whose ν is v. So each rung has the rate
η·√(ε + v) with one v for all, and differs from SGD only in how much it evens out the coordinates.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure

from experiments import common

SGD_RATE, TYPICAL_SQUARE = 0.2, 1e-6
EPSILONS = (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
SHORT = (
    "--epochs 1 --image-sizes 24 --weight-decay 0 --filters-scale 1 --fan-in-power 0 --head-scale 1"
).split()


def rung(eps: float) -> list[str]:
    """Return the flags of RMSprop with this epsilon."""
    rate = SGD_RATE * math.sqrt(eps + TYPICAL_SQUARE)
    return [
        *SHORT, "--optimizer", "rmsprop", "--learning-rate", f"{rate:.8g}",
        "--arguments", "decay", "0.98", "eps", f"{eps}", "momentum", "0.85", "nesterov", "True",
        "bias_correction", "True",
    ]  # fmt: skip


SGD = [*SHORT, "--optimizer", "optax_sgd", "--learning-rate", str(SGD_RATE)]
SGD += ["--arguments", "momentum", "0.85", "nesterov", "True"]
TRIALS = {"optax.sgd": SGD} | {f"eps = {eps:g}": rung(eps) for eps in EPSILONS}


def study(results: Path, arguments: Sequence[str]) -> None:
    """Run every rung, and write `eps_ladder.md` and `eps_ladder.png`."""
    metrics = common.run(TRIALS, arguments)
    lines = common.header("From SGD to RMSprop", "experiments.eps_ladder", arguments, metrics)
    sgd = metrics["optax.sgd"]
    lines += [
        "| optimizer | n | final training loss | accuracy, % | largest difference of the training "
        "loss from SGD's |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, runs in metrics.items():
        loss = common.mean_and_spread([_losses(rows)[-1] for rows in runs], 4)
        accuracy = common.mean_and_spread([100 * common.result(r)["accuracy"] for r in runs])
        apart = max(
            abs(a - b)
            for rows, reference in zip(runs, sgd, strict=True)
            for a, b in zip(_losses(rows), _losses(reference), strict=True)
        )
        lines.append(f"| {name} | {len(runs)} | {loss} | {accuracy} | {apart:.1e} |")
    common.write(results / "eps_ladder.md", lines)
    _plot(results / "eps_ladder.png", metrics)


def _losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows if row["kind"] == "train"]


def _plot(path: Path, metrics: common.Rows) -> None:
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    curves, ends = figure.subplots(1, 2)
    for name, runs in metrics.items():
        rows = [row for row in runs[0] if row["kind"] == "train"]
        style = "k--" if name == "optax.sgd" else "-"
        curves.plot([r["step"] for r in rows], [r["loss"] for r in rows], style, label=name)
    curves.set(xlabel="step", ylabel="training loss", title="one seed")
    curves.legend(fontsize=8)
    accuracy = {
        name: [100 * common.result(rows)["accuracy"] for rows in runs]
        for name, runs in metrics.items()
    }
    for values in zip(*(accuracy[f"eps = {eps:g}"] for eps in EPSILONS), strict=True):
        ends.semilogx(EPSILONS, values, "o", color="tab:blue", alpha=0.6)
    for value in accuracy["optax.sgd"]:
        ends.axhline(value, color="k", linestyle="--", linewidth=0.8)
    ends.invert_xaxis()
    ends.set(xlabel="epsilon", ylabel="accuracy, %", title="every seed; dashed: optax.sgd")
    for axes in (curves, ends):
        axes.grid(alpha=0.3)
    common.save_figure(path, figure)


if __name__ == "__main__":
    common.main(study)
