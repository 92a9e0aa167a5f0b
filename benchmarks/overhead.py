"""What Python, JAX and XLA take around the kernels of an update, beside Optax's.

    python -m benchmarks.overhead

writes `results/overhead.md`: the time of tracing, lowering and compiling, and of calls whose leaves
are too small to take time themselves.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_rmsprop
from benchmarks.gpu import models
from benchmarks.gpu.part import table
from benchmarks.gpu.turns import quartiles, timed
from benchmarks.gpu.update import stepper
from optax_rmsprop import storage
from tools import environment

NUMBERS = {"learning_rate": 1e-3, "decay": 0.99, "momentum": 0.9}
COMPILATION = """\
The seconds of JAX's `trace`, `lower` and `compile` for `init` and for the step, with momentum, and
the length of the StableHLO text. Arguments are abstract, JAX's compilation cache is off, and its
other caches are cleared before each; cells hold the median of n rounds in turn. The first rows are
those of {model}; the others have leaves of 64 x 64. For the largest number only the
trace is timed. A ratio is that of the sum, or of the trace, to Optax's. Temporary memory is that of
the compiled program; the peak has its arguments and results too, what is donated only once."""
CALLS = """\
The microseconds of a step, for leaves of 4 numbers: with `jax.jit`, params and state donated, and
eager, where JAX runs one operation after another. Cells hold the median and, in parentheses, the
quartiles of n measurements in turn; a ratio is that of the medians, to Optax's."""


def transformations() -> dict[str, optax.GradientTransformationExtraArgs]:
    """Return what is compared, Optax's first."""
    ours = optax_rmsprop.rmsprop(**NUMBERS)
    stored = storage.stored_as(ours, storage.uint8())
    return {"Optax": optax.rmsprop(**NUMBERS), "ours": ours, "ours, uint8": stored}


def leaves_of(count: int, *shape: int) -> models.Shapes:
    """Return the shapes of so many equal leaves."""
    return {f"leaf{i}": shape for i in range(count)}


def stages(program: Any, given: Sequence[Any], only_trace: bool) -> dict[str, float]:
    """Return the seconds of each stage of a jitted function, the length of its text, its memory.

    JAX's caches are cleared first: they may hold what an earlier program traced.
    """
    jax.clear_caches()
    seconds: dict[str, float] = {}

    def clocked(name: str, stage: Callable, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = stage(*arguments)
        seconds[f"{name}, s"] = time.perf_counter() - began
        return result

    traced = clocked("trace", program.trace, *given)
    if only_trace:
        return seconds
    lowered = clocked("lower", traced.lower)
    memory = clocked("compile", lowered.compile).memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    parameters = sum(x.size for x in jax.tree.leaves(given[0]))
    return seconds | {
        "sum, s": sum(seconds.values()),
        "text, KiB": len(lowered.as_text()) / 1024,
        "temporary, B/parameter": memory.temp_size_in_bytes / parameters,
        "peak, B/parameter": (kept + memory.temp_size_in_bytes) / parameters,
    }


def compilation(shapes: models.Shapes, rounds: int, only_trace: bool) -> list[dict[str, Any]]:
    """Return the rows of the table of compilation for these leaves: medians of rounds in turn."""
    txs = transformations()
    params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    states = {name: jax.eval_shape(tx.init, params) for name, tx in txs.items()}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, tx in txs.items():
            programs = {
                "init": (jax.jit(tx.init), (params,)),
                "step": (stepper(tx, 1), (params, states[name], params)),
            }
            for kind, (program, given) in programs.items():
                found.setdefault((kind, name), []).append(stages(program, given, only_trace))
    rows = [
        {"leaves": len(shapes), "function": kind, "by": name, "n": rounds}
        | {column: statistics.median(each[column] for each in runs) for column in runs[0]}
        for (kind, name), runs in sorted(found.items())
    ]
    for _, group in itertools.groupby(rows, lambda row: row["function"]):
        theirs, *others = group
        for row in others:
            of = "trace, s" if only_trace else "sum, s"
            row["ratio"] = row[of] / theirs[of]
    return rows


def stepping(tx: optax.GradientTransformationExtraArgs, count: int, jitted: bool) -> Callable:
    """Return what makes so many steps on so many leaves, and waits for the last."""
    params = {name: jnp.ones(shape) for name, shape in leaves_of(count, 4).items()}
    grads = params

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step, donate_argnums=(0, 1)) if jitted else step
    now = jax.jit(lambda params: (jax.tree.map(jnp.copy, params), tx.init(params)))(params)

    def steps(k: int) -> None:
        nonlocal now
        for _ in range(k):
            now = run(*now)
        jax.block_until_ready(now)

    return steps


def calls(count: int, n: int, small: bool) -> list[dict[str, Any]]:
    """Return the rows of the table of calls for so many leaves."""
    rows: list[dict[str, Any]] = []
    for how in ("jitted", "eager"):
        txs = transformations()
        steps = {name: stepping(tx, count, how == "jitted") for name, tx in txs.items()}
        theirs = 0.0
        for name, seconds in timed(steps, n, small, before=1).items():
            cells = quartiles([1e6 * s for s in seconds])
            theirs = theirs or cells[1]
            row = {"leaves": count, "call": how, "by": name, "n": n, "step, µs": cells}
            rows.append(row if name == "Optax" else row | {"ratio": cells[1] / theirs})
    return rows


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a trial of seconds, of few leaves")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    # Before anything is compiled: JAX asks only once.
    jax.config.update("jax_enable_compilation_cache", False)
    model, counts, most, n = models.resnet50(), (10, 100, 1_000), 20_000, 15
    if options.quick:
        model, counts, most, n = models.resnet50(stages=(), classes=10), (2, 3), 4, 3
    load = f"{os.getloadavg()[0]:.1f}"
    compiled: list[dict[str, Any]] = []
    for shapes in (model, *(leaves_of(count, 64, 64) for count in (*counts, most))):
        largest = len(shapes) == most  # which takes minutes a round
        rounds = 1 if largest or options.quick else 3
        compiled += compilation(shapes, rounds, only_trace=largest)
        print(f"compiled: {len(shapes)} leaves", flush=True)
    called: list[dict[str, Any]] = []
    for count in counts:
        called += calls(count, n, options.quick)
        print(f"called: {count} leaves", flush=True)
    lines = environment.heading(
        "What Python, JAX and XLA take around an update", "benchmarks.overhead",
        ["--quick"] * options.quick, **{"load average at the start": load},
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    name = f"{'a part of ' * options.quick}ResNet-50"
    lines += [COMPILATION.format(model=name), "", *table(compiled), "", CALLS, "", *table(called)]
    options.out.mkdir(parents=True, exist_ok=True)
    environment.write_text(options.out / "overhead.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
