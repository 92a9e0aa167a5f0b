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

Root: TypeAlias = Callable[[jax.Array], jax.Array]
Denominator: TypeAlias = Callable[[Root, jax.Array, jax.Array], jax.Array]


def average(
    old: jax.Array, x: jax.Array, decay: Any, of: Callable[[jax.Array], jax.Array] = lambda x: x
) -> jax.Array:
    """β·old + (1−β)·of(x), or the old average where that, or β, is NaN.

    It is a step from the one that weighs more, so that the weights add up to 1 exactly. Rounded
    apart, β and 1−β do not, and a long average is off by their difference over 1−β.
    """
    new, known = of(x), decay.plain if isinstance(decay, Settable) else 0.0
    change = new - old
    decay, rest = weights(decay)
    from_old, from_new = old + scale(change, rest), new - scale(change, decay)
    if isinstance(decay, float):
        step = from_old if decay >= 0.5 else from_new
    elif isinstance(known, float) and known >= 0.5:
        # As with the constant, the new value is used once, or its product would be rounded.
        is_small = jnp.where(decay < 0.5, 1.0, 0.0)
        base = scale(old, 1 - is_small) + of(scale(x, is_small))
        step = base + scale(change, jnp.where(decay < 0.5, -decay, rest))
    else:
        step = jnp.where(decay >= 0.5, from_old, from_new)
    # The change is NaN where the new value is, and sharded as the average is.
    return jax.lax.select((change == change) & (decay == decay), step, old)


def variance(
    old: jax.Array, g: jax.Array, mean: jax.Array, decay: Any, weight: ArrayLike = 1.0
) -> jax.Array:
    """β·(V + (1−β)·|g−μ|²), from the mean as it is stored, in which g is averaged already.

    There g − μ is β times what it was. `weight` is a further factor of the deviation.
    """
    factor = weight * inverse(decay)
    return average(old, g - mean, decay, lambda deviation: scale(abs_sq(deviation), factor))


def momentum(buffer: jax.Array, u: jax.Array, decay: ArrayLike) -> jax.Array:
    """μ·b + u, or the old buffer where that is not finite."""
    new = u + scale(buffer, decay)
    return jax.lax.select(jnp.isfinite(new), new, buffer)


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
    largest = jnp.asarray(np.finfo(denominator.dtype).max, denominator.dtype)
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


def correction(decay: Any, count: jax.Array) -> jax.Array:
    """1 - decay**count, without the cancellation when decay is near 1."""
    steps = jnp.maximum(count, 1).astype(jnp.result_type(float))

    def near_one(rest: Any) -> jax.Array:
        return -jnp.expm1(steps * jnp.log1p(-rest))  # of 1 infinite, without a derivative

    def corrected(decay: Any, rest: Any) -> Any:
        if isinstance(decay, float):
            return near_one(rest) if decay >= 0.5 else 1 - decay**steps
        safe = jnp.where(decay >= 0.5, rest, 0.5)
        return jnp.where(decay >= 0.5, near_one(safe), 1 - decay**steps)

    return jnp.where(count == 0, 0.0, weights(decay, corrected))


def inverse(decay: Any) -> Any:
    """1/β, or 0 where β is so small that β·(g − μ) is lost in the rounding of μ."""
    least = 2.0**-20

    def inverted(decay: Any, rest: Any) -> Any:
        del rest
        if isinstance(decay, float):
            return 1 / decay if decay >= least else 0.0
        return jnp.where(decay >= least, 1 / jnp.maximum(decay, least), 0.0)

    return weights(decay, inverted)


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


@jax.tree_util.register_pytree_node_class
class Settable:
    """A hyperparameter as its call has it, and as a state has set it, if it has.

    What is made of a number is made of both apart, and then chosen. A constant that is not set is
    thus folded in double precision, as where it cannot be set.
    """

    def __init__(self, plain: Any, is_set: jax.Array, value: jax.Array, rest: jax.Array):
        self.plain, self.is_set = plain, is_set
        self.value, self.rest = value, rest  # 1 − value, rounded once

    def chosen(self, plain: Any, value: Any) -> Any:
        """What was made of the number that holds, of both that were made."""

        def choice(plain: Any, value: Any) -> jax.Array:
            return jnp.where(self.is_set, value, plain)

        return jax.tree.map(choice, plain, value)

    def __jax_array__(self) -> jax.Array:
        return self.chosen(self.plain, self.value)

    def __neg__(self) -> jax.Array:
        return self.chosen(-self.plain, -self.value)

    def tree_flatten(self) -> tuple[tuple[Any, ...], float | None]:
        """What is known of a number, which is a Python float then, is no leaf."""
        known = isinstance(self.plain, float)
        leaves = (None if known else self.plain, self.is_set, self.value, self.rest)
        return leaves, self.plain if known else None

    @classmethod
    def tree_unflatten(cls, known: float | None, leaves: Any) -> "Settable":
        """The number again."""
        return cls(leaves[0] if known is None else known, *leaves[1:])


def _both(decay: Any, rest: Any) -> Any:
    return decay, rest


def weights(decay: Any, of: Callable[[Any, Any], Any] = _both) -> Any:
    """What a function makes of β and 1−β."""
    if not isinstance(decay, Settable):
        return of(decay, 1 - decay)
    return decay.chosen(of(decay.plain, 1 - decay.plain), of(decay.value, decay.rest))


def minus_product(a: Any, b: Any) -> Any:
    """−a·b."""
    if isinstance(a, Settable):
        return a.chosen(minus_product(a.plain, b), minus_product(a.value, b))
    return b.chosen(-a * b.plain, -a * b.value) if isinstance(b, Settable) else -a * b
