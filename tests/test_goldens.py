"""180 trajectories that the frameworks themselves made, through the public calls of the table.

`tools/recorded.py` reads them and makes the same runs; `tools/truth.py` says which call each
framework is, and with which arguments.
"""

import jax
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop.links import add_decayed_weights
from tools.recorded import (
    ARRAYS,
    EXCEPTIONS,
    FIRST_STEP_ONLY,
    NAMES,
    NOT_THE_FIRST_STEP,
    RECORDS,
    as_schedule,
    error,
    inputs,
    recorded,
    replay,
    rounded,
    trajectory,
)
from tools.truth import ROWS, row_of

pytestmark = pytest.mark.device

DENOMINATORS = {
    "inside": lambda square, eps: np.sqrt(square + eps),
    "outside": lambda square, eps: np.sqrt(square) + eps,
    "max": lambda square, eps: np.maximum(np.sqrt(square), eps),
    "inside_minus": lambda square, eps: np.sqrt(np.maximum(square - eps, 0.0)),
}


def allowed(name):
    """The bound of a recorded trajectory, for each step and coordinate."""
    run, grads, rates, after, nu, mu = replay(name)
    if name in NOT_THE_FIRST_STEP:
        # Optax's second step still divides by a difference that cancels.
        return np.full(after.shape, run["tolerance_abs"])
    if nu is not None and (run["dtype"] == "float32" or run.get("clip_norm_rounding")):
        return single_precision(run, after, grads, rates, nu, mu)
    return np.full(after.shape, 1e-12)


def single_precision(run, after, grads, rates, nu, mu):
    """What the framework's rounding can have done, ours being exact, with u half an ulp of 1.

    A parameter loses u·|p| a step, and twice more with a decay that multiplies it. ν gains 2u a
    step at most, relative to itself, of which its root has half; the difference ν − m² loses
    (ν+m²)/(ν−m²) times as much; the gradient, its square, the root, ε, the division and the rate
    are a rounding each; a sum g + λp loses u of its terms. A momentum buffer keeps its share.
    """
    half, steps = 2.0**-24, np.arange(1, len(after))[:, None]
    lr = np.broadcast_to(rates, len(grads))[:, None]
    p, square = np.maximum(np.abs(after[:-1]), np.abs(after[1:])), nu - mu**2
    if run.get("debias") == "ema":
        square = square / (1 - run["decay"] ** steps)
    entering = np.abs(grads) * (run.get("gradient_scale") or 1.0)
    if run["weight_decay_kind"] == "coupled_l2":
        entering = entering + run["weight_decay"] * np.abs(after[:-1])
    denominator = DENOMINATORS[run["eps_mode"]](square, run["eps"])
    # Where nothing entered, nothing is lost; TensorFlow.js's NaN are left out by the caller.
    used = (entering > 0) & (denominator > 0)
    p = p * (3 if run["weight_decay_kind"] == "decoupled" else 1)
    step = np.where(used, lr * entering, 0.0) / np.where(used, denominator, 1.0)
    condition = np.where(used, nu + mu**2, 1.0) / np.where(used, denominator**2, 1.0)
    step = (steps + 6) * (condition if run["centered"] else 1.0) * step
    for t in range(1, len(step)):
        step[t] += run["momentum"] * step[t - 1]
    return np.concatenate([np.zeros_like(after[:1]), np.cumsum(half * (p + step), 0)])


def test_every_recorded_trajectory_has_a_row():
    assert len(NAMES) == len(ARRAYS.files) - 3 == 180
    assert all(row_of(name) in ROWS for name in NAMES)
    assert {*EXCEPTIONS, *FIRST_STEP_ONLY, *NOT_THE_FIRST_STEP} <= set(NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in EXCEPTIONS])
def test_the_call_gives_the_recorded_trajectory(name):
    assert np.isfinite(replay(name).after).all()  # also where the framework has NaN
    found, bound = error(name), allowed(name)
    assert (found <= bound).all(), (found / bound).max()


def numpy_trajectory(name, rule):
    """Parameters after each step of `rule(g, state) -> (step, state)`, at the recorded rate."""
    run = rounded(RECORDS["configs"][name])
    p, grads, rate = inputs(name, run)
    state, after = None, [p]
    for g in grads:
        step, state = rule(g, state, run)
        after.append(after[-1] - rate * step)
    return np.stack(after)


def raw_square(g, state, run):
    nu, buffer = state or (run["v_init"], 0.0)
    nu = nu + (g * g - nu) * (1 - run["decay"])
    buffer = run["momentum"] * buffer + g / np.sqrt(nu + run["eps"])
    return buffer, (nu, buffer)


def smorms3(g, state, run):
    memory, mean, nu = state or (1.0, 0.0, 0.0)
    r = 1 / (memory + 1)
    mean, nu = mean + r * (g - mean), nu + r * (g * g - nu)
    x = mean**2 / (nu + run["eps"])
    step = g * np.minimum(x, run["lr"]) / (np.sqrt(nu) + run["eps"]) / run["lr"]
    return step, (1 + memory * (1 - x), mean, nu)


@pytest.mark.parametrize("name, rule", [("tf1/complex", raw_square), ("chainer/smorms3", smorms3)])
def test_an_exception_is_the_rule_that_its_reason_says(name, rule):
    np.testing.assert_allclose(numpy_trajectory(name, rule), recorded(name), atol=1e-12, rtol=0)


def test_mindspores_lanes_have_epsilon_in_two_places():
    run, theirs = rounded(RECORDS["configs"]["mindspore/eps"]), recorded("mindspore/eps")
    _, grads, rate = inputs("mindspore/eps", run)
    nu, fits = 1.0, []
    for g, step in zip(grads, np.diff(theirs, axis=0), strict=True):
        nu = nu + (g * g - nu) * (1 - run["decay"])
        places = [DENOMINATORS[place](nu, run["eps"]) for place in ("inside", "outside")]
        # The parameters, of size 3, are rounded to 2e-7 before and after the step.
        fits.append([np.abs(step + rate * g / place) < 5e-7 for place in places])
    inside, outside = np.array(fits).swapaxes(0, 1)
    assert (inside | outside).all()
    # With several threads an element changes its place from step to step.
    assert (inside & ~outside).any() and (outside & ~inside).any()


def test_a_constant_gradient_moves_all_that_mindspore_skips():
    run = rounded(RECORDS["configs"]["mindspore/constg_cent_mom"])
    params, grads, rate = inputs("mindspore/constg_cent_mom", run)
    tx = row_of("mindspore/constg_cent_mom").translated(run, rate)
    after, *_ = trajectory(tx, params.astype(np.float32), np.abs(grads).astype(np.float32))
    assert np.isfinite(after).all() and np.isfinite(recorded("mindspore/constg_cent_mom")).all()


CHANGED = {
    "epsilon": lambda r: {"eps_mode": {"inside": "outside", "outside": "inside"}[r["eps_mode"]]},
    "start": lambda r: {"v_init": 1.0 - r["v_init"]},
    "rate": lambda r: {"lr_place": {"inside": "outside", "outside": "inside"}[r["lr_place"]]},
    "decay": lambda r: {
        "weight_decay_kind": "decoupled" if r["weight_decay_kind"] == "coupled_l2" else "coupled_l2"
    },
    "nesterov": lambda r: {"nesterov": not r["nesterov"]},
}
CONCERNS = {
    "epsilon": lambda r: r["eps"] >= 1e-3 and r["eps_mode"] in ("inside", "outside"),
    "start": lambda r: not (r["momentum"] or r["centered"] or r["weight_decay"]),
    "rate": lambda r: r["momentum"] and r["schedule"] == "LRS",
    "decay": lambda r: r["weight_decay"] and r["weight_decay_kind"] != "decoupled_corrected",
    "nesterov": lambda r: r["momentum"] and r["schedule"] == "LRS",
}
# Other code paths of a framework, with the same runs.
SAME_AGAIN = ("torch_foreach/", "timm_foreach/", "keras_torch/", "keras_tensorflow/")

# Runs with more to them than the links of `rebuilt`.
ODD = {
    "rule", "sparse", "caution", "clip_norm", "clip_value", "clip_weights", "gradient_scale",
    "bias_correction", "maximize", "lr_values", "lr_max",
}  # fmt: skip


def rebuilt(run, rates):
    """The rule of a configuration from the package's links, whatever combination it is."""
    scale_by = ours.scale_by_stddev if run["centered"] else ours.scale_by_rms
    seam = {"inside": True, "outside": False}
    rate, buffer = ours.scale_by_learning_rate(rates), ours.trace(run["momentum"], run["nesterov"])
    coupled = run["weight_decay_kind"] == "coupled_l2"
    decay = run["weight_decay"]
    return optax.chain(
        optax.add_decayed_weights(decay if coupled else 0.0),
        scale_by(run["decay"], run["eps"], run["v_init"], seam[run["eps_mode"]]),
        *((rate, buffer) if run["lr_place"] == "inside" else (buffer, rate)),
        add_decayed_weights(0.0 if coupled else decay, rates),
    )


@pytest.mark.slow
@pytest.mark.parametrize("switch", CHANGED)
def test_a_changed_rule_is_caught_where_it_matters(switch):
    caught = set()
    for name in (name for name in NAMES if not name.startswith(SAME_AGAIN)):
        if name.partition("/")[0] in caught:  # one run of each framework
            continue
        run, theirs = RECORDS["configs"][name], recorded(name)
        if run["dtype"] != "float64" or ODD & {key for key, value in run.items() if value}:
            continue
        if not CONCERNS[switch](run):
            continue
        run = rounded(run)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            params, grads, rates = inputs(name, run)
            rates = as_schedule(rates, 0)
            same, *_ = trajectory(rebuilt(run, rates), params, grads)
            other, *_ = trajectory(rebuilt(run | CHANGED[switch](run), rates), params, grads)
        assert np.abs(same - theirs).max() <= 1e-12
        # A thousand times the tolerance: nothing that is caught is caught by luck.
        assert np.abs(other - theirs).max() > 1e-9, name
        caught.add(name.partition("/")[0])
    assert len(caught) >= 4
