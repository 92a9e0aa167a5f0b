"""The two kinds of stochastic policies that the tasks need, on top of a network's last two layers.

A network gives the features of its last hidden layer and the outputs of the layer after it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Policy(NamedTuple):
    """How outputs become actions."""

    noise: Callable[[jax.Array, jax.Array, int], jax.Array]
    """Maps a key, the logarithm of the deviations, and a number of copies to a rollout's noise."""
    sample: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    """Maps a key, features, outputs and noise to an action."""
    log_prob: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    """Maps the logarithm of the deviations, features, outputs and an action to its log density."""
    mode: Callable[[jax.Array], jax.Array]
    """Maps outputs to the most probable action."""


def _categorical_log_prob(log_std: Any, features: Any, outputs: Any, action: Any) -> jax.Array:
    return jax.nn.log_softmax(outputs)[action]


def _exploring_log_prob(log_std: Any, features: Any, outputs: Any, action: Any) -> jax.Array:
    variance = jax.lax.stop_gradient(features) ** 2 @ jnp.exp(2 * log_std)
    return jax.scipy.stats.norm.logpdf(action, outputs[0], jnp.sqrt(variance + 1e-6))


CATEGORICAL = Policy(
    noise=lambda key, log_std, copies: jnp.zeros((copies, 0)),
    sample=lambda key, features, outputs, noise: jax.random.categorical(key, outputs),
    log_prob=_categorical_log_prob,
    mode=lambda outputs: outputs.argmax(),
)

# Generalized state-dependent exploration: Raffin, Kober and Stulp, "Smooth Exploration for Robotic
# Reinforcement Learning", 2021. The noise of an action is linear in the features, by weights that
# are drawn once for a rollout.
EXPLORING = Policy(
    noise=lambda key, log_std, copies: (
        jnp.exp(log_std) * jax.random.normal(key, (copies, *log_std.shape))
    ),
    sample=lambda key, features, outputs, noise: outputs[0] + features @ noise,
    log_prob=_exploring_log_prob,
    mode=lambda outputs: outputs[0],
)
