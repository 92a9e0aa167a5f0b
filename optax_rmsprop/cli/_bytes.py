"""Where the bytes of a training run go: parameters, gradients and the optimizer's state.

Shapes and a mesh decide. No array is made, and no device is asked.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from .. import sharding, storage
from .._rmsprop import rmsprop
from .._tree import wide
from . import _layouts as layouts
from ._guard import Refused
from ._models import MODELS

GB = 10**9
RULE = "each axis splits the first dimension of a parameter that it divides and no other splits"
LEFT_OUT = "activations, and what a step needs for itself"


def _plain() -> Any:
    return rmsprop(1e-3)


def _momentum() -> Any:
    return rmsprop(1e-3, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "optax.adam": lambda: optax.adam(1e-3),
    "rmsprop": _plain,
    "rmsprop, uint16()": lambda: storage.stored_as(_plain(), storage.uint16()),
    "rmsprop, uint8()": lambda: storage.stored_as(_plain(), storage.uint8()),
    "rmsprop with momentum": _momentum,
    "rmsprop with momentum, uint16(), int16()": lambda: storage.stored_as(
        _momentum(), storage.uint16(), storage.int16()
    ),
    "rmsprop with momentum, uint8(), int8()": lambda: storage.stored_as(
        _momentum(), storage.uint8(), storage.int8()
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer: bytes on a device, those of parameters and gradients in `total` and `left`."""

    optimizer: str
    state: int
    of_a_parameter: float  # its state on all devices together
    total: int
    left: list[int]  # of each memory; negative if it does not fit


@dataclasses.dataclass(frozen=True)
class Account:
    """What `bytes` shows."""

    model: str
    count: int  # of parameters
    mesh: dict[str, int]
    rule: str
    not_counted: str
    parameters: int  # bytes on a device
    gradients: int
    memory: list[float]  # GB
    rows: list[Row]


def params_of(model: str, dtype: str = "") -> Any:
    """The shapes of a model by its name, or of a file."""
    if model in MODELS:
        shapes = MODELS[model]()
        tree: Any = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    elif not (path := pathlib.Path(model)).exists():
        raise Refused(f"MODEL {model} is none of {', '.join(MODELS)}, and no file or folder")
    else:
        tree = layouts.target_of(path).params

    def leaf(p: Any) -> Any:
        return _cast(p, dtype) if dtype and _is_trained(p) else p

    with jax.enable_x64(True):
        return jax.tree.map(leaf, tree)


def mesh_of(devices: int | None, axes: str) -> dict[str, int]:
    """The axes of `--mesh data=2,model=4`, or the one of `--devices 8`."""
    if not axes:
        if devices is not None and devices < 1:
            raise Refused(f"--devices {devices}: expected a number > 0")
        return {"devices": 1 if devices is None else devices}
    if devices is not None:
        raise Refused(f"--devices {devices}: --mesh {axes} has their number already")
    found = dict[str, int]()
    for pair in axes.split(","):
        name, _, size = pair.partition("=")
        if not (name and size.isascii() and size.isdecimal() and int(size)) or name in found:
            raise Refused(f"--mesh {axes}: expected NAME=SIZE,... of sizes > 0, each name once")
        found[name] = int(size)
    return found


def account(model: str, params: Any, mesh: Mapping[str, int], memory: Sequence[float]) -> Account:
    """Count the bytes that training with each of the optimizers holds on a device."""
    if strange := [x for x in memory if not 0 < x < math.inf]:
        raise Refused(f"--memory {strange[0]:g}: expected GB > 0")
    leaves = jax.tree.leaves(params)
    count = sum(math.prod(p.shape) for p in leaves)
    if not count:
        raise Refused(f"{model} holds no parameters")
    with jax.enable_x64(any(p.dtype in (np.float64, np.complex128) for p in leaves)):
        # In explicit axes a shape that an axis does not divide would be an error.
        kinds = (AxisType.Auto,) * len(mesh)
        device = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=kinds)
        params = jax.tree.map(functools.partial(_split, device), params)
        states = {name: _state(make(), params) for name, make in OPTIMIZERS.items()}
    weights, grads = _size(params), _size([p for p in jax.tree.leaves(params) if _is_trained(p)])
    rows = list[Row]()
    for name, state in states.items():
        total = weights + grads + state
        left = [round(x * GB) - total for x in memory]
        rows.append(Row(name, state, state * device.size / count, total, left))
    return Account(model, count, dict(mesh), RULE, LEFT_OUT, weights, grads, [*memory], rows)


def _is_trained(p: Any) -> bool:
    return bool(jnp.issubdtype(p.dtype, jnp.inexact))


def _cast(p: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype), sharding=p.sharding)


def _wide(p: Any) -> Any:
    return _cast(p, wide(p.dtype)) if _is_trained(p) else p


def _split(mesh: AbstractMesh, p: Any) -> jax.ShapeDtypeStruct:
    spec: list[str | None] = [None] * len(p.shape)
    for name, parts in mesh.shape.items():
        free = [i for i, n in enumerate(p.shape) if spec[i] is None and n % parts == 0]
        if free:
            spec[free[0]] = name
    return _placed(p, NamedSharding(mesh, PartitionSpec(*spec)))


def _placed(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _state(tx: optax.GradientTransformation, params: Any) -> int:
    # Our moments are float32 or wider. Those of Optax are so if it is started with such parameters.
    like = jax.tree.map(_wide, params)
    shardings = sharding.state_shardings(tx, like)
    return _size(jax.tree.map(_placed, jax.eval_shape(tx.init, like), shardings))


def _size(tree: Any) -> int:
    """The bytes on a device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
