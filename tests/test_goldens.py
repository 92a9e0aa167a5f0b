"""180 trajectories that the frameworks themselves made, through the public calls of the table.

The runs are in tests/data, numbers only: explicit gradients, and the parameters after each step.
`docs/truth.py` says which call each framework is, and with which arguments.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from docs.truth import ROWS, row_of
from optax_rmsprop.links import add_decayed_weights

pytestmark = pytest.mark.device

DATA = pathlib.Path(__file__).parent / "data"
ARRAYS = np.load(DATA / "rmsprop_goldens.npz")
RECORDS = json.loads((DATA / "rmsprop_goldens.json").read_text(encoding="utf-8"))
NAMES = sorted(RECORDS["configs"])

# No call gives these, or not all of their numbers. Each reason is checked below where it can be.
EXCEPTIONS = {
    "mindspore/eps": "the CPU's vector lanes have epsilon outside the root, the others inside",
    "mindspore/constg_cent_mom": "rounding decides which elements are skipped (v − m² + ε ≤ 0)",
    "tf1/complex": "the square of a complex gradient without conjugation is no second moment",
    "chainer/smorms3": "SMORMS3 has a memory for each weight, which no RMSprop has",
}
FIRST_STEP_ONLY = {
    "bnb/8": "the state is rounded to 8 bits between the steps",
    "bnb/8_wd": "the state is rounded to 8 bits between the steps",
}
NOT_THE_FIRST_STEP = {
    "optax/bc_cent": "one sample has no variance: Optax divides by √ε, this package by |g|",
}
# Then 1 − ρ is not 1 − float32(ρ): at ρ = 0.99 the two differ by 16 half-ulps.
FORM_1_MINUS_DECAY_IN_DOUBLE = {"mlx", "bnb", "heavyball"}

DENOMINATORS = {
    "inside": lambda square, eps: np.sqrt(square + eps),
    "outside": lambda square, eps: np.sqrt(square) + eps,
    "max": lambda square, eps: np.maximum(np.sqrt(square), eps),
    "inside_minus": lambda square, eps: np.sqrt(np.maximum(square - eps, 0.0)),
}


def rounded(run):
    """The configuration as the framework used it, some numbers having passed through float32."""
    run = dict(run)
    names = {"lr", "decay", "eps", "momentum", "weight_decay", "clip_value", "clip_weights"}
    if run["framework"] in FORM_1_MINUS_DECAY_IN_DOUBLE:
        names.remove("decay")
    for name in names if run["dtype"] == "float32" else run["f32_rounded"]:
        if run.get(name) is not None:
            run[name] = float(np.float32(run[name]))
    if run.get("wd_factor_f32"):
        # Keras' torch backend multiplies the parameters by 1 − ηλ in float32.
        run["weight_decay"] = (1 - float(np.float32(1 - run["lr"] * run["weight_decay"]))) / run[
            "lr"
        ]
    return run


def inputs(name, run):
    """Initial parameters and gradients [steps, ...], as `format` and `inputs` of the file say."""
    p, g, rates = ARRAYS["P0"], ARRAYS["G"], ARRAYS["LRS"]
    if run["dtype"] == "float32":
        p, g, rates = (x.astype(np.float32).astype(float) for x in (p, g, rates))
    elif run["dtype"] == "complex128":
        p, g = p + 1j * p[::-1], g + 1j * g[:, ::-1]
    if run["schedule"] == "constant":
        return p, g, run["lr"]
    if run["schedule"] == "explicit":
        rates = np.array(run["lr_values"])
    rates = rates.astype(np.float32).astype(float) if "lr" in run["f32_rounded"] else rates
    return p, g, rates


def as_schedule(rates, first):
    return rates if np.ndim(rates) == 0 else lambda count: jnp.asarray(rates)[count - first]


def moments(state):
    """ν and m of an RMSprop state; ν is var + m² where the state has the variance."""
    nu, mu = optax.tree.get(state, "nu"), optax.tree.get(state, "mu")
    return (nu, jnp.zeros_like(nu)) if mu is None else (optax.tree.get(state, "var") + mu**2, mu)


def trajectory(tx, params, grads):
    """Parameters after each step, and ν and m as each step used them."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, *moments(state))

    def run(params, grads):
        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    after, nu, mu = jax.jit(run)(jnp.asarray(params), jnp.asarray(grads))
    return np.concatenate([params[None], after]), np.asarray(nu), np.asarray(mu)


def rows_only(tx, params, grads, rows):
    """Sparse gradients: the rule applied to the rows of parameters and state that have one.

    A framework's lazy rows are a gather, the dense rule, and a scatter: nothing of the rule itself.
    """
    state, history = tx.init(params), [params]
    for values, at in zip(grads, rows, strict=True):
        at, inverse = np.unique(at, return_inverse=True)
        summed = np.zeros((len(at), params.shape[1]))
        np.add.at(summed, inverse, values)
        part = jax.tree.map(lambda x, at=at: x[at] if jnp.ndim(x) else x, state)
        updates, new = tx.update(jnp.asarray(summed), part, params[at])
        state = jax.tree.map(lambda x, y, at=at: x.at[at].set(y) if jnp.ndim(x) else y, state, new)
        params = jnp.asarray(params).at[at].add(updates)
        history.append(params)
    return np.stack(history).reshape(len(history), -1)


@functools.cache
def measured(name):
    """|ours − recorded| and the bound, for each step and coordinate."""
    run, recorded = RECORDS["configs"][name], ARRAYS[name.replace("/", "__", 1)]
    row, run = row_of(name), rounded(run)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, grads, rates = inputs(name, run)
        tx = row.translated(run, as_schedule(rates, row.first_count))
        if run.get("sparse"):
            grads = grads[:, :12].reshape(-1, 4, 3)
            rows = RECORDS["inputs"]["sparse"]["rows"]
            after = rows_only(tx, jnp.asarray(params[:36].reshape(12, 3)), grads, rows)
            return np.abs(after - recorded), np.full(recorded.shape, 1e-12)
        after, nu, mu = trajectory(tx, params, grads)
    bound = np.full(recorded.shape, 1e-12)
    if run["dtype"] == "float32" or run.get("clip_norm_rounding"):
        bound = single_precision(run, after, grads, rates, nu, mu)
    error = np.abs(after - recorded)
    if name in NOT_THE_FIRST_STEP:
        error[0] = 0.0
        error[1:] = np.abs(np.diff(after, axis=0) - np.diff(recorded, axis=0))
        error[1] = 0.0
        # Optax's second step still divides by a difference that cancels.
        bound = np.full(recorded.shape, run["tolerance_abs"])
    if "nan_coordinates" in run:
        assert np.isfinite(after).all()  # a defect that is not reproduced
        error[:, run["nan_coordinates"]] = 0.0
    if name in FIRST_STEP_ONLY:
        error[2:] = 0.0
    return error, bound


def measure(name):
    """The largest error of a recorded trajectory, and the largest that is allowed."""
    error, bound = measured(name)
    return float(error.max()), float(bound.max())


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
    error, bound = measured(name)
    assert (error <= bound).all(), (error / bound).max()


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
    recorded = ARRAYS[name.replace("/", "__", 1)]
    np.testing.assert_allclose(numpy_trajectory(name, rule), recorded, atol=1e-12, rtol=0)


def test_mindspores_lanes_have_epsilon_in_two_places():
    run, recorded = rounded(RECORDS["configs"]["mindspore/eps"]), ARRAYS["mindspore__eps"]
    _, grads, rate = inputs("mindspore/eps", run)
    nu, fits = 1.0, []
    for g, step in zip(grads, np.diff(recorded, axis=0), strict=True):
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
    assert np.isfinite(after).all() and np.isfinite(ARRAYS["mindspore__constg_cent_mom"]).all()


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
        run, recorded = RECORDS["configs"][name], ARRAYS[name.replace("/", "__", 1)]
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
        assert np.abs(same - recorded).max() <= 1e-12
        # A thousand times the tolerance: nothing that is caught is caught by luck.
        assert np.abs(other - recorded).max() > 1e-9, name
        caught.add(name.partition("/")[0])
    assert len(caught) >= 4
