"""Convolutions whose gradients are fast on a CPU inside `lax.scan`; elsewhere they are XLA's own.

XLA's CPU compiler brings the convolutions of a gradient to the layout for which it has fast code,
except inside a loop, where a training step takes 26 times as long as alone (the table is
benchmarks/results/scan.md). So the convolution for the input is written in that layout here, and
the one for the kernel as matrix products.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from examples.cifar10.layers import convolve


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
