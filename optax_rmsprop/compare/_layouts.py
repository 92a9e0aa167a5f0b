"""Which leaf of theirs is which of ours, and how its axes lie."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ._records import Array, Record, norm
from ._report import Change

# Rows of a parameter and of its gradient, as ours has them: the first axis counts steps.
View: TypeAlias = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Theirs as ours has it; what was changed for it, and what the initial parameters lack."""

    theirs: Record
    unmoved: Record  # with the order of axes that shapes ask for, and no more
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    differ: tuple[str, ...]  # leaves whose initial parameters are still others

    @property
    def same(self) -> bool:
        """Whether both runs begin at the same parameters, but for a layout."""
        return not self.differ


def aligned(theirs: Record, ours: Record) -> Layout:
    """Theirs with its leaves where ours has them, as the first row and the first gradients say."""
    names = ours.names
    views = {name: _views(theirs.grads[name].shape[1:], ours.grads[name].shape[1:])
             for name in names}  # fmt: skip
    usual, notes = _usual(theirs, ours, views)
    chosen, order = dict[str, View](), dict[str, str]()
    changes, differ = list[Change](), list[str]()
    for name in names:
        plain = _permuted(usual[name])
        chosen[name], order[name] = plain, name
        if _fits(theirs, ours, name, name, plain):
            continue
        found = _elsewhere(theirs, ours, name, usual[name], views)
        if found is None:
            differ.append(name)
        else:
            order[name], chosen[name], change = found
            changes.append(change)
    order, changes, differ = _settled(ours, order, changes, differ)
    for name in differ:
        chosen[name] = _permuted(usual[name])
    swapped = [c for c in changes if c.name == "swapped"]
    if swapped:
        leaves = tuple(c.leaves[0] for c in swapped)
        pairs = ", ".join(f"{order[n]!r} of theirs is {n!r} of ours" for n in leaves)
        change = Change("swapped", f"parameters of one shape are swapped: {pairs}", leaves=leaves)
        changes = [change, *(c for c in changes if c.name != "swapped")]
    moved = theirs.leaves(chosen, [order[name] for name in names])
    unmoved = theirs.leaves({name: _permuted(usual[name]) for name in names}, names)
    found = (*changes, *_started(moved, ours, differ))
    return Layout(moved, unmoved, found, notes, tuple(differ))


def _usual(theirs: Record, ours: Record, views: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The order of axes of each leaf by convention, and the words for what shapes ask for."""
    names = ours.names
    # A transposition that a shape forces holds for all leaves of as many axes: a convention.
    forced = {
        ours.grads[name].ndim: _axes(theirs, ours, name, name, views[name])
        for name in names
        if theirs.grads[name].shape != ours.grads[name].shape
    }
    usual = {name: forced.get(ours.grads[name].ndim) or next(iter(views[name])) for name in names}
    usual = {n: axes if axes in views[n] else next(iter(views[n])) for n, axes in usual.items()}
    notes = tuple(
        f"leaves of {ndim - 1} axes are compared with theirs' axes in the order {list(axes)}, "
        "which their shapes ask for"
        for ndim, axes in sorted(forced.items())
        if axes
    )
    return usual, notes


def _settled(
    ours: Record, order: dict[str, str], changes: list[Change], differ: list[str]
) -> tuple[dict[str, str], list[Change], list[str]]:
    """The order of the leaves, if each leaf of theirs is one of ours; else nothing is swapped."""
    if sorted(order.values()) == sorted(order):
        return order, changes, differ
    moved = {name for name, old in order.items() if old != name}
    kept = [c for c in changes if c.name != "swapped"]
    return {name: name for name in order}, kept, [
        name for name in ours.names if name in moved or name in differ
    ]  # fmt: skip


def _elsewhere(
    theirs: Record, ours: Record, name: str, usual: Any, views: Any
) -> tuple[str, View, Change] | None:
    """Where the leaf is, if not at its place: transposed, permuted, or in another's place."""
    for axes in views[name]:
        view = _permuted(axes)
        if axes != usual and _fits(theirs, ours, name, name, view):
            return name, view, _transposed(name, axes, usual)
    for other in ours.names:
        if other != name and theirs.grads[other].shape == theirs.grads[name].shape:
            view = _permuted(usual)
            if _fits(theirs, ours, other, name, view) and not _same(ours, other, name):
                return other, view, Change("swapped", "", leaves=(name,))
    base = _permuted(usual)
    for axis in range(ours.grads[name].ndim - 1):
        order = _order(base(theirs.params[name][:1])[0], ours.params[name][0], axis)
        if order is not None:
            text = f"axis {axis} of {name!r} is in another order in theirs{_image(order)}"
            view = _taken(base, order, axis + 1)
            return name, view, Change("permuted", text, leaves=(name,))
    return None


def _started(theirs: Record, ours: Record, differ: list[str]) -> list[Change]:
    """What the initial parameters differ by, if by no layout."""
    if not differ:
        return []
    factors = list[float]()
    for name in differ:
        a, b = (x.params[name][0].astype(float).ravel() for x in (theirs, ours))
        factor = float(a @ b / (b @ b)) if b.any() else 0.0
        near = norm(a - factor * b) <= 16 * _unit(theirs, ours) * norm(a)
        factors.append(factor if near and a.any() else math.nan)
    count = f"{len(differ)} of {len(ours.names)} leaves"
    names = ", ".join(map(repr, differ[:4])) + (", ..." if len(differ) > 4 else "")
    if np.ptp(factors) <= 1e-3 * abs(factors[0]):
        text = f"the initial parameters of theirs are {factors[0]:.6g} times ours in {names}"
    else:
        text = f"the initial parameters differ in {count}: {names}"
    return [Change("initial_params", text, leaves=tuple(differ))]


def _fits(theirs: Record, ours: Record, old: str, new: str, view: View) -> bool:
    """Whether a leaf of theirs begins as one of ours; where zeros say nothing, its gradient."""
    a, b = view(theirs.params[old][:1])[0], ours.params[new][0]
    if a.shape != b.shape:
        return False
    a, b = a.astype(float), b.astype(float)
    if not (np.abs(a - b) <= 4 * _unit(theirs, ours) * np.abs(b)).all():
        return False
    if np.ptp(b, axis=None) != 0 or b.size < 2:
        return True
    return not _gradient_is_elsewhere(theirs, ours, old, new, view)


def _gradient_is_elsewhere(theirs: Record, ours: Record, old: str, new: str, view: View) -> bool:
    """Whether the first gradient of a constant leaf is surely another's, of as many numbers."""

    def off(a: str, x: View, b: str) -> float:
        first: Array = x(theirs.grads[a][:1])[0].astype(float)
        second: Array = ours.grads[b][0].astype(float)
        sizes = norm(first), norm(second)
        if first.shape != second.shape or not all(sizes) or not np.isfinite(sizes).all():
            return math.inf
        return norm(first / sizes[0] - second / sizes[1])

    here, noise = off(old, view, new), _noise(theirs, ours)
    if here <= 0.1 or not math.isfinite(here):
        return False
    shape = ours.grads[new].shape
    places = [off(old, view, name) for name in ours.names if ours.grads[name].shape == shape]
    axes = _views(theirs.grads[old].shape[1:], shape[1:])
    turned = [off(old, _permuted(x), new) for x in axes]
    turned += [off(name, view, new) for name in theirs.names if theirs.grads[name].shape == shape]
    return min(*places, *turned) <= noise


def _same(ours: Record, a: str, b: str) -> bool:
    """Whether two leaves cannot be told apart at all."""
    return all(
        np.array_equal(x[a][:1], x[b][:1], equal_nan=True) for x in (ours.params, ours.grads)
    )


def _unit(theirs: Record, ours: Record) -> float:
    return max(theirs.unit, ours.unit)


def _noise(theirs: Record, ours: Record) -> float:
    return 2048 * _unit(theirs, ours)


def _views(theirs: tuple[int, ...], ours: tuple[int, ...]) -> dict[tuple[int, ...], None]:
    """The orders of axes that give ours' shape, the usual ones first."""
    orders = itertools.permutations(range(len(theirs))) if len(theirs) <= 5 else iter(())
    fitting = [axes for axes in orders if tuple(theirs[i] for i in axes) == ours]
    ndim = len(theirs)
    kernel = (*range(2, ndim), 1, 0)  # PyTorch's [out, in, *window] as Flax has it
    back = (ndim - 1, ndim - 2, *range(ndim - 2)) if ndim > 1 else ()
    first = [tuple(range(ndim)), kernel, back]
    return dict.fromkeys(sorted(fitting, key=lambda axes: (axes not in first, axes)))


def _axes(theirs: Record, ours: Record, old: str, new: str, views: Any) -> Any:
    """The order of the axes that the initial parameters ask for, or the usual one."""
    for axes in views:
        if _fits(theirs, ours, old, new, _permuted(axes)):
            return axes
    return next(iter(views))


def _permuted(axes: tuple[int, ...]) -> View:
    return lambda x: np.transpose(x, (0, *(i + 1 for i in axes)))


def _taken(base: View, order: Array, axis: int) -> View:
    return lambda x: np.take(base(x), order, axis)


def _transposed(name: str, axes: tuple[int, ...], usual: tuple[int, ...]) -> Change:
    if len(axes) == 2:
        what = "is transposed" if axes == (1, 0) else "is not transposed, where others are,"
    else:
        what = f"has its axes in the order {list(axes)}"
        what += "" if usual == tuple(range(len(axes))) else f" and not {list(usual)}"
    return Change("transposed", f"{name!r} {what} in theirs", axes, usual, (name,))


def _order(theirs: Array, ours: Array, axis: int) -> Array | None:
    """The order that makes theirs ours along an axis, if there is exactly one."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (theirs, ours))
    if a.shape != b.shape or a.shape[0] < 2:
        return None
    rows = [np.lexsort(x.T[::-1]) for x in (a, b)]
    if not np.array_equal(a[rows[0]], b[rows[1]]) or len(np.unique(b, axis=0)) < len(b):
        return None
    order = np.empty(len(a), int)
    order[rows[1]] = rows[0]
    return order


def _image(order: Array) -> str:
    """The words for an order that flattening an image with its channels elsewhere makes."""
    size = len(order)
    for channels in range(2, size):
        window = size // channels
        if channels * window == size and window > 1:
            first = np.arange(size).reshape(channels, window).T.ravel()
            if np.array_equal(order, first):
                return f": an image of {channels} channels was flattened with its channels first"
            if np.array_equal(order, first.argsort()):
                return f": an image of {channels} channels was flattened with its channels last"
    return ""
