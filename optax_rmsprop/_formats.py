"""Floating-point formats of 16 and of 8 bits for moments: unsigned ones, and signed ones.

A code is the top bits of a float32, after random bits were added to those that are cut off: this is
stochastic rounding. Bits are linear in the value between two powers of two, so it is unbiased.
`docs/formats.md` has the formats bit by bit.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._jax import again, parts_of_last_axis, whole_last_axis

_INFINITY, _NAN = 0x7F800000, 0x7FC00000  # the bits of float32
_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_NO_NUMBER = 0x80  # the code of SE4M3 with the sign alone
_A_STEP = np.uint32(0x85EBCA77)  # moves a step's words far from those of the last

Value: TypeAlias = Callable[..., jax.Array]


class Stored(NamedTuple):
    """Moments of which some are codes: trees like the parameters.

    A leaf is in the field of its format, and `optax.MaskedNode()` holds its place in the others. So
    a code cannot be read as a number, or in another format: the names of the fields are those of
    the formats, for a checkpoint too. In `_run` it is one leaf.
    """

    wide: Any  # what is not encoded
    e8m8: Any  # uint16
    e5m3: Any  # uint8, with exponents
    se8m7: Any  # uint16
    se4m3: Any  # uint8, with exponents
    exponents: Any  # uint8 [..., blocks]


_NONE = optax.MaskedNode()


def _cell(**fields: Any) -> Stored:
    return Stored(**{field: fields.get(field, _NONE) for field in Stored._fields})


class _Unsigned:
    """What the formats of second moments have."""

    def encode(self, v: jax.Array, word: jax.Array | None) -> Stored:
        """Return an array as a code, by 32 random bits an element or else to nearest.

        What is negative has no code but that of NaN.
        """
        v = _unsigned(v)
        return self.written(lambda *base: v, word)

    def written(self, value: Value, word: jax.Array | None) -> Stored:
        """Return the code of `value()`, an average of squares, which is never -0."""
        raise NotImplementedError


class _Signed:
    """What the formats of first moments have."""

    def encode(self, v: jax.Array, word: jax.Array | None) -> Stored:
        """Return an array as a code, by 32 random bits an element or else to nearest."""
        return self.written(lambda *base: v, word)

    def written(self, value: Value, word: jax.Array | None) -> Stored:
        """Return the code of `value()`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class _Blocks:
    """A format with a shared exponent for each block of the last axis."""

    block: int  # a power of two

    def _largest(self, k: jax.Array) -> jax.Array:
        """[..., n] to [..., blocks]: the largest of each block."""
        k = k if k.ndim else k[None]
        block = min(self.block, k.shape[-1])
        if k.shape[-1] // parts_of_last_axis(k) % block:
            k = whole_last_axis(k)
        surplus = k.shape[-1] % block
        parts = [k[..., : k.shape[-1] - surplus]]
        if surplus:
            # A whole block with zeros first: XLA's CPU compiler does not vectorize a padding.
            is_of_it = np.arange(block) >= block - surplus
            parts.append(jnp.where(is_of_it, k[..., -block:], jnp.uint32(0)))
        # In two steps, because XLA's CPU compiler writes what it reduces over more than 32
        # elements to memory first.
        few = math.gcd(block, 32)
        shapes = [(*k.shape[:-1], part.shape[-1] // block, block // few, few) for part in parts]
        largest = [part.reshape(s).max(-1).max(-1) for part, s in zip(parts, shapes, strict=True)]
        return jnp.concatenate(largest, -1) if surplus else largest[0]

    def _spread(self, base: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The base of each element, as uint32."""
        base = base.astype(jnp.uint32)
        if not shape or base.shape[-1] == 1:
            return jnp.broadcast_to(base.reshape((*shape[:-1], 1)[: len(shape)]), shape)
        if shape[-1] % self.block:
            base = whole_last_axis(base)
        whole = jnp.broadcast_to(base[..., None], (*base.shape, self.block))
        return whole.reshape(*base.shape[:-1], base.shape[-1] * self.block)[..., : shape[-1]]


@dataclasses.dataclass(frozen=True, repr=False)
class UInt16(_Unsigned):
    """E8M8: eight bits of exponent and eight of fraction."""

    def __repr__(self) -> str:
        return "storage.uint16()"

    def written(self, value: Value, word: jax.Array | None) -> Stored:
        """Return the code of `value()`."""

        def code(k: jax.Array) -> jax.Array:
            return k.astype(jnp.uint16)

        return _cell(e8m8=_cut(value(), word, 15, code))

    def decode(self, cell: Stored) -> jax.Array:
        """Return the float32 array."""
        return _real(cell.e8m8.astype(jnp.uint32) << 15)


class UInt8(_Blocks, _Unsigned):
    """E5M3 in blocks with a shared exponent, which is that of the block's largest element."""

    def __repr__(self) -> str:
        return f"storage.uint8({self.block})"

    def written(self, value: Value, word: jax.Array | None) -> Stored:
        """Return the code of `value()`, which is asked for again, as `value(base)`."""
        # What needs it reads it where it is stored, and does not make it anew.
        base = again(_base(self._largest(_bits(value())), 31))
        v = value(base)
        floor = self._spread(base, v.shape) << 3

        def code(k: jax.Array) -> jax.Array:
            return (jnp.maximum(k, floor) - floor).astype(jnp.uint8)

        return _cell(e5m3=_cut(v, word, 20, code), exponents=base if v.ndim else base[0])

    def decode(self, cell: Stored) -> jax.Array:
        """Return the float32 array."""
        floor = self._spread(cell.exponents, cell.e5m3.shape) << 3
        return _real((cell.e5m3.astype(jnp.uint32) + floor) << 20)


@dataclasses.dataclass(frozen=True, repr=False)
class Int16(_Signed):
    """SE8M7, which is bfloat16: a sign, eight bits of exponent and seven of fraction."""

    def __repr__(self) -> str:
        return "storage.int16()"

    def written(self, value: Value, word: jax.Array | None) -> Stored:
        """Return the code of `value()`."""
        sign, size = _parts(without_derivative(value()))

        def code(k: jax.Array) -> jax.Array:
            return jnp.where(k == 0, k, k | sign >> 16).astype(jnp.uint16)

        return _cell(se8m7=_cut(_real(size), word, 16, code))

    def decode(self, cell: Stored) -> jax.Array:
        """Return the float32 array."""
        return _real(cell.se8m7.astype(jnp.uint32) << 16)


class Int8(_Blocks, _Signed):
    """SE4M3 in blocks with a shared exponent: a sign, four bits of exponent, three of fraction.

    A number below the least exponent has the spacing of those above it, down to zero.
    """

    def __repr__(self) -> str:
        return f"storage.int8({self.block})"

    def written(self, value: Value, word: jax.Array | None) -> Stored:
        """Return the code of `value()`, which is asked for again, as `value(base)`."""
        # Of what is finite, so that what is not spoils no neighbour.
        k = _bits(value()) & _MAGNITUDE
        largest = self._largest(jnp.where(k < _INFINITY, k, jnp.uint32(0)))
        # From 3 on, so that the spacing is no subnormal number, which processors flush to zero.
        base = again(jnp.maximum(_base(largest, 15), jnp.uint8(3)))
        v = without_derivative(value(base))
        low = self._spread(base, v.shape)
        sign, k = _parts(v)
        is_finite = k < _INFINITY
        # A subnormal number is 0, as with processors that flush.
        k = jnp.where(is_finite & (k >> 23 > 0), k, jnp.uint32(0))
        exponent = jnp.maximum(k >> 23, low + 1)  # of an eighth of it the number is a multiple
        n, more = _rounded(k, exponent, word)
        room = jnp.minimum(jnp.uint32(127), ((jnp.uint32(255) - low) << 3) - 1)
        code = jnp.minimum(n + more + ((exponent - low - 1) << 3), room)
        finite = jnp.where(code == 0, code, code | sign >> 24).astype(jnp.uint8)
        # A choice comes last, as in `_cut`.
        code = jax.lax.select(is_finite, finite, jnp.full_like(finite, _NO_NUMBER))
        return _cell(se4m3=code, exponents=base if v.ndim else base[0])

    def decode(self, cell: Stored) -> jax.Array:
        """Return the float32 array."""
        code = cell.se4m3.astype(jnp.uint32)
        low = self._spread(cell.exponents, code.shape)
        k = code & 0x7F
        # Below 8, in eighths of the least power of two, whose exponent is that of `low` plus one.
        small = _bits(k.astype(jnp.float32) * _real((low - 2) << 23))
        number = jnp.where(k < 8, small, (k + (low << 3)) << 20) | code >> 7 << 31
        return _real(jnp.where(code == _NO_NUMBER, jnp.uint32(_NAN), number))


Unsigned: TypeAlias = UInt16 | UInt8
Signed: TypeAlias = Int16 | Int8
Codec: TypeAlias = Unsigned | Signed


def plain(v: Any) -> Stored:
    """An array that is not encoded."""
    return _cell(wide=v)


def is_masked(x: Any) -> bool:
    """Whether `x` holds the place of a leaf that is elsewhere."""
    return isinstance(x, optax.MaskedNode)


def array_of(cell: Stored) -> Any:
    """The array that has the leaf's shape."""
    return next((x for x in cell if not is_masked(x)), cell.wide)


def arrays_of(stored: Stored) -> Any:
    """The tree of the arrays that have the leaves' shapes.

    A leaf must be in one field: a library that restores a checkpoint of another format puts nothing
    in any.
    """

    def leaf(path: Any, *cell: Any) -> Any:
        found = [x for x in cell if not is_masked(x)]
        number = 1 if is_masked(cell[-1]) else 2
        if found and any(x is not None for x in cell):
            if len(found) != number or not all(hasattr(x, "dtype") for x in found):
                raise TypeError(
                    f"stored_as: the moment at {jax.tree_util.keystr(path) or 'the root'} "
                    "is in none of its formats; was the state restored from a checkpoint with "
                    "another format as its target?"
                )
        return array_of(Stored(*cell))

    return jax.tree_util.tree_map_with_path(leaf, *stored, is_leaf=_is_place)


def _is_place(x: Any) -> bool:
    return x is None or is_masked(x)


def format_of(cell: Stored) -> Codec | None:
    """The format of a leaf, None if it is not encoded. Its number of blocks tells their length.

    No two powers of two cut an axis into the same number of blocks, unless that is one.
    """
    for field, codec in (("e8m8", UInt16()), ("se8m7", Int16())):
        if not is_masked(getattr(cell, field)):
            return codec
    if is_masked(cell.exponents):
        return None
    kind = Int8 if is_masked(cell.e5m3) else UInt8
    last, blocks = (x.shape[-1] if x.shape else 1 for x in (array_of(cell), cell.exponents))
    return kind(1 << (-(-last // blocks) - 1).bit_length())


def read(cell: Stored) -> Any:
    """The array, decoded if it is a code."""
    codec = format_of(cell)
    return codec.decode(cell) if codec else cell.wide


def _cut(
    v: jax.Array, word: jax.Array | None, drop: int, code: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The code of the bits without the last `drop`, rounded.

    Finite stays finite; NaN and infinity stay.
    """
    x = _bits(v)
    added = jnp.uint32(1 << (drop - 1)) if word is None else word >> (32 - drop)
    k = (jnp.minimum(x, jnp.uint32(_NAN)) + added) >> drop
    finite = jnp.minimum(k, jnp.uint32((_INFINITY - 1) >> drop))
    # A choice comes last, of arrays in the code's dtype: XLA's CPU compiler would compute a cast
    # of one array again for the step, from the old code, and keep a copy of that for it.
    return jax.lax.select(x < _INFINITY, code(finite), code(k))


def _rounded(
    k: jax.Array, exponent: jax.Array, word: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """How often an eighth of 2^exponent is in a number, and 1 where the rest and the word make one.

    With shifts of the fraction, for which processors have less to do than for conversions.
    """
    down = exponent - (k >> 23)
    fraction = jnp.where(k == 0, k, k & 0x7FFFFF | 1 << 23)
    n = fraction >> jnp.minimum(down + 20, 31)
    left = fraction << (12 - jnp.minimum(down, 12))
    right = fraction >> (jnp.clip(down, 12, 43) - 12)
    rest = jnp.where(down < 12, left, right)  # in units of 2^-32
    more = rest > ~(jnp.uint32(1 << 31) if word is None else word)
    return n, more.astype(jnp.uint32)


def _base(largest: jax.Array, binades: int) -> jax.Array:
    """The shared exponent of a block, so many binades below that of its largest element.

    As if that were rounded up, which may lift it into the next binade.
    """
    up = jnp.minimum(largest, jnp.uint32(_NAN)) + jnp.uint32((1 << 20) - 1)
    return (jnp.maximum(up >> 23, jnp.uint32(binades)) - jnp.uint32(binades)).astype(jnp.uint8)


@jax.custom_jvp
def without_derivative(v: jax.Array) -> jax.Array:
    """The array; its derivative is refused, where it would be zero in silence."""
    return v


@without_derivative.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "stored_as: no derivative passes through the codes of a first moment; store it in float32 "
        "to differentiate through the optimizer"
    )


def _unsigned(v: jax.Array) -> jax.Array:
    """The number, 0 for -0; one NaN for all, and for what is negative."""
    x = jnp.where(_bits(v) == _SIGN, jnp.uint32(0), _bits(v))
    return _real(jnp.where(x > _INFINITY, jnp.uint32(_NAN), x))


def _parts(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bits of the sign, and those of the magnitude; one NaN for all of a sign."""
    x = _bits(v) & _MAGNITUDE
    return _bits(v) & _SIGN, jnp.where(x > _INFINITY, jnp.uint32(_NAN), x)


def _bits(v: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(v, jnp.uint32)


def _real(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _mix(x: jax.Array) -> jax.Array:
    """A hash of 32 bits (Wellons, Prospecting for hash functions, 2018: "lowbias32").

    Its last step is left out, which changes the lower half alone: a code needs the upper bits.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


def number_of(path: str) -> int:
    """What `words` knows a leaf by."""
    return int.from_bytes(hashlib.blake2s(path.encode(), digest_size=4).digest())


def words(shape: tuple[int, ...], leaf: Any, count: jax.Array, stream: int = 0) -> jax.Array:
    """Random bits that depend on the element, the leaf and the step, and on no mesh.

    The leaf is its path, or the number of it. What is rounded at the same leaf and step, but in
    another stream, has other bits.
    """
    leaf = jnp.asarray(number_of(leaf) if isinstance(leaf, str) else leaf, jnp.uint32)
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    steps = count.astype(jnp.uint32) * _A_STEP
    if not stream:
        return _mix(index + (leaf + steps))
    # Mixed in twice, so that the words of two streams are not functions of each other.
    return _mix(_mix(index + (leaf + np.uint32(stream * 0x9E3779B9 & 0xFFFFFFFF))) ^ steps)


def added(p: jax.Array, u: jax.Array, coarse: jax.Array, fine: jax.Array) -> jax.Array:
    """bfloat16 `p` plus `u`, rounded stochastically by two words for each element.

    Bits are added to the sum in float32, whose own rounding is made good by a chance of one more or
    one less in its last place. Processors flush subnormal numbers, so small ones are raised first.
    """
    raised = 80  # binades, for two numbers below 2^-40; no sum of others is subnormal
    x, y = _bits_of(p), _bits_of(u)
    small = jnp.maximum(x & _MAGNITUDE, y & _MAGNITUDE) < (127 - 40) << 23
    a, b = (jnp.where(small, _times_power(k, raised), _real(k)) for k in (x, y))
    total = a + b
    back = total - a
    rest = (a - (total - back)) + (b - back)  # all that `total` has lost, exactly

    sign = _bits(total) & _SIGN
    k = _bits(total) ^ sign
    # In units of the last place, which is half as large below a power of two.
    rest = rest * _real((277 - jnp.maximum(k >> 23, 24)) << 23) * jnp.where(sign > 0, -1.0, 1.0)
    rest = jnp.where((rest < 0) & (k << 9 == 0), 2 * rest, rest)
    chance = (jnp.abs(rest) * 2.0**32).astype(jnp.uint32)
    more = jnp.where(fine < chance, jnp.sign(rest), 0.0).astype(jnp.int32).astype(jnp.uint32)

    subnormal = (jnp.abs(total) * 2.0 ** (149 - raised)).astype(jnp.uint32)
    lowered = jnp.where(k < (127 - 125 + raised - 1) << 23, subnormal, k - (raised << 23))
    k = jnp.where(small, lowered, k) + (coarse >> 16) + more
    top = jnp.minimum(k >> 16, 0x7F7F) | sign >> 16  # finite stays finite
    rounded = jax.lax.bitcast_convert_type(top.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(total), rounded, total.astype(jnp.bfloat16))


def _bits_of(x: jax.Array) -> jax.Array:
    """The bits of an array as float32, with its subnormal numbers."""
    if x.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    return _bits(x.astype(jnp.float32))


def _times_power(bits: jax.Array, n: int) -> jax.Array:
    """2^n times the number of these bits, for an n that makes it normal."""
    k = bits & _MAGNITUDE
    subnormal = k.astype(jnp.float32) * 2.0 ** (n - 149)
    size = jnp.where(k >> 23 == 0, subnormal, _real(k + (n << 23)))
    return jnp.where(bits >= _SIGN, -size, size)
