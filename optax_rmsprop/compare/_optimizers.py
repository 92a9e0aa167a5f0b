"""Optimizers that are driven by given gradients."""

import types
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._records import Array


def driven(name: str, optimizer: Any, params: Any, grads: Any) -> Any:
    """The recorded run of an optimizer."""
    pairs = cast(list[Any], jax.tree_util.tree_leaves_with_path(params))
    tree = cast(Any, jax.tree.structure(params))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    start = [np.asarray(x) for _, x in pairs]
    if not start or any(not jnp.issubdtype(x.dtype, jnp.floating) for x in start):
        raise TypeError(f"compare.steps: params must be floating-point arrays, got {params!r:.60}")
    given = _stacked(tree, start, paths, grads)
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        rows = _transformed(optimizer, tree, start, given)
    elif callable(optimizer):
        rows = _stepped(name, optimizer, start, given)
    else:
        raise TypeError(
            f"compare.steps: {name} must be an Optax transformation or start(params) -> step, "
            f"got {optimizer!r:.60}"
        )
    arrays = [np.stack(column) for column in zip(*rows, strict=True)]
    names = [path or "params" for path in paths]
    return types.SimpleNamespace(
        params=dict(zip(names, arrays, strict=True)), grads=dict(zip(names, given, strict=True))
    )


def _stacked(tree: Any, start: list[Array], paths: list[str], grads: Any) -> list[Array]:
    """The gradients [T, ...] of each leaf."""
    rows = [grads]
    if isinstance(grads, Sequence) and jax.tree.structure(grads) != tree:
        rows = list(cast(Sequence[Any], grads))
    columns = list[list[Array]]()
    for row in rows:
        if jax.tree.structure(row) != tree:
            raise ValueError("compare.steps: grads must have the tree of params")
        columns.append([np.asarray(x) for x in jax.tree.leaves(row)])
    stacked = len(rows) == 1 and rows[0] is grads
    leaves = columns[0] if stacked else [np.stack(x) for x in zip(*columns, strict=True)]
    counts = {len(g) if g.ndim else 0 for g in leaves}
    for path, p, g in zip(paths, start, leaves, strict=True):
        if g.shape[1:] != p.shape or len(counts) > 1 or 0 in counts:
            raise ValueError(
                f"compare.steps: the gradients at {path or 'the root'} have shape {g.shape}, "
                f"expected steps and {p.shape}"
            )
    return [g.astype(p.dtype) for g, p in zip(leaves, start, strict=True)]


def _transformed(tx: Any, tree: Any, start: list[Array], grads: list[Array]) -> list[list[Array]]:
    """The parameters of a transformation, with 64 bits where the parameters have them."""
    wide = any(x.dtype == np.float64 for x in start)
    tx = optax.with_extra_args_support(tx)
    with (
        cast(Any, jax).enable_x64(wide or bool(cast(Any, jax.config).jax_enable_x64)),
        jax.numpy_dtype_promotion("standard"),
    ):
        p: Any = tree.unflatten([jnp.asarray(x) for x in start])
        state: Any = tx.init(p)
        rows = [start]

        @jax.jit
        def step(p: Any, state: Any, g: Any) -> Any:
            updates, state = tx.update(g, state, p)
            return optax.apply_updates(p, updates), state

        for t in range(len(grads[0])):
            p, state = cast(Any, step)(p, state, tree.unflatten([jnp.asarray(g[t]) for g in grads]))
            rows.append([np.asarray(x) for x in jax.tree.leaves(p)])
    return rows


def _stepped(name: str, start: Any, leaves: list[Array], grads: list[Array]) -> list[list[Array]]:
    """The parameters of a black box."""
    sizes = np.cumsum([x.size for x in leaves])[:-1]
    joined = np.concatenate([x.ravel() for x in leaves])
    step, rows = start(joined.copy()), [leaves]
    for t in range(len(grads[0])):
        gradient = np.concatenate([g[t].ravel() for g in grads]).astype(joined.dtype)
        new = np.asarray(step(gradient))
        if new.shape != joined.shape:
            raise ValueError(
                f"compare.steps: {name} returned shape {new.shape}, not {joined.shape}"
            )
        parts = np.split(np.array(new), sizes)
        rows.append([x.reshape(p.shape) for x, p in zip(parts, leaves, strict=True)])
    return rows
