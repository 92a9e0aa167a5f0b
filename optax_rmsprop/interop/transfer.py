"""Optax: what two states have in common, whatever links hold it."""

from typing import NamedTuple

import optax

from ._states import both_forms, fill, leaves_of, read


class Transferred(NamedTuple):
    """What `transfer` returns."""

    state: optax.OptState  # `like`, with what the source had
    unfilled: list[str]  # paths in `like` that are as they were
    unused: list[str]  # paths in the source that were not carried


def transfer(source: optax.OptState, like: optax.OptState) -> Transferred:
    """Carry what two Optax-style states have in common, and say what was left.

    From `optax.rmsprop` to this package, or from one configuration to another: with momentum added,
    centred or not, the rate on the other side of the buffer. ν is var + |mu|². Between two centred
    states with bias correction ν is not the same thing, and this is inexact.

    Args:
        source: A state with values, Optax's or ours.
        like: The state to fill, `tx.init(params)`.

    Returns:
        `Transferred(state, unfilled, unused)`: `like` with the source's values in its own dtypes
        and shardings, and two lists of paths. Both empty means that everything was carried.

    Raises:
        ValueError: if a parameter has another shape in the two, by its path.

    Example:
        >>> import jax.numpy as jnp, optax, optax_rmsprop
        >>> from optax_rmsprop import interop
        >>> params = jnp.array([1.0, 2.0])
        >>> theirs = optax.rmsprop(0.1, decay=0.75)
        >>> _, old = theirs.update(params * 4, theirs.init(params))
        >>> new = optax_rmsprop.rmsprop(0.1, decay=0.75, momentum=0.9).init(params)
        >>> state, unfilled, unused = interop.transfer(old, new)
        >>> print(state[0].nu, unfilled)
        [ 4. 16.] ['[0].count', '[1].rate_count', '[1].last_learning_rate', '[2].trace_count', '[2].trace']
    """
    found = read("transfer", source)
    values = {quantity: leaves_of(tree) for quantity, tree in found.trees.items()}
    rates = {path: found.rate for leaves in values.values() for path in leaves}
    state, unfilled, used = fill(
        "transfer", like, both_forms(values, rates), found.count, {(): found.rate}, strict=False
    )
    unused = [field for field, kind in found.fields.items() if kind not in used]
    return Transferred(state, unfilled, unused)
