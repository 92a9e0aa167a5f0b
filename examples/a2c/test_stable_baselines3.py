"""A step of the A2C example beside one of Stable-Baselines3: its loss, clipping and optimizer."""

import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.a2c import a2c

if os.environ.get("OPTAX_RMSPROP_LIVE") != "1":
    pytest.importorskip("stable_baselines3")


def weights(policy):
    """Name the layers of a policy of Stable-Baselines3 as the example does."""
    nets = {"policy": policy.mlp_extractor.policy_net, "value": policy.mlp_extractor.value_net}
    last = {"policy": policy.action_net, "value": policy.value_net}
    return {name: [net[0], net[2], last[name]] for name, net in nets.items()}


def tensor(x):
    import torch

    return torch.tensor(np.asarray(x, np.float32))


def theirs(task, setting, params):
    """Return an agent of Stable-Baselines3 with our parameters."""
    import gymnasium
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    exploring = setting.environment.actions == 0
    agent = A2C(
        "MlpPolicy", DummyVecEnv([lambda: gymnasium.make(task)] * setting.copies),
        n_steps=setting.rollout, gamma=setting.discount, gae_lambda=setting.gae_lambda,
        vf_coef=setting.value_weight, use_sde=exploring, device="cpu",
        policy_kwargs={"log_std_init": -2, "ortho_init": False} if exploring else None,
    )  # fmt: skip
    agent.set_logger(Logger(None, []))
    with torch.no_grad():
        for name, layers in weights(agent.policy).items():
            for layer, (kernel, bias) in zip(layers, params[name], strict=True):
                layer.weight.copy_(tensor(kernel).T)
                layer.bias.copy_(tensor(bias))
    return agent


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_a_step_is_that_of_stable_baselines3(task):
    import torch

    setting = a2c.TASKS[task]
    tx = a2c.RULES["torch"](a2c.RATE)
    agent = a2c.start(setting, tx, jax.random.key(0))
    limit = setting.environment.limit
    steps = limit - 1 - jnp.arange(setting.copies) % (setting.rollout + 2)  # some are cut off
    agent = agent._replace(worlds=agent.worlds._replace(steps=steps))
    new, seen, norm, _ = jax.jit(functools.partial(a2c.update, setting, tx))(agent)
    assert seen.done.any() and not seen.done.all() and norm > 0

    other = theirs(task, setting, agent.params)
    buffer, policy = other.rollout_buffer, other.policy
    buffer.reset()
    starts = np.zeros(setting.copies, bool)
    for t in range(setting.rollout):
        o, after, done = seen.observation[t], seen.next_observation[t], np.asarray(seen.done[t])
        with torch.no_grad():
            value = policy.predict_values(tensor(o))
            bootstrap = policy.predict_values(tensor(after)).numpy().ravel()
        cut = done & ~np.asarray(seen.terminal[t])
        reward = np.asarray(seen.reward[t]) + setting.discount * bootstrap * cut
        action = np.asarray(seen.action[t]).reshape(-1, 1)
        buffer.add(np.asarray(o), action, reward, starts, value, torch.zeros(setting.copies))
        starts = done
    with torch.no_grad():
        last = policy.predict_values(tensor(seen.next_observation[-1]))
    buffer.compute_returns_and_advantage(last, starts)
    other._n_updates = 0
    other.train()
    for name, layers in weights(policy).items():
        found = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in layers]
        moved = optax.tree.sub(new.params[name], agent.params[name])
        expected = optax.tree.sub(found, agent.params[name])
        chex.assert_trees_all_close(moved, expected, rtol=1e-4, atol=1e-7)
    if setting.environment.actions == 0:
        chex.assert_trees_all_close(
            new.params["log_std"], policy.log_std.detach().numpy()[:, 0], rtol=1e-5
        )
