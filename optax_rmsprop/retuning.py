"""Learning rate, decay, epsilon, momentum and weight decay of a running state, to read and to set.

    tx = retunable(dialects.torch(schedule, momentum=0.9))
    state = retuned(state, learning_rate=1e-4)  # from the next step on
    state = retuned(state, learning_rate=None)  # as the schedule has it

A number that is set holds until it is unset, and a schedule goes on counting below it. Nothing is
compiled again, and a state in which nothing is set moves as without `retunable`, bit for bit. The
names are the same for every rule, whatever a dialect calls its arguments:

    learning_rate    η >= 0, of the step and of a decoupled weight decay
    decay            in [0, 1), the weight of the past in the averages of g and g²
    eps              ε >= 0
    momentum         μ in [0, 1), the weight of the past in the momentum buffer, a sum or a mean
    weight_decay     λ >= 0
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._jax import is_traced
from ._link import (
    Hyperparameter,
    Init,
    Link,
    Step,
    Treewise,
    Update,
    check_state,
    link,
    number,
    parts_of,
    scalar,
    whole_of,
)
from ._run import Leafwise, Part
from ._settable import Settable
from .dialects import Corrected
from .links import _count as count_of  # pyright: ignore[reportPrivateUsage]
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
    ("ema", "decay"): "momentum",
    ("add_decayed_weights", "weight_decay"): "weight_decay",
}
_BELOW_ONE = {"decay", "momentum"}


class RetunableState(NamedTuple):
    """The state of `retunable`."""

    overrides: dict[str, jax.Array]  # float [] by name: a number that is set, or -1
    inner_state: Any  # the wrapped state


@link(RetunableState, "retuning")
def retunable(inner: optax.GradientTransformation) -> Treewise:
    """Let the numbers of a transformation be set in its state.

    A number that is set is a float32 array to a step, as one of `optax.inject_hyperparams` is:
    1 − decay is then as exact as float32 has the decay, and 0.0002 of it is lost at 0.9999. Those
    that are not set keep their precision. A step needs no more memory than without `retunable`, and
    as much time. An update within a larger program, such as a `scan`, may differ in its last bit
    from one without `retunable`, where the compiler rounds a product and a sum at once.

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
    names = dict[str, Any]()
    _mapped(lambda place, x: names.setdefault(_PLACES[place], x), inner)
    if "retuning.retunable(" in shown(inner):
        raise TypeError(f"retunable: inner is retunable already: {shown(inner)}")
    if not names:
        raise TypeError(
            f"retunable: inner must be a transformation of this package with a number to set, got "
            f"{shown(inner)}; wrap the part of a chain or mask that is one"
        )

    def init(params: optax.Params) -> RetunableState:
        unset = {name: jnp.asarray(-1.0, jnp.result_type(float)) for name in names}
        return RetunableState(unset, inner.init(params))

    def parts(updates: Any, state: Any, count: Any) -> list[Part] | None:
        return parts_of(_set(inner, state).update, updates, state.inner_state, count)

    def whole(state: RetunableState, states: Iterator[Any]) -> RetunableState:
        return state._replace(inner_state=whole_of(inner.update, state.inner_state, states))

    def lead(step: Step, updates: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
        updates, inner_state = step.take(_set(inner, state), updates, state.inner_state)
        return updates, state._replace(inner_state=inner_state)

    return Treewise(init, lead=lead, parts=parts, whole=whole)


def retuned(state: State, **values: Any) -> State:
    """The state with numbers set, from the next step on, or unset.

    Args:
        state: The state of a `retunable` transformation, or any tree with such states in it: of a
            chain, a mask, a training state. In several, a number is set wherever there is one.
        values: By name: a number or scalar array, or None, which unsets. A traced one is set by
            arithmetic, as in `jnp.where(is_flat, rate / 2, rate)`; its range is not checked, and
            one below 0 unsets. What is not named stays.

    Returns:
        The new state. Its arrays have the shapes, dtypes and shardings of the old ones.

    Raises:
        ValueError: if no state in `state` has a number of this name, or one is out of its range,
            before or after it is rounded to the dtype of the state.
        TypeError: if a value is no scalar, or nothing in `state` is retunable.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> from optax_rmsprop import retuning
        >>> tx = retuning.retunable(optax_rmsprop.rmsprop(optax.linear_schedule(1.0, 0.0, 10)))
        >>> state = retuning.retuned(tx.init(jnp.ones(2)), learning_rate=0.125, decay=0.5)
        >>> print({name: float(x) for name, x in retuning.settings(tx, state).items()})
        {'learning_rate': 0.125, 'decay': 0.5, 'eps': 9.99999993922529e-09}
    """
    known = {name: x for part in _states(state) for name, x in part.overrides.items()}
    for name, x in values.items():
        if name not in known:
            there = ", ".join(sorted(known))
            raise ValueError(f"retuned: nothing here has the number {name!r}: there are {there}")
        values[name] = -1.0 if x is None else _checked(name, x, jax.tree.leaves(known[name])[0])

    def part(x: Any) -> Any:
        if not _is_retunable(x):
            return x
        # Like the old ones, sharding and Flax's boxes too, or a step would be compiled again.
        new = {
            name: jax.tree.map(functools.partial(jnp.full_like, fill_value=values[name]), old)
            for name, old in x.overrides.items()
            if name in values
        }
        return x._replace(overrides=x.overrides | new)

    return cast(State, jax.tree.map(part, state, is_leaf=_is_retunable))


def _checked(name: str, value: Any, like: jax.Array) -> Any:
    """A number to set, if it is in its range, and is still where it is rounded as a state is."""
    below = 1.0 if name in _BELOW_ONE else float("inf")
    value = scalar("retuned", name, value, below=below, schedule=False)
    if is_traced(value):
        return value
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.asarray(value, like.dtype))
    if not rounded < below or (value > 0 and rounded == 0):
        raise ValueError(
            f"retuned: {name} must not be {value}, which {like.dtype} has as {rounded}"
        )
    return value


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
    if tx.update.call.state is RetunableState:
        states = _states(state)
        if len(states) != 1:
            raise TypeError(f"settings: state holds {len(states)} of a `retunable`: give one")
        state = states[0]
    numbers, found = dict(reversed(_numbers(tx, state))), dict[str, jax.Array]()
    for place, name in _PLACES.items():
        if place in numbers:
            found.setdefault(name, jnp.asarray(numbers[place], jnp.result_type(float)))
    return found


@dataclasses.dataclass(frozen=True)
class _Schedule:
    """The schedule of a number that may be set."""

    place: tuple[str, str]
    plain: Hyperparameter
    override: jax.Array

    def __call__(self, count: Any) -> Any:
        """Return the number that is set, or else that of the call."""
        plain, value = number(*self.place, self.plain, count), self.override
        if isinstance(self.plain, Corrected):  # timm's decay follows the rate in a way of its own
            value = dataclasses.replace(self.plain, learning_rate=value)(count)
        settable = Settable(plain, value, ~(self.override < 0))
        return settable if isinstance(plain, float) else jnp.asarray(settable)


def _mapped(f: Callable[[tuple[str, str], Any], Any], tx: Any) -> Any:
    """The transformation with `f(place, number)` for every number, wherever it stands in it."""
    if not isinstance(tx.update, Update):
        return tx
    call = tx.update.call

    def argument(name: str, x: Any) -> Any:
        if name == "links":
            return tuple(_mapped(f, each) for each in x)
        if isinstance(x, optax.GradientTransformation):
            return _mapped(f, x)
        place = call.factory.__name__, name
        return x if x is None or place not in _PLACES else f(place, x)

    arguments = {name: argument(name, x) for name, x in call.arguments.items()}
    call = dataclasses.replace(call, arguments=arguments)
    return Link(Init(call), Update(call))


def _set(tx: Any, state: Any) -> Any:
    """The transformation with the numbers that its state may set."""
    check_state("retunable", state, RetunableState)
    # A number may be in a box of Flax's.
    overrides = {name: jax.tree.leaves(x)[0] for name, x in state.overrides.items()}

    def settable(place: tuple[str, str], x: Any) -> _Schedule:
        if (name := _PLACES[place]) not in overrides:
            raise TypeError(f"retunable: the state has no number {name!r}: it is another one's")
        return _Schedule(place, x, overrides[name])

    return _mapped(settable, tx)


def _numbers(tx: Any, state: Any, count: Any = None) -> list[tuple[tuple[str, str], Any]]:
    """The numbers that each link has at its next step, with their places."""
    if not isinstance(tx.update, Update):
        return []
    call = tx.update.call
    check_state(call.factory.__name__, state, call.state)
    if isinstance(call.definition, Leafwise):
        # A count may be in a box of Flax's; that of a state comes first in it.
        known = jax.tree.leaves([state if count is None else count])
        part = call.part(state, known[0] if known else None)
        return [((part.name, name), x) for name, x in part.numbers.items()]
    links = call.arguments.get("links")
    if links is not None:
        count = count_of(state) if count is None else count
        try:
            pairs = list(zip(links, state, strict=True))
        except (TypeError, ValueError) as error:
            text = f"settings: a chain of {len(links)} links has another state than this"
            raise TypeError(text) from error
    elif call.state is RetunableState:
        pairs = [(_set(call.arguments["inner"], state), state.inner_state)]
    else:
        inner = [x for x in call.arguments.values() if isinstance(x, optax.GradientTransformation)]
        pairs = [(each, getattr(state, "inner_state", state)) for each in inner]
    return [number for each, own in pairs for number in _numbers(each, own, count)]


def _states(tree: Any) -> list[RetunableState]:
    """Every state of a `retunable` in a tree."""
    found = [x for x in jax.tree.leaves(tree, is_leaf=_is_retunable) if _is_retunable(x)]
    if not found:
        raise TypeError(
            "the state holds none of a `retunable` transformation: wrap it in `retunable`"
        )
    return found


def _is_retunable(x: Any) -> bool:
    return isinstance(x, RetunableState)
