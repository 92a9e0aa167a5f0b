"""Convolutions and pools whose gradients are fast on a CPU, and initializers."""

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


def conv(x: jax.Array, kernel: jax.Array, strides=(1, 1), padding="SAME", **_) -> jax.Array:
    """Convolve with an odd kernel and stride 1, with gradients that are fast on a CPU.

    The signature is that of `lax.conv_general_dilated`, for `nnx.Conv`.
    """
    if jax.default_backend() != "cpu":
        return convolve(x, kernel, padding)
    return _conv(x, kernel, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, padding):
    return convolve(x, kernel, padding)


def _forward(x, kernel, padding):
    return convolve(x, kernel, padding), (x, kernel)


def _backward(padding, residuals, dy):
    # XLA's CPU compiler brings the convolutions of a gradient to the layout for which it has
    # fast code, except inside a loop, where a training step takes 26 times as long as alone:
    # benchmarks/results/scan.md. So the one for the input is written in that layout here, and the
    # one for the kernel as matrix products.
    x, kernel = residuals
    size = len(kernel)
    margin = size // 2 if padding == "SAME" else 0
    # Without the barrier XLA merges the padding of a cropped pool's gradient into the convolution,
    # which then misses the fast code.
    dy = lax.optimization_barrier(dy)
    outer = [(size - 1 - margin,) * 2] * 2
    dx = convolve(dy, lax.rev(kernel, (0, 1)).swapaxes(2, 3), outer)
    gradient = functools.partial(_kernel_gradient, size=size, margin=margin)
    if jax.sharding.get_abstract_mesh().size > 1:  # A loop over a sharded axis would gather it.
        return dx, gradient((x, dy))
    # Ten images at a time stay in the cache: two to three times as fast as a hundred.
    count = math.gcd(len(x), 10)
    parts = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]), (x, dy))
    return dx, lax.map(gradient, parts).sum(0)


def _kernel_gradient(pair: tuple[jax.Array, jax.Array], size: int, margin: int) -> jax.Array:
    """Correlate x with dy: a matrix product for each row of the kernel."""
    x, dy = pair
    _, height, width, c_out = dy.shape
    c_in = x.shape[-1]
    x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    columns = jnp.concatenate([x[:, :, j : j + width] for j in range(size)], axis=-1)
    rows = [columns[:, i : i + height].reshape(-1, size * c_in) for i in range(size)]
    dy = dy.reshape(-1, c_out)
    return jnp.stack([row.T @ dy for row in rows]).reshape(size, size, c_in, c_out)


_conv.defvjp(_forward, _backward)


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
