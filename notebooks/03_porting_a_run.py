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
# # Porting a run
#
# A PyTorch run is half trained. This page goes on with it in JAX: the weights, the accumulators,
# the momentum and the step count. The run is in the repository
# (`examples/port_from_torch/results/torch_run.npz`, made by that example), so that torch is not
# needed here; in your own case the two dictionaries are `model.state_dict()` and
# `optimizer.state_dict()` of a `torch.load`.
#
# Outside a checkout, in Colab say, put beside this page the file `examples.zip`, which
# `git archive -o examples.zip HEAD examples` makes in a checkout.

# %%
# What this page needs, where it is missing: from the index, or from a wheel that lies beside it.
import importlib.util
import shutil
import subprocess
import sys

if importlib.util.find_spec("optax_rmsprop") is None:
    command = "-m pip install -q --find-links . optax-rmsprop[examples]"
    subprocess.run([sys.executable, *command.split()], check=True)
if importlib.util.find_spec("examples") is None:
    shutil.unpack_archive("examples.zip")

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from examples.port_from_torch import main, ours
from examples.port_from_torch.task import Settings
from optax_rmsprop import dialects, interop

settings = Settings()
run = main.load(main.RECORDED)
weights = run["checkpoint"]["model"]
saved = run["checkpoint"]["optimizer"]
{name: array.shape for name, array in weights.items()}

# %% [markdown]
# torch keeps the optimizer's state by position, and, if it was made from named parameters, the
# names beside it. Each parameter has a step count and up to three arrays.

# %%
print({key: np.shape(value) for key, value in saved["state"][0].items()})
print({key: saved["param_groups"][0][key] for key in ("param_names", "lr", "momentum", "centered")})

# %% [markdown]
# ## The weights
#
# PyTorch has a convolution's weight as (out, in, height, width) and a linear layer's as (out, in);
# Flax has (height, width, in, out) and (in, out). A linear layer after a flatten needs more:
# PyTorch flattens channels first, Flax channels last. `layout` does these for modules of the same
# names. Where your network needs more, it is a function of your own, from named arrays to a tree.

# %%
graph, empty = nnx.split(ours.Network(nnx.Rngs(0)), nnx.Param)
layout = interop.layout(empty, flattened={"head": (16, 4, 4)})
params = jax.tree.map(jnp.asarray, layout.to_flax(weights))
jax.tree.map(jnp.shape, params)

# %% [markdown]
# ## The optimizer
#
# The line of PyTorch, pasted into its dialect, makes a state of zeros. `from_torch` fills it, and
# uses the weights' conversion for each accumulator.

# %%
tx = dialects.torch(
    lr=settings.rate, alpha=0.99, eps=1e-6, weight_decay=1e-4, momentum=0.9, centered=True
)
state = interop.from_torch(saved, tx.init(params), layout.to_flax)
print(jax.tree.map(jnp.shape, optax.tree.get(state, "trace")["head"]))
print("steps made:", optax.tree.get(state, "count"))

# %% [markdown]
# torch's `square_avg` is the average of g². The state here holds the variance itself, square_avg
# minus grad_avg², which later steps cannot turn negative.

# %%
square, mean = saved["state"][4]["square_avg"], saved["state"][4]["grad_avg"]
carried = layout.to_torch(optax.tree.get(state, "var"))["head.weight"]
print(f"largest difference: {np.abs(carried - (square - mean**2)).max():.1e}")

# %% [markdown]
# ## Going on
#
# The schedule goes on by itself, since it is a function of the count. Beside the carried run go
# three that are not: a new state, a state without its momentum, and the numbers in another rule,
# Keras's.

# %%
forgotten = optax.tree.set(state, trace=jax.tree.map(jnp.zeros_like, params))
keras = dialects.keras(settings.rate, 0.99, 0.9, 1e-6, centered=True)
rewritten, unfilled, unused = interop.transfer(state, keras.init(params))
print("not filled:", unfilled, " not used:", unused)


def go_on(tx, state, steps=settings.steps):
    """The losses of the next steps."""

    def loss(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        value, gradients = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    p, losses = params, []
    for images, labels in ours.batches(settings, settings.steps):
        p, state, value = step(p, state, images[..., None], labels)
        losses.append(float(value))
    return np.array(losses)


theirs = np.array(run["losses"][settings.steps :])
runs = {
    "carried": go_on(tx, state),
    "a new state": go_on(tx, tx.init(params)),
    "without the momentum": go_on(tx, forgotten),
    "in Keras's rule": go_on(keras, rewritten),
}
for name, losses in runs.items():
    worst = np.abs(losses - theirs).max()
    print(f"{name:22s} largest difference of a loss from PyTorch's: {worst:.1e}")

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
axes.semilogy(theirs, linewidth=4, alpha=0.4, label="PyTorch itself")
for (name, losses), style in zip(runs.items(), ("k--", "-", "-", "-"), strict=True):
    axes.semilogy(losses, style, linewidth=1, label=name)
axes.set(xlabel="steps after the checkpoint", ylabel="training loss")
axes.legend()
axes.grid(alpha=0.3)

# %% [markdown]
# ## And back
#
# `to_torch` makes the dictionary that PyTorch loads, after `tree_map_only(np.ndarray,
# torch.from_numpy, ...)`. What was carried and not trained comes back as it was, but for the
# rounding of the variance.

# %%
back = interop.to_torch(state, saved, layout.to_torch)
for key in ("square_avg", "grad_avg", "momentum_buffer"):
    worst = max(np.abs(back["state"][i][key] - saved["state"][i][key]).max() for i in range(6))
    print(f"{key:16s} {worst:.1e}")

# %% [markdown]
# ## When it does not fit
#
# A state is filled completely or not at all, and the error names what is wrong.

# %%
wrong = {
    "names in another order": lambda: interop.from_torch(
        saved, tx.init(params), layout.to_flax, names=[*list(weights)[1:], "conv1.weight"]
    ),
    "an optimizer without momentum": lambda: interop.from_torch(
        saved, dialects.torch(centered=True).init(params), layout.to_flax
    ),
    "the model's dictionary": lambda: interop.from_torch(weights, tx.init(params), layout.to_flax),
}
for name, attempt in wrong.items():
    try:
        attempt()
    except (TypeError, ValueError) as error:
        print(f"{name}:\n    {error}")
