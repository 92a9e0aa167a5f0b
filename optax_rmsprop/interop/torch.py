"""PyTorch: `optimizer.state_dict()`, an entry for each parameter, in groups with a rate each."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

from . import _states as states
from ._states import Convert, ConvertBack

_KEYS = dict(nu="square_avg", mu="grad_avg", step="momentum_buffer", direction="momentum_buffer")


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
    indices, rates = _parameters("from_torch", state_dict, names)
    entries = _entries(state_dict["state"], indices)
    form = "step" if rate_in_buffer else "direction"
    named = {quantity: _arrays(entries, _KEYS[quantity]) for quantity in ("nu", "mu", form)}
    named = {quantity: arrays for quantity, arrays in named.items() if arrays}
    counts = {name: int(states.as_numpy(entry.get("step", 0))) for name, entry in entries.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"from_torch: the parameters differ in their number of steps: {counts}")
    return states.from_named("from_torch", named, rates, min(counts.values()), like, convert)


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
    indices, rates = _parameters("to_torch", like, names)
    found = states.read("to_torch", state)
    form = "step" if rate_in_buffer else "direction"
    named = states.to_named("to_torch", found, convert, rates, form)
    for group in like["param_groups"]:
        for quantity, option in ((form, "momentum"), ("mu", "centered")):
            has = quantity in named
            if bool(group.get(option, has)) != has:
                raise ValueError(
                    f"to_torch: the optimizer has {option}={group[option]}, and the state "
                    f"{'a' if has else 'no'} {states.WORDS[quantity]}"
                )
    entries = {
        index: {"step": np.asarray(found.count or 0, np.float32)}
        | {_KEYS[quantity]: arrays[name] for quantity, arrays in named.items()}
        for name, index in indices.items()
    }
    return {"state": entries, "param_groups": copy.deepcopy(list(like["param_groups"]))}


def _parameters(
    function: str, state_dict: Any, names: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """The index and the learning rate of each parameter, by its name."""
    found = states.as_mapping(state_dict)
    if found is None or not {"state", "param_groups"} <= found.keys():
        raise TypeError(
            f"{function}: expected optimizer.state_dict(), with 'state' and 'param_groups', got "
            f"{states.shown(state_dict)}; a model's state_dict() has weights only"
        )
    groups: list[Mapping[str, Any]] = found["param_groups"]
    owned = [(index, group) for group in groups for index in group["params"]]
    names = _names(function, groups, len(owned), names)
    pairs = list(zip(names, owned, strict=True))
    rates = {name: float(states.as_numpy(group["lr"])) for name, (_, group) in pairs}
    return {name: index for name, (index, _) in pairs}, rates


def _names(
    function: str, groups: list[Mapping[str, Any]], count: int, names: Sequence[str] | None
) -> list[str]:
    recorded = [name for group in groups for name in group.get("param_names", ())]
    if names is None and len(recorded) != count:
        raise ValueError(
            f"{function}: torch keeps no names for {count} parameters: give names=[name for name, "
            "_ in model.named_parameters()], in the order of the optimizer's groups"
        )
    names = recorded if names is None else list(names)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{function}: {len(set(names))} names for {count} parameters: {names}")
    if recorded and names != recorded:
        pairs = zip(names, recorded, strict=True)
        ours, theirs = next((a, b) for a, b in pairs if a != b)
        raise ValueError(f"{function}: names has {ours!r} where torch recorded {theirs!r}")
    return names


def _entries(state: Mapping[Any, Any], indices: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of each parameter, by its name."""
    entries = {name: state.get(index) for name, index in indices.items()}
    for name, entry in entries.items():
        if not entry:
            raise ValueError(f"from_torch: no state for {name!r}: it never had a gradient in torch")
    surplus = state.keys() - set(indices.values())
    if surplus:
        raise ValueError(f"from_torch: state for parameters {sorted(surplus)} of no group")
    return entries


def _arrays(entries: Mapping[str, Any], key: str) -> states.Named:
    """What all entries have under a key, or nothing."""
    found = {name: entry[key] for name, entry in entries.items() if entry.get(key) is not None}
    if found and len(found) != len(entries):
        name = min(entries.keys() - found.keys())
        raise ValueError(f"from_torch: {name!r} has no {key}, others have")
    return {name: states.as_numpy(x) for name, x in found.items()}
