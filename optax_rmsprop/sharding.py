"""Where a state lies on a mesh."""

import math
from typing import Any, cast

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec


def state_shardings(tx: optax.GradientTransformation, params: Any) -> Any:
    """The shardings of an optimizer state that is sharded like its parameters.

        state = jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)

    The states of this package's transformations are sharded so by themselves. Under `jit` those of
    Optax lie on one device, or are replicated, unless their shardings are given.

    Args:
        tx: Any Optax transformation or chain.
        params: Arrays or `jax.ShapeDtypeStruct`s, each with a `NamedSharding`.

    Returns:
        A tree like the state. What is like a parameter has its sharding, without the axes whose
        parts would be uneven there (the exponents of `storage.uint8` are fewer than the
        parameters); all else is replicated.

    Raises:
        ValueError: if a parameter has no `NamedSharding`, by its path.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
        >>> from optax_rmsprop import sharding
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> w = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec("data")))
        >>> shardings = sharding.state_shardings(optax.adam(1e-3), w)
        >>> print(tuple(shardings[0].nu.spec), tuple(shardings[0].count.spec))
        ('data', None) ()
    """
    shardings = jax.tree_util.tree_map_with_path(_named, params)
    first = next(iter(cast(list[NamedSharding], jax.tree.leaves(shardings))), None)
    if first is None:
        raise ValueError("state_shardings: there are no parameters")
    replicated = NamedSharding(first.mesh, PartitionSpec())

    def other(x: Any) -> NamedSharding:
        del x
        return replicated

    state = jax.eval_shape(tx.init, params)
    return optax.tree.map_params(
        tx, _fitted, state, shardings, transform_non_params=other, is_leaf=_is_masked
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _named(path: Any, p: Any) -> NamedSharding:
    sharding = getattr(p, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"state_shardings: the parameter at {jax.tree_util.keystr(path) or 'the root'} has no "
            f"NamedSharding, but {sharding}"
        )
    return sharding


def _fitted(x: Any, sharding: NamedSharding) -> Any:
    """A parameter's sharding for an array of the same number of axes, or of none."""
    if _is_masked(x):
        return x
    names = (*sharding.spec, *(None,) * x.ndim)[: x.ndim]
    spec = PartitionSpec(
        *(
            name if size % _parts(sharding.mesh, name) == 0 else None
            for name, size in zip(names, x.shape, strict=True)
        )
    )
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _parts(mesh: Any, names: Any) -> int:
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(mesh.shape[name] for name in names)
