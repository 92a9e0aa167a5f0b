"""The commands' arguments, and what each does."""

import dataclasses
import importlib
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from . import _guard as guard
from . import _open as files
from . import _show as show
from ._bytes import account, mesh_of, params_of
from ._calls import FRAMEWORKS, settings_of
from ._convert import Request, convert
from ._guard import Refused
from ._inspect import inspect
from ._layouts import renaming
from ._saved import Options

arg = tyro.conf.arg
_DIALECTS = "|".join(FRAMEWORKS)
Dialect = Literal[
    "", "torch", "timm", "stable_baselines3", "pfrl", "keras", "keras2", "tensorflow1"
]
Dtype = Literal["", "float32", "bfloat16", "float16", "float64"]
_DTYPES = "float32|bfloat16|float16|float64"
Each = tyro.conf.UseAppendAction[tuple[str, ...]]
Rename = Annotated[Each, arg(metavar="OLD=NEW")]
File = Annotated[tyro.conf.Positional[pathlib.Path], arg(metavar="FILE")]
Named = Annotated[pathlib.Path | None, arg(metavar="FILE", help_behavior_hint="")]
Name = Annotated[str, arg(metavar="NAME", help_behavior_hint="")]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the file does not tell."""

    weights: Named = None
    """The file of the weights, if the checkpoint has the optimizer alone."""
    dialect: Annotated[Dialect, arg(metavar=_DIALECTS, help_behavior_hint="")] = ""
    """Whose rule it is."""
    set_: Annotated[Each, arg(name="set", metavar="NAME=VALUE")] = ()
    """An argument of the call, in place of what the file holds."""
    names: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """The parameters' names, in the optimizer's order, where the file has positions."""
    model: Name = ""
    """Which weights, of several."""
    optimizer: Name = ""
    """Which optimizer, of several."""

    def options(self, count: int | None = None, missing_ok: bool = False) -> Options:
        """The same, with the weights read."""
        settings = settings_of(self.set_)
        options = Options(
            self.names, self.model, self.optimizer, self.dialect, settings, count, missing_ok
        )
        return files.with_weights(options, self.weights)


def run(arguments: Sequence[str]) -> int:
    """Parse the command line and run it."""
    commands = {
        "identify": _identify, "compare": _compare, "inspect": _inspect, "convert": _convert,
        "bytes": _bytes,
    }  # fmt: skip
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m optax_rmsprop",
            description="Which RMSprop is it; a checkpoint carried elsewhere; where bytes go.",
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2


def _identify(log: File, json: bool = False) -> int:
    """Name the rule of a recorded run. The exit status is 1 if none explains it.

    Args:
        log: A run that `optax_rmsprop.recording` wrote, with the first step; steps after a gap are
            not used.
        json: Print JSON.
    """
    run = _recorded(log)
    if run.steps[0] != 0:
        raise Refused(
            f"{log} must have the first step, 0, as the state of an optimizer is known there "
            f"alone; its first is {run.steps[0]}"
        )
    # Up to the first gap.
    n = sum(step == i for i, step in enumerate(run.steps))
    params = {path: x[: n + 1] for path, x in run.params.items()}
    grads = {path: x[:n] for path, x in run.grads.items()}
    rates = None if run.learning_rates is None else run.learning_rates[:n]
    report = _module("probe").identify_log(params, grads, rates)
    show.as_json(report) if json else show.text(report)
    return 0 if report.calls else 1


def _compare(
    theirs: Annotated[File, arg(metavar="THEIRS")],
    ours: Annotated[File, arg(metavar="OURS")],
    rename: Rename = (),
    json: bool = False,
) -> int:
    """Find where two recorded runs part, and why. The exit status is 1 if they do.

    Args:
        theirs: A run that `optax_rmsprop.recording` wrote.
        ours: Another.
        rename: The name in theirs of a parameter or module, and that in ours.
        json: Print JSON.
    """
    runs = _recorded(theirs), _recorded(ours)
    found = _module("compare").runs(*runs, renaming(runs[0].params, rename))
    show.as_json(found) if json else show.text(found)
    return 0 if found.first is None else 1


def _inspect(checkpoint: File, reading: Reading = Reading(), json: bool = False) -> int:
    """Say which optimizer and which rule a checkpoint is of, and show its second moments.

    Args:
        checkpoint: Of any framework, or of Orbax, or what `convert` wrote.
        reading: What the file does not tell.
        json: Print JSON.
    """
    with show.working(f"reading {checkpoint}"):
        saved = files.read(checkpoint, reading.options())
    found = inspect(saved, checkpoint.name, show.track)
    show.as_json(found) if json else show.inspection(found)
    return 0


def _convert(
    checkpoint: File,
    to: Annotated[pathlib.Path, arg(metavar="NEW")],
    target: Named = None,
    like: Named = None,
    rename: Rename = (),
    flattened: Annotated[Each, arg(metavar="MODULE=C,H,W")] = (),
    reading: Reading = Reading(),
    count: Annotated[int | None, arg(metavar="STEPS", help_behavior_hint="")] = None,
    missing_ok: bool = False,
    force: bool = False,
    json: bool = False,
) -> int:
    """Carry weights and the optimizer's state to JAX, or back.

    Args:
        checkpoint: As for `inspect`; on the way back, an Orbax checkpoint or an `.npz`.
        to: A folder for Orbax, or an `.npz`; on the way back, a name that ends as that of `--like`.
        target: The tree of the parameters in JAX: an Orbax checkpoint, an `.npz`, or a shape file.
        like: On the way back, a checkpoint of the other framework, which the new one resembles.
        rename: The name in the checkpoint of a parameter or module, and that in JAX.
        flattened: The image that a linear layer takes, in PyTorch: channels, height, width.
        reading: What the file does not tell.
        count: The steps made, in place of the file's.
        missing_ok: Parameters that never had a gradient keep a new state.
        force: Overwrite what is there.
        json: Print the record of the conversion as JSON.
    """
    request = Request(checkpoint, to, target, like, rename, _images(flattened), force)
    with show.working(f"converting {checkpoint}"):
        record = convert(request, reading.options(count, missing_ok))
    if json:
        show.as_json(record)
    else:
        left_out = ", ".join(record.get("left_out", ()))
        show.text("\n".join(group["call"] for group in record["groups"]))
        show.text(f"left out: {left_out}" if left_out else "")
        show.text(f"written: {to}")
    return 0


def _bytes(
    model: Annotated[tyro.conf.Positional[str], arg(metavar="MODEL")],
    devices: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    mesh: Annotated[str, arg(metavar="NAME=SIZE,...", help_behavior_hint="")] = "",
    params_dtype: Annotated[Dtype, arg(metavar=_DTYPES, help_behavior_hint="")] = "",
    memory: Annotated[tuple[float, ...], arg(metavar="GB ...")] = (16, 24, 80),
    json: bool = False,
) -> int:
    """Say where the bytes of training go, for each format of the state, and what is left.

    Args:
        model: llama-2-7b, vit-h-14 or resnet-50; or the tree of the parameters, as for `--target`.
        devices: How many split the first dimension of each parameter that this divides.
        mesh: In place of `--devices`, axes that each split another dimension of a parameter.
        params_dtype: Of parameters and gradients, in place of that of the tree.
        memory: Of a device.
        json: Print JSON.
    """
    with show.working(f"counting the bytes of {model}"):
        found = account(model, params_of(model, params_dtype), mesh_of(devices, mesh), memory)
    show.as_json(found) if json else show.account(found)
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
