"""Training on the device: the step, the epoch and the evaluation.

A whole epoch is one `lax.scan` inside one `jit`. The data set stays on the device, and
the parameters, statistics and optimizer's state are donated from epoch to epoch.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.cifar10 import augment
from examples.cifar10.configs import Recipe
from examples.cifar10.data import Dataset
from examples.cifar10.model import Network


class Carry(NamedTuple):
    """What one step hands to the next, and all that a checkpoint must hold."""

    params: dict  # trained
    rest: dict  # running statistics of the batch normalization, constants
    opt_state: optax.OptState


class Logs(NamedTuple):
    """What a step tells; an epoch stacks them."""

    loss: jax.Array
    accuracy: jax.Array
    learning_rate: jax.Array


def create(
    recipe: Recipe, data: Dataset, tx: optax.GradientTransformation
) -> tuple[nnx.GraphDef, Carry]:
    """Draw the model, split it once, and start the optimizer."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rngs = nnx.Rngs(recipe.seed)
    model = Network(data.train_images, len(data.classes), recipe.widths, dtype, rngs)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    return graphdef, Carry(params, rest, tx.init(params))


def make_step(graphdef: nnx.GraphDef, tx: optax.GradientTransformation, recipe: Recipe) -> Callable:
    """Return the training step: (carry, (images, labels)) to (carry, logs)."""

    def loss_fn(params, rest, images, labels):
        # A copy, because a gradient's trace must not change variables of the trace around it.
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.train()
        logits = model(images)
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, logits.shape[-1]), recipe.label_smoothing
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        accuracy = (logits.argmax(-1) == labels).mean()
        rest = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return loss, (rest, accuracy)

    def step(carry, batch):
        params, rest, opt_state = carry
        (loss, (rest, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, rest, *batch
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        learning_rate = optax.tree.get(opt_state, "learning_rate")
        return Carry(params, rest, opt_state), Logs(loss, accuracy, learning_rate)

    return step


def make_epoch(
    step: Callable, recipe: Recipe, mirror: bool, report: Callable | None = None
) -> Callable:
    """Return the jitted epoch: (carry, images, labels, epoch) to (carry, stacked logs).

    Args:
      step: What `make_step` returns.
      recipe: Says the batch size, the seed and the largest translation.
      mirror: Whether images may be mirrored.
      report: Called on the host as report(step, loss, accuracy) while the epoch runs.
    """
    # Keys are folded, never split from a chain, so an epoch's numbers depend on nothing but
    # the seed and its index, and a run that resumes repeats the bits of one that did not stop.
    flip_key, epochs_key = jax.random.split(jax.random.key(recipe.seed))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry, images, labels, epoch):
        steps = len(images) // recipe.batch_size
        order_key, shift_key = jax.random.split(jax.random.fold_in(epochs_key, epoch))
        order = jax.random.permutation(order_key, len(images))[: steps * recipe.batch_size]
        flip = augment.alternating_flip(flip_key, len(images), epoch) & mirror

        def body(carry, inputs):
            index, chosen = inputs
            key = jax.random.fold_in(shift_key, index)
            batch = augment.random_translate(key, images[chosen], flip[chosen], recipe.shift)
            carry, logs = step(carry, (batch, labels[chosen]))
            if report is not None:
                jax.lax.cond(
                    index % 10 == 9,
                    lambda: jax.debug.callback(report, index + 1, logs.loss, logs.accuracy),
                    lambda: None,
                )
            return carry, logs

        return jax.lax.scan(body, carry, (jnp.arange(steps), order.reshape(steps, -1)))

    return run


def make_predict(graphdef: nnx.GraphDef, mirror: bool) -> Callable:
    """Return the jitted prediction: (params, rest, images, views) to logits.

    Args:
      graphdef: The model.
      mirror: Whether several views include their mirror images.
    """

    @functools.partial(jax.jit, static_argnames="views")
    def predict(params, rest, images, views=augment.CENTRE):
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        flips = (False, True) if mirror and len(views) > 1 else (False,)
        full = functools.partial(jnp.full, len(images))
        return sum(
            weight / len(flips) * model(augment.translate(images, full(row), full(col), full(flip)))
            for row, col, weight in views
            for flip in flips
        )

    return predict
