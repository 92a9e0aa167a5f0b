"""The rule of a box that makes steps: designed gradients, and the same search."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _conclude as conclude
from . import _model as model
from ._calls import Rule
from ._finish import Finding, finish
from ._model import Array, Rules, Run
from ._progress import told
from ._report import Report
from ._search import (
    CLEAR,
    COARSE,
    NEAR,
    RARE,
    SHAPES,
    Fits,
    Option,
    best,
    explained,
    explained_in_float32,
    explore,
    join,
    none,
    polished,
    refined,
    rounds_away,
    search,
    shortest,
    started,
)

Step: TypeAlias = Callable[[Array], Array]
Start: TypeAlias = Callable[[Array], Step]

# Few significant bits, so that every format holds the gradients exactly.
_PATTERN = np.array([0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
_MAGNITUDES = {2.0**-53: (-66, 30), 2.0**-24: (-52, 30), 2.0**-8: (-52, 30), 2.0**-11: (-10, 6)}
_SMALL = 6  # entries of the first experiments
_ASIDE = 2.0**-6  # where parameters begin at most that show weight decay
# How many units of rounding a step is at least beside the parameters of the check.
_SEEN = 2.0**6
_FORGETTING = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3, 1e-4)
_MOMENTA = (0.0, 0.5, 0.9, 0.99)


@told
def identify(optimizer: optax.GradientTransformation | Start) -> Report:
    """Name the rule of an optimizer from what it does to designed gradients.

    A sweep over many magnitudes shows where epsilon stands and where the average starts; parameters
    that are not 0 show weight decay; steps of equal and of different gradients show clipping; a
    longer run measures what is close to 1. All numbers are solved for. Gradients are never 0, and
    never the same twice. A run of other gradients checks what was found.

    Args:
        optimizer: An Optax transformation, or a function `start(params) -> step` with
            `step(gradient) -> new params`: one-dimensional NumPy arrays in and out, float64 or
            float32. Every `start` begins a fresh run.

    Returns:
        A `Report`.

    Raises:
        TypeError: if `optimizer` is neither, or `step` returns another shape or complex numbers.

    Example:
        >>> from optax_rmsprop import dialects, probe
        >>> print(probe.identify(dialects.torch(lr=3e-4, alpha=0.95)).calls[0])
        dialects.torch(lr=0.0003, alpha=0.95, eps=1e-08)
    """
    if isinstance(optimizer, optax.GradientTransformation):
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            return _identified(_of_transformation(optimizer))
    if not callable(optimizer):
        raise TypeError(
            "identify: optimizer must be an Optax transformation or a function start(params) -> "
            f"step, got {type(optimizer).__name__}"
        )
    return _identified(_of_steps(optimizer))


Play: TypeAlias = Callable[[Array, Array], Array]  # params [N], gradients [T, N] -> [T + 1, N]


def _of_transformation(tx: optax.GradientTransformation) -> Play:
    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params: Any, gradients: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]

    def play(params: Array, gradients: Array) -> Array:
        after: Array = np.asarray(
            cast(Any, run)(jnp.asarray(params), jnp.asarray(gradients)), float
        )
        return np.concatenate([params[None], after])

    return play


def _of_steps(start: Start) -> Play:
    def play(params: Array, gradients: Array) -> Array:
        step, after = start(params.copy()), [params]
        for gradient in gradients:
            new = np.array(step(gradient.copy()))  # a box may hand out its own memory
            if new.shape != params.shape or np.iscomplexobj(new):
                raise TypeError(
                    f"identify: step must return real params of shape {params.shape}, got "
                    f"{new.dtype} {new.shape}"
                )
            after.append(new.astype(float))
        return np.stack(after)

    return play


@dataclasses.dataclass(frozen=True)
class _Box:
    """A box, whether its entries depend on each other, and what it rounds to."""

    play: Play
    coupled: bool
    unit: float
    size: float  # of parameters beside which a step is seen, 1 at most
    falls: float = 0.0  # the rate is divided by 1 + falls·count

    @property
    def aside(self) -> float:
        """Where parameters begin that show weight decay."""
        return min(_ASIDE, self.size)

    @functools.cached_property
    def bound(self) -> float:
        """Where the parameters are cut off."""
        return _bound_of_params(self)

    def rates(self, steps: int) -> Array:
        """The rate of each step, relative to that of the first."""
        return 1 / (1 + self.falls * np.arange(steps))

    def run(self, params: Array, gradients: Array) -> Run:
        """A run of each column by itself where the columns would disturb each other."""
        if self.coupled:
            columns = [self.play(params[[i]], gradients[:, [i]]) for i in range(len(params))]
            after, leaf = np.concatenate(columns, 1), np.arange(len(params))
        else:
            after, leaf = self.play(params, gradients), None
        return model.run_of(after, gradients, self.rates(len(gradients)), leaf, self.unit)

    def together(self, params: Array, gradients: Array) -> Run:
        """A run of all columns at once, as one leaf."""
        rates = self.rates(len(gradients))
        return model.run_of(self.play(params, gradients), gradients, rates, None, self.unit)


def _identified(play: Play, falls: float = 0.0) -> Report:
    first = play(np.zeros(_SMALL), _gradients(_SMALL, 6, 0, (0, 0)))
    if not np.isfinite(first[1]).any():
        return conclude.nothing(["the first step gives no finite number"], 2.0**-53)
    if not (first[1:] != 0).any():
        return conclude.nothing(["the parameters do not change"], 2.0**-53)
    unit = conclude.unit_of(first[1:])
    box = _Box(play, _couples(play, unit), unit, _size(first, unit), falls)
    sweep, check = _sweep(box), _check(box)
    found, everything, unit = _explained(box, sweep)
    begins = sweep.moves[0].any()
    if not len(found) and begins and not box.falls and not conclude.is_another(check):
        falls = _falling(box, sweep)
        if falls:
            return _identified(play, falls)
    runs = conclude.with_unit((sweep, _long(box), *_held(box)), unit)
    check = conclude.with_unit(check, unit)
    reasons = conclude.degenerate(found, check) if len(found) else []
    if len(found) and not reasons:
        agreeing = _agreeing(found, box, runs, check)
        if not agreeing:  # the sweep had not asked for the right one
            found = explained(polished(found, runs[0]), runs[0])
            agreeing = _agreeing(found, box, runs, check)
        if agreeing:
            return conclude.report(
                agreeing, unit, lambda finding: conclude.check_error(finding, (check,)),
                ratio=None if box.falls else 1.0,
                written=(lambda rule: _falls(rule, box.falls)) if box.falls else None,
            )  # fmt: skip
    reasons = reasons or conclude.unexplained(everything, check, lambda i: f"entry {i}")
    return conclude.nothing(reasons, unit)


def _agreeing(found: Fits, box: _Box, runs: tuple[Run, ...], check: Run) -> list[Finding]:
    """What explains all runs, and the check."""
    findings = finish(_of_all(found, box), runs) if len(found) else []
    return [finding for finding in findings if conclude.fits_all(finding, check)]


def _falls(rule: Rule, falls: float) -> Rule:
    """The rule with a rate that falls as 1 / (1 + falls·count)."""
    text = f"dialects.InverseTime({rule.lr!r}, {falls!r})"
    return dataclasses.replace(rule, rate=text, largest_rate=rule.lr)


def _falling(box: _Box, sweep: Run) -> float:
    """How fast the rate falls, if it falls as 1 / (1 + falls·count); else 0."""
    few = sweep.columns(np.arange(0, sweep.grads.shape[1], 2))
    option = next(option for option in _options(box, sweep) if not option.rare)
    rules, costs = _starts(few.steps(2), box, sweep, option)
    rows = best(rules, costs, 2, 60)
    fits = Fits(rules.take(rows), np.zeros(0), costs[rows], np.zeros(0))
    for rates in conclude.rates_that_explain(fits, few, 60):
        slowed = rates[0] / rates - 1
        falls = slowed[-1] / (len(slowed) - 1)
        if np.allclose(slowed, falls * np.arange(len(slowed)), rtol=1e-4, atol=64 * box.unit):
            return shortest(falls, falls * (1 - 1e-6), falls * (1 + 1e-6))
    return 0.0


def _size(first: Array, unit: float) -> float:
    """The largest power of 2, up to 1, beside which the steps of a run are seen."""
    step = np.nanmax(np.abs(np.diff(first, axis=0)), initial=0.0, where=np.isfinite(first[1:]))
    return min(1.0, 2.0 ** np.floor(np.log2(step / (_SEEN * unit))))


def _gradients(size: int, steps: int, seed: int, exponents: tuple[int, int]) -> Array:
    """Signs and sizes that never repeat, at magnitudes from one power of 2 to another."""
    rng = np.random.default_rng(seed)
    pattern = rng.choice(_PATTERN, (steps, size)) * rng.choice([-1.0, 1.0], (steps, size))
    powers = np.linspace(*exponents, size).round()
    return pattern * np.exp2(powers)


def _couples(play: Play, unit: float) -> bool:
    """Whether what happens to one entry depends on the gradients of the others."""
    gradients = _gradients(_SMALL, 6, 1, (0, 0))
    disturbed = gradients.copy()
    disturbed[:, 1:] *= -np.exp2(3 if unit == 2.0**-11 else 9)
    disturbed[::2, 1:] *= -1
    alone, other = (play(np.zeros(_SMALL), g)[:, 0] for g in (gradients, disturbed))
    return not np.allclose(alone, other, rtol=64 * unit, atol=0, equal_nan=True)


def _sweep(box: _Box) -> Run:
    """Ten steps at every magnitude from parameters of 0, and at every second from some aside.

    The first gradients of these are those of the columns of the same magnitude that begin at 0.
    """
    low, high = _MAGNITUDES[box.unit]
    count = high - low + 1
    zeros, others = _gradients(count, 10, 2, (low, high)), _gradients(count, 10, 3, (low, high))
    aside = np.concatenate([others[:, ::2], -others[:, ::2]], 1)
    aside[0] = np.tile(zeros[0, ::2], 2)
    beside = np.repeat([box.aside, -box.aside], aside.shape[1] // 2)
    start = np.concatenate([np.zeros(count), beside])
    return box.run(start, np.concatenate([zeros, aside], 1))


def _long(box: _Box) -> Run:
    """Many steps, the first far larger than the rest in some columns: what is forgotten is seen."""
    size, steps = (4, 60) if box.coupled else (12, 160)
    gradients = _gradients(size, steps, 4, (-20, 10) if box.unit != 2.0**-11 else (-4, 4))
    gradients[1:, ::2] *= 2.0**-12 if box.unit != 2.0**-11 else 2.0**-4
    return box.run(np.zeros(size), gradients)


def _held(box: _Box) -> tuple[Run, ...]:
    """Steps from parameters around the bound of theirs, if they have one."""
    if not np.isfinite(box.bound):
        return ()
    sides = np.repeat([1.0, -1.0], 6)
    around = box.bound * np.tile([0.25, 0.9375, 1.0, 1.25, 1.5, 4.0], 2) * sides
    return (box.run(around, _gradients(12, 4, 8, (-6, 2))),)


def _bound_of_params(box: _Box) -> float:
    """The bound at which large parameters are cut off by the first step, or infinity."""
    sizes = np.exp2(np.arange(-12.0, 25.0, 3.0))
    params = sizes * (-1.0) ** np.arange(len(sizes))
    after = np.abs(box.run(params, _gradients(len(sizes), 2, 7, (-6, -6))).params[1])
    first = int(np.flatnonzero(np.append(True, after >= sizes / 2))[-1])  # that is cut off
    if first > len(sizes) - 3:
        return np.inf
    bound = float(after[first])
    # What is added to a parameter to cut it off is rounded as the parameter is.
    room = box.unit * (8 * bound + 2 * sizes)
    if not bound > 0 or (np.abs(after - bound) > room)[first:].any():
        return np.inf
    # It is exact where the parameter is less than twice the bound.
    beside = bound * np.array([1.25, -1.25, 1.5, -1.5])
    near = np.abs(box.run(beside, _gradients(4, 2, 7, (-6, -6))).params[1])
    bound = float(near[0])
    away = float(room[first]) if np.ptp(near) else rounds_away(bound, box.unit)
    return shortest(bound, bound - away, bound + away)


def _check(box: _Box) -> Run:
    """Gradients as a training run may have them."""
    rng = np.random.default_rng(5)
    gradients = _gradients(16, 30, 6, (-13, 5) if box.unit != 2.0**-11 else (-4, 2))
    params = box.size * rng.choice([-1.0, 1.0], 16) * rng.choice(_PATTERN, 16)
    return box.together(params, gradients)


def _explained(box: _Box, sweep: Run) -> tuple[Fits, Fits, float]:
    """What explains the sweep, all that was tried, and the unit by which it was judged."""
    middle = _middle(sweep)
    if not sweep.moves[0].any():  # nothing of the design is seen, as where a rate begins at 0
        near = explore(middle, Option(), COARSE, 24, {}) or none()
        return none(), near, sweep.unit
    few = sweep.columns(np.arange(0, sweep.grads.shape[1], 2)).steps(6)
    tried: dict[Option, Fits] = {}
    least = np.inf
    for option in _options(box, sweep):
        fits = refined(*_starts(few, box, sweep, option), few, sweep, 60)
        if fits is not None:
            found = explained(fits, sweep)
            clear = not option.rare and found.cost.min(initial=np.inf) < CLEAR * least
            if len(found) and (clear or not tried):
                return found, join([*tried.values(), fits]), sweep.unit
            tried[option], least = fits, min(least, fits.cost.min())
    for option, fits in tried.items():
        found = explained(fits, sweep)
        if not len(found) and fits.cost.min() < NEAR:
            tried[option] = join([fits, polished(fits, sweep)])
            found = explained(tried[option], sweep)
        if len(found) or conclude.is_another(middle):
            return found, join(list(tried.values())), sweep.unit
    everything = join([none(), *tried.values()])
    if sweep.unit == 2.0**-53:
        found = explained_in_float32(everything, sweep)
        if len(found):  # or what is there was not fitted to the end
            better = polished(polished(join([found, everything]), sweep), sweep)
            exact = explained(better, sweep)
            return (exact, everything, sweep.unit) if len(exact) else (found, everything, 2.0**-24)
    _, more = search(middle, middle)
    everything = join([everything, polished(more, sweep)])
    return explained(everything, sweep), everything, sweep.unit


def _middle(sweep: Run) -> Run:
    """Columns of magnitudes around 1."""
    size = np.abs(sweep.grads).max(0)
    chosen = np.flatnonzero((size > 2.0**-12) & (size < 2.0**8))
    return sweep.columns(chosen)


def _options(box: _Box, sweep: Run) -> list[Option]:
    """What the first steps show of weight decay, clipping, caution, bounds and direction."""
    still, valid = sweep.params[0] == 0, sweep.valid[0]
    sizes, change = np.abs(sweep.grads[0]), sweep.changes[0]
    large = still & valid & (sizes >= np.median(sizes[still]))
    maximize = bool((np.sign(change[large]) == np.sign(sweep.grads[0, large])).mean() > 0.5)
    clipped = len(_bounds(box)) > 0
    options: list[Option] = []
    for kind in _decays(box, sweep):
        signs = (maximize, not maximize) if kind == model.L2 else (maximize,)
        clips = [model.NO_CLIP]
        if clipped:
            clips = [model.CLIP_BEFORE] + [model.CLIP_AFTER] * (kind == model.L2)
        # A norm that clips couples entries more often than caution beside clipping by value.
        cautions = (not clipped, clipped) if box.coupled else (False,)
        options += [
            Option(kind, clip, caution, rare, sign)
            for rare in (False, True)
            for sign in signs
            for clip in clips
            for caution in cautions
            if not (rare and (caution or clipped))
        ]
    stopped = bool((still & valid & (change == 0)).any())  # as where ε is subtracted
    options.sort(key=lambda option: option.rare != stopped)
    if clipped:
        return options
    # With a decay too small for the first step.
    cautions = (True, False) if box.coupled else (False,)
    unseen = [Option(model.L2, caution=caution, maximize=maximize) for caution in cautions]
    return list(dict.fromkeys([*options, *unseen]))


def _aside(sweep: Run) -> tuple[Array, Array, Array]:
    """First changes of the columns aside [2, n], of those at 0, and their gradients."""
    count = int((sweep.params[0] == 0).sum())
    change = np.where(sweep.valid[0], sweep.changes[0], np.nan)
    return change[count:].reshape(2, -1), change[:count:2], np.abs(sweep.grads[0, :count:2])


def _decays(box: _Box, sweep: Run) -> list[int]:
    """The kinds of weight decay that the first step allows."""
    aside, still, _ = _aside(sweep)
    with np.errstate(all="ignore"):
        rounding = 16 * sweep.unit * (np.abs(still) + box.aside)
        seen = np.isfinite(still) & np.isfinite(aside).all(0)
        difference, rounding = (aside - still)[:, seen], rounding[seen]
    if (np.abs(difference) <= rounding).all():
        return [model.NO_DECAY]
    if (np.ptp(difference, 1) <= 4 * rounding.max(initial=0)).all():
        return [model.DECOUPLED]
    return [model.L2, model.DECOUPLED]


def _weights(box: _Box, sweep: Run) -> Array:
    """L2 decays to begin with: where one turns the first step around, it outweighs the gradient."""
    aside, still, sizes = _aside(sweep)
    with np.errstate(invalid="ignore"):
        turned = sizes[(np.sign(aside) * np.sign(still) < 0).any(0)]
    least = turned.max() if turned.size else sizes.min() / 16
    return least / box.aside * np.array([1.0, 2.5])


def _bounds(box: _Box) -> Array:
    """Bounds of clipping to begin with: above them, a gradient twice as large does as much."""
    low, high = _MAGNITUDES[box.unit]
    sizes = np.exp2(np.arange(low + 2, high + 1, 2.0))
    gradients = np.concatenate([np.outer(row, sizes) for row in ([1, 0.5, 1], [0.5, 0.5, 0.25])], 1)
    gradients = gradients.reshape(2, 3, -1)
    run = box.run(np.zeros(2 * len(sizes)), np.concatenate(list(gradients), 1))
    changes = np.where(run.valid, run.changes, np.nan)
    same: Any = np.isclose(*np.split(changes, 2, 1), rtol=64 * box.unit, atol=0).all(0)
    if not same[-1]:
        return np.zeros(0)
    first = len(same) - int(np.argmin(same[::-1])) if not same.all() else 0
    return sizes[first] * np.array([0.25, 0.15, 0.08])


def _starts(few: Run, box: _Box, sweep: Run, option: Option) -> tuple[Rules, Array]:
    """Numbers to begin with, from where the first step stops to depend on the gradient."""
    crossing, threshold = _crossing(sweep)
    weights = _weights(box, sweep) if option.kind == model.L2 else np.zeros(1)
    bounds = _bounds(box) if option.clip != model.NO_CLIP else np.ones(1)
    numbers: list[Any] = []
    switches: list[Any] = []
    for shape in RARE if option.rare else SHAPES:
        denominator, centered, corrected, _ = shape
        for keep in _FORGETTING:
            size = threshold if denominator == model.SUBTRACTED else crossing
            square = keep * size**2 * (1 - keep if centered else 1) / (keep if corrected else 1)
            inside = denominator in (model.INSIDE, model.SUBTRACTED)
            shares = _splits(square if inside else np.sqrt(square), square / (1 - keep))
            for (eps, scale), weight, bound in itertools.product(shares, weights, bounds):
                numbers.append((1.0, keep, eps, scale, 0.0, weight, bound, box.bound))
                switches.append(shape)
    rules = model.rules(
        numbers, *np.array(switches)[:, :3].T, alone=np.array(switches)[:, 3],
        maximize=option.maximize,
        kind=option.kind, clip=option.clip, caution=option.caution,
    )  # fmt: skip
    buffers = [
        (True, nesterov, momentum)
        for momentum in (_MOMENTA[1:] if option.caution else _MOMENTA)
        for nesterov in ((False,) if option.caution or not momentum else (False, True))
    ]
    chunk = max(1, 50_000 // few.grads.size)
    found = [
        started(rules.take(slice(i, i + chunk)), few, buffers) for i in range(0, len(rules), chunk)
    ]
    return model.concatenate([part[0] for part in found]), np.concatenate([p[1] for p in found])


def _splits(eps: float, scale: float) -> list[tuple[float, float]]:
    """How what a small gradient is divided by can be shared between ε and ν₀."""
    return [(eps, 0.0), (eps, 1e-3 * scale), (1e-2 * eps, scale), (1e-6 * eps, scale),
            (1e-10 * eps, scale), (0.5 * eps, 0.5 * scale)]  # fmt: skip


def _crossing(sweep: Run) -> tuple[float, float]:
    """The gradient above which the first step from 0 stops to grow, and the least that moves."""
    columns = np.flatnonzero((sweep.params[0] == 0) & sweep.valid[0] & (sweep.changes[0] != 0))
    size = np.abs(sweep.grads[0, columns])
    order = np.argsort(size)
    size, step = size[order], np.abs(sweep.changes[0, columns][order])
    slope, height = np.median(step[:3] / size[:3]), np.median(step[-3:])
    crossing = np.clip(height / slope, size[0] * 1e-3, size[-1] * 1e3)
    return float(crossing), float(0.7 * size[0])


def _of_all(found: Fits, box: _Box) -> Fits:
    """The hypotheses for whole leaves: clipping by a norm where entries depend on each other.

    They may do so by caution alone.
    """
    norms = {model.CLIP_BEFORE: model.CLIP_LEAF, model.CLIP_AFTER: model.CLIP_LEAF_AFTER}
    clips = np.isin(found.rules.clip, list(norms))
    if not (box.coupled and clips.any()):
        return found
    clip = np.array([norms.get(clip, clip) for clip in found.rules.clip.tolist()])
    by_norm = dataclasses.replace(found, rules=dataclasses.replace(found.rules, clip=clip))
    return join([by_norm, found.take(clips & found.rules.caution)])
