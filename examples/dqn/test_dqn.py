"""Deep Q-learning: the game is MinAtar's, the optimizer is the recipe, and agents learn."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import minatar
import numpy as np
import optax
import pytest

import optax_rmsprop
from examples.a2c.environments import CARTPOLE
from examples.dqn import dqn
from examples.dqn.environments import BREAKOUT
from optax_rmsprop import recipes


class Imposed:
    """In place of NumPy's generator: what is drawn next is what it was told."""

    def __init__(self):
        self.uniform, self.integer = 1.0, 0

    def rand(self):
        return self.uniform

    def randint(self, _):
        return self.integer


def game(key, skill, steps):
    """Play our Breakout; of every step, what was asked, done and seen.

    With the probability `skill` the player goes where the ball will be, or few bricks would fall.
    """

    def step(state, key):
        keys = jax.random.split(key, 4)
        side = jnp.sign(state.ball[1] + state.velocity[1] - state.paddle)
        arbitrary = jax.random.randint(keys[0], (), 0, BREAKOUT.actions)
        skilled = jax.random.bernoulli(keys[1], skill)
        asked = jnp.where(skilled, jnp.array([1, 0, 3])[side + 1], arbitrary)
        after, reward, terminated = BREAKOUT.step(state, asked, keys[2])
        fresh = BREAKOUT.reset(keys[3])
        following = jax.tree.map(lambda new, old: jnp.where(terminated, new, old), fresh, after)
        return following, {
            "asked": asked, "done": after.last_action, "reward": reward, "terminated": terminated,
            "seen": BREAKOUT.observe(after), "right": fresh.ball[1] == 9,
            "first": BREAKOUT.observe(following), "bricks": after.bricks.sum(),
        }  # fmt: skip

    key, reset_key = jax.random.split(key)
    state = BREAKOUT.reset(reset_key)
    _, rows = jax.lax.scan(step, state, jax.random.split(key, steps))
    return state, rows


@pytest.mark.parametrize(
    ["skill", "episodes", "bricks", "walls"],
    [(0.3, 1000, 500, 0), (0.9, 200, 1000, 0), (1.0, 10, 500, 10)],
)
def test_breakout_is_minatars_step_by_step(skill, episodes, bricks, walls):
    state, rows = jax.jit(game, static_argnums=2)(jax.random.key(0), skill, 20_000)
    rows = jax.tree.map(np.asarray, rows)
    oracle, imposed = minatar.Environment("breakout", sticky_action_prob=0.5), Imposed()
    oracle.random = oracle.env.random = imposed

    def reset(right):
        # MinAtar remembers the last action of the episode before; ours starts with none.
        imposed.integer, oracle.last_action = int(right), 0
        oracle.reset()

    reset(state.ball[1] == 9)
    np.testing.assert_array_equal(BREAKOUT.observe(state), oracle.state())
    for i in range(20_000):
        repeated = rows["asked"][i] != rows["done"][i]
        assert not repeated or rows["done"][i] == oracle.last_action
        imposed.uniform = 0.0 if repeated else 1.0
        assert oracle.act(rows["asked"][i]) == (rows["reward"][i], rows["terminated"][i])
        assert (rows["seen"][i] == oracle.state()).all()
        if rows["terminated"][i]:
            reset(rows["right"][i])
            assert (rows["first"][i] == oracle.state()).all()
    # All was seen: an episode that ended, a brick that broke, a new wall in place of none.
    assert rows["terminated"].sum() > episodes and rows["reward"].sum() > bricks
    assert (np.diff(rows["bricks"]) == 30).sum() >= walls


def test_an_action_is_repeated_in_a_tenth_of_the_steps():
    _, rows = jax.jit(game, static_argnums=2)(jax.random.key(1), 0.0, 20_000)
    share = float((rows["asked"] != rows["done"]).mean())
    # At random, five of six last actions are another one; four standard deviations.
    assert share == pytest.approx(0.1 * 5 / 6, abs=4 * (0.083 / 20_000) ** 0.5)


def test_the_optimizers_are_the_recipes():
    for name in ("dqn_zoo", "dqn_dopamine", "minatar_dqn"):
        assert dqn.optimizer(name) == getattr(recipes, name)()
    uncentered = optax_rmsprop.rmsprop(2.5e-4, decay=0.95, eps=0.01 / 32**2)
    assert dqn.optimizer(centered=False) == uncentered != dqn.optimizer()
    heavy = optax_rmsprop.rmsprop(
        1e-3, decay=0.95, eps=0.01 / 32**2, centered=True, momentum=0.95
    )  # fmt: skip
    assert dqn.optimizer(momentum=0.95, learning_rate=1e-3) == heavy


SMALL = dqn.TASKS["cartpole"]._replace(
    hidden=(16,), capacity=64, fill=50, exploration=100, target_every=20
)
LINEAR = SMALL._replace(hidden=())


@pytest.fixture(scope="module")
def played():
    """An agent that has played at random, without an update, and what it met."""
    start = functools.partial(dqn.start, SMALL, dqn.optimizer())
    random = SMALL._replace(fill=100)
    return jax.jit(lambda key: dqn.play(random, start(key), 0, 100))(jax.random.key(0))


def test_a_future_is_discounted_and_ends_with_the_episode():
    params = [(jnp.eye(4, 2), jnp.zeros(2))]
    target = [(2 * jnp.eye(4, 2), jnp.zeros(2))]
    observation = jnp.array([[0.5, 0, 0, 0]])
    batch = dqn.Memory(
        observation, jnp.int8([0]), jnp.ones(1), jnp.array([False]), jnp.array([[0.1, 0.2, 0, 0]])
    )
    error = 0.5 - (1 + 0.99 * 0.4)
    assert float(dqn.loss(LINEAR, params, target, batch)) == pytest.approx(error**2 / 2)
    last = batch._replace(terminated=jnp.array([True]))
    assert float(dqn.loss(LINEAR, params, target, last)) == pytest.approx(0.5**2 / 2)
    far = batch._replace(reward=jnp.full(1, 100.0))
    grads = jax.grad(functools.partial(dqn.loss, LINEAR))(params, target, far)
    assert float(grads[0][1][0]) == -1  # the error is clipped


def test_the_mean_with_the_recipe_of_the_zoo_is_the_sum_with_that_of_the_paper(played):
    agent, _ = played
    batch = jax.tree.map(lambda room: room[:32], agent.memory)
    grads = jax.grad(functools.partial(dqn.loss, SMALL))(agent.params, agent.target, batch)
    mean, total = recipes.dqn_zoo(), recipes.dqn()
    ours, _ = mean.update(grads, mean.init(grads))
    theirs, _ = total.update(jax.tree.map(lambda g: 32 * g, grads), total.init(grads))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), ours, theirs)))


def test_the_memory_has_every_step_and_forgets_the_oldest(played):
    agent, log = played
    order = np.arange(100 - SMALL.capacity, 100)
    memory = jax.tree.map(lambda room: np.asarray(room)[order % SMALL.capacity], agent.memory)
    assert memory.observation.shape == (64, 4) and (memory.reward == 1).all()
    ended = np.asarray(log.ended)[order]
    np.testing.assert_array_equal(memory.terminated, ended)
    followed = (memory.following[:-1] == memory.observation[1:]).all(1)
    np.testing.assert_array_equal(followed, ~ended[:-1])
    assert 0 < ended.sum() < 10 and set(memory.action) == {0, 1}
    starts = np.flatnonzero(np.asarray(log.ended)) + 1
    np.testing.assert_array_equal(log.score[starts[:-1]], 1)


def test_an_episode_that_is_cut_off_is_not_terminated():
    short = SMALL._replace(environment=CARTPOLE._replace(limit=5))
    start = functools.partial(dqn.start, short, dqn.optimizer())
    agent, log = jax.jit(lambda key: dqn.play(short, start(key), 0, 20))(jax.random.key(0))
    np.testing.assert_array_equal(np.flatnonzero(log.ended), [4, 9, 14, 19])
    np.testing.assert_array_equal(log.score[log.ended], 5)
    assert not agent.memory.terminated.any()


@pytest.mark.slow
def test_agents_of_one_program_are_those_of_their_own():
    train = functools.partial(dqn.train, SMALL, dqn.optimizer(), frames=60)
    together, *logs = train(range(3, 5))
    alone, *log = train(range(4, 5))
    np.testing.assert_array_equal(log, np.stack(logs)[:, :, 1:])
    np.testing.assert_array_equal(alone.memory.action[0], together.memory.action[1])
    # A product of matrices may be summed in another order: 60 updates, some 1e-7 each.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: close(a[0], b[1]), alone.params, together.params)
    assert not np.allclose(together.params[0][0][0], together.params[0][0][1])


def test_the_target_is_a_copy_from_the_start_of_the_cycle(played):
    before = [(w + 1, b) for w, b in played[0].params]
    agent = played[0]._replace(params=before)
    after, _ = jax.jit(functools.partial(dqn.cycle, SMALL, dqn.optimizer()))(agent, 100)
    np.testing.assert_array_equal(after.target[0][0], before[0][0])
    assert int(optax.tree.get(after.opt_state, "count")) == SMALL.target_every
    # In 20 updates of the recipe no weight can stay.
    assert (np.asarray(after.params[-1][1]) != np.asarray(before[-1][1])).all()


def test_the_memories_of_all_agents_are_written_in_place():
    large, tx = SMALL._replace(capacity=50_000), dqn.optimizer()
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    agents = jax.eval_shape(jax.vmap(functools.partial(dqn.start, large, tx)), keys)
    cycle = jax.vmap(functools.partial(dqn.cycle, large, tx), in_axes=(0, None))
    used = jax.jit(cycle, donate_argnums=0).lower(agents, 0).compile().memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(agents.memory))
    # Of the actions, a byte each, XLA has a copy.
    assert used.alias_size_in_bytes > held > 20 * used.temp_size_in_bytes


def test_the_convolution_is_that_of_xla():
    task = dqn.TASKS["breakout"]
    params = dqn.network(task, jax.random.key(0))
    seen = jax.random.bernoulli(jax.random.key(1), 0.3, (2, 10, 10, 4))
    kernel, bias = params[0][0].reshape(3, 3, 4, 16), params[0][1]
    x = jax.lax.conv_general_dilated(
        seen.astype(jnp.float32),
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(x + bias).reshape(2, -1)
    expected = jax.nn.relu(x @ params[1][0] + params[1][1]) @ params[2][0] + params[2][1]
    np.testing.assert_allclose(dqn.q_values(params, seen), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.api
def test_agents_learn_to_balance_the_pole():
    task = dqn.TASKS["cartpole"]._replace(exploration=2_000)
    _, counts, totals = dqn.train(task, dqn.optimizer(), range(2), 6_000)
    first, last = (
        totals[part].sum(0) / counts[part].sum(0) for part in (slice(2), slice(-2, None))
    )
    assert (first < 40).all() and (last > 100).all()


def test_the_program_prints_a_line_for_each_tenth(monkeypatch, capsys):
    monkeypatch.setitem(dqn.TASKS, "cartpole", SMALL)
    assert dqn.main(dqn.Options(seeds=2, frames=1_000)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(100 * (i + 1)) for i in range(10)]
    assert all("frames  return" in line and "±" in line for line in lines)


@pytest.mark.parametrize(
    ["options", "message"],
    [
        ({"momentum": 1.5}, "momentum must be in [0, 1.0), got 1.5"),
        ({"learning_rate": -1.0}, "learning_rate must be in [0, inf), got -1.0"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"frames": 0}, "--frames must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(options, message, capsys):
    assert dqn.main(dqn.Options(**options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_starts():
    root = Path(dqn.__file__).parents[2]
    run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True)
    shown = run([sys.executable, "-m", "examples.dqn", "--help"], check=True)
    assert "--no-centered" in shown.stdout and "--momentum" in shown.stdout
    refused = run([sys.executable, "-m", "examples.dqn", "--task", "pong"])
    assert refused.returncode == 2 and "pong" in refused.stderr
