"""What an optimizer costs in training: the steps of three examples with ours, Optax's, and none.

    python -m benchmarks.end_to_end

writes `results/end_to_end.md`. All optimizers of an example take turns, each with the same batches.
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
from flax import nnx

import optax_rmsprop
from benchmarks import char_model, scan
from examples.char_rnn import char_rnn
from examples.cifar10.configs import Recipe
from optax_rmsprop import storage
from tools import environment

NUMBERS: dict[str, Any] = {"learning_rate": 1e-4, "decay": 0.99, "momentum": 0.9}
OURS = optax_rmsprop.rmsprop(**NUMBERS)
OPTIMIZERS: dict[str, Any] = {
    "none: the gradient times a number": optax.scale(-1e-4),
    "`optax.rmsprop`": optax.rmsprop(**NUMBERS),
    "ours": OURS,
    "ours, uint16 and int16": storage.stored_as(OURS, storage.uint16(), storage.int16()),
    "ours, uint8 and int8": storage.stored_as(OURS, storage.uint8(), storage.int8()),
}


class Example(NamedTuple):
    """A training step, what it sees of, and how much."""

    make: Callable[
        [Any], tuple[Callable[[Any], Any], Any]
    ]  # from an optimizer: step, where it starts
    unit: str
    count: int


def convolutional(batch: int) -> Example:
    """The CIFAR-10 example's preset `small`."""

    def make(tx: Any) -> tuple[Callable[[Any], Any], Any]:
        step, carry, batches = scan.training(Recipe(batch_size=batch), tx)
        run = jax.jit(step, donate_argnums=0)
        first = jax.tree.map(lambda a: a[0], batches)
        return lambda carry: run(carry, first)[0], carry

    return Example(make, "images", batch)


def transformer() -> Example:
    """The character model of `benchmarks.storage`."""
    codes = char_model.text()
    starts = np.random.default_rng(0).integers(0, len(codes) - 100, char_model.BATCH)
    windows = jnp.asarray(codes[starts[:, None] + np.arange(char_model.CONTEXT + 1)])
    graphdef, params = nnx.split(char_model.Model(int(codes.max()) + 1, nnx.Rngs(0)))

    def loss_fn(params: Any) -> jax.Array:
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def make(tx: Any) -> tuple[Callable[[Any], Any], Any]:
        def step(carry: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
            return optax.apply_updates(params, updates), state

        start = jax.tree.map(jnp.array, params)
        return jax.jit(step, donate_argnums=0), (start, tx.init(params))

    return Example(make, "characters", char_model.BATCH * char_model.CONTEXT)


def recurrent(alphabet: int = 96, rows: int = 16, length: int = 50) -> Example:
    """The LSTM of the example `char_rnn`, in its usual size."""
    network = char_rnn.Network(alphabet, 128, 1, nnx.Rngs(0))
    graphdef, params = nnx.split(network)
    params = nnx.to_pure_dict(params)
    text = jnp.asarray(np.random.default_rng(0).integers(0, alphabet, (length + 1, rows)))

    def make(tx: Any) -> tuple[Callable[[Any], Any], Any]:
        start = char_rnn.State(params, tx.init(params), network.nothing(rows))
        return lambda state: char_rnn.update(graphdef, tx, state, text[:-1], text[1:])[0], start

    return Example(make, "characters", rows * length)


def measured(example: Example, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every step, by optimizer."""
    steps, carries = {}, {}
    times: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for name, tx in OPTIMIZERS.items():
        steps[name], carry = example.make(tx)
        carries[name] = jax.block_until_ready(steps[name](carry))
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            carries[name] = jax.block_until_ready(step(carries[name]))
            times[name].append(time.perf_counter() - began)
    return times


def table(example: Example, times: dict[str, list[float]]) -> list[str]:
    """Return the rows: speed, and time over that without an optimizer."""
    least = statistics.median(next(iter(times.values())))
    lines = [
        f"| optimizer | {example.unit} a second | time over that without one | quartiles |",
        "|---|--:|--:|---|",
    ]
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        lines.append(
            f"| {name} | {example.count / middle:,.0f} | {middle / least:.3f} "
            f"| {low / least:.3f} to {high / least:.3f} |"
        )
    return lines


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=100, help="of the images")
    parser.add_argument("--repeats", type=int, default=30, help="2 or more")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    examples = {
        f"The CIFAR-10 example, preset `small`, {options.batch_size} images a step": convolutional(
            options.batch_size
        ),
        "A character transformer, two blocks of width 128": transformer(),
        "A character LSTM, one layer of 128 units": recurrent(),
    }
    flags = ["--batch-size", str(options.batch_size), "--repeats", str(options.repeats)]
    title, date = "What an optimizer costs in training", time.strftime("%Y-%m-%d")
    lines = [
        *environment.heading(title, "benchmarks.end_to_end", flags, date=date),
        f"RMSprop with momentum. The optimizers of an example took {options.repeats} steps in "
        "turn, jitted and waited for; parameters and state are donated, but in the LSTM.",
    ]
    for name, example in examples.items():
        lines += ["", f"{name}:", "", *table(example, measured(example, options.repeats))]
        print(*lines[-len(OPTIMIZERS) :], sep="\n", flush=True)
    environment.write_text(options.results / "end_to_end.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
