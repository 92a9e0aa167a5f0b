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
# # Which RMSprop is it?
#
# A package, a training log or a port has an RMSprop, and its documentation does not say which. This
# page asks several packages, names the rule of a recorded run, and finds two faults in a port.

# %%
# What this page needs, where it is missing: from the index, or from a wheel that lies beside it.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("optax_rmsprop") is None:
    command = "-m pip install -q --find-links . optax-rmsprop[examples]"
    subprocess.run([sys.executable, *command.split()], check=True)

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

from optax_rmsprop import compare, dialects, probe
from optax_rmsprop.recording import Run, record

# %% [markdown]
# ## Ask a package
#
# `probe.identify` takes an Optax transformation, or `start(params) -> step` with
# `step(gradient) -> new params`, in NumPy. Two short functions make that of any optimizer of
# PyTorch and of Keras. Each package is imported where it is used.


# %%
def of_torch(make):
    import torch

    def start(params):
        p = torch.tensor(params, requires_grad=True)
        optimizer = make([p])

        def step(gradient):
            p.grad = torch.tensor(gradient)
            optimizer.step()
            return p.detach().numpy()

        return step

    return start


def of_keras(make):
    import keras

    def start(params):
        p, optimizer = keras.Variable(params), make()

        def step(gradient):
            optimizer.apply([keras.ops.convert_to_tensor(gradient, p.dtype)], [p])
            return keras.ops.convert_to_numpy(p)

        return step

    return start


def pytorch():
    import torch

    return of_torch(lambda p: torch.optim.RMSprop(p, lr=7e-4, eps=1e-5, momentum=0.9))


def timm():
    from timm.optim import RMSpropTF

    return of_torch(lambda p: RMSpropTF(p, lr=0.016, eps=1e-3, momentum=0.9, weight_decay=1e-5))


def stable_baselines3():
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    return of_torch(lambda p: RMSpropTFLike(p, lr=7e-4, eps=1e-5))


def torchopt():
    import torchopt

    return of_torch(lambda p: torchopt.RMSProp(p, lr=0.01))


def keras():
    import keras

    return of_keras(lambda: keras.optimizers.RMSprop(1e-3, momentum=0.9))


def optax_with_momentum():
    return optax.rmsprop(1e-3, momentum=0.9)


def optax_adam_without_b1():
    return optax.adam(1e-3, b1=0.0)


# %% [markdown]
# Numbers are solved for, not chosen from a list. Where two calls are the same rule at a constant
# rate, both are shown. A package that is not installed is left out.

# %%
PACKAGES = [
    pytorch,
    timm,
    stable_baselines3,
    torchopt,
    keras,
    optax_with_momentum,
    optax_adam_without_b1,
]
reports = {}
for package in PACKAGES:
    try:
        optimizer = package()
    except ImportError as error:
        print(f"{package.__name__}: left out, {error}\n")
        continue
    reports[package.__name__] = report = probe.identify(optimizer)
    print(f"{package.__name__}, in {report.rule['precision']}:", *report.calls, "", sep="\n  ")
assert all(report.calls for report in reports.values())

# %% [markdown]
# A report is a page to paste into an issue. It has every switch, what the data leave open, and the
# frameworks with the same rule.

# %%
print(reports["optax_with_momentum"])

# %% [markdown]
# ## A port that trains
#
# A network on handwritten digits was trained by PyTorch's rule. Its port has two faults that are
# made often: `optax.rmsprop` puts ε inside the root, and the loss is summed over the batch where
# the mean was meant. `record` keeps the parameters and gradients of the first twelve steps in the
# optimizer's state. `docs/recording.md` has the lines that write the same file in PyTorch and
# Keras.

# %%
digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def logits(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["logits"]["kernel"] + params["logits"]["bias"]


def train(tx, reduce, steps=200):
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 32)) / 8, "bias": jnp.zeros(32)},
        "logits": {"kernel": jax.random.normal(keys[1], (32, 10)) / 6, "bias": jnp.zeros(10)},
    }
    tx = record(tx, 12)

    def step(carry, count):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(1), count)
        chosen = jax.random.randint(key, (64,), 0, 1500)

        def loss(p):
            return reduce(cross_entropy(logits(p, images[chosen]), labels[chosen]))

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), cross_entropy(logits(params, images[1500:]), labels[1500:]).mean()

    (_, state), losses = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return Run.of(state, tx), losses


theirs, their_losses = train(dialects.torch(lr=1e-2, eps=1e-3), jnp.mean)
ours, our_losses = train(optax.rmsprop(1e-2, decay=0.99, eps=1e-3), jnp.sum)

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.semilogy(their_losses, label="theirs")
axis.semilogy(our_losses, label="the port")
axis.set(xlabel="step", ylabel="loss on held-out digits")
axis.legend()
plt.show()

# %% [markdown]
# Both train, and the curves do not say that anything is wrong, let alone what. The files do. A run
# is written by `theirs.save("theirs.npz")`, and on the command line the same comparison is
# `python -m optax_rmsprop compare theirs.npz ours.npz`.

# %%
found = compare.runs(theirs, ours)
print(found)
assert set(found.causes[0].names) == {"gradient_factor", "denominator"}
assert found.causes[0].left == 0

# %% [markdown]
# The factor is that of a batch of 64. With the mean in place one fault is left, and with PyTorch's
# place of ε none is.

# %%
ours, _ = train(optax.rmsprop(1e-2, decay=0.99, eps=1e-3), jnp.mean)
print(compare.runs(theirs, ours), end="\n\n")
ours, _ = train(optax.rmsprop(1e-2, decay=0.99, eps=1e-3, eps_in_sqrt=False), jnp.mean)
fixed = compare.runs(theirs, ours)
print(fixed)
assert fixed.first is None and not fixed.causes

# %% [markdown]
# ## A log without its code
#
# The twelve recorded steps alone name the rule. Without the rates of the steps a constant rate is
# solved for as well.

# %%
report = probe.identify_log(theirs.params, theirs.grads)
print(report)
assert report.transformation is not None
