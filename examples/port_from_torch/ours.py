"""The network in Flax, and how the run is carried over."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.port_from_torch.task import SHAPES, Settings, batches
from optax_rmsprop import dialects, interop


class Network(nnx.Module):
    """The same modules under the same names, channels last."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        first, second = SHAPES["channels"]
        self.conv1 = nnx.Conv(1, first, (3, 3), padding="SAME", rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), padding="SAME", rngs=rngs)
        self.head = nnx.Linear(int(np.prod(SHAPES["flattened"])), 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of images [n, 8, 8, 1]."""
        x = nnx.avg_pool(jnp.tanh(self.conv1(images)), (2, 2), strides=(2, 2))
        x = jnp.tanh(self.conv2(x))
        return self.head(x.reshape(x.shape[0], -1))


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """The line of PyTorch, with the scheduler as a function of the step."""
    return dialects.torch(
        lr=settings.rate,
        alpha=settings.alpha,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        centered=settings.centered,
    )


def carried(settings: Settings, checkpoint: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The network's definition, the weights, and the optimizer's state, from a checkpoint."""
    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    layout = interop.layout(params, flattened={"head": SHAPES["flattened"]})
    params = jax.tree.map(jnp.asarray, layout.to_flax(checkpoint["model"]))
    like = optimizer(settings).init(params)
    return graph, params, interop.from_torch(checkpoint["optimizer"], like, layout.to_flax)


def train(
    settings: Settings, start: int, graph: Any, params: Any, state: Any
) -> tuple[Any, Any, list[float]]:
    """The weights and the state after `steps`, and the loss before each step."""
    tx = optimizer(settings)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    losses: list[float] = []
    for images, labels in batches(settings, start):
        params, state, value = step(params, state, images[..., None], labels)
        losses.append(float(value))
    return params, state, losses
