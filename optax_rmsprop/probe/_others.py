"""What a run is where it is no RMSprop: other optimizers, fitted to it and held against rounding.

What is a sign has numbers that no derivative sees: it is solved for by the intervals that the signs
leave.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from . import _optimizers as table
from ._fit import fit
from ._model import Array, Run
from ._optimizers import (
    B1,
    B2,
    BOUND,
    CLIP_ALL,
    CLIP_LEAF,
    CLIP_VALUE,
    COLUMNS,
    DECOUPLED,
    EPS,
    EXTRA,
    L2,
    LAMBDA,
    LR,
    NONE,
    SIGN,
    UNSCALED,
    Hypotheses,
    Kind,
    Option,
    averages,
    delayed,
    simulate,
)

# Above this a residual is no rounding.
LIMIT = 2.0
# From which part of what a decay forgets on it is open.
_WIDE = 0.05
# How far the gradients are moved to see what rounding does, in units of the roundoff, how often.
_MOVED, _DRAWS = 8.0, 6


@dataclasses.dataclass(frozen=True)
class Other:
    """An optimizer with the numbers that suit a run best.

    `explains` says whether it leaves nothing but rounding; `error` is the norm of what it leaves,
    relative to that of the changes. A number that the run does not show is not in `numbers`.
    """

    name: str
    numbers: dict[str, float]
    text: str
    explains: bool
    error: float


_UNKNOWN = np.full(len(COLUMNS), np.inf)
_Ends: TypeAlias = dict[int, tuple[float, float]]  # column -> the least and the largest number


@dataclasses.dataclass(frozen=True)
class _Fitted:
    hypotheses: Hypotheses  # one row
    cost: float
    deviation: Array  # [n], on the scale of `_fit`
    largest: float = np.inf  # the largest residual in units of rounding
    mean: float = np.inf
    ends: _Ends = dataclasses.field(default_factory=dict[int, tuple[float, float]])

    @property
    def explains(self) -> bool:
        return self.largest <= LIMIT


def others(run: Run, options: int = 2) -> list[Other]:
    """The optimizers that explain a run, the simplest first; or the three that come closest.

    Options, as many at once, are tried only as long as nothing explains the run without them. What
    is an RMSprop is not explained, except where the two are the same: where epsilon hides the
    second moment, and where the decay is 0.
    """
    if not (run.changes * run.valid).any():
        return [
            Other("no movement at all", {}, "no change that is larger than its rounding", True, 0.0)
        ]
    close: list[tuple[float, Hypotheses]] = []
    with np.errstate(all="ignore"):
        every = _few(run, None, 2_000_000)
        for count in range(options + 1):
            found, near = _with_options(run, count)
            if found:
                return _distinct(found, every)
            close += [pair for pair in near if pair[1].kind not in table.RMSPROP][:3]
        rows = sorted(close, key=lambda pair: pair[0])[:3]
        return [_other(_Fitted(hypotheses, value, _UNKNOWN), every) for value, hypotheses in rows]


@functools.lru_cache(3)  # asked during the search, and again at its end
def _with_options(run: Run, count: int) -> tuple[list[_Fitted], list[tuple[float, Hypotheses]]]:
    """What explains a run with so many options at once, and what comes close."""
    few, some, every = _few(run, 10, 16), _few(run, 200, 64), _few(run, None, 2_000_000)
    pairs = _pairs(run)[count]
    options = {option for _, option in pairs}
    found = [fitted for fitted in _signs(every) if fitted.hypotheses.option in options]
    near = _shortlist(pairs, few)
    for value, hypotheses in near:
        if value < 1e-6:
            found += _explaining(hypotheses, some, every)
    return found, near


def _pairs(run: Run) -> list[list[tuple[Kind, Option]]]:
    """The kinds without options, with one, and with two."""
    varied = bool(np.ptp(run.rates) > 0)
    sgd = table.SGD + table.SGD_OF_STEPS * varied
    kinds = [*sgd, *table.SIGNS, *table.SIGNS_OF_STEPS * varied, *table.RMSPROP, *table.ADAPTIVE]
    decays = [Option(DECOUPLED), *[Option(UNSCALED)] * varied, Option(L2)]
    clips = [CLIP_VALUE, CLIP_LEAF, *[CLIP_ALL] * int(run.leaf.max(initial=0) > 0)]
    clipped, product = [*sgd, table.ADAM], itertools.product
    return [
        [(table.PLAIN_DECAY, Option()), *product(kinds, [Option()])],
        [*product(kinds, decays), *product(clipped, [Option(clip=c) for c in clips])],
        [*product(clipped, [Option(d.decay, c) for d in decays for c in clips])],
    ]


def _few(run: Run, steps: int | None, most: int) -> Run:
    """The first steps of some columns, from small gradients to large ones, of which one moves."""
    moves = np.abs(run.changes) * run.valid
    if steps is not None:
        steps = min(max(steps, int(moves.any(1).argmax()) + 1), len(run.grads))
        run, moves = run.steps(steps), moves[:steps]
    most = most if steps else max(most // len(run.grads), 1)
    if run.grads.shape[1] <= most:
        return run
    sizes = np.argsort(np.abs(run.grads).max(0))
    chosen = sizes[np.linspace(0, len(sizes) - 1, most).astype(int)]
    return run.columns(np.union1d(chosen, moves.max(0).argmax()))


def _shortlist(pairs: list[tuple[Kind, Option]], run: Run) -> list[tuple[float, Hypotheses]]:
    """The kinds that come closest on a short run, with their costs; fewer as they are fitted."""
    started = [_started(Hypotheses(k, o, _starts(k, o, run)), run) for k, o in pairs]
    started = [(costs, hypotheses) for hypotheses, costs in started if np.isfinite(costs).any()]
    started.sort(key=lambda pair: pair[0].min())
    fits: list[tuple[float, Hypotheses]] = []
    for costs, hypotheses in started[:32]:
        rows = np.argsort(costs, kind="stable")[: 6 if hypotheses.kind.jumps else 2]
        fits.append(_best(hypotheses.take(rows[np.isfinite(costs[rows])]), run, 4))
    for count, further in ((16, _further), (8, _closer)):
        fits.sort(key=lambda pair: pair[0])
        fits = [further(hypotheses, run) for _, hypotheses in fits[:count]]
    return sorted(fits, key=lambda pair: pair[0])


def _further(hypotheses: Hypotheses, run: Run) -> tuple[float, Hypotheses]:
    """One hypothesis after a few more iterations, and its cost."""
    return _best(hypotheses, run, 5)


def _closer(hypotheses: Hypotheses, run: Run) -> tuple[float, Hypotheses]:
    """One hypothesis after many more, without the columns that jump in between."""
    value, hypotheses = _best(hypotheses, run, 6)
    if hypotheses.kind.jumps and value > 1e-9:
        hypotheses = _best(hypotheses, _trimmed(hypotheses, run), 8)[1]
    return _best(hypotheses, run, 8)


def _best(hypotheses: Hypotheses, run: Run, iterations: int) -> tuple[float, Hypotheses]:
    """The best of them after some iterations, and its cost."""
    fits, value, _ = fit(simulate, hypotheses, run, hypotheses.free, iterations, [B1, B2])
    best = int(value.argmin())
    return float(value[best]), fits.take([best])


def _starts(kind: Kind, option: Option, run: Run) -> Array:
    """The numbers [B, n] to begin with."""
    sizes = np.abs(run.grads[run.valid & (run.grads != 0)])
    size = float(np.median(sizes)) if sizes.size else 1.0
    values: dict[int, Iterable[float]] = {
        column: [value * size**power for value in values]
        for column, (power, values) in kind.starts.items()
    }
    if option.decay == L2:
        params = np.abs(run.params[:-1][run.valid])
        share = size / max(float(np.median(params[params > 0])), 1e-30) if params.any() else size
        values |= {LAMBDA: [share * x for x in (0.01, 0.1, 1.0, 10.0)], SIGN: [1.0, -1.0]}
    if option.clip != NONE:
        norms = {CLIP_LEAF: run.leaf_norm, CLIP_ALL: run.norm}.get(option.clip, run.grads)
        norms = np.abs(norms[norms != 0])
        values[BOUND] = np.quantile(norms, (0.15, 0.4, 0.65, 0.9)) if norms.size else [1.0]
    products = np.array(list(itertools.product(*values.values())))
    numbers = np.zeros((len(products), len(COLUMNS)))
    numbers[:, [LR, SIGN]] = 1.0
    numbers[:, list(values)] = products
    return numbers


def _started(hypotheses: Hypotheses, run: Run) -> tuple[Hypotheses, Array]:
    """The hypotheses at the rates, and the decoupled decays, that suit them; and their costs."""
    kind, option, numbers = hypotheses.kind, hypotheses.option, hypotheses.numbers.copy()
    bare = option if option.decay == L2 else Option(clip=option.clip)
    change = simulate(Hypotheses(kind, bare, numbers), run).reshape(len(numbers), -1)
    weight, observed = run.weight**2, run.changes
    with np.errstate(all="ignore"):
        along = np.einsum("bm,m->b", change, (observed * weight).ravel())
        length = np.einsum("bm,m->b", change**2, weight.ravel())
        rate, left = along / length, (observed**2 * weight).sum() - along**2 / length
        if option.decay in (DECOUPLED, UNSCALED):  # two numbers at once
            scale = run.rates[:, None] if option.decay == DECOUPLED else 1.0
            share = -scale * run.params[:-1]
            cross = np.einsum("bm,m->b", change, (share * weight).ravel())
            own, seen = (share**2 * weight).sum(), (share * observed * weight).sum()
            determinant = length * own - cross**2
            rate = (along * own - seen * cross) / determinant
            lost = (seen * length - along * cross) / determinant
            left = (observed**2 * weight).sum() - along * rate - seen * lost
            lost = lost / np.abs(rate) if option.decay == DECOUPLED else lost
            numbers[:, LAMBDA] = np.maximum(np.nan_to_num(np.abs(lost)), 1e-12)
    rate = np.nan_to_num(rate)
    numbers[:, SIGN] *= np.where((rate < 0) & (option.decay != L2), -1.0, 1.0)
    numbers[:, LR] = np.maximum(np.abs(rate), 1e-300)
    if kind.bounded:
        first = np.abs(observed[np.argmax((observed * run.valid).any(1))])
        numbers[:, LR] = np.median(first[first > 0])
        numbers = _bounded(hypotheses.of(numbers), run).numbers
    wrong = (rate == 0) | ((rate < 0) & ((option.decay == L2) | (kind is table.PLAIN_DECAY)))
    return hypotheses.of(numbers), np.where(wrong, np.inf, np.nan_to_num(left, nan=np.inf))


def misfit(hypotheses: Hypotheses, run: Run) -> tuple[float, float]:
    """The largest residual of one hypothesis, and their root mean square, in units of rounding.

    What rounding does is seen by moving gradients and parameters by some of it: a sum that cancels
    or a sign that is nearly 0 is then allowed what it does. To this come the rounding of the step,
    growing with the number of terms, of a power that corrects a bias, and of the parameters.
    """
    change = simulate(hypotheses, run)[0]
    random, bound = np.random.default_rng(0), np.zeros_like(change)
    for _ in range(_DRAWS):
        moved = dataclasses.replace(
            run,
            grads=run.grads * (1 + _MOVED * run.unit * random.choice((-1, 1), run.grads.shape)),
            params=run.params * (1 + _MOVED * run.unit * random.choice((-1, 1), run.params.shape)),
        )
        numbers = hypotheses.numbers.copy()
        rounding = 2 * _MOVED * run.unit  # that of a power too
        numbers[:, list(hypotheses.kind.moved)] *= 1 + rounding * random.choice((-1, 1))
        changed = simulate(hypotheses.of(numbers), moved)[0]
        bound = np.maximum(bound, np.abs(changed - change))
    count = np.arange(1, len(change) + 1)[:, None]
    relative = 4 + 2 * np.sqrt(count)
    for column in hypotheses.kind.corrected:
        decay = hypotheses.numbers[0, column]
        if 1 - decay < 256 * run.unit:  # no such decay can be held apart from 1
            return np.inf, np.inf
        relative = relative + 2 / (1 - decay**count)
    bound += run.unit * relative * np.abs(change)
    bound += run.stored * (np.abs(run.params[1:]) + np.abs(run.params[:-1])) + np.finfo(float).tiny
    ratio = np.nan_to_num(np.abs(change - run.changes) / bound * run.valid, nan=np.inf)
    return float(ratio.max(initial=0.0)), float(np.sqrt((ratio**2).mean()))


def _judged(fitted: _Fitted, run: Run) -> _Fitted:
    largest, mean = misfit(fitted.hypotheses, run)
    return dataclasses.replace(fitted, largest=largest, mean=mean)


def _refitted(hypotheses: Hypotheses, some: Run, every: Run) -> _Fitted:
    """Least squares in rounds, damped anew: two numbers that do the same leave no other hold."""
    if hypotheses.kind.bounded:
        hypotheses = _bounded(hypotheses, some)
    fitted = _Fitted(hypotheses, np.inf, _UNKNOWN)
    for _ in range(3):
        free = fitted.hypotheses.free
        fits, value, deviation = fit(simulate, fitted.hypotheses, some, free, 10, [B1, B2])
        fitted = _judged(_Fitted(fits, float(value[0]), deviation[0]), every)
        if fitted.explains and fitted.mean < 0.5:
            break
    return fitted


def _explaining(hypotheses: Hypotheses, some: Run, every: Run) -> list[_Fitted]:
    """The hypothesis fitted to the whole run, without what it does not need, if it explains it.

    It does not if what the kind needs is not there: then it is another one.
    """
    kind, at = hypotheses.kind, hypotheses.numbers[0]
    for column in kind.needs:
        if at[column] < 1e-4 and _refitted(_without(hypotheses, column), some, every).explains:
            return []
    fitted = _refitted(hypotheses, some, every)
    if kind.jumps and not fitted.explains:
        fitted = _refitted(_best(fitted.hypotheses, _trimmed(fitted.hypotheses, some), 10)[1],
                           some, every)  # fmt: skip
    if (
        not fitted.explains
        and EPS in kind.starts
        and not (kind.bounded or fitted.deviation[EPS] < 0.02)
    ):
        seeded = _refitted(_best(_seeded(fitted.hypotheses, some), some, 10)[1], some, every)
        fitted = seeded if seeded.explains else fitted
    for column in kind.drops:  # a number that is 0 is never reached
        if not fitted.explains and not fitted.deviation[column] < 0.02:
            less = _refitted(_without(hypotheses, column), some, every)
            fitted = less if less.explains else fitted
    if not fitted.explains:
        return []
    fitted = _without_idle_options(fitted, some, every)
    for column in (*kind.needs, *kind.drops):
        if fitted.deviation[column] < 0.02 or not fitted.hypotheses.free[0, column]:
            continue
        less = _refitted(_without(fitted.hypotheses, column), some, every)
        if less.explains and less.mean <= 1.2 * fitted.mean + 0.02:
            if column in kind.needs:
                return []
            fitted = less
    return [fitted]


def _without_idle_options(fitted: _Fitted, some: Run, every: Run) -> _Fitted:
    """The hypothesis without a weight decay that is not seen, and without a clip that is not."""
    for part, column in (("decay", LAMBDA), ("clip", BOUND)):
        hypotheses = fitted.hypotheses
        if getattr(hypotheses.option, part) == NONE or (
            part == "decay" and fitted.deviation[LAMBDA] < 0.02
        ):
            continue
        option = dataclasses.replace(hypotheses.option, **{part: NONE})
        numbers = _without(hypotheses, column).numbers
        less = _refitted(Hypotheses(hypotheses.kind, option, numbers), some, every)
        fitted = less if less.explains else fitted
    return fitted


def _seeded(hypotheses: Hypotheses, run: Run) -> Hypotheses:
    """The hypothesis with each of many values of an epsilon that was lost on the way."""
    power, _ = hypotheses.kind.starts[EPS]
    sizes = np.abs(run.grads[run.valid & (run.grads != 0)])
    values = (float(np.median(sizes)) * np.logspace(-10, 0, 21)) ** power
    numbers = np.repeat(hypotheses.numbers, len(values), 0)
    numbers[:, EPS] = values
    return hypotheses.of(numbers)


def _bounded(hypotheses: Hypotheses, run: Run) -> Hypotheses:
    """The bounds, where there are any, at the smallest and the largest step of the run."""
    sizes = np.abs(run.changes[run.valid & (run.changes != 0)])
    least, most = np.quantile(sizes, (0.0, 1.0)) / hypotheses.numbers[0, LR]
    numbers = hypotheses.numbers.copy()
    ends = np.array([min(least, 1 - 1e-9), max(most, 1.0)])
    numbers[:, [B2, EPS]] = np.where(numbers[:, [B2, EPS]] > 0, ends, 0.0)
    return hypotheses.of(numbers)


def _without(hypotheses: Hypotheses, column: int) -> Hypotheses:
    """The hypotheses with one number 0."""
    numbers = hypotheses.numbers.copy()
    numbers[:, column] = 0.0
    return hypotheses.of(numbers)


def _trimmed(hypotheses: Hypotheses, run: Run) -> Run:
    """The run without the columns that fit worst: a jump in these hides where the others lead."""
    left = (simulate(hypotheses, run)[0] - run.changes) * run.valid / run.scale
    worst = np.abs(left).max(0)
    return dataclasses.replace(run, valid=run.valid & (worst <= np.median(worst)))


def _distinct(found: list[_Fitted], run: Run) -> list[Other]:
    """The simplest, each name once; none where an RMSprop is as simple."""
    counts = [int(fitted.hypotheses.free.sum()) for fitted in found]
    simplest = [fitted for fitted, n in zip(found, counts, strict=True) if n == min(counts)]
    least = 1.2 * min(fitted.mean for fitted in simplest) + 0.02
    # A maximum that a run does not show comes last.
    if any(f.mean <= least and f.hypotheses.kind in table.RMSPROP for f in simplest):
        return []
    simplest.sort(
        key=lambda fitted: (
            fitted.mean > least, fitted.hypotheses.kind.name == "AMSGrad", fitted.mean
        )
    )  # fmt: skip
    names = {fitted.hypotheses.kind.name: fitted for fitted in reversed(simplest)}
    return [_other(names[name], run) for name in reversed(names) if name != "RMSprop"]


# What is a sign.


def _signs(run: Run) -> list[_Fitted]:
    """Sign descent, Signum or Lion, whichever is the simplest, if the steps are signs."""
    size, most = run.grads.shape[1], max(50_000 // len(run.grads), 1)
    columns = list(range(0, size, -(-size // most)))
    for decayed, sign in itertools.product((False, True), (1.0, -1.0)):
        grads = sign * run.grads
        solved, deviation, signs = _signs_seen(grads, run, decayed)
        scatter = deviation[0] * np.sqrt(grads.size)
        if (solved[: 1 + decayed] <= 0).any() or scatter > 0.1:
            continue
        option, row = Option(DECOUPLED if decayed else NONE), np.zeros((1, len(COLUMNS)))
        row[0, [LR, LAMBDA, SIGN]] = solved[0], solved[1] / solved[0], sign
        spread = np.zeros(len(COLUMNS))
        spread[[LR, LAMBDA]] = deviation
        for kind, numbers, ends in _sign_rules(grads[:, columns], signs[:, columns]):
            row[0, [B1, B2]] = numbers
            fitted = _Fitted(Hypotheses(kind, option, row.copy()), 0.0, spread, ends=ends)
            fitted = _judged(fitted, run)
            if fitted.explains:
                return [fitted]
    return []


def _signs_seen(grads: Array, run: Run, decayed: bool) -> tuple[Array, Array, Array]:
    """The rate and the decay times the rate, their errors, and the signs [T, N] of the steps."""
    moving = np.logical_or.accumulate(grads != 0) & run.valid & (run.rates != 0)[:, None]
    size = np.abs(run.params[1:]) + np.abs(run.params[:-1]) + np.abs(run.changes)
    weight = np.where(moving, np.abs(run.rates[:, None]) / (size + np.finfo(float).tiny), 0.0)
    with np.errstate(all="ignore"):
        seen = np.where(moving, run.changes / run.rates[:, None], 0.0)
    before, solved, signs = run.params[:-1] * moving, np.zeros(2), np.zeros_like(grads)
    basis = np.zeros((grads.size, 2))
    for _ in range(8):
        signs = -np.sign(seen + solved[1] * before)
        basis = np.stack([-(signs * weight).ravel(), -(before * weight * decayed).ravel()], 1)
        solved = np.linalg.lstsq(basis, (seen * weight).ravel(), rcond=None)[0]
    left = (seen * weight).ravel() - basis @ solved
    length = np.linalg.norm(basis, axis=0) * np.abs(solved) + np.finfo(float).tiny
    return solved, np.sqrt((left**2).mean()) / length, signs


def _sign_rules(grads: Array, signs: Array) -> Iterable[tuple[Kind, tuple[float, float], _Ends]]:
    """Kinds, b1 and b2 that give these signs, and between which they do; the simplest first."""
    if (np.sign(grads) == signs)[signs != 0].all():
        yield table.SIGN_DESCENT, (0.0, 0.0), {}
        return
    found = _feasible(lambda decays: _signum_gap(grads, signs, decays))
    if found:
        yield table.SIGNUM, (_between(*found), 0.0), {B1: found}
    found = _feasible(lambda decays: np.divide(*_ratios(grads, signs, decays)))
    if found:
        decay, ends = _between(*found), np.log(found) - np.log1p(-np.array(found))
        low, high = _ratios(
            grads, signs, np.append(decay, _decays(np.linspace(ends[0], ends[1], 41)))
        )
        low, high = low / (1 + low), high / (1 + high)
        some = low < high
        b1 = float(low[some].min()), float(high[some].max())
        yield table.LION, (_between(low[0], high[0]), decay), {B1: b1, B2: found}


def _signum_gap(grads: Array, signs: Array, decays: Array) -> Array:
    low, high = _ratios(grads, signs, decays)
    own = decays / (1 - decays)
    return np.maximum(low / own, own / high)


def _feasible(gap: Callable[[Array], Array]) -> tuple[float, float] | None:
    """The decays around the least gap where it is below 1."""
    logits = np.linspace(-6.0, 9.0, 301)
    at = 0.0
    for width in (0.05, 2.5e-3, 1.25e-4, 6e-6):
        gaps = gap(_decays(logits))
        at = float(logits[int(np.argmin(gaps))])
        if gaps.min() < 1:
            break
        logits = at + width * np.linspace(-1, 1, 41)
    else:
        return None
    return _end(gap, at, -8.0), _end(gap, at, 12.0)


def _end(gap: Callable[[Array], Array], inside: float, outside: float) -> float:
    """The last decay from a logit inside towards one outside where the gap is below 1."""
    for points in (401, 12, 12, 12, 12):
        steps = np.linspace(inside, outside, points)
        wrong = gap(_decays(steps)) >= 1
        if not wrong.any():
            return float(_decays(outside))
        first = max(int(np.argmax(wrong)), 1)
        inside, outside = float(steps[first - 1]), float(steps[first])
    return float(_decays(inside))


def _decays(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def _ratios(grads: Array, signs: Array, decays: Array) -> tuple[Array, Array]:
    """Between which ratios of mean to gradient the signs are these, for each decay."""
    count = max(4_000_000 // grads.size, 1)
    parts = [_ratio(grads, signs, decays[i : i + count]) for i in range(0, len(decays), count)]
    low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    return np.maximum(low, 1e-12), np.clip(high, 1e-300, 1e12)


def _ratio(grads: Array, signs: Array, decays: Array) -> tuple[Array, Array]:
    every = np.broadcast_to(grads, (len(decays), *grads.shape))
    mean = delayed(averages(every, decays[:, None, None]))
    with np.errstate(all="ignore"):
        ratio = -grads / mean
    helps, hurts = signs * mean > 0, signs * mean < 0
    low = np.where(helps, ratio, 0.0).max((1, 2), initial=0.0)
    return low, np.where(hurts, ratio, np.inf).min((1, 2), initial=np.inf)


# What is said.


def _other(fitted: _Fitted, run: Run) -> Other:
    snapped = _snapped(fitted, run)
    if fitted.explains and misfit(snapped, run)[0] <= LIMIT:
        hypotheses = snapped
    else:
        hypotheses = fitted.hypotheses
    kind, option = hypotheses.kind, hypotheses.option
    values = dict(zip(range(len(COLUMNS)), hypotheses.numbers[0].tolist(), strict=True))
    if kind.bounded:
        values |= {B2: values[B2] * values[LR], EPS: values[EPS] * values[LR]}
    bound = "clip_value" if option.clip == CLIP_VALUE else "clip_norm"
    shown = {LR: "lr", **kind.shown, LAMBDA: "weight_decay", BOUND: bound}
    free = hypotheses.free[0]
    numbers = {name: values[column] for column, name in shown.items() if free[column]}
    name = {("Adam", DECOUPLED): "AdamW"}.get((kind.name, option.decay), kind.name)
    texts = {name: repr(value) for name, value in numbers.items()}
    if "lr" in numbers:
        numbers["lr"], texts["lr"] = _rate(numbers["lr"], run)
    written = [f"{name}={text}" for name, text in texts.items()]
    written += ["maximize=True"] * (values[SIGN] < 0)
    notes = [kind.detail, kind.place if free[EPS] or free[EXTRA] else ""]
    notes += [_DECAYS[option.decay] * (name != "AdamW"), _CLIPS[option.clip]]
    unseen = [shown[c] for c in kind.drops if not (free[c] or kind.bounded)]
    notes += [f"{' and '.join(unseen)} not seen" if unseen else ""]
    notes += [
        f"{shown[column]} is anywhere from {low:.3g} to {high:.3g}"
        for column, (low, high) in fitted.ends.items()
        if high - low > _WIDE * (1 - values[column])
    ]
    text = ", ".join([f"{name}({', '.join(written)})", *filter(None, notes)])
    change = (simulate(hypotheses, run)[0] - run.changes) * run.valid
    error = float(np.sqrt((change**2).sum() / ((run.changes * run.valid) ** 2).sum()))
    return Other(name, numbers, text, fitted.explains, error)


def _rate(factor: float, run: Run) -> tuple[float, str]:
    """A factor of the rates as a rate, and as text: in terms of those that are given, and vary."""
    if np.ptp(run.rates) == 0:
        rate = factor * float(run.rates[0])
        rate = _shortest(rate, 4 * run.unit * rate)
        return rate, repr(rate)
    if run.rates[0] == 1:
        return factor, repr(factor)
    return factor, "learning_rates" if factor == 1 else f"{factor!r}*learning_rates"


_DECAYS = {
    NONE: "", DECOUPLED: "decoupled weight decay", L2: "L2",
    UNSCALED: "decoupled weight decay that the rate does not scale",
}  # fmt: skip
_CLIPS = {
    NONE: "", CLIP_VALUE: "clipped by value", CLIP_LEAF: "clipped by the norm of each leaf",
    CLIP_ALL: "clipped by the norm of all gradients",
}  # fmt: skip


def _snapped(fitted: _Fitted, run: Run) -> Hypotheses:
    """The numbers as the shortest decimals within their uncertainty."""
    row = fitted.hypotheses.numbers[0].copy()
    unit = 8 * run.unit + 2 * run.unit * sum(
        1 / (1 - row[column]) for column in fitted.hypotheses.kind.corrected
    )
    for column in np.flatnonzero(fitted.hypotheses.free[0]):
        spread = 5 * fitted.deviation[column] + unit
        value = row[column]
        slope = value * (1 - value) if column in (B1, B2) else value
        row[column] = _shortest(value, max(slope * min(spread, 1.0), 4 * run.unit * value))
    return fitted.hypotheses.of(row[None])


def _shortest(value: float, tolerance: float) -> float:
    """The decimal of the fewest digits this near."""
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((x for x in decimals if abs(x - value) <= tolerance), float(value))


def _between(low: float, high: float) -> float:
    """The decimal of the fewest digits between two numbers."""
    return _shortest((low + high) / 2, (high - low) / 2)
