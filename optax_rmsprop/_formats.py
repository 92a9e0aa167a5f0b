"""Two unsigned floating-point formats for second moments, of 16 and of 8 bits.

A code is the top bits of a float32, after random bits were added to those that are cut off: this is
stochastic rounding. Bits are linear in the value between two powers of two, so it is unbiased.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

_INFINITY, _NAN = 0x7F800000, 0x7FC00000  # the bits of float32
_ROUNDED_UP = 0xFFFFFFFF  # random bits that round all up
_A_STEP = np.uint32(0x85EBCA77)  # moves a step's words far from those of the last

Value: TypeAlias = Callable[..., jax.Array]


class Stored(NamedTuple):
    """A tree of second moments as codes, which say by themselves in which format they are.

    The fields' names carry the format's version: a checkpoint of another does not fit.
    """

    code_v1: Any  # like the parameters: uint16, uint8, or float32 where nothing is encoded
    base_v1: Any  # uint8 [..., blocks] where the code is uint8, otherwise a zero


class _Format:
    """What both formats have."""

    def encode(self, v: jax.Array, word: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return code and base of an array, by 32 random bits an element or else to nearest."""
        return self.written(lambda *base: v, word)

    def written(self, value: Value, word: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return code and base of `value()`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class UInt16(_Format):
    """E8M8: eight bits of exponent and eight of fraction."""

    def __repr__(self) -> str:
        return "storage.uint16()"

    def written(self, value: Value, word: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return code and base of `value()`."""
        return _cut(value(), word, 15, jnp.uint16), no_base()

    def decode(self, code: jax.Array, base: jax.Array) -> jax.Array:
        """Return the float32 array."""
        del base
        return _real(code.astype(jnp.uint32) << 15)


@dataclasses.dataclass(frozen=True, repr=False)
class UInt8(_Format):
    """E5M3 in blocks with a shared exponent, which is that of the block's largest element."""

    block: int  # a power of two

    def __repr__(self) -> str:
        return f"storage.uint8({self.block})"

    def written(self, value: Value, word: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return code and base of `value()`, which is asked for again, as `value(base)`."""
        # As if the largest were rounded up, which may lift it into the next binade.
        largest = _cut(_real(self._largest(_bits(value()))), jnp.uint32(_ROUNDED_UP), 20, jnp.int32)
        base = jnp.maximum(0, (largest >> 3) - 31).astype(jnp.uint8)
        v = value(base)
        code = _cut(v, word, 20, jnp.uint8, self._spread(base, v.shape))
        return code, base if v.ndim else base[0]

    def decode(self, code: jax.Array, base: jax.Array) -> jax.Array:
        """Return the float32 array."""
        k = code.astype(jnp.uint32) + 8 * self._spread(base, code.shape).astype(jnp.uint32)
        return _real(k << 20)

    def _largest(self, k: jax.Array) -> jax.Array:
        """[..., n] to [..., blocks]: the largest of each block."""
        k = jnp.atleast_1d(k)
        block = min(self.block, k.shape[-1])
        if surplus := -k.shape[-1] % block:
            k = jnp.pad(k, [(0, 0)] * (k.ndim - 1) + [(0, surplus)])
        # In two steps, because XLA's CPU compiler writes what it reduces over more than 32
        # elements to memory first.
        few = math.gcd(block, 32)
        return k.reshape(*k.shape[:-1], k.shape[-1] // block, block // few, few).max(-1).max(-1)

    def _spread(self, base: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The base of each element."""
        if not shape or base.shape[-1] == 1:
            return jnp.broadcast_to(base.reshape((*shape[:-1], 1)[: len(shape)]), shape)
        whole = jnp.broadcast_to(base[..., None], (*base.shape, self.block))
        return whole.reshape(*base.shape[:-1], base.shape[-1] * self.block)[..., : shape[-1]]


Codec: TypeAlias = UInt16 | UInt8


def no_base() -> jax.Array:
    """What stands for the base where there is none."""
    # None would have no place for what is mapped over a state beside it; an empty array cannot be
    # saved by Orbax.
    return jnp.zeros([], jnp.uint8)


def format_of(code: Any, base: Any) -> Codec | None:
    """The format of an array, None if it is not encoded: its dtype and its number of blocks tell.

    No two powers of two cut an axis into the same number of blocks, unless that is one.
    """
    if code.dtype == jnp.uint16:
        return UInt16()
    if code.dtype == jnp.uint8:
        last, blocks = (code.shape[-1], base.shape[-1]) if code.shape else (1, 1)
        return UInt8(1 << (-(-last // blocks) - 1).bit_length())
    return None


def _cut(
    v: jax.Array, word: jax.Array | None, drop: int, dtype: Any, base: jax.Array | None = None
) -> jax.Array:
    """The bits without the last `drop`, rounded. Finite stays finite; NaN and infinity stay."""
    x = _bits(v)
    added = jnp.uint32(1 << (drop - 1)) if word is None else word >> (32 - drop)
    top = jnp.minimum((x + added) >> drop, jnp.uint32((_INFINITY - 1) >> drop))
    special = jnp.where(x == _INFINITY, jnp.uint32(_INFINITY >> drop), jnp.uint32(_NAN >> drop))
    if base is not None:
        top, special = (
            jnp.clip(k.astype(jnp.int32) - 8 * base.astype(jnp.int32), 0, 255)
            for k in (top, special)
        )
    # A choice comes last, of arrays in the code's dtype: XLA's CPU compiler would compute a cast
    # of one array again for the step, from the old code, and keep a copy of that for it.
    return jax.lax.select(x < _INFINITY, top.astype(dtype), special.astype(dtype))


def _bits(v: jax.Array) -> jax.Array:
    """The bits without the sign."""
    return jax.lax.bitcast_convert_type(v, jnp.uint32) & jnp.uint32(0x7FFFFFFF)


def _real(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _mix(x: jax.Array) -> jax.Array:
    """A hash of 32 bits (Wellons, Prospecting for hash functions, 2018: "lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def number_of(path: str) -> int:
    """What `words` knows a leaf by."""
    return int.from_bytes(hashlib.blake2s(path.encode(), digest_size=4).digest())


def words(shape: tuple[int, ...], leaf: Any, count: jax.Array) -> jax.Array:
    """Random bits that depend on the element, the leaf and the step, and on no mesh.

    The leaf is its path, or the number of it.
    """
    leaf = number_of(leaf) if isinstance(leaf, str) else leaf
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mix(index + (jnp.asarray(leaf, jnp.uint32) + count.astype(jnp.uint32) * _A_STEP))
