"""Two recorded runs as arrays of the same leaves, in the order and layout of ours."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import jax.numpy as jnp
import numpy as np

from ..probe import _model as model

Array = np.ndarray[Any, Any]
Rename: TypeAlias = Mapping[str, str] | Callable[[str], str] | None

UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclasses.dataclass(frozen=True)
class Record:
    """A run from its first step on, leaf by leaf.

    `params` has T + 1 rows and `grads` T. `rates` are the recorded learning rates, if any.
    """

    params: dict[str, Array]
    grads: dict[str, Array]
    rates: Array | None
    precision: str

    @property
    def unit(self) -> float:
        """The unit roundoff of the numbers."""
        return UNITS[self.precision]

    @property
    def names(self) -> list[str]:
        """The paths of the leaves."""
        return list(self.params)

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(next(iter(self.grads.values())))

    def steps(self, stop: int) -> "Record":
        """The first steps."""
        return dataclasses.replace(
            self,
            params={name: x[: stop + 1] for name, x in self.params.items()},
            grads={name: x[:stop] for name, x in self.grads.items()},
            rates=None if self.rates is None else self.rates[:stop],
        )

    def leaves(self, mapping: Mapping[str, Callable[[Array], Array]], order: list[str]) -> "Record":
        """The leaves changed: the one called `order[i]` takes the place of the i-th."""
        new = dict(zip(self.names, order, strict=True))
        return dataclasses.replace(
            self,
            params={name: mapping[name](self.params[old]) for name, old in new.items()},
            grads={name: mapping[name](self.grads[old]) for name, old in new.items()},
        )

    def run(self, most: int = 30_000_000) -> tuple[model.Run, Array]:
        """The run as a model has it, with all columns or a part of each leaf, and the columns.

        The second value is [N, 2]: the leaf of a column, and its place in the raveled leaf.
        """
        steps = self.count
        size = int(sum(x[0].size for x in self.params.values()))
        stride = max(1, -(-steps * size // most))
        places = [
            np.stack([np.full(n, i), np.arange(0, n * stride, stride)], 1)
            for i, x in enumerate(self.params.values())
            for n in [-(-int(x[0].size) // stride)]
        ]
        params, grads = (
            np.concatenate([
                x.reshape(len(x), -1)[:, ::stride].astype(float) for x in side.values()
            ], 1)
            for side in (self.params, self.grads)
        )  # fmt: skip
        columns = np.concatenate(places)
        with np.errstate(all="ignore"):
            by_leaf = np.concatenate([self._sums(name) for name in self.names], -1)
            run = model.run_of(params, grads, None, columns[:, 0], self.unit)
            sums = by_leaf.sum(-1, keepdims=True)
        return dataclasses.replace(run, leaf_sums=by_leaf[..., columns[:, 0]], sums=sums), columns

    def _sums(self, name: str) -> Array:
        """The sums [3, T, 1] of all of a leaf."""
        sides = (self.params[name][: self.count], self.grads[name])
        p, g = (x.reshape(self.count, -1).astype(float) for x in sides)
        return model.sums(p, g, np.zeros(p.shape[1], int))


def read(argument: str, run: Any) -> Record:
    """The steps of a recorded run from its first on, checked."""
    for field in ("params", "grads"):
        if not isinstance(getattr(run, field, None), Mapping):
            raise TypeError(
                f"compare.runs: {argument}.{field} must be a mapping from paths to arrays"
            )
    params, grads = (
        {str(k): np.asarray(x) for k, x in side.items()} for side in (run.params, run.grads)
    )
    if not params:
        raise ValueError(f"compare.runs: {argument}.params is empty")
    if differ := sorted(params.keys() ^ grads.keys()):
        raise ValueError(f"compare.runs: {argument} has {differ[0]!r} in params or grads alone")
    if not any(x.size for x in params.values()):
        raise ValueError(f"compare.runs: {argument}.params holds no number")
    params, grads = ({k: x for k, x in side.items() if params[k].size} for side in (params, grads))
    steps, whole = _steps(argument, getattr(run, "steps", None), next(iter(grads.values())))
    settings = dict(getattr(run, "settings", None) or {})
    for name in params:
        for field, x, least in (("params", params, whole + 1), ("grads", grads, whole)):
            dtype = x[name].dtype
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(
                    f"compare.runs: {argument}.{field}[{name!r}] must be real floating-point "
                    f"numbers, got {dtype}"
                )
            if len(x[name]) < least or x[name].shape[1:] != grads[name].shape[1:]:
                raise ValueError(
                    f"compare.runs: {argument}.{field}[{name!r}] has shape {x[name].shape}, "
                    f"{least} rows are needed"
                )
    rates = _rates(argument, getattr(run, "learning_rates", None), steps)
    stored = {str(x.dtype) for x in params.values()} | {
        value for key, value in settings.items() if key.startswith("dtype/")
    }
    stored = {name for name in stored if name in UNITS} or {"float32"}
    record = Record(params, grads, rates, max(stored, key=lambda name: UNITS[name])).steps(whole)
    return dataclasses.replace(record, precision=_precision(record))


def _steps(argument: str, given: Any, first: Array) -> tuple[int, int]:
    """How many steps were recorded, and how many of them follow each other from the first on."""
    steps = np.arange(len(first)) if given is None else np.asarray(given)
    if not len(steps) or steps[0] != 0:
        raise ValueError(
            f"compare.runs: {argument} must have the first step, 0, as the state of an optimizer "
            f"is known there alone; its steps are {list(map(int, steps[:3]))}"
        )
    return len(steps), int(np.argmax(steps != np.arange(len(steps)))) or len(steps)


def _rates(argument: str, given: Any, steps: int) -> Array | None:
    if given is None:
        return None
    rates = np.asarray(given, float)
    if rates.shape != (steps,) or not np.isfinite(rates).all():
        raise ValueError(
            f"compare.runs: {argument}.learning_rates must be {steps} finite numbers, got an array "
            f"of shape {rates.shape}"
        )
    return rates


def _precision(record: Record) -> str:
    """The narrowest format that holds each number of the parameters after a step."""
    moved = [
        x[1:][(x[1:] != x[:-1]) & np.isfinite(x[1:])].astype(float) for x in record.params.values()
    ]
    moved = np.concatenate(moved)
    if len(moved) < 8:
        return record.precision
    for name in UNITS:
        if UNITS[name] <= UNITS[record.precision]:
            break
        with np.errstate(all="ignore"):
            if (held(moved, name) == moved).all():
                return name
    return record.precision


def held(x: Array, precision: str) -> Array:
    """What a format keeps of numbers."""
    with np.errstate(all="ignore"):
        return x.astype(jnp.dtype(precision)).astype(float)


def _renamed(names: Mapping[str, str] | None) -> Callable[[str], str]:
    given = dict(names or {})
    return lambda name: given.get(name, name)


def norm(x: Any) -> float:
    """The Euclidean norm of all numbers."""
    return float(cast(Any, np.linalg).norm(x))


def paired(theirs: Record, ours: Record, rename: Rename) -> tuple[Record, Record]:
    """Both with the leaves' names of ours, in the same order, and as many steps."""
    renamed = rename if callable(rename) else _renamed(rename)
    new = {name: renamed(name) for name in theirs.names}
    if isinstance(rename, Mapping) and (
        unknown := sorted(set(cast(Mapping[str, str], rename)) - set(new))
    ):
        raise ValueError(f"compare.runs: rename has {unknown[0]!r}, which theirs has not")
    back = {value: key for key, value in new.items()}
    if len(back) < len(new):
        double = next(value for key, value in new.items() if back[value] != key)
        raise ValueError(f"compare.runs: rename gives two leaves of theirs the name {double!r}")
    missing, surplus = sorted(ours.params.keys() - back), sorted(back.keys() - ours.params)
    if missing or surplus:
        raise ValueError(
            f"compare.runs: ours has {missing} and theirs has {surplus} alone; "
            "rename maps paths of theirs to paths of ours"
        )
    theirs = dataclasses.replace(
        theirs,
        params={name: theirs.params[back[name]] for name in ours.names},
        grads={name: theirs.grads[back[name]] for name in ours.names},
    )
    for name in ours.names:
        a, b = theirs.grads[name].shape[1:], ours.grads[name].shape[1:]
        if sorted(a) != sorted(b):
            raise ValueError(f"compare.runs: {name!r} has shape {a} in theirs and {b} in ours")
    count = min(theirs.count, ours.count)
    return theirs.steps(count), ours.steps(count)
