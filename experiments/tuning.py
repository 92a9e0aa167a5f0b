"""How the preset "small" was chosen: on a tenth of the training images, held out."""

from collections.abc import Sequence
from pathlib import Path

from experiments import common

GROWING = ["--epochs", "10", "--image-sizes", *"20 20 20 24 24 24 28 28 32 32".split()]
LONG = [
    "--epochs",
    "17",
    "--image-sizes",
    *"16 16 16 16 16 16 16 16 20 20 20 20 24 24 28 28 32".split(),
]
SHORT = ["--epochs", "3", "--image-sizes", "20", "24", "32"]

TRIALS = {
    "6 epochs, full size": ["--epochs", "6", "--image-sizes", "32"],
    "10 epochs, growing from 20 to 32 pixels": GROWING,
    "the same, learning rate 0.01": [*GROWING, "--learning-rate", "0.01"],
    "17 epochs, growing from 16 to 32 pixels": LONG,
    "3 epochs, of 20, 24, 32 pixels": SHORT,
    "3 epochs, learning rate 0.03": [*SHORT, "--learning-rate", "0.03"],
    "3 epochs, lookahead": [*SHORT, "--lookahead"],
    "3 epochs, label smoothing 0.1": [*SHORT, "--label-smoothing", "0.1"],
    "3 epochs, weight decay 0.2": [*SHORT, "--weight-decay", "0.2"],
    "3 epochs, batch 50, learning rate 0.01": [
        *SHORT, "--batch-size", "50", "--learning-rate", "0.01",
    ],
    "3 epochs, widths 24, 64, 96": [*SHORT, "--widths", "24", "64", "96"],
    "3 epochs, widths 24, 64, 128": [*SHORT, "--widths", "24", "64", "128"],
    "3 epochs, head scale 0.3": [*SHORT, "--head-scale", "0.3"],
    "3 epochs, filters scale 2": [*SHORT, "--filters-scale", "2"],
}  # fmt: skip


def study(results: Path, arguments: Sequence[str]) -> None:
    """Run every trial and write `tuning.md`."""
    metrics = common.run(TRIALS, ["--validation", *arguments])
    module = "experiments.tuning"
    lines = common.header("Choosing the preset", module, arguments, metrics)
    lines += [
        "| trial | n | accuracy, % | with TTA, % |",
        "|---|--:|--:|--:|",
    ]
    for name, runs in metrics.items():
        ends = [common.result(rows) for rows in runs]
        columns = [
            [100 * r["accuracy"] for r in ends],
            [100 * r["accuracy_tta"] for r in ends],
        ]
        values = " | ".join(map(common.mean_and_spread, columns))
        lines.append(f"| {name} | {len(ends)} | {values} |")
    common.write(results / "tuning.md", lines)


if __name__ == "__main__":
    common.main(study)
