"""Kill a run again and again, resume it, and compare it with one that nothing stopped."""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from examples.cifar10 import configs
from examples.cifar10.main import exit_code
from experiments import common
from tools import environment

# Small, but with many checkpoints, so that kills hit all that a run does.
RUN = "--dataset synthetic --epochs 8 --batch-size 16 --widths 24 24 24 --image-sizes 20".split()


def train(workdir: Path, *flags: str) -> subprocess.Popen:
    """Start the example as a user does."""
    command = [sys.executable, "-m", "examples.cifar10.main", *RUN, "--workdir", str(workdir)]
    return subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    """Wait for the end, which must be a good one."""
    _, errors = process.communicate()
    if process.returncode:
        raise configs.UserError(f"a run failed with {process.returncode}: {errors.decode()}")


def kill_and_resume(workdir: Path, kills: int, seconds: float, rng: random.Random) -> int:
    """Kill a run `kills` times before `seconds`, and let it end; return the kills that hit."""
    hits = 0
    for _ in range(kills):
        process = train(workdir, *_resume(workdir))
        time.sleep(rng.uniform(0, 0.9 * seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hits += process.returncode == -signal.SIGKILL
    finish(train(workdir, *_resume(workdir)))
    return hits


def _resume(workdir: Path) -> list[str]:
    return ["--resume"] if (workdir / "config.json").exists() else []


def outcome(workdir: Path) -> tuple[list[dict], dict[str, bytes]]:
    """Return the metrics without the clock's, and the bytes of all arrays at the end."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]
    with (
        ocp.training.Checkpointer(workdir.absolute() / "checkpoints") as checkpointer,
        warnings.catch_warnings(action="ignore"),  # that the shardings are those of the file
    ):
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.load())
    return rows, {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def compare(workdir: Path, runs: int, kills: int, seed: int) -> list[str]:
    """Return the table of `runs` killed runs; raise if one ends with other bits."""
    began = time.perf_counter()
    finish(train(workdir / "whole"))
    seconds = time.perf_counter() - began
    expected = outcome(workdir / "whole")
    rng, lines = random.Random(seed), []
    for index in range(runs):
        folder = workdir / f"killed-{index}"
        hits = kill_and_resume(folder, kills, seconds, rng)
        equal = outcome(folder) == expected
        lines.append(f"| {index} | {hits} | {'yes' if equal else 'NO'} |")
        print(lines[-1], flush=True)
        if not equal:
            raise configs.UserError(f"{folder} does not end as {workdir / 'whole'} does")
    return lines


def study(workdir: Path, runs: int, kills: int, seed: int, results: Path) -> None:
    """Compare, and write `kills.md`."""
    table = compare(workdir, runs, kills, seed)
    flags = ["--runs", str(runs), "--kills", str(kills), "--seed", str(seed)]
    flags += ["--workdir", workdir.name]
    lines = [
        *environment.heading(
            f"{runs} runs killed with SIGKILL and resumed", "experiments.kills", flags
        ),
        "| run | kills that hit it | ends bit-identical to the run that nothing stopped |",
        "|--:|--:|---|",
        *table,
    ]
    common.write(results / "kills.md", lines)


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="kills a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the table")
    options = vars(parser.parse_args())
    sys.exit(exit_code(lambda: study(**options)))


if __name__ == "__main__":
    main()
