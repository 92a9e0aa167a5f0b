"""Deep Q-learning with the centred RMSprop of the Nature paper, many seeds in one program.

python -m examples.dqn                    # CartPole
python -m examples.dqn --task breakout    # Breakout of MinAtar
python -m examples.dqn --no-centered      # without the centring
python -m examples.dqn --momentum 0.95    # with a heavy ball, which the paper does not mean
python -m examples.dqn --help

The algorithm is that of Mnih et al., Human-level control through deep reinforcement learning, 2015:
Q-learning on transitions drawn from a replay memory, towards the values of a copy of the network
that is renewed from time to time. A cycle is the life of one such copy, and one compiled program.
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import progress

from examples.a2c.environments import CARTPOLE, Environment
from examples.dqn.environments import BREAKOUT
from optax_rmsprop import recipes

Params = list[tuple[jax.Array, jax.Array]]  # of each layer: weight and bias


class Task(NamedTuple):
    """An environment, and all that is chosen for it."""

    environment: Environment
    filters: int  # of the convolution, for images
    hidden: tuple[int, ...]  # widths of the hidden dense layers
    capacity: int  # transitions in the replay memory
    fill: int  # frames of random play before the first update
    exploration: int  # frames in which the probability of a random action falls from 1
    random: float  # that probability in the end
    train_every: int  # frames from one update to the next
    target_every: int  # updates from one copy of the network to the next
    frames: int  # with updates, by default
    batch: int = 32
    discount: float = 0.99

    @property
    def cycle(self) -> int:
        """Frames of a cycle."""
        return self.train_every * self.target_every


TASKS = {
    "cartpole": Task(
        CARTPOLE, filters=0, hidden=(64, 64), capacity=20_000, fill=1_000, exploration=10_000,
        random=0.05, train_every=1, target_every=500, frames=50_000,
    ),
    # MinAtar's with half of its hidden units and a fifth of its exploration, and with the Nature
    # paper's four frames an update.
    "breakout": Task(
        BREAKOUT, filters=16, hidden=(64,), capacity=100_000, fill=5_000, exploration=20_000,
        random=0.1, train_every=4, target_every=1_000, frames=80_000,
    ),
}  # fmt: skip


class Memory(NamedTuple):
    """Transitions: each array has the capacity as its first axis."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    following: jax.Array  # the observation after the action


class Agent(NamedTuple):
    """All that training changes."""

    params: Params
    target: Params
    opt_state: optax.OptState
    memory: Memory
    state: Any  # of the environment
    elapsed: jax.Array  # int32: steps of the episode so far
    score: jax.Array  # float32: their rewards
    key: jax.Array


class Log(NamedTuple):
    """Of every frame: whether an episode ended with it, and the episode's return so far."""

    ended: jax.Array  # bool
    score: jax.Array  # float32


def optimizer(
    recipe: str = "dqn_zoo",
    centered: bool = True,
    momentum: float = 0.0,
    learning_rate: float | None = None,
) -> optax.GradientTransformation:
    """Return a published RMSprop for the mean of a batch, or what differs from it."""
    published = recipes.record(recipe)
    if learning_rate is None:
        learning_rate = published.learning_rate
    changed = dataclasses.replace(
        published, centered=centered, momentum=momentum, learning_rate=learning_rate
    )
    return recipes.build(changed)


def network(task: Task, key: jax.Array) -> Params:
    """Draw weights and biases as PyTorch's layers do, with ±1/√inputs as bounds."""
    observation = jax.eval_shape(lambda k: task.environment.observe(task.environment.reset(k)), key)
    shape = observation.shape
    widths = (*task.hidden, task.environment.actions)
    if task.filters:
        height, width, channels = shape
        inputs = [9 * channels, (height - 2) * (width - 2) * task.filters, *widths[:-1]]
        outputs = [task.filters, *widths]
    else:
        inputs, outputs = [shape[0], *widths[:-1]], widths

    def layer(key: jax.Array, n: int, m: int) -> tuple[jax.Array, jax.Array]:
        return tuple(
            jax.random.uniform(k, size, minval=-(n**-0.5), maxval=n**-0.5)
            for k, size in zip(jax.random.split(key), ((n, m), (m,)), strict=True)
        )

    keys = jax.random.split(key, len(inputs))
    return [layer(*arguments) for arguments in zip(keys, inputs, outputs, strict=True)]


def q_values(params: Params, observations: jax.Array) -> jax.Array:
    """Map observations, [n, ...], to the values of all actions, [n, actions]."""
    x = observations.astype(jnp.float32)
    if x.ndim == 4:
        # A convolution 3 × 3 as a product of matrices: inside a scan on a CPU XLA's own is slow.
        height, width = x.shape[1] - 2, x.shape[2] - 2
        cut = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        # Without the barrier the patches are cut anew for each use, which takes longer.
        patches = jax.lax.optimization_barrier(jnp.concatenate(cut, -1))
        (weight, bias), *params = params
        x = jax.nn.relu(patches @ weight + bias).reshape(len(x), -1)
    *hidden, (weight, bias) = params
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ weight + bias


def start(task: Task, tx: optax.GradientTransformation, key: jax.Array) -> Agent:
    """Return an agent with an empty memory, at the start of an episode."""
    network_key, reset_key, key = jax.random.split(key, 3)
    params, state = network(task, network_key), task.environment.reset(reset_key)
    observation = task.environment.observe(state)
    room = lambda x: jnp.zeros((task.capacity, *jnp.shape(x)), jnp.asarray(x).dtype)  # noqa: E731
    transition = Memory(observation, jnp.int8(0), jnp.float32(0), False, observation)
    memory = jax.tree.map(room, transition)
    nothing = jnp.int32(0), jnp.float32(0)
    return Agent(params, params, tx.init(params), memory, state, *nothing, key)


def act(task: Task, agent: Agent, frame: jax.Array) -> tuple[Agent, Log]:
    """Take a step, ε-greedy, and remember it."""
    environment = task.environment
    key, random_key, action_key, step_key, reset_key = jax.random.split(agent.key, 5)
    observation = environment.observe(agent.state)

    greedy = q_values(agent.params, observation[None])[0].argmax()
    explored = jnp.clip((frame - task.fill) / task.exploration, 0, 1)
    epsilon = 1 + explored * (task.random - 1)
    arbitrary = jax.random.randint(action_key, (), 0, environment.actions)
    action = jnp.where(jax.random.bernoulli(random_key, epsilon), arbitrary, greedy)

    state, reward, terminated = environment.step(agent.state, action, step_key)
    following = environment.observe(state)
    transition = Memory(observation, action, reward, terminated, following)
    put = lambda room, x: room.at[frame % task.capacity].set(x.astype(room.dtype))  # noqa: E731
    memory = jax.tree.map(put, agent.memory, transition)

    elapsed, score = agent.elapsed + 1, agent.score + reward
    ended = terminated | (elapsed >= environment.limit)
    restart = lambda new, old: jnp.where(ended, new, old)  # noqa: E731
    agent = agent._replace(
        memory=memory, key=key, state=jax.tree.map(restart, environment.reset(reset_key), state),
        elapsed=restart(0, elapsed), score=restart(0.0, score),
    )  # fmt: skip
    return agent, Log(ended, score)


def loss(task: Task, params: Params, target: Params, batch: Memory) -> jax.Array:
    """Return the mean Huber loss, whose gradient is the error clipped to ±1.

    An episode that was cut off has a future: only one that terminated has none.
    """
    values = q_values(params, batch.observation)
    value = jnp.take_along_axis(values, batch.action[:, None].astype(jnp.int32), 1)[:, 0]
    future = jnp.where(batch.terminated, 0.0, q_values(target, batch.following).max(1))
    return optax.huber_loss(value, batch.reward + task.discount * future).mean()


def learn(task: Task, tx: optax.GradientTransformation, agent: Agent, frames: jax.Array) -> Agent:
    """Update the network on a random batch of the `frames` transitions that were seen."""
    key, batch_key = jax.random.split(agent.key)
    rows = jax.random.randint(batch_key, (task.batch,), 0, jnp.minimum(frames, task.capacity))
    batch = jax.tree.map(lambda room: room[rows], agent.memory)
    grads = jax.grad(functools.partial(loss, task))(agent.params, agent.target, batch)
    updates, opt_state = tx.update(grads, agent.opt_state, agent.params)
    params = optax.apply_updates(agent.params, updates)
    return agent._replace(params=params, opt_state=opt_state, key=key)


def play(task: Task, agent: Agent, first: jax.Array, frames: int) -> tuple[Agent, Log]:
    """Act `frames` times."""
    return jax.lax.scan(functools.partial(act, task), agent, first + jnp.arange(frames))


def cycle(
    task: Task, tx: optax.GradientTransformation, agent: Agent, first: jax.Array
) -> tuple[Agent, Log]:
    """Copy the network, and learn from the copy's values `target_every` times.

    Loops are nested where others ask whether it is time to learn: of seeds in a vmap both answers
    would be computed.
    """

    def turn(agent: Agent, first: jax.Array) -> tuple[Agent, Log]:
        agent, log = play(task, agent, first, task.train_every)
        return learn(task, tx, agent, first + task.train_every), log

    agent = agent._replace(target=agent.params)
    return jax.lax.scan(turn, agent, first + task.train_every * jnp.arange(task.target_every))


def train(
    task: Task,
    tx: optax.GradientTransformation,
    seeds: range,
    frames: int,
    report: Callable[[int, np.ndarray, np.ndarray], None] = lambda *_: None,
) -> tuple[Agent, np.ndarray, np.ndarray]:
    """Train all seeds at once, in whole cycles, until `frames` are over.

    Args:
        task: What is to be learnt.
        tx: The optimizer.
        seeds: A number for each agent.
        frames: Of every agent, after the random ones that fill its memory.
        report: Called after every cycle with the number of these frames so far, and for each seed
            the number of episodes that ended in the cycle and the sum of their returns.

    Returns:
        The agents, and what was reported, [cycles, seeds].
    """
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    agents = jax.jit(jax.vmap(functools.partial(start, task, tx)))(keys)
    # The number of the frame is shared: a row of all memories is written in place.
    many = functools.partial(jax.vmap, in_axes=(0, None))
    fill = many(functools.partial(play, task, frames=task.fill))
    agents, _ = jax.jit(fill, donate_argnums=0)(agents, 0)
    step = jax.jit(many(functools.partial(cycle, task, tx)), donate_argnums=0)
    counts, totals = [], []
    for first in range(0, frames, task.cycle):
        agents, log = step(agents, task.fill + first)
        counts.append(np.asarray(log.ended.sum((1, 2))))
        totals.append(np.asarray((log.ended * log.score).sum((1, 2))))
        report(first + task.cycle, counts[-1], totals[-1])
    return agents, np.array(counts), np.array(totals)


@dataclasses.dataclass(frozen=True)
class Options:
    """Train agents by deep Q-learning, and print what their episodes return."""

    task: Literal["cartpole", "breakout"] = "cartpole"
    recipe: Literal["dqn_zoo", "dqn_dopamine", "minatar_dqn"] = "dqn_zoo"
    """A published RMSprop for the mean of a batch. The first is the Nature paper's."""
    centered: bool = True
    """Whether the mean gradient is subtracted in the denominator."""
    momentum: float = 0.0
    """Of a heavy ball; the paper's "gradient momentum" is the decay of the mean gradient."""
    learning_rate: float | None = None
    """In place of the recipe's."""
    frames: int | None = None
    """Of each agent, after the random ones; by default 50,000 or 80,000."""
    seeds: int = 8
    """Agents, trained at once."""
    seed: int = 0
    """Of the first agent."""


def main(options: Options) -> int:
    """Train with a progress bar and a line for each tenth of the frames; return the exit code."""
    task = TASKS[options.task]
    frames = task.frames if options.frames is None else options.frames
    try:
        for name, value, least in (
            ("frames", frames, 1), ("seeds", options.seeds, 1), ("seed", options.seed, 0)
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        tx = optimizer(options.recipe, options.centered, options.momentum, options.learning_rate)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    columns = "{task.description}", progress.BarColumn(), progress.TimeRemainingColumn()
    with progress.Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        item = bar.add_task("random play", total=frames)
        waiting: list[tuple[np.ndarray, np.ndarray]] = []

        def report(done: int, counts: np.ndarray, totals: np.ndarray) -> None:
            bar.update(item, completed=done, description=returned(counts, totals))
            waiting.append((counts, totals))
            if done * 10 // frames > (done - task.cycle) * 10 // frames:
                line = f"{done:>8} frames  {returned(*np.sum(waiting, 0))}"
                waiting.clear()
                bar.console.print(line, highlight=False)

        train(task, tx, range(options.seed, options.seed + options.seeds), frames, report)
    return 0


def returned(counts: np.ndarray, totals: np.ndarray) -> str:
    """Write the mean return of the agents' episodes, and its standard deviation over agents."""
    means = (totals[counts > 0] / counts[counts > 0]).tolist()
    if not means:
        return "no episode ended"
    spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"return {statistics.fmean(means):.1f}{spread}"
