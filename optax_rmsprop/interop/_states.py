"""The one reader and filler of Optax states, and the way to and from arrays by name.

A part is a named tuple whose fields are known here. What holds parts (chains, masks, partitions,
wrappers) stays as it is. A momentum buffer is one of two quantities: a "step" contains the learning
rate and is what a parameter loses, so that `trace` is minus a step; a "direction" is without it.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..storage import StoredAsState, decoded, encoded_like

Array: TypeAlias = np.ndarray[Any, Any]
Path: TypeAlias = tuple[str, ...]  # of a leaf in a tree of parameters
Values: TypeAlias = dict[str, dict[Path, Any]]  # quantity -> leaf -> array
Rates: TypeAlias = Mapping[Any, float | None]  # parameter or leaf -> learning rate, if known
Parts: TypeAlias = list[tuple[Any, Any]]  # each with its path in the state
Named: TypeAlias = dict[str, Any]  # parameter -> array
Convert: TypeAlias = Callable[[Named], Any]
ConvertBack: TypeAlias = Callable[[Any], Mapping[str, Any]]

_FORMS = {"step", "direction"}
_SCALARS = dict(
    count="count",
    trace_count="count",
    rate_count="count",
    decay_count="count",
    last_learning_rate="learning_rate",
)
_FIELDS = {"nu", "mu", "var", "trace", *_SCALARS}
WORDS = dict(nu="second moment", mu="mean (it is not centred)", **dict.fromkeys(_FORMS, "momentum"))
_NO_RATE = "no learning rate to move in or out of the momentum"


class Contents(NamedTuple):
    """What a state holds."""

    trees: dict[str, Any]  # "nu", "mu", and "step" or "direction": trees like the parameters
    count: int | None
    rate: float | None  # if there is one
    fields: dict[str, str]  # the path of each field, and what it holds: "momentum" in either form


class Variables(NamedTuple):
    """The variables of a framework that has one for each quantity of each parameter."""

    values: Mapping[Any, Any]  # by name or number
    roles: Mapping[Any, tuple[str, str]]  # the quantity of each, and the parameter; or no role
    names: Sequence[str]  # of the parameters

    def scalar(self, quantity: str, given: float | None = None) -> float | None:
        """What is given, or the first variable of this quantity, if there is one."""
        keys = (key for key, role in self.roles.items() if role[0] == quantity)
        found = (float(as_numpy(self.values[key])) for key in keys)
        return next(found, None) if given is None else given


def read(function: str, state: optax.OptState) -> Contents:
    """The contents of a state, ν in one form whatever parts it comes from."""
    parts = _parts(decoded(state))
    trees: dict[str, list[Any]] = {}
    fields: dict[str, str] = {}
    for path, part in parts:
        for field in part._fields:
            quantity = _quantity(parts, path, field)
            fields[f"{jax.tree_util.keystr(path)}.{field}"] = _kind(quantity)
            if field not in _SCALARS:
                trees.setdefault(quantity, []).append(_taken(part, field, quantity))
    if not trees:
        raise TypeError(f"{function}: there is no state of RMSprop in {type(state).__name__}")
    if _FORMS <= trees.keys():
        raise ValueError(f"{function}: some momentum buffers contain the rate, others do not")
    scalars = [(_SCALARS[f], getattr(x, f)) for _, x in parts for f in x._fields if f in _SCALARS]
    counts = [int(x) for quantity, x in scalars if quantity == "count"]
    rates = {float(x) for quantity, x in scalars if quantity == "learning_rate"}
    return Contents(
        trees={quantity: _merged(found) for quantity, found in trees.items()},
        count=max(counts, default=None),
        rate=rates.pop() if len(rates) == 1 else None,
        fields=fields,
    )


def fill(
    function: str,
    like: optax.OptState,
    values: Values,
    count: float | None,
    rates: Rates,
    *,
    strict: bool = True,
) -> tuple[optax.OptState, list[str], dict[str, set[Path]]]:
    """`like` with `values`, the paths that it could not fill, and the leaves used of each kind.

    `rates` has the learning rate of each leaf, or under () that of all. If `strict`, everything
    must fit exactly.
    """
    plain = decoded(like)
    parts = _parts(plain)
    unfilled, used = list[str](), collections.defaultdict[str, set[Path]](set)

    def filled(path: Any, part: Any) -> Any:
        if not _is_part(part):
            return part
        scalars = {"count": count, "learning_rate": _rate_of_chain(rates, parts, path)}
        given = values | {name: {(): scalar} for name, scalar in scalars.items()}

        def leaf(leaf_path: Any, old: Any) -> Any:
            where = jax.tree_util.keystr((*path, *leaf_path))
            (field, *_), at = path_of(leaf_path), path_of(leaf_path[1:])
            quantity = _quantity(parts, path, field)
            new = _given(given, field, quantity, at)
            if new is not None:
                used[_kind(quantity)].add(at)
                return _put(f"{function}: {where}", np.asarray(new), old)
            if strict and np.shape(old) != (0,):  # of a parameter that has no gradients
                _check_lack(function, quantity, where, values)
            unfilled.append(where)
            return old

        return jax.tree_util.tree_map_with_path(leaf, part)

    state = jax.tree_util.tree_map_with_path(filled, plain, is_leaf=_is_part)
    if strict:
        _check_used(function, values, used)
    return encoded_like(state if count is None else _counted(state, count), like), unfilled, used


def both_forms(values: dict[str, Any], rates: Rates) -> dict[str, Any]:
    """Values with the momentum as a step and as a direction, if its rates are known."""
    known = {key: rate for key, rate in rates.items() if rate}
    for form, other, power in (("step", "direction", -1), ("direction", "step", 1)):
        if form in values and other not in values and values[form].keys() <= known.keys():
            moved = {key: known[key] ** power * x for key, x in values[form].items()}
            return values | {other: moved}
    return values


def from_named(
    function: str,
    named: dict[str, Named],
    rates: Rates,
    count: float | None,
    like: optax.OptState,
    convert: Convert,
) -> optax.OptState:
    """`like` with the arrays of each quantity, which have the parameters' names, as `rates` has."""
    for arrays in named.values():
        same_names(function, rates, arrays)
    values = {
        quantity: leaves_of(_converted(function, convert, arrays))
        for quantity, arrays in both_forms(named, rates).items()
    }
    return fill(function, like, values, count, _rates_by_leaf(convert, rates, named))[0]


def to_named(
    function: str, found: Contents, convert: ConvertBack, rates: Rates, form: str
) -> dict[str, Named]:
    """The arrays of each quantity by the parameters' names, the momentum in one form."""
    named: dict[str, Named] = {}
    for quantity, tree in found.trees.items():
        arrays = convert(jax.tree.map(as_numpy, tree))
        named[quantity] = {name: as_numpy(x) for name, x in arrays.items()}
        same_names(function, rates, named[quantity])
    if form not in named:
        named = both_forms(named, rates)
    if form not in named and _FORMS & named.keys():
        raise ValueError(f"{function}: {_NO_RATE}; give a rate")
    return {q: arrays for q, arrays in named.items() if q == form or q not in _FORMS}


def from_variables(
    function: str,
    variables: Variables,
    like: optax.OptState,
    convert: Convert,
    count: float | None,
    learning_rate: float | None,
) -> optax.OptState:
    """`like` with what variables hold. A count or a rate that is given goes before a variable."""
    named: dict[str, Named] = {}
    for key, (quantity, name) in variables.roles.items():
        if quantity not in _SCALARS.values():
            named.setdefault(quantity, {})[name] = as_numpy(variables.values[key])
    count = variables.scalar("count", given=count)
    rates = dict.fromkeys(variables.names, variables.scalar("learning_rate", given=learning_rate))
    return from_named(function, named, rates, count, like, convert)


def to_variables(
    function: str,
    variables: Variables,
    state: optax.OptState,
    convert: ConvertBack,
    learning_rate: float | None,
) -> dict[Any, Any]:
    """Variables with what a state holds. Their own learning rate stays, and moves the momentum."""
    found = read(function, state)
    rate = variables.scalar("learning_rate")
    if rate is None:
        rate = found.rate if learning_rate is None else learning_rate
    named = to_named(function, found, convert, dict.fromkeys(variables.names, rate), "step")
    offered = {quantity for quantity, _ in variables.roles.values()}
    for quantity in named.keys() - offered:
        raise ValueError(f"{function}: the optimizer in `like` has no {WORDS[quantity]}")

    def new(key: Any, old: Array) -> Array:
        quantity, name = variables.roles.get(key, ("", ""))
        if quantity in named:
            array = of_shape(f"{function}: {name}", named[quantity][name], old.shape)
            return array.astype(old.dtype)
        if quantity == "count" and found.count is not None:
            return np.asarray(found.count, old.dtype)
        if quantity in WORDS and np.any(old):
            raise ValueError(f"{function}: the state has no {WORDS[quantity]}")
        return old

    return {key: new(key, as_numpy(value)) for key, value in variables.values.items()}


def quantities(state: optax.OptState) -> set[str]:
    """Which of "nu", "mu" and "trace" a state has."""
    fields = {field for _, part in _parts(state) for field in part._fields}
    return {"nu" if field == "var" else field for field in fields - _SCALARS.keys()}


def _is_part(x: Any) -> bool:
    """Whether a state holds arrays by the names that are known here, and nothing else."""
    fields = set(getattr(x, "_fields", ()))
    return isinstance(x, tuple) and bool(fields) and fields <= _FIELDS


def _parts(state: optax.OptState) -> Parts:
    leaves = cast(Any, jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_part))
    return [(path, x) for path, x in leaves if _is_part(x)]


def _quantity(parts: Parts, path: Any, field: str) -> str:
    """What a field holds."""
    if field == "trace":
        return "step" if _holds_steps(parts, path) else "direction"
    return "nu" if field == "var" else _SCALARS.get(field, field)


def _kind(quantity: str) -> str:
    return "momentum" if quantity in _FORMS else quantity


def _holds_steps(parts: Parts, path: Any) -> bool:
    """Whether the rate comes before the momentum buffer at `path`, in its own chain.

    Optax's links for a rate keep no name. There the rate is what stands between the division and
    the momentum, if anything does.
    """
    chain = {there[-1]: part for there, part in parts if there and there[:-1] == path[:-1]}
    if not all(isinstance(key, jax.tree_util.SequenceKey) for key in chain):
        raise ValueError(
            f"{jax.tree_util.keystr(path)}: a state by name does not tell whether the rate comes "
            "before the momentum; use optax.chain"
        )
    index = path[-1].idx if path else 0
    rates = [key.idx for key, part in chain.items() if "last_learning_rate" in part._fields]
    if rates:
        return rates[0] < index
    divided = [key.idx for key, part in chain.items() if {"nu", "var"} & set(part._fields)]
    return any(index - i > 1 for i in divided)


def _taken(part: Any, field: str, quantity: str) -> Any:
    """The tree of a quantity, from a field. `_given` is the way back."""
    tree = getattr(part, field)
    if field == "var":
        return jax.tree.map(_second_moment, tree, part.mu)
    return jax.tree.map(np.negative, tree) if quantity == "step" else tree


def _given(values: Values, field: str, quantity: str, at: Path) -> Array | None:
    """A leaf of a field, from the quantities."""
    found, mean = (values.get(q, {}).get(at) for q in (quantity, "mu"))
    if field == "var" and found is not None:
        return None if mean is None else _variance(found, mean)
    return -1.0 * found if quantity == "step" and found is not None else found


def _second_moment(var: Any, mu: Any) -> Array:
    return as_numpy(var) + np.abs(as_numpy(mu)) ** 2


def _variance(nu: Array, mu: Array) -> Array:
    """ν − |m|² in double; of a complex ν, by parts."""
    if np.iscomplexobj(nu):
        return _variance(nu.real, mu.real) + 1j * _variance(nu.imag, mu.imag)
    return np.maximum(nu.astype(float) - np.abs(mu).astype(float) ** 2, 0.0)


def _merged(trees: list[Any]) -> Any:
    """One tree of those of an `optax.partition`, each of which masks the others' leaves."""

    def masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    def first(*leaves: Any) -> Any:
        return next((x for x in leaves if not masked(x)), leaves[0])

    return jax.tree.map(first, *trees, is_leaf=masked)


def _rate_of_chain(rates: Rates, parts: Parts, path: Any) -> float | None:
    """The learning rate of the parameters of one chain, if they have one."""
    chain = [part for there, part in parts if there[:-1] == path[:-1]]
    leaves = {at[1:] for part in chain for at, _ in _leaves(part)}  # () is that of a scalar
    found = {rates[at] for at in leaves & rates.keys()}
    return found.pop() if len(found) == 1 else None


def _rates_by_leaf(convert: Convert, rates: Rates, named: Mapping[str, Named]) -> Rates:
    """The rate of all, or of each leaf: the weights' conversion moves it as it moves all else."""
    different = set(rates.values())
    if len(different) == 1:
        return {(): different.pop()}
    shapes = {name: np.shape(x) for arrays in named.values() for name, x in arrays.items()}
    full = {name: np.full(shape, rates[name]) for name, shape in shapes.items()}
    leaves = leaves_of(full and convert(full))
    return {at: float(x.flat[0]) for at, x in leaves.items() if x.size}


def _counted(state: optax.OptState, count: float) -> optax.OptState:
    """The state with this number of steps in every `StoredAsState`: rounding depends on it."""

    def part(x: Any) -> Any:
        if not isinstance(x, StoredAsState):
            return x
        steps = _put("count", np.asarray(count), x.rounding_count)
        return StoredAsState(steps, _counted(x.inner_state, count))

    return jax.tree.map(part, state, is_leaf=lambda x: isinstance(x, StoredAsState))


def _check_lack(function: str, quantity: str, where: str, values: Values) -> None:
    """Refuse to leave a field as it is, unless it is a rate."""
    if quantity == "count":
        raise ValueError(f"{function}: the source has no number of steps: give count=")
    if quantity in WORDS:
        no_rate = quantity in _FORMS and values.keys() & _FORMS
        lack = _NO_RATE if no_rate else f"no {WORDS[quantity]}"
        raise ValueError(f"{function}: the source has {lack} for {where}")


def _check_used(function: str, values: Values, used: Mapping[str, set[Path]]) -> None:
    """Refuse what was in no place; of the momentum's two forms a state has one."""
    for quantity in sorted(values, key=list(WORDS).index):
        kind = _kind(quantity)
        if left := values[quantity].keys() - used.get(kind, set()):
            raise ValueError(
                f"{function}: the source has {kind} of {'/'.join(min(left))!r}, and `like` has no "
                "place for it; is `like` of the same parameters, momentum and centring?"
            )


def path_of(path: Any) -> Path:
    """A leaf's path in a tree of parameters, the same for dictionaries and for an `nnx.State`."""
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and keys[-1] == "value":
        keys.pop()
    return tuple(map(str, keys))


def leaves_of(tree: Any) -> dict[Path, Array]:
    """A tree's leaves by their paths."""
    return {path: as_numpy(x) for path, x in _leaves(tree)}


def _leaves(tree: Any) -> list[tuple[Path, Any]]:
    leaves = cast(Any, jax.tree_util.tree_leaves_with_path(tree))
    return [(path_of(path), x) for path, x in leaves]


def as_numpy(x: Any) -> Array:
    """As NumPy; half precision as float32, also that of a torch tensor, which NumPy refuses."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.resolve_conj() if hasattr(x, "resolve_conj") else x
        x = x.float() if str(x.dtype) in ("torch.bfloat16", "torch.float16") else x
    array = np.asarray(x)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def _put(where: str, value: Array, old: Any) -> Any:
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


def of_shape(where: str, x: Array, shape: tuple[int, ...]) -> Array:
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


def as_mapping(x: Any) -> Mapping[str, Any] | None:
    """`x`, if it is a mapping."""
    return cast("Mapping[str, Any]", x) if isinstance(x, Mapping) else None


def shown(x: Any) -> str:
    """What a wrong argument is, in a line."""
    by_key = as_mapping(x)
    if by_key is not None:
        return f"a {type(x).__name__} of {', '.join(map(str, list(by_key)[:4])) or 'nothing'}"
    return f"{type(x).__name__} {x!r:.60}"


def _converted(function: str, convert: Convert, named: Named) -> Any:
    try:
        return convert(dict(named))
    except Exception as error:
        error.add_note(f"{function}: convert was called with {sorted(named)}")
        raise
