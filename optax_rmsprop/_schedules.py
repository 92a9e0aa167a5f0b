"""Rates that frameworks make of the learning rate they are given.

Each is equal to one of equal values, and shown as the call that makes it. `dialects` has them for
users, with the dialects made of them.
"""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._jax import is_traced
from ._link import Hyperparameter, shown


class _Schedule:
    def __repr__(self) -> str:
        fields = dataclasses.fields(cast(Any, self))
        values = (f"{field.name}={shown(getattr(self, field.name))}" for field in fields)
        return f"dialects.{type(self).__name__}({', '.join(values)})"


@dataclasses.dataclass(frozen=True, repr=False)
class InverseTime(_Schedule):
    """η / (1 + decay·count), of a number or a schedule."""

    learning_rate: Hyperparameter
    decay: ArrayLike

    def __call__(self, count: ArrayLike) -> Any:
        """Return the rate at a step."""
        steps = jnp.asarray(count, jnp.result_type(float))
        return _at(self.learning_rate, count) / (1.0 + self.decay * steps)


@dataclasses.dataclass(frozen=True, repr=False)
class Corrected(_Schedule):
    """η²/η_max."""

    learning_rate: Hyperparameter
    largest: float

    def __call__(self, count: ArrayLike) -> Any:
        """Return the rate at a step."""
        rate = _at(self.learning_rate, count)
        return rate * rate / self.largest


@dataclasses.dataclass(frozen=True, repr=False)
class OneAhead(_Schedule):
    """A schedule whose first call sees 1."""

    schedule: optax.Schedule

    def __call__(self, count: ArrayLike) -> Any:
        """Return the rate at a step."""
        return self.schedule(count + 1)


def corrected(lr: Hyperparameter, lr_max: float | None) -> Hyperparameter:
    """The rate of a corrected decay; a constant rate is its own largest."""
    if lr_max is not None:
        return Corrected(lr, lr_max)
    if callable(lr) or is_traced(lr) or isinstance(lr, np.float64):
        raise ValueError(
            "timm: corrected_weight_decay with a schedule or an array as lr needs lr_max, the lr "
            "that timm's constructor would get"
        )
    return lr


def one_ahead(value: Hyperparameter) -> Hyperparameter:
    """The schedule one step ahead; a number is the same at all steps."""
    return OneAhead(value) if callable(value) else value


def _at(value: Hyperparameter, count: ArrayLike) -> Any:
    if isinstance(value, np.float64):
        return float(value)
    return value(count) if callable(value) else value
