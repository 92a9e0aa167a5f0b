"""Leaves: their widths, their errors by path, and accumulators like the parameters."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._jax import canonical, is_float0, is_traced, memory_of
from ._rule import by_parts


def wide(dtype: Any) -> np.dtype[Any]:
    """An inexact dtype itself, or float32 where it is narrower."""
    return np.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def widen(x: jax.Array, dtype: Any = None) -> jax.Array:
    """`x` in float32 or wider, or in the width of another dtype; complex stays complex."""
    dtype = wide(x.dtype) if dtype is None else np.dtype(dtype)
    return x.astype(np.result_type(dtype, np.complex64) if jnp.iscomplexobj(x) else dtype)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` rounded to `dtype`, to its largest number rather than to infinity."""
    if jnp.finfo(dtype).bits < jnp.finfo(x.dtype).bits:
        largest = float(cast(Any, jnp.finfo(dtype)).max)
        x = by_parts(lambda part: jnp.clip(part, -largest, largest), x)
    return x.astype(dtype)


def zero() -> jax.Array:
    """A count of no updates."""
    return jnp.zeros([], jnp.int32)


def increment(count: jax.Array) -> jax.Array:
    """One more update; stays at the largest integer instead of overflowing."""
    return jnp.asarray(optax.safe_increment(count))


def accumulators_like(params: Any, fill: ArrayLike = 0.0, *, real: bool = False) -> Any:
    """Arrays of `fill` with the shapes and shardings of `params`, in float32 or wider.

    Complex parameters get complex ones unless `real`. A leaf that no gradient can reach (an
    integer, a key) gets a single False: it costs nothing and no gradient fits it.
    """
    for i, p in enumerate(flatten(params)[0]):
        if not (p is None or is_array(p)):
            raise TypeError(
                f"init: the parameter at {paths(params)[i] or 'the root'} is no array: {p!r:.60}; "
                "give it the arrays of a model alone, as from equinox.filter or nnx.state"
            )

    def leaf(p: Any) -> jax.Array:
        dtype = dtype_of(p)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return jnp.zeros((), bool)
        dtype = wide(jnp.finfo(dtype).dtype if real else dtype)
        dtype = canonical(dtype)  # NumPy's float64, where JAX has none
        if is_traced(p):
            return cast(jax.Array, _filled(p, fill, dtype))
        return jnp.full_like(p, fill, dtype)

    return jax.tree.map(leaf, params)


@functools.partial(jax.jit, static_argnums=2)  # traced once for all of equal shapes
def _filled(p: jax.Array, fill: ArrayLike, dtype: Any) -> jax.Array:
    """An array of `fill` that is sharded as a traced array is."""
    filled = jnp.full_like(p, fill, dtype)
    if memory_of(p) != memory_of(filled):
        return filled  # JAX refuses to mix memories
    # A constant has no sharding of its own under jit, and XLA would put it on one device. An
    # elementwise operation on p is sharded like p. This one is false by its type, not by the values
    # of p: XLA shards it, then folds it away, and p is not read.
    never = (p != p).astype(jnp.uint8) < 0
    return jax.lax.select(never, never.astype(dtype), filled)


def map_leaves(link: str, leaf: Callable[..., Any], updates: Any, *inputs: Any) -> Any:
    """The tree of `leaf(g, *inputs)` for each gradient, in its dtype; None and float0 stay."""
    leaves, tree = flatten(updates)
    columns = [flatten_up_to(link, tree, updates, x) for x in inputs]
    rows = list[Any]()
    for i, (g, *rest) in enumerate(zip(leaves, *columns, strict=True)):
        if is_gradient(g):
            g = checked_leaf(g, rest, lambda i=i: place(link, updates, i))
            rows.append(narrow(leaf(g, *rest), g.dtype))
        else:
            rows.append(g)
    return tree.unflatten(rows)


def flatten(updates: Any) -> tuple[list[Any], Any]:
    """The leaves, None being one, and the structure."""
    return cast(Any, jax.tree.flatten(updates, is_leaf=_is_none))


def is_gradient(g: Any) -> bool:
    """Whether there is one: None and float0 say that there is none."""
    return g is not None and not is_float0(g)


def flatten_up_to(link: str, tree: Any, updates: Any, other: Any) -> list[Any]:
    """What stands in another tree where the gradients have their leaves."""
    try:
        return tree.flatten_up_to(other)
    except ValueError as error:
        differ = sorted(set(paths(updates)) ^ set(paths(other)))
        where = f"first difference at {differ[0] or 'the root'}" if differ else str(error)
        raise ValueError(
            f"{link}: the gradients have another tree structure than at init: {where}"
        ) from error


def place(link: str, updates: Any, index: int) -> str:
    """The words for a leaf in an error: its path is looked for only then."""
    return f"{link}: the gradient at {paths(updates)[index] or 'the root'}"


def paths(tree: Any) -> list[str]:
    """The path of each leaf, None being one."""
    leaves = cast(list[Any], jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none))
    return [jax.tree_util.keystr(path) for path, _ in leaves]


def checked_leaf(
    g: Any, others: list[Any], where: Callable[[], str], signed: bool = False
) -> jax.Array:
    """A gradient as an array: floating point, and of the shape that all the others have.

    `signed` says that the first of these must be complex where the gradient is.
    """
    if not is_array(g):
        raise TypeError(f"{where()} is no array: {g!r:.60}")
    g = jnp.asarray(g)
    if not jnp.issubdtype(g.dtype, jnp.inexact):
        raise TypeError(f"{where()} has dtype {g.dtype}")
    for other in others:
        if not jax.tree_util.all_leaves([other]):
            found = "a branch" if jax.tree.leaves(other) else "no parameter"
            raise ValueError(f"{where()} has shape {g.shape}, init saw {found} there")
        shape = np.shape(other)
        if shape != g.shape and not isinstance(other, bool):
            raise ValueError(f"{where()} has shape {g.shape}, expected {shape} from init")
    kinds = ["complex" if jnp.iscomplexobj(x) else "real" for x in (g, *others[:1])]
    if signed and kinds[0] != kinds[-1]:
        raise TypeError(f"{where()} is {kinds[0]}, its parameter was {kinds[1]} at init")
    return g


def check_width(where: Callable[[], str], field: str, dtype: Any) -> None:
    """Refuse an accumulator that is narrower than float32, or that no gradient can reach."""
    if dtype is None:  # No array: the comparison with the gradient says so.
        return
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{where()} has a {field} of {dtype}; was its parameter an integer at init?"
        )
    if wide(dtype) != dtype:
        raise TypeError(
            f"{where()} has a {field} of {dtype}, float32 or wider is needed: was the state cast? "
            "Widen its floating-point arrays, and go on"
        )


def dtype_of(x: Any) -> Any:
    """The dtype of an array, of its abstract value, or of a Python number; else that of objects."""
    if not is_array(x):
        return np.dtype(object)
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def is_array(x: Any) -> bool:
    """Whether JAX has arrays like it: Python's numbers are, NumPy's of objects or strings not."""
    if isinstance(x, type) or not (hasattr(x, "dtype") and hasattr(x, "shape")):
        return isinstance(x, (bool, int, float, complex))
    return getattr(x.dtype, "kind", "") not in ("O", "S", "U", "M", "m")


def _is_none(x: Any) -> bool:
    return x is None
