"""Least squares over the numbers of many hypotheses at once (Levenberg and Marquardt).

Numbers are varied on a scale where each may take any value: the logarithm, or the logit of what
lies between 0 and 1.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np

from ._model import DECAY, MOMENTUM, Array, Run

# Numbers whose effects are as alike as this do the same.
_BLIND = 1e-13

Simulate: TypeAlias = Callable[[Any, Run], Array]
Runs: TypeAlias = Run | tuple[Run, ...]

# A step of a difference: large enough that rounding of the residuals does not hide what it does.
_LEAST_STEP, _LARGEST_STEP, _CHANGE = 1e-7, 0.1, 1e-10


def each(runs: Runs) -> tuple[Run, ...]:
    """One run or several, as several."""
    return runs if isinstance(runs, tuple) else (runs,)


def residuals(simulate: Simulate, rules: Any, run: Runs) -> Array:
    """What is left of each change [B, T * N], in parts of the change and its rounding.

    Of several runs, that of one after the other.
    """
    parts = [
        ((simulate(rules, r) - r.changes) * (r.valid / r.scale)).reshape(len(rules.numbers), -1)
        for r in each(run)
    ]
    left = np.concatenate(parts, 1) if len(parts) > 1 else parts[0]
    return np.nan_to_num(left, nan=1e3, posinf=1e3, neginf=-1e3)


def cost(simulate: Simulate, rules: Any, run: Runs, chunk: int = 2_000_000) -> Array:
    """The mean square of the residuals of each hypothesis."""
    count = max(1, chunk // max(sum(r.grads.size for r in each(run)), 1))
    parts = [
        np.mean(np.minimum(residuals(simulate, rules.take(slice(i, i + count)), run) ** 2, 1e6), 1)
        for i in range(0, len(rules.numbers), count)
    ]
    return np.concatenate(parts)


def fit(
    simulate: Simulate, rules: Any, run: Runs, free: Array, iterations: int = 25, logits: Any = None
) -> tuple[Any, Array, Array]:
    """The hypotheses with the numbers that `free` [B, n] marks fitted, their costs, and errors.

    The errors [B, n] are standard deviations of the free numbers, on the scale where each may take
    any value.
    """
    logits = [DECAY, MOMENTUM] if logits is None else logits
    numbers, free = rules.numbers.copy(), np.asarray(free, bool)
    x = _to_free(numbers, logits)
    old = residuals(simulate, rules, run)
    value = (old**2).mean(1)
    damping = np.full(len(x), 1e-2)
    step = np.full(x.shape, 1e-5)
    deviation = np.full(x.shape, np.inf)
    alive = np.ones(len(x), bool)
    for _ in range(iterations):
        rows = np.flatnonzero(alive)
        if not len(rows):
            break
        jacobian = _jacobian(
            simulate, rules.take(rows), x[rows], old[rows], run, free[rows], logits, step[rows]
        )
        step[rows] = _steps(jacobian)
        move = _move(jacobian, old[rows], damping[rows])
        trial = np.clip(x[rows] + move, -690, 690)
        tried = rules.take(rows).of(_of_free(numbers[rows], trial, free[rows], logits))
        new = residuals(simulate, tried, run)
        new_value = (new**2).mean(1)
        better = new_value < value[rows]
        accepted = rows[better]
        x[accepted], old[accepted] = trial[better], new[better]
        value[accepted] = new_value[better]
        eased = np.maximum(damping[rows] / 8, 1e-12)
        damping[rows] = np.where(better, eased, np.minimum(damping[rows] * 6, 1e8))
        small = np.abs(move).max(1) < 1e-13
        alive[rows] &= ~(small | (value[rows] == 0) | (~better & (damping[rows] > 1e6)))
    rules = rules.of(_of_free(numbers, x, free, logits))
    jacobian = _jacobian(simulate, rules, x, old, run, free, logits, step)
    for b in range(len(x)):
        deviation[b] = _deviation(jacobian[b], value[b], free[b])
    return rules, value, deviation


def _move(jacobian: Array, left: Array, damping: Array) -> Array:
    """The damped step [B, n] of Gauss and Newton; 0 where the data do not see a number."""
    length = np.sqrt((jacobian**2).sum(1))
    seen = length > 0
    length = np.where(seen, length, 1)
    normal = jacobian / length[:, None, :]
    gram = np.einsum("bmi,bmj->bij", normal, normal)
    slope = np.einsum("bmi,bm->bi", normal, left)
    damped = np.where(seen, damping[:, None], 1.0)[:, None, :]
    gram = gram + np.eye(jacobian.shape[2]) * damped
    move = -cast(Array, np.linalg.solve(gram, slope[..., None]))[..., 0] / length
    return np.clip(np.where(seen, move, 0.0), -3, 3)


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


def _steps(jacobian: Array) -> Array:
    """The steps [B, n] that suit derivatives of this size."""
    size = np.sqrt((jacobian**2).mean(1))
    return np.clip(_CHANGE / np.maximum(size, 1e-300), _LEAST_STEP, _LARGEST_STEP)


def _jacobian(
    simulate: Simulate,
    rules: Any,
    x: Array,
    at: Array,
    run: Runs,
    free: Array,
    logits: Any,
    step: Array,
) -> Array:
    """Derivatives [B, T * N, n] of the residuals."""
    size, count = x.shape
    row, column = np.nonzero(free)
    moved = x[row]
    h = step[row, column]
    moved[np.arange(len(row)), column] += h
    tried = rules.take(row)
    tried = tried.of(_of_free(rules.numbers[row], moved, free[row], logits))
    jacobian = np.zeros((size, at.shape[1], count))
    if not len(row):
        return jacobian
    jacobian[row, :, column] = (residuals(simulate, tried, run) - at[row]) / h[:, None]
    return jacobian


def _to_free(numbers: Array, logits: Any) -> Array:
    with np.errstate(all="ignore"):
        x = np.log(numbers)
        for i in logits:
            x[:, i] = np.log(numbers[:, i]) - np.log1p(-numbers[:, i])
    return np.clip(np.nan_to_num(x, nan=-690.0, posinf=690.0, neginf=-690.0), -690, 690)


def _of_free(numbers: Array, x: Array, free: Array, logits: Any) -> Array:
    values = np.exp(x)
    for i in logits:
        values[:, i] = 1 / (1 + np.exp(-np.clip(x[:, i], -690, 36)))
    return np.where(free, values, numbers)
