"""Trees of Optax states: what is in them by name, and a tree filled with other values.

A part is a named tuple of arrays with names that are known here; whatever holds it (chains, masks,
partitions, wrappers) is left as it is.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .storage import StoredAsState, decoded, encoded_like

_FIELDS = {"count", "nu", "mu", "var", "trace", "learning_rate"}


class Found(NamedTuple):
    """What is in an Optax-style state."""

    count: int | None
    rate: float | None  # if there is one
    trees: dict[str, Any]  # "nu", "mu", and "step" or "direction": trees like the parameters
    gave: dict[str, set[str]]  # the path of each field, and the quantities that came from it


Where: TypeAlias = tuple[str, ...]
Values: TypeAlias = dict[str, dict[Where, Any]]


def read(function: str, state: optax.OptState) -> Found:
    """Everything in a state, ν and the momentum in one form whatever links it comes from."""
    parts = _parts(decoded(state))
    trees: dict[str, list[Any]] = {}
    gave: dict[str, set[str]] = {}
    for path, part in parts:
        for field in part._fields:
            quantity, tree = field, getattr(part, field)
            if field == "var":
                quantity, tree = "nu", jax.tree.map(_second_moment, tree, part.mu)
            elif field == "trace" and _holds_steps(parts, path):
                quantity, tree = "step", jax.tree.map(_negative, tree)
            elif field == "trace":
                quantity = "direction"
            if field not in ("count", "learning_rate"):
                trees.setdefault(quantity, []).append(tree)
            gave[_keystr(path, field)] = {quantity}
    if not trees:
        raise TypeError(f"{function}: there is no state of RMSprop in {type(state).__name__}")
    if {"step", "direction"} <= trees.keys():
        raise ValueError(f"{function}: some momentum buffers contain the rate, others do not")
    counts = [int(part.count) for _, part in parts if "count" in part._fields]
    rates = {float(part.learning_rate) for _, part in parts if "learning_rate" in part._fields}
    return Found(
        count=max(counts, default=None),
        rate=rates.pop() if len(rates) == 1 else None,
        trees={quantity: _merged(found) for quantity, found in trees.items()},
        gave=gave,
    )


def fill(
    function: str,
    like: optax.OptState,
    values: Values,
    count: int | None,
    rate: Callable[[set[Where]], float | None],
    *,
    strict: bool = True,
) -> tuple[optax.OptState, list[str], set[str]]:
    """`like` with `values`, the paths that it could not fill, and the quantities that it used.

    `rate` is that of the parameters of one chain. If `strict`, all must fit exactly.
    """
    missing = {quantity: set(found) for quantity, found in values.items()}
    plain = decoded(like)
    filling = _Filling(function, _parts(plain), values, count, rate, strict, missing)
    filled = [filling.part(path, part) for path, part in filling.parts]
    if strict:
        _all_used(function, missing)
    leaves, tree = cast(Any, jax.tree.flatten(plain, is_leaf=_is_part))
    rest = iter(filled)
    state = tree.unflatten([next(rest) if _is_part(x) else x for x in leaves])
    state = encoded_like(state if count is None else _counted(state, count), like)
    return state, filling.unfilled, filling.used


def _counted(state: optax.OptState, count: int) -> optax.OptState:
    """The state with this number of steps in every `StoredAsState`: the dither depends on it."""

    def part(x: Any) -> Any:
        if not isinstance(x, StoredAsState):
            return x
        number = _put("count", np.asarray(count), x.count)
        return StoredAsState(number, _counted(x.inner_state, count))

    return jax.tree.map(part, state, is_leaf=lambda x: isinstance(x, StoredAsState))


@dataclasses.dataclass(frozen=True)
class _Filling:
    """What `fill` has to give, and notes on what it gave."""

    function: str
    parts: list[tuple[Any, Any]]
    values: Values
    count: int | None
    rate: Callable[[set[Where]], float | None]
    strict: bool
    missing: dict[str, set[Where]]
    unfilled: list[str] = dataclasses.field(default_factory=list[str])
    used: set[str] = dataclasses.field(default_factory=set[str])

    def part(self, path: Any, part: Any) -> Any:
        moments = _moments(part)
        new = {
            f: (self.moment if f in moments else self.scalar)(path, part, f) for f in part._fields
        }
        return part._replace(**new)

    def moment(self, path: Any, part: Any, field: str) -> Any:
        quantity, sign = {"var": "nu"}.get(field, field), 1.0
        if field == "trace":
            holds_steps = _holds_steps(self.parts, path)
            quantity, sign = ("step", -1.0) if holds_steps else ("direction", 1.0)
        found = self.values.get(quantity, {})
        if field == "var":
            mean = self.values.get("mu", {})
            found = {at: _variance(nu, mean[at]) for at, nu in found.items() if at in mean}

        def leaf(leaf_path: Any, old: Any) -> Any:
            at, name = where_of(leaf_path), _keystr(path, field) + _keystr(leaf_path)
            if at in found:
                self.missing[quantity].discard(at)
                self.used.add(quantity)
                return _put(f"{self.function}: {name}", sign * found[at], old)
            if self.strict and np.shape(old) != (0,):  # of a parameter that has no gradients
                lacking = lacks(quantity, self.values)
                raise ValueError(f"{self.function}: the source has {lacking} for {name}")
            self.unfilled.append(name)
            return old

        return jax.tree_util.tree_map_with_path(leaf, getattr(part, field))

    def scalar(self, path: Any, part: Any, field: str) -> Any:
        chain = [p for there, p in self.parts if there[:-1] == path[:-1]]
        of = {at for p in chain for f in _moments(p) for at in leaves_of(getattr(p, f))}
        value, name = (self.count if field == "count" else self.rate(of)), _keystr(path, field)
        if value is None and self.strict and field == "count":
            raise ValueError(f"{self.function}: the source has no number of steps: give count=")
        if value is None:
            self.unfilled.append(name)
            return getattr(part, field)
        self.used.add(field)
        return _put(f"{self.function}: {name}", np.asarray(value), getattr(part, field))


def lacks(quantity: str, values: Values) -> str:
    """What is missing, in words."""
    if quantity in ("step", "direction") and values.keys() & {"step", "direction"}:
        return "no learning rate to move in or out of the momentum"
    words = {"nu": "no second moment", "mu": "no mean (it is not centred)"}
    return words.get(quantity, "no momentum")


def _all_used(function: str, missing: dict[str, set[Where]]) -> None:
    """Of the momentum's two forms a state has one."""
    forms = [missing[q] for q in ("step", "direction") if q in missing]
    missing = {q: left for q, left in missing.items() if q not in ("step", "direction")}
    if forms:
        missing["momentum"] = set[Where].intersection(*forms)
    for quantity, left in missing.items():
        if left:
            where = "/".join(sorted(left)[0])
            raise ValueError(
                f"{function}: the source has {quantity} of {where!r}, and `like` has no place for "
                "it; is `like` of the same parameters, momentum and centring?"
            )


def _is_part(x: Any) -> bool:
    """A state that holds arrays by the names that are known here, and nothing else."""
    fields = set(getattr(x, "_fields", ()))
    return isinstance(x, tuple) and bool(fields) and fields <= _FIELDS


def _parts(state: optax.OptState) -> list[tuple[Any, Any]]:
    leaves = cast(Any, jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_part))
    return [(path, x) for path, x in leaves if _is_part(x)]


def _moments(part: Any) -> list[str]:
    return [field for field in part._fields if field not in ("count", "learning_rate")]


def quantities(state: optax.OptState) -> set[str]:
    """Which of "nu", "mu" and "trace" a state has."""
    fields = {field for _, part in _parts(state) for field in _moments(part)}
    return {"nu" if field == "var" else field for field in fields}


def _holds_steps(parts: list[tuple[Any, Any]], path: Any) -> bool:
    """Whether the rate comes before the momentum buffer at `path`, in its own chain.

    Optax's links for a rate keep no name. There the rate is what stands between the division and
    the momentum, if anything does.
    """
    chain = {there[-1]: part for there, part in parts if there and there[:-1] == path[:-1]}
    if not all(isinstance(key, jax.tree_util.SequenceKey) for key in chain):
        raise ValueError(
            f"{_keystr(path)}: a state by name does not tell whether the rate comes before the "
            "momentum; use optax.chain"
        )
    index = path[-1].idx if path else 0
    rates = [key.idx for key, part in chain.items() if "learning_rate" in part._fields]
    if rates:
        return rates[0] < index
    divided = [key.idx for key, part in chain.items() if {"nu", "var"} & set(part._fields)]
    return any(index - i > 1 for i in divided)


def where_of(path: Any) -> Where:
    """A leaf's place in a tree of parameters, the same for dictionaries and for an `nnx.State`."""
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and keys[-1] == "value":
        keys.pop()
    return tuple(map(str, keys))


def _keystr(path: Any, field: str | None = None) -> str:
    return jax.tree_util.keystr(path) + ("" if field is None else f".{field}")


def leaves_of(tree: Any) -> dict[Where, Any]:
    """A tree's leaves by their places."""
    leaves = cast(Any, jax.tree_util.tree_leaves_with_path(tree))
    return {where_of(path): as_numpy(x) for path, x in leaves}


def _merged(trees: list[Any]) -> Any:
    """One tree of those of an `optax.partition`, each of which masks the others' leaves."""

    def masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    def first(*leaves: Any) -> Any:
        return next((x for x in leaves if not masked(x)), leaves[0])

    return jax.tree.map(first, *trees, is_leaf=masked)


def as_numpy(x: Any) -> np.ndarray[Any, Any]:
    """As NumPy; half precision as float32, also that of a torch tensor, which NumPy refuses."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.resolve_conj() if hasattr(x, "resolve_conj") else x
        x = x.float() if str(x.dtype) in ("torch.bfloat16", "torch.float16") else x
    array = np.asarray(x)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def _negative(x: Any) -> np.ndarray[Any, Any]:
    return -as_numpy(x)


def _second_moment(var: Any, mu: Any) -> np.ndarray[Any, Any]:
    return as_numpy(var) + np.abs(as_numpy(mu)) ** 2


def _variance(nu: np.ndarray[Any, Any], mu: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """ν − |m|² in double; of a complex ν, by parts."""
    if np.iscomplexobj(nu):
        return _variance(nu.real, mu.real) + 1j * _variance(nu.imag, mu.imag)
    return np.maximum(nu.astype(float) - np.abs(mu).astype(float) ** 2, 0.0)


def _put(where: str, value: np.ndarray[Any, Any], old: Any) -> Any:
    """`value` with the shape, dtype and sharding of `old`."""
    shape, dtype = tuple(np.shape(old)), old.dtype
    if np.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        if shape != (*value.shape, 2):
            raise ValueError(f"{where} is real, the source is complex")
        value = np.stack([value.real, value.imag], axis=-1)
    new = of_shape(where, value, shape).astype(dtype)
    # What init left free to move stays free.
    placed = isinstance(old, jax.Array) and old.committed
    return jax.device_put(new, old.sharding) if placed else jnp.asarray(new)


def of_shape(where: str, x: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """`x`, if it has this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{where} has shape {tuple(x.shape)}, expected {tuple(shape)}")
    return x


def same_names(function: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """Refuse missing and surplus names."""
    expected, got = set(expected), set(got)
    if expected != got:
        missing, surplus = sorted(expected - got), sorted(got - expected)
        raise ValueError(f"{function}: missing {missing}, surplus {surplus}")
