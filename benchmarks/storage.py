"""What storing moments in fewer bytes saves and costs.

    python -m benchmarks.storage

writes `results/storage.md`: memory and time of an update, the error of steps on given gradients,
and training of a character model, for the formats of `storage` and those of other libraries.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rmsprop
from benchmarks import char_model, quantized
from optax_rmsprop import storage
from tools import environment

SIDE = 2048
NUMBERS = {"decay": 0.99, "bias_correction": True}
RATES = {0.0: 1e-3, 0.9: 1e-4}  # of the character model, by momentum: the same sum of steps


class Format(NamedTuple):
    """A way to store the moments of an optimizer, with the momentum that it is tried at."""

    momentum: float
    wrap: Callable[[optax.GradientTransformation], Any]
    ours: bool = True  # a program of this package, whose time and memory mean something

    def optimizer(self, learning_rate: float) -> Any:
        """Return RMSprop in this format."""
        return self.wrap(
            optax_rmsprop.rmsprop(learning_rate, momentum=self.momentum or None, **NUMBERS)
        )


def _of(momentum: float, *codecs: Any) -> Format:
    return Format(momentum, lambda tx: storage.stored_as(tx, *codecs) if codecs else tx)


def _like(design: quantized.Design) -> Format:
    momentum = 0.0 if design.first is None else 0.9
    return Format(momentum, lambda tx: quantized.stored_as(tx, design), ours=False)


U16, U8, I16, I8 = storage.uint16(), storage.uint8(), storage.int16(), storage.int8()
FORMATS = {
    "float32": _of(0.0),
    "uint16": _of(0.0, U16),
    "uint8": _of(0.0, U8),
    "bitsandbytes": _like(quantized.DESIGNS["bitsandbytes"]),
    "MLX's bfloat16": _like(quantized.DESIGNS["MLX's bfloat16"]),
    "float32, momentum": _of(0.9),
    "uint16, momentum in float32": _of(0.9, U16),
    "uint8, momentum in float32": _of(0.9, U8),
    "uint16, int16": _of(0.9, U16, I16),
    "uint8, int16": _of(0.9, U8, I16),
    "uint8, int8": _of(0.9, U8, I8),
    "torchao's 8 bits": _like(quantized.DESIGNS["torchao's 8 bits"]),
    "torchao's 4 bits": _like(quantized.DESIGNS["torchao's 4 bits"]),
    "Optax's bfloat16": _like(quantized.DESIGNS["Optax's bfloat16"]),
}
REFERENCE = {0.0: "float32", 0.9: "float32, momentum"}


def held(name: str, side: int = SIDE) -> float:
    """Return the bytes of state a parameter."""
    if not FORMATS[name].ours:
        return quantized.DESIGNS[name].bytes_a_parameter
    state = jax.eval_shape(FORMATS[name].optimizer(1e-3).init, jnp.ones((side, side)))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / side**2


def memory_and_time(repeats: int, side: int = SIDE) -> list[str]:
    """Return the table of one leaf's step; the formats take turns."""
    grads = jax.random.normal(jax.random.key(0), (side, side))
    programs, carries, memory = {}, {}, {}
    ours = [name for name, each in FORMATS.items() if each.ours]
    times: dict[str, list[float]] = {name: [] for name in ours}
    for name in ours:
        tx = FORMATS[name].optimizer(1e-3)

        def step(params: Any, state: Any, grads: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        carries[name] = jnp.ones((side, side)), tx.init(grads)
        program = jax.jit(step, donate_argnums=(0, 1)).lower(*carries[name], grads).compile()
        programs[name] = program
        memory[name] = program.memory_analysis().temp_size_in_bytes / side**2
    for _ in range(repeats):
        for name, program in programs.items():
            began = time.perf_counter()
            carries[name] = jax.block_until_ready(program(*carries[name], grads))
            times[name].append(time.perf_counter() - began)
    lines = [
        f"One leaf of {side} x {side}, {repeats} steps of each format in turn, parameters and "
        "state donated; the time is that over float32's at the same momentum:",
        "",
        "| format | state, bytes a parameter | temporary memory, bytes a parameter | median time "
        "| quartiles |",
        "|---|--:|--:|--:|---|",
    ]
    for name in ours:
        reference = statistics.median(times[REFERENCE[FORMATS[name].momentum]])
        low, middle, high = (q / reference for q in statistics.quantiles(times[name], n=4))
        lines.append(
            f"| {name} | {held(name, side):.3f} | {memory[name]:.3f} | {middle:.2f} "
            f"| {low:.2f} to {high:.2f} |"
        )
    return lines


def errors(steps: int, shape: tuple[int, int] = (128, 256)) -> list[str]:
    """Return the table of what formats do to steps on the same gradients, all else in float32."""
    scale = np.random.default_rng(5).lognormal(0, 1.4, shape).astype(np.float32)

    def run(tx: Any) -> tuple[np.ndarray, np.ndarray]:
        def step(carry: Any, count: jax.Array) -> Any:
            state, total = carry
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), count), shape)
            updates, state = tx.update(jnp.asarray(scale) * (noise + 0.1), state)
            return (state, total + updates), None

        start = tx.init(jnp.zeros(shape)), jnp.zeros(shape)
        (state, total), _ = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(steps)))(start)
        updates, _ = tx.update(jnp.asarray(scale), state)
        return np.asarray(updates), np.asarray(total)

    lines = [
        f"{steps} steps on gradients that are Gaussian with a mean of a tenth of their standard "
        "deviation, whose logarithm is Gaussian with a standard deviation of 1.4, for "
        f"{shape[0]} x {shape[1]} parameters. Relative errors are those of norms; the bias is the "
        "mean of the distance gone, over float32's, less 1:",
        "",
        "| format | state, bytes a parameter | error of the last step | error of the distance gone "
        "| bias of the distance |",
        "|---|--:|--:|--:|--:|",
    ]
    exact = {momentum: run(FORMATS[name].optimizer(1.0)) for momentum, name in REFERENCE.items()}
    for name, each in FORMATS.items():
        if name in REFERENCE.values():
            continue
        pairs = list(zip(run(each.optimizer(1.0)), exact[each.momentum], strict=True))
        relative = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
        (gone, expected) = pairs[1]
        bias = gone.sum() / expected.sum() - 1
        numbers = " | ".join(f"{x:.3%}" for x in (*relative, bias))
        lines.append(f"| {name} | {held(name):.3f} | {numbers} |")
    return lines


def training(seeds: int, steps: int) -> list[str]:
    """Return the table of the character model: the same seeds and data order for every format."""
    lines = [
        f"A character model (two blocks of width {char_model.WIDTH}, {steps} steps of "
        f"{char_model.BATCH} x {char_model.CONTEXT} characters of Python's manual), `rmsprop` with "
        "decay 0.99 and bias correction, learning rate 1e-3 without momentum and 1e-4 with one of "
        "0.9; mean ± standard deviation over n seeds:",
        "",
        "| format | state, bytes a parameter | n | training loss, last 50 steps | held-out loss "
        "| held-out loss less float32's, same seed |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    references: dict[float, list[float]] = {}
    for name, each in FORMATS.items():
        tx = each.optimizer(RATES[each.momentum])
        runs = [char_model.train(tx, seed, steps) for seed in range(seeds)]
        ends, held_out = [losses[-50:].mean() for losses, _ in runs], [last for _, last in runs]
        apart = np.subtract(held_out, references.setdefault(each.momentum, held_out))
        columns = [f"{np.mean(x):.4f} ± {np.std(x, ddof=1):.4f}" for x in (ends, held_out)]
        columns.append(f"{np.mean(apart):.1e} ± {np.std(apart, ddof=1):.1e}")
        lines.append(f"| {name} | {held(name):.3f} | {seeds} | {' | '.join(columns)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--steps", type=int, default=400, help="of the character model")
    parser.add_argument("--repeats", type=int, default=100, help="of the timed update")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    flags = ["--seeds", str(options.seeds), "--steps", str(options.steps)]
    flags += ["--repeats", str(options.repeats)]
    sources = "; ".join(f"{name}: {d.source}" for name, d in quantized.DESIGNS.items())
    lines = [
        *environment.heading("Moments in fewer bytes", "benchmarks.storage", flags),
        "Formats of other libraries are computed here from their sources, in float32 arrays; "
        f"`benchmarks.rivals` times their kernels ({sources}).",
        "",
        *memory_and_time(options.repeats),
        "",
        *errors(1000),
        "",
        *training(options.seeds, options.steps),
    ]
    environment.write_text(options.results / "storage.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
