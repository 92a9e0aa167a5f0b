"""Training on the device: the step, many steps in one call, and the prediction.

The steps are one `lax.scan` inside one `jit`. The data set stays on the device, and the
parameters, statistics and optimizer's state are donated from call to call.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.cifar10 import augment, model
from examples.cifar10.configs import Recipe
from examples.cifar10.data import Dataset
from examples.cifar10.devices import Layout


class Carry(NamedTuple):
    """What one step hands to the next, and all that a checkpoint must hold."""

    params: dict  # trained
    rest: dict  # running statistics of the batch normalization, constants
    opt_state: optax.OptState
    average: dict | None  # of params and rest, with lookahead


class Batch(NamedTuple):
    """What a step takes."""

    images: jax.Array
    labels: jax.Array
    key: jax.Array  # for dropout
    count: jax.Array  # steps before this one


class Logs(NamedTuple):
    """What a step tells; a call stacks them."""

    loss: jax.Array
    accuracy: jax.Array
    learning_rate: jax.Array


def create(
    recipe: Recipe, data: Dataset, tx: optax.GradientTransformation, layout: Layout
) -> tuple[nnx.GraphDef, Carry]:
    """Draw the model, split it once, and start the optimizer."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rngs = nnx.Rngs(recipe.seed)
    network = model.create(recipe.network, data.train_images, len(data.classes), dtype, rngs)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    average = {"params": params, "rest": rest} if recipe.optimization.lookahead else None
    return graphdef, Carry(
        layout.put(params, state=True),
        layout.put(rest),
        layout.put(tx.init(params), state=True),
        layout.put(average, state=True),
    )


def make_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    recipe: Recipe,
    layout: Layout,
    total_steps: int,
) -> Callable:
    """Return the training step: (carry, batch) to (carry, logs)."""
    optimization = recipe.optimization

    def loss_fn(params, rest, batch):
        # A copy, because a gradient's trace must not change variables of the trace around it.
        network = nnx.merge(graphdef, params, rest, copy=True)
        network.train()
        logits = network(batch.images, batch.key)
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch.labels, logits.shape[-1]), optimization.label_smoothing
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        if optimization.l2:
            kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
            loss += optimization.l2 / 2 * sum(jnp.sum(jnp.square(p)) for p in kernels)
        accuracy = (logits.argmax(-1) == batch.labels).mean()
        rest = nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param)))
        return loss, (rest, accuracy)

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Logs]:
        params, rest, opt_state, average = carry
        # Sharded parameters are gathered for the network, and its gradient is scattered again;
        # the update itself touches nothing but its own share.
        (loss, (rest, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            layout.whole(params), rest, batch
        )
        updates, opt_state = tx.update(layout.state(grads), opt_state, params)
        params = optax.apply_updates(params, updates)
        if optimization.lookahead:
            params, rest, average = lookahead(params, rest, average, batch.count, total_steps)
        carry = Carry(
            layout.state(params), layout.whole(rest), layout.state(opt_state), layout.state(average)
        )
        logs = Logs(loss, accuracy, jnp.float32(learning_rate(batch.count)))
        return carry, layout.whole(logs)

    return step


def lookahead(
    params: dict, rest: dict, average: dict, count: jax.Array, total_steps: int
) -> tuple[dict, dict, dict]:
    """Every five steps move the average towards the parameters, and these to it.

    The average keeps 0.95⁵ · (count / total)³ of itself, and at the last step all: airbench's
    lookahead. It counts the running statistics in.
    """
    now = {"params": params, "rest": rest}
    keep = jnp.where(count + 1 == total_steps, 1.0, 0.95**5 * (count / total_steps) ** 3)
    due = ((count + 1) % 5 == 0) | (count + 1 == total_steps)
    moved = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, now)
    average, now = jax.tree.map(
        lambda m, old: jnp.where(due, m, old), (moved, moved), (average, now)
    )
    return now["params"], now["rest"], average


def steps_per_call(steps: int) -> int:
    """Return how many of an epoch's steps one call runs: a divisor, so that one compilation does.

    Between calls the host shows progress, sees a Ctrl-C and saves.
    """
    return max(size for size in range(1, 51) if steps % size == 0)


def make_steps(step: Callable, recipe: Recipe, layout: Layout, mirror: bool) -> Callable:
    """Return the jitted steps: (carry, images, labels, epoch, first) to (carry, stacked logs).

    Args:
      step: What `make_step` returns.
      recipe: Says the batch size, the seed and the augmentation.
      layout: Where a batch lies.
      mirror: Whether images may be mirrored.
    """
    # Keys are folded, never split from a chain, so a step's numbers depend on nothing but the
    # seed and its index, and a run that resumes repeats the bits of one that did not stop.
    flip_key, epochs_key = jax.random.split(jax.random.key(recipe.seed))
    transform = augment.augmentation(recipe.augmentation)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry, images, labels, epoch, first):
        steps = len(images) // recipe.batch_size
        size = steps_per_call(steps)
        order_key, steps_key = jax.random.split(jax.random.fold_in(epochs_key, epoch))
        order = jax.random.permutation(order_key, len(images))[: steps * recipe.batch_size]
        order = jax.lax.dynamic_slice_in_dim(order.reshape(steps, -1), first, size)
        flip = augment.alternating_flip(flip_key, len(images), epoch) & mirror

        def body(carry, inputs):
            index, chosen = inputs
            key = jax.random.fold_in(steps_key, index)
            chosen = layout.batch(chosen)
            batch = transform(key, images[chosen], flip[chosen])
            dropout = jax.random.fold_in(key, 2)
            return step(carry, Batch(batch, labels[chosen], dropout, epoch * steps + index))

        return jax.lax.scan(body, carry, (first + jnp.arange(size), order))

    return run


def make_predict(graphdef: nnx.GraphDef, layout: Layout, mirror: bool) -> Callable:
    """Return the jitted prediction: (params, rest, images, views) to logits of all images.

    Args:
      graphdef: The model.
      layout: Where a batch lies.
      mirror: Whether test-time augmentation mirrors the images too.
    """

    @functools.partial(jax.jit, static_argnames="views")
    def predict(params, rest, images, views=augment.CENTRE):
        network = nnx.merge(graphdef, layout.whole(params), rest)
        network.eval()
        flips = (False, True) if mirror and len(views) > 1 else (False,)

        def some(images):
            images = layout.batch(images)
            full = functools.partial(jnp.full, len(images))
            return sum(
                weight
                / len(flips)
                * network(augment.translate(images, full(row), full(col), full(flip)))
                for row, col, weight in views
                for flip in flips
            )

        count, size = len(images), 400  # divides among 8 devices
        padding = [(0, -count % size), (0, 0), (0, 0), (0, 0)]
        batches = jnp.pad(images, padding).reshape(-1, size, *images.shape[1:])
        logits = jax.lax.map(some, batches)
        return layout.whole(logits.reshape(-1, logits.shape[-1])[:count])

    return predict
