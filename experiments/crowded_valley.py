"""The first epochs of Crowded Valley's RMSprop beside the published logs.

Schmidt, Schneider, Hennig, "Descending through a Crowded Valley", ICML 2021,
https://arxiv.org/abs/2007.01547. The raw logs are in SirRob1997/Crowded-Valley---Results on
GitHub: results/oneshot/none for the default setting, results/large_budget/none for the tuned one.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure

from experiments import common

# Test accuracy in % after epochs 1 to 10, by the log's seed.
PUBLISHED = {
    "crowded-valley": {
        43: (43.3, 56.6, 62.4, 66.5, 67.5, 66.0, 69.2, 68.7, 71.3, 69.2),
    },
    "crowded-valley-tuned": {
        42: (39.5, 45.9, 51.4, 56.8, 61.3, 64.9, 67.6, 67.9, 68.3, 69.8),
        43: (40.5, 47.1, 54.3, 57.7, 58.5, 62.4, 65.6, 66.5, 68.1, 68.0),
    },
}
TRIALS = {name: ["--preset", name, "--epochs", "10"] for name in PUBLISHED}


def study(results: Path, arguments: Sequence[str]) -> None:
    """Train ten epochs with each setting, and write `crowded_valley.md` and a picture."""
    metrics = common.run(TRIALS, arguments)
    lines = common.header(
        "Crowded Valley's RMSprop on cifar10_3c3d: test accuracy in %",
        "experiments.crowded_valley",
        arguments,
        metrics,
    )
    epochs = len(_accuracies(metrics["crowded-valley"][0]))
    lines += [
        f"| run | seed | {' | '.join(str(epoch) for epoch in range(1, epochs + 1))} | mean of the "
        "last three |",
        "|---" * 2 + "|--:" * (epochs + 1) + "|",
    ]
    for name, runs in metrics.items():
        for seed, values in PUBLISHED[name].items():
            lines.append(_line(f"{name}, published", seed, values[:epochs]))
        for rows in runs:
            lines.append(_line(f"{name}, here", common.result(rows)["seed"], _accuracies(rows)))
    common.write(results / "crowded_valley.md", lines)
    _plot(results / "crowded_valley.png", metrics)


def _accuracies(rows: list[dict]) -> list[float]:
    return [100 * row["accuracy"] for row in rows if row["kind"] == "epoch"]


def _line(name: str, seed: int, values: Sequence[float]) -> str:
    numbers = " | ".join(f"{value:.1f}" for value in (*values, statistics.fmean(values[-3:])))
    return f"| {name} | {seed} | {numbers} |"


def _plot(path: Path, metrics: common.Rows) -> None:
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (name, runs) in zip(figure.subplots(1, 2, sharey=True), metrics.items(), strict=True):
        for seed, values in PUBLISHED[name].items():
            axes.plot(range(1, len(values) + 1), values, "k--", label=f"published, seed {seed}")
        for rows in runs:
            values = _accuracies(rows)
            seed = common.result(rows)["seed"]
            axes.plot(range(1, len(values) + 1), values, "o-", label=f"here, seed {seed}")
        axes.set(xlabel="epoch", ylabel="test accuracy, %", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    common.save_figure(path, figure)


if __name__ == "__main__":
    common.main(study)
