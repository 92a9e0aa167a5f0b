"""Where a converted checkpoint comes from: a record that lies beside it."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from . import _guard as guard
from ._calls import Call
from ._guard import Refused
from ._saved import Group, Saved

FILE = "provenance.json"
VERSION = 1
_PACKAGES = ("optax-rmsprop", "jax", "optax", "numpy", "orbax-checkpoint", "torch", "h5py")


def record(
    saved: Saved,
    groups: list[Group],
    labels: Mapping[str, str],
    files: Mapping[str, pathlib.Path],
    renamed: Mapping[str, str],
) -> dict[str, Any]:
    """What is known of a conversion.

    Args:
        saved: What was read.
        groups: The calls, each with its parameters' names in the source.
        labels: Of each leaf of the parameters the number of its group, or "frozen".
        files: The source, by name.
        renamed: Names of the source, and what they became.
    """
    from .. import __version__

    versions = {"python": platform.python_version(), "optax-rmsprop": __version__}
    for package in _PACKAGES[1:]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "version": VERSION,
        "call": str(groups[0].call) if len(groups) == 1 else None,
        "groups": [{"call": str(g.call), "parameters": g.names} for g in groups],
        "labels": dict(labels),
        "truth_table": sorted({row for group in groups for row in group.call.framework.rows}),
        "source": {
            "format": saved.format,
            "optimizer": saved.optimizer,
            "settings": saved.settings,
            "sha256": guard.digests(files),
        },
        "renamed": dict(renamed),
        "versions": versions,
    }


def text(found: Mapping[str, Any]) -> str:
    """A record as a file has it."""
    return json.dumps(guard.finite(found), indent=2, allow_nan=False) + "\n"


def beside(path: pathlib.Path) -> pathlib.Path:
    """The record of a file of another framework."""
    return path.with_name(f"{path.name}.{FILE}")


def find(saved: Saved, path: pathlib.Path) -> None:
    """Read the record that lies beside a file, if it is of this file."""
    file = beside(path)
    if not path.is_file() or not file.is_file() or file.is_symlink():
        return
    found = guard.json_of(file.read_bytes(), str(file))
    if found.get("written") == guard.digests({path.name: path}):
        saved.provenance = found
    else:
        saved.notes.append(f"{file.name} is the record of another file")


def groups_of(found: Mapping[str, Any], where: str) -> list[Group]:
    """The calls of a record. They are read, and not evaluated."""
    try:
        if found["version"] != VERSION:
            raise Refused(f"a record of version {found['version']!r}, expected {VERSION}")
        found["labels"].items()
        return [
            Group(Call.parsed(str(group["call"])), [str(name) for name in group["parameters"]])
            for group in found["groups"]
        ]
    except Refused as error:
        raise Refused(f"{where}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{where} is no record of a conversion: {error!r}") from error
