"""Other frameworks' RMSprop, with their own argument names, defaults and order of links.

A config of the framework pastes in unchanged; what follows an argument that is left out, since it
has no meaning here, is by keyword. Nothing is computed here: a dialect is constants and an order.

    torch         [L2] → rms(eps outside) → trace → rate
    tensorflow1   rms(eps inside, ν starts at 1) → rate → trace
    keras         [clip] → rms(eps inside) → rate → trace → [decoupled decay]

Every learning rate, decay, eps, momentum and weight decay is a number or a schedule `count ->
value` whose first call sees 0. A momentum or weight decay that is the number 0 makes no link, and
no state. Where a framework turns to NaN, or accepts an option and ignores it, the dialect follows
its formula and not its defect; like all of the package it keeps accumulators in float32 at least.

The table of frameworks and versions, with the call that reproduces each, is `docs/dialects.md`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from .links import add_decayed_weights, chain, scale_by_learning_rate, trace
from ._jax import is_traced
from ._framework_links import cautious, clip, clip_by_norm, clip_weights, multiply, split_complex
from ._link import Hyperparameter, checked
from ._rule import Denominator, eps_floor, eps_inside, eps_outside, eps_subtracted
from .links import scale_by_rms, scale_by_stddev

_Transformation = optax.GradientTransformationExtraArgs


def torch(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> _Transformation:
    """PyTorch's RMSprop: eps outside the root, momentum of directions, L2 decay.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + g / (√ν+ε),    p ← p − η·b

    Also LuaTorch's, MLX's, Caffe's, bitsandbytes' (32 bit), Burn's, candle's and R torch's: what
    differs is defaults. The real and the imaginary part of a complex parameter are averaged apart.
    A scheduled `lr` acts at once, since the buffer holds directions. `torch.optim.RMSprop` gives
    NaN on constant gradients in centred mode, and for 0/0; this does not.

    Args:
        lr: η >= 0, the learning rate.
        alpha: α in [0, 1), the weight of the past in the average.
        eps: ε >= 0, in units of |g|.
        weight_decay: λ >= 0, coupled: a part of the gradient, averaged and divided with it.
        momentum: μ in [0, 1).
        centered: Divide by the standard deviation instead of the root mean square.
        maximize: Climb; the decay still shrinks.

    Returns:
        A transformation with the states ([`AddDecayedWeightsState`], `ScaleByRmsState` or
        `ScaleByStddevState`, [`TraceState`], `ScaleByLearningRateState`), in brackets where the
        number is 0, after an `EmptyState` if `maximize`. Those for complex parameters have a last
        axis of two. `update` needs `params` if there is weight decay.

    Raises:
        ValueError: if a number is out of its range, or a gradient's shape or tree is not init's.
        TypeError: if a hyperparameter is no scalar, or a gradient is not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.torch(lr=0.5, alpha=0.75, eps=2.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / (2 + 2)
        -0.5

    Source: PyTorch 2.13, torch/optim/rmsprop.py.
    """
    lr, alpha, eps, weight_decay, momentum = _checked(
        "torch", lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum
    )
    return split_complex(
        _chain(
            multiply(-1.0) if maximize else None,
            _l2(weight_decay),
            _scale(centered, alpha, eps, eps_outside),
            _trace(momentum),
            scale_by_learning_rate(lr),
        )
    )


def tensorflow1(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.0,
    epsilon: Hyperparameter = 1e-10,
    *,
    centered: bool = False,
) -> _Transformation:
    """TensorFlow 1's RMSprop: ν starts at 1, epsilon inside, the rate in the buffer.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b,    ν₀ = 1

    With ν₀ = 1 the first 1/(1−ρ) steps are a warm-up that is proportional to the gradient. A drop
    of the rate takes 1/(1−μ) steps to act. IMPALA's and several A3Cs' optimizer. TensorFlow takes
    the square of a complex gradient without conjugation, so that its steps can point anywhere; this
    takes |g|².

    Args:
        learning_rate: η >= 0.
        decay: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1).
        epsilon: ε >= 0, in units of |g|².
        centered: As in `torch`.

    Returns:
        A transformation with the states (`ScaleByRmsState` or `ScaleByStddevState`,
        `ScaleByLearningRateState`, [`TraceState`]), the last not if `momentum` is 0.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.tensorflow1(learning_rate=0.5, decay=0.75, epsilon=2.0)
        >>> update, _ = tx.update(jnp.array(5.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.75 * 1 + 0.25 * 5² = 7, and -0.5 * 5 / sqrt(7 + 2)
        -0.8333333

    Source: TensorFlow 2.21, tensorflow/python/training/rmsprop.py (tf.compat.v1.train).
    """
    learning_rate, decay, momentum, epsilon = _checked(
        "tensorflow1", learning_rate=learning_rate, decay=decay, momentum=momentum, epsilon=epsilon
    )
    return _chain(
        _scale(centered, decay, epsilon, eps_inside, initial_scale=1.0),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


def keras(
    learning_rate: Hyperparameter = 1e-3,
    rho: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.0,
    epsilon: Hyperparameter = 1e-7,
    centered: bool = False,
    weight_decay: Hyperparameter | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
) -> _Transformation:
    """Keras's RMSprop (3, and 2.11 on): epsilon inside, the rate in the buffer.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − η·λ·p − b

    Its documentation shows epsilon outside the root; its code has it inside. Of its other
    arguments, `optax.ema` averages weights, `optax.MultiSteps` accumulates gradients, and a
    `loss_scale_factor` is a factor of the gradients.

    Args:
        learning_rate: η >= 0.
        rho: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1).
        epsilon: ε >= 0, in units of |g|².
        centered: As in `torch`.
        weight_decay: λ >= 0, decoupled: it follows the rate and enters no buffer.
        clipnorm: Shorten the gradient of each parameter to this length, > 0.
        clipvalue: Clip each entry of the gradients to ± this, > 0.
        global_clipnorm: Shorten all gradients together to this length, > 0.

    Returns:
        A transformation with the states ([`EmptyState`], `ScaleByRmsState` or `ScaleByStddevState`,
        `ScaleByLearningRateState`, [`TraceState`], [`AddDecayedWeightsState`]), in brackets what
        is there only with clipping, momentum, weight decay. `update` needs `params` for the last.

    Raises:
        ValueError: as `torch`, and if more than one kind of clipping is asked for.
        TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.keras(learning_rate=0.5, rho=0.75, epsilon=12.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / sqrt(4 + 12)
        -0.5

    Source: Keras 3.15, keras/src/optimizers/rmsprop.py.
    """
    learning_rate, rho, momentum, epsilon, weight_decay = _checked(
        "keras", learning_rate=learning_rate, rho=rho, momentum=momentum, epsilon=epsilon,
        weight_decay=weight_decay,
    )  # fmt: skip
    clips = _positive(
        "keras", clipnorm=clipnorm, clipvalue=clipvalue, global_clipnorm=global_clipnorm
    )
    if len(clips) > 1:
        raise ValueError(f"keras: only one kind of clipping can be used, got {clips}")
    return _chain(
        _if("clipnorm" in clips, clip_by_norm, clipnorm, together=False),
        _if("clipvalue" in clips, clip, clipvalue),
        _if("global_clipnorm" in clips, clip_by_norm, global_clipnorm, together=True),
        _scale(centered, rho, epsilon, eps_inside),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
        _decoupled(weight_decay, learning_rate),
    )


def keras2(
    learning_rate: Hyperparameter = 1e-3,
    rho: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.0,
    epsilon: Hyperparameter = 1e-7,
    centered: bool = False,
    *,
    decay: float = 0.0,
) -> _Transformation:
    """RMSprop of tf.keras 2.0 to 2.10: epsilon outside, or inside with momentum.

        μ = 0:    p ← p − η·g / (√ν+ε)        μ > 0:    b ← μ·b + η·g / √(ν+ε),    p ← p − b

    Also Keras 2.3's, which ignored `centered` without momentum. With ε = 1e-7 the smallest
    denominator is 1e-7 without momentum and 3e-4 with it. A `momentum` that is not a number known
    now counts as momentum.

    Args:
        learning_rate: η >= 0.
        rho: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1).
        epsilon: ε >= 0, in units of |g| without momentum and of |g|² with it; 0 means 1e-7.
        centered: As in `torch`.
        decay: Divide the rate by 1 + decay·count; >= 0.

    Returns:
        A transformation with the states of `tensorflow1`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> for momentum, epsilon in [(0.0, 6.0), (0.9, 12.0)]:
        ...     tx = dialects.keras2(1.0, rho=0.75, momentum=momentum, epsilon=epsilon)
        ...     update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        ...     print(update)  # -4 / (2 + 6), and -4 / sqrt(4 + 12)
        -0.5
        -1.0

    Source: tf_keras 2.21, tf_keras/optimizers/legacy/rmsprop.py.
    """
    learning_rate, rho, momentum, epsilon = _checked(
        "keras2", learning_rate=learning_rate, rho=rho, momentum=momentum, epsilon=epsilon
    )
    decay = checked("keras2", "decay", decay, schedule=False)
    rate = learning_rate if _is_zero(decay) else _InverseTime(learning_rate, decay)
    epsilon = 1e-7 if _is_zero(epsilon) else epsilon
    return _chain(
        _scale(centered, rho, epsilon, eps_outside if _is_zero(momentum) else eps_inside),
        scale_by_learning_rate(rate),
        _trace(momentum),
    )


def timm(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-10,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    *,
    lr_max: float | None = None,
) -> _Transformation:
    """RMSpropTF of timm: TensorFlow 1's rule, with weight decay of three kinds.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b,    ν₀ = 1

    Its names `rmsproptf`, `rmsproptfw`, `rmsproptfc` and `crmsproptf` are this with L2, decoupled
    and corrected decay, and with caution. Its name `rmsprop` is `torch` with alpha 0.9.

    Args:
        lr, alpha, weight_decay, momentum, centered: As in `torch`.
        eps: ε >= 0, in units of |g|².
        decoupled_decay: p ← p − η·λ·p, outside the averages, instead of L2.
        corrected_weight_decay: With `decoupled_decay`, p ← p − (η²/η_max)·λ·p for the largest rate.
        lr_in_momentum: The rate in the momentum buffer (TensorFlow), not after it (PyTorch).
        caution: Take no step where the buffer and the gradient disagree in sign, and larger ones
            elsewhere; without momentum it does nothing.
        lr_max: η_max, where `lr` is a schedule: the rate that timm's constructor would get.

    Returns:
        A transformation with the states ([`AddDecayedWeightsState`], `ScaleByRmsState` or
        `ScaleByStddevState`, `ScaleByLearningRateState`, [`TraceState`]), nested if there is
        caution; decoupled decay comes last. `update` needs `params` if there is weight decay.

    Raises:
        ValueError: as `torch`, and if `corrected_weight_decay` lacks an `lr_max`.
        TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.timm(lr=0.5, alpha=0.75, eps=2.0, weight_decay=0.5)
        >>> p = jnp.array(2.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(p), p)
        >>> print(update)  # g = 4 + 0.5 * 2 = 5, nu = 0.75 + 0.25 * 5² = 7, -0.5 * 5 / sqrt(7 + 2)
        -0.8333333

    Source: timm 1.0.31, timm/optim/rmsprop_tf.py.
    """
    lr, alpha, eps, weight_decay, momentum = _checked(
        "timm", lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum
    )
    _positive("timm", lr_max=lr_max)
    decay_rate, corrected = lr, decoupled_decay and corrected_weight_decay
    if corrected and lr_max is not None:
        decay_rate = _Corrected(lr, lr_max)
    elif corrected and callable(lr):
        raise ValueError(
            "timm: corrected_weight_decay with a schedule needs lr_max, the lr that timm's "
            "constructor would get"
        )
    rate, buffer = scale_by_learning_rate(lr), _trace(momentum)
    step = _chain(
        _scale(centered, alpha, eps, eps_inside, initial_scale=1.0),
        *((rate, buffer) if lr_in_momentum else (buffer, rate)),
    )
    return _chain(
        None if decoupled_decay else _l2(weight_decay),
        cautious(step) if caution and buffer is not None else step,
        _decoupled(weight_decay, decay_rate) if decoupled_decay else None,
    )


def stable_baselines3(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
) -> _Transformation:
    """Stable-Baselines3's RMSpropTFLike: ν starts at 1, the rate after the buffer.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + g / √(ν+ε),    p ← p − η·b,    ν₀ = 1

    TensorFlow's denominator and start with PyTorch's momentum: with a schedule and momentum it is
    not `tensorflow1`. Also dfdx's, with alpha 0.9.

    Args:
        lr, alpha, weight_decay, momentum, centered: As in `torch`.
        eps: ε >= 0, in units of |g|².

    Returns:
        A transformation with the states of `torch`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.stable_baselines3(lr=0.5, alpha=0.75, eps=2.0)
        >>> update, _ = tx.update(jnp.array(5.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.75 * 1 + 0.25 * 5² = 7, and -0.5 * 5 / sqrt(7 + 2)
        -0.8333333

    Source: Stable-Baselines3 2.9.2, common/sb2_compat/rmsprop_tf_like.py.
    """
    lr, alpha, eps, weight_decay, momentum = _checked(
        "stable_baselines3",
        lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum,
    )  # fmt: skip
    return _chain(
        _l2(weight_decay),
        _scale(centered, alpha, eps, eps_inside, initial_scale=1.0),
        _trace(momentum),
        scale_by_learning_rate(lr),
    )


def pfrl(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
) -> _Transformation:
    """RMSpropEpsInsideSqrt of pfrl: PyTorch's rule with eps inside the root.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + g / √(ν+ε),    p ← p − η·b

    The A3C paper's shared RMSProp, with lr 7e-4, alpha 0.99 and eps 0.1, as pfrl and chainerrl
    have it; other implementations start ν at 1 (`tensorflow1`).

    Args:
        lr, alpha, weight_decay, momentum, centered: As in `torch`.
        eps: ε >= 0, in units of |g|².

    Returns:
        A transformation with the states of `torch`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.pfrl(lr=0.5, alpha=0.75, eps=12.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / sqrt(4 + 12)
        -0.5

    Source: pfrl 0.4.0, pfrl/optimizers/rmsprop_eps_inside_sqrt.py.
    """
    lr, alpha, eps, weight_decay, momentum = _checked(
        "pfrl", lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum
    )
    return _chain(
        _l2(weight_decay),
        _scale(centered, alpha, eps, eps_inside),
        _trace(momentum),
        scale_by_learning_rate(lr),
    )


def graves(
    lr: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.95,
    momentum: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-4,
) -> _Transformation:
    """Graves's RMSprop: always centred, eps inside, the rate in the buffer.

        ν ← α·ν + (1−α)·g²,    m ← α·m + (1−α)·g,    b ← μ·b + η·g / √(ν−m²+ε),    p ← p − b

    DQN's (Nature, 2015) is `graves(lr=2.5e-4, alpha=0.95, momentum=0.0, eps=0.01)`: the "gradient
    momentum" of that paper is α of m, not a momentum buffer. Names as in Chainer's RMSpropGraves.

    Args:
        lr, alpha, momentum: As in `torch`.
        eps: ε >= 0, in units of |g|².

    Returns:
        A transformation with the states (`ScaleByStddevState`, `ScaleByLearningRateState`,
        [`TraceState`]), the last not if `momentum` is 0.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.graves(lr=0.5, alpha=0.5, eps=9.0)
        >>> update, _ = tx.update(jnp.array(8.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 32, m = 4, and -0.5 * 8 / sqrt(32 - 16 + 9)
        -0.8

    Source: Graves, Generating Sequences With Recurrent Neural Networks, 2013, equations 38-41.
    """
    lr, alpha, momentum, eps = _checked("graves", lr=lr, alpha=alpha, momentum=momentum, eps=eps)
    return _chain(
        scale_by_stddev(alpha, eps),
        scale_by_learning_rate(lr),
        _trace(momentum),
    )


def hinton(
    learning_rate: Hyperparameter, decay: Hyperparameter = 0.9, momentum: Hyperparameter = 0.0
) -> _Transformation:
    """Hinton's RMSprop: no epsilon, and Nesterov momentum of divided corrections.

        ν ← ρ·ν + (1−ρ)·g²,    d = η·g / √ν,    b ← μ·b + d,    p ← p − (d + μ·b)

    The lecture found that the root mean square should divide the correction and not the jump. The
    gradient is taken where the jump leads, and that point is the parameter here: with s the buffer
    and w the point before the jump, p = w − μ·s. 0/0 is no step.

    Args:
        learning_rate: η >= 0; the lecture names none.
        decay: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1); the lecture names none.

    Returns:
        A transformation with the states of `tensorflow1`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.hinton(learning_rate=0.5, decay=0.75, momentum=0.5)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # d = 0.5 * 4 / sqrt(0.25 * 4²) = 1, and -(d + 0.5 * d)
        -1.5

    Source: Hinton, Coursera lecture 6e, 2012, as lecture notes give it.
    """
    learning_rate, decay, momentum = _checked(
        "hinton", learning_rate=learning_rate, decay=decay, momentum=momentum
    )
    return _chain(
        _scale(False, decay, 0.0, eps_inside),
        scale_by_learning_rate(learning_rate),
        _trace(momentum, nesterov=True),
    )


def mxnet(
    learning_rate: Hyperparameter = 1e-3,
    gamma1: Hyperparameter = 0.9,
    gamma2: Hyperparameter = 0.9,
    epsilon: Hyperparameter = 1e-8,
    centered: bool = False,
    clip_weights: float | None = None,
    *,
    wd: Hyperparameter = 0.0,
    rescale_grad: float = 1.0,
    clip_gradient: float | None = None,
) -> _Transformation:
    """MXNet 1's RMSProp: centred with momentum, or neither; clipping after L2.

        g ← clip(c·g + λ·p),    ν ← γ₁·ν + (1−γ₁)·g²,    p ← clip(p − η·g / √(ν+ε))

    For versions 0.10 to 1.9. Centred it is `graves`, and only then has `gamma2` an effect. A
    schedule is called with 1 at the first update, as MXNet's are.

    Args:
        learning_rate: η >= 0.
        gamma1: γ₁ in [0, 1), the weight of the past in the average.
        gamma2: γ₂ in [0, 1), the momentum, if `centered`.
        epsilon: ε >= 0, in units of |g|².
        centered: As in `torch`, and with momentum.
        clip_weights: Keep the parameters in ± this, > 0.
        wd: λ >= 0, coupled.
        rescale_grad: c, a factor of the gradients, > 0.
        clip_gradient: Clip each entry of the gradients, decay included, to ± this, > 0.

    Returns:
        A transformation with the states ([`EmptyState`], [`AddDecayedWeightsState`],
        [`EmptyState`], `ScaleByRmsState` or `ScaleByStddevState`, `ScaleByLearningRateState`,
        [`TraceState`], [`EmptyState`]): rescaling, decay, clipping, the rest, clipping of weights.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.mxnet(0.5, gamma1=0.75, epsilon=12.0, rescale_grad=0.25)
        >>> update, _ = tx.update(jnp.array(16.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # g = 0.25 * 16, nu = 0.25 * 4², and -0.5 * 4 / sqrt(4 + 12)
        -0.5

    Source: MXNet 1.9.1, python/mxnet/optimizer/optimizer.py.
    """
    learning_rate, gamma1, gamma2, epsilon, wd = _checked(
        "mxnet", learning_rate=learning_rate, gamma1=gamma1, gamma2=gamma2, epsilon=epsilon, wd=wd
    )
    return _mxnet(
        "mxnet", centered, learning_rate, gamma1, gamma2, epsilon, eps_inside, rescale_grad,
        clip_weights, [_l2(wd), _clip("mxnet", clip_gradient=clip_gradient)],
    )  # fmt: skip


def mxnet2(
    learning_rate: Hyperparameter = 1e-3,
    rho: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.9,
    epsilon: Hyperparameter = 1e-8,
    centered: bool = False,
    clip_weights: float | None = None,
    *,
    wd: Hyperparameter = 0.0,
    rescale_grad: float = 1.0,
    clip_gradient: float | None = None,
) -> _Transformation:
    """MXNet 2's RMSProp: epsilon outside, but inside if centred; clipping before L2.

        g ← clip(c·g) + λ·p,    ν ← ρ·ν + (1−ρ)·g²,    p ← clip(p − η·g / (√ν+ε))

    Centred it is `graves`, and only then has `momentum` an effect.

    Args:
        learning_rate, centered, clip_weights, wd, rescale_grad: As in `mxnet`.
        rho: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1), if `centered`.
        epsilon: ε >= 0, in units of |g|, or of |g|² if `centered`.
        clip_gradient: Clip each entry of the gradients, without the decay, to ± this, > 0.

    Returns:
        A transformation with the states of `mxnet`, clipping before the decay.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.mxnet2(0.5, rho=0.75, epsilon=2.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / (2 + 2)
        -0.5

    Source: MXNet 2.0, python/mxnet/optimizer/rmsprop.py.
    """
    learning_rate, rho, momentum, epsilon, wd = _checked(
        "mxnet2", learning_rate=learning_rate, rho=rho, momentum=momentum, epsilon=epsilon, wd=wd
    )
    return _mxnet(
        "mxnet2", centered, learning_rate, rho, momentum, epsilon,
        eps_inside if centered else eps_outside, rescale_grad, clip_weights,
        [_clip("mxnet2", clip_gradient=clip_gradient), _l2(wd)],
    )  # fmt: skip


def paddle(
    learning_rate: Hyperparameter,
    rho: Hyperparameter = 0.95,
    epsilon: Hyperparameter = 1e-6,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    *,
    weight_decay: Hyperparameter | None = None,
    grad_clip: optax.GradientTransformation | None = None,
) -> _Transformation:
    """Paddle's RMSProp: epsilon inside, the rate in the buffer, clipping before L2.

        g ← clip(g) + λ·p,    ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b

    Its documentation speaks of Nesterov momentum; its code has plain momentum.

    Args:
        learning_rate: η >= 0.
        rho: ρ in [0, 1), the weight of the past in the average.
        epsilon: ε >= 0, in units of |g|².
        momentum: μ in [0, 1).
        centered: As in `torch`.
        weight_decay: λ >= 0, coupled.
        grad_clip: A transformation of the gradients in place of Paddle's object: `optax.clip(c)`
            for ClipGradByValue, `optax.clip_by_global_norm(c)` for ClipGradByGlobalNorm.

    Returns:
        A transformation with the states ([that of `grad_clip`], [`AddDecayedWeightsState`],
        `ScaleByRmsState` or `ScaleByStddevState`, `ScaleByLearningRateState`, [`TraceState`]).

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.paddle(0.5, rho=0.75, epsilon=12.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / sqrt(4 + 12)
        -0.5

    Source: PaddlePaddle 3.3.1, python/paddle/optimizer/rmsprop.py.
    """
    learning_rate, rho, epsilon, momentum, weight_decay = _checked(
        "paddle", learning_rate=learning_rate, rho=rho, epsilon=epsilon, momentum=momentum,
        weight_decay=weight_decay,
    )  # fmt: skip
    return _chain(
        grad_clip,
        _l2(weight_decay),
        _scale(centered, rho, epsilon, eps_inside),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


def chainer(
    lr: Hyperparameter = 0.01,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    eps_inside_sqrt: bool = False,
) -> _Transformation:
    """Chainer's RMSprop: eps outside or inside, no momentum.

        ν ← α·ν + (1−α)·g²,    p ← p − η·g / (√ν+ε)    or    p ← p − η·g / √(ν+ε)

    Its hook WeightDecay(λ) is `optax.add_decayed_weights(λ)` before this in a chain. Its
    RMSpropGraves is `graves`. Lasagne's is this with `eps_inside_sqrt`.

    Args:
        lr, alpha: As in `torch`.
        eps: ε >= 0, in units of |g| outside the root and of |g|² inside.
        eps_inside_sqrt: ε inside the root.

    Returns:
        A transformation with the states (`ScaleByRmsState`, `ScaleByLearningRateState`).

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.chainer(lr=0.5, alpha=0.75, eps=2.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / (2 + 2)
        -0.5

    Source: Chainer 7.8.1, chainer/optimizers/rmsprop.py.
    """
    lr, alpha, eps = _checked("chainer", lr=lr, alpha=alpha, eps=eps)
    return _chain(
        _scale(False, alpha, eps, eps_inside if eps_inside_sqrt else eps_outside),
        scale_by_learning_rate(lr),
    )


def sonnet(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.0,
    epsilon: Hyperparameter = 1e-10,
    centered: bool = False,
) -> _Transformation:
    """Sonnet 2's RMSProp: TensorFlow 1's rule and defaults, but ν starts at 0.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b

    Args:
        learning_rate, decay, momentum, epsilon, centered: As in `tensorflow1`.

    Returns:
        A transformation with the states of `tensorflow1`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.sonnet(0.5, decay=0.75, epsilon=12.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / sqrt(4 + 12)
        -0.5

    Source: Sonnet 2.0.2, sonnet/src/optimizers/rmsprop.py.
    """
    learning_rate, decay, momentum, epsilon = _checked(
        "sonnet", learning_rate=learning_rate, decay=decay, momentum=momentum, epsilon=epsilon
    )
    return _chain(
        _scale(centered, decay, epsilon, eps_inside),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


def torchopt(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    *,
    initial_scale: ArrayLike = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> _Transformation:
    """TorchOpt's RMSProp: PyTorch's rule with an initial ν and Nesterov momentum.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    d = g / (√ν+ε),    b ← μ·b + d
        p ← p − η·b    or, with `nesterov`,    p ← p − η·(d + μ·b)

    Args:
        lr, alpha, eps, weight_decay, momentum, centered, maximize: As in `torch`.
        initial_scale: ν before the first step, >= 0.
        nesterov: As in `trace`; without momentum it does nothing.

    Returns:
        A transformation with the states of `torch`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.torchopt(0.5, alpha=0.75, eps=2.0, momentum=0.5, nesterov=True)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # d = 4 / (2 + 2), and -0.5 * (d + 0.5 * d)
        -0.75

    Source: TorchOpt 0.7.3, torchopt/alias/rmsprop.py.
    """
    lr, alpha, eps, weight_decay, momentum = _checked(
        "torchopt", lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum
    )
    return _chain(
        multiply(-1.0) if maximize else None,
        _l2(weight_decay),
        _scale(centered, alpha, eps, eps_outside, initial_scale),
        _trace(momentum, nesterov),
        scale_by_learning_rate(lr),
    )


def mindspore(
    learning_rate: Hyperparameter = 0.1,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.0,
    epsilon: Hyperparameter = 1e-10,
    *,
    centered: bool = False,
    loss_scale: float = 1.0,
    weight_decay: Hyperparameter = 0.0,
) -> _Transformation:
    """MindSpore's nn.RMSProp: TensorFlow 1's rule with a loss scale and L2 decay.

        g ← g/s + λ·p,    ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b,    ν₀ = 1

    This is the documented rule. The CPU kernel of 2.10 has epsilon outside the root in its vector
    lanes and inside elsewhere, so that a parameter's step depends on its position. Its
    `experimental.optim.RMSprop` is `torch`.

    Args:
        learning_rate: η >= 0.
        decay: ρ in [0, 1), the weight of the past in the average.
        momentum, epsilon, centered: As in `tensorflow1`.
        loss_scale: s > 0, the factor that the loss was multiplied by.
        weight_decay: λ >= 0, coupled; not divided by the loss scale.

    Returns:
        A transformation with the states ([`EmptyState`], [`AddDecayedWeightsState`], those of
        `tensorflow1`), in brackets where there is a loss scale, a decay.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.mindspore(0.5, decay=0.75, epsilon=2.0, loss_scale=4.0)
        >>> update, _ = tx.update(jnp.array(20.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # g = 20 / 4, nu = 0.75 + 0.25 * 5² = 7, and -0.5 * 5 / sqrt(7 + 2)
        -0.8333333

    Source: MindSpore 2.10, mindspore/nn/optim/rmsprop.py.
    """
    learning_rate, decay, momentum, epsilon, weight_decay = _checked(
        "mindspore", learning_rate=learning_rate, decay=decay, momentum=momentum, epsilon=epsilon,
        weight_decay=weight_decay,
    )  # fmt: skip
    _positive("mindspore", loss_scale=loss_scale)
    return _chain(
        _if(loss_scale != 1.0, multiply, 1.0 / loss_scale),
        _l2(weight_decay),
        _scale(centered, decay, epsilon, eps_inside, initial_scale=1.0),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


def heavyball(
    lr: Hyperparameter = 0.0025,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
) -> _Transformation:
    """HeavyBall's RMSprop: a bias-corrected average, and eps as a floor of its root.

        ν ← β·ν + (1−β)·g²,    p ← p − η·λ·p − η·g / max(√(ν/(1−βᵗ)), ε)

    The first step is the sign of the gradient.

    Args:
        lr: η >= 0.
        betas: The second is β in [0, 1), the weight of the past; the first has no effect.
        eps: ε >= 0, in units of |g|.
        weight_decay: λ >= 0, decoupled.

    Returns:
        A transformation with the states (`ScaleByRmsState`, `ScaleByLearningRateState`,
        [`AddDecayedWeightsState`]), the last not if `weight_decay` is 0.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.heavyball(lr=0.5, eps=2.0)
        >>> update, _ = tx.update(jnp.array([4.0, 1.0]), tx.init(jnp.zeros(2)))
        >>> print(update)  # -0.5 * 4 / 4, and -0.5 * 1 / 2
        [-0.5  -0.25]

    Source: HeavyBall 3.2.1.
    """
    lr, beta, eps, weight_decay = _checked(
        "heavyball", **{"lr": lr, "betas[1]": betas[1], "eps": eps, "weight_decay": weight_decay}
    )
    return _chain(
        scale_by_rms(beta, eps, eps_in_sqrt=eps_floor, bias_correction=True),
        scale_by_learning_rate(lr),
        _decoupled(weight_decay, lr),
    )


def tensorflowjs(
    learningRate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter = 0.0,
    epsilon: Hyperparameter = 1e-7,
    centered: bool = False,
) -> _Transformation:
    """TensorFlow.js's RMSProp: epsilon inside, but subtracted in centred mode.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b
        centred:    b ← μ·b + η·g / √(ν−m²−ε)

    Where the variance is below ε, TensorFlow.js gives NaN; this takes no step there. The default of
    epsilon is that of a float32 backend.

    Args:
        learningRate: η >= 0.
        decay, momentum, epsilon: As in `tensorflow1`.
        centered: Divide by the root of the variance minus ε.

    Returns:
        A transformation with the states of `tensorflow1`.

    Raises:
        ValueError, TypeError: as `torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.tensorflowjs(0.5, decay=0.5, epsilon=7.0, centered=True)
        >>> update, _ = tx.update(jnp.array(8.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 32, m = 4, and -0.5 * 8 / sqrt(32 - 16 - 7)
        -1.3333334

    Source: TensorFlow.js 4.22, tfjs-core/src/optimizers/rmsprop_optimizer.ts.
    """
    learningRate, decay, momentum, epsilon = _checked(
        "tensorflowjs", learningRate=learningRate, decay=decay, momentum=momentum, epsilon=epsilon
    )
    return _chain(
        _scale(centered, decay, epsilon, eps_subtracted if centered else eps_inside),
        scale_by_learning_rate(learningRate),
        _trace(momentum),
    )


@dataclasses.dataclass(frozen=True)
class _InverseTime:
    """η / (1 + decay·count), of a number or a schedule."""

    learning_rate: Hyperparameter
    decay: float

    def __call__(self, count: ArrayLike) -> Any:
        steps = jnp.asarray(count, jnp.result_type(float))
        return _at(self.learning_rate, count) / (1.0 + self.decay * steps)


@dataclasses.dataclass(frozen=True)
class _Corrected:
    """η²/η_max."""

    learning_rate: Hyperparameter
    largest: float

    def __call__(self, count: ArrayLike) -> Any:
        rate = _at(self.learning_rate, count)
        return rate * rate / self.largest


@dataclasses.dataclass(frozen=True)
class _OneAhead:
    """A schedule whose first call sees 1."""

    schedule: optax.Schedule

    def __call__(self, count: ArrayLike) -> Any:
        return self.schedule(count + 1)


def _at(value: Hyperparameter, count: ArrayLike) -> Any:
    return value(count) if callable(value) else value


def _mxnet(
    dialect: str,
    centered: bool,
    learning_rate: Hyperparameter,
    decay: Hyperparameter,
    momentum: Hyperparameter,
    epsilon: Hyperparameter,
    denominator: Denominator,
    rescale_grad: float,
    weights: float | None,
    regularize: list[_Transformation | None],
) -> _Transformation:
    _positive(dialect, rescale_grad=rescale_grad, clip_weights=weights)
    rate = _OneAhead(learning_rate) if callable(learning_rate) else learning_rate
    return _chain(
        _if(rescale_grad != 1.0, multiply, rescale_grad),
        *regularize,
        _scale(centered, decay, epsilon, denominator),
        scale_by_learning_rate(rate),
        _trace(momentum) if centered else None,
        _if(weights is not None, clip_weights, weights),
    )


def _chain(*links: optax.GradientTransformation | None) -> _Transformation:
    return chain(*(link for link in links if link is not None))


def _scale(
    centered: bool,
    decay: Hyperparameter,
    eps: Hyperparameter,
    denominator: Denominator,
    initial_scale: ArrayLike = 0.0,
) -> _Transformation:
    scale_by = scale_by_stddev if centered else scale_by_rms
    if denominator in (eps_inside, eps_outside):
        return scale_by(decay, eps, initial_scale, eps_in_sqrt=denominator is eps_inside)
    return scale_by(decay, eps, initial_scale, eps_in_sqrt=denominator)


def _trace(momentum: Hyperparameter, nesterov: bool = False) -> _Transformation | None:
    return None if _is_zero(momentum) else trace(momentum, nesterov)


def _l2(weight_decay: Hyperparameter | None) -> _Transformation | None:
    if weight_decay is None or _is_zero(weight_decay):
        return None
    return add_decayed_weights(weight_decay)


def _decoupled(
    weight_decay: Hyperparameter | None, learning_rate: Hyperparameter
) -> _Transformation | None:
    if weight_decay is None or _is_zero(weight_decay):
        return None
    return add_decayed_weights(weight_decay, learning_rate)


def _clip(dialect: str, **bound: float | None) -> _Transformation | None:
    return next((clip(value) for value in _positive(dialect, **bound).values()), None)


def _if(
    condition: bool, link: Callable[..., _Transformation], *args: Any, **options: Any
) -> _Transformation | None:
    return link(*args, **options) if condition else None


def _is_zero(value: Any) -> bool:
    return not callable(value) and not is_traced(value) and value == 0


def _checked(dialect: str, **hyperparameters: Any) -> list[Any]:
    """Refuse values by the name that the user gave them; None is 0."""
    return [
        checked(
            dialect,
            name,
            0.0 if value is None else value,
            below=1.0 if name in _BELOW_ONE else math.inf,
        )
        for name, value in hyperparameters.items()
    ]


_BELOW_ONE = {"alpha", "rho", "decay", "betas[1]", "gamma1", "gamma2", "momentum"}


def _positive(dialect: str, **numbers: float | None) -> dict[str, float]:
    """Those that are given; they must be greater than 0."""
    given = {name: value for name, value in numbers.items() if value is not None}
    for name, value in given.items():
        if not 0 < checked(dialect, name, value, schedule=False):
            raise ValueError(f"{dialect}: {name} must be in (0, inf), got {value}")
    return given
