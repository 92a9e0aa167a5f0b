"""Advantage actor-critic (A2C) as Stable-Baselines3 has it, many seeds in one program.

Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016, without the asynchrony.
The numbers are those of RL Baselines3 Zoo, `hyperparams/a2c.yml`. Its entropy bonus is 0 for these
tasks, and left out.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from examples.a2c import environments, policies
from optax_rmsprop import dialects, rmsprop


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task, and the numbers with which Zoo trains it."""

    environment: environments.Environment
    steps: int  # of all copies of the environment together
    copies: int
    rollout: int = 5  # steps of each copy between two updates
    discount: float = 0.99
    gae_lambda: float = 1.0
    value_weight: float = 0.5
    normalize: bool = True  # observations and rewards, by their running statistics
    anneal: bool = False  # the learning rate, linearly to 0
    orthogonal: bool = True  # initial weights

    @property
    def updates(self) -> int:
        """The updates of a whole training."""
        return self.steps // (self.copies * self.rollout)

    @property
    def policy(self) -> policies.Policy:
        """The kind of policy that the actions need."""
        return policies.CATEGORICAL if self.environment.actions else policies.EXPLORING


TASKS = {
    "CartPole-v1": Setting(environments.CARTPOLE, 500_000, 8, normalize=False),
    "Acrobot-v1": Setting(environments.ACROBOT, 500_000, 16),
    "MountainCar-v0": Setting(environments.MOUNTAIN_CAR, 1_000_000, 16),
    "Pendulum-v1": Setting(
        environments.PENDULUM, 1_000_000, 8, rollout=8, discount=0.9, gae_lambda=0.9,
        value_weight=0.4, anneal=True, orthogonal=False,
    ),
}  # fmt: skip

RATE, DECAY, EPS, MAX_NORM = 7e-4, 0.99, 1e-5, 0.5
PARTS = 25  # of a training, of each of which a number is kept

# The default of Stable-Baselines3; the one that it offers beside it; two that differ from the first
# by one switch each; its Adam; and SGD, whose rate was chosen by hand.
# Every other dialect goes by its name.
RULES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "torch": lambda rate: dialects.torch(rate, alpha=DECAY, eps=EPS),
    "stable_baselines3": lambda rate: dialects.stable_baselines3(rate, alpha=DECAY, eps=EPS),
    "torch-eps-inside": lambda rate: rmsprop(rate, DECAY, EPS),
    "torch-nu-from-1": lambda rate: rmsprop(rate, DECAY, EPS, 1.0, eps_in_sqrt=False),
    "adam": lambda rate: optax.adam(rate, eps=EPS),
    "sgd": lambda rate: optax.chain(optax.scale(0.3 / RATE), optax.sgd(rate)),
}


def optimizer(rule: str, setting: Setting, rate: float = RATE) -> optax.GradientTransformation:
    """Return the optimizer of a name: of `RULES`, or of a function of `dialects`.

    Raises:
        ValueError: if there is none.
    """
    # The source sets the rate after a rollout, by the steps that were made until then.
    falling = lambda count: rate * (1 - (count + 1) / setting.updates)  # noqa: E731
    schedule = falling if setting.anneal else rate
    if rule in RULES:
        return RULES[rule](schedule)
    make = getattr(dialects, rule, None)
    names = inspect.signature(make).parameters if callable(make) else ()
    decay = next((name for name in ("alpha", "rho", "decay", "gamma1") if name in names), None)
    if make is None or decay is None:
        raise ValueError(f"rule must be one of {[*RULES]} or a dialect with a decay, got {rule!r}")
    numbers = {decay: DECAY, "eps": EPS, "epsilon": EPS, "momentum": None}
    return make(schedule, **{name: numbers[name] for name in numbers if name in names})


def initial_parameters(key: jax.Array, setting: Setting) -> Any:
    """Return two networks with two hidden layers of 64, for the policy and for the value."""
    env = setting.environment
    inputs = env.observe(env.reset(key)).size

    def layers(key: jax.Array, outputs: int, last: float) -> list[tuple[jax.Array, jax.Array]]:
        sizes, scales = [inputs, 64, 64, outputs], [2**0.5, 2**0.5, last]
        return [
            _layer(key, n, m, scale if setting.orthogonal else None)
            for key, n, m, scale in zip(
                jax.random.split(key, 3), sizes[:3], sizes[1:], scales, strict=True
            )
        ]

    policy_key, value_key = jax.random.split(key)
    return {
        "policy": layers(policy_key, env.actions or 1, 0.01),
        "value": layers(value_key, 1, 1.0),
        "log_std": jnp.zeros(0 if env.actions else 64) - 2,
    }


def _layer(key: jax.Array, n: int, m: int, scale: float | None) -> tuple[jax.Array, jax.Array]:
    if scale is not None:
        return jax.nn.initializers.orthogonal(scale)(key, (n, m)), jnp.zeros(m)
    kernel, bias = jnp.split(jax.random.uniform(key, (n + 1, m), minval=-1) / n**0.5, [n])
    return kernel, bias[0]  # as torch.nn.Linear starts


def network(layers: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the features of the last hidden layer, and the outputs."""
    *hidden, (kernel, bias) = layers
    for w, b in hidden:
        x = jnp.tanh(x @ w + b)
    return x, x @ kernel + bias


class Statistics(NamedTuple):
    """A running mean and variance, as `VecNormalize` of Stable-Baselines3 keeps them."""

    mean: jax.Array
    variance: jax.Array
    count: jax.Array

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> "Statistics":
        """Return the mean and the variance of next to nothing."""
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()) + 1e-4)

    def update(self, batch: jax.Array) -> "Statistics":
        """Add the rows of a batch."""
        rows = batch.shape[0]
        total, change = self.count + rows, batch.mean(0) - self.mean
        squares = self.variance * self.count + batch.var(0) * rows
        squares += change**2 * self.count * rows / total
        return Statistics(self.mean + change * rows / total, squares / total, total)

    def scaled(self, x: jax.Array, mean: Any = 0.0) -> jax.Array:
        """Return x in deviations from the mean that is given, within 10."""
        return jnp.clip((x - mean) / jnp.sqrt(self.variance + 1e-8), -10, 10)


class Worlds(NamedTuple):
    """The copies of the environment, and what is known of their episodes."""

    state: Any
    observation: jax.Array  # [copies, n], as the policy sees it
    steps: jax.Array  # of the episode
    total: jax.Array  # reward of the episode
    discounted: jax.Array  # as `VecNormalize` adds rewards up
    observations: Statistics
    rewards: Statistics


class Transition(NamedTuple):
    """One step of every copy."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    terminal: jax.Array  # nothing comes after, so the value of what comes after is 0
    done: jax.Array  # terminal, or cut off by the time limit
    finished: jax.Array  # the reward of an episode that is done, or 0


class Agent(NamedTuple):
    """All that training changes."""

    params: Any
    opt_state: Any
    worlds: Worlds
    key: jax.Array


class Progress(NamedTuple):
    """What a part of a training looked like; of every seed a number."""

    episodes: jax.Array
    episode_return: jax.Array  # mean; NaN where no episode ended
    gradient: jax.Array  # mean of the norms, before clipping
    update: jax.Array  # the largest norm
    rate: jax.Array  # at the end, the median of |update| / |clipped gradient| over the parameters


def start(setting: Setting, tx: optax.GradientTransformation, key: jax.Array) -> Agent:
    """Return an agent that knows nothing."""
    params_key, worlds_key, key = jax.random.split(key, 3)
    params = initial_parameters(params_key, setting)
    env, copies = setting.environment, setting.copies
    state = jax.vmap(env.reset)(jax.random.split(worlds_key, copies))
    seen, zeros = jax.vmap(env.observe)(state), jnp.zeros(copies)
    known = Statistics.start(seen.shape[1:]).update(seen)
    observation = known.scaled(seen, known.mean) if setting.normalize else seen
    steps = jnp.zeros(copies, jnp.int32)
    worlds = Worlds(state, observation, steps, zeros, zeros, known, Statistics.start(()))
    return Agent(params, tx.init(params), worlds, key)


def interact(
    setting: Setting, params: Any, noise: jax.Array, worlds: Worlds, key: jax.Array
) -> tuple[Worlds, Transition]:
    """Act once in every copy; begin a new episode where one is done."""
    env, policy = setting.environment, setting.policy
    act_key, step_key, reset_key = jax.random.split(key, (3, setting.copies))
    features, outputs = network(params["policy"], worlds.observation)
    action = jax.vmap(policy.sample)(act_key, features, outputs, noise)
    state, reward, terminal = jax.vmap(env.step)(worlds.state, action, step_key)
    steps, total = worlds.steps + 1, worlds.total + reward
    discounted = worlds.discounted * setting.discount + reward
    done = terminal | (steps >= env.limit)

    def renewed(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(done, range(1, old.ndim)), new, old)

    last_seen = jax.vmap(env.observe)(state)
    state = jax.tree.map(renewed, jax.vmap(env.reset)(reset_key), state)
    seen = jax.vmap(env.observe)(state)
    observations, rewards = worlds.observations, worlds.rewards
    if setting.normalize:
        observations, rewards = observations.update(seen), rewards.update(discounted)
        seen, last_seen = (observations.scaled(x, observations.mean) for x in (seen, last_seen))
        reward = rewards.scaled(reward)
    transition = Transition(
        worlds.observation, action, reward, last_seen, terminal, done, jnp.where(done, total, 0.0)
    )
    steps, total, discounted = (jnp.where(done, 0, x) for x in (steps, total, discounted))
    return Worlds(state, seen, steps, total, discounted, observations, rewards), transition


def advantages(
    setting: Setting, values: jax.Array, nexts: jax.Array, seen: Transition
) -> jax.Array:
    """Return the generalized advantage estimate: Schulman et al., 2016."""
    errors = seen.reward + setting.discount * jnp.where(seen.terminal, 0.0, nexts) - values
    weights = setting.discount * setting.gae_lambda * (1 - seen.done)

    def earlier(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, weight = step
        advantage = error + weight * later
        return advantage, advantage

    return jax.lax.scan(earlier, jnp.zeros(setting.copies), (errors, weights), reverse=True)[1]


def loss(params: Any, setting: Setting, seen: Transition) -> jax.Array:
    """Return the mean loss of the policy, and of the value by its weight."""
    values = network(params["value"], seen.observation)[1][..., 0]
    nexts = network(params["value"], seen.next_observation)[1][..., 0]
    known, nexts = jax.lax.stop_gradient((values, nexts))
    advantage = advantages(setting, known, nexts, seen)
    features, outputs = network(params["policy"], seen.observation)
    log_prob = jax.vmap(jax.vmap(functools.partial(setting.policy.log_prob, params["log_std"])))
    policy_loss = -(advantage * log_prob(features, outputs, seen.action)).mean()
    value_loss = ((known + advantage - values) ** 2).mean()
    return policy_loss + setting.value_weight * value_loss


def update(
    setting: Setting, tx: optax.GradientTransformation, agent: Agent
) -> tuple[Agent, Transition, jax.Array, tuple[Any, Any]]:
    """Make a rollout and a step; return the gradient's norm, it clipped, and the update, too."""
    key, noise_key, *step_keys = jax.random.split(agent.key, 2 + setting.rollout)
    noise = setting.policy.noise(noise_key, agent.params["log_std"], setting.copies)
    act = functools.partial(interact, setting, agent.params, noise)
    worlds, seen = jax.lax.scan(act, agent.worlds, jnp.stack(step_keys))
    grads = jax.grad(loss)(agent.params, setting, seen)
    norm = optax.tree.norm(grads)
    share = jnp.minimum(1.0, MAX_NORM / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
    clipped = jax.tree.map(lambda g: share * g, grads)
    updates, opt_state = tx.update(clipped, agent.opt_state, agent.params)
    params = optax.apply_updates(agent.params, updates)
    return Agent(params, opt_state, worlds, key), seen, norm, (clipped, updates)


def train(
    setting: Setting, tx: optax.GradientTransformation, seeds: jax.Array, parts: int
) -> Iterator[tuple[Agent, Progress]]:
    """Train an agent of every seed; yield all agents and their progress after each part."""
    length, rest = divmod(setting.updates, parts)
    if rest or not length:
        raise ValueError(f"parts must divide the {setting.updates} updates, got {parts}")
    keys = jax.vmap(jax.random.key)(seeds)
    # One seed after the other: two batches of QR decompositions at once can block both threads of
    # a pool of two for ever (seen in jaxlib 0.10.2).
    agents = jax.jit(lambda keys: jax.lax.map(functools.partial(start, setting, tx), keys))(keys)
    for _ in range(parts):
        agents, progress = _train_part(setting, tx, length, agents)
        yield agents, progress


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _train_part(setting: Setting, tx: Any, length: int, agents: Agent) -> tuple[Agent, Progress]:
    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, ...]]:
        agent, seen, gradient, sides = update(setting, tx, carry[0])
        told = seen.done.sum(), seen.finished.sum(), gradient, optax.tree.norm(sides[1])
        return (agent, sides), told

    def part(agent: Agent) -> tuple[Agent, Progress]:
        zeros = jax.tree.map(jnp.zeros_like, agent.params)
        start = agent, (zeros, zeros)
        (agent, sides), told = jax.lax.scan(step, start, length=length)
        episodes, total, gradient, moved = told
        rates = jax.tree.map(lambda g, u: jnp.abs(u / g).ravel(), *sides)
        return agent, Progress(
            episodes=episodes.sum(),
            episode_return=total.sum() / episodes.sum(),
            gradient=gradient.mean(),
            update=moved.max(),
            rate=jnp.nanmedian(jnp.concatenate(jax.tree.leaves(rates))),
        )

    return jax.vmap(part)(agents)


@functools.partial(jax.jit, static_argnums=(0, 3))
def evaluate(setting: Setting, agents: Agent, seeds: jax.Array, episodes: int) -> jax.Array:
    """Return the rewards of episodes [seeds, episodes] in which the likeliest action is taken."""
    env = setting.environment

    def episode(agent: Agent, key: jax.Array) -> jax.Array:
        known = agent.worlds.observations

        def step(carry: Any, key: jax.Array) -> Any:
            state, total, over = carry
            seen = env.observe(state)
            seen = known.scaled(seen, known.mean) if setting.normalize else seen
            action = setting.policy.mode(network(agent.params["policy"], seen)[1])
            state, reward, terminal = env.step(state, action, key)
            return (state, total + jnp.where(over, 0.0, reward), over | terminal), None

        reset_key, key = jax.random.split(key)
        first = env.reset(reset_key), jnp.zeros(()), jnp.zeros((), bool)
        return jax.lax.scan(step, first, jax.random.split(key, env.limit))[0][1]

    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), episodes))(seeds)
    return jax.vmap(jax.vmap(episode, (None, 0)))(agents, keys)
