"""What every checkpoint of another framework has: arrays by name, and a rule for each group."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from ..interop._states import Variables
from ..interop._variables import numbers
from ._calls import Call
from ._guard import Refused

_QUANTITIES = {"nu": "nu", "mu": "mu", "step": "momentum"}
Array: TypeAlias = np.ndarray[Any, Any]
Convert: TypeAlias = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says of a checkpoint."""

    names: tuple[str, ...] = ()  # of the optimizer's parameters, in its order
    model: str = ""  # which weights, of several
    optimizer: str = ""  # which optimizer, of several
    dialect: str = ""  # whose rule it is, where the file does not tell
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    count: int | None = None
    missing_ok: bool = False
    beside: Mapping[str, Array] = dataclasses.field(default_factory=dict[str, Array])
    """Weights of a file of their own."""
    in_order: bool = True  # whether these are in the model's order


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that one call trains."""

    call: Call
    names: list[str]


@dataclasses.dataclass
class Saved:
    """A checkpoint as it was read: dictionaries of NumPy arrays, and settings."""

    format: str
    weights: dict[str, Array]
    """All that the model has, in its order; empty if there are none in the file."""
    names: list[str] = dataclasses.field(default_factory=list[str])
    """Of the optimizer's parameters, in its order; positions if there are no names."""
    named: bool = True
    """Whether the names are those of the weights."""
    optimizer: str = ""
    """What it is called, if there is one."""
    rules: list[list[Group]] = dataclasses.field(default_factory=list[list[Group]])
    """The rules that the file may be of, each with its groups; none if it is no RMSprop."""
    moments: dict[str, dict[str, Array]] = dataclasses.field(
        default_factory=dict[str, dict[str, Array]]
    )
    """The arrays of "nu", "mu" and "momentum", by parameter."""
    steps: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    settings: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    notes: list[str] = dataclasses.field(default_factory=list[str])
    provenance: dict[str, Any] | None = None

    def take(self, found: Variables) -> None:
        """The names, the moments and the steps that the variables of an optimizer have."""
        self.names = list(found.names)
        for key, (quantity, name) in found.roles.items():
            if quantity in _QUANTITIES:
                self.moments.setdefault(name, {})[_QUANTITIES[quantity]] = found.values[key]
        if (steps := found.scalar("count")) is not None:
            self.steps = dict.fromkeys(self.names, int(steps))

    def may_be(self, rules: list[list[Group]], options: Options) -> None:
        """The rules that the file may be of, as far as the command line leaves them."""
        self.rules = narrowed(rules, options)
        self.optimizer = " or ".join(rule[0].call.framework.optimizer for rule in self.rules)

    def groups(self) -> list[Group]:
        """The groups of the one rule that it is of."""
        if not self.rules:
            raise Refused(f"there is no RMSprop in the file, but {self.optimizer or 'weights'}")
        if len(self.rules) > 1:
            dialects = " or ".join(rule[0].call.dialect for rule in self.rules)
            raise Refused(f"the file does not tell whose rule it is: give --dialect {dialects}")
        return self.rules[0]

    def state(self, like: Any, convert: Convert, options: Options) -> Any:
        """`like` with what the optimizer accumulated."""
        raise Refused(f"{self.format} has no state of an optimizer")

    def write(self, path: pathlib.Path, new: "New", options: Options) -> None:
        """A file like the one that was read, with other weights and another state."""
        raise Refused(f"{self.format} is read and not written")


@dataclasses.dataclass(frozen=True)
class New:
    """What goes into a file of another framework."""

    weights: Mapping[str, Array]
    state: Any  # None if there is none
    convert: Convert  # from a tree of the state to named arrays


def mapping(x: Any) -> Mapping[str, Any]:
    """`x`, if it is a mapping, or an empty one."""
    return cast("Mapping[str, Any]", x) if isinstance(x, Mapping) else {}


def merged(groups: list[Group]) -> list[Group]:
    """One group for each call."""
    by_call = dict[str, Group]()
    for group in groups:
        by_call.setdefault(str(group.call), Group(group.call, [])).names.extend(group.names)
    return list(by_call.values())


def narrowed(rules: list[list[Group]], options: Options) -> list[list[Group]]:
    """The rules that the command line leaves, with what it says of them."""
    if options.dialect and rules:
        kept = [rule for rule in rules if rule[0].call.dialect == options.dialect]
        rules = kept or [[Group(g.call.as_of(options.dialect), g.names) for g in rules[0]]]
    return [[Group(g.call.but(options.settings), g.names) for g in rule] for rule in rules]


def one_of(what: str, flag: str, found: Mapping[str, Any], usual: Iterable[str], given: str) -> str:
    """The key that is given, or the only one, or the only usual one; "" if there is none."""
    if given:
        if given not in found:
            raise Refused(f"{flag} {given}: the file has {sorted(found) or 'no ' + what}")
        return given
    likely = [key for key in found if key in set(usual)] if len(found) > 1 else list(found)
    if len(found) > 1 and len(likely) != 1:
        raise Refused(f"several {what} are in the file: give {flag}, one of {sorted(found)}")
    return likely[0] if likely else ""


def checked_names(names: list[str], count: int) -> list[str]:
    """Names that are given, one for each parameter."""
    if len(names) != count or len({*names}) != count:
        raise Refused(f"--names has {len({*names})} names for {count} parameters")
    return names


def array(where: str, x: Any) -> Array:
    """`x` as NumPy in its own dtype."""
    if str(getattr(x, "dtype", "")).endswith("bool"):  # a mask, which is no parameter
        return np.asarray(x)
    try:
        return numbers(where, x)
    except TypeError as error:
        raise Refused(str(error)) from error
