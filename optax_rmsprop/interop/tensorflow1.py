"""TensorFlow 1: a checkpoint, where each variable has numbered slots `<variable>/RMSProp`."""

import re
from collections.abc import Mapping
from typing import Any

import optax

from . import _states as states
from ._states import Convert, ConvertBack

_SLOT = re.compile(r"(?P<name>.+)/RMSProp(?:_(?P<number>\d+))?(?::0)?")


def from_tensorflow1(
    variables: Mapping[str, Any],
    like: optax.OptState,
    convert: Convert,
    *,
    count: int | None = None,
    learning_rate: float | None = None,
) -> optax.OptState:
    """Fill a state with that of a `tf.train.RMSPropOptimizer`.

    Args:
        variables: A checkpoint by name, `{n: reader.get_tensor(n) for n in
            reader.get_variable_to_shape_map()}`, or the slots alone; other names are ignored.
        like, convert: As in `from_torch`. `convert` gets the slots under the variables' names.
        count: The steps made; by default `global_step` of the checkpoint.
        learning_rate: The rate, which is not in a checkpoint: needed if `like` has its momentum
            before the rate.

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
    found = _variables("from_tensorflow1", variables)
    if "trace" not in states.quantities(like):
        # TensorFlow has the slot without momentum too; it holds the last step, which nothing reads.
        roles = {key: role for key, role in found.roles.items() if role[0] != "step"}
        found = found._replace(roles=roles)
    return states.from_variables("from_tensorflow1", found, like, convert, count, learning_rate)


def to_tensorflow1(
    state: optax.OptState,
    like: Mapping[str, Any],
    convert: ConvertBack,
    *,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """The variables of a `tf.train.RMSPropOptimizer` that goes on where `state` is.

    Args:
        state: Any tree of Optax states with ours in it.
        like: The variables of a new optimizer by name, as in `from_tensorflow1`.
        convert: From a tree like the parameters to a dictionary of named arrays.
        learning_rate: As in `from_tensorflow1`.

    Returns:
        NumPy arrays under the names of `like`, what is no slot as it was, in the same dtypes.

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
    found = _variables("to_tensorflow1", like)
    return states.to_variables("to_tensorflow1", found, state, convert, learning_rate)


def _variables(function: str, variables: Any) -> states.Variables:
    by_name = states.as_mapping(variables)
    if by_name is None:
        raise TypeError(f"{function}: expected variables by name, got {states.shown(variables)}")
    slots: dict[str, list[tuple[int, str]]] = {}
    for key in by_name:
        if match := _SLOT.fullmatch(key):
            slots.setdefault(match["name"], []).append((int(match["number"] or 0), key))
    if not slots:
        raise TypeError(f"{function}: no slot <variable>/RMSProp in {states.shown(variables)}")
    roles = {key: ("count", "") for key in by_name if key.removesuffix(":0") == "global_step"}
    for name, found in slots.items():
        # TensorFlow numbers them in the order in which it makes them, not always from 0.
        kinds = {2: ["nu", "step"], 3: ["nu", "mu", "step"]}.get(len(found))
        if kinds is None:
            raise ValueError(f"{function}: {name!r} has {len(found)} slots, expected 2 or 3")
        keys = (key for _, key in sorted(found))
        roles |= {key: (kind, name) for kind, key in zip(kinds, keys, strict=True)}
    return states.Variables(by_name, roles, sorted(slots))
