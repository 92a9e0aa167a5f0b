"""Breakout of MinAtar, as functions of arrays: it runs inside a compiled scan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from examples.a2c.environments import Environment

STICKY = 0.1  # the probability that the last action is taken again


class Breakout(NamedTuple):
    """Breakout on 10 × 10 cells, as in MinAtar: rows are counted from the top."""

    ball: jax.Array  # int32 [2]: row, column
    trail: jax.Array  # int32 [2]: where the ball was
    velocity: jax.Array  # int32 [2]: ±1 each
    paddle: jax.Array  # int32: its column, in row 9
    bricks: jax.Array  # bool [10, 10]
    strike: jax.Array  # bool: the last step met a brick; one is broken only if not
    last_action: jax.Array  # int32


def _reset_breakout(key: jax.Array) -> Breakout:
    """Put the ball into the left or the right corner. No action is remembered."""
    right = jax.random.randint(key, (), 0, 2)
    ball = jnp.stack([jnp.full_like(right, 3), 9 * right])
    return Breakout(
        ball=ball, trail=ball, velocity=jnp.stack([jnp.ones_like(right), 1 - 2 * right]),
        paddle=jnp.full_like(right, 4), bricks=_wall(), strike=jnp.zeros((), bool),
        last_action=jnp.zeros((), jnp.int32),
    )  # fmt: skip


def _wall() -> jax.Array:
    return jnp.zeros((10, 10), bool).at[1:4].set(True)


def _step_breakout(
    state: Breakout, action: jax.Array, key: jax.Array
) -> tuple[Breakout, jax.Array, jax.Array]:
    """Move the paddle, then the ball. Of the six actions, 1 is left and 3 is right."""
    repeated = jax.random.bernoulli(key, STICKY)
    action = jnp.where(repeated, state.last_action, jnp.asarray(action, jnp.int32))
    paddle = jnp.clip(state.paddle + (action == 3) - (action == 1), 0, 9)
    (last_row, last_column), (down, across) = state.ball, state.velocity

    column = last_column + across
    across = jnp.where((column < 0) | (column > 9), -across, across)
    column = jnp.clip(column, 0, 9)
    row = last_row + down
    ceiling, row = row < 0, jnp.maximum(row, 0)

    brick = ~ceiling & state.bricks[row, column]
    broken = brick & ~state.strike
    bricks = state.bricks.at[row, column].set(state.bricks[row, column] & ~broken)

    floor = row == 9
    bricks = jnp.where(floor & ~bricks.any(), _wall(), bricks)
    above = last_column == paddle
    aside = ~above & (column == paddle)
    terminated = floor & ~above & ~aside

    back = broken | (floor & ~terminated)
    down = jnp.where(ceiling | back, -down, down)
    across = jnp.where(floor & aside, -across, across)
    ball = jnp.stack([jnp.where(back, last_row, row), column])
    velocity = jnp.stack([down, across])
    state = Breakout(ball, state.ball, velocity, paddle, bricks, brick, action)
    return state, broken.astype(jnp.float32), terminated


def _observe_breakout(state: Breakout) -> jax.Array:
    """Return four planes, bool [10, 10, 4]: the paddle, the ball, its trail and the bricks."""
    rows, columns = jnp.indices((10, 10))
    at = lambda place: (rows == place[0]) & (columns == place[1])  # noqa: E731
    return jnp.stack([at((9, state.paddle)), at(state.ball), at(state.trail), state.bricks], -1)


# MinAtar cuts no episode off.
BREAKOUT = Environment(
    _reset_breakout, _step_breakout, _observe_breakout, actions=6, limit=2**31 - 1
)
