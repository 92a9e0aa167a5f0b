"""A number that is known when a program is compiled, or else set while it runs.

Arithmetic is done with both, and the one that holds is chosen where an array is needed. What is
made of a known number is made in double precision, and folded, as where none can be set.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp


def of_both(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function of numbers, made of both where one is settable."""

    @functools.wraps(f)
    def made(*numbers: Any) -> Any:
        settable = [x for x in numbers if isinstance(x, Settable)]
        if not settable:
            return f(*numbers)
        known = f(*(x.known if isinstance(x, Settable) else x for x in numbers))
        value = f(*(jnp.asarray(x) if isinstance(x, Settable) else x for x in numbers))
        is_set = functools.reduce(jnp.logical_or, [x.is_set for x in settable])
        both = Settable(known, value, is_set)
        return both if isinstance(known, float) else jnp.asarray(both)

    return made


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value", "is_set"], meta_fields=["known"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Settable:
    """A number, and one that takes its place where it is set."""

    known: float
    value: jax.Array  # float []
    is_set: jax.Array  # bool []

    def __jax_array__(self) -> jax.Array:
        return jnp.where(self.is_set, self.value, self.known)

    __neg__ = of_both(operator.neg)
    __mul__ = __rmul__ = of_both(operator.mul)
    __ge__ = of_both(operator.ge)
    __eq__ = of_both(operator.eq)  # pyright: ignore[reportAssignmentType]

    def __rsub__(self, other: Any) -> Any:
        return of_both(operator.sub)(other, self)

    def __rtruediv__(self, other: Any) -> Any:
        return of_both(cast(Any, operator.truediv))(other, self)
