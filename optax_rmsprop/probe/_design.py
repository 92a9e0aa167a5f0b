"""The rule of a box that makes steps: designed gradients, and the same search."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _conclude as conclude
from . import _model as model
from ._finish import finish
from ._model import BOX, DECAY, EPS, LAMBDA, LR, SCALE, Array, Rules, Run
from ._report import Report
from ._search import SHAPES, Fits, Option, best, explained, fitted, join, polished, search, started

Step: TypeAlias = Callable[[Array], Array]
Start: TypeAlias = Callable[[Array], Step]

# Few significant bits, so that every format holds the gradients exactly.
_PATTERN = np.array([0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
_MAGNITUDES = {2.0**-53: (-66, 30), 2.0**-24: (-52, 30), 2.0**-8: (-52, 30), 2.0**-11: (-10, 6)}
_FORGETTING = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3, 1e-4)
_MOMENTA = (0.0, 0.5, 0.9, 0.99)


def identify(optimizer: optax.GradientTransformation | Start) -> Report:
    """Name the rule of an optimizer from what it does to designed gradients.

    A sweep over many magnitudes shows where epsilon stands, and where the average starts; parameters
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
        after = np.asarray(run(jnp.asarray(params), jnp.asarray(gradients)), float)
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

    def run(self, params: Array, gradients: Array) -> Run:
        """A run of each column by itself where the columns would disturb each other."""
        if self.coupled:
            columns = [self.play(params[[i]], gradients[:, [i]]) for i in range(len(params))]
            after, leaf = np.concatenate(columns, 1), np.arange(len(params))
        else:
            after, leaf = self.play(params, gradients), None
        return model.run_of(after, gradients, None, leaf, self.unit)

    def together(self, params: Array, gradients: Array) -> Run:
        """A run of all columns at once, as one leaf."""
        return model.run_of(self.play(params, gradients), gradients, None, None, self.unit)


def _identified(play: Play) -> Report:
    first = play(np.zeros(6), _gradients(6, 3, 0, (0, 0)))
    if not np.isfinite(first[1]).any():
        return conclude.nothing(["the first step gives no finite number"], 2.0**-53)
    if not (first[1:] != 0).any():
        return conclude.nothing(["the parameters do not change"], 2.0**-53)
    unit = conclude.unit_of(first[1:])
    box = _Box(play, _couples(play, unit), unit)
    sweep, long = _sweep(box), _long(box)
    found, everything, unit = _explained(box, sweep)
    sweep, long = conclude.with_unit((sweep, long), unit)
    check = conclude.with_unit(_check(box), unit)
    if not len(found):
        return conclude.nothing(_reasons(everything, sweep, long, check), unit)
    none = conclude.degenerate(found, check)
    if none:
        return conclude.nothing(none, unit)
    findings = finish(_of_all(found, box), (sweep, long))
    agreeing = [f for f in findings if conclude.fits_all(f, check)]
    if not agreeing:
        return conclude.nothing(_reasons(everything, sweep, long, check), unit)
    return conclude.report(
        agreeing, unit, lambda finding: conclude.check_error(finding, (check,))
    )


def _reasons(everything: Fits, sweep: Run, long: Run, check: Run) -> list[str]:
    del sweep, long
    return conclude.unexplained(everything, check, lambda column: f"entry {column}")


def _gradients(size: int, steps: int, seed: int, exponents: tuple[int, int]) -> Array:
    """Signs and sizes that never repeat, at magnitudes from one power of 2 to another."""
    rng = np.random.default_rng(seed)
    pattern = rng.choice(_PATTERN, (steps, size)) * rng.choice([-1.0, 1.0], (steps, size))
    powers = np.linspace(*exponents, size).round()
    return pattern * np.exp2(powers)


def _couples(play: Play, unit: float) -> bool:
    """Whether what happens to one entry depends on the gradients of another."""
    gradients = _gradients(2, 6, 1, (0, 0))
    disturbed = gradients.copy()
    disturbed[:, 1] *= -np.exp2(3 if unit == 2.0**-11 else 9) * np.sign(gradients[:, 0])
    alone, other = (play(np.zeros(2), g)[:, 0] for g in (gradients, disturbed))
    return not np.allclose(alone, other, rtol=64 * unit, atol=0, equal_nan=True)


def _sweep(box: _Box) -> Run:
    """Ten steps at every magnitude, from parameters of 0 and from others."""
    low, high = _MAGNITUDES[box.unit]
    count = high - low + 1
    zeros = _gradients(count, 10, 2, (low, high))
    others = _gradients(2 * (count // 3), 10, 3, (low, high))
    start = np.concatenate([np.zeros(count), np.resize([1.0, -1.0, 2.0**-8, -(2.0**-8)],
                                                       others.shape[1])])  # fmt: skip
    return box.run(start, np.concatenate([zeros, others], 1))


def _long(box: _Box) -> Run:
    """Many steps, the first far larger than the rest in some columns: what is forgotten is seen."""
    size, steps = (4, 60) if box.coupled else (12, 160)
    gradients = _gradients(size, steps, 4, (-20, 10) if box.unit != 2.0**-11 else (-4, 4))
    gradients[1:, ::2] *= 2.0**-12 if box.unit != 2.0**-11 else 2.0**-4
    return box.run(np.zeros(size), gradients)


def _check(box: _Box) -> Run:
    """Gradients as a training run may have them."""
    rng = np.random.default_rng(5)
    gradients = _gradients(16, 30, 6, (-13, 5) if box.unit != 2.0**-11 else (-4, 2))
    return box.together(rng.choice([-1.0, 1.0], 16) * rng.choice(_PATTERN, 16), gradients)


def _explained(box: _Box, sweep: Run) -> tuple[Fits, Fits, float]:
    """What explains the sweep, all that was tried, and the unit by which it was judged."""
    tried: list[Fits] = []
    for option in _options(box, sweep):
        rules, costs = _starts(sweep, option)
        rows = best(rules, costs, 2, 60)
        early = fitted(rules.take(rows), sweep, 8)
        rows = best(early.rules, early.cost, 1, 40)
        fits = fitted(early.rules.take(rows), sweep, 30)
        for fits in (fits, join([fits, polished(fits, sweep)])):
            found = explained(fits, sweep)
            if len(found):
                return found, fits, sweep.unit
        tried.append(fits)
    everything = join(tried)
    if sweep.unit == 2.0**-53:
        for unit in (2.0**-24, 2.0**-11, 2.0**-8):
            found = explained(everything, conclude.with_unit(sweep, unit))
            if len(found):
                return found, everything, unit
    found, more = search(_middle(sweep), _middle(sweep))
    if len(found):
        found = explained(fitted(found.rules, sweep, 60, found.free), sweep)
    return found, join([everything, more]), sweep.unit


def _middle(sweep: Run) -> Run:
    """Columns of magnitudes around 1."""
    size = np.abs(sweep.grads).max(0)
    chosen = np.flatnonzero((size > 2.0**-12) & (size < 2.0**8))
    return sweep.columns(chosen)


def _options(box: _Box, sweep: Run) -> list[Option]:
    """What the first steps show of weight decay, clipping, caution, bounds and direction."""
    still = sweep.params[0] == 0
    sizes, change = np.abs(sweep.grads[0]), sweep.changes[0]
    valid = sweep.valid[0]
    large = still & valid & (sizes >= np.median(sizes[still]))
    maximize = bool((np.sign(change[large]) == np.sign(sweep.grads[0, large])).mean() > 0.5)
    held = np.abs(sweep.params[1:][sweep.valid[:]])
    boxed = bool(
        np.abs(sweep.params[1][valid & ~still]).max(initial=0) < 0.9
        and np.isclose(held, held.max(initial=0), rtol=8 * sweep.unit).sum() > 5
    )
    kinds = _decays(box, sweep)
    clipped = _clips(box)
    kinds = kinds if clipped is None else kinds
    options = []
    for kind in kinds:
        signs = (maximize, not maximize) if kind == model.L2 else (maximize,)
        clips = [model.NO_CLIP]
        if clipped:
            clips = [model.CLIP_BEFORE] + [model.CLIP_AFTER] * (kind == model.L2)
        cautions = (True, False) if box.coupled and not clipped else (False,)
        options += [
            Option(kind, clip, caution, boxed, rare, sign)
            for rare in (False, True)
            for sign in signs
            for clip in clips
            for caution in cautions
            if not (rare and (caution or clipped))
        ]
    return sorted(options, key=lambda option: option.rare)


def _decays(box: _Box, sweep: Run) -> list[int]:
    """The kinds of weight decay that the first step allows."""
    low, high = _MAGNITUDES[box.unit]
    size = (high - low) // 2 + 1
    gradients = np.abs(_gradients(size, 1, 7, (low, high)))
    moved = []
    for start in (0.0, 2.0**-6, -(2.0**-6)):
        run = box.run(np.full(size, start), gradients)
        moved.append(np.where(run.valid[0], run.changes[0], np.nan))
    with np.errstate(all="ignore"):
        rounding = 16 * box.unit * (np.abs(moved[0]) + 2.0**-6)
        differences = [moved[1] - moved[0], moved[2] - moved[0]]
    finite = np.isfinite(differences[0]) & np.isfinite(differences[1])
    if all((np.abs(d[finite]) <= rounding[finite]).all() for d in differences):
        return [model.NO_DECAY]
    first = differences[0][finite]
    if np.ptp(first) <= 4 * rounding[finite].max():
        return [model.DECOUPLED]
    return [model.L2, model.DECOUPLED]


def _clips(box: _Box) -> bool:
    """Whether of two large gradients the larger does as much: then their sizes are lost."""
    top = np.exp2(_MAGNITUDES[box.unit][1])
    gradients = np.array([[1.0, 1.0], [0.5, 0.25], [1.0, 0.5]]) * top
    changes = box.run(np.zeros(2), gradients).changes
    return bool(np.allclose(changes[:, 0], changes[:, 1], rtol=64 * box.unit, atol=0))


def _starts(sweep: Run, option: Option) -> tuple[Rules, Array]:
    """Numbers to begin with, from where the first step stops to depend on the gradient."""
    crossing = _crossing(sweep)
    parts = []
    weights = np.exp2(np.arange(-40, 11, 3.0)) if option.kind == model.L2 else [0.0]
    bounds = np.exp2(np.arange(-24, 25, 2.0)) if option.clip != model.NO_CLIP else [1.0]
    several = len(weights) > 1 and len(bounds) > 1
    forgetting = (0.3, 0.05, 3e-3) if several else _FORGETTING
    box = np.abs(sweep.params[1:][sweep.valid]).max() if option.boxed else np.inf
    from ._search import RARE

    for denominator, centered, corrected in RARE if option.rare else SHAPES:
        for keep in forgetting:
            gain = keep * (1 - keep if centered else 1) / (keep if corrected else 1)
            square = gain * crossing**2
            inside = denominator in (model.INSIDE, model.SUBTRACTED)
            epsilon = square if inside else np.sqrt(square)
            for eps, scale in _splits(epsilon, square / (1 - keep)):
                for weight in weights:
                    for bound in bounds:
                        numbers = np.zeros(len(model.NUMBERS))
                        numbers[[LR, DECAY, EPS, SCALE]] = 1.0, 1 - keep, eps, scale
                        numbers[[LAMBDA, model.BOUND, BOX]] = weight, bound, box
                        parts.append((denominator, centered, corrected, numbers))
    switches = [np.array(x) for x in zip(*[part[:3] for part in parts], strict=True)]
    rules = model.rules(
        np.array([part[3] for part in parts]), *switches, maximize=option.maximize,
        kind=option.kind, clip=option.clip, caution=option.caution,
    )  # fmt: skip
    buffers = [
        (True, nesterov, momentum)
        for momentum in _MOMENTA
        for nesterov in (False, True)
        if not (nesterov and (momentum == 0 or option.caution))
        and not (option.caution and momentum == 0)
    ]
    few = sweep.columns(np.arange(0, sweep.grads.shape[1], 2 if len(rules) < 3000 else 4)).steps(6)
    chunk = max(1, 300_000 // few.grads.size)
    found = [
        started(rules.take(slice(i, i + chunk)), few, buffers) for i in range(0, len(rules), chunk)
    ]
    return model.concatenate([part[0] for part in found]), np.concatenate([p[1] for p in found])


def _splits(eps: float, scale: float) -> list[tuple[float, float]]:
    """How what a small gradient is divided by can be shared between ε and ν₀."""
    return [(eps, 0.0), (eps, 1e-3 * scale), (1e-2 * eps, scale), (1e-6 * eps, scale),
            (1e-10 * eps, scale), (0.5 * eps, 0.5 * scale)]  # fmt: skip


def _crossing(sweep: Run) -> float:
    """The gradient above which the first step from 0 stops to grow with it."""
    columns = np.flatnonzero((sweep.params[0] == 0) & sweep.valid[0] & (sweep.changes[0] != 0))
    size = np.abs(sweep.grads[0, columns])
    order = np.argsort(size)
    size, step = size[order], np.abs(sweep.changes[0, columns][order])
    slope, height = np.median(step[:3] / size[:3]), np.median(step[-3:])
    crossing = height / slope
    return float(np.clip(crossing, size[0] * 1e-3, size[-1] * 1e3))


def _of_all(found: Fits, box: _Box) -> Fits:
    """The hypotheses for whole leaves: clipping by a norm where entries depend on each other."""
    clips = found.rules.clip == model.CLIP_BEFORE
    if box.coupled and clips.any():
        rules = dataclasses.replace(
            found.rules, clip=np.where(clips, model.CLIP_LEAF, found.rules.clip)
        )
        return dataclasses.replace(found, rules=rules)
    return found


