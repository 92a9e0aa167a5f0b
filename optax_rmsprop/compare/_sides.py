"""What rules make of a run, leaf by leaf, and of two runs with numbers that both share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..probe import _fit
from ..probe import _model as model
from ..probe._model import FORGETS, LAMBDA, LR, MOMENTUM, NUMBERS, Rules, Run
from ..probe._search import LIMIT, free_numbers
from ._records import Array

COUNT = len(NUMBERS)

# Least squares, on anything that has what a run has for it: changes, weight and grads.
fit: Callable[..., tuple[Any, Array, Array]] = cast(Any, _fit.fit)
cost: Callable[..., Array] = cast(Any, _fit.cost)


@dataclasses.dataclass(frozen=True)
class Side:
    """A run, and what is special about some of its columns and steps."""

    run: Run
    plain: Array  # [N]: no weight decay
    gain: Array  # [N]: a factor of the rate
    solved: bool = False  # the rate of each step is solved for
    held: tuple[int, ...] = ()  # the numbers that are known, and not fitted
    carried: bool = False  # the state is not new at the first step, and is solved for
    rounding: Any = None  # [T, N]: what rounding does to each change, to fit in units of it

    @property
    def changes(self) -> Array:
        """What each step did."""
        return self.run.changes

    @property
    def scale(self) -> Array:
        """What a residual is measured by."""
        return self.run.scale if self.rounding is None else self.rounding

    @property
    def valid(self) -> Array:
        """What is to be explained."""
        return self.run.valid

    @functools.cached_property
    def weight(self) -> Array:
        """What a residual is multiplied with."""
        return self.valid / self.scale

    @property
    def grads(self) -> Array:
        """The gradients."""
        return self.run.grads

    def columns(self, chosen: Any) -> "Side":
        """Some of the columns."""
        run = self.run.columns(chosen)
        rounding = None if self.rounding is None else self.rounding[:, chosen]
        return dataclasses.replace(
            self, run=run, plain=self.plain[chosen], gain=self.gain[chosen], rounding=rounding
        )

    def replace(self, **fields: Any) -> "Side":
        """The same run with some fields set, of the run or of the side."""
        own = {f.name for f in dataclasses.fields(self)}
        run = dataclasses.replace(self.run, **{k: x for k, x in fields.items() if k not in own})
        return dataclasses.replace(self, run=run, **{k: x for k, x in fields.items() if k in own})


def side_of(run: Run) -> Side:
    """A run with nothing special."""
    size = run.grads.shape[1]
    return Side(run, np.zeros(size, bool), np.ones(size))


def changes(rules: Rules, side: Side) -> Array:
    """The change [B, T, N] that each hypothesis makes."""
    result = _made(rules, side)
    if side.plain.any() and (rules.kind != model.NO_DECAY).any():
        plain = side.columns(side.plain)
        result[..., side.plain] = _made(rules.replace(kind=model.NO_DECAY), plain)
    return result


def _made(rules: Rules, side: Side) -> Array:
    if side.carried:
        return _continued(rules, side)[0]
    if side.solved:
        return model.simulate_rates(rules, side.run)[0] * side.gain
    return model.simulate(rules, side.run) * side.gain


def _continued(rules: Rules, side: Side, errors: bool = False) -> tuple[Array, Array]:
    """The changes from a state of any numbers, and with `errors` what rounding may do to them.

    A step less the momentum of the step before has no buffer in it, and its size gives the second
    moment. The first two steps give the state of a column, and the later ones are explained.
    """
    run, later = side.run, from_step(side, 1).run
    keep, mu, weight = (rules.numbers[:, i, None] for i in (FORGETS, MOMENTUM, LAMBDA))
    known = ~(rules.nesterov | rules.centered | rules.corrected)[:, None, None]
    found = np.where(known, run.changes, np.nan)
    room = np.full(found.shape, np.inf)
    with np.errstate(all="ignore"):
        rate = rules.numbers[:, LR, None] * run.rates
        shrink = model.decoupled(rules.kind[:, None], rate, weight)[..., None] * run.params[:-1]
        moves = -run.changes / side.gain - shrink
        ratio = np.where(rules.buffer[:, None], 1.0, run.rates[1:] / run.rates[:-1])
        kept, rate = (mu * ratio)[..., None], rate[:, 1:, None]
        into = moves[:, 1] - kept[:, 0] * moves[:, 0]
        g = model.directions(rules, later.steps(1))[0][:, 0]
        square = model.squares(rules, rate[:, 0] * g / into)
        begun = np.maximum(square - keep * g * g, 0.0) / (1 - keep)
        _, u, error = model.directions(rules, later, errors, begun)
        made = side.gain * (kept * moves[:, :-1] + rate * u + shrink[:, 1:])
        found[:, 2:] -= (made + run.changes[1:])[:, 1:]
        if errors:
            noise = run.unit * (np.abs(run.params[1:]) + np.abs(run.params[:-1])) / side.gain
            noise = np.abs(noise) + 2 * run.unit * np.abs(moves)
            first = (noise[:, 1] + kept[:, 0] * noise[:, 0]) / np.abs(into)
            of_step = np.abs(rate) * (np.abs(u) * first[:, None] + error)
            of_step += kept * noise[:, :-1] + noise[:, 1:]
            room[:, 2:] = np.where(first[:, None] < 0.5, of_step * np.abs(side.gain), np.inf)[:, 1:]
    return found, room


def bounds(rules: Rules, side: Side) -> Array:
    """What rounding may do to these changes [B, T, N], that of the rule's numbers included."""
    if side.carried:
        result = _continued(rules, side, errors=True)[1]
    else:
        result = model.simulate_bounded(rules, side.run)[1] * np.maximum(side.gain, 1.0)
    keep = np.maximum(rules.numbers[:, FORGETS], side.run.unit)[:, None, None]
    return result + np.minimum(side.run.unit / keep, 1e-3) * np.abs(side.run.changes)


def rates(rules: Rules, side: Side) -> Array:
    """The rates [B, T] that each hypothesis has in effect."""
    if side.solved:
        return model.simulate_rates(rules, side.run)[1]
    return rules.numbers[:, LR, None] * side.run.rates


def rounded(rule: Rules, side: Side) -> Side:
    """The side, on which residuals are measured by what rounding does to this rule's changes."""
    with np.errstate(all="ignore"):
        room = bounds(*settled(rule, side))[0]
    return side.replace(rounding=np.where(np.isfinite(room), room, np.inf) + 1e-300)


def misfits(rules: Rules, side: Side) -> Array:
    """What is left of each change in units of what rounding may do [B, T, N]."""
    if side.solved:
        rows = [rules.take([b]) for b in range(len(rules))]
        return np.concatenate([_misfits(*settled(row, side)) for row in rows])
    return _misfits(rules, side)


def settled(rule: Rules, side: Side) -> tuple[Rules, Side]:
    """One hypothesis with the rates that it solves for as the run's."""
    if not side.solved:
        return rule, side
    found = rates(rule, side)[0]
    top = float(np.abs(found).max()) or 1.0
    numbers = rule.numbers.copy()
    numbers[:, LR] = top
    return rule.of(numbers), side.replace(solved=False, rates=found / top)


def _misfits(rules: Rules, side: Side) -> Array:
    with np.errstate(all="ignore"):
        gap = np.abs(changes(rules, side) - side.run.changes)
        ratio = gap / (bounds(rules, side) + np.finfo(float).tiny) * side.run.valid
    return np.nan_to_num(ratio, nan=np.inf)


def spread(ratio: Array) -> Array:
    """The root mean square [B] of misfits."""
    return np.linalg.norm(ratio.reshape(len(ratio), -1), axis=1) / np.linalg.norm(
        np.ones(max(ratio[0].size, 1))
    )


def kept_steps(side: Side, steps: Array) -> Side:
    """The run of some steps [T], without those that changed nothing or came before."""
    run, rows = side.run, np.append(steps, True)
    return side.replace(
        params=run.params[rows], grads=run.grads[steps], rates=run.rates[steps],
        valid=run.valid[steps], leaf_sums=run.leaf_sums[:, steps], sums=run.sums[:, steps],
    )  # fmt: skip


def from_step(side: Side, step: int) -> Side:
    """The run from a step on."""
    return kept_steps(side, np.arange(len(side.run.grads)) >= step)


def held_by(rules: Rules, side: Side) -> Array:
    """Which hypotheses [B] explain each change to rounding."""
    return misfits(rules, side).max((1, 2), initial=0.0) <= LIMIT


def explained_by(rules: Rules, side: Side) -> Array:
    """Which hypotheses [B] do, and leave no more than a part of the changes to rounding alone."""
    held = held_by(rules, side)
    for row in np.flatnonzero(held):
        held[row] = is_told(rules.take([row]), side)
    return held


def is_told(rule: Rules, side: Side) -> bool:
    """Whether a hypothesis says something of a change: rounding may do anything where it is 0/0."""
    seen = side.valid & (side.changes != 0)
    with np.errstate(all="ignore"):
        known = np.isfinite(bounds(*settled(rule, side))[0])
    return not seen.any() or bool(known[seen].mean() > 0.2)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Hypotheses on two runs: those of the one, and the other's, whose tied numbers are the same.

    `numbers` [B, 2 n + 1] are the one's, the other's, and a factor of the other's gradients.
    """

    one: Rules
    other: Rules
    tied: Array  # [B, n]
    numbers: Array

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Any) -> "Pairs":
        """The hypotheses of these rows."""
        parts = self.one.take(rows), self.other.take(rows)
        return Pairs(*parts, self.tied[rows], self.numbers[rows])

    def of(self, numbers: Array) -> "Pairs":
        """The same hypotheses with other numbers."""
        return dataclasses.replace(self, numbers=numbers)

    @property
    def ones(self) -> Rules:
        """The hypotheses on the one."""
        return self.one.of(self.numbers[:, :COUNT])

    @property
    def others(self) -> Rules:
        """The hypotheses on the other."""
        shared = _scaled(self.other, self.numbers[:, :COUNT], self.numbers[:, -1])
        return self.other.of(np.where(self.tied, shared, self.numbers[:, COUNT:-1]))


def pairs(one: Rules, other: Rules, tied: Array, factor: Any = 1.0) -> Pairs:
    """Hypotheses with the numbers of both to begin with."""
    factors = np.broadcast_to(np.asarray(factor, float), len(one))[:, None]
    return Pairs(one, other, tied, np.concatenate([one.numbers, other.numbers, factors], 1))


def _scaled(rules: Rules, numbers: Array, factor: Array) -> Array:
    """The numbers that do to gradients what these do to gradients that are `factor` times so."""
    numbers, c = numbers.copy(), factor
    squared = np.isin(rules.denominator, (model.INSIDE, model.SUBTRACTED))
    numbers[:, model.EPS] /= np.where(squared, c * c, c)
    numbers[:, model.SCALE] /= c * c
    numbers[:, LAMBDA] /= np.where(rules.kind == model.L2, c, 1.0)
    numbers[:, model.BOUND] /= c
    return numbers


@dataclasses.dataclass(frozen=True)
class Both:
    """Two sides in one row of changes."""

    one: Side
    other: Side

    @functools.cached_property
    def changes(self) -> Array:
        """The changes of both."""
        return self._joined("changes")

    @functools.cached_property
    def weight(self) -> Array:
        """What a residual is multiplied with."""
        return self._joined("weight")

    @property
    def grads(self) -> Array:
        """The gradients of both."""
        return self._joined("grads")

    def _joined(self, name: str) -> Array:
        sides = (self.one, self.other)
        return np.concatenate([getattr(side, name).ravel() for side in sides])


def simulate(hypotheses: Pairs, both: Both) -> Array:
    """The changes [B, ...] of both."""
    count = len(hypotheses)
    found = changes(hypotheses.ones, both.one), changes(hypotheses.others, both.other)
    return np.concatenate([x.reshape(count, -1) for x in found], 1)


def fitted(hypotheses: Pairs, both: Both, iterations: int, factor: Any = False) -> Pairs:
    """The hypotheses with their numbers fitted, `factor` [B] with that of the gradients."""
    free = np.zeros(hypotheses.numbers.shape, bool)
    free[:, :COUNT] = free_numbers(hypotheses.one)
    free[:, COUNT:-1] = free_numbers(hypotheses.others) & ~hypotheses.tied
    # A number that only the other has is its own.
    free[:, :COUNT] |= free_numbers(hypotheses.others) & hypotheses.tied
    free[:, -1] = factor
    free[:, list(both.one.held)] = False
    if both.one.solved:
        free[:, LR] = False
    if both.other.solved:
        free[:, COUNT + LR] = False
    logits = [FORGETS, MOMENTUM, COUNT + FORGETS, COUNT + MOMENTUM]
    return fit(simulate, hypotheses, both, free, iterations, logits)[0]


def polished(hypotheses: Pairs, both: Both, factor: Any) -> Pairs:
    """The hypotheses, fitted once more in units of what rounding does to the first of them."""
    first = hypotheses.take([0])
    fine = Both(rounded(first.ones, both.one), rounded(first.others, both.other))
    return fitted(hypotheses, fine, 12, factor)
