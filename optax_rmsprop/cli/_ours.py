"""What `convert` writes, and what a run in JAX saves: arrays by path, in Orbax or `.npz`."""

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import warnings
import zipfile
from collections.abc import Generator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ..interop._arrays import path_of
from . import _guard as guard
from . import _provenance as provenance
from ._guard import Refused
from ._saved import Array, Saved, array

RECORD = "provenance"  # its name in an `.npz`
_MARKS = ("_CHECKPOINT_METADATA", "_METADATA", "_METADATA.ocdbt", "orbax.checkpoint")


@dataclasses.dataclass
class Ours(Saved):
    """Trees of a run in JAX: `params`, `opt_state`, and perhaps others."""

    arrays: dict[str, Array] = dataclasses.field(default_factory=dict[str, Array])
    """By path, `params/dense/kernel`."""

    def tree(self, name: str) -> dict[str, Array]:
        """The arrays of one tree, by their paths in it."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): x for k, x in self.arrays.items() if k.startswith(prefix)}


def is_orbax(path: pathlib.Path) -> bool:
    """Whether a folder is a checkpoint of Orbax."""
    return path.is_dir() and any(
        (folder / mark).exists() for folder in (path, path / "default") for mark in _MARKS
    )


def is_converted(path: pathlib.Path) -> bool:
    """Whether `convert` wrote it."""
    return (path / provenance.FILE).is_file() if path.is_dir() else path.suffix == ".npz"


def read_npz(path: pathlib.Path) -> Ours:
    """An archive of NumPy."""
    arrays = guard.npz(path)
    text = arrays.pop(RECORD, None)
    record = None if text is None else guard.json_of(str(text), f"{path}: {RECORD}")
    dtypes: dict[str, str] = (record or {}).get("dtypes") or {}
    for name, dtype in dtypes.items():
        if name in arrays and dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            arrays[name] = arrays[name].view(getattr(jnp, dtype))
    return _described(Ours("npz", {}, arrays=arrays, provenance=record), path)


def read_orbax(path: pathlib.Path) -> Ours:
    """A checkpoint of Orbax."""
    size = guard.folder_without_links(path)
    file = path / provenance.FILE
    record = guard.json_of(file.read_bytes(), str(file)) if file.is_file() else None
    with _orbax(f"{path} is no whole checkpoint of Orbax") as ocp:
        about = ocp.metadata(path.absolute()).metadata
        wanted = cast(Any, jax.tree.map)(_in_memory, about)
        guard.check_size(str(path), sum(map(_size, jax.tree.leaves(wanted))), size)
        tree = ocp.load(path.absolute(), wanted)
    leaves = {k: x for k, x in by_path(tree, str(path)).items() if not isinstance(x, (str, bytes))}
    arrays = {name: array(f"{path}: {name}", x) for name, x in leaves.items()}
    return _described(Ours("Orbax", {}, arrays=arrays, provenance=record), path)


def shapes_of(path: pathlib.Path) -> Any:
    """The tree of a checkpoint of Orbax, of abstract leaves; no array is read."""
    guard.folder_without_links(path)
    if not is_orbax(path):
        raise Refused(f"{path} is a folder, and no checkpoint of Orbax")
    with _orbax(f"{path} is no whole checkpoint of Orbax") as ocp, jax.enable_x64(True):
        return jax.tree.map(_abstract, ocp.metadata(path.absolute()).metadata)


@contextlib.contextmanager
def _orbax(complaint: str) -> Generator[Any]:
    """Orbax, silent; whatever its storage raises is one complaint."""
    ocp = guard.needed("orbax.checkpoint", "a folder of Orbax").v1
    for name in ("absl", "asyncio"):  # A failure leaves tasks behind that log theirs, too.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield ocp
    except Refused:
        raise
    except (Exception, asyncio.CancelledError) as error:
        raise Refused(f"{complaint}: {error}") from error


def _in_memory(x: Any) -> Any:
    """What asks Orbax for an array of NumPy, on no device and in its own dtype."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape) if hasattr(x, "shape") else x


def _size(x: Any) -> int:
    return int(getattr(x, "nbytes", 0))


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def by_path(tree: Any, where: str) -> dict[str, Any]:
    """The leaves of a tree by their paths as text."""
    leaves = cast(Any, jax.tree_util.tree_leaves_with_path(tree))
    found = dict[str, Any]()
    for path, x in leaves:
        name = "/".join(path_of(path))
        if name in found:
            raise Refused(f"{where}: two leaves have the path {name!r}")
        found[name] = x
    return found


def write(path: pathlib.Path, trees: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Trees and their record, as an archive of NumPy or a checkpoint of Orbax."""
    trees = cast("dict[str, Any]", jax.tree.map(np.asarray, dict(trees)))
    arrays = by_path(trees, str(path))
    if path.suffix == ".npz":
        narrow = {name: x for name, x in arrays.items() if x.dtype.kind == "V"}
        kept = {**record, "dtypes": {name: str(x.dtype) for name, x in narrow.items()}}
        arrays[RECORD] = np.array(provenance.text(kept))
        with zipfile.ZipFile(path, "w") as file:
            for name, x in arrays.items():
                if "\0" in name:
                    raise Refused(f"{name!r} is no name that an .npz can have")
                with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, x, allow_pickle=False)
        return
    if empty := [name for name, x in arrays.items() if not x.size]:
        raise Refused(f"{empty[0]} has no entries, and Orbax holds none: convert to .npz")
    with _orbax(f"Orbax cannot write {path.name}") as ocp:
        ocp.save(path.absolute(), trees)
    (path / provenance.FILE).write_text(provenance.text(record), encoding="utf-8")


def _described(saved: Ours, path: pathlib.Path) -> Ours:
    """Its parameters, moments and steps, by what the links of the state are called."""
    saved.weights = saved.tree("params")
    if not saved.weights and not saved.tree("opt_state"):
        saved.weights = saved.arrays  # a tree of parameters by itself
    fields = {"nu": "nu", "var": "var", "mu": "mu", "trace": "momentum"}
    for name, x in saved.tree("opt_state").items():
        parts = name.split("/")
        # The first of these names is a field of a state; a parameter may have it, too.
        at = next((i for i, part in enumerate(parts) if part in fields), None)
        if at is None and name.removesuffix("/value").endswith("count") and x.ndim == 0:
            saved.steps = {"": int(x)}
        if at is not None and at + 1 < len(parts):
            parameter = "/".join(parts[at + 1 :])
            saved.moments.setdefault(parameter, {})[fields[parts[at]]] = x
    for arrays in saved.moments.values():
        if "var" in arrays:
            arrays["nu"] = arrays.pop("var") + np.abs(arrays.get("mu", 0.0)) ** 2
    saved.names = list(saved.moments)
    saved.steps = dict.fromkeys(saved.names, saved.steps.get("", 0)) if saved.steps else {}
    if saved.provenance is not None:
        groups = provenance.groups_of(saved.provenance, str(path))
        saved.rules = [groups] if groups else []
        saved.optimizer = str(saved.provenance.get("source", {}).get("optimizer", ""))
    elif saved.moments:
        saved.optimizer = "an Optax state; its rule is not in it"
    return saved
