"""From fitted hypotheses to named rules: short numbers, and what the data leave open."""

import dataclasses
import decimal
from typing import Any

import numpy as np

from . import _model as model
from ._calls import Rule, default_eps
from ._fit import LEAST, Runs, each
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
)
from ._search import (
    LIMIT,
    SEVERAL,
    Fits,
    decimals,
    explained,
    fitted,
    join,
    misfit,
    of_each_kind,
    remembers,
    shortest,
    weighed,
)

_NAMES = {
    LR: "learning_rate", FORGETS: "decay", EPS: "eps", SCALE: "initial_scale",
    MOMENTUM: "momentum", LAMBDA: "weight_decay", BOUND: "clip_value",
}  # fmt: skip
# Denominators that are the same without ε.
_WITHOUT_EPS = (model.INSIDE, model.OUTSIDE, model.FLOOR, model.SUBTRACTED)
CLIP_NORM = "clip_norm"  # a number of a rule that is no switch of a report
# From how many standard deviations on a value is refused, and which deviation says too little.
_SURE, _VAGUE = 20.0, 0.02
# How much shorter than the least of them clipped gradients may be.
_SHORTEST = 1e-9
# Weight decays from the least that anyone uses to more than anyone does.
_WEIGHTS: Array = np.logspace(-6, 2, 33)
# Where the damping of a fit begins that is near its end.
_NEAR = 1e-9

SWITCHES = (
    "denominator", "eps", "initial_scale", "decay", "learning_rate", "rate_in_buffer", "momentum",
    "nesterov", "centered", "bias_correction", "weight_decay", "weight_decay_kind", "clip_value",
    "clip_before_decay", "caution", "maximize", "precision",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finding:
    """A rule that explains the data, and the numbers that they leave open."""

    rule: Rule
    rules: Rules  # the same, as one hypothesis
    open: dict[str, list[float]]  # switch -> the least and the largest value that remain
    unseen: tuple[int, ...] = ()  # the kinds of weight decay that would not be seen
    alike: tuple[Rule, ...] = ()  # with other denominators where ε is as good as none, and caution


def finish(fits: Fits, runs: Runs) -> list[Finding]:
    """Each hypothesis with as few numbers, and as short ones, as the data allow."""
    runs = weighed(runs, fits.rules.take([int(np.argmin(fits.cost))]))
    fits = _without_idle_numbers(fitted(fits.rules, runs, 60, fits.free), runs)
    good = explained(fits, runs)
    findings = [_finding(good.take([row]), runs) for row in range(len(good))]
    return [finding for finding in findings if remembers(finding.rules).all()]


def _without_idle_numbers(fits: Fits, runs: Runs) -> Fits:
    """The hypotheses, and the same with each number that may be as usual: 0, 1 or infinite.

    Not where the data see that a number is something else, but for ε and ν₀: far below what is
    added to them they follow any rounding.
    """
    fits = _without_idle_eps(fits, runs)
    values, vague = fits.rules.numbers, fits.free & ~(fits.deviation < _VAGUE)
    vague[:, BOX] = np.isfinite(values[:, BOX])
    usual = [
        (SCALE, 0.0, fits.free[:, SCALE]), (SCALE, 1.0, vague[:, SCALE] | _nearly_1(fits)),
        (MOMENTUM, 0.0, vague[:, MOMENTUM]), (BOX, np.inf, vague[:, BOX]),
    ]  # fmt: skip
    parts = [fits]
    for number, value, rows in usual:
        if rows.any():
            numbers, free = values[rows].copy(), fits.free[rows].copy()
            numbers[:, number], free[:, number] = value, False
            fewer = fits.rules.take(rows).of(numbers)
            parts.append(fitted(fewer, runs, 30, free, _NEAR))
            both = fewer.centered & fewer.corrected
            if number == SCALE and value == 0 and both.any():  # a tiny ν₀ stands for Optax's start
                optax = fewer.take(both).replace(alone=False)
                parts.append(fitted(optax, runs, 30, free[both], _NEAR))
    fits = join([*parts, *_with_other_decays(fits, runs), *_with_other_places(fits, runs)])
    return _without_idle_options(fits, runs)


def _without_idle_options(fits: Fits, runs: Runs) -> Fits:
    """The hypotheses, and the same without an option that the data need not see."""
    for name, absent in (("kind", model.NO_DECAY), ("clip", model.NO_CLIP), ("caution", False)):
        rows = {
            "kind": fits.free[:, LAMBDA] & ~(fits.deviation[:, LAMBDA] < _VAGUE),
            "clip": fits.free[:, BOUND],  # at the largest gradient one side alone sees a bound
            "caution": fits.rules.caution,
        }[name]
        if rows.any():
            fewer = fits.rules.take(rows).replace(**{name: absent})
            fits = join([fits, fitted(fewer, runs, 30, None, _NEAR)])
    return fits


def _without_idle_eps(fits: Fits, runs: Runs) -> Fits:
    """The hypotheses that need an ε, and of the others, whose denominators are one, the best.

    Beside a ν₀ that is nearly 1, an ε may be what makes it 1.
    """
    rows = np.flatnonzero(fits.free[:, EPS])
    if not len(rows):
        return fits
    free = fits.free[rows].copy()
    free[:, EPS] = False
    fewer = fitted(_of_eps(fits.rules.take(rows), 0.0), runs, 30, free, _NEAR)
    idle = np.zeros(len(fits), bool)
    idle[rows] = _do_as_well(fewer.rules, fits.take(rows), runs)
    fewer = fewer.take(idle[rows])
    fewer = dataclasses.replace(fewer, rules=fewer.rules.replace(denominator=model.OUTSIDE))
    return join([fits.take(~idle | _nearly_1(fits)), fewer.take(of_each_kind(fewer))])


def _nearly_1(fits: Fits) -> Array:
    """Where ν₀ is fitted, and nearly 1."""
    return fits.free[:, SCALE] & (np.abs(np.log(fits.rules.numbers[:, SCALE] + 1e-300)) < 0.1)


def _with_other_decays(fits: Fits, runs: Runs) -> list[Fits]:
    """The hypotheses with a weight decay of the other kind, which a steady divisor hides."""
    parts: list[Fits] = []
    for kind, other in ((model.L2, model.DECOUPLED), (model.DECOUPLED, model.L2)):
        rows = fits.rules.kind == kind
        rows &= ~np.isin(fits.rules.clip, list(model.BEFORE))  # which clips a coupled decay
        if rows.any():
            parts.append(fitted(fits.rules.take(rows).replace(kind=other), runs, 30, None, _NEAR))
    return parts


def _with_other_places(fits: Fits, runs: Runs) -> list[Fits]:
    """The hypotheses with ε elsewhere, where little is known of it."""
    parts: list[Fits] = []
    for place, other in ((model.INSIDE, model.OUTSIDE), (model.OUTSIDE, model.INSIDE)):
        rows = (fits.rules.denominator == place) & fits.free[:, EPS]
        rows &= fits.deviation[:, EPS] > 1e-3
        if rows.any():
            moved = fits.rules.take(rows).replace(denominator=other)
            parts.append(fitted(moved, runs, 30, fits.free[rows], _NEAR))
    return parts


def _finding(fit: Fits, runs: Runs) -> Finding:
    ranges = _ranges(fit, each(runs)[0].unit)
    for number in _NAMES:
        vague = fit.free[0, number] and not fit.deviation[0, number] < _VAGUE
        if vague or (number == EPS and fit.rules.numbers[0, EPS] == 0):
            fit, seen = _opened(fit, number, runs)
            ranges = _hull(ranges, seen)
    if fit.rules.numbers[0, EPS] == 0:
        ranges = _hull(ranges, _opened_elsewhere(fit, runs))
    fit, seen = _in_any_unit(fit, runs)
    ranges = _hull(ranges, seen)
    fit = _shortened(fit, runs)
    values = fit.rules.numbers[0]
    ranges = _hull(ranges, np.stack([values, values], 1))
    fit = _with_usual_eps(fit, ranges[EPS], runs)
    names = _NAMES | ({BOUND: CLIP_NORM} if fit.rules.clip[0] in model.NORMS else {})
    known = _tolerance(each(runs)[0].unit)
    left = {
        name: _rounded_outwards(*sorted(model.named(number, end) for end in ranges[number]))
        for number, name in names.items()
        if np.ptp(ranges[number]) > known * model.named(number, values[number])
    }
    unseen = _unseen_decays(fit, runs)
    if unseen:
        left["weight_decay"] = _rounded_outwards(0.0, max(unseen.values()))
    alike = list[Rule]()
    if left.get("eps", [1.0])[0] == 0:
        alike = _with_other_denominators(fit, runs)
    careful = fit.rules.replace(caution=True)
    if fit.rules.numbers[0, MOMENTUM] > 0 and not fit.rules.caution[0]:
        # Where no step is against its gradient caution does nothing.
        alike += [rule_of(careful)] * int(_do_as_well(careful, fit, runs)[0])
    return Finding(rule_of(fit.rules), fit.rules, left, tuple(unseen), tuple(alike))


def _unseen_decays(fit: Fits, runs: Runs) -> dict[int, float]:
    """The largest weight decay of each kind that the data would not show, where there is none.

    None that is smaller than all that are in use.
    """
    if fit.rules.kind[0] != model.NO_DECAY:
        return {}
    found: dict[int, float] = {}
    least = misfit(fit.rules, runs)[1][0]
    for kind in (model.L2, model.DECOUPLED):
        rules = fit.rules.take(np.zeros(len(_WEIGHTS), int)).replace(kind=kind)
        numbers = rules.numbers.copy()
        numbers[:, LAMBDA] = _WEIGHTS
        largest, mean = misfit(rules.of(numbers), runs)
        hidden = _WEIGHTS[(largest <= LIMIT) & (mean <= 1.5 * least + 0.02)]
        if len(hidden):
            found[kind] = float(hidden.max())
    return found


def _in_any_unit(fit: Fits, runs: Runs) -> tuple[Fits, Array]:
    """The hypothesis in a usual unit, where the norm of each gradient is clipped.

    Gradients that are all as long may as well be shorter, and ε and ν₀ smaller: the intervals
    [n, 2] of these numbers.
    """
    ranges = np.stack([fit.rules.numbers[0]] * 2, 1)
    if fit.rules.clip[0] not in model.NORMS:
        return fit, ranges
    by_leaf = fit.rules.clip[0] in (model.CLIP_LEAF, model.CLIP_LEAF_AFTER)
    norms = [run.leaf_norm if by_leaf else run.norm for run in each(runs)]
    least = min(float(x[x > 0].min(initial=np.inf)) for x in norms)
    bound = shortest(least / 2, least / 4, 0.9 * least)
    shorter = _in_unit(fit, bound / fit.rules.numbers[0, BOUND], BOUND, bound, runs)
    if misfit(shorter.rules, runs)[0][0] > LIMIT:
        return fit, ranges
    longest = _scaled(shorter.rules, least / bound)
    ends = [_scaled(longest, x).numbers[0] for x in (_SHORTEST, 1.0)]
    powers = _powers(longest)[0]
    for number, usual in ((SCALE, 1.0), (EPS, default_eps(rule_of(longest)))):
        if usual is not None and longest.numbers[0, number] >= usual:
            factor = float(usual / shorter.rules.numbers[0, number]) ** (1 / powers[number])
            shorter = _in_unit(shorter, factor, number, usual, runs)
            break
    return shorter, _hull(ranges, np.stack(ends, 1))


def _in_unit(fit: Fits, factor: float, number: int, value: float, runs: Runs) -> Fits:
    """The hypothesis in another unit of the gradients, of which one number is known."""
    rules = _scaled(fit.rules, factor)
    numbers, free = rules.numbers.copy(), fit.free.copy()
    free[:, BOUND], numbers[:, number], free[:, number] = True, value, False
    return fitted(rules.of(numbers), runs, 30, free, _NEAR)


def _scaled(rules: Rules, factor: float) -> Rules:
    """Rules with all that is measured by the gradients in another unit."""
    return rules.of(rules.numbers * factor ** _powers(rules))


def _powers(rules: Rules) -> Array:
    """The power of the gradients that each number [B, n] is measured by."""
    powers = np.zeros(rules.numbers.shape)
    powers[:, BOUND], powers[:, SCALE] = 1, 2
    powers[:, EPS] = 1 + np.isin(rules.denominator, (model.INSIDE, model.SUBTRACTED))
    return powers


def _tolerance(unit: float) -> float:
    """How near a number has to be known, or else it is open."""
    return min(max(2.0**-20, 2.0**14 * unit), 0.02)


def _hull(first: Array, second: Array) -> Array:
    """The intervals [n, 2] that hold both."""
    ends = np.concatenate([first, second], 1)
    return np.stack([ends.min(1), ends.max(1)], 1)


def _ranges(fit: Fits, unit: float, row: int = 0) -> Array:
    """The interval [n, 2] of each number that the spread of the fit allows."""
    values, spread = fit.rules.numbers[row], fit.deviation[row]
    ranges = np.stack([values, values], 1)
    for number in map(int, np.flatnonzero(fit.free[row] & (spread < 1))):
        ranges[number] = _interval(values[number], _width(values, spread, number, unit), number)
    return ranges


def _width(values: Array, spread: Array, number: int, unit: float) -> float:
    """How far a number may be off on the scale of the fit; what is near 1 is rounded itself."""
    near_1 = {FORGETS: values[FORGETS], MOMENTUM: 1 - values[MOMENTUM]}.get(number, 1.0)
    return _SURE * spread[number] + 32 * unit + 2 * unit / max(near_1, unit)


def _with_usual_eps(fit: Fits, interval: Array, runs: Runs) -> Fits:
    """The ε that is usual with the rule, where one that is as good as none may be it."""
    usual = default_eps(rule_of(fit.rules)) if interval[0] == 0 < interval[1] else None
    if usual is None or usual > interval[1]:
        return fit
    rules = _of_eps(fit.rules, usual)
    return dataclasses.replace(fit, rules=rules) if _do_as_well(rules, fit, runs)[0] else fit


def _with_other_denominators(fit: Fits, runs: Runs) -> list[Rule]:
    """The rules with other denominators, and their usual ε or none, that explain as much."""
    found = list[Rule]()
    for other in _elsewhere(fit):
        for eps in (default_eps(rule_of(_of_eps(other.rules, 0.0))) or 0.0, 0.0):
            rules = _of_eps(other.rules, eps)
            if _do_as_well(rules, fit, runs)[0]:
                found.append(rule_of(rules))
                break
    return found


def _opened_elsewhere(fit: Fits, runs: Runs) -> Array:
    """The intervals [n, 2] of the numbers with each ε that other denominators hide.

    Other numbers make up for what is added to a root, and not for a floor.
    """
    ranges = np.stack([fit.rules.numbers[0]] * 2, 1)
    for other in _elsewhere(fit):
        if other.rules.denominator[0] in (model.INSIDE, model.OUTSIDE):
            ranges = _hull(ranges, _opened(other, EPS, runs)[1])
            continue
        values = _around(other, EPS, runs)
        good = _do_as_well(_of_eps(other.rules.take(np.zeros(len(values), int)), values), fit, runs)
        first = int(np.argmin(np.append(good, False)))
        ranges[EPS, 1] = max(ranges[EPS, 1], values[min(first, len(values) - 1)] * good[0])
    return ranges


def _elsewhere(fit: Fits) -> list[Fits]:
    """The hypothesis with the other denominators that are the same without ε."""
    denominators = set(_WITHOUT_EPS) - {int(fit.rules.denominator[0])}
    if not fit.rules.centered[0]:
        denominators.discard(model.SUBTRACTED)
    return [
        dataclasses.replace(fit, rules=fit.rules.replace(denominator=denominator))
        for denominator in sorted(denominators)
    ]


def _of_eps(rules: Rules, eps: Any) -> Rules:
    numbers = rules.numbers.copy()
    numbers[:, EPS] = eps
    return rules.of(numbers)


def _do_as_well(rules: Rules, fit: Fits, runs: Runs) -> Array:
    """Which rules explain what a fit does, and leave as little."""
    largest, mean = misfit(rules, runs)
    return (largest <= LIMIT) & (mean <= 1.5 * misfit(fit.rules, runs)[1] + 0.02)


def _rounded_outwards(low: float, high: float) -> list[float]:
    """An interval with as many digits as its width, and its ends, have a use for."""
    width = decimal.Decimal(high) - decimal.Decimal(low)
    found: list[float] = []
    for end, rounding in ((low, decimal.ROUND_FLOOR), (high, decimal.ROUND_CEILING)):
        exact = decimal.Decimal(end)
        last = min(width.adjusted(), exact.adjusted() if end else width.adjusted()) - 1
        context = decimal.Context(prec=400, rounding=rounding)
        found.append(float(exact.quantize(decimal.Decimal((0, (1,), last)), context=context)))
    return found


def rule_of(rules: Rules) -> Rule:
    """One hypothesis by name."""
    switches = rules.switches(0)
    values = [model.named(i, x) for i, x in enumerate(rules.numbers[0])]
    return Rule(*switches, *values)


def _opened(fit: Fits, number: int, runs: Runs) -> tuple[Fits, Array]:
    """The hypothesis with a usual or a round value of a number, if the data leave it open.

    And the intervals [n, 2] of all numbers, as the others are fitted to each of many values of it.
    """
    value, unit = fit.rules.numbers[0, number], each(runs)[0].unit
    values = _around(fit, number, runs)
    tried, good = _held(fit, number, values, runs)
    here = int(np.argmin(np.abs(values - value)))
    if number == EPS and good[0]:
        here = 0
    low, high = here, here
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    if not good[here] or low == high:
        return fit, _ranges(fit, unit)
    ranges = _ranges(tried, unit, low)
    for row in range(low, high + 1):
        ranges = _hull(ranges, _ranges(tried, unit, row))
    # Between the values that were tried; 0 alone says that there may be none.
    below = values[max(low - 1, 0)] or (0.0 if good[0] else 1e-6 * values[low])
    ranges[number] = below, values[min(high + 1, len(values) - 1)]
    none = number == EPS and values[low] == 0
    # No decay that is nearer to 1 than any in use.
    least = max(values[low], LEAST) if number == FORGETS else values[low]
    chosen = 0.0 if none else _shortest(number, value, least, values[high])
    nearer, good = _held(fit, number, np.array([chosen]), runs)
    return (nearer if good[0] else fit), ranges


def _held(fit: Fits, number: int, values: Array, runs: Runs) -> tuple[Fits, Array]:
    """The hypothesis with each value of a number, the others fitted, and where that explains."""
    rules = fit.rules.take(np.zeros(len(values), int))
    numbers, free = rules.numbers.copy(), np.repeat(fit.free, len(values), 0)
    numbers[:, number], free[:, number] = values, False
    tried = fitted(rules.of(numbers), runs, 12, free, _NEAR)
    largest, mean = misfit(tried.rules, runs)
    least = min(mean.min(), misfit(fit.rules, runs)[1][0])
    return tried, (largest <= LIMIT) & (mean <= 1.5 * least + 0.02)


def _around(fit: Fits, number: int, runs: Runs) -> Array:
    """Values that a number may have as well."""
    value = fit.rules.numbers[0, number]
    if number in (FORGETS, MOMENTUM):
        odds = value / (1 - value) * np.logspace(-4, 4, 25)
        return odds / (1 + odds)
    if number != EPS:
        return value * np.logspace(-6, 6, 37)
    sizes = np.concatenate([np.abs(r.grads[r.valid & (r.grads != 0)]) for r in each(runs)])
    least, most = float(sizes.min(initial=1.0)), float(sizes.max(initial=1e-12))
    ends = np.log(1e-10 * least), np.log(10 * most)
    squared = fit.rules.denominator[0] in (model.INSIDE, model.SUBTRACTED)
    grid = np.exp(np.linspace(float(ends[0]), float(ends[1]), 36) * (2 if squared else 1))
    return np.sort(np.concatenate([[0.0, value], grid]))


def _shortened(fit: Fits, runs: Runs) -> Fits:
    """The shortest decimals that explain the data as well, the surest number first."""
    unit = each(runs)[0].unit
    # Of few changes the numbers of a fit hide nearly all of the rounding.
    most = 4.0 if sum(run.valid.sum() for run in each(runs)) > SEVERAL else np.inf
    for number in map(int, np.argsort(np.where(fit.free[0], fit.deviation[0], np.inf))):
        if not fit.free[0, number] or not fit.deviation[0, number] < 0.2:
            continue
        largest, mean = misfit(fit.rules, runs)
        value = fit.rules.numbers[0, number]
        width = _width(fit.rules.numbers[0], fit.deviation[0], number, unit)
        short = _decimals(number, value, *_interval(value, width, number))
        tried, _ = _held(fit, number, short, runs)
        new_largest, new_mean = misfit(tried.rules, runs)
        good = new_largest <= max(largest[0], LIMIT)
        good &= new_mean <= max(1.5 * mean[0] + 0.02, min(0.6, most * mean[0]))
        if good.any():
            fit = tried.take([int(np.argmax(good))])
    return fit


def _shortest(number: int, value: float, low: float, high: float) -> float:
    """The value of a number in an interval that has the fewest digits where a call has it."""
    return float(_decimals(number, value, low, high)[0])


def _decimals(number: int, value: float, low: float, high: float) -> Array:
    """The values of a number in an interval that have few digits where a call has them."""
    if number != FORGETS:
        return np.array(decimals(value, low, high))
    return 1 - np.array(decimals(1 - value, 1 - high, 1 - low))


def _interval(value: float, width: float, number: int) -> tuple[float, float]:
    """What lies within a width on the scale of the fit."""
    width = min(width, 600.0)
    if number not in (FORGETS, MOMENTUM):
        return value * np.exp(-width), value * np.exp(width)
    odds = value / (1 - value)
    low, high = odds * np.exp(-width), odds * np.exp(width)
    return low / (1 + low), high / (1 + high)


def kind_of_decay(kind: int) -> str:
    """A kind of weight decay in the terms of `Report.rule`."""
    return {model.NO_DECAY: "none", model.L2: "l2"}.get(kind, "decoupled")


def switches_of(rule: Rule, precision: str) -> dict[str, Any]:
    """A rule in the terms of `Report.rule`."""
    momentum = rule.momentum > 0
    clips = rule.clip in (model.CLIP_BEFORE, model.CLIP_AFTER)
    names = {model.INSIDE: "inside", model.OUTSIDE: "outside", model.FLOOR: "floor"}
    return {
        "denominator": names.get(rule.denominator, "other"),
        "eps": rule.eps,
        "initial_scale": rule.scale,
        "decay": rule.decay,
        "learning_rate": None if rule.rate else rule.lr,
        "rate_in_buffer": rule.buffer if momentum else None,
        "momentum": rule.momentum,
        "nesterov": rule.nesterov if momentum else None,
        "centered": rule.centered,
        "bias_correction": rule.corrected,
        "weight_decay": rule.weight_decay,
        "weight_decay_kind": kind_of_decay(rule.kind),
        "clip_value": rule.bound if clips else None,
        "clip_before_decay": (
            rule.clip == model.CLIP_BEFORE if clips and rule.kind == model.L2 else None
        ),
        "caution": rule.caution if momentum else None,
        "maximize": rule.maximize,
        "precision": precision,
    }


def members(finding: Finding, ratio: float | None) -> list[Rule]:
    """The rules that the data do not tell apart.

    A constant rate shows neither its place nor what a decay scales by, an ε as good as none shows
    no denominator, and caution is hidden where it masks no step. `ratio` is that of each rate to
    the one before, if it is always the same: a rate that falls so is the same in the buffer, with a
    smaller momentum.
    """
    rule, found = finding.rule, [finding.rule, *finding.alike]
    if ratio is None:
        return found
    if rule.momentum > 0 and (ratio == 1 or not rule.nesterov):
        other = rule.momentum / ratio if rule.buffer else rule.momentum * ratio
        if other < 1:
            moved = {"buffer": not rule.buffer, "momentum": float(f"{other:.14g}")}
            found += [dataclasses.replace(r, **moved) for r in found]
    if rule.kind == model.DECOUPLED and ratio == 1:
        weight = float(f"{rule.weight * rule.lr:.15g}")
        found += [
            dataclasses.replace(r, kind=model.DECOUPLED_UNSCALED, weight=weight) for r in found
        ]
    return found
