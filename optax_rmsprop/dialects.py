"""Other frameworks' RMSprop, with their own argument names, defaults and order of links.

A dialect is one rule as a function. It computes nothing: it is constants and an order of links.

    torch         [L2] → rms(eps outside) → trace → rate
    tensorflow1   rms(eps inside, ν starts at 1) → rate → trace
    keras         [clip] → rms(eps inside) → rate → trace → [decoupled decay]

A call or a config of the framework pastes in unchanged. Arguments that have no meaning here are
left out, and those that follow one of them are keyword-only. The table of frameworks and versions,
with the call that reproduces each, is `docs/dialects.md`.

In the formulas g is the gradient, ν the average of g², m the average of g, b the momentum buffer
and p the parameter. η is the learning rate, μ the momentum, ε epsilon and λ the weight decay; the
weight of the past is α, β, γ or ρ, as the framework has it. All averages and buffers start at 0
where no ν₀ is given.

Every learning rate, decay, epsilon, momentum and weight decay is a number or a schedule `count ->
value` whose first call sees 0. A momentum or weight decay of None, or the Python number 0, makes no
link and no state. An array makes one, whatever its value, since that may not be known.

Where a framework turns to NaN, or accepts an option and ignores it, the dialect follows the formula
and not the defect. Like all of the package, a dialect keeps its accumulators in float32 at least.

Every dialect returns a transformation whose state is the tuple of its links' states, in the order
of the chain: `ScaleByRmsState` (centred: `ScaleByStddevState`) for the average,
`ScaleByLearningRateState` for the rate, `TraceState` for momentum, `AddDecayedWeightsState` for
weight decay, and an `EmptyState` for what scales or clips. `update` needs `params` where weights
decay or are clipped.

Every dialect raises a ValueError if a number is out of its range, or if a gradient's shape or tree
is not init's. It raises a TypeError if a number is no scalar, a switch is neither True nor False,
or a gradient is not floating point.
"""

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ._framework_links import adaptive_clip_by_norm as adaptive_clip_by_norm
from ._framework_links import cautious as cautious
from ._framework_links import clip as clip
from ._framework_links import clip_by_norm as clip_by_norm
from ._framework_links import clip_weights as clip_parameters  # an argument has its name
from ._framework_links import clip_weights as clip_weights
from ._framework_links import multiply as multiply
from ._framework_links import split_complex as split_complex
from ._jax import is_traced
from ._link import Hyperparameter, Static, checked, is_number
from ._rule import Denominator, eps_floor, eps_subtracted
from ._schedules import Corrected as Corrected
from ._schedules import InverseTime as InverseTime
from ._schedules import OneAhead as OneAhead
from ._schedules import corrected, one_ahead
from .links import (
    Mask,
    add_decayed_weights,
    chain,
    scale_by_learning_rate,
    scale_by_rms,
    scale_by_stddev,
    trace,
)

_Transformation = optax.GradientTransformationExtraArgs


# A number 0 makes no link, as None does.
_dialect = checked(zero_is_none=True)


@_dialect
def torch(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    centered: bool = False,
    *,
    maximize: bool = False,
    mask: Mask | None = None,
) -> _Transformation:
    """PyTorch's RMSprop: eps outside the root, momentum of directions, L2 decay.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + g / (√ν+ε),    p ← p − η·b

    LuaTorch, MLX, Caffe, bitsandbytes (32 bit), Burn, candle and R torch have this rule too; what
    differs is defaults. The buffer holds directions, so that a scheduled `lr` acts at once. The
    real and the imaginary part of a complex parameter are averaged apart, and its state has a last
    axis of two. `torch.optim.RMSprop` gives NaN on constant gradients in centred mode, and for 0/0;
    this does not.

    Args:
        lr: η >= 0, the learning rate.
        alpha: α in [0, 1), the weight of the past in the average.
        eps: ε >= 0, in units of |g|.
        weight_decay: λ >= 0, coupled: it is part of the gradient, averaged and divided with it.
        momentum: μ in [0, 1).
        centered: Divide by the standard deviation, √(ν−m²), instead of the root mean square √ν.
        mask: True where weights decay: a tree of booleans, a prefix of one, or a function from the
            parameters to it, which sees a complex one with a last axis of two. The framework has
            parameter groups for it.
        maximize: Climb. The weight decay still shrinks the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects
        >>> tx = dialects.torch(lr=0.5, alpha=0.75, eps=2.0)
        >>> update, _ = tx.update(jnp.array(4.0), tx.init(jnp.array(0.0)))
        >>> print(update)  # nu = 0.25 * 4², and -0.5 * 4 / (2 + 2)
        -0.5

    Source: PyTorch 2.13, torch/optim/rmsprop.py.
    """
    return split_complex(
        _chain(
            multiply(-1.0) if maximize else None,
            _l2(weight_decay, mask),
            _scale(centered, alpha, eps, eps_in_sqrt=False),
            _trace(momentum),
            scale_by_learning_rate(lr),
        )
    )


@_dialect
def tensorflow1(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = None,
    epsilon: Hyperparameter = 1e-10,
    *,
    centered: bool = False,
) -> _Transformation:
    """TensorFlow 1's RMSprop: ν starts at 1, epsilon inside, the rate in the buffer.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b,    ν₀ = 1

    IMPALA and several A3Cs have this optimizer. Since ν starts at 1, the first 1/(1−ρ) steps are a
    warm-up, proportional to the gradient. The buffer holds steps, so that a drop of the rate takes
    1/(1−μ) steps to act. TensorFlow squares a complex gradient without conjugation, so that its
    steps can point anywhere; this takes |g|².

    Args:
        learning_rate: η >= 0.
        decay: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1).
        epsilon: ε >= 0, in units of |g|².
        centered: Divide by the standard deviation, √(ν−m²), instead of the root mean square √ν.

    Source: TensorFlow 2.21, tensorflow/python/training/rmsprop.py (tf.compat.v1.train).
    """
    return _chain(
        _scale(centered, decay, epsilon, initial_scale=1.0),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


@_dialect
def keras(
    learning_rate: Hyperparameter = 1e-3,
    rho: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = None,
    epsilon: Hyperparameter = 1e-7,
    centered: bool = False,
    weight_decay: Hyperparameter | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    *,
    mask: Mask | None = None,
) -> _Transformation:
    """Keras's RMSprop (3, and 2.11 on): epsilon inside, the rate in the buffer.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − η·λ·p − b

    Keras's documentation shows epsilon outside the root; its code has it inside. In place of its
    other arguments, `optax.ema` averages weights, `optax.MultiSteps` accumulates gradients, and a
    `loss_scale_factor` is a factor of the gradients. More than one kind of clipping raises a
    ValueError.

    Args:
        learning_rate: η >= 0.
        rho: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1).
        epsilon: ε >= 0, in units of |g|².
        centered: Divide by the standard deviation, √(ν−m²), instead of the root mean square √ν.
        weight_decay: λ >= 0, decoupled: it follows the rate and enters no buffer.
        mask: True where weights decay, as in `torch`; Keras has `exclude_from_weight_decay`.
        clipnorm: Shorten the gradient of each parameter to this length, > 0.
        clipvalue: Clip each entry of the gradients to ± this, > 0.
        global_clipnorm: Shorten all gradients together to this length, > 0.

    Source: Keras 3.15, keras/src/optimizers/rmsprop.py.
    """
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    clips = {name: bound for name, bound in clips.items() if bound is not None}
    if len(clips) > 1:
        raise ValueError(f"keras: only one kind of clipping can be used, got {clips}")
    return _chain(
        _if(clipnorm, clip_by_norm, together=False),
        _if(clipvalue, clip),
        _if(global_clipnorm, clip_by_norm, together=True),
        _scale(centered, rho, epsilon),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
        _decoupled(weight_decay, learning_rate, mask),
    )


@_dialect
def keras2(
    learning_rate: Hyperparameter = 1e-3,
    rho: Hyperparameter = 0.9,
    momentum: Static | None = None,
    epsilon: Hyperparameter = 1e-7,
    centered: bool = False,
    *,
    decay: ArrayLike = 0.0,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
) -> _Transformation:
    """RMSprop of tf.keras 2.0 to 2.10: epsilon outside, or inside with momentum.

        μ = 0:    p ← p − η·g / (√ν+ε)        μ > 0:    b ← μ·b + η·g / √(ν+ε),    p ← p − b

    With ε = 1e-7 the smallest denominator is 1e-7 without momentum and 3e-4 with it. Keras 2.3 has
    this rule, but ignored `centered` without momentum.

    Args:
        learning_rate, rho, centered: As in `keras`.
        momentum: μ in [0, 1), a Python number, or a schedule, which counts as μ > 0. An array is
            refused: `optax.inject_hyperparams` needs `static_args="momentum"`.
        epsilon: ε >= 0, in units of |g| without momentum and of |g|² with it; 0 means 1e-7.
        decay: A number >= 0; the rate is divided by 1 + decay·count.
        clipnorm, clipvalue, global_clipnorm: As in `keras`; values are clipped before a norm, and
            two norms raise a ValueError.

    Source: tf_keras 2.21, tf_keras/optimizers/legacy/rmsprop.py.
    """
    if clipnorm is not None and global_clipnorm is not None:
        raise ValueError(f"keras2: got clipnorm={clipnorm} and global_clipnorm={global_clipnorm}")
    rate = learning_rate if is_number(decay, 0) else InverseTime(learning_rate, decay)
    return _chain(
        _if(clipvalue, clip),
        _if(clipnorm, clip_by_norm, together=False),
        _if(global_clipnorm, clip_by_norm, together=True),
        _scale(centered, rho, _nonzero(epsilon, 1e-7), eps_in_sqrt=momentum is not None),
        scale_by_learning_rate(rate),
        _trace(momentum),
    )


@_dialect
def timm(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-10,
    weight_decay: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    *,
    lr_max: float | None = None,
    mask: Mask | None = None,
) -> _Transformation:
    """RMSpropTF of timm: TensorFlow 1's rule, with weight decay of three kinds.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b,    ν₀ = 1

    timm's `rmsproptf` is this with L2 decay, `rmsproptfw` with decoupled decay, `rmsproptfc` with
    corrected decay, and `crmsproptf` with caution. Its `rmsprop` is `torch` with alpha 0.9. The
    states of the average, the rate and the buffer are a tuple within the state.

    Args:
        lr, alpha, weight_decay, momentum, centered, mask: As in `torch`.
        eps: ε >= 0, in units of |g|².
        decoupled_decay: p ← p − η·λ·p, outside the averages, instead of L2.
        corrected_weight_decay: With `decoupled_decay`, p ← p − (η²/η_max)·λ·p.
        lr_in_momentum: The rate in the momentum buffer (TensorFlow), not after it (PyTorch).
        caution: Take no step where the buffer and the gradient disagree in sign, and larger ones
            elsewhere. Without momentum it does nothing.
        lr_max: η_max > 0, the largest rate: the `lr` that timm's constructor would get. A corrected
            decay needs it if `lr` is a schedule or an array, as one that is injected.

    Source: timm 1.0.31, timm/optim/rmsprop_tf.py.
    """
    rate, buffer = scale_by_learning_rate(lr), _trace(momentum)
    order = (rate, buffer) if lr_in_momentum else (buffer, rate)
    step = _chain(_scale(centered, alpha, eps, initial_scale=1.0), *order)
    if caution and buffer is not None:
        step = cautious(step)
    if not decoupled_decay:
        return _chain(_l2(weight_decay, mask), step)
    decay_rate = corrected(lr, lr_max) if corrected_weight_decay else lr
    return _chain(step, _decoupled(weight_decay, decay_rate, mask))


@_dialect
def stable_baselines3(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    centered: bool = False,
    *,
    mask: Mask | None = None,
) -> _Transformation:
    """Stable-Baselines3's RMSpropTFLike: ν starts at 1, the rate after the buffer.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + g / √(ν+ε),    p ← p − η·b,    ν₀ = 1

    The denominator and the start are TensorFlow's, the momentum is PyTorch's. With a schedule and
    momentum it is therefore not `tensorflow1`. dfdx has this rule, with alpha 0.9.

    Args:
        lr, alpha, weight_decay, momentum, centered, mask: As in `torch`.
        eps: ε >= 0, in units of |g|².

    Source: Stable-Baselines3 2.9.2, common/sb2_compat/rmsprop_tf_like.py.
    """
    return _chain(
        _l2(weight_decay, mask),
        _scale(centered, alpha, eps, initial_scale=1.0),
        _trace(momentum),
        scale_by_learning_rate(lr),
    )


@_dialect
def pfrl(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    centered: bool = False,
    *,
    mask: Mask | None = None,
) -> _Transformation:
    """RMSpropEpsInsideSqrt of pfrl: PyTorch's rule with eps inside the root.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    b ← μ·b + g / √(ν+ε),    p ← p − η·b

    With lr 7e-4, alpha 0.99 and eps 0.1 it is the A3C paper's shared RMSProp, as pfrl and chainerrl
    have it. Other implementations of that paper start ν at 1 (`tensorflow1`).

    Args:
        lr, alpha, weight_decay, momentum, centered, mask: As in `torch`.
        eps: ε >= 0, in units of |g|².

    Source: pfrl 0.4.0, pfrl/optimizers/rmsprop_eps_inside_sqrt.py.
    """
    return _chain(
        _l2(weight_decay, mask),
        _scale(centered, alpha, eps),
        _trace(momentum),
        scale_by_learning_rate(lr),
    )


@_dialect
def graves(
    lr: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.95,
    momentum: Hyperparameter | None = 0.9,
    eps: Hyperparameter = 1e-4,
) -> _Transformation:
    """Graves's RMSprop: always centred, eps inside, the rate in the buffer.

        ν ← α·ν + (1−α)·g²,    m ← α·m + (1−α)·g,    b ← μ·b + η·g / √(ν−m²+ε),    p ← p − b

    DQN's (Nature, 2015) is `graves(lr=2.5e-4, alpha=0.95, momentum=0.0, eps=0.01)`: the "gradient
    momentum" of that paper is the α of m, not a momentum buffer. The names of the arguments are
    those of Chainer's RMSpropGraves.

    Args:
        lr, alpha, momentum: As in `torch`.
        eps: ε >= 0, in units of |g|².

    Source: Graves, Generating Sequences With Recurrent Neural Networks, 2013, equations 38-41.
    """
    return _chain(scale_by_stddev(alpha, eps), scale_by_learning_rate(lr), _trace(momentum))


@_dialect
def hinton(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = None,
) -> _Transformation:
    """Hinton's RMSprop: no epsilon, and Nesterov momentum of divided corrections.

        ν ← ρ·ν + (1−ρ)·g²,    d = η·g / √ν,    b ← μ·b + d,    p ← p − (d + μ·b)

    In the lecture the root mean square divides the correction, not the jump, and the gradient is
    evaluated after the momentum jump. Here `params` is that look-ahead point: if w is the lecture's
    weight and s the buffer, then p = w − μ·s. 0/0 is no step.

    Args:
        learning_rate: η >= 0; the lecture names none.
        decay: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1); the lecture names none.

    Source: Hinton, Coursera lecture 6e, 2012, as lecture notes give it.
    """
    return _chain(
        scale_by_rms(decay, eps=0.0),
        scale_by_learning_rate(learning_rate),
        _trace(momentum, nesterov=True),
    )


@_dialect
def mxnet(
    learning_rate: Hyperparameter = 1e-3,
    gamma1: Hyperparameter = 0.9,
    gamma2: Hyperparameter | None = 0.9,
    epsilon: Hyperparameter = 1e-8,
    centered: bool = False,
    clip_weights: float | None = None,
    *,
    wd: Hyperparameter | None = None,
    rescale_grad: float | None = None,
    clip_gradient: float | None = None,
    mask: Mask | None = None,
) -> _Transformation:
    """MXNet 1's RMSProp: centred with momentum, or neither; clipping after L2.

        g ← clip(c·g + λ·p),    ν ← γ₁·ν + (1−γ₁)·g²,    p ← clip(p − η·g / √(ν+ε))

    This is the rule of versions 0.10 to 1.9. Centred it is `graves`, with γ₂ as the momentum. A
    scheduled rate is called with 1 at the first update, as in MXNet, but with 0 by
    `optax.inject_hyperparams`, which calls it itself.

    Args:
        learning_rate: η >= 0.
        gamma1: γ₁ in [0, 1), the weight of the past in the average.
        gamma2: γ₂ in [0, 1), the momentum if `centered`; else it has no effect.
        epsilon: ε >= 0, in units of |g|².
        centered: As in `torch`, and with momentum.
        clip_weights: Keep the parameters in ± this, > 0.
        wd: λ >= 0, coupled.
        mask: True where weights decay, as in `torch`; MXNet has `wd_mult`, which is 0 by default
            for names that end in neither "_weight" nor "_gamma".
        rescale_grad: c > 0, a factor of the gradients.
        clip_gradient: Clip each entry of the gradients, decay included, to ± this, > 0.

    Source: MXNet 1.9.1, python/mxnet/optimizer/optimizer.py.
    """
    return _chain(
        _if(rescale_grad, multiply),
        _l2(wd, mask),
        _if(clip_gradient, clip),
        _scale(centered, gamma1, epsilon),
        scale_by_learning_rate(one_ahead(learning_rate)),
        _trace(gamma2) if centered else None,
        _if(clip_weights, clip_parameters),
    )


@_dialect
def mxnet2(
    learning_rate: Hyperparameter = 1e-3,
    rho: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = 0.9,
    epsilon: Hyperparameter = 1e-8,
    centered: bool = False,
    clip_weights: float | None = None,
    *,
    wd: Hyperparameter | None = None,
    rescale_grad: float | None = None,
    clip_gradient: float | None = None,
    mask: Mask | None = None,
) -> _Transformation:
    """MXNet 2's RMSProp: epsilon outside, but inside if centred; clipping before L2.

        g ← clip(c·g) + λ·p,    ν ← ρ·ν + (1−ρ)·g²,    p ← clip(p − η·g / (√ν+ε))

    Centred it is `graves`. A scheduled rate is called with 1 at the first update, as in `mxnet`.

    Args:
        learning_rate, centered, clip_weights, wd, mask, rescale_grad: As in `mxnet`.
        rho: ρ in [0, 1), the weight of the past in the average.
        momentum: μ in [0, 1), if `centered`; else it has no effect.
        epsilon: ε >= 0, in units of |g|, or of |g|² if `centered`.
        clip_gradient: Clip each entry of the gradients, without the decay, to ± this, > 0.

    Source: MXNet 2.0, python/mxnet/optimizer/rmsprop.py.
    """
    return _chain(
        _if(rescale_grad, multiply),
        _if(clip_gradient, clip),
        _l2(wd, mask),
        _scale(centered, rho, epsilon, eps_in_sqrt=centered),
        scale_by_learning_rate(one_ahead(learning_rate)),
        _trace(momentum) if centered else None,
        _if(clip_weights, clip_parameters),
    )


@_dialect
def paddle(
    learning_rate: Hyperparameter,
    rho: Hyperparameter = 0.95,
    epsilon: Hyperparameter = 1e-6,
    momentum: Hyperparameter | None = None,
    centered: bool = False,
    *,
    weight_decay: Hyperparameter | None = None,
    grad_clip: optax.GradientTransformation | None = None,
    mask: Mask | None = None,
) -> _Transformation:
    """Paddle's RMSProp: epsilon inside, the rate in the buffer, clipping before L2.

        g ← clip(g) + λ·p,    ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b

    Paddle's documentation speaks of Nesterov momentum; its code has plain momentum.

    Args:
        learning_rate, rho, epsilon, momentum, centered: As in `keras`.
        weight_decay, mask: As in `torch`.
        grad_clip: A transformation of the gradients in place of Paddle's object: `optax.clip(c)`
            for ClipGradByValue, `optax.clip_by_global_norm(c)` for ClipGradByGlobalNorm. Its state
            comes first.

    Source: PaddlePaddle 3.3.1, python/paddle/optimizer/rmsprop.py.
    """
    return _chain(
        grad_clip,
        _l2(weight_decay, mask),
        _scale(centered, rho, epsilon),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


@_dialect
def chainer(
    lr: Hyperparameter = 0.01,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    eps_inside_sqrt: bool = False,
) -> _Transformation:
    """Chainer's RMSprop: eps outside or inside, no momentum.

        ν ← α·ν + (1−α)·g²,    p ← p − η·g / (√ν+ε)    or    p ← p − η·g / √(ν+ε)

    Lasagne's is this with `eps_inside_sqrt`. Chainer's hook WeightDecay(λ) is
    `optax.add_decayed_weights(λ)` before this in a chain; its RMSpropGraves is `graves`.

    Args:
        lr, alpha: As in `torch`.
        eps: ε >= 0, in units of |g| outside the root and of |g|² inside.
        eps_inside_sqrt: ε inside the root.

    Source: Chainer 7.8.1, chainer/optimizers/rmsprop.py.
    """
    return _chain(
        scale_by_rms(alpha, eps, eps_in_sqrt=eps_inside_sqrt),
        scale_by_learning_rate(lr),
    )


@_dialect
def sonnet(
    learning_rate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = None,
    epsilon: Hyperparameter = 1e-10,
    centered: bool = False,
) -> _Transformation:
    """Sonnet 2's RMSProp: TensorFlow 1's rule and defaults, but ν starts at 0.

        ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b

    Args:
        learning_rate, decay, momentum, epsilon, centered: As in `tensorflow1`.

    Source: Sonnet 2.0.2, sonnet/src/optimizers/rmsprop.py.
    """
    return _chain(
        _scale(centered, decay, epsilon),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


@_dialect
def torchopt(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    centered: bool = False,
    *,
    initial_scale: ArrayLike = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    mask: Mask | None = None,
) -> _Transformation:
    """TorchOpt's RMSProp: PyTorch's rule with an initial ν and Nesterov momentum.

        g ← g + λ·p,    ν ← α·ν + (1−α)·g²,    d = g / (√ν+ε),    b ← μ·b + d
        p ← p − η·b    or, with `nesterov`,    p ← p − η·(d + μ·b)

    Args:
        lr, alpha, eps, weight_decay, momentum, centered, mask, maximize: As in `torch`.
        initial_scale: ν₀, a number >= 0.
        nesterov: The second form of the step. Without momentum it does nothing.

    Source: TorchOpt 0.7.3, torchopt/alias/rmsprop.py.
    """
    return _chain(
        multiply(-1.0) if maximize else None,
        _l2(weight_decay, mask),
        _scale(centered, alpha, eps, initial_scale, eps_in_sqrt=False),
        _trace(momentum, nesterov),
        scale_by_learning_rate(lr),
    )


@_dialect
def mindspore(
    learning_rate: Hyperparameter = 0.1,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = None,
    epsilon: Hyperparameter = 1e-10,
    *,
    centered: bool = False,
    loss_scale: float | None = None,
    weight_decay: Hyperparameter | None = None,
    mask: Mask | None = None,
) -> _Transformation:
    """MindSpore's nn.RMSProp: TensorFlow 1's rule with a loss scale and L2 decay.

        g ← g/s + λ·p,    ν ← ρ·ν + (1−ρ)·g²,    b ← μ·b + η·g / √(ν+ε),    p ← p − b,    ν₀ = 1

    This is the documented rule. The CPU kernel of 2.10 has epsilon outside the root in its vector
    lanes and inside elsewhere, so that a parameter's step depends on its position. MindSpore's
    `experimental.optim.RMSprop` is `torch`.

    Args:
        learning_rate, decay, momentum, epsilon, centered: As in `tensorflow1`.
        loss_scale: s > 0, the factor that the loss was multiplied by.
        weight_decay: λ >= 0, coupled; not divided by the loss scale.
        mask: As in `torch`.

    Source: MindSpore 2.10, mindspore/nn/optim/rmsprop.py.
    """
    return _chain(
        None if loss_scale is None else multiply(1.0 / loss_scale),
        _l2(weight_decay, mask),
        _scale(centered, decay, epsilon, initial_scale=1.0),
        scale_by_learning_rate(learning_rate),
        _trace(momentum),
    )


@_dialect
def heavyball(
    lr: Hyperparameter = 0.0025,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter | None = None,
    *,
    mask: Mask | None = None,
) -> _Transformation:
    """HeavyBall's RMSprop: a bias-corrected average, and eps as a floor of its root.

        ν ← β·ν + (1−β)·g²,    p ← p − η·λ·p − η·g / max(√(ν/(1−βᵗ)), ε)

    The first step is η times the sign of the gradient, where |g| >= ε.

    Args:
        lr, eps, mask: As in `torch`.
        betas: The second is β in [0, 1), the weight of the past; the first has no effect.
        weight_decay: λ >= 0, decoupled.

    Source: HeavyBall 3.2.1.
    """
    return _chain(
        scale_by_rms(betas[1], eps, eps_in_sqrt=eps_floor, bias_correction=True),
        scale_by_learning_rate(lr),
        _decoupled(weight_decay, lr, mask),
    )


@_dialect
def tensorflowjs(
    learningRate: Hyperparameter,
    decay: Hyperparameter = 0.9,
    momentum: Hyperparameter | None = None,
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

    Source: TensorFlow.js 4.22, tfjs-core/src/optimizers/rmsprop_optimizer.ts.
    """
    return _chain(
        _scale(centered, decay, epsilon, eps_in_sqrt=eps_subtracted if centered else True),
        scale_by_learning_rate(learningRate),
        _trace(momentum),
    )


def _chain(*links: optax.GradientTransformation | None) -> _Transformation:
    return chain(*(link for link in links if link is not None))


def _scale(
    centered: bool,
    decay: Hyperparameter,
    eps: Hyperparameter,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool | Denominator = True,
) -> _Transformation:
    scale_by = scale_by_stddev if centered else scale_by_rms
    return scale_by(decay, eps, initial_scale, eps_in_sqrt)


def _trace(momentum: Hyperparameter | None, nesterov: bool = False) -> _Transformation | None:
    return _if(momentum, trace, nesterov)


def _l2(weight_decay: Hyperparameter | None, mask: Mask | None) -> _Transformation | None:
    return _if(weight_decay, add_decayed_weights, mask=mask)


def _decoupled(
    weight_decay: Hyperparameter | None, learning_rate: Hyperparameter, mask: Mask | None
) -> _Transformation | None:
    return _if(weight_decay, add_decayed_weights, learning_rate, mask)


def _if(
    value: Any, link: Callable[..., _Transformation], *args: Any, **options: Any
) -> _Transformation | None:
    """The link of this value, if there is one."""
    return None if value is None else link(value, *args, **options)


def _nonzero(value: Hyperparameter, default: float) -> Hyperparameter:
    """The default in place of 0, in place of an array that is 0 too."""
    if is_traced(value):
        return jnp.where(cast(Any, value) == 0, default, cast(Any, value))
    return default if is_number(value, 0) else value
