"""What a probe found, and the page that says it."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Report:
    """Which RMSprop a box or a log is. `print` it: it is a page to paste into an issue."""

    calls: list[str]
    """Calls that reproduce it, best first, one for each class that the data cannot tell apart.

    A decay above 0.99995 is not named: what hardly forgets is a sum, as Adagrad's. Nor is a
    momentum below 1e-4, which turns no step."""
    rule: Mapping[str, Any]
    """The switches of the first call, and their values; None where one does not apply."""
    undetermined: Mapping[str, list[Any]]
    """Switches that the data leave open, with the values that remain or the ends of an interval.

    None is among them where the switch may be absent. A weight decay is among them where rounding
    hides one of 1e-6 or more."""
    frameworks: list[str]
    """The rows of the truth table that agree."""
    contradictions: list[str]
    """Why it is no RMSprop, and what it is where that is known."""
    error: float
    """The largest relative error over a check sequence that the identification did not see."""
    learning_rates: Any = dataclasses.field(default=None, repr=False)
    """The schedule or the array of rates that the calls name, if they name one."""
    notes: list[str] = dataclasses.field(default_factory=list[str])
    """What of the data was not used or does not follow, and what is left open that is no switch."""

    @functools.cached_property
    def transformation(self) -> optax.GradientTransformation | None:
        """The first call, evaluated; None if there is none."""
        return evaluate(self.calls[0], self.learning_rates) if self.calls else None

    def __str__(self) -> str:
        lines = [self._headline(), ""]
        lines += [f"    {call}" for call in self.calls] + [""] * bool(self.calls)
        if self.contradictions:
            lines += [f"- {text}" for text in self.contradictions] + [""]
        if self.notes:
            lines += [*(f"Note: {note}" for note in self.notes), ""]
        if self.calls:
            lines += ["| switch | value | not decided by the data |", "|---|---|---|"]
            for name, value in self.rule.items():
                left = self.undetermined.get(name)
                lines.append(f"| {name} | {_shown(value)} | {_remaining(left)} |")
            agree = ", ".join(self.frameworks) if self.frameworks else "none"
            lines += ["", f"Frameworks with this rule: {agree}."]
            lines.append(f"Largest relative error of the check sequence: {self.error:.1e}.")
        return "\n".join(lines)

    def _headline(self) -> str:
        if not self.calls:
            return "No RMSprop explains it."
        if len(self.calls) == 1:
            return "This call reproduces it:"
        return f"{len(self.calls)} calls reproduce it, and the data do not tell them apart:"


def evaluate(call: str, learning_rates: Any = None) -> Any:
    """A call, with the public names of the package in reach."""
    package = importlib.import_module(__name__.partition(".")[0])  # which imports this module
    public = {name: value for name, value in vars(package).items() if not name.startswith("_")}
    names = {"optax": optax, "jax": jax, "jnp": jnp, "np": np, package.__name__: package}
    return eval(call, {**public, **names, "learning_rates": learning_rates})


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _remaining(values: list[Any] | None) -> str:
    if values is None:
        return ""
    if all(isinstance(value, float) for value in values) and len(values) == 2:
        low, high = values
        texts = ((f"{low:.{digits}g}", f"{high:.{digits}g}") for digits in range(3, 18))
        return " to ".join(next((pair for pair in texts if pair[0] != pair[1]), (repr(low),)))
    return ", ".join(_shown(value) for value in values)
