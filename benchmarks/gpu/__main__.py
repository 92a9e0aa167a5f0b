"""Measure on a GPU: `python -m benchmarks.gpu --out FOLDER`.

Writes `gpu-correct`, `gpu-update` and `gpu-cifar` into the folder, each as `.json` and `.md`, in
less than ten minutes on an H100. Every part is a process of its own: what one breaks or fills
leaves the others. `--small` goes through all of it in a minute, on a CPU too.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.gpu import part


def command(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the command of a part."""
    return [sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments]


def run(command: Sequence[str], seconds: float) -> str:
    """Run a command and end all that it started; return in words how it failed, if it did."""
    process = subprocess.Popen(command, process_group=0)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"took more than its {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"ended with exit code {code}" if code else ""


def main(arguments: Sequence[str]) -> int:
    """Run the parts, and return the exit code."""
    options = part.parse(arguments)
    # The processes share the card, and none may keep what another needs.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    if not options.small and jax.default_backend() == "cpu":
        print("benchmarks.gpu: JAX sees no GPU here; --small runs on a CPU.", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    # So that `run` ends what it started before this process ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = []
    for name in options.parts:
        how = run(command(name, arguments), part.SECONDS[name])
        failed += [f"the part {name} {how}"] if how else []
    if failed:
        print(f"benchmarks.gpu: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
