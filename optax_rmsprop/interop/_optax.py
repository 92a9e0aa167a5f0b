"""What an Optax state holds of RMSprop, and a state filled with it."""

import collections
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np
import optax

from ._arrays import Array, Path, array_of, children, flatten, is_idle, path_of, put, shown
from ._survey import (
    FORMS,
    SCALARS,
    Link,
    Momentum,
    Slot,
    Survey,
    class_of,
)

Values: TypeAlias = Mapping[str, Mapping[Path, Any]]  # quantity -> leaf -> array, () of all leaves

WORDS = dict(
    nu="second moment",
    mu="mean (it is not centred)",
    **dict.fromkeys(FORMS, "momentum"),
    ema="average of steps",
)
NO_RATE = "no learning rate to move in or out of the momentum"
_MOMENTS = {"nu", "mu", "momentum", "ema"}


class Contents(NamedTuple):
    """What a state holds."""

    trees: dict[str, Any]  # "nu", "mu", and "step" or "direction": trees like the parameters
    counts: dict[Path, int]  # of each leaf, if there is one
    rates: dict[Path, float]
    masked: bool  # some parameters have no values


def read(function: str, state: optax.OptState, momentum: Momentum | None) -> Contents:
    """The contents of a state of RMSprop, ν in one form whatever links it comes from."""
    found = Survey(function, state, momentum)
    divisions, momenta = found.of("division"), found.of("momentum")
    if not divisions:
        names = sorted({name.rpartition(".")[2] for name in _classes(state)} - {""})
        raise TypeError(
            f"{function}: there is no second moment of RMSprop in "
            f"{'a state of ' + ', '.join(names) if names else shown(state)}"
        )
    _check_sole(found)
    for slot in found.slots:
        _check_place(found, slot)
    trees = collections.defaultdict[str, list[Any]](list)
    for link in (*divisions, *(link for link in momenta if link.leaves)):
        has = {quantity: jax.tree.map(_unless_idle, tree) for quantity, tree in link.trees.items()}
        if "var" in has:
            has["nu"] = jax.tree.map(_second_moment, has.pop("var"), has["mu"])
        if "trace" in has:
            form, trace = _checked_form(found, link), has.pop("trace")
            has[form] = jax.tree.map(np.negative, trace) if form == "step" else trace
        for quantity, tree in has.items():
            trees[quantity].append(tree)
    merged = {quantity: functools.reduce(_merged, some) for quantity, some in trees.items()}
    masked = any(map(_is_masked, jax.tree.leaves(merged, is_leaf=_is_masked)))
    return Contents(merged, found.scalars("count"), found.rates(), masked)


def fill(
    function: str,
    like: optax.OptState,
    values: Values,
    momentum: Momentum | None,
    missing_ok: bool = False,
    hints: Mapping[str, str] | None = None,
) -> optax.OptState:
    """`like` with `values`, which must fit exactly, but for what `like` masks.

    Scalars have the leaves of their parameters, or () for all. What `like` has is kept of leaves
    without a second moment, if that is `missing_ok`. A hint says more of a quantity that lacks.
    """
    found = Survey(function, like, momentum)
    _check_sole(found)
    for link in found.of("momentum"):
        if found.form(link):
            _checked_form(found, link)
    used, new = collections.defaultdict[str, set[Path]](set), list[Any]()
    for slot in found.slots:
        where = f"{function}: {slot}"
        quantity = found.quantity(slot)
        value = _value(found, slot, quantity, values)
        if value is not None:
            used[kind_of(quantity)].add(slot.at)
            new.append(put(where, np.asarray(value), slot.value))
            continue
        absent = missing_ok and slot.at not in values.get("nu", {})
        if kind_of(quantity) in _MOMENTS and not absent and not is_idle(slot.value):
            _check_lack(found, slot, quantity, values, hints or {})
        if slot.quantity == "count" and found.parameters(slot.link):
            counts = sorted(map(int, found.common(slot.link, values.get("count", {}))))
            differ = f"the parameters of {slot} differ in their number of steps, {counts}"
            lack = differ if counts else "the source has no number of steps"
            raise ValueError(f"{function}: {lack}: give count={(hints or {}).get('count', '')}")
        if isinstance(slot.value, jax.ShapeDtypeStruct):
            raise TypeError(f"{where} is abstract, and the source has no value for it")
        new.append(slot.value)
    _check_used(found, values, used)
    return found.rebuilt(new, like)


def quantities(state: optax.OptState) -> set[str]:
    """Which of "nu", "mu" and "trace" a state has."""
    found = {quantity for link in Survey("interop", state).links for quantity in link.trees}
    return {"nu" if quantity == "var" else quantity for quantity in found}


def kind_of(quantity: str) -> str:
    """The quantity of a field or of an array, "momentum" in either form."""
    kinds = {"var": "nu", "trace": "momentum", "step": "momentum", "direction": "momentum"}
    return kinds.get(quantity, quantity)


def both_forms(values: Mapping[str, Any], rates: Mapping[Any, float | None]) -> dict[str, Any]:
    """Values with the momentum as a step and as a direction, if its rates are known."""
    known = {key: rate for key, rate in rates.items() if rate}
    for form, other, power in (("step", "direction", -1), ("direction", "step", 1)):
        if form in values and other not in values and values[form].keys() <= known.keys():
            moved = {key: known[key] ** power * x for key, x in values[form].items()}
            return {**values, other: moved}
    return dict(values)


def variance(nu: Array, mu: Array) -> Array:
    """ν − |m|² in double; of a complex ν, by parts."""
    if np.iscomplexobj(nu):
        return variance(nu.real, mu.real) + 1j * variance(nu.imag, mu.imag)
    return np.maximum(nu.astype(float) - np.abs(mu).astype(float) ** 2, 0.0)


def _classes(node: Any) -> Iterator[str]:
    """The names of the named tuples in a state."""
    yield class_of(node)
    for _, child in children(node):
        if child is not node:
            yield from _classes(child)


def _unless_idle(x: Any) -> Any:
    return optax.MaskedNode() if is_idle(x) else x


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _merged(a: Any, b: Any) -> Any:
    """One tree of two, each of which masks the other's leaves."""
    if _is_masked(a) or _is_masked(b):
        return b if _is_masked(a) else a

    def is_below(x: Any) -> bool:
        return x is not a

    below, tree = cast(Any, jax.tree.flatten(a, is_leaf=is_below))
    return tree.unflatten(map(_merged, below, tree.flatten_up_to(b)))


def _second_moment(var: Any, mu: Any) -> Array:
    var, mu = np.asarray(var), np.asarray(mu)
    return var + np.abs(mu) ** 2


def _checked_form(found: Survey, link: Link) -> str:
    """The form of a momentum buffer that other frameworks have."""
    form = found.form(link)
    if form == "gradient":
        raise ValueError(
            f"{found.function}: the momentum at {link} comes before the division: RMSprop's "
            "is after it"
        )
    if not form:
        raise ValueError(
            f"{found.function}: the momentum at {link} has no second moment of RMSprop"
        )
    if found.told and not found.told.startswith(form):
        raise ValueError(
            f"{found.function}: momentum={found.told!r}, and the links of the state have {form}s"
        )
    return form


def _check_sole(found: Survey) -> None:
    """Refuse two second moments, or two momenta, of the same parameters: which one is it?"""
    for links in found.of("division"), found.of("momentum"):
        for a, b in itertools.combinations(links, 2):
            if not a.leaves.isdisjoint(b.leaves):
                raise ValueError(f"{found.function}: {a} and {b} are of the same parameters")


def _check_place(found: Survey, slot: Slot) -> None:
    """Refuse a leaf without a value, and one with a value that no framework has a place for."""
    if slot.quantity in SCALARS:
        found.scalar(slot)
    elif slot.quantity and slot.quantity != "ema":
        found.check(slot)
    elif np.ndim(slot.value) and not is_idle(slot.value):
        if np.any(array_of(f"{found.function}: {slot}", slot.value)):
            raise ValueError(
                f"{found.function}: no RMSprop of another framework has a place for {slot}: give "
                "the part of the state that it has"
            )


def _value(found: Survey, slot: Slot, quantity: str, values: Values) -> Any:
    """What a leaf of a state gets, from the quantities."""
    if quantity in SCALARS:
        numbers = found.common(slot.link, values.get(quantity, {}))
        return numbers.pop() if len(numbers) == 1 else None
    value = values.get("nu" if quantity == "var" else quantity, {}).get(slot.at)
    mean = values.get("mu", {}).get(slot.at)
    if quantity == "var":
        return None if value is None or mean is None else variance(value, mean)
    return -value if quantity == "step" and value is not None else value


def _check_lack(
    found: Survey, slot: Slot, quantity: str, values: Values, hints: Mapping[str, str]
) -> None:
    if any(slot.at in values.get(form, {}) for form in FORMS if quantity in FORMS):
        raise ValueError(f"{found.function}: {NO_RATE} for {slot}: give learning_rate=")
    quantity = "nu" if quantity == "var" else quantity
    hint = hints.get(kind_of(quantity), "")
    words = "mean" if quantity == "mu" and values.get("mu") else WORDS[quantity]
    raise ValueError(f"{found.function}: the source has no {words} for {slot}{hint}")


def _check_used(found: Survey, values: Values, used: Mapping[str, set[Path]]) -> None:
    """Refuse what was in no place, if `like` does not mask it; a momentum has one of two forms.

    What one link masks and another has a value for is not masked.
    """
    trees = [tree for link in found.links for tree in link.trees.values()]
    masked = {path_of(p) for p, x in flatten(trees, _is_masked) if _is_masked(x)}
    masked = {at[1:] for at in masked}  # without the tree's number
    for quantity in sorted(values.keys() - SCALARS, key=list(WORDS).index):
        kind = kind_of(quantity)
        for at in sorted(values[quantity].keys() - used.get(kind, set())):
            if at in found.everywhere or not any(at[:n] in masked for n in range(len(at) + 1)):
                raise ValueError(
                    f"{found.function}: the source has {kind} of {'/'.join(at)!r}, and `like` has "
                    "no place for it; is `like` of the same parameters, momentum and centring?"
                )
