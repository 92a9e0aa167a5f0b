"""Arrays of any framework as NumPy's, their names, and their paths in a tree of parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import is_traced

Array: TypeAlias = np.ndarray[Any, Any]
Path: TypeAlias = tuple[str, ...]  # of a leaf in a tree of parameters
Named: TypeAlias = dict[str, Any]  # parameter -> array
Convert: TypeAlias = Callable[[Named], Any]
ConvertBack: TypeAlias = Callable[[Any], Mapping[str, Any]]

_NARROW = (
    "torch.bfloat16",
    "torch.float16",
    "torch.float8",
)  # NumPy has these not, or too few bits
_MOMENTS = {
    "nu": "a second moment",
    "var": "a variance",
    "mu": "a mean",
    "step": "a momentum",
    "direction": "a momentum",
    "trace": "a momentum",
}


class Partial(dict[str, Any]):
    """Named arrays of those parameters that have them, where others may have none."""


def _flatten_partial(partial: Partial) -> Any:
    names = sorted(partial)
    return [(jax.tree_util.DictKey(name), partial[name]) for name in names], tuple(names)


jax.tree_util.register_pytree_with_keys(
    Partial, _flatten_partial, lambda names, arrays: Partial(zip(names, arrays, strict=True))
)


def as_numpy(x: Any) -> Array:
    """As NumPy; half precision as float32, also that of a torch tensor, which NumPy refuses."""
    array = np.asarray(_plain_tensor(x) if hasattr(x, "detach") else x)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def _plain_tensor(x: Any) -> Any:
    """A torch tensor in memory, whole and in numbers that NumPy has."""
    x = x.detach()
    if hasattr(x, "full_tensor"):  # of a tensor that is split over processes
        x = x.full_tensor()
    if getattr(x, "is_quantized", False) or type(x).__name__ not in ("Tensor", "Parameter"):
        x = x.dequantize()
    x = x.cpu()
    if hasattr(x, "resolve_conj"):
        x = x.resolve_conj().resolve_neg()
    if str(x.dtype) == "torch.complex32":
        return x.cfloat()
    return x.float() if str(x.dtype).startswith(_NARROW) else x


def array_of(where: str, x: Any) -> Array:
    """`x` as NumPy, if it is an array of numbers; where it is not, the error says where."""
    try:
        array = as_numpy(x)
    except Exception as error:
        if is_traced(x):
            raise TypeError(
                f"{where} is traced: call this outside of jit, vmap and grad"
            ) from error
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{where} is no array that can be read: {shown(x)}: {reason}") from error
    if not jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.kind not in "iu":
        raise TypeError(f"{where} is no array of numbers: {shown(x)}")
    return array


def is_idle(x: Any) -> bool:
    """Whether an accumulator is of a parameter that no gradient can reach, such as an integer."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return not jnp.issubdtype(dtype, jnp.inexact)


def owned(x: Array) -> Array:
    """A copy in memory of its own, which the other side may write to."""
    return np.array(x, order="C")


def whole_number(where: str, x: Any) -> int:
    """`x` as a number of steps."""
    array = array_of(where, x)
    value = of_shape(where, array, ()).item()
    if isinstance(value, complex) or not 0 <= value < 2**31 or value != int(value):
        raise ValueError(f"{where} must be a whole number in [0, 2**31), got {value}")
    return int(value)


def learning_rate_of(where: str, x: Any) -> float:
    """`x` as a learning rate."""
    value = of_shape(where, array_of(where, x), ()).item()
    if isinstance(value, complex) or not 0 <= value < np.inf:
        raise ValueError(f"{where} must be finite and >= 0, got {value}")
    return float(value)


def check_numbers(where: str, quantity: str, x: Array) -> None:
    """Refuse what no RMSprop has accumulated: what is not finite, and a second moment below 0."""
    parts = (x.real, x.imag) if np.iscomplexobj(x) else (x,)
    for part in parts:
        if not (finite := np.isfinite(part)).all():
            raise ValueError(
                f"{where}: {_MOMENTS[quantity]} is not finite: {part[~finite].flat[0]}"
            )
        if quantity in ("nu", "var") and (part < 0).any():
            raise ValueError(f"{where}: {_MOMENTS[quantity]} is negative: {part.min():.3g}")


def check_boolean(where: str, x: Any) -> None:
    """Refuse what is neither True nor False, and only counts as one of them."""
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(f"{where} must be True or False, got {shown(x)}")


def put(where: str, value: Array, old: Any) -> Any:
    """`value` with the shape, dtype and sharding of `old`, which may be abstract."""
    shape, dtype = tuple(np.shape(old)), jnp.result_type(old)
    if np.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        if shape != (*value.shape, 2):
            raise ValueError(f"{where} is real, the source is complex")
        value = np.stack([value.real, value.imag], axis=-1)
    with np.errstate(over="ignore", invalid="ignore"):
        new = of_shape(where, value, shape).astype(dtype)
    # What is not finite stays so: a foreign state may start at infinity.
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    if (np.isfinite(value) & ~np.isfinite(new) if inexact else new != value).any():
        misfit = "too large for" if inexact else "none of"
        raise ValueError(f"{where}: a number of the source is {misfit} {dtype}")
    # What init left free to move stays free.
    abstract = isinstance(old, jax.ShapeDtypeStruct)
    placed = not is_traced(old) and (old.sharding if abstract else getattr(old, "committed", False))
    return jax.device_put(new, old.sharding) if placed else jnp.asarray(new)


def of_shape(where: str, x: Array, shape: tuple[int, ...]) -> Array:
    """`x`, if it has this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{where} has shape {tuple(x.shape)}, expected {tuple(shape)}")
    return x


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Iterator[tuple[Any, Any]]:
    """The leaves of a tree, each with its path, which the variables of Flax are no part of."""

    def is_end(x: Any) -> bool:
        return _is_variable(x) or (is_leaf is not None and is_leaf(x))

    for path, node in cast(Any, jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_end)):
        for key, x in cast(Any, jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf)):
            yield (*path, *key[1:]), x


def children(node: Any) -> list[tuple[Any, Any]]:
    """What a node holds, each with a path of one key; of a leaf itself."""

    def is_below(x: Any) -> bool:
        return x is not node

    return cast(Any, jax.tree_util.tree_leaves_with_path(node, is_leaf=is_below))


def _is_variable(x: Any) -> bool:
    """Whether it is a box of Flax's around a value; other nodes, too, have a field of this name."""
    of_flax = any(cls.__module__.partition(".")[0] == "flax" for cls in type(x).__mro__)
    return of_flax and [path for path, _ in children(x)] == [(jax.tree_util.GetAttrKey("value"),)]


def path_of(path: Any) -> Path:
    """A leaf's path as text, the same for dictionaries and for an `nnx.State`."""
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return tuple(map(str, keys))


def leaves_with_paths(tree: Any) -> list[tuple[Path, Any]]:
    """A tree's leaves, each with its path."""
    return [(path_of(path), x) for path, x in flatten(tree)]


def leaves_of(tree: Any) -> dict[Path, Array]:
    """A tree's arrays by their paths."""
    return {path: as_numpy(x) for path, x in leaves_with_paths(tree)}


def same_names(function: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """Refuse missing and surplus names."""
    expected, got = set(expected), set(got)
    if expected != got:
        missing, surplus = sorted(expected - got), sorted(got - expected)
        raise ValueError(f"{function}: missing {missing}, surplus {surplus}")


def as_mapping(x: Any) -> Mapping[str, Any] | None:
    """`x`, if it is a mapping."""
    return cast("Mapping[str, Any]", x) if isinstance(x, Mapping) else None


def shown(x: Any) -> str:
    """What a wrong argument is, in a line."""
    by_key = as_mapping(x)
    if by_key is not None:
        return f"a {type(x).__name__} of {', '.join(map(str, list(by_key)[:4])) or 'nothing'}"
    return f"{type(x).__name__} {' '.join(f'{x!r:.200}'.split())[:60]}"
