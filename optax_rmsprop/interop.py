"""Optimizer states of other frameworks: from their dictionaries of arrays, and back.

    quantity        here                torch              Keras 3 (tf.keras 2)      TensorFlow 1
    ν               nu, or var + |mu|²  square_avg         velocity (rms)            RMSProp
    mean            mu                  grad_avg           average_gradient (mg)     RMSProp_1
    momentum        trace               momentum_buffer    momentum                  the last one
    steps made      count               step               iteration (iter)          (global_step)

A buffer that contains the learning rate holds steps: Keras's and TensorFlow's +b, this package's
and Optax's −b. One that does not holds directions, as PyTorch's does. The order of `trace` and
`scale_by_learning_rate` in a state says which it is, and the rate is moved in or out.

The function that converts the weights converts the accumulators: it maps a dictionary of named
arrays to a tree like the parameters (`from_*`), or back (`to_*`). `layout` makes both for the usual
layers of PyTorch and Flax. Nothing is imported: arrays are what NumPy understands, and NumPy's come
out. A state is filled completely, or an error names the parameter and nothing is returned.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np
import optax

from ._layout import Convert, ConvertBack
from ._layout import Layout as Layout
from ._layout import layout as layout
from ._states import (
    Where,
    as_numpy,
    fill,
    lacks,
    leaves_of,
    of_shape,
    quantities,
    read,
    same_names,
)

Named: TypeAlias = dict[str, Any]


class Transferred(NamedTuple):
    """What `transfer` returns."""

    state: optax.OptState  # `like`, with what the source had
    unfilled: list[str]  # paths in `like` that are as they were
    unused: list[str]  # paths in the source that were not carried


_TORCH = {"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"}


class _Slots(NamedTuple):
    """A framework's state in the words of this module."""

    count: int | None
    rates: dict[str, float] | None  # for each parameter
    named: dict[str, Named]  # "nu", "mu", "trace" -> name -> array
    steps: bool  # the buffer contains the rate


def from_torch(
    state_dict: Mapping[str, Any],
    like: optax.OptState,
    convert: Convert,
    *,
    names: Sequence[str] | None = None,
    rate_in_buffer: bool = False,
) -> optax.OptState:
    """Fill a state with that of a PyTorch optimizer: torch's own, timm's, Stable-Baselines3's.

    Args:
        state_dict: `optimizer.state_dict()`, with any number of parameter groups.
        like: The state to fill, `tx.init(params)`: any tree of Optax states that has ours in it.
        convert: From a dictionary of named arrays to a tree like the parameters.
        names: The parameters' names in the order of the optimizer, `[name for name, _ in
            model.named_parameters()]`; not needed if it was made from named parameters.
        rate_in_buffer: The momentum buffer contains the rate: timm's RMSpropTF by default.

    Returns:
        A state like `like`, in its dtypes and shardings. `count` is torch's `step`, `learning_rate`
        the group's, if there is one rate. Real arrays with a last axis of two take complex ones.

    Raises:
        ValueError: if an entry is missing, surplus or of another shape, by the parameter's name.
        TypeError: if `state_dict` is not one.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from optax_rmsprop import dialects, interop
        >>> saved = {
        ...     "state": {0: {"step": 7.0, "square_avg": np.array([[1.0, 2.0]])}},
        ...     "param_groups": [{"lr": 0.01, "params": [0]}],
        ... }
        >>> empty = dialects.torch().init({"kernel": jnp.zeros((2, 1))})
        >>> to_flax = lambda named: {"kernel": named["weight"].T}
        >>> state = interop.from_torch(saved, empty, to_flax, names=["weight"])
        >>> print(state[0].count, state[0].nu["kernel"].T)
        7 [[1. 2.]]
    """
    groups = _torch_groups("from_torch", state_dict)
    parameters = _by_name(groups, _torch_names("from_torch", groups, names))
    named: dict[str, Named] = {}
    counts: dict[str, int] = {}
    for _, name, index in parameters:
        entry = state_dict["state"].get(index)
        if not entry:
            raise ValueError(f"from_torch: no state for {name!r}: it never had a gradient in torch")
        counts[name] = int(as_numpy(entry.get("step", 0)))
        for quantity, key in _TORCH.items():
            if entry.get(key) is not None:
                named.setdefault(quantity, {})[name] = as_numpy(entry[key])
    for quantity, arrays in named.items():
        if len(arrays) != len(counts):
            name = min(counts.keys() - arrays.keys())
            raise ValueError(f"from_torch: {name!r} has no {_TORCH[quantity]}, others have")
    surplus = state_dict["state"].keys() - {index for _, _, index in parameters}
    if surplus:
        raise ValueError(f"from_torch: state for parameters {sorted(surplus)} of no group")
    if len(set(counts.values())) != 1:
        raise ValueError(f"from_torch: the parameters differ in their number of steps: {counts}")
    rates = {name: float(as_numpy(group["lr"])) for group, name, _ in parameters}
    slots = _Slots(next(iter(counts.values())), rates, named, rate_in_buffer)
    return _from_slots("from_torch", slots, like, convert)


def to_torch(
    state: optax.OptState,
    like: Mapping[str, Any],
    convert: ConvertBack,
    *,
    names: Sequence[str] | None = None,
    rate_in_buffer: bool = False,
) -> dict[str, Any]:
    """The state dictionary of a PyTorch optimizer that goes on where `state` is.

    Load it with `optimizer.load_state_dict(tree_map_only(np.ndarray, torch.from_numpy, d))`, where
    `tree_map_only` is that of `torch.utils._pytree`. torch rounds it to the parameters' dtypes.

    Args:
        state: Any tree of Optax states with ours in it.
        like: `optimizer.state_dict()` of the optimizer that will take it, new or used: its groups
            are returned as they are, and their rates move the momentum.
        convert: From a tree like the parameters to a dictionary of named arrays.
        names, rate_in_buffer: As in `from_torch`.

    Returns:
        `{"state": {index: {"step", "square_avg", ...}}, "param_groups": [...]}` of NumPy arrays.

    Raises:
        ValueError, TypeError: as `from_torch`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optax_rmsprop import dialects, interop
        >>> tx = dialects.torch(alpha=0.75)
        >>> _, state = tx.update({"w": jnp.array([4.0])}, tx.init({"w": jnp.zeros(1)}))
        >>> fresh = {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]}
        >>> saved = interop.to_torch(state, fresh, lambda tree: tree, names=["w"])
        >>> print(saved["state"][0]["step"], saved["state"][0]["square_avg"])  # 0.25 * 4**2
        1.0 [4.]
    """
    groups = _torch_groups("to_torch", like)
    parameters = _by_name(groups, _torch_names("to_torch", groups, names))
    rates = {name: float(as_numpy(group["lr"])) for group, name, _ in parameters}
    slots = _to_named("to_torch", state, convert, list(rates), rates, rate_in_buffer)
    for group in groups:
        for quantity, option in (("trace", "momentum"), ("mu", "centered")):
            has = quantity in slots.named
            if bool(group.get(option, has)) != has:
                raise ValueError(
                    f"to_torch: the optimizer has {option}={group[option]}, and the state "
                    f"{'a' if has else 'no'} {_WORDS[quantity]}"
                )
    entries = {
        index: {"step": np.asarray(slots.count or 0, np.float32)}
        | {_TORCH[quantity]: arrays[name] for quantity, arrays in slots.named.items()}
        for _, name, index in parameters
    }
    return {"state": entries, "param_groups": copy.deepcopy(list(groups))}


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
    roles, arrays, names = _keras_roles("from_keras", variables, names, quantities(like))
    return _from_roles("from_keras", roles, arrays, names, like, convert, None, learning_rate)


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
    roles, arrays, names = _keras_roles("to_keras", like, names, quantities(state))
    return _to_roles("to_keras", roles, arrays, names, state, like, convert, learning_rate)


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
    roles, arrays, names = _tensorflow_roles("from_tensorflow1", variables)
    if "trace" not in quantities(like):
        # TensorFlow has the slot without momentum too; it holds the last step, which nothing reads.
        roles = [_Role(None) if role.quantity == "trace" else role for role in roles]
    return _from_roles(
        "from_tensorflow1", roles, arrays, names, like, convert, count, learning_rate
    )


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
    roles, arrays, names = _tensorflow_roles("to_tensorflow1", like)
    return _to_roles("to_tensorflow1", roles, arrays, names, state, like, convert, learning_rate)


def transfer(source: optax.OptState, like: optax.OptState) -> Transferred:
    """Carry what two Optax-style states have in common, and say what was left.

    From `optax.rmsprop` to this package, or from one configuration to another: with momentum added,
    centred or not, the rate on the other side of the buffer. ν is var + |mu|². Between two centred
    states with bias correction ν is not the same thing, and this is inexact.

    Args:
        source: A state with values, Optax's or ours.
        like: The state to fill, `tx.init(params)`.

    Returns:
        `Transferred(state, unfilled, unused)`: `like` with the source's values in its own dtypes
        and shardings, and two lists of paths. Both empty means that everything was carried.

    Raises:
        ValueError: if a parameter has another shape in the two, by its path.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> from optax_rmsprop import interop
        >>> params = jnp.array([1.0, 2.0])
        >>> theirs = optax.rmsprop(0.1, decay=0.75)
        >>> _, old = theirs.update(params * 4, theirs.init(params))
        >>> new = optax_rmsprop.rmsprop(0.1, decay=0.75, momentum=0.9).init(params)
        >>> state, unfilled, unused = interop.transfer(old, new)
        >>> print(state[0].nu, unfilled)
        [ 4. 16.] ['[0].count', '[1].count', '[1].learning_rate', '[2].count', '[2].trace']
    """
    found = read("transfer", source)
    values = {quantity: leaves_of(tree) for quantity, tree in found.trees.items()}
    for form, other, power in (("step", "direction", -1), ("direction", "step", 1)):
        if form in values and other not in values and found.rate:
            factor = found.rate**power
            values[other] = {at: factor * b for at, b in values[form].items()}
    state, unfilled, used = fill(
        "transfer", like, values, found.count, lambda _: found.rate, strict=False
    )
    used |= {"step", "direction"} if used & {"step", "direction"} else set()
    unused = [where for where, gave in found.gave.items() if not gave & used]
    return Transferred(state, unfilled, unused)


def _from_slots(
    function: str, slots: _Slots, like: optax.OptState, convert: Convert
) -> optax.OptState:
    named = dict(slots.named)
    if "trace" in named:
        buffer = named.pop("trace")
        named["step" if slots.steps else "direction"] = buffer
        if slots.rates and all(slots.rates.values()):
            rates = slots.rates
            power, other = (-1, "direction") if slots.steps else (1, "step")
            named[other] = {name: rates[name] ** power * b for name, b in buffer.items()}
    trees = {quantity: _converted(function, convert, arrays) for quantity, arrays in named.items()}
    by_name = slots.rates or {}
    rates = set(by_name.values())
    of = _rates_by_place(convert, by_name, named["nu"]) if len(rates) > 1 else {}

    def rate(places: set[Where]) -> float | None:
        found = {of[at] for at in places if at in of} if of else rates
        return next(iter(found)) if len(found) == 1 else None

    values = {quantity: leaves_of(tree) for quantity, tree in trees.items()}
    return fill(function, like, values, slots.count, rate)[0]


def _rates_by_place(convert: Convert, rates: dict[str, float], like: Named) -> dict[Where, float]:
    """The rate of each leaf: the weights' conversion moves it as it moves all else."""
    full = {name: np.full(np.shape(x), rates[name]) for name, x in like.items()}
    return {at: float(x.flat[0]) for at, x in leaves_of(convert(full)).items() if x.size}


def _to_named(
    function: str,
    state: optax.OptState,
    convert: ConvertBack,
    names: Sequence[str],
    rates: Mapping[str, float] | None,
    steps: bool,
) -> _Slots:
    found = read(function, state)
    named: dict[str, Named] = {}
    for quantity, tree in found.trees.items():
        tree = jax.tree.map(as_numpy, tree)
        arrays = {name: as_numpy(x) for name, x in convert(tree).items()}
        same_names(function, names, arrays)
        if quantity in ("step", "direction"):
            if quantity != ("step" if steps else "direction"):
                if rates is None or not all(rates.values()):
                    raise ValueError(f"{function}: {lacks(quantity, {quantity: {}})}; give a rate")
                power = 1 if steps else -1
                arrays = {name: rates[name] ** power * x for name, x in arrays.items()}
            quantity = "trace"
        named[quantity] = arrays
    return _Slots(found.count, None, named, steps)


def _torch_groups(function: str, state_dict: Any) -> list[Mapping[str, Any]]:
    found = _mapping(state_dict)
    if found is None or not {"state", "param_groups"} <= found.keys():
        raise TypeError(
            f"{function}: expected optimizer.state_dict(), with 'state' and 'param_groups', got "
            f"{_shown(state_dict)}; a model's state_dict() has weights only"
        )
    return found["param_groups"]


def _torch_names(
    function: str, groups: list[Mapping[str, Any]], names: Sequence[str] | None
) -> list[str]:
    count = sum(len(group["params"]) for group in groups)
    recorded = [name for group in groups for name in group.get("param_names", ())]
    if names is None and len(recorded) != count:
        raise ValueError(
            f"{function}: torch keeps no names for {count} parameters: give names=[name for name, "
            "_ in model.named_parameters()], in the order of the optimizer's groups"
        )
    names = recorded if names is None else list(names)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{function}: {len(set(names))} names for {count} parameters: {names}")
    if recorded and list(names) != recorded:
        pairs = zip(names, recorded, strict=True)
        ours, theirs = next((a, b) for a, b in pairs if a != b)
        raise ValueError(f"{function}: names has {ours!r} where torch recorded {theirs!r}")
    return list(names)


def _by_name(groups: list[Mapping[str, Any]], names: list[str]) -> Iterable[tuple[Any, str, Any]]:
    """Group, name and index of each parameter."""
    pairs = [(group, index) for group in groups for index in group["params"]]
    return [(group, name, index) for (group, index), name in zip(pairs, names, strict=True)]


_SLOT = re.compile(r"(?P<name>.+)/RMSProp(?:_(?P<number>\d+))?(?::0)?")


class _Role(NamedTuple):
    """What a variable of Keras or TensorFlow is: a quantity, and of which parameter."""

    quantity: str | None
    name: str = ""


_KERAS = {
    "velocity": "nu", "rms": "nu", "average_gradient": "mu", "mg": "mu", "momentum": "trace",
}  # fmt: skip
_KERAS_NAMES = [
    re.compile(r"(?:[^/]+/)*(?P<name>[^/]+)_(?P<kind>velocity|momentum|average_gradient)"),
    re.compile(r"(?:[^/]+/)?(?P<kind>velocity|momentum|average_gradient)/(?P<name>.+)"),
    re.compile(r"[^/]+/(?P<name>.+)/(?P<kind>rms|momentum|mg)"),
]


def _keras_roles(
    function: str, variables: Any, names: Sequence[str] | None, quantities: set[str]
) -> tuple[list[_Role], list[Any], list[str]]:
    """The role and the value of each variable, and the parameters' names."""
    by_key = _mapping(variables)
    if by_key is not None and not all(key.isdigit() for key in by_key):
        roles = [_keras_role(key.removesuffix(":0"), names) for key in by_key]
        values = list(by_key.values())
        strange = [role.name for role in roles if role.quantity is None]
        if strange or not any(role.quantity == "nu" for role in roles):
            raise TypeError(f"{function}: no variables of Keras's RMSprop: {strange or by_key}")
    elif by_key is not None or isinstance(variables, (list, tuple)):
        if names is None:
            raise ValueError(f"{function}: variables in order need names=, the parameters'")
        values = list(cast("Sequence[Any]", variables))
        if by_key is not None:  # a saved store, whose keys are numbers, sorted as text
            values = [by_key[key] for key in sorted(by_key, key=int)]
        roles = _keras_order(function, values, names, quantities)
    else:
        raise TypeError(f"{function}: expected an optimizer's variables, got {_shown(variables)}")
    found = [role.name for role in roles if role.quantity == "nu"]
    return roles, values, list(found if names is None else names)


def _keras_role(key: str, names: Sequence[str] | None) -> _Role:
    last = key.rpartition("/")[2]
    if last in ("iteration", "iter"):
        return _Role("count")
    if last == "learning_rate":
        return _Role("rate")
    for pattern in _KERAS_NAMES:
        if match := pattern.fullmatch(key):
            name = match["name"]
            # Keras 3 writes layer/kernel as layer_kernel in the names of its variables.
            known = {n.removesuffix(":0").replace("/", "_"): n for n in names or ()}
            return _Role(_KERAS[match["kind"]], known.get(name.replace("/", "_"), name))
    return _Role(None, key)


def _keras_order(
    function: str, values: list[Any], names: Sequence[str], quantities: set[str]
) -> list[_Role]:
    kinds = ["nu", *(q for q in ("trace", "mu") if q in quantities)]
    slots = [_Role(kind, name) for kind in kinds for name in names]
    head = [_Role("count"), _Role("rate")][: len(values) - len(slots)]
    if not head or len(head) + len(slots) != len(values):
        raise ValueError(
            f"{function}: {len(values)} variables, expected the iteration, perhaps the rate, and "
            f"{', '.join(_WORDS[kind] for kind in kinds)} of {len(names)} parameters"
        )
    return head + slots


def _tensorflow_roles(function: str, variables: Any) -> tuple[list[_Role], list[Any], list[str]]:
    by_key = _mapping(variables)
    if by_key is None:
        raise TypeError(f"{function}: expected variables by name, got {_shown(variables)}")
    slots: dict[str, list[tuple[int, str]]] = {}
    for key in by_key:
        if match := _SLOT.fullmatch(key):
            slots.setdefault(match["name"], []).append((int(match["number"] or 0), key))
    if not slots:
        raise TypeError(f"{function}: no slot <variable>/RMSProp in {_shown(variables)}")
    roles = {key: _Role(None) for key in by_key}
    roles |= {key: _Role("count") for key in by_key if key.removesuffix(":0") == "global_step"}
    for name, found in slots.items():
        # TensorFlow numbers them in the order in which it makes them, not always from 0.
        kinds = {2: ["nu", "trace"], 3: ["nu", "mu", "trace"]}.get(len(found))
        if kinds is None:
            raise ValueError(f"{function}: {name!r} has {len(found)} slots, expected 2 or 3")
        for kind, (_, key) in zip(kinds, sorted(found), strict=True):
            roles[key] = _Role(kind, name)
    return list(roles.values()), list(by_key.values()), sorted(slots)


def _from_roles(
    function: str,
    roles: list[_Role],
    values: list[Any],
    names: list[str],
    like: optax.OptState,
    convert: Convert,
    count: int | None,
    learning_rate: float | None,
) -> optax.OptState:
    named: dict[str, Named] = {}
    for role, value in zip(roles, values, strict=True):
        if role.quantity == "count" and count is None:
            count = int(as_numpy(value))
        elif role.quantity == "rate" and learning_rate is None:
            learning_rate = float(as_numpy(value))
        elif role.quantity in ("nu", "mu", "trace"):
            named.setdefault(role.quantity, {})[role.name] = as_numpy(value)
    for arrays in named.values():
        same_names(function, names, arrays)
    rates = None if learning_rate is None else dict.fromkeys(names, learning_rate)
    return _from_slots(function, _Slots(count, rates, named, True), like, convert)


def _to_roles(
    function: str,
    roles: list[_Role],
    values: list[Any],
    names: list[str],
    state: optax.OptState,
    like: Any,
    convert: ConvertBack,
    learning_rate: float | None,
) -> Any:
    found = read(function, state)
    rate = next(
        (float(as_numpy(v)) for r, v in zip(roles, values, strict=True) if r.quantity == "rate"),
        found.rate if learning_rate is None else learning_rate,
    )
    rates = None if rate is None else dict.fromkeys(names, rate)
    slots = _to_named(function, state, convert, names, rates, True)
    offered = {role.quantity for role in roles}
    for quantity in slots.named.keys() - offered:
        raise ValueError(f"{function}: the optimizer in `like` has no {_WORDS[quantity]}")
    result: list[Any] = []
    for role, value in zip(roles, values, strict=True):
        old = as_numpy(value)
        if role.quantity in slots.named:
            new = slots.named[role.quantity][role.name]
            result.append(of_shape(f"{function}: {role.name}", new, old.shape).astype(old.dtype))
        elif role.quantity == "count" and slots.count is not None:
            result.append(np.asarray(slots.count, old.dtype))
        elif role.quantity in _WORDS and _any({"": old}):
            raise ValueError(f"{function}: the state has no {_WORDS[role.quantity]}")
        else:
            result.append(old)
    by_key = _mapping(like)
    if by_key is not None and not all(key.isdigit() for key in by_key):
        return dict(zip(by_key, result, strict=True))
    return result


_WORDS = {"nu": "second moment", "mu": "mean (it is not centred)", "trace": "momentum"}


def _mapping(x: Any) -> Mapping[str, Any] | None:
    return cast("Mapping[str, Any]", x) if isinstance(x, Mapping) else None


def _shown(x: Any) -> str:
    """What a wrong argument is, in a line."""
    by_key = _mapping(x)
    if by_key is not None:
        return f"a {type(x).__name__} of {', '.join(map(str, list(by_key)[:4])) or 'nothing'}"
    return f"{type(x).__name__} {x!r:.60}"


def _any(arrays: Mapping[str, Any]) -> bool:
    return any(np.any(x) for x in arrays.values())


def _converted(function: str, convert: Convert, named: Named) -> Any:
    try:
        return convert(dict(named))
    except Exception as error:
        error.add_note(f"{function}: convert was called with {sorted(named)}")
        raise
