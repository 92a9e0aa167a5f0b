"""Measure every dialect against its framework: `python -m docs.conformance` writes the table.

It needs the frameworks (`.ci/live.txt`); the recorded trajectories need none.
"""

import collections
import datetime
import pathlib
import platform
import sys

import jax
import numpy as np
import optax

from tests import test_goldens as recorded
from tests.live import test_conformance as live
from tests.live.frameworks import FRAMEWORKS

PAGE = pathlib.Path(__file__).parent / "conformance.md"

HEAD = """# Conformance

Written by `python -m docs.conformance`. The errors are the largest differences of a parameter, of
size 1, over all steps and coordinates, in float64 but where it says float32. Hyperparameters that a
framework rounds to float32 are rounded first. The tests hold them to 1e-12, or, in float32, to a
bound of a few ulp a step that is derived in `tests/test_goldens.py`.
"""


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return text.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    except OSError:
        return platform.processor() or platform.machine()


def live_rows() -> list[str]:
    """A row for each framework: 40 steps of 29 coordinates in each setting."""
    rows: list[str] = []
    for framework in FRAMEWORKS:
        errors = {s: live.error_of(framework, s) for s in framework.settings}
        worst = max(errors, key=errors.__getitem__)
        rows.append(
            f"| {framework.name} | {framework.version()} | {len(errors)} | {errors[worst]:.1e} | "
            f"{worst} |"
        )
        print(rows[-1])
    return rows


def recorded_rows() -> list[str]:
    """A row for each framework: 20 steps of 37 coordinates in each run."""
    runs: dict[str, list[str]] = collections.defaultdict(list)
    for name in recorded.NAMES:
        runs[name.partition("/")[0]].append(name)
    rows: list[str] = []
    for framework, names in runs.items():
        kept = [name for name in names if name not in recorded.EXCEPTIONS]
        errors = {name: recorded.measure(name)[0] for name in kept}
        worst = max(errors, key=errors.__getitem__)
        configs = recorded.RECORDS["configs"]
        width = " (float32)" if configs[worst]["dtype"] == "float32" else ""
        left = ", ".join(name.partition("/")[2] for name in names if name not in kept)
        rows.append(
            f"| {framework} | {configs[names[0]]['version']} | {len(kept)} of {len(names)} | "
            f"{errors[worst]:.1e}{width} | {worst.partition('/')[2]} | {left or 'none'} |"
        )
        print(rows[-1])
    return rows


def page() -> str:
    """`docs/conformance.md`."""
    machine = (
        f"{datetime.date.today()}, {processor()}, Python {sys.version.split()[0]}, jax "
        f"{jax.__version__}, optax {optax.__version__}, NumPy {np.__version__}."
    )
    parts = {
        **recorded.EXCEPTIONS,
        **{f"{k}, after the first step": v for k, v in recorded.FIRST_STEP_ONLY.items()},
        **{f"{k}, the first step": v for k, v in recorded.NOT_THE_FIRST_STEP.items()},
        "keras_torch/clipnorm, keras_torch/gclip": "within float32's bound, since that backend "
        "rounds the norm or the factor to float32 at every step",
        "tfjs/cent_eps, tfjs/cent_mom, the columns that are NaN": "a defect; here they are finite",
    }
    return "\n".join(
        [
            HEAD,
            f"{machine}\n",
            "## The frameworks themselves\n",
            "| framework | version | settings | largest error | in |",
            "|---|---|---|---|---|",
            *live_rows(),
            "\n## Recorded trajectories\n",
            "| framework | version | runs | largest error | in | without |",
            "|---|---|---|---|---|---|",
            *recorded_rows(),
            "\nWhat is not compared, and why:\n",
            *(f"- {name}: {reason}." for name, reason in parts.items()),
            "",
        ]
    )


def main() -> None:
    """Measure and write."""
    new = PAGE.with_suffix(".new")
    new.write_text(page(), encoding="utf-8")
    new.replace(PAGE)


if __name__ == "__main__":
    main()
