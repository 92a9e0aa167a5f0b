"""How one run is explained: a rule, and what is special about some of its leaves and steps."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from ..probe import _model as model
from ..probe._model import LR, SCALE, Rules, concatenate
from ..probe._search import (
    COARSE,
    LIMIT,
    Fits,
    Grid,
    Option,
    best,
    explore,
    free_numbers,
    polished,
    stages,
    starts,
)  # fmt: skip
from ._records import UNITS, Array, Record
from ._sides import (
    Side,
    changes,
    cost,
    explained_by,
    fit,
    held_by,
    misfits,
    rounded,
    side_of,
    spread,
)

_CORE, _FEW, _LEAF = 30, 16, 256  # columns to fit on, to try on, and of each leaf to check on
_WORST = 8  # columns that are added where a fit does not explain all
_SHORT = 16  # steps to search on
_MOST = (72, 48, 96)  # hypotheses that are fitted to the end, of each option at a stage
_PAIRS = 6  # options of two parts that are tried
# Below this mean square a hypothesis may be right but for numbers too small to be seen yet.
_PROMISING = 1e-5

Alone: TypeAlias = dict[Option, Fits | None]  # how well each option did by itself


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What is special about a leaf."""

    plain: bool = False  # no weight decay
    gain: float = 1.0  # a factor of the rate
    grads: Any = None  # "transposed", or the leaf whose gradients are used


@dataclasses.dataclass(frozen=True)
class Steps:
    """A run, and its columns [N, 2]: the leaf and the place in it."""

    record: Record
    side: Side
    columns: Array
    frozen: frozenset[str]  # leaves that never change, though they have gradients

    @property
    def scheduled(self) -> bool:
        """Whether wide numbers have recorded rates that vary: they may be float32's."""
        return self.record.unit < UNITS["float32"] and bool(np.ptp(self.side.run.rates) > 0)

    def coarse(self) -> "Steps":
        """The steps with what rounding of the rates to float32 does."""
        return dataclasses.replace(self, side=self.side.replace(unit=UNITS["float32"]))

    def of(self, leaf: str) -> Array:
        """The numbers of a leaf's columns."""
        return np.flatnonzero(self.columns[:, 0] == self.record.names.index(leaf))

    @property
    def trained(self) -> list[str]:
        """The leaves that change."""
        return [name for name in self.record.names if name not in self.frozen]

    def special(self, leaves: dict[str, Leaf]) -> Side:
        """The side with what is special about leaves."""
        side, grads = self.side, self.side.run.grads
        plain, gain = side.plain.copy(), side.gain.copy()
        sums = side.run.leaf_sums
        for name, leaf in leaves.items():
            chosen = self.of(name)
            plain[chosen], gain[chosen] = leaf.plain, leaf.gain
            if leaf.grads is not None:
                source = self.record.grads[name if leaf.grads == "transposed" else leaf.grads]
                source = np.swapaxes(source, -1, -2) if leaf.grads == "transposed" else source
                grads = grads.copy()
                flat = source[: len(grads)].reshape(len(grads), -1).astype(float)
                grads[:, chosen] = flat[:, self.columns[chosen, 1]]
                sums, params = sums.copy(), self.record.params[name][: len(grads)]
                params = params.reshape(len(grads), -1).astype(float)
                sums[..., chosen] = model.sums(params, flat, np.zeros(flat.shape[1], int))
        return side.replace(plain=plain, gain=gain, grads=grads, leaf_sums=sums)

    def core(self, leaves: list[str], most: int = _CORE) -> Array:
        """Columns to fit on: some of each leaf, from small gradients to large ones."""
        each = max(2, most // max(len(leaves), 1))
        return np.concatenate([self._spread(self.of(name), each) for name in leaves[:most]])

    def strained(self, side: Side, rule: Rules, leaves: list[str]) -> Array:
        """Columns to fit on, and those of which a rule that was fitted explains the least."""
        checked = self.checked(leaves)
        worst = np.argsort(misfits(rule, side.columns(checked)).max((0, 1)), kind="stable")
        return np.union1d(self.core(leaves), checked[worst[-_WORST:]])

    def wide(self) -> Array:
        """Columns to fit on."""
        return self.core(self.trained)

    def few(self) -> Array:
        """Columns to try hypotheses on."""
        core = self.core(self.trained)
        return core[np.linspace(0, len(core) - 1, min(_FEW, len(core))).astype(int)]

    def checked(self, leaves: list[str]) -> Array:
        """Columns to check on."""
        return np.concatenate([self._spread(self.of(name), _LEAF) for name in leaves])

    def _spread(self, columns: Array, most: int) -> Array:
        if len(columns) <= most:
            return columns
        sizes = np.abs(self.side.run.grads[:, columns]).max(0)
        moved = self.side.run.changes[:, columns].any(0)
        order = columns[np.argsort(np.where(moved, sizes, -1.0), kind="stable")]
        return np.sort(order[np.linspace(0, len(order) - 1, most).astype(int)])


@dataclasses.dataclass(frozen=True)
class Account:
    """An explained run: rules that explain it alike, on these steps, with special leaves."""

    steps: Steps
    rules: Rules
    leaves: dict[str, Leaf]

    @property
    def side(self) -> Side:
        """The run with what is special about its leaves."""
        return self.steps.special(self.leaves)

    def rules_at(self, other: Side) -> Rules:
        """The rules for another run: a rate that varies there alone has either place."""
        varies = other.solved or np.ptp(other.run.rates) > 0
        if not varies or self.steps.side.solved or np.ptp(self.steps.side.run.rates) > 0:
            return self.rules
        others = dataclasses.replace(self.rules, buffer=~self.rules.buffer)
        order = np.arange(2 * len(others)).reshape(2, -1).T.ravel()
        places = concatenate([self.rules, others]).take(order)
        return places.take((places.numbers[:, model.MOMENTUM] != 0) | (order < len(others)))


def steps_of(record: Record, reference: Record | None = None) -> Steps:
    """A run's columns, at the recorded rates, or at those of another run, or at a constant one."""
    run, columns = record.run()
    scale = next((r.rates for r in (reference, record) if r is not None and r.rates is not None), 1)
    top = float(np.abs(scale).max()) or 1.0
    rates = np.ones(record.count) if record.rates is None else record.rates / top
    run = dataclasses.replace(run, rates=rates)
    frozen = set[str]()
    for name, g in record.grads.items():
        p = record.params[name]
        if g.any() and np.array_equal(p[1:], np.broadcast_to(p[:1], p[1:].shape)):
            frozen.add(name)
    return Steps(record, side_of(run), columns, frozenset(frozen))


def is_plain(steps: Steps) -> bool:
    """Whether each step is a multiple of a sum of gradients: SGD, with momentum or without."""
    side = steps.side.columns(steps.few())
    size = float(np.linalg.norm(side.changes) / (np.linalg.norm(side.grads) or 1.0))
    start = [[size * (1 - mu), 0.0, 0.0, 1.0, mu, 0.0, 1.0, np.inf] for mu in (0.0, 0.5, 0.9)]
    free = np.zeros((len(start), len(model.NUMBERS)), bool)
    free[:, LR], free[1:, model.MOMENTUM] = True, True
    rules = fit(changes, model.rules(start), side, free, 20)[0]
    check = side.run
    with np.errstate(all="ignore"):
        made, room = model.simulate_bounded(rules, check)
        good = (np.abs(made - check.changes) <= LIMIT * room) | ~check.valid
    told = (check.valid & (check.changes != 0)).sum() > 4
    return bool(told and good.all((1, 2)).any())


def accounted(*runs: Steps) -> Account | None:
    """The account of the run that the simplest options explain, the first of several.

    One rule for all leaves is sought first, with no option, with one and with two; then rules that
    do not hold for all leaves, and rates that are not known.
    """
    runs = tuple(steps for steps in runs if steps.trained and not is_plain(steps))
    runs = (*runs, *(steps.coarse() for steps in runs if steps.scheduled))
    alone: list[Alone] = [{} for _ in runs]
    for attempt in (_simple, _hidden, _with_option, _with_options, _otherwise):
        for steps, tried in zip(runs, alone, strict=True):
            found = attempt(steps, tried)
            if found is not None:
                return _with_known_numbers(found)
    return None


def _with_known_numbers(found: Account) -> Account:
    """The same account at the recorded rates, and with a start of 1, as far as it holds so.

    With these free, numbers that rounding hides may be far from what they are.
    """
    rates, near_1 = found.steps.record.rates, np.abs(found.rules.numbers[:, SCALE] - 1) < 0.1
    known = dict[int, float]()
    if rates is not None and rates.any() and not found.side.solved:
        known[LR] = float(np.abs(rates).max())
    if near_1.any():
        known[SCALE] = 1.0
    for held in ((LR, SCALE), (LR,), (SCALE,)):
        if not known.keys() >= set(held):
            continue
        steps = dataclasses.replace(found.steps, side=found.steps.side.replace(held=held))
        numbers = found.rules.numbers.copy()
        for number in held:
            rows = near_1 if number == SCALE else slice(None)
            numbers[rows, number] = known[number]
        side = steps.special(found.leaves).columns(steps.core(steps.trained))
        rules = _refitted(found.rules.of(numbers), side)
        account = confirmed(steps, rules, found.leaves)
        if account is not None:
            return account
    return found


def _simple(steps: Steps, alone: Alone) -> Account | None:
    """One rule without options."""
    return _at_stage(steps, 0, alone)


def _hidden(steps: Steps, alone: Alone) -> Account | None:
    """One rule without options at rates that were not recorded, if they leave enough to explain."""
    if steps.record.rates is not None or steps.record.count < 5 or steps.record.unit > 1e-6:
        return None
    return _at_any_rates(steps, [Option()])


def _with_option(steps: Steps, alone: Alone) -> Account | None:
    """One rule with one option."""
    return _at_stage(steps, 1, alone)


def _with_options(steps: Steps, alone: Alone) -> Account | None:
    """One rule with two options."""
    return _at_stage(steps, 2, alone)


def _otherwise(steps: Steps, alone: Alone) -> Account | None:
    """A rule of the largest leaf, to which others are special, or one at any rates."""
    if len(steps.trained) > 1:
        main = _lone(steps.side.columns(steps.core(_main(steps)[:1])))
        for stage in range(2):
            rules = _rules(main, stage, {})
            found = None if rules is None else confirmed(steps, rules, {})
            if found is not None:
                return found
    return _at_any_rates(steps, [
        Option(), Option(kind=model.L2), Option(kind=model.DECOUPLED),
        Option(kind=model.DECOUPLED_UNSCALED), Option(clip=model.CLIP_BEFORE),
        Option(clip=model.CLIP_ALL),
    ])  # fmt: skip


def _at_stage(steps: Steps, stage: int, alone: Alone) -> Account | None:
    rules = _rules(steps.side.columns(steps.core(steps.trained)), stage, alone)
    return None if rules is None else confirmed(steps, rules, {})


def _at_any_rates(steps: Steps, options: list[Option]) -> Account | None:
    free = dataclasses.replace(steps, side=steps.side.replace(solved=True))
    rules = _unknown_rates(free.side.columns(steps.core(steps.trained)), options)
    return None if rules is None else confirmed(free, rules, {})


def confirmed(steps: Steps, rules: Rules, leaves: dict[str, Leaf]) -> Account | None:
    """The rules that explain all leaves, most as they are and some as special ones."""
    for row in range(min(len(rules), 6)):
        found = special_leaves(steps, rules.take([row]), leaves)
        if found is None:
            continue
        side = steps.special(found)
        fitted = _refitted(rules.take([row]), side.columns(steps.core(steps.trained)))
        check = side.columns(steps.checked(steps.trained))
        same = rules if found == leaves else rules.take([row])
        same = concatenate([fitted, same])
        good = explained_by(same, check)
        if not good.any():
            core = steps.strained(side, fitted, steps.trained)
            same = _refitted(fitted, side.columns(core))
            good = explained_by(same, check)
        if good.any():
            rows = list(map(int, np.flatnonzero(good)))
            kept = [r for i, r in enumerate(rows) if same.switches(r) not in
                    [same.switches(s) for s in rows[:i]]]  # fmt: skip
            return Account(steps, same.take(np.array(kept)), found)
    return None


def special_leaves(
    steps: Steps, rule: Rules, leaves: dict[str, Leaf], exact: bool = False
) -> dict[str, Leaf] | None:
    """What makes a rule explain each leaf, or None if it explains too few as they are.

    `exact` is for a rule whose numbers are known.
    """
    trained = steps.trained
    side = steps.special(leaves)
    bad = [
        name for name in trained
        if not held_by(rule, side.columns(steps.core([name], _LEAF))).all()
    ]  # fmt: skip
    if not bad:
        return leaves
    good = [name for name in trained if name not in bad]
    if not good or len(bad) > max(3, 2 * len(trained) // 3):
        return None
    found = dict(leaves)
    for name in bad:
        leaf = _special(steps, rule, leaves, good, name, bad, exact)
        if leaf is None:
            return None
        found[name] = leaf
    return found


def _special(
    steps: Steps, rule: Rules, leaves: dict[str, Leaf], good: list[str], name: str,
    bad: list[str], exact: bool,
) -> Leaf | None:  # fmt: skip
    """What is special about a leaf, beside others that are not."""
    old = leaves.get(name, Leaf())
    shape = steps.record.grads[name].shape
    tries = [old]
    if rule.kind[0] != model.NO_DECAY:
        tries.append(dataclasses.replace(old, plain=not old.plain))
    tries += [dataclasses.replace(old, grads=other) for other in bad
              if other != name and steps.record.grads[other].shape == shape]  # fmt: skip
    if len(shape) == 3 and shape[1] == shape[2]:
        tries.append(dataclasses.replace(old, grads="transposed"))
    known = steps.core(good, _CORE // 2)
    for leaf in tries:
        side = steps.special({**leaves, name: leaf})
        own = side.columns(steps.core([name], _LEAF))
        if held_by(rule, own).all():
            return leaf
        if not exact:
            chosen = np.concatenate([known, steps.core([name], _CORE // 2)])
            fitted = _refitted(rule, side.columns(chosen))
            if held_by(fitted, own).all() and held_by(fitted, side.columns(known)).all():
                return leaf
    for leaf in tries[:2]:
        side = steps.special({**leaves, name: leaf})
        own = side.columns(steps.core([name], _LEAF))
        free = np.zeros(rule.numbers.shape, bool)
        free[:, LR] = True
        for start in (1.0, -1.0) if not own.solved else ():
            begun = own.replace(gain=own.gain * start)
            fitted = fit(changes, rule, begun, free, 30)[0]
            if held_by(fitted, begun).all():
                gain = start * float(fitted.numbers[0, LR] / rule.numbers[0, LR])
                return dataclasses.replace(leaf, gain=leaf.gain * gain)
    return None


def _refitted(rules: Rules, side: Side) -> Rules:
    """The hypotheses, fitted in units of what rounding does to the first of them."""
    free = free_numbers(rules)
    free[:, list(side.held)] = False
    if side.solved:
        free[:, LR] = False
    rules = fit(changes, rules, side, free, 20)[0]
    return fit(changes, rules, rounded(rules.take([0]), side), free, 12)[0]


def _lone(side: Side) -> Side:
    """The columns of one leaf, as a leaf among others: all gradients may be clipped together."""
    return side.replace(leaf=np.ones(side.run.grads.shape[1], int))


def _main(steps: Steps) -> list[str]:
    """The leaves, those first that say most."""
    grads = steps.record.grads
    return sorted(steps.trained, key=lambda n: (min(grads[n].ndim, 3), grads[n].size))[::-1]


def _rules(side: Side, stage: int, alone: Alone) -> Rules | None:
    """The rules of a stage's options that explain some columns."""
    run = side.run.steps(min(_SHORT, len(side.run.grads)))
    options = stages(run, bool(np.ptp(run.rates) > 0))[stage]
    options = [option for option in options if not option.caution]
    if stage == 2:  # the parts that did best by themselves
        options = sorted(options, key=lambda o: _promise(o, alone))[:_PAIRS]
    near = list[Fits]()
    for option in options:
        fits = explore(run, option, COARSE if stage else Grid(), _MOST[stage], alone)
        if fits is None:
            continue
        alone[option] = fits
        found = _judged(fits, side)
        if found is not None:
            return found
        near.append(fits)
    for fits in sorted(near, key=lambda x: float(x.cost.min()))[:2]:
        if _is_promising(fits, side):
            found = _judged(polished(fits, run), side)
            if found is not None:
                return found
    return None


def _promise(option: Option, alone: Alone) -> float:
    """How well the parts of an option did by themselves."""
    clip = model.BEFORE.get(option.clip, option.clip)
    parts = Option(kind=option.kind, maximize=option.maximize), Option(clip=clip)
    tried = [alone.get(part) for part in parts]
    return sum(float(np.log(fits.cost.min() + 1e-300)) for fits in tried if fits is not None)


def _is_promising(fits: Fits, side: Side) -> bool:
    """Whether the best hypothesis may be right, but for what rounding decides."""
    least = max(_PROMISING, (16 * side.run.unit) ** 2)
    if fits.cost.min() <= least:
        return True
    best = fits.rules.take([int(np.argmin(fits.cost))])
    size = np.abs(side.changes)
    known = (rounded(best, side).rounding < 0.1 * size) & side.valid
    left = (changes(best, side)[0] - side.changes)[known] / side.scale[known]
    return bool(0.2 < known.mean() < 1 and (left**2).mean() <= 100 * least)


def _judged(fits: Fits, side: Side) -> Rules | None:
    """The hypotheses that explain all steps, each set of switches once, the simplest first."""
    if not _is_promising(fits, side):
        return None
    order = np.argsort(fits.cost, kind="stable")
    order = order[fits.cost[order] <= max(1e6 * fits.cost[order[0]], 1e-20)][:8]
    rules = fits.rules.take(order)
    rules = concatenate([_refitted(rules, side), rules])
    good = np.flatnonzero(explained_by(rules, side))
    if not len(good):
        return None
    count = free_numbers(rules).sum(1)
    means = spread(misfits(rules, side))
    good = good[means[good] <= 2 * means[good].min() + 0.02]
    kept, seen = list[int](), set[Any]()
    for row in sorted(good, key=lambda r: (count[r], means[r])):
        switches = rules.switches(row)
        if not rules.numbers[row, model.MOMENTUM]:  # a buffer's switches say nothing without it
            switches = tuple(x for k, x in enumerate(switches) if k not in (3, 4))
        if switches not in seen and count[row] <= count[good].min():
            seen.add(switches)
            kept.append(int(row))
    return rules.take(np.array(kept))


def _unknown_rates(side: Side, options: list[Option]) -> Rules | None:
    """The rules that explain some columns at rates that are solved for."""
    # Rates that vary are unknown: the buffer's place is tried as if they were.
    run = side.run
    varied = dataclasses.replace(run, rates=np.linspace(1.0, 0.99, len(run.rates)))
    for i, option in enumerate(options):
        rules, _ = starts(varied, option, COARSE if i else Grid())
        costs = cost(changes, rules, side.columns(slice(None, None, 2)))
        rules = rules.take(best(rules, costs, 2, 40))
        free = free_numbers(rules)
        free[:, LR] = False
        rules, costs, _ = fit(changes, rules, side, free, 8)
        rules, free = (x.take(np.argsort(costs)[:6]) if x is rules else x[np.argsort(costs)[:6]]
                       for x in (rules, free))  # fmt: skip
        rules = fit(changes, rules, side, free, 30)[0]
        good = explained_by(rules, side)
        if good.any():
            rules = rules.take(np.flatnonzero(good))
            return rules.take(np.argsort(spread(misfits(rules, side)))[:4])
    return None
