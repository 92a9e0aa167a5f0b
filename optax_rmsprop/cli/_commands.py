"""The commands' arguments, and what each does."""

import importlib
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from . import _guard as guard
from . import _open as files
from . import _show as show
from ._calls import settings_of
from ._convert import Request, convert
from ._guard import Refused
from ._inspect import inspect
from ._saved import Options

Dialect = Literal[
    "", "torch", "timm", "stable_baselines3", "pfrl", "keras", "keras2", "tensorflow1"
]
Each = tyro.conf.UseAppendAction[tuple[str, ...]]
File = tyro.conf.Positional[pathlib.Path]
Set = Annotated[Each, tyro.conf.arg(name="set", metavar="NAME=VALUE")]


def run(arguments: Sequence[str]) -> int:
    """Parse the command line and run it."""
    commands = {
        "identify": _identify, "compare": _compare, "inspect": _inspect, "convert": _convert,
    }  # fmt: skip
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m optax_rmsprop",
            description="Which RMSprop is it; and a checkpoint carried to another framework.",
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2


def _identify(log: File, json: bool = False) -> int:
    """Name the rule of a recorded run. The exit status is 1 if none explains it.

    Args:
        log: A run that `optax_rmsprop.recording` wrote.
        json: Print JSON.
    """
    run = _recorded(log)
    report = _module("probe").identify_log(run.params, run.grads, run.learning_rates)
    show.as_json(report) if json else show.console().print(str(report))
    return 0 if report.calls else 1


def _compare(theirs: File, ours: File, json: bool = False) -> int:
    """Find where two recorded runs part, and why. The exit status is 1 if they do.

    Args:
        theirs: A run that `optax_rmsprop.recording` wrote.
        ours: Another.
        json: Print JSON.
    """
    found = _module("compare").runs(_recorded(theirs), _recorded(ours))
    show.as_json(found) if json else show.console().print(str(found))
    return 0 if found.first is None else 1


def _inspect(
    checkpoint: File,
    weights: pathlib.Path | None = None,
    dialect: Dialect = "",
    set_: Set = (),
    names: tuple[str, ...] = (),
    model: str = "",
    optimizer: str = "",
    json: bool = False,
) -> int:
    """Say which optimizer and which rule a checkpoint is of, and show its second moments.

    Args:
        checkpoint: A file of PyTorch, Stable-Baselines3, safetensors, Keras or tf.keras, a
            checkpoint of TensorFlow, or what `convert` wrote.
        weights: The file of the weights, if the checkpoint has the optimizer alone.
        dialect: Whose rule it is, where the file does not tell.
        set_: An argument of the call, in place of what the file holds. May be repeated.
        names: The parameters' names, in the optimizer's order, where the file has positions.
        model: Which weights, of several.
        optimizer: Which optimizer, of several.
        json: Print JSON.
    """
    options = Options(names, model, optimizer, dialect, settings_of(set_))
    with show.working(f"reading {checkpoint}"):
        saved = files.read(checkpoint, files.with_weights(options, weights))
    found = inspect(saved, checkpoint.name, show.track)
    show.as_json(found) if json else show.inspection(found)
    return 0


def _convert(
    checkpoint: File,
    to: pathlib.Path,
    target: pathlib.Path | None = None,
    like: pathlib.Path | None = None,
    rename: Annotated[Each, tyro.conf.arg(metavar="OLD=NEW")] = (),
    flattened: Annotated[Each, tyro.conf.arg(metavar="MODULE=C,H,W")] = (),
    weights: pathlib.Path | None = None,
    dialect: Dialect = "",
    set_: Set = (),
    names: tuple[str, ...] = (),
    model: str = "",
    optimizer: str = "",
    count: int | None = None,
    missing_ok: bool = False,
    force: bool = False,
    json: bool = False,
) -> int:
    """Carry weights and the optimizer's state to JAX, or back.

    Args:
        checkpoint: As for `inspect`; on the way back, an Orbax checkpoint or an `.npz`.
        to: A folder for Orbax, an `.npz`; on the way back, a name as that of `--like`.
        target: The tree of the parameters in JAX: an Orbax checkpoint, an `.npz`, or a shape file.
        like: On the way back, a checkpoint of the other framework, which the new one resembles.
        rename: The name in the checkpoint of a parameter or module, and that in JAX.
        flattened: The image that a linear layer takes, in PyTorch: channels, height, width.
        weights: The file of the weights, if the checkpoint has the optimizer alone.
        dialect: Whose rule it is, where the file does not tell.
        set_: An argument of the call, in place of what the file holds. May be repeated.
        names: The parameters' names, in the optimizer's order, where the file has positions.
        model: Which weights, of several.
        optimizer: Which optimizer, of several.
        count: The steps made, in place of the file's.
        missing_ok: Parameters that never had a gradient keep a new state.
        force: Overwrite what is there.
        json: Print the record of the conversion as JSON.
    """
    options = Options(names, model, optimizer, dialect, settings_of(set_), count, missing_ok)
    request = Request(checkpoint, to, target, like, rename, _images(flattened), force)
    with show.working(f"converting {checkpoint}"):
        record = convert(request, files.with_weights(options, weights))
    if json:
        show.as_json(record)
    else:
        for group in record["groups"]:
            show.console().print(group["call"])
        show.console().print(f"written: {to}")
    return 0


def _images(pairs: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of `--flattened MODULE=C,H,W`."""
    found = dict[str, tuple[int, ...]]()
    for pair in pairs:
        module, _, sizes = pair.partition("=")
        try:
            found[module] = tuple(map(int, sizes.split(",")))
        except ValueError as error:
            raise Refused(f"--flattened {pair}: expected MODULE=C,H,W") from error
        if math.prod(found[module]) <= 0:
            raise Refused(f"--flattened {pair}: expected sizes > 0")
    return found


def _recorded(path: pathlib.Path) -> Any:
    guard.npz(guard.regular_file(path))  # It is whole, and has no pickles.
    return _module("recording").Run.load(path)


def _module(name: str) -> Any:
    """A module of the package that this command alone needs."""
    return importlib.import_module(f"..{name}", __package__)
