"""The few layers that the tasks share, as functions of a tree of parameters.

Many seeds train at once with weights of their own, which XLA's convolution is slow at on a CPU:
here a convolution is a product of matrices over patches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


def dense_init(key: jax.Array, inputs: int, outputs: int) -> Params:
    """Return weights that keep the variance of rectified inputs, and zero biases (He et al.)."""
    w = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return {"w": w, "b": jnp.zeros(outputs)}


def dense(p: Params, x: jax.Array) -> jax.Array:
    """Apply a linear map to the last axis."""
    return x @ p["w"] + p["b"]


def stack_init(key: jax.Array, *sizes: int) -> list[Params]:
    """Return the layers of a network of dense layers."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [dense_init(*of) for of in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def stack(layers: list[Params], x: jax.Array) -> jax.Array:
    """Apply dense layers, with a ReLU between two."""
    *hidden, last = layers
    for p in hidden:
        x = jax.nn.relu(dense(p, x))
    return dense(last, x)


def patches(x: jax.Array, stride: int = 1) -> jax.Array:
    """Return the 3 × 3 patches of images [n, height, width, channels], with zeros around them."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1] - 2, x.shape[2] - 2
    parts = [x[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, -1)


def windows(x: jax.Array, width: int, stride: int = 1) -> jax.Array:
    """Return the windows of sequences [n, length, channels], with zeros at both ends."""
    x = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    length = x.shape[1] - width + 1
    return jnp.concatenate([x[:, i : i + length : stride] for i in range(width)], -1)


def recurrent_init(key: jax.Array, inputs: int, size: int, gates: int) -> Params:
    """Return the weights of a recurrent cell, all gates in one matrix."""
    w = jax.random.normal(key, (inputs + size, gates * size)) / (inputs + size) ** 0.5
    return {"w": w, "b": jnp.zeros(gates * size)}


def gru(p: Params, h: jax.Array, x: jax.Array) -> jax.Array:
    """Return the next state of gated recurrent units (Cho et al., 2014)."""
    inputs, size = x.shape[-1], h.shape[-1]
    w, b = p["w"], p["b"]
    seen = x @ w[:inputs] + b
    gates = jax.nn.sigmoid(seen[..., : 2 * size] + h @ w[inputs:, : 2 * size])
    update, reset = jnp.split(gates, 2, -1)
    new = jnp.tanh(seen[..., 2 * size :] + reset * (h @ w[inputs:, 2 * size :]))
    return update * h + (1 - update) * new


def lstm(p: Params, state: jax.Array, x: jax.Array) -> jax.Array:
    """Return the next state, [output, cell], of long short-term memory; it starts by keeping."""
    h, c = jnp.split(state, 2, -1)
    i, f, o, new = jnp.split(jnp.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(new)
    return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], -1)


def run(
    cell: Callable[[Params, jax.Array, jax.Array], jax.Array], p: Params, state: jax.Array, x: Any
) -> jax.Array:
    """Return all states of a recurrent cell over sequences [n, length, channels]."""

    def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = cell(p, state, x)
        return state, state

    return jax.lax.scan(step, state, x.swapaxes(0, 1))[1].swapaxes(0, 1)


def normalized(p: Params, x: jax.Array) -> jax.Array:
    """Layer normalization (Ba et al., 2016)."""
    x = x - x.mean(-1, keepdims=True)
    return p["scale"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def block_init(key: jax.Array, width: int) -> Params:
    """Return the weights of a block of a transformer."""
    k1, k2, k3 = jax.random.split(key, 3)
    one = {"scale": jnp.ones(width)}
    qkv = jax.random.normal(k1, (width, 3 * width)) / width**0.5
    out = jax.random.normal(k2, (width, width)) / width**0.5
    return {
        "qkv": qkv,
        "out": out,
        "mlp": stack_init(k3, width, 4 * width, width),
        "1": one,
        "2": one,
    }


def block(p: Params, x: jax.Array, heads: int) -> jax.Array:
    """Apply causal self-attention and a dense network, each after a normalization."""
    n, length, width = x.shape
    qkv = (normalized(p["1"], x) @ p["qkv"]).reshape(n, length, 3, heads, width // heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    weights = jnp.einsum("nqhc,nkhc->nhqk", q, k) / (width // heads) ** 0.5
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, weights, -jnp.inf), -1)
    x = x + jnp.einsum("nhqk,nkhc->nqhc", weights, v).reshape(n, length, width) @ p["out"]
    return x + stack(p["mlp"], normalized(p["2"], x))
