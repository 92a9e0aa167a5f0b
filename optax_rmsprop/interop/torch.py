"""PyTorch: `optimizer.state_dict()`, an entry for each parameter, in groups with a rate each."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from . import _states as states
from ._arrays import array_of, check_boolean, of_shape
from ._states import Convert, ConvertBack, Momentum

_KEYS = dict(nu="square_avg", mu="grad_avg", step="momentum_buffer", direction="momentum_buffer")
_KNOWN = {"step", *_KEYS.values()}


def from_torch(
    state_dict: Mapping[str, Any],
    like: optax.OptState,
    convert: Convert,
    *,
    names: Sequence[str] | None = None,
    rate_in_buffer: bool | None = None,
    count: int | None = None,
    learning_rate: float | None = None,
    missing_ok: bool = False,
    momentum: Momentum | None = None,
) -> optax.OptState:
    """Fill a state with that of a PyTorch optimizer: torch's own, timm's, Stable-Baselines3's.

    Args:
        state_dict: `optimizer.state_dict()`, with any number of parameter groups, or that of
            `torch.distributed.checkpoint`, keyed by name, flattened or not.
        like: The state to fill, `tx.init(params)`: any tree of Optax states that has ours in it,
            that of an `nnx.Optimizer` too. What it masks is not carried.
        convert: From a dictionary of named arrays to a tree like the parameters. It is called with
            the parameters that have a state in torch.
        names: The parameters' names in the order of the optimizer's groups; not needed if it was
            made from named parameters, or is keyed by name. `name = {id(p): n for n, p in
            model.named_parameters()}` and `[name[id(p)] for group in optimizer.param_groups for p
            in group["params"]]` are right for any groups.
        rate_in_buffer: Whether the momentum buffer contains the rate. None reads timm's
            `lr_in_momentum` from the groups; without one it does not.
        count: The steps made, >= 0, in place of torch's, which differ between parameters if some
            were frozen for a while.
        learning_rate: The rate, >= 0, in place of the groups', which a schedule may have left at 0.
        missing_ok: Parameters that never had a gradient, and so have no state in torch, keep what
            `like` has. Those with a state must then all come out of `convert`.
        momentum: What a buffer in `like` holds where its links do not tell, since Optax's rates
            leave no name: "steps" if the rate comes before it, or "directions".

    Returns:
        A state like `like`, in its dtypes and shardings. `count` is torch's `step`,
        `last_learning_rate` the group's, if there is one rate. What is none of RMSprop's, and
        injected hyperparameters, stay as they are in `like`. Real arrays with a last axis of two
        take complex ones.

    Raises:
        ValueError: if an entry is missing, surplus or of another shape, or has numbers that no
            RMSprop accumulates, by the parameter's name.
        TypeError: if `state_dict` is not one, or an array cannot be read.

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
    check_boolean("from_torch: missing_ok", missing_ok)
    saved = _Saved.of("from_torch", state_dict, names, rate_in_buffer, learning_rate)
    named: dict[str, dict[str, Any]] = {}
    counts = dict[str, int | None]()
    for name, entry in saved.entries.items():
        counts[name] = _step(name, entry, count)
        for quantity in ("nu", "mu", saved.form):
            if (x := entry.get(_KEYS[quantity])) is not None:
                where = f"from_torch: the {_KEYS[quantity]} of {name!r}"
                named.setdefault(quantity, {})[name] = array_of(where, x)
    if not counts and count is not None:
        counts = dict.fromkeys(saved.rates, states.whole_number("from_torch: count", count))
    return states.from_named(
        "from_torch",
        named,
        like,
        convert,
        rates=saved.rates,
        counts=counts,
        momentum=momentum,
        missing_ok=missing_ok,
        hints=_hints(saved, named),
    )


def to_torch(
    state: optax.OptState,
    like: Mapping[str, Any],
    convert: ConvertBack,
    *,
    names: Sequence[str] | None = None,
    rate_in_buffer: bool | None = None,
    count: int | None = None,
    learning_rate: float | None = None,
    momentum: Momentum | None = None,
) -> dict[str, Any]:
    """The state dictionary of a PyTorch optimizer that goes on where `state` is.

    Load it with `optimizer.load_state_dict(tree_map_only(np.ndarray, torch.from_numpy, d))`, where
    `tree_map_only` is that of `torch.utils._pytree`. torch rounds it to the parameters' dtypes.

    Args:
        state: Any tree of Optax states with ours in it, that of an `nnx.Optimizer` too.
        like: `optimizer.state_dict()` of the optimizer that will take it, new or used: its groups
            are returned as they are, and their rates move the momentum.
        convert: From a tree like the parameters to a dictionary of named arrays. The pairs of a
            complex parameter become complex by the optimizer's state; where it is new, `convert`
            does it: `x[..., 0] + 1j * x[..., 1]`.
        count: The steps made, in place of the state's. A state of Optax may have none; then
            `step`, which RMSprop does not read, is that of `like`, or 0.
        names, rate_in_buffer, learning_rate: As in `from_torch`.
        momentum: As in `from_torch`, of a buffer in `state`.

    Returns:
        `{"state": {index: {"step", "square_avg", ...}}, "param_groups": [...]}` of NumPy arrays
        that are copies, keyed as `like` is. What the state masks has no entry, as what never had a
        gradient has none in torch.

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
    saved = _Saved.of("to_torch", like, names, rate_in_buffer, learning_rate)
    found = states.read("to_torch", state, momentum)
    named = states.to_named("to_torch", found, convert, saved.rates, saved.form)
    if count is None:
        counts = states.counts_of("to_torch", found, convert, named["nu"])
    else:
        counts = dict.fromkeys(saved.rates, states.whole_number("to_torch: count", count))
    entries = dict[Any, dict[str, Any]]()
    for name in named["nu"]:
        index, group, old = saved.indices[name], saved.groups[name], saved.entries.get(name, {})
        for quantity, option in ((saved.form, "momentum"), ("mu", "centered")):
            has = name in named.get(quantity, {})
            if bool(group.get(option, has)) != has:
                raise ValueError(
                    f"to_torch: the optimizer has {option}={group[option]}, and the state "
                    f"{'a' if has else 'no'} {states.WORDS[quantity]} for {name!r}"
                )
        step = counts.get(name, array_of(f"to_torch: the step of {name!r}", old.get("step", 0)))
        entries[index] = {"step": np.asarray(step, np.float32)}
        for quantity, arrays in named.items():
            key = _KEYS[quantity]
            if name in arrays:
                where = f"to_torch: the {key} of {name!r}"
                entries[index][key] = _like(where, arrays[name], old.get(key))
    if _is_flat(like):
        flat = {f"state.{i}.{key}": x for i, entry in entries.items() for key, x in entry.items()}
        groups = {key: x for key, x in like.items() if key.startswith("param_groups.")}
        return flat | copy.deepcopy(groups)
    return {"state": entries, "param_groups": copy.deepcopy(list(like["param_groups"]))}


def _hints(saved: "_Saved", named: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the error about a quantity that `like` needs says besides."""
    hints = {
        kind: f": {', '.join(map(repr, names))} has no {_KEYS[quantity]}"
        for kind, quantity in (("nu", "nu"), ("mu", "mu"), ("momentum", saved.form))
        if (names := sorted(saved.entries.keys() - named.get(quantity, {}).keys()))
    }
    if absent := sorted(saved.rates.keys() - saved.entries.keys()):
        text = (
            f": torch has no state for {', '.join(map(repr, absent))}, which never had a gradient; "
            "missing_ok=True keeps what `like` has"
        )
        kinds = {"mu": "mu", "momentum": saved.form}
        has = [kind for kind, quantity in kinds.items() if named.get(quantity)]
        hints |= dict.fromkeys(["nu", "count", *has], text)
    return hints


def _like(where: str, x: states.Array, old: Any) -> states.Array:
    """`x` in the shape of what an optimizer has, complex where that is."""
    if old is None:
        return x
    old = array_of(where, old)
    if np.iscomplexobj(old) and x.shape == (*old.shape, 2):
        x = x[..., 0] + 1j * x[..., 1]
    return of_shape(where, x, old.shape)


class _Saved(NamedTuple):
    """A state dictionary by the parameters' names."""

    indices: dict[str, Any]
    groups: dict[str, Mapping[str, Any]]
    rates: dict[str, float | None]
    entries: dict[str, Mapping[str, Any]]  # of the parameters that have one
    form: str  # of the momentum

    @classmethod
    def of(
        cls,
        function: str,
        state_dict: Any,
        names: Sequence[str] | None,
        rate_in_buffer: bool | None,
        learning_rate: float | None,
    ) -> "_Saved":
        state, groups = _parts(function, state_dict)
        owned = [(index, group) for group in groups for index in group["params"]]
        names = _names(function, groups, len(owned), names)
        indices = {name: index for name, (index, _) in zip(names, owned, strict=True)}
        of = {name: group for name, (_, group) in zip(names, owned, strict=True)}
        rates: dict[str, float | None] = {
            name: states.learning_rate_of(
                f"{function}: {'the lr of' if learning_rate is None else 'learning_rate for'} "
                f"{name!r}",
                group["lr"] if learning_rate is None else learning_rate,
            )
            for name, group in of.items()
        }
        if surplus := [key for key in state if key not in set(indices.values())]:
            raise ValueError(f"{function}: state for parameters {surplus} of no group")
        entries = {name: state[index] for name, index in indices.items() if state.get(index)}
        for name, entry in entries.items():
            _check_entry(function, name, entry)
        inside = _rate_in_buffer(function, groups, rate_in_buffer)
        return cls(indices, of, rates, entries, "step" if inside else "direction")


def _parts(function: str, state_dict: Any) -> tuple[Mapping[Any, Any], list[Mapping[str, Any]]]:
    """The entries and the groups."""
    found = states.as_mapping(state_dict)
    if found is not None and _is_flat(found):
        found = _nested(found)
    if found is None or not {"state", "param_groups"} <= found.keys():
        raise TypeError(
            f"{function}: expected optimizer.state_dict(), with 'state' and 'param_groups', got "
            f"{states.shown(state_dict)}; a model's state_dict() has weights only"
        )
    state = states.as_mapping(found["state"])
    if state is None:
        raise TypeError(
            f"{function}: 'state' must be a dictionary, got {states.shown(found['state'])}"
        )
    groups = list(found["param_groups"])
    for i, group in enumerate(groups):
        lacking = sorted({"lr", "params"} - set(states.as_mapping(group) or ()))
        if lacking:
            raise TypeError(
                f"{function}: 'param_groups'[{i}] has no {' and no '.join(map(repr, lacking))}"
            )
    return state, groups


def _is_flat(state_dict: Mapping[Any, Any]) -> bool:
    """Whether it is flattened, as `torch.distributed.checkpoint` can do."""
    return bool(state_dict) and all(
        isinstance(key, str) and key.startswith(("state.", "param_groups.")) for key in state_dict
    )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flattened state dictionary as it was, in groups of one parameter."""
    tree: dict[str, dict[str, dict[str, Any]]] = {"state": {}, "param_groups": {}}
    for key, value in flat.items():
        kind, _, rest = key.partition(".")
        name, _, option = rest.rpartition(".")
        tree[kind].setdefault(name, {})[option] = value
    groups = [group | {"params": [name]} for name, group in tree["param_groups"].items()]
    return {"state": tree["state"], "param_groups": groups}


def _names(
    function: str, groups: list[Mapping[str, Any]], count: int, names: Sequence[str] | None
) -> list[str]:
    recorded: list[str | None] = []
    for i, group in enumerate(groups):
        keys = [index if isinstance(index, str) else None for index in group["params"]]
        recorded += (found := group.get("param_names") or keys)
        if len(found) != len(keys):
            raise ValueError(
                f"{function}: 'param_groups'[{i}] has {len(found)} param_names for {len(keys)} "
                "parameters"
            )
    if isinstance(names, str):
        raise TypeError(f"{function}: names must be a list of names, got {names!r}")
    if names is None:
        names = [name for name in recorded if name is not None]
        if len(names) != count:
            raise ValueError(
                f"{function}: torch keeps no names for {count} parameters: give names, in the "
                "order of the groups: name = {id(p): n for n, p in model.named_parameters()}; "
                'names=[name[id(p)] for group in optimizer.param_groups for p in group["params"]]'
            )
    names = list(names)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{function}: {len(set(names))} names for {count} parameters: {names}")
    if all(isinstance(index, str) for group in groups for index in group["params"]):
        # Each entry has its name, whatever the order of those that were given.
        states.same_names(f"{function}: names", [str(name) for name in recorded], names)
        return [str(name) for name in recorded]
    for ours, theirs in zip(names, recorded, strict=True):
        if theirs is not None and ours != theirs:
            raise ValueError(f"{function}: names has {ours!r} where torch recorded {theirs!r}")
    return names


def _rate_in_buffer(function: str, groups: list[Mapping[str, Any]], given: bool | None) -> bool:
    """Whether the buffer contains the rate: what timm's groups say, or what is given."""
    if given is not None:
        check_boolean(f"{function}: rate_in_buffer", given)
    found = [group["lr_in_momentum"] for group in groups if "lr_in_momentum" in group]
    for x in found:
        check_boolean(f"{function}: lr_in_momentum", x)
    said = set(found)
    if len(said | ({given} - {None})) > 1:
        raise ValueError(
            f"{function}: the groups have lr_in_momentum={sorted(said)}, and rate_in_buffer={given}"
        )
    return said.pop() if said else bool(given)


def _check_entry(function: str, name: str, entry: Any) -> None:
    """Refuse what is no state of RMSprop."""
    found = states.as_mapping(entry)
    if found is None:
        raise TypeError(f"{function}: the state of {name!r} is {states.shown(entry)}")
    if strange := sorted(map(str, found.keys() - _KNOWN)):
        raise ValueError(
            f"{function}: the state of {name!r} has {', '.join(strange)}, which RMSprop has not"
        )


def _step(name: str, entry: Mapping[str, Any], count: int | None) -> int:
    if count is not None:
        return states.whole_number("from_torch: count", count)
    if "step" not in entry:
        raise ValueError(f"from_torch: {name!r} has no step: give count=")
    return states.whole_number(f"from_torch: the step of {name!r}", entry["step"])
