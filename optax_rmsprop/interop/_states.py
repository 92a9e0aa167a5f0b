"""From the named arrays of a framework to an Optax state, and back."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax

from ._arrays import Array as Array
from ._arrays import Convert as Convert
from ._arrays import ConvertBack as ConvertBack
from ._arrays import (
    Named,
    Partial,
    Path,
    array_of,
    check_numbers,
    leaves_with_paths,
    of_shape,
    owned,
)
from ._arrays import as_mapping as as_mapping
from ._arrays import as_numpy as as_numpy
from ._arrays import learning_rate_of as learning_rate_of
from ._arrays import same_names as same_names
from ._arrays import shown as shown
from ._arrays import whole_number as whole_number
from ._optax import NO_RATE, Contents, both_forms, fill
from ._optax import WORDS as WORDS
from ._optax import quantities as quantities
from ._optax import read as read
from ._survey import FORMS, SCALARS
from ._survey import Momentum as Momentum


class Variables(NamedTuple):
    """The variables of a framework that has one for each quantity of each parameter."""

    values: Mapping[Any, Any]  # by name or number
    roles: Mapping[Any, tuple[str, str]]  # the quantity of each, and the parameter; or no role
    names: Sequence[str]  # of the parameters

    def scalar(self, quantity: str, given: float | None = None) -> float | None:
        """What is given, or the first variable of this quantity, if there is one."""
        keys = (key for key, role in self.roles.items() if role[0] == quantity)
        found = (float(array_of(str(key), self.values[key])) for key in keys)
        return next(found, None) if given is None else given


def from_named(
    function: str,
    named: Mapping[str, Named],
    like: optax.OptState,
    convert: Convert,
    *,
    rates: Mapping[str, float | None],
    counts: Mapping[str, int | None],
    momentum: Momentum | None = None,
    missing_ok: bool = False,
    hints: Mapping[str, str] | None = None,
) -> optax.OptState:
    """`like` with the arrays of each quantity, and the rate and the count of each parameter.

    A parameter may have no arrays, where `like` has none. The hints are for the error if it has.
    """
    for quantity, arrays in named.items():
        for name, x in arrays.items():
            check_numbers(f"{function}: {name!r}", quantity, x)
    values: dict[str, Mapping[Path, Any]] = {
        quantity: _leaves(function, convert, arrays)
        for quantity, arrays in both_forms(named, rates).items()
    }
    shapes = {name: x.shape for arrays in named.values() for name, x in arrays.items()}
    origins = functools.cache(lambda: _origins(function, convert, shapes))
    for quantity, numbers in (("learning_rate", rates), ("count", counts)):
        known = {name: x for name, x in numbers.items() if x is not None and name in shapes}
        if set(known.values()) == set(numbers.values()) - {None} and len(set(known.values())) == 1:
            values[quantity] = {(): known.popitem()[1]}
        elif known:
            of = {at: {known.get(name) for name in names} for at, names in origins().items()}
            values[quantity] = {
                at: x
                for at, found in of.items()
                if len(found) == 1 and (x := found.pop()) is not None
            }
    if missing_ok:
        whole = {name for name, shape in shapes.items() if 0 not in shape}
        if lost := sorted(whole.difference(*origins().values())):
            raise ValueError(
                f"{function}: convert drops {', '.join(map(repr, lost))}; missing_ok is for "
                "parameters without a state: leave the state of these out, if it is not wanted"
            )
    return fill(function, like, values, momentum, missing_ok, hints)


def to_named(
    function: str,
    found: Contents,
    convert: ConvertBack,
    rates: Mapping[str, float | None],
    form: str,
) -> dict[str, Named]:
    """The arrays of each quantity by the parameters' names, the momentum in one form.

    They are copies, for a framework that writes to them. What the state masks is left out.
    """
    named: dict[str, Named] = {}
    for quantity, tree in found.trees.items():
        named[quantity] = arrays = _named(function, convert, tree)
        # Of what is masked nothing is lost.
        leaves = jax.tree.leaves(tree)
        whole = sum(x.size for x in arrays.values()) == sum(np.asarray(x).size for x in leaves)
        absent = rates.keys() - arrays.keys() if found.masked and whole else set[str]()
        same_names(function, rates.keys() - absent, arrays)
    momenta = [both_forms({q: named.pop(q)}, rates) for q in FORMS & named.keys()]
    if any(form not in both for both in momenta):
        raise ValueError(f"{function}: {NO_RATE}: give learning_rate=")
    if momenta:  # some groups may have steps, and others directions
        named[form] = {name: x for both in momenta for name, x in both[form].items()}
    return named


def counts_of(
    function: str, found: Contents, convert: ConvertBack, names: Iterable[str]
) -> dict[str, int]:
    """The steps of each parameter by its name, where the state has them."""
    different = set(found.counts.values())
    if len(different) <= 1:
        return dict.fromkeys(names, different.pop()) if different else {}
    leaves = leaves_with_paths(found.trees["nu"])
    full = [np.full(np.shape(x), found.counts.get(at, 0)) for at, x in leaves]
    arrays = _named(
        function, convert, cast(Any, jax.tree.structure)(found.trees["nu"]).unflatten(full)
    )
    return {name: int(x.flat[0].real) for name, x in arrays.items() if x.size}


def from_variables(
    function: str,
    variables: Variables,
    like: optax.OptState,
    convert: Convert,
    count: float | None,
    learning_rate: float | None,
    momentum: Momentum | None = None,
) -> optax.OptState:
    """`like` with what variables hold. A count or a rate that is given goes before a variable."""
    named: dict[str, Named] = {}
    for key, (quantity, name) in variables.roles.items():
        if quantity not in SCALARS:
            array = array_of(f"{function}: {key}", variables.values[key])
            named.setdefault(quantity, {})[name] = array
    for arrays in named.values():
        same_names(function, variables.names, arrays)
    steps = variables.scalar("count", given=count)
    steps = None if steps is None else whole_number(f"{function}: the number of steps", steps)
    rate = variables.scalar("learning_rate", given=learning_rate)
    rate = None if rate is None else learning_rate_of(f"{function}: learning_rate", rate)
    return from_named(
        function,
        named,
        like,
        convert,
        rates=dict.fromkeys(variables.names, rate),
        counts=dict.fromkeys(variables.names, steps),
        momentum=momentum,
    )


def to_variables(
    function: str,
    variables: Variables,
    state: optax.OptState,
    convert: ConvertBack,
    learning_rate: float | None,
    momentum: Momentum | None = None,
) -> dict[Any, Any]:
    """Variables with what a state holds. Their own rate stays, and it or a given one is used."""
    found = read(function, state, momentum)
    rate = variables.scalar("learning_rate", given=learning_rate)
    if rate is None and len(known := set(found.rates.values())) == 1:
        rate = known.pop()
    if rate is not None:
        rate = learning_rate_of(f"{function}: learning_rate", rate)
    named = to_named(function, found, convert, dict.fromkeys(variables.names, rate), "step")
    offered = {quantity for quantity, _ in variables.roles.values()}
    for quantity in named.keys() - offered:
        raise ValueError(f"{function}: the optimizer in `like` has no {WORDS[quantity]}")

    def new(key: Any, value: Any) -> Array:
        old = array_of(f"{function}: {key}", value)
        quantity, name = variables.roles.get(key, ("", ""))
        array = named.get(quantity, {}).get(name)
        if array is not None:
            return of_shape(f"{function}: {name}", array, old.shape).astype(old.dtype)
        if quantity == "count" and found.counts:
            return np.asarray(max(found.counts.values()), old.dtype)
        if quantity in WORDS and name in named["nu"]:
            raise ValueError(
                f"{function}: the state has no {WORDS[quantity]} for {name!r}, and the optimizer "
                "in `like` has one"
            )
        return owned(old)

    return {key: new(key, value) for key, value in variables.values.items()}


def _leaves(function: str, convert: Convert, named: Mapping[str, Any]) -> dict[Path, Array]:
    """The leaves of the tree that named arrays become."""
    try:
        tree = convert(Partial(named))
    except Exception as error:
        error.add_note(f"{function}: convert was called with {sorted(named)}")
        raise
    leaves = leaves_with_paths(tree)
    return {at: array_of(f"{function}: {'/'.join(at)!r}", x) for at, x in leaves}


def _origins(
    function: str, convert: Convert, shapes: Mapping[str, tuple[int, ...]]
) -> dict[Path, set[str]]:
    """The parameters whose numbers each leaf has that `convert` makes."""
    # A number for each, of 8 bits and an exponent: `convert` may round to half precision.
    numbers = {float((128 + i % 128) << (i // 128)): name for i, name in enumerate(shapes)}
    full = {name: np.full(shapes[name], x) for x, name in numbers.items()}
    leaves = _leaves(function, convert, full)
    return {
        at: {numbers[i] for i in np.unique(x.real).tolist() if i in numbers}
        for at, x in leaves.items()
    }


def _named(function: str, convert: ConvertBack, tree: Any) -> Named:
    """The named arrays that a tree becomes."""
    try:
        arrays = as_mapping(convert(jax.tree.map(as_numpy, tree)))
    except Exception as error:
        error.add_note(f"{function}: convert was called with {jax.tree.structure(tree)}")
        raise
    if arrays is None:
        raise TypeError(f"{function}: convert must return a dictionary of named arrays")
    kept = {name: x for name, x in arrays.items() if not _is_nothing(x)}
    return {name: owned(array_of(f"{function}: {name!r}", x)) for name, x in kept.items()}


def _is_nothing(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)
