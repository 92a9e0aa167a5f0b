"""Keras: an optimizer's variables, by name or in order, Keras 3's, tf_keras's or tf.keras 2's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import optax

from . import _states as states
from ._states import Convert, ConvertBack

_KINDS = dict(velocity="nu", rms="nu", average_gradient="mu", mg="mu", momentum="step")
_SCALARS = {"iteration": "count", "iter": "count", "learning_rate": "learning_rate"}
_NAMES = [
    re.compile(r"(?:[^/]+/)*(?P<name>[^/]+)_(?P<kind>velocity|momentum|average_gradient)"),
    re.compile(r"(?:[^/]+/)?(?P<kind>velocity|momentum|average_gradient)/(?P<name>.+)"),
    re.compile(r"[^/]+/(?P<name>.+)/(?P<kind>rms|momentum|mg)"),
]


def from_keras(
    variables: Mapping[str, Any] | Sequence[Any],
    like: optax.OptState,
    convert: Convert,
    *,
    names: Sequence[str] | None = None,
    learning_rate: float | None = None,
) -> optax.OptState:
    """Fill a state with that of a Keras optimizer: Keras 3's, tf_keras's, tf.keras 2's.

    Args:
        variables: By name, `{v.path: v for v in optimizer.variables}` (tf_keras: `v.name`); or in
            the optimizer's order, with `names`: `optimizer.variables`, tf.keras's `get_weights()`,
            or the group "optimizer/vars" of a saved `.weights.h5`, which a `.keras` file contains.
        like, convert: As in `from_torch`.
        names: The parameters' names in the model's order, `[v.path for v in
            model.trainable_variables]`. Without them the names are those that Keras gave its
            variables, "layer_kernel" for "layer/kernel".
        learning_rate: The rate, if Keras does not have it as a variable, and `like` has its
            momentum before the rate.

    Returns:
        A state like `like`, in its dtypes and shardings; `count` is Keras's `iteration`.

    Raises:
        ValueError: as `from_torch`.
        TypeError: if `variables` are not those of an optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects, interop
        >>> saved = {"rmsprop/iteration": 7, "rmsprop/learning_rate": 0.01,
        ...          "rmsprop/w_velocity": [1.0, 2.0], "rmsprop/w_momentum": [0.5, 0.0]}
        >>> empty = dialects.keras(0.01, momentum=0.9).init({"w": jnp.zeros(2)})
        >>> state = interop.from_keras(saved, empty, lambda named: named)
        >>> print(state[0].nu["w"], state[2].trace["w"])  # a trace holds minus the steps
        [1. 2.] [-0.5 -0. ]
    """
    found = _variables("from_keras", variables, names, states.quantities(like))
    return states.from_variables("from_keras", found, like, convert, None, learning_rate)


def to_keras(
    state: optax.OptState,
    like: Mapping[str, Any] | Sequence[Any],
    convert: ConvertBack,
    *,
    names: Sequence[str] | None = None,
    learning_rate: float | None = None,
) -> Any:
    """The variables of a Keras optimizer that goes on where `state` is.

    Build it first, `optimizer.build(model.trainable_variables)`, and assign:
    `for variable, value in zip(optimizer.variables, result): variable.assign(value)`.

    Args:
        state: Any tree of Optax states with ours in it.
        like: The optimizer's variables, as in `from_keras`.
        convert: From a tree like the parameters to a dictionary of named arrays.
        names, learning_rate: As in `from_keras`. Keras's own rate is kept.

    Returns:
        NumPy arrays under the same names, or in the same order, and in the same dtypes.

    Raises:
        ValueError, TypeError: as `from_keras`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects, interop
        >>> tx = dialects.keras(0.5, rho=0.75, momentum=0.9, epsilon=0.0)
        >>> _, state = tx.update({"w": jnp.array([4.0])}, tx.init({"w": jnp.zeros(1)}))
        >>> fresh = {"o/iteration": 0, "o/w_velocity": [0.0], "o/w_momentum": [0.0]}
        >>> for name, value in interop.to_keras(state, fresh, lambda tree: tree).items():
        ...     print(name, value)  # 0.25 * 4**2, and 0.5 * 4 / 2
        o/iteration 1
        o/w_velocity [4.]
        o/w_momentum [1.]
    """
    found = _variables("to_keras", like, names, states.quantities(state))
    result = states.to_variables("to_keras", found, state, convert, learning_rate)
    return list(result.values()) if _by_name(like) is None else result


def _variables(
    function: str, variables: Any, names: Sequence[str] | None, has: set[str]
) -> states.Variables:
    by_name = _by_name(variables)
    if by_name is not None:
        return _named(function, by_name, names)
    # The keys of a saved store are numbers, sorted as text.
    store = states.as_mapping(variables)
    if store is None and not isinstance(variables, (list, tuple)):
        shown = states.shown(variables)
        raise TypeError(f"{function}: expected an optimizer's variables, got {shown}")
    if names is None:
        raise ValueError(f"{function}: variables in order need names=, the parameters'")
    if store is not None:
        variables = [store[key] for key in sorted(store, key=int)]
    return _ordered(function, cast("Sequence[Any]", variables), names, has)


def _by_name(variables: Any) -> Mapping[str, Any] | None:
    found = states.as_mapping(variables)
    return None if found is None or all(key.isdigit() for key in found) else found


def _named(
    function: str, variables: Mapping[str, Any], names: Sequence[str] | None
) -> states.Variables:
    # Keras 3 writes layer/kernel as layer_kernel in the names of its variables.
    known = {n.removesuffix(":0").replace("/", "_"): n for n in names or ()}
    roles = {key: _role(key.removesuffix(":0"), known) for key in variables}
    strange = [key.removesuffix(":0") for key, role in roles.items() if role is None]
    roles = {key: role for key, role in roles.items() if role is not None}
    found = [name for quantity, name in roles.values() if quantity == "nu"]
    if strange or not found:
        raise TypeError(f"{function}: no variables of Keras's RMSprop: {strange or variables}")
    return states.Variables(variables, roles, found if names is None else names)


def _role(key: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    last = key.rpartition("/")[2]
    if last in _SCALARS:
        return _SCALARS[last], ""
    for pattern in _NAMES:
        if match := pattern.fullmatch(key):
            name = match["name"]
            return _KINDS[match["kind"]], known.get(name.replace("/", "_"), name)
    return None


def _ordered(
    function: str, variables: Sequence[Any], names: Sequence[str], has: set[str]
) -> states.Variables:
    kinds = ["nu", *(["step"] if "trace" in has else []), *(["mu"] if "mu" in has else [])]
    slots = [(kind, name) for kind in kinds for name in names]
    head = [("count", ""), ("learning_rate", "")][: len(variables) - len(slots)]
    if not head or len(head) + len(slots) != len(variables):
        raise ValueError(
            f"{function}: {len(variables)} variables, expected the iteration, perhaps the rate, "
            f"and {', '.join(states.WORDS[kind] for kind in kinds)} of {len(names)} parameters"
        )
    return states.Variables(dict(enumerate(variables)), dict(enumerate(head + slots)), names)
