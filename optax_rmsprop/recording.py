"""A recorded run: the parameters and gradients of chosen steps, kept in the state, or in a file.

    tx = record(dialects.torch(1e-3), 50)  # the first fifty steps; then train as ever
    Run.of(state, tx).save("run.npz")

`Run.load` reads such a file of any framework. It is NumPy's `.npz`, without pickles:

    version              1
    steps                int [T]: the recorded steps, increasing; 0 is the first update of the run
    params/<path>        [T + R, ...]: a parameter before each step, and after the last one of each
                         of the R stretches of steps that follow each other. If steps are 0, 1, ...,
                         T − 1, these are T + 1 rows: before each step, and after the last.
    grads/<path>         [T, ...]: its gradient at each step, as the optimizer got it
    learning_rates       float [T]: the rate of each step; the key is left out if it is not known
    settings             a JSON object of strings: "call" is what made the optimizer; "dtype/<path>"
                         the dtype of a parameter that is not the one stored, such as bfloat16

A path is the names on the way to a parameter, joined by "/", and may hold any character. Arrays are
of floating-point or complex numbers that NumPy has; bfloat16 is widened to float32.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._link import Step, Treewise, Update, check_state, link
from ._tree import (
    accumulators_like,
    checked_leaf,
    dtype_of,
    flatten,
    flatten_up_to,
    increment,
    is_gradient,
    place,
    zero,
)
from .interop._arrays import flatten as leaves_with_keys

Array = np.ndarray[Any, Any]

_LARGEST = 2**24  # steps to keep: more are a slip, which would end when the memory does


class RecordState(NamedTuple):
    """The state of `record`."""

    record_count: jax.Array  # int32 []: updates made so far
    steps: jax.Array  # int32 [T]: the steps that are kept
    kept_params: Any  # [T + R, ...] like the parameters: as in a file
    kept_grads: Any  # [T, ...], >= float32, like the parameters: gradients
    kept_rates: jax.Array | None  # float [T]: learning rates, if the state below has one
    inner_state: Any  # the wrapped state


@link(RecordState, "recording")
def record(tx: optax.GradientTransformation, steps: int | Sequence[int]) -> Treewise:
    """Keep the parameters and gradients of chosen steps in the state of a transformation.

    The updates are those without it, bit for bit. The memory is that of `steps` gradients and as
    many parameters from `init` on, and is updated in place where the state is donated. To record
    what a loss gives, `record` stands outermost: `record(optax.chain(...), 50)`.

    The parameters after a step are those that the next step gets. After the last of a stretch they
    are `optax.apply_updates(params, updates)`. A leaf that has no gradient has zeros.

    Args:
        tx: Any Optax transformation.
        steps: How many steps from the first on, or which: an increasing sequence of step numbers,
            the first update being 0.

    Returns:
        A transformation with the state `RecordState(...)`, for `Run.of`. `update` needs `params`.

    Raises:
        TypeError: if `steps` is no integer or sequence of integers, or a gradient is wider than
            its parameter, and than float32.
        ValueError: if `steps` is empty, negative, not increasing, or more than 2²⁴, or `update`
            gets no `params`.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> from optax_rmsprop.recording import Run, record
        >>> tx = record(optax_rmsprop.rmsprop(0.5, decay=0.75, eps=0.0), 2)
        >>> p = {"w": jnp.array([4.0])}
        >>> state = tx.init(p)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": p["w"] / 4}, state, p)
        ...     p = optax.apply_updates(p, updates)
        >>> run = Run.of(state, tx)
        >>> print(run.steps, run.params["w"][:2].T, run.grads["w"].T)
        [0 1] [[4. 3.]] [[1.   0.75]]
    """
    numbers = _numbers(steps)
    rows = _rows(numbers)

    def init(params: optax.Params) -> RecordState:
        inner_state = tx.init(params)
        wide = accumulators_like(params)

        def kept(p: Any, x: Any) -> Any:
            x = x.astype(dtype_of(p)) if jnp.issubdtype(dtype_of(p), jnp.inexact) else x
            return _repeated(rows[-1] + 2, x)

        rates = jnp.zeros(len(numbers), jnp.result_type(float))
        return RecordState(
            zero(),
            jnp.asarray(numbers, jnp.int32),
            jax.tree.map(kept, params, wide),
            jax.tree.map(functools.partial(_repeated, len(numbers)), wide),
            None if _rate(inner_state) is None else rates,
            inner_state,
        )

    def lead(step: Step, updates: optax.Updates, state: Any) -> tuple[optax.Updates, RecordState]:
        check_state("record", state, RecordState)
        grads, params = updates, step.params
        if params is None:
            raise ValueError("record: needs update(grads, state, params)")
        updates, inner_state = step.take(tx, grads, state.inner_state)
        leaves, tree = flatten(grads)
        columns = (params, updates, state.kept_params, state.kept_grads)
        columns = [flatten_up_to("record", tree, grads, x) for x in columns]
        kept, new = columns[2:], _new_rows(grads, leaves, columns)
        is_kept = state.steps == state.record_count
        index = jnp.argmax(is_kept)
        at = jnp.asarray(rows, jnp.int32)[index], index
        kept = cast(Any, jax.lax.cond(is_kept.any(), _written, _unwritten, kept, new, at))
        kept_params, kept_grads = map(tree.unflatten, kept)
        rates, count = state.kept_rates, increment(state.record_count)
        if rates is not None:
            rates = jnp.where(is_kept, jnp.asarray(_rate(inner_state), rates.dtype), rates)
        return updates, RecordState(count, state.steps, kept_params, kept_grads, rates, inner_state)

    return Treewise(init, lead=lead)


def _new_rows(grads: Any, leaves: list[Any], columns: list[list[Any]]) -> tuple[list[Any], ...]:
    """What goes into the rows of each parameter, and into those of its gradient, if it has one."""
    new = list[Any](), list[Any]()
    for i, (g, p, u, _, room) in enumerate(zip(leaves, *columns, strict=True)):
        has_gradient = is_gradient(g)
        if has_gradient:
            p = jnp.asarray(p)
            g = _checked(g, p, room, functools.partial(place, "record", grads, i))
        new[0].append((p, optax.apply_updates(p, u)) if has_gradient else ())
        new[1].append((g,) if has_gradient else ())
    return new


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A recorded run, as NumPy arrays.

    Args:
        params: By path, [T + R, ...]: the rows of the file.
        grads: By path, [T, ...], the same paths.
        steps: The T recorded steps, increasing; the first update of a run is 0.
        learning_rates: [T], or None if they are not known.
        settings: Strings by name, as in the file.

    Raises:
        ValueError: if a shape does not fit the others, or `steps` does not increase.
        TypeError: if an array is not of floating-point or complex numbers.
    """

    params: Mapping[str, Array]
    grads: Mapping[str, Array]
    steps: Array
    learning_rates: Array | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        steps = np.asarray(self.steps)
        if steps.ndim != 1 or not steps.size or steps.dtype.kind not in "iu":
            raise ValueError(f"Run: steps must be integers [T], got {steps.dtype}{steps.shape}")
        if steps[0] < 0 or (np.diff(steps.astype(np.int64)) <= 0).any():
            raise ValueError(f"Run: steps must increase from 0 or more, got {steps}")
        settings = dict(self.settings)
        for name, value in settings.items():
            if not isinstance(cast(Any, value), str):
                raise TypeError(f"Run: settings[{name!r}] must be a string, got {value!r}")
        if differ := sorted(self.params.keys() ^ self.grads.keys()):
            raise ValueError(f"Run: params and grads have not the same paths: {differ[0]!r}")
        object.__setattr__(self, "steps", steps.astype(np.int64))
        rows = {"grads": len(steps), "params": int(self.rows[-1]) + 2}
        for field, count in rows.items():
            arrays = dict[str, Array]()
            for path, x in getattr(self, field).items():
                arrays[path] = array = _numeric(f"{field}/{path}", x, settings)
                like = np.shape(self.grads[path])[1:]
                if array.shape != (count, *like):
                    raise ValueError(
                        f"Run: {field}/{path} must have shape {(count, *like)}, {count} rows for "
                        f"{len(steps)} steps, got {array.shape}"
                    )
            object.__setattr__(self, field, arrays)
        if self.learning_rates is not None:
            rates = _numeric("learning_rates", self.learning_rates, {})
            if rates.shape != steps.shape:
                raise ValueError(
                    f"Run: learning_rates must have shape {steps.shape}, got {rates.shape}"
                )
            object.__setattr__(self, "learning_rates", rates)
        object.__setattr__(self, "settings", settings)

    @property
    def rows(self) -> Array:
        """The row of `params` before each step; the one after it is the next: int [T]."""
        return _rows(self.steps)

    @property
    def is_from_start(self) -> bool:
        """Whether the steps are 0, 1, ..., T − 1, so that the state of a fresh optimizer fits."""
        return int(self.steps[-1]) == len(self.steps) - 1

    @classmethod
    def of(cls, state: Any, tx: optax.GradientTransformation | None = None) -> "Run":
        """The run that a state has recorded so far.

        Args:
            state: The state of a `record`, or any tree with one in it: of a chain, a training
                state.
            tx: The transformation, for the call in the settings.

        Raises:
            ValueError: if there is not one `record` in the state, or it has no step yet, or two
                parameters have the same path.
            TypeError: if the state is of several runs, or its values are not known.
        """

        def is_record(x: Any) -> bool:
            return isinstance(x, RecordState)

        found = [x for x in jax.tree.leaves(state, is_leaf=is_record) if is_record(x)]
        if len(found) != 1:
            raise ValueError(f"Run.of: state must hold one RecordState, it holds {len(found)}")
        kept: RecordState = found[0]
        try:
            count, steps = int(kept.record_count), np.asarray(kept.steps)
        except TypeError as error:
            raise TypeError(
                "Run.of: state must be that of one run, with values that are known; of many runs "
                "take one, as in jax.tree.map(lambda x: x[0], state)"
            ) from error
        steps = steps[steps < count]
        if not steps.size:
            raise ValueError("Run.of: no step is recorded yet")
        rates = kept.kept_rates
        params, grads = _named(kept.kept_params), _named(kept.kept_grads)
        count, rows = len(steps), int(_rows(steps)[-1]) + 2
        return cls(
            {path: x[:rows] for path, x in params.items()},
            {path: x[:count] for path, x in grads.items()},
            steps,
            None if rates is None else np.asarray(rates)[:count],
            _versions() | ({} if tx is None else {"call": _call(tx)}),
        )

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the file, whole or not at all.

        Args:
            path: The file.
            force: Write over one that is there.

        Raises:
            FileExistsError: if there is a file, without `force`.
        """
        target = pathlib.Path(path)
        if target.exists() and not force:
            raise FileExistsError(f"Run.save: {target} exists; force=True writes over it")
        arrays = {f"params/{name}": x for name, x in self.params.items()}
        arrays |= {f"grads/{name}": x for name, x in self.grads.items()}
        if self.learning_rates is not None:
            arrays["learning_rates"] = self.learning_rates
        settings = json.dumps(dict(self.settings), ensure_ascii=False)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, version=1, steps=self.steps, settings=settings, **cast(Any, arrays))
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Read a file, of this package or of another writer.

        Args:
            path: The file. No pickle in it is read.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is no whole `.npz` file of this layout, naming the key.
            TypeError: if an array is not of numbers.

        Example:
            >>> import pathlib, tempfile, numpy as np
            >>> from optax_rmsprop.recording import Run
            >>> run = Run({"w": np.ones((2, 3))}, {"w": np.zeros((1, 3))}, [0])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     run.save(pathlib.Path(folder, "run.npz"))
            ...     print(Run.load(pathlib.Path(folder, "run.npz")).params["w"].shape)
            (2, 3)
        """
        arrays = _read(path)
        trees: dict[str, dict[str, Array]] = {"params": {}, "grads": {}}
        for key in ("version", "steps", "settings"):
            if key not in arrays:
                raise ValueError(
                    f"Run.load: {path} has no {key!r}: it is no run that `Run.save` wrote"
                )
        for key, array in arrays.items():
            field, _, name = key.partition("/")
            if field in trees and "/" in key:
                trees[field][name] = array
            elif key not in ("version", "steps", "settings", "learning_rates"):
                raise ValueError(f"Run.load: {path} has the unknown key {key!r}")
        if arrays["version"].tolist() != 1:
            raise ValueError(f"Run.load: {path} has version {arrays['version']}, known is 1")
        try:
            settings = json.loads(str(arrays["settings"]))
            assert isinstance(settings, dict)
            settings = cast(dict[str, str], settings)
        except (ValueError, AssertionError, RecursionError) as error:
            raise ValueError(f"Run.load: {path}: settings is no JSON object") from error
        try:
            rates = arrays.get("learning_rates")
            return cls(**trees, steps=arrays["steps"], learning_rates=rates, settings=settings)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Run.load: {path}: {error}") from error


def _checked(g: Any, p: jax.Array, room: jax.Array, where: Callable[[], str]) -> jax.Array:
    """A gradient that fits its parameter and what is kept for it."""
    g = checked_leaf(g, [p], where, signed=True)
    if jnp.finfo(g.dtype).bits > jnp.finfo(room.dtype).bits:
        raise TypeError(f"{where()} is {g.dtype}, and there is room for {room.dtype}")
    return g


def _written(kept: Any, new: Any, at: Any) -> Any:
    """The arrays with new rows, each list of them from a row on."""
    return [
        [_put(buffer, rows, first) for buffer, rows in zip(buffers, news, strict=True)]
        for buffers, news, first in zip(kept, new, at, strict=True)
    ]


def _unwritten(kept: Any, new: Any, at: Any) -> Any:
    del new, at
    return kept


def _put(buffer: jax.Array, rows: Sequence[jax.Array], first: jax.Array) -> jax.Array:
    for i, x in enumerate(rows):
        new: Any = x.astype(buffer.dtype)
        buffer = cast(Any, jax.lax.dynamic_update_index_in_dim(buffer, new, first + i, 0))
    return buffer


def _numbers(steps: Any) -> Array:
    """The numbers of the steps."""
    if _is_integer(steps):
        steps = range(min(int(steps), _LARGEST + 1))
    if isinstance(steps, Sequence) and len(cast(Sequence[Any], steps)) > _LARGEST:
        raise ValueError(f"record: steps must be {_LARGEST} or fewer: all are kept in memory")
    if not isinstance(steps, Sequence) or not all(map(_is_integer, cast(Sequence[Any], steps))):
        raise TypeError(f"record: steps must be an integer or a sequence of them, got {steps!r}")
    numbers = np.asarray(cast(Any, steps), np.int64)
    increase = numbers.size and numbers[0] >= 0 and (np.diff(numbers) > 0).all()
    if not increase or numbers[-1] >= np.iinfo(np.int32).max:
        raise ValueError(f"record: steps must be one or more, and increase from 0, got {steps!r}")
    return numbers


def _is_integer(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _rows(steps: Array) -> Array:
    """The row of the parameters before each step: one more is there after each stretch."""
    return np.arange(len(steps)) + np.cumsum(np.diff(steps, prepend=steps[0] - 1) > 1)


def _repeated(count: Any, x: Any) -> Any:
    return jnp.broadcast_to(x, (int(count), *x.shape))


def _rate(state: Any) -> Any:
    """The rate that the last update used, if the state has one."""
    found = [x for _, x in optax.tree.get_all_with_path(state, "last_learning_rate")]
    return found[0] if len(found) == 1 else None


def _named(tree: Any) -> dict[str, Array]:
    """The arrays of a recorded tree by path; what no gradient reaches is left out."""
    named = dict[str, Array]()
    for path, x in leaves_with_keys(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"Run.of: two parameters have the path {name!r}")
        if jnp.issubdtype(x.dtype, jnp.inexact):
            named[name] = np.asarray(x)
    return named


def _numeric(key: str, x: Any, settings: dict[str, str]) -> Array:
    """An array of a dtype that NumPy has; another's name goes into the settings."""
    array = np.asarray(x)
    if array.dtype.kind not in "fc":
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"Run: {key} must have floating-point numbers, got {array.dtype}")
        field, _, path = key.partition("/")
        if field == "params":
            settings.setdefault(f"dtype/{path}", str(array.dtype))
        array = array.astype(np.float32)
    return array


def _call(tx: Any) -> str:
    """The call of what is recorded."""
    call = tx.update.call if isinstance(tx.update, Update) else None
    return repr(call.arguments["tx"] if call is not None and call.state is RecordState else tx)


def _versions() -> dict[str, str]:
    return {"jax": jax.__version__, "optax": optax.__version__, "numpy": np.__version__}


def _read(path: Any) -> dict[str, Array]:
    """The arrays of a file, none of them a pickle."""
    broken = (
        ValueError, OSError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError,
        SyntaxError, zipfile.BadZipFile, zlib.error,
    )  # fmt: skip
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {key: np.asarray(archive[key]) for key in archive.files}
        except (*broken, TypeError, AttributeError) as error:
            raise ValueError(
                f"Run.load: {path} is no .npz file of arrays, or not a whole one: {error}"
            ) from error
