"""The Wasserstein GAN with the RMSprop of its authors, many trainings in one program.

Arjovsky, Chintala & Bottou, Wasserstein GAN, 2017, as their code has it. A critic with clamped
weights learns to be high where the data are and low where the generator's samples are. The
generator learns to sample where the critic is high. How far the critic's means over both are apart
is an estimate of the Wasserstein-1 distance, in a unit that the clamping sets.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from optax_rmsprop import recipes

Params = list[tuple[jax.Array, jax.Array]]  # of each layer: weight and bias
Rule = Callable[[Any], optax.GradientTransformation]  # of a learning rate

RATE = recipes.record("wgan").learning_rate
BATCH = 64


class Task(NamedTuple):
    """What is to be generated, and all that is chosen for it."""

    data: np.ndarray  # [n, size]
    held_out: np.ndarray  # [m, size], from which distances are measured
    bound: float  # of each weight and bias of the critic
    noise: int  # numbers that the generator is given
    steps: int  # of the generator, by default
    hidden: tuple[int, ...] = (64, 64)  # widths of both networks' hidden layers


def gaussians(n: int, seed: int) -> np.ndarray:
    """Draw from eight Gaussians of deviation 0.02, whose centres are a ring of radius 1."""
    rng = np.random.default_rng(seed)
    angles = rng.integers(8, size=n) * np.pi / 4
    centres = np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.float32(centres + rng.normal(0, 0.02, (n, 2)))


def digits() -> np.ndarray:
    """Return scikit-learn's 1,797 images of 8 × 8 in a random order, as rows in [-1, 1]."""
    return np.random.default_rng(0).permutation(np.float32(load_digits().data / 8 - 1))


# The published bound is 0.01. On the ring it lets the critic see little but the data's mean.
TASKS: dict[str, Callable[[], Task]] = {
    "ring": lambda: Task(gaussians(10_000, 0), gaussians(512, 1), 0.1, noise=4, steps=4_000),
    "digits": lambda: Task(*np.split(digits(), [1_285]), 0.01, noise=16, steps=3_000),
}


def rmsprop(rate: Any, momentum: float = 0.0) -> optax.GradientTransformation:
    """Return the published RMSprop, at a rate and with momentum of one's own."""
    published = recipes.record("wgan")
    return recipes.build(dataclasses.replace(published, learning_rate=rate, momentum=momentum))


# The code's other choice is Adam with β₁ = 0.5.
RULES: dict[str, Rule] = {
    "rmsprop": rmsprop,
    "rmsprop-momentum-0.9": functools.partial(rmsprop, momentum=0.9),
    "adam-0.9": functools.partial(optax.adam, b1=0.9),
    "adam-0.5": functools.partial(optax.adam, b1=0.5),
    "adam-0": functools.partial(optax.adam, b1=0.0),
}


class Player(NamedTuple):
    """A network and the state of its optimizer."""

    params: Params
    opt_state: optax.OptState


class Game(NamedTuple):
    """All that training changes."""

    critic: Player
    generator: Player
    key: jax.Array


class Log(NamedTuple):
    """Means over updates of the critic."""

    estimate: jax.Array  # of the distance
    cosine: jax.Array  # of the angle between the update and the descent of the gradient
    uphill: jax.Array  # the share of updates for which it is negative


def network(key: jax.Array, widths: tuple[int, ...]) -> Params:
    """Draw weights and biases as PyTorch's layers do, with ±1/√inputs as bounds."""

    def layer(key: jax.Array, n: int, m: int) -> tuple[jax.Array, jax.Array]:
        keys, edge = jax.random.split(key), n**-0.5
        return tuple(
            jax.random.uniform(k, shape, minval=-edge, maxval=edge)
            for k, shape in zip(keys, ((n, m), (m,)), strict=True)
        )

    keys = jax.random.split(key, len(widths) - 1)
    return [layer(*each) for each in zip(keys, widths[:-1], widths[1:], strict=True)]


def apply(params: Params, x: jax.Array) -> jax.Array:
    """Map rows, with a ReLU after every layer but the last."""
    *hidden, (weight, bias) = params
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ weight + bias


def start(task: Task, rule: Rule, rate: jax.Array, key: jax.Array) -> Game:
    """Return two networks that have learnt nothing."""
    critic_key, generator_key, key = jax.random.split(key, 3)
    size, init = task.data.shape[1], rule(rate).init
    critic = network(critic_key, (size, *task.hidden, 1))
    generator = network(generator_key, (task.noise, *task.hidden, size))
    return Game(Player(critic, init(critic)), Player(generator, init(generator)), key)


def generate(task: Task, generator: Params, key: jax.Array, n: int = BATCH) -> jax.Array:
    """Draw n samples."""
    return apply(generator, jax.random.normal(key, (n, task.noise)))


def update(
    tx: optax.GradientTransformation, player: Player, grads: Params
) -> tuple[Player, optax.Updates]:
    """Descend; return the updates too."""
    updates, opt_state = tx.update(grads, player.opt_state, player.params)
    return Player(optax.apply_updates(player.params, updates), opt_state), updates


def learn_critic(
    task: Task, tx: optax.GradientTransformation, critic: Player, generator: Params, key: jax.Array
) -> tuple[Player, Log]:
    """Clamp the critic's weights, then update it on a batch of data and one of samples.

    A batch of data is drawn anew each time. The authors' code goes through the data in epochs.
    """
    row_key, noise_key = jax.random.split(key)
    real = jnp.asarray(task.data)[jax.random.randint(row_key, (BATCH,), 0, len(task.data))]
    fake = generate(task, generator, noise_key)

    def loss(params: Params) -> jax.Array:
        return apply(params, fake).mean() - apply(params, real).mean()

    clamped = jax.tree.map(lambda p: jnp.clip(p, -task.bound, task.bound), critic.params)
    value, grads = jax.value_and_grad(loss)(clamped)
    critic, updates = update(tx, critic._replace(params=clamped), grads)
    norms = optax.tree.norm(grads) * optax.tree.norm(updates)
    cosine = -optax.tree.vdot(grads, updates) / jnp.maximum(norms, 1e-30)
    return critic, Log(-value, cosine, jnp.float32(cosine < 0))


def learn_generator(
    task: Task, tx: optax.GradientTransformation, critic: Params, generator: Player, key: jax.Array
) -> Player:
    """Update the generator towards where the critic, as it was left, is high."""

    def loss(params: Params) -> jax.Array:
        return -apply(critic, generate(task, params, key)).mean()

    return update(tx, generator, jax.grad(loss)(generator.params))[0]


def critic_updates(step: jax.Array) -> jax.Array:
    """Return the updates of the critic before a step of the generator."""
    return jnp.where((step < 25) | (step % 500 == 0), 100, 5)


def turn(
    task: Task, rule: Rule, game: Game, rate: jax.Array, step: jax.Array
) -> tuple[Game, Log]:  # fmt: skip
    """Let the critic learn, and then the generator once."""
    tx, count = rule(rate), critic_updates(step)
    keys = jax.random.split(game.key, 3)

    def learn(i: jax.Array, state: tuple[Player, Log]) -> tuple[Player, Log]:
        critic, total = state
        key = jax.random.fold_in(keys[0], i)
        critic, log = learn_critic(task, tx, critic, game.generator.params, key)
        return critic, jax.tree.map(jnp.add, total, log)

    nothing = Log(*jnp.zeros(3))
    critic, total = jax.lax.fori_loop(0, count, learn, (game.critic, nothing))
    generator = learn_generator(task, tx, critic.params, game.generator, keys[1])
    return Game(critic, generator, keys[2]), jax.tree.map(lambda x: x / count, total)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Wasserstein-1 distance between two samples of as many rows.

    It is exact for the samples. Two samples of one distribution are apart, too.
    """
    costs = cdist(a, b)
    return float(costs[linear_sum_assignment(costs)].mean())


def train(
    task: Task, rule: Rule, rates: np.ndarray, seeds: np.ndarray, steps: int, parts: int
) -> Iterator[tuple[np.ndarray, Log, np.ndarray]]:
    """Train at all pairs of a rate and a seed at once.

    Args:
        task: What is to be generated.
        rule: The optimizer of both networks.
        rates: Of both, [trainings].
        seeds: [trainings].
        steps: Updates of the generator.
        parts: Of equal length, into which training is cut.

    Yields:
        For each part what the generators draw at its end, as many rows as are held out, for
        [trainings, rows, size]; the means over the part; and the distances from the held-out rows.

    Raises:
        ValueError: if the steps cannot be cut so.
    """
    if steps < 1 or steps % parts:
        raise ValueError(f"steps must be a multiple of {parts}, the parts, got {steps}")
    rates, keys = jnp.asarray(rates, jnp.float32), jax.vmap(jax.random.key)(jnp.asarray(seeds))
    games = jax.jit(jax.vmap(functools.partial(start, task, rule)))(rates, keys)
    # The step is shared, so that a vmap leaves the number of the critic's updates one number.
    turns = jax.vmap(functools.partial(turn, task, rule), in_axes=(0, 0, None))
    draw = jax.vmap(functools.partial(generate, task, n=len(task.held_out)))

    @functools.partial(jax.jit, donate_argnums=0)
    def part(games: Game, first: jax.Array) -> tuple[Game, Log, jax.Array]:
        one = lambda games, step: turns(games, rates, step)  # noqa: E731
        games, log = jax.lax.scan(one, games, first + jnp.arange(steps // parts))
        mean = jax.tree.map(lambda x: x.mean(0), log)
        return games, mean, draw(games.generator.params, games.key)

    for first in range(0, steps, steps // parts):
        games, log, samples = part(games, first)
        samples = np.asarray(samples)
        distances = np.array([distance(each, task.held_out) for each in samples])
        yield samples, jax.tree.map(np.asarray, log), distances
