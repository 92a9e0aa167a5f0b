"""Learning rate, decay, epsilon, momentum and weight decay of a running state, to read and to set.

    tx = retunable(dialects.torch(schedule, momentum=0.9))
    state = retuned(state, learning_rate=1e-4)  # from the next step on
    state = retuned(state, learning_rate=None)  # as the schedule has it

A number that is set holds until it is unset, and a schedule goes on counting below it. Nothing is
compiled again, and a state in which nothing is set is updated as without `retunable`, bit for bit.

The names are the same for every rule, whatever a dialect calls its arguments:

    learning_rate    η >= 0, of the step and of a decoupled weight decay
    decay            in [0, 1), the weight of the past in the averages of g and g²
    eps              ε >= 0
    momentum         μ in [0, 1), the weight of the past in the momentum buffer
    weight_decay     λ >= 0
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from ._link import (
    Call,
    Hyperparameter,
    Init,
    Link,
    Treewise,
    Update,
    check_state,
    link,
    number,
    parts_of,
    scalar,
    whole_of,
)
from ._rule import Settable
from ._run import Leafwise, Part
from .dialects import Corrected
from .interop._arrays import is_variable
from .links import count_of
from .storage import shown

State = TypeVar("State")

# Where a number stands: the link and its argument. The first link that has one is asked for it.
_PLACES = {
    ("scale_by_learning_rate", "learning_rate"): "learning_rate",
    ("add_decayed_weights", "learning_rate"): "learning_rate",
    ("scale_by_rms", "decay"): "decay",
    ("scale_by_stddev", "decay"): "decay",
    ("scale_by_rms", "eps"): "eps",
    ("scale_by_stddev", "eps"): "eps",
    ("trace", "decay"): "momentum",
    ("add_decayed_weights", "weight_decay"): "weight_decay",
}
_BELOW_ONE = {"decay", "momentum"}


class Override(NamedTuple):
    """A number that is set, or -1."""

    value: jax.Array  # float []
    rest: jax.Array  # float []: 1 - value, rounded once


class RetunableState(NamedTuple):
    """The state of `retunable`."""

    overrides: dict[str, Override]  # by the names of the numbers that the transformation has
    inner_state: Any  # the wrapped state


@link(RetunableState, "retuning")
def retunable(inner: optax.GradientTransformation) -> Treewise:
    """Let the numbers of a transformation be set in its state.

    Args:
        inner: A transformation of this package: a dialect, a link, `optax_rmsprop.chain` or
            `storage.stored_as` of them. In a wrapper of Optax it is the part to wrap, as in
            `optax.chain(optax.clip(1.0), retunable(rmsprop(1e-3)))`.

    Returns:
        A transformation with the state `RetunableState(overrides, inner_state)`, which `retuned`
        sets numbers in, and `settings` reads.

    Raises:
        TypeError: if `inner` has no number that can be set, or is retunable already.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects, retuning
        >>> tx = retuning.retunable(dialects.torch(lr=0.5, alpha=0.75, eps=2.0))
        >>> state = retuning.retuned(tx.init(jnp.array(0.0)), learning_rate=0.25)
        >>> update, state = tx.update(jnp.array(4.0), state)
        >>> print(update)  # nu = 0.25 * 4², and -0.25 * 4 / (2 + 2)
        -0.25
    """
    calls = list(_calls(inner))
    if any(call.state is RetunableState for call in calls):
        raise TypeError(f"retunable: inner is retunable already: {shown(inner)}")
    places = [(call.factory.__name__, name) for call in calls for name in _given(call)]
    names = [name for name in dict.fromkeys(_PLACES.values()) if name in map(_PLACES.get, places)]
    if not names:
        raise TypeError(
            f"retunable: inner must be a transformation of this package with a number to set, got "
            f"{shown(inner)}; wrap the part of a chain or mask that is one"
        )

    def init(params: optax.Params) -> RetunableState:
        return RetunableState({name: _override(-1.0) for name in names}, inner.init(params))

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        check_state("retunable", state, RetunableState)
        tx = _with(inner, state.overrides)
        return parts_of(tx.update, updates, state.inner_state, count)

    def whole(state: RetunableState, states: Iterator[Any]) -> RetunableState:
        return state._replace(inner_state=whole_of(inner.update, state.inner_state, states))

    def update(
        updates: optax.Updates,
        state: RetunableState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RetunableState]:
        tx = _with(inner, state.overrides)
        updates, inner_state = tx.update(updates, state.inner_state, params, **extra_args)
        return updates, state._replace(inner_state=inner_state)

    return Treewise(init, update, parts, whole)


def retuned(state: State, **values: Any) -> State:
    """The state with numbers set, from the next step on, or unset.

    Args:
        state: The state of a `retunable` transformation, or any tree with such states in it: of a
            chain, a mask, a training state. In several, a number is set wherever there is one.
        values: By name: a number or scalar array, or None, which unsets. A traced one is set by
            arithmetic, as in `jnp.where(is_flat, rate / 2, rate)`. What is not named stays.

    Returns:
        The new state. Its arrays have the shapes, dtypes and shardings of the old ones.

    Raises:
        ValueError: if no state in `state` has a number of this name, or one is out of its range.
        TypeError: if a value is no scalar, or nothing in `state` is retunable.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> from optax_rmsprop import retuning
        >>> tx = retuning.retunable(optax_rmsprop.rmsprop(optax.linear_schedule(1.0, 0.0, 10)))
        >>> state = retuning.retuned(tx.init(jnp.ones(2)), learning_rate=0.125, decay=0.5)
        >>> print({name: float(x) for name, x in retuning.settings(tx, state).items()})
        {'learning_rate': 0.125, 'decay': 0.5, 'eps': 9.99999993922529e-09}
    """
    known = {name for part in _states(state) for name in part.overrides}
    for name, value in values.items():
        if name not in known:
            there = ", ".join(sorted(known))
            raise ValueError(f"retuned: nothing here has the number {name!r}: there are {there}")
        if value is not None:
            below = 1.0 if name in _BELOW_ONE else float("inf")
            values[name] = scalar("retuned", name, value, below=below, schedule=False)

    def part(x: Any) -> Any:
        if not isinstance(x, RetunableState):
            return x
        new = {
            name: _override(-1.0 if values[name] is None else values[name], old)
            for name, old in x.overrides.items()
            if name in values
        }
        return x._replace(overrides=x.overrides | new)

    return cast(State, jax.tree.map(part, state, is_leaf=_is_retunable))


def settings(tx: optax.GradientTransformation, state: optax.OptState) -> dict[str, jax.Array]:
    """The numbers that the next update will use.

    Args:
        tx: A transformation of this package, `retunable` or not.
        state: Its state. That of what holds a `retunable` one will do, if it holds no other.

    Returns:
        The numbers that `tx` has, by the names of `retuned`: what is set, or what its call has, a
        schedule at the count of the state. Of several links the first one's.

    Raises:
        TypeError: if `tx` is no transformation of this package, or `state` is not its.

    Example:
        >>> import jax.numpy as jnp, optax_rmsprop
        >>> from optax_rmsprop import retuning
        >>> tx = optax_rmsprop.rmsprop(lambda count: 0.5 / (1 + count), decay=0.75, eps=0.25)
        >>> print({name: float(x) for name, x in retuning.settings(tx, tx.init(0.0)).items()})
        {'learning_rate': 0.5, 'decay': 0.75, 'eps': 0.25}
    """
    if not isinstance(tx.update, Update):
        raise TypeError(f"settings: tx must be a transformation of this package, got {shown(tx)}")
    if tx.update.call.state is RetunableState and not isinstance(state, RetunableState):
        found = _states(state)
        if len(found) != 1:
            raise TypeError(f"settings: state holds {len(found)} of a `retunable`: give one")
        state = found[0]
    parts = _parts(tx, jax.tree.map(_unboxed, state, is_leaf=is_variable))
    numbers = [(part.name, name, x) for part in parts for name, x in part.numbers.items()]
    found = dict[str, Any]()
    for place, name in _PLACES.items():
        for x in (x for *of, x in numbers if tuple(of) == place):
            found.setdefault(name, jnp.asarray(x, jnp.result_type(float)))
    return found


@dataclasses.dataclass(frozen=True)
class _Set:
    """The schedule of a number that may be set."""

    place: tuple[str, str]
    plain: Hyperparameter
    override: Override

    def __call__(self, count: Any) -> Settable:
        """Return both, the number of the call and the one that is set."""
        plain, (value, rest) = number(*self.place, self.plain, count), self.override
        if isinstance(self.plain, Corrected):  # timm's decay follows the rate in a way of its own
            value = dataclasses.replace(self.plain, learning_rate=self.override.value)(count)
        return Settable(plain, ~(self.override.value < 0), value, rest)


def _override(value: Any, like: Override | None = None) -> Override:
    """A number and what it lacks to 1, both from double precision if it is known."""
    dtype = jnp.result_type(float)
    if like is None:
        return Override(jnp.asarray(value, dtype), jnp.asarray(1 - value, dtype))
    # With the sharding of the old ones, or a step would be compiled again, and in their boxes.
    pairs = zip(like, (value, 1 - value), strict=True)
    return Override(
        *(jax.tree.map(functools.partial(jnp.full_like, fill_value=x), old) for old, x in pairs)
    )


def _with(tx: optax.GradientTransformation, overrides: dict[str, Override]) -> Any:
    """The transformation with its numbers settable, wherever they stand in it."""
    if not isinstance(tx.update, Update):
        return tx
    call = tx.update.call
    arguments = dict(call.arguments)
    for name, value in arguments.items():
        if isinstance(value, optax.GradientTransformation):
            arguments[name] = _with(value, overrides)
        elif name == "links":
            arguments[name] = tuple(_with(x, overrides) for x in value)
        elif name in _given(call):
            place = (call.factory.__name__, name)
            arguments[name] = _Set(place, value, overrides[_PLACES[place]])
    call = dataclasses.replace(call, arguments=arguments)
    return Link(Init(call), Update(call))


def _calls(tx: optax.GradientTransformation) -> Iterator[Call]:
    """The calls that a transformation consists of."""
    if isinstance(tx.update, Update):
        call = tx.update.call
        yield call
        inner = call.arguments.get("links", [call.arguments.get("inner")])
        for each in inner:
            yield from _calls(each) if each is not None else ()


def _given(call: Call) -> list[str]:
    """The arguments of a link that can be set."""
    named = ((call.factory.__name__, name) for name in call.arguments)
    return [
        name for of, name in named if (of, name) in _PLACES and call.arguments[name] is not None
    ]


def _parts(tx: Any, state: Any, count: Any = None) -> list[Part]:
    """Each link at its next step, those in wrappers that are not this package's left out."""
    if not isinstance(tx.update, Update):
        return []
    call = tx.update.call
    check_state(call.factory.__name__, state, call.state)
    if isinstance(call.definition, Leafwise):
        return [call.part(state, count)]
    if "links" in call.arguments:
        count = count_of(state) if count is None else count
        pairs = zip(call.arguments["links"], state, strict=True)
        return [part for each, own in pairs for part in _parts(each, own, count)]
    inner = call.arguments["inner"]
    if call.state is RetunableState:
        inner = _with(inner, state.overrides)
    return _parts(inner, state.inner_state if hasattr(call.state, "inner_state") else state, count)


def _states(tree: Any) -> list[RetunableState]:
    """Every state of a `retunable` in a tree."""
    found = [x for x in jax.tree.leaves(tree, is_leaf=_is_retunable) if _is_retunable(x)]
    if not found:
        raise TypeError(
            "the state holds none of a `retunable` transformation: wrap it in `retunable`"
        )
    return found


def _unboxed(x: Any) -> Any:
    """The value of a variable of Flax, or the leaf itself."""
    return jax.tree.leaves(x)[0] if is_variable(x) else x


def _is_retunable(x: Any) -> bool:
    return isinstance(x, RetunableState)
