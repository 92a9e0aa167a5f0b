"""What the optimizers of two runs differ by, each judged by its own gradients and parameters."""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from ..probe._model import LR, Rules, Run
from ..probe._search import LIMIT
from ._accounts import Account, Leaf, Steps, accounted, is_plain, special_leaves, steps_of
from ._moves import Explained, between, nearest, refined, single, unchanged
from ._records import UNITS, Array, Record
from ._report import Change
from ._sides import (
    Both,
    Side,
    changes,
    from_step,
    held_by,
    kept_steps,
    misfits,
    rates,
    settled,
    spread,
)  # fmt: skip
from ._words import Roles, frozen_change, leaf_changes, rule_changes, schedule_change

Changes = tuple[Change, ...]

_MOST = 6  # sets of changes that are confirmed, and told
_ROUNDED = 0.2  # the part of the changes that a narrower format moves at least
_GAIN = 0.02  # a rate of a leaf is rarely as near to that of the others


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the optimizers differ by.

    `alternatives` are sets of changes that each leave rounding alone, the best first, the empty one
    where nothing differs; `partial` what leaves a part. `place` is the first step, leaf and index
    that the one's rule does not explain in the other's run, and what rounding allows there.
    """

    alternatives: tuple[Changes, ...] = ((),)
    partial: tuple[tuple[Changes, float], ...] = ()
    place: tuple[int, str, tuple[int, ...], float] | None = None
    unexplained: str = ""

    @property
    def gap(self) -> bool:
        """Whether there is anything to explain."""
        return bool(self.unexplained) or () not in self.alternatives


def explanations(theirs: Record, ours: Record) -> Explanation:
    """The sets of changes that lead from the rule of ours to that of theirs."""
    moves = [any((x[1:] != x[:-1]).any() for x in r.params.values()) for r in (theirs, ours)]
    if _equal(theirs, ours) or not any(moves):
        return Explanation()
    if not all(moves):
        return _still(*((theirs, "ours") if moves[0] else (ours, "theirs")))
    known = accounted(steps_of(ours), steps_of(theirs))
    if known is None:
        return _unknown(theirs, ours)
    if known.steps.record is ours:
        return _explained(known, theirs, Roles("theirs", "ours"))
    return _explained(known, ours, Roles("ours", "theirs"))


def _equal(theirs: Record, ours: Record) -> bool:
    """Whether the runs are the same, bit for bit."""
    return all(
        np.array_equal(x[name], y[name], equal_nan=True)
        for x, y in ((theirs.params, ours.params), (theirs.grads, ours.grads))
        for name in ours.names
    )


def _still(record: Record, who: str) -> Explanation:
    """What is seen of a run beside one that does not move."""
    leaves = {name: x[1:] != x[:-1] for name, x in record.params.items()}
    step, name = min((int(x.any(tuple(range(1, x.ndim))).argmax()), n)
                     for n, x in leaves.items() if x.any())  # fmt: skip
    index = np.unravel_index(int(leaves[name][step].argmax()), leaves[name].shape[1:])
    allowed = 2 * record.unit * abs(float(record.params[name][step][index]))
    text = f"{who} does not move: no parameter changes at any step"
    change = Change("frozen", text, who == "theirs", who == "ours", tuple(record.names))
    return Explanation(((change,),), place=(step, name, tuple(map(int, index)), allowed))


def _explained(known: Account, record: Record, roles: Roles) -> Explanation:
    steps = steps_of(record, known.steps.record)
    if known.steps.side.run.unit > known.steps.record.unit:
        steps = steps.coarse()
    base = _Task(known, steps, roles)
    if is_plain(steps):
        text = f"{roles.other} is SGD, whose steps are sums of gradients, and no RMSprop"
        return Explanation((), (), base.place(), text)
    found = base.found()
    alternatives = tuple(dict.fromkeys(found))
    same = alternatives[:1] == ((),) and record.precision == known.steps.record.precision
    place = None if same else base.place()
    if alternatives:
        return Explanation(alternatives, place=place)
    partial = base.partial()
    text = (
        f"the updates of {roles.other} are not explained by its own gradients, by a change of "
        f"the rule of {roles.one}, or by two of them, and by no RMSprop"
    )
    return Explanation((), partial, place, text)


@dataclasses.dataclass(frozen=True)
class _Task:
    """An explained run, the steps of another one, and who is who."""

    known: Account
    steps: Steps
    roles: Roles

    def found(self) -> list[Changes]:
        """The smallest sets of changes that explain the other run."""
        always = self._always()
        if not self.steps.trained:
            return [always] if always else []
        side = self.steps.special(self._leaves)
        same = self._held(unchanged(self.known.rules_at(side), self._both(side)), side)
        if same:
            return [always]
        for sought in (self._alone, self._timewise, self._rewritten, self._rounded, self._pairs):
            found = [*sought(side)]
            if found:
                return [(*always, *changes) for changes in _distinct(found)]
        return []

    @property
    def _leaves(self) -> dict[str, Leaf]:
        return self.known.leaves

    def _always(self) -> Changes:
        """What is seen without a rule: leaves that are not trained, recorded rates."""
        found = list[Change]()
        for who, frozen in (
            (self.roles.other, self.steps.frozen - self.known.steps.frozen),
            (self.roles.one, self.known.steps.frozen - self.steps.frozen),
        ):
            if frozen:
                found.append(frozen_change(who, tuple(sorted(frozen)), self.roles))
        a, b = self.steps.record.rates, self.known.steps.record.rates
        if a is not None and b is not None and not np.allclose(a, b, rtol=1e-6, atol=0):
            found.append(schedule_change(a, b, lambda x: np.allclose(a, x, 1e-5, 0), self.roles))
        return tuple(found)

    def _both(self, side: Side, core: Array | None = None) -> Both:
        """Both runs on a few columns each, or all that suit and these of the other."""
        one = self.known
        if core is None:
            return Both(one.side.columns(one.steps.few()), side.columns(self.steps.few()))
        return Both(one.side.columns(one.steps.wide()), side.columns(core))

    def _held(self, found: list[Explained], side: Side) -> list[Explained]:
        """Those that explain all leaves."""
        steps, kept = self.steps, list[Explained]()
        check = side.columns(steps.checked(steps.trained))
        for e in found[:_MOST]:
            if not held_by(e.other, check).all():
                core = steps.strained(side, e.other, steps.trained)
                e = refined(e, self._both(side, core))
                if not held_by(e.other, check).all():
                    continue
            kept.append(e)
        return kept

    def _alone(self, side: Side) -> Iterator[Changes]:
        """One change of the rule, or of leaves or steps at the same rule."""
        special = [*self._leafwise(self.known.rules), *self._restarted()]
        if special and self._stands_out(special[0]):
            yield from special
            return
        found = self._held(single(self.known.rules_at(side), self._both(side)), side)
        for e in found:
            yield rule_changes(e, self.roles)
        yield from special

    def _stands_out(self, changes: Changes) -> bool:
        """Whether few leaves are special, and are so by more than what a rule's numbers do."""
        leaves = {name for change in changes for name in change.leaves}
        gains = [change.theirs for change in changes if change.name == "rate_of_leaf"]
        few = 2 * len(leaves) <= len(self.steps.trained)
        return few and all(abs(gain - 1) > _GAIN for gain in gains)

    def _leafwise(self, rules: Rules) -> Iterator[Changes]:
        """Leaves that are special in the other, and not in the one."""
        for row in range(min(len(rules), 3)):
            leaves = special_leaves(self.steps, rules.take([row]), self._leaves, exact=True)
            if leaves is not None and leaves != self._leaves:
                yield leaf_changes(leaves, self._leaves, self.roles)
                return

    def _timewise(self, side: Side) -> Iterator[Changes]:
        """Steps that made no update, other rates, or a state that is not new."""
        del side
        for start, side in self._sides():
            both = self._both(side)
            found = self._held(unchanged(self.known.rules_at(side), both), side)
            if found:
                yield (*start, *self._schedule(found[0], side))
                return

    def _sides(self) -> Iterator[tuple[Changes, Side]]:
        """The other run without steps that did nothing, with rates or a state solved for."""
        side = self.steps.special(self._leaves)
        run = side.run
        still = ~(run.changes != 0).any(1) & (run.grads != 0).any(1)
        own = self.known.side.run
        if len(own.changes) == len(still):
            still &= (own.changes != 0).any(1)
        if still.any() and not still.all():
            numbers = tuple(int(k) for k in np.flatnonzero(still))
            text = f"{self.roles.other} makes no update at {_steps(numbers)}"
            change = Change("skipped_step", text, *self.roles.pair(numbers, ()), step=numbers[0])
            yield (change,), kept_steps(side, ~still)
            yield (change,), side.replace(rates=np.where(still, 0.0, run.rates))
        if side.solved:
            return
        yield (), side.replace(solved=True)
        if len(run.grads) >= 4:
            text = (
                f"the optimizer of {self.roles.other} begins with the state of an earlier run: "
                "its second moment is not the start of a new one"
            )
            change = Change("carried_state", text, *self.roles.pair(True, False), step=0)
            yield (change,), side.replace(carried=True)

    def _schedule(self, e: Explained, side: Side) -> Changes:
        """The change of the rates, if they were solved for."""
        if not side.solved:
            return ()
        columns = side.columns(self.steps.checked(self.steps.trained))
        rule, _ = settled(e.other, columns)
        found, ours = rates(e.other, columns)[0], rates(e.one, self._both(side).one)[0]

        if np.allclose(found, ours, 1e-5, 0):
            return ()

        def holds(values: Array) -> bool:
            top = float(np.abs(values).max()) or 1.0
            numbers = rule.numbers.copy()
            numbers[:, LR] = top
            again = columns.replace(solved=False, rates=values / top)
            return bool(held_by(rule.of(numbers), again).all())

        return (schedule_change(found, ours, holds, self.roles),)

    def _restarted(self) -> Iterator[Changes]:
        """A state that begins anew at a step."""
        side = self.steps.special(self._leaves)
        check = side.columns(self.steps.checked(self.steps.trained))
        for row in range(min(len(self.known.rules), 3)):
            rule = self.known.rules.take([row])
            if check.solved:
                return
            bad = np.flatnonzero((misfits(rule, check)[0] > LIMIT).any(1))
            if not len(bad) or bad[0] == 0:
                continue
            k = int(bad[0])
            if held_by(rule, from_step(check, k)).all():
                text = f"the state of the optimizer of {self.roles.other} begins anew at step {k}"
                yield (Change("reset", text, *self.roles.pair(k, None), step=k),)
                return

    def _rounded(self, side: Side) -> Iterator[Changes]:
        """A narrower format inside the other's optimizer."""
        check = side.columns(self.steps.checked(self.steps.trained))
        rule = self.known.rules.take([0])
        for name in reversed(UNITS):
            if UNITS[name] <= 4 * check.run.unit or check.solved:
                continue
            coarse = check.replace(unit=UNITS[name])
            ratio = misfits(rule, coarse)
            gap = (changes(rule, check)[0] - check.run.changes) * check.run.valid
            along = float(cast(Any, np.vdot(gap, check.run.changes))) / max(
                cast(Any, np.linalg.norm(gap)) * np.linalg.norm(check.run.changes), 1e-300
            )
            fits = ratio.max(initial=0.0) <= LIMIT and abs(along) < 0.2 and spread(ratio)[0] > 0.01
            apart = (misfits(rule, check)[0] > LIMIT)[check.run.moves].mean()
            if fits and apart > _ROUNDED and _shows_rounding(check.run, gap, name):
                text = f"the optimizer of {self.roles.other} rounds to {name} inside"
                precision = self.known.steps.record.precision
                yield (Change("precision", text, *self.roles.pair(name, precision)),)
                return

    def _pairs(self, side: Side) -> Iterator[Changes]:
        """A special leaf or step, and a change of the rule; what explains most comes last."""
        del side
        yield from self._leaf_and_rule()
        for start, side in self._sides():
            for e in self._held(single(self.known.rules_at(side), self._both(side)), side):
                yield (*start, *self._schedule(e, side), *rule_changes(e, self.roles))

    def _leaf_and_rule(self) -> Iterator[Changes]:
        """A rule of the largest leaf or the next, and others that are special to it."""
        trained = self.steps.trained
        if len(trained) < 2:
            return
        side = self.steps.special(self._leaves)
        for main in sorted(trained, key=lambda n: self.steps.record.grads[n].size)[::-1][:2]:
            core = self.steps.core([main])
            for e in single(self.known.rules, self._both(side, core))[:4]:
                leaves = special_leaves(self.steps, e.other, self._leaves)
                if leaves is not None and leaves != self._leaves:
                    special = leaf_changes(leaves, self._leaves, self.roles, e)
                    yield (*rule_changes(e, self.roles), *special)

    def _rewritten(self, side: Side) -> Iterator[Changes]:
        """The other's rule, sought for itself, and the fewest changes that lead to it."""
        own = accounted(self.steps)
        if own is None:
            return
        side = own.side
        both = Both(self._both(side).one, side.columns(self.steps.core(self.steps.trained)))
        for e in between(self.known.rules_at(side), own.rules, both):
            special = leaf_changes(own.leaves, self._leaves, self.roles, e)
            extra = self._schedule(e, side) if side.solved else ()
            yield (*rule_changes(e, self.roles), *extra, *special)

    def place(self) -> tuple[int, str, tuple[int, ...], float] | None:
        """The first number of the other that the one's rule does not explain."""
        one, run = self.known, self.steps.side.run
        rule, own = settled(
            one.rules.take([0]), one.side.columns(one.steps.core(one.steps.trained))
        )
        side = self.steps.special(self._leaves)
        unit = min(run.unit, own.run.unit)
        side = side.replace(rates=own.run.rates[: len(run.rates)], unit=unit, stored=unit)
        with np.errstate(all="ignore"):
            ratio = misfits(rule, side)[0]
        for name in one.steps.frozen:
            columns = self.steps.of(name)
            ratio[:, columns] = np.where(run.changes[:, columns] != 0, np.inf, 0.0)
        bad = np.flatnonzero((ratio > LIMIT).any(1))
        if not len(bad):
            return None
        step = int(bad[0])
        column = int(np.argmax(ratio[step]))
        leaf, at = (int(x) for x in self.steps.columns[column])
        name = self.steps.record.names[leaf]
        shape = self.steps.record.grads[name].shape[1:]
        gap = float(np.abs(changes(rule, side)[0] - run.changes)[step, column])
        allowed = LIMIT * gap / float(ratio[step, column])
        return step, name, tuple(map(int, np.unravel_index(at, shape))), allowed

    def partial(self) -> tuple[tuple[Changes, float], ...]:
        """The single changes that close most of the gap."""
        side = self.steps.special(self._leaves)
        if not self.steps.trained or side.solved:
            return ()
        found = nearest(self.known.rules, self._both(side))
        return tuple((rule_changes(e, self.roles), left) for e, left in found[:3] if left < 0.9)


def _shows_rounding(run: Run, gap: Array, name: str) -> bool:
    """Whether most of a gap lies where a rounding to a format could be told from no step.

    There the step is larger than what the rounding hides, or ends at a number of the format.
    """
    after = run.params[1:]
    hidden = UNITS[name] * (np.abs(run.params[:-1]) + np.abs(after))
    with np.errstate(over="ignore"):
        rounded = after.astype(jnp.dtype(name)).astype(after.dtype)
    told = (np.abs(run.changes) > 4 * hidden) | (rounded == after)
    return bool(2 * np.abs(gap[told]).sum() >= np.abs(gap).sum())


def _distinct(found: list[Changes]) -> list[Changes]:
    """The sets of changes, each once by what it is about."""
    best = dict[Any, Changes]()
    for one in found:
        best.setdefault(tuple((c.name, c.leaves) for c in one), one)
    return list(best.values())


def _unknown(theirs: Record, ours: Record) -> Explanation:
    """The first step whose change differs more than the gradients, where no rule is known."""
    steps = [steps_of(record) for record in (theirs, ours)]
    a, b = (s.side.run for s in steps)
    with np.errstate(all="ignore"):
        noise = np.abs(a.grads - b.grads) / (np.abs(a.grads) + np.abs(b.grads) + 1e-300)
        noise = np.maximum.accumulate(noise, 0)
        size = np.abs(a.changes) + np.abs(b.changes)
        unit = max(a.unit, b.unit)
        share = 16 * noise + 16 * unit
        allowed = size * np.minimum(1.0, share)
        allowed += 2 * unit * (np.abs(a.params[1:]) + np.abs(b.params[1:]))
        apart = np.abs(a.params[0] - b.params[0])
        alike = apart <= 4 * unit * np.abs(b.params[0])
        gap = np.abs(a.changes - b.changes) * alike
    bad = np.flatnonzero((gap > allowed).any(1))
    if not len(bad):
        moved = size[0] > 0
        if 2 * (moved & alike & (share[0] < 1)).sum() >= moved.sum():
            return Explanation()
        text = "neither run is that of an RMSprop, and gradients differ too much to compare steps"
        return Explanation((), unexplained=text)
    step = int(bad[0])
    column = int(np.argmax(gap[step] / (allowed[step] + 1e-300)))
    leaf, at = (int(x) for x in steps[0].columns[column])
    name = ours.names[leaf]
    index = tuple(map(int, np.unravel_index(at, ours.grads[name].shape[1:])))
    text = "neither run is that of an RMSprop, so that nothing can be said about the rule"
    return Explanation((), (), (step, name, index, float(allowed[step, column])), text)


def _steps(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
    return f"step{'s' * (len(numbers) > 1)} {shown}"
