"""The rule, as functions of arrays: no tree, no state and no check is here.

    ν ← β·ν + (1−β)·|g|²                                  average(ν, |g|²)
    V ← β·(V + (1−β)·|g−μ|²),  μ ← μ + (1−β)·(g−μ)        average(μ, g), variance(V, g, μ)
    u = g / √(ν+ε)   or   g / (√ν+ε)                      divide, with any denominator of ν and ε
    b ← μ·b + u                                           momentum
    ‖g‖ = √Σ|g|²                                          norm

V equals ν − μ² in exact arithmetic, and is a sum of squares: rounding cannot make it negative.
No other module takes a root, and `divide` alone divides by that of a second moment.

What is not a number is not kept: an average stays as it is where a NaN comes in, and so does a
momentum buffer where the sum is not finite. A gradient saturates before it is squared.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._settable import of_both

Root: TypeAlias = Callable[[jax.Array], jax.Array]
Denominator: TypeAlias = Callable[[Root, jax.Array, jax.Array], jax.Array]


def average(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
    """β·old + (1−β)·new, or the old average where the new value, or β, is NaN.

    From β = 1/2 on it is a step from the old average, so that the weights add up to 1 exactly.
    Rounded apart, β and 1−β do not, and a long average is off by their difference over 1−β.
    """
    is_step = decay >= 0.5
    change = new - either(is_step, old, jnp.zeros_like(old))
    average = either(is_step, old, scale(old, decay)) + scale(change, 1 - decay)
    kept = change == change  # NaN where the new value is, and sharded as the average is
    if not isinstance(decay, float):
        kept = kept & (decay == decay)
    return jax.lax.select(kept, average, old)


def either(condition: Any, yes: jax.Array, no: jax.Array) -> jax.Array:
    """`jnp.where`, of which a condition that is known leaves nothing in the program."""
    if isinstance(condition, bool | np.bool_):
        return yes if condition else no
    return jnp.where(condition, yes, no)


def variance(
    old: jax.Array, g: jax.Array, mean: jax.Array, decay: Any, weight: ArrayLike = 1.0
) -> jax.Array:
    """β·(V + (1−β)·|g−μ|²), from the mean as it is stored, in which g is averaged already.

    There g − μ is β times what it was. `weight` is a further factor of the deviation.
    """
    return average(old, scale(abs_sq(g - mean), weight * inverse(decay)), decay)


def momentum(buffer: jax.Array, u: jax.Array, decay: ArrayLike) -> jax.Array:
    """μ·b + u, or the old buffer where that is not finite."""
    return finite_or(buffer, u + scale(buffer, decay))


def finite_or(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new value, or the old one where that is not finite."""
    return jax.lax.select(jnp.isfinite(new), new, old)


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


DENOMINATORS = (eps_inside, eps_outside, eps_floor, eps_subtracted)


def divide(
    g: jax.Array, square: jax.Array, eps: ArrayLike, eps_in_sqrt: bool | Denominator
) -> jax.Array:
    """G over the root of its square and ε; 0/0 is 0, and so is its derivative."""
    if not callable(eps_in_sqrt):
        eps_in_sqrt = eps_inside if eps_in_sqrt else eps_outside
    denominator = eps_in_sqrt(_sqrt, square, jnp.asarray(eps, square.dtype))
    # Divided by the largest number nothing is left, and no infinity is there for a debugger.
    largest = np.finfo(denominator.dtype).max
    divisor = jnp.where(denominator == 0, largest, denominator)
    return by_parts(lambda part: jax.lax.clamp(-largest, _quotient(part, divisor), largest), g)


@jax.custom_jvp
def _quotient(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """The quotient, whose derivative does not square the divisor: the square can underflow."""
    return x / divisor


@_quotient.defjvp
def _(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    quotient, divisor = _quotient(*primals), primals[1]
    # 0 where the largest number stands for 0: a GPU has the subnormal number that would be left.
    kept = jnp.where(divisor < np.finfo(divisor.dtype).max, 1, 0).astype(divisor.dtype)
    return quotient, (tangents[0] - quotient * tangents[1]) / divisor * kept


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    """The root, with derivative 0 at 0: what it multiplies there, d|g|²/dg, is 0."""
    return jnp.sqrt(x)


@_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    root = _sqrt(*primals)
    zero = root == 0
    return root, tangents[0] * jnp.where(zero, 0, 0.5 / jnp.where(zero, 1, root))


@of_both
def correction(decay: Any, count: jax.Array) -> jax.Array:
    """1 - decay**count, without the cancellation when decay is near 1."""
    steps = jnp.maximum(count, 1).astype(jnp.result_type(float))

    def near_one(decay: Any) -> jax.Array:
        return -jnp.expm1(steps * jnp.log1p(decay - 1))  # of 0 infinite, without a derivative

    if isinstance(decay, float):
        value = near_one(decay) if decay >= 0.5 else 1 - decay**steps
    else:
        value = jnp.where(
            decay >= 0.5, near_one(jnp.where(decay >= 0.5, decay, 0.5)), 1 - decay**steps
        )
    return jnp.where(count == 0, 0.0, value)


@of_both
def inverse(decay: Any) -> Any:
    """1/β, or 0 where β is so small that β·(g − μ) is lost in the rounding of μ."""
    least = 2.0**-20
    if isinstance(decay, float):
        return 1 / decay if decay >= least else 0.0
    return jnp.where(decay >= least, 1 / jnp.maximum(decay, least), 0.0)


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|², which is real."""
    return x.real * x.real + x.imag * x.imag if jnp.iscomplexobj(x) else x * x


def finite(g: jax.Array) -> jax.Array:
    """A gradient with the largest number in place of infinity."""
    largest = np.finfo(g.dtype).max
    return by_parts(lambda part: jax.lax.clamp(-largest, part, largest), g)


@jax.custom_jvp
def norm(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The norm of finite leaves together in a unit, and the unit: 1, or less if squares overflow.

    The derivative of the norm of zeros is 0.
    """
    dtype = np.result_type(np.float32, *(g.real.dtype for g in leaves))
    zero, small = dtype.type(0), dtype.type(2.0 ** -(np.finfo(dtype).maxexp // 2 + 16))

    def squares(g: jax.Array) -> list[jax.Array]:
        # One reduction gives both sums, so that a leaf is read once.
        both = [abs_sq(x).astype(dtype) for x in (g, scale(g, small))]
        return jax.lax.reduce(both, [zero, zero], _added, tuple(range(g.ndim)))

    sums = [squares(g) for g in leaves]
    whole, in_small = (sum((x[i] for x in sums), start=jnp.zeros([], dtype)) for i in (0, 1))
    fits = whole < np.inf
    return jnp.sqrt(jnp.where(fits, whole, in_small)), jnp.where(fits, dtype.type(1), small)


@norm.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> Any:
    (leaves,), (moved,) = primals, tangents
    length, unit = norm(leaves)
    share = jnp.where(length == 0, 0, unit / jnp.where(length == 0, 1, length))
    along = [
        jnp.sum((scale(g, share) * jnp.conj(scale(t, unit))).real).astype(length.dtype)
        for g, t in zip(leaves, moved, strict=True)
    ]
    return (length, unit), (sum(along, start=jnp.zeros_like(length)), jnp.zeros_like(unit))


def _added(a: Any, b: Any) -> Any:
    return [x + y for x, y in zip(a, b, strict=True)]


def saturate(g: jax.Array) -> jax.Array:
    """Bound |g| so that no sum of squares of two of them overflows."""
    info = np.finfo(g.dtype)
    limit = info.dtype.type(2.0 ** (info.maxexp // 2 - 2))
    return by_parts(lambda part: jax.lax.clamp(-limit, part, limit), g)


def scale(x: jax.Array, factor: ArrayLike) -> jax.Array:
    """`factor * x` in the dtype of `x`, for a real factor."""
    return by_parts(lambda part: jnp.asarray(factor, part.dtype) * part, x)


def by_parts(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply a real function; to the real and imaginary part apart if `x` is complex."""
    return jax.lax.complex(f(x.real), f(x.imag)) if jnp.iscomplexobj(x) else f(x)
