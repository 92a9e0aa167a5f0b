"""The truth table as data for the site's scripts; `python -m tools.tables` writes the file."""

import ast
import inspect
import json
from typing import Any

from tools.truth import NAMES, ROWS, Row

NUMBERS = ("lr", "decay", "momentum", "eps", "weight_decay")
# What `optax_rmsprop.rmsprop` calls the numbers, for a row that names no arguments.
PLAIN = {"lr": "learning_rate", "decay": "decay", "eps": "eps"}
# A switch may depend on these two.
SETTINGS = {
    "plain": {"momentum": 0.0, "centered": False},
    "momentum": {"momentum": 0.9, "centered": False},
    "centered": {"momentum": 0.0, "centered": True},
    "both": {"momentum": 0.9, "centered": True},
}
RATE = 0.01  # where the framework has none of its own
MARK = 0.1234567


def arguments(row: Row) -> tuple[dict[str, str], dict[str, Any]]:
    """What a row's call gives, as it is written, and the values of all arguments that it knows."""
    (statement,) = ast.parse(row.call).body
    call = statement.value if isinstance(statement, ast.Expr) else None
    assert isinstance(call, ast.Call), row.call
    parameters = inspect.signature(eval(factory(row), NAMES)).parameters
    places = dict(zip(parameters, map(ast.unparse, call.args), strict=False))
    written = places | {str(word.arg): ast.unparse(word.value) for word in call.keywords}
    values = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    for name, text in written.items():
        if "lambda" not in text:
            values[name] = RATE if text == "learning_rate" else ast.literal_eval(text)
    return written, values


def factory(row: Row) -> str:
    """The function that a row calls."""
    return row.call.partition("(")[0]


def buffer(row: Row) -> str:
    """Whether there is a momentum buffer: "yes", "none", or "if centered"."""
    rate, _, momentum, _ = row.defaults
    if row.switch["lr_place"] == "none" or (momentum is None and rate is not None):
        return "none"
    return "if centered" if row.centered == "option, with μ" else "yes"


def templates(row: Row) -> dict[str, tuple[str, str]]:
    """The argument for each number, and what is written for it: "{}", or "(0.9, {})"."""
    found: dict[str, tuple[str, str]] = {}
    for number in NUMBERS:
        target = (row.arguments or PLAIN).get(number)
        if isinstance(target, tuple):
            found[number] = (target[0], repr(target[1](MARK)).replace(str(MARK), "{}"))
        elif target and not (number == "momentum" and buffer(row) == "none"):
            found[number] = (target, "{}")
    return found


def number(row: Row, name: str, values: dict[str, Any]) -> float:
    """A number of the row's call."""
    argument, template = templates(row)[name]
    return (
        float(values[argument] or 0.0)
        if template == "{}"
        else float(row.defaults[NUMBERS.index(name)])
    )


def rule(row: Row, values: dict[str, Any]) -> dict[str, Any]:
    """The switches, where one depends on momentum and centring a value for each case."""
    found = dict(row.switch)
    if callable(found["eps_mode"]):
        found["eps_mode"] = {name: found["eps_mode"](case) for name, case in SETTINGS.items()}
    found["centered"] = bool(values.get("centered", row.centered == "always"))
    if found["weight_decay_kind"] == "none" and "weight_decay" in templates(row):
        found["weight_decay_kind"] = "coupled_l2"
    del found["momentum"]
    return found


def data(row: Row) -> dict[str, Any]:
    """A row as the scripts read it; without a rule where no single function has it."""
    shown = {"framework": row.framework, "known": row.known, "call": row.call, "note": row.note}
    if factory(row) in ("", "optax.chain"):
        return shown
    written, values = arguments(row)
    return shown | {
        "factory": factory(row),
        "written": written,
        "arguments": templates(row),
        "numbers": {name: number(row, name, values) for name in templates(row)},
        "rule": rule(row, values),
        "centering": "centered" in row.arguments and row.centered.startswith("option"),
        "buffer": buffer(row),
        "first_count": row.first_count,
    }


def script() -> str:
    """`docs/_static/truth.js`: a row a line."""
    rows = ",\n".join(json.dumps(data(row), ensure_ascii=False) for row in ROWS)
    head = "// Written by `python -m tools.tables` from tools/truth.py."
    return f"{head}\nconst TRUTH = [\n{rows}\n];\n"
