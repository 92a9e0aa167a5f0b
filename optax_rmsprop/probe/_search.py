"""Which hypotheses explain a run: a grid of starts, least squares, and the simplest that are left.

Options (weight decay, clipping, caution) are tried one by one, then in pairs and triples, and only
as long as nothing explains the run. What a bound of the parameters may have cut off is left out at
first.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import _model as model
from ._fit import LEAST, Runs, cost, each, fit, residuals
from ._model import (
    BOUND,
    BOX,
    EPS,
    FORGETS,
    LAMBDA,
    LR,
    MOMENTUM,
    SCALE,
    Array,
    Rules,
    Run,
    concatenate,
)

_DENOMINATORS = (model.INSIDE, model.OUTSIDE, model.FLOOR)
# Denominator, centred, bias-corrected, and whether a first gradient alone is divided by itself.
SHAPES = [
    (denominator, centered, corrected, alone)
    for denominator in _DENOMINATORS
    for centered in (False, True)
    for corrected in (False, True)
    for alone in ((True, False) if centered and corrected else (True,))
]
RARE = [
    (model.SUBTRACTED, True, False, True),
    (model.BOTH, False, False, True),
    (model.BOTH, True, False, True),
]
# Above this a residual is no rounding: the bound of the error analysis, and room for another order
# of the same operations.
LIMIT = 4.0
# Which part of the changes a rule leaves at most: what rounding could make anything of explains
# nothing. In bfloat16 a step of two units in the last place is known to a seventh.
_LEAVES = 0.25
# What rounding leaves at least in the root mean square, in these units, and mostly at most.
_NOISE, _USUAL = 0.01, 0.25
# Of how many changes the spread of what is left can be compared.
SEVERAL = 50
# How many values of a number are tried, from far below the gradients to far above.
_SEEDS = 40
# How many kinds of hypotheses are tried with one option more.
_PARENTS = 4
# How many kinds of hypotheses are polished, and how many are fitted for longer before.
_KINDS, _LONGER = 4, 12
# Numbers that others may hide, how many fits are moved along them, how often, and by which factor
# the way is seen.
_HIDDEN = [EPS, SCALE, LAMBDA, MOMENTUM]
_ALONG, _MOVES, _BESIDE = 8, 4, 1.1
# A momentum below this is none.
_TURNS = 1e-4
# How many times the least mean square is more than chance makes of several changes.
_MANY = 30.0
# And as what a number fewer may leave.
_FEWER = 10.0
# How many decimals of a number are tried.
_DECIMALS = 4
# How many options are tried before the simpler ones are polished, and in triples.
_FIRST = 4
# Which part of the cost without it an option leaves if it helps, and if it is clear that it is one.
_HELPS, CLEAR = 0.1, 1e-2
# Below this mean square a hypothesis may be right but for numbers too small to be seen yet, and
# below the other one once more.
NEAR, _NEARER = 1e-4, 1e-20


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the search begins: numbers relative to the gradients, or as they are."""

    forgetting: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3, 1e-4)
    heights: tuple[float, ...] = (1e-3, 0.05, 0.5, 5.0)
    scales: tuple[float, ...] = (0.0, 1.0, -0.1, -10.0)  # below 0: times the squared gradient
    momenta: tuple[float, ...] = (0.5, 0.9, 0.99)


COARSE = Grid((0.3, 0.1, 0.03, 0.01, 1e-3), (1e-3, 0.5), (0.0, 1.0, -1.0), (0.5, 0.9))
# The grid, and how many of its hypotheses are fitted, with an option and without one.
_SIZES = (COARSE, 24), (Grid(), 180)


@dataclasses.dataclass(frozen=True)
class Option:
    """What a hypothesis has besides its shape: switches, and the numbers to begin with."""

    kind: int = model.NO_DECAY
    clip: int = model.NO_CLIP
    caution: bool = False
    rare: bool = False
    maximize: bool = False

    @property
    def simpler(self) -> "list[Option]":
        """The options without one of its parts."""
        clip = model.BEFORE.get(self.clip, self.clip)
        parts: list[dict[str, Any]] = [
            {"kind": model.NO_DECAY, "maximize": False, "clip": clip}, {"clip": model.NO_CLIP},
            {"caution": False}, {"rare": False},
        ]  # fmt: skip
        without = [dataclasses.replace(self, **part) for part in parts]
        return [option for option in without if option != self]


@dataclasses.dataclass(frozen=True)
class Fits:
    """Hypotheses that were fitted: which numbers were free, how well they do, how sure they are."""

    rules: Rules
    free: Array  # [B, n]
    cost: Array  # [B]
    deviation: Array  # [B, n]

    def take(self, rows: Any) -> "Fits":
        """Some of them."""
        return Fits(self.rules.take(rows), self.free[rows], self.cost[rows], self.deviation[rows])

    def __len__(self) -> int:
        return len(self.cost)


def none() -> Fits:
    """No hypothesis."""
    numbers = np.zeros((0, len(model.NUMBERS)))
    return Fits(model.rules(numbers), numbers.astype(bool), np.zeros(0), numbers)


def join(parts: list[Fits]) -> Fits:
    """All of them."""
    names = ("free", "cost", "deviation")
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    return Fits(concatenate([part.rules for part in parts]), *arrays)


def fitted(
    rules: Rules, run: Runs, iterations: int, free: Array | None = None, start: float = 1e-2
) -> Fits:
    """The hypotheses with their free numbers fitted."""
    free = free_numbers(rules) if free is None else free
    rules, value, deviation = fit(model.simulate, rules, run, free, iterations, start=start)
    return Fits(rules, free, value, deviation)


def free_numbers(rules: Rules) -> Array:
    """Which numbers a hypothesis has: those that its switches leave a part to.

    Not where the parameters are cut off, which is read off exactly.
    """
    free = np.zeros(rules.numbers.shape, bool)
    free[:, [LR, FORGETS]] = True
    free[:, EPS] = rules.numbers[:, EPS] > 0
    free[:, SCALE] = rules.numbers[:, SCALE] > 0
    free[:, MOMENTUM] = rules.numbers[:, MOMENTUM] > 0
    free[:, LAMBDA] = rules.kind != model.NO_DECAY
    free[:, BOUND] = rules.clip != model.NO_CLIP
    return free


def starts(run: Run, option: Option, grid: Grid) -> tuple[Rules, Array]:
    """The grid of hypotheses with this option, at the rates that suit them, and their costs."""
    sizes = np.abs(run.grads[run.valid & (run.grads != 0)])
    size = float(np.median(sizes)) if sizes.size else 1.0
    varied = bool(np.ptp(run.rates) > 0)
    buffers = [(True, False, 0.0)] * (not option.caution)
    buffers += [
        (inside, nesterov, momentum)
        for momentum, nesterov, inside in itertools.product(
            grid.momenta, (False, True), (True, False)
        )
        if (inside or varied) and not (nesterov and option.caution)
    ]
    parts: list[Rules] = []
    weights, bounds = _weights(run, option), _bounds(run, option)
    values = (grid.forgetting, grid.heights, grid.scales, weights, bounds)
    keep, height, first, weight, bound = np.array(list(itertools.product(*values))).T
    for denominator, centered, corrected, alone in RARE if option.rare else SHAPES:
        amplitude = size * height * (1 if corrected else np.sqrt(1 - (1 - keep) ** 5))
        squared = denominator in (model.INSIDE, model.SUBTRACTED)
        numbers = np.zeros((len(keep), len(model.NUMBERS)))
        numbers[:, LR], numbers[:, FORGETS] = 1.0, keep
        numbers[:, EPS] = amplitude**2 if squared else amplitude
        numbers[:, SCALE] = np.where(first < 0, -first * size**2, first)
        numbers[:, LAMBDA], numbers[:, BOUND], numbers[:, BOX] = weight, bound, np.inf
        parts.append(
            model.rules(
                numbers,
                denominator,
                centered,
                corrected,
                maximize=option.maximize,
                kind=option.kind,
                clip=option.clip,
                caution=option.caution,
                alone=alone,
            )
        )
    rules = concatenate(parts)
    chunk = max(1, 50_000 // max(run.grads.size, 1))
    found = [
        started(rules.take(slice(i, i + chunk)), run, buffers) for i in range(0, len(rules), chunk)
    ]
    return concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def started(rules: Rules, run: Run, buffers: list[Any]) -> tuple[Rules, Array]:
    """The hypotheses with each kind of buffer, and the rate and decoupled decay that suit best."""
    with np.errstate(all="ignore"):
        g, u, _ = model.directions(rules, run)
        weight = run.weight**2
        observed, size = run.changes, run.grads.size
        plain = rules.replace(kind=model.NO_DECAY)
        found: list[Rules] = []
        costs: list[Array] = []
        for inside, nesterov, momentum in buffers:
            numbers = rules.numbers.copy()
            numbers[:, MOMENTUM] = momentum
            tried = plain.of(numbers).replace(buffer=inside, nesterov=nesterov)
            change = model.steps(tried, run, g, u).reshape(len(rules), -1)
            along = np.einsum("bm,m->b", change, (observed * weight).ravel())
            length = np.einsum("bm,m->b", change**2, weight.ravel())
            total = (observed**2 * weight).sum()
            share = _share(rules.kind[0], run)
            if share is None:
                rate = along / length
                cost = total - along * rate
            else:  # two numbers at once: the rate, and the share of the parameters
                cross = np.einsum("bm,m->b", change, (share * weight).ravel())
                own, seen = (share**2 * weight).sum(), (share * observed * weight).sum()
                det = length * own - cross**2
                rate = (along * own - seen * cross) / det
                lost = (seen * length - along * cross) / det
                cost = total - along * rate - seen * lost
                scale = {model.DECOUPLED: rate, model.DECOUPLED_SQUARED: rate**2}
                lost = lost / scale.get(int(rules.kind[0]), 1.0)
                numbers[:, LAMBDA] = np.maximum(np.abs(np.nan_to_num(lost)), 1e-12)
            rate = np.nan_to_num(rate, posinf=0.0, neginf=0.0)
            numbers[:, LR] = np.maximum(np.abs(rate), 1e-300)
            flips = (rate < 0) & (rules.kind != model.L2)
            wrong = (rate < 0) & (rules.kind == model.L2)
            tried = rules.of(numbers).replace(buffer=inside, nesterov=nesterov)
            found.append(dataclasses.replace(tried, maximize=rules.maximize ^ flips))
            costs.append(np.where(wrong, np.inf, np.nan_to_num(cost / size, nan=np.inf)))
    return concatenate(found), np.concatenate(costs)


def _share(kind: int, run: Run) -> Any:
    """What a decoupled decay of 1 takes from the parameters, [T, N]."""
    powers = {model.DECOUPLED: 1, model.DECOUPLED_UNSCALED: 0, model.DECOUPLED_SQUARED: 2}
    if kind not in powers:
        return None
    return -(run.rates[:, None] ** powers[kind]) * run.params[:-1]


def _weights(run: Run, option: Option) -> tuple[float, ...]:
    if option.kind != model.L2:
        return (0.0,)
    g, p = (np.abs(x[run.valid]) for x in (run.grads, run.params[:-1]))
    size = float(np.median(p[p > 0])) if (p > 0).any() else 1.0
    typical = float(np.median(g[g > 0])) if (g > 0).any() else 0.0
    share = max(typical / size, 1e-30)
    return tuple(factor * share for factor in (0.01, 0.1, 1.0, 10.0, 100.0))


def _bounds(run: Run, option: Option) -> tuple[float, ...]:
    if option.clip == model.NO_CLIP:
        return (1.0,)
    clip = model.BEFORE.get(option.clip, option.clip)
    norms = {model.CLIP_LEAF: run.leaf_norm, model.CLIP_ALL: run.norm}.get(clip)
    # Once for each leaf, not for each of its entries.
    sizes = np.abs(run.grads if norms is None else np.unique(norms))
    sizes = sizes[sizes != 0]
    # From the least norm on nothing changes but the units: every step is clipped.
    quantiles = (0.15, 0.4, 0.65, 0.9) if norms is None else (0.0, 0.15, 0.4, 0.65, 0.9)
    return tuple(np.quantile(sizes, quantiles)) if sizes.size else (1.0,)


def _free_of_bound(run: Run) -> tuple[Run, float]:
    """The run without the changes that a bound of the parameters may have cut off, and the bound.

    Where parameters come to one largest size and stay, it may be a bound; infinite is none.
    """
    sizes = np.abs(run.params)
    largest = float(sizes[1:][run.valid].max(initial=0.0))
    # What is added is rounded, and so is its sum: the bound less the parameter.
    rounding = 4 * run.unit * (largest + sizes.max())
    held = run.valid & (sizes[1:] >= largest - rounding)
    free = dataclasses.replace(run, valid=run.valid & ~held)
    if held.sum() <= 2 or not (held & run.moves).any() or not free.moves.any():
        return run, np.inf
    bound = float(np.median(sizes[1:][held]))
    alike = np.ptp(sizes[1:][held]) == 0
    room = rounds_away(bound, run.unit) if alike else 4 * run.unit * largest
    return free, shortest(bound, bound - room, bound + room)


def _bounded(fits: Fits, run: Run, bound: float) -> Fits:
    """Those that explain all of a run: without the bound of the parameters, else with it."""
    found = explained(fits, run)
    return found if len(found) else explained(_with_bound(fits, bound), run)


def _with_bound(fits: Fits, bound: float) -> Fits:
    numbers = fits.rules.numbers.copy()
    numbers[:, BOX] = bound
    return dataclasses.replace(fits, rules=fits.rules.of(numbers))


def rounds_away(value: float, unit: float) -> float:
    """How far a number may lie from what it is rounded to."""
    return 0.999 * unit * 2.0 ** np.floor(np.log2(value))


def shortest(value: float, low: float, high: float) -> float:
    """The decimal of fewest digits in an interval, or its rounding to float32."""
    return decimals(value, low, high)[0]


def decimals(value: float, low: float, high: float) -> list[float]:
    """The decimals in an interval, or their roundings to float32, of few digits and of more."""
    found: list[float] = []
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        within = [x for x in (short, float(np.float32(short))) if low <= x <= high]
        found += [x for x in within[:1] if x not in found]
    return found[:_DECIMALS] or [float(value)]


def best(rules: Rules, costs: Array, each: int, most: int) -> Array:
    """The rows of the best few of each set of switches, and of these the best."""
    finite = np.flatnonzero(np.isfinite(costs))
    order = finite[np.argsort(costs[finite], kind="stable")]
    fields = [getattr(rules, name) for name in _SWITCHES if name != "numbers"]
    alike = np.zeros(len(order), int)  # a digit for each switch
    for field in (*fields, *free_numbers(rules)[:, [SCALE, MOMENTUM]].T):
        alike = 8 * alike + field[order]
    groups = np.argsort(alike, kind="stable")
    first = np.flatnonzero(np.diff(alike[groups], prepend=-1))
    place = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return order[np.sort(groups[place < each])][:most]


def explore(
    run: Run, option: Option, grid: Grid, most: int, tried: Mapping[Option, Fits | None]
) -> Fits | None:
    """The best hypotheses with this option, fitted; some begin with what was tried without it."""
    early = _begun(run, option, grid, most, tried)
    return None if early is None else _fitted_on(early, _short(run), run, most)


def _begun(
    run: Run, option: Option, grid: Grid, most: int, tried: Mapping[Option, Fits | None]
) -> Fits | None:
    """The best starts with this option, fitted to the first steps a little."""
    short = _short(run)
    few = short if option.caution else _telling(spread(short, 16), short)
    begun = _early(*starts(few, option, grid), short, most)
    simpler = [fits for fits in map(tried.get, option.simpler) if fits is not None and len(fits)]
    if begun is None or option.rare or not simpler:
        return begun
    nearest = min(simpler, key=lambda fits: fits.cost.min())
    return join([begun, _from_simpler(nearest, option, run)])


def _from_simpler(fits: Fits, option: Option, run: Run) -> Fits:
    """The best of each kind of hypothesis with one option more, fitted to the first steps."""
    near, short = fits.take(of_each_kind(fits)), _short(run)
    if option.kind == model.L2:
        near = near.take(near.rules.maximize == option.maximize)
    near = near.take(np.argsort(near.cost, kind="stable")[:_PARENTS])
    if not len(near):
        return none()
    rules = near.rules.replace(kind=option.kind, clip=option.clip, caution=option.caution)
    new = rules.numbers[:, None].copy()
    if option.kind != near.rules.kind[0]:
        new = _each_with(new, LAMBDA, _little(run, option.kind))
    if option.clip not in (model.NO_CLIP, near.rules.clip[0]):
        new = _each_with(new, BOUND, _bounds(run, option))
    rules = rules.take(np.repeat(np.arange(len(near)), new.shape[1]))
    rules = rules.of(new.reshape(len(rules), -1))
    return fitted(rules, short, 6)


def _each_with(numbers: Array, number: int, values: Iterable[float]) -> Array:
    """Numbers [B, m, n] with each of k values of one of them, [B, m * k, n]."""
    parts = [numbers.copy() for _ in values]
    for part, value in zip(parts, values, strict=True):
        part[..., number] = value
    return np.concatenate(parts, 1)


def _little(run: Run, kind: int) -> tuple[float, ...]:
    """Weight decays that do little."""
    of = np.abs(run.grads if kind == model.L2 else run.changes)[run.moves]
    params = np.abs(run.params[:-1][run.moves])
    size = float(np.median(params[params > 0])) if params.any() else 1.0
    share = float(np.median(of[of > 0])) / size if of.any() else 1.0
    return (1e-5 * share, 1e-2 * share)


def _short(run: Run) -> Run:
    """The first steps, or all if nothing moves in them."""
    return _telling(run.steps(min(10, len(run.grads))), run)


def _telling(part: Run, whole: Run) -> Run:
    """A part of a run if something moves there, else all of it."""
    return part if part.moves.any() else whole


def spread(run: Run, most: int) -> Run:
    """Some columns, from those of the smallest gradients to those of the largest."""
    sizes = np.argsort(np.abs(run.grads).max(0, initial=0), kind="stable")
    return run.columns(np.unique(sizes[np.linspace(0, len(sizes) - 1, most).astype(int)]))


def refined(rules: Rules, costs: Array, short: Run, run: Run, most: int) -> Fits | None:
    """The best of the starts fitted, to a part of the run first."""
    early = _early(rules, costs, short, most)
    return None if early is None else _fitted_on(early, short, run, most)


def _early(rules: Rules, costs: Array, short: Run, most: int) -> Fits | None:
    rows = best(rules, costs, 2, most)
    return fitted(rules.take(rows), short, 6) if len(rows) else None


def _fitted_on(early: Fits, short: Run, run: Run, most: int) -> Fits:
    """The best of what was fitted to a part of the run, fitted to all of it."""
    rows = best(early.rules, early.cost, 1, 2 * most)
    rows = rows[early.cost[rows] <= max(1e4 * early.cost[rows].min(), _chance(short))]
    return _without_idle_momentum(fitted(early.rules.take(rows), run, 30), run)


def _without_idle_momentum(fits: Fits, run: Run) -> Fits:
    """The hypotheses, and those whose momentum turns no step without it."""
    little = _turns_little(fits.rules)
    if not little.any():
        return fits
    rules = fits.rules.take(little).replace(caution=False, nesterov=False)
    numbers = rules.numbers.copy()
    numbers[:, MOMENTUM] = 0.0
    return join([fits, fitted(rules.of(numbers), run, 10)])


def of_each_kind(fits: Fits) -> list[int]:
    """The best of each kind, whatever its denominator, the best kinds first."""
    alike = fits.rules.replace(denominator=model.INSIDE)
    has = fits.free[:, [SCALE, MOMENTUM]]
    rows = np.argsort(fits.cost, kind="stable")
    kinds = {(alike.switches(row), *has[row].tolist()): row for row in rows[::-1]}
    # Of costs that differ little, those with few numbers first: more of them hold each other up.
    order = np.round(np.log10(fits.cost + 1e-300) / 2) + 1e-3 * fits.free.sum(1)
    return sorted(kinds.values(), key=lambda row: order[row])


def polished(fits: Fits, run: Run) -> Fits:
    """The best fits once more, with each denominator, from numbers too small to be seen before."""
    near = fits.take(np.flatnonzero(fits.cost <= 1e8 * max(fits.cost.min(), 1e-32)))
    near = near.take(of_each_kind(near)[:_LONGER])
    # Of a long memory and a large ν₀ the product is soon found, and each of them slowly.
    longer = fitted(near.rules, run, 100, near.free)
    found = explained(longer, run)
    if len(found) and misfit(found.rules, run)[1].min() < _USUAL:
        return longer
    rules = longer.rules.take(of_each_kind(longer)[:_KINDS])
    variants = [rules.replace(denominator=k) for k in _DENOMINATORS]
    rare = rules.take(rules.denominator > model.FLOOR)
    seeded = [_seeded(concatenate([*variants, rare]), EPS, run)]
    scaled = seeded[0].numbers[:, SCALE] > 0
    if scaled.any():
        seeded.append(_seeded(seeded[0].take(scaled), SCALE, run))
    measure = weighed(run, rules.take([0]))
    last = _along(fitted(concatenate([rules, *seeded]), measure, 80), measure)
    # Beside a large ν₀ a mean takes little away, and is seen only where all else is nearly right.
    best = last.rules.take(np.argsort(last.cost, kind="stable")[:_KINDS])
    other = dataclasses.replace(best, centered=~best.centered)
    last = _without_idle_momentum(join([last, fitted(other, measure, 80)]), measure)
    return dataclasses.replace(last, cost=cost(model.simulate, last.rules, run))


def _along(fits: Fits, run: Run) -> Fits:
    """The best fits moved along two numbers that others may hide, to which these are fitted.

    Where others hide nearly all that a number does, no derivative is good enough for a step of all
    at once: what is left after a fit of the others is, and is close to linear in it.
    """
    fits = fits.take(np.argsort(fits.cost, kind="stable")[:_ALONG])
    shift = np.log(_BESIDE) * np.array([[0, 0], [1, 0], [0, 1]])
    tries, rows = len(shift), np.arange(len(shift) * len(fits))[:, None]
    rules, free = fits.rules.take(np.repeat(np.arange(len(fits)), tries)), fits.free.copy()
    hidden = np.argsort(~free[:, _HIDDEN], 1, kind="stable")[:, : shift.shape[1]]
    number, free = np.repeat(np.array(_HIDDEN)[hidden], tries, 0), np.repeat(free, tries, 0)
    free[rows, number] = False
    kept: list[Fits] = [fits]
    for _ in range(_MOVES):
        numbers = rules.numbers.copy()
        numbers[rows, number] *= np.exp(np.tile(shift, (len(fits), 1)))
        found = fitted(rules.of(numbers), run, 20, free, 1e-9)
        left = residuals(model.simulate, found.rules, run).reshape(len(fits), tries, -1)
        moves: list[Array] = [np.linalg.lstsq((x[1:] - x[0]).T, -x[0], rcond=None)[0] for x in left]
        rules = found.rules.take(rows[:, 0] // tries * tries)
        numbers = rules.numbers.copy()
        factors = np.clip(1 + (_BESIDE - 1) * np.array(moves), 0.1, 10)
        numbers[rows, number] *= np.repeat(factors, tries, 0)
        rules = rules.of(numbers)
        kept.append(found.take(slice(None, None, tries)))
    kept.append(fitted(rules.take(slice(None, None, tries)), run, 20, free[::tries], 1e-9))
    best = np.array([part.cost for part in kept]).argmin(0)
    chosen = concatenate([kept[part].rules.take([row]) for row, part in enumerate(best)])
    return fitted(chosen, run, 2, fits.free, 1e-9)


def weighed(runs: Runs, rules: Rules) -> Any:
    """The runs, whose residuals are measured by what rounding does to this hypothesis."""
    if isinstance(runs, tuple):
        return tuple(weighed(run, rules) for run in runs)
    _, bound = model.simulate_bounded(rules, runs)
    return dataclasses.replace(runs, rounding=np.nan_to_num(bound[0], nan=np.inf) + 1e-300)


def _seeded(rules: Rules, number: int, run: Run) -> Rules:
    """The hypotheses from the value of one number, very small to large, that does best.

    The other numbers are fitted to each value: they hide what a number leaves out that is too
    small. Then values between its neighbours: a floor has to be near before a slope shows it.
    """
    few = spread(run.steps(min(10, len(run.grads))), 24)
    sizes = np.abs(run.grads[run.valid & (run.grads != 0)])
    least, most = float(sizes.min(initial=1e300)), float(sizes.max(initial=1e-300))
    ends = np.log(1e-4 * least), np.log(10 * most)
    heights: Array = np.exp(np.linspace(float(ends[0]), float(ends[1]), _SEEDS))
    squared = np.isin(rules.denominator, (model.INSIDE, model.SUBTRACTED)) | (number == SCALE)
    values: Array = np.where(squared[:, None], heights**2, heights)
    values = _best_of(rules, number, few, values).numbers[:, number]
    steps = np.where(squared[:, None], 2.0, 1.0) * np.log(heights[1] / heights[0])
    values = values[:, None] * np.exp(steps * np.linspace(-1, 1, 15))
    seeds = [_best_of(rules, number, few, values)]
    floors = rules.denominator == model.FLOOR
    if floors.any():
        seeds.append(_best_of(rules.take(floors), number, few, values[floors], 1))
    return concatenate(seeds)


def _best_of(rules: Rules, number: int, run: Run, values: Array, further: int = 0) -> Rules:
    """The hypotheses with the best of several values [B, m] of a number, the others fitted.

    The largest of those that do as well, or one `further` on: the least floor that is felt.
    """
    tried = rules.take(np.repeat(np.arange(len(rules)), values.shape[1]))
    numbers = tried.numbers.copy()
    numbers[:, number] = values.ravel()
    tried = tried.of(numbers)
    free = free_numbers(tried)
    free[:, number] = False
    fits = fitted(tried, run, 5, free, 1e-4)
    costs, last = fits.cost.reshape(values.shape), values.shape[1] - 1
    good = costs <= costs.min(1, keepdims=True) * (1 + 1e-6)
    best = np.minimum(last - good[:, ::-1].argmax(1) + further, last)
    return fits.rules.take(np.arange(len(rules)) * (last + 1) + best)


def stages(run: Run, varied: bool) -> list[list[Option]]:
    """The options to try, the simplest first."""
    decoupled = (model.DECOUPLED, model.DECOUPLED_UNSCALED, model.DECOUPLED_SQUARED)
    decays = [Option(kind=kind) for kind in (decoupled if varied else decoupled[:1])]
    decays += [Option(kind=model.L2), Option(kind=model.L2, maximize=True)]
    clips = [Option(clip=model.CLIP_BEFORE), Option(clip=model.CLIP_LEAF)]
    clips += [Option(clip=model.CLIP_ALL)] * int(run.leaf.max(initial=0) > 0)
    caution = [Option(caution=True)]
    replace = dataclasses.replace
    both = [replace(a, clip=b.clip) for a in decays for b in clips]
    both += [replace(x, clip=model.AFTER[x.clip]) for x in both if x.kind == model.L2]
    careful = [replace(a, caution=True) for a in [*decays, *clips]]
    every = [replace(a, caution=True) for a in both]
    singles = [*decays, *clips, *caution]
    return [[Option()], [Option(rare=True), *singles], [*both, *careful], every]


def misfit(rules: Rules, runs: Runs) -> tuple[Array, Array]:
    """The largest residual, and their root mean square, in units of what rounding may do.

    Infinite for what rounding could make anything of: where it may do as much as most changes are,
    or where much of them is left. Changes of a coordinate are relative to its largest, and those of
    one that moves by its rounding say nothing if others say more.
    """
    ratios, shares, squares, whole = list[Array](), list[Array](), np.zeros(len(rules)), 0.0
    for run in each(runs):
        simulated, bounds = model.simulate_bounded(rules, run)
        left = np.where(run.valid, np.abs(simulated - run.changes), 0.0)
        ratios.append((left / (bounds + 1e-300)).reshape(len(rules), run.grads.size))
        size = np.abs(run.changes) + 4 * run.stored * np.abs(run.params[1:])
        shares.append((bounds / (size + 1e-300))[:, run.moves])
        changes = np.abs(run.changes) * run.valid
        largest = changes.max(0, initial=0.0)
        moves = largest > 16 * run.stored * np.abs(run.params).max(0)
        moves = moves if moves.any() else largest > 0
        squares += ((left[..., moves] / largest[moves]) ** 2).sum((1, 2))
        whole += float(((changes[:, moves] / largest[moves]) ** 2).sum())
    ratio = np.nan_to_num(np.concatenate(ratios, 1), nan=np.inf)
    told = _is_told(np.concatenate(shares, 1), each(runs)[-1].unit)
    told &= np.nan_to_num(squares, nan=np.inf) <= _LEAVES**2 * whole
    worst, mean = ratio.max(1, initial=0.0), np.sqrt((ratio**2).mean(1))
    return np.where(told, worst, np.inf), np.where(told, mean, np.inf)


def is_hidden(run: Run) -> bool:
    """Whether the rounding of the parameters alone may be as much as most changes are."""
    before, after = np.abs(run.params[:-1]), np.abs(run.params[1:])
    size = np.abs(run.changes) + 4 * run.stored * after
    share = (run.stored * (before + after) / (size + 1e-300))[run.moves]
    return not _is_told(share[None], run.stored)[0]


def _is_told(share: Array, unit: float) -> Array:
    """Whether enough changes [B, M] are known, of which rounding may be a share."""
    known = np.nan_to_num(share, nan=np.inf) < max(0.05, 64 * unit)
    return known.sum(1) > 0.2 * known.shape[1]


def explained(fits: Fits, runs: Runs) -> Fits:
    """Those that leave nothing but rounding, the simpler of those that differ by a number."""
    told = ~_turns_little(fits.rules) & remembers(fits.rules)
    if max(len(run.grads) for run in each(runs)) == 1:
        # A rule whose first step rounding decides explains any step.
        told &= fits.rules.alone | ~fits.rules.centered | ~fits.rules.corrected
    fits = fits.take(told)
    if not len(fits):
        return fits
    fits = fits.take(np.flatnonzero(fits.cost <= max(1e4 * fits.cost.min(), _chance(runs))))
    largest, mean = misfit(fits.rules, runs)
    good = largest <= LIMIT
    if not good.any():
        return fits.take(np.zeros(0, int))
    if sum(run.valid.sum() for run in each(runs)) > SEVERAL:
        # What is left is compared first, as what rounding may do is much to some rules.
        good &= fits.cost <= _MANY * max(float(fits.cost[good].min()), 1e-2 * _chance(runs))
        good &= mean <= 2 * mean[good].min() + 0.02
    fits = fits.take(np.flatnonzero(good))
    return fits.take(np.array(_simplest(fits, 1e-2 * _chance(runs)), int))


def explained_in_float32(fits: Fits, run: Run) -> Fits:
    """Those that leave what computing in float32 does, or in a single step more than float64.

    Not those that leave less than the one and more than the other: they are near the right one.
    """
    coarse = dataclasses.replace(run, unit=2.0**-24)
    found = explained(fits, coarse)
    if not len(found) or found.cost.min() <= (64 * run.unit) ** 2:
        return found
    return found if misfit(found.rules, coarse)[1].max() > _NOISE else none()


def _chance(runs: Runs) -> float:
    """The mean square that rounding leaves of any rule, where the best may meet it by chance."""
    run = each(runs)[-1]
    return max((16 * run.unit) ** 2, 1e-26) if run.rounding is None else LIMIT**2


def _turns_little(rules: Rules) -> Array:
    """Where a momentum is so small that it turns no step, which nobody uses: it is none."""
    momentum = rules.numbers[:, MOMENTUM]
    return (momentum > 0) & (momentum < _TURNS)


def remembers(rules: Rules) -> Array:
    """Whether averages forget something: else they are sums, as Adagrad's."""
    return np.minimum(rules.numbers[:, FORGETS], 1 - rules.numbers[:, MOMENTUM]) >= LEAST


def _simplest(fits: Fits, noise: float) -> list[int]:
    """Those that are no others with numbers more, but for what leaves far more than noise does."""
    rules, most = fits.rules, np.maximum(_FEWER * fits.cost, noise)
    switched = rules.centered.astype(int) + rules.corrected + rules.nesterov + rules.caution
    keys = list(zip(fits.free.sum(1), switched, fits.cost, strict=True))
    order = sorted(range(len(fits)), key=lambda row: keys[row])
    kept: list[int] = []
    for row in order:
        if not any(fits.cost[k] <= most[row] and _within(fits, k, row) for k in kept):
            kept.append(row)
    return kept


def _within(fits: Fits, simple: int, other: int) -> bool:
    """Whether the one is the other without some of its numbers."""
    if (fits.free[simple] & ~fits.free[other]).any():
        return False
    idle: set[int] = set()  # switches that say nothing where their number is missing
    rules = fits.rules
    if not fits.free[simple, MOMENTUM]:
        idle |= {_SWITCHES.index("buffer"), _SWITCHES.index("nesterov")}
    if rules.numbers[simple, EPS] == 0:  # which no denominator has a place for
        idle.add(_SWITCHES.index("denominator"))
    if fits.free[other, SCALE]:  # what has an initial value divides no gradient by itself
        idle.add(_SWITCHES.index("alone"))
    if rules.kind[simple] == model.NO_DECAY:
        idle.add(_SWITCHES.index("kind"))
    if rules.clip[simple] == model.NO_CLIP:
        idle.add(_SWITCHES.index("clip"))
    first, second = (
        [x for i, x in enumerate(rules.switches(row)) if i not in idle] for row in (simple, other)
    )
    return first == second


_SWITCHES = [field.name for field in dataclasses.fields(Rules)]


class _Trials:
    """What was tried on a run, option by option: fitted to its first steps, then to all of it.

    `whole` has all of each leaf, as caution needs; without it caution is not tried. Changes that a
    bound of the parameters may have cut off are left out of the fits.
    """

    def __init__(self, run: Run, whole: Run | None):
        parts = {False: run, True: whole}
        self._data = {
            caution: (part, *_free_of_bound(part))
            for caution, part in parts.items()
            if part is not None
        }
        self._early: dict[Option, Fits | None] = {}
        self._alone: dict[Option, float] = {}
        self._fits: dict[Option, Fits] = {}
        self._polished: dict[Option, Fits] = {}

    @property
    def everything(self) -> Fits:
        """All that was fitted."""
        parts = [
            _with_bound(fits, self._data[option.caution][2]) for option, fits in self._fits.items()
        ]
        return join([none(), *parts])

    def begins(self, option: Option) -> float:
        """The least cost of the option on the first steps, infinite if it cannot be tried."""
        if option not in self._early:
            data, size = self._data.get(option.caution), _SIZES[option == Option()]
            tried = self._early | self._fits
            self._early[option] = _begun(data[1], option, *size, tried) if data else None
        early = self._early[option]
        return np.inf if early is None else float(early.cost.min())

    def found(self, option: Option) -> Fits:
        """What explains the run with an option."""
        self.begins(option)
        early = self._early[option]
        if early is None:
            return none()
        full, data, bound = self._data[option.caution]
        if option not in self._fits:
            fits = _fitted_on(early, _short(data), data, _SIZES[option == Option()][1])
            self._fits[option], self._alone[option] = fits, float(fits.cost.min())
        found = explained(self._fits[option], data)
        return _bounded(found, full, bound) if len(found) and bound < np.inf else found

    def promise(self, option: Option) -> float:
        """How well the parts of an option begin: the sum of the logarithms of their costs."""
        clip = model.BEFORE.get(option.clip, option.clip)
        parts = [
            Option(kind=option.kind, maximize=option.maximize),
            Option(clip=clip),
            Option(caution=option.caution),
        ]
        costs = [self.begins(part) for part in parts if part != Option()]
        return float(np.log(np.minimum(costs, 1.0) + 1e-300).sum())

    def clear(self, options: list[Option]) -> Fits:
        """What explains the run with an option that takes away nearly all that is left without it.

        A simpler hypothesis need not be polished, then: it would not come near. The options are
        tried whose parts begin best.
        """
        without = min([*map(self.begins, list(self._early)), *self._alone.values()])
        if without <= _NEARER:  # a number that is hidden, and no option that is missing
            return none()
        for option in sorted(options, key=self.promise)[:_FIRST]:
            if not option.rare and self.begins(option) < without / 2:
                found = self.found(option)
                if len(found) and found.cost.min() < CLEAR * without:
                    return found
        return none()

    def polished(self, options: list[Option]) -> Fits:
        """What explains the run with the first option that does, polished where it comes near."""
        for option in options:
            self._begin_anew(option)
            found = self.found(option)
            if option not in self._fits:
                continue
            without = self._alone.get(Option(), np.inf)
            helps = option == Option() or self._alone[option] < _HELPS * without
            for near in (NEAR, _NEARER):
                if not len(found) and helps and self._fits[option].cost.min() < near:
                    better = polished(self._fits[option], self._data[option.caution][1])
                    self._fits[option] = join([self._fits[option], better])
                    self._polished[option] = better
                    found = self.found(option)
            if len(found):
                return found
        return none()

    def _begin_anew(self, option: Option) -> None:
        """Let an option begin with what was polished without it, too."""
        early, data = self._early.get(option), self._data.get(option.caution)
        better = [self._polished[o] for o in option.simpler if o in self._polished]
        if early is None or data is None or option.rare or not better:
            return
        nearest = min(better, key=lambda fits: fits.cost.min())
        self._early[option] = join([early, _from_simpler(nearest, option, data[1])])
        self._fits.pop(option, None)


def search(
    run: Run, whole: Run | None = None, elsewhere: Callable[[int], bool] = lambda options: False
) -> tuple[Fits, Fits]:
    """The hypotheses that explain the run, and all that were fitted.

    `whole` has all of each leaf, as caution needs; without it caution is not tried. No option is
    polished where `elsewhere` says that another optimizer explains the run without options, and no
    two where one does with one or two.
    """
    trials = _Trials(run, whole)
    for found in _attempts(trials, stages(run, bool(np.ptp(run.rates) > 0)), elsewhere):
        if len(found):
            return found, trials.everything
    return none(), trials.everything


def _attempts(
    trials: _Trials, stages: list[list[Option]], elsewhere: Callable[[int], bool]
) -> Iterator[Fits]:
    """What explains a run, from what is simple and soon tried to what is neither."""
    bare, singles, pairs, triples = stages
    near = trials.begins(*bare) < NEAR
    if near:
        yield trials.found(*bare)
    yield trials.clear(singles)
    if near:
        yield trials.polished(bare)
    if elsewhere(0):
        return
    yield trials.clear(pairs)
    yield trials.polished(singles if near else [*bare, *singles])
    if elsewhere(2):
        return
    yield trials.polished(sorted(pairs, key=trials.begins))
    yield trials.polished(sorted(triples, key=trials.promise)[:_FIRST])
