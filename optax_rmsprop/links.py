"""The links of a chain, and `chain` itself.

scale_by_rms, scale_by_stddev    divide by the root of a second moment
trace                            momentum: a sum of past steps
ema                              momentum: a mean of past steps
scale_by_learning_rate           the step
add_decayed_weights              weight decay, coupled or decoupled
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from . import _rule as rule
from ._jax import canonical
from ._link import Hyperparameter, Step, Treewise, check_state, link, number, parts_of, whole_of
from ._run import Leafwise, Part, Rule
from ._tree import accumulators_like, dtype_of, increment, narrow, wide, widen, zero

Mask: TypeAlias = Any | Callable[[optax.Params], Any]


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


class TraceState(NamedTuple):
    """The state of `trace`."""

    trace_count: jax.Array  # int32 []: updates made so far
    trace: optax.Updates  # >= float32, like the parameters: the momentum buffer


class EmaState(NamedTuple):
    """The state of `ema`."""

    ema_count: jax.Array  # int32 []: updates made so far
    ema: optax.Updates  # >= float32, like the parameters: average of what came in, not corrected


class ScaleByLearningRateState(NamedTuple):
    """The state of `scale_by_learning_rate`."""

    rate_count: jax.Array  # int32 []: updates made so far
    last_learning_rate: jax.Array  # float []: the rate that the last update used


class AddDecayedWeightsState(NamedTuple):
    """The state of `add_decayed_weights`."""

    decay_count: jax.Array  # int32 []: updates made so far


@link(ScaleByRmsState)
def scale_by_rms(
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | rule.Denominator = True,
    bias_correction: bool = False,
) -> Leafwise:
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

    def init(params: optax.Params) -> ScaleByRmsState:
        return ScaleByRmsState(zero(), accumulators_like(params, initial_scale, real=True))

    def update(at: Any) -> Rule:
        def nu(g: jax.Array, nu: jax.Array) -> jax.Array:
            return rule.average(nu, rule.abs_sq(g), at.decay)

        def step(g: jax.Array, nu: jax.Array) -> jax.Array:
            if bias_correction:
                nu = rule.scale(nu, 1 / rule.correction(at.decay, increment(at.count)))
            return rule.divide(g, nu, at.eps, eps_in_sqrt)

        return Rule(step, nu=nu)

    return Leafwise(init, update, saturates=True)


@link(ScaleByStddevState)
def scale_by_stddev(
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | rule.Denominator = True,
    bias_correction: bool = False,
) -> Leafwise:
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

    def init(params: optax.Params) -> ScaleByStddevState:
        var = accumulators_like(params, initial_scale, real=True)
        return ScaleByStddevState(zero(), accumulators_like(params), var)

    def update(at: Any) -> Rule:
        first, factor, weight = at.count == 0, 1.0, 1.0
        if bias_correction:
            # The corrected mean was mu / before, and before is 0 at the first step, as mu is.
            after = rule.correction(at.decay, increment(at.count))
            before = rule.correction(at.decay, at.count)
            factor, weight = 1 / after, jnp.where(first, 0.0, after / jnp.where(first, 1.0, before))

        def mu(g: jax.Array, mu: jax.Array, var: jax.Array) -> jax.Array:
            del var
            return rule.average(mu, g, at.decay)

        def var(g: jax.Array, mu: jax.Array, var: jax.Array) -> jax.Array:
            return rule.variance(var, g, rule.scale(mu, factor), at.decay, weight)

        def step(g: jax.Array, mu: jax.Array, var: jax.Array) -> jax.Array:
            del mu
            square = rule.scale(var, factor)
            if bias_correction:
                alone = square + rule.abs_sq(g)  # g may be sharded as no accumulator is
                square = jnp.where(first & (square == 0), alone, square)
            return rule.divide(g, square, at.eps, eps_in_sqrt)

        return Rule(step, mu=mu, var=var)

    return Leafwise(init, update, signed=True, saturates=True)


@link(TraceState)
def trace(decay: Hyperparameter, nesterov: bool = False) -> Leafwise:
    """Add up past updates with decaying weights: momentum.

        b ← μ·b + u,    returns b,    or with Nesterov's form    u + μ·b

    After `scale_by_learning_rate` the buffer holds steps (TensorFlow, Keras, Optax); before it the
    buffer holds directions (PyTorch). The two agree only while the rate is constant.

    Args:
        decay: μ in [0, 1), the weight of the past; a lasting direction is amplified by 1/(1−μ). A
            number or a schedule.
        nesterov: Return what the buffer will be one step ahead if the direction lasts.

    Returns:
        A transformation with the state `TraceState(trace_count, trace)`. Updates have the dtypes of
        what comes in; `trace` is at least float32, complex for complex parameters. What is not
        finite is not kept, and the update shows it: it is not finite either.

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

    def init(params: optax.Params) -> TraceState:
        return TraceState(zero(), accumulators_like(params))

    def update(at: Any) -> Rule:
        def buffer(u: jax.Array, buffer: jax.Array) -> jax.Array:
            return rule.momentum(buffer, u, at.decay)

        def step(u: jax.Array, buffer: jax.Array) -> jax.Array:
            return u + rule.scale(buffer, at.decay) if nesterov else buffer

        return Rule(step, trace=buffer)

    return Leafwise(init, update, signed=True, reuses=nesterov, hides=not nesterov)


@link(EmaState)
def ema(decay: Hyperparameter, debias: bool = True) -> Leafwise:
    """Average past updates with decaying weights: momentum of unit gain.

        m ← β·m + (1−β)·u,    returns m / (1−βᵗ),    or without `debias`    m

    After `scale_by_rms` with bias correction it is LaProp, DreamerV3's optimizer; after
    `scale_by_stddev` it is MVN-Grad. A lasting direction is not amplified, as it is by `trace`.

    Args:
        decay: β in [0, 1), the weight of the past. A number or a schedule; the correction is that
            of the current one.
        debias: Divide by 1−βᵗ, the weight that the updates have: the first one is returned as it
            came in.

    Returns:
        A transformation with the state `EmaState(ema_count, ema)`. Updates have the dtypes of what
        comes in; `ema` is at least float32, complex for complex parameters. What is not finite is
        not kept, and the update shows it, as with `trace`.

    Raises:
        ValueError, TypeError: as `scale_by_rms`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> tx = optax_rmsprop.ema(0.5)
        >>> update, state = tx.update(jnp.array(8.0), tx.init(jnp.array(0.0)))
        >>> update, state = tx.update(jnp.array(2.0), state)
        >>> print(update, state.ema)  # (8/4 + 2/2) / (1 - 0.5²)
        4.0 3.0

    Source: Ziyin, Wang & Ueda, LaProp: Separating momentum and adaptivity in Adam, 2020.
    """

    def init(params: optax.Params) -> EmaState:
        return EmaState(zero(), accumulators_like(params))

    def update(at: Any) -> Rule:
        factor = 1 / rule.correction(at.decay, increment(at.count)) if debias else 1.0

        def average(u: jax.Array, ema: jax.Array) -> jax.Array:
            return rule.finite_or(ema, rule.average(ema, u, at.decay))

        def step(u: jax.Array, ema: jax.Array) -> jax.Array:
            del u
            return rule.scale(ema, factor)

        return Rule(step, ema=average)

    return Leafwise(init, update, signed=True, hides=True)


@link(ScaleByLearningRateState)
def scale_by_learning_rate(learning_rate: Hyperparameter) -> Leafwise:
    """Multiply by minus the learning rate, and keep the rate in the state.

        returns −η·u

    Args:
        learning_rate: η >= 0, a number or a schedule called with 0 at the first update. To climb,
            negate the loss.

    Returns:
        A transformation with the state `ScaleByLearningRateState(rate_count, last_learning_rate)`,
        the same tree for a number and a schedule. The rate there is the one just used, to be read
        and logged; before the first update it is the rate to come. To set a rate in the state, use
        `optax.inject_hyperparams`, which keeps it as `learning_rate`.

    Raises:
        ValueError, TypeError: as `scale_by_rms`.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> tx = optax_rmsprop.scale_by_learning_rate(lambda count: 0.5 / (1 + count))
        >>> state = tx.init(jnp.array(0.0))
        >>> for _ in range(2):
        ...     update, state = tx.update(jnp.array(2.0), state)
        >>> print(update, optax.tree.get(state, "last_learning_rate"))
        -0.5 0.25
    """

    def init(params: optax.Params) -> ScaleByLearningRateState:
        del params
        rate = number("scale_by_learning_rate", "learning_rate", learning_rate, zero())
        return ScaleByLearningRateState(zero(), jnp.asarray(rate, jnp.result_type(float)))

    def update(at: Any) -> Rule:
        def step(u: jax.Array) -> jax.Array:
            return rule.scale(u, -at.learning_rate)

        return Rule(step)

    return Leafwise(init, update)


@link(AddDecayedWeightsState)
def add_decayed_weights(
    weight_decay: Hyperparameter,
    learning_rate: Hyperparameter | None = None,
    mask: Mask | None = None,
) -> Leafwise:
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
        A transformation with the state `AddDecayedWeightsState(decay_count)`.

    Raises:
        ValueError: if `update` gets no `params`, and as `scale_by_rms`.
        TypeError: as `scale_by_rms`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> p = jnp.array(2.0)
        >>> for learning_rate in (None, 0.5):  # 1 + 0.25 * 2, and 1 - 0.5 * 0.25 * 2
        ...     tx = optax_rmsprop.add_decayed_weights(0.25, learning_rate)
        ...     update, _ = tx.update(jnp.array(1.0), tx.init(p), p)
        ...     print(update)
        1.5
        0.75
    """
    coupled = learning_rate is None

    def init(params: optax.Params) -> AddDecayedWeightsState:
        del params
        return AddDecayedWeightsState(zero())

    def inputs(params: optax.Params | None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("add_decayed_weights: weight decay needs update(grads, state, params)")
        return params, _mask(mask, params)

    def update(at: Any) -> Rule:
        share = at.weight_decay if coupled else at.weight_decay * at.learning_rate

        def step(u: jax.Array, p: jax.Array, decays: bool) -> jax.Array:
            if not decays:
                return u
            decay = rule.scale(widen(p, u.dtype), share)
            return u + decay if coupled else u - decay

        return Rule(step)

    return Leafwise(init, update, inputs, signed=True, reuses=coupled)


@link(tuple)
def chain(*links: optax.GradientTransformation) -> Treewise:
    """Apply transformations in order, and round half precision once, at the end.

        u ← linkₙ(… link₁(g))

    As `optax.chain`, but that the gradients are widened to float32 before the first and rounded to
    their dtypes after the last. Links of this package in a row are one function of each leaf, which
    needs no memory for what passes between them.

    Args:
        links: Any Optax transformations.

    Returns:
        A transformation with the tuple of the states of the links. All links go by the `count` of
        the second moment, if there is one: to set it, as in a warm restart, sets all schedules.

    Raises:
        ValueError, TypeError: as the links.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop as ours
        >>> tx = ours.chain(ours.scale_by_rms(0.99), ours.scale_by_learning_rate(1e-3))
        >>> assert tx == ours.rmsprop(1e-3, decay=0.99)
    """

    def init(params: optax.Params) -> tuple[Any, ...]:
        return tuple(link.init(params) for link in links)

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        _check_parts(links, state)
        count = _count(state) if count is None else count
        pairs = zip(links, state, strict=True)
        found = [parts_of(link.update, updates, part, count) for link, part in pairs]
        return None if None in found else [part for row in found for part in row or ()]

    def whole(state: tuple[Any, ...], states: Iterator[Any]) -> tuple[Any, ...]:
        pairs = zip(links, state, strict=True)
        return tuple(whole_of(link.update, part, states) for link, part in pairs)

    def lead(step: Step, updates: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
        gradients, new_state = updates, list[Any]()
        if step.count is None:
            step = dataclasses.replace(step, count=_count(state))
        updates = jax.tree.map(_widened, updates)
        pairs = list(zip(links, state, strict=True))
        found = [parts_of(link.update, gradients, part, step.count) for link, part in pairs]
        for ours, row in itertools.groupby(
            zip(pairs, found, strict=True), lambda x: x[1] is not None
        ):
            members = list(row)
            if ours:
                parts = [part for _, own in members for part in own or ()]
                updates, states = step.run(parts, updates)
                new_state += [whole_of(link.update, part, states) for (link, part), _ in members]
                continue
            for (other, part), _ in members:
                updates, part = step.take(other, updates, part)
                new_state.append(part)
        return jax.tree.map(_narrowed, updates, gradients), tuple(new_state)

    return Treewise(init, lead=lead, parts=parts, whole=whole)


def _mask(mask: Mask | None, params: optax.Params) -> Any:
    mask = True if mask is None else mask
    # A model whose leaves are booleans may be callable, and is a tree.
    mask = mask(params) if callable(mask) and not _is_of_booleans(mask) else mask
    if not _is_of_booleans(mask):
        raise TypeError(f"add_decayed_weights: mask must be a tree of booleans, got {mask}")
    try:
        return jax.tree.map(bool, jax.tree.broadcast(mask, params))
    except ValueError as error:
        raise ValueError(
            f"add_decayed_weights: mask must be a tree like the parameters, or a prefix: {error}"
        ) from error


def _is_of_booleans(mask: Any) -> bool:
    return all(isinstance(leaf, (bool, np.bool_)) for leaf in jax.tree.leaves(mask))


def _count(state: Any) -> Any:
    """The count of a chain: that of its second moment, which all its links go by."""

    def is_part(x: Any) -> bool:
        # This package's wrappers are looked into. One of Optax is not: it may skip steps.
        ours = type(x).__module__.partition(".")[0] == __package__
        return hasattr(x, "_fields") and not (ours and hasattr(x, "inner_state"))

    known = (ScaleByRmsState, ScaleByStddevState)
    parts = jax.tree.leaves(state, is_leaf=is_part)
    return next((part.count for part in parts if isinstance(part, known)), None)


def _check_parts(links: tuple[optax.GradientTransformation, ...], state: Any) -> None:
    check_state("chain", state, tuple)
    if len(state) != len(links):
        found = [type(part).__name__ for part in state]
        raise ValueError(
            f"chain: expected a tuple of {len(links)} states, one for each of {links}, got "
            f"{found}; was the state made by this transformation's init? interop.transfer carries "
            "the state of another"
        )


def _widened(g: Any) -> Any:
    dtype = dtype_of(g)
    return jnp.asarray(g, canonical(wide(dtype))) if jnp.issubdtype(dtype, jnp.inexact) else g


def _narrowed(u: Any, g: Any) -> Any:
    return u if u is g else narrow(u, canonical(dtype_of(g)))
