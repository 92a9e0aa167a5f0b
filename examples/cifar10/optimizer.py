"""The optimizer: RMSprop as a chain of links."""

import math

import jax
import optax

import optax_rmsprop
from examples.cifar10.configs import Recipe


def optimizer(recipe: Recipe, total_steps: int) -> optax.GradientTransformation:
    """RMSprop with Nesterov momentum, a learning rate for each kind of leaf, decoupled decay.

    RMSprop makes every coordinate's step about as large as the learning rate. A filter of
    fan-in n moves its output by n such steps, so its learning rate falls as 1 / sqrt(n).
    """

    def rate(leaf):  # The rank tells what a leaf is.
        fan_in = math.prod(leaf.shape[:-1])
        scale = recipe.filters_scale / math.sqrt(fan_in)
        return {1: 1.0, 2: recipe.head_scale, 4: scale}[leaf.ndim]

    def per_kind(updates, params):
        return jax.tree.map(lambda u, p: rate(p) * u, updates, params)

    def not_bias(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    peak, warmup = recipe.learning_rate, round(recipe.warmup * total_steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.2 * peak, peak, warmup),
            optax.linear_schedule(peak, recipe.final_scale * peak, total_steps - warmup),
        ],
        [warmup],
    )
    return optax.chain(
        optax_rmsprop.scale_by_rms(recipe.decay, recipe.eps, bias_correction=True),
        optax_rmsprop.trace(recipe.momentum, nesterov=True),
        optax.stateless(per_kind),
        optax.add_decayed_weights(recipe.weight_decay, not_bias),
        optax_rmsprop.scale_by_learning_rate(schedule),
    )
