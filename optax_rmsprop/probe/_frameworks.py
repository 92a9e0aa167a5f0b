"""Which frameworks have a rule: the truth table, read from the file that is made from it."""

import functools
import importlib.resources
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

# By whether there is momentum, and whether it is centred.
_SETTINGS = {
    (False, False): "plain",
    (True, False): "momentum",
    (False, True): "centered",
    (True, True): "both",
}
_ABOUT = ("framework", "denominator")


def rows(
    rule: Mapping[str, Any], undetermined: Mapping[str, Sequence[Any]] | None = None
) -> list[str]:
    """The rows of the truth table that can do a rule, in the order of the table.

    Args:
        rule: The switches and their values, as `Report.rule` has them. None agrees with anything.
        undetermined: For switches that are open, the values that remain, or the ends of an
            interval of numbers; a row has to agree with one of them.
    """
    remaining = {name: [value] for name, value in rule.items()}
    remaining |= {name: list(values) for name, values in (undetermined or {}).items()}
    return [row["framework"] for row in _table() if _agrees(row, remaining)]


@functools.cache
def _table() -> list[dict[str, Any]]:
    file = importlib.resources.files("optax_rmsprop.probe").joinpath("frameworks.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _agrees(row: dict[str, Any], remaining: Mapping[str, list[Any]]) -> bool:
    """Whether a row can do one of the rules that remain."""
    momenta = {bool(value) for value in remaining["momentum"]}
    centered = {bool(value) for value in remaining["centered"]}
    names = [_SETTINGS[key] for key in itertools.product(momenta, centered)]
    allowed = [row["denominator"][name] for name in names if name in row["denominator"]]
    if 0.0 in remaining["eps"]:  # its place says nothing
        placed = bool(allowed)
    else:
        placed = any(_meet(values, remaining["denominator"], remaining) for values in allowed)
    return placed and all(
        _meet(values, remaining.get(switch, [None]), remaining)
        for switch, values in row.items()
        if switch not in _ABOUT
    )


def _meet(allowed: list[Any], values: list[Any], remaining: Mapping[str, list[Any]]) -> bool:
    """Whether one of the values, or one between them where they are numbers, is allowed."""
    if None in values:
        return True
    targets = [x for a in allowed for x in (remaining["eps"] if a == "eps" else [a])]
    return any(_within(target, values) for target in targets)


def _within(target: Any, values: list[Any]) -> bool:
    if isinstance(target, float) and all(isinstance(value, float | int) for value in values):
        between = min(values) <= target <= max(values)
        return between or any(math.isclose(target, value, rel_tol=1e-4) for value in values)
    return target in values
