"""The other links of a chain: momentum, the learning rate, decoupled weight decay."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._numerics import (
    Hyperparameter,
    accumulators_like,
    check_state,
    checked,
    increment,
    map_leaves,
    narrow,
    scale,
    transformation,
    value_at,
    wide,
    widen,
)

Mask: TypeAlias = Any | Callable[[optax.Params], Any]


class TraceState(NamedTuple):
    """The state of `trace`."""

    count: jax.Array  # int32 []: updates made so far
    trace: optax.Updates  # >= float32, like the parameters: the momentum buffer


class ScaleByLearningRateState(NamedTuple):
    """The state of `scale_by_learning_rate`."""

    count: jax.Array  # int32 []: updates made so far
    learning_rate: jax.Array  # float []: the rate that the last update used


class AddDecayedWeightsState(NamedTuple):
    """The state of `add_decayed_weights`."""

    count: jax.Array  # int32 []: updates made so far


class _Trace(NamedTuple):
    decay: Hyperparameter
    nesterov: bool


class _LearningRate(NamedTuple):
    learning_rate: Hyperparameter


class _DecayedWeights(NamedTuple):
    weight_decay: Hyperparameter
    learning_rate: Hyperparameter | None
    mask: Mask | None


def trace(decay: Hyperparameter, nesterov: bool = False) -> optax.GradientTransformationExtraArgs:
    """Add up past updates with decaying weights: momentum.

        b ← μ·b + u,    returns b,    or with Nesterov's form    u + μ·b

    After `scale_by_learning_rate` the buffer holds steps (TensorFlow, Keras, Optax); before it the
    buffer holds directions (PyTorch). The two agree only while the rate is constant.

    Args:
        decay: μ in [0, 1), the weight of the past; a lasting direction is amplified by 1/(1−μ). A
            number or a schedule.
        nesterov: Return what the buffer will be one step ahead if the direction lasts.

    Returns:
        A transformation with the state `TraceState(count, trace)`. Updates have the dtypes of what
        comes in; `trace` is at least float32, complex for complex parameters. What is not finite
        passes through and is not kept.

    Raises:
        ValueError, TypeError: as `scale_by_rms`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> tx = optax_rmsprop.trace(0.5)
        >>> state = tx.init(jnp.array(0.0))
        >>> for _ in range(3):
        ...     update, state = tx.update(jnp.array(1.0), state)
        >>> print(update)  # 1 + 0.5 + 0.25
        1.75

    Source: Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum in
    deep learning, 2013.
    """
    decay = checked("trace", "decay", decay, below=1.0)
    return transformation("trace", _init_trace, _update_trace, _Trace(decay, nesterov))


def scale_by_learning_rate(learning_rate: Hyperparameter) -> optax.GradientTransformationExtraArgs:
    """Multiply by minus the learning rate, and keep the rate in the state.

        returns −η·u

    Args:
        learning_rate: η >= 0, a number or a schedule called with 0 at the first update. To climb,
            negate the loss.

    Returns:
        A transformation with the state `ScaleByLearningRateState(count, learning_rate)`, the same
        tree for a number and a schedule. The rate there is the one just used, to be read and
        logged; before the first update it is the rate to come.

    Raises:
        ValueError, TypeError: as `scale_by_rms`.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> tx = optax_rmsprop.scale_by_learning_rate(lambda count: 0.5 / (1 + count))
        >>> state = tx.init(jnp.array(0.0))
        >>> for _ in range(2):
        ...     update, state = tx.update(jnp.array(2.0), state)
        >>> print(update, optax.tree.get(state, "learning_rate"))
        -0.5 0.25
    """
    learning_rate = checked("scale_by_learning_rate", "learning_rate", learning_rate)
    return transformation(
        "scale_by_learning_rate",
        _init_learning_rate,
        _update_learning_rate,
        _LearningRate(learning_rate),
    )


def add_decayed_weights(
    weight_decay: Hyperparameter,
    learning_rate: Hyperparameter | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Add a share of the parameters to a gradient, or take it from a finished step.

        returns g + λ·p    or, with a learning rate,    u − η·λ·p

    Without a rate it stands first: L2 regularisation, whose gradient is averaged and divided with
    the rest. With one it stands last: decoupled weight decay, which enters no buffer.

    Args:
        weight_decay: λ >= 0, a number or a schedule.
        learning_rate: η, the rate of the chain that it ends.
        mask: True where weights decay: a tree of booleans, a prefix of one, or a function from the
            parameters to it. None is True everywhere.

    Returns:
        A transformation with the state `AddDecayedWeightsState(count)`.

    Raises:
        ValueError: if `update` gets no `params`, and as `scale_by_rms`.
        TypeError: as `scale_by_rms`.
    """
    weight_decay = checked("add_decayed_weights", "weight_decay", weight_decay)
    if learning_rate is not None:
        learning_rate = checked("add_decayed_weights", "learning_rate", learning_rate)
    return transformation(
        "add_decayed_weights",
        _init_decayed_weights,
        _update_decayed_weights,
        _DecayedWeights(weight_decay, learning_rate, mask),
    )


def chain(*links: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Apply links in order, as `optax.chain` does, and round half precision once, at the end."""
    return transformation(
        "chain", _init_chain, _update_chain, tuple(map(optax.with_extra_args_support, links))
    )


def _init_trace(hyper: _Trace, params: optax.Params) -> TraceState:
    del hyper
    return TraceState(count=jnp.zeros([], jnp.int32), trace=accumulators_like(params))


def _update_trace(
    hyper: _Trace,
    updates: optax.Updates,
    state: TraceState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, TraceState]:
    del params, extra_args
    check_state("trace", state, TraceState)
    decay = value_at("trace", hyper, "decay", state.count)

    def leaf(u: jax.Array, buffer: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = widen(u, buffer)
        new = u + scale(buffer, decay)
        out = u + scale(new, decay) if hyper.nesterov else new
        return out, jnp.where(jnp.isfinite(new), new, buffer)

    updates, buffers = map_leaves("trace", leaf, updates, state.trace, signed=True)
    return updates, TraceState(increment(state.count), buffers)


def _init_learning_rate(hyper: _LearningRate, params: optax.Params) -> ScaleByLearningRateState:
    del params
    count = jnp.zeros([], jnp.int32)
    rate = value_at("scale_by_learning_rate", hyper, "learning_rate", count)
    return ScaleByLearningRateState(count, _rate(rate))


def _update_learning_rate(
    hyper: _LearningRate,
    updates: optax.Updates,
    state: ScaleByLearningRateState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, ScaleByLearningRateState]:
    del params, extra_args
    check_state("scale_by_learning_rate", state, ScaleByLearningRateState)
    rate = value_at("scale_by_learning_rate", hyper, "learning_rate", state.count)

    def leaf(u: jax.Array) -> tuple[jax.Array]:
        return (scale(u.astype(wide(u.dtype)), -rate),)

    (updates,) = map_leaves("scale_by_learning_rate", leaf, updates)
    return updates, ScaleByLearningRateState(increment(state.count), _rate(rate))


def _rate(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.result_type(float))


def _init_decayed_weights(hyper: _DecayedWeights, params: optax.Params) -> AddDecayedWeightsState:
    del hyper, params
    return AddDecayedWeightsState(count=jnp.zeros([], jnp.int32))


def _update_decayed_weights(
    hyper: _DecayedWeights,
    updates: optax.Updates,
    state: AddDecayedWeightsState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, AddDecayedWeightsState]:
    del extra_args
    check_state("add_decayed_weights", state, AddDecayedWeightsState)
    if params is None:
        raise ValueError("add_decayed_weights: weight decay needs update(grads, state, params)")
    share = value_at("add_decayed_weights", hyper, "weight_decay", state.count)
    if hyper.learning_rate is not None:
        share = -share * value_at("add_decayed_weights", hyper, "learning_rate", state.count)
    mask = _mask(hyper.mask, params)

    def leaf(u: jax.Array, p: jax.Array, decays: bool) -> tuple[Any, ...]:
        u = u.astype(wide(u.dtype))
        return (u + scale(widen(jnp.asarray(p), u), share) if decays else u), p, decays

    updates, *_ = map_leaves("add_decayed_weights", leaf, updates, params, mask, signed=True)
    return updates, AddDecayedWeightsState(increment(state.count))


def _mask(mask: Mask | None, params: optax.Params) -> Any:
    mask = mask(params) if callable(mask) else mask
    if not all(isinstance(leaf, (bool, np.bool_)) for leaf in jax.tree.leaves(mask)):
        raise TypeError(f"add_decayed_weights: mask must be a tree of booleans, got {mask}")
    try:
        return jax.tree.map(bool, jax.tree.broadcast(True if mask is None else mask, params))
    except ValueError as error:
        raise ValueError(
            f"add_decayed_weights: mask must be a tree like the parameters, or a prefix: {error}"
        ) from error


def _init_chain(
    links: tuple[optax.GradientTransformationExtraArgs, ...], params: optax.Params
) -> tuple[optax.OptState, ...]:
    return tuple(link.init(params) for link in links)


def _update_chain(
    links: tuple[optax.GradientTransformationExtraArgs, ...],
    updates: optax.Updates,
    state: tuple[optax.OptState, ...],
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, tuple[optax.OptState, ...]]:
    _check_parts(links, state)
    narrow, new_state = updates, list[optax.OptState]()
    updates = jax.tree.map(_widened, updates)
    for link, part in zip(links, state, strict=True):
        updates, part = link.update(updates, part, params, **extra_args)
        new_state.append(part)
    return jax.tree.map(_narrowed, updates, narrow), tuple(new_state)


def _check_parts(links: tuple[optax.GradientTransformationExtraArgs, ...], state: Any) -> None:
    check_state("chain", state, tuple)
    if len(state) != len(links):
        found = [type(part).__name__ for part in state]
        raise ValueError(
            f"chain: expected a tuple of {len(links)} states, one for each of {links}, got "
            f"{found}; was the state made by this transformation's init?"
        )


def _widened(g: Any) -> Any:
    dtype = jnp.result_type(g)
    return jnp.asarray(g, wide(dtype)) if jnp.issubdtype(dtype, jnp.inexact) else g


def _narrowed(u: Any, g: Any) -> Any:
    return u if u is g else narrow(u, jnp.result_type(g))
