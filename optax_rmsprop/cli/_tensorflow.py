"""TensorFlow: the checkpoints of versions 1 and 2, which TensorFlow itself reads."""

import dataclasses
import math
import os
import pathlib
import re
from typing import Any

import optax

from .. import interop
from ..interop import _checkpoints as checkpoints
from ..interop import _states as states
from ..interop import keras as keras_variables
from ..interop import tensorflow1 as tensorflow1_variables
from . import _guard as guard
from ._calls import Call
from ._guard import Refused
from ._saved import Convert, Group, Options, Saved, array

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SLOTS = "/.OPTIMIZER_SLOT/"
_SLOT = re.compile(
    r"/(Adam|RMSProp|Momentum|Adagrad|Adadelta|Ftrl|ExponentialMovingAverage)(_\d+)?$"
)


@dataclasses.dataclass
class TensorFlow(Saved):
    """A checkpoint of TensorFlow 1, by name, or of TensorFlow 2, by object."""

    variables: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    objects: bool = False
    which: str | None = None

    def state(self, like: Any, convert: Convert, options: Options) -> optax.OptState:
        """`like` with what the optimizer accumulated."""
        rate = options.settings.get("learning_rate")
        given: dict[str, Any] = {"count": options.count, "learning_rate": rate}
        if self.objects:
            return interop.from_keras(
                self.variables, like, convert, names=self.names, optimizer=self.which, **given
            )
        return interop.from_tensorflow1(self.variables, like, convert, slot=self.which, **given)


def prefix_of(path: pathlib.Path) -> pathlib.Path | None:
    """The prefix of a checkpoint's files, if it is one, or a folder with one, or its index."""
    if path.suffix == ".index" and path.is_file():
        return path.with_suffix("")
    if path.name and path.with_name(f"{path.name}.index").is_file():
        return path
    folder = path / "variables" if (path / "saved_model.pb").exists() else path
    found = sorted(folder.glob("*.index")) if folder.is_dir() else []
    if len(found) > 1:
        names = ", ".join(x.stem for x in found[:9])
        raise Refused(f"{path} has several checkpoints: give one of {names}")
    return found[0].with_suffix("") if found else None


def files_of(prefix: pathlib.Path) -> list[pathlib.Path]:
    """The files of a checkpoint."""
    parts = prefix.parent.glob(f"{glob_of(prefix.name)}.data-*-of-*")
    return [prefix.with_name(f"{prefix.name}.index"), *sorted(parts)]


def glob_of(name: str) -> str:
    """A name in which nothing stands for something else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def read(prefix: pathlib.Path, options: Options) -> TensorFlow:
    """A checkpoint by the prefix of its files."""
    sizes = [guard.regular_file(path).stat().st_size for path in files_of(prefix)]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with guard.silent():  # TensorFlow tells of the machine while it is imported.
        tf = guard.needed("tensorflow", f"{prefix}: a checkpoint of TensorFlow")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        dtypes = reader.get_variable_to_dtype_map()
        declared = sum(math.prod(shape) * dtypes[name].size for name, shape in shapes.items())
        guard.check_size(str(prefix), declared, sum(sizes))
        variables = {name: reader.get_tensor(name) for name in sorted(shapes)}
    except Refused:
        raise
    except Exception as error:  # TensorFlow's errors have classes of their own
        raise Refused(f"{prefix} is no whole checkpoint of TensorFlow: {error}") from error
    objects = checkpoints.is_checkpoint(variables)
    saved = TensorFlow(
        f"TensorFlow {2 if objects else 1} checkpoint",
        {},
        variables=variables,
        objects=objects,
        which=options.optimizer or None,
    )
    _describe(saved, prefix, options)
    return saved


def _describe(saved: TensorFlow, prefix: pathlib.Path, options: Options) -> None:
    try:
        found = _found(saved, options)
    except TypeError as error:
        saved.optimizer = f"no RMSprop ({error})"
        found = states.Variables({}, {}, [])
    except ValueError as error:
        message = str(error).replace("slot=", "--optimizer ").replace("optimizer=", "--optimizer ")
        raise Refused(f"{prefix}: {message}") from error
    saved.take(found)
    _read_weights(saved, found, prefix)
    saved.named = {*saved.names} <= saved.weights.keys()
    if not saved.names:
        return
    call = _call(saved, found)
    saved.settings = {k: v for k, v in call.arguments.items() if v is not ...}
    saved.may_be([[Group(call, saved.names)]], options)


def _found(saved: TensorFlow, options: Options) -> states.Variables:
    if not saved.objects:
        has = {"nu", "trace"} | ({"mu"} if options.settings.get("centered") else set[str]())
        return tensorflow1_variables.variables_of("inspect", saved.variables, has, saved.which)
    names = list(options.names) or None
    return keras_variables.variables_of("inspect", saved.variables, names, {"nu"}, saved.which)


def _call(saved: TensorFlow, found: states.Variables) -> Call:
    """What the checkpoint tells of the rule: of TensorFlow 1 nothing but whether it is centred."""
    has = {quantity for quantity, _ in found.roles.values()}
    unknown: Any = ...
    if not saved.objects:
        names = ("learning_rate", "decay", "momentum", "epsilon")
        return Call("tensorflow1", dict.fromkeys(names, unknown) | {"centered": "mu" in has})
    legacy = any(_SLOTS in str(key) for key in found.roles)
    arguments: dict[str, Any] = dict.fromkeys(("learning_rate", "rho", "momentum"), unknown)
    arguments |= {"epsilon": unknown, "centered": "mu" in has}
    if "step" not in has:
        arguments["momentum"] = 0.0
    for owner in _owners(found):
        for name in ("learning_rate", "rho", "momentum", "decay"):
            if (value := saved.variables.get(f"{owner}/{name}{_VALUE}")) is not None:
                arguments[name] = float(value)
    if (rate := found.scalar("learning_rate")) is not None:
        arguments["learning_rate"] = rate
    if not arguments.get("decay"):
        arguments.pop("decay", None)
    return Call("keras2" if legacy else "keras", arguments)


def _owners(found: states.Variables) -> set[str]:
    """The paths of the optimizer in a checkpoint of objects."""
    numbered = {key.partition("/_variables/")[0] for key in found.roles if "/_variables/" in key}
    slots = {key.partition(_SLOTS)[2].rpartition(_VALUE)[0] for key in found.roles}
    return numbered | {path.rpartition("/")[0] for path in slots} - {""}


def _read_weights(saved: TensorFlow, found: states.Variables, prefix: pathlib.Path) -> None:
    """The variables that are no optimizer's."""
    values = {name: x for name, x in saved.variables.items() if name not in found.roles}
    if not saved.objects:
        plain = {name: x for name, x in values.items() if not _SLOT.search(name)}
        plain.pop("global_step", None)
        saved.weights = {name: array(f"{prefix}: {name}", x) for name, x in plain.items()}
        return
    full = checkpoints.full_names("inspect", saved.variables.get(_GRAPH, b""))
    trained = {name.replace("/", "_"): name for name in saved.names}
    inside = (*(f"{owner}/" for owner in _owners(found)), "keras_api/", "save_counter/")
    for key, x in values.items():
        path = key.removesuffix(_VALUE)
        if path == key or path.startswith(inside) or _SLOTS in key or "/_variables/" in key:
            continue
        name = full.get(key, "").removesuffix(":0").replace("/", "_")
        name = path if path in saved.names else trained.pop(name, path)
        saved.weights[name] = array(f"{prefix}: {path}", x)
