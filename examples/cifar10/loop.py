"""One run, from its start or from its newest checkpoint to its result."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from examples.cifar10 import augment, checkpoint, devices, report, train
from examples.cifar10.configs import DivergedError, InterruptedRun, Recipe, UserError
from examples.cifar10.data import Dataset
from examples.cifar10.devices import Layout
from examples.cifar10.optimizer import optimizer


def train_and_evaluate(
    recipe: Recipe, data: Dataset, workdir: Path, resume: bool, layout: Layout
) -> dict:
    """Train and return the result; leave config, metrics, pictures, checkpoints in `workdir`."""
    recipe, steps = planned(recipe, data)
    total = recipe.epochs * steps
    labels = {"data": data.label, "split": data.split, "seed": recipe.seed}
    tx, learning_rate = optimizer(recipe, total)
    config = _flat(recipe) | labels | {"data_sha256": data.sha256}
    with checkpoint.claim(workdir, config, report.environment(), resume):
        graphdef, carry = train.create(recipe, data, tx, layout)
        step = train.make_step(graphdef, tx, learning_rate, recipe, layout, total)
        run_steps = Compiled(train.make_steps(step, recipe, layout, data.mirror), data, layout)
        predict = train.make_predict(graphdef, layout, data.mirror)
        test_images = layout.put(data.test_images)

        def test(carry, views=augment.CENTRE):
            logits = np.asarray(predict(carry.params, carry.rest, test_images, views))
            return logits, float((logits.argmax(-1) == data.test_labels).mean())

        progress = report.Progress(recipe.epochs, steps, recipe.batch_size)
        rows, done = [], 0
        with (
            jax.set_mesh(layout.mesh),
            checkpoint.Checkpoints(workdir) as checkpoints,
            progress.bar,
            stop_requests() as stop,
        ):
            if resume:
                carry, done, rows = checkpoints.restore(carry, report.say)
            while done < total:
                epoch, first = divmod(done, steps)
                carry, logs, seconds = run_steps(recipe, carry, epoch, first)
                check_finite(logs, done, recipe)
                done += len(logs.loss)
                row = report.train_row(logs, done, steps, recipe.batch_size, seconds)
                rows.append(row | labels)
                progress.step(row)
                ended, stopped = done % steps == 0, devices.agree(bool(stop))
                if ended:
                    rows.append(report.epoch_row(rows, test(carry)[1]) | labels)
                    progress.end(rows[-1])
                if ended or stopped:
                    report.write_metrics(workdir, rows)
                    checkpoints.save(done, carry, rows)
                if stopped and done < total:
                    raise InterruptedRun(f"stopped after {done} of {total} steps, and saved")
            logits, final = test(carry, augment.CENTRE if recipe.no_tta else augment.VIEWS)

        result = report.result_row(rows, final) | {
            "compile_seconds": run_steps.seconds,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(carry.params)),
        }
        rows.append(result | labels)
        report.write_metrics(workdir, rows)
        report.curves(workdir / "curves.png", rows, data)
        report.confusion(workdir / "confusion.png", logits, data)
        report.worst(workdir / "worst.png", logits, data)
        return rows[-1]


def planned(recipe: Recipe, data: Dataset) -> tuple[Recipe, int]:
    """Return the recipe with its epochs, and the steps of each; refuse what does not fit."""
    epochs = data.epochs if recipe.epochs is None else recipe.epochs
    steps = len(data.train_images) // recipe.batch_size
    if steps == 0:
        raise UserError(f"--batch-size {recipe.batch_size} is more than all training images")
    if steps * max(epochs, recipe.network.whitening_bias_epochs) >= 2**31:
        raise UserError(
            f"--epochs and --whitening-bias-epochs, of {steps} steps, must be less than 2**31 steps"
        )
    total = epochs * steps
    if round(recipe.optimization.warmup * total) == total:
        raise UserError(f"--warmup {recipe.optimization.warmup} takes all of the {total} steps")
    return dataclasses.replace(recipe, epochs=epochs), steps


class Compiled:
    """The training steps, compiled apart for every size of the images."""

    def __init__(self, run: Callable, data: Dataset, layout: Layout):
        """Take what `train.make_steps` returns, and the images."""
        self.run, self.data, self.layout = run, data, layout
        self.size, self.seconds = 0, 0.0
        self.labels = layout.put(data.train_labels)

    def __call__(
        self, recipe: Recipe, carry: train.Carry, epoch: int, first: int
    ) -> tuple[train.Carry, train.Logs, float]:
        """Run steps of an epoch from its `first` on; return also the seconds that they took."""
        sizes = recipe.augmentation.image_sizes
        size = sizes[epoch * len(sizes) // recipe.epochs]
        at = jnp.int32(epoch), jnp.int32(first)
        if size != self.size:
            began = time.perf_counter()
            self.images = self.layout.put(resize(self.data.train_images, size))
            self.compiled = self.run.lower(carry, self.images, self.labels, *at).compile()
            self.size, self.seconds = size, self.seconds + time.perf_counter() - began
        began = time.perf_counter()
        carry, logs = self.compiled(carry, self.images, self.labels, *at)
        logs = train.Logs(*map(np.asarray, jax.block_until_ready(logs)))
        return carry, logs, time.perf_counter() - began


def _flat(recipe: Recipe) -> dict:
    """Return all fields of the recipe and of its parts."""
    flat = {}
    for name, value in dataclasses.asdict(recipe).items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Shrink uint8 images to size x size pixels."""
    if size == images.shape[1]:
        return images

    @jax.jit
    def shrink(images):
        shape = (len(images), size, size, 3)
        small = jax.image.resize(images.astype(jnp.float32), shape, "linear")
        return small.round().astype(jnp.uint8)

    parts = [shrink(images[start : start + 5000]) for start in range(0, len(images), 5000)]
    return np.concatenate(parts)


def check_finite(logs: train.Logs, done: int, recipe: Recipe) -> None:
    """Stop at the first loss that is not finite."""
    (bad,) = np.nonzero(~np.isfinite(logs.loss))
    if bad.size:
        step = int(bad[0])
        raise DivergedError(
            f"the loss is {logs.loss[step]} at step {done + step + 1}, where the learning rate is "
            f"{logs.learning_rate[step]:.3g}. A smaller --learning-rate (now "
            f"{recipe.optimization.learning_rate:g}), a longer --warmup (now "
            f"{recipe.optimization.warmup:g}) or a larger eps in --arguments may help; what was "
            "saved before stays"
        )


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of breaking off; a second one breaks off."""
    received: list[int] = []

    def handle(number, _):
        if received:
            raise KeyboardInterrupt
        received.append(number)
        report.say("stopping after these steps; once more to stop at once, without saving")

    if threading.current_thread() is not threading.main_thread():  # Only there can one listen.
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
