"""What a training step costs alone, and inside `lax.scan`, on a CPU.

    python -m benchmarks.scan

writes `results/scan.md`. Inside a loop XLA's CPU compiler has no fast code for the gradient of a
convolution, so `examples/cifar10/fast_cpu.py` has its own.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

import optax_rmsprop
from examples.cifar10 import data, devices, fast_cpu, train
from examples.cifar10.configs import Options, Recipe
from tools import environment

COUNT = 2  # steps in a scan


def training(recipe: Recipe, tx: Any) -> tuple[Callable, train.Carry, train.Batch]:
    """Return a training step, where it starts, and the batches of a scan."""
    made_up = data.synthetic(COUNT * recipe.batch_size, 1)
    layout = devices.layout(Options(recipe))
    graphdef, carry = train.create(recipe, made_up, tx, layout)
    step = train.make_step(graphdef, tx, lambda count: 1e-3, recipe, layout, total_steps=10)
    images, labels = (
        jnp.asarray(a.reshape(COUNT, recipe.batch_size, *a.shape[1:]))
        for a in (made_up.train_images, made_up.train_labels)
    )
    keys = jax.random.split(jax.random.key(0), COUNT)
    return step, carry, train.Batch(images, labels, keys, jnp.arange(COUNT))


def programs(recipe: Recipe) -> dict[str, tuple[Callable, int]]:
    """Return what is compared, compiled and run once, and its number of steps."""

    def compiled(scanned: bool) -> Callable:
        step, carry, batches = training(recipe, optax_rmsprop.rmsprop(1e-3))
        batch = batches if scanned else jax.tree.map(lambda a: a[0], batches)
        run = jax.jit(functools.partial(lax.scan, step) if scanned else step)
        jax.block_until_ready(run(carry, batch))
        return functools.partial(run, carry, batch)

    found = {"alone": (compiled(False), 1), "in a scan": (compiled(True), COUNT)}
    automatic = functools.partial(_automatic, fast_cpu.convolve)
    with mock.patch.object(fast_cpu, "_conv", automatic):
        found["in a scan, the automatic gradient"] = (compiled(True), COUNT)
    return found


def _automatic(convolve: Callable, x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return convolve(x, kernel, padding)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found = programs(Recipe(batch_size=options.batch_size))
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(options.repeats):  # in turn, so that what disturbs one disturbs all
        for name, (run, steps) in found.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - began) / steps)
    alone = statistics.median(times["alone"])
    flags = ["--batch-size", str(options.batch_size), "--repeats", str(options.repeats)]
    date, title = time.strftime("%Y-%m-%d"), "A training step alone and in a scan"
    lines = [
        *environment.heading(title, "benchmarks.scan", flags, date=date),
        f"The network of the preset `small`, {options.batch_size} images, {options.repeats} times "
        "in turn:",
        "",
        "| a step | median, ms | as a ratio to a step alone | quartiles of the ratio |",
        "|---|--:|--:|---|",
    ]
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        lines.append(
            f"| {name} | {1e3 * middle:.1f} | {middle / alone:.2f} | "
            f"{low / alone:.2f} to {high / alone:.2f} |"
        )
        print(lines[-1])
    environment.write_text(options.results / "scan.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
