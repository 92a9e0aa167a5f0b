"""From fitted hypotheses to named rules: short numbers, and what the data leave open."""

import dataclasses
from typing import Any

import numpy as np

from . import _model as model
from ._calls import Rule, default_eps
from ._fit import Runs, each
from ._model import (
    BOUND,
    BOX,
    DECAY,
    EPS,
    LAMBDA,
    LR,
    MOMENTUM,
    SCALE,
    Array,
    Rules,
)
from ._search import LIMIT, Fits, explained, fitted, join, misfit, weighed

_NAMES = {
    LR: "learning_rate", DECAY: "decay", EPS: "eps", SCALE: "initial_scale",
    MOMENTUM: "momentum", LAMBDA: "weight_decay", BOUND: "clip_value",
}  # fmt: skip


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


def finish(fits: Fits, runs: Runs) -> list[Finding]:
    """Each hypothesis with as few numbers, and as short ones, as the data allow."""
    runs = weighed(runs, fits.rules.take([int(np.argmin(fits.cost))]))
    fits = _without_idle_numbers(fitted(fits.rules, runs, 60, fits.free), runs)
    good = explained(fits, runs)
    return [_finding(good.take([row]), runs) for row in range(len(good))]


def _without_idle_numbers(fits: Fits, runs: Runs) -> Fits:
    """The hypotheses, and the same with each number that may be as usual: 0, 1 or infinite."""
    for number, usual in ((SCALE, 0.0), (SCALE, 1.0), (MOMENTUM, 0.0), (BOX, np.inf)):
        rows = np.flatnonzero(fits.free[:, number])
        if len(rows):
            numbers, free = fits.rules.numbers[rows].copy(), fits.free[rows].copy()
            numbers[:, number], free[:, number] = usual, False
            fits = join([fits, fitted(fits.rules.take(rows).of(numbers), runs, 30, free)])
    for switch, absent in (("kind", model.NO_DECAY), ("clip", model.NO_CLIP)):
        rows = np.flatnonzero(getattr(fits.rules, switch) != absent)
        if len(rows):
            fewer = fits.rules.take(rows).replace(**{switch: absent})
            fits = join([fits, fitted(fewer, runs, 30)])
    return fits


def _finding(fit: Fits, runs: Runs) -> Finding:
    left: dict[str, list[float]] = {}
    for number, name in _NAMES.items():
        if fit.free[0, number] and not fit.deviation[0, number] < 0.02:
            fit, interval = _opened(fit, number, runs)
            if interval:
                left[name] = interval
    vague = fit.free[0] & (fit.deviation[0] > 1e-3) & np.isfinite(fit.deviation[0])
    for number in map(int, np.flatnonzero(vague)):
        if number in _NAMES:
            around = _interval(fit.rules.numbers[0, number], 4 * fit.deviation[0, number], number)
            left.setdefault(_NAMES[number], [float(f"{x:.3g}") for x in around])
    fit = _shortened(fit, runs)
    if left.get("eps", [1.0])[0] == 0:  # as good as none: then the one that is usual with this rule
        usual = default_eps(rule_of(fit.rules))
        if usual is not None and usual <= left["eps"][1]:
            numbers = fit.rules.numbers.copy()
            numbers[:, EPS] = usual
            fit = dataclasses.replace(fit, rules=fit.rules.of(numbers))
    return Finding(rule_of(fit.rules), fit.rules, left)


def rule_of(rules: Rules) -> Rule:
    """One hypothesis by name."""
    switches = rules.switches(0)
    values = [float(x) for x in rules.numbers[0]]
    return Rule(*switches, *values)


def _opened(fit: Fits, number: int, runs: Runs) -> tuple[Fits, list[float]]:
    """The hypothesis with a usual or a round value of a number, if the data leave it open.

    And the ends of what they leave, found by fitting the other numbers to each of many values.
    """
    value = fit.rules.numbers[0, number]
    values = _around(fit, number, runs)
    rules = fit.rules.take(np.zeros(len(values), int))
    numbers, free = rules.numbers.copy(), np.repeat(fit.free, len(values), 0)
    numbers[:, number], free[:, number] = values, False
    tried = fitted(rules.of(numbers), runs, 20, free)
    largest, mean = misfit(tried.rules, runs)
    good = (largest <= LIMIT) & (mean <= 1.5 * mean.min() + 0.02)
    here = int(np.argmin(np.abs(values - value)))
    if number == EPS and good[0]:
        here = 0
    if not good[here]:
        return fit, []
    low, high = here, here
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    if low == high:
        return fit, []
    interval = [float(f"{values[low]:.2g}"), float(f"{values[high]:.2g}")]
    none = number == EPS and values[low] == 0
    chosen = 0.0 if none else shortest(value, values[low], values[high])
    numbers, free = fit.rules.numbers.copy(), fit.free.copy()
    numbers[:, number], free[:, number] = chosen, False
    chosen_fit = fitted(fit.rules.of(numbers), runs, 30, free)
    if misfit(chosen_fit.rules, runs)[0][0] > LIMIT:
        return fit, interval
    return chosen_fit, interval


def _around(fit: Fits, number: int, runs: Runs) -> Array:
    """Values that a number may have as well."""
    value = fit.rules.numbers[0, number]
    if number in (DECAY, MOMENTUM):
        odds = value / (1 - value) * np.logspace(-4, 4, 33)
        return odds / (1 + odds)
    if number != EPS:
        return value * np.logspace(-8, 8, 65)
    size = max(float(np.abs(r.grads[r.valid]).max(initial=0)) for r in each(runs)) or 1.0
    squared = fit.rules.denominator[0] in (model.INSIDE, model.SUBTRACTED)
    grid = (size * np.logspace(-16, 1, 52)) ** (2 if squared else 1)
    return np.sort(np.concatenate([[0.0, value], grid]))


def _shortened(fit: Fits, runs: Runs) -> Fits:
    """The shortest decimals that explain the data as well, the surest number first."""
    largest, mean = misfit(fit.rules, runs)
    for number in np.argsort(np.where(fit.free[0], fit.deviation[0], np.inf)):
        if not fit.free[0, number] or not fit.deviation[0, number] < 0.2:
            continue
        value, sure = fit.rules.numbers[0, number], fit.deviation[0, number]
        for room in (256, 32, 4):
            numbers, free = fit.rules.numbers.copy(), fit.free.copy()
            width = room * (sure + each(runs)[0].unit)
            numbers[0, number] = shortest(value, *_interval(value, width, number))
            free[0, number] = False
            tried = fitted(fit.rules.of(numbers), runs, 4, free)
            new_largest, new_mean = misfit(tried.rules, runs)
            if new_largest <= max(largest, LIMIT) and new_mean <= max(1.5 * mean, 0.6):
                fit = tried
                break
    return fit


def _interval(value: float, width: float, number: int) -> tuple[float, float]:
    """What lies within a width on the scale of the fit."""
    width = min(width, 600.0)
    if number not in (DECAY, MOMENTUM):
        return value * np.exp(-width), value * np.exp(width)
    odds = value / (1 - value)
    low, high = odds * np.exp(-width), odds * np.exp(width)
    return low / (1 + low), high / (1 + high)


def shortest(value: float, low: float, high: float) -> float:
    """The decimal of fewest digits in an interval."""
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        if low <= short <= high:
            return short
    return float(value)


def switches_of(rule: Rule, precision: str) -> dict[str, Any]:
    """A rule in the terms of `Report.rule`."""
    momentum = rule.momentum > 0
    clips = rule.clip in (model.CLIP_BEFORE, model.CLIP_AFTER)
    kinds = {model.NO_DECAY: "none", model.L2: "l2"}
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
        "weight_decay_kind": kinds.get(rule.kind, "decoupled"),
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

    A constant rate shows neither its place nor what a decay scales by, and an ε as good as none
    shows no denominator. `ratio` is that of each rate to the one before, if it is always the same:
    a rate that falls so is the same in the buffer, with a smaller momentum.
    """
    rule = finding.rule
    found = [rule]
    interval = finding.open.get("eps", [1.0])
    if interval[0] == 0 and rule.denominator in _POWERS:
        found += [
            _without_eps(rule, denominator, interval[1])
            for denominator in _POWERS
            if denominator != rule.denominator
        ]
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


# ε inside the root is a square.
_POWERS = {model.INSIDE: 2, model.OUTSIDE: 1, model.FLOOR: 1}


def _without_eps(rule: Rule, denominator: int, highest: float) -> Rule:
    """The rule with another denominator, and the usual ε of that where it is small enough."""
    bound = highest ** (_POWERS[denominator] / _POWERS[rule.denominator])
    rule = dataclasses.replace(rule, eps=0.0, denominator=denominator)
    usual = default_eps(rule)
    return dataclasses.replace(rule, eps=usual) if usual and usual <= bound else rule
