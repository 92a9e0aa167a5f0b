"""The probe names the rule of the trajectories that the frameworks themselves made."""

import numpy as np
import pytest

from optax_rmsprop import probe
from tools.boxes import rule, wrong
from tools.recorded import NAMES, RECORDS, inputs, recorded, rounded

DENOMINATORS = {"inside": "inside", "outside": "outside", "max": "floor", "inside_minus": "other"}
DECAYS = {
    "none": "none",
    "coupled_l2": "l2",
    "decoupled": "decoupled",
    "decoupled_corrected": "decoupled",
}

# What no rule of the family gives: the report has no call.
NO_RULE = {
    "mindspore/eps": "the CPU's vector lanes have epsilon outside the root, the others inside",
    "mindspore/constg_cent_mom": "rounding decides which elements are skipped (v − m² + ε ≤ 0)",
    "chainer/smorms3": "SMORMS3 has a memory for each weight, which no RMSprop has",
    "bnb/8": "the state is rounded to 8 bits between the steps",
    "bnb/8_wd": "the state is rounded to 8 bits between the steps",
    "tf1/sparse_mom": "rows without a gradient keep their state: a run of each row by itself",
    "tf1/sparse_cent_mom": "rows without a gradient keep their state: a run of each row by itself",
}
# Refused by name: frameworks disagree on the square of a complex number.
COMPLEX = {
    "optax/complex": "the square of the modulus couples the real and the imaginary part",
    "tf1/complex": "the square of a complex gradient without conjugation is no second moment",
}


def rule_of(run):
    """The configuration as switches; a factor of the gradient is one of ε, ν₀ and λ.

    The rate of a schedule is no number: there the configuration and the report have None.
    """
    factor = run.get("gradient_scale") or 1.0
    units = factor if run["eps_mode"] == "outside" else factor**2
    return rule(
        denominator=DENOMINATORS[run["eps_mode"]],
        eps=run["eps"] / units,
        initial_scale=run["v_init"] / factor**2,
        decay=run["decay"],
        learning_rate=run["lr"] if run["schedule"] == "constant" else None,
        rate_in_buffer=run["lr_place"] == "inside",
        momentum=run["momentum"],
        nesterov=run["nesterov"],
        centered=run["centered"],
        bias_correction=run["bias_correction"] or run.get("debias") == "ema",
        weight_decay=run["weight_decay"] / factor,
        weight_decay_kind=DECAYS[run["weight_decay_kind"]],
        clip_value=run.get("clip_value"),
        clip_before_decay=run.get("clip_order") == "before_l2",
        caution=run.get("caution", False),
        maximize=run["maximize"],
    )


def log_of(name):
    """Parameters, gradients and rates; a complex run as its real and imaginary parts."""
    run = rounded(RECORDS["configs"][name])
    _, grads, rates = inputs(name, run)
    params = recorded(name)
    if run.get("complex_mode") == "split":
        params, grads = ({"re": x.real, "im": x.imag} for x in (params, grads))
    elif run["dtype"] == "float32":
        params, grads = params.astype(np.float32), grads.astype(np.float32)
    return run, params, grads, None if run["schedule"] == "constant" else rates


def named(report, run):
    relative = 1e-6 if run["dtype"] == "float64" or "complex" in run["dtype"] else 1e-3
    if run.get("clip_norm_rounding") or run.get("wd_factor_f32"):
        relative = 1e-3  # a part is computed in float32
    return bool(report.calls) and not wrong(report, rule_of(run).switches, relative)


# Of the lanes, each for a switch of its own; the rest is a proof.
ALWAYS = {"timm/sched_cwd", "optax/bc_cent", "tf1/cent", "keras_jax/gclip", "heavyball/wd"}
ALWAYS |= {"keras_torch/clipnorm"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ALWAYS else pytest.mark.proof)
        for n in NAMES
        if n not in NO_RULE and n not in COMPLEX
    ],
)
def test_a_recorded_run_is_named(name):
    run, params, grads, rates = log_of(name)
    report = probe.identify_log(params, grads, rates)
    assert named(report, run), (name, str(report))


def test_numbers_rounded_to_float32_are_written_so():
    _, params, grads, _ = log_of("tf1/default")
    report = probe.identify_log(params, grads)
    assert report.rule["decay"] == float(np.float32(0.9))
    assert report.rule["learning_rate"] == float(np.float32(0.02))
    low, high = report.undetermined["eps"]
    assert low <= 1e-10 <= high and high / low < 1.01


def test_a_norm_is_named_that_a_later_step_shows():
    _, params, grads, _ = log_of("keras_tensorflow/clipnorm")
    report = probe.identify_log(params, grads)
    rate = 0.019999999552965164  # of float32
    assert report.calls == [
        f"dialects.keras(learning_rate={rate}, rho=0.9, epsilon=1e-07, clipnorm=0.5)"
    ]
    assert report.undetermined.keys() == {"eps"} and "from 1.9e-09 to 2" in report.notes[0]


@pytest.mark.proof
@pytest.mark.parametrize("name", NO_RULE)
def test_what_has_no_rule_has_no_call(name):
    run, params, grads, rates = log_of(name)
    if run.get("sparse"):
        rows = RECORDS["inputs"]["sparse"]["rows"]
        dense = np.zeros((len(grads), 12, 3))
        for g, values, at in zip(dense, grads[:, :12].reshape(-1, 4, 3), rows, strict=True):
            np.add.at(g, at, values)
        grads = dense.reshape(len(grads), -1)
    report = probe.identify_log(params, grads, rates)
    assert not report.calls and report.contradictions, str(report)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_runs_are_refused(name):
    _, params, grads, rates = log_of(name)
    with pytest.raises(TypeError, match=r"identify_log: params .*complex"):
        probe.identify_log(params, grads, rates)
