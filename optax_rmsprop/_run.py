"""How links run: each leaf of the gradients is led through all links in a row, in one function.

What comes into a link is not kept. It is made anew for each use, from the gradient and from
accumulators as they are stored already, so that XLA writes nothing to memory but the accumulators
and the parameter. Leaves of equal shapes share one compiled function.
"""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._formats import Stored, array_of, arrays_of, format_of, number_of, plain, read, words
from ._jax import again, is_traced
from ._rule import DENOMINATORS, saturate
from ._tree import (
    check_width,
    checked_leaf,
    dtype_of,
    flatten,
    flatten_up_to,
    increment,
    is_gradient,
    narrow,
    paths,
    place,
    widen,
)


class Rule:
    """A link at one step, as functions of the arrays of one leaf.

        x ← accumulators["x"](u, *accumulators)     for each, in the order of the state
        u ← step(u, *accumulators, *inputs)

    Each function gets the accumulators that come before it as they are stored.
    """

    def __init__(self, step: Callable[..., Any], **accumulators: Callable[..., Any]):
        self.step, self.accumulators = step, accumulators


class Leafwise(NamedTuple):
    """What the factory of a link returns."""

    init: Callable[[Any], Any]
    update: Callable[[Any], Rule]  # from the numbers at a step, and the count
    inputs: Callable[[Any], tuple[Any, ...]] | None = None  # from the parameters: trees like them
    signed: bool = False  # accumulators or inputs are complex where the gradient is
    saturates: bool = False  # an infinite gradient is a large one
    reuses: bool = False  # the step needs what came in beside the accumulators made from it
    hides: bool = False  # the step does not show what came in and was not kept


class Part(NamedTuple):
    """A link of a chain at one step."""

    name: str  # which errors begin with
    definition: Leafwise
    options: tuple[Any, ...]  # with the name and the numbers they tell which link it is
    state: Any
    numbers: dict[str, Any]  # its hyperparameters: floats, where they are known now
    count: Any = None  # the updates made so far
    rounding: jax.Array | None = None  # the count of the state that stores it in codes
    stream: int = 0  # how many trees of codes stand in that state before these links
    span: int | None = None  # how many links back the input stands that its step needs too


def run(
    parts: list[Part], updates: optax.Updates, params: optax.Params | None
) -> tuple[optax.Updates, Iterator[Any]]:
    """Lead each gradient through the links; return the updates and the links' new states."""
    leaves, tree = flatten(updates)
    columns = [_Column(part, updates, tree, params) for part in parts]
    salts: list[Any] = [None] * len(leaves)
    counts = [part.rounding for part in parts if part.rounding is not None]
    if counts:
        # XLA does not know the numbers, so that the kernels of equal leaves are equal, and it
        # compiles them once; that of JAX 0.10 finds them out, and compiles each.
        salts, _ = again(([np.uint32(number_of(path)) for path in paths(updates)], counts))
    links = tuple(column.link for column in columns)
    update = _leafwise(links, (updates, [column.arrays for column in columns]))
    results = [
        _updated(update, columns, g, i, salts[i])
        if is_gradient(g)
        else (g, [column.cells[i] for column in columns])
        for i, g in enumerate(leaves)
    ]
    states = (
        column.state(tree, [new[k] for _, new in results]) for k, column in enumerate(columns)
    )
    return tree.unflatten([u for u, _ in results]), states


class _Column:
    """What a link has for each leaf: its accumulators, and its inputs made from the parameters."""

    def __init__(self, part: Part, updates: Any, tree: Any, params: Any):
        self.part, self.updates, self.link = part, updates, _Known(part)
        self.kept = getattr(part.state, "_fields", ())
        self.arrays = {k: v for k, v in part.numbers.items() if not isinstance(v, float)}
        if part.rounding is not None:
            self.arrays["rounding"] = part.rounding
        if self.kept:
            self.arrays["count"] = part.count
        self.fields = tuple(self.link.rule(self.arrays).accumulators)
        inputs = part.definition.inputs(params) if part.definition.inputs else ()
        self.inputs = _rows(tree, [flatten_up_to(part.name, tree, updates, x) for x in inputs])
        self.cells = _rows(tree, [self._field(tree, field) for field in self.fields])

    def _field(self, tree: Any, field: str) -> list[Any]:
        name, value = self.part.name, getattr(self.part.state, field)
        if not isinstance(value, Stored):
            return flatten_up_to(name, tree, self.updates, value)
        if self.part.rounding is None:
            raise TypeError(f"{name}: {field} holds codes; is the state that of `stored_as`?")
        flatten_up_to(name, tree, self.updates, arrays_of(value))  # whose error names the leaf
        cells = [flatten_up_to(name, tree, self.updates, x) for x in value]
        return [Stored(*cell) for cell in zip(*cells, strict=True)]

    def checked(self, g: Any, i: int) -> jax.Array:
        """The gradient of a leaf, if it fits what is there."""
        where = functools.partial(place, self.part.name, self.updates, i)
        kept = [x.wide if isinstance(x, Stored) else x for x in self.cells[i]]
        if jnp.issubdtype(dtype_of(g), jnp.inexact):  # or it is what is wrong
            for field, cell in zip(self.fields, kept, strict=True):
                check_width(where, field, getattr(cell, "dtype", None))
        arrays = [array_of(x) if isinstance(x, Stored) else x for x in self.cells[i]]
        return checked_leaf(g, [*arrays, *self.inputs[i]], where, self.part.definition.signed)

    def state(self, tree: Any, cells: list[list[Any]]) -> Any:
        """The new state: the count, which comes first, the accumulators, and the rate just used."""
        fields = {
            field: _tree_of(tree, [row[j] for row in cells], getattr(self.part.state, field))
            for j, field in enumerate(self.fields)
        }
        if self.kept:
            fields[self.kept[0]] = increment(self.part.count)
        if "last_learning_rate" in self.kept:
            rate, last = self.part.numbers["learning_rate"], self.part.state.last_learning_rate
            fields["last_learning_rate"] = jnp.asarray(rate, jnp.result_type(last))
        return type(self.part.state)(**fields)


class _Known:
    """What is known of a link before its arrays are; equal for links that do the same."""

    def __init__(self, part: Part):
        self.update, self.span, self.stream = part.definition.update, part.span, part.stream
        self.saturates, self.hides = part.definition.saturates, part.definition.hides
        self.reuses = part.definition.reuses
        self.numbers = {k: v for k, v in part.numbers.items() if isinstance(v, float)}
        numbers = tuple(self.numbers.items())
        self.key = (part.name, part.span, part.stream, part.options, numbers)
        # Other options may hold what is traced, or change what they do.
        self.is_plain = all(map(_is_plain, part.options))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def rule(self, arrays: dict[str, Any]) -> Rule:
        return self.update(SimpleNamespace(**self.numbers, **arrays))


def _rows(tree: Any, columns: list[list[Any]]) -> list[list[Any]]:
    return [list(row) for row in zip(*columns, strict=True)] or [[] for _ in range(tree.num_leaves)]


def _tree_of(tree: Any, cells: list[Any], like: Any) -> Any:
    if not isinstance(like, Stored):
        return tree.unflatten(cells)
    return Stored(*(tree.unflatten([cell[i] for cell in cells]) for i in range(len(like))))


def _updated(
    update: Any, columns: list[_Column], g: Any, i: int, salt: Any
) -> tuple[jax.Array, list[list[Any]]]:
    for column in columns:
        g = column.checked(g, i)
    rows = [column.inputs[i] for column in columns]
    flags = tuple(tuple(x for x in row if isinstance(x, bool)) for row in rows)
    inputs = [[jnp.asarray(x) for x in row if not isinstance(x, bool)] for row in rows]
    cells = [column.cells[i] for column in columns]
    arrays = [column.arrays for column in columns]
    return update(flags, arrays, g, inputs, cells, salt)


def _is_plain(option: Any) -> bool:
    known = (True, False, None, *DENOMINATORS)
    return isinstance(option, (int, float)) or any(option is each for each in known)


def _leafwise(links: tuple[_Known, ...], arrays: Any) -> Any:
    """The function of a leaf, compiled once for all of equal shapes."""
    if all(link.is_plain for link in links):
        return _compiled(links)
    traced = any(map(is_traced, jax.tree.leaves(arrays)))
    # Neither kept beyond this step nor compiled for it alone.
    return _compiled.__wrapped__(links) if traced else functools.partial(_update_leaf, links)


@functools.lru_cache(maxsize=128)
def _compiled(links: tuple[_Known, ...]) -> Any:
    return jax.jit(functools.partial(_update_leaf, links), static_argnums=0)


def _update_leaf(
    links: tuple[_Known, ...], flags: tuple[tuple[bool, ...], ...], *arrays: Any
) -> tuple[jax.Array, list[list[Any]]]:
    """One leaf through the links: its update, and the accumulators as they are stored."""
    return _Leaf(links, flags, *arrays).updated()


class _Leaf:
    """What a leaf brings to the links, and the accumulators that they have stored so far."""

    def __init__(
        self,
        links: tuple[_Known, ...],
        flags: tuple[tuple[bool, ...], ...],
        arrays: list[dict[str, Any]],
        g: jax.Array,
        inputs: list[list[Any]],
        cells: list[list[Any]],
        salt: Any,
    ):
        self.links, self.flags, self.arrays, self.g = links, flags, arrays, g
        self.inputs, self.cells, self.salt = inputs, cells, salt
        self.rules = [link.rule(numbers) for link, numbers in zip(links, arrays, strict=True)]
        self.reuses = any(link.reuses for link in links)
        self.stored: list[list[Any]] = []

    def updated(self) -> tuple[jax.Array, list[list[Any]]]:
        """The update, and the accumulators."""
        for k, rule in enumerate(self.rules):
            self.stored.append([])
            for j, advance in enumerate(rule.accumulators.values()):
                new = functools.partial(self.moved, k, advance, self.cells[k][j:])
                codes = [x for row in self.stored for x in row if isinstance(x, Stored)]
                count, stream = self.arrays[k].get("rounding"), self.links[k].stream + len(codes)
                cell = _written(new, self.cells[k][j], self.salt, count, stream)
                self.stored[k].append(cell)
        u = self.incoming(len(self.links), *self.sources()[:2])
        first = next((k for k, link in enumerate(self.links) if link.hides), None)
        if first is not None:
            plain = all(link.is_plain for link in self.links)
            saturated = any(link.saturates for link in self.links[:first])
            entered = self.g if plain else self.incoming(first, *self.sources()[:2])
            u = jnp.where(_is_fine(entered, plain and saturated, self.arrays), u, jnp.nan)
        return narrow(u, self.g.dtype), self.stored

    def sources(self, old: Any = (), base: Any = ()) -> Any:
        """What the link's input is made from; what is made from it is made anew for each use."""
        have = (self.inputs, [list(row) for row in self.stored], old, base)
        return again(have) if base or (self.reuses and any(self.stored)) else have

    def entering(self, k: int, u: jax.Array) -> jax.Array:
        """What a link takes of its input: as wide as what it accumulates, and finite."""
        u = widen(u, _dtype(self.cells[k][0])) if self.cells[k] else u
        return saturate(u) if self.links[k].saturates else u

    def incoming(self, k: int, inputs: Any, stored: Any) -> jax.Array:
        """The input of a link, or what the last one returns."""
        us = [widen(self.g)]
        for j, (link, rule) in enumerate(zip(self.links[:k], self.rules, strict=False)):
            back = () if link.span is None else (us[j - link.span],)
            own = (*map(_read, stored[j]), *inputs[j], *back, *self.flags[j])
            us.append(rule.step(self.entering(j, us[j]), *own))
        return us[-1]

    def moved(self, k: int, advance: Callable[..., jax.Array], old: Any, *base: Any) -> jax.Array:
        """An accumulator of a link after this step."""
        inputs, have, old, _ = self.sources(old, base)
        u = self.entering(k, self.incoming(k, inputs, have))
        return advance(u, *map(_read, have[k]), *map(_read, old))


def _is_fine(entered: jax.Array, saturated: bool, arrays: list[dict[str, Any]]) -> jax.Array:
    """Whether a buffer took in what entered; it does not show what it did not take in.

    It refuses a gradient that is not finite, unless that was saturated, and a number of a schedule.
    """
    fine = entered == entered if saturated else jnp.isfinite(entered)
    counts = ("count", "rounding")
    numbers = [jnp.asarray(x) for each in arrays for k, x in each.items() if k not in counts]
    return functools.reduce(jnp.logical_and, map(jnp.isfinite, numbers), fine)


def _dtype(cell: Any) -> Any:
    if not isinstance(cell, Stored):
        return cell.dtype
    return np.float32 if format_of(cell) else cell.wide.dtype


def _read(cell: Any) -> jax.Array:
    return read(cell) if isinstance(cell, Stored) else cell


def _written(value: Callable[..., jax.Array], cell: Any, salt: Any, count: Any, stream: int) -> Any:
    if not isinstance(cell, Stored):
        return value()
    codec = format_of(cell)
    if codec is None:
        return plain(value())
    return codec.written(value, words(array_of(cell).shape, salt, count, stream))
