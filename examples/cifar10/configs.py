"""The command line: what decides the numbers, what does not, and the presets.

This module must not import JAX, so that `--help` answers at once.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro


class UserError(Exception):
    """A mistake of the caller's: shown as one message, without a traceback."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers; `--resume` insists on an equal one."""

    seed: int = 0
    """Where every random number comes from."""
    epochs: int | None = None
    """Passes over the data; by default what suits the data set."""
    batch_size: int = 100
    """Images a step. On a CPU small batches are also the fastest."""
    widths: tuple[int, int, int] = (32, 64, 64)
    """Channels of the three groups of convolutions."""
    learning_rate: float = 0.015
    """Peak learning rate of the biases; filters and head follow it."""
    filters_scale: float = 1.2
    """A filter's learning rate is this / sqrt(fan-in) times the biases'."""
    head_scale: float = 0.1
    """The head's learning rate is this times the biases'."""
    warmup: float = 0.15
    """Fraction of the steps in which the learning rate rises, from a fifth of its peak."""
    final_scale: float = 0.02
    """Where the learning rate ends, as a fraction of its peak."""
    decay: float = 0.98
    """RMSprop's decay of the mean square."""
    eps: float = 1e-8
    """RMSprop's epsilon, inside the root."""
    momentum: float = 0.85
    """Nesterov momentum, taken before the learning rate."""
    weight_decay: float = 0.07
    """Decoupled weight decay of filters and head, times the learning rate."""
    label_smoothing: float = 0.2
    """Probability taken from the true class and spread over all."""
    shift: int = 2
    """Largest random translation, in pixels."""
    validation: bool = False
    """Hold out a tenth of the training images and report on them: for tuning."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a small convolutional network with RMSprop, on CIFAR-10 where it can be had."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    preset: Literal["standard", "wide"] = "standard"
    """Defaults of everything below: "standard" is for two CPU cores, "wide" for a GPU."""
    dataset: Literal["auto", "cifar10", "digits", "synthetic"] = "auto"
    """"auto" is CIFAR-10, or scikit-learn's handwritten digits where no network answers."""
    data_dir: Path | None = None
    """A folder with the unpacked binary CIFAR-10 (data_batch_1.bin ... test_batch.bin)."""
    accept_unverified: bool = False
    """Use files of --data-dir that are not the official ones; every result says so."""
    mirrors: tuple[str, ...] = ()
    """Addresses of cifar-10-binary.tar.gz to try before the official one."""
    offline: bool = False
    """Do not use the network."""
    workdir: Path | None = None
    """Where results go; by default a new folder in runs/, named after the time."""
    resume: bool = False
    """Continue from the latest checkpoint in --workdir."""
    seeds: int = 1
    """Train this many times, with seed, seed + 1, ..., and report mean and spread."""
    results: Path | None = None
    """With --seeds, where the table goes; by default results.md in the workdir."""


PRESETS = {
    "standard": Options(Recipe()),
    # airbench94's widths and batch (Jordan 2024, https://arxiv.org/abs/2404.00498).
    "wide": Options(
        Recipe(epochs=12, batch_size=1000, widths=(64, 256, 256), decay=0.95, weight_decay=0.5),
        preset="wide",
    ),
}


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; exit with code 2 and a message if it is wrong."""
    # The preset decides the defaults that the parser shows, so it is read first.
    preset = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset.add_argument("--preset", default="standard")
    name = preset.parse_known_args(arguments)[0].preset
    options = tyro.cli(
        Options,
        args=arguments,
        default=PRESETS.get(name, PRESETS["standard"]),
        prog="python -m examples.cifar10.main",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check(options)
    return options


def check(options: Options) -> None:
    """Refuse values that cannot work, by name."""
    recipe = options.recipe
    for name, value in (
        ("seeds", options.seeds),
        ("batch-size", recipe.batch_size),
        ("epochs", 1 if recipe.epochs is None else recipe.epochs),
        ("widths", min(recipe.widths)),
    ):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    for name, value in (
        ("warmup", recipe.warmup),
        ("decay", recipe.decay),
        ("momentum", recipe.momentum),
        ("label-smoothing", recipe.label_smoothing),
    ):
        if not 0 <= value < 1:
            raise UserError(f"--{name} must be at least 0 and less than 1, got {value}")
    if options.resume and options.workdir is None:
        raise UserError("--resume needs the --workdir of the run to continue")
    if options.data_dir is not None and options.dataset not in ("auto", "cifar10"):
        raise UserError(f"--data-dir holds CIFAR-10, but --dataset is {options.dataset}")
    if options.results is not None:
        if options.seeds == 1:
            raise UserError("--results is the table over --seeds 2 or more")
        if not options.results.parent.is_dir():  # Told now, not after hours of training.
            raise UserError(f"--results {options.results}: its folder does not exist")
    if not 0 <= recipe.shift <= 15:
        raise UserError(f"--shift must be between 0 and 15, got {recipe.shift}")
