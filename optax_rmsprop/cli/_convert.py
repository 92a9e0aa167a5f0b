"""A checkpoint as trees for JAX, and trees as a checkpoint of another framework."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import numpy as np
import optax

from ..interop._arrays import Partial, leaves_with_paths
from . import _guard as guard
from . import _layouts as layouts
from . import _open as files
from . import _ours as ours
from . import _provenance as provenance
from ._guard import Refused
from ._layouts import Layout, Target
from ._ours import Ours
from ._saved import Array, Group, New, Options, Saved
from ._torch import Torch

_FLAGS = {
    "missing_ok=True": "--missing-ok",
    "learning_rate=": "--set learning_rate=",
    "count=": "--count STEPS",
    "names=": "--names ",
    "give names,": "give --names,",
    "optimizer=": "--optimizer ",
    "slot=": "--optimizer ",
    "what `like` has": "a new state",
}
FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is converted, and to what."""

    source: pathlib.Path
    to: pathlib.Path
    target: pathlib.Path | None
    like: pathlib.Path | None
    rename: tuple[str, ...]
    flattened: Mapping[str, tuple[int, ...]]
    force: bool


def convert(request: Request, options: Options) -> dict[str, Any]:
    """Convert, and return the record of it."""
    to, like = request.to, request.like
    if like is None and to.suffix not in files.FOREIGN:
        replaceable = ours.is_converted(to) if to.is_dir() else to.suffix == ".npz"
        output = guard.written(to, request.force, replaceable)
        saved = files.read(request.source, options)
        with output as new:
            return _run(_to_ours, saved, new, request, options)
    if like is not None and like.suffix != to.suffix:
        raise Refused(f"--to {to.name} must end as the name of --like does, {like.name}")
    if request.target is not None:
        raise Refused("--target is for the way to JAX, and --like for the way back")
    output = guard.written(to, request.force, not to.is_dir())
    beside = guard.written(provenance.beside(to), request.force)
    saved = files.read(request.source, options)
    with beside as new_record, output as new:
        record = _run(_to_theirs, saved, new, request, options)
        record["written"] = guard.digests({to.name: new})
        new_record.write_text(provenance.text(record), encoding="utf-8")
    return record


def _run(
    work: Any, saved: Saved, new: pathlib.Path, request: Request, options: Options
) -> dict[str, Any]:
    """Write, with 64 bits if the source has numbers of them."""
    with jax.enable_x64(any(x.dtype in (np.float64, np.complex128) for x in _all(saved))):
        try:
            return work(saved, new, request, options)
        except (ValueError, TypeError) as error:
            raise Refused(_in_flags(str(error))) from error


def _all(saved: Saved) -> Iterable[Array]:
    yield from saved.weights.values()
    for arrays in saved.moments.values():
        yield from arrays.values()


def _in_flags(message: str) -> str:
    """A message about arguments as one about flags."""
    for argument, flag in _FLAGS.items():
        message = re.sub(rf"(?<!--set ){re.escape(argument)}", flag, message)
    return message


def _to_ours(saved: Saved, new: pathlib.Path, request: Request, options: Options) -> dict[str, Any]:
    if isinstance(saved, Ours):
        raise Refused(
            f"{request.source} is of a run in JAX: give --like, a checkpoint of the other "
            "framework, and --to a name that ends as its name"
        )
    target = None if request.target is None else layouts.target_of(request.target)
    has_state = bool(saved.optimizer)
    groups = saved.groups() if has_state else []
    if has_state and saved.weights and not saved.named:
        raise Refused(
            "nothing tells the names of the optimizer's parameters: give --names, in the order of "
            "its groups"
        )
    names = layouts.renaming([*saved.weights, *saved.names], request.rename)
    arrays = _parameters(saved)
    wanted = target and target.params
    strict = _layout(saved, wanted, names, request.flattened, subset=False)
    loose = _layout(saved, wanted, names, request.flattened, subset=True)
    trees, labels = dict[str, Any](), dict[str, str]()
    if target is not None and saved.weights:
        params = layouts.cast_like(loose.to_tree(saved.weights), target.params)
    else:
        params = strict.to_tree(arrays)
    left_out = {*saved.weights}
    if saved.weights:
        trees, used = _others(saved, target, names, arrays)
        trees["params"] = params
        left_out -= used | {*loose.to_names(params)}
    if has_state:
        transformation, labels = _made(groups, strict, params, arrays)
        like = transformation.init(params)
        trees["opt_state"] = saved.state(like, strict.to_tree, options)
    record = provenance.record(
        saved,
        groups,
        labels,
        files.parts(request.source),
        {old: after for old, after in names.items() if old != after},
    )
    record["left_out"] = sorted(left_out)
    ours.write(new, trees, record)
    return record


def _parameters(saved: Saved) -> dict[str, Array]:
    """The optimizer's parameters; their second moments, where there are no weights."""
    if not saved.names:
        return saved.weights
    if saved.weights:
        if missing := [name for name in saved.names if name not in saved.weights]:
            raise Refused(f"the weights have no {missing[0]!r}, which the optimizer has")
        return {name: saved.weights[name] for name in saved.names}
    if missing := [name for name in saved.names if "nu" not in saved.moments.get(name, {})]:
        raise Refused(f"{missing[0]} has no second moment and no weights: give --weights")
    return {name: saved.moments[name]["nu"] for name in saved.names}


def _layout(
    saved: Saved,
    params: Any,
    names: Mapping[str, str],
    flattened: Mapping[str, tuple[int, ...]],
    subset: bool,
) -> Layout:
    if params is None:
        return layouts.renamed(Layout(), names)

    def made(tree: Any) -> Layout:
        if isinstance(saved, Torch) or saved.format == "safetensors":
            return layouts.of_torch(tree, flattened, subset)
        return layouts.of_keras(tree, names.values(), subset)

    return layouts.renamed(layouts.in_variables(params, made), names)


def _others(
    saved: Saved,
    target: Target | None,
    names: Mapping[str, str],
    arrays: Mapping[str, Array],
) -> tuple[dict[str, Any], set[str]]:
    """Weights that no optimizer has: statistics, and what is frozen. And which have a place."""
    if target is None:
        rest = {names[k]: x for k, x in saved.weights.items() if k not in arrays}
        return {"other": rest} if rest else {}, {*saved.weights}
    if target.statistics is None:
        return {}, set()
    statistics = _layout(saved, target.statistics, names, {}, subset=True)
    tree = statistics.to_tree(saved.weights)
    used = {*statistics.to_names(tree)}
    return {"batch_stats": layouts.cast_like(tree, target.statistics)}, used


def _made(
    groups: list[Group], layout: Layout, params: Any, arrays: Mapping[str, Array]
) -> tuple[Any, dict[str, str]]:
    """The transformation of all groups, and the label of each leaf."""
    number = {name: i for i, group in enumerate(groups) for name in group.names}
    # A number in place of each parameter goes where the parameter goes.
    marks = layout.to_tree(
        Partial({n: np.broadcast_to(np.int32(number[n]), np.shape(arrays[n])) for n in number})
    )
    of_leaf = {path: str(int(x.flat[0])) if x.size else "0" for path, x in leaves_with_paths(marks)}
    labels = {path: of_leaf.get(path, FROZEN) for path, _ in leaves_with_paths(params)}
    by_path = {"/".join(path): label for path, label in labels.items()}
    if len(groups) == 1 and FROZEN not in by_path.values():
        return groups[0].call.made(), by_path
    tree = cast(Any, jax.tree.structure(params)).unflatten(labels.values())
    transformations: dict[str, optax.GradientTransformation] = {
        str(i): group.call.made() for i, group in enumerate(groups)
    }
    transformations[FROZEN] = optax.set_to_zero()
    used = {*by_path.values()}
    return optax.partition({k: x for k, x in transformations.items() if k in used}, tree), by_path


def _to_theirs(
    saved: Saved, new: pathlib.Path, request: Request, options: Options
) -> dict[str, Any]:
    saved, like = _both(saved, request, options)
    names = layouts.renaming([*like.weights, *like.names], request.rename)
    params, statistics = saved.tree("params"), saved.tree("batch_stats") or saved.tree("other")
    if not params:
        # Of an optimizer alone; or it is a tree of parameters by itself.
        params = {name: arrays["nu"] for name, arrays in saved.moments.items()} or saved.weights
    own = {names[name] for name in like.names or like.weights} == params.keys()
    tree = params if own else layouts.nested(params)
    layout = _layout(like, None if own else tree, names, request.flattened, subset=False)
    weights = dict[str, Array]()
    if saved.weights:
        weights = layout.to_names(tree)
        if statistics:
            beside = layouts.nested(statistics) if saved.tree("batch_stats") else None
            other = _layout(like, beside, names, {}, subset=True)
            weights |= other.to_names(statistics if beside is None else beside)
    state = None
    if saved.tree("opt_state"):
        if not like.named and like.weights:
            raise Refused("nothing tells the names of the parameters in --like: give --names")
        groups = _groups(saved, like)
        arrays = _parameters(like)
        transformation, _ = _made(groups, layout, tree, arrays)
        state = _filled(transformation.init(tree), saved)
    if strange := sorted(weights.keys() - like.weights.keys()) if like.weights else []:
        raise Refused(f"the file of --like has no weights {strange[:6]}")
    like.write(new, New(weights if like.weights else {}, state, layout.to_names), options)
    return provenance.record(
        saved, like.rules[0] if like.rules else [], {}, files.parts(request.source), {}
    )


def _both(saved: Saved, request: Request, options: Options) -> tuple[Ours, Saved]:
    """The run in JAX, and the checkpoint that the new one resembles."""
    if not isinstance(saved, Ours):
        raise Refused(
            f"{request.source} is no run in JAX: convert it to Orbax or .npz first, and that to "
            f"{request.to.suffix or 'the other framework'}"
        )
    if request.like is None:
        raise Refused(
            f"--to {request.to.name} needs --like, a checkpoint of the same model and optimizer in "
            "that framework, new or old, whose names and settings the new one gets"
        )
    like = files.read(request.like, options)
    if isinstance(like, Ours):
        raise Refused(f"--like {request.like} is of a run in JAX, and of no other framework")
    return saved, like


def _groups(saved: Ours, like: Saved) -> list[Group]:
    """The rule of the run: that of its record, if it is one call, or that of the other file."""
    if not like.rules:
        found = like.optimizer or "weights"
        raise Refused(f"there is no RMSprop in the file of --like, but {found}")
    if saved.rules and len(saved.rules[0]) == len(like.rules[0]) == 1:
        return [Group(saved.rules[0][0].call, like.rules[0][0].names)]
    return like.rules[0]


def _filled(like: Any, saved: Ours) -> Any:
    """A state with the arrays of a file, wherever in its tree this state is."""
    # Within an `nnx.Optimizer` every array is the value of a variable.
    wanted = {name.removesuffix("/value"): x for name, x in ours.by_path(like, "the state").items()}
    known = {name.removesuffix("/value"): x for name, x in saved.tree("opt_state").items()}
    first = next(iter(wanted), "")
    ends = {k.removesuffix(first) for k in known if k == first or k.endswith(f"/{first}")}
    places = [at for at in ends if all(f"{at}{name}" in known for name in wanted)]
    if len(places) != 1:
        raise Refused(
            f"the state in the file is no state of this call: it has {sorted(known)[:6]}, "
            f"expected {sorted(wanted)[:6]}"
        )
    new = list[Any]()
    for name, old in wanted.items():
        x = known[places[0] + name]
        if x.shape != np.shape(old):
            raise Refused(f"opt_state/{name} has shape {x.shape}, expected {np.shape(old)}")
        new.append(jax.numpy.asarray(x))
    return cast(Any, jax.tree.structure(like)).unflatten(new)
