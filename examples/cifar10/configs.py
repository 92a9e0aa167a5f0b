"""The command line: what decides the numbers, what does not, and the presets.

This module must not import JAX, so that `--help` answers at once.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Arguments = tuple[tuple[str, bool | float], ...]


class UserError(Exception):
    """A mistake of the caller's: shown as one message, without a traceback."""


class DivergedError(Exception):
    """The loss is no longer a finite number."""


class InterruptedRun(Exception):
    """The run was told to stop, and is saved."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What maps images to logits."""

    network: Literal["airbench", "keras", "deepobs"] = "airbench"
    """Jordan's airbench, Keras's cifar10_cnn, or the 3c3d network of DeepOBS."""
    widths: tuple[int, int, int] = (32, 64, 64)
    """Channels of airbench's three groups of convolutions."""
    depth: int = 2
    """Convolutions of each of these groups: 2, or 3 with a residual connection."""
    whitening_bias_epochs: int = 0
    """Epochs in which airbench's first bias is trained. It is worth a tenth of a point, and on a
    CPU a sixth of the time."""
    norm_momentum: float = 0.8
    """What the running statistics of airbench's batch normalization keep at a step."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to images."""

    augmentation: Literal["airbench", "keras", "deepobs"] = "airbench"
    """Airbench's alternating flip and reflected translation, Keras's translation by fractions of
    a pixel, or the crops and colours of DeepOBS."""
    shift: int = 2
    """Airbench's largest translation, in pixels."""
    cutout: int = 0
    """Side of the square that airbench's blanks, in pixels."""
    image_sizes: tuple[int, ...] = (32,)
    """Progressive resizing: the side of the images, in pixels, in equal parts of the epochs."""


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How gradients become steps."""

    optimizer: Literal[
        "small", "airbench", "keras_cnn", "crowded_valley_tuned", "rmsprop",
        "chainer", "graves", "heavyball", "hinton", "keras", "keras2", "mindspore",
        "mxnet", "mxnet2", "paddle", "pfrl", "sonnet", "stable_baselines3", "tensorflow1",
        "tensorflowjs", "timm", "torch", "torchopt", "optax_rmsprop", "optax_sgd", "optax_adam",
    ] = "small"  # fmt: skip
    """A preset's, its rule with other numbers, any framework's RMSprop, or Optax's to compare: a
    function in optimizer.py."""
    arguments: Arguments = ()
    """Changes to the optimizer's arguments besides the learning rate: names and values in turn."""
    learning_rate: float = 0.015
    """Peak learning rate: the biases'. Filters and head follow it."""
    filters_scale: float = 1.2
    """A filter's learning rate is this / fan-in ** --fan-in-power times the biases'."""
    fan_in_power: float = 0.5
    """How fast the filters' learning rate falls with the number of their inputs."""
    head_scale: float = 0.1
    """The learning rate of fully connected layers is this times the biases'."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    warmup: float = 0.15
    """Fraction of the steps in which the learning rate rises, from a fifth of its peak."""
    final_scale: float = 0.02
    """Where the learning rate ends, as a fraction of its peak, unless constant."""
    weight_decay: float = 0.07
    """Decoupled weight decay of all but biases, times the learning rate."""
    l2: float = 0.0
    """Weight of half the sum of squares of all but biases in the loss."""
    label_smoothing: float = 0.2
    """Probability taken from the true class and spread over all."""
    storage: Literal["float32", "uint16", "uint8"] = "float32"
    """How the optimizer holds its second moment between steps, in leaves of 4,096 elements on."""
    momentum_storage: Literal["float32", "int16", "int8"] = "float32"
    """How the optimizer holds its momentum between steps, in leaves of 4,096 elements on."""
    lookahead: bool = False
    """Pull the parameters to their running average every five steps, as airbench does."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers; `--resume` insists on an equal one."""

    network: Network = Network()
    augmentation: Augmentation = Augmentation()
    optimization: Optimization = Optimization()
    seed: int = 0
    """Where every random number comes from."""
    epochs: int | None = None
    """Passes over the data; by default what suits the data set."""
    batch_size: int = 100
    """Images a step. On a CPU small batches are also the fastest."""
    train_images: int | None = None
    """Use only this many training images, the first ones."""
    no_tta: bool = False
    """Do not report the accuracy with test-time augmentation (TTA): six views of every image."""
    validation: bool = False
    """Hold out a tenth of the training images and report on them: for tuning."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a convolutional network with RMSprop, on CIFAR-10 where it can be had."""

    recipe: Recipe
    preset: Literal[
        "small", "airbench94", "airbench95", "airbench96", "keras-cnn",
        "crowded-valley", "crowded-valley-tuned", "crowded-valley-cosine",
    ] = "small"  # fmt: skip
    """Defaults of all that decides the numbers: small is for two CPU cores, airbench for a GPU."""
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
    """Continue from the newest whole checkpoint in --workdir."""
    seeds: int = 1
    """Train this many times, with seed, seed + 1, ..., and report mean and spread."""
    results: Path | None = None
    """With --seeds, where the table goes; by default results.md in the workdir."""
    devices: int | None = None
    """Devices that share every batch; by default one, or all of a distributed run."""
    shard_state: bool = False
    """Split parameters and optimizer state over the devices too (ZeRO-1)."""
    distributed: str | None = None
    """Several processes: HOST:PORT of the first, or "auto" on a cluster that JAX knows."""
    num_processes: int | None = None
    """How many processes --distributed has, unless the cluster tells."""
    process_id: int | None = None
    """Which of them this is, from 0, unless the cluster tells."""


# Jordan 2024, https://arxiv.org/abs/2404.00498, with RMSprop in place of SGD.
_AIRBENCH = Recipe(
    Network(widths=(64, 256, 256), whitening_bias_epochs=3, norm_momentum=0.6),
    Augmentation(),
    Optimization(
        "airbench",
        learning_rate=0.0075,
        warmup=0.23,
        final_scale=0.07,
        weight_decay=1.0,
        lookahead=True,
    ),
    epochs=12,
    batch_size=1000,
)

# Schmidt, Schneider, Hennig 2021, https://arxiv.org/abs/2007.01547: its logs' settings on
# the problem cifar10_3c3d of DeepOBS.
_CROWDED_VALLEY = Recipe(
    Network("deepobs"),
    Augmentation("deepobs"),
    Optimization(
        "tensorflow1",
        learning_rate=1e-3,
        filters_scale=1.0,
        fan_in_power=0.0,
        head_scale=1.0,
        schedule="constant",
        warmup=0.0,
        final_scale=0.0,
        weight_decay=0.0,
        l2=0.002,
        label_smoothing=0.0,
    ),
    epochs=100,
    batch_size=128,
    train_images=40_000,
    no_tta=True,
)


def _but(recipe: Recipe, part: str, /, **changes: Any) -> Recipe:
    """Replace fields of one part of a recipe."""
    return dataclasses.replace(
        recipe, **{part: dataclasses.replace(getattr(recipe, part), **changes)}
    )


_TUNED = _but(
    _CROWDED_VALLEY,
    "optimization",
    optimizer="crowded_valley_tuned",
    learning_rate=1.9870215e-4,
)

PRESETS = {
    # Chosen by experiments/tuning.py, in the repository.
    "small": Recipe(
        augmentation=Augmentation(image_sizes=(20, 20, 20, 24, 24, 24, 28, 28, 32, 32))
    ),
    "airbench94": _AIRBENCH,
    "airbench95": dataclasses.replace(
        _but(_AIRBENCH, "network", widths=(128, 384, 384)), epochs=18
    ),
    "airbench96": dataclasses.replace(
        _but(
            _but(_AIRBENCH, "network", widths=(128, 384, 512), depth=3, norm_momentum=0.9),
            "augmentation",
            shift=4,
            cutout=12,
        ),
        epochs=40,
    ),
    # keras-team/keras, examples/cifar10_cnn.py.
    "keras-cnn": Recipe(
        Network("keras"),
        Augmentation("keras"),
        dataclasses.replace(
            _CROWDED_VALLEY.optimization,
            optimizer="keras_cnn",
            learning_rate=1e-4,
            l2=0.0,
        ),
        epochs=25,
        batch_size=32,
        no_tta=True,
    ),
    "crowded-valley": _CROWDED_VALLEY,
    "crowded-valley-tuned": _TUNED,
    "crowded-valley-cosine": _but(_TUNED, "optimization", schedule="cosine"),
}


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; exit with code 2 and a message if it is wrong."""
    import tyro  # Only the command line needs it.

    # The preset decides the defaults that the parser shows, so it is read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="small")
    name = first.parse_known_args(arguments)[0].preset
    name = name if name in PRESETS else "small"  # The parser below refuses it.
    preset = PRESETS[name]
    options = tyro.cli(
        Options,
        args=arguments,
        default=Options(preset, preset=name),
        prog="python -m examples.cifar10.main",
        # A group's flags do not repeat its name.
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    check(options)
    return options


def check(options: Options) -> None:
    """Refuse values that cannot work, by name."""
    _check_counts(options)
    _check_numbers(options.recipe)
    _check_images(options.recipe)
    if options.resume and options.workdir is None:
        raise UserError("--resume needs the --workdir of the run to continue")
    if options.data_dir is not None and options.dataset not in ("auto", "cifar10"):
        raise UserError(f"--data-dir holds CIFAR-10, but --dataset is {options.dataset}")
    if options.distributed is None and (options.num_processes, options.process_id) != (None, None):
        raise UserError("--num-processes and --process-id need --distributed")
    if options.distributed is not None and options.workdir is None:
        raise UserError("--distributed needs a --workdir that all processes see")
    if options.results is not None:
        if options.seeds == 1:
            raise UserError("--results is the table over --seeds 2 or more")
        if not options.results.parent.is_dir():  # Told now, not after hours of training.
            raise UserError(f"--results {options.results}: its folder does not exist")


def _check_counts(options: Options) -> None:
    recipe, network = options.recipe, options.recipe.network
    for name, value, least, most in (
        ("seeds", options.seeds, 1, 2**32),
        ("seed", recipe.seed, 0, 2**32 - options.seeds),  # JAX's keys drop higher bits.
        ("batch-size", recipe.batch_size, 1, 2**31 - 1),
        ("epochs", recipe.epochs, 1, 2**31 - 1),
        ("train-images", recipe.train_images, 1, 2**31 - 1),
        ("widths", min(network.widths), 1, 4096),
        ("widths", max(network.widths), 1, 4096),
        ("whitening-bias-epochs", network.whitening_bias_epochs, 0, 2**31 - 1),
        ("devices", options.devices, 1, recipe.batch_size),
        ("num-processes", options.num_processes, 1, 2**31 - 1),
        ("process-id", options.process_id, 0, 2**31 - 1),
    ):
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
        if value is not None and value > most:
            raise UserError(f"--{name} must be at most {most}, got {value}")


def _check_numbers(recipe: Recipe) -> None:
    network, optimization = recipe.network, recipe.optimization
    for name, value in (
        ("warmup", optimization.warmup),
        ("label-smoothing", optimization.label_smoothing),
        ("norm-momentum", network.norm_momentum),
    ):
        if not 0 <= value < 1:
            raise UserError(f"--{name} must be at least 0 and less than 1, got {value}")
    for name, value in (
        ("learning-rate", optimization.learning_rate),
        ("filters-scale", optimization.filters_scale),
        ("fan-in-power", optimization.fan_in_power),
        ("head-scale", optimization.head_scale),
        ("final-scale", optimization.final_scale),
        ("weight-decay", optimization.weight_decay),
        ("l2", optimization.l2),
    ):
        if not 0 <= value < float("inf"):
            raise UserError(f"--{name} must be a finite number from 0 on, got {value}")


def _check_images(recipe: Recipe) -> None:
    network, augmentation = recipe.network, recipe.augmentation
    if network.depth not in (2, 3):
        raise UserError(f"--depth must be 2 or 3, got {network.depth}")
    if not 0 <= augmentation.shift <= 15:
        raise UserError(f"--shift must be between 0 and 15, got {augmentation.shift}")
    if not 0 <= augmentation.cutout <= 31:
        raise UserError(f"--cutout must be between 0 and 31, got {augmentation.cutout}")
    sizes = augmentation.image_sizes
    if not sizes or not all(16 <= size <= 32 for size in sizes):
        raise UserError(f"--image-sizes must be from 16 to 32, got {sizes}")
    if set(sizes) != {32} and network.network != "airbench":
        raise UserError("--image-sizes other than 32 needs --network airbench")
