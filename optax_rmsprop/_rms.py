"""The second moment, and the division by its root. Nothing else in the package takes a root of it.

    ν ← β·ν + (1−β)·|g|²                                  scale_by_rms
    V ← β·(V + (1−β)·|g−μ|²),  μ ← μ + (1−β)·(g−μ)        scale_by_stddev
    u = g / √(ν+ε)   or   g / (√ν+ε)                      or any function of ν and ε

V equals ν − μ² in exact arithmetic, and is a sum of squares: rounding cannot make it negative.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._numerics import (
    Hyperparameter,
    accumulators_like,
    by_parts,
    check_state,
    checked,
    increment,
    map_leaves,
    scale,
    transformation,
    value_at,
    widen,
)

Root: TypeAlias = Callable[[jax.Array], jax.Array]
Denominator: TypeAlias = Callable[[Root, jax.Array, jax.Array], jax.Array]


class ScaleByRmsState(NamedTuple):
    """The state of `scale_by_rms`."""

    count: jax.Array  # int32 []: updates made so far
    nu: optax.Updates  # real, >= float32, like the parameters: average of |g|²


class ScaleByStddevState(NamedTuple):
    """The state of `scale_by_stddev`; `var + |mu|²` is the second moment of `scale_by_rms`.

    With bias correction both averages are stored as they are before the correction, and the second
    moment is `var + |mu|² / (1 - decay**count)`.
    """

    count: jax.Array  # int32 []: updates made so far
    mu: optax.Updates  # >= float32, like the parameters: average of g
    var: optax.Updates  # real, >= float32, like the parameters: average of |g - mu|²


class _Hyperparameters(NamedTuple):
    decay: Hyperparameter
    eps: Hyperparameter
    initial_scale: ArrayLike
    eps_in_sqrt: bool | Denominator
    bias_correction: bool


def scale_by_rms(
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | Denominator = True,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide each gradient by the root of an average of its squares.

        ν ← β·ν + (1−β)·|g|²,    u = g / √(ν+ε)    or, with eps outside,    u = g / (√ν+ε)

    No update is larger than 1/√(1−β), unless |g|² underflows and ε is smaller still. 0/0 is 0: a
    zero gradient gives a zero update, also with ε = 0. Gradients saturate at 2⁶² (float32) or 2⁵¹⁰
    (float64), an infinite one too, so that ν stays finite and decays. A NaN gradient gives a NaN
    update and is not averaged.

    Every number but `initial_scale` may be a schedule, called with 0 at the first update.

    Args:
        decay: β in [0, 1), the weight of the past; the average remembers about 1/(1−β) steps.
        eps: ε >= 0, in units of |g|² inside the root and of |g| outside. Coordinates whose squares
            are far below it are scaled by a constant, as in SGD.
        initial_scale: ν before the first step, >= 0. PyTorch and Keras start at 0, which makes the
            first steps large (3.2 at β = 0.9); TensorFlow 1 starts at 1, which makes them small.
        eps_in_sqrt: Add ε to ν (TensorFlow, Keras), not to the root of ν (PyTorch). Any other
            denominator is a function `(root, nu, eps) -> denominator`, as in
            `lambda root, nu, eps: jnp.maximum(root(nu), eps)`.
        bias_correction: Divide ν by 1−βᵗ before its root is taken, as Adam does.

    Returns:
        A transformation with the state `ScaleByRmsState(count, nu)`. Updates have the gradients'
        dtypes; `nu` is real, at least float32, and shaped and sharded like the parameters.

    Raises:
        ValueError: if a number is out of its range, or a gradient's shape or tree is not init's.
        TypeError: if a hyperparameter is no scalar, or a gradient is not floating point.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> tx = optax_rmsprop.scale_by_rms(decay=0.75, eps=0.0)
        >>> updates, state = tx.update(jnp.array([4.0, 0.0]), tx.init(jnp.zeros(2)))
        >>> print(state.nu, updates)  # 0.25 * 4**2 = 4, and 4 / sqrt(4)
        [4. 0.] [2. 0.]

    Source: Hinton, Coursera lecture 6e, 2012.
    """
    hyper = _checked("scale_by_rms", decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    return transformation("scale_by_rms", _init_rms, _update_rms, hyper)


def scale_by_stddev(
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | Denominator = True,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide each gradient by an average of its standard deviation (centred RMSprop).

        V ← β·(V + (1−β)·|g−μ|²),    μ ← μ + (1−β)·(g−μ),    u = g / √(V+ε)

    The arguments, errors and guarantees are those of `scale_by_rms`, but for the bound: a gradient
    that does not change has no variance, and then ε alone limits the step, to |g|/√ε (or |g|/ε).
    With bias correction the first step, where one sample has no variance either and nothing was
    given as `initial_scale`, divides by |g|.

    Returns:
        A transformation with the state `ScaleByStddevState(count, mu, var)`. It holds the variance
        itself, not the second moment: `nu - mu²` cancels, and turns to NaN, in finite precision.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> tx = optax_rmsprop.scale_by_stddev(decay=0.5, eps=0.0)
        >>> updates, state = tx.update(jnp.array(8.0), tx.init(jnp.array(0.0)))
        >>> print(state.mu, state.var, updates)  # 8/2, 8²/4, 8/sqrt(16)
        4.0 16.0 2.0

    Source: Graves, Generating Sequences With Recurrent Neural Networks, 2013, equations 38-41.
    """
    hyper = _checked("scale_by_stddev", decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    return transformation("scale_by_stddev", _init_stddev, _update_stddev, hyper)


def _checked(
    link: str,
    decay: Any,
    eps: Any,
    initial_scale: Any,
    eps_in_sqrt: bool | Denominator,
    bias_correction: bool,
) -> _Hyperparameters:
    return _Hyperparameters(
        checked(link, "decay", decay, below=1.0),
        checked(link, "eps", eps),
        checked(link, "initial_scale", initial_scale, schedule=False),
        eps_in_sqrt,
        bias_correction,
    )


def _init_rms(hyper: _Hyperparameters, params: optax.Params) -> ScaleByRmsState:
    nu = accumulators_like(params, hyper.initial_scale, real=True)
    return ScaleByRmsState(count=jnp.zeros([], jnp.int32), nu=nu)


def _update_rms(
    hyper: _Hyperparameters,
    updates: optax.Updates,
    state: ScaleByRmsState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, ScaleByRmsState]:
    del params, extra_args
    check_state("scale_by_rms", state, ScaleByRmsState)
    decay = value_at("scale_by_rms", hyper, "decay", state.count)
    eps = value_at("scale_by_rms", hyper, "eps", state.count)
    count = increment(state.count)
    correction = _correction(decay, count) if hyper.bias_correction else 1.0

    def leaf(g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = _saturate(widen(g, nu))
        nu = jnp.where(g == g, _average(nu, _abs_sq(g), decay), nu)
        return _divide(g, scale(nu, 1 / correction), eps, hyper.eps_in_sqrt), nu

    updates, nu = map_leaves("scale_by_rms", leaf, updates, state.nu)
    return updates, ScaleByRmsState(count, nu)


def _init_stddev(hyper: _Hyperparameters, params: optax.Params) -> ScaleByStddevState:
    var = accumulators_like(params, hyper.initial_scale, real=True)
    return ScaleByStddevState(jnp.zeros([], jnp.int32), accumulators_like(params), var)


def _update_stddev(
    hyper: _Hyperparameters,
    updates: optax.Updates,
    state: ScaleByStddevState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, ScaleByStddevState]:
    del params, extra_args
    check_state("scale_by_stddev", state, ScaleByStddevState)
    decay = value_at("scale_by_stddev", hyper, "decay", state.count)
    eps = value_at("scale_by_stddev", hyper, "eps", state.count)
    count = increment(state.count)
    first = state.count == 0
    correction, weight = 1.0, _inverse(decay)
    if hyper.bias_correction:
        # The corrected mean was mu / before, and before is 0 at the first step, as mu is.
        correction, before = _correction(decay, count), _correction(decay, state.count)
        weight = jnp.where(first, 0.0, weight * correction / jnp.where(first, 1.0, before))

    def leaf(g: jax.Array, mu: jax.Array, var: jax.Array) -> tuple[jax.Array, ...]:
        g = _saturate(widen(g, mu))
        kept = g == g
        mu = jnp.where(kept, _average(mu, g, decay), mu)
        # From the mean as it is stored, so that no other is kept: g − μ is β times what it was.
        deviation = _abs_sq(g - scale(mu, 1 / correction))
        var = jnp.where(kept, _average(var, scale(deviation, weight), decay), var)
        square = scale(var, 1 / correction)
        if hyper.bias_correction:
            square = jnp.where(first & (square == 0), _abs_sq(g), square)
        return _divide(g, square, eps, hyper.eps_in_sqrt), mu, var

    updates, mu, var = map_leaves(
        "scale_by_stddev", leaf, updates, state.mu, state.var, signed=True
    )
    return updates, ScaleByStddevState(count, mu, var)


def eps_inside(root: Root, square: jax.Array, eps: jax.Array) -> jax.Array:
    """√(ν+ε)."""
    return root(square + eps)


def eps_outside(root: Root, square: jax.Array, eps: jax.Array) -> jax.Array:
    """√ν+ε."""
    return root(square) + eps


def eps_floor(root: Root, square: jax.Array, eps: jax.Array) -> jax.Array:
    """max(√ν, ε)."""
    return jnp.maximum(root(square), eps)


def eps_subtracted(root: Root, square: jax.Array, eps: jax.Array) -> jax.Array:
    """√(ν−ε); 0, and so no step, where ν is smaller."""
    return root(jnp.maximum(square - eps, 0))


def _divide(
    g: jax.Array, square: jax.Array, eps: ArrayLike, eps_in_sqrt: bool | Denominator
) -> jax.Array:
    """The one place that takes the root and divides; 0/0 is 0, and so is its derivative."""
    if not callable(eps_in_sqrt):
        eps_in_sqrt = eps_inside if eps_in_sqrt else eps_outside
    denominator = eps_in_sqrt(_sqrt, square, jnp.asarray(eps, square.dtype))
    # Divided by the largest number nothing is left, and no infinity is there for a debugger.
    largest = jnp.asarray(np.finfo(denominator.dtype).max, denominator.dtype)
    divisor = jnp.where(denominator == 0, largest, denominator)
    return by_parts(lambda part: part / divisor, g)


def _sqrt(x: jax.Array) -> jax.Array:
    """The root, with derivative 0 at 0: what it multiplies there, d|g|²/dg, is 0."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def _average(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
    """β·old + (1−β)·new, as a step from the one that weighs more: the weights add up to 1 exactly.

    Rounded apart, β and 1−β do not, and a long average is off by their difference over 1−β.
    """
    from_old, from_new = old + scale(new - old, 1 - decay), new + scale(old - new, decay)
    if isinstance(decay, float):
        return from_old if decay >= 0.5 else from_new
    return jnp.where(decay >= 0.5, from_old, from_new)


def _inverse(decay: Any) -> Any:
    """1/β, or 0 where β is so small that β·(g − μ) is lost in the rounding of μ."""
    least = 2.0**-20
    if isinstance(decay, float):
        return 1 / decay if decay >= least else 0.0
    return jnp.where(decay >= least, 1 / jnp.maximum(decay, least), 0.0)


def _abs_sq(x: jax.Array) -> jax.Array:
    return x.real * x.real + x.imag * x.imag if jnp.iscomplexobj(x) else x * x


def _saturate(g: jax.Array) -> jax.Array:
    """Bound |g| so that no sum of squares of two of them overflows."""
    limit = 2.0 ** (np.finfo(g.dtype).maxexp // 2 - 2)
    return by_parts(lambda part: jnp.clip(part, -limit, limit), g)


def _correction(decay: Any, count: jax.Array) -> jax.Array:
    """1 - decay**count, without the cancellation when decay is near 1."""
    steps = count.astype(jnp.result_type(float))
    return jnp.where(count == 0, 0.0, -jnp.expm1(steps * jnp.log1p(decay - 1)))
