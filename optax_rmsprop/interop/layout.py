"""Where the axes of a Flax parameter are in PyTorch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from ._states import Convert, ConvertBack, as_numpy, of_shape, path_of, same_names


@dataclasses.dataclass(frozen=True)
class Layout:
    """The two conversions that `layout` makes."""

    to_flax: Convert
    to_torch: ConvertBack


def layout(
    params: Any,
    *,
    rename: Mapping[str, str] | Callable[[str], str] | None = None,
    flattened: Mapping[str, tuple[int, ...]] | None = None,
) -> Layout:
    """Conversions between PyTorch's named arrays and a Flax tree with the same modules.

        kernel [in, out]            ↔  weight [out, in]
        kernel [*window, in, out]   ↔  weight [out, in, *window]
        scale, embedding            ↔  weight

    A convolution may be grouped or depthwise. A transposed one looks like any other, and is not
    converted rightly; nor are attention's kernels, which Flax splits into heads.

    Args:
        params: The Flax parameters: nested dictionaries, or an `nnx.State`.
        rename: From a Flax module's name, "encoder.Dense_0", to PyTorch's; a dictionary may name
            some of them.
        flattened: For each linear layer, by its Flax name, that takes a flattened image, the
            image's shape in PyTorch, (channels, height, width): PyTorch flattens channels first.

    Returns:
        `Layout(to_flax, to_torch)`: what `from_torch` and `to_torch` take as `convert`.

    Raises:
        ValueError: from the conversions, if a name is missing or surplus or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from optax_rmsprop import interop
        >>> both = interop.layout({"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}})
        >>> tree = both.to_flax({"dense.weight": np.ones((2, 3)), "dense.bias": np.ones(2)})
        >>> print(tree["dense"]["kernel"].shape, sorted(both.to_torch(tree)))
        (3, 2) ['dense.bias', 'dense.weight']
    """

    def renamed(module: str) -> str:
        return rename(module) if callable(rename) else (rename or {}).get(module, module)

    leaves, tree = cast(Any, jax.tree_util.tree_flatten_with_path(params))
    names, axes = list[str](), list[_Axes]()
    for path, leaf in leaves:
        *module, kind = path_of(path)
        module = ".".join(module)
        parts = [renamed(module), _TORCH_NAMES.get(kind, kind)]
        names.append(".".join(filter(None, parts)))
        window = (flattened or {}).get(module) if kind == "kernel" else None
        axes.append(_Axes(tuple(np.shape(leaf)), kind == "kernel", window))

    def to_flax(named: Mapping[str, Any]) -> Any:
        same_names("layout", names, named)
        pairs = zip(names, axes, strict=True)
        return tree.unflatten([axis.to_flax(name, as_numpy(named[name])) for name, axis in pairs])

    def to_torch(values: Any) -> dict[str, Any]:
        arrays = [as_numpy(x) for x in tree.flatten_up_to(values)]
        rows = zip(names, axes, arrays, strict=True)
        return {name: axis.to_torch(name, array) for name, axis, array in rows}

    return Layout(to_flax, to_torch)


_TORCH_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class _Axes(NamedTuple):
    """How one parameter's axes lie in Flax; PyTorch's follow."""

    shape: tuple[int, ...]
    kernel: bool
    flattened: tuple[int, ...] | None

    def to_flax(self, name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.flattened and x.ndim == 2 and x.shape[1] == np.prod(self.flattened):
            x = x.reshape(x.shape[0], *self.flattened)
            x = np.moveaxis(x, 1, -1).reshape(x.shape[0], -1)
        if self.kernel and x.ndim >= 2:
            x = np.moveaxis(x, (1, 0), (-2, -1))
        return of_shape(f"layout: {name}", x, self.shape)

    def to_torch(self, name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = of_shape(f"layout: {name}", x, self.shape)
        if self.kernel and x.ndim >= 2:
            x = np.moveaxis(x, (-2, -1), (1, 0))
        if self.flattened:
            channels, *window = self.flattened
            x = np.moveaxis(x.reshape(x.shape[0], *window, channels), -1, 1)
            x = x.reshape(x.shape[0], -1)
        return np.ascontiguousarray(x)
