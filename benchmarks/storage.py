"""What storing the second moment in fewer bytes saves and costs.

    python -m benchmarks.storage

writes `results/storage.md`: memory and time of an update, and training of a character model.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rmsprop
from benchmarks import char_model
from optax_rmsprop import storage
from tools import environment

FORMATS = {"float32": None, "uint16": storage.uint16(), "uint8": storage.uint8()}
SIDE = 2048


def stored(tx: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
    """Store the second moments of a transformation, unless in float32."""
    codec = FORMATS[name]
    return tx if codec is None else storage.stored_as(tx, codec)


def memory_and_time(repeats: int) -> list[str]:
    """Return the table of one leaf's update; the formats take turns."""
    params = jnp.ones((SIDE, SIDE))
    grads = jax.random.normal(jax.random.key(0), params.shape)
    updates, states, sizes, times = {}, {}, {}, {name: [] for name in FORMATS}
    for name in FORMATS:
        tx = stored(optax_rmsprop.rmsprop(1e-3, 0.99), name)
        before = sum(x.nbytes for x in jax.live_arrays())
        states[name] = tx.init(params)
        live = sum(x.nbytes for x in jax.live_arrays()) - before
        update = jax.jit(tx.update, donate_argnums=1).lower(grads, states[name]).compile()
        updates[name] = update
        sizes[name] = live, update.memory_analysis().temp_size_in_bytes
    for _ in range(repeats):
        for name, update in updates.items():
            began = time.perf_counter()
            found, states[name] = jax.block_until_ready(update(grads, states[name]))
            times[name].append(time.perf_counter() - began)
            del found
    reference = statistics.median(times["float32"])
    lines = [
        f"One leaf of {SIDE} x {SIDE}, `rmsprop`, {repeats} updates in turn:",
        "",
        "| format | live state, bytes a parameter | temporary memory of an update, bytes a "
        "parameter | median time, as a ratio to float32's | quartiles of the ratio |",
        "|---|--:|--:|--:|---|",
    ]
    for name, (live, temporary) in sizes.items():
        each = [f"{size / params.size:.3f}" for size in (live, temporary)]
        low, middle, high = (q / reference for q in statistics.quantiles(times[name], n=4))
        lines.append(f"| {name} | {' | '.join(each)} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return lines


def training(seeds: int, steps: int) -> list[str]:
    """Return the table of the character model: the same seeds and data order for every format."""
    lines = [
        f"A character model (two blocks of width {char_model.WIDTH}, {steps} steps of "
        f"{char_model.BATCH} x {char_model.CONTEXT} characters of Python's manual), "
        "`rmsprop(1e-3, 0.99, bias_correction=True)`:",
        "",
        "| format | n | training loss, last 50 steps | held-out loss | held-out loss less "
        "float32's, same seed |",
        "|---|--:|--:|--:|--:|",
    ]
    reference = []
    for name in FORMATS:
        tx = stored(optax_rmsprop.rmsprop(1e-3, 0.99, bias_correction=True), name)
        runs = [char_model.train(tx, seed, steps) for seed in range(seeds)]
        ends, held_out = [losses[-50:].mean() for losses, _ in runs], [last for _, last in runs]
        reference = reference or held_out
        apart = np.subtract(held_out, reference)
        columns = [f"{np.mean(x):.4f} ± {np.std(x, ddof=1):.4f}" for x in (ends, held_out)]
        columns.append(f"{np.mean(apart):.1e} ± {np.std(apart, ddof=1):.1e}")
        lines.append(f"| {name} | {seeds} | {' | '.join(columns)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--steps", type=int, default=400, help="of the character model")
    parser.add_argument("--repeats", type=int, default=100, help="of the timed update")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    flags = ["--seeds", str(options.seeds), "--steps", str(options.steps)]
    flags += ["--repeats", str(options.repeats)]
    lines = [
        *environment.heading("The second moment in fewer bytes", "benchmarks.storage", flags),
        *memory_and_time(options.repeats),
        "",
        *training(options.seeds, options.steps),
    ]
    environment.write_text(options.results / "storage.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
