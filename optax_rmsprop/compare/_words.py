"""Sentences for changes."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..probe import _model as model
from ..probe._model import BOUND, LAMBDA, NUMBERS
from ._accounts import Leaf
from ._moves import Explained
from ._records import Array
from ._report import Change

_PLACES = {
    model.INSIDE: "inside the root",
    model.OUTSIDE: "outside the root",
    model.FLOOR: "a floor of the root",
    model.SUBTRACTED: "subtracted inside the root",
    model.BOTH: "inside the root and outside",
}
_DECAYS = {
    model.NO_DECAY: "no weight decay",
    model.L2: "weight decay in the gradient (L2)",
    model.DECOUPLED: "decoupled weight decay, scaled by the rate",
    model.DECOUPLED_UNSCALED: "decoupled weight decay, not scaled by the rate",
    model.DECOUPLED_SQUARED: "decoupled weight decay, scaled by the squared rate",
}
_CLIPS = {
    model.NO_CLIP: "no clipping",
    model.CLIP_BEFORE: "clipping by value, before weight decay",
    model.CLIP_AFTER: "clipping by value, after weight decay",
    model.CLIP_LEAF: "clipping of each leaf's norm",
    model.CLIP_ALL: "clipping of the global norm",
    model.CLIP_LEAF_AFTER: "clipping of each leaf's norm, after weight decay",
    model.CLIP_ALL_AFTER: "clipping of the global norm, after weight decay",
}
_NAMES = {
    "lr": ("learning_rate", "the learning rate"), "decay": ("decay", "the decay of nu"),
    "eps": ("eps", "epsilon"), "scale": ("initial_scale", "the start of nu"),
    "momentum": ("momentum", "momentum"), "lambda": ("weight_decay", "weight decay"),
    "bound": ("clip_value", "the bound of clipping"),
    "box": ("box", "the bound of the parameters"),
}  # fmt: skip
_FLAGS = {
    "centered": ("centered", "{} centres the second moment, {} does not"),
    "corrected": ("bias_correction", "{} corrects the bias of nu, {} does not"),
    "nesterov": ("nesterov", "{} has Nesterov momentum, {} does not"),
    "buffer": ("rate_in_buffer", "the rate is inside the momentum buffer in {} and after it in {}"),
    "maximize": ("maximize", "{} maximizes, {} minimizes"),
    "caution": ("caution", "{} is cautious, {} is not"),
    "alone": (
        "first_step",
        "the first step of {} divides a gradient by itself, that of {} by the rounding of 0",
    ),
}


@dataclasses.dataclass(frozen=True)
class Roles:
    """Who is the explained run, and who the other: "theirs" and "ours"."""

    other: str
    one: str

    def pair(self, other: Any, one: Any) -> tuple[Any, Any]:
        """The values of theirs and of ours."""
        return (other, one) if self.other == "theirs" else (one, other)

    def both(self, what: str, other: Any, one: Any) -> str:
        """What is so in theirs and so in ours."""
        theirs, ours = self.pair(other, one)
        return f"{what} is {theirs} in theirs and {ours} in ours"


def rule_changes(e: Explained, roles: Roles) -> tuple[Change, ...]:
    """The changes of a rule, in the order of its switches."""
    order = [*_FLAGS, "denominator", "kind", "clip", *NUMBERS, "factor"]
    return tuple(_rule_change(name, e, roles) for name in sorted(e.names, key=order.index))


def _rule_change(name: str, e: Explained, roles: Roles) -> Change:
    if name == "factor":
        theirs = e.factor if roles.other == "theirs" else 1 / e.factor
        text = (
            f"the optimizer of theirs works with gradients {_short(theirs)} times as large as "
            "those recorded"
        )
        return Change("gradient_factor", text, _number(theirs), 1.0)
    if name in NUMBERS:
        return _number_change(name, e, roles)
    values = [getattr(rules, name)[0].item() for rules in (e.other, e.one)]
    if name == "denominator":
        text = roles.both("epsilon", *(_PLACES[x] for x in values))
        return Change("denominator", text, *roles.pair(*(_WORDS[x] for x in values)))
    if name in ("kind", "clip"):
        words, number = (_DECAYS, LAMBDA) if name == "kind" else (_CLIPS, BOUND)
        said = [
            words[x] + (f" of {_short(rules.numbers[0, number])}" if x else "")
            for x, rules in zip(values, (e.other, e.one), strict=True)
        ]
        theirs, ours = roles.pair(*said)
        key = "weight_decay_kind" if name == "kind" else "clip"
        numbers = [rules.numbers[0, number] if x else 0.0
                   for x, rules in zip(values, (e.other, e.one), strict=True)]  # fmt: skip
        pair = roles.pair(*zip(values, map(_number, numbers), strict=True))
        before, after = [(words[x], number) for x, number in pair]
        return Change(key, f"theirs has {theirs}, ours has {ours}", before, after)
    key, text = _FLAGS[name]
    theirs, ours = roles.pair(*values)
    who = ("theirs", "ours") if theirs else ("ours", "theirs")
    return Change(key, text.format(*who), theirs, ours)


_WORDS = {model.INSIDE: "inside", model.OUTSIDE: "outside", model.FLOOR: "floor",
          model.SUBTRACTED: "subtracted", model.BOTH: "both"}  # fmt: skip


def _number_change(name: str, e: Explained, roles: Roles) -> Change:
    i = NUMBERS.index(name)
    values = [_number(model.named(i, rules.numbers[0, i])) for rules in (e.other, e.one)]
    key, what = _NAMES[name]
    text = roles.both(what, *map(_short, values))
    if name == "momentum" and not all(values):
        rules, who = (e.other, roles.other) if values[0] else (e.one, roles.one)
        kind = " (Nesterov)" if rules.nesterov[0] else ""
        other = roles.one if who == roles.other else roles.other
        text = f"{who} has momentum of {_short(max(values))}{kind}, {other} has none"
    if name == "eps" and all(values) and e.other.denominator[0] == e.one.denominator[0]:
        text += f" ({_PLACES[int(e.other.denominator[0])]})"
    return Change(key, text, *roles.pair(*values))


def frozen_change(who: str, leaves: tuple[str, ...], roles: Roles) -> Change:
    """Leaves that one run does not train."""
    text = f"{who} does not train {_named(leaves)}: it never changes, though it has gradients"
    pair = roles.pair(who == roles.other, who == roles.one)
    return Change("frozen", text, *pair, leaves)


def leaf_changes(
    other: dict[str, Leaf], one: dict[str, Leaf], roles: Roles, e: Explained | None = None
) -> tuple[Change, ...]:
    """What is special about leaves of the other, and of the one, beside a change of their rule."""
    both_decay = e is None or all(x.kind[0] != model.NO_DECAY for x in (e.one, e.other))
    found = list[Change]()
    names = [*other, *(name for name in one if name not in other)]
    pairs = {name: (other.get(name, Leaf()), one.get(name, Leaf())) for name in names}
    for plain in (True, False):
        leaves = tuple(n for n, (a, b) in pairs.items() if a.plain != b.plain and a.plain == plain)
        if leaves:
            who, rest = (roles.other, roles.one) if plain else (roles.one, roles.other)
            text = f"{who} does not decay {_named(leaves)}"
            text += f", {rest} does" if both_decay else ", as it does the other leaves"
            found.append(
                Change("weight_decay_of_leaf", text, *roles.pair(not plain, plain), leaves)
            )
    gains: dict[str, float] = {
        n: a.gain / b.gain for n, (a, b) in pairs.items() if abs(a.gain - b.gain) > 1e-4
    }
    while gains:
        gain = next(iter(gains.values()))
        leaves = tuple(n for n, g in gains.items() if abs(g - gain) <= 1e-2 * abs(gain))
        for name in leaves:
            del gains[name]
        theirs = gain if roles.other == "theirs" else 1 / gain
        text = f"the rate of {_named(leaves)} is {_short(theirs)} times as large in theirs"
        found.append(Change("rate_of_leaf", text, _number(theirs), 1.0, leaves))
    moved = {n: a.grads for n, (a, b) in pairs.items() if a.grads != b.grads}
    turned = tuple(n for n, source in moved.items() if source == "transposed")
    if turned:
        text = f"the optimizer of {roles.other} gets the gradient of {_named(turned)} transposed"
        found.append(Change("transposed", text, leaves=turned))
    swapped = {n: source for n, source in moved.items() if n not in turned}
    if swapped:
        which = ", ".join(f"{n!r} gets that of {source!r}" for n, source in swapped.items())
        text = f"gradients of one shape are swapped in the optimizer of {roles.other}: {which}"
        found.append(Change("swapped", text, leaves=tuple(swapped)))
    return tuple(found)


def schedule_change(
    other: Array, one: Array, holds: Callable[[Array], bool], roles: Roles
) -> Change:
    """What the rates of two runs differ by; `holds` says whether rates explain the other run."""
    count = min(len(other), len(one))
    other, one = other[:count], one[:count]
    step = int(np.argmax(np.abs(other - one) > 1e-4 * np.abs(one).max()))
    return (
        _rate_change(other, one, holds, roles)
        or _shift_change(other, one, holds, step, roles)
        or _stairs_change(other, one, step, roles)
        or _shape_change(other, one, step, roles)
    )


def _rate_change(
    other: Array, one: Array, holds: Callable[[Array], bool], roles: Roles
) -> Change | None:
    """Rates that are a multiple of each other."""
    with np.errstate(all="ignore"):
        factor = float(np.median(other[one != 0] / one[one != 0])) if one.any() else 1.0
    if not holds(factor * one):
        return None
    if np.ptp(one) <= 1e-6 * abs(one[0]):
        values = [_number(other[-1]), _number(one[-1])]
        text = roles.both("the learning rate", *map(_short, values))
        return Change("learning_rate", text, *roles.pair(*values))
    theirs = factor if roles.other == "theirs" else 1 / factor
    text = f"the learning rates of theirs are {_short(theirs)} times those of ours"
    return Change("learning_rate", text, _number(theirs), 1.0)


def _shift_change(
    other: Array, one: Array, holds: Callable[[Array], bool], step: int, roles: Roles
) -> Change | None:
    """A schedule that is some steps early or late, and perhaps a multiple."""
    if not np.ptp(one):
        return None
    for by, sign, scale in itertools.product(range(1, min(4, len(one) - 1)), (1, -1), (1.0, None)):
        found = _shifted(other, one, sign * by, scale)
        if found is not None and holds(found[0]):
            return _shift_words(sign * by, found[1], step, roles)
    return None


def _stairs_change(other: Array, one: Array, step: int, roles: Roles) -> Change | None:
    """A schedule that one run follows by epochs."""
    count = len(one)
    for every in range(2, count // 2 + 1):
        for who, x, y in ((roles.other, other, one), (roles.one, one, other)):
            coarse = y[every * (np.arange(count) // every)]
            if np.ptp(y) and (np.abs(x - coarse) <= 1e-4 * np.abs(coarse).max()).all():
                text = f"{who} changes the learning rate every {every} steps only"
                return Change("schedule", text, *roles.pair(every, 1), step=step)
    return None


def _shape_change(other: Array, one: Array, step: int, roles: Roles) -> Change:
    """Schedules of another shape: a warm-up, a constant rate, or just others."""
    rows = [_number(x) for x in (other[step], one[step])]
    detail = f"first at step {step}, " + roles.both("where it", *map(_short, rows))
    text = f"the schedules of the learning rate differ, {detail}"
    sides = ((roles.other, other, roles.one), (roles.one, one, roles.other))
    for who, x, rest in sides:
        if np.ptp(x) <= 1e-4 * np.abs(x).max():
            text = f"{who} has a constant learning rate, {rest} a schedule: {detail}"
    same = np.abs(other - one) <= 1e-4 * np.abs(one).max()
    warm = int(np.argmax(np.logical_and.accumulate(same[::-1])[::-1])) if same[-1] else 0
    who, rates, rest = max(sides, key=lambda side: np.ptp(side[1][: warm + 1]))
    if warm and (np.diff(rates[: warm + 1]) > 0).all():
        text = f"{who} warms the learning rate up for {warm} steps, {rest} does not: {detail}"
    return Change("schedule", text, *roles.pair(*rows), step=step)


def _shifted(other: Array, one: Array, by: int, scale: float | None) -> tuple[Array, float] | None:
    """The rates of the one some steps later, times a factor, where both are known."""
    at = np.arange(len(one)) - by
    known = (at >= 0) & (at < len(one))
    values = np.where(known, one[np.clip(at, 0, len(one) - 1)], 0.0)
    good = known & (values != 0)
    if not good.any():
        return None
    with np.errstate(all="ignore"):
        factor = float(np.median(other[good] / values[good])) if scale is None else scale
    return np.where(known, factor * values, other), factor


def _shift_words(by: int, factor: float, step: int, roles: Roles) -> Change:
    steps = by if roles.other == "theirs" else -by
    what = "behind" if steps > 0 else "ahead of"
    number = "one step" if abs(steps) == 1 else f"{abs(steps)} steps"
    text = f"the schedule of theirs is {number} {what} that of ours (off by {abs(steps)})"
    if abs(factor - 1) > 1e-3:
        theirs = factor if roles.other == "theirs" else 1 / factor
        text += f", and {_short(theirs)} times as large"
    return Change("schedule", text, steps, 0, step=step)


def _number(x: Any) -> float:
    return float(f"{float(x):.6g}")


def _short(x: Any) -> str:
    return f"{float(x):.4g}"


def _named(leaves: tuple[str, ...]) -> str:
    return ", ".join(map(repr, leaves[:4])) + (", ..." if len(leaves) > 4 else "")
