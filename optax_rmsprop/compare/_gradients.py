"""What the gradients of two runs differ by, where their parameters agree.

Gradients that differ at the same parameters are no matter of the optimizer. Those of two frameworks
differ by rounding, which training amplifies: what a distance between the parameters does to a
gradient is bounded by what a step of ours did to it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ._records import UNITS, Array, Record, held, norm
from ._report import Change

Turn: TypeAlias = Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]]
Relation: TypeAlias = tuple[Change, Turn] | None

# Sums of products in another order leave some hundred roundings of the gradient's size, and what
# training does to a distance may be several times what a step of the run did.
_ROUNDINGS, _AMPLIFIED = 512, 30
# Above this a gradient is another one, not one computed with fewer digits.
_FEWER_DIGITS = 0.02
# Directions of many numbers do not come as near to each other by chance.
_ALONG = 0.02


@dataclasses.dataclass(frozen=True)
class Found:
    """Changes of the gradients, the first place (step, leaf) of one, and what it allows there."""

    changes: tuple[Change, ...] = ()
    place: tuple[int, str] | None = None
    allowed: float = 0.0
    unexplained: str = ""


@dataclasses.dataclass(frozen=True)
class _Step:
    """The gradients of a step: those of theirs, those expected of it, and the noise by leaf."""

    number: int
    theirs: dict[str, Array]
    expected: dict[str, Array]
    noise: dict[str, float]
    params: dict[str, Array]

    @property
    def bad(self) -> list[str]:
        """The leaves that differ."""
        return [name for name in self.theirs if not self.agrees(name, self.expected[name])]

    def agrees(self, name: str, expected: Array, scale: float = 1.0) -> bool:
        """Whether theirs is this, to its noise."""
        a, e = self.theirs[name], expected
        if a.shape != e.shape or (np.isfinite(a) != np.isfinite(e)).any():
            return False
        finite = np.isfinite(a)
        gap = np.linalg.norm(a[finite] - e[finite])
        return bool(gap <= self.noise[name] * max(abs(scale), 1e-300))


def compared(theirs: Record, ours: Record) -> Found:
    """The changes of the gradients that a part of the run shows where the parameters agree."""
    changes, place, allowed = list[Change](), None, 0.0
    turns = list[Turn]()  # what makes ours' gradients those that are expected of theirs
    secant, digits = _secants(ours), 0.0  # relative noise of gradients with fewer digits
    for k in range(theirs.count):
        step = _step(theirs, ours, k, secant, turns, digits)
        for _ in range(4):
            bad = step.bad
            if not bad:
                break
            if place is None:
                place = k, max(bad, key=lambda n: _gap(step, n) / (step.noise[n] + 1e-300))
                allowed = step.noise[place[1]]
            found = _relation(theirs, ours, step, bad)
            if found is None:
                what = _other(theirs, ours, step, bad)
                return Found((*changes, what), place, allowed)
            change, turn = found
            changes.append(change)
            turns.append(turn)
            if change.name == "gradient_precision":
                digits = 4 * max(_relative_gap(step, name) for name in bad)
            step = _step(theirs, ours, k, secant, turns, digits)
    return Found(tuple(changes), place, allowed)


def _step(
    theirs: Record, ours: Record, k: int, secant: dict[str, float], turns: list[Turn], digits: float
) -> _Step:
    """The gradients of a step, ours after what was found so far."""
    actual = {name: x[k].astype(float) for name, x in theirs.grads.items()}
    expected = {name: x[k].astype(float) for name, x in ours.grads.items()}
    params = {name: x[k].astype(float) for name, x in ours.params.items()}
    for turn in turns:
        expected = turn(expected, params)
    apart = [theirs.params[n][k].astype(float) - p for n, p in params.items()]
    with np.errstate(all="ignore"):
        distance = math.hypot(*(norm(x) for x in apart))
    distance = distance if np.isfinite(distance) else np.inf
    scales: dict[str, Any] = {n: np.linalg.norm(_finite(x)) for n, x in expected.items()}
    count = sum(x.size for x in expected.values())
    mean = np.linalg.norm(list(scales.values())) / np.linalg.norm(np.ones(count))
    unit = max(theirs.unit, ours.unit)
    unit *= _ROUNDINGS if unit <= UNITS["float32"] else 4  # narrow parameters, a wider gradient
    stretch = mean / max(_mean_size(ours, k), 1e-300)
    noise = {
        name: float(
            (unit + digits) * (scales[name] + mean * np.linalg.norm(np.ones(x.size)))
            + (_AMPLIFIED * secant[name] * max(stretch, 1.0) * distance if distance else 0.0)
        )
        for name, x in expected.items()
    }
    return _Step(k, actual, expected, noise, params)


def _secants(ours: Record) -> dict[str, float]:
    """By leaf, the most that a step of ours did to the gradient, for its length."""
    if ours.count < 2:
        return dict.fromkeys(ours.names, np.inf)
    with np.errstate(all="ignore"):
        moves = [
            np.linalg.norm(np.diff(x[:-1].astype(float), axis=0).reshape(len(x) - 2, -1), axis=1)
            for x in ours.params.values()
        ]
        length = np.linalg.norm(np.array(moves), axis=0)
        result = dict[str, float]()
        for name, g in ours.grads.items():
            change = np.diff(g.astype(float), axis=0).reshape(ours.count - 1, -1)
            change = np.linalg.norm(change, axis=1)
            good = (length > 0) & np.isfinite(change) & np.isfinite(length)
            result[name] = float((change[good] / length[good]).max(initial=0.0)) or np.inf
    return result


def _relation(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """The change that explains some of the leaves that differ, and what it does to gradients."""
    if any(not np.isfinite(side[n]).all() for side in (step.theirs, step.expected) for n in bad):
        return None
    tries = (_factor, _missing, _bounded, _decayed, _bounded_leaves, _leaf_factor, _exchanged,
             _rounded)  # fmt: skip
    for attempt in tries:
        found = attempt(theirs, ours, step, bad)
        if found is not None:
            return found
    return None


def _factor(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """One factor for most of the leaves: a sum in place of a mean, a loss scale, a clipped norm."""
    factors = {name: _ratio(step, name) for name in step.theirs}
    known = {name: c for name, c in factors.items() if c is not None}
    if not known:
        return None
    middle = float(np.median(list(known.values())))
    alike = [n for n, c in known.items() if abs(c - middle) <= 1e-4 * abs(middle) + _slack(step, n)]
    silent = [n for n in step.theirs if not step.expected[n].any()]
    if len(alike) * 2 <= len(step.theirs) - len(silent) or not set(alike) & set(bad):
        return None
    if len(step.theirs) > 1 and len(alike) < 2 and len(bad) == 1:
        return None
    weights = np.array([np.linalg.norm(step.expected[n]) for n in alike])
    factor = float(np.average([known[n] for n in alike], weights=weights))
    clip = _norm_clip(theirs, ours, step, factor)
    if clip is not None:
        return clip
    return _factor_change(factor, (), step.number), _times(factor, None)


def _norm_clip(theirs: Record, ours: Record, step: _Step, factor: float) -> Relation:
    """The change, if the factor is that of a clipped norm: the norm is the same at other steps."""
    who, record = ("theirs", theirs) if abs(factor) < 1 else ("ours", ours)
    if factor <= 0:
        return None
    norms = _norms(record)
    bound = float(norms[step.number])
    near = np.abs(norms - bound) <= 1e-5 * bound
    if near.sum() < 2 or norms.max() > bound * (1 + 1e-5):
        return None
    text = f"the gradients of {who} are clipped to a global norm of {bound:.6g}"
    change = Change("clip", text, *_sided(who, bound), step=step.number)

    def turn(grads: dict[str, Array], params: Any) -> dict[str, Array]:
        size = math.hypot(*(norm(x) for x in grads.values()))
        share = min(1.0, bound / size) if who == "theirs" else factor
        return {name: share * x for name, x in grads.items()}

    return change, turn


def _missing(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """Leaves whose gradient is 0 in one of the runs, at each step."""
    for who, record in (("theirs", theirs), ("ours", ours)):
        leaves = tuple(n for n in bad if not record.grads[n].any())
        if leaves:
            text = f"{who} has no gradient for {_named(leaves)}: it is 0 at each step"
            other = {name: step.theirs[name] for name in leaves}

            def turn(
                grads: dict[str, Array], params: Any, leaves: Any = leaves, who: str = who,
                other: Any = other,
            ) -> dict[str, Array]:  # fmt: skip
                return {
                    n: (0 * x if who == "theirs" else other[n]) if n in leaves else x
                    for n, x in grads.items()
                }

            return Change("missing_gradient", text, *_sided(who, 0.0), leaves=leaves), turn
    return None


def _bounded(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """Gradients clipped by value in one of the runs."""
    names = list(step.theirs)
    a = np.concatenate([step.theirs[n].ravel() for n in names])
    e = np.concatenate([step.expected[n].ravel() for n in names])
    for who, record, x, y in (("theirs", theirs, a, e), ("ours", ours, e, a)):
        bound = float(np.abs(_finite(x)).max(initial=0.0))
        top = max(float(np.abs(_finite(g)).max(initial=0.0)) for g in record.grads.values())
        at = np.abs(x) >= bound * (1 - 1e-6)
        free = ~at & (x != 0)
        if bound == 0 or at.sum() < 2 or top > bound * (1 + 1e-6) or not free.any():
            continue
        share = float(np.median(y[free] / x[free]))
        if share <= 0:
            continue
        fits = np.linalg.norm(np.clip(y / share, -bound, bound) - x)
        if fits > 4 * sum(step.noise.values()) / min(share, 1.0):
            continue
        text = f"the gradients of {who} are clipped to ±{bound:.6g}"
        if share > 1 + 1e-4 and who == "ours":
            text += " and those of theirs are not"

        def turn(
            grads: dict[str, Array], params: Any, bound: float = bound, who: str = who,
            share: float = share,
        ) -> dict[str, Array]:  # fmt: skip
            if who == "theirs":
                return {n: np.clip(g / share, -bound, bound) for n, g in grads.items()}
            return {n: step.theirs[n] if n in bad else g for n, g in grads.items()}

        if who == "theirs" and share < 1 - 1e-4:
            text += ", where ours clips a norm"
        return Change("clip", text, *_sided(who, bound), step=step.number), turn
    return None


def _bounded_leaves(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """Each leaf's norm clipped in one of the runs."""
    for who, side in (("theirs", step.theirs), ("ours", step.expected)):
        norms = {n: float(np.linalg.norm(side[n])) for n in bad}
        bound = max(norms.values())
        known = [_ratio(step, n) for n in bad]
        alike = [n for n in bad if abs(norms[n] - bound) <= 1e-5 * bound]
        if len(alike) < 2 or len(alike) < len(bad) or any(c is None or c <= 0 for c in known):
            continue
        text = f"the gradient of each leaf is clipped to a norm of {bound:.6g} in {who}"

        def turn(
            grads: dict[str, Array], params: Any, bound: float = bound, who: str = who
        ) -> dict[str, Array]:
            if who == "ours":
                return {n: step.theirs[n] if n in bad else g for n, g in grads.items()}
            sizes = {n: np.linalg.norm(g) for n, g in grads.items()}
            return {n: g * min(1.0, bound / max(sizes[n], 1e-300)) for n, g in grads.items()}

        return Change("clip", text, *_sided(who, bound), step=step.number), turn
    return None


def _decayed(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """Gradients with the parameters in them: L2 in the loss of one of the runs."""
    weights = dict[str, float]()
    for name in bad:
        p, gap = step.params[name], step.theirs[name] - step.expected[name]
        if not p.any():
            return None
        weight = float(np.vdot(gap, p) / np.vdot(p, p))
        if np.linalg.norm(gap - weight * p) > step.noise[name]:
            return None
        weights[name] = weight
    values = np.array(list(weights.values()))
    weight = float(np.median(values))
    if not weight or (np.abs(values - weight) > 0.01 * abs(weight)).any():
        return None
    who = "theirs" if weight > 0 else "ours"
    text = f"the gradients of {who} contain {abs(weight):.6g} times the parameters (an L2 loss)"
    leaves = () if len(bad) == len(step.theirs) else tuple(bad)

    def turn(grads: dict[str, Array], params: dict[str, Array]) -> dict[str, Array]:
        return {n: g + weight * params[n] if n in weights else g for n, g in grads.items()}

    return Change("weight_decay", text, *_sided(who, abs(weight)), leaves=leaves), turn


def _leaf_factor(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """A factor of some leaves alone."""
    factors = {name: _ratio(step, name) for name in bad}
    known = {n: c for n, c in factors.items() if c is not None}
    if sum(step.expected[n].size for n in known) < 2:  # one number has a factor always
        return None
    factor = next(iter(known.values()))
    alike = tuple(n for n, c in known.items() if abs(c - factor) <= 1e-3 * abs(factor))
    return _factor_change(factor, alike, step.number), _times(factor, alike)


def _exchanged(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """Gradients that are another leaf's, or transposed."""
    for name in bad:
        g = step.expected[name]
        if g.ndim == 2 and step.agrees(name, g.T):
            text = f"the gradient of {name!r} is transposed"
            return Change("transposed", text, leaves=(name,)), _turned(name)
    places = {
        name: next((n for n in step.expected if n != name and step.agrees(name, step.expected[n])),
                   None) for name in bad
    }  # fmt: skip
    moved = {name: old for name, old in places.items() if old is not None}
    if not moved:
        return None
    pairs = ", ".join(f"{n!r} has that of {old!r}" for n, old in moved.items())
    change = Change("swapped", f"gradients are swapped in theirs: {pairs}", leaves=tuple(moved))
    return change, lambda grads, _: {n: grads[moved.get(n, n)] for n in grads}


def _turned(name: str) -> Turn:
    return lambda grads, _: {n: x.T if n == name else x for n, x in grads.items()}


def _rounded(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Relation:
    """Gradients with fewer digits in one of the runs."""
    sides = {"theirs": theirs, "ours": ours}
    worst = max(_relative_gap(step, n) for n in bad)
    if worst > _FEWER_DIGITS or len(bad) * 2 < len(step.theirs):
        return None
    for who, record in sides.items():
        x = np.concatenate([g[step.number].astype(float).ravel() for g in record.grads.values()])
        other = ours if who == "theirs" else theirs
        y = np.concatenate([g[step.number].astype(float).ravel() for g in other.grads.values()])
        for name in UNITS:
            fewer = (held(x, name) == x).all() and not (held(y, name) == y).all()
            if fewer and len(x) >= 8 and worst <= 4 * UNITS[name]:
                text = f"the gradients of {who} are rounded to {name}"
                return Change("gradient_precision", text, *_sided(who, name)), _held(name, who)
    text = (
        f"the gradients differ by a noise of {worst:.1g} of their size, more than the rounding "
        "of the parameters' format: a narrower format is used on the way to them"
    )
    return Change("gradient_precision", text), lambda grads, _: grads


def _held(name: str, who: str) -> Turn:
    """What rounding to a format makes of the gradients, if ours have more digits."""
    return lambda grads, _: {n: held(g, name) if who == "theirs" else g for n, g in grads.items()}


def _other(theirs: Record, ours: Record, step: _Step, bad: list[str]) -> Change:
    """The words for gradients that are others."""
    k = step.number
    for lag, who in ((1, "behind"), (-1, "ahead of")):
        rows = range(max(k, lag), min(theirs.count, ours.count + lag))
        rows = [j for j in rows if 0 <= j - lag < ours.count]
        if rows and all(_row_agrees(theirs, ours, j, j - lag) for j in rows):
            text = f"from step {k} on, the gradients of theirs are a step {who} ours"
            return Change("step_shift", text, -lag, 0, step=k)
    for who, side in (("theirs", step.theirs), ("ours", step.expected)):
        if any(not np.isfinite(side[n]).all() for n in bad):
            text = f"the gradients of {who} are not finite at step {k}, in {_named(bad)}"
            return Change("nonfinite", text, step=k)
    part = "all leaves" if len(bad) == len(step.theirs) else _named(bad)
    text = (
        f"the gradients part at step {k}, in {part}, while the parameters agree: it is not the "
        "optimizer, but the data, the model, its layout or the loss"
    )
    return Change("data", text, leaves=tuple(bad), step=k)


def _row_agrees(theirs: Record, ours: Record, row: int, other: int) -> bool:
    for name in ours.names:
        a, b = theirs.grads[name][row].astype(float), ours.grads[name][other].astype(float)
        if np.linalg.norm(a - b) > 1e-4 * np.linalg.norm(b):
            return False
    return True


def _ratio(step: _Step, name: str) -> float | None:
    """The factor between theirs and ours, if it is one."""
    a, e = step.theirs[name], step.expected[name]
    if not (np.isfinite(a).all() and np.isfinite(e).all()) or not e.any() or not a.any():
        return None
    factor = float(np.vdot(a, e) / np.vdot(e, e))
    if not factor or not step.agrees(name, factor * e, scale=max(abs(factor), 1.0)):
        return None
    # A leaf that is smaller than the noise has any factor, unless it is along the other anyhow.
    along = a.size >= 8 and norm(a - factor * e) <= _ALONG * norm(a)
    return factor if along or norm(e) > 4 * step.noise[name] else None


def _slack(step: _Step, name: str) -> float:
    return 4 * step.noise[name] / max(float(np.linalg.norm(step.expected[name])), 1e-300)


def _factor_change(factor: float, leaves: tuple[str, ...], step: int) -> Change:
    where = f" in {_named(leaves)}" if leaves else ""
    large = factor if abs(factor) >= 1 else 1 / factor
    hint = ""
    if abs(factor + 1) < 1e-3:
        hint = " (one maximizes what the other minimizes)"
    elif round(large) > 1 and abs(large - round(large)) <= 1e-3 * large:
        hint = " (a sum in place of a mean, another batch size, or a loss scale)"
    exact = round(factor) if abs(factor - round(factor)) <= 1e-6 * abs(factor) else factor
    text = f"the gradients of theirs are {exact:.7g} times ours{where}{hint}"
    return Change("gradient_factor", text, factor, 1.0, leaves, step or None)


def _times(factor: float, leaves: Any) -> Turn:
    return lambda grads, _: {
        n: factor * g if leaves is None or n in leaves else g for n, g in grads.items()
    }


def _norms(record: Record) -> Array:
    rows = [_finite(g.reshape(record.count, -1).astype(float)) for g in record.grads.values()]
    with np.errstate(all="ignore"):
        return np.linalg.norm([np.linalg.norm(x, axis=1) for x in rows], axis=0)


def _mean_size(ours: Record, k: int) -> float:
    count = sum(g[k].size for g in ours.grads.values())
    return float(_norms(ours)[k] / np.linalg.norm(np.ones(count)))


def _gap(step: _Step, name: str) -> float:
    return float(np.linalg.norm(_finite(step.theirs[name] - step.expected[name])))


def _relative_gap(step: _Step, name: str) -> float:
    return _gap(step, name) / max(norm(step.expected[name]), 1e-300)


def _finite(x: Array) -> Array:
    return np.nan_to_num(x, posinf=0.0, neginf=0.0)


def _sided(who: str, value: Any) -> tuple[Any, Any]:
    """The values of theirs and ours, the other's being None."""
    return (value, None) if who == "theirs" else (None, value)


def _named(leaves: Any) -> str:
    return ", ".join(map(repr, leaves[:4])) + (", ..." if len(leaves) > 4 else "")
