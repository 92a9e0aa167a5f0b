"""Reports for people, and the same as JSON for programs."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import rich.console
import rich.progress
import rich.table
import rich.text

from ._guard import finite, printable
from ._inspect import Inspection


def as_json(report: Any) -> None:
    """A report as JSON, alone on the standard output."""
    as_dict = getattr(report, "as_dict", None)
    found = as_dict() if as_dict else report
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = dataclasses.asdict(found)
    print(json.dumps(finite(found), indent=2, allow_nan=False, default=_other))


def _other(x: Any) -> Any:
    return cast(Any, x).item() if isinstance(x, np.generic) else str(x)


def track(names: Sequence[str]) -> Iterator[str]:
    """Names one after another, with a bar on the standard error of a terminal."""
    console = rich.console.Console(stderr=True)
    yield from rich.progress.track(
        names, "reading", console=console, transient=True, disable=not console.is_terminal
    )


def working(what: str) -> contextlib.AbstractContextManager[Any]:
    """Say on the standard error of a terminal what takes its time."""
    console = rich.console.Console(stderr=True, markup=False)
    return console.status(printable(what)) if console.is_terminal else contextlib.nullcontext()


def console() -> rich.console.Console:
    """The standard output; wide where it is no terminal, so that nothing is cut."""
    width = None if sys.stdout.isatty() else 4000
    return rich.console.Console(width=width, highlight=False, markup=False, emoji=False)


def inspection(found: Inspection) -> None:
    """Print what a checkpoint holds."""
    out = console()
    facts = rich.table.Table.grid(padding=(0, 2))
    unknown = f"not in the file: {', '.join(found.unknown)}" if found.unknown else ""
    lines = [("file", found.file), ("format", found.format)]
    lines += [("optimizer", found.optimizer or "none")]
    lines += [("rule", call) for call in found.calls] + [("", unknown)]
    lines += [("truth table", row) for row in found.truth_table]
    lines += [("steps", "not in the file" if found.steps is None else _steps(found.steps))]
    given = {name: value for name, value in found.settings.items() if value is not None}
    lines += [("settings", ", ".join(f"{name} = {value}" for name, value in given.items()))]
    lines += [("note", note) for note in found.notes]
    if found.provenance:
        source = found.provenance.get("source", {})
        for file, digest in source.get("sha256", {}).items():
            lines += [("converted from", f"{file}, SHA-256 {digest}")]
    for name, value in lines:
        if value:
            facts.add_row(name, _text(value))
    out.print(facts)
    if found.parameters:
        out.print(_table(found))


def _table(found: Inspection) -> rich.table.Table:
    several = len(found.groups) > 1
    table = rich.table.Table(title=None)
    table.add_column("parameter", overflow="fold")
    heads = ["shape", "dtype", *(["group"] if several else [])]
    heads += ["nu: minimum", "quartile", "median", "quartile", "maximum", "dead", "not finite"]
    for head in heads:
        table.add_column(head, justify="right")
    for x in found.parameters:
        nu = [f"{q:.3g}" for q in x.nu] if x.nu else [""] * 5
        group = ["" if x.group is None else str(x.group)] if several else []
        dead = "" if x.dead is None else f"{x.dead:,}"
        cells = ["×".join(map(str, x.shape)) or "()", x.dtype, *group, *nu, dead]
        table.add_row(_text(x.name), *cells, f"{x.not_finite:,}" if x.not_finite else "")
    return table


def _steps(steps: int | list[int]) -> str:
    return f"{steps:,}" if isinstance(steps, int) else f"{steps[0]:,} to {steps[1]:,}"


def _text(x: Any) -> rich.text.Text:
    return rich.text.Text(printable(str(x)))
