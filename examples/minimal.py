"""Train a small convolutional network with RMSprop, in Flax NNX: copy this file and change it.

python -m examples.minimal                                   # scikit-learn's handwritten digits
python -m examples.minimal --data-dir cifar-10-batches-bin   # the binary version of CIFAR-10
python -m examples.minimal --help
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.progress import track
from sklearn.datasets import load_digits

import optax_rmsprop


def load(folder: Path | None) -> tuple[np.ndarray, ...]:
    """Return images [n, height, width, channels] in uint8 and labels, for training and for test."""
    if folder is None:
        digits = load_digits()
        images, labels = (digits.images[..., None] * 15.9).astype(np.uint8), digits.target
        train, test = np.split(np.random.default_rng(0).permutation(len(labels)), [1500])
        return images[train], labels[train], images[test], labels[test]

    def read(*names: str) -> tuple[np.ndarray, np.ndarray]:
        rows = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
        rows = rows.reshape(-1, 1 + 3 * 32 * 32)
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]

    return *read(*(f"data_batch_{i}.bin" for i in range(1, 6))), *read("test_batch.bin")


class Network(nnx.Module):
    """Three convolutions with batch normalization, and a linear layer."""

    def __init__(self, channels: int, classes: int, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, momentum=0.8, rngs=rngs)
        self.conv1, self.norm1 = conv(channels, 32), norm(32)
        self.conv2, self.norm2 = conv(32, 64), norm(64)
        self.conv3, self.norm3 = conv(64, 128), norm(128)
        self.head = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map uint8 images to logits."""
        x = images / 128.0 - 1.0
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.norm2(self.conv2(x))), (2, 2), (2, 2))
        x = nnx.relu(self.norm3(self.conv3(x)))
        return self.head(x.mean((1, 2)))


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Shift every image by up to a sixteenth of its side; of those in colour, mirror half."""
    shift_key, flip_key = jax.random.split(key)
    count, side, _, channels = images.shape
    shift = side // 16
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), "reflect")
    ends = jnp.array([2 * shift + 1, 2 * shift + 1, 1])
    starts = jax.random.randint(shift_key, (count, 3), 0, ends)
    crop = functools.partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:])
    images = jax.vmap(crop)(padded, starts)
    flip = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1)) & (channels == 3)
    return jnp.where(flip, images[:, :, ::-1], images)


@nnx.jit
def train_step(model: Network, optimizer: nnx.Optimizer, key, images, labels) -> jax.Array:
    """Update the parameters, the running statistics and the optimizer; return the loss."""

    def loss_fn(model):
        logits = model(augment(key, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def predict(model: Network, images) -> jax.Array:
    """Return the most probable class of every image."""
    return model(images).argmax(-1)


def main(
    data_dir: Path | None = None, epochs: int = 10, batch_size: int = 50, seed: int = 0
) -> float:
    """Train, print a line for each epoch, and return the accuracy on the test images."""
    images, labels, test_images, test_labels = load(data_dir)
    steps = len(images) // batch_size
    schedule = optax.cosine_decay_schedule(0.003, epochs * steps)

    tx = optax_rmsprop.rmspropw(schedule, decay=0.95, momentum=0.9, weight_decay=0.01)
    # Swap this line for any of these; the last one goes after whichever you choose:
    # tx = optax_rmsprop.rmsprop(schedule, decay=0.95, momentum=0.9)  # as optax.rmsprop
    # tx = optax_rmsprop.dialects.torch(lr=schedule, alpha=0.99, eps=1e-5, momentum=0.9)
    # tx = optax_rmsprop.dialects.tensorflow1(schedule, decay=0.9, momentum=0.9, epsilon=1e-3)
    # tx = optax_rmsprop.dialects.keras(learning_rate=schedule, rho=0.9, weight_decay=0.01)
    # tx = optax_rmsprop.storage.stored_as(tx, optax_rmsprop.storage.uint8())  # ν in one byte

    model = Network(images.shape[-1], 10, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    piped = not sys.stdout.isatty()  # Then there is no progress bar.
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    for epoch in range(1, epochs + 1):
        model.train()
        order, losses = rng.permutation(len(images)), []
        for i in track(range(steps), f"epoch {epoch}/{epochs}", transient=True, disable=piped):
            batch = order[i * batch_size : (i + 1) * batch_size]
            step_key = jax.random.fold_in(key, epoch * steps + i)
            losses.append(train_step(model, optimizer, step_key, images[batch], labels[batch]))
        model.eval()
        parts = np.split(test_images, range(1000, len(test_images), 1000))
        predicted = np.concatenate([predict(model, part) for part in parts])
        accuracy = float(np.mean(predicted == test_labels))
        rate = optax.tree.get(optimizer.opt_state, "last_learning_rate")
        print(
            f"epoch {epoch:2}/{epochs}  loss {np.mean(losses):.3f}  test accuracy {accuracy:.2%}"
            f"  learning rate {float(rate[...]):.2e}"
        )
    return accuracy


if __name__ == "__main__":
    tyro.cli(main)
