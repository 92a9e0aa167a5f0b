"""Reports for people, and the same as JSON for programs."""

import contextlib
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import rich.console
import rich.progress
import rich.table
import rich.text

from ._bytes import GB, Account, Row
from ._guard import finite, printable
from ._inspect import Inspection, Parameter

WIDE = 4000  # columns: a table is not squeezed into a terminal, whose lines wrap


def as_json(report: Any) -> None:
    """A report as JSON, alone on the standard output."""
    as_dict = getattr(report, "as_dict", None)
    found = as_dict() if as_dict else report
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = dataclasses.asdict(found)
    print(json.dumps(finite(found), indent=2, allow_nan=False, default=_other))


def _other(x: Any) -> Any:
    return cast(Any, x).item() if isinstance(x, np.generic) else str(x)


def text(report: Any) -> None:
    """A report in lines, without what a terminal would obey."""
    for line in str(report).splitlines():
        print(printable(line))


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


def inspection(found: Inspection) -> None:
    """Print what a checkpoint holds."""
    lines = [("file", found.file), ("format", found.format)]
    lines += [("optimizer", found.optimizer or "none")]
    lines += [("rule", call) for call in found.calls]
    lines += [("not in the file", ", ".join(found.unknown))]
    lines += [("truth table", row) for row in found.truth_table]
    lines += [("steps", "not in the file" if found.steps is None else _steps(found.steps))]
    given = {name: value for name, value in found.settings.items() if value is not None}
    lines += [("settings", ", ".join(f"{name} = {value}" for name, value in given.items()))]
    lines += [("note", note) for note in found.notes]
    source = (found.provenance or {}).get("source", {})
    digests = source.get("sha256", {})
    for file, n in Counter(name.partition("/")[0] for name in digests).items():
        what = f"SHA-256 {digests[file]}" if file in digests else f"a folder of {n} files"
        lines += [("converted from", f"{file}, {what}")]
    _lines(lines)
    if found.parameters:
        print(_parameters(found))


def account(found: Account) -> None:
    """Print where the bytes go."""
    mesh = ", ".join(f"{name}={size}" for name, size in found.mesh.items())
    held = f"parameters {_gb(found.parameters)} GB, gradients {_gb(found.gradients)} GB"
    _lines(
        [
            ("model", f"{found.model}: {found.count:,} parameters"),
            ("mesh", f"{mesh}; {found.rule}"),
            ("on a device", f"{held}; a GB is 10⁹ bytes"),
            ("not counted", found.not_counted),
        ]
    )
    heads = ("optimizer", "state, bytes a parameter", "state, GB", "total, GB")
    heads += tuple(f"left of {memory:g} GB" for memory in found.memory)
    print(_table(heads, [_cells(row) for row in found.rows]))


def _cells(row: Row) -> tuple[str, ...]:
    left = (_gb(n) if n >= 0 else "too much" for n in row.left)
    return row.optimizer, f"{row.of_a_parameter:.3f}", _gb(row.state), _gb(row.total), *left


def _gb(count: int) -> str:
    return f"{count / GB:.3f}"


def _lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and what they are, where it is something."""
    for name, value in lines:
        if value:
            print(f"{name:<17}{printable(value)}")


def _parameters(found: Inspection) -> str:
    """The parameters, one a line."""
    several = len(found.groups) > 1
    rows = [_row(x, several) for x in found.parameters]
    heads = ("parameter", "shape", "dtype", "group", "nu: min", "25%", "50%", "75%", "max")
    heads += ("dead", "not finite")
    return _table(heads, rows)


def _row(x: Parameter, several: bool) -> tuple[str, ...]:
    group = str(x.group) if several and x.group is not None else ""
    nu = [f"{q:.3g}" for q in x.nu] if x.nu else [""] * 5
    dead = "" if x.dead is None else f"{x.dead:,}"
    shape = "×".join(map(str, x.shape)) or "()"
    return (
        printable(x.name),
        shape,
        x.dtype,
        group,
        *nu,
        dead,
        f"{x.not_finite:,}" if x.not_finite else "",
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their heads, and no column that is empty."""
    columns = [(head, cells) for head, *cells in zip(heads, *rows, strict=True) if any(cells)]
    table = rich.table.Table(box=None, pad_edge=False)
    for head, _ in columns:
        table.add_column(head, justify="left" if head == heads[0] else "right")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*map(rich.text.Text, cells))
    console = rich.console.Console(file=io.StringIO(), width=WIDE)
    console.print(table)
    return "\n".join(map(str.rstrip, cast(io.StringIO, console.file).getvalue().splitlines()))


def _steps(steps: int | list[int]) -> str:
    return f"{steps:,}" if isinstance(steps, int) else f"{steps[0]:,} to {steps[1]:,}"
