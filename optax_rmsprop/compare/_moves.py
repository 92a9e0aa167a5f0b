"""Changes of a rule, one at a time: a switch, a number, or the size of the gradients."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from ..probe import _model as model
from ..probe._model import (
    BOUND,
    BOX,
    EPS,
    FORGETS,
    LAMBDA,
    LR,
    MOMENTUM,
    SCALE,
    Rules,
    concatenate,
)  # fmt: skip
from ..probe._search import LIMIT, SEVERAL
from ._records import Array
from ._sides import (
    COUNT,
    Both,
    Pairs,
    changes,
    cost,
    fitted,
    held_by,
    is_told,
    misfits,
    pairs,
    polished,
    simulate,
    spread,
)  # fmt: skip

SWITCHES = [f.name for f in dataclasses.fields(Rules) if f.name != "numbers"]
# So many hypotheses are fitted to the end, of those that are the nearest after a few iterations.
_NEAR = 16
# A switch whose number comes and goes with it.
_NUMBER_OF = {"kind": (LAMBDA, model.NO_DECAY), "clip": (BOUND, model.NO_CLIP)}


@dataclasses.dataclass(frozen=True)
class Explained:
    """A change of the rule that explains the other run: both rules, and how well it does."""

    one: Rules
    other: Rules
    names: frozenset[str]
    free: int
    spread: float
    pair: Pairs
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Move:
    names: frozenset[str]
    one: Rules
    other: Rules
    tied: Array
    free: int  # numbers that only the other has
    factor: float | None = None


def refined(e: Explained, both: Both) -> Explained:
    """The same change, its numbers fitted on other columns."""
    fits = polished(e.pair, both, np.array(["factor" in e.names]))
    factor = float(fits.numbers[0, -1])
    return dataclasses.replace(e, one=fits.ones, other=fits.others, factor=factor, pair=fits)


def unchanged(one: Rules, both: Both) -> list[Explained]:
    """The rules that explain both, with numbers that both share."""
    tied = np.ones(COUNT, bool)
    as_they_are = np.flatnonzero(held_by(one, both.one) & held_by(one, both.other))
    if len(as_they_are):
        means = spread(misfits(one.take(as_they_are), both.other))
        same = [one.take([i]) for i in as_they_are]
        return [Explained(x, x, frozenset(), 0, float(mean), pairs(x, x, tied[None]))
                for x, mean in zip(same, means, strict=True)]  # fmt: skip
    moves = [_Move(frozenset(), one.take([i]), one.take([i]), tied, 0) for i in range(len(one))]
    return _explained(moves, both)


def single(one: Rules, both: Both) -> list[Explained]:
    """The single changes that make a rule of the one explain the other, the best first."""
    found = itertools.chain(*(_moves(one.take([i]), both) for i in range(min(len(one), 3))))
    return _explained(list(found), both)


def between(one: Rules, other: Rules, both: Both, most: int = 3) -> list[Explained]:
    """The fewest changes that lead from a rule of the one to one of the other, the best first."""
    combinations = list[_Move]()
    for i, j in itertools.product(range(min(len(one), 3)), range(min(len(other), 4))):
        combinations += _subsets(one.take([i]), other.take([j]), most)
    for size in range(1, most + 1):
        found = _explained([m for m in combinations if len(m.names) == size], both)
        if found:
            return found
    return []


def _subsets(one: Rules, other: Rules, most: int) -> list[_Move]:
    """The changes on the way from one rule to another, and sets of them."""
    switches = [s for s in SWITCHES if _differs(one, other, s)]
    numbers = [
        i
        for i in (LR, FORGETS, EPS, SCALE, MOMENTUM, LAMBDA, BOUND, BOX)
        if one.numbers[0, i] != other.numbers[0, i] and not _is_of_switch(switches, i)
    ]
    names = [*switches, *(model.NUMBERS[i] for i in numbers)]
    found = list[_Move]()
    for size in range(1, most + 1):
        for chosen in itertools.combinations(names, size):
            new = one.replace(**{
                s: getattr(other, s)[0] for s in chosen if s in SWITCHES
            })  # fmt: skip
            tied, own = np.ones(COUNT, bool), set[int]()
            for name in chosen:
                if name in model.NUMBERS:
                    own.add(model.NUMBERS.index(name))
                elif name in _NUMBER_OF and getattr(one, name)[0] == _NUMBER_OF[name][1]:
                    own.add(_NUMBER_OF[name][0])
            if MOMENTUM in own and not one.numbers[0, MOMENTUM]:
                new = new.replace(buffer=other.buffer[0], nesterov=other.nesterov[0])
            tied[list(own)] = False
            if not _has_first_step(one):
                new = new.replace(alone=other.alone[0])
            new = new.of(np.where(tied, one.numbers, other.numbers))
            found.append(_Move(frozenset(chosen), one, new, tied, len(own)))
    return found


def _has_first_step(rule: Rules) -> bool:
    """Whether a rule is centred and corrected, and has nothing to divide the first gradient by."""
    return bool(rule.centered[0] and rule.corrected[0])


def _differs(one: Rules, other: Rules, switch: str) -> bool:
    if switch == "alone" and not (_has_first_step(one) and _has_first_step(other)):
        return False
    if switch in ("buffer", "nesterov") and not (
        one.numbers[0, MOMENTUM] and other.numbers[0, MOMENTUM]
    ):
        return False
    return getattr(one, switch)[0] != getattr(other, switch)[0]


def _is_of_switch(switches: list[str], number: int) -> bool:
    return any(_NUMBER_OF[s][0] == number for s in switches if s in _NUMBER_OF)


@dataclasses.dataclass(frozen=True)
class _From:
    """A rule, and the changes of it that were made."""

    one: Rules
    found: list[_Move] = dataclasses.field(default_factory=list[_Move])

    @property
    def now(self) -> Array:
        """The numbers of the rule."""
        return self.one.numbers[0]

    def add(self, name: str, number: int, values: Any, **switches: Any) -> None:
        """A number from several values on, with some switches set."""
        new = self.one.replace(**switches)
        for value in values:
            tied, numbers = np.ones(COUNT, bool), new.numbers.copy()
            tied[number], numbers[0, number] = False, value
            self.found.append(_Move(frozenset({name}), self.one, new.of(numbers), tied, 1, None))

    def set(self, name: str, factor: float | None = None, **switches: Any) -> None:
        """Some switches, or a factor of the gradients, and no number."""
        new, tied = self.one.replace(**switches), np.ones(COUNT, bool)
        new = new.of(new.numbers.copy())
        self.found.append(_Move(frozenset({name}), self.one, new, tied, 0, factor))


def _moves(one: Rules, both: Both) -> list[_Move]:
    """All single changes, those with a number from several values on."""
    run, moves = both.other.run, _From(one)
    g = np.abs(run.grads[run.valid & (run.grads != 0)])
    p = np.abs(run.params[:-1][run.valid & (run.params[:-1] != 0)])
    size, length = (float(np.median(x)) if x.size else 1.0 for x in (g, p))
    _switches(moves)
    _numbers(moves, size, both.other.solved)
    _decays(moves, size / length)
    _clips(moves, g, run)
    now = moves.now
    if now[EPS] or now[SCALE] or one.kind[0] == model.L2 or one.clip[0] != model.NO_CLIP:
        for factor in np.logspace(-4, 4, 9):
            moves.set("factor", float(factor))
    return moves.found


def _switches(moves: _From) -> None:
    one, now = moves.one, moves.now
    for kind in (model.INSIDE, model.OUTSIDE, model.FLOOR, model.SUBTRACTED, model.BOTH):
        rare = kind == model.SUBTRACTED and not one.centered[0]
        if kind != one.denominator[0] and now[EPS] and not rare:
            moves.set("denominator", denominator=kind)
    names = ["centered", "corrected", "maximize", *["alone"] * _has_first_step(one)]
    for switch in [*names, *(("caution", "buffer", "nesterov") if now[MOMENTUM] else ())]:
        moves.set(switch, **{switch: not getattr(one, switch)[0]})
    if one.centered[0] != one.corrected[0]:  # the one that is missing brings either first step
        missing = "corrected" if one.centered[0] else "centered"
        moves.set(missing, **{missing: True, "alone": not one.alone[0]})


def _numbers(moves: _From, size: float, solved: bool) -> None:
    one, now = moves.one, moves.now
    if not solved:
        moves.add("lr", LR, now[LR] * np.logspace(-3, 3, 7))
    moves.add("decay", FORGETS, (0.5, 0.2, 0.1, 0.05, 0.01, 1e-3, 1e-4))
    heights = size * np.logspace(-10, 4, 15)
    squared = one.denominator[0] in (model.INSIDE, model.SUBTRACTED)
    moves.add("eps", EPS, [0.0, *(heights**2 if squared else heights)])
    moves.add("scale", SCALE, [0.0, 1.0, *(size**2 * np.logspace(-2, 2, 5))])
    if now[MOMENTUM]:
        moves.add("momentum", MOMENTUM, (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99))
        return
    for buffer, nesterov in itertools.product((True, False), (False, True)):
        values = (0.3, 0.6, 0.9, 0.97)
        moves.add("momentum", MOMENTUM, values, buffer=buffer, nesterov=nesterov)


def _decays(moves: _From, share: float) -> None:
    one, now = moves.one, moves.now
    rate = max(abs(now[LR]), 1e-300)
    weights = {
        model.L2: share * np.logspace(-3, 2, 6),
        model.DECOUPLED: np.logspace(-6, -1, 6) / rate,
        model.DECOUPLED_UNSCALED: np.logspace(-6, -1, 6),
        model.DECOUPLED_SQUARED: np.logspace(-6, -1, 6) / rate**2,
    }
    for kind in (model.NO_DECAY, *weights):
        if one.kind[0] == model.NO_DECAY and kind != model.NO_DECAY:
            moves.add("kind", LAMBDA, weights[kind], kind=kind)
        elif kind != one.kind[0]:
            moves.set("kind", kind=kind)
    if one.kind[0] != model.NO_DECAY:
        moves.add("lambda", LAMBDA, [*weights[int(one.kind[0])], now[LAMBDA]])


def _clips(moves: _From, g: Array, run: model.Run) -> None:
    one, now = moves.one, moves.now
    limits = np.quantile(g, (0.2, 0.5, 0.8, 0.95, 0.99)) if g.size else np.ones(1)
    sizes = {model.CLIP_LEAF: run.leaf_norm, model.CLIP_ALL: run.norm}
    sizes |= {model.AFTER[kind]: norm for kind, norm in sizes.items()}
    for kind in (model.NO_CLIP, model.CLIP_BEFORE, model.CLIP_AFTER, *sizes):
        if kind in model.BEFORE and one.kind[0] != model.L2:
            continue
        values = np.quantile(sizes[kind], (0.1, 0.4, 0.7, 0.9)) if kind in sizes else limits
        if one.clip[0] == model.NO_CLIP and kind != model.NO_CLIP:
            moves.add("clip", BOUND, np.maximum(values, 1e-300), clip=kind)
        elif kind != one.clip[0]:
            moves.set("clip", clip=kind)
    if one.clip[0] != model.NO_CLIP:
        moves.add("bound", BOUND, [*np.maximum(limits, 1e-300), now[BOUND]])


def _explained(moves: list[_Move], both: Both) -> list[Explained]:
    """The changes that explain both runs to rounding, the best first."""
    if not moves:
        return []
    found = _fitted(moves, both)
    return _judged([move for _, _, move in found], found[0][0], both)


def _fitted(moves: list[_Move], both: Both) -> list[tuple[Pairs, int, _Move]]:
    """The changes that begin best, with their numbers fitted."""
    hypotheses = pairs(
        concatenate([m.one for m in moves]),
        concatenate([m.other for m in moves]),
        np.array([m.tied for m in moves]),
        [1.0 if m.factor is None else m.factor for m in moves],
    )
    costs = cost(simulate, hypotheses, both)
    keys: dict[Any, list[int]] = {}
    for row in map(int, np.argsort(costs, kind="stable")):
        zero: Array = moves[row].other.numbers[0, ~moves[row].tied] == 0
        key = (moves[row].names, moves[row].other.switches(0), moves[row].one.switches(0),
               zero.tobytes())  # fmt: skip
        rows = keys.setdefault(key, [])
        if len(rows) < 2:
            rows.append(row)
    rows = list(itertools.chain(*keys.values()))
    scaled = np.array([moves[row].factor is not None for row in rows])
    fits = fitted(hypotheses.take(rows), both, 8, scaled)
    near = np.argsort(cost(simulate, fits, both), kind="stable")[:_NEAR]
    fits = fitted(fits.take(near), both, 30, scaled[near])
    again = np.argsort(cost(simulate, fits, both), kind="stable")
    near, fits = near[again], polished(fits.take(again), both, scaled[near[again]])
    return [(fits, i, moves[rows[row]]) for i, row in enumerate(near)]


def _judged(moves: list[_Move], fits: Pairs, both: Both) -> list[Explained]:
    """Those that leave rounding alone: the largest misfit, and no more of it than others have."""
    sides = [(fits.ones, both.one), (fits.others, both.other)]
    ratios = [misfits(rules, side) for rules, side in sides]
    largest = np.max([r.max((1, 2), initial=0.0) for r in ratios], 0)
    means = np.max([spread(r) for r in ratios], 0)
    good = [
        int(row)
        for row in np.flatnonzero(largest <= LIMIT)
        if all(is_told(rules.take([row]), side) for rules, side in sides)
    ]
    if sum(side.run.valid.sum() for _, side in sides) > 2 * SEVERAL:
        good = [row for row in good if means[row] <= 2 * means[good].min() + 0.02]
    best = dict[Any, Explained]()
    for row in sorted(good, key=lambda r: (_own(moves[r], fits, r), means[r])):
        move = moves[row]
        found = Explained(
            fits.ones.take([row]), fits.others.take([row]), move.names, _own(move, fits, row),
            float(means[row]), fits.take([row]), float(fits.numbers[row, -1]),
        )  # fmt: skip
        best.setdefault((move.names, found.other.switches(0)), found)
    return sorted(best.values(), key=lambda e: _rank(e, both))


def _rank(e: Explained, both: Both) -> tuple[Any, ...]:
    """The simplest and likeliest changes first, then what leaves least."""
    switched = sum(a != b for a, b in zip(e.one.switches(0), e.other.switches(0), strict=True))
    # Gradients that agree are rather the optimizer's than scaled within it.
    scaled = "factor" in e.names
    # At a constant rate decoupled decays are alike: most have one that the rate scales.
    rare = "kind" in e.names and max(e.one.kind[0], e.other.kind[0]) > model.DECOUPLED
    return len(e.names), _is_unlikely(e, both), e.free, scaled, switched, rare, e.spread


def _is_unlikely(e: Explained, both: Both) -> bool:
    """Whether a change is another rate than was recorded, or the place of an ε that is not seen."""
    if "lr" in e.names and LR in both.one.held:
        return True
    return "denominator" in e.names and any(
        held_by(rule.of(np.where(np.arange(COUNT) == EPS, 0.0, rule.numbers)), side).all()
        for rule, side in ((e.one, both.one), (e.other, both.other))
    )


def _own(move: _Move, fits: Pairs, row: int) -> int:
    """How many numbers the other has of its own that are not 0."""
    numbers = fits.others.numbers[row]
    return int((numbers[~move.tied] != 0).sum()) + (move.factor is not None)


def nearest(one: Rules, both: Both) -> list[tuple[Explained, float]]:
    """The single changes that leave the least of the gap, and what they leave."""
    moves = _moves(one.take([0]), both)
    found = list[tuple[Explained, float]]()
    for fits, row, move in _fitted(moves, both):
        rules = fits.ones.take([row]), fits.others.take([row])
        left = left_by(rules[0], rules[1], both)
        pair, factor = fits.take([row]), float(fits.numbers[row, -1])
        found.append((Explained(*rules, move.names, 1, 0.0, pair, factor), left))
    best = dict[Any, tuple[Explained, float]]()
    for explained, left in sorted(found, key=lambda x: x[1]):
        best.setdefault(explained.names, (explained, left))
    return list(best.values())


def left_by(one: Rules, other: Rules, both: Both) -> float:
    """The part of the gap that is left on the other when its rule replaces that of the one."""
    run = both.other.run
    with np.errstate(all="ignore"):
        gaps: list[Any] = [
            np.linalg.norm((changes(rule, both.other)[0] - run.changes) * run.valid)
            for rule in (other, one)
        ]
    return float(gaps[0] / gaps[1]) if gaps[1] else 0.0
