"""Keras: an optimizer's variables, by name or in order, Keras 3's, tf_keras's or tf.keras 2's."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optax

from . import _checkpoints as checkpoints
from . import _orders as orders
from . import _states as states
from ._states import Convert, ConvertBack, Momentum
from ._variables import new, numbers

_KINDS = dict(velocity="nu", rms="nu", average_gradient="mu", mg="mu", momentum="step")
_SCALARS = {
    "iteration": "count",
    "iter": "count",
    "learning_rate": "learning_rate",
    "current_learning_rate": "learning_rate",
}
_LOSS_SCALE = {"step_counter", "dynamic_scale"}  # of the optimizer that has ours inside
_KIND = "(?P<kind>velocity|momentum|average_gradient|average|gradient_accumulator)"
_KERAS3 = re.compile(rf"(?:(?P<scope>.+)/)?(?P<name>[^/]+)_{_KIND}")
_TF_KERAS = [
    re.compile(rf"(?P<scope>){_KIND}/(?P<name>.+)"),
    re.compile(rf"(?P<scope>.+?)/{_KIND}/(?P<name>.+)"),  # in a file
]
_RMSPROP = re.compile(r"(?i)(?:.*/)?rm_?sprop(_\d+)*")
_OTHERS = re.compile(
    r"(?i)(adam|(schedule_?free_?)?adam_?w|adamax|adadelta|adafactor|adagrad|ftrl|lamb|lion|muon"
    r"|nadam|sgd)(_\d+)*"
)
_GROUPS = [
    "optimizer/inner_optimizer/vars", "optimizer/vars", "optimizer_weights",
    "inner_optimizer/vars", "vars",
]  # fmt: skip
_INNER = (
    "in mixed precision RMSprop's are `optimizer.inner_optimizer.variables`, and in a file the "
    "group 'optimizer/inner_optimizer/vars'"
)
_BY_NAME = "`{v.path: v for v in optimizer.variables}`"
_HINT = (
    "if there are variables of use_ema, of gradient_accumulation_steps or of another optimizer, "
    f"give them by name, {_BY_NAME}"
)


def from_keras(
    variables: Mapping[str, Any] | Sequence[Any],
    like: optax.OptState,
    convert: Convert,
    *,
    names: Sequence[str] | None = None,
    count: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    momentum: Momentum | None = None,
) -> optax.OptState:
    """Fill a state with that of a Keras optimizer: Keras 3's, tf_keras's, tf.keras 2's.

    Args:
        variables: The list `optimizer.variables`; or these by name, `{v.path: v for v in
            optimizer.variables}` (tf_keras: `v.name`), as the group "optimizer_weights" of a whole
            model's `.h5`, or as a checkpoint of TensorFlow 2, `{n: reader.get_tensor(n) for n in
            reader.get_variable_to_shape_map()}`; or arrays in the optimizer's order, with `names`:
            `get_weights()`, or the group "optimizer/vars" of a `.weights.h5`, which a `.keras` file
            contains. The averaged weights of `use_ema` and the sums of
            `gradient_accumulation_steps` are not read. Without names their number and their values
            tell where they are; if these leave it open, names are asked for.
        like, convert: As in `from_torch`.
        names: The parameters' names in the model's order, `[v.path for v in
            model.trainable_variables]`. Without them the names are those that Keras gave its
            variables, "layer_kernel" for "layer/kernel".
        count: The steps made; by default Keras's `iteration`, which counts batches, also where
            `gradient_accumulation_steps` of them make a step.
        learning_rate: The rate, if Keras does not have it as a variable, and `like` has its
            momentum before the rate.
        optimizer: Which one, "generator_optimizer", of several in a checkpoint.
        momentum: As in `from_torch`.

    Returns:
        A state like `like`, in its dtypes and shardings.

    Raises:
        ValueError: as `from_torch`.
        TypeError: if `variables` are not those of an RMSprop.

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
    found = variables_of("from_keras", variables, names, states.quantities(like), optimizer)
    return states.from_variables("from_keras", found, like, convert, count, learning_rate, momentum)


def to_keras(
    state: optax.OptState,
    like: Mapping[str, Any] | Sequence[Any],
    convert: ConvertBack,
    *,
    names: Sequence[str] | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    momentum: Momentum | None = None,
) -> Any:
    """The variables of a Keras optimizer that goes on where `state` is.

    Build it first, `optimizer.build(model.trainable_variables)`, and assign:
    `for variable, value in zip(optimizer.variables, result): variable.assign(value)`.

    Args:
        state: Any tree of Optax states with ours in it.
        like: The optimizer's variables, as in `from_keras`.
        convert: From a tree like the parameters to a dictionary of named arrays.
        names, learning_rate, optimizer: As in `from_keras`. Keras's own rate is kept.
        momentum: As in `to_torch`.

    Returns:
        New NumPy arrays under the same names, or in the same order, and in the same dtypes. What
        is not RMSprop's, as averaged weights, is as in `like`; of a checkpoint only the optimizer's
        entries are returned.

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
    found = variables_of("to_keras", like, names, states.quantities(state), optimizer)
    result = written("to_keras", found, state, convert, learning_rate, momentum)
    return list(result.values()) if all(str(key).isdigit() for key in result) else result


def written(
    function: str,
    found: states.Variables,
    state: optax.OptState,
    convert: ConvertBack,
    learning_rate: float | None,
    momentum: Momentum | None = None,
) -> dict[Any, states.Array]:
    """The variables that were found, with what a state holds, in their own dtypes."""
    made = states.to_variables(function, found, state, convert, learning_rate, momentum)
    return {k: new(f"{function}: {k!r}", x, found.values[k].dtype) for k, x in made.items()}


def variables_of(
    function: str,
    variables: Any,
    names: Any,
    has: set[str],
    optimizer: str | None,
    order: orders.Order | None = None,
) -> states.Variables:
    """What each variable of an optimizer holds, and of which parameter."""
    given = _checked(function, names)
    labels, in_order = _labels(function, variables, optimizer)
    values = {
        key: numbers(f"{function}: {(label or key)!r}", variables[key])
        for key, label in labels.items()
    }
    if all(labels.values()):
        return _named(function, labels, values, given, in_order)
    if given is None:
        raise ValueError(f"{function}: variables in order need names=, the parameters'")
    return _ordered(function, values, given, has, order)


def _checked(function: str, names: Any) -> list[str] | None:
    """The names that are given."""
    if names is None:
        return None
    if not isinstance(names, Iterable) or isinstance(names, str):
        raise TypeError(f"{function}: names must be a list of names, got {states.shown(names)}")
    found = [str(name) for name in cast("Iterable[Any]", names)]
    if twice := [name for name, n in Counter(found).items() if n > 1]:
        raise ValueError(f"{function}: names has {twice[0]!r} twice")
    return found


def _labels(function: str, variables: Any, optimizer: str | None) -> tuple[dict[Any, str], bool]:
    """The variables' keys, each with the name that the source gives it; are they in order?"""
    found = states.as_mapping(variables)
    if not all(isinstance(key, str) for key in cast("Iterable[Any]", found or ())):
        raise TypeError(f"{function}: expected variables by name, got {states.shown(variables)}")
    if found and checkpoints.is_checkpoint(found):
        return checkpoints.entries_of(function, found, optimizer)
    if optimizer is not None:
        raise ValueError(f"{function}: optimizer={optimizer!r} is for a checkpoint of TensorFlow 2")
    if isinstance(variables, (list, tuple)):
        return {i: _own_name(x) for i, x in enumerate(cast("Sequence[Any]", variables))}, True
    if not found:
        raise TypeError(
            f"{function}: expected an optimizer's variables, got {states.shown(variables)}; of a "
            "file, give a group that is opened with h5py"
        )
    attributes = getattr(found, "attrs", {})
    if all(key.isdigit() for key in found):
        check_owner(function, str(attributes.get("name", "")))
        return dict.fromkeys(sorted(found, key=int), ""), True
    if "weight_names" in attributes:
        keys = [k.decode() if isinstance(k, bytes) else k for k in attributes["weight_names"]]
        return {key: key.removesuffix(":0") for key in keys}, True
    if group := next((group for group in [*_GROUPS, *found] if _has_group(found, group)), ""):
        raise TypeError(
            f"{function}: expected an optimizer's variables, got what holds them: give its group "
            f"{group!r}"
        )
    return {key: key.removesuffix(":0") for key in found}, False


def _own_name(variable: Any) -> str:
    """The name that a variable of Keras or TensorFlow knows."""
    name: Any = getattr(variable, "path", None) or getattr(variable, "name", None)
    known = isinstance(name, str) and not name.startswith("/")  # as that of a dataset of a file
    return name.removesuffix(":0") if known else ""


def _has_group(found: Any, group: str) -> bool:
    for part in group.split("/"):
        found = (states.as_mapping(found) or {}).get(part)
    return bool(states.as_mapping(found))


def check_owner(function: str, scope: str) -> None:
    """Refuse the variables of another optimizer, by its default name."""
    for part in scope.split("/"):
        if _OTHERS.fullmatch(part):
            raise TypeError(f"{function}: no variables of Keras's RMSprop, but of {part!r}")


def _named(
    function: str,
    labels: Mapping[Any, str],
    values: Mapping[Any, states.Array],
    names: list[str] | None,
    in_order: bool,
) -> states.Variables:
    """Each variable's quantity and parameter by the names of a source."""
    spelling = _spelling(function, list(labels.values()))
    slots = {key: m for key, label in labels.items() if (m := spelling.fullmatch(label))}
    scalars = {key: label.rpartition("/") for key, label in labels.items() if key not in slots}
    for scope in {m["scope"] or "" for m in slots.values()} | {x[0] for x in scalars.values()}:
        check_owner(function, scope)
    roles = _scalar_roles(function, labels, values, scalars)
    if spelling is _KERAS3:
        _check_blocks(function, labels, slots, in_order)
    found: dict[str, list[tuple[Any, str]]] = {}
    for key, match in slots.items():
        if match["kind"] == "gradient_accumulator" and np.any(values[key]):
            raise ValueError(
                f"{function}: {labels[key]!r} is in the midst of an accumulation; leave these "
                "variables out to drop it"
            )
        if quantity := _KINDS.get(match["kind"]):
            found.setdefault(quantity, []).append((key, match["name"]))
    parameters = _parameters(function, [name for _, name in found["nu"]], names, in_order)
    expected = [name for of_one in parameters.values() for name in of_one]
    for quantity, variables in found.items():
        left = {short: list(of_one) for short, of_one in parameters.items()}
        got = [left[short].pop(0) if left.get(short) else short for _, short in variables]
        states.same_names(function, expected, got)
        if len(got) != len(expected):
            raise ValueError(f"{function}: {len(got)} variables of {states.WORDS[quantity]}")
        roles |= {key: (quantity, n) for (key, _), n in zip(variables, got, strict=True)}
    return states.Variables(values, roles, expected)


def _scalar_roles(
    function: str,
    labels: Mapping[Any, str],
    values: Mapping[Any, states.Array],
    scalars: Mapping[Any, tuple[str, str, str]],
) -> dict[Any, tuple[str, str]]:
    """The quantities of the scalars, without those of an optimizer that scales the loss."""
    outer = {scope for scope, _, name in scalars.values() if name in _LOSS_SCALE}
    roles = {
        key: (_SCALARS[name], "")
        for key, (scope, _, name) in scalars.items()
        if name in _SCALARS and scope not in outer
    }
    if len({*roles.values()}) != len(roles):
        several = sorted(labels[key] for key in roles)
        raise ValueError(
            f"{function}: variables of several optimizers, give those of one: {several}"
        )
    for key in roles:
        if shape := values[key].shape:
            raise ValueError(f"{function}: {labels[key]!r} has shape {shape}, expected ()")
    return roles


def _spelling(function: str, labels: list[str]) -> re.Pattern[str]:
    """The one that spells all of these: a layer, too, may be called "momentum"."""
    owners = [owner for owner, _, name in (x.rpartition("/") for x in labels) if name == "iter"]
    scopes = "|".join([*map(re.escape, owners), "[^/]+"])
    legacy = re.compile(rf"(?P<scope>{scopes})/(?P<name>.+)/(?P<kind>rms|momentum|mg)")
    spellings = [_KERAS3, _TF_KERAS[0], legacy, _TF_KERAS[1]]
    scalars = {*_SCALARS, *_LOSS_SCALE}
    slots = [label for label in labels if label.rpartition("/")[2] not in scalars]
    for spelling in spellings:
        found = [match["kind"] for label in slots if (match := spelling.fullmatch(label))]
        if len(found) == len(slots) and any(_KINDS.get(kind) == "nu" for kind in found):
            return spelling
    strange = [x for x in slots if not any(s.fullmatch(x) for s in spellings)]
    raise TypeError(f"{function}: no variables of Keras's RMSprop: {(strange or labels)[:6]}")


def _check_blocks(
    function: str, labels: Mapping[Any, str], slots: Mapping[Any, re.Match[str]], in_order: bool
) -> None:
    """RMSprop has all velocities first; Adam has the same names, and its momentum first.

    Where the order may be anybody's, RMSprop's own name is enough.
    """
    momentum = ""
    for key, match in slots.items():
        known = not in_order and _RMSPROP.fullmatch(match["scope"] or "")
        if match["kind"] == "velocity" and momentum and not known:
            raise TypeError(
                f"{function}: {momentum!r} comes before {labels[key]!r}, as in Adam and not in "
                "Keras's RMSprop; give its variables in its order"
            )
        momentum = labels[key] if match["kind"] == "momentum" else momentum


def _parameters(
    function: str, shorts: list[str], names: list[str] | None, in_order: bool
) -> dict[str, list[str]]:
    """The parameters that each name of a source stands for."""
    twice = [short for short, n in Counter(shorts).items() if n > 1]
    if twice and (names is None or not in_order):
        raise ValueError(
            f"{function}: two variables are called {twice[0]!r}; give the list of the variables, "
            "and names="
        )
    if names is None:
        return {short: [short] for short in shorts}
    pairs = _pairs(shorts, names)
    if pairs is None and in_order and not {*map(_flat, shorts)} & {*map(_flat, names)}:
        if len(shorts) != len(names):
            raise ValueError(f"{function}: {len(names)} names for {len(shorts)} parameters")
        pairs = list(zip(shorts, names, strict=True))
    if pairs is None:
        known = {_flat(name): name for name in names}
        states.same_names(function, names, [known.get(_flat(x), x) for x in shorts])
        raise ValueError(f"{function}: the names {names} do not tell {shorts} apart")
    found: dict[str, list[str]] = {}
    for short, name in pairs:
        found.setdefault(short, []).append(name)
    return found


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _flat(name: str) -> str:
    """A parameter's name as it is in those of a Keras 3 optimizer's variables."""
    return _plain(name).replace("/", "_")


def _pairs(shorts: list[str], names: list[str]) -> list[tuple[str, str]] | None:
    """Each name of a source, and the one that is given for it; equal ones in their order."""
    for form in (_plain, _flat):
        if Counter(map(form, shorts)) == Counter(map(form, names)):
            return list(zip(sorted(shorts, key=form), sorted(names, key=form), strict=True))
    ends = [(s, n) for s in shorts for n in names if _flat(s).endswith(f"_{_flat(n)}")]
    one_to_one = len(ends) == len(shorts) == len(names) == len({n for _, n in ends})
    return ends if one_to_one and len({s for s, _ in ends}) == len(ends) else None


def _ordered(
    function: str,
    values: Mapping[Any, states.Array],
    names: list[str],
    has: set[str],
    order: orders.Order | None,
) -> states.Variables:
    """The quantities that `has` says, in the optimizer's order, which may be known."""
    kinds = (("nu", "nu"), ("step", "trace"), ("mu", "mu"))
    own = orders.own(order) if order else tuple(kind for kind, q in kinds if q in has)
    arrays = [*values.values()]
    each, head = _counts(function, arrays, names, own, order)
    _check_shapes(function, arrays, names, head)
    order = order or _order(function, arrays, names, own, each)
    roles = dict(zip(values, _roles(order, names, head), strict=True))
    by_role = {role: values[key] for key, role in roles.items()}
    _check_numbers(function, by_role, names)
    kept = {key: role for key, role in roles.items() if role[0] not in orders.BEFORE}
    return states.Variables(values, kept, names)


def _counts(
    function: str,
    arrays: list[states.Array],
    names: list[str],
    own: orders.Order,
    order: orders.Order | None,
) -> tuple[int, int]:
    """How many slots each parameter has, and how many scalars come before."""
    most = len(own) + len(orders.BEFORE)
    for each in [len(order)] if order else range(len(own), most + 1):
        head = len(arrays) - each * len(names)
        shapes = [x.shape for x in arrays[max(head, 0) :]]
        alike = each == len(own) or shapes == shapes[: len(names)] * each
        if alike and (head == 1 or (head == 2 and arrays[1].ndim == 0)):
            return each, head
    raise _other_count(function, len(arrays), names, own)


def _other_count(function: str, found: int, names: list[str], own: orders.Order) -> ValueError:
    return ValueError(
        f"{function}: {found} variables, expected the iteration, perhaps the rate, "
        f"and {', '.join(orders.WORDS[kind] for kind in own)} of {len(names)} parameters; "
        f"{_HINT}; {_INNER}"
    )


def _check_shapes(function: str, arrays: list[states.Array], names: list[str], head: int) -> None:
    """Every kind of slot has the parameters' shapes."""
    owners = ["count", "learning_rate"][:head] + [*names] * len(arrays)
    for i, x in enumerate(arrays):
        if x.shape != (arrays[head + (i - head) % len(names)].shape if i >= head else ()):
            raise ValueError(
                f"{function}: a variable of {owners[i]!r} has shape {x.shape}; {_HINT}"
            )


def _order(
    function: str, arrays: list[states.Array], names: list[str], own: orders.Order, each: int
) -> orders.Order:
    """The only order that ends with what is wanted and that the numbers do not deny."""
    slots = arrays[len(arrays) - each * len(names) :]
    steps = float(arrays[0])
    if each == len(own) and not any(np.any(x) for x in slots):
        return own  # zeros are the same in any order
    found = orders.possible({}, slots, each, steps)
    fits = [order for order in found if orders.own(order) == own]
    if each == len(own) and not fits:
        wanted = dict(zip(_roles(own, names, 0), slots, strict=True))
        _check_numbers(function, wanted, names)
        raise ValueError(
            f"{function}: every second moment is 0 after {steps:g} steps, and what follows is not; "
            f"{_HINT}"
        )
    if not fits:
        raise _other_count(function, len(arrays), names, own)
    if len({order.index("nu") for order in found}) == 1 and (order := orders.agreed(fits, slots)):
        return order
    readings = [", ".join(orders.WORDS[kind] for kind in order) for order in found]
    raise ValueError(
        f"{function}: the {each} variables of each parameter have no names, and may be "
        f"({') or ('.join(readings)}); {_HINT}"
    )


def _roles(order: orders.Order, names: Sequence[str], head: int) -> list[tuple[str, str]]:
    scalars = [("count", ""), ("learning_rate", "")][:head]
    return scalars + [(kind, name) for kind in order for name in names]


def _check_numbers(
    function: str, found: Mapping[tuple[str, str], states.Array], names: Sequence[str]
) -> None:
    """Refuse numbers that cannot be what the order says: others may stand there."""
    for (kind, name), x in found.items():
        if kind == "nu" and np.any(x < 0):
            raise ValueError(f"{function}: the second moment of {name!r} is negative; {_HINT}")
        if kind == "mu" and orders.exceeds(x, found["nu", name]):
            raise ValueError(f"{function}: the mean of {name!r} is larger than √ν; {_HINT}")
        if kind == "accumulator" and np.any(x):
            raise ValueError(
                f"{function}: {name!r} is in the midst of an accumulation; save after a whole "
                "number of them, or give the variables by name without these to drop it"
            )
