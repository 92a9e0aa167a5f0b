"""The truth table as data of the package, which names frameworks by it; see `tools.tables`."""

import inspect
import json
import pathlib
from typing import Any

from tools import site
from tools.truth import NAMES, ROWS, Row

FILE = pathlib.Path(__file__).parents[1] / "optax_rmsprop" / "probe" / "frameworks.json"

DENOMINATOR = {
    "inside": ["inside"],
    "outside": ["outside"],
    "max": ["floor"],
    "both": ["other"],
    "inside_minus": ["other"],
    "none": [],  # there is no epsilon: any of them with an epsilon of 0
}
EITHER = [False, True]
# What a framework lets its user choose, as the notes of the table say; None is any number.
OPTIONS: dict[str, dict[str, Any]] = {
    "LuaTorch optim": {"initial_scale": None},
    "Optax 0.2.8": {
        "denominator": ["inside", "outside"],
        "initial_scale": None,
        "nesterov": EITHER,
        "bias_correction": EITHER,
    },
    "timm 1.0.31 RMSpropTF": {"rate_in_buffer": EITHER, "caution": EITHER},
    "TorchOpt 0.7.3": {"initial_scale": None, "nesterov": EITHER},
    "Chainer 7.8.1 RMSprop": {"denominator": ["inside", "outside"]},
    "Caffe2": {"initial_scale": None},
    "DQN (Nature, 2015), Lua": {"maximize": EITHER},
    "MXNet 0.8": {"clip_value": None},
}


def settings(row: Row) -> list[str]:
    """The combinations of momentum and centring that a framework has, by their names."""
    momenta = [False] if site.buffer(row) == "none" else EITHER
    kinds = {"always": [True], "no": [False], "raises": [False]}
    centered = kinds.get(row.centered, EITHER)
    found = {(m, c) for m in momenta for c in centered}
    if site.buffer(row) == "if centered":
        found -= {(True, False)}
    if "ignored if μ = 0" in row.centered:
        found -= {(False, True)}
    names = {
        (bool(case["momentum"]), bool(case["centered"])): name
        for name, case in site.SETTINGS.items()
    }
    return [name for key, name in names.items() if key in found]


def clips(row: Row) -> bool:
    """Whether a framework clips the entries of a gradient."""
    arguments = inspect.signature(eval(site.factory(row), NAMES)).parameters
    keras = "clipvalue" in arguments and "keras" in row.framework.lower()
    return keras or "clip_value" in row.arguments


def number(row: Row) -> dict[str, Any]:
    """The numbers that a framework fixes."""
    start, eps = row.switch["v_init"], row.defaults[3]
    found: dict[str, Any] = {"initial_scale": ["eps"] if start == "ε" else [start]}
    if row.switch["eps_mode"] == "none":
        found["eps"] = [0.0]
    elif row.arguments and "eps" not in row.arguments:
        found["eps"] = [eps]
    return found


def data(row: Row) -> dict[str, Any]:
    """What a framework can do: denominators by setting, and of each switch the values."""
    switch, own = row.switch, OPTIONS.get(row.framework, {})
    mode = switch["eps_mode"]
    modes = {name: mode(site.SETTINGS[name]) if callable(mode) else mode for name in settings(row)}
    kinds = {"none": True, "l2": "L2" in row.decay, "decoupled": "decoupled" in row.decay}
    found = {
        "denominator": {
            name: own.get("denominator", DENOMINATOR[mode]) for name, mode in modes.items()
        },
        **number(row),
        "rate_in_buffer": [switch["lr_place"] != "outside"],
        "nesterov": [switch["nesterov"]],
        "bias_correction": [switch["bias_correction"] or switch["debias"] == "ema"],
        "weight_decay_kind": [kind for kind, present in kinds.items() if present],
        "clip_value": None if clips(row) else [],
        "clip_before_decay": ["after" not in row.clips],
        "caution": [switch["caution"]],
        "maximize": EITHER if "maximize" in row.arguments else [switch["maximize"]],
    }
    found |= {name: value for name, value in own.items() if name != "denominator"}
    free = {name for name, value in found.items() if value is None}
    return {"framework": row.framework} | {k: v for k, v in found.items() if k not in free}


def frameworks() -> str:
    """`frameworks.json`: a row a line."""
    rows = [json.dumps(data(row), ensure_ascii=False) for row in ROWS if row.call]
    return "[\n" + ",\n".join(rows) + "\n]\n"
