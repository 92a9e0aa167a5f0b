"""The rows of the truth table that a rule is named by, and the file that has them."""

import importlib.resources
import json
import subprocess
import sys

import pytest

from optax_rmsprop.probe._frameworks import rows
from tools import packaged
from tools.truth import REQUIRED, ROWS

CALLED = [row for row in ROWS if row.call]
PLACES = {"inside": "inside", "outside": "outside", "max": "floor", "both": "other",
          "inside_minus": "other", "none": "inside"}  # fmt: skip


def rule_of(row, **changes):
    """A row's rule with its own defaults, from the switches alone, in the terms of a report."""
    rate, decay, momentum, eps = row.defaults
    centered = row.centered == "always"
    momentum = momentum if row.centered != "option, with μ" else 0.0
    setting = {"centered": centered, "momentum": momentum or 0.0}
    switch = {k: v(setting) if callable(v) else v for k, v in row.switch.items()}
    eps = 0.0 if switch["eps_mode"] == "none" else 1e-8 if eps is None else eps
    rule = {
        "denominator": PLACES[switch["eps_mode"]],
        "eps": eps,
        "initial_scale": eps if switch["v_init"] == "ε" else switch["v_init"],
        "decay": 0.9 if decay is None else decay,
        "learning_rate": 0.1 if rate in (REQUIRED, None) else rate,
        "rate_in_buffer": switch["lr_place"] == "inside" if momentum else None,
        "momentum": momentum or 0.0,
        "nesterov": switch["nesterov"] if momentum else None,
        "centered": centered,
        "bias_correction": switch["bias_correction"] or switch["debias"] == "ema",
        "weight_decay": 0.0,
        "weight_decay_kind": "none",
        "clip_value": None,
        "clip_before_decay": None,
        "caution": False if momentum else None,
        "maximize": False,
        "precision": "float64",
    }
    return rule | changes


def named(framework, **changes):
    (row,) = (row for row in ROWS if row.framework == framework)
    return framework in rows(rule_of(row, **changes))


@pytest.mark.parametrize("row", CALLED, ids=lambda row: row.framework)
def test_a_rows_own_rule_names_it(row):
    assert row.framework in rows(rule_of(row))


@pytest.mark.parametrize("row", CALLED, ids=lambda row: row.framework)
def test_a_rule_that_no_framework_has_names_no_row(row):
    for changes in (
        {"denominator": "floor", "momentum": 0.5, "centered": True, "eps": 0.1},
        {"initial_scale": 0.37, "bias_correction": True, "denominator": "floor", "eps": 0.1},
        {"caution": True, "centered": True, "denominator": "floor", "eps": 0.1},
    ):
        assert row.framework not in rows(rule_of(row, **changes))


TORCH, TIMM, OPTAX = "PyTorch 2.13", "timm 1.0.31 RMSpropTF", "Optax 0.2.8"
KERAS, MXNET, MXNET2 = "Keras 3.15 (JAX, TensorFlow, PyTorch)", "MXNet 0.10-1.9", "MXNet 2.0"
LEGACY, OLD = "tf.keras 2.0-2.10, tf_keras 2.21 legacy", "Keras 2.3"
TORCHOPT, HEAVYBALL, DL4J = "TorchOpt 0.7.3", "HeavyBall 3.2.1", "DL4J, ND4J"
L2, DECOUPLED = ({"weight_decay": 0.1, "weight_decay_kind": kind} for kind in ("l2", "decoupled"))
BUFFER = {"momentum": 0.9, "rate_in_buffer": True, "nesterov": False, "caution": False}


@pytest.mark.parametrize(
    ["framework", "changes", "expected"],
    [
        (TORCH, {"learning_rate": 3.0, "decay": 0.2, "eps": 0.4}, True),
        (TORCH, {"denominator": "inside"}, False),
        (TORCH, {"denominator": "inside", "eps": 0.0}, True),
        (TORCH, {"initial_scale": 1.0}, False),
        (TORCH, {"centered": True}, True),
        (TORCH, {"maximize": True}, True),
        (TORCH, {"bias_correction": True}, False),
        (TORCH, BUFFER, False),
        (TORCH, BUFFER | {"rate_in_buffer": False}, True),
        (TORCH, BUFFER | {"rate_in_buffer": False, "nesterov": True}, False),
        (TORCH, BUFFER | {"rate_in_buffer": None}, True),
        (TORCH, L2, True),
        (TORCH, DECOUPLED, False),
        (TORCH, {"clip_value": 1.0}, False),
        (TIMM, BUFFER, True),
        (TIMM, BUFFER | {"rate_in_buffer": False, "caution": True}, True),
        (TIMM, BUFFER | {"nesterov": True}, False),
        (TIMM, L2, True),
        (TIMM, DECOUPLED, True),
        (TIMM, {"maximize": True}, False),
        (OPTAX, {"denominator": "outside", "initial_scale": 0.3}, True),
        (OPTAX, BUFFER | {"nesterov": True, "bias_correction": True}, True),
        (OPTAX, BUFFER | {"rate_in_buffer": False}, False),
        (OPTAX, {"denominator": "floor"}, False),
        (OPTAX, L2, False),
        (KERAS, DECOUPLED | {"clip_value": 0.5}, True),
        (KERAS, L2, False),
        (KERAS, {"denominator": "outside"}, False),
        (LEGACY, {"denominator": "inside"}, False),
        (LEGACY, BUFFER | {"denominator": "inside"}, True),
        (LEGACY, BUFFER, False),
        (LEGACY, {"clip_value": 0.5}, True),
        (LEGACY, {"centered": True}, True),
        (OLD, {"centered": True}, False),
        (OLD, BUFFER | {"centered": True, "denominator": "inside"}, True),
        (MXNET, BUFFER, False),
        (MXNET, BUFFER | {"centered": True}, True),
        (MXNET, {"centered": True}, True),
        (MXNET, L2 | {"clip_value": 1.0, "clip_before_decay": False}, True),
        (MXNET, L2 | {"clip_value": 1.0, "clip_before_decay": True}, False),
        (MXNET2, L2 | {"clip_value": 1.0, "clip_before_decay": True}, True),
        (MXNET2, {"centered": True, "denominator": "outside"}, False),
        (MXNET2, {"centered": True, "denominator": "inside"}, True),
        ("MXNet 0.8", {"eps": 1e-3}, False),
        ("MXNet 0.8", {"centered": False}, False),
        (TORCHOPT, {"initial_scale": 2.5}, True),
        (TORCHOPT, BUFFER | {"rate_in_buffer": False, "nesterov": True}, True),
        ("bitsandbytes 0.50.2, 32 bit", BUFFER | {"rate_in_buffer": False}, False),
        ("bitsandbytes 0.50.2, 32 bit", {"centered": True}, False),
        (HEAVYBALL, {"bias_correction": False}, False),
        (HEAVYBALL, {"denominator": "outside"}, False),
        (HEAVYBALL, DECOUPLED, True),
        (DL4J, {"eps": 0.03, "initial_scale": 0.03}, True),
        (DL4J, {"eps": 0.03, "initial_scale": 0.0}, False),
        ("Chainer 7.8.1 RMSprop", {"denominator": "inside"}, True),
        ("flax.optim 0.5.3", {"denominator": "inside"}, False),
        ("Optimisers.jl", {"denominator": "inside"}, False),
        ("Lasagne", {"denominator": "outside"}, False),
        ("Graves 2013", {"centered": False}, False),
        ("DQN (Nature, 2015), Lua", {"maximize": True}, True),
        ("TensorFlow.js 4.22", {"centered": True}, False),
        ("TensorFlow.js 4.22", {"centered": True, "denominator": "other"}, True),
        ("neon", {"denominator": "inside"}, False),
        ("Hinton, lecture 6e", {"eps": 1e-8}, False),
        ("Hinton, lecture 6e", BUFFER, False),
        ("Hinton, lecture 6e", BUFFER | {"nesterov": True}, True),
        ("Sonnet 2.0.2", {"initial_scale": 1.0}, False),
        ("TensorFlow 1 (2.21's compat.v1)", {"initial_scale": 0.0}, False),
        ("TensorFlow 1 (2.21's compat.v1)", L2, False),
    ],
)
def test_a_changed_switch_drops_a_row_that_lacks_it(framework, changes, expected):
    assert named(framework, **changes) == expected


def test_a_row_has_to_agree_with_one_of_the_values_that_remain():
    (torch,) = (row for row in ROWS if row.framework == TORCH)
    rule = rule_of(torch, denominator="inside", initial_scale=0.5, **BUFFER)
    assert TORCH not in rows(rule)
    left = {"denominator": ["inside", "outside"], "rate_in_buffer": [True, False]}
    assert TORCH not in rows(rule, left)
    assert TORCH not in rows(rule, left | {"initial_scale": [0.1, 0.7]})
    assert TORCH in rows(rule, left | {"initial_scale": [0.0, 0.7]})
    assert TORCH not in rows(rule, {"denominator": ["inside", "floor"], "initial_scale": [0.0]})


def test_momentum_and_centring_that_are_open_are_tried_together():
    (row,) = (row for row in ROWS if row.framework == LEGACY)
    rule = rule_of(row, **BUFFER, denominator="outside")
    assert LEGACY not in rows(rule)
    assert LEGACY in rows(rule, {"momentum": [0.0, 0.9]})


def test_rows_without_a_call_are_never_named():
    silent = {row.framework for row in ROWS if not row.call}
    assert silent and not silent & {name for row in CALLED for name in rows(rule_of(row))}


def test_the_rows_are_those_of_the_truth_table_in_its_order():
    anything = dict.fromkeys(rule_of(CALLED[0]))
    left = {"centered": [False, True], "momentum": [0.0, 0.9], "eps": [0.0, 1.0]}
    assert rows(anything, left) == [row.framework for row in CALLED]


def test_the_packaged_table_is_up_to_date_and_is_read_when_it_is_needed():
    text = importlib.resources.files("optax_rmsprop.probe").joinpath("frameworks.json")
    assert text.read_text("utf-8") == packaged.frameworks(), "python -m tools.tables"
    assert len(json.loads(packaged.frameworks())) == len(CALLED)
    program = (
        "from optax_rmsprop.probe import _frameworks as f; assert not f._table.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_options_are_of_rows_whose_notes_speak_of_them():
    frameworks = {row.framework for row in CALLED}
    assert packaged.OPTIONS.keys() <= frameworks
    noted = {row.framework for row in CALLED if row.note.startswith("option")}
    assert noted <= packaged.OPTIONS.keys() | {"Chainer 7.8.1 RMSprop"}
