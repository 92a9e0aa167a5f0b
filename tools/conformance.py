"""Measure every dialect against its framework: `python -m tools.conformance` writes the table.

It needs the frameworks (`.ci/live.txt`); the recorded trajectories need none.
"""

import collections
import datetime
import functools
import inspect
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tools import recorded
from tools.environment import processor, write_text
from tools.frameworks import FRAMEWORKS, Framework, their_own_world

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "conformance.md"
STEPS, SIZE, RATE = 40, 29, 0.02
TABLE = RATE * 0.9 ** np.arange(STEPS)
PATHS = ("foreach",)  # arguments that choose a code path and no rule

HEAD = """# Conformance

`python -m tools.conformance` writes this page. Each error is the largest difference between the
parameters of this package and those of the framework, over all steps and coordinates. The
parameters are of size 1. Runs are in float64 unless marked float32. Hyperparameters that a
framework rounds to float32 are rounded here first. The tests allow an error of 1e-12, and in
float32 a few units in the last place for each step (derived in `tests/test_goldens.py`).
"""


def inputs(dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Gradients with a scale for each coordinate, a dead one, one that sleeps, and a tiny one."""
    rng = np.random.default_rng(7)
    grads = rng.normal(size=(STEPS, SIZE)) * np.exp(rng.normal(size=SIZE)) * 0.3
    grads[:, 0], grads[10:20, 1], grads[:, 2] = 0.0, 0.0, 1e-6 * rng.normal(size=STEPS)
    return rng.normal(size=SIZE).astype(dtype), grads.astype(dtype)


def rounded(value: float) -> float:
    """A number that has passed through float32."""
    return float(np.float32(value))


def options_of(
    framework: Framework, setting: str
) -> tuple[dict[str, Any], Any, dict[str, Any], Any]:
    """The options, the table of rates or None, and both as the framework rounds them."""
    options = dict(framework.settings[setting])
    rates = TABLE if options.pop("rates", False) else None
    options = {framework.rate: RATE, **options}
    ours_too = {k: v for k, v in options.items() if k not in PATHS}
    for name in framework.rounds & ours_too.keys():
        ours_too[name] = rounded(ours_too[name])
    table = rates
    if rates is not None:
        table = rates.astype(np.float32).astype(float) if "schedule" in framework.rounds else rates
        ours_too[framework.rate] = lambda count: jnp.asarray(table)[count]
        if ours_too.get("corrected_weight_decay"):
            ours_too["lr_max"] = RATE
    for name in framework.rounds & {"decay", "rho", "momentum", "epsilon"}:
        default = _default(framework.dialect, name)
        if name not in ours_too and default is not None:
            ours_too[name] = rounded(default)
    return options, rates, ours_too, table


def _default(dialect: Callable[..., Any], name: str) -> Any:
    parameter = inspect.signature(dialect).parameters.get(name)
    return None if parameter is None or parameter.default == 0 else parameter.default


@functools.cache
def error_of(framework: Framework, setting: str) -> float:
    """The largest difference of a parameter, over all steps, in float64."""
    with their_own_world():
        options, rates, ours_too, _ = options_of(framework, setting)
        params, grads = inputs()
        theirs = framework.run(options, params, grads, rates)
        mine, *_ = recorded.trajectory(framework.dialect(**ours_too), params, grads)
    return float(np.abs(mine - theirs).max())


def live_rows() -> list[str]:
    """A row for each framework: 40 steps of 29 coordinates in each setting."""
    rows: list[str] = []
    for framework in FRAMEWORKS:
        errors = {s: error_of(framework, s) for s in framework.settings}
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
        errors = {name: recorded.error(name).max() for name in kept}
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
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
