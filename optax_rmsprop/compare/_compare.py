"""The comparison of two runs, of two optimizers on the same gradients."""

import dataclasses
from typing import Any

import numpy as np

from ._gradients import Found, compared
from ._layouts import Layout, aligned
from ._optimizers import driven
from ._records import Array, Record, Rename, paired, read
from ._report import Cause, Change, Difference, First
from ._rules import Explanation, explanations


def runs(theirs: Any, ours: Any, rename: Rename = None) -> Difference:
    """Where two recorded runs part, and the smallest sets of changes that close the gap.

    The parameters and gradients of each run are kept as it has them: the rule of an optimizer is
    sought from its own gradients, so that rounding does not add up along a run. Gradients are
    compared where the parameters agree.

    Args:
        theirs: A `recording.Run`, or any object with `params`, a mapping from paths to arrays
            [T + 1, ...], and `grads` [T, ...], from step 0 on. `learning_rates` [T] and `steps`
            may be there. Ten steps of gradients that vary say most of what can be said.
        ours: The same of the other run.
        rename: From a leaf's path in theirs to its path in ours; a mapping may name some. Axes in
            another order, as PyTorch's kernels have them, are found.

    Returns:
        A `Difference`.

    Raises:
        TypeError: if an array is not of real floating-point numbers.
        ValueError: if a path is in one run alone, shapes do not fit, or the first step is missing.

    Example:
        >>> import numpy as np
        >>> from optax_rmsprop import compare, dialects
        >>> grads = np.sin(np.arange(40.0).reshape(10, 4))
        >>> theirs = dialects.torch(0.01, eps=0.1)
        >>> ours = dialects.keras(0.01, rho=0.99, epsilon=0.1)
        >>> print(compare.steps(theirs, ours, np.ones(4), grads).causes[0])
        epsilon is outside the root in theirs and inside the root in ours (leaves rounding alone)
    """
    given = (read("theirs", theirs), read("ours", ours))
    return _difference(*paired(*given, rename))


def steps(theirs: Any, ours: Any, params: Any, grads: Any) -> Difference:
    """Where two optimizers part that get the same gradients, and what closes the gap.

    Args:
        theirs: An Optax transformation, or `start(params) -> step` with
            `step(gradient) -> new params`: one-dimensional NumPy arrays, in and out.
        ours: The other one.
        params: The initial parameters: an array or a tree of them. A `start` gets all its numbers
            in one array.
        grads: A list of gradients like `params`, or a tree of arrays with an axis of steps before.

    Returns:
        A `Difference`.

    Raises:
        TypeError: if an optimizer is neither, or an array is not of floating-point numbers.
        ValueError: if a gradient does not fit the parameters, or a step returns another shape.

    Example:
        >>> import numpy as np, optax
        >>> from optax_rmsprop import compare
        >>> grads = np.sin(np.arange(40.0).reshape(10, 4))
        >>> found = compare.steps(optax.rmsprop(0.1), optax.rmsprop(0.01), np.ones(4), grads)
        >>> print(found.causes[0].names, found.first.step)
        ('learning_rate',) 0
    """
    both = (driven(name, x, params, grads) for name, x in (("theirs", theirs), ("ours", ours)))
    given = [read(name, run) for name, run in zip(("theirs", "ours"), both, strict=True)]
    return _difference(given[0], given[1])


def _difference(theirs: Record, ours: Record) -> Difference:
    layout = aligned(theirs, ours)
    theirs = layout.theirs
    found = compared(theirs, ours) if layout.same else Found()
    notes = [*layout.notes, *_end("theirs", theirs), *_end("ours", ours)]
    moved = {(change.name, change.leaves) for change in found.changes}
    if moved and moved <= {(change.name, change.leaves) for change in layout.changes}:
        layout, found = _at_the_start(layout), Found()  # the gradients lie as ours do
    if layout.changes and any(c.name in ("data", "step_shift") for c in found.changes):
        found = Found()
        notes.append("the layout changes what the model computes: gradients are not compared")
    if not layout.same:
        notes.append("the initial parameters differ: gradients are not compared")
    explanation = explanations(theirs, ours)
    precision = _precision(theirs, ours)
    causes = _causes([*layout.changes, *precision], found, explanation)
    first = _first(layout, theirs, ours, found, explanation)
    if first is None and not causes:
        return Difference(None, notes=tuple(notes))
    unexplained = found.unexplained or explanation.unexplained
    return Difference(first, causes, unexplained, tuple(notes))


def _end(who: str, record: Record) -> list[str]:
    """The words for numbers that are not finite, which end what is explained."""
    sides = [(record.params, "parameters before"), (record.grads, "gradients of")]
    for step in range(record.count):
        for side, what in sides:
            leaves = [name for name, x in side.items() if not np.isfinite(x[step]).all()]
            if leaves:
                return [f"the {what} step {step} are not finite in {leaves[0]!r} of {who}"]
    return []


def _at_the_start(layout: Layout) -> Layout:
    """A layout of the initial parameters that the gradients do not have."""
    changes = tuple(
        dataclasses.replace(change, text=f"{change.text} at the start, and its gradients are not")
        for change in layout.changes
    )
    return dataclasses.replace(layout, changes=changes)


def _precision(theirs: Record, ours: Record) -> list[Change]:
    a, b = theirs.precision, ours.precision
    if a == b:
        return []
    text = f"theirs rounds the parameters to {a}, ours to {b}"
    return [Change("precision", text, a, b)]


def _causes(start: list[Change], found: Found, explanation: Explanation) -> tuple[Cause, ...]:
    """All that explains everything, the smallest first; then what explains a part."""
    common = (*start, *found.changes)
    sets = [_once((*common, *alternative)) for alternative in explanation.alternatives]
    if explanation.unexplained:
        sets = []
    causes = [Cause(changes) for changes in dict.fromkeys(map(tuple, sets)) if changes]
    parts = [bool(start), bool(found.changes), bool(explanation.gap)]
    share = sum(parts)
    partial = list[Cause]()
    if share > 1 or explanation.unexplained:
        partial += [Cause((c,), 1 - 1 / max(share, 1)) for c in common]
    partial += [Cause(changes, 1 - (1 - left) / max(share, 1))
                for changes, left in explanation.partial]  # fmt: skip
    partial = [c for c in partial if c.left > 0 and c.changes not in {x.changes for x in causes}]
    return (*causes, *sorted(partial, key=lambda c: c.left))


def _once(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """Each change once: what the files show, the rules show too."""
    return tuple({change.text: change for change in changes}.values())


def _first(
    layout: Layout, theirs: Record, ours: Record, found: Found, explanation: Explanation
) -> First | None:
    """The first place, in the order of the runs."""
    if layout.changes:
        return _initial(layout, ours)
    places = list[tuple[int, First]]()
    if found.place is not None:
        step, leaf = found.place
        a, b = (x.grads[leaf][step].astype(float) for x in (theirs, ours))
        places.append((2 * step, _place(step, leaf, "gradient", a, b, found.allowed)))
    place = explanation.place
    if place is not None:
        step, leaf, index, allowed = place
        a, b = (x.params[leaf][step + 1].astype(float) for x in (theirs, ours))
        places.append((2 * step + 1, _place(step, leaf, "parameter", a, b, allowed, index)))
    return min(places, key=lambda x: x[0])[1] if places else None


def _initial(layout: Layout, ours: Record) -> First | None:
    for leaf in ours.names:
        a, b = (x.params[leaf][0].astype(float) for x in (layout.unmoved, ours))
        unit = max(layout.unmoved.unit, ours.unit)
        if a.shape != b.shape or (np.abs(a - b) > 4 * unit * np.abs(b)).any():
            return _place(0, leaf, "initial parameter", a, b, 4 * unit * float(np.abs(b).max()))
    for leaf in ours.names:
        a, b = (x.grads[leaf][0].astype(float) for x in (layout.unmoved, ours))
        if any(leaf in c.leaves for c in layout.changes) and a.shape == b.shape:
            allowed = 4 * ours.unit * float(np.abs(b).max())
            return _place(0, leaf, "gradient", a, b, allowed)
    return None


def _place(
    step: int, leaf: str, what: str, a: Array, b: Array, allowed: float, index: Any = None
) -> First:
    if index is None:
        gap = np.nan_to_num(np.abs(a - b), nan=np.inf)
        index = np.unravel_index(int(np.argmax(gap)), a.shape)
    index = tuple(int(i) for i in index)
    x, y = float(a[index]), float(b[index])
    return First(step, leaf, index, what, x, y, x - y, float(allowed))
