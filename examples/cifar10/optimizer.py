"""The optimizer: RMSprop as a chain of links, or any other by its name."""

import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import optax_rmsprop
from examples.cifar10.configs import Arguments, Optimization, Recipe, UserError
from optax_rmsprop import dialects, storage


def optimizer(
    recipe: Recipe, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the transformation from gradients to steps, and the schedule of its rate."""
    config = recipe.optimization
    learning_rate = schedule(config, total_steps)
    epochs = recipe.network.whitening_bias_epochs / recipe.epochs
    tx = named(config.optimizer, learning_rate, config.arguments)
    codecs = [FORMATS[name] for name in (config.storage, config.momentum_storage)]
    if any(codecs):
        tx = storage.stored_as(tx, *codecs)
    tx = optax.chain(
        tx,
        scale_by_kind(config, learning_rate, round(epochs * total_steps)),
    )
    return tx, learning_rate


def schedule(config: Optimization, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the steps done."""
    peak, warmup = config.learning_rate, round(config.warmup * total_steps)
    rest = total_steps - warmup
    after = {
        "linear": optax.linear_schedule(peak, config.final_scale * peak, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_scale),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.2 * peak, peak, warmup), after], [warmup])


def rmsprop(
    learning_rate: optax.Schedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformation:
    """RMSprop with the momentum before the learning rate, so that a falling rate acts at once.

    `optax_rmsprop.rmsprop` is Optax's order, the other one.
    """
    return optax_rmsprop.chain(
        optax_rmsprop.scale_by_rms(decay, eps, bias_correction=bias_correction),
        optax_rmsprop.trace(momentum, nesterov=nesterov),
        optax_rmsprop.scale_by_learning_rate(learning_rate),
    )


FORMATS = {
    "float32": None,
    "uint16": storage.uint16(),
    "uint8": storage.uint8(),
    "int16": storage.int16(),
    "int8": storage.int8(),
}

# What `--optimizer` names besides the dialects; the first four are the presets'.
OPTIMIZERS = {
    "small": functools.partial(
        rmsprop, decay=0.98, momentum=0.85, nesterov=True, bias_correction=True
    ),
    "airbench": functools.partial(
        rmsprop, decay=0.95, momentum=0.85, nesterov=True, bias_correction=True
    ),
    "keras_cnn": functools.partial(dialects.keras2, decay=1e-6),
    "crowded_valley_tuned": functools.partial(dialects.tensorflow1, decay=0.9133996),
    "rmsprop": rmsprop,
    "optax_rmsprop": optax_rmsprop.rmsprop,
    "optax_sgd": optax.sgd,
    "optax_adam": optax.adam,
}


def named(
    name: str, learning_rate: optax.Schedule, arguments: Arguments
) -> optax.GradientTransformation:
    """Build an optimizer from its name, its learning rate and changes to its other arguments."""
    factory = OPTIMIZERS.get(name) or getattr(dialects, name)
    known = list(inspect.signature(factory).parameters)[1:]
    for key, _ in arguments:
        if key not in known:
            raise UserError(f"--arguments {key}: {name} has {', '.join(known)}")
    try:
        return factory(learning_rate, **dict(arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f"--arguments: {error}") from error


def scale_by_kind(
    config: Optimization, learning_rate: Callable, bias_steps: int
) -> optax.GradientTransformation:
    """Give each kind of leaf its share of a step, then decay what is no bias.

    RMSprop makes every coordinate's step about as large as the learning rate. A filter of
    fan-in n moves its output by n such steps, so its learning rate falls as 1 / sqrt(n).
    """

    def share(path, leaf, count):  # The rank tells what a leaf is.
        if leaf.ndim == 4:
            return config.filters_scale / math.prod(leaf.shape[:-1]) ** config.fan_in_power
        if leaf.ndim == 2:
            return config.head_scale
        if path[-1].key == "whitening_bias":
            return (count < bias_steps).astype(leaf.dtype)
        return 1.0

    def update(updates, count, params):
        decay = learning_rate(count) * config.weight_decay

        def step(path, u, p):
            u = share(path, p, count) * u
            return u - decay * p if p.ndim > 1 else u

        return jax.tree_util.tree_map_with_path(step, updates, params), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)
