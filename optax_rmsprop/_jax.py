"""The names of JAX that change from version to version, each asked for here alone.

JAX promises least about tracers, and about what a type says beside shape and dtype. A release that
moves one of these names is met by a change of this file.
"""

import math
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec


def is_traced(x: Any) -> bool:
    """Whether the value of `x` is not known while Python runs: under `jit`, `grad`, `vmap`."""
    return isinstance(x, Tracer)


def is_float0(x: Any) -> bool:
    """Whether `x` is JAX's gradient of an integer, which holds nothing."""
    return getattr(x, "dtype", None) == jax.dtypes.float0


def canonical(dtype: Any) -> Any:
    """The dtype that arrays of `dtype` have here: float32 for float64, unless 64 bits are on."""
    return jax.dtypes.canonicalize_dtype(dtype)


def memory_of(x: Any) -> Any:
    """Where the type of an array says that it is: in a device's memory, or in its host's."""
    return jax.typeof(x).memory_space


def parts_of_last_axis(x: jax.Array) -> int:
    """In how many parts an explicit mesh cuts the last axis, as the type says; else one."""
    sharding: Any = jax.typeof(x).sharding
    names = sharding.spec[-1] if sharding.spec else None
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(sharding.mesh.shape[name] for name in names)


def whole_last_axis(x: jax.Array) -> jax.Array:
    """The array with its last axis whole on every device, where the mesh is explicit.

    In another mesh the compiler gathers what it needs by itself.
    """
    if parts_of_last_axis(x) == 1:
        return x
    sharding: Any = jax.typeof(x).sharding
    spec = PartitionSpec(*sharding.spec[:-1], None)
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))


def again(arrays: Any) -> Any:
    """The same arrays, of which XLA does not know on a CPU that they are the same.

    What is made from them is then computed again where it is needed, instead of being written to
    memory for a second use. Other compilers make all results of an update in one loop by
    themselves, and are not hindered. Outside of `jit` there is no compiler to tell.
    """
    leaves = jax.tree.leaves(arrays)
    # Inside `shard_map`, JAX before 0.12 refuses arrays together of which some vary over the mesh,
    # or makes all of them vary.
    kinds = 1 if jax.__version_info__ >= (0, 12) else len(set(map(_manual_axes, leaves)))
    return _again(arrays) if any(map(is_traced, leaves)) and kinds == 1 else arrays


def _manual_axes(x: Any) -> Any:
    """The axes of a mesh that an array varies over inside `shard_map`."""
    kind = jax.typeof(x)
    return getattr(kind, "mat", None) or getattr(kind, "vma", None)


@jax.custom_jvp
def _again(arrays: Any) -> Any:
    here: Any = jax.lax.platform_dependent
    return here(arrays, cpu=jax.lax.optimization_barrier, default=_itself)


@_again.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return _again(*primals), *tangents


def _itself(arrays: Any) -> Any:
    return arrays
