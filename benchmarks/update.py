"""What an update costs on a CPU, beside Optax's, PyTorch's and Keras's.

    python -m benchmarks.update

writes `results/update.md`, and `results/update.json` with every measured number: the time and
memory of a step.
"""

import argparse
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import optax

import optax_rmsprop
from benchmarks.contestants import (
    COPIED,
    CORES,
    Contestant,
    of_copy,
    of_keras,
    of_optax,
    of_torch,
)
from benchmarks.gpu import models
from benchmarks.gpu.part import shown, table
from benchmarks.gpu.turns import quartiles, timed
from benchmarks.overhead import leaves_of
from optax_rmsprop import dialects, storage
from tools import environment

NUMBERS = {"learning_rate": 1e-3, "decay": 0.99}
MOMENTUM = {"momentum": 0.9}
SETTINGS = {
    "plain": {},
    "momentum": MOMENTUM,
    "Nesterov": MOMENTUM | {"nesterov": True},
    "centred": {"centered": True},
    "centred, momentum": MOMENTUM | {"centered": True},
}
STORED = {
    "uint16": (storage.uint16(),),
    "uint8": (storage.uint8(),),
    "uint16, int16, momentum": (storage.uint16(), storage.int16()),
    "uint8, int8, momentum": (storage.uint8(), storage.int8()),
}
TORCH = {"lr": 1e-3, "alpha": 0.99, "weight_decay": 1e-4} | MOMENTUM
KERAS = {"learning_rate": 1e-3, "rho": 0.9, "epsilon": 1e-7} | MOMENTUM
CAPTIONS = {
    "step": """\
A step is `params, state = step(params, state, grads)`, jitted, in float32, with params and state
donated; the leaves are the model's. PyTorch's is `optimizer.step()`, with the same gradients at all
steps; Keras's is `stateless_apply`. Bytes a parameter: the temporary memory of the compiled
program, and what XLA says the program accesses. Formats of the state stand beside Optax's RMSprop
in float32. The fraction is that of the bandwidth of a copy, in turns with the row, at which what
must move has moved: parameters and state read and written, gradients read. The medians after
PyTorch's fastest way are those of its others.""",
    "other models": "The same steps, for other models and in bfloat16.",
    "small leaves": "The same steps, for leaves of 1,024 elements each.",
}
METHOD = """\
All that is compared in a row took turns in one run, after several steps without a clock. A
measurement is one step, or as many as take 20 ms (2 ms with `--quick`), each waited for, after
another one without a clock. Cells hold the median and, in parentheses, the quartiles of n
measurements; a ratio is that of the medians, ours to the other's."""


class Page:
    """Both files, written anew after every row: a run that is killed leaves its rows."""

    def __init__(self, options: argparse.Namespace):
        """Take the command line."""
        flags = ["--repeats", str(options.repeats), *(["--quick"] if options.quick else [])]
        self.out, self.command = options.out, environment.command("benchmarks.update", flags)
        self.facts = environment.facts() | {
            "frameworks": f"Python {platform.python_version()}, PyTorch {version('torch')}, "
            f"Keras {version('keras')}",
            "threads of XLA": CORES,
            "load average at the start": f"{os.getloadavg()[0]:.1f}",
            "date": time.strftime("%Y-%m-%d"),
            "unfinished": "rows that are missing were not reached",
        }
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in CAPTIONS}
        self.notes: list[str] = []

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Add a row, whose keys are headings; print it, and write the files."""
        self.tables[name].append(row)
        print("; ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
        self.write()

    def write(self) -> None:
        """Write both files."""
        lines = ["# What an update costs on a CPU", "", self.command, ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", METHOD]
        for name, rows in self.tables.items():
            lines += ["", CAPTIONS[name], "", *table(rows)] if rows else []
        lines += ["", *self.notes] if self.notes else []
        whole = {"command": self.command.strip()} | self.facts | {"tables": self.tables}
        self.out.mkdir(parents=True, exist_ok=True)
        environment.write_text(self.out / "update.json", json.dumps(whole, indent=1) + "\n")
        environment.write_text(self.out / "update.md", "\n".join(lines) + "\n")


def version(package: str) -> str:
    """Return the installed version of a package, or words."""
    return metadata.version(package) if util.find_spec(package) else "not installed"


def compared(
    ours: Contestant, others: Sequence[Contestant], repeats: int, quick: bool
) -> dict[str, Any]:
    """Return the cells of a row: our step beside the fastest of the others'."""
    contestants = {each.name: each for each in (*others, ours, of_copy())}
    times = timed({name: each.call for name, each in contestants.items()}, repeats, quick, before=1)
    found = {name: quartiles([1e3 * s for s in seconds]) for name, seconds in times.items()}
    mine, copy = found.pop(ours.name), found.pop("copy")
    fastest, *slower = sorted(found, key=lambda name: found[name][1])
    also = "".join(f"; {name}: {shown(found[name][1])} ms" for name in slower)
    best = contestants[fastest]
    ratio = mine[1] / found[fastest][1]
    fraction = (ours.least or 0) / mine[1] / (2 * COPIED / copy[1])
    return {
        "beside": fastest + also, "its step, ms": found[fastest], "our step, ms": mine,
        "ratio": ratio, "n": repeats, "fraction of a copy's bandwidth": fraction,
        "temporary, its": best.temporary, "temporary, ours": ours.temporary,
        "accessed, its": best.accessed, "accessed, ours": ours.accessed,
    }  # fmt: skip


def beside_optax(
    shapes: models.Shapes, setting: str, repeats: int, quick: bool, dtype: str = "float32"
) -> dict[str, Any]:
    """Return the cells of `rmsprop` in a setting or a format."""
    numbers = NUMBERS | SETTINGS.get(setting, MOMENTUM if "momentum" in setting else {})
    ours, theirs = optax_rmsprop.rmsprop(**numbers), optax.rmsprop(**numbers)
    if setting in STORED:
        ours = storage.stored_as(ours, *STORED[setting])
    others = [of_optax("Optax", theirs, shapes, dtype)]
    return compared(of_optax("ours", ours, shapes, dtype), others, repeats, quick)


def frameworks(shapes: models.Shapes, page: Page, repeats: int, quick: bool) -> None:
    """Add the rows of dialects, beside Optax's links in the same order and the framework."""
    in_torch_order = optax.chain(
        optax.add_decayed_weights(TORCH["weight_decay"]),
        optax.scale_by_rms(TORCH["alpha"], eps_in_sqrt=False),
        optax.trace(TORCH["momentum"]),
        optax.scale_by_learning_rate(TORCH["lr"]),
    )
    in_keras_order = optax.rmsprop(
        KERAS["learning_rate"], KERAS["rho"], KERAS["epsilon"], momentum=KERAS["momentum"]
    )
    rows = {
        "dialects.torch, weight decay, momentum": (dialects.torch(**TORCH), in_torch_order),
        "dialects.keras, momentum": (dialects.keras(**KERAS), in_keras_order),
    }
    theirs: dict[str, Callable[[], list[Contestant]]] = {
        "torch": lambda: of_torch(shapes, compiled=not quick, **TORCH),
        "keras": lambda: of_keras(shapes, **KERAS),
    }
    for (setting, (ours, same)), (package, make) in zip(rows.items(), theirs.items(), strict=True):
        others = [[of_optax("Optax's links", same, shapes)]]
        if util.find_spec(package):
            others.append(make())
        else:
            page.notes.append(f"The row beside `{package}` is left out: it is not installed.")
        for other in others:
            mine = of_optax("ours", ours, shapes)
            page.add("step", {"setting": setting} | compared(mine, other, repeats, quick))


def transformers(layers: int, *sizes: int) -> dict[str, models.Shapes]:
    """Return GPT-2 with a leaf for each array of a layer, and with one for each of all layers."""
    apart = models.transformer(layers, *sizes)
    stacked: models.Shapes = {}
    for name, shape in apart.items():
        layer, _, rest = name.partition(".")
        is_layer = layer.startswith("layer")
        stacked[rest if is_layer else name] = (layers, *shape) if is_layer else shape
    kind = f"a transformer of {layers} layers"
    return {f"{kind}, apart": apart, f"{kind}, stacked": stacked}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="2 or more")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds, of small models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    # Before anything is compiled: JAX asks only once.
    jax.config.update("jax_enable_compilation_cache", False)
    how, page = (options.repeats, options.quick), Page(options)
    model, name = models.resnet50(), "ResNet-50"
    small = (400, 1_000)
    others = {"one leaf of 25 million": {"kernel": (5_000, 5_000)}, **transformers(12)}
    if options.quick:
        model, name = models.resnet50(stages=(), classes=10), "the first and last layer of a ResNet"
        small = (4, 10)
        others = {"one leaf": {"kernel": (256, 512)}, **transformers(1, 64, 256, 64)}
    millions = sum(map(math.prod, model.values())) / 1e6
    page.facts["model"] = f"{name}: {len(model)} leaves, {millions:.3g} million parameters"
    for setting in [*SETTINGS, *STORED]:
        page.add("step", {"setting": setting} | beside_optax(model, setting, *how))
    frameworks(model, page, *how)
    for (kind, shapes), dtype in itertools.product(others.items(), models.DTYPES):
        for setting in ("plain", "momentum", *STORED):
            row = {"model": kind, "dtype": dtype, "setting": setting}
            page.add("other models", row | beside_optax(shapes, setting, *how, dtype))
    for count in small:
        for setting in ("plain", "momentum"):
            row = {"setting": setting, "leaves": count}
            cells = beside_optax(leaves_of(count, 1024), setting, *how)
            page.add("small leaves", row | cells)
    del page.facts["unfinished"]
    page.write()


if __name__ == "__main__":
    main()
