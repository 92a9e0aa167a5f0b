"""RMSprop with Optax's arguments, and the form with decoupled weight decay."""

import optax
from jax.typing import ArrayLike

from ._link import Hyperparameter, checked
from ._rule import Denominator
from .links import (
    Mask,
    add_decayed_weights,
    chain,
    scale_by_learning_rate,
    scale_by_rms,
    scale_by_stddev,
    trace,
)


@checked()
def rmsprop(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | Denominator = True,
    centered: bool = False,
    momentum: Hyperparameter | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Step against each gradient divided by its root mean square.

        scale_by_rms (centered: scale_by_stddev) → scale_by_learning_rate → trace (if momentum)

    The arguments and the trajectory are those of `optax.rmsprop`, with these differences:

    - Accumulators and arithmetic are float32 at least, also for half-precision parameters.
    - Centred: the state holds the variance, which rounding cannot turn negative. The first step
      of a centred run with bias correction is g/|g| instead of |g|/√ε.
    - Gradients saturate at 2⁶² (float32), so that one overflow does not freeze a parameter; 0/0
      is 0; a NaN is passed on but not kept.
    - Every number but `initial_scale` may be a schedule.
    - `optax.tree.get` finds one `count` in the state, which all schedules go by, and
      `last_learning_rate`, the rate of the last update. `optax.inject_hyperparams` adds a count and
      the rate to be set, `learning_rate`; complex or half-precision parameters need its
      `hyperparam_dtype=jnp.float32`.
    - Without momentum the state has two parts, not a third, empty one.
    - Values out of range, and `nesterov` without momentum, raise.

    Args:
        learning_rate: As in `scale_by_learning_rate`; inside the momentum buffer.
        decay, eps, initial_scale, eps_in_sqrt, bias_correction: As in `scale_by_rms`.
        centered: Divide by the standard deviation of the gradients, not their root mean square.
        momentum: As `decay` in `trace`; None keeps no buffer, 0.0 keeps one.
        nesterov: As in `trace`.

    Returns:
        A transformation with the state (`ScaleByRmsState` or `ScaleByStddevState`,
        `ScaleByLearningRateState`, and with momentum `TraceState`).

    Raises:
        ValueError, TypeError: as `scale_by_rms`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> tx = optax_rmsprop.rmsprop(0.1, decay=0.75, eps=0.0)
        >>> updates, state = tx.update(jnp.array([4.0, -8.0]), tx.init(jnp.zeros(2)))
        >>> print(updates)  # the first step is -0.1 * sign(g) / sqrt(1 - 0.75)
        [-0.2  0.2]

    Source: Hinton, Coursera lecture 6e, 2012; centred: Graves, 2013.
    """
    if nesterov and momentum is None:
        raise ValueError("rmsprop: nesterov=True needs a momentum, got momentum=None")
    scale_by = scale_by_stddev if centered else scale_by_rms
    links = [
        scale_by(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
    ]
    return chain(*links) if momentum is None else chain(*links, trace(momentum, nesterov))


@checked()
def rmspropw(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | Denominator = True,
    centered: bool = False,
    momentum: Hyperparameter | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    weight_decay: Hyperparameter = 1e-4,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Step as `rmsprop`, and shrink the parameters by the rate times the weight decay.

        p ← p + rmsprop's update − η·λ·p

    The decay enters neither the accumulator nor the momentum buffer, and follows the learning
    rate's schedule, as `optax.adamw`'s does.

    Args:
        learning_rate: As in `rmsprop`, as are all arguments not named here.
        weight_decay: λ >= 0, the share of a parameter lost per unit of learning rate.
        mask: True where weights decay: a tree of booleans, a prefix of one, or a function from the
            parameters to it. None is True everywhere.

    Returns:
        A transformation with the state (that of `rmsprop`, `AddDecayedWeightsState`). `update`
        needs `params`.

    Raises:
        ValueError, TypeError: as `scale_by_rms`, and if `update` gets no `params`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> tx = optax_rmsprop.rmspropw(0.1, weight_decay=0.5)
        >>> params = jnp.array(2.0)
        >>> update, _ = tx.update(jnp.array(0.0), tx.init(params), params)
        >>> print(update)  # -0.1 * 0.5 * 2
        -0.1

    Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019.
    """
    tx = rmsprop(
        learning_rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov,
        bias_correction,
    )  # fmt: skip
    return chain(tx, add_decayed_weights(weight_decay, learning_rate, mask))
