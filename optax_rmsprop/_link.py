"""What a link is: a transformation known by the call that made it, which updates leaf by leaf.

A factory is written as in Optax: a docstring, an `init`, an `update`. `@link` checks the arguments
and makes a value of the result: equal calls give equal, hashable, picklable objects, which are
shown as the call.

The `update` of a link is called once a step, with its numbers at that step, and returns a `Rule`:
how each accumulator of a leaf moves, and the step that is taken from the accumulators *as they are
stored*. So links in a row are one function of the arrays of a leaf. Leaves of equal shapes share
it, and XLA writes nothing to memory but the accumulators and the parameter.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple, ParamSpec, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._formats import Stored, format_of, number_of, words
from ._jax import again, is_traced
from ._rule import Denominator, saturate
from ._tree import (
    checked_leaf,
    flatten,
    flatten_up_to,
    increment,
    is_gradient,
    narrow,
    paths,
    place,
    widen,
)

Hyperparameter: TypeAlias = ArrayLike | optax.Schedule
Arguments = ParamSpec("Arguments")


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


class Treewise(NamedTuple):
    """What the factory of a transformation of whole trees returns."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[optax.Updates, Any]]
    # The links that it consists of, if it is nothing else for these updates and this state, and the
    # new state made of theirs.
    parts: "Callable[[Any, Any], list[Part] | None] | None" = None
    whole: Callable[[Any, Iterator[Any]], Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Call:
    """A factory with the arguments of a call, defaults included."""

    factory: Callable[..., Any]
    name: str  # where users find the factory
    state: type
    arguments: dict[str, Any]

    @property
    def _bound(self) -> inspect.BoundArguments:
        return inspect.BoundArguments(inspect.signature(self.factory), cast(Any, self.arguments))

    @functools.cached_property
    def definition(self) -> Leafwise | Treewise:
        """What the undecorated factory returns."""
        return inspect.unwrap(self.factory)(*self._bound.args, **self._bound.kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Call):
            return NotImplemented
        return self.factory is other.factory and self.arguments == other.arguments

    @functools.cached_property
    def _hash(self) -> int:
        # A mask may be a tree that has no hash of its own; its leaves and its structure have.
        leaves, tree = cast(Any, jax.tree.flatten(self.arguments))
        return hash((self.name, tuple(leaves), tree))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        return Call, (self.factory, self.name, self.state, self.arguments)

    def check(self, state: Any) -> None:
        """Refuse a state that `init` did not make."""
        check_state(self.factory.__name__, state, self.state)

    def numbers(self, count: Any) -> dict[str, Any]:
        """The hyperparameters at a step; one that is None is none."""
        parameters = self._bound.signature.parameters.values()
        return {
            p.name: number(self.factory.__name__, p.name, self.arguments[p.name], count)
            for p in parameters
            if _is_hyperparameter(p) and self.arguments[p.name] is not None
        }

    def __repr__(self) -> str:
        shown = list[str]()
        for parameter in self._bound.signature.parameters.values():
            value = self.arguments[parameter.name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                shown += map(_shown, value)
            else:
                shown.append(f"{parameter.name}={_shown(value)}")
        return f"{self.name}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if not isinstance(value, FunctionType):
        return repr(value)
    ours = value.__module__ == saturate.__module__
    return f"denominators.{value.__name__}" if ours else value.__name__


@dataclasses.dataclass(frozen=True)
class Init:
    """The `init` of a call."""

    call: Call

    @property
    def __name__(self) -> str:
        return f"{self.call.name.rpartition('.')[2]}_init"

    def __call__(self, params: optax.Params) -> optax.OptState:
        """Return the state before the first update."""
        return self.call.definition.init(params)


@dataclasses.dataclass(frozen=True)
class Update:
    """The `update` of a call."""

    call: Call

    @property
    def __name__(self) -> str:
        return f"{self.call.name.rpartition('.')[2]}_update"

    def __call__(
        self,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        """Return the updates made from gradients, and the new state."""
        parts = parts_of(self, updates, state)
        if parts is None:
            return cast(Treewise, self.call.definition).update(updates, state, params, **extra_args)
        updates, states = run(parts, updates, params)
        return updates, whole_of(self, state, states)


class Link(optax.GradientTransformationExtraArgs):
    """A transformation that is known by the call that made it, and shown as it."""

    __slots__ = ()
    init: Init
    update: Update

    def __repr__(self) -> str:
        return repr(self.init.call)


def link(
    state: type, where: str = "", *, below_one: Collection[str] = ()
) -> Callable[
    [Callable[Arguments, Leafwise | Treewise]],
    Callable[Arguments, optax.GradientTransformationExtraArgs],
]:
    """Make of a factory one of values.

    Hyperparameters are known by their annotation. They must be at least 0, and below 1 where their
    names are in `below_one`. An update wants a state of the type `state`. `where` is the public
    module that users find the factory in.
    """

    def decorate(
        factory: Callable[Arguments, Leafwise | Treewise],
    ) -> Callable[Arguments, optax.GradientTransformationExtraArgs]:
        signature = inspect.signature(factory)
        name = factory.__name__

        @functools.wraps(factory)
        def make(
            *args: Arguments.args, **kwargs: Arguments.kwargs
        ) -> optax.GradientTransformationExtraArgs:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = {
                key: checked_argument(name, signature.parameters[key], value, below_one)
                for key, value in bound.arguments.items()
            }
            call = Call(make, f"{where}.{name}" if where else name, state, arguments)
            assert call.definition, "made now, so that its errors come from the call"
            return Link(Init(call), Update(call))

        annotation = optax.GradientTransformationExtraArgs
        cast(Any, make).__signature__ = signature.replace(return_annotation=annotation)
        return make

    return decorate


def checked_argument(
    link: str, parameter: inspect.Parameter, value: Any, below_one: Collection[str]
) -> Any:
    """An argument, if its annotation says what it must be: a hyperparameter, a number, a switch."""
    name, kind = parameter.name, parameter.annotation
    if value is None is parameter.default:
        return None
    if _is_hyperparameter(parameter):
        return checked(link, name, value, below=1.0 if name in below_one else math.inf)
    if kind == ArrayLike:
        return checked(link, name, value, schedule=False)
    if kind in (bool, bool | Denominator):
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        if kind is bool or not callable(value):
            kinds = "True or False" if kind is bool else "True, False or a function"
            raise TypeError(f"{link}: {name} must be {kinds}, got {value!r}")
    return value


def _is_hyperparameter(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (Hyperparameter, Hyperparameter | None)


def checked(
    link: str, name: str, value: Any, *, below: float = math.inf, schedule: bool = True
) -> Any:
    """Refuse what is known to be wrong before tracing: no scalar, or outside [0, below).

    An array whose value is known becomes a number, which can be compared and hashed.
    """
    if callable(value):
        if not schedule:
            raise TypeError(f"{link}: {name} must be a number, not a schedule; got {value!r}")
        return value
    if not _is_real_scalar(value):
        kinds = "a number, a scalar array or a schedule" if schedule else "a number or scalar array"
        raise TypeError(
            f"{link}: {name} must be {kinds}, got {value!r}; optax.partition gives groups of "
            "leaves values of their own"
        )
    if is_traced(value):
        return value
    if not 0 <= float(value) < below:
        raise ValueError(f"{link}: {name} must be in [0, {below}), got {value}")
    return value if isinstance(value, (int, float)) else float(cast(Any, value))


def number(link: str, name: str, value: Any, count: Any) -> Any:
    """The value at this step: a Python float if it is known now, else an array as wide as one.

    A Python float keeps double precision until it meets an array, so that `1 - decay` is formed in
    double and rounded once, the same for a constant and for a schedule that returns it.
    """
    if callable(value):
        value = cast(Any, value(count))
        if not _is_real_scalar(value):
            got = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
            raise TypeError(f"{link}: {name} must be a real scalar, its schedule returned {got}")
    return value.astype(jnp.result_type(float)) if isinstance(value, jax.Array) else float(value)


def _is_real_scalar(value: Any) -> bool:
    number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    return number and np.ndim(cast(Any, value)) == 0 and not jnp.iscomplexobj(cast(Any, value))


def check_state(link: str, state: Any, expected: type) -> None:
    """Refuse the state of another transformation, or one that lost its type in a checkpoint."""
    if not isinstance(state, expected):
        fields = ", ".join(getattr(expected, "_fields", ()))
        found = cast(Any, type(state))
        raise TypeError(
            f"{link}: expected {expected.__name__}({fields}), got {found.__module__}."
            f"{found.__name__}; was the state made by this transformation's init, and restored "
            "from a checkpoint with that state as its target?"
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """A link in a chain with its state, and with the count of the state that stores it in codes."""

    call: Call
    state: Any
    dither: jax.Array | None = None
    span: int = 0  # links before this one whose input is one of its inputs too

    @property
    def name(self) -> str:
        """The name that errors begin with."""
        return self.call.factory.__name__

    @functools.cached_property
    def numbers(self) -> dict[str, Any]:
        """The hyperparameters at this step, and the count."""
        count = getattr(self.state, "count", 0)
        counted = {} if isinstance(self.state, optax.EmptyState) else {"count": count}
        dithered = {} if self.dither is None else {"dither": self.dither}
        return self.call.numbers(count) | counted | dithered


def parts_of(update: Any, updates: Any, state: Any) -> list[Part] | None:
    """The links that a transformation consists of with their states; None if not only of links."""
    if not isinstance(update, Update):
        return None
    definition = update.call.definition
    if isinstance(definition, Leafwise):
        update.call.check(state)
        return [Part(update.call, state)]
    return definition.parts(updates, state) if definition.parts else None


def whole_of(update: Any, state: Any, states: Iterator[Any]) -> Any:
    """The new state of a transformation from its old one and the new ones of its links."""
    definition = update.call.definition
    return next(states) if isinstance(definition, Leafwise) else definition.whole(state, states)


class _Step:
    """What is known of a link at a step before the arrays are; equal for equal calls."""

    def __init__(self, part: Part):
        known = {k: v for k, v in part.numbers.items() if isinstance(v, float)}
        options = [v for k, v in part.call.arguments.items() if k not in part.numbers]
        self.definition, self.known = cast(Leafwise, part.call.definition), known
        self.span = part.span
        self.key: Any = (part.call.name, part.span, *options, *known.items())
        try:
            hash(self.key)
        except TypeError:  # of a mask that is a tree, or an initial scale that is traced
            self.key = self.definition

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def rule(self, arrays: dict[str, Any]) -> Rule:
        return self.definition.update(SimpleNamespace(**self.known, **arrays))


def run(
    parts: list[Part], updates: optax.Updates, params: optax.Params | None
) -> tuple[optax.Updates, Iterator[Any]]:
    """Lead each gradient through the links; return the updates and the links' new states."""
    steps = tuple(map(_Step, parts))
    arrays = [{k: v for k, v in part.numbers.items() if not isinstance(v, float)} for part in parts]
    leaves, tree = flatten(updates)
    columns = [
        _Column(part, tuple(step.rule(numbers).accumulators), tree, updates, params)
        for part, step, numbers in zip(parts, steps, arrays, strict=True)
    ]
    dithered = any(part.dither is not None for part in parts)
    leaf_numbers = [number_of(path) for path in paths(updates)] if dithered else [0] * len(leaves)
    results = list[tuple[Any, list[list[Any]]]]()
    for i, g in enumerate(leaves):
        cells = [column.cells[i] for column in columns]
        inputs = [column.inputs[i] for column in columns]
        if not is_gradient(g):
            results.append((g, cells))
            continue
        for column in columns:
            g = column.checked(g, i)
        flags = tuple(tuple(x for x in row if isinstance(x, bool)) for row in inputs)
        inputs = [[jnp.asarray(x) for x in row if not isinstance(x, bool)] for row in inputs]
        # Traced once for all leaves of equal shapes; outside of `jit` nothing is compiled for it.
        traced = any(map(is_traced, jax.tree.leaves((g, cells, inputs, arrays))))
        update = _update_leaf_shared if traced else _update_leaf
        salt = np.uint32(leaf_numbers[i]) if dithered else None
        results.append(update(steps, flags, arrays, g, cells, inputs, salt))
    states = (
        column.state(tree, [new[k] for _, new in results]) for k, column in enumerate(columns)
    )
    return tree.unflatten([u for u, _ in results]), states


class _Column:
    """What a link has for each leaf: its accumulators, and its inputs made from the parameters."""

    def __init__(self, part: Part, fields: tuple[str, ...], tree: Any, updates: Any, params: Any):
        self.part, self.fields, self.updates = part, fields, updates
        name, definition = part.name, cast(Leafwise, part.call.definition)
        inputs = definition.inputs(params) if definition.inputs else ()
        self.inputs = _rows(
            tree.num_leaves, [flatten_up_to(name, tree, updates, x) for x in inputs]
        )
        self.cells = _rows(tree.num_leaves, [self._field(tree, field) for field in fields])
        self.signed = definition.signed

    def _field(self, tree: Any, field: str) -> list[Any]:
        name, value = self.part.name, getattr(self.part.state, field)
        if not isinstance(value, Stored):
            return flatten_up_to(name, tree, self.updates, value)
        pairs = [flatten_up_to(name, tree, self.updates, x) for x in value]
        return [Stored(*pair) for pair in zip(*pairs, strict=True)]

    def checked(self, g: Any, i: int) -> jax.Array:
        """The gradient of a leaf, if it fits what is there."""
        arrays = [x.code_v1 if isinstance(x, Stored) else x for x in self.cells[i]]
        where = functools.partial(place, self.part.name, self.updates, i)
        return checked_leaf(g, [*arrays, *self.inputs[i]], where, self.signed)

    def state(self, tree: Any, cells: list[list[Any]]) -> Any:
        """The new state: the accumulators, the count, and hyperparameters that are kept."""
        state, numbers = self.part.state, self.part.numbers
        fields = {
            field: _tree_of(tree, [row[j] for row in cells]) for j, field in enumerate(self.fields)
        }
        for field in set(getattr(state, "_fields", ())) - set(fields):
            value = numbers[field]
            if field == "count":
                fields[field] = increment(value)
            else:
                fields[field] = jnp.asarray(value, jnp.result_type(float))
        return type(state)(**fields)


def _rows(length: int, columns: list[list[Any]]) -> list[list[Any]]:
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[]] * length


def _tree_of(tree: Any, cells: list[Any]) -> Any:
    if not any(isinstance(cell, Stored) for cell in cells):
        return tree.unflatten(cells)
    return Stored(*(tree.unflatten(part) for part in zip(*cells, strict=True)))


def _update_leaf(
    steps: tuple[_Step, ...],
    flags: tuple[tuple[bool, ...], ...],
    arrays: list[dict[str, Any]],
    g: jax.Array,
    cells: list[list[Any]],
    inputs: list[list[Any]],
    salt: Any,
) -> tuple[jax.Array, list[list[Any]]]:
    """One leaf through the links: its update, and the accumulators as they are stored.

    What comes into a link is made anew for each use of it, from the gradient and from accumulators
    that are stored already. XLA then needs no memory for it.
    """
    rules = [step.rule(numbers) for step, numbers in zip(steps, arrays, strict=True)]
    definitions = [step.definition for step in steps]
    reuses = any(definition.reuses for definition in definitions)
    stored = list[list[Any]]()

    def entering(k: int, u: jax.Array) -> jax.Array:
        u = widen(u, _read(cells[k][0])) if cells[k] else u
        return saturate(u) if definitions[k].saturates else u

    def incoming(k: int, g: jax.Array, inputs: list[list[Any]], stored: list[list[Any]]) -> Any:
        us = [widen(g)]
        for j, rule in enumerate(rules[:k]):
            before = us[j - steps[j].span :][: steps[j].span > 0]
            own = (*map(_read, stored[j]), *inputs[j], *before, *flags[j])
            us.append(rule.step(entering(j, us[j]), *own))
        return us[-1]

    def sources(*more: Any) -> Any:
        have = (g, inputs, [list(row) for row in stored], more)
        # A second use of the same arrays must look like the use of others.
        return (
            (g, *again(have[1:])) if is_traced(g) and (more or (reuses and any(stored))) else have
        )

    for k, rule in enumerate(rules):
        stored.append([])
        for j, advance in enumerate(rule.accumulators.values()):
            old = cells[k][j:]

            def value(*base: Any, k: int = k, old: Any = old, advance: Any = advance) -> jax.Array:
                have = sources(*base, old) if base else (*sources()[:3], (old,))
                u = entering(k, incoming(k, *have[:3]))
                return advance(u, *map(_read, have[2][k]), *map(_read, have[3][-1]))

            stored[k].append(_written(value, cells[k][j], salt, arrays[k].get("dither")))
    g, *have, _ = sources()
    u = incoming(len(rules), g, *have)
    if any(definition.hides for definition in definitions):
        saturates = any(definition.saturates for definition in definitions)
        u = jnp.where(g == g if saturates else jnp.isfinite(g), u, jnp.nan)
    return narrow(u, g.dtype), stored


_update_leaf_shared = jax.jit(_update_leaf, static_argnums=(0, 1))


def _read(cell: Any) -> jax.Array:
    if not isinstance(cell, Stored):
        return cell
    codec = format_of(*cell)
    return codec.decode(*cell) if codec else cell.code_v1


def _written(value: Callable[..., jax.Array], cell: Any, salt: Any, count: Any) -> Any:
    if not isinstance(cell, Stored):
        return value()
    codec = format_of(*cell)
    if codec is None:
        return Stored(value(), cell.base_v1)
    return Stored(*codec.written(value, words(cell.code_v1.shape, salt, count)))
