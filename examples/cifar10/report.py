"""What a person sees while a run goes on, and the files it leaves.

The machine's description and the writing of whole files are the example's own, though the
repository's tools have the same, so that the example can be copied without them.
"""

import json
import math
import os
import platform
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO

import jax
import matplotlib.figure
import numpy as np
import rich.console
import rich.progress
import rich.table
import scipy.special
from sklearn.metrics import ConfusionMatrixDisplay

from examples.cifar10 import devices
from examples.cifar10.configs import UserError
from examples.cifar10.data import Dataset
from examples.cifar10.train import Logs

console = rich.console.Console()


def say(line: str) -> None:
    """Print one plain line, in the first process."""
    if devices.first_process():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values."""
    if not devices.first_process():
        return
    shown = rich.table.Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        shown.add_row(name, str(value))
    console.print(shown, markup=False)


class Progress:
    """A bar for the run, on a terminal; a line for each epoch, everywhere."""

    def __init__(self, epochs: int, steps: int, batch_size: int):
        """Take the size of the run."""
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal or not devices.first_process(),
            transient=True,
        )
        self.task = self.bar.add_task("compiling", total=epochs * steps)

    def step(self, row: dict) -> None:
        """Show where the run is."""
        self.bar.update(
            self.task,
            completed=row["step"],
            description=f"epoch {math.ceil(row['epoch'])}/{self.epochs}  loss {row['loss']:.3f}  "
            f"accuracy {row['accuracy']:.1%}  {row['images_per_second']:,.0f} images/s",
        )

    def end(self, row: dict) -> None:
        """Print an epoch's line."""
        left = (self.epochs - row["epoch"]) * row["seconds"]
        say(
            f"epoch {row['epoch']:2}/{self.epochs}  loss {row['loss']:.3f}  "
            f"accuracy: train {row['train_accuracy']:.2%}, {row['split']} {row['accuracy']:.2%}  "
            f"{row['images_per_second']:,.0f} images/s  {left:,.0f} s left"
        )


def command(module: str, arguments: Sequence[str]) -> str:
    """Write a command line; of absolute paths, which say nothing to others, the last part."""
    shown = [Path(a).name if Path(a).is_absolute() else a for a in arguments]
    return f"    python -m {module} {shlex.join(shown)}"


def environment() -> dict[str, str]:
    """Tell what the numbers depend on besides the recipe."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def train_row(logs: Logs, done: int, steps: int, batch_size: int, seconds: float) -> dict:
    """Make the metrics of the steps of one call, of which the last was number `done`."""
    return {
        "kind": "train",
        "step": done,
        "epoch": done / steps,
        "loss": float(logs.loss.mean()),
        "accuracy": float(logs.accuracy.mean()),
        "learning_rate": float(logs.learning_rate[-1]),
        "seconds": seconds,
        "images_per_second": len(logs.loss) * batch_size / seconds,
    }


def epoch_row(rows: list[dict], accuracy: float) -> dict:
    """Make the metrics of the epoch that the last of the rows ends."""
    last = rows[-1]
    calls = [row for row in rows if row["kind"] == "train" and row["epoch"] > last["epoch"] - 1]

    def mean(name):
        return statistics.fmean(row[name] for row in calls)

    return {
        "kind": "epoch",
        "step": last["step"],
        "epoch": round(last["epoch"]),
        "loss": mean("loss"),
        "train_accuracy": mean("accuracy"),
        "accuracy": accuracy,
        "seconds": sum(row["seconds"] for row in calls),
        "images_per_second": 1 / statistics.fmean(1 / row["images_per_second"] for row in calls),
    }


def result_row(rows: list[dict], accuracy_tta: float) -> dict:
    """Make the metrics of the whole run."""
    epochs = [row for row in rows if row["kind"] == "epoch"]
    return {
        "kind": "result",
        "step": epochs[-1]["step"],
        "epoch": epochs[-1]["epoch"],
        "accuracy": epochs[-1]["accuracy"],
        "accuracy_tta": accuracy_tta,
        "accuracies": [row["accuracy"] for row in epochs],
        "seconds": sum(row["seconds"] for row in epochs),
    }


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Let `fill` write a file under a temporary name, then give it its own; once a run."""
    if not devices.first_process():
        return
    temporary = path.with_name(path.name + ".tmp")  # What a killed run left is written over.
    try:
        with temporary.open("wb") as file:
            fill(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write(path, lambda file: file.write(text.encode()))


def write_metrics(workdir: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line."""
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(workdir: Path) -> list[dict]:
    """Read what `write_metrics` wrote."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() or [b""]
    return [
        read_object(line, f"{path}, line {number}", ("kind", "step"))
        for number, line in enumerate(lines, 1)
    ]


def read_object(text: bytes, where: str, names: Iterable[str] = ()) -> dict:
    """Read a JSON object that has the names; an error says where it stands."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        if missing := [name for name in names if name not in value]:
            raise ValueError(f"it has no {', '.join(missing)}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    return value


def curves(path: Path, rows: list[dict], data: Dataset) -> None:
    """Draw loss, accuracy and learning rate over the epochs."""
    steps = [row for row in rows if row["kind"] == "train"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    figure = matplotlib.figure.Figure(figsize=(10, 3.2), layout="constrained")
    figure.suptitle(data.name)
    loss, accuracy, rate = figure.subplots(1, 3)
    x = [row["epoch"] for row in steps]
    loss.plot(x, [row["loss"] for row in steps])
    loss.set(xlabel="epoch", ylabel="training loss")
    accuracy.plot(x, [100 * row["accuracy"] for row in steps], label="train, augmented")
    split = epochs[-1]["split"]
    x_epochs = [row["epoch"] for row in epochs]
    accuracy.plot(x_epochs, [100 * row["accuracy"] for row in epochs], "o-", label=split)
    accuracy.set(xlabel="epoch", ylabel="accuracy, %")
    accuracy.legend()
    rate.plot(x, [row["learning_rate"] for row in steps])
    rate.set(xlabel="epoch", ylabel="learning rate")
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    save_picture(path, figure, data)


def confusion(path: Path, logits: np.ndarray, data: Dataset) -> None:
    """Draw how many images of every class were taken for which."""
    predicted = logits.argmax(-1)
    figure = matplotlib.figure.Figure(figsize=(6.4, 6), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        data.test_labels,
        predicted,
        labels=range(len(data.classes)),
        display_labels=data.classes,
        xticks_rotation="vertical",
        colorbar=False,
        cmap="Blues",
        ax=figure.subplots(),
    )
    right = (predicted == data.test_labels).mean()
    display.ax_.set_title(f"{data.name}, {data.split}: {right:.2%} right")
    save_picture(path, figure, data)


def worst(path: Path, logits: np.ndarray, data: Dataset, count: int = 40) -> None:
    """Draw the images with the highest loss, with their class and what they were taken for."""
    right = np.take_along_axis(logits, data.test_labels[:, None].astype(int), axis=-1)[:, 0]
    loss = scipy.special.logsumexp(logits, axis=-1) - right
    figure = matplotlib.figure.Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(f"{data.name}: the {data.split} images with the highest loss")
    grid = figure.subplots(5, count // 5)
    for axes, index in zip(grid.flat, np.argsort(-loss), strict=False):
        axes.imshow(data.test_images[index])
        truth, taken = data.test_labels[index], logits[index].argmax()
        axes.set_title(f"{data.classes[truth]}\n→ {data.classes[taken]}", fontsize=8)
    for axes in grid.flat:
        axes.set_axis_off()
    save_picture(path, figure, data)


def save_picture(path: Path, figure: matplotlib.figure.Figure, data: Dataset) -> None:
    """Write a PNG whole or not at all; a caption names the files that are not the official ones."""
    if data.unverified:
        figure.supxlabel(data.label, fontsize=8, color="gray")
    write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def sparkline(values: Sequence[float]) -> str:
    """Draw values from 0 to 1 as a line of text."""
    return "".join("▁▂▃▄▅▆▇█"[min(int(8 * value), 7)] for value in values)
