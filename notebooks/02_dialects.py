# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Dialects
#
# Every framework's RMSprop is another algorithm. This page gives one sequence of gradients to many
# of them, measures how far the parameters end up from each other, and then what a wrong port costs
# in a training run. It takes about a minute on two CPU cores.

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
import numpy as np
import optax

import optax_rmsprop
from optax_rmsprop import dialects

# %% [markdown]
# ## One sequence of gradients
#
# Fifty gradients of a hundred weights, whose sizes range over four decades. Every optimizer gets
# the same numbers: ρ = 0.9, μ = 0.9, ε = 1e-3 and a rate that falls. Only the rule differs.

# %%
rng = np.random.default_rng(0)
steps, weights = 50, 100
sizes = np.geomspace(1e-3, 10.0, weights)
gradients = jnp.asarray(sizes * (0.3 + rng.normal(size=(steps, weights))), jnp.float32)


def schedule(count):
    return 0.01 * 0.9**count


numbers = {"momentum": 0.9}
rules = {
    "torch": dialects.torch(schedule, alpha=0.9, eps=1e-3, **numbers),
    "tensorflow1": dialects.tensorflow1(schedule, epsilon=1e-3, **numbers),
    "keras": dialects.keras(schedule, epsilon=1e-3, **numbers),
    "timm": dialects.timm(schedule, eps=1e-3, **numbers),
    "stable_baselines3": dialects.stable_baselines3(schedule, alpha=0.9, eps=1e-3, **numbers),
    "pfrl": dialects.pfrl(schedule, alpha=0.9, eps=1e-3, **numbers),
    "graves": dialects.graves(schedule, alpha=0.9, eps=1e-3, **numbers),
    "hinton": dialects.hinton(schedule, decay=0.9, **numbers),
    "torchopt, Nesterov": dialects.torchopt(
        schedule, alpha=0.9, eps=1e-3, nesterov=True, **numbers
    ),
    "paddle": dialects.paddle(schedule, rho=0.9, epsilon=1e-3, **numbers),
    "mxnet (no momentum)": dialects.mxnet(schedule, epsilon=1e-3),
    "heavyball (no momentum)": dialects.heavyball(schedule, (0.9, 0.9), eps=1e-3),
}


def trajectory(tx):
    """The parameters after each step."""

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    start = jnp.zeros(weights)
    return jax.jit(lambda g: jax.lax.scan(step, (start, tx.init(start)), g)[1])(gradients)


paths = {name: trajectory(tx) for name, tx in rules.items()}

figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharex=True, layout="constrained")
for axis, weight in zip(axes, (10, 50, 90), strict=True):
    axis.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    for name, path in paths.items():
        axis.plot(path[:, weight], label=name)
    axis.set(xlabel="step", title=f"gradients of about {sizes[weight]:.1g}")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("parameter")
_ = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)

# %% [markdown]
# How far apart are they after fifty steps? The root mean square difference of two rules'
# parameters, in units of the distance that they went.

# %%
last = np.stack([np.asarray(path[-1]) for path in paths.values()])
apart = np.sqrt(((last[:, None] - last[None]) ** 2).mean(-1))
went = np.sqrt((last**2).mean(-1))
relative = apart / np.sqrt(went[:, None] * went[None])

figure, axis = plt.subplots(figsize=(7, 5.5), layout="constrained")
image = axis.imshow(relative, cmap="viridis", vmin=0)
axis.set_xticks(range(len(paths)), paths, rotation=60, ha="right")
axis.set_yticks(range(len(paths)), paths)
figure.colorbar(image, label="difference / distance gone")

for i, j in np.argwhere(np.triu(relative < 1e-5, k=1)):
    print(f"{list(paths)[i]} and {list(paths)[j]} are equal to rounding")

# %% [markdown]
# What is equal has one rule under several names: in Keras and Paddle ε is inside the root, ν starts
# at 0 and the rate is in the buffer; timm is TensorFlow 1. Everything else is different.

# %% [markdown]
# ## What a wrong port costs
#
# A network for handwritten digits, trained with EfficientNet's setting in TensorFlow 1's rule
# (ρ = μ = 0.9, ε = 1e-3, a falling rate), and with the same numbers in four other rules. The study
# is `python -m experiments.five_rules`.
#
# ![The same numbers in five rules](../experiments/results/five_rules.png)
#
# The numbers belong to the rule. With them comes the rule: paste the line of the framework into its
# dialect, and the first curve is what you get. The curves say where the others part: without
# ν₀ = 1 the first steps are too long, and with ε outside the root every step of a small gradient
# is.
#
# ## A rule of your own
#
# A dialect is a chain of links, and is shown as one.

# %%
rules["torch"]

# %%
mine = optax.chain(
    optax_rmsprop.scale_by_rms(0.9, 1e-3, eps_in_sqrt=lambda root, nu, eps: root(nu + eps) + eps),
    optax_rmsprop.trace(0.9, nesterov=True),
    optax_rmsprop.scale_by_learning_rate(schedule),
)
print(f"{float(jnp.abs(trajectory(mine)[-1] - paths['torch'][-1]).max()):.3f} from torch's")
