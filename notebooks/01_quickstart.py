# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# RMSprop as an Optax gradient transformation: a pair of pure functions, `init` and `update`, and a
# state that is a tree of arrays. This page takes a minute on two CPU cores.

# %%
# What this page needs, where it is missing: from the index, or from a wheel that lies beside it.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("optax_rmsprop") is None:
    command = "-m pip install -q --find-links . optax-rmsprop[examples]"
    subprocess.run([sys.executable, *command.split()], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import optax_rmsprop

# %% [markdown]
# ## A step
#
# `init` makes the state from the parameters, `update` turns gradients into updates.

# %%
params = {"w": jnp.array([3.0, -2.0])}
tx = optax_rmsprop.rmsprop(learning_rate=0.1, decay=0.75, eps=0.0)
state = tx.init(params)
gradients = {"w": jnp.array([4.0, -8.0])}
updates, state = tx.update(gradients, state, params)
updates

# %% [markdown]
# ν starts at 0, so after one step it is (1−β)·g² = g²/4, and the update is −0.1·g/√(g²/4): 0.2
# against the sign of the gradient, however large the gradient is.
#
# The state holds what its names say. `learning_rate` is the rate just used.

# %%
state

# %%
optax.tree.get(state, "nu"), optax.tree.get(state, "last_learning_rate")

# %% [markdown]
# ## Training, compiled
#
# A valley that is a hundred times steeper across than along. One scale does not fit both
# directions; RMSprop gives each coordinate its own.


# %%
def loss(p):
    x, y = p["w"]
    return 0.5 * (0.1 * x**2 + 10.0 * y**2)


def path(tx, steps=400):
    """The loss before each step; the whole run is one compiled scan."""

    def step(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    start = {"w": jnp.array([3.0, -2.0])}
    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])(start)


# %% [markdown]
# ## Momentum, Nesterov and schedules: a chain of links
#
# `rmsprop` is a chain: `scale_by_rms`, then `scale_by_learning_rate`, then `trace`. Any number in
# it may be a schedule, a function of the number of updates so far.

# %%
falling = optax.cosine_decay_schedule(0.1, 400)
optimizers = {
    "SGD, the largest stable rate": optax.sgd(0.19),
    "RMSprop": optax_rmsprop.rmsprop(0.1),
    "with Nesterov momentum": optax_rmsprop.rmsprop(0.02, momentum=0.9, nesterov=True),
    "with a falling rate": optax_rmsprop.rmsprop(falling),
    "rate after momentum, as in PyTorch": optax.chain(
        optax_rmsprop.scale_by_rms(0.99, eps_in_sqrt=False, initial_scale=1.0),
        optax_rmsprop.trace(0.9),
        optax_rmsprop.scale_by_learning_rate(lambda count: 0.1 * falling(count)),
    ),
}
losses = {name: path(tx) for name, tx in optimizers.items()}

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, values in losses.items():
    axes.semilogy(values, label=name)
axes.set(xlabel="step", ylabel="loss", title="A valley with curvatures 0.1 and 10")
axes.legend()
axes.grid(alpha=0.3)

# %% [markdown]
# At a constant rate RMSprop first comes close, and then is thrown out as ν forgets: it ends in a
# small cycle. Where ε is negligible its amplitude is half the learning rate in every coordinate,
# whatever the curvature, which is a loss of Σ hη²/8. A falling rate shrinks the cycle.

# %%
cycle = (0.1 + 10.0) * 0.1**2 / 8
print(f"cycle {cycle:.4f}, last loss {losses['RMSprop'][-1]:.4f}")
print(f"with a falling rate {losses['with a falling rate'][-1]:.1e}")

# %% [markdown]
# ## A population
#
# Hyperparameters may be traced, so a grid of them is one `vmap`.

# %%
rates = jnp.geomspace(1e-3, 1.0, 13)
last = jax.vmap(lambda rate: path(optax_rmsprop.rmsprop(rate))[-1])(rates)
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.loglog(rates, last, "o-")
axes.set(xlabel="learning rate", ylabel="loss after 400 steps")
axes.grid(alpha=0.3)

# %% [markdown]
# ## Half precision
#
# Accumulators and arithmetic are float32 at least. A float16 gradient of zero gives zero, and a
# small one gives the step that it would give in float32.

# %%
half = jnp.array([0.0, 1e-4, 300.0], jnp.float16)
tx = optax_rmsprop.rmsprop(1e-2)
updates, state = tx.update(half, tx.init(half))
print(updates, updates.dtype, state[0].nu.dtype)
