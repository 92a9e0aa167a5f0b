"""Links that frameworks have inside their optimizers: scaling, clipping, caution, complex parts.

They keep no state of their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ._numerics import by_parts, map_leaves, scale, transformation, wide, widen


class _Leafwise(NamedTuple):
    name: str
    leaf: Callable[..., jax.Array]
    argument: float


class _ByNorm(NamedTuple):
    norm: float
    together: bool


class _Inner(NamedTuple):
    inner: optax.GradientTransformationExtraArgs


def multiply(factor: float) -> optax.GradientTransformationExtraArgs:
    """Multiply each gradient: by -1 to climb, by 1/n for a sum over n examples."""
    return _leafwise("multiply", scale, factor)


def clip(bound: float) -> optax.GradientTransformationExtraArgs:
    """Clip each entry to [-bound, bound]."""
    return _leafwise("clip", _clip, bound)


def clip_by_norm(norm: float, together: bool) -> optax.GradientTransformationExtraArgs:
    """Shorten each gradient, or all of them together, to at most a length.

    returns g · c / max(‖g‖, c)
    """
    return transformation("clip_by_norm", _init_nothing, _update_by_norm, _ByNorm(norm, together))


def clip_weights(bound: float) -> optax.GradientTransformationExtraArgs:
    """End a step so that no parameter leaves [-bound, bound].

    returns clip(p + u) − p
    """
    return transformation("clip_weights", _init_nothing, _update_clip_weights, (bound,))


def cautious(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Take only the entries of a step that go against the gradient, and make up for the others.

        returns u · M / max(mean(M), 10⁻³),    M = [u·g < 0]

    The mean is taken over each leaf. Source: Liang et al., Cautious Optimizers, arXiv 2411.16085,
    2024.
    """
    hyper = _Inner(optax.with_extra_args_support(inner))
    return transformation("cautious", _init_inner, _update_cautious, hyper)


def split_complex(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Treat the real and the imaginary part of a complex parameter as two real ones.

    The state is that of `inner` for parameters with a last axis of two in place of complex ones.
    """
    hyper = _Inner(optax.with_extra_args_support(inner))
    return transformation("split_complex", _init_split, _update_split, hyper)


def _leafwise(
    name: str, leaf: Callable[..., jax.Array], argument: float
) -> optax.GradientTransformationExtraArgs:
    return transformation(name, _init_nothing, _update_leafwise, _Leafwise(name, leaf, argument))


def _init_nothing(hyper: Any, params: optax.Params) -> optax.EmptyState:
    del hyper, params
    return optax.EmptyState()


def _update_leafwise(
    hyper: _Leafwise,
    updates: optax.Updates,
    state: optax.EmptyState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.EmptyState]:
    del params, extra_args

    def leaf(g: jax.Array) -> tuple[jax.Array]:
        return (hyper.leaf(g.astype(wide(g.dtype)), hyper.argument),)

    (updates,) = map_leaves(hyper.name, leaf, updates)
    return updates, state


def _clip(g: jax.Array, bound: float) -> jax.Array:
    return by_parts(lambda part: jnp.clip(part, -bound, bound), g)


def _update_by_norm(
    hyper: _ByNorm,
    updates: optax.Updates,
    state: optax.EmptyState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.EmptyState]:
    del params, extra_args
    leaves = [g for g in jax.tree.leaves(updates) if jnp.issubdtype(g.dtype, jnp.inexact)]
    together = _norm(leaves) if hyper.together else None

    def leaf(g: jax.Array) -> tuple[jax.Array]:
        norm = _norm([g]) if together is None else together
        g = g.astype(wide(g.dtype))
        return (scale(g, hyper.norm / jnp.maximum(norm, hyper.norm)),)

    (updates,) = map_leaves("clip_by_norm", leaf, updates)
    return updates, state


def _norm(leaves: list[jax.Array]) -> jax.Array:
    norm: Callable[[jax.Array], jax.Array] = cast(Any, jnp.linalg).norm
    norms = [norm(g.astype(wide(g.dtype))) for g in leaves]
    widest = jnp.float64 if any(n.dtype == jnp.float64 for n in norms) else jnp.float32
    return norm(jnp.array([n.astype(widest) for n in norms], widest))


def _update_clip_weights(
    hyper: tuple[float],
    updates: optax.Updates,
    state: optax.EmptyState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.EmptyState]:
    del extra_args
    if params is None:
        raise ValueError("clip_weights: needs update(grads, state, params)")
    (bound,) = hyper

    def leaf(u: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = u.astype(wide(u.dtype))
        at = widen(jnp.asarray(p), u)
        return _clip(at + u, bound) - at, p

    updates, _ = map_leaves("clip_weights", leaf, updates, params, signed=True)
    return updates, state


def _init_inner(hyper: _Inner, params: optax.Params) -> optax.OptState:
    return hyper.inner.init(params)


def _update_cautious(
    hyper: _Inner,
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    steps, state = hyper.inner.update(updates, state, params, **extra_args)

    def leaf(u: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        against = (u * jnp.conj(widen(g, u))).real < 0
        taken = against.astype(u.real.dtype)
        share = jnp.mean(taken) if u.size else jnp.ones([], taken.dtype)
        return scale(u, taken / jnp.maximum(share, 1e-3)), g

    steps, _ = map_leaves("cautious", leaf, steps, updates)
    return steps, state


def _init_split(hyper: _Inner, params: optax.Params) -> optax.OptState:
    return hyper.inner.init(jax.tree.map(_as_real, params))


def _update_split(
    hyper: _Inner,
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    reals, params = jax.tree.map(_as_real, (updates, params))
    reals, state = hyper.inner.update(reals, state, params, **extra_args)
    return jax.tree.map(_as_complex, reals, updates), state


def _as_real(x: Any) -> Any:
    if not jnp.issubdtype(_dtype(x), jnp.complexfloating):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*x.shape, 2), cast(Any, jnp.finfo(x.dtype)).dtype)
    x = jnp.asarray(x)
    return jnp.stack([x.real, x.imag], axis=-1)


def _as_complex(real: Any, like: Any) -> Any:
    if not jnp.issubdtype(_dtype(like), jnp.complexfloating):
        return real
    return jax.lax.complex(real[..., 0], real[..., 1])


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
