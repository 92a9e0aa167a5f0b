"""Times of what takes turns, and the rows that are made of them; without JAX, for PyTorch's too."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

SAMPLE = 0.02  # seconds that a measurement takes at least, a tenth if small

Call = Callable[[int], object]  # does as many steps as it is told, and waits for them


def timed(calls: dict[Any, Call], n: int, small: bool, before: int = 0) -> dict[Any, list[float]]:
    """Return n times the seconds of a step of each call.

    They take turns, so that a drift of the machine meets all alike; `before` steps of each turn
    are not timed, so that the threads of the last one are at rest.
    """
    counts, times = {}, {key: [] for key in calls}
    for key, call in calls.items():
        call(2)
        began = time.perf_counter()
        call(2)
        each = (time.perf_counter() - began) / 2
        counts[key] = min(1000, math.ceil((SAMPLE / 10 if small else SAMPLE) / each))
    for _ in range(n):
        for key, call in calls.items():
            if before:
                call(before)
            began = time.perf_counter()
            call(counts[key])
            times[key].append((time.perf_counter() - began) / counts[key])
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first quartile, the median, and the third."""
    return statistics.quantiles(values, n=4, method="inclusive")


def tell(
    say: Callable[[str, dict], None],
    where: dict[str, str],
    rows: dict[tuple[str, str], dict],
    calls: dict[tuple[Any, str], Call],
    copied: int,
    small: bool,
    inside: int = 1,
) -> None:
    """Time the calls, and say the rows of a model.

    Args:
      say: Takes a table's name and a row.
      where: What all rows have in common.
      rows: By setting and by whose it is, what is known without time, in bytes a parameter.
      calls: By the row and by the kind of time; those of ("copy", by) are the copies.
      copied: Bytes that a copy reads and writes.
      small: Whether this is a trial.
      inside: How many steps are one of a call of the kind "inside".
    """
    n = 3 if small else 20
    times = {key: quartiles(found) for key, found in timed(calls, n, small).items()}
    bandwidths = {
        by: [copied / seconds for seconds in reversed(found)]
        for (row, by), found in times.items()
        if row == "copy"
    }
    ceiling = max(middle for _, middle, _ in bandwidths.values())
    for by, found in bandwidths.items():
        speed = [each / 1e9 for each in found]
        say("copy", where | {"by": by, "n": n, "GB": copied / 1e9, "GB/s": speed})
    for key, row in rows.items():
        who = where | {"setting": key[0], "by": key[1], "n": n}
        found = {kind: [1e6 * s for s in each] for (k, kind), each in times.items() if k == key}
        floor = 1e6 * row["must move"] * row.pop("parameters") / ceiling
        loop = {"step, µs": found["loop"]}
        say("update", who | loop | row | {"fraction": floor / found["loop"][1]})
        if "waiting" in found:
            row = {"waited for, µs": found["waiting"], "in a loop, µs": found["loop"]}
            if "inside" in found:
                row["inside, µs"] = [each / inside for each in found["inside"]]
                row["fraction"] = floor / row["inside, µs"][1]
            say("dispatch", who | row)
