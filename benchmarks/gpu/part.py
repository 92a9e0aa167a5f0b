"""What the parts share: the command line, their time, and the files that they write."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tools import environment

# After which a part is ended: less than ten minutes together.
SECONDS = {"correct": 200, "update": 230, "cifar": 155}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, which every part gets whole."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--small", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--data-dir", type=Path, help="a folder with the binary CIFAR-10")
    options = parser.parse_args(arguments)
    if options.data_dir is not None and not options.data_dir.is_dir():
        parser.error(f"--data-dir {options.data_dir} is not a folder")
    return options


class Part:
    """A part's files, written anew after every row: a time limit loses only what runs then."""

    def __init__(self, name: str, title: str, captions: dict[str, str]):
        """Take what stands above each table."""
        self.options, self.began = parse(sys.argv[1:]), time.monotonic()
        self.name, self.title, self.captions = name, title, captions
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in captions}
        self.finished = self.failed = False
        self.facts = environment.facts() | software() | {"date": time.strftime("%Y-%m-%d")}
        self.write()

    def left(self) -> float:
        """Return the seconds until the part should end by itself."""
        return SECONDS[self.name] - 15 - (time.monotonic() - self.began)

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Add a row, whose keys are headings; print it, and write the files."""
        self.tables[table].append(row)
        cells = (f"{key} {shown(value)}" for key, value in row.items() if value is not None)
        print(f"{self.name}: {'; '.join(cells)}", flush=True)
        self.write()

    def write(self) -> None:
        """Write both files."""
        facts = self.facts | {"peak memory of this process": peak_memory()}
        command = environment.command("benchmarks.gpu", sys.argv[1:])
        lines = [f"# {self.title}", "", command, ""]
        lines += [f"- {name}: {value}" for name, value in facts.items() if value]
        lines += [] if self.finished else ["- unfinished: rows that are missing were not reached"]
        for name, rows in self.tables.items():
            lines += ["", self.captions[name], "", *table(rows)] if rows else []
        state = {"finished": self.finished, "failed": self.failed, "small": self.options.small}
        whole = {"command": command.strip()} | facts | state | {"tables": self.tables}
        path = self.options.out / f"gpu-{self.name}"
        environment.write_text(path.with_suffix(".json"), json.dumps(whole, indent=1) + "\n")
        environment.write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")

    def finish(self) -> None:
        """Write the files for the last time, and exit with 1 if something failed."""
        self.finished = True
        self.write()
        sys.exit(1 if self.failed else 0)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of rows, whose keys are its headings."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[shown(row.get(key)) for key in columns] for row in rows]
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return head + [f"| {' | '.join(row)} |" for row in cells]


def shown(value: Any) -> str:
    """Write a cell: a text, a number, or a median with the quartiles around it."""
    if isinstance(value, list):
        low, middle, high = map(shown, value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"
    return "" if value is None else str(value).replace("|", r"\|")


def software() -> dict[str, str]:
    """Tell the versions of Python, PyTorch and the driver."""
    found = {"Python": sys.version.split()[0]}
    try:
        found["PyTorch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        found["PyTorch"] = "not installed"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True)
        found["driver, memory"] = answer.stdout.strip()
    return found


def peak_memory() -> str:
    """Tell the most memory that this process had on its device, where the device says it."""
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return f"{peak / 2**30:.2f} GiB" if peak else ""
