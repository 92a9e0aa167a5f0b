"""From what explains a run to a report."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from . import _model as model
from ._calls import Rule, calls
from ._finish import CLIP_NORM, SWITCHES, Finding, kind_of_decay, members, rule_of, switches_of
from ._fit import cost, fit
from ._frameworks import rows
from ._model import LR, Array, Rules, Run
from ._others import Other, others
from ._report import Report
from ._search import (
    COARSE,
    LIMIT,
    Fits,
    Option,
    best,
    free_numbers,
    misfit,
    remembers,
    spread,
    starts,
)

PRECISIONS = {2.0**-53: "float64", 2.0**-24: "float32", 2.0**-11: "float16", 2.0**-8: "bfloat16"}
_FORMATS = {
    2.0**-8: (8, -133, 127),  # bits of the significand, and the exponents of its least and largest
    2.0**-11: (11, -24, 15),
    2.0**-24: (24, -149, 127),
}
# A memory this short is none: what is divided by is the gradient's own size.
_LEAST_DECAY = 1e-4
# How well a decay is known, on the scale of the fit, where past gradients have a part.
_REMEMBERS = 1e-3
# How many units of the last place a coordinate has to move by, or else it shows only rounding.
_MOVES = 64.0
# What is tried where no constant rate explains a run.
_AT_ANY_RATES = (
    Option(), Option(kind=model.L2), Option(kind=model.DECOUPLED),
    Option(kind=model.DECOUPLED_UNSCALED), Option(clip=model.CLIP_BEFORE),
)  # fmt: skip
# The optimizers that divide by no average.
_WITHOUT_AVERAGE = ("SGD", "sign descent")
# How many digits numbers have that one writes, and that no fit leaves.
_WRITTEN, _LONGEST = 3, 8
# Rates that differ by less are one.
_CONSTANT = 1e-6


def unit_of(values: Array) -> float:
    """The unit roundoff of the narrowest format that holds all values."""
    values = values[np.isfinite(values) & (values != 0)]
    for unit, (bits, least, largest) in _FORMATS.items():
        exponent = np.frexp(values)[1] - 1
        spacing = np.ldexp(1.0, np.maximum(exponent - bits + 1, least))
        if len(values) > 2 and np.all((exponent <= largest) & (np.fmod(values, spacing) == 0)):
            return unit
    return 2.0**-53


def with_unit(runs: Any, unit: float) -> Any:
    """The runs, whose rounding is judged by this unit."""
    if isinstance(runs, tuple):
        return tuple(with_unit(run, unit) for run in cast(tuple[Any, ...], runs))
    return runs if runs.unit == unit else dataclasses.replace(runs, unit=unit)


def report(
    findings: list[Finding],
    unit: float,
    error: Callable[[Finding], float],
    *,
    ratio: float | None = 1.0,
    written: Callable[[Rule], Rule] | None = None,
    learning_rates: Any = None,
    hidden: Mapping[str, list[Any]] | None = None,
) -> Report:
    """The report of the rules that explain the data, in which what is hidden is open."""
    ranked = _ranked(findings, ratio, written)
    every = [switches_of(rule, PRECISIONS[unit]) for *_, rule, _ in ranked]
    left, norms = _left_open(every, [finding for *_, finding in ranked])
    if written is not None:
        left.pop("learning_rate", None)  # which is given
    left |= hidden or {}
    listed = list(dict.fromkeys(call for _, call, _, _ in _different(ranked)))
    return Report(
        listed, every[0], left, rows(every[0], left), [],
        error(ranked[0][-1]), learning_rates,
        ["the norm that clips is anywhere from {:.6g} to {:.6g}".format(*norms)] if norms else [],
    )  # fmt: skip


_Ranked: TypeAlias = list[tuple[tuple[int, ...], str, Rule, Finding]]  # place, call, rule, finding


def _ranked(
    findings: list[Finding], ratio: float | None, written: Callable[[Rule], Rule] | None
) -> _Ranked:
    """The rules that the data do not tell apart, those of short numbers first.

    Of these dialects, and the simplest of them.
    """
    ranked: _Ranked = []
    for finding in findings:
        # With the rates that were given, as what a decay loses is in terms of them.
        shown = finding
        if written is not None:
            alike = tuple(map(written, finding.alike))
            shown = dataclasses.replace(finding, rule=written(finding.rule), alike=alike)
        for rule in members(shown, ratio):
            rank, call = next(calls(rule))
            unusual = rule.centered + rule.corrected + rule.nesterov + rule.caution
            unusual += rule.denominator not in (model.INSIDE, model.OUTSIDE)
            place = (_length(finding.rule), rank, unusual, len(ranked))
            ranked.append((place, call, rule, finding))
    return sorted(ranked, key=lambda entry: entry[0])


def _length(rule: Rule) -> int:
    """How long numbers are: as one writes them, as one may, or as where a fit makes up for another.

    An ε or a start that makes up for another does so in the rate, in the decay, or in the momentum.
    """
    forgets = (1 - rule.decay, 1 - rule.momentum)
    texts = [f"{x:.9e}".split("e")[0].rstrip("0") for x in (rule.lr, *forgets)]
    most = max(len(text.replace(".", "")) for text in texts)
    return (most > _WRITTEN) + (most > _LONGEST)


def _left_open(
    every: list[dict[str, Any]], findings: list[Finding]
) -> tuple[dict[str, list[Any]], list[Any]]:
    """The switches in which rules differ or which they leave open, and the norms that may clip."""
    left: dict[str, list[Any]] = {}
    for name in every[0]:
        values = list(dict.fromkeys(switches[name] for switches in every))
        if len(values) > 1 and not _same(values):
            left[name] = values
    norms: list[Any] = []
    for switches, finding in zip(every, findings, strict=True):
        for name, interval in finding.open.items():
            if name == CLIP_NORM:
                norms = _widened(norms, interval)
            elif switches[name] is not None:
                left[name] = _widened(left.get(name, []), interval)
    unseen = [kind_of_decay(kind) for finding in findings for kind in finding.unseen]
    if unseen:
        kinds = left.get("weight_decay_kind", [every[0]["weight_decay_kind"]])
        left["weight_decay_kind"] = list(dict.fromkeys([*kinds, *unseen]))
        if "l2" in unseen and any(switches["clip_value"] is not None for switches in every):
            left["clip_before_decay"] = [None, True, False]
    return left, norms


def _widened(values: list[Any], interval: list[float]) -> list[Any]:
    """The ends of an interval that holds these values too, after None where one of them is."""
    numbers = [x for x in [*values, *interval] if x is not None]
    return [*[None] * (None in values), min(numbers), max(numbers)]


def _different(ranked: _Ranked) -> _Ranked:
    """One of those that are the same but for an ε as good as none."""
    seen: set[Any] = set()
    kept: _Ranked = []
    for entry in ranked:
        rule, finding = entry[2:]
        key = dataclasses.replace(rule, denominator=-1) if rule.eps == 0 else rule
        if finding.open.get("eps", [1.0])[0] == 0 and rule.eps != 0:
            key = dataclasses.replace(rule, eps=-1.0)
        if key not in seen:
            kept.append(entry)
        seen.add(key)
    return kept


def _same(values: list[Any]) -> bool:
    """Whether numbers differ by no more than the rounding of a fit."""
    if not all(isinstance(value, float) for value in values):
        return False
    return bool(np.allclose(values, values[0], rtol=1e-3, atol=0))


def nothing(contradictions: list[str], unit: float, error: float = float("inf")) -> Report:
    """The report of what is no RMSprop."""
    rule: dict[str, Any] = dict.fromkeys(SWITCHES)
    return Report([], rule | {"precision": PRECISIONS[unit]}, {}, [], contradictions, error)


def degenerate(found: Fits, run: Run) -> list[str]:
    """Why what a rule of the family explains is none: its average has no part in it."""
    influence, decays = _has_influence(found.rules, run), 1 - found.rules.numbers[:, model.FORGETS]
    forgets = bool((decays < _LEAST_DECAY).all())
    if influence and not forgets and (found.deviation[:, model.FORGETS] < _REMEMBERS).all():
        return []  # the data see how long it remembers
    # A sum, as Adagrad's, is no average; where an average is as good, it is one. A floor without a
    # memory is a clip by value, which takes an option more.
    options = 2 if forgets else min(int(_options(found.rules).min()), 2)
    texts = [
        f"it is {other.text}: the average of the squared gradients has no influence"
        for other in _apart(run, options)
        if not influence or other.name.startswith(_WITHOUT_AVERAGE)
    ]
    if not texts and forgets:
        texts = ["the decay is 0: no average of past squares, but the gradient over its own size"]
    return texts[:1]


def _options(rules: Rules) -> Array:
    """How many options each hypothesis has: another optimizer with more is no simpler."""
    decays, clips = rules.kind != model.NO_DECAY, rules.clip != model.NO_CLIP
    return decays.astype(int) + clips + rules.caution


def _has_influence(rules: Rules, run: Run) -> bool:
    """Whether gradients are divided by more than one number."""
    with np.errstate(all="ignore"):
        g, u, _ = model.directions(rules, run)
        told = run.valid & (g != 0)
        low = np.where(told, u / g, np.inf).min((1, 2))
        high = np.where(told, u / g, -np.inf).max((1, 2))
    return bool((high - low > _MOVES * run.unit * high).any())


def is_another(run: Run, options: int = 2) -> bool:
    """Whether an optimizer outside the family explains a run, with as many options at most."""
    return bool(_apart(run, options))


def _apart(run: Run, options: int = 2) -> list[Other]:
    """The optimizers outside the family that explain a run.

    In one step an average is that step's own square, so that only what has none is another.
    """
    one = len(run.grads) == 1
    return [o for o in others(run, options) if o.explains and (not one or o.name.startswith("SGD"))]


def unexplained(
    everything: Fits, run: Run, names: Callable[[int], str], given: bool = False
) -> list[str]:
    """Why nothing of the family explains a run, whose rates may be `given`, and what does."""
    named = [other for other in others(run) if other.explains]
    if named:
        return [f"it is {'; or '.join(other.text for other in named)}"]
    if not len(everything):
        return ["no step can be judged: parameters and gradients are not finite, or do not change"]
    rates = None if given else _changing_rates(everything, run)
    if rates is not None:
        step = int(np.argmax(_differ(rates, run)))
        size = f"{rates[step]:.6g}, and 0 at step 0"
        if rates[0]:
            size = f"{rates[step] / rates[0]:.6g} times that of step 0 ({rates[0]:.6g})"
        return [
            f"no constant learning rate was found that explains it, and one that changes does: at "
            f"step {step} it is {size}; with learning_rates the rule can be named"
        ]
    best = everything.take([int(np.argmin(everything.cost))])
    changes = model.simulate(best.rules, run)[0]
    _, bound = model.simulate_bounded(best.rules, run)
    ratio = np.where(run.valid, np.abs(changes - run.changes) / (bound[0] + 1e-300), 0.0)
    _, call = next(calls(rule_of(best.rules)))
    if ratio.max() <= LIMIT:
        return [too_little(run.unit, call)]
    step = int(np.argmax((ratio > LIMIT).any(1)))
    column = int(np.argmax(ratio[step]))
    return [
        f"the nearest rule, {call}, changes {names(column)} by {changes[step, column]:.6g} at step "
        f"{step}, where it changed by {run.changes[step, column]:.6g}: {ratio[step, column]:.3g} "
        f"times what rounding to {PRECISIONS[run.unit]} may do"
    ]


def hides(unit: float) -> str:
    """Why a run says nothing whose steps are hidden."""
    text = f"rounding the parameters to {PRECISIONS[unit]} hides most of the steps"
    return f"{text}, and leaves little of the others"


def too_little(unit: float, call: str) -> str:
    """Why a rule is not named although nothing speaks against it."""
    text = f"rounding to {PRECISIONS[unit]} leaves too little of the steps to tell a rule"
    return f"{text}; one that agrees with what is left is {call}"


def rates_that_explain(fits: Fits, run: Run, most: int = 12) -> list[Array]:
    """The rate of each step by the rules that explain the run with rates that change."""
    near = fits.rules.take(np.argsort(fits.cost)[:most])
    near = model.concatenate([near.replace(buffer=buffer) for buffer in (True, False)])
    return _rates_that_explain(near, run)


def _changing_rates(fits: Fits, run: Run) -> Array | None:
    """The rates that explain the run and change the least.

    The rule that comes next at a constant rate may be another one, so all are begun with anew.
    """
    found = rates_that_explain(fits, run)
    for option in _AT_ANY_RATES:
        found += _rates_that_explain(_begun_at_any_rates(run, option), run)
        if found:
            return min(found, key=_change)
    return None


def _change(rates: Array) -> float:
    """How much rates rise and fall, on a logarithmic scale."""
    return float(np.abs(np.diff(np.log(np.abs(rates) + 1e-300))).sum())


def _begun_at_any_rates(run: Run, option: Option) -> Rules:
    """The rules to begin with that come nearest to a run, with its rates solved for."""
    few = spread(run.steps(min(10, len(run.grads))), 16)
    varied = dataclasses.replace(few, rates=np.linspace(1.0, 0.99, len(few.rates)))
    rules, _ = starts(varied, option, COARSE)
    rules = rules.take(best(rules, cost(_at_any_rates, rules, few), 2, 40))
    fits, value = _fitted_at_any_rates(rules, run, 8)
    return fits.take(np.argsort(value)[:6])


def _at_any_rates(rules: Rules, run: Run) -> Array:
    return model.simulate_rates(rules, run)[0]


def _fitted_at_any_rates(rules: Rules, run: Run, iterations: int) -> tuple[Rules, Array]:
    free = free_numbers(rules)
    free[:, LR] = False
    return fit(_at_any_rates, rules, run, free, iterations)[:2]


def _rates_that_explain(rules: Rules, run: Run) -> list[Array]:
    rules, value = _fitted_at_any_rates(rules, run, 25)
    found: list[Array] = []
    for row in np.flatnonzero(remembers(rules) & (value <= max(1e4 * value.min(), 1e-26))):
        solved = rules.take([row])
        rates = model.simulate_rates(solved, run)[1][0]
        numbers = solved.numbers.copy()
        numbers[:, LR] = 1.0
        largest, _ = misfit(solved.of(numbers), dataclasses.replace(run, rates=rates))
        if largest[0] <= LIMIT and _differ(rates, run).any():
            found.append(rates)
    return found


def _differ(rates: Array, run: Run) -> Array:
    """Which rates are not that of the first step."""
    return np.abs(rates - rates[0]) > (_CONSTANT + 4e3 * run.unit) * np.abs(rates[0])


def check_error(finding: Finding, runs: tuple[Run, ...], from_step: int = 0) -> float:
    """The largest error of a change, relative to the largest change of its coordinate.

    Of the coordinates that move by more than their rounding, if any does.
    """
    worst = [0.0]
    for run in runs:
        changes = model.simulate(finding.rules, run)[0]
        valid = run.valid[from_step:]
        left = (np.abs(changes - run.changes)[from_step:] * valid).max(0, initial=0.0)
        size = np.abs(run.changes[from_step:] * valid).max(0, initial=0.0)
        moves = size > _MOVES * run.stored * np.abs(run.params).max(0)
        moves = moves if moves.any() else size > 0
        worst.append(float((left[moves] / size[moves]).max(initial=0.0)))
    return max(worst)


def fits_all(finding: Finding, run: Run) -> bool:
    """Whether a rule explains the steps that it was not fitted to as well."""
    # Errors of the fitted numbers add to those of rounding.
    return bool(misfit(finding.rules, run)[0][0] <= 2 * LIMIT)


def misfits(finding: Finding, run: Run) -> Array:
    """The first step that a rule does not explain of each column, or the number of steps."""
    changes, bound = model.simulate_bounded(finding.rules, run)
    wrong = ((np.abs(changes - run.changes) > 2 * LIMIT * bound) & run.valid)[0]
    return np.where(wrong.any(0), wrong.argmax(0), len(wrong))


def first_misfit(finding: Finding, run: Run) -> int:
    """The first step that a rule does not explain."""
    return int(misfits(finding, run).min())
