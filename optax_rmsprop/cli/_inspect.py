"""What a checkpoint holds: whose optimizer, which rule, and how its second moments are spread."""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from ._ours import Ours
from ._saved import Array, Group, Saved

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A weight, and its second moment."""

    name: str
    shape: list[int]
    dtype: str
    group: int | None  # of the optimizer; None if it has no second moment
    nu: list[float] | None  # minimum, quartiles, maximum of what is finite
    dead: int | None  # coordinates that never had a gradient; None if that cannot be told
    not_finite: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` shows."""

    file: str
    format: str
    optimizer: str | None
    calls: list[str]  # the rules that the file may be of; a rule of several groups has several
    unknown: list[str]  # arguments that the file does not hold
    groups: list[dict[str, Any]]
    truth_table: list[str]
    steps: int | list[int] | None  # the fewest and the most, where parameters differ
    settings: dict[str, Any]
    parameters: list[Parameter]
    notes: list[str]
    provenance: dict[str, Any] | None


def inspect(saved: Saved, file: str, track: Any = iter) -> Inspection:
    """Describe a checkpoint; `track` shows the progress over its parameters."""
    groups = saved.rules[0] if len(saved.rules) == 1 else []
    number = {name: i for i, group in enumerate(groups) for name in group.names}
    if isinstance(saved, Ours) and saved.provenance:
        labels = saved.provenance["labels"]
        known = {str(i): i for i in range(len(groups))}
        number = {path: known[label] for path, label in labels.items() if label in known}
    names = list(dict.fromkeys([*saved.weights, *saved.moments, *saved.names]))
    steps = sorted({*saved.steps.values()})
    every = [group for rule in saved.rules for group in rule]
    return Inspection(
        file=file,
        format=saved.format,
        optimizer=saved.optimizer or None,
        calls=[str(group.call) for group in every],
        unknown=sorted({name for group in every for name in group.call.unknown}),
        groups=[{"call": str(group.call), "parameters": group.names} for group in groups],
        truth_table=sorted({row for group in every for row in group.call.framework.rows}),
        steps=None if not steps else steps[0] if len(steps) == 1 else [steps[0], steps[-1]],
        settings=saved.settings,
        parameters=[_parameter(saved, name, groups, number.get(name)) for name in track(names)],
        notes=saved.notes,
        provenance=saved.provenance,
    )


def _parameter(saved: Saved, name: str, groups: list[Group], number: int | None) -> Parameter:
    nu = saved.moments.get(name, {}).get("nu")
    x = saved.weights.get(name, nu)
    shape, dtype = ([], "") if x is None else (list(x.shape), str(x.dtype))
    if nu is None:
        return Parameter(name, shape, dtype, number, None, None, 0)
    flat = nu.ravel()
    flat = np.concatenate([flat.real, flat.imag]) if np.iscomplexobj(flat) else flat
    flat = flat.astype(float)
    finite = flat[np.isfinite(flat)]
    return Parameter(
        name,
        shape,
        dtype,
        number,
        [float(q) for q in np.quantile(finite, QUANTILES)] if finite.size else None,
        dead_in(nu, groups[number], saved.steps.get(name)) if number is not None else None,
        int(flat.size - finite.size),
    )


def dead_in(nu: Array, group: Group, steps: int | None) -> int | None:
    """The coordinates whose second moment is what it would be without any gradient.

    An average that starts at 1 is then the decay to the power of the steps, and not 1.
    """
    start = group.call.framework.start
    if not start:
        return int(np.count_nonzero(nu == 0))
    decay = group.call.arguments.get(group.call.framework.decay, ...)
    if steps is None or not isinstance(decay, float) or not 0 <= decay < 1:
        return None
    info = cast(Any, jnp.finfo)(nu.dtype)
    # Each step rounds, and the smallest numbers no longer decay.
    bound = start * decay**steps * (1 + (steps + 2) * float(info.eps))
    bound += float(info.smallest_subnormal) / (1 - decay)
    return int(np.count_nonzero(nu <= bound))
