"""Arrays of other frameworks' variables, in their own dtypes: as they come in, and new ones."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ._states import Array, as_numpy, shown


def numbers(function: str, name: Any, x: Any) -> Array:
    """As NumPy, in its own dtype."""
    try:
        array = as_numpy(x) if hasattr(x, "detach") else np.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: {name!r} is no array, but {shown(x)}") from error
    if array.dtype == np.dtype("V2"):  # Keras's files have bfloat16 as two bytes
        array = array.view(jnp.bfloat16)
    if not jnp.issubdtype(array.dtype, np.number):
        raise TypeError(f"{function}: {name!r} has no numbers, but {shown(x)}")
    return array


def new(function: str, name: Any, x: Array, dtype: Any) -> Array:
    """A new array of this dtype; a number that it does not reach is refused, not made infinite."""
    with np.errstate(over="ignore"):
        made = np.array(x, dtype)
    if np.any(np.isfinite(x) & ~np.isfinite(made)):
        raise ValueError(f"{function}: {np.abs(x).max():g} of {name!r} is too large for {dtype}")
    return made
