"""Recipes against the optimizers, the schedulers and the clipping that their sources call."""

import dataclasses
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_rmsprop import dialects, recipes
from tests.live import needed
from tests.test_recipes import IMAGENET, recorded
from tools.conformance import inputs, rounded
from tools.frameworks import FRAMEWORKS, their_own_world, timm_optimizer
from tools.recorded import trajectory

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

GOOGLE = {"decay": 0.9, "momentum": 0.9}
# The framework, and the arguments of its class as the source has them, but for the rate.
CALLS = {
    "efficientnet": ("tensorflow1", GOOGLE | {"epsilon": 0.001}),
    "inception_v3_tpu": ("tensorflow1", GOOGLE | {"epsilon": 1.0}),
    "amoebanet_d_tpu": ("tensorflow1", GOOGLE | {"epsilon": 1.0}),
    "dqn_dopamine": (
        "tensorflow1", {"decay": 0.95, "momentum": 0.0, "epsilon": 0.00001, "centered": True},
    ),
    "a2c": ("tensorflow1", {"decay": 0.99, "epsilon": 1e-5}),
    "acer": ("tensorflow1", {"decay": 0.99, "epsilon": 1e-5}),
    "impala": ("tensorflow1", {"decay": 0.99, "momentum": 0.0, "epsilon": 0.1}),
    "dnc": ("tensorflow1", {"epsilon": 1e-10}),
    "timm_efficientnet_b0": (
        "timm", {"alpha": 0.9, "eps": 0.001, "momentum": 0.9, "weight_decay": 1e-5},
    ),
    "a2c_sb3": ("torch", {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0}),
    "a2c_sb3_atari": ("stable_baselines3", {"eps": 1e-5}),
    "torchbeast": ("torch", {"momentum": 0, "eps": 0.01, "alpha": 0.99}),
    "cleanba": ("torch", {"eps": 0.01, "alpha": 0.99}),
    "pymarl": ("torch", {"alpha": 0.99, "eps": 0.00001}),
    "minatar_dqn": ("torch", {"alpha": 0.95, "centered": True, "eps": 0.01}),
    "dpo": ("torch", {}),
    "wgan": ("torch", {}),
    "char_rnn": ("torch", {"alpha": 0.95, "eps": 1e-8}),
    "dqn_zoo": ("optax", {"decay": 0.95, "eps": 0.01 / 32**2, "centered": True}),
    "prioritized_dqn": ("optax", {"decay": 0.95, "eps": 0.01 / 128**2, "centered": True}),
}  # fmt: skip
# So that 40 steps see more than one rate.
SHORT = {
    "efficientnet": {"steps_per_epoch": 2.3},
    "inception_v3_tpu": {"steps_per_epoch": 2.3},
    "amoebanet_d_tpu": {"steps_per_epoch": 5},
    "timm_efficientnet_b0": {"steps_per_epoch": 2.3},
    "char_rnn": {"steps_per_epoch": 2.3},
    "a2c": {"num_envs": 2, "total_steps": 500},
    "impala": {"total_frames": 40_000},
    "torchbeast": {"total_steps": 30_000},
    "cleanba": {"total_steps": 500, "batch_size": 25},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_trajectory_is_that_of_the_sources_optimizer(name):
    """Of gradients that are clipped already: see below for the clipping."""
    of, options = CALLS[name]
    (framework,) = (f for f in FRAMEWORKS if f.name == of)
    needed(*framework.modules)
    recipe = dataclasses.replace(recorded(name, **SHORT.get(name, {})), clip=None, mask=None)
    with their_own_world():
        params, grads = inputs()
        grads[:, 0] = 0.01 * np.cos(np.arange(len(grads)))  # of 0 some frameworks make NaN
        rate = recipe.learning_rate
        rates = jax.vmap(rate)(jnp.arange(40)) if callable(rate) else np.full(40, rate)
        rates = np.asarray(rates)
        if framework.rounds:
            rates = rates.astype(np.float32).astype(float)
        theirs = framework.run({**options, framework.rate: 0.1}, params, grads, rates)
        if framework.rounds:
            numbers = {k: rounded(getattr(recipe, k)) for k in ("decay", "momentum", "eps")}
            recipe = dataclasses.replace(recipe, **numbers)
        if of == "tensorflow1":  # the decay is added to the loss
            recipe = dataclasses.replace(recipe, weight_decay=0.0)
        table = jnp.asarray(rates)
        recipe = dataclasses.replace(recipe, learning_rate=lambda count: table[count])
        mine, *_ = trajectory(recipes.build(recipe), params, grads)
    np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12 * np.abs(theirs).max())


def test_torch_clips_by_the_norm_and_a_millionth():
    needed("torch")
    import torch

    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        grads = {k: scale * rng.normal(size=n) for k, n in (("a", 5), ("b", 3))}
        theirs = [torch.nn.Parameter(torch.zeros(len(g), dtype=torch.float64)) for g in
                  grads.values()]  # fmt: skip
        for p, g in zip(theirs, grads.values(), strict=True):
            p.grad = torch.tensor(g)
        length = float(torch.nn.utils.clip_grad_norm_(theirs, 0.5))
        with their_own_world():
            tx = dialects.clip_by_norm(0.5, together=True)
            mine, _ = tx.update(grads, tx.init(grads))
        for p, g in zip(theirs, mine.values(), strict=True):
            factor = 1.0 if length <= 0.5 else length / (length + 1e-6)
            np.testing.assert_allclose(p.grad.numpy(), factor * np.asarray(g), rtol=1e-12)


def test_tensorflow_clips_by_the_norm():
    needed("tensorflow")
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        grads = [scale * rng.normal(size=n) for n in (5, 3)]
        theirs, _ = tf.clip_by_global_norm([tf.constant(g) for g in grads], 0.5)
        with their_own_world():
            tx = dialects.clip_by_norm(0.5, together=True)
            mine, _ = tx.update(grads, tx.init(grads))
        for p, g in zip(theirs, mine, strict=True):
            np.testing.assert_allclose(p.numpy(), g, rtol=1e-7)  # it rounds the bound


@pytest.mark.parametrize(
    ["name", "arguments", "factor"],
    [
        ("torchbeast", {"total_steps": 3e4}, lambda t: 1 - min(t * 80 * 8, 30_000) / 30_000),
        ("dpo", {}, lambda step: min(1.0, (step + 1) / (150 + 1))),
    ],
)
def test_a_rate_is_that_of_torchs_scheduler(name, arguments, factor):
    needed("torch")
    import torch

    recipe = recorded(name, **arguments)
    rate = getattr(recipe.learning_rate, "learning_rate", None) or recipe.learning_rate.after
    optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=factor)
    for t in range(200):
        np.testing.assert_allclose(
            recipe.learning_rate(t), optimizer.param_groups[0]["lr"], rtol=3e-7, atol=1e-11
        )
        optimizer.step()
        scheduler.step()


def timm_scheduler():
    """The file alone: the package's own import wants torchvision."""
    timm_optimizer()
    root = sys.modules["timm"].__path__[0]
    if "timm.scheduler" not in sys.modules:
        sys.modules["timm.scheduler"] = types.ModuleType("timm.scheduler")
        sys.modules["timm.scheduler"].__path__ = [f"{root}/scheduler"]
    return importlib.import_module("timm.scheduler.step_lr").StepLRScheduler


@pytest.mark.parametrize(
    ["name", "rate", "factor", "epochs"],
    [
        ("timm_efficientnet_b0", 0.048, 0.97, 3),
        ("timm_efficientnet_b2", 0.016, 0.97, 3),
        ("timm_efficientnet_es", 0.064, 0.97, 5),
        ("timm_mixnet_xl", 0.016, 0.969, 3),
        ("timm_mobilenetv3_large_100", 0.064, 0.973, 3),
    ],
)
def test_a_rate_is_that_of_timms_scheduler(name, rate, factor, epochs):
    needed("torch", "timm")
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = timm_scheduler()(
        optimizer, decay_t=2.4, decay_rate=factor, warmup_t=epochs, warmup_lr_init=1e-6,
        warmup_prefix=False,
    )  # fmt: skip
    ours = recorded(name, steps_per_epoch=1, warmup_epochs=epochs).learning_rate
    for epoch in range(600):
        scheduler.step(epoch)
        np.testing.assert_allclose(ours(epoch), optimizer.param_groups[0]["lr"], rtol=3e-7)


@pytest.mark.parametrize("batch", [1024, 2048, 4096])
def test_a_rate_is_that_of_tensorflows_decay(batch):
    """TensorFlow divides in float32: no step is tried that this may put behind a fall."""
    needed("tensorflow")
    import tensorflow as tf

    every = 2.4 * IMAGENET / batch
    ours = recorded("efficientnet", batch_size=batch).learning_rate.after
    steps = [t for t in range(0, 150_000, 97) if min(t / every % 1, -t / every % 1) > 1e-4]
    decay = tf.compat.v1.train.exponential_decay
    theirs = [
        float(decay(0.016 * batch / 256, tf.constant(t), every, 0.97, staircase=True)())
        for t in steps
    ]
    found = jax.vmap(ours)(jnp.array(steps, jnp.int32))
    np.testing.assert_allclose(found, theirs, rtol=2e-5)  # their power is in float32
