"""Optimizer states in the formats of other libraries, to compare with those of `storage`.

A block of a flattened leaf is divided by its largest magnitude, and each element is rounded to the
nearest of a list of numbers from -1 to 1; or each element is rounded to the nearest number of
bfloat16. The step is taken before. Lists, block lengths and order are those of the sources; arrays
stay float32, so this says what a format does to training, and nothing about time.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_rmsprop import storage


class Blocks(NamedTuple):
    """Codes of some bits for the nearest of a list of numbers, and a float32 scale a block."""

    numbers: np.ndarray
    block: int
    bits: int

    @property
    def bytes_an_element(self) -> float:
        """Codes, and the share of a scale."""
        return self.bits / 8 + 4 / self.block

    def __call__(self, x: jax.Array) -> jax.Array:
        """Round an array; leaves of fewer than 4,096 elements stay as they are."""
        if x.size < 4096 or x.size % self.block:
            return x
        rows = x.reshape(-1, self.block)
        largest = jnp.maximum(jnp.abs(rows).max(-1, keepdims=True), 1e-12)
        middles = jnp.asarray((self.numbers[1:] + self.numbers[:-1]) / 2)
        found = jnp.searchsorted(middles, rows / largest, side="right")
        return (jnp.asarray(self.numbers)[found] * largest).reshape(x.shape)


class Bfloat16(NamedTuple):
    """The nearest number of bfloat16."""

    @property
    def bytes_an_element(self) -> float:
        """Those of bfloat16."""
        return 2.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Round an array."""
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


Rounding: TypeAlias = Blocks | Bfloat16


class Design(NamedTuple):
    """How a library stores moments: None leaves one in float32."""

    second: Rounding
    first: Rounding | None
    source: str

    @property
    def bytes_a_parameter(self) -> float:
        """The bytes of the moments that are stored."""
        stored = (self.second, self.first)
        return sum(each.bytes_an_element for each in stored if each is not None)


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
_MLX = "ml-explore/mlx 846d1762: RMSprop's v is like the parameter"
_OPTAX = "the state of optax.rmsprop is like the parameters"
_LINEAR = np.linspace(0, 1, 17, dtype=np.float32)[1:]
DESIGNS = {
    "torchao's 8 bits": Design(
        Blocks(dynamic(8, 7, False), 256, 8), Blocks(dynamic(8, 7, True), 256, 8), _TORCHAO
    ),
    "torchao's 4 bits": Design(
        Blocks(_LINEAR, 128, 4), Blocks(dynamic(4, 3, True), 128, 4), _TORCHAO
    ),
    "bitsandbytes": Design(
        Blocks(dynamic(8, 7, True), 256, 8), None,
        "bitsandbytes 95f9af30: RMSprop8bit has one state, in the map with a sign",
    ),
    "MLX's bfloat16": Design(Bfloat16(), None, _MLX),
    "Optax's bfloat16": Design(Bfloat16(), Bfloat16(), _OPTAX),
}  # fmt: skip


def stored_as(
    inner: optax.GradientTransformation, design: Design
) -> optax.GradientTransformationExtraArgs:
    """Round the moments of a transformation after each of its updates."""
    adapted = optax.with_extra_args_support(inner)
    kinds = ((storage.SECOND, design.second), (storage.FIRST, design.first))

    def part(x: Any) -> Any:
        new = {
            field: jax.tree.map(rounding, getattr(x, field))
            for kind, rounding in kinds
            if rounding is not None
            for field in storage.fields_of(kind, x)
        }
        return x._replace(**new) if new else x

    def is_part(x: Any) -> bool:
        return any(storage.fields_of(kind, x) for kind, _ in kinds)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        updates, state = adapted.update(updates, state, params, **extra_args)
        return updates, jax.tree.map(part, state, is_leaf=is_part)

    return optax.GradientTransformationExtraArgs(inner.init, update)
