"""What stands where in an Optax state.

A link is known by the class of its state, so that no field of a tree of parameters is taken for
one. What holds links (chains, masks, partitions, wrappers) stays as it is. A momentum buffer is one
of two quantities: a "step" contains the learning rate and is what a parameter loses, so that
`trace` is minus a step; a "direction" is without it. The order of the links tells which.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import numpy as np

from ..storage import decoded, encoded_like
from ._arrays import (
    Path,
    array_of,
    check_numbers,
    children,
    flatten,
    is_idle,
    learning_rate_of,
    leaves_with_paths,
    path_of,
    whole_number,
)

Momentum: TypeAlias = Literal["steps", "directions"]  # what a buffer holds
Order: TypeAlias = tuple[int | str, ...]  # numbers where one link comes after another

FORMS = {"step", "direction"}
SCALARS = {"count", "learning_rate"}
TREES = {"nu", "mu", "var", "trace", "ema"}

_RMS, _STDDEV = {"count": "count", "nu": "nu"}, {"count": "count", "mu": "mu", "nu": "nu"}
_ROLES: dict[str, dict[str, str]] = {  # of the fields of a class, named by its package
    "optax_rmsprop.ScaleByRmsState": _RMS,
    "optax_rmsprop.ScaleByStddevState": {"count": "count", "mu": "mu", "var": "var"},
    "optax_rmsprop.TraceState": {"trace_count": "count", "trace": "trace"},
    "optax_rmsprop.EmaState": {"ema_count": "count", "ema": "ema"},
    "optax_rmsprop.ScaleByLearningRateState": {
        "rate_count": "count", "last_learning_rate": "learning_rate",
    },
    "optax_rmsprop.AddDecayedWeightsState": {"decay_count": "count"},
    "optax_rmsprop.StoredAsState": {"rounding_count": "count"},
    "optax.ScaleByRmsState": _RMS,
    "optax.ScaleByRmsWithCountState": _RMS,
    "optax.ScaleByRStdDevState": _STDDEV,
    "optax.ScaleByRStdDevWithCountState": _STDDEV,
    "optax.TraceState": {"trace": "trace"},
    "optax.ScaleByScheduleState": {"count": "count"},
    "optax.InjectHyperparamsState": {"count": "count", "hyperparams": "setting"},
    "optax.InjectStatefulHyperparamsState": {"count": "count", "hyperparams": "setting"},
    "optax.WrappedScheduleState": {"count": "count"},
    "optax.MultiStepsState": {"gradient_step": "count"},
}  # fmt: skip
# Optax's links for a rate leave one of these two, and so do many others.
_PERHAPS_RATES = {"optax.EmptyState", "optax.ScaleByScheduleState"}
_NO_RATES = {
    "optax.EmaState", "optax.AddNoiseState", "optax.ReduceLROnPlateauState", "optax.ZeroNansState",
}  # fmt: skip
_RATE_NAMES = ("learning_rate", "lr", "step_size")


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """A link in a state, or what stands in the place of one."""

    name: str  # of its class
    path: Any
    order: Order
    scope: Order | None  # of the mask that it is in
    kind: str  # "division", "momentum", "rate", "perhaps" a rate, or nothing of these
    trees: dict[str, Any]  # like the parameters, by quantity

    def __str__(self) -> str:
        return f"{jax.tree_util.keystr(self.path) or 'the root'} ({self.name.rpartition('.')[2]})"

    @functools.cached_property
    def leaves(self) -> frozenset[Path]:
        """The parameters that it has values for."""
        return frozenset(at for tree in self.trees.values() for at, _ in leaves_with_paths(tree))


class Slot(NamedTuple):
    """A leaf of a state."""

    path: Any
    value: Any
    link: Link
    quantity: str  # of `_ROLES`, or nothing if it is none of RMSprop's
    at: Path  # in the tree of parameters

    def __str__(self) -> str:
        return jax.tree_util.keystr(self.path)


class Survey:
    """A state's links, and its leaves, in their order."""

    def __init__(self, function: str, state: Any, momentum: Momentum | None = None):
        if momentum not in (None, "steps", "directions"):
            raise ValueError(
                f'{function}: momentum must be "steps", "directions" or None, got {momentum!r}'
            )
        self.function, self.told, self.state = function, momentum, decoded(state)
        self.links, self.slots = list[Link](), list[Slot]()
        self._visit(self.state, (), (), None)
        self._form = functools.cache(self._form_of)  # of a link: a state may have many leaves

    def _visit(self, node: Any, path: Any, order: Order, scope: Order | None) -> None:
        name, roles = class_of(node), _ROLES.get(class_of(node), {})
        fields = [field for field in getattr(node, "_fields", ()) if roles.get(field) in TREES]
        trees = {roles[field]: getattr(node, field) for field in fields}
        link = Link(name, path, order, scope, _kind(node), trees)
        if roles or not _holds_links(node):
            self.links.append(link)
        if not roles and not _holds_links(node):
            self.slots += [Slot((*path, *below), x, link, "", ()) for below, x in flatten(node)]
            return
        ordered = type(node) in (tuple, list, collections.OrderedDict)
        inner = order if name == "optax.MaskedState" else scope
        for i, (key, child) in enumerate(children(node)):
            role = roles.get(getattr(key[0], "name", ""), "")
            if not role:
                token = i if ordered else str(key[0])
                self._visit(child, (*path, *key), (*order, token), inner)
                continue
            for below, x in flatten(child):
                at = path_of(below)
                known = role != "setting" or not _scheduled(node, at)
                full = (*path, *key, *below)
                self.slots.append(Slot(full, x, link, role if known else "", at))

    def of(self, kind: str) -> list[Link]:
        """The links of a kind."""
        return [link for link in self.links if link.kind == kind]

    def reach(self, link: Link) -> frozenset[Path] | None:
        """The parameters that a link acts on, None being all."""
        if link.trees or link.scope is None:
            return link.leaves if link.trees else None
        beside = [x for x in self.links if x.order[: len(link.scope)] == link.scope and x.trees]
        return frozenset[Path]().union(*(x.leaves for x in beside)) if beside else None

    @functools.cached_property
    def everywhere(self) -> frozenset[Path]:
        """The parameters that the links of RMSprop have values for."""
        return frozenset[Path]().union(*(link.leaves for link in self.links))

    def parameters(self, link: Link) -> frozenset[Path]:
        """The parameters that a link acts on, by name."""
        reach = self.reach(link)
        return self.everywhere if reach is None else reach

    def meet(self, a: Link, b: Link) -> bool:
        """Whether two links act on a parameter both."""
        leaves = self.reach(a), self.reach(b)
        return None in leaves or not cast(Any, leaves[0]).isdisjoint(leaves[1])

    def form(self, link: Link) -> str:
        """What a momentum buffer holds: "step", "direction", "gradient" or, if not RMSprop's, "".

        A gradient is what is divided afterwards.
        """
        found = self._form(link)
        told = {"steps": "step", "directions": "direction", None: None}[self.told]
        if found is None and told is None:
            raise ValueError(
                f"{self.function}: nothing in the state tells whether the momentum at {link} "
                'contains the learning rate: give momentum="steps" if the rate comes before it, '
                'or "directions"'
            )
        return cast(str, told if found is None else found)

    def quantity(self, slot: Slot) -> str:
        """What a leaf holds, the momentum in its form."""
        return self.form(slot.link) if slot.quantity == "trace" else slot.quantity

    def _form_of(self, link: Link) -> str | None:
        divisions = [x for x in self.of("division") if self.meet(x, link)]
        sides = {_follows(link, x) for x in divisions}
        if sides != {1}:
            return "" if not sides else "gradient" if -1 in sides else None
        for kind in ("rate", "perhaps"):
            rates = [x for x in self.of(kind) if self.meet(x, link)]
            after = [x for x in rates if all(_follows(x, d) >= 0 for d in divisions)]
            sides = {_follows(x, link) for x in after}
            if kind == "perhaps":
                sides.discard(0)
                # Optax's RMSprop has its rate there. The rate of ours would have its name.
                if -1 in sides and any(x.name.startswith("optax_rmsprop.") for x in divisions):
                    return None
            if sides:
                return {-1: "step", 1: "direction"}.get(sides.pop()) if len(sides) == 1 else None
        return "direction"

    def scalars(self, quantity: str) -> dict[Path, Any]:
        """The number of each parameter: that of its division before that of other links."""
        found: dict[Path, set[Any]] = {}
        slots = [s for s in self.slots if s.quantity == quantity and np.ndim(s.value) == 0]
        for slot in sorted(slots, key=lambda slot: slot.link.kind == "division"):
            value = self.scalar(slot)
            for at in self.parameters(slot.link):
                found[at] = (
                    {value} if slot.link.kind == "division" else found.get(at, set()) | {value}
                )
        if quantity == "count":
            return {at: max(values) for at, values in found.items()}
        return {at: next(iter(values)) for at, values in found.items() if len(values) == 1}

    def check(self, slot: Slot) -> None:
        """Refuse what RMSprop has not counted or accumulated."""
        where = f"{self.function}: {slot}"
        if slot.quantity in TREES and not is_idle(slot.value):
            check_numbers(where, slot.quantity, array_of(where, slot.value))
        elif slot.quantity in SCALARS:
            for x in np.ravel(array_of(where, slot.value)):  # of each member of a population
                self.scalar(slot._replace(value=x))

    def scalar(self, slot: Slot) -> Any:
        """The number in a slot."""
        read = whole_number if slot.quantity == "count" else learning_rate_of
        return read(f"{self.function}: {slot}", slot.value)

    def rates(self) -> dict[Path, float]:
        """The learning rate of each parameter, where it is known: a link's, or an injected one."""
        names = [slot for slot in self.slots if slot.link.name.startswith("optax.Inject")]
        injected = {
            float(array_of(f"{self.function}: {slot}", slot.value))
            for slot in names
            if slot.at and slot.at[-1] in _RATE_NAMES
        }
        known = self.scalars("learning_rate")
        if known or len(injected) != 1:
            return known
        return dict.fromkeys(self.everywhere, injected.pop())

    def common(self, link: Link, scalars: Mapping[Path, Any]) -> set[Any]:
        """The numbers of the parameters that a link acts on."""
        reach = self.reach(link)
        return {x for at, x in scalars.items() if reach is None or at == () or at in reach}

    def rebuilt(self, values: list[Any], like: Any) -> Any:
        """The state with other leaves, in the codes of `like`."""
        tree = cast(Any, jax.tree.structure(self.state))
        return encoded_like(tree.unflatten(values), like)


def class_of(node: Any) -> str:
    """The package and the class of a named tuple."""
    cls = cast(Any, type(node))
    known = isinstance(node, tuple) and hasattr(cls, "_fields")
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}" if known else ""


def _kind(node: Any) -> str:
    name, roles = class_of(node), set(_ROLES.get(class_of(node), {}).values())
    if "setting" in roles:
        rate = not set(_RATE_NAMES).isdisjoint(node.hyperparams)
        return "" if _holds_links(node.inner_state) else "rate" if rate else "perhaps"
    if roles and name not in _PERHAPS_RATES:
        kinds = dict(nu="division", var="division", trace="momentum", learning_rate="rate")
        return next((kinds[role] for role in roles if role in kinds), "")
    return "" if name in _NO_RATES else "perhaps"


def _holds_links(node: Any) -> bool:
    def known(x: Any) -> bool:
        return class_of(x) in _ROLES

    return any(map(known, jax.tree.leaves(node, is_leaf=known)))


def _scheduled(node: Any, at: Path) -> bool:
    """Whether an injected number is that of a schedule, and only noted."""
    return at[-1] in getattr(node, "hyperparams_states", {})


def _follows(a: Link, b: Link) -> int:
    """1 if `a` comes after `b`, -1 if before it, 0 if they have no order."""
    for x, y in zip(a.order, b.order, strict=False):
        if x != y:
            numbers = isinstance(x, int) and isinstance(y, int)
            return (1 if cast(int, x) > cast(int, y) else -1) if numbers else 0
    return 0
