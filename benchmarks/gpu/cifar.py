"""A training: the preset `airbench94` over some seeds, and what its optimizer takes of the time."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.gpu.part import Part
from benchmarks.gpu.turns import Call, quartiles, timed
from examples.cifar10 import augment, configs, data, devices, loop, optimizer, train
from examples.cifar10.configs import Options, Recipe

SEEDS = 10
VIEWS = {"test accuracy, %": augment.CENTRE, "with TTA, %": augment.VIEWS}
CAPTIONS = {
    "throughput": """\
Steps of the first epoch, with network and augmentation; the three take turns. Without an
optimizer the gradient, times 1e-30, is added to the parameters.""",
    "accuracy": """\
`airbench94`, mean ± standard deviation over the seeds. TTA is its test-time
augmentation. Compilation is not in the training's seconds.""",
    "seeds": "Each seed.",
}


class Training:
    """What `loop.train_and_evaluate` trains, compiled once for all seeds, without its files."""

    def __init__(self, recipe: Recipe, images: data.Dataset):
        """Take what all seeds share."""
        self.recipe, self.images = recipe, images
        self.layout = devices.layout(Options(recipe))
        self.steps = len(images.train_images) // recipe.batch_size
        self.total = recipe.epochs * self.steps
        self.tx, self.rate = optimizer.optimizer(recipe, self.total)

    def start(self, tx: optax.GradientTransformation, seed: int = 0) -> tuple[Any, Any]:
        """Return the model, and what the first step gets: with the seed, which is an argument."""
        recipe = dataclasses.replace(self.recipe, seed=seed)
        graphdef, carry = train.create(recipe, self.images, tx, self.layout)
        return graphdef, (self.layout.put(np.int32(seed)), carry)

    def compiled(self, graphdef: Any, tx: optax.GradientTransformation) -> loop.Compiled:
        """Return the steps of a call, which are compiled when they are called."""
        recipe, layout = self.recipe, self.layout
        step = train.make_step(graphdef, tx, self.rate, recipe, layout, self.total)

        def run(carry: Any, *arguments: jax.Array) -> tuple[Any, train.Logs]:
            seeded = dataclasses.replace(recipe, seed=carry[0])
            steps = train.make_steps(step, seeded, layout, self.images.mirror)
            after, logs = steps(carry[1], *arguments)
            return (carry[0], after), logs

        return loop.Compiled(jax.jit(run, donate_argnums=0), self.images, layout)


def throughput(part: Part, training: Training) -> tuple[Any, loop.Compiled]:
    """Time the steps with our optimizer, with Optax's, and with none; return ours to train with."""
    recipe, rate, steps = training.recipe, training.rate, training.steps
    theirs = optax.rmsprop(rate, 0.95, 1e-8, momentum=0.85, nesterov=True, bias_correction=True)
    bias_steps = recipe.network.whitening_bias_epochs * steps
    kind = optimizer.scale_by_kind(recipe.optimization, rate, bias_steps)
    compiled, calls = {}, {}  # by name

    def caller(run: loop.Compiled, carry: Any) -> Call:
        def call(k: int) -> None:
            nonlocal carry
            for _ in range(k):
                carry, _, _ = run(recipe, carry, 0, 0)

        return call

    for name, tx in {
        "optax_rmsprop": training.tx,
        "optax.rmsprop": optax.chain(theirs, kind),
        "none": optax.scale(1e-30),
    }.items():
        graphdef, carry = training.start(tx)
        compiled[name] = graphdef, training.compiled(graphdef, tx)
        calls[name] = caller(compiled[name][1], carry)
    n = 3 if part.options.small else 10
    count = train.steps_per_call(steps) * recipe.batch_size
    for name, found in timed(calls, n, part.options.small).items():
        speed = quartiles([count / seconds for seconds in found])
        row = {"images": training.images.label, "optimizer": name, "n": n, "images/s": speed}
        part.add("throughput", row | {"compilation, s": compiled[name][1].seconds})
    return compiled["optax_rmsprop"]


def seeds(part: Part, training: Training, graphdef: Any, run: loop.Compiled) -> None:
    """Train with one seed after another, as long as the time is enough for the next."""
    images, recipe = training.images, training.recipe
    predict = train.make_predict(graphdef, training.layout, images.mirror)
    test_images, results, longest = training.layout.put(images.test_images), [], 0.0
    for seed in range(2 if part.options.small else SEEDS):
        if part.left() < longest:
            break
        began = time.monotonic()
        _, carry = training.start(training.tx, seed)
        result, spent, done = {"seed": seed}, 0.0, 0
        while done < training.total:
            carry, logs, seconds = run(recipe, carry, *divmod(done, training.steps))
            loop.check_finite(logs, done, recipe)
            done, spent = done + len(logs.loss), spent + seconds
        for name, views in VIEWS.items():
            logits = np.asarray(predict(carry[1].params, carry[1].rest, test_images, views))
            result[name] = 100 * float((logits.argmax(-1) == images.test_labels).mean())
        result |= {"training, s": spent, "final loss": float(logs.loss.mean())}
        results.append(result)
        longest = time.monotonic() - began if seed else 0.0  # The first one compiles.
        part.tables["accuracy"] = [{"data": images.label, "n": len(results)} | summary(results)]
        part.add("seeds", result)


def summary(results: list[dict]) -> dict[str, str]:
    """Return mean and standard deviation over the seeds."""
    found = {}
    for key in (*VIEWS, "training, s"):
        values = [result[key] for result in results]
        found[key] = f"{statistics.fmean(values):.2f}"
        found[key] += f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return found


def main() -> None:
    """Measure the throughput, then train as often as the time allows."""
    part = Part("cifar", "CIFAR-10, the preset airbench94", CAPTIONS)
    folder, small = part.options.data_dir, part.options.small
    recipe = configs.PRESETS["airbench94"]
    if small:
        network = dataclasses.replace(recipe.network, widths=(8, 8, 8))
        few = {"epochs": 2, "batch_size": 32, "train_images": 256}
        recipe = dataclasses.replace(recipe, network=network, **few)
    if folder is not None:
        options = Options(recipe, dataset="cifar10", data_dir=folder, accept_unverified=True)
        images = data.load(options, print)
    else:
        images = data.synthetic(256, 128) if small else data.synthetic(50_000, 1_000)
    training = Training(recipe, images)
    with jax.set_mesh(training.layout.mesh):
        ours = throughput(part, training)
        if folder is None and not small:
            part.add("accuracy", {"data": "no data given"})
        else:
            seeds(part, training, *ours)
    part.finish()


if __name__ == "__main__":
    main()
