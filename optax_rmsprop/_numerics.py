"""What every link shares: widths, hyperparameters, leaves, and transformations with an identity.

A link is a pair of module-level functions and a tuple of hyperparameters. `transformation` binds
them, so that two links made with the same arguments are equal, hash alike and pickle.
"""

import dataclasses
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._jax import canonical, is_float0, is_traced, memory_of

Hyperparameter: TypeAlias = ArrayLike | optax.Schedule


@dataclasses.dataclass(frozen=True)
class _Bound:
    """`function` with its first argument given, like `functools.partial` but equal by value."""

    name: str
    function: Callable[..., Any]
    first: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.first, *args, **kwargs)

    def __hash__(self) -> int:
        # A mask may be a tree that has no hash of its own; its leaves and its structure have.
        leaves, tree = cast(Any, jax.tree.flatten(self.first))
        return hash((self.name, self.function, tuple(leaves), tree))

    def __repr__(self) -> str:
        names: tuple[str, ...] = getattr(self.first, "_fields", ())
        values = [
            value.__name__ if isinstance(value, FunctionType) else repr(value)
            for value in self.first
        ]
        shown = map("=".join, zip(names, values, strict=True)) if names else values
        return f"{self.name}({', '.join(shown)})"


class _Transformation(optax.GradientTransformationExtraArgs):
    """Shown as the call that makes it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.init)


def transformation(
    name: str,
    init: Callable[..., Any],
    update: Callable[..., Any],
    hyperparameters: tuple[Any, ...],
) -> optax.GradientTransformationExtraArgs:
    """Bind `hyperparameters` as the first argument of `init` and `update`."""
    return _Transformation(
        _Bound(name, init, hyperparameters), _Bound(name, update, hyperparameters)
    )


def checked(
    link: str, name: str, value: Any, *, below: float = math.inf, schedule: bool = True
) -> Any:
    """Refuse what is known to be wrong before tracing: no scalar, or outside [0, below).

    An array whose value is known becomes a number, which can be compared and hashed.
    """
    if callable(value):
        if not schedule:
            raise TypeError(f"{link}: {name} must be a number, not a schedule; got {value!r}")
        return value
    if not _is_real_scalar(value):
        kinds = "a number, a scalar array or a schedule" if schedule else "a number or scalar array"
        raise TypeError(
            f"{link}: {name} must be {kinds}, got {value!r}; optax.partition gives groups of "
            "leaves values of their own"
        )
    if is_traced(value):
        return value
    if not 0 <= float(value) < below:
        raise ValueError(f"{link}: {name} must be in [0, {below}), got {value}")
    return float(cast(Any, value)) if isinstance(value, (np.ndarray, jax.Array)) else value


def check_state(link: str, state: Any, expected: type) -> None:
    """Refuse the state of another transformation, or one that lost its type in a checkpoint."""
    if not isinstance(state, expected):
        fields = ", ".join(getattr(expected, "_fields", ()))
        found = cast(Any, type(state))
        raise TypeError(
            f"{link}: expected {expected.__name__}({fields}), got {found.__module__}."
            f"{found.__name__}; was the state made by this transformation's init, and restored "
            "from a checkpoint with that state as its target?"
        )


def value_at(link: str, hyperparameters: tuple[Any, ...], name: str, count: jax.Array) -> Any:
    """The value at this step: a Python float if it is known now, else an array as wide as one.

    A Python float keeps double precision until it meets an array, so that `1 - decay` is formed in
    double and rounded once, the same for a constant and for a schedule that returns it.
    """
    value = getattr(hyperparameters, name)
    if callable(value):
        value = cast(Any, value(count))
        if not _is_real_scalar(value):
            got = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
            raise TypeError(f"{link}: {name} must be a real scalar, its schedule returned {got}")
    return value.astype(jnp.result_type(float)) if isinstance(value, jax.Array) else float(value)


def _is_real_scalar(value: Any) -> bool:
    number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    return number and np.ndim(cast(Any, value)) == 0 and not jnp.iscomplexobj(cast(Any, value))


def increment(count: jax.Array) -> jax.Array:
    """One more update; stays at the largest integer instead of overflowing."""
    return jnp.asarray(optax.safe_increment(count))


def wide(dtype: Any) -> np.dtype[Any]:
    """An inexact dtype itself, or float32 where it is narrower."""
    return np.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def widen(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` in the width of the accumulator `like`; complex stays complex."""
    dtype = np.dtype(like.dtype)
    return x.astype(np.result_type(dtype, np.complex64) if jnp.iscomplexobj(x) else dtype)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` rounded to `dtype`, to its largest number rather than to infinity."""
    if jnp.finfo(dtype).bits < jnp.finfo(x.dtype).bits:
        largest = float(cast(Any, jnp.finfo(dtype)).max)
        x = by_parts(lambda part: jnp.clip(part, -largest, largest), x)
    return x.astype(dtype)


def by_parts(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply a real function; to the real and imaginary part apart if `x` is complex."""
    return jax.lax.complex(f(x.real), f(x.imag)) if jnp.iscomplexobj(x) else f(x)


def scale(x: jax.Array, factor: ArrayLike) -> jax.Array:
    """`factor * x` in the dtype of `x`, for a real factor."""
    return by_parts(lambda part: jnp.asarray(factor, part.dtype) * part, x)


def accumulators_like(params: Any, fill: ArrayLike = 0.0, *, real: bool = False) -> Any:
    """Arrays of `fill` with the shapes and shardings of `params`, in float32 or wider.

    Complex parameters get complex ones unless `real`. A leaf that no gradient can reach (an
    integer, a key) gets an empty one: it costs nothing and no gradient fits it.
    """

    def leaf(p: Any) -> jax.Array:
        dtype = p.dtype if hasattr(p, "dtype") else jnp.result_type(p)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return jnp.zeros((0,), jnp.float32)
        dtype = wide(jnp.finfo(dtype).dtype if real else dtype)
        dtype = canonical(dtype)  # NumPy's float64, where JAX has none
        filled = jnp.full_like(p, fill, dtype=dtype)
        if is_traced(p) and memory_of(p) == memory_of(filled):
            # A constant has no sharding of its own under jit, and XLA would put it on one device.
            # An elementwise operation on p is sharded like p. This one is false by its type, not by
            # the values of p: XLA shards it, then folds it away, and p is not read. JAX refuses to
            # mix memories: beside p in a host's memory the constant stays as it is.
            never = (p != p).astype(jnp.uint8) < 0
            filled = jax.lax.select(never, never.astype(dtype), filled)
        return filled

    return jax.tree.map(leaf, params)


def map_leaves(
    link: str,
    leaf: Callable[..., tuple[Any, ...]],
    updates: Any,
    *others: Any,
    signed: bool = False,
) -> tuple[Any, ...]:
    """Map `leaf(g, *others)` to the trees of its results, the first in the gradient's dtype.

    The others are accumulators or parameters, or static booleans; `signed` says that the first
    must be complex where the gradient is. A gradient of None or float0 is returned as it is and
    leaves them as they are. A leaf that is not floating point, or whose shape is another than at
    init, is refused by its path.
    """
    leaves: list[Any]
    leaves, tree = cast(Any, jax.tree_util.tree_flatten_with_path(updates, is_leaf=_is_none))
    columns = [_flatten_up_to(link, tree, updates, other) for other in others]
    rows: list[tuple[Any, ...]] = []
    for (path, g), *rest in zip(leaves, *columns, strict=True):
        if g is None or is_float0(g):
            rows.append((g, *rest))
            continue
        g = jnp.asarray(g)
        where = f"{link}: the gradient at {jax.tree_util.keystr(path) or 'the root'}"
        _check_leaf(where, g, rest, signed)
        result, *rest = leaf(g, *rest)
        rows.append((narrow(result, g.dtype), *rest))
    width = 1 + len(others)
    return tuple(tree.unflatten([row[i] for row in rows]) for i in range(width))


def _is_none(x: Any) -> bool:
    return x is None


def _flatten_up_to(link: str, tree: Any, updates: Any, other: Any) -> list[Any]:
    try:
        return tree.flatten_up_to(other)
    except ValueError as error:
        differ = sorted(_paths(updates) ^ _paths(other))
        where = f"first difference at {differ[0] or 'the root'}" if differ else str(error)
        raise ValueError(
            f"{link}: the gradients have another tree structure than at init: {where}"
        ) from error


def _paths(tree: Any) -> set[str]:
    leaves = cast(list[Any], jax.tree_util.tree_leaves_with_path(tree))
    return {jax.tree_util.keystr(path) for path, _ in leaves}


def _check_leaf(where: str, g: jax.Array, others: list[Any], signed: bool) -> None:
    if not jnp.issubdtype(g.dtype, jnp.inexact):
        raise TypeError(f"{where} has dtype {g.dtype}")
    for other in others:
        if not jax.tree_util.all_leaves([other]):
            found = "a branch" if jax.tree.leaves(other) else "no parameter"
            raise ValueError(f"{where} has shape {g.shape}, init saw {found} there")
        if not isinstance(other, bool) and np.shape(other) != g.shape:
            hint = "; was this parameter an integer at init?" if np.shape(other) == (0,) else ""
            raise ValueError(
                f"{where} has shape {g.shape}, expected {np.shape(other)} from init{hint}"
            )
    kinds = ["complex" if jnp.iscomplexobj(x) else "real" for x in (g, *others[:1])]
    if signed and kinds[0] != kinds[1]:
        raise TypeError(f"{where} is {kinds[0]}, its parameter was {kinds[1]} at init")
