"""What a page of results tells of the machine that made it, and how a file is written whole."""

import contextlib
import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def facts() -> dict[str, str]:
    """Tell what the numbers depend on besides the command."""
    import jax  # Takes seconds, which a command line that is refused should not.

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
    }


def command(module: str, arguments: Sequence[str]) -> str:
    """Write a command line; of absolute paths, which say nothing to others, the last part."""
    shown = [Path(a).name if Path(a).is_absolute() else a for a in arguments]
    return f"    python -m {module} {shlex.join(shown)}".rstrip()


def heading(title: str, module: str, arguments: Sequence[str], **more: str) -> list[str]:
    """Return the first lines of a page of results: command, machine, versions, and what is more."""
    lines = (f"- {name}: {value}" for name, value in (facts() | more).items())
    return [f"# {title}", "", command(module, arguments), "", *lines, ""]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, which takes the place of `path` at the end."""
    new = path.with_name(f"new-{path.name}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")
