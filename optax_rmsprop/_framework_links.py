"""Links that frameworks have inside their optimizers: scaling, clipping, caution, complex parts.

They keep no state of their own. `dialects` has them for users, with the dialects made of them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _rule as rule
from ._link import Step, Treewise, link, parts_of, whole_of
from ._run import Leafwise, Part, Rule
from ._tree import dtype_of, is_gradient, map_leaves, widen


@link(optax.EmptyState, "dialects")
def multiply(factor: float) -> Leafwise:
    """Multiply each gradient: by -1 to climb, by 1/n for a sum over n examples."""

    def step(g: jax.Array) -> jax.Array:
        return rule.scale(g, factor)

    return _stateless(step)


@link(optax.EmptyState, "dialects")
def clip(bound: float) -> Leafwise:
    """Clip each entry to [-bound, bound]."""

    def step(g: jax.Array) -> jax.Array:
        return _clip(g, bound)

    return _stateless(step)


@link(optax.EmptyState, "dialects")
def clip_weights(bound: float) -> Leafwise:
    """End a step so that no parameter leaves [-bound, bound].

    returns clip(p + u) − p
    """

    def inputs(params: optax.Params | None) -> tuple[optax.Params]:
        if params is None:
            raise ValueError("clip_weights: needs update(grads, state, params)")
        return (params,)

    def step(u: jax.Array, p: jax.Array) -> jax.Array:
        at = widen(p, u.dtype)
        return _clip(at + u, bound) - at

    return _stateless(step, inputs)


@link(optax.EmptyState, "dialects")
def clip_by_norm(norm: float, together: bool) -> Treewise:
    """Shorten each gradient, or all of them together, to at most a length.

    returns g · c / max(‖g‖, c)
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        leaves = [g for g in jax.tree.leaves(updates) if _is_inexact(g)]
        whole = rule.norm([rule.finite(widen(g)) for g in leaves]) if together else None

        def leaf(g: jax.Array) -> jax.Array:
            g = rule.finite(widen(g))
            return _shortened(g, rule.norm([g]) if whole is None else whole, norm)

        return map_leaves("clip_by_norm", leaf, updates), state

    return Treewise(_init, update)


@link(optax.EmptyState, "dialects")
def adaptive_clip_by_norm(clipping: float, eps: float = 1e-3) -> Treewise:
    """Shorten each gradient to at most a share of the length of its parameter.

    returns g · c / max(‖g‖, c),    c = clipping · max(‖p‖, ε)

    The lengths are of whole leaves, as DreamerV3 has them; `optax.adaptive_grad_clip` takes those
    of the units of a layer. A leaf of zeros may get gradients as long as clipping · ε.
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        if params is None:
            raise ValueError("adaptive_clip_by_norm: needs update(grads, state, params)")

        def leaf(g: jax.Array, p: jax.Array) -> jax.Array:
            g, p = rule.finite(widen(g)), rule.finite(widen(jnp.asarray(p)))
            length, unit = rule.norm([p])
            length = jnp.minimum(length / unit, np.finfo(length.dtype).max)
            return _shortened(g, rule.norm([g]), clipping * jnp.maximum(length, eps))

        return map_leaves("adaptive_clip_by_norm", leaf, updates, params), state

    return Treewise(_init, update)


def _shortened(g: jax.Array, norm: tuple[jax.Array, jax.Array], most: Any) -> jax.Array:
    """A gradient, or a part of one, whose norm in a unit is this, at most so long."""
    length, unit = norm
    # A bound that overflows bounds nothing, and is not to divide another.
    most = jnp.minimum(jnp.asarray(most, length.dtype), np.finfo(length.dtype).max)
    return rule.scale(rule.scale(g, unit), most / jnp.maximum(length, unit * most))


@link(tuple, "dialects")
def cautious(inner: optax.GradientTransformation) -> Treewise:
    """Take only the entries of a step that go against the gradient, and make up for the others.

        returns u · M / max(mean(M), 10⁻³),    M = [u·g < 0]

    The mean is taken over each leaf. Source: Liang et al., Cautious Optimizers, arXiv 2411.16085,
    2024.
    """

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        found = parts_of(inner.update, updates, state, count)
        return found if found is None else [*found, _caution(len(found))]

    def whole(state: Any, states: Iterator[Any]) -> Any:
        state = whole_of(inner.update, state, states)
        next(states)  # that of the caution, which is empty
        return state

    def lead(step: Step, updates: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
        steps, state = step.take(inner, updates, state)
        return map_leaves("cautious", _against, steps, updates), state

    return Treewise(inner.init, lead=lead, parts=parts, whole=whole)


def _caution(span: int) -> Part:
    """Caution as a link of the chain, whose step needs what came in so many links before."""
    return Part("cautious", _stateless(_against), (), optax.EmptyState(), {}, span=span)


def _against(u: jax.Array, g: jax.Array) -> jax.Array:
    against = (u * jnp.conj(widen(g, u.dtype))).real < 0
    taken = against.astype(u.real.dtype)
    share = jnp.mean(taken) if u.size else jnp.ones([], taken.dtype)
    return rule.scale(u, taken / jnp.maximum(share, 1e-3))


@link(tuple, "dialects")
def split_complex(inner: optax.GradientTransformation) -> Treewise:
    """Treat the real and the imaginary part of a complex parameter as two real ones.

    The state is that of `inner` for parameters with a last axis of two in place of complex ones.
    """

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(jax.tree.map(_as_real, params))

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        """Those of the inner transformation, where nothing is complex."""
        if any(jnp.issubdtype(dtype_of(g), jnp.complexfloating) for g in jax.tree.leaves(updates)):
            return None
        return parts_of(inner.update, updates, state, count)

    def whole(state: Any, states: Iterator[Any]) -> Any:
        return whole_of(inner.update, state, states)

    def lead(step: Step, updates: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
        reals, params = jax.tree.map(_as_real, (updates, step.params))
        reals, state = dataclasses.replace(step, params=params).take(inner, reals, state)
        return jax.tree.map(_as_complex, reals, updates), state

    return Treewise(init, lead=lead, parts=parts, whole=whole)


def _init(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _stateless(step: Callable[..., Any], inputs: Callable[[Any], Any] | None = None) -> Leafwise:
    def update(at: Any) -> Rule:
        del at
        return Rule(step)

    return Leafwise(_init, update, inputs, signed=inputs is not None)


def _clip(g: jax.Array, bound: float) -> jax.Array:
    return rule.by_parts(lambda part: jnp.clip(part, -bound, bound), g)


def _is_inexact(g: Any) -> bool:
    return is_gradient(g) and jnp.issubdtype(dtype_of(g), jnp.inexact)


def _as_real(x: Any) -> Any:
    if not jnp.issubdtype(dtype_of(x), jnp.complexfloating):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*x.shape, 2), cast(Any, jnp.finfo(x.dtype)).dtype)
    x = jnp.asarray(x)
    return jnp.stack([x.real, x.imag], axis=-1)


def _as_complex(real: Any, like: Any) -> Any:
    if not jnp.issubdtype(dtype_of(like), jnp.complexfloating):
        return real
    return jax.lax.complex(real[..., 0], real[..., 1])
