"""Optax: what two states have in common, whatever links hold it."""

import collections
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from ._arrays import Path, array_of, as_numpy, is_idle, learning_rate_of, put, shown
from ._optax import both_forms, variance
from ._survey import FORMS, SCALARS, TREES, Momentum, Slot, Survey


class Transferred(NamedTuple):
    """What `transfer` returns."""

    state: optax.OptState  # `like`, with what the source had
    unfilled: list[str]  # paths in `like` that are as they were
    unused: list[str]  # paths in the source that were not carried


def transfer(
    source: optax.OptState,
    like: optax.OptState,
    *,
    learning_rate: float | None = None,
    momentum: Momentum | None = None,
) -> Transferred:
    """Carry what two Optax-style states have in common, and say what was left.

    From `optax.rmsprop` to this package, or from one configuration to another: with momentum added,
    centred or not, the rate on the other side of the buffer, with layers added or removed. What has
    the same type at the same place is carried as it is, the state of any other transformation too.
    ν is var + |mu|². From a centred state with bias correction to another kind of state ν is not
    the same thing, and this is inexact.

    Args:
        source: A state with values, Optax's or ours.
        like: The state to fill, `tx.init(params)`. Injected hyperparameters stay as they are there.
        learning_rate: The rate that moves a momentum in or out of its buffer, where the source has
            none.
        momentum: What a buffer holds where the links of a state do not tell, since Optax's rates
            leave no name: "steps" if the rate comes before it, or "directions".

    Returns:
        `Transferred(state, unfilled, unused)`: `like` with the source's values in its own dtypes
        and shardings, and two lists of paths. Both empty means that everything was carried; a leaf
        of another shape is in both.

    Raises:
        TypeError: if the source is no state of an optimizer.
        ValueError: if nothing tells what a momentum buffer holds, or what is carried is nothing
            that RMSprop accumulates, or is too large for the dtype in `like`.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> from optax_rmsprop import interop
        >>> params = jnp.array([1.0, 2.0])
        >>> theirs = optax.rmsprop(0.1, decay=0.75)
        >>> _, old = theirs.update(params * 4, theirs.init(params))
        >>> new = optax_rmsprop.rmsprop(0.1, decay=0.75, momentum=0.9).init(params)
        >>> state, unfilled, unused = interop.transfer(old, new)
        >>> print(state[0].nu, unfilled[-2:], unused)
        [ 4. 16.] ['[2].trace_count', '[2].trace'] []
    """
    there, here = (Survey("transfer", state, momentum) for state in (source, like))
    known = _Source(there, learning_rate)
    new, unfilled = list[Any](), list[str]()
    for slot in here.slots:
        value = known.of(here, slot)
        if value is None:
            unfilled.append(str(slot))
        new.append(slot.value if value is None else value)
    unused = [str(slot) for slot in there.slots if not known.used(slot)]
    carried = len(unfilled) < len(here.slots)
    if here.slots and not carried and not any(link.trees for link in there.links):
        raise TypeError(f"transfer: nothing in {shown(source)} has a place in `like`")
    return Transferred(here.rebuilt(new, like), unfilled, unused)


class _Source:
    """The leaves of a state by their places and by what they hold, and which of them were used."""

    def __init__(self, survey: Survey, learning_rate: float | None):
        self.survey = survey
        self.places = {str(slot): slot for slot in survey.slots}
        self.slots = collections.defaultdict[tuple[str, Path], list[Slot]](list)
        for slot in survey.slots:
            self.slots[slot.quantity, slot.at].append(slot)
        self.scalars, self.rates = functools.cache(survey.scalars), functools.cache(survey.rates)
        self.rate = learning_rate
        if learning_rate is not None:
            self.rate = learning_rate_of("transfer: learning_rate", learning_rate)
        self.taken, self.numbers = set[str](), set[tuple[str, Any]]()

    def used(self, slot: Slot) -> bool:
        """Whether a leaf, or its number, was carried."""
        if slot.quantity in TREES and is_idle(slot.value):
            return True
        if str(slot) in self.taken or np.ndim(slot.value):
            return str(slot) in self.taken
        numbers = {x for quantity, x in self.numbers if quantity == slot.quantity}
        return bool(numbers) and self.survey.scalar(slot) in numbers

    def of(self, here: Survey, slot: Slot) -> Any:
        """What the source has for a leaf of `like`, if it has the same shape."""
        where = f"transfer: {slot}"
        same = self.places.get(str(slot))
        if same is not None and self._is_same(same, here, slot):
            self.taken.add(str(same))
            self.survey.check(same)
            if not isinstance(getattr(slot.value, "dtype", np.dtype(float)), np.dtype):  # keys
                return same.value
            return put(where, as_numpy(same.value), slot.value)
        if slot.quantity in TREES and is_idle(slot.value):
            return slot.value  # there is nothing to carry
        if slot.quantity in SCALARS:
            numbers = here.common(slot.link, self.scalars(slot.quantity))
            if len(numbers) != 1 or np.ndim(slot.value):
                return None
            (number,) = numbers
            self.numbers.add((slot.quantity, number))
            return put(where, np.asarray(number), slot.value)
        value, slots = self._moment(here, slot)
        if value is None or not _fits(value, slot.value):
            return None
        self.taken.update(map(str, slots))
        return put(where, value, slot.value)

    def _is_same(self, there: Slot, here: Survey, slot: Slot) -> bool:
        """Whether two leaves at one place are of the same type and meaning."""
        same = there.link.name == slot.link.name and there.quantity == slot.quantity
        if not same or np.shape(there.value) != np.shape(slot.value):
            return False
        if slot.quantity == "trace":
            return self.survey.form(there.link) == here.form(slot.link)
        if slot.quantity == "setting":
            return bool(np.all(np.asarray(there.value) == np.asarray(slot.value)))
        return jnp.iscomplexobj(there.value) == jnp.iscomplexobj(slot.value)

    def _moment(self, here: Survey, slot: Slot) -> tuple[Any, list[Slot]]:
        """An accumulator by what it holds, and the leaves that it is made of."""
        by = {q: self.slots.get((q, slot.at), []) for q in TREES}
        sole = [x for x in here.of("division") if slot.at in x.leaves]
        if len(by["nu"] + by["var"]) != 1 or len(sole) != 1 or slot.quantity not in by:
            return None, []  # of two none is the one
        arrays = dict[str, Any]()
        for quantity, found in by.items():
            if len(found) == 1:
                self.survey.check(found[0])
                arrays[quantity] = array_of(f"transfer: {found[0]}", found[0].value)
        if slot.quantity == "trace":
            return self._momentum(here, slot, arrays.get("trace")), by["trace"]
        if slot.quantity == "nu" and "var" in arrays:
            return arrays["var"] + np.abs(arrays["mu"]) ** 2, by["var"]
        if slot.quantity == "var" and "nu" in arrays:
            centered = "mu" in arrays
            return (variance(arrays["nu"], arrays["mu"]) if centered else None), by["nu"]
        return arrays.get(slot.quantity), by[slot.quantity]

    def _momentum(self, here: Survey, slot: Slot, buffer: Any) -> Any:
        if buffer is None:
            return None
        form, wanted = self.survey.form(self.slots["trace", slot.at][0].link), here.form(slot.link)
        if form not in FORMS or wanted not in FORMS:
            return None
        values = {form: {slot.at: -buffer if form == "step" else buffer}}
        rates = self.rates() if self.rate is None else {slot.at: self.rate}
        moved = both_forms(values, rates).get(wanted, {}).get(slot.at)
        return -moved if wanted == "step" and moved is not None else moved


def _fits(value: Any, old: Any) -> bool:
    shape = np.shape(old)
    return np.shape(value) == shape or (np.iscomplexobj(value) and (*np.shape(value), 2) == shape)
