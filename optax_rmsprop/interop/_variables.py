"""The arrays of other frameworks' variables in their own dtypes: as they are, and new ones."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def numbers(where: str, x: Any) -> np.ndarray[Any, Any]:
    """`x` as NumPy, if it is an array of numbers."""
    try:
        if str(getattr(x, "dtype", "")) == "torch.bfloat16":  # which NumPy has only in JAX's types
            return x.detach().cpu().float().numpy().astype(jnp.bfloat16)
        array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} is no array, but a {type(x).__name__}") from error
    if array.dtype == np.dtype("V2"):  # Keras's files have bfloat16 as two bytes
        array = array.view(jnp.bfloat16)
    if not jnp.issubdtype(array.dtype, np.number):
        raise TypeError(f"{where} has no numbers, but {array.dtype}: it is a {type(x).__name__}")
    return array


def new(where: str, x: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """A new array of this dtype; what it does not reach is refused, not made infinite."""
    with np.errstate(over="ignore"):
        made = np.array(x, dtype)
    if np.any(np.isfinite(x) & ~np.isfinite(made)):
        raise ValueError(f"{where}: {np.abs(x).max():g} is too large for {dtype}")
    return made
