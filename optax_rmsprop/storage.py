"""Second moments in two bytes a parameter, or in one.

    tx = stored_as(rmsprop(1e-3), uint16())

A second moment is stored as an unsigned floating-point number of 16 or 8 bits. Arithmetic is in
float32. Rounding is stochastic and unbiased, so that a decay of 0.999 is tracked, which moves a
value by less than the spacing of the numbers; rounded to nearest, it would never come down. The
random bits are a hash of the element's index, the leaf's path and the step: the state has no key,
and the bits are the same on any mesh.

The step of this package's links is taken from the second moment as it is stored. Its rounding is
one more of those that the average carries already, and no float32 copy is ever in memory. A
transformation of Optax takes its step before its second moment is rounded.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._formats import Codec as Codec
from ._formats import Stored as Stored
from ._formats import UInt8, UInt16, added, arrays_of, format_of, is_masked, plain, read, words
from ._link import Link, Treewise, check_state, link, parts_of, whole_of
from ._run import Part
from ._tree import increment, is_gradient, zero

Choice: TypeAlias = Callable[[str, Any], Codec | None]
State = TypeVar("State")

# The averages of squares in the states of this package and of Optax, some of which have no public
# name. In no other state is a number without a sign, whatever its field is called.
_SECOND_MOMENTS = {
    "optax_rmsprop.ScaleByRmsState": ["nu"],
    "optax_rmsprop.ScaleByStddevState": ["var"],
    "optax.ScaleByRmsState": ["nu"],
    "optax.ScaleByRmsWithCountState": ["nu"],
    "optax.ScaleByRStdDevState": ["nu"],
    "optax.ScaleByRStdDevWithCountState": ["nu"],
    "optax.ScaleByAdamState": ["nu"],
    "optax.ScaleByAmsgradState": ["nu"],
    "optax.ScaleByBeliefState": ["nu"],
    "optax.ScaleByNovogradState": ["nu"],
    "optax.ScaleByAdaDeltaState": ["e_g", "e_x"],
    "optax.ScaleByAdanState": ["n"],
    "optax.ScaleByAdemamixState": ["nu"],
    "optax.ScaleBySimplifiedAdEMAMixState": ["n"],
    "optax.DAdaptAdamWState": ["exp_avg_sq"],
    "optax.MomoAdamState": ["exp_avg_sq"],
    "optax.ProdigyState": ["exp_avg_sq"],
}
# Which random bits round a parameter: others than any that round a second moment.
_COARSE, _FINE = 1 << 20, 1 << 21


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
            `block` should divide the shard's length: else each step gathers the leaf, and is still
            right. 64 in place of 128 costs 1 % more memory.

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

    Second moments are known by the class of their state, so this works on `optax.adam` and its
    relatives too, and leaves all that has a sign as it is. Leaves that are not float32 stay as they
    are. So do, if one codec is given for all, leaves of fewer than 4,096 elements and embeddings
    (with "embed" in their path); a leaf whose last axis is shorter than 32 gets `uint16`. Nothing
    but path and shape decides, so that the format is the same on any mesh.

    The bound on a step grows by the rounding: by 2⁻⁹ of it for `uint16`, and by 7 % for `uint8`. A
    gradient 2¹⁵ times its neighbours' in a block of `uint8` shortens their steps while it is
    remembered; clip before. No derivative passes through the codes. A negative number becomes NaN.
    Second moments of one leaf have random bits of their own; two `stored_as` in one `optax.chain`
    do not know of each other, and have the same: store the chain instead.

    Inside `jax.shard_map` a shard is an array of its own: the shape that decides is its shape, and
    all shards use the same random bits. Where `block` does not divide its last axis, decode it
    there too.

    Args:
        inner: Any Optax transformation.
        codec: `uint16()`, `uint8()`, or a function from a leaf's path, such as "['layer']['w']",
            and the leaf to a codec or None. It is called for every leaf of float32, at `init`.

    Returns:
        A transformation with the state `StoredAsState(rounding_count, inner_state)`, in which a
        `Stored(wide, e8m8, e5m3, exponents)` stands for every tree of second moments. Each leaf is
        in the field of its format, with `optax.MaskedNode()` in the others. A state goes on in the
        formats that it has.

    Raises:
        TypeError: if `codec` is or returns something else, if `inner` is stored already, at `init`
            if its state has no second moment that is known, and as `inner`.
        ValueError: as `inner`.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> from optax_rmsprop import storage
        >>> tx = storage.stored_as(optax_rmsprop.scale_by_rms(0.75, eps=0.0), storage.uint16())
        >>> w = jnp.full((64, 64), 4.0)
        >>> update, state = tx.update(w, tx.init(w))  # ν = 16/4, so g/√ν = 2
        >>> code = state.inner_state.nu.e8m8
        >>> print(update[0, 0], code.dtype, storage.decoded(state).inner_state.nu[0, 0])
        2.0 uint16 4.0

    Source: Gupta et al., Deep learning with limited numerical precision, 2015, for stochastic
    rounding. Dettmers et al., 8-bit optimizers via block-wise quantization, 2021, for blocks in
    optimizer states. The two formats are this package's.
    """
    for function in (uint16, uint8):
        if codec is function:
            raise TypeError(f"stored_as: codec must be a call: storage.{function.__name__}()")
    if not isinstance(codec, (UInt16, UInt8)) and not callable(codec):
        raise TypeError(f"stored_as: codec must be uint16(), uint8() or a function, got {codec}")
    if shown(inner).startswith("storage."):
        raise TypeError(f"stored_as: inner is stored already: {shown(inner)}")
    choice = codec if callable(codec) else _Default(codec)
    adapted = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> StoredAsState:
        return StoredAsState(zero(), _start(inner, choice, params))

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        check_state("stored_as", state, StoredAsState)
        moments = second_moments(state.inner_state)
        if not any(map(_is_stored, moments)):
            check_state("stored_as", moments[0] if moments else state.inner_state, Stored)
        found = parts_of(inner.update, updates, state.inner_state, count)
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
    """Small leaves and embeddings stay wide, and short rows have no blocks."""

    codec: Codec

    def __call__(self, path: str, leaf: Any) -> Codec | None:
        if math.prod(leaf.shape) < 4096 or "embed" in path.lower():
            return None
        return UInt16() if leaf.shape[-1] < 32 else self.codec


def apply_updates(params: optax.Params, updates: optax.Updates, count: ArrayLike) -> optax.Params:
    """Add a step to the parameters, and round bfloat16 ones stochastically.

        p ← p + u,  rounded up or down with the probabilities that make the mean exact

    Rounded to nearest, a step of less than 1/512 of a parameter changes nothing, however often it
    is taken. Here it is right in the mean whatever its size, from zero and subnormal numbers too:
    probabilities are multiples of 2⁻⁴⁸. A finite sum stays finite. Others than bfloat16 are added
    as `optax.apply_updates` does.

    Args:
        params: A tree of parameters.
        updates: A tree of steps, best in float32: a step that was rounded to bfloat16 before is
            what is added. For that, give `update` gradients in float32.
        count: The number of the step, an integer, which the random bits depend on.

    Returns:
        The new parameters, in the dtypes of the old.

    Raises:
        TypeError: if `count` is no integer.
        ValueError: if the trees, or the shapes of two leaves, differ.

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
    kind = getattr(count, "dtype", type(count))
    if np.ndim(count) or not (kind is int or jnp.issubdtype(kind, jnp.integer)):
        raise TypeError(f"apply_updates: count must be an integer, got {count!r}")
    number = jnp.asarray(count)

    def leaf(path: Any, p: Any, u: Any) -> Any:
        if u is None:
            return p
        if np.shape(p) != np.shape(u):
            raise ValueError(
                f"apply_updates: the update at {jax.tree_util.keystr(path) or 'the root'} has "
                f"shape {np.shape(u)}, its parameter {np.shape(p)}"
            )
        if getattr(p, "dtype", None) != jnp.bfloat16 or not is_gradient(u):
            return optax.apply_updates(p, u)
        where = jax.tree_util.keystr(path)
        p, u = jnp.asarray(p), jnp.asarray(u)
        return added(p, u, *(words(p.shape, where, number, stream) for stream in (_COARSE, _FINE)))

    paths, structure = cast(Any, jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_none))
    try:
        columns = structure.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"apply_updates: the updates have another tree structure than the parameters: {error}"
        ) from error
    rows = zip(paths, columns, strict=True)
    return structure.unflatten([leaf(path, p, u) for (path, p), u in rows])


def _is_none(x: Any) -> bool:
    return x is None


@functools.partial(jax.jit, static_argnums=0)
def _encoded(codec: Codec, v: jax.Array) -> Stored:
    # XLA would encode a constant while it compiles, element by element.
    return codec.encode(jax.lax.optimization_barrier(v), None)


_decoded = jax.jit(read)  # in one program, within which XLA shards


def _start(inner: optax.GradientTransformation, choice: Choice, params: Any) -> Any:
    """A new state whose second moments are held in the format that `choice` finds for a leaf."""
    structure = cast(Any, jax.tree.structure(params))
    found = list[str]()

    def is_part(x: Any) -> bool:
        if type(x) is type(params) and jax.tree.structure(x) == structure:
            return True  # a tree like the parameters, whatever they are
        if isinstance(x, (Stored, StoredAsState)):
            raise TypeError(f"stored_as: inner is stored already: {shown(inner)}")
        found.extend([type(x).__name__] if hasattr(x, "_fields") else [])
        return bool(_second_moments_of(x))

    def leaf(path: str, v: Any) -> Stored:
        codec: Any = choice(path, v) if v.dtype == jnp.float32 and v.size else None
        if codec is not None and not isinstance(codec, (UInt16, UInt8)):
            raise TypeError(
                f"stored_as: codec must return uint16(), uint8() or None, at {path or 'the root'} "
                f"it returned {codec!r}"
            )
        return plain(v) if codec is None else cast(Any, _encoded)(codec, v)

    def part(x: Any) -> Any:
        fields = () if jax.tree.structure(x) == structure else _second_moments_of(x)
        return x._replace(**{field: stored(getattr(x, field)) for field in fields}) if fields else x

    def stored(tree: Any) -> Stored:
        leaves, structure = cast(Any, jax.tree_util.tree_flatten_with_path(tree))
        return _stored([leaf(jax.tree_util.keystr(path), v) for path, v in leaves], structure)

    state = inner.init(params)
    new = jax.tree.map(part, state, is_leaf=is_part)
    if not second_moments(new):
        raise TypeError(
            f"stored_as: inner, {shown(inner)}, has no second moment that is known here, its state "
            f"consists of {', '.join(found) or 'nothing'}"
        )
    return new


def shown(inner: Any) -> str:
    """A transformation in an error: the call that made it, or the function that did."""
    if isinstance(inner, Link):
        return repr(inner)
    init = getattr(inner, "init", inner)
    return f"{init.__module__}.{init.__qualname__}" if hasattr(init, "__qualname__") else repr(init)


def decoded(state: State) -> State:
    """The state with every second moment as float32, to look at or to carry elsewhere.

    Where it stands in a `StoredAsState`, its `inner_state` continues without `stored_as`.
    """

    def leaf(*fields: Any) -> Any:
        cell = Stored(*fields)
        return cast(Any, _decoded)(cell) if format_of(cell) else cell.wide

    def part(x: Any) -> Any:
        if not isinstance(x, Stored):
            return x
        arrays_of(x)  # refuses what was restored from another format
        return jax.tree.map(leaf, *x, is_leaf=is_masked)

    return cast(State, jax.tree.map(part, state, is_leaf=_is_stored))


def encoded_like(state: State, like: Any, count: jax.Array | None = None) -> State:
    """The state with its second moments in the formats of those of `like`.

    They are rounded to nearest, or stochastically as at the step of a count.
    """
    streams = itertools.count()

    def part(found: Any, tree: Any) -> Any:
        return like_stored(found, tree, next(streams)) if isinstance(found, Stored) else tree

    def like_stored(found: Stored, tree: Any, stream: int) -> Stored:
        leaves, structure = cast(
            Any, jax.tree_util.tree_flatten_with_path(found.wide, is_leaf=is_masked)
        )
        columns = [structure.flatten_up_to(x) for x in (tree, *found)]
        cells = list[Stored]()
        for (path, _), (v, *cell) in zip(leaves, zip(*columns, strict=True), strict=True):
            codec = format_of(Stored(*cell))
            where = jax.tree_util.keystr(path)
            word = None if count is None or codec is None else words(v.shape, where, count, stream)
            cells.append(plain(v) if codec is None else codec.encode(v, word))
        return _stored(cells, structure)

    return cast(State, jax.tree.map(part, like, state, is_leaf=_is_stored))


def _stored(cells: list[Stored], structure: Any) -> Stored:
    fields = range(len(Stored._fields))
    return Stored(*(structure.unflatten([cell[i] for cell in cells]) for i in fields))


def second_moments(state: Any) -> list[Any]:
    """Every tree of second moments in a state, `Stored` where it is."""

    def is_part(x: Any) -> bool:
        return isinstance(x, Stored) or bool(_second_moments_of(x))

    parts = jax.tree.leaves(state, is_leaf=is_part)
    return [getattr(x, field) for x in parts for field in _second_moments_of(x)]


def _second_moments_of(x: object) -> list[str]:
    """The fields of a state that are averages of squares."""
    kind = type(x)
    package = kind.__module__.partition(".")[0]
    return _SECOND_MOMENTS.get(f"{package}.{kind.__name__}", [])


def _is_stored(x: Any) -> bool:
    return isinstance(x, Stored)
