"""TensorFlow 2's object-based checkpoints: one optimizer's entries, under its variables' names.

A key is a path through Python objects, and ends in `.ATTRIBUTES/VARIABLE_VALUE`:

    <variable>/.OPTIMIZER_SLOT/<optimizer>/rms    tf.keras up to 2.10: a slot of a variable
    <optimizer>/_variables/3                      tf.keras 2.11 on, Keras 3: by its number

The names of all variables are in the entry `_CHECKPOINTABLE_OBJECT_GRAPH`, a protocol buffer.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_NUMBERED = re.compile(r"(?:(?P<optimizer>.+)/)?_variables/(?P<number>\d+)")
_SLOT = re.compile(r"(?P<variable>.+)/\.OPTIMIZER_SLOT/(?P<optimizer>.+)/(?P<kind>[^/]+)")
_SCALARS = {
    "iter": "iter",
    "_iterations": "iteration",
    "learning_rate": "learning_rate",
    "_learning_rate": "learning_rate",
    "_current_learning_rate": "learning_rate",
}


def is_checkpoint(variables: Mapping[str, Any]) -> bool:
    """Whether these are entries of an object-based checkpoint."""
    return any(key.endswith(_VALUE) for key in variables)


def entries_of(
    function: str, variables: Mapping[str, Any], optimizer: str | None
) -> tuple[dict[Any, str], bool]:
    """The entries of one optimizer, each with its name, or "" if none is known; are they in order?

    Slots have no order.
    """
    paths = {key.removesuffix(_VALUE): key for key in variables if key.endswith(_VALUE)}
    found = [
        match for path in paths if (match := _NUMBERED.fullmatch(path) or _SLOT.fullmatch(path))
    ]
    prefix = _one(function, {match["optimizer"] or "" for match in found}, optimizer)
    found = [match for match in found if (match["optimizer"] or "") == prefix]
    numbered = sorted((m for m in found if m.re is _NUMBERED), key=lambda m: int(m["number"]))
    slots = [match for match in found if match.re is _SLOT]
    full = full_names(function, variables.get(_GRAPH, b""))

    entries = dict[Any, str]()
    for name, label in _SCALARS.items():
        path = f"{prefix}/{name}".removeprefix("/")
        # With a decay, this is the first rate and not the last.
        if path in paths and not (name == "learning_rate" and _decays(variables, prefix)):
            entries[paths[path]] = f"optimizer/{label}"
    # What nobody named is called "Variable", each time: the path then tells which it is.
    names = {m["variable"]: full.get(m["variable"] + _VALUE, "") for m in slots}
    if "" in names.values() or len({*names.values()}) < len(names):
        names = {path: path for path in names}
    entries |= {paths[m[0]]: f"optimizer/{names[m['variable']]}/{m['kind']}" for m in slots}
    entries |= {paths[m[0]]: full.get(paths[m[0]], "") for m in numbered}
    return entries, bool(numbered)


def _decays(variables: Mapping[str, Any], optimizer: str) -> bool:
    return bool(np.any(variables.get(f"{optimizer}/decay{_VALUE}", 0)))


def _one(function: str, found: set[str], optimizer: str | None) -> str:
    if optimizer is None and len(found) == 1:
        return next(iter(found))
    if optimizer is None and found:
        raise ValueError(f"{function}: give optimizer=, one of {sorted(found)} in the checkpoint")
    if optimizer is None or optimizer not in found:
        raise TypeError(
            f"{function}: no variables of the optimizer {optimizer or ''!r} in the checkpoint, "
            f"only of {sorted(found)}"
        )
    return optimizer


def full_names(function: str, graph: Any) -> dict[str, str]:
    """The full name of each key: of TrackableObjectGraph.nodes.attributes, fields 2 and 3."""
    try:
        data = getattr(graph, "item", lambda: graph)()  # bytes, or an array that holds them
        nodes = [node for number, node in _fields(data) if number == 1]
        attributes = [x for node in nodes for number, x in _fields(node) if number == 2]
        found = [dict(_fields(attribute)) for attribute in attributes]
        return {x[3].decode(): x.get(2, b"").decode() for x in found if 3 in x}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{function}: {_GRAPH} is no object graph") from error


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The numbered fields of a message: whole numbers, or bytes."""
    at = 0
    while at < len(data):
        tag, at = _whole(data, at)
        field, wire = divmod(tag, 8)
        value, end = _whole(data, at) if wire in (0, 2) else (0, at + {1: 8, 5: 4}[wire])
        at = end + value if wire == 2 else end
        if at > len(data):
            raise ValueError("a message is cut off")
        yield field, data[end:at] if wire == 2 else value


def _whole(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
