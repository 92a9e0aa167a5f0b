"""Which kind of checkpoint a path is."""

import dataclasses
import pathlib
import zipfile

from . import _guard as guard
from . import _keras as keras
from . import _ours as ours
from . import _provenance as provenance
from . import _tensorflow as tensorflow
from . import _torch as torch
from ._guard import Refused
from ._saved import Options, Saved

FOREIGN = {".pt", ".pth", ".bin", ".zip", ".keras", ".h5", ".hdf5"}


def read(path: pathlib.Path, options: Options) -> Saved:
    """A checkpoint of any kind, by what it is rather than by its name, where that can be told."""
    try:
        found = _read(path, options)
        if options.beside and found.weights.keys() != options.beside.keys():
            raise Refused(f"--weights is for an optimizer alone, and {path} has weights")
        if not isinstance(found, ours.Ours):
            provenance.find(found, path)
        return found
    except (Refused, ModuleNotFoundError, OSError, MemoryError):
        raise
    except Exception as error:  # A file of somebody else may hold anything.
        reason = f"{type(error).__name__}: {error}"
        raise Refused(f"{path} is no checkpoint that can be read: {reason}") from error


def _read(path: pathlib.Path, options: Options) -> Saved:
    if ours.is_orbax(path):
        return ours.read_orbax(path)
    if (prefix := tensorflow.prefix_of(path)) is not None:
        return tensorflow.read(prefix, options)
    if path.is_dir():
        raise Refused(f"{path} is a folder, and no checkpoint of Orbax or TensorFlow")
    guard.regular_file(path)
    if path.suffix == ".npz":
        return ours.read_npz(path)
    if path.suffix == ".safetensors":
        return torch.read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return keras.read(path, options)
    members = set[str]()
    if start[:4] == b"PK\x03\x04" or zipfile.is_zipfile(path):
        with guard.archive(path, str(path)) as opened:
            members = {*opened.namelist()}
    if "config.json" in members or path.suffix == ".keras":
        return keras.read(path, options)
    if "policy.pth" in members or path.suffix == ".zip":
        return torch.read_stable_baselines3(path, options)
    if path.suffix in (".h5", ".hdf5"):
        return keras.read(path, options)
    return torch.read(path, options)


def parts(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a checkpoint, by name."""
    prefix = None if ours.is_orbax(path) else tensorflow.prefix_of(path)
    if prefix is not None:
        return {file.name: file for file in tensorflow.files_of(prefix)}
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path.parent)): file for file in inside}
    return {path.name: path}


def with_weights(options: Options, path: pathlib.Path | None) -> Options:
    """The options with the weights of a file of their own."""
    if path is None:
        return options
    found = read(path, dataclasses.replace(options, names=()))
    if not found.weights:
        raise Refused(f"--weights {path} has no weights")
    in_order = found.format != "safetensors"  # which sorts them
    return dataclasses.replace(options, beside=found.weights, in_order=in_order)
