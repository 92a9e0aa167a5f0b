"""Gymnasium's classic control tasks as pure functions, for any number of copies in one program.

The equations and the constants are those of Gymnasium 1.4 (Farama Foundation), whose states are
float64 where these have JAX's default precision. Nothing is reset on its own, or counts steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Environment(NamedTuple):
    """A task: what starts an episode, what a step does, and what an agent sees."""

    reset: Callable[[jax.Array], Any]
    """Maps a key to a state."""
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array]]
    """Maps a state, an action and a key to the next state, a reward, and whether it is terminal."""
    observe: Callable[[Any], jax.Array]
    """Maps a state to an observation."""
    actions: int
    """The number of actions, or 0 where an action is a number in [-2, 2]."""
    limit: int
    """The steps after which an episode is cut off, which is not a terminal state."""


def _cartpole_step(state: jax.Array, action: jax.Array, key: jax.Array) -> Any:
    _, velocity, angle, spin = state
    gravity, cart, pole, half_length, tau = 9.8, 1.0, 0.1, 0.5, 0.02
    force = jnp.where(action == 1, 10.0, -10.0)
    cos, sin, total = jnp.cos(angle), jnp.sin(angle), cart + pole
    push = (force + pole * half_length * spin**2 * sin) / total
    angular = (gravity * sin - cos * push) / (half_length * (4 / 3 - pole * cos**2 / total))
    linear = push - pole * half_length * angular * cos / total
    change = jnp.stack([velocity, linear, spin, angular])
    state = state + tau * change
    fallen = (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 12 * 2 * jnp.pi / 360)
    return state, jnp.ones(()), fallen


def _acrobot_change(state: jax.Array, torque: jax.Array) -> jax.Array:
    # Two links of length 1, mass 1 and inertia 1, whose centres of mass are in their middle.
    first, second, spin1, spin2 = state
    d1 = 0.25 + (1.25 + jnp.cos(second)) + 2
    d2 = 0.25 + 0.5 * jnp.cos(second) + 1
    phi2 = 0.5 * 9.8 * jnp.cos(first + second - jnp.pi / 2)
    phi1 = (
        -0.5 * spin2**2 * jnp.sin(second)
        - spin2 * spin1 * jnp.sin(second)
        + 1.5 * 9.8 * jnp.cos(first - jnp.pi / 2)
        + phi2
    )
    pull = torque + d2 / d1 * phi1 - 0.5 * spin1**2 * jnp.sin(second) - phi2
    angular2 = pull / (1.25 - d2**2 / d1)
    angular1 = -(d2 * angular2 + phi1) / d1
    return jnp.stack([spin1, spin2, angular1, angular2])


def _acrobot_step(state: jax.Array, action: jax.Array, key: jax.Array) -> Any:
    # The classic Runge-Kutta method, over a fifth of a second.
    torque, dt = action - 1.0, 0.2
    k1 = _acrobot_change(state, torque)
    k2 = _acrobot_change(state + dt / 2 * k1, torque)
    k3 = _acrobot_change(state + dt / 2 * k2, torque)
    k4 = _acrobot_change(state + dt * k3, torque)
    angles, spins = jnp.split(state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), 2)
    angles = _within_pi(angles)
    spins = jnp.clip(spins, -jnp.pi * jnp.array([4.0, 9.0]), jnp.pi * jnp.array([4.0, 9.0]))
    high = -jnp.cos(angles[0]) - jnp.cos(angles.sum()) > 1
    return jnp.concatenate([angles, spins]), jnp.where(high, 0.0, -1.0), high


def _acrobot_observe(state: jax.Array) -> jax.Array:
    (first, second), spins = state[:2], state[2:]
    angles = [jnp.cos(first), jnp.sin(first), jnp.cos(second), jnp.sin(second)]
    return jnp.concatenate([jnp.stack(angles), spins])


def _mountain_car_step(state: jax.Array, action: jax.Array, key: jax.Array) -> Any:
    position, velocity = state
    velocity = velocity + (action - 1) * 0.001 - jnp.cos(3 * position) * 0.0025
    velocity = jnp.clip(velocity, -0.07, 0.07)
    position = jnp.clip(position + velocity, -1.2, 0.6)
    velocity = jnp.where((position == -1.2) & (velocity < 0), 0.0, velocity)
    arrived = (position >= 0.5) & (velocity >= 0)
    return jnp.stack([position, velocity]), -jnp.ones(()), arrived


def _mountain_car_reset(key: jax.Array) -> jax.Array:
    return jnp.stack([jax.random.uniform(key, minval=-0.6, maxval=-0.4), jnp.zeros(())])


def _pendulum_step(state: jax.Array, action: jax.Array, key: jax.Array) -> Any:
    (angle, spin), torque = state, jnp.clip(action, -2.0, 2.0)
    cost = _within_pi(angle) ** 2 + 0.1 * spin**2 + 0.001 * torque**2
    spin = jnp.clip(spin + (15.0 * jnp.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
    return jnp.stack([angle + spin * 0.05, spin]), -cost, jnp.zeros((), bool)


def _pendulum_reset(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (2,), minval=-1.0) * jnp.array([jnp.pi, 1.0])


def _pendulum_observe(state: jax.Array) -> jax.Array:
    angle, spin = state
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), spin])


def _within_pi(angle: jax.Array) -> jax.Array:
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def _uniform(bound: float) -> Callable[[jax.Array], jax.Array]:
    return lambda key: jax.random.uniform(key, (4,), minval=-bound, maxval=bound)


CARTPOLE = Environment(_uniform(0.05), _cartpole_step, lambda state: state, 2, 500)
ACROBOT = Environment(_uniform(0.1), _acrobot_step, _acrobot_observe, 3, 500)
MOUNTAIN_CAR = Environment(_mountain_car_reset, _mountain_car_step, lambda state: state, 3, 200)
PENDULUM = Environment(_pendulum_reset, _pendulum_step, _pendulum_observe, 0, 200)
