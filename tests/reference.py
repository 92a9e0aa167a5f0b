"""RMSprop from its definition, in float64 NumPy: sums over all past gradients, no recursion.

With wᵢ the weight that the average gives to gᵢ after t steps, and w₀ that of the initial value s,

    ν = w₀·s + Σ wᵢ·|gᵢ|²,      μ = Σ wᵢ·gᵢ,      ν − |μ|² = w₀·(s + |μ|²) + Σ wᵢ·|gᵢ − μ|²,

the last a sum of positive terms, so that it is exact to rounding where ν − |μ|² itself cancels.
"""

import numpy as np


def updates(
    grads,
    params=None,
    *,
    learning_rate=None,
    decay=None,
    eps=0.0,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    average=False,
    debias=False,
    bias_correction=False,
    weight_decay=0.0,
    mask=None,
    coupled=False,
    rate_after=False,
    floor=False,
):
    """The updates for gradients [steps, ...]; a hyperparameter is a number or one a step.

    Other frameworks have the decay in the gradient (`coupled`), the rate after the momentum buffer
    (`rate_after`), or ε as the least denominator (`floor`). The buffer may be an average, and that
    be divided by the weight that its updates have (`debias`).
    """
    steps = len(grads)
    rates, eps, momenta, weight_decays = (
        np.broadcast_to(np.asarray(1.0 if h is None else h, float), steps)
        for h in (learning_rate, eps, momentum, weight_decay)
    )
    sign = 1.0 if learning_rate is None else -1.0
    params = np.zeros(grads.shape[1:]) if params is None else np.array(params, copy=True)
    shrinks = mask is None or mask(params)
    buffer = np.zeros_like(grads[0])
    entered = np.array(grads, copy=True)
    result = []
    for t in range(steps):
        if coupled:
            entered[t] += weight_decays[t] * params
        u = entered[t]
        if decay is not None:
            square = _second_moment(
                entered[: t + 1],
                np.broadcast_to(np.asarray(decay, float), steps)[: t + 1],
                initial_scale,
                centered,
                bias_correction,
            )
            root = np.sqrt(square)
            outside = np.maximum(root, eps[t]) if floor else root + eps[t]
            u = u / (np.sqrt(square + eps[t]) if eps_in_sqrt else outside)
        before, after = (1.0, rates[t]) if rate_after else (rates[t], 1.0)
        u = sign * before * u
        if momentum is not None:
            buffer = momenta[t] * buffer + (1 - momenta[t] if average else 1) * u
            u = u + momenta[t] * buffer if nesterov else buffer
            u = u / (1 - momenta[t] ** (t + 1)) if debias else u
        u = after * u
        if shrinks and not coupled:
            u = u - rates[t] * weight_decays[t] * params
        params = params + u
        result.append(u)
    return np.stack(result)


def _second_moment(grads, decays, initial, centered, bias_correction):
    later = np.append(np.cumprod(decays[::-1])[::-1][1:], 1.0)  # product of the decays after i
    weights = ((1 - decays) * later).reshape(-1, *[1] * (grads.ndim - 1))
    first = np.prod(decays)
    if bias_correction:
        weights, first = weights / (1 - first), first / (1 - first)
    if not centered:
        return first * initial + (weights * np.abs(grads) ** 2).sum(0)
    mean = (weights * grads).sum(0)
    spread = (weights * np.abs(grads - mean) ** 2).sum(0)
    if bias_correction:
        # The corrected weights sum to one: the initial mean, 0, has lost its share. At the first
        # step one sample has no spread, and the rule is to divide by the gradient itself.
        alone = len(grads) == 1 and initial == 0
        return np.abs(grads[0]) ** 2 if alone else first * initial + spread
    return first * (initial + np.abs(mean) ** 2) + spread
