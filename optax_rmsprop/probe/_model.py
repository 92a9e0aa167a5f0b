"""Many rules on the same recorded run at once, in float64 NumPy.

A hypothesis is a row of switches and a row of numbers. `simulate` gives the changes that each
hypothesis would have made to the recorded parameters, given the recorded parameters of every step:
errors do not add up along a run, and a weight decay sees what it saw.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np

Array = np.ndarray[Any, Any]

INSIDE, OUTSIDE, FLOOR, SUBTRACTED, BOTH = range(5)
NO_DECAY, L2, DECOUPLED, DECOUPLED_UNSCALED, DECOUPLED_SQUARED = range(5)
NO_CLIP, CLIP_BEFORE, CLIP_AFTER, CLIP_LEAF, CLIP_ALL, CLIP_LEAF_AFTER, CLIP_ALL_AFTER = range(7)
NORMS = (CLIP_LEAF, CLIP_ALL, CLIP_LEAF_AFTER, CLIP_ALL_AFTER)
# A clip before the weight decay, and the same after it, which an L2 decay alone tells apart.
AFTER = {CLIP_BEFORE: CLIP_AFTER, CLIP_LEAF: CLIP_LEAF_AFTER, CLIP_ALL: CLIP_ALL_AFTER}
BEFORE = {after: before for before, after in AFTER.items()}

# How many numbers are simulated at once, so that they stay in the cache, and of a step at least.
_AT_ONCE, _A_STEP = 2**15, 400

NUMBERS = ("lr", "decay", "eps", "scale", "momentum", "lambda", "bound", "box")
# A decay is held as what it forgets, 1 − decay: near 1 it keeps few digits of that itself.
LR, FORGETS, EPS, SCALE, MOMENTUM, LAMBDA, BOUND, BOX = range(len(NUMBERS))


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run from its first step on: parameters before and after each step, and gradients.

    `rates` are relative to the number `lr` of a hypothesis. `leaf` numbers the leaf of each column;
    `valid` is False where a step is not to be explained. A sum has g · g, g · p and p · p.
    """

    params: Array  # [T + 1, N]
    grads: Array  # [T, N]
    rates: Array  # [T]
    leaf: Array  # [N]
    valid: Array  # [T, N]
    leaf_sums: Array  # [3, T, N]: of the leaf of each column
    sums: Array  # [3, T, 1]: of all leaves
    unit: float = 2.0**-53  # the unit roundoff of what is computed
    stored: float = 2.0**-53  # and of the parameters
    rounding: Array | None = None  # [T, N]: what it may do to a change, where a rule is at hand

    @functools.cached_property
    def changes(self) -> Array:
        """What each step did to the parameters."""
        return self.params[1:] - self.params[:-1]

    @functools.cached_property
    def leaf_norm(self) -> Array:
        """The norm of the gradient of the leaf of each column [T, N]."""
        return np.sqrt(self.leaf_sums[0])

    @functools.cached_property
    def norm(self) -> Array:
        """The norm of all gradients [T, 1]."""
        return np.sqrt(self.sums[0])

    @functools.cached_property
    def leaves(self) -> tuple[Array, Array, Array, Array]:
        """The columns leaf by leaf, where each leaf begins in them, its size; that of a column."""
        order = np.argsort(self.leaf, kind="stable")
        _, begins, which, sizes = np.unique(
            self.leaf[order], return_index=True, return_inverse=True, return_counts=True
        )
        return order, begins, sizes, which[np.argsort(order, kind="stable")]

    @property
    def moves(self) -> Array:
        """Where there is a change to explain."""
        return self.valid & (self.changes != 0)

    @functools.cached_property
    def scale(self) -> Array:
        """What a residual is measured by: the change, and what rounding leaves of it."""
        if self.rounding is not None:
            return self.rounding
        size = np.abs(self.changes) * self.valid
        largest = size.max(0, initial=0.0)
        floor = 1e-3 * largest + 1e-12 * largest.max(initial=0.0) + 1e-150
        return np.maximum(size, floor) + np.abs(self.params[1:]) / 16

    @functools.cached_property
    def weight(self) -> Array:
        """What a residual is multiplied with: 0 where there is nothing to explain."""
        return self.valid / self.scale

    def steps(self, stop: int) -> "Run":
        """The first steps."""
        return dataclasses.replace(
            self, params=self.params[: stop + 1], grads=self.grads[:stop], rates=self.rates[:stop],
            valid=self.valid[:stop], leaf_sums=self.leaf_sums[:, :stop], sums=self.sums[:, :stop],
            rounding=None,
        )  # fmt: skip

    def columns(self, chosen: Any) -> "Run":
        """Some columns; the norms stay those of all."""
        return dataclasses.replace(
            self, params=self.params[:, chosen], grads=self.grads[:, chosen],
            leaf=self.leaf[chosen], valid=self.valid[:, chosen],
            leaf_sums=self.leaf_sums[..., chosen], rounding=None,
        )  # fmt: skip


def run_of(
    params: Array, grads: Array, rates: Any = None, leaf: Any = None, unit: float = 2.0**-53
) -> Run:
    """A run of these arrays, in which nothing that is not finite has to be explained."""
    steps, size = grads.shape
    leaf = np.zeros(size, int) if leaf is None else np.asarray(leaf)
    finite = np.isfinite(grads) & np.isfinite(params[1:]) & np.isfinite(params[:-1])
    valid = np.logical_and.accumulate(finite)
    params, grads = (np.nan_to_num(x, posinf=0.0, neginf=0.0) for x in (params, grads))
    by_leaf = sums(params[:-1], grads, leaf)
    return Run(
        params, grads, np.ones(steps) if rates is None else np.asarray(rates, float), leaf, valid,
        by_leaf[..., leaf], by_leaf.sum(-1, keepdims=True), unit, unit,
    )  # fmt: skip


def sums(params: Array, grads: Array, leaf: Array) -> Array:
    """The sums [3, T, L] of g · g, g · p and p · p of each leaf."""
    found = np.zeros((3, len(grads), leaf.max(initial=0) + 1))
    with np.errstate(over="ignore"):
        for total, product in zip(found, (grads**2, grads * params, params**2), strict=True):
            np.add.at(total, cast(Any, (slice(None), leaf)), product)
    return found


@dataclasses.dataclass(frozen=True)
class Rules:
    """Hypotheses: switches [B], and numbers [B, len(NUMBERS)]."""

    denominator: Array
    centered: Array
    corrected: Array
    buffer: Array  # the momentum buffer holds steps, and the rate is in it
    nesterov: Array
    maximize: Array
    kind: Array  # of weight decay
    clip: Array
    caution: Array
    alone: Array  # centred and corrected: the first gradient is divided by itself, not by √ε
    numbers: Array

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Any) -> "Rules":
        """The hypotheses of these rows."""
        return Rules(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def of(self, numbers: Array) -> "Rules":
        """The same switches with other numbers."""
        return dataclasses.replace(self, numbers=numbers)

    def replace(self, **switches: Any) -> "Rules":
        """All hypotheses with some switches set."""
        fixed = {name: np.full(len(self), value) for name, value in switches.items()}
        return dataclasses.replace(self, **fixed)

    def switches(self, row: int) -> tuple[Any, ...]:
        """The switches of one hypothesis."""
        return tuple(
            getattr(self, f.name)[row].item()
            for f in dataclasses.fields(self)
            if f.name != "numbers"
        )


def named(number: int, value: Any) -> float:
    """A number of a hypothesis as calls have it."""
    return round(1.0 - float(value), 16) if number == FORGETS else float(value)


def rules(
    numbers: Any,
    denominator: Any = INSIDE,
    centered: Any = False,
    corrected: Any = False,
    buffer: Any = True,
    nesterov: Any = False,
    maximize: Any = False,
    kind: Any = NO_DECAY,
    clip: Any = NO_CLIP,
    caution: Any = False,
    alone: Any = True,
) -> Rules:
    """Hypotheses from numbers [B, n] and switches, which are broadcast."""
    numbers = np.atleast_2d(np.asarray(numbers, float))
    given = (
        denominator, centered, corrected, buffer, nesterov, maximize, kind, clip, caution, alone
    )  # fmt: skip
    types = (int, bool, bool, bool, bool, bool, int, int, bool, bool)
    switches = (
        np.broadcast_to(np.asarray(x, t), len(numbers)) for x, t in zip(given, types, strict=True)
    )
    return Rules(*switches, numbers=numbers)


def concatenate(parts: list[Rules]) -> Rules:
    """The hypotheses of all parts."""
    return Rules(
        *(np.concatenate([getattr(r, f.name) for r in parts]) for f in dataclasses.fields(Rules))
    )


def simulate(rules: Rules, run: Run) -> Array:
    """The change [B, T, N] that each step makes."""
    count, size = run.grads.shape
    rows = max(max(_AT_ONCE // max(count, 1), _A_STEP) // max(size, 1), 1)
    changes = np.empty((len(rules), count, size))
    with np.errstate(all="ignore"):
        for first in range(0, len(rules), rows):
            part = rules.take(slice(first, first + rows))
            changes[first : first + rows] = steps(part, run, *directions(part, run)[:2])
    return changes


def simulate_bounded(rules: Rules, run: Run) -> tuple[Array, Array]:
    """The changes, and a bound of what rounding does to them [B, T, N] each."""
    with np.errstate(all="ignore"):
        g, u, error = directions(rules, run, errors=True)
        changes = steps(rules, run, g, u)
        worst = steps(rules, run, g, u, error)
    return changes, worst


def simulate_rates(rules: Rules, run: Run) -> tuple[Array, Array]:
    """The changes with the rate of each step solved for, and these rates [B, T]."""
    with np.errstate(all="ignore"):
        g, u, _ = directions(rules, run)
        rates = _solved(rules, run, u)
        return steps(rules, run, g, u, rates=rates), rates


def directions(
    rules: Rules, run: Run, errors: bool = False, begun: Any = None
) -> tuple[Array, Array, Any]:
    """Gradients as they are averaged, and what is left of them when divided, [B, T, N] each.

    With `errors` the third value is a bound of the rounding of the second. `begun` [B, N] are
    second moments that are not those of a new state. The first step of a centred and corrected rule
    divides by the rounding of 0: it is what was recorded, as far as that can be.
    """
    eps, initial, limit = (rules.numbers[:, number, None] for number in (EPS, SCALE, BOUND))
    g, coupled = _gradients(rules, run, limit)
    start = np.broadcast_to(initial if begun is None else begun, g[:, 0].shape)
    averages = _averages(rules, g, start)
    under = averages.under_root(rules, g)
    divisor = _divided_by(rules, under, eps[:, None])
    positive = divisor > 0
    u = np.divide(g, divisor, out=np.zeros_like(g), where=positive)
    rough = (~rules.alone & rules.centered & rules.corrected)[:, None]
    any_rough = rough.any() and begun is None
    if not (errors or any_rough):
        return g, u, None
    count = g.shape[1] if errors else 1
    gradient, e_under = _noise(rules, run, g[:, :count], coupled, averages)
    relative = _rounding(rules, under[:, :count], divisor[:, :count], e_under) + 3 * run.unit
    error = np.abs(u[:, :count]) * relative + gradient / divisor[:, :count]
    if any_rough:
        ends = (np.maximum(under[:, 0] + k * e_under[:, 0], 0) for k in (-4, 4))
        first, most = _first(rules, run, g[:, 0], *(_divided_by(rules, x, eps) for x in ends))
        u[:, 0] = np.where(rough, first, u[:, 0])
        most += np.abs(first) * 3 * run.unit + gradient[:, 0] / divisor[:, 0]
        error[:, 0] = np.where(rough, most, error[:, 0])
    if not errors:
        return g, u, None
    error = np.where(positive, error, 0.0)
    return g, u, np.where(_is_edge(rules, under, eps[:, None], e_under), np.inf, error)


@dataclasses.dataclass(frozen=True)
class _Averages:
    """The averages of gradients [B, T, N], after each step."""

    start: Array  # [B, N]: the second moment before the first
    square: Array  # the second moment, the variance where a rule is centred
    mean: Array | None
    seen: Array  # [B, T, 1]: how much of them is of gradients

    def under_root(self, rules: Rules, g: Array) -> Array:
        """What is under the root."""
        if not rules.corrected.any():
            return self.square
        corrected = rules.corrected[:, None, None]
        under = np.where(corrected, self.square / self.seen, self.square)
        alone = (rules.alone & rules.centered & rules.corrected)[:, None]
        first = under[:, 0]
        under[:, 0] = np.where(alone & (first == 0), g[:, 0] ** 2, first)
        return under


def _averages(rules: Rules, g: Array, start: Array) -> _Averages:
    keep, seen = rules.numbers[:, FORGETS, None, None], np.ones((*g.shape[:2], 1))
    if rules.corrected.any():
        seen = _seen(keep, np.arange(1, int(g.shape[1]) + 1)[:, None])
    square, mean = _filtered(keep * (g * g), 1 - keep, start), None
    if rules.centered.any():
        rows = np.flatnonzero(rules.centered)
        mean = np.zeros_like(g)
        mean[rows] = _filtered(keep[rows] * g[rows], 1 - keep[rows])
        square[rows] = _variance(rules.take(rows), g[rows], start[rows], mean[rows], seen[rows])
    return _Averages(start, square, mean, seen)


def _variance(rules: Rules, g: Array, start: Array, mean: Array, seen: Array) -> Array:
    """The variances [B, T, N], from the mean before each gradient; the first has none."""
    keep, corrected = rules.numbers[:, FORGETS, None, None], rules.corrected[:, None, None]
    center, share = np.zeros_like(g), np.where(corrected, 0.0, np.ones_like(seen))
    before = seen[:, :-1]
    center[:, 1:] = mean[:, :-1] / np.where(corrected & (before > 0), before, 1)
    share[:, 1:] = np.where(corrected, before / seen[:, 1:], 1.0)
    return _filtered(keep * (1 - keep) * share * (g - center) ** 2, 1 - keep, start)


def _filtered(x: Array, kept: Array, start: Any = 0.0) -> Array:
    """Sums of x [B, T, N], in its place, of which each step keeps a part [B, 1, 1]."""
    x[:, 0] += kept[:, 0] * start
    for t in range(1, x.shape[1]):
        x[:, t] += kept[:, 0] * x[:, t - 1]
    return x


def _noise(
    rules: Rules, run: Run, g: Array, coupled: Array, averages: _Averages
) -> tuple[Array, Array]:
    """Bounds of what rounding does to the gradients and to what is under the root, [B, T, N]."""
    unit, keep, count = run.unit, rules.numbers[:, FORGETS, None, None], g.shape[1]
    decay, square, size = 1 - keep, averages.square[:, :count], np.abs(g)
    gradient = unit * (size + 2 * coupled[:, None] * np.abs(run.params[:count]))
    before = np.concatenate([averages.start[:, None], square[:, :-1]], 1)
    new = decay * before + keep * (g * g)
    error = _filtered(2 * unit * new + 2 * keep * size * gradient, decay) + 2 * unit * square
    if averages.mean is not None:  # a framework may take its square from the second moment
        mean = averages.mean[:, :count]
        e_mean = _filtered(2 * unit * (np.abs(mean) + keep * size) + keep * gradient, decay)
        of_mean = 2 * np.abs(mean) * e_mean + 4 * unit * mean * mean
        error += rules.centered[:, None, None] * of_mean
    corrected = rules.corrected[:, None, None]
    return gradient, np.where(corrected, error / averages.seen[:, :count], error)


def _seen(keep: Array, n: Array) -> Array:
    """How much of an average from 0 is of its n gradients: 1 − decayⁿ, as frameworks compute it.

    A fit lies between the decays of float64: what rounding takes from 1 − decay is added.
    """
    decay = 1 - keep
    return 1 - decay**n + n * decay ** (n - 1) * (keep - (1 - decay))


def _first(
    rules: Rules, run: Run, gradient: Array, least: Array, most: Array
) -> tuple[Array, Array]:
    """The direction [B, N] of the first step, where the divisor is any between two.

    That which was taken, or the nearest, and what rounding of the parameters does to it.
    """
    lr, _, _, _, mu, weight, _, _ = (x[:, None] for x in rules.numbers.T)
    before, after = run.params[:2]
    rate = lr * run.rates[0]
    share = rate * (1 + np.where(rules.nesterov[:, None], mu, 0.0))
    taken = (before - after - decoupled(rules.kind[:, None], rate, weight) * before) / share
    divided = gradient * np.clip(taken / gradient, 1 / most, 1 / least)
    noise = run.stored * (np.abs(before) + np.abs(after)) / np.abs(share)
    return np.where(gradient == 0, 0.0, divided), noise


def _is_edge(rules: Rules, square: Array, eps: Array, error: Array) -> Array:
    """Where rounding decides whether anything is left to divide by [B, T, N]."""
    subtracts = (rules.denominator == SUBTRACTED)[:, None, None]
    return (np.abs(square - eps) <= 4 * error) & subtracts


def _divided_by(rules: Rules, square: Array, eps: Array) -> Array:
    """What each hypothesis divides by, of the second moment [B, ...] and of ε [B, 1, ...]."""
    kinds = np.unique(rules.denominator).tolist()
    if len(kinds) == 1:
        return _DENOMINATORS[kinds[0]](square, eps)
    result = np.empty_like(square)
    for kind in kinds:
        rows = np.flatnonzero(rules.denominator == kind)
        result[rows] = _DENOMINATORS[kind](square[rows], eps[rows])
    return result


def _rounding(rules: Rules, square: Array, divisor: Array, error: Array) -> Array:
    """A bound of the relative error [B, T, N] of a divisor, from that of the second moment."""
    of_root = error / (np.sqrt(square) + np.sqrt(error) + np.finfo(float).tiny)
    inside = np.isin(rules.denominator, (INSIDE, SUBTRACTED))[:, None, None]
    relative = np.where(inside, error / (2 * divisor), of_root) / divisor
    return np.where(relative < 0.5, relative / (1 - np.minimum(relative, 0.5)), np.inf)


def _gradients(rules: Rules, run: Run, bound: Array) -> tuple[Array, Array]:
    """What enters the averages [B, T, N]: clipped, with its weight decay.

    In memory the steps come first, so that what belongs to one of them lies together.
    """
    g = run.grads[:, None] * np.where(rules.maximize, -1.0, 1.0)[:, None]
    g = g.transpose(1, 0, 2)
    bound = bound[:, None]
    coupled = np.where(rules.kind == L2, rules.numbers[:, LAMBDA], 0.0)[:, None]
    _clip(rules, run, g, bound, (CLIP_BEFORE, CLIP_LEAF, CLIP_ALL))
    if coupled.any():
        g = g + coupled[:, None] * run.params[:-1]
    _clip(rules, run, g, bound, (CLIP_AFTER, CLIP_LEAF_AFTER, CLIP_ALL_AFTER), coupled)
    return g, coupled


def _clip(
    rules: Rules, run: Run, g: Array, bound: Array, kinds: tuple[int, ...], coupled: Any = None
) -> None:
    """Clip gradients in place: by value, by the norms of leaves, by that of all; of these kinds."""
    by_value, by_leaf, _ = kinds
    for kind in np.unique(rules.clip[np.isin(rules.clip, kinds)]):
        rows = rules.clip == kind
        if kind == by_value:
            g[rows] = np.clip(g[rows], -bound[rows], bound[rows])
            continue
        norm = run.leaf_norm if kind == by_leaf else run.norm
        if coupled is not None:
            weight, total = coupled[rows][:, None], run.leaf_sums if kind == by_leaf else run.sums
            # The sign of the gradient beside that of its decay.
            signed = np.where(rules.maximize[rows], -1.0, 1.0)[:, None, None] * weight
            square = total[0] + 2 * signed * total[1] + weight**2 * total[2]
            norm = np.sqrt(np.maximum(square, 0.0))
        g[rows] *= bound[rows] / np.maximum(norm, bound[rows])


def steps(
    rules: Rules, run: Run, g: Array, u: Array, error: Any = None, rates: Any = None
) -> Array:
    """The changes [B, T, N] that the directions make: momentum, rate, decay, and bounds.

    With `error`, the errors of the directions, a bound of the error of each change in its place.
    `rates` [B, T] are those of each hypothesis, where they are not those of the run.
    """
    lr, _, _, _, mu, weight, _, box = (x[:, None, None] for x in rules.numbers.T)
    rate = lr * run.rates[:, None] if rates is None else rates[..., None]
    inside, nesterov = (x[:, None, None] for x in (rules.buffer, rules.nesterov))
    within, without = np.where(inside, rate, 1.0), np.where(inside, 1.0, rate)
    into, p, turns = within * u, run.params[:-1], mu.any()
    step = buffer = _filtered(into.copy("K"), mu) if turns else into
    if turns and rules.nesterov.any():
        step = np.where(nesterov, into + mu * buffer, buffer)
    if rules.caution.any():
        taken: Array = step * g > 0
        share = np.maximum(_leaf_mean(taken, run), 1e-3)
        cautious = rules.caution[:, None, None] & (mu > 0)
        step = np.where(cautious, step * taken / share, step)
    change: Array = -without * step
    if (rules.kind >= DECOUPLED).any():
        change -= decoupled(rules.kind[:, None, None], rate, weight) * p
    boxed = np.isfinite(box)
    if boxed.any():
        change = np.where(boxed, np.clip(p + change, -box, box) - p, change)
    if error is None:
        return change
    e_into: Array = np.abs(within) * error
    e_buffer: Array = e_into + 2 * run.unit * np.abs(buffer)
    for t in range(1, len(p)):
        e_buffer[:, t] += _times(mu[:, 0], e_buffer[:, t - 1])
    e_step: Array = np.where(nesterov, e_into + _times(mu, e_buffer), e_buffer)
    e_step = np.abs(without) * e_step + 2 * run.unit * np.abs(change)
    return e_step + run.stored * (np.abs(p) + np.abs(run.params[1:]))


def _times(mu: Array, error: Array) -> Array:
    """What momentum keeps of an error, nothing of one without bound where it is 0."""
    return np.where(mu == 0, 0.0, mu * error)


def _solved(rules: Rules, run: Run, u: Array) -> Array:
    """The rate [B, T] of each step that explains it best, by least squares."""
    mu, inside = rules.numbers[:, MOMENTUM, None], rules.buffer[:, None]
    buffer, rates, weight = np.zeros_like(u[:, 0]), np.empty(u.shape[:2]), run.weight**2
    for t in range(u.shape[1]):
        rate = _rate(rules, run.changes[t], run.params[t], weight[t], u[:, t], buffer)
        rates[:, t] = rate[:, 0]
        buffer = mu * buffer + np.where(inside, rate, 1.0) * u[:, t]
    return rates


def _rate(
    rules: Rules, observed: Array, params: Array, weight: Array, u: Array, buffer: Array
) -> Array:
    """The rate [B, 1] of one step that explains it best."""
    mu, inside = rules.numbers[:, MOMENTUM, None], rules.buffer[:, None]
    ahead = np.where(rules.nesterov[:, None], mu, 0.0)
    old = mu * buffer
    fixed = np.where(inside, np.where(rules.nesterov[:, None], mu, 1.0) * old, 0.0)
    free = np.where(inside, (1 + ahead) * u, np.where(ahead > 0, u + mu * (old + u), old + u))
    lost = rules.numbers[:, LAMBDA, None] * params  # by a decoupled decay
    free = free + np.where(rules.kind[:, None] == DECOUPLED, lost, 0.0)
    fixed = fixed + np.where(rules.kind[:, None] == DECOUPLED_UNSCALED, lost, 0.0)
    along = -((observed + fixed) * free * weight).sum(1, keepdims=True)
    return np.nan_to_num(along / (free * free * weight).sum(1, keepdims=True))


def squares(rules: Rules, divisor: Array) -> Array:
    """The second moments [B, N] that hypotheses divide by as by this, NaN where there is none."""
    kind, eps = rules.denominator[:, None], rules.numbers[:, EPS, None]
    root = np.where(kind == OUTSIDE, divisor - eps, divisor)
    square = root**2 + np.select([kind == INSIDE, kind == SUBTRACTED], [-eps, eps], 0.0)
    told = (root > 0) & (kind != BOTH)
    return np.where(told, np.maximum(square, 0.0), np.nan)


_DENOMINATORS: dict[int, Callable[[Array, Array], Array]] = {
    INSIDE: lambda square, eps: np.sqrt(square + eps),
    OUTSIDE: lambda square, eps: np.sqrt(square) + eps,
    FLOOR: lambda square, eps: np.maximum(np.sqrt(square), eps),
    SUBTRACTED: lambda square, eps: np.sqrt(np.maximum(square - eps, 0)),
    BOTH: lambda square, eps: np.sqrt(square + eps) + eps,
}


def decoupled(kind: Array, rate: Array, weight: Array) -> Array:
    """The share of a parameter that a step takes."""
    return np.where(kind >= DECOUPLED, weight, 0.0) * rate ** _SCALED_BY[kind]


# The power of the rate by which a decay is scaled.
_SCALED_BY = np.array([0, 0, 1, 0, 2])


def _leaf_mean(values: Array, run: Run) -> Array:
    order, begins, sizes, which = run.leaves
    return (np.add.reduceat(values[..., order], begins, -1, float) / sizes)[..., which]
