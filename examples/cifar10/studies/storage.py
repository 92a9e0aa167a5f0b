"""The second moment in four, two and one byte a parameter: the same runs, the same data order."""

from collections.abc import Sequence
from pathlib import Path

from examples.cifar10.studies import common

# The trial of the tuning that the others there are compared with.
SHORT = ["--epochs", "3", "--sides", "20", "24", "32"]
TRIALS = {name: [*SHORT, "--storage", name] for name in ("float32", "uint16", "uint8")}


def study(results: Path, arguments: Sequence[str]) -> None:
    """Train with every format, and write `storage.md`."""
    metrics = common.run(TRIALS, arguments)
    module = "examples.cifar10.studies.storage"
    title = "The second moment in fewer bytes: three epochs of the preset small"
    lines = common.header(title, module, arguments, metrics)
    lines += [
        "| format | n | final training loss | accuracy, % | with six views, % |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, runs in metrics.items():
        ends = [common.result(rows) for rows in runs]
        loss = [[row["loss"] for row in rows if row["kind"] == "train"][-1] for rows in runs]
        accuracy = [[100 * end[key] for end in ends] for key in ("accuracy", "accuracy_views")]
        columns = [common.mean_and_spread(loss, 4), *map(common.mean_and_spread, accuracy)]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(columns)} |")
    common.write(results / "storage.md", lines)


if __name__ == "__main__":
    common.main(study)
