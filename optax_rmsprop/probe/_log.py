"""The rule of a recorded run."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np

from . import _conclude as conclude
from . import _model as model
from ._calls import Rule, calls
from ._finish import Finding, finish
from ._model import Array, Run
from ._progress import told
from ._report import Report
from ._search import Fits, explained, fitted, is_hidden, join, none, search, weighed

# What is searched; everything that is recorded is checked, so many columns at once.
_COLUMNS, _WHOLE, _STEPS = 32, 400, 60
_CHUNK = 4096
# How near a rule is that is taken for another one whose difference the first steps hide, and how
# many entries of one step show a bound.
_NEAR, _SEVERAL = 1e-3, 5


@told
def identify_log(params: Any, grads: Any, learning_rates: Any = None) -> Report:
    """Name the rule that led a recorded run from its parameters and gradients to the next.

    The run begins at the optimizer's first step. The numbers of the rule are fitted by least
    squares, for every combination of switches, and the simplest that leaves nothing but rounding
    is named. The last fifth of the steps checks what was found. It is fitted only where it shows
    what the steps before it hide: another number, or a bound that no gradient had reached.

    Args:
        params: Parameters before each step and after the last: an array [T + 1, n], a list of
            T + 1 trees, or a tree of arrays with a leading axis of T + 1. Floating point.
        grads: Gradients as the optimizer got them, in the same form, T of them.
        learning_rates: The rate of the steps: a number, an array of at least T rates, or a schedule
            `count -> rate`; None is a constant rate that is not known. A call names the schedule
            or the array `learning_rates`.

    Returns:
        A `Report`.

    Raises:
        TypeError: if a leaf is complex or not numeric, or a number of rates is no number.
        ValueError: if the trees, shapes or lengths do not fit each other, or there is no step.

    Example:
        >>> import numpy as np
        >>> from optax_rmsprop import probe
        >>> g = np.array([[4.0, -1.0], [2.0, 3.0], [-1.0, 0.5], [0.25, 2.0], [1.0, -1.0]])
        >>> nu, p = np.zeros(2), [np.zeros(2)]
        >>> for x in g:
        ...     nu = 0.75 * nu + 0.25 * x**2
        ...     p.append(p[-1] - 0.5 * x / (np.sqrt(nu) + 2.0))
        >>> print(probe.identify_log(np.array(p), g).calls[0])
        dialects.torch(lr=0.5, alpha=0.75, eps=2.0)
    """
    p, names = _columns("params", params)
    g, others = _columns("grads", grads)
    leaves, gradient_leaves = [leaf for leaf, _ in names], [leaf for leaf, _ in others]
    if leaves != gradient_leaves:
        extra = sorted(set(leaves) ^ set(gradient_leaves)) or ["a shape"]
        raise ValueError(
            f"identify_log: params and grads must have the same leaves and shapes, they differ in "
            f"{extra[0]!r}"
        )
    if len(g) < 1 or len(p) != len(g) + 1:
        raise ValueError(
            f"identify_log: params must have one row more than grads, which need at least one; got "
            f"{len(p)} and {len(g)}"
        )
    rates = _rates(learning_rates, len(g))
    unit = conclude.unit_of(p[1:])
    numbers = {leaf: i for i, leaf in enumerate(dict.fromkeys(leaves))}
    run = model.run_of(p, g, rates, [numbers[leaf] for leaf in leaves], unit)

    def name(column: int) -> str:
        return _named(names[column])

    report = _identified(run, learning_rates, name)
    return dataclasses.replace(report, notes=[*_ends(p, g, run, name), *report.notes])


def _ends(params: Array, grads: Array, run: Run, name: Callable[[int], str]) -> list[str]:
    """The words for numbers that are not finite, where the use of an entry ends."""
    used = run.valid.sum(0)
    if used.min() == len(grads):
        return []
    column = int(np.argmin(used))
    step = int(used[column])
    if not np.isfinite(grads[step, column]):
        what = f"gradient of step {step}"
    else:
        side = "after" if np.isfinite(params[step, column]) else "before"
        what = f"parameter {side} step {step}"
    others = int((used < len(grads)).sum()) - 1
    more = f" ({others} other entries end there or later)" if others else ""
    return [f"the {what} is not finite in {name(column)} and what follows in it was not used{more}"]


@dataclasses.dataclass(frozen=True)
class _Searched:
    """What explains a part of a run, all that was tried, and the part."""

    found: Fits
    everything: Fits
    part: Run  # a part of the steps and columns
    columns: Array  # of the run, that the part has
    unit: float  # by which it was judged

    def every(self, run: Run) -> Run:
        """The same columns of all steps that are checked."""
        steps = run.steps(min(len(run.grads), 8 * _STEPS))
        return conclude.with_unit(steps.columns(self.columns), self.unit)


def _searched(run: Run, seen: Run, given: bool) -> _Searched:
    """Search a part of the steps that are seen; judge caution, which needs it, on whole leaves."""
    columns, leaves = _chosen(seen), _small_leaves(seen)
    part, unit = seen.columns(columns), run.unit
    whole = seen.columns(leaves) if len(leaves) else None
    found, everything = search(part, whole, lambda options: conclude.is_another(part, options))
    if not len(found) and unit == 2.0**-53:  # it may have been computed in float32
        coarse = conclude.with_unit(part, 2.0**-24)
        found = explained(everything, coarse)
        unit = 2.0**-24 if len(found) else unit
        if len(found) and conclude.is_another(coarse):  # float32 hides what ν adds to ε
            found = none()
    if whole is not None and found.rules.caution.any():
        part, columns = whole, leaves
    part = conclude.with_unit(part, unit)
    if given and len(found):
        found = _at_given_rates(found, part)
    return _Searched(found, everything, part, columns, unit)


def _identified(run: Run, learning_rates: Any, name: Callable[[int], str]) -> Report:
    if not run.moves.any():
        return conclude.nothing(["the parameters do not change"], run.unit)
    if is_hidden(run):
        return conclude.nothing([conclude.hides(run.unit)], run.unit)
    steps, given = len(run.grads), learning_rates is not None
    seen = run.steps(min(steps - (steps // 5 if steps >= 5 else 0), _STEPS))
    searched = _searched(run, seen, given)
    reasons = conclude.degenerate(searched.found, searched.part) if len(searched.found) else []
    findings, checked = _checked(searched, searched.part, run) if not reasons else ([], [])
    start = len(seen.grads)
    if findings and not checked:
        searched, start, checked = _later(searched, findings, run, given)
    unit, every = searched.unit, searched.every(run)
    if not findings:
        tried = searched.found if len(searched.found) else searched.everything
        reasons = reasons or conclude.unexplained(
            tried, searched.part, lambda column: name(int(searched.columns[column])), given
        )
        return conclude.nothing(reasons, unit)
    start = start if start < len(every.grads) else 0
    if not checked:
        error = conclude.check_error(findings[0], (every,), start)
        return conclude.nothing([_refused(findings[0], every)], unit, error)
    scale = checked[0].rule.lr
    if given and abs(scale - 1) > 1e-3 and "learning_rate" not in checked[0].open:
        text = f"the steps are those of {scale:.6g} times the learning_rates that are given"
        return conclude.nothing([text], unit)
    report = conclude.report(
        checked, unit, lambda finding: conclude.check_error(finding, (every,), start),
        ratio=_ratio(run.rates),
        written=(lambda rule: _written(rule, learning_rates, run)) if given else None,
        learning_rates=learning_rates, hidden=_hidden(steps, given),
    )  # fmt: skip
    others = _unsearched(checked[0], conclude.with_unit(run, unit), searched.columns, name)
    return dataclasses.replace(report, notes=[*report.notes, *others])


def _refused(finding: Finding, run: Run) -> str:
    """Why what explains a part of a run is not its rule."""
    late, call = conclude.first_misfit(finding, run), next(calls(finding.rule))[1]
    if late == 0:
        return f"the nearest rule, {call}, leaves more than rounding"
    if late == len(run.grads):
        return conclude.too_little(run.unit, call)
    return f"{call} explains the steps before step {late}, and not that one"


def _later(
    searched: _Searched, findings: list[Finding], run: Run, given: bool
) -> tuple[_Searched, int, list[Finding]]:
    """What explains every step, where the first steps hide it and a later one shows it.

    A number, or a bound of the gradients, or that what was found is not the rule and only as near
    to it as rounding was.
    """
    every = searched.every(run)
    start = max(conclude.first_misfit(finding, every) for finding in findings) + 1
    part = every.steps(start)
    _, checked = _checked(searched, part, run)
    near = min(conclude.check_error(finding, (every,)) for finding in findings) < _NEAR
    if not checked:
        clipped = dataclasses.replace(searched, found=_clipped(searched.found, part), part=part)
        _, checked = _checked(clipped, part, run)
        searched = clipped if checked else searched
    if not checked and near and start <= 2 * _STEPS:
        again = _searched(run, run.steps(start), given)
        _, checked = _checked(again, again.part, run)
        searched = again if checked else searched
    return searched, start, checked


def _clipped(found: Fits, run: Run) -> Fits:
    """Hypotheses with a bound that no gradient reaches before the last step of the run."""
    # One number explains any step of a few entries.
    rows = (found.rules.clip == model.NO_CLIP) & (run.moves[-1].sum() >= _SEVERAL)
    kinds = [
        (model.CLIP_BEFORE, np.abs(run.grads), rows), (model.CLIP_LEAF, run.leaf_norm, rows),
        (model.CLIP_ALL, run.norm, rows),
        (model.CLIP_AFTER, np.abs(run.grads), rows & (found.rules.kind == model.L2)),
    ]  # fmt: skip
    parts = [none()]
    for clip, sizes, chosen in kinds:
        before, last = float(sizes[:-1].max(initial=0.0)), float(sizes[-1].max())
        if chosen.any() and last > before:
            rules = found.rules.take(chosen).replace(clip=clip)
            numbers = rules.numbers.copy()
            numbers[:, model.BOUND] = (before + last) / 2
            parts.append(fitted(rules.of(numbers), weighed(run, rules.take([0])), 30))
    return explained(join(parts), run)


def _hidden(steps: int, given: bool) -> dict[str, list[Any]]:
    """What no run of one step shows."""
    if steps > 1:
        return {}
    switches = [None, True, False]
    momentum = {"momentum": [0.0, 1.0], "rate_in_buffer": switches, "nesterov": switches}
    averages = {"decay": [0.0, 1.0], "centered": [False, True], "bias_correction": [False, True]}
    return momentum if given else momentum | averages


def _at_given_rates(found: Fits, part: Run) -> Fits:
    """The hypotheses at the rates that are given, if they explain the run so."""
    numbers, free = found.rules.numbers.copy(), found.free.copy()
    numbers[:, model.LR], free[:, model.LR] = 1.0, False
    measure = weighed(part, found.rules.take([0]))
    held = explained(fitted(found.rules.of(numbers), measure, 30, free), part)
    return held if len(held) else found


def _unsearched(
    finding: Finding, run: Run, searched: Array, name: Callable[[int], str]
) -> list[str]:
    """The words for entries that were not searched, and that do not follow the rule.

    Caution needs whole leaves at once, of which only those that were searched are small enough.
    """
    others = np.ones(run.grads.shape[1], bool)
    others[searched] = False
    rest = np.flatnonzero(others)
    if finding.rules.caution.any() or not len(rest):
        return []
    steps = run.steps(min(len(run.grads), 8 * _STEPS))
    chunks = (rest[i : i + _CHUNK] for i in range(0, len(rest), _CHUNK))
    late = np.concatenate([conclude.misfits(finding, steps.columns(chunk)) for chunk in chunks])
    strange = np.flatnonzero(late < len(steps.grads))
    if not len(strange):
        return []
    first = strange[np.argmin(late[strange])]
    where = f"{name(int(rest[first]))} at step {late[first]}"
    return [f"{len(strange)} of {len(others)} entries do not follow it: {where}"]


def _checked(searched: _Searched, part: Run, run: Run) -> tuple[list[Finding], list[Finding]]:
    """What explains a part of a run, and what of it explains every step."""
    findings = finish(searched.found, part) if len(searched.found) else []
    every = searched.every(run)
    return findings, [finding for finding in findings if conclude.fits_all(finding, every)]


def _ratio(rates: Array) -> float | None:
    """The ratio of each rate to that before it, where it is always the same."""
    if not (rates > 0).all():
        return None
    ratios = rates[1:] / rates[:-1]
    constant = len(ratios) == 0 or np.allclose(ratios, ratios[0], rtol=1e-12, atol=0)
    return (float(ratios.mean()) if len(ratios) else 1.0) if constant else None


def _written(rule: Rule, learning_rates: Any, run: Run) -> Rule:
    """The rule with the rates that were given in place of a fitted factor."""
    largest = float(np.max(run.rates))
    if not callable(learning_rates) and np.ptp(learning_rates) == 0:
        return dataclasses.replace(rule, lr=float(np.ravel(learning_rates)[0]))
    text = (
        "learning_rates"
        if callable(learning_rates)
        else "lambda count: jnp.asarray(learning_rates)[count]"
    )
    return dataclasses.replace(rule, lr=float(run.rates[0]), rate=text, largest_rate=largest)


def _rates(learning_rates: Any, steps: int) -> Array | None:
    if learning_rates is None:
        return None
    if callable(learning_rates):
        rates = np.array([float(cast(Any, learning_rates(t))) for t in range(steps)])
    else:
        rates = np.asarray(learning_rates, float)
        rates = np.full(steps, rates) if rates.ndim == 0 else rates
        if rates.ndim != 1 or len(rates) < steps:
            raise ValueError(
                f"identify_log: learning_rates must be a number, a schedule, or an array of at "
                f"least {steps} rates, got shape {rates.shape}"
            )
        rates = rates[:steps]
    if not np.all(np.isfinite(rates)) or (rates < 0).any():
        raise ValueError("identify_log: learning_rates must be finite and not negative")
    return rates


def _columns(argument: str, data: Any) -> tuple[Array, list[tuple[str, int]]]:
    """The values [T, n] in float64, and the leaf and position of each column."""
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if not data:
            raise ValueError(f"identify_log: {argument} is empty")
        flatten = cast(Any, jax.tree_util).tree_flatten_with_path
        trees: list[Any] = [flatten(tree) for tree in cast(Sequence[Any], data)]
        for i, (_, structure) in enumerate(trees):
            if structure != trees[0][1]:
                raise ValueError(
                    f"identify_log: {argument}[{i}] is another tree than {argument}[0]"
                )
        leaves: dict[str, Any] = {
            _path(path): [_numeric(argument, _path(path), flat[j][1]) for flat, _ in trees]
            for j, (path, _) in enumerate(trees[0][0])
        }
        if leaves and all(np.ndim(x[0]) == 0 for x in leaves.values()):  # rows of numbers
            leaves = {"": np.array(list(leaves.values())).T}
    else:
        flat = cast(Any, jax.tree_util).tree_flatten_with_path(data)[0]
        leaves = {_path(path): _numeric(argument, _path(path), leaf) for path, leaf in flat}
    columns: list[Array] = []
    names: list[tuple[str, int]] = []
    for path, values in leaves.items():
        if np.ndim(values) == 0:
            raise ValueError(f"identify_log: {argument} needs a leading axis of steps at {path!r}")
        shapes = {np.shape(x) for x in values}
        if len(shapes) > 1:
            raise ValueError(f"identify_log: {argument} has leaf {path!r} in shapes {shapes}")
        array = np.asarray(values, float)
        array = array.reshape(len(array), int(math.prod(array.shape[1:])))
        columns.append(array)
        names += [(path, i) for i in range(array.shape[1])]
    if not names:
        raise ValueError(f"identify_log: {argument} has no numbers")
    if len({len(array) for array in columns}) > 1:
        raise ValueError(f"identify_log: the leaves of {argument} have different numbers of steps")
    return np.concatenate(columns, 1), names


def _numeric(argument: str, path: str, leaf: Any) -> Array:
    array = np.asarray(leaf)
    if np.iscomplexobj(array):
        raise TypeError(
            f"identify_log: {argument} has the complex leaf {path!r}; frameworks disagree on the "
            "rule for complex numbers: give its real and imaginary parts as two leaves, which is "
            "PyTorch's rule"
        )
    if array.dtype.kind not in "fiub" and array.dtype.name not in ("bfloat16", "float16"):
        try:
            return array.astype(float)
        except (TypeError, ValueError) as error:
            raise TypeError(f"identify_log: {argument} has {array.dtype} at {path!r}") from error
    return array.astype(float)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(name: tuple[str, int]) -> str:
    leaf, position = name
    return f"{leaf or 'params'}, entry {position},"


def _chosen(run: Run) -> Array:
    """Columns of gradients of all sizes that move."""
    size = (np.abs(run.grads) * run.valid).max(0, initial=0)
    moving = np.flatnonzero((size > 0) & run.valid[0] & run.moves.any(0))
    if not len(moving):
        moving = np.flatnonzero(run.valid[0])
    if len(moving) <= _COLUMNS:
        return moving
    order = moving[np.argsort(size[moving], kind="stable")]
    return np.sort(order[np.linspace(0, len(order) - 1, _COLUMNS).astype(int)])


def _small_leaves(run: Run) -> Array:
    """The columns of whole leaves, the small ones, for what depends on all of a leaf."""
    counts = np.bincount(run.leaf)
    kept: list[int] = []
    for leaf in np.argsort(counts, kind="stable"):
        if sum(counts[kept]) + counts[leaf] <= _WHOLE:
            kept.append(int(leaf))
    return np.flatnonzero(np.isin(run.leaf, kept))
