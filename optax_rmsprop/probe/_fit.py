"""Least squares over the numbers of many hypotheses at once (Levenberg and Marquardt).

Numbers are varied on a scale where each may take any value: the logarithm of what they are times
their start, or the logit of what lies between 0 and 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np

from ._model import FORGETS, MOMENTUM, Array, Run

# Numbers whose effects are as alike as this do the same.
_BLIND = 1e-13

# What an average forgets in a step at least: of a decay of 0.9999, 1e-4.
LEAST = 5e-5
# How far above it a fit ends, so that no rounding takes it below.
_BESIDE = 1e-9

Simulate: TypeAlias = Callable[[Any, Run], Array]
Runs: TypeAlias = Run | tuple[Run, ...]

# A fit whose next step would take away no more of the mean square is at its end.
_SETTLED = 1e-9
# Nor does it go on where a step fails that would have taken away this part of it, hardly damped.
_IDLE, _GENTLE = 0.05, 1e-6

# Below this a step of a number and of its logarithm are the same, in a narrow valley too.
_LARGE = 1e-6

# A residual beyond this is cut off, so that squares of derivatives do not overflow.
_FARTHEST = 1e100

# Bounds of the step of a difference, and what arithmetic in float64 does to a change.
_LEAST_STEP, _LARGEST_STEP, _ROUNDED = 1e-8, 0.1, 2.0**-51


def each(runs: Runs) -> tuple[Run, ...]:
    """One run or several, as several."""
    return runs if isinstance(runs, tuple) else (runs,)


def residuals(simulate: Simulate, rules: Any, run: Runs) -> Array:
    """What is left of each change [B, T * N], in parts of the change and its rounding.

    Of several runs, that of one after the other.
    """
    parts = list[Array]()
    for r in each(run):
        part = np.subtract(simulate(rules, r), r.changes, order="C")
        part *= r.weight
        parts.append(part.reshape(len(rules.numbers), -1))
    left = np.concatenate(parts, 1) if len(parts) > 1 else parts[0]
    if np.abs(left).max(initial=0.0) <= _FARTHEST:  # which a NaN is not
        return left
    left = np.nan_to_num(left, nan=1e3, posinf=1e3, neginf=-1e3)
    return np.clip(left, -_FARTHEST, _FARTHEST)


def cost(simulate: Simulate, rules: Any, run: Runs, chunk: int = 2_000_000) -> Array:
    """The mean square of the residuals of each hypothesis."""
    count = max(1, chunk // max(sum(r.grads.size for r in each(run)), 1))
    parts = [
        np.mean(np.minimum(residuals(simulate, rules.take(slice(i, i + count)), run) ** 2, 1e6), 1)
        for i in range(0, len(rules.numbers), count)
    ]
    return np.concatenate(parts)


@dataclasses.dataclass
class _Fit:
    """Hypotheses on the scale of the fit, and what they leave."""

    simulate: Simulate
    rules: Any
    runs: Runs
    free: Array  # [B, n]
    logits: list[int]
    low: Array  # [B, n]
    x: Array  # [B, n]
    left: Array  # [B, M]: the residuals
    value: Array  # [B]: their mean square
    step: Array  # [B, n]: of the differences
    central: Array  # [B]: whether they are central

    @classmethod
    def of(cls, simulate: Simulate, rules: Any, runs: Runs, free: Array, logits: Any) -> "_Fit":
        """The hypotheses as they are, with differences to one side."""
        left, x = residuals(simulate, rules, runs), np.zeros(rules.numbers.shape)
        low = np.full(x.shape, -690.0)
        if logits is None:
            logits = [FORGETS, MOMENTUM]
            # Without a correction a sum is what an average comes to.
            low[rules.corrected, FORGETS] = _logit(np.array(LEAST)) + _BESIDE
        x[:, logits] = _logit(rules.numbers[:, logits])
        x = np.maximum(x, low)
        step, central, value = np.full(x.shape, 1e-5), np.zeros(len(x), bool), (left**2).mean(1)
        return cls(simulate, rules, runs, free, logits, low, x, left, value, step, central)

    def at(self, rows: Array, x: Array) -> Array:
        """The residuals of these rows with other numbers."""
        return residuals(self.simulate, self.named(rows, x), self.runs)

    def named(self, rows: Array, x: Array) -> Any:
        """These rows as hypotheses."""
        rules = self.rules.take(rows)
        values = rules.numbers * np.exp(x)
        for i in self.logits:
            values[:, i] = 1 / (1 + np.exp(-np.clip(x[:, i], -36, 36)))
        return rules.of(np.where(self.free[rows], values, rules.numbers))

    def jacobian(self, rows: Array) -> Array:
        """Derivatives [B, M, n] of the residuals of these rows."""
        result = np.zeros((len(rows), self.left.shape[1], self.x.shape[1]))
        for central in np.unique(self.central[rows]):
            row, column = np.nonzero(self.free[rows] & (self.central[rows] == central)[:, None])
            if len(row):
                h = self.step[rows[row], column]
                h = h ** (2 / 3) if central else h
                after = self.beside(rows[row], column, h)
                before = self.beside(rows[row], column, -h) if central else self.left[rows[row]]
                result[row, :, column] = (after - before) / (h * (1 + central))[:, None]
        return result

    def deviations(self, jacobian: Array) -> Array:
        """Standard deviations [B, n] of the free numbers.

        Central steps are long and may go across a kink; others see less of a narrow valley.
        """
        deviation = _deviations(jacobian, self.value, self.free)
        both = np.flatnonzero(self.central)
        self.central[:] = False
        other = _deviations(self.jacobian(both), self.value[both], self.free[both])
        deviation[both] = np.maximum(deviation[both], other)
        return deviation

    def beside(self, rows: Array, column: Array, h: Array) -> Array:
        """The residuals of these rows where one number of each is another."""
        x = self.x[rows]
        x[np.arange(len(rows)), column] += h
        return self.at(rows, x)

    def take_better(self, rows: Array, move: Array) -> Array:
        """Go where it is better, by a step of the logarithms or of the numbers, and say where.

        The changes are linear in a rate, in a decay of weights, and in an ε or a ν₀ that is small.
        """
        better = np.zeros(len(rows), bool)
        start = self.x[rows]
        linear = np.log1p(np.clip(move, -0.95, 20))
        linear[:, self.logits] = np.clip(move[:, self.logits], -3, 3)
        steps = [np.clip(move, -3, 3), linear]
        for step in steps if np.abs(move).max(initial=0.0) > _LARGE else steps[:1]:
            x = np.clip(start + step, self.low[rows], 690)
            left = self.at(rows, x)
            value = (left**2).mean(1)
            less = value < self.value[rows]
            at = rows[less]
            self.x[at], self.left[at], self.value[at] = x[less], left[less], value[less]
            better |= less
        return better


def fit(
    simulate: Simulate,
    rules: Any,
    runs: Runs,
    free: Array,
    iterations: int = 25,
    logits: Any = None,
    start: float = 1e-2,
) -> tuple[Any, Array, Array]:
    """The hypotheses with the numbers that `free` [B, n] marks fitted, their costs, and errors.

    The errors [B, n] are standard deviations of the free numbers, on the scale where each may take
    any value. The damping begins at `start`: near the end little will do.
    """
    state = _Fit.of(simulate, rules, runs, np.asarray(free, bool), logits)
    every, noise = np.arange(len(state.x)), _noise(runs)
    jacobian = state.jacobian(every)
    damping, alive = np.full(len(every), start), np.ones(len(every), bool)
    for _ in range(iterations):
        rows = np.flatnonzero(alive)
        if not len(rows):
            break
        state.step[rows] = _steps(jacobian[rows], noise)
        move, gain = _move(jacobian[rows], state.left[rows], damping[rows])
        better = state.take_better(rows, move)
        eased = np.maximum(damping[rows] / 8, 1e-12)
        damping[rows] = np.where(better, eased, np.minimum(damping[rows] * 6, 1e8))
        settled = (gain <= _SETTLED * state.value[rows]) & (damping[rows] < 1e-10)
        idle = ~better & state.central[rows] & (gain <= _IDLE * state.value[rows])
        over = settled | (idle & (damping[rows] < _GENTLE)) | (state.value[rows] == 0)
        over |= ~better & (damping[rows] > 1e6)
        alive[rows] &= ~over
        # Where a step fails, the derivatives may not be good enough for it.
        anew = rows[better | ~state.central[rows]]
        state.central[rows[~better]] = True
        jacobian[anew] = state.jacobian(anew)
    return state.named(every, state.x), state.value, state.deviations(jacobian)


def _move(jacobian: Array, left: Array, damping: Array) -> tuple[Array, Array]:
    """The damped step [B, n] of Gauss and Newton, 0 where the data do not see a number.

    And the part of the mean square [B] that it takes away where the residuals are linear.
    """
    length = np.sqrt((jacobian**2).sum(1))
    seen = length > 0
    length = np.where(seen, length, 1)
    normal = jacobian / length[:, None, :]
    across = normal.swapaxes(1, 2)
    gram, slope = across @ normal, (across @ left[..., None])[..., 0]
    damped = np.where(seen, damping[:, None], 1.0)[:, None, :]
    gram = gram + np.eye(jacobian.shape[2]) * damped
    move = -cast(Array, np.linalg.solve(gram, slope[..., None]))[..., 0] * seen
    return move / length, -(slope * move).sum(1) / left.shape[1]


def _deviations(jacobian: Array, value: Array, free: Array) -> Array:
    """Standard deviations [B, n] of the free numbers of many hypotheses."""
    rows = zip(jacobian, value, free, strict=True)
    return np.array([_deviation(*row) for row in rows]).reshape(free.shape)


def _deviation(jacobian: Array, value: float, free: Array) -> Array:
    """Standard deviations of the free numbers, infinite where the data do not see one."""
    result = np.full(len(free), np.inf)
    length = np.sqrt((jacobian**2).sum(0))
    seen = np.flatnonzero(free & (length > 0))
    if len(seen):
        normal = jacobian[:, seen] / length[seen]
        values, vectors = np.linalg.eigh(normal.T @ normal)
        blind = (np.abs(vectors[:, values < _BLIND]) > 1e-3).any(1)
        spread = max(value, 1e-32) * len(jacobian)
        spread /= max(len(jacobian) - len(seen), 1)
        variance = (vectors**2 / np.maximum(values, _BLIND)).sum(1) * spread
        result[seen] = np.where(blind, np.inf, np.sqrt(variance) / length[seen])
    return result


def _noise(runs: Runs) -> float:
    """What rounding in the simulation itself does to a residual, root mean square."""
    noise = [_ROUNDED * np.abs(r.changes) * r.weight for r in each(runs)]
    return float(np.sqrt(np.mean(np.concatenate([x.ravel() for x in noise]) ** 2)))


def _steps(jacobian: Array, noise: float) -> Array:
    """The steps [B, n] of differences in which noise and curvature do as little."""
    size = np.sqrt((jacobian**2).mean(1))
    return np.clip(np.sqrt(noise / np.maximum(size, 1e-300)), _LEAST_STEP, _LARGEST_STEP)


def _logit(numbers: Array) -> Array:
    with np.errstate(all="ignore"):
        x = np.log(numbers) - np.log1p(-numbers)
    return np.clip(np.nan_to_num(x, nan=-690.0, posinf=690.0, neginf=-690.0), -690, 690)
