"""Optimizer states in the formats of other libraries, to compare with those of `storage`.

A block of a flattened leaf is divided by its largest magnitude, and each element is rounded to the
nearest of a list of numbers from -1 to 1. The step is taken before. Lists, block lengths and order
are those of the sources; arrays stay float32, so this says what a format does to training, and
nothing about time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_rmsprop import storage


class Design(NamedTuple):
    """How a library stores moments: None leaves one in float32."""

    second: np.ndarray
    first: np.ndarray | None
    block: int
    bits: int
    source: str

    @property
    def bytes_a_parameter(self) -> float:
        """Codes, and a float32 scale a block, of each moment that is stored."""
        return (1 + (self.first is not None)) * (self.bits / 8 + 4 / self.block)


def dynamic(bits: int, exponents: int, signed: bool) -> np.ndarray:
    """Dettmers's dynamic tree: decades, each in twice as many equal parts as the last.

    Args:
      bits: Of a code.
      exponents: How many decades there are.
      signed: Whether a bit is for the sign.
    """
    parts = [2 ** (bits - 1 - exponents + i + (not signed)) for i in range(exponents)]
    middles = []
    for i, count in enumerate(parts):
        edges = np.linspace(0.1, 1, count + 1)
        middles += list(10.0 ** (i + 1 - exponents) * (edges[:-1] + edges[1:]) / 2)
    both = [*middles, *(-np.array(middles) if signed else []), 0.0, 1.0]
    return np.sort(np.array(both, np.float32))


_TORCHAO = "pytorch/ao 173b31ec, torchao/optim/quant_utils.py, and 029bb60a, subclass_4bit.py"
_BITSANDBYTES = "bitsandbytes 95f9af30: RMSprop8bit has one state, in the map with a sign"
DESIGNS = {
    "torchao's 8 bits": Design(dynamic(8, 7, False), dynamic(8, 7, True), 256, 8, _TORCHAO),
    "torchao's 4 bits": Design(
        np.linspace(0, 1, 17, dtype=np.float32)[1:], dynamic(4, 3, True), 128, 4, _TORCHAO
    ),
    "bitsandbytes, no momentum": Design(dynamic(8, 7, True), None, 256, 8, _BITSANDBYTES),
}


def nearest(x: jax.Array, numbers: np.ndarray, block: int) -> jax.Array:
    """Round an array as a design does; leaves of fewer than 4,096 elements stay as they are."""
    if x.size < 4096 or x.size % block:
        return x
    rows = x.reshape(-1, block)
    largest = jnp.maximum(jnp.abs(rows).max(-1, keepdims=True), 1e-12)
    middles = jnp.asarray((numbers[1:] + numbers[:-1]) / 2)
    found = jnp.asarray(numbers)[jnp.searchsorted(middles, rows / largest, side="right")]
    return (found * largest).reshape(x.shape)


def stored_as(
    inner: optax.GradientTransformation, design: Design
) -> optax.GradientTransformationExtraArgs:
    """Round the moments of a transformation after each of its updates."""
    adapted = optax.with_extra_args_support(inner)
    kinds = ((storage.SECOND, design.second), (storage.FIRST, design.first))

    def part(x: Any) -> Any:
        new = {
            field: jax.tree.map(
                lambda v, numbers=numbers: nearest(v, numbers, design.block), getattr(x, field)
            )
            for kind, numbers in kinds
            if numbers is not None
            for field in storage.fields_of(kind, x)
        }
        return x._replace(**new) if new else x

    def is_part(x: Any) -> bool:
        return any(storage.fields_of(kind, x) for kind, _ in kinds)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        updates, state = adapted.update(updates, state, params, **extra_args)
        return updates, jax.tree.map(part, state, is_leaf=is_part)

    return optax.GradientTransformationExtraArgs(inner.init, update)
