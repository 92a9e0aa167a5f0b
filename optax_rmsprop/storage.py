"""Second moments in two bytes a parameter, or in one.

    tx = stored_as(rmsprop(1e-3), uint16())

A second moment is stored as an unsigned floating-point number of 16 or 8 bits. Arithmetic is in
float32. Rounding is stochastic and unbiased, so that a decay of 0.999 is tracked, which moves a
value by less than the spacing of the numbers; rounded to nearest, it would never come down. The
random bits are a hash of the element's index, the leaf's path and the step: the state has no key,
and a run stores the same bits on any mesh.

The step of this package's links is taken from the second moment as it is stored. Its rounding is
one more of those that the average carries already, and no float32 copy is ever in memory. A
transformation of Optax takes its step before its second moment is rounded.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from ._formats import Codec as Codec
from ._formats import Stored as Stored
from ._formats import UInt8, UInt16, format_of, no_base, words
from ._jax import sharding_of
from ._link import Treewise, check_state, link, parts_of, whole_of
from ._run import Part
from ._tree import increment, zero

Choice: TypeAlias = Callable[[str, Any], Codec | None]
State = TypeVar("State")

_FIELDS = {"nu", "var"}  # the second moments of this package and of Optax


class StoredAsState(NamedTuple):
    """The state of `stored_as`."""

    rounding_count: jax.Array  # int32 []: updates made so far
    inner_state: Any  # the wrapped state, with a `Stored` in the place of every second moment


def uint16() -> Codec:
    """Store in two bytes an element: the unsigned float E8M8, 8 bits of exponent and 8 of fraction.

    It has all of float32's range. The relative error is below 2⁻⁸ and unbiased. Elements do not
    influence each other, so the leaf may be sharded in any way.
    """
    return UInt16()


def uint8(block: int = 128) -> Codec:
    """Store in a byte an element: block floating point E5M3, with a shared exponent a block.

    An element has 5 bits of exponent and 3 of fraction; each `block` of the last axis shares one
    byte that is added to the exponents. The relative error is below 1/8 and unbiased, for elements
    down to 2⁻³⁰ times the block's largest. Smaller ones, zero too, become the smallest number that
    the block has, unless its largest element is below 2⁻⁹⁵ or all are zero.

    Args:
        block: How many elements share an exponent, a power of two. Where the last axis is sharded,
            `block` must divide the shard's length, or each step gathers the leaf. 64 in place of
            128 costs 1 % more memory.

    Raises:
        ValueError: if `block` is no power of two.
    """
    if type(block) is not int or block < 1 or block & (block - 1):
        raise ValueError(f"uint8: block must be a power of two, got {block!r}")
    return UInt8(block)


@link(StoredAsState, "storage")
def stored_as(inner: optax.GradientTransformation, codec: Codec | Choice) -> Treewise:
    """Store the second moments of a transformation, or of a whole chain, in 16 or 8 bits.

        code ← encode(β·decode(code) + (1−β)·g²),    u = g / √(decode(code)+ε)

    Every field `nu` or `var` of the inner state is found by its name, so this works on `optax.adam`
    too. Leaves that are not float32 stay as they are. So do, if one codec is given for all, leaves
    of fewer than 4,096 elements and embeddings (with "embed" in their path). A leaf whose last axis
    is shorter than 32 gets `uint16`, and so does one whose last axis is sharded into lengths that
    the block does not divide, as far as `init` can see.

    The bound on a step grows by the rounding: by 2⁻⁹ of it for `uint16`, and by 7 % for `uint8`. A
    gradient 2¹⁵ times its neighbours' in a block of `uint8` shortens their steps while it is
    remembered; clip before. No derivative passes through the codes. Inside `jax.shard_map` every
    shard uses the same random bits.

    Args:
        inner: Any Optax transformation.
        codec: `uint16()`, `uint8()`, or a function from a leaf's path, such as "['layer']['w']",
            and the leaf to a codec or None. It is called for every leaf, once, at `init`.

    Returns:
        A transformation with the state `StoredAsState(rounding_count, inner_state)`, in which a
        `Stored(code_v1, base_v1)` stands for every tree of second moments.

    Raises:
        TypeError: if `codec` is neither, and as `inner`.
        ValueError: as `inner`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> from optax_rmsprop import storage
        >>> tx = storage.stored_as(optax_rmsprop.scale_by_rms(0.75, eps=0.0), storage.uint16())
        >>> w = jnp.full((64, 64), 4.0)
        >>> update, state = tx.update(w, tx.init(w))  # ν = 16/4, so g/√ν = 2
        >>> code = state.inner_state.nu.code_v1
        >>> print(update[0, 0], code.dtype, storage.decoded(state).inner_state.nu[0, 0])
        2.0 uint16 4.0

    Source: Gupta et al., Deep learning with limited numerical precision, 2015, for stochastic
    rounding. Dettmers et al., 8-bit optimizers via block-wise quantization, 2021, for blocks in
    optimizer states. The two formats are this package's.
    """
    if not isinstance(codec, (UInt16, UInt8)) and not callable(codec):
        raise TypeError(f"stored_as: codec must be uint16(), uint8() or a function, got {codec}")
    choice = codec if callable(codec) else _Default(codec)
    adapted = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> StoredAsState:
        return StoredAsState(zero(), _start(choice, inner.init(params)))

    def parts(updates: Any, state: Any) -> list[Part] | None:
        check_state("stored_as", state, StoredAsState)
        for moments in second_moments(state.inner_state):
            check_state("stored_as", moments, Stored)
        found = parts_of(inner.update, updates, state.inner_state)
        return (
            found if found is None else [p._replace(rounding=state.rounding_count) for p in found]
        )

    def whole(state: StoredAsState, states: Iterator[Any]) -> StoredAsState:
        inner_state = whole_of(inner.update, state.inner_state, states)
        return StoredAsState(increment(state.rounding_count), inner_state)

    def update(
        updates: optax.Updates,
        state: StoredAsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StoredAsState]:
        inner_state = decoded(state.inner_state)
        updates, inner_state = adapted.update(updates, inner_state, params, **extra_args)
        inner_state = encoded_like(inner_state, state.inner_state, state.rounding_count)
        return updates, StoredAsState(increment(state.rounding_count), inner_state)

    return Treewise(init, update, parts, whole)


@dataclasses.dataclass(frozen=True)
class _Default:
    """Small leaves and embeddings stay wide; where blocks do not fit there are none."""

    codec: Codec

    def __call__(self, path: str, leaf: Any) -> Codec | None:
        if math.prod(leaf.shape) < 4096 or "embed" in path.lower():
            return None
        if isinstance(self.codec, UInt8):
            local = _last_of_shard(leaf)
            if leaf.shape[-1] < 32 or (local < leaf.shape[-1] and local % self.codec.block):
                return UInt16()
        return self.codec


def _last_of_shard(leaf: Any) -> int:
    """The length of the last axis on a device, if the array or its type knows its sharding."""
    place = sharding_of(leaf)
    return leaf.shape[-1] if place is None else place.shard_shape(tuple(leaf.shape))[-1]


def apply_updates(params: optax.Params, updates: optax.Updates, count: jax.Array) -> optax.Params:
    """Add a step to the parameters, and round bfloat16 ones stochastically.

        p ← p + u,  rounded up or down with the probabilities that make the mean exact

    Rounded to nearest, a step of less than 1/512 of a parameter changes nothing, however often it
    is taken. Others than bfloat16 are added as `optax.apply_updates` does.

    Args:
        params: A tree of parameters.
        updates: A tree of steps, which may be wider than the parameters.
        count: int32 [], the number of the step, which the random bits depend on.

    Returns:
        The new parameters, in the dtypes of the old.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import storage
        >>> p = jnp.ones(1000, jnp.bfloat16)
        >>> for count in range(100):
        ...     p = storage.apply_updates(p, jnp.full(1000, 1e-3), jnp.int32(count))
        >>> print(f"{p.astype(float).mean():.2f}")  # rounded to nearest it would still be 1
        1.10

    Source: Gupta et al., Deep learning with limited numerical precision, 2015.
    """

    def leaf(path: Any, p: Any, u: Any) -> Any:
        if u is None:
            return p
        if getattr(p, "dtype", None) != jnp.bfloat16:
            return optax.apply_updates(p, u)
        exact = p.astype(jnp.float32) + u.astype(jnp.float32)
        # Other words than those of the second moment at this path, whose rounding the step has.
        word = words(p.shape, f"the parameter at {jax.tree_util.keystr(path)}", count)
        bits = jax.lax.bitcast_convert_type(exact, jnp.uint32) + (word >> 16)
        rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        safe = jnp.isfinite(exact) & jnp.isfinite(rounded)
        return jnp.where(safe, rounded, exact).astype(p.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params, updates, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


@functools.partial(jax.jit, static_argnums=0)
def _encoded(codec: Codec, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA would encode a constant while it compiles, element by element.
    return codec.encode(jax.lax.optimization_barrier(v), None)


def _start(choice: Choice, state: State) -> State:
    """A new state whose second moments are held in the format that `choice` finds for a leaf."""

    def leaf(path: str, v: Any) -> tuple[Any, Any]:
        encodable = v.dtype == jnp.float32 and v.size
        codec = choice(path, v) if encodable else None
        if codec is None:
            return v, no_base()
        return cast(Any, _encoded)(codec, v)

    return _with_moments(lambda tree: _stored(leaf, tree), state)


def decoded(state: State) -> State:
    """The state with every second moment as float32, to look at or to carry elsewhere.

    Where it stands in a `StoredAsState`, its `inner_state` continues without `stored_as`.
    """
    return _with_moments(lambda tree: _plain(tree) if isinstance(tree, Stored) else tree, state)


def encoded_like(state: State, like: Any, count: jax.Array | None = None) -> State:
    """The state with its second moments in the formats of those of `like`.

    They are rounded to nearest, or stochastically as at the step of a count.
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
                return v, no_base()
            word = None if count is None else words(v.shape, path, count)
            return codec.encode(v, word)

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
