"""What a link is: a transformation known by the call that made it.

A factory is written as in Optax: a docstring, an `init`, an `update`. `@link` checks the arguments
and makes a value of the result: equal calls give equal, hashable, picklable objects, which are
shown as the call.

The `update` of a link is called once a step, with its numbers at that step. It returns a `Rule`:
how each accumulator of a leaf moves, and the step that is taken from the accumulators *as they are
stored*. `_run` applies the rules of links in a row to each leaf. A transformation that has others
within, such as a chain, has a `lead` in place of `update`: it hands on the `Step`, by which all of
them share the count, the parameters, and how moments are stored.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._formats import Stored
from ._jax import is_traced
from ._rule import DENOMINATORS, Denominator
from ._run import Leafwise, Part, run
from ._settable import Settable

Hyperparameter: TypeAlias = ArrayLike | optax.Schedule
Static: TypeAlias = float | optax.Schedule
Arguments = ParamSpec("Arguments")
Factory = TypeVar("Factory", bound=Callable[..., optax.GradientTransformationExtraArgs])


class Treewise(NamedTuple):
    """What the factory of a transformation of whole trees returns."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[optax.Updates, Any]] | None = None
    # In place of `update`, where there are others within.
    lead: "Callable[[Step, Any, Any], tuple[Any, Any]] | None" = None
    # The links that it consists of, if it is nothing else for these updates and this state, and the
    # new state made of theirs.
    parts: "Callable[[Any, Any, Any], list[Part] | None] | None" = None
    whole: Callable[[Any, Iterator[Any]], Any] | None = None


def run_foreign(step: "Step", tx: Any, updates: Any, state: Any) -> tuple[Any, Any]:
    """Run a transformation of another library, or one that has no links."""
    adapted = optax.with_extra_args_support(tx)
    return adapted.update(updates, state, step.params, **step.extra_args)


@dataclasses.dataclass(frozen=True)
class Step:
    """What the transformations of one update share, and how they are led through."""

    params: Any
    extra_args: dict[str, Any]
    # Numbers the trees of codes, each of which has random bits of its own.
    streams: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    count: Any = None  # which all links go by, if there is one
    rounding: Any = None  # the count of the state that stores them all in codes
    foreign: Callable[..., tuple[Any, Any]] = run_foreign  # runs what has no links

    def take(self, tx: Any, updates: Any, state: Any) -> tuple[Any, Any]:
        """Lead updates through a transformation; return them, and its new state."""
        led = self.led(tx.update, updates, state)
        return self.foreign(self, tx, updates, state) if led is None else led

    def led(self, update: Any, updates: Any, state: Any) -> tuple[Any, Any] | None:
        """Lead them through the links that a transformation has, None if it has none."""
        parts = parts_of(update, updates, state, self.count)
        if parts is not None:
            updates, states = self.run(parts, updates)
            return updates, whole_of(update, state, states)
        lead = getattr(update.call.definition, "lead", None) if isinstance(update, Update) else None
        return lead(self, updates, state) if lead else None

    def run(self, parts: list[Part], updates: Any) -> tuple[Any, Iterator[Any]]:
        """Lead them through links in a row."""
        streams = [next(self.streams) for p in parts for x in p.state if isinstance(x, Stored)]
        parts = [p._replace(stream=streams[0] if streams else 0) for p in parts]
        if self.rounding is not None:
            parts = [p._replace(rounding=self.rounding) for p in parts]
        return run(parts, updates, self.params)


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
        return self is other or (self.factory is other.factory and self._key == other._key)

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        # A mask may be a tree that has no hash of its own; its leaves and its structure have.
        leaves, tree = cast(Any, jax.tree.flatten(self.arguments))
        return (tree, *map(_Compared, leaves))

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.name, self._key))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        return Call, (self.factory, self.name, self.state, self.arguments)

    def part(self, state: Any, count: Any = None) -> Part:
        """The link at the step of its state, or of the chain's count."""
        name = self.factory.__name__
        check_state(name, state, self.state)
        count = state[0] if count is None and len(state) else count
        numbers, options = dict[str, Any](), list[Any]()
        for parameter in self._bound.signature.parameters.values():
            value = self.arguments[parameter.name]
            if value is not None and _is_hyperparameter(parameter):
                numbers[parameter.name] = number(name, parameter.name, value, count)
            elif parameter.name not in ("mask", "initial_scale"):  # which no update knows
                options.append(value)
        return Part(name, cast(Leafwise, self.definition), tuple(options), state, numbers, count)

    def __repr__(self) -> str:
        parts = list[str]()
        for parameter in self._bound.signature.parameters.values():
            value = self.arguments[parameter.name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                parts += map(shown, value)
            else:
                parts.append(f"{parameter.name}={shown(value)}")
        return f"{self.name}({', '.join(parts)})"


class _Compared:
    """A part of an argument: compared by value if it has one that is known, else by identity.

    JAX's caches compare transformations. There a number that is being differentiated would equal
    the constant, and any other traced one would have no hash.
    """

    def __init__(self, value: Any):
        self.value = value
        try:
            self.hash = None if isinstance(value, (jax.Array, np.ndarray)) else hash(value)
        except TypeError:
            self.hash = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Compared):
            return NotImplemented
        if self.value is other.value:
            return True
        if self.hash is None or self.hash != other.hash:
            return False
        same = self.value == other.value
        return isinstance(same, (bool, np.bool_)) and bool(cast(Any, same))

    def __hash__(self) -> int:
        return id(self.value) if self.hash is None else self.hash


def shown(value: Any) -> str:
    """An argument in a call that is shown: a function by its name."""
    if isinstance(value, np.float64):
        return repr(float(value))
    if not isinstance(value, FunctionType):
        return repr(value)
    return f"denominators.{value.__name__}" if value in DENOMINATORS else value.__name__


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
        if cast(Any, updates) is None:
            raise TypeError(f"{self.call.name}: update got None in the place of the gradients")
        led = Step(params, extra_args).led(self, updates, state)
        if led is not None:
            return led
        return cast(Any, self.call.definition).update(updates, state, params, **extra_args)


class Link(optax.GradientTransformationExtraArgs):
    """A transformation that is known by the call that made it, and shown as it."""

    __slots__ = ()

    def __repr__(self) -> str:
        init, update = cast(Any, tuple(self))
        of_one_call = isinstance(init, Init) and update == Update(init.call)
        return repr(init.call) if of_one_call else super().__repr__()


def link(
    state: type, where: str = ""
) -> Callable[
    [Callable[Arguments, Leafwise | Treewise]],
    Callable[Arguments, optax.GradientTransformationExtraArgs],
]:
    """Make of a factory one of values, whose arguments are checked.

    An update wants a state of the type `state`. `where` is the public module that users find the
    factory in.
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
            bound = _checked_arguments(name, signature, args, kwargs)
            bound.apply_defaults()
            call = Call(make, f"{where}.{name}" if where else name, state, dict(bound.arguments))
            assert call.definition, "made now, so that its errors come from the call"
            return Link(Init(call), Update(call))

        annotation = optax.GradientTransformationExtraArgs
        cast(Any, make).__signature__ = signature.replace(return_annotation=annotation)
        return make

    return decorate


def checked(*, zero_is_none: bool = False) -> Callable[[Factory], Factory]:
    """Check the arguments of a factory that calls others, by the names that its user gave them.

    With `zero_is_none` a number 0 is None where None may stand for a hyperparameter.
    """

    def decorate(factory: Factory) -> Factory:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def checked_first(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
            bound = _checked_arguments(factory.__name__, signature, args, kwargs, zero_is_none)
            return factory(*bound.args, **bound.kwargs)

        return cast(Factory, checked_first)

    return decorate


def _checked_arguments(
    function: str, signature: inspect.Signature, args: Any, kwargs: Any, zero_is_none: bool = False
) -> inspect.BoundArguments:
    """The arguments of a call, each of the kind that its annotation says.

        Hyperparameter    a number >= 0 or a schedule; below 1 if its name is in `_BELOW_ONE`
        Static            the same, but no array: the rule depends on whether it is 0
        ArrayLike         a number >= 0
        float             a number > 0; of any sign if its name is in `_ANY_SIGN`
        bool              True or False

    None stands for itself where the annotation has it. Transformations and pairs are known too;
    other annotations are the factory's own to check.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{function}: {error}") from None
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        kind, optional = parameter.annotation, _is_optional(parameter.annotation)
        if optional and zero_is_none and _is_hyperparameter(parameter) and is_number(value, 0):
            value = None
        if optional and value is None:
            pass
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            each = enumerate(cast(tuple[Any, ...], value))
            value = tuple(_argument(function, f"{name}[{i}]", kind, x) for i, x in each)
        else:
            value = _argument(function, name, kind, value)
        bound.arguments[name] = value
    return bound


def _argument(function: str, name: str, kind: Any, value: Any) -> Any:
    """An argument of a kind, if it is of that kind."""
    if kind in (Static, Static | None) and isinstance(value, (np.generic, np.ndarray, jax.Array)):
        raise TypeError(
            f"{function}: {name} must be a Python number or a schedule, got {value!r}: the rule "
            f"depends on whether it is 0; optax.inject_hyperparams takes {name!r} in static_args"
        )
    if kind in (*_HYPERPARAMETERS, Static, Static | None):
        return scalar(function, name, value, below=1.0 if name in _BELOW_ONE else math.inf)
    if kind == tuple[Hyperparameter, Hyperparameter]:
        if not (isinstance(value, (tuple, list)) and len(cast(Any, value)) == 2):
            raise TypeError(f"{function}: {name} must be a pair of hyperparameters, got {value!r}")
        pair = enumerate(cast(Any, value))
        return tuple(scalar(function, f"{name}[{i}]", x, below=1.0) for i, x in pair)
    if kind == ArrayLike:
        return scalar(function, name, value, schedule=False)
    if kind in (float, float | None):
        above = -math.inf if name in _ANY_SIGN else 0.0
        return scalar(function, name, value, above=above, schedule=False)
    if kind in (bool, bool | Denominator):
        return _switch(function, name, value, function_too=kind is not bool)
    if kind in (optax.GradientTransformation, optax.GradientTransformation | None):
        if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
            raise TypeError(f"{function}: {name} must be an Optax transformation, got {value!r}")
    return value


_BELOW_ONE = {"alpha", "rho", "decay", "gamma1", "gamma2", "momentum"}
_ANY_SIGN = {"factor"}
_HYPERPARAMETERS = (Hyperparameter, Hyperparameter | None)


def _is_hyperparameter(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (*_HYPERPARAMETERS, Static | None)


def _is_optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


def _switch(function: str, name: str, value: Any, *, function_too: bool = False) -> Any:
    """Refuse what is neither True nor False, nor a function where there may be one."""
    if isinstance(value, (bool, np.bool_)):
        return bool(cast(Any, value))
    if not (function_too and callable(value)):
        kinds = "True, False or a function" if function_too else "True or False"
        raise TypeError(f"{function}: {name} must be {kinds}, got {value!r}")
    return value


def is_number(value: Any, number: int) -> bool:
    """Whether a value is this Python number. No array is: its value may not be known."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def scalar(
    function: str,
    name: str,
    value: Any,
    *,
    above: float | None = None,
    below: float = math.inf,
    schedule: bool = True,
) -> Any:
    """Refuse what is known to be wrong before tracing: no scalar, or outside [0, below).

    With `above` the range is (above, below). An array whose value is known becomes a number, which
    can be compared and hashed.
    """
    if callable(value):
        if not schedule:
            raise TypeError(f"{function}: {name} must be a number, not a schedule; got {value!r}")
        return value
    if not _is_real_scalar(value):
        kinds = "a number, a scalar array or a schedule" if schedule else "a number or scalar array"
        raise TypeError(
            f"{function}: {name} must be {kinds}, got {value!r}; optax.partition gives groups of "
            "leaves values of their own"
        )
    if is_traced(value):
        return value
    # NumPy's float is one of Python's too, and tells that the number was an array.
    number = value if isinstance(value, (int, float)) else np.float64(value)
    inside = 0 <= number < below if above is None else above < number < below
    if not (inside and number <= sys.float_info.max):
        ends = f"[0, {below})" if above is None else f"({above:g}, {below})"
        raise ValueError(f"{function}: {name} must be in {ends}, got {value}")
    return number if schedule or not isinstance(number, np.float64) else float(number)


def number(link: str, name: str, value: Any, count: Any) -> Any:
    """The value at this step: a Python float if it is known now, else an array as wide as one.

    A Python float keeps double precision until it meets an array, so that `1 - decay` is formed in
    double and rounded once, the same for a constant and for a schedule that returns it.
    """
    if callable(value):
        value = cast(Any, value(count))
        if isinstance(value, Settable):
            return value
        if not _is_real_scalar(value):
            got = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
            raise TypeError(f"{link}: {name} must be a real scalar, its schedule returned {got}")
    return value.astype(jnp.result_type(float)) if isinstance(value, jax.Array) else float(value)


def _is_real_scalar(value: Any) -> bool:
    if not isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    dtype = cast(Any, value).dtype
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    return real and np.ndim(cast(Any, value)) == 0


def check_state(link: str, state: Any, expected: type) -> None:
    """Refuse the state of another transformation, or one that lost its type in a checkpoint."""
    if not isinstance(state, expected):
        fields = ", ".join(getattr(expected, "_fields", ()))
        found = cast(Any, type(state))
        raise TypeError(
            f"{link}: expected {expected.__name__}({fields}), got {found.__module__}."
            f"{found.__name__}; was the state made by this transformation's init, and restored "
            "from a checkpoint with that state as its target? interop.transfer carries the state "
            "of another transformation"
        )


def parts_of(update: Any, updates: Any, state: Any, count: Any = None) -> list[Part] | None:
    """The links that a transformation consists of, with their states; None if not of links only.

    A chain that it stands in gives its count.
    """
    if not isinstance(update, Update):
        return None
    definition = update.call.definition
    if isinstance(definition, Leafwise):
        return [update.call.part(state, count)]
    return definition.parts(updates, state, count) if definition.parts else None


def whole_of(update: Any, state: Any, states: Iterator[Any]) -> Any:
    """The new state of a transformation from its old one and the new ones of its links."""
    definition = update.call.definition
    return next(states) if isinstance(definition, Leafwise) else definition.whole(state, states)
