"""Formats of what is never negative in two bytes or one, and states that hold them.

A code is the top bits of a float32, after a dither was added to the bits that are cut off. Bits are
linear in the value between two powers of two, so the mean over the dither is the value itself.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp

State = TypeVar("State")

_FIELDS = {"nu", "var"}  # the second moments of this package and of Optax
_INFINITY, _NAN = 0x7F800000, 0x7FC00000  # the bits of float32


class Stored(NamedTuple):
    """A tree of second moments as codes, which say by themselves in which format they are.

    The fields' names carry the format's version: a checkpoint of another does not fit.
    """

    code_v1: Any  # like the parameters: uint16, uint8, or float32 where nothing is encoded
    base_v1: Any  # uint8 [..., blocks] where the code is uint8, otherwise a zero


class StoredAsState(NamedTuple):
    """The state of `stored_as`."""

    count: jax.Array  # int32 []: updates made so far
    inner_state: Any  # the wrapped state, with a `Stored` in the place of every second moment


@dataclasses.dataclass(frozen=True)
class UInt16:
    """Eight bits of exponent and eight of fraction."""

    def encode(self, v: jax.Array, word: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return code and base, by 32 random bits an element or else to nearest."""
        return _cut(v, word, drop=15).astype(jnp.uint16), _no_base()

    def decode(self, code: jax.Array, base: jax.Array) -> jax.Array:
        """Return the float32 array."""
        del base
        return _real(code.astype(jnp.uint32) << 15)


@dataclasses.dataclass(frozen=True)
class UInt8:
    """Five bits of exponent above that of the block, and three of fraction."""

    block: int  # a power of two

    def encode(self, v: jax.Array, word: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return code and base, by 32 random bits an element or else to nearest."""
        k = self._blocks(_cut(v, word, drop=20).astype(jnp.int32))
        # The base is taken after rounding, which may lift the largest into the next octave.
        base = jnp.maximum(0, (k.max(-1) >> 3) - 31)
        code = jnp.clip(k - 8 * base[..., None], 0, 255)
        base = base if v.ndim else base[0]
        return self._flat(code, v.shape).astype(jnp.uint8), base.astype(jnp.uint8)

    def decode(self, code: jax.Array, base: jax.Array) -> jax.Array:
        """Return the float32 array."""
        base = jnp.atleast_1d(base).astype(jnp.uint32)
        k = self._blocks(code).astype(jnp.uint32) + 8 * base[..., None]
        return self._flat(_real(k << 20), code.shape)

    def _blocks(self, x: jax.Array) -> jax.Array:
        """[..., n] to [..., blocks, block], with zeros at the end."""
        x = jnp.atleast_1d(x)
        if surplus := -x.shape[-1] % self.block:
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, surplus)])
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.block, self.block)

    def _flat(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        whole = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
        last = shape[-1] if shape else 1
        return (whole if whole.shape[-1] == last else whole[..., :last]).reshape(shape)


Codec: TypeAlias = UInt16 | UInt8
Choice: TypeAlias = Callable[[str, Any], Codec | None]


def _no_base() -> jax.Array:
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


def _bits(v: jax.Array) -> jax.Array:
    """The bits without the sign."""
    return jax.lax.bitcast_convert_type(v, jnp.uint32) & jnp.uint32(0x7FFFFFFF)


def _real(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _cut(v: jax.Array, word: jax.Array | None, drop: int) -> jax.Array:
    """The bits without the last `drop`, rounded. Finite stays finite; NaN and infinity stay."""
    x = _bits(v)
    dither = jnp.uint32(1 << (drop - 1)) if word is None else word >> (32 - drop)
    top = jnp.minimum((x + dither) >> drop, jnp.uint32((_INFINITY - 1) >> drop))
    special = jnp.where(x == _INFINITY, jnp.uint32(_INFINITY >> drop), jnp.uint32(_NAN >> drop))
    return jnp.where(x < _INFINITY, top, special)


def _mix(x: jax.Array) -> jax.Array:
    """A hash of 32 bits (Wellons, Prospecting for hash functions, 2018: "lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def words(shape: tuple[int, ...], path: str, count: jax.Array) -> jax.Array:
    """Random bits that depend on the element, the leaf's path and the step, and on no mesh."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    leaf = _mix(jnp.uint32(zlib.crc32(path.encode())))
    return _mix(_mix(index) + leaf + count.astype(jnp.uint32) * jnp.uint32(0x85EBCA77))


def start(choice: Choice, state: State) -> State:
    """A new state whose second moments are held in the format that `choice` finds for a leaf."""

    def leaf(path: str, v: Any) -> tuple[Any, Any]:
        encodable = v.dtype == jnp.float32 and v.size
        codec = choice(path, v) if encodable else None
        return (v, _no_base()) if codec is None else codec.encode(v, None)

    return _with_moments(lambda tree: _stored(leaf, tree), state)


def decoded(state: State) -> State:
    """The state with every second moment as float32, to look at or to carry elsewhere.

    Where it stands in a `StoredAsState`, its `inner_state` continues without `stored_as`.
    """
    return _with_moments(lambda tree: _plain(tree) if isinstance(tree, Stored) else tree, state)


def encoded_like(state: State, like: Any, count: jax.Array | None = None) -> State:
    """The state with its second moments in the formats of those of `like`.

    To nearest, or with a count dithered as at that step.
    """
    left = iter(second_moments(like))

    def change(tree: Any) -> Any:
        found = next(left)
        if not isinstance(found, Stored):
            return tree
        pairs = iter(_pairs(found))

        def leaf(path: str, v: Any) -> tuple[Any, Any]:
            codec = format_of(*next(pairs))
            if codec is None:
                return v, _no_base()
            return codec.encode(v, None if count is None else words(v.shape, path, count))

        return _stored(leaf, tree)

    return _with_moments(change, state)


def _stored(leaf: Callable[[str, Any], tuple[Any, Any]], tree: Any) -> Stored:
    leaves, structure = cast(Any, jax.tree_util.tree_flatten_with_path(tree))
    pairs = [leaf(jax.tree_util.keystr(path), v) for path, v in leaves]
    return Stored(*(structure.unflatten([pair[i] for pair in pairs]) for i in (0, 1)))


def _pairs(stored: Stored) -> list[tuple[Any, Any]]:
    leaves, structure = cast(Any, jax.tree.flatten(stored.code_v1))
    return list(zip(leaves, structure.flatten_up_to(stored.base_v1), strict=True))


def _plain(stored: Stored) -> Any:
    def leaf(code: Any, base: Any) -> Any:
        codec = format_of(code, base)
        return code if codec is None else codec.decode(code, base)

    structure = cast(Any, jax.tree.structure(stored.code_v1))
    return structure.unflatten([leaf(*pair) for pair in _pairs(stored)])


def second_moments(state: Any) -> list[Any]:
    """Every tree of second moments in a state."""
    parts = jax.tree.leaves(state, is_leaf=_has_moments)
    return [getattr(x, f) for x in parts if _has_moments(x) for f in x._fields if f in _FIELDS]


def _has_moments(x: Any) -> bool:
    return isinstance(x, tuple) and not _FIELDS.isdisjoint(getattr(cast(Any, x), "_fields", ()))


def _with_moments(change: Callable[[Any], Any], state: State) -> State:
    """The state with every tree of second moments changed, in their order."""

    def part(x: Any) -> Any:
        if not _has_moments(x):
            return x
        return x._replace(**{f: change(getattr(x, f)) for f in x._fields if f in _FIELDS})

    return cast(State, jax.tree.map(part, state, is_leaf=_has_moments))
