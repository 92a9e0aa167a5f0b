"""How the preset "small" was chosen: on a tenth of the training images, held out."""

from collections.abc import Sequence
from pathlib import Path

from examples.cifar10.studies import common

FAST = ["--sides", *"20 20 20 24 24 24 28 28 32 32".split()]

TRIALS = {
    "6 epochs, full size": ["--epochs", "6"],
    "10 epochs, growing from 20 to 32 pixels": ["--epochs", "10", *FAST],
    "the same, learning rate 0.01": ["--epochs", "10", *FAST, "--learning-rate", "0.01"],
    "the same, learning rate 0.022": ["--epochs", "10", *FAST, "--learning-rate", "0.022"],
    "the same, lookahead": ["--epochs", "10", *FAST, "--lookahead"],
}


def study(results: Path, arguments: Sequence[str]) -> None:
    """Run every trial and write `tuning.md`."""
    metrics = common.run(TRIALS, ["--validation", *arguments])
    module = "examples.cifar10.studies.tuning"
    lines = common.header("Choosing the preset", module, arguments, metrics)
    lines += [
        "| trial | n | accuracy, % | with six views, % | training, s |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, runs in metrics.items():
        ends = [common.result(rows) for rows in runs]
        columns = [
            [100 * r["accuracy"] for r in ends],
            [100 * r["accuracy_views"] for r in ends],
            [r["seconds"] for r in ends],
        ]
        values = " | ".join(map(common.mean_and_spread, columns))
        lines.append(f"| {name} | {len(ends)} | {values} |")
    common.write(results / "tuning.md", lines)


if __name__ == "__main__":
    common.main(study)
