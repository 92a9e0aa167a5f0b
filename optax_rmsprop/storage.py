"""Moments in two bytes a parameter, or in one.

    tx = stored_as(rmsprop(1e-3), uint16())
    tx = stored_as(rmsprop(1e-3, momentum=0.9), uint8(), int8())

A second moment is stored as an unsigned floating-point number of 16 or 8 bits, and a first moment,
which is a momentum buffer or a mean of gradients, as a signed one. Arithmetic is in float32.
Rounding is stochastic and unbiased, so that a decay of 0.999 is tracked, which moves a value by
less than the spacing of the numbers; rounded to nearest, it would never come down. The random bits
are a hash of the element's index, the leaf's path and the step: the state has no key, and the bits
are the same on any mesh.

The step of this package's links is taken from the moments as they are stored. Their rounding is
one more of those that the averages carry already, and no float32 copy is ever in memory. The
moments of a transformation of Optax are float32 during a step, which is taken before they are
rounded.
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
from ._formats import (
    Int8,
    Int16,
    Signed,
    UInt8,
    UInt16,
    Unsigned,
    added,
    arrays_of,
    format_of,
    is_masked,
    plain,
    read,
    words,
)
from ._formats import Stored as Stored
from ._link import Link, Step, Treewise, check_state, link, parts_of, run_foreign, whole_of
from ._run import Part
from ._tree import increment, is_gradient, zero

Choice: TypeAlias = Callable[[str, Any], Codec | None]  # from a leaf's path, and the leaf
State = TypeVar("State")

# The averages of squares in the states of this package and of Optax, some of which have no public
# name. In no other state does an unsigned format fit, whatever a field is called.
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
# The momentum buffers and the averages of gradients, likewise. Not the mean of Optax's centred
# states: its square is subtracted from their second moment, which a rounded one may exceed.
_FIRST_MOMENTS = {
    "optax_rmsprop.ScaleByStddevState": ["mu"],
    "optax_rmsprop.TraceState": ["trace"],
    "optax_rmsprop.EmaState": ["ema"],
    "optax.TraceState": ["trace"],
    "optax.EmaState": ["ema"],
    "optax.ScaleByAdamState": ["mu"],
    "optax.ScaleByAmsgradState": ["mu"],
    "optax.ScaleByBeliefState": ["mu"],
    "optax.ScaleByNovogradState": ["mu"],
    "optax.ScaleByLionState": ["mu"],
    "optax.ScaleByAdanState": ["m", "v"],
    "optax.ScaleByAdemamixState": ["m1", "m2"],
    "optax.MuonState": ["mu"],
}
# Which random bits round a parameter: others than any that round a moment.
_COARSE, _FINE = 1 << 20, 1 << 21


class StoredAsState(NamedTuple):
    """The state of `stored_as`."""

    rounding_count: jax.Array  # int32 []: updates made so far
    inner_state: Any  # the wrapped state, with a `Stored` in the place of every moment to encode


def uint16() -> Unsigned:
    """Store in two bytes an element: the unsigned float E8M8, 8 bits of exponent and 8 of fraction.

    It has all of float32's range. The relative error is below 2⁻⁸ and unbiased. Elements do not
    influence each other, so the leaf may be sharded in any way.
    """
    return UInt16()


def uint8(block: int = 128) -> Unsigned:
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
    return UInt8(_power_of_two("uint8", block))


def int16() -> Signed:
    """Store in two bytes an element: the signed float SE8M7, which is bfloat16.

    It has all of float32's range. The relative error is below 2⁻⁷ and unbiased, 0.23 % in the root
    mean square. Elements do not influence each other, so the leaf may be sharded in any way.
    """
    return Int16()


def int8(block: int = 128) -> Signed:
    """Store in a byte an element: signed block floating point SE4M3, shared exponents.

    An element has a sign, 4 bits of exponent and 3 of fraction; each `block` of the last axis
    shares one byte that is added to the exponents. The relative error is below 1/8 and unbiased,
    3.8 % in the root mean square, for elements down to 2⁻¹⁵ times the block's largest. Smaller ones
    are rounded, unbiased too, to multiples of 2⁻¹⁸ to 2⁻¹⁷ times the largest, of which 0 is one. An
    infinity becomes NaN, and changes no neighbour.

    Args:
        block: How many elements share an exponent, a power of two, as in `uint8`.

    Raises:
        ValueError: if `block` is no power of two.
    """
    return Int8(_power_of_two("int8", block))


def _power_of_two(name: str, block: Any) -> int:
    if type(block) is not int or block < 1 or block & (block - 1):
        raise ValueError(f"{name}: block must be a power of two, got {block!r}")
    return block


@link(StoredAsState, "storage")
def stored_as(
    inner: optax.GradientTransformation,
    codec: Unsigned | Choice | None,
    first_moments: Signed | Choice | None = None,
) -> Treewise:
    """Store the moments of a transformation, or of a whole chain, in 16 or 8 bits.

        code ← encode(β·decode(code) + (1−β)·g²),    u = g / √(decode(code)+ε)
        code ← encode(μ·decode(code) + u),           u = decode(code)

    Moments are known by the class of their state, so this works on `optax.adam` and its relatives
    too. First moments stay in float32 unless `first_moments` says otherwise. Leaves that are not
    float32 stay as they are. So do, if one codec is given for all, leaves of fewer than 4,096
    elements and embeddings (with "embed" in their path); a leaf whose last axis is shorter than 32
    gets `uint16` for `uint8`, and `int16` for `int8`. Nothing but path and shape decides, so that
    the format is the same on any mesh.

    The bound on a step grows by the rounding: by 2⁻⁹ of it for `uint16`, and by 7 % for `uint8`. A
    gradient 2¹⁵ times its neighbours' in a block of `uint8` shortens their steps while it is
    remembered; clip before. No derivative passes through the codes of a second moment, and where
    one would have to pass through those of a first moment, it is refused. A negative second moment
    becomes NaN. Moments of one leaf have random bits of their own; two `stored_as` in one
    `optax.chain` do not know of each other, and have the same: store both in one.

    Each rounding of a momentum buffer stays in it, and moves the parameter 1/(1−μ) times, as a
    gradient does. Where the updates that come in have the mean m and the deviation σ, the variance
    of the distance gone grows by the share s²·(1/(1−μ²) + (m/σ)²/(1−μ)²), with s² = 0.0014 for
    `int8` and 5.5·10⁻⁶ for `int16`. Without a mean this is 0.7 % and 0.003 % at μ = 0.9, 7 % and
    0.03 % at μ = 0.99; with m = σ it is 15 % and 0.06 %, and 14 and 5.5 %. The distance is right in
    the mean. The variance of centred links is taken from the mean as it is stored, and so is at
    least s²·mean²; so is AdaBelief's.

    The moments of this package's links stay codes during a step, also where `optax_rmsprop.chain`
    has a transformation of Optax beside them. The moments of that one are float32 during a step.
    `optax.chain` counts as one transformation of Optax: put `stored_as` inside it, as in
    `optax.chain(optax.clip_by_global_norm(1.0), stored_as(...))`.

    Inside `jax.shard_map` a shard is an array of its own: the shape that decides is its shape, and
    all shards use the same random bits. Where `block` does not divide its last axis, decode it
    there too.

    Args:
        inner: Any Optax transformation.
        codec: The format of second moments: `uint16()`, `uint8()`, None for float32, or a function
            from a leaf's path, such as "['layer']['w']", and the leaf to one of these. It is called
            for every leaf of float32, at `init`.
        first_moments: The format of momentum buffers and means: `int16()`, `int8()`, None for
            float32, or such a function.

    Returns:
        A transformation with the state `StoredAsState(rounding_count, inner_state)`, in which a
        `Stored(wide, e8m8, e5m3, se8m7, se4m3, exponents)` stands for every tree of moments with a
        format. Each leaf is in the field of its format, with `optax.MaskedNode()` in the others. A
        state goes on in the formats that it has.

    Raises:
        TypeError: if `codec` or `first_moments` is or returns something else, if both are None, if
            `inner` is stored already, at `init` if its state has no moment that is known of a kind
            that has a format, and as `inner`.
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
    optimizer states. The formats are this package's, but for bfloat16.
    """
    choices = [
        (kind, _choice(kind, given))
        for kind, given in ((SECOND, codec), (FIRST, first_moments))
        if given is not None
    ]
    if not choices:
        raise TypeError("stored_as: codec and first_moments are both None")
    if shown(inner).startswith("storage."):
        raise TypeError(f"stored_as: inner is stored already: {shown(inner)}")

    def init(params: optax.Params) -> StoredAsState:
        return StoredAsState(zero(), _start(inner, choices, params))

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        check_state("stored_as", state, StoredAsState)
        moments = [x for kind, _ in choices for x in moments_of(kind, state.inner_state)]
        if not any(map(_is_stored, moments)):
            check_state("stored_as", moments[0] if moments else state.inner_state, Stored)
        found = parts_of(inner.update, updates, state.inner_state, count)
        return found and [part._replace(rounding=state.rounding_count) for part in found]

    def whole(state: StoredAsState, states: Iterator[Any]) -> StoredAsState:
        inner_state = whole_of(inner.update, state.inner_state, states)
        return StoredAsState(increment(state.rounding_count), inner_state)

    def lead(step: Step, updates: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
        step = dataclasses.replace(step, rounding=state.rounding_count, foreign=_decoding)
        updates, inner_state = step.take(inner, updates, state.inner_state)
        return updates, StoredAsState(increment(state.rounding_count), inner_state)

    return Treewise(init, lead=lead, parts=parts, whole=whole)


def _decoding(step: Step, tx: Any, updates: Any, state: Any) -> tuple[Any, Any]:
    """Run what knows no codes, with its moments in float32."""
    updates, new = run_foreign(step, tx, updates, decoded(state))
    return updates, encoded_like(new, state, step.rounding, step.streams)


class _Kind(NamedTuple):
    """Second or first moments: the fields of states that are, and what they are stored in."""

    argument: str
    words: str
    fields: dict[str, list[str]]
    formats: tuple[type, ...]
    functions: tuple[Any, ...]  # of which the formats are calls
    unblocked: Codec


SECOND = _Kind(
    "codec", "second moment", _SECOND_MOMENTS, (UInt16, UInt8), (uint16, uint8), UInt16()
)
FIRST = _Kind(
    "first_moments", "first moment", _FIRST_MOMENTS, (Int16, Int8), (int16, int8), Int16()
)


def _choice(kind: _Kind, given: Any) -> Choice:
    """The function that finds the format of a leaf."""
    names = [f"{function.__name__}()" for function in kind.functions]
    for function, name in zip(kind.functions, names, strict=True):
        if given is function:
            raise TypeError(f"stored_as: {kind.argument} must be a call: storage.{name}")
    if isinstance(given, kind.formats):
        return _Default(given, kind.unblocked)
    if not callable(given):
        raise TypeError(
            f"stored_as: {kind.argument} must be {', '.join(names)} or a function, got {given}"
        )

    def chosen(path: str, leaf: Any) -> Codec | None:
        codec: Any = given(path, leaf)
        if codec is not None and not isinstance(codec, kind.formats):
            raise TypeError(
                f"stored_as: {kind.argument} must return {', '.join(names)} or None, at "
                f"{path or 'the root'} it returned {codec!r}"
            )
        return codec

    return chosen


@dataclasses.dataclass(frozen=True)
class _Default:
    """Small leaves and embeddings stay wide, and short rows have no blocks."""

    codec: Codec
    unblocked: Codec

    def __call__(self, path: str, leaf: Any) -> Codec | None:
        if math.prod(leaf.shape) < 4096 or "embed" in path.lower():
            return None
        return self.unblocked if leaf.shape[-1] < 32 else self.codec


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


def _start(
    inner: optax.GradientTransformation, choices: list[tuple[_Kind, Choice]], params: Any
) -> Any:
    """A new state whose moments are held in the format that a choice finds for a leaf."""
    structure = cast(Any, jax.tree.structure(params))
    found = list[str]()

    def is_part(x: Any) -> bool:
        if type(x) is type(params) and jax.tree.structure(x) == structure:
            return True  # a tree like the parameters, whatever they are
        if isinstance(x, (Stored, StoredAsState)):
            raise TypeError(f"stored_as: inner is stored already: {shown(inner)}")
        found.extend([type(x).__name__] if hasattr(x, "_fields") else [])
        return any(fields_of(kind, x) for kind, _ in choices)

    def stored(tree: Any, choice: Choice) -> Stored:
        def leaf(path: Any, v: Any) -> Stored:
            known = v.dtype == jnp.float32 and v.size
            codec = choice(jax.tree_util.keystr(path), v) if known else None
            return plain(v) if codec is None else cast(Any, _encoded)(codec, v)

        leaves, structure = cast(Any, jax.tree_util.tree_flatten_with_path(tree))
        return _stored([leaf(path, v) for path, v in leaves], structure)

    def part(x: Any) -> Any:
        if jax.tree.structure(x) == structure:
            return x
        new = {
            field: stored(getattr(x, field), choice)
            for kind, choice in choices
            for field in fields_of(kind, x)
        }
        return x._replace(**new) if new else x

    state = inner.init(params)
    new = jax.tree.map(part, state, is_leaf=is_part)
    for kind, _ in choices:
        if not moments_of(kind, new):
            raise TypeError(
                f"stored_as: inner, {shown(inner)}, has no {kind.words} that is known here, its "
                f"state consists of {', '.join(found) or 'nothing'}"
            )
    return new


def shown(inner: Any) -> str:
    """A transformation in an error: the call that made it, or the function that did."""
    if isinstance(inner, Link):
        return repr(inner)
    init = getattr(inner, "init", inner)
    return f"{init.__module__}.{init.__qualname__}" if hasattr(init, "__qualname__") else repr(init)


def decoded(state: State) -> State:
    """The state with every moment as float32, to look at or to carry elsewhere.

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


def encoded_like(
    state: State, like: Any, count: jax.Array | None = None, streams: Iterator[int] | None = None
) -> State:
    """The state with its moments in the formats of those of `like`.

    They are rounded to nearest, or stochastically as at the step of a count. `streams` numbers the
    trees of codes, which have random bits of their own.
    """
    streams = itertools.count() if streams is None else streams

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
    return moments_of(SECOND, state)


def moments_of(kind: _Kind, state: Any) -> list[Any]:
    """Every tree of moments of a kind in a state, `Stored` where it is."""

    def is_part(x: Any) -> bool:
        return isinstance(x, Stored) or bool(fields_of(kind, x))

    parts = jax.tree.leaves(state, is_leaf=is_part)
    return [getattr(x, field) for x in parts for field in fields_of(kind, x)]


def fields_of(kind: _Kind, x: object) -> list[str]:
    """The fields of a state that are moments of a kind."""
    package = type(x).__module__.partition(".")[0]
    return kind.fields.get(f"{package}.{type(x).__name__}", [])


def _is_stored(x: Any) -> bool:
    return isinstance(x, Stored)
