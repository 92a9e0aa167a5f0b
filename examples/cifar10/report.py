"""What a person sees while a run goes on, and the files it leaves."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import IO

import jax
import matplotlib.figure
import numpy as np
import rich.console
import rich.progress
import rich.table

from examples.cifar10.train import Logs

console = rich.console.Console()


def say(line: str) -> None:
    """Print one plain line."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values."""
    shown = rich.table.Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        shown.add_row(name, str(value))
    console.print(shown, markup=False)


class Progress:
    """A bar for the epoch that runs, on a terminal; a line for each epoch, everywhere."""

    def __init__(self, epochs: int, steps: int, batch_size: int):
        """Take the size of the run."""
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=epochs * steps)

    def start(self, epoch: int) -> None:
        """Begin an epoch."""
        self.epoch, self.began = epoch, time.perf_counter()
        self.bar.update(self.task, completed=epoch * self.steps)

    def step(self, step: np.ndarray, loss: np.ndarray, accuracy: np.ndarray) -> None:
        """Show where the epoch is; the device's program calls this while it runs."""
        speed = int(step) * self.batch_size / (time.perf_counter() - self.began)
        self.bar.update(
            self.task,
            completed=self.epoch * self.steps + int(step),
            description=f"epoch {self.epoch + 1}/{self.epochs}  loss {loss:.3f}  "
            f"accuracy {accuracy:.1%}  {speed:,.0f} images/s",
        )

    def end(self, row: dict) -> None:
        """Print an epoch's line."""
        left = (self.epochs - row["epoch"]) * row["seconds"]
        say(
            f"epoch {row['epoch']:2}/{self.epochs}  loss {row['loss']:.3f}  "
            f"accuracy: train {row['train_accuracy']:.2%}, {row['split']} {row['accuracy']:.2%}  "
            f"{row['images_per_second']:,.0f} images/s  {left:,.0f} s left"
        )


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


def epoch_rows(
    logs: Logs, epoch: int, accuracy: float, seconds: float, batch_size: int
) -> list[dict]:
    """Make the metrics of an epoch: means over at most 20 parts of it, then over all of it."""
    steps = len(logs.loss)
    parts = np.array_split(np.arange(steps), min(20, steps))
    rows = [
        {
            "kind": "train",
            "epoch": epoch + (int(part[-1]) + 1) / steps,
            "loss": float(logs.loss[part].mean()),
            "accuracy": float(logs.accuracy[part].mean()),
            "learning_rate": float(logs.learning_rate[part[-1]]),
        }
        for part in parts
    ]
    return [
        *rows,
        {
            "kind": "epoch",
            "epoch": epoch + 1,
            "loss": float(logs.loss.mean()),
            "train_accuracy": float(logs.accuracy.mean()),
            "accuracy": accuracy,
            "seconds": seconds,
            "images_per_second": steps * batch_size / seconds,
        },
    ]


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Let `fill` write a file under a temporary name, then give it its own."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)
    try:
        with file:
            fill(file)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except BaseException:
        os.unlink(file.name)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write(path, lambda file: file.write(text.encode()))


def write_metrics(workdir: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line."""
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(workdir: Path) -> list[dict]:
    """Read what `write_metrics` wrote."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def plot(path: Path, rows: list[dict], title: str) -> None:
    """Draw loss, accuracy and learning rate over the epochs."""
    steps = [row for row in rows if row["kind"] == "train"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    figure = matplotlib.figure.Figure(figsize=(10, 3.2), layout="constrained")
    figure.suptitle(title)
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
    rate.set(xlabel="epoch", ylabel="learning rate of the biases")
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    write(path, lambda file: figure.savefig(file, format="png", dpi=120))
