"""What a comparison found: where two runs part, and what closes the gap."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Change:
    """One way in which theirs differs from ours.

    Args:
        name: What differs: a switch of the rule ("eps", "denominator", "momentum", ...) or a part
            of the run ("gradient_factor", "swapped", "transposed", "schedule", "frozen", ...).
        text: The sentence for a reader.
        theirs: The value in theirs, None where there is none.
        ours: The value in ours.
        leaves: The leaves that it is about, by ours' paths; empty for all.
        step: The step from which it is seen, or None.
    """

    name: str
    text: str
    theirs: Any = None
    ours: Any = None
    leaves: tuple[str, ...] = ()
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Cause:
    """Changes that together close the gap, or a part of it.

    Args:
        changes: The changes.
        left: What is left of the gap, from 0 (rounding alone) to 1 (all of it).
    """

    changes: tuple[Change, ...]
    left: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the changes."""
        return tuple(change.name for change in self.changes)

    def __str__(self) -> str:
        left = "leaves rounding alone" if self.left == 0 else f"leaves {self.left:.1%} of the gap"
        return f"{'; and '.join(change.text for change in self.changes)} ({left})"


@dataclasses.dataclass(frozen=True)
class First:
    """The first number in which two runs differ by more than rounding.

    Args:
        step: The number of the step; the first is 0.
        leaf: The leaf's path in ours.
        index: The place in the leaf, in ours' layout.
        what: "initial parameter", "gradient" (of the step), or "parameter" (after the step).
        theirs: The number in theirs.
        ours: The number in ours.
        difference: Theirs minus ours.
        allowed: What rounding, and what it did to the run before, can account for.
    """

    step: int
    leaf: str
    index: tuple[int, ...]
    what: str
    theirs: float
    ours: float
    difference: float
    allowed: float

    def __str__(self) -> str:
        index = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        when = {"initial parameter": "before the first step", "gradient": f"at step {self.step}"}
        return (
            f"The runs part {when.get(self.what, f'after step {self.step}')}, in the {self.what} "
            f"{self.leaf!r}{index}:\n"
            f"  theirs {self.theirs!r}\n  ours   {self.ours!r}\n"
            f"  difference {self.difference:.3g}, rounding allows {self.allowed:.3g}"
        )


@dataclasses.dataclass(frozen=True)
class Difference:
    """What `runs` and `steps` return; `str` gives a page to paste into an issue.

    Args:
        first: Where the runs part, or None if they agree to rounding.
        causes: Sets of changes, best first: those that leave rounding alone, the smallest of them
            first, then those that leave a part of the gap.
        unexplained: What no set of changes explains, or an empty string.
        notes: What was done to compare the runs at all, and what could not be compared.
    """

    first: First | None
    causes: tuple[Cause, ...] = ()
    unexplained: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.first is None and not self.causes:
            lines = ["The runs agree to rounding."]
        else:
            lines = [str(self.first or "The parameters agree to rounding.")]
        if self.causes:
            lines += ["", "What closes the gap, best first:"]
            lines += [f"  {i}. {cause}" for i, cause in enumerate(self.causes, 1)]
        if self.unexplained:
            lines += ["", f"Unexplained: {self.unexplained}"]
        if self.notes:
            lines += ["", *(f"Note: {note}" for note in self.notes)]
        return "\n".join(lines)
