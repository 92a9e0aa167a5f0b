"""PyTorch: what `torch.save` wrote, archives of Stable-Baselines3, and safetensors for weights."""

import argparse
import copy
import dataclasses
import functools
import io
import operator
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import jax.numpy as jnp
import numpy as np
import optax

from .. import interop
from ..interop._arrays import whole_number
from . import _guard as guard
from ._calls import Call, is_setting
from ._guard import Refused
from ._saved import (
    Array,
    Convert,
    Group,
    New,
    Options,
    Saved,
    array,
    checked_names,
    mapping,
    merged,
    one_of,
)

_WEIGHTS = ("model", "model_state_dict", "state_dict", "model_state", "net", "network", "policy")
_OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_state", "opt")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
Keys: TypeAlias = tuple[Any, ...]  # of dictionaries and lists within each other
_MOMENTS = {"nu": "square_avg", "mu": "grad_avg", "momentum": "momentum_buffer"}
_SINCE_1_12 = {"foreach", "maximize", "capturable", "differentiable"}  # of PyTorch's own groups
_OTHERS = {"exp_avg": "Adam, or a relative of it", "acc_delta": "Adadelta", "sum": "Adagrad"}
# Beside the weights are a best score, the state of a random generator, paths: none is needed.
_HARMLESS = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)


class _NotRead:
    """What stands for a value of a harmless class, of which nothing is made."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __reduce__(self) -> Any:
        raise Refused(
            "--like has values of NumPy or paths beside its tensors, which are not carried: give "
            "one without them"
        )


@dataclasses.dataclass
class Torch(Saved):
    """A file of `torch.save`."""

    content: Any = None  # all of it
    model: Keys | None = None  # where the weights are in it
    key: Keys = ()  # where the optimizer is

    def state(self, like: Any, convert: Convert, options: Options) -> optax.OptState:
        """`like` with what the optimizer accumulated."""
        return interop.from_torch(
            _at(self.content, self.key),
            like,
            convert,
            names=self.names,
            count=options.count,
            learning_rate=options.settings.get("lr"),
            missing_ok=options.missing_ok,
        )

    def replaced(self, new: New, options: Options) -> Any:
        """The content with other weights and another state."""
        torch = guard.needed("torch", "a file of PyTorch")
        content = self.content
        if new.weights and self.model is not None:
            old = _at(content, self.model)
            weights = copy.copy(old)
            for name, first in _first_names(old).items():
                if first in new.weights:
                    weights[name] = _like(torch, name, new.weights[first], old[name])
            content = _with(content, self.model, weights)
        if new.state is not None:
            old = _at(content, self.key)
            made = interop.to_torch(
                new.state, old, new.convert, names=self.names, count=options.count
            )
            made = torch.utils._pytree.tree_map_only(np.ndarray, torch.from_numpy, made)
            content = _with(content, self.key, {**old, **made})
        return content

    def write(self, path: pathlib.Path, new: New, options: Options) -> None:
        """The same file with other weights and another state."""
        guard.needed("torch", "a file of PyTorch").save(self.replaced(new, options), path)


@dataclasses.dataclass
class StableBaselines3(Torch):
    """An archive of Stable-Baselines3, whose members are files of `torch.save`, and JSON."""

    source: pathlib.Path = pathlib.Path()

    def write(self, path: pathlib.Path, new: New, options: Options) -> None:
        """The same archive with other weights and another state."""
        members = dict[str, bytes]()
        for name, content in self.replaced(new, options).items():
            buffer = io.BytesIO()
            guard.needed("torch", "an archive of Stable-Baselines3").save(content, buffer)
            members[name] = buffer.getvalue()
        guard.rewrite(self.source, path, members)


def read(path: pathlib.Path, options: Options) -> Torch:
    """A file of `torch.save`: the state of an optimizer, of a model, or a dictionary with both."""
    content = _loaded(path, str(path))
    saved = Torch("PyTorch", {}, content=content)
    optimizers, models = _found(content, _is_optimizer), _found(content, _is_weights)
    if not optimizers and not models:
        raise Refused(
            f"{path}: neither weights nor the state of an optimizer is in it, but a "
            f"{type(content).__name__} of "
            f"{', '.join(map(str, list(mapping(content))[:6])) or 'nothing'}"
        )
    if models:
        name = one_of("models", "--model", models, _WEIGHTS, options.model)
        saved.model = models[name]
        saved.weights = _arrays(path, _at(content, saved.model))
    else:
        saved.weights = dict(options.beside)
    if optimizers:
        name = one_of("optimizers", "--optimizer", optimizers, _OPTIMIZERS, options.optimizer)
        saved.key = optimizers[name]
        _describe(saved, path, options)
    return saved


def read_stable_baselines3(path: pathlib.Path, options: Options) -> StableBaselines3:
    """An archive of Stable-Baselines3. Of its `data` only what is no pickle is read."""
    where = str(path)
    with guard.archive(path, where) as opened:
        names = opened.namelist()
        data = guard.json_of(guard.member(opened, "data", where), f"{path}: data")
        optimizers = {name: None for name in names if name.endswith("optimizer.pth")}
        key = [one_of("optimizers", "--optimizer", optimizers, (), options.optimizer)]
        key = key if optimizers else []
        content = {
            name: _loaded(io.BytesIO(guard.member(opened, name, where)), f"{path}: {name}")
            for name in ("policy.pth", *key)
        }
    if not _is_weights(content["policy.pth"]) or (key and not _is_optimizer(content[key[0]])):
        raise Refused(f"{path}: its members are no state dictionaries of PyTorch")
    saved = StableBaselines3(
        "Stable-Baselines3",
        _arrays(path, content["policy.pth"]),
        content=content,
        model=("policy.pth",),
        key=tuple(key),
        source=path,
    )
    # The class's name is there as text, beside its pickle.
    cls = str(mapping(data.get("policy_kwargs")).get("optimizer_class", ""))
    told = "stable_baselines3" if "RMSpropTFLike" in cls else ""
    if key:
        _describe(saved, path, dataclasses.replace(options, dialect=options.dialect or told))
    kept = ("learning_rate", "num_timesteps", "_n_updates", "n_envs", "n_steps")
    saved.settings |= {f"data: {k}": data[k] for k in kept if is_setting(data.get(k, ""))}
    return saved


def read_safetensors(path: pathlib.Path) -> Saved:
    """Weights, in their own dtypes."""
    library = guard.needed("safetensors", str(path))
    try:
        with library.safe_open(str(path), framework="numpy") as opened:
            names = list(opened.keys())
            return Saved(
                "safetensors",
                {name: array(f"{path}: {name}", opened.get_tensor(name)) for name in names},
            )
    except Refused:
        raise
    except Exception as error:  # a class of its own, and those of NumPy for a dtype
        raise Refused(f"{path} is no whole safetensors file: {error}") from error


def _loaded(source: pathlib.Path | io.BytesIO, where: str) -> Any:
    torch = guard.needed("torch", where)
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # `weights_only` could be deceived before it.
        raise Refused(f"{where} is not read with torch {torch.__version__}: install 2.6 or newer")
    if zipfile.is_zipfile(source):
        with guard.archive(source, where) as opened:
            for name in opened.namelist():  # PyTorch does not look at checksums
                guard.member(opened, name, where)
    if isinstance(source, io.BytesIO):
        source.seek(0)
    try:
        # A program's arguments, which many keep beside the weights, are a class of plain values.
        known = [argparse.Namespace, *((_NotRead, name) for name in _HARMLESS)]
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        lines = [x for x in str(error).splitlines() if x.strip()] or [type(error).__name__]
        found = re.search(r"Unsupported \w+:? (GLOBAL )?(\S+)", str(error))
        reason = f"it holds {found[2]}" if found else lines[0].partition(". ")[0]
        raise Refused(
            f"{where} is no whole file of tensors and plain values; nothing in it was executed: "
            f"{reason}"
        ) from error
    guard.check_nesting(where, content)
    return content


def _describe(saved: Torch, path: pathlib.Path, options: Options) -> None:
    """Read the optimizer's state: whose it is, its settings, and its arrays by name."""
    state, groups = _parts(path, _at(saved.content, saved.key))
    keys = [key for group in groups for key in group["params"]]
    tensors = saved.weights if saved.model is None else _at(saved.content, saved.model)
    saved.names, saved.named = _names(state, groups, tensors, options)
    if not saved.named:
        saved.notes.append(
            "PyTorch kept positions in place of names: give --names, in the order of the "
            "optimizer's groups"
        )
    settings = [{k: _number(v) for k, v in group.items() if k != "params"} for group in groups]
    for i, found in enumerate(settings):
        prefix = "" if len(groups) == 1 else f"group {i}: "
        saved.settings |= {prefix + k: v for k, v in found.items() if is_setting(v)}
    entries = dict(zip(saved.names, (mapping(state.get(key)) for key in keys), strict=True))
    fields = {str(field) for entry in entries.values() for field in entry}
    plain = all({"lr", "alpha", "eps"} <= group.keys() for group in groups)
    if not plain or fields - {"step", *_MOMENTS.values()}:
        named = next((name for field, name in _OTHERS.items() if field in fields), "another")
        shown = ", ".join(sorted(fields) or sorted(groups[0]) if groups else ["nothing"])
        saved.optimizer = f"{named} ({shown})"
        return
    for name, entry in entries.items():
        for quantity, field in _MOMENTS.items():
            if entry.get(field) is not None:
                found = _tensor(f"{path}: the {field} of {name}", entry[field])
                saved.moments.setdefault(name, {})[quantity] = found
        if (step := entry.get("step")) is not None:
            saved.steps[name] = _steps(f"{path}: the step of {name}", step)
    names = iter(saved.names)
    parts = [[next(names) for _ in group["params"]] for group in groups]
    rules = [
        merged([Group(_call(path, dialect, s), n) for s, n in zip(settings, parts, strict=True)])
        for dialect in _dialects(saved, settings)
    ]
    saved.may_be(rules, options)


def _parts(path: pathlib.Path, saved: Any) -> tuple[Mapping[Any, Any], list[Mapping[str, Any]]]:
    """The entries and the groups of an optimizer, if they are what PyTorch writes."""
    state, groups = saved["state"], saved["param_groups"]
    lists = isinstance(state, Mapping) and isinstance(groups, list)
    found = [mapping(group) for group in cast("list[Any]", groups)] if lists else []
    if not found or any(type(group.get("params")) is not list for group in found):
        raise Refused(f"{path}: the state of the optimizer has no groups of parameters")
    keys: list[Any] = [key for group in found for key in group["params"]]
    if len({*map(str, keys)}) != len(keys) or not {*map(type, keys)} <= {int, str}:
        raise Refused(f"{path}: the groups of the optimizer have a parameter twice")
    return cast("Mapping[Any, Any]", state), found


def _names(
    state: Mapping[Any, Any], groups: list[Mapping[str, Any]], tensors: Any, options: Options
) -> tuple[list[str], bool]:
    """The names of the optimizer's parameters; positions, if nothing tells their names."""
    keys = [key for group in groups for key in group["params"]]
    if options.names:
        return checked_names(list(options.names), len(keys)), True
    lists = [cast("list[Any]", group.get("param_names") or []) for group in groups]
    for found in ([name for names in lists for name in names], keys):
        if len(found) == len(keys) and all(isinstance(name, str) for name in found):
            return checked_names(found, len(keys)), True
    # In one group they are in the model's order, unless some were left out.
    names = [name for name, first in _first_names(tensors).items() if _is_trained(name, first)]
    names = [name for name in names if np.ndim(tensors[name]) == 0 or _is_inexact(tensors[name])]
    if len(groups) == 1 and len(names) == len(keys) and options.in_order:
        shapes = [_shape(mapping(state.get(key)).get("square_avg")) for key in keys]
        own = [tuple(tensors[name].shape) for name in names]
        if all(x is None or x[: len(y)] == y for x, y in zip(shapes, own, strict=True)):
            return names, True
    return [str(key) for key in keys], False


def _is_trained(name: str, first: str) -> bool:
    return name == first and name.rpartition(".")[2] not in _BUFFERS


def _is_inexact(x: Any) -> bool:
    dtype = str(x.dtype)
    return "float" in dtype or "complex" in dtype


def _shape(x: Any) -> tuple[int, ...] | None:
    return None if x is None else tuple(x.shape)


def _first_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """For each weight the first name of its memory: tied ones are saved under several."""
    first = dict[Any, str]()
    found = dict[str, str]()
    for name, x in tensors.items():
        tied = hasattr(x, "data_ptr") and x.numel()
        memory = (x.data_ptr(), tuple(x.shape), x.stride()) if tied else name
        found[name] = first.setdefault(memory, name)
    return found


def _dialects(saved: Torch, settings: list[dict[str, Any]]) -> list[str]:
    """Whose groups these are."""
    keys = set(settings[0])
    if keys & {"lr_in_momentum", "decoupled_decay"}:
        return ["timm"]
    if keys & _SINCE_1_12:
        return ["torch"]
    # Stable-Baselines3's class has the keys that PyTorch's had. Its average starts at 1.
    alphas = [float(group["alpha"]) for group in settings if isinstance(group["alpha"], float)]
    if len(alphas) < len(settings):
        return ["stable_baselines3", "torch"]
    return ["torch"] if _began_below_one(saved, alphas) else ["stable_baselines3", "torch"]


def _began_below_one(saved: Torch, alphas: list[float]) -> bool:
    """Whether an average is smaller than one that began at 1 can be."""
    for name, arrays in saved.moments.items():
        steps, nu = saved.steps.get(name), arrays.get("nu")
        if steps is not None and nu is not None and nu.size and not np.iscomplexobj(nu):
            # Each step rounds the average once.
            bound = min(alphas) ** steps * (
                1 - (steps + 2) * float(cast(Any, jnp.finfo)(nu.dtype).eps)
            )
            if nu.astype(float).min() < bound:
                return True
    return False


def _call(path: pathlib.Path, dialect: str, group: Mapping[str, Any]) -> Call:
    """The call of a group."""
    names = ["lr", "alpha", "eps", "weight_decay", "momentum", "centered"]
    if dialect == "torch":
        names += ["maximize"]
    if dialect == "timm":
        names += ["decoupled_decay", "corrected_weight_decay", "lr_in_momentum", "caution"]
    arguments = {name: group[name] for name in names if name in group}
    if arguments.get("corrected_weight_decay"):
        arguments["lr_max"] = group.get("initial_lr", ...)
    for name, value in arguments.items():
        if not is_setting(value):
            raise Refused(f"{path}: {name} of the optimizer is no number: {value!r:.40}")
    if isinstance(arguments.get("centered"), int):  # timm's and old files have 0
        arguments["centered"] = bool(arguments["centered"])
    return Call(dialect, arguments)


def _number(x: Any) -> Any:
    """A number that may be in a tensor."""
    return x.item() if hasattr(x, "item") and getattr(x, "numel", lambda: 1)() == 1 else x


def _is_weights(x: Any) -> bool:
    found = mapping(x)
    tensors = all(hasattr(tensor, "untyped_storage") for tensor in found.values())
    return bool(found) and tensors and all(isinstance(name, str) for name in list[Any](found))


def _is_optimizer(x: Any) -> bool:
    return {"state", "param_groups"} <= mapping(x).keys()


def _found(content: Any, wanted: Callable[[Any], bool]) -> dict[str, Keys]:
    """What is wanted in a file, by its place there as text: at the top, or one or two below it."""
    found, level = dict[str, Keys](), {id(content): (cast(Keys, ()), content)}
    for _ in range(3):
        found |= {".".join(map(str, keys)): keys for keys, x in level.values() if wanted(x)}
        below = dict[int, tuple[Keys, Any]]()  # each once, however many times it is in the file
        for keys, outer in level.values():
            if not _is_optimizer(outer) and not _is_weights(outer):
                for key, x in _items(outer):
                    below.setdefault(id(x), ((*keys, key), x))
        level = below
    return found


def _items(x: Any) -> list[tuple[Any, Any]]:
    if isinstance(x, list):
        return list(enumerate(cast("list[Any]", x)))
    return list(mapping(x).items())


def _at(content: Any, keys: Keys) -> Any:
    return functools.reduce(operator.getitem, keys, content)


def _with(content: Any, keys: Keys, new: Any) -> Any:
    if not keys:
        return new
    changed = copy.copy(content)
    changed[keys[0]] = _with(content[keys[0]], keys[1:], new)
    return changed


def _like(torch: Any, name: str, new: Array, old: Any) -> Any:
    """A weight in the dtype of the one in whose place it comes."""
    if tuple(new.shape) != tuple(old.shape):
        raise Refused(f"{name} has shape {new.shape}, and {tuple(old.shape)} in the file of --like")
    wide = new if new.dtype.kind in "biuc" or new.dtype.itemsize >= 4 else new.astype(np.float32)
    return torch.from_numpy(np.array(wide)).to(old.dtype)


def _arrays(path: pathlib.Path, tensors: Mapping[str, Any]) -> dict[str, Array]:
    return {name: _tensor(f"{path}: {name}", x) for name, x in tensors.items()}


def _tensor(where: str, x: Any) -> Array:
    """A tensor's numbers, if it is one, and does not repeat the few that it stores."""
    try:
        stored, size = x.untyped_storage().nbytes(), x.numel() * x.element_size()
        on_cpu = x.device.type == "cpu"
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise Refused(f"{where} is no dense tensor") from error
    if not on_cpu or size > stored:
        raise Refused(f"{where} of shape {tuple(x.shape)} stores {stored} bytes only")
    return array(where, x.resolve_conj().resolve_neg())


def _steps(where: str, x: Any) -> int:
    try:
        return whole_number(where, x)
    except (TypeError, ValueError) as error:
        raise Refused(str(error)) from error
