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
# What a rule calls the arguments of a chain's links.
LINKS = {
    "scale_by_rms": ("decay", "eps"),
    "scale_by_stddev": ("decay", "eps"),
    "add_decayed_weights": ("weight_decay",),
    "scale_by_learning_rate": ("lr",),
    "trace": ("momentum",),
}
CHAIN = "optax_rmsprop.chain"
RATE = 0.01  # where the framework has none of its own
MARK = 0.1234567


def call_of(row: Row) -> ast.Call:
    """A row's call, parsed."""
    (statement,) = ast.parse(row.call).body
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call), row.call
    return statement.value


def literal(text: str) -> Any:
    """The value that a call gives, with a rate for the user's."""
    return RATE if text == "learning_rate" else ast.literal_eval(text)


def arguments(row: Row) -> tuple[dict[str, str], dict[str, Any]]:
    """What a row's call gives, as it is written, and the values of all arguments that it knows."""
    call = call_of(row)
    parameters = inspect.signature(eval(factory(row), NAMES)).parameters
    places = dict(zip(parameters, map(ast.unparse, call.args), strict=False))
    written = places | {str(word.arg): ast.unparse(word.value) for word in call.keywords}
    values = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    values |= {name: literal(text) for name, text in written.items() if "lambda" not in text}
    return written, values


def numbers_of_chain(row: Row) -> dict[str, float]:
    """The numbers of a row whose call is a chain of links; 0 where it has no such link."""
    found = dict.fromkeys(NUMBERS, 0.0)
    for link in call_of(row).args:
        assert isinstance(link, ast.Call) and isinstance(link.func, ast.Attribute), row.call
        texts = map(ast.unparse, link.args)
        found |= zip(LINKS[link.func.attr], map(literal, texts), strict=True)
    return found


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
    """A row as the scripts read it; without a rule where no call has it."""
    shown = {"framework": row.framework, "known": row.known, "call": row.call, "note": row.note}
    if not row.call:
        return shown
    if factory(row) == CHAIN:
        written, own = {}, numbers_of_chain(row)
        fixed = {name: own[name] for name in NUMBERS if name not in templates(row)}
        switches = rule(row, {}) | fixed
    else:
        written, values = arguments(row)
        own = {name: number(row, name, values) for name in templates(row)}
        switches = rule(row, values)
    return shown | {
        "factory": factory(row),
        "written": written,
        "arguments": templates(row),
        "numbers": {name: own[name] for name in templates(row)},
        "rule": switches,
        "centering": "centered" in row.arguments and row.centered.startswith("option"),
        "buffer": buffer(row),
        "first_count": row.first_count,
    }


def script() -> str:
    """`docs/_static/truth.js`: a row a line."""
    rows = ",\n".join(json.dumps(data(row), ensure_ascii=False) for row in ROWS)
    head = "// Written by `python -m tools.tables` from tools/truth.py."
    return f"{head}\nconst TRUTH = [\n{rows}\n];\n"
