"""Where the axes of a Flax parameter are in PyTorch."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np
import optax

from ._arrays import (
    Convert,
    ConvertBack,
    Partial,
    Path,
    array_of,
    as_mapping,
    check_boolean,
    flatten,
    leaves_with_paths,
    of_shape,
    owned,
    path_of,
    same_names,
    shown,
)

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str] | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The two conversions that `layout` makes."""

    to_flax: Convert
    to_torch: ConvertBack


def layout(
    params: Any,
    *,
    rename: Rename = None,
    flattened: Mapping[str, tuple[int, ...]] | None = None,
    subset: bool = False,
) -> Layout:
    """Conversions between PyTorch's named arrays and a Flax tree with the same modules.

        kernel [in, out]            ↔  weight [out, in]
        kernel [*window, in, out]   ↔  weight [out, in, *window]
        scale, embedding            ↔  weight
        mean, var                   ↔  running_mean, running_var    where a module has both

    A convolution may be grouped or depthwise. A transposed one looks like any other, and is not
    converted rightly; nor are attention's kernels, which Flax splits into heads.

    Args:
        params: The Flax parameters, or the statistics of normalisations: nested dictionaries, or
            an `nnx.State`.
        rename: From a Flax module's name, "encoder.Dense_0", to PyTorch's; a dictionary may name
            some of them.
        flattened: For each linear layer, by its Flax name, that takes a flattened image, the
            image's shape in PyTorch, (channels, height, width): PyTorch flattens channels first.
        subset: Pass over names that the tree has not, as a model's `state_dict()` has them:
            `num_batches_tracked`, the statistics, the second name of a tied weight.

    Returns:
        `Layout(to_flax, to_torch)`: what `from_torch` and `to_torch` take as `convert`. Both return
        copies. What the tree masks (`optax.masked`) has no name.

    Raises:
        ValueError: if a name in `rename` or `flattened` is none of the tree's, an image does not
            fit its layer, or two parameters get one name; and from the conversions, if a name is
            missing or surplus or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from optax_rmsprop import interop
        >>> both = interop.layout({"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}})
        >>> tree = both.to_flax({"dense.weight": np.ones((2, 3)), "dense.bias": np.ones(2)})
        >>> print(tree["dense"]["kernel"].shape, sorted(both.to_torch(tree)))
        (3, 2) ['dense.bias', 'dense.weight']
    """
    check_boolean("layout: subset", subset)
    leaves = _leaves(params, rename, flattened or {})
    tree = cast(Any, jax.tree.structure(params))
    known = {leaf.name for leaf in leaves.values()}

    def to_flax(named: Mapping[str, Any]) -> Any:
        if as_mapping(named) is None:
            raise TypeError(f"layout: expected arrays by name, got {shown(named)}")
        missing, surplus = known - named.keys(), named.keys() - known
        if (surplus and not subset) or (missing and not isinstance(named, Partial)):
            hint = "" if missing else "; layout(..., subset=True) passes over them"
            raise ValueError(f"layout: missing {sorted(missing)}, surplus {sorted(surplus)}{hint}")
        return tree.unflatten(
            leaf.to_flax(named[leaf.name]) if leaf.name in named else optax.MaskedNode()
            for leaf in leaves.values()
        )

    def to_torch(values: Any) -> dict[str, Any]:
        arrays = dict(leaves_with_paths(values))
        masked = _masked(values)
        absent = {p for p in leaves.keys() - arrays.keys() if _is_inside(p, masked)}
        same_names("layout", map(".".join, leaves.keys() - absent), map(".".join, arrays))
        return {
            leaf.name: leaf.to_torch(arrays[path])
            for path, leaf in leaves.items()
            if path not in absent
        }

    return Layout(to_flax, to_torch)


_TORCH_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}


class _Leaf(NamedTuple):
    """A parameter: its name in PyTorch, and how its axes lie in Flax; PyTorch's follow."""

    name: str
    shape: tuple[int, ...]
    kernel: bool
    flattened: tuple[int, ...] | None = None

    def to_flax(self, x: Any) -> np.ndarray[Any, Any]:
        x = array_of(f"layout: {self.name}", x)
        if self.flattened and x.ndim == 2 and x.shape[1] == math.prod(self.flattened):
            x = x.reshape(x.shape[0], *self.flattened)
            x = np.moveaxis(x, 1, -1).reshape(x.shape[0], -1)
        if self.kernel and x.ndim >= 2:
            x = np.moveaxis(x, (1, 0), (-2, -1))
        return owned(of_shape(f"layout: {self.name}", x, self.shape))

    def to_torch(self, x: Any) -> np.ndarray[Any, Any]:
        x = of_shape(f"layout: {self.name}", array_of(f"layout: {self.name}", x), self.shape)
        if self.kernel and x.ndim >= 2:
            x = np.moveaxis(x, (-2, -1), (1, 0))
        if self.flattened:
            channels, *window = self.flattened
            x = np.moveaxis(x.reshape(x.shape[0], *window, channels), -1, 1)
            x = x.reshape(x.shape[0], -1)
        return owned(x)


def _leaves(
    params: Any, rename: Rename, flattened: Mapping[str, tuple[int, ...]]
) -> dict[Path, _Leaf]:
    """The parameters by their paths, if what is said of them fits."""
    found = leaves_with_paths(params)
    modules = {".".join(path[:-1]) for path, _ in found}
    for argument, given in (("rename", rename), ("flattened", flattened)):
        unknown = set[str]() if given is None or callable(given) else given.keys() - modules
        if unknown:
            raise ValueError(
                f"layout: {argument} has {sorted(unknown)}, the modules are {sorted(modules)}"
            )
    leaves = {
        path: _leaf(path, np.shape(x), {p[-1:] for p, _ in found if p[:-1] == path[:-1]}, rename)
        for path, x in found
    }
    by_name = collections.defaultdict[str, list[str]](list)
    for path, leaf in leaves.items():
        by_name[leaf.name].append(".".join(path))
    for name, paths in by_name.items():
        if len(paths) > 1:
            raise ValueError(f"layout: {' and '.join(paths)} are both {name!r} in PyTorch")
    for module, image in flattened.items():
        path = (*module.split("."), "kernel") if module else ("kernel",)
        leaf = leaves.get(path)
        if leaf is None or len(leaf.shape) != 2 or leaf.shape[0] != math.prod(image):
            raise ValueError(
                f"layout: flattened has {module!r}: {tuple(image)}, and its kernel "
                f"{'has shape ' + str(leaf.shape) if leaf else 'is missing'}"
            )
        leaves[path] = leaf._replace(flattened=tuple(image))
    return leaves


def _leaf(path: Path, shape: tuple[int, ...], kinds: set[Path], rename: Rename) -> _Leaf:
    """The parameter at a path, in a module that has these kinds of them."""
    *modules, kind = path or ("",)
    module = ".".join(modules)
    module = rename(module) if callable(rename) else (rename or {}).get(module, module)
    if type(module) is not str:
        raise TypeError(f"layout: rename must give names, got {module!r} for {'.'.join(modules)!r}")
    statistics = _STATISTICS if {(k,) for k in _STATISTICS} <= kinds else {}
    name = (_TORCH_NAMES | statistics).get(kind, kind)
    return _Leaf(".".join(filter(None, [module, name])), tuple(shape), kind == "kernel")


def _masked(tree: Any) -> set[Path]:
    """Where a tree has nothing."""

    def is_nothing(x: Any) -> bool:
        return x is None or isinstance(x, optax.MaskedNode)

    return {path_of(path) for path, x in flatten(tree, is_nothing) if is_nothing(x)}


def _is_inside(path: Path, parents: set[Path]) -> bool:
    return any(path[:n] in parents for n in range(len(path) + 1))
