"""Names and axes: those of a checkpoint, and those of a tree of parameters in JAX."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import interop
from ..interop._arrays import Partial, leaves_with_paths
from ..interop._variables import new
from . import _guard as guard
from . import _ours as ours
from ._guard import Refused
from ._saved import Array, Convert

# What Flax and Keras call the same parameter.
_IN_KERAS = {
    "scale": "gamma",
    "bias": "beta",
    "embedding": "embeddings",
    "mean": "moving_mean",
    "var": "moving_variance",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """From named arrays to a tree, and back; by default the source's own names and axes."""

    to_tree: Convert = dict
    to_names: Convert = dict


@dataclasses.dataclass(frozen=True)
class Target:
    """The trees of a model in JAX, of abstract leaves."""

    params: Any
    statistics: Any = None  # of normalisations, `batch_stats`


def target_of(path: pathlib.Path) -> Target:
    """The shapes that a checkpoint of Orbax, an `.npz` or a shape file has."""
    if path.is_dir():
        tree = ours.shapes_of(path)
    elif path.suffix == ".npz":
        arrays = ours.read_npz(path).arrays
        tree = nested({name: _abstract(x.shape, x.dtype) for name, x in arrays.items()})
    else:
        text = guard.regular_file(path).read_bytes()
        entries = guard.json_of(text, str(path))
        tree = nested({name: _entry(f"{path}: {name}", x) for name, x in entries.items()})
    if not isinstance(tree, Mapping):
        raise Refused(f"{path} holds no tree of parameters by name")
    found = cast("Mapping[str, Any]", tree)
    return Target(found.get("params", found), found.get("batch_stats"))


def _entry(where: str, x: Any) -> jax.ShapeDtypeStruct:
    """A line of a shape file."""
    entry = cast("Mapping[str, Any]", x if isinstance(x, Mapping) else {})
    shape, dtype = entry.get("shape"), entry.get("dtype", "float32")
    sizes = cast("list[Any]", shape if isinstance(shape, list) else [None])
    if not all(type(n) is int and n >= 0 for n in sizes) or entry.keys() - {"shape", "dtype"}:
        raise Refused(f'{where} must be {{"shape": [3, 2], "dtype": "float32"}}')
    try:
        number = jnp.dtype(str(dtype))
    except TypeError:
        number = jnp.dtype(bool)
    if not jnp.issubdtype(number, jnp.number):
        raise Refused(f"{where} has the dtype {dtype!r}, which is none of numbers")
    return _abstract(tuple(sizes), number)


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    with jax.enable_x64(True):
        return jax.ShapeDtypeStruct(shape, dtype)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries in dictionaries, of paths with slashes."""
    tree = dict[str, Any]()
    for path, x in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = cast("dict[str, Any]", node.setdefault(part, dict[str, Any]()))
            if not isinstance(node, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise Refused(f"{path!r} is inside of another parameter")
        if last in node:
            raise Refused(f"{path!r} is twice, or holds other parameters")
        node[last] = x
    return tree


def of_torch(params: Any, flattened: Mapping[str, tuple[int, ...]], subset: bool) -> Layout:
    """The usual layers of PyTorch and of Flax."""
    both = interop.layout(params, flattened=flattened, subset=subset)
    return Layout(both.to_flax, both.to_torch)


def of_keras(params: Any, names: Iterable[str], subset: bool) -> Layout:
    """The layers of Keras and of Flax: the axes are the same, some names are not."""
    known = {name.replace(".", "/"): name for name in names}
    label = dict[tuple[str, ...], str]()
    for path, _ in leaves_with_paths(params):
        *parents, kind = path
        own = "/".join(path)
        other = "/".join([*parents, _IN_KERAS.get(kind, kind)])
        label[path] = known.get(own) or known.get(other) or own
    tree = cast(Any, jax.tree.structure(params))

    def to_tree(named: Mapping[str, Any]) -> Any:
        missing, surplus = {*label.values()} - named.keys(), named.keys() - {*label.values()}
        if (surplus and not subset) or (missing and not isinstance(named, Partial)):
            raise Refused(f"missing {sorted(missing)}, surplus {sorted(surplus)}: --rename OLD=NEW")
        return tree.unflatten(
            np.array(named[name]) if name in named else optax.MaskedNode()
            for name in label.values()
        )

    def to_names(values: Any) -> dict[str, Any]:
        return {label[path]: x for path, x in leaves_with_paths(values)}

    return Layout(to_tree, to_names)


def in_variables(params: Any, make: Callable[[Any], Layout]) -> Layout:
    """The layout of a tree whose leaves may be within Flax's variables, as an `nnx.State`'s are.

    Orbax saves them as dictionaries with a `value`, which is no part of a name.
    """
    if not all(path[-1:] == ("value",) for path, _ in leaves_with_paths(params)):
        return make(params)
    plain = make(_unboxed(params))

    def to_tree(named: Mapping[str, Any]) -> Any:
        return cast(Any, jax.tree.map)(_boxed, plain.to_tree(named), is_leaf=_is_masked)

    return Layout(to_tree, lambda values: plain.to_names(_unboxed(values)))


def _boxed(x: Any) -> dict[str, Any]:
    return {"value": x}


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _unboxed(tree: Any) -> Any:
    def is_box(x: Any) -> bool:
        return isinstance(x, Mapping) and {*cast("Mapping[Any, Any]", x)} == {"value"}

    def unbox(x: Any) -> Any:
        return x["value"] if is_box(x) else x

    return cast(Any, jax.tree.map)(unbox, tree, is_leaf=is_box)


def renaming(names: Iterable[str], pairs: tuple[str, ...]) -> dict[str, str]:
    """What each name of a source becomes: `OLD=NEW` is of a parameter, or of all in a module."""
    rules = dict[str, str]()
    for pair in pairs:
        old, equals, after = pair.partition("=")
        if not equals or not old:
            raise Refused(f"--rename {pair}: expected OLD=NEW")
        rules[old] = after
    used, found = set[str](), dict[str, str]()
    for name in names:
        inside = [old for old in rules if name == old or name.startswith((f"{old}.", f"{old}/"))]
        found[name] = name
        if inside:
            old = max(inside, key=len)
            used.update(inside)
            found[name] = (rules[old] + name[len(old) :]).lstrip("./")
    if unused := sorted(rules.keys() - used):
        raise Refused(f"--rename {unused[0]}=...: no parameter has this name: {sorted(found)[:9]}")
    if twice := [name for name, n in Counter(found.values()).items() if n > 1]:
        raise Refused(f"--rename: two parameters become {twice[0]!r}")
    return found


def renamed(layout: Layout, names: Mapping[str, str]) -> Layout:
    """The layout with other names in the source."""
    back = {after: name for name, after in names.items()}

    def to_tree(named: Mapping[str, Any]) -> Any:
        return layout.to_tree(cast(Any, type(named))({names[k]: x for k, x in named.items()}))

    def to_names(values: Any) -> dict[str, Any]:
        named = cast("Mapping[str, Any]", layout.to_names(values))
        return {back.get(name, name): x for name, x in named.items()}

    return Layout(to_tree, to_names)


def cast_like(tree: Any, like: Any) -> Any:
    """Arrays in the shapes and dtypes of a target."""
    wanted = dict(leaves_with_paths(like))

    def put(path: Any, x: Array) -> Array:
        where = "/".join(path)
        old = wanted[path]
        if tuple(x.shape) != tuple(old.shape):
            raise Refused(f"{where} has shape {x.shape}, and {tuple(old.shape)} in the target")
        return new(where, x, old.dtype)

    leaves = [put(path, x) for path, x in leaves_with_paths(tree)]
    return cast(Any, jax.tree.structure(tree)).unflatten(leaves)
