"""Convolution, pools and initializers."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def convolve(x: jax.Array, kernel: jax.Array, padding="SAME") -> jax.Array:
    """Convolve with stride 1."""
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dims)


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum of every 2 x 2 pixels; an odd last row or column is dropped.

    Reshaping makes forward and backward together 1.4 times as fast on a CPU as
    `nnx.max_pool`, whose gradient is a select-and-scatter.
    """
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(batch, height, 2, width, 2, channels).max((2, 4))


def max_pool3(x: jax.Array) -> jax.Array:
    """Take the maximum of 3 x 3 pixels at every second one, as TensorFlow's "SAME" does.

    The pixels must not be negative: zeros are added at the edge, and win no maximum.
    """
    height, width = x.shape[1:3]
    # TensorFlow adds what the last window lacks, a smaller half of it before the first.
    pads = [max(2 * math.ceil(n / 2) + 1 - n, 0) for n in (height, width)]
    x = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    windows = [
        x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    return functools.reduce(jnp.maximum, windows)


# Uniform between plus and minus 1 / sqrt(fan-in).
uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def dirac(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw 3 x 3 kernels of which the first pass the input's channels on unchanged."""
    same = jnp.arange(min(shape[2:]))
    return uniform(key, shape, dtype).at[..., same].set(0).at[1, 1, same, same].set(1)
