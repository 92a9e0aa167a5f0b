"""The probe names what it is given: every dialect, every switch, as a box and as a log."""

import dataclasses
import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_rmsprop import dialects, probe, rmsprop
from optax_rmsprop.probe import _conclude as conclude
from optax_rmsprop.probe import _design as design
from optax_rmsprop.probe import _search as search
from tools import boxes
from tools.boxes import box, continued, draw, evaluate, inputs, played, rule, wrong

SWITCHES = {
    "denominator", "eps", "initial_scale", "decay", "learning_rate", "rate_in_buffer", "momentum",
    "nesterov", "centered", "bias_correction", "weight_decay", "weight_decay_kind", "clip_value",
    "clip_before_decay", "caution", "maximize", "precision",
}  # fmt: skip
NUMBERS = {"float64": 1e-6, "float32": 1e-3}  # how near a number must be to the truth
CONTINUED = {"float64": 1e-6, "float32": 1e-2}  # what errors of the numbers make of a longer run
# `Report.error` is of coordinates that move by 64 units in the last place or more. Rounding of what
# was before a step and of what is after it makes 2 of them.
CHECKED = {"float64": 1e-6, "float32": 2 / 64}

# What the short lane tries of the wide sweep.
SHORT_LOGS = {("torch", "float64", 0), ("keras", "float64", 1), ("tensorflow1", "float32", 0)}
SHORT_LOGS |= {("mindspore", "float32", 0), ("rmsprop", "float32", 0), ("rmsprop", "float64", 1)}
SHORT_LOGS |= {("tensorflow1", "float64", 1), ("torchopt", "float64", 0)}  # decays near 1
SHORT_LOGS |= {("torchopt", "float64", 1)}  # which a bound at the largest gradient fits, too
SHORT_BOXES = {("rmsprop", "float64", 0), ("stable_baselines3", "float64", 0)}
SHORT_BOXES |= {("timm", "float32", 0), ("mxnet2", "float64", 0), ("pfrl", "float64", 1)}


def sweep(short, dtypes=("float64", "float32"), seeds=2):
    values = [
        pytest.param(
            name, dtype, seed, marks=() if (name, dtype, seed) in short else [pytest.mark.proof]
        )
        for name in boxes.names()
        for dtype in dtypes
        for seed in range(seeds)
    ]
    return pytest.mark.parametrize("name, dtype, seed", values)


def log_of(truth, p, grads, dtype="float64", rates=None):
    return played(box(truth, dtype, rates), p.astype(dtype), grads.astype(dtype))


def random_rule(name, seed, dtype="float64"):
    rng = np.random.default_rng([seed, *name.encode()])
    p, grads = inputs(rng)
    p, grads = p.astype(dtype).astype(float), grads.astype(dtype).astype(float)
    return draw(name, rng, grads), p, grads, rng


def agree(report):
    """Whether what is open may be absent where the rule does not have it."""
    return all(
        report.rule[name] is not None or None in values
        for name, values in report.undetermined.items()
    )


def check(report, truth, p, grads, dtype="float64", rates=None):
    """The switches are the truth or open, and a call goes on as the rule does.

    A rate that changes is no number: the report has none.
    """
    assert report.calls, report
    assert set(report.rule) == SWITCHES
    assert agree(report), report
    varied = {"learning_rate": None} if rates is not None and np.ptp(rates) else {}
    assert not wrong(report, truth.switches | varied, NUMBERS[dtype]), (truth, str(report))
    if "weight_decay" in report.undetermined and report.rule["weight_decay_kind"] == "none":
        none = truth.switches | {"weight_decay": 0.0, "weight_decay_kind": "none"}
        truth = dataclasses.replace(truth, switches=none)
    expected = played(box(truth, rates=rates), p, grads)
    size = np.abs(np.diff(expected, axis=0)).max()
    given = report.learning_rates
    errors = [
        np.abs(continued(evaluate(call, given), p, grads) - expected).max() / size
        for call in report.calls
    ]
    assert min(errors) <= CONTINUED[dtype], (errors, truth, str(report))


def longer(grads, rng):
    return np.concatenate([grads, rng.permuted(grads, axis=0)])


@pytest.mark.parametrize(
    "seed", [0, *[pytest.param(s, marks=pytest.mark.proof) for s in (1, 2, 3)]]
)
@pytest.mark.parametrize("name", boxes.names())
def test_the_boxes_are_the_dialects(name, seed):
    truth, p, grads, _ = random_rule(name, seed)
    expected = played(box(truth), p, grads[:6])
    found = continued(truth.transformation(), p, grads[:6])
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-8 * np.abs(np.diff(expected, axis=0)).max()
    )


@sweep(SHORT_LOGS)
def test_a_log_is_named(name, dtype, seed):
    truth, p, grads, rng = random_rule(name, seed, dtype)
    report = probe.identify_log(log_of(truth, p, grads, dtype), grads.astype(dtype))
    check(report, truth, p, longer(grads, rng), dtype)
    assert report.rule["precision"] == dtype
    assert report.error < CHECKED[dtype]


@sweep(SHORT_BOXES)
def test_a_box_is_named(name, dtype, seed):
    truth, p, grads, rng = random_rule(name, seed)
    report = probe.identify(box(truth, dtype))
    check(report, truth, p, longer(grads, rng), dtype)
    assert report.rule["precision"] == dtype


@sweep({("torchopt", "float64", 0)}, dtypes=["float64"], seeds=1)
def test_a_transformation_is_named(name, dtype, seed):
    truth, p, grads, rng = random_rule(name, seed)
    before = jax.config.jax_enable_x64
    report = probe.identify(truth.transformation())
    check(report, truth, p, longer(grads, rng), dtype)
    assert jax.config.jax_enable_x64 == before


@pytest.mark.parametrize("name", ["optax.rmsprop", "rmsprop"])
def test_the_first_step_of_a_centred_and_corrected_log_tells_whose_it_is(name):
    p, grads = inputs(np.random.default_rng(3))
    call = f"{name}(learning_rate=0.01, decay=0.9, eps=0.0001, centered=True, bias_correction=True)"
    log = continued(evaluate(call), p, grads)
    assert probe.identify_log(log, grads).calls == [call]


def test_a_first_step_that_rounding_decides_hides_no_rule():
    p, grads = (x.astype(np.float32) for x in inputs(np.random.default_rng(5)))
    call = (
        "optax.rmsprop(learning_rate=0.01, decay=0.9, eps=0.001, momentum=0.9, centered=True, "
        "bias_correction=True, eps_in_sqrt=False)"
    )
    log = continued(evaluate(call), p, grads)
    assert probe.identify_log(log, grads).calls[0] == call


BASE = {
    "denominator": "outside", "eps": 0.1, "initial_scale": 0.0, "decay": 0.95,
    "learning_rate": 0.01, "momentum": 0.8, "weight_decay": 0.05, "weight_decay_kind": "l2",
    "clip_value": 0.75, "clip_before_decay": True,
}  # fmt: skip
CHANGES = {
    "denominator": ["inside", "floor"], "eps": [0.2], "initial_scale": [1.0, 0.3],
    "decay": [0.9501], "learning_rate": [0.011], "momentum": [0.0, 0.81], "nesterov": [True],
    "centered": [True], "bias_correction": [True], "weight_decay": [0.051],
    "weight_decay_kind": ["none", "decoupled"], "clip_value": [None, 0.8],
    "clip_before_decay": [False], "caution": [True], "maximize": [True],
}  # fmt: skip
EVERY_CHANGE = [(name, value) for name, values in CHANGES.items() for value in values]


@pytest.mark.proof
@pytest.mark.parametrize("way", ["log", "box"])
@pytest.mark.parametrize("switch, value", EVERY_CHANGE, ids=str)
def test_one_changed_switch_is_named(switch, value, way):
    changed = BASE | {switch: value}
    if changed["weight_decay_kind"] == "none":
        changed["weight_decay"] = 0.0
    truth = rule(**changed)
    rng = np.random.default_rng(3)
    p, grads = rng.normal(size=30), rng.normal(size=(25, 30))
    if way == "box":
        report = probe.identify(box(truth))
    else:
        report = probe.identify_log(log_of(truth, p, grads), grads)
    check(report, truth, p, longer(grads, rng))
    assert wrong(report, rule(**BASE).switches, 1e-6).keys() >= {switch}


EXTREMES = {
    "momentum .999": {"momentum": 0.999},
    "decay .9999": {"decay": 0.9999},
    "eps 1e-16": {"eps": 1e-16},
    "eps 1e-16 outside": {"eps": 1e-16, "denominator": "outside"},
    "eps 1": {"eps": 1.0},
    "eps 1 outside": {"eps": 1.0, "denominator": "outside"},
    "all": {"momentum": 0.999, "decay": 0.9999, "eps": 1.0, "centered": True},
    "decay 0.01": {"decay": 0.01},
}


@pytest.mark.proof
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("way", ["log", "box"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_numbers(name, way, dtype):
    truth = rule(**EXTREMES[name])
    rng = np.random.default_rng(4)
    p, grads = rng.normal(size=30), rng.normal(size=(25, 30)).astype(dtype).astype(float)
    if way == "box":
        report = probe.identify(box(truth, dtype))
    else:
        report = probe.identify_log(log_of(truth, p, grads, dtype), grads.astype(dtype))
    check(report, truth, p, longer(grads, rng), dtype)


def in_optax(tx, dtype="float64", steps=25):
    p, grads = inputs(np.random.default_rng(5), steps)
    return continued(tx, p.astype(dtype), grads), grads.astype(dtype)


OTHERS = {
    "SGD": optax.sgd(0.1),
    "SGD with momentum": optax.sgd(0.1, 0.9),
    "Adam": optax.adam(1e-3),
    "AdamW": optax.adamw(1e-3, weight_decay=0.1),
    "Adagrad": optax.adagrad(0.1),
    "Adagrad with momentum": optax.sm3(0.1),  # of a vector
    "Lion": optax.lion(1e-3),
    "sign": rmsprop(0.01, decay=0.0, eps=0.0),
    "SGD by epsilon": rmsprop(0.01, eps=1e18),
}


@pytest.mark.parametrize(
    "name", [n if n == "SGD" else pytest.param(n, marks=pytest.mark.proof) for n in OTHERS]
)
@pytest.mark.parametrize("way", ["log", pytest.param("box", marks=pytest.mark.proof)])
def test_what_is_no_rmsprop_has_no_call_and_is_named(name, way):
    report = (
        probe.identify(OTHERS[name])
        if way == "box"
        else probe.identify_log(*in_optax(OTHERS[name]))
    )
    assert not report.calls and report.transformation is None
    assert set(report.rule) == SWITCHES
    assert name.split()[0].lower() in report.contradictions[0].lower(), report
    assert report.contradictions[0] in str(report)


@pytest.mark.proof
@pytest.mark.parametrize("way", ["log", "box"])
def test_adam_without_its_first_moment_is_a_corrected_rmsprop(way):
    tx = optax.adam(1e-3, b1=0.0, b2=0.99, eps=1e-5)
    report = probe.identify(tx) if way == "box" else probe.identify_log(*in_optax(tx))
    truth = rule(
        denominator="outside", eps=1e-5, decay=0.99, learning_rate=1e-3, bias_correction=True
    )
    check(report, truth, *inputs(np.random.default_rng(6)))


RATES = 0.01 / (1 + 0.1 * np.arange(60))
SCHEDULES = {
    "array": RATES,
    "schedule": dialects.InverseTime(0.01, 0.1),
    "list": list(RATES),
    "number": 0.01,
}


@pytest.mark.parametrize(
    "given", ["array", *(pytest.param(n, marks=pytest.mark.proof) for n in list(SCHEDULES)[1:])]
)
@pytest.mark.parametrize(
    "switches",
    [
        {"momentum": 0.8, "rate_in_buffer": True},
        pytest.param(
            {"momentum": 0.8, "denominator": "outside", "eps": 1e-3}, marks=pytest.mark.proof
        ),
        pytest.param(
            {"weight_decay": 0.1, "weight_decay_kind": "decoupled"}, marks=pytest.mark.proof
        ),
    ],
    ids=["in the buffer", "after", "decoupled"],
)
def test_rates_that_are_given(given, switches):
    truth, rng = rule(learning_rate=0.01, **switches), np.random.default_rng(7)
    p, grads = inputs(rng)
    rates = np.full(60, 0.01) if given == "number" else RATES
    report = probe.identify_log(log_of(truth, p, grads, rates=rates), grads, SCHEDULES[given])
    if given == "number":
        assert "learning_rate" not in report.undetermined
        assert "lr=0.01" in report.calls[0] or "learning_rate=0.01" in report.calls[0]
    else:
        assert "learning_rates" in report.calls[0]
        if "rate_in_buffer" in switches or switches.get("momentum"):
            assert "rate_in_buffer" not in report.undetermined
    check(report, truth, p, longer(grads, rng), rates=rates)
    assert report.transformation is not None


@pytest.mark.proof
def test_a_geometric_schedule_leaves_the_place_of_the_rate_open():
    """Steps of rate·qᵗ and momentum μ in the buffer are those of momentum μ/q after it."""
    truth, (p, grads) = rule(momentum=0.72, rate_in_buffer=True), inputs(np.random.default_rng(7))
    rates = 0.01 * 0.9 ** np.arange(60)
    report = probe.identify_log(log_of(truth, p, grads, rates=rates), grads, rates)
    other = rule(momentum=0.8, rate_in_buffer=False)
    for possible in (truth, other):
        assert not wrong(report, possible.switches | {"learning_rate": None}, 1e-6), report
    assert len(report.calls) == 2


@pytest.mark.proof
def test_a_rate_that_changes_unknown_is_a_contradiction_at_its_step():
    truth, (p, grads) = rule(momentum=0.8), inputs(np.random.default_rng(8))
    rates = np.where(np.arange(25) < 11, 0.01, 0.001)
    report = probe.identify_log(log_of(truth, p, grads, rates=rates), grads)
    assert not report.calls and "step 11" in " ".join(report.contradictions)


@pytest.mark.proof
def test_other_rates_than_the_runs_are_a_contradiction():
    truth, (p, grads) = rule(), inputs(np.random.default_rng(8))
    report = probe.identify_log(log_of(truth, p, grads), grads, 0.02)
    assert not report.calls and "0.5" in report.contradictions[0]


@functools.cache
def small_report():
    """A report that many tests read."""
    truth = rule(momentum=0.8, eps=1e-3)
    p, grads = inputs(np.random.default_rng(9))
    return probe.identify_log(log_of(truth, p, grads), grads)


def test_a_report_is_a_page():
    report = small_report()
    page = str(report)
    assert all(f"| {name} |" in page for name in report.rule)
    assert all(call in page for call in report.calls)
    assert 10 < len(page.splitlines()) < 60 and report.frameworks
    assert "rate_in_buffer" in report.undetermined


def test_calls_hold_python_numbers_and_public_names():
    report = small_report()
    for call in report.calls:
        assert "float64(" not in call and "array(" not in call and "_" != call[0]
        assert isinstance(evaluate(call), optax.GradientTransformation)
    for value in report.rule.values():
        assert value is None or type(value) in (bool, float, str)


def test_64_bits_stay_off():
    assert not jax.config.jax_enable_x64
    small_report()
    assert not jax.config.jax_enable_x64
    with pytest.raises(TypeError):
        probe.identify(lambda params: lambda gradient: gradient[:1])
    assert not jax.config.jax_enable_x64


def nan_on_constant_gradients(params):
    """As PyTorch's centred mode: the difference of two roundings may be below 0."""
    p, nu, mean = params.copy(), np.zeros_like(params), np.zeros_like(params)

    def step(gradient):
        nonlocal nu, mean, p
        nu = 0.9 * nu + 0.1 * gradient**2
        mean = 0.9 * mean + 0.1 * gradient
        with np.errstate(invalid="ignore", divide="ignore"):
            p = p - 0.01 * gradient / (np.sqrt(nu - mean**2) + 1e-5)
        return p

    return step


def its_own_memory(params):
    nu = np.zeros_like(params)

    def step(gradient):
        nonlocal params
        gradient *= 1.0
        nu[:] = 0.9 * nu + 0.1 * gradient**2
        params -= 0.01 * gradient / (np.sqrt(nu) + 1e-5)
        gradient[:] = np.nan
        return params

    return step


def float32_from_float64(params):
    inner = its_own_memory(params)
    return lambda gradient: inner(gradient).astype(np.float32)


@pytest.mark.proof
@pytest.mark.parametrize("start", [nan_on_constant_gradients, its_own_memory, float32_from_float64])
def test_boxes_as_people_have_them(start):
    report = probe.identify(start)
    truth = rule(
        denominator="outside", eps=1e-5, decay=0.9, learning_rate=0.01,
        centered=start is nan_on_constant_gradients,
    )  # fmt: skip
    dtype = "float32" if start is float32_from_float64 else "float64"
    check(report, truth, *inputs(np.random.default_rng(10)), dtype)


@pytest.mark.proof
def test_strict_promotion_and_32_bits_change_nothing():
    with jax.numpy_dtype_promotion("strict"):
        strict = probe.identify(dialects.torch(lr=3e-4, alpha=0.95))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = probe.identify(dialects.torch(lr=3e-4, alpha=0.95))
    assert strict == dataclasses.replace(wide)
    assert strict.calls[0] == "dialects.torch(lr=0.0003, alpha=0.95, eps=1e-08)"


def test_complex_logs_are_refused_by_leaf():
    p = {"layer": {"w": np.zeros((3, 2), complex), "b": np.zeros((3, 1))}}
    with pytest.raises(TypeError, match=r"identify_log: params .*'layer/w'"):
        probe.identify_log(p, jax.tree.map(lambda x: x[1:].real, p))
    with pytest.raises(TypeError, match=r"identify_log: grads .*'layer/w'"):
        probe.identify_log(jax.tree.map(np.real, p), jax.tree.map(lambda x: x[1:], p))


@pytest.mark.parametrize(
    "params, grads, rates, words",
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), None, "one row more"),
        (np.zeros((3, 2)), np.zeros((2, 3)), None, "same leaves and shapes"),
        (np.zeros((1, 2)), np.zeros((0, 2)), None, "at least one"),
        ([], [], None, "params is empty"),
        (np.zeros((3, 0)), np.zeros((2, 0)), None, "no numbers"),
        ({"a": np.zeros((3, 2))}, {"b": np.zeros((2, 2))}, None, "'a'"),
        ([{"a": np.zeros(2)}, {"b": np.zeros(2)}], [{"a": np.zeros(2)}], None, r"params\[1\]"),
        (np.zeros((3, 2)), np.ones((2, 2)), np.ones(1), "learning_rates"),
        (np.zeros((3, 2)), np.ones((2, 2)), np.nan, "learning_rates"),
        (np.zeros((3, 2)), np.ones((2, 2)), np.array([1.0, -1.0]), "learning_rates"),
        (np.float64(1.0), np.float64(1.0), None, "leading axis"),
    ],
)
def test_logs_that_do_not_fit(params, grads, rates, words):
    with pytest.raises(ValueError, match=f"identify_log: .*{words}"):
        probe.identify_log(params, grads, rates)


@pytest.mark.parametrize("optimizer", [3, "torch", None])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError, match="identify: optimizer"):
        probe.identify(optimizer)


def test_parameters_that_never_move():
    report = probe.identify_log(np.ones((6, 3)), np.ones((5, 3)))
    assert not report.calls and "do not change" in report.contradictions[0]
    report = probe.identify(lambda params: lambda gradient: params)
    assert not report.calls and "do not change" in report.contradictions[0]


@pytest.mark.proof
@pytest.mark.parametrize("fault", ["a column", "a step", "the end", "dead columns"])
def test_logs_with_gaps(fault):
    truth, rng = rule(momentum=0.8, eps=1e-3), np.random.default_rng(11)
    p, grads = inputs(rng)
    if fault == "dead columns":
        grads[:, :5] = 0.0
    log = log_of(truth, p, grads)
    given = grads.copy()
    if fault == "a column":
        given[8, 3] = np.nan
        log[9:, 3] = np.nan
    elif fault == "a step":
        given[12, :20] = np.inf
        log[13:, :20] = np.nan
    elif fault == "the end":
        given[18:] = np.nan
        log[19:] = np.nan
    check(probe.identify_log(log, given), truth, p, longer(grads, rng))


@pytest.mark.parametrize(
    "side, step, words",
    [
        ("grads", 8, "gradient of step 8"),
        ("params", 9, "parameter after step 8"),
        ("params", 0, "parameter before step 0"),
    ],
)
def test_a_log_that_is_not_finite_says_where_its_use_ends(side, step, words):
    truth, (p, grads) = rule(momentum=0.8, eps=1e-3), inputs(np.random.default_rng(9))
    log, given = log_of(truth, p, grads), grads.copy()
    (given if side == "grads" else log)[step, 3] = np.nan
    given[20, 4] = np.inf
    report = probe.identify_log(log, given)
    assert report.calls == small_report().calls and not small_report().notes
    assert (
        words in report.notes[0]
        and "entry 3, and what follows in it was not used" in report.notes[0]
    )
    assert "(1 other" in report.notes[0] and report.notes[0] in str(report)


def test_a_norm_that_may_be_many_is_told_beside_the_switches():
    p, grads = inputs(np.random.default_rng(9), steps=12, size=12)
    bound = float(np.linalg.norm(grads, axis=1).min() / 2)  # each step is clipped: a factor of √ε
    tx = dialects.keras(0.01, 0.95, epsilon=0.1, clipnorm=bound)
    report = probe.identify_log(continued(tx, p, grads), grads)
    assert report.rule["clip_value"] is None and "clipnorm=" in report.calls[0]
    assert "clip_value" not in report.undetermined and {*report.undetermined} <= {*report.rule}
    low, high = map(float, re.findall(r"from (\S+) to (\S+)", report.notes[0])[0])
    assert low < bound < high and report.notes[0] in str(report) and agree(report)


def test_a_bound_of_the_parameters_is_seen_through_the_rounding_of_large_ones():
    tx = dialects.mxnet2(2.9e-4, epsilon=1e-10, wd=2e-3, clip_gradient=0.014, clip_weights=1.401)
    report = probe.identify(tx)
    assert "clip_weights=1.401" in report.calls[0] and "clip_gradient=0.014" in report.calls[0]


@pytest.mark.parametrize("bound", [4.121252839324409, 1.580186534477917, 4.648, 0.01])
def test_a_bound_of_the_parameters_is_named_to_its_last_digit(bound):
    truth = rule(decay=0.9, eps=1e-6, learning_rate=0.01, clip_weights=bound)
    p, grads = inputs(np.random.default_rng(0))
    for report in (
        probe.identify(dialects.mxnet(0.01, gamma1=0.9, epsilon=1e-6, clip_weights=bound)),
        probe.identify(box(truth)),
        probe.identify_log(log_of(truth, bound * p, grads), grads),
    ):
        assert f"clip_weights={bound!r}" in report.calls[0]
    shown = re.search(r"clip_weights=([0-9.]+)", probe.identify(box(truth, np.float32)).calls[0])
    assert shown and np.float32(shown[1]) == np.float32(bound)


@pytest.mark.parametrize("tx", [
    dialects.keras(0.01, clipvalue=2.5), dialects.keras(0.01, momentum=0.9, clipnorm=6.0),
    dialects.mxnet(0.01, wd=1e-2, clip_gradient=2.5),
    dialects.mxnet2(0.01, wd=1e-2, clip_gradient=2.5),
])  # fmt: skip
def test_a_bound_that_one_late_gradient_reaches_is_seen(tx):
    rng = np.random.default_rng(3)
    p, grads = rng.normal(size=20), np.clip(rng.normal(size=(25, 20)), -2, 2) / 2
    grads[23] *= 10
    report = probe.identify_log(continued(tx, p, grads), grads)
    assert "clip" in report.calls[0]
    again, expected = (continued(t, p, grads[::-1]) for t in (report.transformation, tx))
    np.testing.assert_allclose(again, expected, rtol=1e-9, atol=1e-12)


def test_another_rate_at_the_end_is_no_bound():
    rng = np.random.default_rng(4)
    p, grads = rng.normal(size=1), rng.normal(size=(15, 1))
    grads[-1] *= 10
    rates = np.append(np.full(14, 0.01), 0.007)
    log = log_of(rule(learning_rate=0.01, decay=0.9, eps=1e-8), p, grads, rates=rates)
    report = probe.identify_log(log, grads)
    assert not report.calls and "before step 14" in report.contradictions[0]


@pytest.mark.parametrize(("steps", "seed", "numbers"), [
    (50, 1, {"learning_rate": 1.832e-5, "decay": 0.9935, "eps": 1.709e-10, "initial_scale": 1.0}),
    (5, 18, {"learning_rate": 2.024e-4, "decay": 0.9994, "eps": 2.2237e-6, "initial_scale": 2.076}),
])  # fmt: skip
def test_what_the_first_steps_take_for_no_eps_is_found_by_a_later_one(steps, seed, numbers):
    p, grads = inputs(np.random.default_rng(seed), 100)
    report = probe.identify_log(log_of(rule(**numbers), p, grads[:steps]), grads[:steps])
    assert report.rule["denominator"] == "inside"
    low, high = report.undetermined.get("eps", [numbers["eps"]] * 2)
    assert low * 0.99 <= numbers["eps"] <= high * 1.01
    again = continued(report.transformation, p, grads)
    np.testing.assert_allclose(again, log_of(rule(**numbers), p, grads), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("tx", "share"), [
    (optax.chain(dialects.torch(0.05), dialects.clip_weights(0.01)), 0.8),
    (dialects.mxnet2(
        0.02, epsilon=1e-3, momentum=0.9, centered=True, wd=1e-2, clip_gradient=3.0,
        clip_weights=0.5,
    ), 0.3),
])  # fmt: skip
def test_a_log_is_named_although_a_bound_cuts_off_its_steps(tx, share, dtype):
    rng = np.random.default_rng(0)
    p, grads = rng.normal(size=30) * 0.3, rng.normal(size=(25, 30)) * 10 ** rng.uniform(-1, 1, 30)
    p, grads = p.astype(dtype), grads.astype(dtype)
    after = continued(tx, p, grads)
    assert (np.abs(after[1:]) > 0.999 * np.abs(after[1:]).max()).mean() > share
    report = probe.identify_log(after, grads)
    again, longer = evaluate(report.calls[0]), rng.permuted(grads, axis=0)
    np.testing.assert_allclose(
        *(continued(t, p, longer) for t in (again, tx)), rtol=0, atol=8 * np.finfo(dtype).eps
    )


def log_of_trees(tx, p, grads):
    """The log of a transformation, leaf by leaf."""
    state, log = tx.init(p), [p]
    for t in range(len(grads["a"])):
        updates, state = tx.update({k: g[t] for k, g in grads.items()}, state, log[-1])
        log.append(optax.apply_updates(log[-1], updates))
    return {name: np.stack([tree[name] for tree in log]) for name in p}


def test_a_norm_of_each_leaf_is_no_global_one():
    rng = np.random.default_rng(0)
    sizes = {"a": (5, 3.0), "b": (8, 5.0), "c": (2, 1.0)}
    grads = {name: rng.normal(size=(15, n)) * scale for name, (n, scale) in sizes.items()}
    p = {name: rng.normal(size=n) for name, (n, _) in sizes.items()}
    tx = dialects.paddle(
        0.01, 0.9, 1e-3, weight_decay=0.1, grad_clip=dialects.clip_by_norm(4.0, together=False)
    )
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = log_of_trees(tx, p, grads)
        report = probe.identify_log(params, grads)
        assert "clip_by_norm(4.0, together=False)" in report.calls[0]
        state = report.transformation.init(p)
        updates, _ = report.transformation.update({k: g[0] for k, g in grads.items()}, state, p)
    for name, update in updates.items():
        np.testing.assert_allclose(update, params[name][1] - params[name][0], rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("together", [False, True])
def test_a_norm_that_clips_after_the_decay_is_named(together, dtype):
    rng = np.random.default_rng(0)
    tree = lambda *shape: {  # noqa: E731
        name: rng.normal(size=(*shape, n)).astype(dtype) for name, n in (("a", 15), ("b", 5))
    }
    p, grads = tree(), tree(16)
    clip = dialects.clip_by_norm(3.0, together=together)
    tx = optax.chain(optax.add_decayed_weights(0.05), clip, dialects.torch(1e-3, momentum=0.9))
    with jax.enable_x64(dtype == np.float64):
        params = log_of_trees(tx, p, grads)
    report = probe.identify_log(params, grads)
    expected = f"chain(add_decayed_weights(0.05), dialects.clip_by_norm(3.0, together={together}),"
    assert report.calls and report.calls[0].startswith(expected), report
    assert report.rule["learning_rate"] == 1e-3 and report.rule["decay"] == 0.99


def test_entries_that_were_not_searched_are_checked():
    p, grads = inputs(np.random.default_rng(1), size=200)
    log = log_of(rule(denominator="outside", eps=1e-8), p, grads)
    assert not probe.identify_log(log, grads).notes
    still = grads.copy()
    still[:, 100:] = 0.0
    log[3:, 150] += 1.0
    report = probe.identify_log(np.where(np.arange(200) < 100, log, p), still)
    assert report.calls and not report.notes
    log[:, :150] = np.where(np.arange(150) < 100, log[:, :150], p[:150])
    log[:, 151:], log[:3, 150] = p[151:], p[150]
    log[3:, 150] = p[150] + 1.0
    report = probe.identify_log(log, still)
    assert report.calls and report.notes == [
        "1 of 200 entries do not follow it: params, entry 150, at step 2"
    ]


def test_a_log_of_one_step_at_given_rates_is_at_these():
    p, grads = inputs(np.random.default_rng(1), steps=1, size=1)
    truth = rule(denominator="inside", eps=0.01, decay=0.991, learning_rate=1e-3)
    report = probe.identify_log(log_of(truth, p, grads), grads, 1e-3)
    assert report.calls and report.rule["learning_rate"] == 1e-3
    assert "learning_rate" not in report.undetermined


OPTIONS = {
    "l2": {"weight_decay": 1e-3, "weight_decay_kind": "l2"},
    "decoupled": {"weight_decay": 1e-2, "weight_decay_kind": "decoupled"},
    "norm": {"clip_norm": 5.0},
    "norm, decoupled": {
        "clip_norm": 5.0, "weight_decay": 1e-2, "weight_decay_kind": "decoupled",
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_explains_a_log_is_named_before_anything_is_polished(
    option, dtype, monkeypatch
):
    truth = rule(denominator="outside", eps=1e-3, decay=0.9, learning_rate=0.01, **OPTIONS[option])
    p, grads = inputs(np.random.default_rng(4))
    monkeypatch.setattr(search, "polished", lambda *_: pytest.fail("polished"))
    report = probe.identify_log(log_of(truth, p, grads, dtype), grads.astype(dtype))
    assert report.calls and not wrong(report, truth.switches, NUMBERS[dtype])


def test_a_box_is_asked_for_a_decay_that_its_first_step_hides(monkeypatch):
    truth = rule(
        denominator="inside", eps=2.4e-15, initial_scale=1.0, decay=0.992, learning_rate=0.01,
        centered=True, weight_decay=1.4e-4, weight_decay_kind="l2",
    )  # fmt: skip
    monkeypatch.setattr(design, "polished", lambda *_: pytest.fail("polished"))
    report = probe.identify(box(truth, np.float32))
    assert report.calls and not wrong(report, truth.switches, NUMBERS["float32"])


@pytest.mark.parametrize("initial", [1.0, 0.1])
def test_a_box_with_caution_is_asked_for_such_a_decay_too(initial):
    truth = rule(
        initial_scale=initial, learning_rate=1e-4, momentum=0.95, caution=True,
        weight_decay=5e-4, weight_decay_kind="l2",
    )  # fmt: skip
    report = probe.identify(box(truth, np.float32))
    assert report.calls and not wrong(report, truth.switches, NUMBERS["float32"]), report


def test_a_log_to_which_nothing_can_be_fitted_is_told(monkeypatch):
    monkeypatch.setattr(search, "_begun", lambda *_: None)
    log, grads = inputs(np.random.default_rng(0), steps=5, size=3)[1], np.ones((4, 3))
    report = probe.identify_log(log, grads)
    assert not report.calls and "no step can be judged" in report.contradictions[0]


def test_parameters_that_always_lie_at_a_bound_name_no_rule():
    rng = np.random.default_rng(0)
    grads, p = rng.normal(size=(10, 6)), np.sign(rng.normal(size=6)) * 0.01
    log = continued(optax.chain(dialects.torch(0.5), dialects.clip_weights(0.01)), p, grads)
    assert not probe.identify_log(log, grads).calls


@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_a_decay_of_weights_that_rounding_hides_is_open(decay):
    p, grads = (x.astype(np.float32) for x in inputs(np.random.default_rng(2)))
    tx = dialects.keras(7e-4, 0.95, 0.5, 1e-5, weight_decay=decay)
    report = probe.identify_log(continued(tx, p, grads), grads, np.full(25, 7e-4))
    assert report.calls[0].startswith("dialects.keras(learning_rate=0.0007, rho=0.95")
    assert report.rule["weight_decay_kind"] == "none"
    assert {"none", "decoupled"} <= {*report.undetermined["weight_decay_kind"]}
    low, high = report.undetermined["weight_decay"]
    # A decay of this size moves a parameter of 1 by 4 units in the last place.
    assert low == 0 and max(decay, 1e-5) <= high <= 4 * 2.0**-24 / 7e-4 * 4


@pytest.mark.slow
def test_caution_beside_clipping_by_value_is_named():
    truth = rule(**BASE | {"caution": True})
    assert not wrong(probe.identify(box(truth)), truth.switches, 1e-6)


@pytest.mark.parametrize("denominator", ["inside", "outside"])
@pytest.mark.parametrize(("eps", "bound"), [(1e-6, 0.05), (1e-8, 0.01)])
def test_where_every_step_is_clipped_the_numbers_are_open_down_from_the_norms(
    denominator, eps, bound
):
    rng = np.random.default_rng(0)
    p, grads = rng.normal(size=30), rng.normal(size=(25, 30)) * 10 ** rng.uniform(-3, 0, 30)
    tx = optax.chain(
        optax.clip_by_global_norm(bound),
        rmsprop(0.01, 0.9, eps, eps_in_sqrt=denominator == "inside"),
    )
    report = probe.identify_log(continued(tx, p, grads), grads)
    low, high = report.undetermined["eps"]
    assert report.rule["denominator"] == denominator and "denominator" not in (report.undetermined)
    assert 0 < low < eps < high and agree(report)
    low, high = map(float, re.findall(r"from (\S+) to (\S+)", report.notes[0])[0])
    assert low < bound < high


@pytest.mark.parametrize(("dtype", "start", "momentum", "rate", "step", "size"), [
    (np.float64, 1.0, 0.9, lambda count: 0.01 / (1 + 0.1 * count), 1, "0.909091"),
    pytest.param(
        np.float32, 0.0, None, lambda count: jnp.where(count < 12, 0.01, 0.001), 12, "0.1",
        marks=pytest.mark.proof,
    ),
])  # fmt: skip
def test_a_rate_that_changes_and_was_not_recorded_is_told_with_its_step(
    dtype, start, momentum, rate, step, size
):
    rng = np.random.default_rng(0)
    p, grads = rng.normal(size=30), rng.normal(size=(25, 30)) * 10 ** rng.uniform(-3, 0, 30)
    tx = rmsprop(rate, 0.9, 1e-3, initial_scale=start, momentum=momentum)
    run = continued(tx, p.astype(dtype), grads.astype(dtype))
    (text,) = probe.identify_log(run, grads.astype(dtype)).contradictions
    assert f"at step {step} it is {size} times that of step 0 (0.01)" in text


def test_an_interval_says_whether_the_switch_may_be_absent():
    assert conclude._widened([None, 0.8], [0.5, 0.7]) == [None, 0.5, 0.8]
    assert conclude._widened([], [0.5, 0.7]) == [0.5, 0.7]


def as_trees(array, form):
    """Columns as leaves of a dict: `w` of [5, 4] and `b` of the rest."""
    trees = {"w": array[:, :20].reshape(-1, 5, 4), "b": array[:, 20:]}
    return (
        trees
        if form == "arrays"
        else [{k: v[t] for k, v in trees.items()} for t in range(len(array))]
    )


@pytest.mark.proof
@pytest.mark.parametrize("form", ["arrays", "list"])
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_leaves_of_trees_are_told_apart(form, clip):
    rng = np.random.default_rng(12)
    p, grads = inputs(rng)
    bound = float(np.quantile(np.linalg.norm(grads, axis=1), 0.4).round(3))
    tx = dialects.keras(0.01, 0.95, **{clip: bound})
    first = {k: v[0] for k, v in as_trees(p[None], "arrays").items()}
    with jax.enable_x64(True):
        state, params, trees = tx.init(first), first, [first]
        for g in as_trees(grads, "list"):
            updates, state = tx.update(g, state, params)
            params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
            trees.append(params)
    if form == "arrays":
        trees = {k: np.stack([tree[k] for tree in trees]) for k in first}
    report = probe.identify_log(trees, as_trees(grads, form))
    assert report.calls[0].startswith("dialects.keras(") and f"{clip}=" in report.calls[0], report
    assert report.rule["clip_value"] is None


@pytest.mark.proof
def test_bfloat16_leaves_are_never_guessed():
    truth, rng = rule(momentum=0.8, eps=1e-3, learning_rate=0.05), np.random.default_rng(13)
    p, grads = rng.normal(size=64), rng.normal(size=(50, 64))
    step, after = box(truth, np.float32)(p), [jnp.asarray(p, jnp.bfloat16)]
    for g in grads:
        after.append(jnp.asarray(step(g.astype(np.float32)), jnp.bfloat16))
    report = probe.identify_log([{"w": x} for x in after], [{"w": g} for g in grads])
    assert report.rule["precision"] == "bfloat16"
    assert not report.calls or not wrong(report, truth.switches, 0.05), report


@pytest.mark.parametrize(("switches", "rate"), [
    ({"eps": 1e-8}, 2e-5), ({"momentum": 0.8, "eps": 1e-6}, 3e-3),
    ({"denominator": "outside", "centered": True, "decay": 0.95}, 1e-4),
    ({"weight_decay": 0.01, "weight_decay_kind": "l2"}, 0.1),
])  # fmt: skip
def test_a_box_of_bfloat16_is_named_at_any_rate(switches, rate):
    truth = rule(learning_rate=rate, **switches)
    report = probe.identify(box(truth, np.float32, stored=jnp.bfloat16))
    assert report.rule["precision"] == "bfloat16"
    assert report.calls and not wrong(report, truth.switches, 0.05), report


@pytest.mark.parametrize(("rate", "words"), [
    (1e-5, "the parameters do not change"),
    (2e-4, "rounding the parameters to bfloat16 hides most of the steps"),
])  # fmt: skip
def test_steps_that_rounding_hides_name_nothing(rate, words):
    truth, (p, grads) = rule(learning_rate=rate), inputs(np.random.default_rng(15))
    p, grads = (np.asarray(x, jnp.bfloat16).astype(np.float32) for x in (p, grads))
    log = played(box(truth, np.float32, stored=jnp.bfloat16), p, grads).astype(jnp.bfloat16)
    (text,) = probe.identify_log(log, grads).contradictions
    assert words in text


def test_in_bfloat16_a_step_of_two_units_is_enough():
    truth, (p, grads) = rule(learning_rate=4e-3, decay=0.97), inputs(np.random.default_rng(3))
    p, grads = (np.asarray(x, jnp.bfloat16).astype(np.float32) for x in (p, grads))
    log = played(box(truth, np.float32, stored=jnp.bfloat16), p, grads).astype(jnp.bfloat16)
    report = probe.identify_log(log, grads)
    assert report.calls and not wrong(report, truth.switches, 0.05), report


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_decay_is_named_where_most_gradients_are_zero(share, dtype):
    truth, rng = rule(
        denominator="outside", decay=0.99, learning_rate=1e-3, momentum=0.9,
        weight_decay=1e-4, weight_decay_kind="l2",
    ), np.random.default_rng(16)  # fmt: skip
    p, grads = inputs(rng)
    grads = grads * (rng.random(grads.shape) < share)
    check(probe.identify_log(log_of(truth, p, grads, dtype), grads.astype(dtype)),
          truth, p, grads, dtype)  # fmt: skip


def test_a_decay_that_a_steady_divisor_hides_is_of_the_right_kind():
    """Near ν₀ all are divided by one number, and a decay of the other kind is close."""
    truth, rng = rule(
        denominator="outside", initial_scale=1.0, decay=0.95, learning_rate=0.1, eps=1e-7,
        weight_decay=1e-5, weight_decay_kind="l2",
    ), np.random.default_rng(0)  # fmt: skip
    p, grads = inputs(rng, size=60)
    grads *= rng.random(grads.shape) < 0.4
    report = probe.identify_log(log_of(truth, p, grads, "float32"), grads.astype(np.float32))
    assert report.calls and not wrong(report, truth.switches, 0.05), report


@pytest.mark.parametrize(("denominator", "eps"), [
    ("outside", 0.0), ("inside", 0.0), ("floor", 1e-8), ("outside", 1e-10),
])  # fmt: skip
def test_every_call_without_an_eps_reproduces_the_run(denominator, eps):
    """What is no ε for one denominator is one for another."""
    truth = rule(denominator=denominator, eps=eps, decay=0.99, learning_rate=1e-3)
    p, grads = inputs(np.random.default_rng(1), steps=20, size=20)
    log = log_of(truth, p, grads)
    report = probe.identify_log(log, grads)
    assert report.calls and not wrong(report, truth.switches, 1e-6), report
    for call in report.calls:
        after = continued(evaluate(call), p, grads)
        np.testing.assert_allclose(after, log, rtol=0, atol=1e-12, err_msg=call)


@pytest.mark.parametrize(("eps", "steps", "initial"), [(1e-10, 3, 0.1), (1e-5, 20, 0.0)])
def test_an_eps_that_only_a_floor_hides_is_among_those_that_remain(eps, steps, initial):
    truth = rule(denominator="floor", eps=eps, initial_scale=initial, momentum=0.9, nesterov=True)
    p, grads = inputs(np.random.default_rng(2), steps=steps)
    report = probe.identify_log(log_of(truth, p, grads), grads)
    assert report.calls and not wrong(report, truth.switches, 1e-6), report


def test_an_eps_that_makes_up_for_a_start_is_among_the_calls():
    """A ν₀ of 1.0021 and no ε do as much as 1 and 0.001 outside the root."""
    truth = rule(denominator="outside", eps=1e-3, initial_scale=1.0, decay=0.95,
                 learning_rate=3e-4, momentum=0.9, rate_in_buffer=True)  # fmt: skip
    rng = np.random.default_rng(7)
    p, grads = 0.1 * rng.normal(size=5), 0.1 * rng.normal(size=(5, 5))
    log = log_of(truth, p, grads, "float32")
    report = probe.identify_log(log, grads.astype(np.float32), 3e-4)
    assert not wrong(report, truth.switches, 1e-3), report
    assert report.calls[0] == (
        "rmsprop(learning_rate=0.0003, decay=0.95, eps=0.001, momentum=0.9, initial_scale=1.0, "
        "eps_in_sqrt=False)"
    )


def test_caution_that_no_step_shows_is_open():
    truth = rule(caution=True, momentum=0.9, decay=0.99, learning_rate=1e-3, eps=1e-6)
    rng = np.random.default_rng(0)
    p, grads = rng.normal(size=20), (1 + rng.random((10, 20))) * rng.choice([-1, 1], 20)
    report = probe.identify_log(log_of(truth, p, grads), grads)
    assert report.calls and not wrong(report, truth.switches, 1e-6), report
    assert report.undetermined["caution"] == [False, True]


def test_where_every_step_is_clipped_the_start_is_that_of_most():
    rng = np.random.default_rng(1)
    p, grads = rng.normal(size=40), rng.normal(size=(3, 40))
    tx = optax.chain(dialects.clip_by_norm(0.6, together=False), rmsprop(0.01, 0.99, 1e-8,
                     initial_scale=1.0))  # fmt: skip
    report = probe.identify_log(continued(tx, p, grads), grads, 0.01)
    assert report.calls == [
        "chain(dialects.clip_by_norm(0.6, together=False), "
        "scale_by_rms(0.99, 1e-08, initial_scale=1.0), scale_by_learning_rate(0.01))"
    ]
    low, high = report.undetermined["initial_scale"]
    assert low < 1e-15 and high > 10 and report.undetermined.keys() == {"eps", "initial_scale"}


@pytest.mark.parametrize(("switches", "dtype", "steps"), [
    ({"weight_decay": 1e-5, "weight_decay_kind": "l2", "clip_value": 0.5, "momentum": 0.95,
      "clip_before_decay": True,
      "rate_in_buffer": True, "initial_scale": 0.1, "denominator": "outside"}, "float32", 50),
    ({"caution": True, "clip_norm": 3.0, "momentum": 0.5, "initial_scale": 0.1}, "float32", 30),
    ({"weight_decay": 1e-5, "weight_decay_kind": "decoupled", "momentum": 0.95, "eps": 1e-3,
      "initial_scale": 0.1, "decay": 0.99}, "float64", 8),
    ({"weight_decay": 0.1, "weight_decay_kind": "l2", "bias_correction": True, "decay": 0.999},
     "float32", 3),
])  # fmt: skip
def test_an_option_begins_with_what_fits_without_it(switches, dtype, steps):
    truth = rule(**{"eps": 1e-7, "decay": 0.9, "learning_rate": 1e-3} | switches)
    p, grads = inputs(np.random.default_rng(2), steps=steps)
    log = log_of(truth, p, grads, dtype)
    report = probe.identify_log(log, grads.astype(dtype))
    assert report.calls and not wrong(report, truth.switches, 2e-3), report


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_epsilon_hides_is_no_rule_of_another_precision(dtype):
    """Of 0.001 inside the root gradients below 1e-3 leave ν a part of 1e-7."""
    truth = rule(eps=1e-3, decay=0.999, learning_rate=0.1, weight_decay=1e-4,
                 weight_decay_kind="l2", clip_value=5e-4, clip_before_decay=True)  # fmt: skip
    rng = np.random.default_rng(0)
    p, grads = 0.3 * rng.normal(size=40), rng.normal(size=(3, 40)) * 10 ** rng.uniform(-5, 1, 40)
    report = probe.identify_log(log_of(truth, p, grads, dtype), grads.astype(dtype))
    if dtype == "float64":
        assert report.calls and not wrong(report, truth.switches, 1e-5), report
    else:
        assert report.contradictions[0].startswith("it is SGD(lr=3.16"), report
        assert "clipped by value" in report.contradictions[0]


def test_the_order_of_a_clip_and_a_decay_that_is_not_seen_is_open():
    p, grads = inputs(np.random.default_rng(7))
    p = 1e-3 * p
    truth = rule(clip_value=float(np.float32(np.quantile(np.abs(grads), 0.7))), eps=1e-3)
    report = probe.identify_log(log_of(truth, p, grads, "float32"), grads.astype(np.float32))
    assert "l2" in report.undetermined["weight_decay_kind"]
    assert report.undetermined["clip_before_decay"] == [None, True, False]


@pytest.mark.parametrize("seed", [1, 4])
def test_the_place_of_a_small_eps_beside_a_large_start_is_open(seed):
    truth, rng = (
        rule(denominator="outside", eps=1e-6, initial_scale=1.0, decay=0.999, learning_rate=1e-4),
        np.random.default_rng(seed),
    )
    grads, p = 0.01 * rng.normal(size=(50, 5)), 0.3 * rng.normal(size=5)
    report = probe.identify_log(log_of(truth, p, grads), grads)
    assert not wrong(report, truth.switches, 1e-6), report
    assert set(report.undetermined["denominator"]) == {"inside", "outside"}


def test_what_is_near_a_box_of_float64_is_no_box_of_float32():
    truth = rule(
        eps=1e-5, initial_scale=1.0, decay=0.999, learning_rate=1e-3, momentum=0.5,
        centered=True, clip_norm=0.1,
    )  # fmt: skip
    report = probe.identify(box(truth))
    assert report.calls and not wrong(report, truth.switches, 1e-5), report
    assert report.rule["precision"] == "float64"


def test_one_step_leaves_open_what_it_cannot_show():
    truth, (p, grads) = rule(eps=1e-3, decay=0.9), inputs(np.random.default_rng(14))
    report = probe.identify_log(log_of(truth, p, grads[:1]), grads[:1])
    assert report.calls and not wrong(report, truth.switches, 1e-6)
    assert {"decay", "learning_rate"} & set(report.undetermined)
    report = probe.identify_log(log_of(rule(momentum=0.9), p, grads[:1]), grads[:1])
    assert report.calls and {"momentum", "centered", "decay"} <= set(report.undetermined)


@pytest.mark.proof
def test_a_log_and_a_box_are_named_in_seconds():
    """Three times what they should take, since other programs share the machine."""
    truth, p, grads, _ = random_rule("torch", 0)
    began = time.process_time()
    probe.identify_log(log_of(truth, p, grads), grads)
    between = time.process_time()
    probe.identify(box(truth))
    assert between - began < 9 and time.process_time() - between < 12


@pytest.mark.parametrize("given", [None, 0.01, np.full(24, 0.01)], ids=["open", "one", "each"])
def test_every_call_of_a_decay_that_nothing_places_is_right(given):
    """A constant rate does not show whether it scales the decay: each call has its own number."""
    rng = np.random.default_rng(0)
    grads, params, nu = rng.normal(size=(24, 8)), [rng.normal(size=8)], np.zeros(8)
    for g in grads:
        nu = 0.9 * nu + 0.1 * g**2
        params.append(params[-1] * (1 - 1e-3) - 0.01 * g / (np.sqrt(nu) + 1e-3))
    report = probe.identify_log(np.array(params), grads, given)
    assert len(report.calls) >= 2
    for call in report.calls:
        after = continued(evaluate(call, given), params[0], grads)
        np.testing.assert_allclose(after, params, rtol=1e-9, atol=1e-12, err_msg=call)


HIDDEN = [
    # One beside another, one number of which rounding leaves little; one coordinate.
    ("rmsprop(learning_rate=2e-05, decay=0.9999, eps=9e-07, initial_scale=0.1)", 30),
    ("rmsprop(learning_rate=2e-05, decay=0.9999, eps=9e-07, momentum=0.9, initial_scale=0.2)", 30),
    ("rmsprop(learning_rate=2e-05, decay=0.9999, eps=7e-07, momentum=0.9, initial_scale=0.1)", 1),
]


@pytest.mark.parametrize("call, size", HIDDEN)
def test_numbers_that_others_hide_are_found(call, size):
    """An initial value, a rate and a decay near 1 together hide all but 1e-13 of an epsilon."""
    rng = np.random.default_rng(size)
    grads = np.tile(rng.normal(size=30), (8, 1)) if size > 1 else 0.01 * rng.normal(size=(60, 1))
    began = time.process_time()
    log = continued(evaluate(call), np.zeros(size), grads)
    report = probe.identify_log(log, grads, 2e-5 if size > 1 else None)
    assert time.process_time() - began < 9  # 2, and other programs share the machine
    assert report.calls[0] == call


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [3, 8])
def test_a_sum_of_squares_is_no_average_that_forgets_nothing(steps, dtype):
    grads = np.random.default_rng(steps).normal(size=(steps, 30)).astype(dtype)
    tx = optax.chain(optax.scale_by_rss(0.0, 0.0), optax.scale(-0.01))
    with jax.enable_x64(dtype == np.float64):
        report = probe.identify_log(continued(tx, np.ones(30, dtype), grads), grads)
    assert not report.calls and "it is Adagrad(lr=0.01)" in report.contradictions[0]


def test_an_average_that_hardly_forgets_is_no_sum():
    """Of 0.9996 from 1 a few steps show little, and a sum would do as well."""
    grads = (3 * np.random.default_rng(5).normal(size=(8, 6))).astype(np.float32)
    tx = rmsprop(1e-3, 0.9996, initial_scale=1.0)
    report = probe.identify_log(continued(tx, np.zeros(6, np.float32), grads), grads, 1e-3)
    assert report.rule["initial_scale"] == 1 and not report.rule["centered"], report


@pytest.mark.parametrize(
    "call, dtype",
    [
        ("rmspropw(1e-3, 0.9999, eps=1e-6, weight_decay=0.01)", np.float64),
        ("rmsprop(1e-5, 0.99, eps=1e-15)", np.float32),
    ],
)
def test_one_step_is_no_other_optimizer(call, dtype):
    """The first step of many an optimizer is one of RMSprop, whose simplest comes first."""
    rng = np.random.default_rng(3)
    p, grads = (rng.normal(size=(2, 1, 40)) * [[[1.0]], [[10.0]]]).astype(dtype)
    report = probe.identify_log(continued(evaluate(call), p[0], grads), grads)
    assert report.calls and not report.rule["centered"], report


@pytest.mark.parametrize("way", ["transformation", "function"])
def test_a_rate_that_begins_at_zero_is_told(way):
    tx = rmsprop(optax.linear_schedule(0.0, 1e-3, 5))

    def start(params):
        state = tx.init(params)

        def step(gradient):
            nonlocal params, state
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return np.asarray(params)

        return step

    report = probe.identify(tx if way == "transformation" else start)
    assert not report.calls and "and 0 at step 0" in report.contradictions[0], report


def test_a_momentum_that_turns_no_step_is_none():
    """Gradients that are always the same show no caution."""
    rng = np.random.default_rng(0)
    grads = np.tile(rng.normal(size=12), (8, 1))
    log = continued(dialects.torch(0.01, 0.8, eps=1e-3), rng.normal(size=12), grads)
    report = probe.identify_log(log, grads)
    assert report.calls
    for call in report.calls:
        assert "cautious" not in call and not re.search(r"momentum=\d[.\d]*e-", call), call
