"""The networks, in Flax NNX: uint8 images [batch, height, width, 3] to float32 logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from examples.cifar10 import configs, fast_cpu, layers


class Frozen(nnx.Variable):
    """A constant of the model: saved with it, unseen by gradients and the optimizer."""


def create(
    config: configs.Network, images: np.ndarray, classes: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Module:
    """Draw a network's parameters from `rngs`, and take its constants from training `images`.

    A call takes images, and in training a key for what is random.
    """
    if config.network == "airbench":
        return Airbench(config, images, classes, dtype, rngs)
    return {"keras": KerasCNN, "deepobs": DeepOBS}[config.network](classes, dtype, rngs)


class Airbench(nnx.Module):
    """Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU".

    https://arxiv.org/abs/2404.00498
    """

    def __init__(self, config, images, classes, dtype, rngs):
        """See `create`."""
        mean, std, kernel = whitening(images[:5000])
        self.mean, self.std = Frozen(jnp.float32(mean)), Frozen(jnp.float32(std))
        self.whiten, channels = Frozen(jnp.float32(kernel)), kernel.shape[-1]
        bias = bool(config.whitening_bias_epochs)
        self.whitening_bias = nnx.Param(jnp.zeros(channels)) if bias else None
        first, second, third = config.widths
        group = functools.partial(
            Group, depth=config.depth, momentum=config.norm_momentum, dtype=dtype, rngs=rngs
        )
        self.group1, self.group2, self.group3 = (
            group(channels, first), group(first, second), group(second, third)
        )  # fmt: skip
        self.head = nnx.Linear(
            third, classes, use_bias=False, kernel_init=layers.uniform, dtype=dtype, rngs=rngs
        )
        self.dtype = dtype

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Return the logits; nothing here is random."""
        del key
        x = (images.astype(jnp.float32) / 255 - self.mean[...]) / self.std[...]
        x = layers.convolve(x.astype(self.dtype), self.whiten[...].astype(self.dtype), "VALID")
        if self.whitening_bias is not None:
            x = x + self.whitening_bias[...].astype(self.dtype)
        x = nnx.gelu(x)
        x = self.group3(self.group2(self.group1(x)))
        return self.head(x.max((1, 2))).astype(jnp.float32) / 9


class Group(nnx.Module):
    """Convolutions with batch normalization, and a halving of the image after the first."""

    def __init__(self, c_in: int, c_out: int, depth: int, momentum: float, dtype, rngs: nnx.Rngs):
        """Draw the parameters from `rngs`."""
        conv = functools.partial(
            _conv, c_out=c_out, use_bias=False, kernel_init=layers.dirac, dtype=dtype, rngs=rngs
        )
        # Statistics and their gradient stay in float32, whatever the convolutions use.
        norm = functools.partial(
            nnx.BatchNorm, c_out, momentum=momentum, epsilon=1e-12, use_scale=False, rngs=rngs
        )
        self.conv1, self.norm1 = conv(c_in), norm()
        self.conv2, self.norm2 = conv(c_out), norm()
        self.conv3, self.norm3 = (conv(c_out), norm()) if depth == 3 else (None, None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Halve the image."""
        first = nnx.gelu(self.norm1(layers.max_pool(self.conv1(x))))
        x = nnx.gelu(self.norm2(self.conv2(first)))
        return x if self.conv3 is None else nnx.gelu(self.norm3(self.conv3(x)) + first)


class KerasCNN(nnx.Module):
    """The network of Keras's examples/cifar10_cnn.py."""

    def __init__(self, classes: int, dtype: DTypeLike, rngs: nnx.Rngs):
        """See `create`."""
        glorot = {"kernel_init": nnx.initializers.glorot_uniform(), "dtype": dtype, "rngs": rngs}
        self.conv1 = _conv(3, 32, **glorot)
        self.conv2 = _conv(32, 32, padding="VALID", **glorot)
        self.conv3 = _conv(32, 64, **glorot)
        self.conv4 = _conv(64, 64, padding="VALID", **glorot)
        self.dense = nnx.Linear(6 * 6 * 64, 512, **glorot)
        self.head = nnx.Linear(512, classes, **glorot)
        self.quarter, self.half = nnx.Dropout(0.25), nnx.Dropout(0.5)
        self.dtype = dtype

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Return the logits; the key is for the dropout."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        x = images.astype(self.dtype) / 255
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        x = self.quarter(layers.max_pool(x), rngs=keys[0])
        x = nnx.relu(self.conv4(nnx.relu(self.conv3(x))))
        x = self.quarter(layers.max_pool(x), rngs=keys[1])
        x = nnx.relu(self.dense(x.reshape(len(x), -1)))
        return self.head(self.half(x, rngs=keys[2])).astype(jnp.float32)


class DeepOBS(nnx.Module):
    """The network 3c3d of DeepOBS (Schneider, Balles, Hennig 2019)."""

    def __init__(self, classes: int, dtype: DTypeLike, rngs: nnx.Rngs):
        """See `create`."""
        draw = {"dtype": dtype, "rngs": rngs}
        normal = {"kernel_init": nnx.initializers.glorot_normal(), "padding": "VALID"} | draw
        flat = {"kernel_init": nnx.initializers.glorot_uniform()} | draw
        self.conv1 = _conv(3, 64, size=5, **normal)
        self.conv2 = _conv(64, 96, **normal)
        self.conv3 = _conv(96, 128, **(normal | {"padding": "SAME"}))
        self.dense1 = nnx.Linear(3 * 3 * 128, 512, **flat)
        self.dense2 = nnx.Linear(512, 256, **flat)
        self.head = nnx.Linear(256, classes, **flat)
        self.dtype = dtype

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Return the logits; nothing here is random."""
        del key
        x = standardize(images.astype(jnp.float32)).astype(self.dtype)
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = layers.max_pool3(nnx.relu(convolution(x)))
        x = nnx.relu(self.dense1(x.reshape(len(x), -1)))
        return self.head(nnx.relu(self.dense2(x))).astype(jnp.float32)


def standardize(images: jax.Array) -> jax.Array:
    """Subtract every image's mean and divide by its deviation, as `tf.image` does."""
    size = images[0].size
    mean = images.mean((1, 2, 3), keepdims=True)
    return (images - mean) / jnp.maximum(images.std((1, 2, 3), keepdims=True), size**-0.5)


def _conv(c_in: int, c_out: int, size: int = 3, **kwargs) -> nnx.Conv:
    return nnx.Conv(c_in, c_out, (size, size), conv_general_dilated=fast_cpu.conv, **kwargs)


def whitening(
    images: np.ndarray, regularizer: float = 5e-4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the channels' mean and deviation, and a kernel that whitens 2 x 2 patches.

    The kernel projects on each principal direction of the patches, scaled to unit
    variance, and on its negative.
    """
    pixels = images / np.float32(255)
    mean, std = pixels.mean((0, 1, 2), np.float64), pixels.std((0, 1, 2), np.float64)
    x = (pixels - mean.astype(np.float32)) / std.astype(np.float32)
    height, width = x.shape[1] - 1, x.shape[2] - 1
    corners = [x[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)]
    patches = np.stack(corners, axis=-2).reshape(-1, 12)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    kernel = (directions / np.sqrt(variances + regularizer)).reshape(2, 2, 3, 12)
    return mean, std, np.concatenate([kernel, -kernel], axis=-1)
