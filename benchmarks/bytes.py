"""What three models hold on a device, for each format of the optimizer's state.

    python -m benchmarks.bytes

writes `results/bytes.md` by what `python -m optax_rmsprop bytes` counts. No array is made.
"""

import argparse
from importlib import metadata
from pathlib import Path

from optax_rmsprop.cli import _bytes as counted
from optax_rmsprop.cli._models import MODELS
from tools import environment

RESULTS = Path(__file__).parent / "results"
MEMORY = (16, 24, 80)
SETTINGS = [(dtype, devices) for dtype in ("float32", "bfloat16") for devices in (1, 8)]
TITLES = [f"{dtype}, {n} device{'s' * (n > 1)}" for dtype, n in SETTINGS]


def table(model: str) -> list[str]:
    """Return a model's table, a line a row."""
    found = [
        counted.account(model, counted.params_of(model, dtype), {"devices": devices}, MEMORY)
        for dtype, devices in SETTINGS
    ]
    lines = [
        f"## {model}: {found[0].count:,} parameters",
        "",
        f"| optimizer | state, bytes a parameter | {' | '.join(TITLES)} |",
        f"|---|--:|{'--:|' * len(TITLES)}",
    ]
    for rows in zip(*(account.rows for account in found), strict=True):
        cells = " | ".join(map(_cell, rows))
        lines.append(f"| {rows[0].optimizer} | {rows[0].of_a_parameter:.3f} | {cells} |")
    return [*lines, ""]


def _cell(row: counted.Row) -> str:
    """The bytes, and the smallest memory that holds them."""
    holds = [memory for memory, left in zip(MEMORY, row.left, strict=True) if left >= 0]
    return f"{row.total / counted.GB:.3f} → {holds[0] if holds else 'none'}"


def main() -> None:
    """Count for every model, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "optax"))
    lines = [
        "# Where the bytes of training go",
        "",
        "    python -m benchmarks.bytes",
        "",
        "- counted from shapes with `jax.eval_shape`, on no device: there is no spread",
        f"- versions: {versions}",
        "- the devices split the first dimension of a parameter that their number divides",
        "- formats are the defaults of `stored_as`: embeddings and leaves of fewer than 4,096 "
        "elements stay in float32",
        "- moments are float32 where no format is named, whatever the parameters are",
        f"- not counted: {counted.LEFT_OUT}",
        "",
        "A cell has the GB (10⁹ bytes) of parameters, gradients and state on a device, and the "
        f"smallest memory of {', '.join(map(str, MEMORY))} GB that holds them. Parameters and "
        "gradients have the dtype that the column names.",
        "",
    ]
    for model in MODELS:
        lines += table(model)
        print("\n".join(lines[-len(counted.OPTIMIZERS) - 5 :]), flush=True)
    options.results.mkdir(exist_ok=True)
    environment.write_text(options.results / "bytes.md", "\n".join(lines))


if __name__ == "__main__":
    main()
