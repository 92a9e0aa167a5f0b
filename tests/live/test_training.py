"""Training itself: the same network, weights and batches in a framework and in JAX, 200 steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_rmsprop import dialects
from tests.live import needed
from tools.frameworks import their_own_world

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

STEPS, BATCH, RATE = 200, 32, 3e-3
SIZES = (6, 24, 3)


def problem(dtype):
    """Weights as (kernel [in, out], bias) pairs, and the batches of a smooth regression."""
    rng = np.random.default_rng(3)
    weights = [
        (rng.normal(size=(a, b)) / np.sqrt(a), np.zeros(b)) for a, b in itertools.pairwise(SIZES)
    ]
    x = rng.normal(size=(STEPS, BATCH, SIZES[0]))
    y = np.tanh(x @ rng.normal(size=(SIZES[0], SIZES[-1])) / np.sqrt(SIZES[0]))
    return jax.tree.map(lambda a: a.astype(dtype), (weights, x, y))


def mean_square(p, x, y):
    for kernel, bias in p[:-1]:
        x = jnp.tanh(x @ kernel + bias)
    return jnp.mean((x @ p[-1][0] + p[-1][1] - y) ** 2)


def in_jax(tx, dtype):
    weights, x, y = problem(dtype)

    def step(carry, batch):
        p, state = carry
        value, g = jax.value_and_grad(mean_square)(p, *batch)
        updates, state = tx.update(g, state, p)
        return (optax.apply_updates(p, updates), state), value

    @jax.jit
    def train(p, batches):
        (p, _), losses = jax.lax.scan(step, (p, tx.init(p)), batches)
        return p, losses

    p, losses = train(jax.tree.map(jnp.asarray, weights), (jnp.asarray(x), jnp.asarray(y)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(p)], np.asarray(losses)


def in_torch(options, dtype, schedule=None):
    import torch

    weights, x, y = problem(dtype)
    layers = []
    for kernel, bias in weights:
        layer = torch.nn.Linear(*kernel.shape, dtype=torch.tensor(kernel).dtype)
        layer.weight.data, layer.bias.data = torch.tensor(kernel.T), torch.tensor(bias)
        layers += [layer, torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.RMSprop(model.parameters(), **options)
    losses = []
    for t in range(STEPS):
        if schedule:
            optimizer.param_groups[0]["lr"] = schedule(t)
        loss = torch.mean((model(torch.tensor(x[t])) - torch.tensor(y[t])) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    named = [p.detach().numpy() for p in model.parameters()]
    return [p.T if p.ndim == 2 else p for p in named], np.array(losses)


def in_keras(options, dtype):
    """Keras's optimizer and variables; its layers (3.15.1) return float32 under the JAX backend."""
    import keras

    weights, x, y = problem(dtype)
    leaves, tree = jax.tree.flatten(weights)
    variables = [keras.Variable(leaf, dtype=str(leaf.dtype)) for leaf in leaves]
    optimizer = keras.optimizers.RMSprop(**options)
    gradients, losses = jax.jit(jax.value_and_grad(mean_square)), []
    for t in range(STEPS):
        p = tree.unflatten([variable.value for variable in variables])
        value, g = gradients(p, jnp.asarray(x[t]), jnp.asarray(y[t]))
        optimizer.apply(jax.tree.leaves(g), variables)
        losses.append(float(value))
    return [np.asarray(variable.value) for variable in variables], np.array(losses)


def apart(a, b):
    return max(np.abs(x.astype(float) - y).max() for x, y in zip(a[0], b[0], strict=True))


def assert_trained(losses):
    assert losses[-20:].mean() < 0.5 * losses[:20].mean()


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "centered": True, "weight_decay": 1e-3}],
    ids=str,
)
def test_torch(options):
    needed("torch")
    options = {"lr": RATE / 10 if "momentum" in options else RATE, "eps": 1e-4, **options}
    with their_own_world():
        theirs, exact = in_torch(options, np.float32), in_torch(options, np.float64)
        single, double = (
            in_jax(dialects.torch(**options), dtype) for dtype in (np.float32, np.float64)
        )
    assert_trained(exact[1])
    assert apart(double, exact) <= 1e-10
    # What rounding does to this training is seen in torch alone; ours may do as much, not more.
    assert apart(single, theirs) <= 4 * apart(theirs, exact)


def test_torch_with_a_schedule():
    needed("torch")

    def schedule(count):
        return RATE / 5 * 0.99**count

    with their_own_world():
        theirs = in_torch({"momentum": 0.9, "eps": 1e-4}, np.float64, schedule)
        ours = in_jax(dialects.torch(schedule, momentum=0.9, eps=1e-4), np.float64)
        inside = in_jax(dialects.pfrl(schedule, momentum=0.9, eps=1e-4), np.float64)
    assert_trained(theirs[1])
    assert apart(ours, theirs) <= 1e-10
    assert apart(inside, theirs) > 1e-3


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 1e-2}], ids=str)
def test_keras(options):
    needed("keras")
    rate = float(np.float32(RATE / 10 if "momentum" in options else RATE))
    options = {"learning_rate": rate, "epsilon": 1e-4, **options}
    with their_own_world():
        theirs, exact = in_keras(options, np.float32), in_keras(options, np.float64)
        single, double = (
            in_jax(dialects.keras(**options), dtype) for dtype in (np.float32, np.float64)
        )
    assert_trained(exact[1])
    assert apart(double, exact) <= 1e-10
    assert apart(single, theirs) <= 4 * apart(theirs, exact)
