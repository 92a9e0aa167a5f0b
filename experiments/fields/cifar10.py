"""CIFAR-10 as a task, where its data are: the example's preset small but for its optimizer."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.cifar10 import augment, configs, devices, report, train
from examples.cifar10 import data as datasets
from examples.cifar10.data import Dataset
from examples.cifar10.loop import resize
from experiments.fields.tasks import Make, Ready, Task, Trainer


def task(flags: Sequence[str]) -> Task:
    """Return the task of ten passes over the data that the example's flags name."""

    def ready() -> Ready:
        options = configs.parse(flags)
        data, layout = datasets.load(options, report.say), devices.layout(options)
        return functools.partial(trainer, options.recipe, data, layout)

    return Task("CIFAR-10, the example's network", "error, %", 4_500, 0.5, None, ready)


def trainer(
    recipe: configs.Recipe, data: Dataset, layout: devices.Layout, make: Make, steps: int
) -> Trainer:
    """Return what maps a rate and seeds to the late loss and the two scores of each, in turn.

    The rate is that of all parameters. A tenth of the training images is for validation.
    """
    held = datasets.hold_out(data)
    a_pass = len(held.train_images) // recipe.batch_size
    recipe = dataclasses.replace(recipe, epochs=-(-steps // a_pass))
    total, sizes = recipe.epochs * a_pass, recipe.augmentation.image_sizes
    shape = optax.cosine_decay_schedule(1.0, total)
    images = {size: layout.put(resize(held.train_images, size)) for size in {*sizes}}
    labels = layout.put(held.train_labels)
    parts = (held.test_images, held.test_labels), (data.test_images, data.test_labels)

    def start(seed: int) -> tuple[Any, train.Carry]:
        tx = make(lambda count: 0.0 * count)
        return train.create(dataclasses.replace(recipe, seed=seed), held, tx, layout)

    graphdef, _ = start(0)
    predict = train.make_predict(graphdef, layout, data.mirror)

    # One program for all rates and seeds, apart for every size of the images.
    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry: Any, images: jax.Array, rate: Any, seed: Any, epoch: Any, first: Any) -> Any:
        schedule = lambda count: rate * shape(count)  # noqa: E731
        own = dataclasses.replace(recipe, seed=seed)
        step = train.make_step(graphdef, make(schedule), schedule, own, layout, total)
        return train.make_steps(step, own, layout, data.mirror)(carry, images, labels, epoch, first)

    def wrong(carry: train.Carry, images: np.ndarray, right: np.ndarray) -> float:
        logits = predict(carry.params, carry.rest, layout.put(images), augment.CENTRE)
        return 100 * float((np.asarray(logits).argmax(-1) != right).mean())

    def one(rate: float, seed: int) -> tuple[float, float, float]:
        _, carry = start(seed)
        losses: list[np.ndarray] = []
        with jax.set_mesh(layout.mesh):
            for done in range(0, total, train.steps_per_call(a_pass)):
                epoch, first = divmod(done, a_pass)
                size = sizes[epoch * len(sizes) // recipe.epochs]
                at = jnp.float32(rate), jnp.uint32(seed), jnp.int32(epoch), jnp.int32(first)
                carry, logs = run(carry, images[size], *at)
                losses.append(np.asarray(logs.loss))
            validation, test = (wrong(carry, *part) for part in parts)
        report.say(f"rate {rate:.2g}, seed {seed}: {validation:.2f} % wrong on validation")
        late = np.concatenate(losses)[-max(total // 10, 1) :].mean()
        return float(late), validation, test

    def every(rate: Any, seeds: jax.Array) -> Any:
        return zip(*(one(float(rate), int(seed)) for seed in seeds), strict=True)

    return every
