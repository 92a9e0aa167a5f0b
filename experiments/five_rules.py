"""The same numbers in five rules: `python -m experiments.five_rules`.

EfficientNet's setting trains a network for handwritten digits in TensorFlow 1's rule, whose setting
it is, and then with the same numbers in four rules that someone could take for it. The rate is the
best of six for the original, by the loss on the training set.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments import common
from optax_rmsprop import dialects
from tools import environment

BATCH, EPOCHS, TRAINING = 100, 10, 1400
RULES = {
    "TensorFlow 1, the original": lambda r: dialects.tensorflow1(r, 0.9, 0.9, 1e-3),
    "Keras: the average starts at 0": lambda r: dialects.keras(r, 0.9, 0.9, 1e-3),
    "Stable-Baselines3: rate after the momentum": lambda r: dialects.stable_baselines3(
        r, 0.9, 1e-3, momentum=0.9
    ),
    "PyTorch: from 0, rate after, epsilon outside": lambda r: dialects.torch(
        r, 0.9, 1e-3, momentum=0.9
    ),
    "PyTorch with the root of epsilon": lambda r: dialects.torch(
        r, 0.9, 1e-3**0.5, momentum=0.9
    ),
}  # fmt: skip
COLUMNS = "| rule | final training loss | test accuracy, % |\n|---|--:|--:|"


def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(network(p, x), y).mean()


def network(p: Any, x: jax.Array) -> jax.Array:
    """Return the logits of a network with one hidden layer."""
    return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def start(key: jax.Array, steps: int) -> tuple[Any, jax.Array]:
    """Return weights, and the rows of each batch."""
    k1, k2, k3 = jax.random.split(key, 3)
    p = {
        "w1": jax.random.normal(k1, (64, 32)) / 8, "b1": jnp.zeros(32),
        "w2": jax.random.normal(k2, (32, 10)) / 6, "b2": jnp.zeros(10),
    }  # fmt: skip
    return p, jax.random.randint(k3, (steps, BATCH), 0, TRAINING)


def trainer(steps: int) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Return what trains some seeds: the losses of the steps, and the final loss and accuracy."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16.0, jnp.float32), jnp.asarray(digits.target)
    known, held_out = (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:])

    def train(make: Callable[[Any], Any], rate: float, key: jax.Array) -> Any:
        p, batches = start(key, steps)
        tx = make(optax.exponential_decay(rate, max(steps // 8, 1), 0.7, staircase=True))

        def step(carry: Any, rows: jax.Array) -> Any:
            p, state = carry
            value, g = jax.value_and_grad(loss)(p, known[0][rows], known[1][rows])
            updates, state = tx.update(g, state, p)
            return (optax.apply_updates(p, updates), state), value

        (p, _), losses = jax.lax.scan(step, (p, tx.init(p)), batches)
        right = (network(p, held_out[0]).argmax(-1) == held_out[1]).mean()
        return losses, loss(p, *known), 100 * right

    return jax.jit(jax.vmap(train, in_axes=(None, None, 0)), static_argnums=0)


def study(results: Path, seeds: int, epochs: int, arguments: Sequence[str] = ()) -> None:
    """Train every rule, and write `five_rules.md` and `five_rules.png`."""
    train = trainer(epochs * TRAINING // BATCH)
    keys = jax.random.split(jax.random.key(0), seeds)
    original = next(iter(RULES.values()))
    rates = np.geomspace(3e-3, 1.0, 6)
    best = float(rates[np.nanargmin([train(original, rate, keys)[1].mean() for rate in rates])])
    lines = environment.heading(
        "The same numbers in five rules", "experiments.five_rules", arguments,
        data=f"scikit-learn's digits, {TRAINING} to train, the other 397 to test",
        setting=f"rate {best:.3g}, falling; decay 0.9, momentum 0.9, epsilon 1e-3",
        n=f"{seeds} seeds, mean ± standard deviation", date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    figure = matplotlib.figure.Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    lines += [COLUMNS]
    for name, make in RULES.items():
        losses, final, right = (np.asarray(x, float) for x in train(make, best, keys))
        smooth = np.convolve(losses.mean(0), np.ones(10) / 10, "valid")
        accuracy = common.mean_and_spread(list(right), 1)
        axes.semilogy(smooth, label=f"{name}, {statistics.fmean(right):.0f} %")
        lines.append(f"| {name} | {common.mean_and_spread(list(final), 4)} | {accuracy} |")
    axes.set(xlabel="step", ylabel="training loss", title="The same numbers in five rules")
    axes.legend(fontsize=8, title="rule, and its test accuracy", title_fontsize=8)
    axes.grid(alpha=0.3)
    results.mkdir(parents=True, exist_ok=True)
    environment.write_text(results / "five_rules.md", "\n".join(lines) + "\n")
    with environment.replacing(results / "five_rules.png") as new:
        figure.savefig(new, dpi=120)


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.five_rules")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    study(options.results, options.seeds, options.epochs, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
