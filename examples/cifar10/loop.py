"""One run, from its start or from its latest checkpoint to its result."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from examples.cifar10 import augment, checkpoint, report, train
from examples.cifar10.configs import Recipe, UserError
from examples.cifar10.data import Dataset
from examples.cifar10.optimizer import optimizer


class DivergedError(Exception):
    """The loss is no longer a finite number."""


def train_and_evaluate(recipe: Recipe, data: Dataset, workdir: Path, resume: bool) -> dict:
    """Train and return the result; leave config, metrics, curves and checkpoint in `workdir`."""
    epochs = data.epochs if recipe.epochs is None else recipe.epochs
    recipe = dataclasses.replace(recipe, epochs=epochs)
    steps = len(data.train_images) // recipe.batch_size
    if steps == 0:
        raise UserError(f"--batch-size {recipe.batch_size} is more than all training images")
    labels = {"data": data.label, "split": data.split}
    config = dataclasses.asdict(recipe) | labels
    checkpoint.claim(workdir, config, report.environment(), resume)

    tx = optimizer(recipe, epochs * steps)
    graphdef, carry = train.create(recipe, data, tx)
    progress = report.Progress(epochs, steps, recipe.batch_size)
    step = train.make_step(graphdef, tx, recipe)
    predict = train.make_predict(graphdef, data.mirror)
    images = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    held_out = jnp.asarray(data.test_images), data.test_labels

    began = time.perf_counter()
    run_epoch = (
        train.make_epoch(step, recipe, data.mirror, progress.step)
        .lower(carry, *images, jnp.int32(0))
        .compile()
    )
    compile_seconds = time.perf_counter() - began

    rows, first = [], 0
    with checkpoint.checkpoints(workdir) as checkpointer, progress.bar:
        if resume:
            carry, first = checkpoint.restore(checkpointer, carry)
            # Only what the checkpoint has behind it: the rest is repeated.
            rows = [r for r in report.read_metrics(workdir) if r["epoch"] <= first]
        for epoch in range(first, epochs):
            progress.start(epoch)
            carry, logs = jax.block_until_ready(run_epoch(carry, *images, jnp.int32(epoch)))
            seconds = time.perf_counter() - progress.began
            logs = train.Logs(*map(np.asarray, logs))
            check_finite(logs, epoch)
            accuracy = evaluate(predict, carry, *held_out)
            new = report.epoch_rows(logs, epoch, accuracy, seconds, recipe.batch_size)
            rows += [row | labels for row in new]
            progress.end(rows[-1])
            report.write_metrics(workdir, rows)
            checkpointer.save(epoch + 1, carry)

    done = [row for row in rows if row["kind"] == "epoch"]
    result = {
        "kind": "result",
        "epoch": epochs,
        "seed": recipe.seed,
        "accuracy": done[-1]["accuracy"],
        "accuracy_views": evaluate(predict, carry, *held_out, augment.VIEWS),
        "seconds": sum(row["seconds"] for row in done),
        "compile_seconds": compile_seconds,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(carry.params)),
    } | labels
    rows = [row for row in rows if row["kind"] != "result"] + [result]
    report.write_metrics(workdir, rows)
    report.plot(workdir / "curves.png", rows, data.label)
    return result


def check_finite(logs: train.Logs, epoch: int) -> None:
    """Stop at the first loss that is not finite."""
    (bad,) = np.nonzero(~np.isfinite(logs.loss))
    if bad.size:
        step = int(bad[0])
        raise DivergedError(
            f"the loss is {logs.loss[step]} at step {epoch * len(logs.loss) + step + 1}, "
            f"where the learning rate is {logs.learning_rate[step]:.3g}"
        )


def evaluate(
    predict: Callable,
    carry: train.Carry,
    images: jax.Array,
    labels: np.ndarray,
    views: tuple = augment.CENTRE,
) -> float:
    """Return the accuracy."""
    right = 0
    for start in range(0, len(images), 500):
        batch = slice(start, start + 500)
        logits = predict(carry.params, carry.rest, images[batch], views)
        right += int((np.asarray(logits).argmax(-1) == labels[batch]).sum())
    return right / len(images)
