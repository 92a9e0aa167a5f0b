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
# # Memory
#
# RMSprop's cost beyond SGD is one accumulator a parameter: four bytes of float32. Between steps it
# can be held in two bytes or in one. This page shows what each format stores, what it costs, and
# when not to use it.

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
from sklearn.datasets import load_digits

import optax_rmsprop
from optax_rmsprop import storage

FORMATS = {"float32": None, "uint16": storage.uint16(), "uint8": storage.uint8()}


def stored(tx, name):
    """Every leaf, also the small ones of this page."""
    codec = FORMATS[name]
    return tx if codec is None else storage.stored_as(tx, lambda path, leaf: codec)


# %% [markdown]
# ## What is stored
#
# A float32 is a sign, 8 bits of exponent and 23 of fraction. ν has no sign. `uint16` keeps the
# exponent and 8 bits of fraction; `uint8` keeps 3 bits of fraction and 5 of exponent, counted from
# that of the largest element in a block of 128, which is one more byte. During a step ν is float32
# again, and the step is taken from ν as it is stored.

# %%
params = jnp.ones((256, 512))
grads = jax.random.normal(jax.random.key(0), params.shape)
first = {}
for name in FORMATS:
    tx = stored(optax_rmsprop.rmsprop(1e-3), name)
    state = tx.init(params)
    first[name], _ = tx.update(grads, state)
    nu = optax.tree.get(state, "nu")
    size = sum(x.nbytes for x in jax.tree.leaves(nu))
    change = jnp.abs(first[name] / first["float32"] - 1)
    print(f"{name:8} {size / params.size:.4f} bytes a parameter, steps within {change.max():.1%}")
assert jnp.allclose(first["uint16"], first["float32"], rtol=2**-9 * 1.01)
assert jnp.allclose(first["uint8"], first["float32"], rtol=0.07)

# %% [markdown]
# The error of one rounding, over the values of a block whose largest element is 1. Below 2⁻³¹ of it
# `uint8` has only its smallest code, which acts like an ε; zero becomes it too, unless all of the
# block is zero.

# %%
exponents = np.linspace(-40, 0, 128 * 64, dtype=np.float32)
block = np.full((64, 128), 1.0, np.float32)
block[:, 1:] = (2.0 ** exponents.reshape(64, 128))[:, 1:]
figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
for name, codec in list(FORMATS.items())[1:]:
    v = jnp.asarray(block)
    back = np.asarray(codec.decode(codec.encode(v, None)))
    error = np.abs(back / block - 1)[:, 1:]
    axes.loglog(block[:, 1:].ravel(), error.ravel() + 1e-9, ".", markersize=2, label=name, base=2)
axes.set(xlabel="ν, in a block with a 1", ylabel="relative error, to nearest", ylim=(1e-5, 1e3))
axes.set_yscale("log", base=10)
axes.legend()
plt.show()

# %% [markdown]
# ## Why the rounding is random
#
# ν ← β·ν + (1−β)·g² changes ν by a thousandth at β = 0.999, and the codes of `uint16` are a 256th
# apart: rounded to nearest, a unit whose gradient dies keeps its ν for ever, and its step stays
# small when the gradient comes back. Stochastic rounding is unbiased: the mean of ν goes down
# exactly as it should. Here is the same codec with stochastic rounding and with rounding to
# nearest:

# %%
decay, steps, units = 0.999, 3000, 512
codec = storage.uint16()


def decayed(stochastic):
    def step(cell, count):
        v = decay * codec.decode(cell)
        word = jax.random.bits(jax.random.fold_in(jax.random.key(0), count), (units,))
        cell = codec.encode(v, word if stochastic else None)
        return cell, codec.decode(cell).mean()

    start = codec.encode(jnp.linspace(1.0, 2.0, units), None)
    return jax.lax.scan(step, start, jnp.arange(steps))[1]


exact = 1.5 * decay ** np.arange(1, steps + 1)
stochastic, nearest = decayed(True), decayed(False)
figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
axes.semilogy(exact, "k", linewidth=3, alpha=0.3, label="exact")
axes.semilogy(stochastic, label="stochastic")
axes.semilogy(nearest, label="to nearest")
axes.set(xlabel="steps without a gradient", ylabel="mean of ν")
axes.legend()
plt.show()
assert abs(stochastic[-1] / exact[-1] - 1) < 0.05 and nearest[-1] > 1

# %% [markdown]
# ## What it costs
#
# Noise. A code's rounding is remembered as long as a gradient is, so a step's relative error is
# that of many roundings. For Gaussian gradients, beside the noise that the exact ν has:


# %%
def noise(name, decay, steps=600):
    shape = (8, 1024)

    def run(tx):
        def step(state, count):
            g = jax.random.normal(jax.random.fold_in(jax.random.key(1), count), shape)
            update, state = tx.update(g, state)
            return state, jnp.log(jnp.abs(update[:, :128] / g[:, :128]))

        return jax.lax.scan(step, tx.init(jnp.ones(shape)), jnp.arange(steps))[1][-100:]

    inner = optax_rmsprop.scale_by_rms(decay, eps=0.0, initial_scale=1.0)
    return float(jnp.sqrt(jnp.mean((run(stored(inner, name)) - run(inner)) ** 2)))


print("decay   uint16   uint8    the exact ν's own")
for decay in (0.9, 0.99, 0.999):
    own = 0.5 * np.sqrt(2 * (1 - decay) / (1 + decay))
    print(f"{decay:<7} {noise('uint16', decay):.4f}   {noise('uint8', decay):.3f}    {own:.3f}")

# %% [markdown]
# So `uint16` costs less than the noise that is there anyway, and `uint8` does so up to a decay of
# about 0.97. Training shows it: a small network on handwritten digits, from the same start, with
# the same batches.

# %%
digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)


def train(name, decay, steps=600):
    tx = stored(optax_rmsprop.rmsprop(2e-3, decay, bias_correction=True), name)
    keys = jax.random.split(jax.random.key(2))
    params = {
        "w1": jax.random.normal(keys[0], (64, 128)) / 8,
        "w2": jax.random.normal(keys[1], (128, 10)) / 11,
    }

    def loss_fn(params, chosen):
        logits = jax.nn.relu(images[chosen] @ params["w1"]) @ params["w2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    def step(carry, count):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(3), count)
        chosen = jax.random.randint(key, (64,), 0, len(labels))
        loss, grads = jax.value_and_grad(loss_fn)(params, chosen)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[1]


figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for axis, decay in zip(axes, (0.9, 0.999), strict=True):
    for name in FORMATS:
        losses = np.asarray(train(name, decay)).reshape(-1, 20).mean(1)
        axis.semilogy(np.arange(len(losses)) * 20, losses, label=name)
    axis.set(xlabel="step", title=f"decay {decay}")
axes[0].set(ylabel="training loss")
axes[0].legend()
plt.show()

# %% [markdown]
# Measured with seeds and spread, on CIFAR-10 and on a character model:
# `experiments/results/storage.md` and `benchmarks/results/storage.md`.
#
# ## When not to use it
#
# - *To differentiate through the optimizer.* A code has no derivative.
# - *`uint8` at a decay near 1*, where its noise is larger than that of the gradients.
# - *`uint8` and gradients with spikes.* An element 2³¹ times its neighbours' ν lifts them, and
#   their steps are short while it is remembered. Clip before.
# - *For small leaves.* By default those of fewer than 4,096 elements stay as they are, and so do
#   embeddings; a function from path and leaf to a codec decides otherwise.
#
# ## Why there is no factored form
#
# Adafactor keeps the means of ν over rows and over columns, and takes their product over the whole
# mean for ν. That is exact if ν has rank one, and nothing bounds the step if it has not: for a
# diagonal ν of size n it is √n times too long.

# %%
for n in (4, 64):
    nu = jnp.eye(n)
    rows, columns = nu.mean(1), nu.mean(0)
    factored = (rows / rows.mean())[:, None] * columns[None, :]
    print(f"diagonal of {n}: the step is {float(jnp.sqrt(nu[0, 0] / factored[0, 0])):.1f} times")

# %% [markdown]
# A mean over a split axis also needs all devices. The bound on a step and an update that
# communicates nothing are promises here; `optax.scale_by_factored_rms` is there for who can do
# without.
