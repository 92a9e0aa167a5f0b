"""TensorFlow 1: a checkpoint, where each variable has slots `<variable>/RMSProp`, with a number.

The optimizer's own name stands in the place of `RMSProp`, if it has one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import optax

from . import _states as states
from ._states import Convert, ConvertBack, Momentum
from ._variables import new, numbers

_RMSPROP = re.compile(r"(?i).+/(?P<slot>[^/]*rmsprop[^/]*?)(?:_\d+)?(?::0)?")
_OTHERS = {"Adam", "Adadelta", "Adagrad", "AdagradDA", "Ftrl", "Momentum", "ProximalAdagrad"}


def from_tensorflow1(
    variables: Mapping[str, Any],
    like: optax.OptState,
    convert: Convert,
    *,
    count: int | None = None,
    learning_rate: float | None = None,
    slot: str | None = None,
    momentum: Momentum | None = None,
) -> optax.OptState:
    """Fill a state with that of a `tf.train.RMSPropOptimizer`.

    Args:
        variables: A checkpoint by name, `{n: reader.get_tensor(n) for n in
            reader.get_variable_to_shape_map()}`, or the slots alone; other names are ignored.
        like, convert: As in `from_torch`. `convert` gets the slots under the variables' names.
        count: The steps made; by default `global_step` of the checkpoint.
        learning_rate: The rate, which is not in a checkpoint: needed if `like` has its momentum
            before the rate.
        slot: The name of the optimizer, or of its first slot, "RMSProp_2", where a variable has
            those of several. By default the one name with "rmsprop" in it.
        momentum: As in `from_torch`.

    Returns:
        A state like `like`, in its dtypes and shardings.

    Raises:
        ValueError: as `from_torch`.
        TypeError: if there is no slot of an RMSPropOptimizer among the names.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects, interop
        >>> saved = {"w/RMSProp": [1.0], "w/RMSProp_1": [0.5], "w": [3.0], "global_step": 7}
        >>> empty = dialects.tensorflow1(0.01, momentum=0.9).init({"w": jnp.zeros(1)})
        >>> state = interop.from_tensorflow1(saved, empty, lambda named: named)
        >>> print(state[0].count, state[0].nu["w"], state[2].trace["w"])
        7 [1.] [-0.5]
    """
    found = variables_of("from_tensorflow1", variables, states.quantities(like), slot)
    if "trace" not in states.quantities(like):
        # TensorFlow has the slot without momentum too; it holds the last step, which nothing reads.
        found = _without(found, _steps(found))
    return states.from_variables(
        "from_tensorflow1", found, like, convert, count, learning_rate, momentum
    )


def to_tensorflow1(
    state: optax.OptState,
    like: Mapping[str, Any],
    convert: ConvertBack,
    *,
    learning_rate: float | None = None,
    slot: str | None = None,
    momentum: Momentum | None = None,
) -> dict[str, Any]:
    """The variables of a `tf.train.RMSPropOptimizer` that goes on where `state` is.

    Args:
        state: Any tree of Optax states with ours in it.
        like: The variables of a new optimizer by name, as in `from_tensorflow1`.
        convert: From a tree like the parameters to a dictionary of named arrays.
        learning_rate, slot: As in `from_tensorflow1`.
        momentum: As in `to_torch`.

    Returns:
        NumPy arrays under the names of `like`, what is no slot as it was, in the same dtypes. A
        slot for a momentum that the state does not have is 0.

    Raises:
        ValueError, TypeError: as `from_tensorflow1`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects, interop
        >>> tx = dialects.tensorflow1(0.5, decay=0.5, momentum=0.9, epsilon=0.0)
        >>> _, state = tx.update({"w": jnp.array([1.0])}, tx.init({"w": jnp.zeros(1)}))
        >>> fresh = {"w/RMSProp": [1.0], "w/RMSProp_1": [0.0]}
        >>> interop.to_tensorflow1(state, fresh, lambda tree: tree)["w/RMSProp_1"]
        array([0.5])
    """
    has = states.quantities(state)
    found = variables_of("to_tensorflow1", like, has, slot)
    # TensorFlow has the slot without momentum too, and multiplies it by 0; a new one starts at 0.
    idle = set[str]() if "trace" in has else _steps(found)
    blank = {key: np.zeros_like(found.values[key]) for key in idle}
    found = _without(found._replace(values={**found.values, **blank}), idle)
    result = states.to_variables("to_tensorflow1", found, state, convert, learning_rate, momentum)
    slots = {
        key: new(f"to_tensorflow1: {key!r}", x, found.values[key].dtype)
        for key, x in result.items()
    }
    return {key: slots.get(key, np.array(x)) for key, x in like.items()}


def variables_of(
    function: str, variables: Any, has: set[str], slot: str | None
) -> states.Variables:
    """What each slot of an optimizer holds, and of which variable."""
    by_name = states.as_mapping(variables)
    if by_name is None or not all(isinstance(k, str) for k in cast("Iterable[Any]", by_name)):
        raise TypeError(f"{function}: expected variables by name, got {states.shown(variables)}")
    roles = {key: ("count", "") for key in by_name if key.removesuffix(":0") == "global_step"}
    slots = _slots(function, by_name, slot)
    for name, keys in slots.items():
        # The centred one has its mean second. Of several optimizers' slots `has` tells how many.
        several = 3 if "mu" in has else 2
        size = len(keys) if slot is None else {1: 1, 2: 2, 3: 3, 4: 2}.get(len(keys), several)
        kinds = {2: ["nu", "step"], 3: ["nu", "mu", "step"]}.get(size)
        if kinds is None:
            raise ValueError(
                f"{function}: {name!r} has {len(keys)} slots, expected 2 or 3; of several "
                f"optimizers give slot=, the first of one: {keys}"
            )
        roles |= {key: (kind, name) for kind, key in zip(kinds, keys, strict=False)}
    values = {key: numbers(f"{function}: {key!r}", by_name[key]) for key in roles}
    return states.Variables(values, roles, sorted(slots))


def _slots(function: str, variables: Mapping[str, Any], slot: str | None) -> dict[str, list[str]]:
    """The slots of one optimizer, of each parameter, in the order of their numbers."""
    shown = states.shown(variables)
    if slot is None:
        names = {match["slot"] for key in variables if (match := _RMSPROP.fullmatch(key))}
        if len(names) > 1:
            raise ValueError(f"{function}: several optimizers, give slot=, of {sorted(names)}")
        if not names:
            raise TypeError(
                f"{function}: no slot <variable>/RMSProp in {shown}; an optimizer of another name "
                "needs slot=, and a checkpoint of TensorFlow 2 `from_keras`"
            )
        return _numbered(variables, names.pop())
    slot = str(slot)
    found = _numbered(variables, slot)
    own, _, number = slot.rpartition("_")
    if own and number.isdigit() and all(len(keys) == 1 for keys in found.values()):
        found = _numbered(variables, own, int(number))
    if not found or slot in _OTHERS:
        raise TypeError(f"{function}: no slot <variable>/{slot} of an RMSProp in {shown}")
    return found


def _numbered(variables: Iterable[str], optimizer: str, start: int = 0) -> dict[str, list[str]]:
    # TensorFlow numbers the slots in the order in which it makes them, not always from 0.
    slot = re.compile(rf"(?P<name>.+)/{re.escape(optimizer)}(?:_(?P<number>\d+))?(?::0)?")
    matches = sorted(
        (int(match["number"] or 0), match["name"], key)
        for key in variables
        if (match := slot.fullmatch(key))
    )
    found: dict[str, list[str]] = {}
    for number, name, key in matches:
        if number >= start:
            found.setdefault(name, []).append(key)
    return found


def _steps(found: states.Variables) -> set[str]:
    return {key for key, (quantity, _) in found.roles.items() if quantity == "step"}


def _without(found: states.Variables, keys: set[str]) -> states.Variables:
    return found._replace(roles={key: x for key, x in found.roles.items() if key not in keys})
