"""The environments are Gymnasium's, the algorithm is Stable-Baselines3's, and it learns."""

import dataclasses
import functools

import chex
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.a2c import a2c, policies
from examples.a2c.__main__ import main
from optax_rmsprop import dialects, recipes

CARTPOLE = a2c.TASKS["CartPole-v1"]
# A box around the states from which a step is tried: of the goal or the edge on both sides.
STATES = {
    "CartPole-v1": [3.0, 3.0, 0.3, 3.0],
    "Acrobot-v1": [3.1, 3.1, 12.0, 28.0],
    "MountainCar-v0": [0.9, 0.09],
    "Pendulum-v1": [9.0, 9.0],
}


@pytest.mark.parametrize("task", STATES)
def test_a_step_is_gymnasiums(task):
    env, theirs, rng = a2c.TASKS[task].environment, gymnasium.make(task), np.random.default_rng(0)
    theirs.reset(seed=0)
    states = rng.uniform(-1, 1, (1000, len(STATES[task]))) * STATES[task]
    states[:, 0] -= 0.3 if task == "MountainCar-v0" else 0.0
    actions = rng.integers(env.actions, size=1000) if env.actions else rng.uniform(-3, 3, 1000)
    with jax.enable_x64(True):  # as Gymnasium computes
        step = functools.partial(env.step, key=jax.random.key(0))
        after, rewards, terminals = jax.jit(jax.vmap(step))(states, actions)
        seen = np.asarray(jax.vmap(env.observe)(after), np.float32)
    for i, state in enumerate(states):
        theirs.unwrapped.state = state
        theirs.unwrapped.steps_beyond_terminated = None
        given = actions[i] if env.actions else actions[i : i + 1]
        observation, reward, terminal, _, _ = theirs.unwrapped.step(given)
        chex.assert_trees_all_close(seen[i], np.float32(observation), rtol=1e-6, atol=1e-7)
        chex.assert_trees_all_close(np.asarray(rewards[i]), np.asarray(reward), rtol=1e-12)
        assert terminals[i] == terminal
    assert task == "Pendulum-v1" or 20 < terminals.sum() < 980


@pytest.mark.parametrize("task", STATES)
def test_an_episode_starts_and_ends_as_gymnasiums(task):
    env, theirs = a2c.TASKS[task].environment, gymnasium.make(task)
    ours = np.asarray(jax.vmap(lambda key: env.observe(env.reset(key)))(_keys(4000)))
    seen = np.stack([theirs.reset(seed=seed)[0] for seed in range(4000)])
    assert env.limit == theirs.spec.max_episode_steps
    assert env.actions == getattr(theirs.action_space, "n", 0)
    quantiles = np.linspace(0, 1, 11)
    spread = np.ptp(seen, 0).max()
    gap = np.quantile(ours, quantiles, axis=0) - np.quantile(seen, quantiles, axis=0)
    assert np.abs(gap).max() < 0.08 * spread


def _keys(n):
    return jax.random.split(jax.random.key(0), n)


def test_running_statistics_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(3, 2, (7, 16, 4)).astype(np.float32)
    known = a2c.Statistics.start((4,))
    for batch in rows:
        known = known.update(batch)
    flat = rows.reshape(-1, 4)
    chex.assert_trees_all_close(known.mean, flat.mean(0), rtol=1e-4)
    chex.assert_trees_all_close(known.variance, flat.var(0), rtol=1e-4)
    scaled = known.scaled(jnp.array([3.0, 3.0, 3.0, 1e9]), known.mean)
    assert scaled[3] == 10 and np.abs(scaled[:3]).max() < 0.3


def test_advantages_are_those_of_the_source():
    # `RolloutBuffer.compute_returns_and_advantage`, and the time limit of `collect_rollouts`.
    setting, rng = dataclasses.replace(CARTPOLE, gae_lambda=0.9), np.random.default_rng(0)
    shape = setting.rollout, setting.copies
    values, nexts, rewards = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    done = rng.random(shape) < 0.4
    terminal = done & (rng.random(shape) < 0.5)
    assert (done & ~terminal).any() and terminal[-1].any()
    nexts[:-1] = np.where(done[:-1], nexts[:-1], values[1:])
    theirs = rewards + setting.discount * nexts * (done & ~terminal)
    last, expected = np.zeros(setting.copies), np.zeros(shape)
    for t in reversed(range(setting.rollout)):
        following = nexts[t] if t == setting.rollout - 1 else values[t + 1]
        delta = theirs[t] + setting.discount * following * ~done[t] - values[t]
        last = delta + setting.discount * setting.gae_lambda * ~done[t] * last
        expected[t] = last
    seen = a2c.Transition(None, None, rewards, None, terminal, done, None)
    chex.assert_trees_all_close(
        a2c.advantages(setting, values, nexts, seen), np.float32(expected), rtol=1e-5, atol=1e-6
    )


def test_a_time_limit_ends_an_episode_and_is_no_terminal_state():
    params = a2c.initial_parameters(jax.random.key(1), CARTPOLE)
    tx = a2c.optimizer("torch", CARTPOLE)
    worlds = a2c.start(CARTPOLE, tx, jax.random.key(0)).worlds
    worlds = worlds._replace(steps=worlds.steps.at[0].set(499), total=worlds.total.at[0].set(499.0))
    new, seen = a2c.interact(CARTPOLE, params, jnp.zeros((8, 0)), worlds, jax.random.key(2))
    assert seen.done[0] and not seen.terminal.any() and not seen.done[1:].any()
    assert seen.finished[0] == 500 and new.steps[0] == new.total[0] == 0
    assert (new.steps[1:] == 1).all() and (new.total[1:] == 1).all()
    chex.assert_trees_all_equal(seen.next_observation[1:], new.observation[1:])
    assert np.abs(new.observation[0] - seen.next_observation[0]).max() > 0.01


def test_rewards_are_scaled_by_the_deviation_of_their_discounted_sum():
    setting = a2c.TASKS["Pendulum-v1"]
    agent = a2c.start(setting, a2c.optimizer("torch", setting), jax.random.key(0))
    worlds, totals = agent.worlds, []
    noise = jnp.zeros((setting.copies, 64))
    discounted = np.zeros(setting.copies)
    for key in _keys(20):
        before = worlds.total
        worlds, seen = a2c.interact(setting, agent.params, noise, worlds, key)
        discounted = discounted * setting.discount + np.asarray(worlds.total - before)
        totals.append(discounted)
    variance = np.concatenate(totals).var()
    chex.assert_trees_all_close(worlds.rewards.variance, np.float32(variance), rtol=1e-3)
    reward = np.clip((worlds.total - before) / np.sqrt(variance), -10, 10)
    chex.assert_trees_all_close(seen.reward, np.float32(reward), rtol=1e-3, atol=1e-4)


def test_the_densities_of_actions_add_up_to_one_and_are_those_that_are_drawn_from():
    features = jax.random.normal(jax.random.key(0), (64,))
    outputs, log_std = jnp.array([0.3]), jnp.linspace(-3, -1, 64)
    density = jax.vmap(functools.partial(policies.EXPLORING.log_prob, log_std, features, outputs))
    grid = np.linspace(-15, 15, 3001)
    p = np.exp(np.asarray(density(grid), float)) * 0.01
    noise = policies.EXPLORING.noise(jax.random.key(1), log_std, 20000)
    draw = functools.partial(policies.EXPLORING.sample, jax.random.key(2), features, outputs)
    drawn = jax.vmap(draw)(noise)
    chex.assert_trees_all_close(p.sum(), 1.0, rtol=1e-5)
    deviation = np.sqrt((p * (grid - 0.3) ** 2).sum())
    chex.assert_trees_all_close(float(drawn.std()), float(deviation), rtol=0.03)
    assert abs(float(drawn.mean()) - 0.3) < 0.05 * deviation
    logits = jnp.array([0.1, 2.0, -1.0])
    logs = [policies.CATEGORICAL.log_prob(None, None, logits, i) for i in range(3)]
    chex.assert_trees_all_close(np.exp(logs), np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    assert policies.CATEGORICAL.mode(logits) == 1


def test_the_optimizers_are_those_of_the_recipes():
    found = {rule: a2c.optimizer(rule, CARTPOLE) for rule in ("torch", "stable_baselines3")}
    records = recipes.record("a2c_sb3"), recipes.record("a2c_sb3_atari")
    assert list(found.values()) == [
        recipes.build(dataclasses.replace(record, clip=None)) for record in records
    ]
    assert a2c.optimizer("keras", CARTPOLE) == dialects.keras(7e-4, rho=0.99, epsilon=1e-5)
    with pytest.raises(ValueError, match=r"rule must be one of .* got 'adagrad'"):
        a2c.optimizer("adagrad", CARTPOLE)
    anneal = a2c.optimizer("torch", a2c.TASKS["Pendulum-v1"])
    p = {"w": jnp.ones(3)}
    first, _ = anneal.update(p, anneal.init(p), p)
    # The source's rate after the first rollout: 7e-4 · (1 − 64/1,000,000).
    rate = 7e-4 * (1 - 64e-6)
    chex.assert_trees_all_close(first["w"], jnp.full(3, -rate / (0.1 + 1e-5)), rtol=2e-6)


def test_seeds_learn_together_as_each_does_alone():
    setting = dataclasses.replace(CARTPOLE, steps=16_000)
    tx = a2c.optimizer("torch", setting)
    returns = []
    for seeds in ([0, 1, 2, 3], [3]):
        parts = [part for _, part in a2c.train(setting, tx, jnp.array(seeds), 4)]
        returns.append(np.stack([part.episode_return for part in parts]))
    together, alone = returns
    assert (together[-1] > 3 * together[0]).all()
    # Rounding differs with the number of seeds, and a policy's choices follow it in the end.
    chex.assert_trees_all_close(together[0, 3], alone[0, 0], rtol=1e-3)
    with pytest.raises(ValueError, match="parts must divide the 400 updates, got 7"):
        next(a2c.train(setting, tx, jnp.array([0]), 7))


@pytest.mark.slow
def test_the_command_trains_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(a2c.TASKS, "Acrobot-v1", dataclasses.replace(
        a2c.TASKS["Acrobot-v1"], steps=16 * 5 * 50
    ))  # fmt: skip
    main("Acrobot-v1", ("torch", "sgd"), seeds=2, workdir=tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "torch" in shown and "n = 2 seeds" in shown
    with pytest.raises(SystemExit, match="rule must be one of"):
        main(rules=("adagrad",))
    with pytest.raises(SystemExit, match="seeds must be 1 or more, got 0"):
        main(seeds=0)
