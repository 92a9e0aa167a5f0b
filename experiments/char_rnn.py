"""The recipe of char-rnn beside Adam: `python -m experiments.char_rnn`.

A trial that is finished in `--workdir` is not trained again, and one that was stopped goes on.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np

from examples.char_rnn import char_rnn, text
from examples.cifar10.configs import UserError
from examples.cifar10.main import exit_code
from experiments import common
from tools import environment

RULES = {
    "`recipes.char_rnn()`": ("char_rnn", 2e-3),
    "Adam, the recipe's rates": ("adam", 2e-3),
    "Adam, 2.5 times the rates": ("adam", 5e-3),
}
Curves = dict[str, np.ndarray]  # of every rule: bits per character held out, [seeds, epochs]


def trial(options: char_rnn.Options, learnt: str) -> list[float]:
    """Train what is missing; return the bits per character held out after each epoch."""
    began, log = time.process_time(), []
    for _, _, log in char_rnn.train(options, learnt):
        print(f"{options.workdir.name}, epoch {len(log)}: {log[-1].held_out:.3f}", flush=True)
    print(f"{options.workdir.name}: {time.process_time() - began:.0f} s of a core", flush=True)
    return [row.held_out for row in log[: options.epochs]]


def table(curves: Curves) -> list[str]:
    """Return the lines of the table."""
    reference = next(iter(curves.values()))
    epochs = reference.shape[1]
    lines = [
        f"| optimizer | n | after epoch {max(epochs // 2, 1)} | after epoch {epochs} | difference |"
    ]
    lines += ["|---|--:|--:|--:|--:|"]
    for rule, curve in curves.items():
        half, last = curve[:, max(epochs // 2, 1) - 1], curve[:, -1]
        difference = last - reference[:, -1]
        shown = common.mean_and_spread([*difference], 3) if curve is not reference else "–"
        means = (common.mean_and_spread([*values], 3) for values in (half, last))
        lines.append(f"| {rule} | {len(last)} | {' | '.join(means)} | {shown} |")
    return lines


def figure(curves: Curves) -> matplotlib.figure.Figure:
    """Draw a line for each seed."""
    drawn = matplotlib.figure.Figure(figsize=(6, 3.6), layout="constrained")
    axes = drawn.subplots()
    for i, (rule, curve) in enumerate(curves.items()):
        for row in curve:
            axes.plot(np.arange(len(row)) + 1, row, f"C{i}", alpha=0.7, label=rule.strip("`"))
    lines = {line.get_label(): line for line in axes.get_lines()}
    axes.legend(handles=[*lines.values()])
    axes.set(xlabel="epoch", ylabel="bits per character, held out")
    axes.grid(alpha=0.3)
    return drawn


def study(
    results: Path, workdir: Path, seeds: int, epochs: int, arguments: Sequence[str] = ()
) -> None:
    """Train what is missing, and write `char_rnn.md` and `char_rnn.png`."""
    learnt, curves = text.read(None), {}
    for rule, (optimizer, rate) in RULES.items():
        runs = [
            char_rnn.Options(
                optimizer=optimizer, learning_rate=rate, seed=seed, epochs=epochs,
                workdir=workdir / f"{optimizer}-{rate:g}-{seed}",
            )
            for seed in range(seeds)
        ]  # fmt: skip
        curves[rule] = np.array([trial(options, learnt) for options in runs])
    python = ".".join(map(str, sys.version_info[:3]))
    lines = environment.heading(
        "A character model: the recipe and Adam", "experiments.char_rnn", arguments,
        text=f"the documentation in Python {python}, {len(learnt):,} characters, "
        f"{len({*learnt})} different",
        network=f"{runs[0].layers} layer of {runs[0].units} LSTM units, {runs[0].batch} streams, "
        f"{runs[0].length} characters an update",
        n=f"{seeds} seeds of the first weights, mean ± standard deviation; differences are of the "
        "same seed",
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    lines += [
        "Bits per character of the twentieth of the text that is held out.",
        "",
        *table(curves),
    ]
    results.mkdir(parents=True, exist_ok=True)
    environment.write_text(results / "char_rnn.md", "\n".join(lines) + "\n")
    with environment.replacing(results / "char_rnn.png") as new:
        figure(curves).savefig(new, dpi=120)


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.char_rnn", description=__doc__)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the files")
    parser.add_argument("--workdir", type=Path, default=Path("runs/char_rnn-study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=char_rnn.Options.epochs)
    options = parser.parse_args(arguments)

    def work() -> None:
        for name in ("seeds", "epochs"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
        study(options.results, options.workdir, options.seeds, options.epochs, arguments)

    sys.exit(exit_code(work))


if __name__ == "__main__":
    main(sys.argv[1:])
