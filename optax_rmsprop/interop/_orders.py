"""The orders in which Keras numbers an optimizer's variables, and which of them an array denies."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Order: TypeAlias = tuple[str, ...]

BEFORE = {"average": "use_ema", "accumulator": "gradient_accumulation_steps"}
_AFTER = {"step": "momentum", "mu": "centered"}
# Each kind has a variable for every parameter before the next kind starts.
_KINDS = {**BEFORE, "nu": "", **_AFTER}
WORDS = {
    "average": "averaged weight",
    "accumulator": "accumulated gradient",
    "nu": "second moment",
    "step": "momentum",
    "mu": "mean",
}
MOST = len(_KINDS)


def orders(settings: Mapping[str, Any]) -> list[Order]:
    """Those of the optimizers with these settings; one that is not known may be on or off."""

    def choices(kind: str, setting: str) -> list[Order]:
        if not setting:
            return [(kind,)]
        if setting in settings:
            return [(kind,) if settings[setting] else ()]
        return [(), (kind,)]

    chosen = itertools.product(*itertools.starmap(choices, _KINDS.items()))
    return [tuple(itertools.chain(*kinds)) for kinds in chosen]


def own(order: Order) -> Order:
    """What RMSprop itself has."""
    return order[order.index("nu") :]


def possible(
    settings: Mapping[str, Any], slots: Sequence[Array], each: int, steps: float
) -> list[Order]:
    """The orders of `each` kinds that the numbers in the slots do not deny."""
    n = len(slots) // each
    found = [order for order in orders(settings) if len(order) == each]
    blocks = [{kind: slots[i * n : (i + 1) * n] for i, kind in enumerate(o)} for o in found]
    # Where there is one order, that no gradient came is the only thing zeros can mean.
    zeros = len(found) == 1 or not _any(slots)
    return [
        order
        for order, of in zip(found, blocks, strict=True)
        if not _is_denied(of) and (zeros or _any(of["nu"]) or _is_before_a_step(of, steps))
    ]


def agreed(found: Sequence[Order], slots: Sequence[Array]) -> Order | None:
    """The order that all of these come to, or None: they differ in what is read, or is refused."""
    if not _any(slots):
        return min(found, key=_preference)
    if len({order.index("nu") for order in found}) != 1:
        return None
    # Averages are left out, and half an accumulation is refused: which is it?
    first = found[0][: found[0].index("nu")]
    alike = all(order[: len(first)] == first for order in found)
    if not alike and _any(slots[: len(first) * (len(slots) // len(found[0]))]):
        return None
    return min(found, key=_preference)


def _preference(order: Order) -> tuple[int, bool]:
    return order.index("nu"), "step" not in order


def exceeds(mean: Array, nu: Array) -> bool:
    """Whether this is no mean of gradients with this second moment."""
    # ν ≥ |mean|² but for rounding, of half precision too.
    return bool(np.any(np.abs(mean.astype(float)) ** 2 > 2 * np.abs(nu.astype(float)) + 1e-30))


def _is_denied(of: Mapping[str, Sequence[Array]]) -> bool:
    negative = any(bool(np.any(x.real < 0)) for x in of["nu"])
    pairs = zip(of.get("mu", ()), of["nu"], strict=False)
    return negative or any(exceeds(mean, nu) for mean, nu in pairs)


def _is_before_a_step(of: Mapping[str, Sequence[Array]], steps: float) -> bool:
    """Whether there may be no second moment yet."""
    return not _any(of.get("step", ())) and (steps == 0 or _any(of.get("accumulator", ())))


def _any(arrays: Sequence[Array]) -> bool:
    return any(bool(np.any(x)) for x in arrays)
