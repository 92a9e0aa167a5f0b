"""Each framework's RMSprop as a function of its own arguments, gradients and learning rates."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rmsprop
from optax_rmsprop import dialects

# Before anything imports Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, to key caches
class Framework:
    """How to run it, what it rounds to float32 first, and which settings to compare."""

    name: str
    modules: tuple[str, ...]
    run: Callable[..., Array]  # (options, params, grads, rates) -> parameters [steps + 1, n]
    dialect: Callable[..., optax.GradientTransformation]
    settings: dict[str, dict[str, Any]]
    rate: str = "lr"
    rounds: frozenset[str] = frozenset()  # arguments; "schedule" for the values of one
    decay_in_single: bool = False  # 1 − ρ is formed from the rounded ρ
    complex_too: bool = False

    def version(self) -> str:
        """The version that is installed."""
        names = {"tensorflow": "tensorflow-cpu", "stable_baselines3": "stable-baselines3"}
        return importlib.metadata.version(names.get(self.modules[0], self.modules[0]))


def _torch_like(make: Callable[..., Any], options: Any, params: Array, grads: Array, rates: Any):
    import torch

    p = torch.nn.Parameter(torch.tensor(params))
    optimizer = make()([p], **options)
    after = [params]
    for t, g in enumerate(grads):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = float(rates[t])
        p.grad = torch.tensor(g)
        optimizer.step()
        after.append(p.detach().numpy().copy())
    return np.stack(after)


def _torch_function(options: Any, params: Array, grads: Array, rates: Any) -> Array:
    """PyTorch's in-place function: public from 2.15 on, before that beside the class."""
    import torch
    from torch.optim.rmsprop import rmsprop  # which torch.optim.functional wraps

    options = {
        "lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0,
        "centered": False, **options,
    }  # fmt: skip
    p = torch.tensor(params)
    nu, mu, buffer = ([torch.zeros_like(p)] for _ in range(3))
    counts = [torch.tensor(0.0)]
    after = [params]
    for t, g in enumerate(grads):
        if rates is not None:
            options["lr"] = float(rates[t])
        rmsprop([p], [torch.tensor(g)], nu, mu, buffer, counts, **options)
        after.append(p.numpy().copy())
    return np.stack(after)


def _torch() -> Any:
    import torch

    return torch.optim.RMSprop


@functools.cache
def timm_optimizer() -> Any:
    """The class alone: the package's own import wants torchvision."""
    spec = importlib.util.find_spec("timm")
    assert spec and spec.origin
    root = pathlib.Path(spec.origin).parent
    for name, folder in (("timm", root), ("timm.optim", root / "optim")):
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(folder)]
            sys.modules[name].__spec__ = spec
    return importlib.import_module("timm.optim.rmsprop_tf").RMSpropTF


@functools.cache
def stable_baselines3_optimizer() -> Any:
    """The file alone: the package's own import wants gymnasium."""
    found = importlib.util.find_spec("stable_baselines3")
    assert found and found.origin
    path = pathlib.Path(found.origin).parent / "common" / "sb2_compat" / "rmsprop_tf_like.py"
    spec = importlib.util.spec_from_file_location("rmsprop_tf_like", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RMSpropTFLike


def _torchopt(options: Any, params: Array, grads: Array, rates: Any) -> Array:
    import torch
    import torchopt

    options = dict(options)
    if rates is not None:
        table = torch.tensor(rates)
        options["lr"] = lambda count: table[int(count)]
    options.setdefault("lr", 1e-2)
    tx = torchopt.rmsprop(**options)
    p = (torch.tensor(params),)
    state, after = tx.init(p), [params]
    for g in grads:
        updates, state = tx.update((torch.tensor(g),), state, params=p, inplace=False)
        p = torchopt.apply_updates(p, updates, inplace=False)
        after.append(p[0].numpy().copy())
    return np.stack(after)


def _tensorflow1(options: Any, params: Array, grads: Array, rates: Any) -> Array:
    import tensorflow as tf

    options, step = dict(options), [0]
    if rates is not None:
        options["learning_rate"] = lambda: float(rates[step[0]])
    optimizer = tf.compat.v1.train.RMSPropOptimizer(**options)
    p, after = tf.Variable(params), [params]
    for t, g in enumerate(grads):
        step[0] = t
        optimizer.apply_gradients([(tf.constant(g), p)])
        after.append(p.numpy().copy())
    return np.stack(after)


def _tf_keras(legacy: bool, options: Any, params: Array, grads: Array, rates: Any) -> Array:
    import tensorflow as tf
    import tf_keras

    options = dict(options)
    if rates is not None:

        class Table(tf_keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, count: Any) -> Any:
                return tf.gather(tf.constant(rates), tf.cast(count, tf.int32))

        options["learning_rate"] = Table()
    if legacy:
        optimizer = tf_keras.optimizers.legacy.RMSprop(**options)
    else:
        optimizer = tf_keras.optimizers.RMSprop(jit_compile=False, **options)
    p, after = tf.Variable(params), [params]
    for g in grads:
        optimizer.apply_gradients([(tf.constant(g), p)])
        after.append(p.numpy().copy())
    return np.stack(after)


def _keras(options: Any, params: Array, grads: Array, rates: Any) -> Array:
    import keras

    options = dict(options)
    if rates is not None:

        class Table(keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, count: Any) -> Any:
                return jnp.asarray(rates)[jnp.asarray(count)]

        options["learning_rate"] = Table()
    optimizer = keras.optimizers.RMSprop(**options)
    p, after = keras.Variable(params, dtype=str(params.dtype)), [params]
    for g in grads:
        optimizer.apply([jnp.asarray(g)], [p])
        after.append(np.array(p.value))
    return np.stack(after)


def _optax(options: Any, params: Array, grads: Array, rates: Any) -> Array:
    options = dict(options)
    if rates is not None:
        options["learning_rate"] = lambda count: jnp.asarray(rates)[count]
    tx = optax.rmsprop(**options)

    def step(carry: Any, g: Any) -> Any:
        p, state = carry
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    run = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])
    return np.concatenate([params[None], run(jnp.asarray(params), jnp.asarray(grads))])


def _jax_example(momentum: bool, options: Any, params: Array, grads: Array, rates: Any) -> Array:
    from jax.example_libraries import optimizers

    options = dict(options)
    size = options.pop("learning_rate")
    if rates is not None:
        size = lambda count: jnp.asarray(rates)[count]  # noqa: E731
    names = {"decay": "gamma", "eps": "eps", "momentum": "momentum"}
    options = {names[name]: value for name, value in options.items()}
    make = optimizers.rmsprop_momentum if momentum else optimizers.rmsprop
    init, update, get = make(size, **options)
    state, after = init(jnp.asarray(params)), [params]
    for t, g in enumerate(grads):
        state = update(t, jnp.asarray(g), state)
        after.append(np.asarray(get(state)))
    return np.stack(after)


@contextlib.contextmanager
def their_own_world() -> Iterator[None]:
    """Float64 where it is asked for, and the promotion of dtypes that the frameworks rely on."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


BALL = {"momentum": 0.9}
RATES = {"rates": True}  # the rate of each step from a table

TORCH = {
    "default": {},
    "eps": {"eps": 1e-2},
    "momentum": BALL,
    "centered": {"centered": True, "eps": 1e-4},
    "centered-momentum": {"centered": True, "eps": 1e-4, **BALL},
    "decay": {"weight_decay": 0.1, "eps": 1e-2},
    "schedule-momentum": {**BALL, **RATES},
}
TENSORFLOW = {
    "default": {},
    "eps": {"epsilon": 1e-2},
    "momentum": BALL,
    "centered": {"centered": True, "epsilon": 1e-4},
    "centered-momentum": {"centered": True, "epsilon": 1e-4, **BALL},
    "schedule-momentum": {**BALL, **RATES, "epsilon": 1e-2},
}
KERAS = {
    **TENSORFLOW,
    "decay": {"weight_decay": 0.1, "epsilon": 1e-2, **BALL},
    "clipvalue": {"clipvalue": 0.1},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
}
OPTAX = {
    "default": {},
    "eps": {"eps": 1e-2},
    "outside": {"eps": 1e-2, "eps_in_sqrt": False},
    "ones": {"initial_scale": 1.0, **BALL},
    "momentum": BALL,
    "nesterov": {"nesterov": True, **BALL},
    "centered-momentum": {"centered": True, "eps": 1e-4, **BALL},
    "corrected": {"bias_correction": True},
    "schedule-momentum": {**BALL, **RATES},
}
EXAMPLE = {"default": {}, "eps": {"eps": 1e-2}, "schedule": RATES}

FRAMEWORKS = [
    Framework(
        "torch",
        ("torch",),
        functools.partial(_torch_like, _torch),
        dialects.torch,
        TORCH
        | {
            "maximize": {"maximize": True, "weight_decay": 0.1, **BALL},
            "foreach": {"foreach": True, "weight_decay": 0.1, "centered": True, **BALL},
            "one by one": {"foreach": False, "weight_decay": 0.1, **BALL},
        },
        complex_too=True,
    ),
    Framework(
        "torch_function",
        ("torch",),
        _torch_function,
        dialects.torch,
        TORCH | {"maximize": {"maximize": True, "weight_decay": 0.1, **BALL}},
    ),
    Framework(
        "timm",
        ("timm", "torch"),
        functools.partial(_torch_like, timm_optimizer),
        dialects.timm,
        TORCH
        | {
            "decoupled": {"weight_decay": 0.1, "decoupled_decay": True, **BALL},
            "corrected": {
                "weight_decay": 0.1,
                "decoupled_decay": True,
                "corrected_weight_decay": True,
                **RATES,
            },
            "corrected L2": {"weight_decay": 0.1, "corrected_weight_decay": True, **RATES},
            "outside": {"lr_in_momentum": False, **BALL, **RATES},
            "caution": {"caution": True, **BALL},
            "caution-decay": {"caution": True, "weight_decay": 0.1, **BALL},
            "caution-nothing": {"caution": True},
            "foreach": {"foreach": True, "weight_decay": 0.1, "centered": True, **BALL},
        },
    ),
    Framework(
        "stable_baselines3",
        ("stable_baselines3", "torch"),
        functools.partial(_torch_like, stable_baselines3_optimizer),
        dialects.stable_baselines3,
        TORCH,
    ),
    Framework(
        "torchopt",
        ("torchopt", "torch"),
        _torchopt,
        dialects.torchopt,
        TORCH
        | {
            "nesterov": {"nesterov": True, **BALL, **RATES},
            "ones": {"initial_scale": 1.0, **BALL},
            "maximize": {"maximize": True, "weight_decay": 0.1},
        },
    ),
    Framework(
        "tensorflow1",
        ("tensorflow",),
        _tensorflow1,
        dialects.tensorflow1,
        TENSORFLOW | {"impala": {"decay": 0.99, "epsilon": 0.1}},
        rate="learning_rate",
        rounds=frozenset({"learning_rate", "decay", "momentum", "epsilon", "schedule"}),
        decay_in_single=True,
    ),
    Framework(
        "keras2",
        ("tf_keras", "tensorflow"),
        functools.partial(_tf_keras, True),
        dialects.keras2,
        TENSORFLOW
        | {
            "falling rate": {"decay": 0.1},
            "epsilon of 0": {"epsilon": 0.0},
            "clipped": {"clipvalue": 0.5, "clipnorm": 0.75},
            "clipped together": {"global_clipnorm": 0.75, "momentum": 0.9},
        },
        rate="learning_rate",
        rounds=frozenset({"learning_rate", "rho", "momentum", "decay"}),
        decay_in_single=True,
    ),
    Framework(
        "tf_keras",
        ("tf_keras", "tensorflow"),
        functools.partial(_tf_keras, False),
        dialects.keras,
        KERAS,
        rate="learning_rate",
        rounds=frozenset({"learning_rate", "weight_decay"}),
    ),
    Framework(
        "keras",
        ("keras",),
        _keras,
        dialects.keras,
        KERAS,
        rate="learning_rate",
        rounds=frozenset({"learning_rate"}),
    ),
    Framework(
        "optax",
        ("optax",),
        _optax,
        optax_rmsprop.rmsprop,
        OPTAX,
        rate="learning_rate",
    ),
    Framework(
        "jax_example",
        ("jax",),
        functools.partial(_jax_example, False),
        optax_rmsprop.rmsprop,
        EXAMPLE,
        rate="learning_rate",
    ),
    Framework(
        "jax_example_momentum",
        ("jax",),
        functools.partial(_jax_example, True),
        functools.partial(optax_rmsprop.rmsprop, momentum=0.9),
        EXAMPLE,
        rate="learning_rate",
    ),
]
