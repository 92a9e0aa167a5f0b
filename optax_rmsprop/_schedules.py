"""Rates that frameworks make of the learning rate they are given, and those of published runs.

Each is equal to one of equal values, and shown as the call that makes it. `dialects` and `recipes`
have them for users, with what is made of them.
"""

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._jax import is_traced
from ._link import Hyperparameter, scalar, shown


class _Schedule:
    _where = "dialects"

    def __repr__(self) -> str:
        fields = dataclasses.fields(cast(Any, self))
        values = (f"{field.name}={shown(getattr(self, field.name))}" for field in fields)
        return f"{self._where}.{type(self).__name__}({', '.join(values)})"


@dataclasses.dataclass(frozen=True, repr=False)
class InverseTime(_Schedule):
    """η / (1 + decay·count), of a number or a schedule."""

    learning_rate: Hyperparameter
    decay: ArrayLike

    def __call__(self, count: ArrayLike) -> Any:
        """Return the rate at a step."""
        steps = _steps(count)
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


@dataclasses.dataclass(frozen=True, repr=False)
class Staircase(_Schedule):
    """η·fᵏ after k falls, but no less than the least rate.

    The kth fall is at the first step that is not before `hold + k·every`, which need not be whole.
    With a `unit`, the length of an epoch in steps, it is at the start of the next epoch instead.
    """

    learning_rate: float
    factor: float
    every: float
    hold: float = 0.0
    unit: float = 1.0
    least: float = 0.0
    _where = "recipes"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "every", "unit"):
            _positive("Staircase", name, getattr(self, name))
        _positive("Staircase", "factor", self.factor, below=1.0)

    @functools.cached_property
    def _rates(self) -> np.ndarray[Any, Any]:
        least = max(self.least, float(np.finfo(np.float32).tiny)) / self.learning_rate
        falls = math.ceil(math.log(min(least, 1.0)) / math.log(self.factor))
        return np.maximum(self.learning_rate * self.factor ** np.arange(falls + 1), self.least)

    @functools.cached_property
    def _falls(self) -> np.ndarray[Any, Any]:
        at = self.hold + self.every * np.arange(1, len(self._rates))
        return _first_steps(np.ceil(np.round(at / self.unit, 6)) * self.unit)

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Return the rate at a step."""
        return _of(self._rates, _passed(self._falls, count))


@dataclasses.dataclass(frozen=True, repr=False)
class Stages(_Schedule):
    """One rate after another, each for so many steps, and then that of a schedule."""

    rates: tuple[float, ...]
    every: float
    after: Staircase
    _where = "recipes"

    def __post_init__(self) -> None:
        _positive("Stages", "every", self.every)
        for i, rate in enumerate(self.rates):
            _not_negative("Stages", f"rates[{i}]", rate)

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Return the rate at a step."""
        after = self.after(count)
        if not self.rates:
            return after
        stage = _passed(_first_steps(self.every * np.arange(1, len(self.rates) + 1)), count)
        rate = _of(np.array(self.rates), jnp.minimum(stage, len(self.rates) - 1))
        return jnp.where(stage < len(self.rates), rate, after)


@dataclasses.dataclass(frozen=True, repr=False)
class WarmUp(_Schedule):
    """A line from a start to the rate of what follows, in place of it for so many steps."""

    after: float | Staircase
    steps: int
    start: float = 0.0
    least: float = 0.0
    _where = "recipes"

    def __post_init__(self) -> None:
        if not isinstance(self.after, Staircase):
            _not_negative("WarmUp", "after", self.after)
        for name in ("steps", "start", "least"):
            _not_negative("WarmUp", name, getattr(self, name))

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Return the rate at a step."""
        end = self.after.learning_rate if isinstance(self.after, Staircase) else self.after
        done = _steps(count) / max(self.steps, 1)
        line = jnp.maximum(self.start + (end - self.start) * done, self.least)
        return jnp.where(_steps(count) < self.steps, line, _at(self.after, count))


@dataclasses.dataclass(frozen=True, repr=False)
class Linear(_Schedule):
    """η·(end − t)/steps, and 0 after the end; t counts whole units."""

    learning_rate: float
    steps: float
    end: float | None = None  # `steps`
    unit: int = 1
    _where = "recipes"

    def __post_init__(self) -> None:
        _not_negative("Linear", "learning_rate", self.learning_rate)
        for name in ("steps", "unit"):
            _positive("Linear", name, getattr(self, name))

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Return the rate at a step."""
        end = self.steps if self.end is None else self.end
        t = _steps(jnp.asarray(count) // self.unit * self.unit)
        return self.learning_rate * jnp.maximum((end - t) / self.steps, 0.0)


@dataclasses.dataclass(frozen=True, repr=False)
class Ramp(_Schedule):
    """(1+n)/(10+n), but no more than the decay: TensorFlow's, of an average of weights.

    The nth average is `optax.incremental_update(weights, average, 1 - ramp(n))`.
    """

    decay: float
    _where = "recipes"

    def __post_init__(self) -> None:
        _not_negative("Ramp", "decay", self.decay)

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Return the decay after a number of updates."""
        return jnp.minimum(self.decay, (1 + _steps(count)) / (10 + _steps(count)))


def _positive(function: str, name: str, value: Any, below: float = math.inf) -> None:
    scalar(function, name, value, above=0.0, below=below, schedule=False)


def _not_negative(function: str, name: str, value: Any) -> None:
    scalar(function, name, value, schedule=False)


def _first_steps(at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first whole steps that are not before these; a multiple of 2.4 is off by its rounding."""
    steps = np.ceil(np.round(at, 6))
    return steps[steps <= np.iinfo(np.int32).max].astype(np.int32)


def _passed(steps: np.ndarray[Any, Any], count: ArrayLike) -> jax.Array:
    """How many of these are over. In whole numbers: float32 would miss some by one."""
    now = jnp.asarray(count, jnp.int32)
    return jnp.searchsorted(jnp.asarray(steps), now, side="right", method="compare_all")


def _of(rates: np.ndarray[Any, Any], index: jax.Array) -> jax.Array:
    return jnp.asarray(rates, jnp.result_type(float))[index]


def _steps(count: ArrayLike) -> jax.Array:
    return jnp.asarray(count, jnp.result_type(float))


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
