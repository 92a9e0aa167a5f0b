"""A rule as a call of this package: numbers and switches that a file holds, and what it lacks."""

import ast
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from .. import dialects
from ._guard import Refused


class Framework(NamedTuple):
    """Where a dialect's checkpoints come from."""

    optimizer: str  # its name there
    rows: tuple[str, ...]  # of the truth table, that this rule is of
    decay: str  # the name of the weight of the past
    rate: str
    start: float  # of the second moment


FRAMEWORKS = {
    "torch": Framework("torch.optim.RMSprop", ("PyTorch 2.13",), "alpha", "lr", 0.0),
    "timm": Framework("timm.optim.RMSpropTF", ("timm 1.0.31 RMSpropTF",), "alpha", "lr", 1.0),
    "stable_baselines3": Framework(
        "stable_baselines3 RMSpropTFLike", ("Stable-Baselines3 2.9.2",), "alpha", "lr", 1.0
    ),
    "pfrl": Framework("pfrl RMSpropEpsInsideSqrt", ("pfrl 0.4.0",), "alpha", "lr", 0.0),
    "keras": Framework(
        "keras.optimizers.RMSprop",
        ("Keras 3.15 (JAX, TensorFlow, PyTorch)", "Keras 2.11-2.15, tf_keras 2.21"),
        "rho",
        "learning_rate",
        0.0,
    ),
    "keras2": Framework(
        "tf.keras.optimizers.RMSprop, to 2.10",
        ("tf.keras 2.0-2.10, tf_keras 2.21 legacy",),
        "rho",
        "learning_rate",
        0.0,
    ),
    "tensorflow1": Framework(
        "tf.compat.v1.train.RMSPropOptimizer",
        ("TensorFlow 1 (2.21's compat.v1)",),
        "decay",
        "learning_rate",
        1.0,
    ),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a dialect; an argument that a file does not hold is `...`."""

    dialect: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        given = [f"{k}={'...' if v is ... else repr(v)}" for k, v in self.shown().items()]
        return f"dialects.{self.dialect}({', '.join(given)})"

    def shown(self) -> dict[str, Any]:
        """The arguments that make a difference, in the order of the signature."""
        order = inspect.signature(getattr(dialects, self.dialect)).parameters
        return {
            name: self.arguments[name]
            for name, parameter in order.items()
            if name in self.arguments and _matters(name, self.arguments[name], parameter.default)
        }

    @property
    def framework(self) -> Framework:
        """Where it comes from."""
        return FRAMEWORKS[self.dialect]

    @property
    def unknown(self) -> list[str]:
        """The arguments that the file does not hold."""
        return [name for name, value in self.arguments.items() if value is ...]

    def but(self, given: Mapping[str, Any]) -> "Call":
        """The call with other arguments."""
        allowed = inspect.signature(getattr(dialects, self.dialect)).parameters
        if strange := [name for name in given if name not in allowed]:
            raise Refused(
                f"--set {strange[0]}: dialects.{self.dialect} has {', '.join(map(str, allowed))}"
            )
        return Call(self.dialect, {**self.arguments, **given})

    def as_of(self, dialect: str) -> "Call":
        """The same arguments, of another framework's rule."""
        try:
            return Call(dialect, {}).but(self.shown())
        except Refused as error:
            raise Refused(f"--dialect {dialect}: the file has {self}") from error

    def made(self) -> optax.GradientTransformationExtraArgs:
        """The transformation."""
        if self.unknown:
            some = " ".join(f"--set {name}=VALUE" for name in self.unknown)
            raise Refused(
                f"the file does not say {', '.join(self.unknown)} of "
                f"{self.framework.optimizer}: give {some}"
            )
        try:
            return getattr(dialects, self.dialect)(**self.shown())
        except (TypeError, ValueError) as error:
            raise Refused(f"{self} is no call: {error}") from error

    @classmethod
    def parsed(cls, text: str) -> "Call":
        """A call that `str` wrote: it is read, and not evaluated."""
        try:
            call = ast.parse(text, mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError("only names have values")
            dialect = ast.unparse(call.func).removeprefix("dialects.")
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise Refused(f"{text[:80]!r} is no call of a dialect: {error}") from error
        if dialect not in FRAMEWORKS or not all(map(is_setting, arguments.values())):
            raise Refused(f"{text[:80]!r} is no call of a dialect with numbers and switches")
        return cls(dialect, {}).but(arguments)


def _matters(name: str, value: Any, default: Any) -> bool:
    """Whether an argument belongs into the call: every number does, but one that makes no link."""
    if value is None or isinstance(value, bool):
        return value is not default
    return value is ... or name not in ("momentum", "weight_decay") or value != 0


def is_setting(x: Any) -> bool:
    """Whether it is a number, a switch, None, or not known."""
    return x is None or x is ... or isinstance(x, (bool, int, float))


def settings_of(pairs: tuple[str, ...]) -> dict[str, Any]:
    """The values of `--set NAME=VALUE`."""
    found = dict[str, Any]()
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            equals, value = "", None
        if not equals or value is ... or not is_setting(value):
            raise Refused(f"--set {pair}: expected NAME=VALUE, a number, True, False or None")
        found[name] = value
    return found
