"""Two runs part: the first number, and the smallest set of changes that explains it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import optax_rmsprop
from optax_rmsprop import compare, dialects, recording
from optax_rmsprop.compare import _sides
from optax_rmsprop.probe import _model

SHAPES = {"a/bias": (5,), "a/kernel": (3, 5), "b/bias": (5,), "b/kernel": (5, 5)}
STEPS = 16


def data(seed, dtype=np.float64, steps=STEPS):
    """Parameters, and gradients of sizes from 1e-3 to 1, as a network's are."""
    rng = np.random.default_rng(seed)
    params = {n: (0.5 * rng.normal(size=s)).astype(dtype) for n, s in SHAPES.items()}
    grads = {
        n: (rng.normal(size=(steps, *s)) * 10 ** rng.uniform(-3, 0, s)).astype(dtype)
        for n, s in SHAPES.items()
    }
    return params, grads


def run(tx, params, grads, rates=None):
    """The recorded run of a transformation on given gradients."""
    state, kept = tx.init(params), [params]
    with jax.numpy_dtype_promotion("standard"):
        for t in range(STEPS):
            updates, state = tx.update({n: g[t] for n, g in grads.items()}, state, kept[-1])
            kept.append(jax.tree.map(np.asarray, optax.apply_updates(kept[-1], updates)))
    stacked = {n: np.stack([row[n] for row in kept]) for n in params}
    return types.SimpleNamespace(
        params=stacked, grads=grads, steps=np.arange(STEPS), learning_rates=rates, settings={}
    )


def changed(recorded, **fields):
    """A run with other fields."""
    return types.SimpleNamespace(**{**vars(recorded), **fields})


def leaf(arrays, **new):
    """Arrays with some of them replaced: `a_kernel` is `a/kernel`."""
    return arrays | {name.replace("_", "/"): x for name, x in new.items()}


TORCH = {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "momentum": 0.9}
KERAS = {"learning_rate": 0.01, "rho": 0.9, "epsilon": 1e-2}
LEAVES = list(SHAPES)


def biases(params):
    return {name: "bias" in name for name in params}


def kernels(params):
    return {name: "kernel" in name for name in params}


def warm_up(shift):
    return lambda count: 0.01 * jnp.minimum(1.0, (count + shift) / 8)


# Theirs, ours, the name of the change, and its values.
RULES = {
    "epsilon across the root": (
        dialects.torch(**TORCH), dialects.keras(**KERAS, momentum=0.9),
        "denominator", "outside", "inside"),
    "epsilon": (dialects.torch(**TORCH | {"eps": 1e-3}), dialects.torch(**TORCH), "eps",
                1e-3, 1e-2),
    "decay": (dialects.torch(**TORCH | {"alpha": 0.99}), dialects.torch(**TORCH), "decay",
              0.99, 0.9),
    "rate": (dialects.torch(**TORCH | {"lr": 0.02}), dialects.torch(**TORCH), "learning_rate",
             0.02, 0.01),
    "momentum": (dialects.torch(**TORCH | {"momentum": 0.8}), dialects.torch(**TORCH), "momentum",
                 0.8, 0.9),
    "no momentum": (dialects.torch(**TORCH | {"momentum": 0.0}), dialects.torch(**TORCH),
                    "momentum", 0.0, 0.9),
    "L2": (dialects.torch(**TORCH, weight_decay=0.05), dialects.torch(**TORCH),
           "weight_decay_kind", ("weight decay in the gradient (L2)", 0.05),
           ("no weight decay", 0.0)),
    "decoupled": (
        dialects.keras(**KERAS, weight_decay=0.5),
        optax.chain(optax.add_decayed_weights(0.5), dialects.keras(**KERAS)),
        "weight_decay_kind", ("decoupled weight decay, scaled by the rate", 0.5),
        ("weight decay in the gradient (L2)", 0.5)),
    "centred": (dialects.torch(**TORCH, centered=True), dialects.torch(**TORCH), "centered",
                True, False),
    "start": (optax_rmsprop.rmsprop(0.01, eps=1e-2, initial_scale=1.0),
              optax_rmsprop.rmsprop(0.01, eps=1e-2), "initial_scale", 1.0, 0.0),
    "Nesterov": (optax_rmsprop.rmsprop(0.01, momentum=0.9, nesterov=True),
                 optax_rmsprop.rmsprop(0.01, momentum=0.9), "nesterov", True, False),
    "bias": (optax_rmsprop.rmsprop(0.01, bias_correction=True), optax_rmsprop.rmsprop(0.01),
             "bias_correction", True, False),
    "maximized": (optax.chain(optax.scale(-1.0), dialects.torch(**TORCH)), dialects.torch(**TORCH),
                  "maximize", True, False),
    "clipped": (
        optax.chain(optax.clip(0.1), dialects.torch(**TORCH)), dialects.torch(**TORCH),
        "clip", ("clipping by value, before weight decay", 0.1), ("no clipping", 0.0)),
    "clipped norm": (
        optax.chain(optax.clip_by_global_norm(0.7), dialects.torch(**TORCH)),
        dialects.torch(**TORCH), "clip", ("clipping of the global norm", 0.7),
        ("no clipping", 0.0)),
    "loss scale": (
        optax.chain(optax.scale(64.0), dialects.torch(**TORCH, weight_decay=0.05)),
        dialects.torch(**TORCH, weight_decay=0.05 / 64), None, 64.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_change_of_the_rule_is_named(name, seed):
    theirs, ours, switch, *values = RULES[name]
    found = compare.steps(theirs, ours, *data(seed))
    best = found.causes[0]
    if switch is None:  # as much as the gradients of a loss that is not unscaled
        assert all(cause.left == 0 for cause in found.causes[:1])
        return
    assert (best.names, best.left) == ((switch,), 0.0), str(found)
    for value, expected in zip((best.changes[0].theirs, best.changes[0].ours), values, strict=True):
        if isinstance(expected, float):
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
        elif isinstance(expected, tuple):
            assert value == (expected[0], pytest.approx(expected[1], rel=1e-4))
        else:
            assert value == expected
    assert found.first.step <= 1 and found.first.what == "parameter"
    assert abs(found.first.difference) > 10 * found.first.allowed
    assert not found.unexplained


# With an average that begins at 1 and hardly moves in 16 steps, rounding hides much of the rest:
# where an epsilon is that no step shows, a rate of a part in a thousand more, another start.
@pytest.mark.parametrize(("seed", "size", "rate", "decay", "eps", "factor"), [
    (17, 0.35, 6.6e-4, 0.95, 3.8e-6, 100.0), (25, 0.25, 7.7e-4, 0.95, 3.2e-3, 0.01),
    (75, 4.0, 1e-2, 0.999, 4.3e-2, 0.01), (127, 0.7, 4.7e-3, 0.999, 5e-3, 0.01),
])  # fmt: skip
def test_an_epsilon_is_told_from_what_rounding_hides(seed, size, rate, decay, eps, factor):
    params, grads = data(seed, np.float32)
    grads = {n: np.float32(size) * g for n, g in grads.items()}
    theirs, ours = (
        run(
            optax_rmsprop.rmsprop(rate, decay, eps=x, initial_scale=1.0),
            params, grads, np.full(STEPS, rate),
        )
        for x in (factor * eps, eps)
    )  # fmt: skip
    found = compare.runs(theirs, ours)
    assert found.causes[0].names == ("eps",), str(found)
    values = found.causes[0].changes[0].theirs, found.causes[0].changes[0].ours
    assert max(values) == pytest.approx(max(eps, factor * eps), rel=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tx", [
    dialects.torch(**TORCH), dialects.keras(**KERAS, weight_decay=0.1), optax.rmsprop(1e-3),
], ids=["torch", "keras", "optax"])  # fmt: skip
def test_the_same_rule_has_no_difference(tx, dtype):
    params, grads = data(2, dtype)
    # Compiled alone, and with its gradients a rounding away: what another framework has.
    noisy = {n: (g * (1 + np.finfo(dtype).eps * (g > 0))).astype(dtype) for n, g in grads.items()}
    with jax.enable_x64(dtype == np.float64):
        found = compare.runs(run(tx, params, noisy), run(tx, params, grads))
    assert found == compare.Difference(None)
    assert str(found) == "The runs agree to rounding."


def test_two_changes_are_named():
    theirs = dialects.torch(**TORCH, weight_decay=0.05)
    found = compare.steps(theirs, dialects.keras(**KERAS, momentum=0.9), *data(3))
    assert sorted(found.causes[0].names) == ["denominator", "weight_decay_kind"]
    assert found.causes[0].left == 0


@pytest.fixture
def base(x64):
    """The run of a rule, its parameters and gradients."""
    params, grads = data(4)
    return run(dialects.torch(**TORCH), params, grads)


def only(found, name):
    """The single change, which explains everything."""
    assert found.causes and found.causes[0].names == (name,), str(found)
    assert found.causes[0].left == 0 and not found.unexplained and found.first is not None
    assert name == "data" or str(found.causes[0].changes[0].text) in str(found)
    return found.causes[0].changes[0]


@pytest.mark.parametrize("factor", [32.0, 1 / 32, -1.0])
def test_a_factor_of_the_gradients(base, factor):
    params, grads = data(4)
    grads = {n: factor * g for n, g in grads.items()}
    found = compare.runs(run(dialects.torch(**TORCH), params, grads), base)
    assert only(found, "gradient_factor").theirs == pytest.approx(factor)
    assert (found.first.step, found.first.what) == (0, "gradient")


def test_a_leaf_that_is_not_trained(base):
    theirs = changed(base, params=leaf(base.params, b_bias=base.params["b/bias"][[0] * 17]))
    change = only(compare.runs(theirs, base), "frozen")
    assert change.leaves == ("b/bias",) and change.theirs and not change.ours
    change = only(compare.runs(base, theirs), "frozen")
    assert change.leaves == ("b/bias",) and change.ours and not change.theirs


def test_a_gradient_that_is_missing(base):
    params, grads = data(4)
    grads = leaf(grads, a_kernel=0 * grads["a/kernel"])
    found = compare.runs(run(dialects.torch(**TORCH), params, grads), base)
    assert only(found, "missing_gradient").leaves == ("a/kernel",)


@pytest.mark.parametrize("field", ["both", "initial"])
def test_a_leaf_that_is_transposed(base, field):
    params, grads = data(4)
    theirs = leaf(params, b_kernel=params["b/kernel"].T)
    seen = leaf(grads, b_kernel=grads["b/kernel"].swapaxes(1, 2)) if field == "both" else grads
    found = compare.runs(run(dialects.torch(**TORCH), theirs, seen), base)
    change = only(found, "transposed")
    assert change.leaves == ("b/kernel",)
    assert ("its gradients are not" in change.text) == (field == "initial")
    assert (found.first.what, found.first.leaf) == ("initial parameter", "b/kernel")


def test_leaves_that_are_swapped(base):
    params, grads = data(4)
    theirs = leaf(params, a_bias=params["b/bias"], b_bias=params["a/bias"])
    seen = leaf(grads, a_bias=grads["b/bias"], b_bias=grads["a/bias"])
    found = compare.runs(run(dialects.torch(**TORCH), theirs, seen), base)
    assert set(only(found, "swapped").leaves) == {"a/bias", "b/bias"}


def test_leaves_that_are_swapped_and_begin_at_zero(x64):
    params, grads = data(5)
    params = leaf(params, a_bias=np.zeros(5), b_bias=np.zeros(5))
    seen = leaf(grads, a_bias=grads["b/bias"], b_bias=grads["a/bias"])
    tx = dialects.torch(**TORCH)
    found = compare.runs(run(tx, params, seen), run(tx, params, grads))
    assert set(only(found, "swapped").leaves) == {"a/bias", "b/bias"}


def test_shapes_that_ask_for_another_layout_are_no_difference(base):
    turn = lambda arrays: {n: x.swapaxes(1, 2) if x.ndim == 3 else x for n, x in arrays.items()}  # noqa: E731
    theirs = changed(base, params=turn(base.params), grads=turn(base.grads))
    found = compare.runs(theirs, base)
    assert found.first is None and not found.causes and "[1, 0]" in found.notes[0]
    # The square one alone is as ours has it: it was forgotten.
    square = [leaf(a, b_kernel=b["b/kernel"]) for a, b in
              ((theirs.params, base.params), (theirs.grads, base.grads))]  # fmt: skip
    theirs = changed(theirs, params=square[0], grads=square[1])
    assert only(compare.runs(theirs, base), "transposed").leaves == ("b/kernel",)


def test_convolutions_of_another_framework_are_no_difference(x64):
    rng = np.random.default_rng(6)
    params = {"kernel": rng.normal(size=(3, 3, 2, 4))}
    grads = {"kernel": rng.normal(size=(STEPS, 3, 3, 2, 4))}
    ours = run(dialects.torch(**TORCH), params, grads)
    turn = lambda arrays: {"conv.weight": arrays["kernel"].transpose(0, 4, 3, 1, 2)}  # noqa: E731
    theirs = changed(ours, params=turn(ours.params), grads=turn(ours.grads))
    found = compare.runs(theirs, ours, {"conv.weight": "kernel"})
    assert found.first is None and not found.causes


def test_an_image_that_was_flattened_in_another_order(x64):
    order = np.arange(15).reshape(3, 5).T.ravel()
    params, grads = {"w": np.arange(30.0).reshape(15, 2)}, {"w": np.ones((STEPS, 15, 2))}
    grads["w"] *= np.random.default_rng(0).normal(size=(STEPS, 15, 2))
    tx = dialects.torch(**TORCH)
    theirs = run(tx, {"w": params["w"][order]}, {"w": grads["w"][:, order]})
    change = only(compare.runs(theirs, run(tx, params, grads)), "permuted")
    assert "channels" in change.text


def test_other_initial_parameters(base):
    params, grads = data(4)
    theirs = leaf(params, a_kernel=params["a/kernel"] + 1.0)
    found = compare.runs(run(dialects.torch(**TORCH), theirs, grads), base)
    assert only(found, "initial_params").leaves == ("a/kernel",)


@pytest.mark.parametrize("first", [0, 5])
def test_other_data_are_not_the_optimizer(base, first):
    params, grads = data(4)
    other = data(9)[1]
    grads = {n: np.concatenate([g[:first], other[n][first:]]) for n, g in grads.items()}
    found = compare.runs(run(dialects.torch(**TORCH), params, grads), base)
    assert only(found, "data").step == first
    assert (found.first.step, found.first.what) == (first, "gradient")


def test_gradients_that_are_a_step_behind(base):
    params, grads = data(4)
    grads = {n: np.roll(g, 1, 0) for n, g in grads.items()}
    found = compare.runs(run(dialects.torch(**TORCH), params, grads), base)
    assert only(found, "step_shift").theirs == -1


def test_an_update_that_is_skipped(base):
    params, grads = data(4)
    parts = [{n: g[:6] for n, g in grads.items()}, {n: g[7:] for n, g in grads.items()}]
    kept = {n: np.concatenate([a, b])[: STEPS - 1] for (n, a), b in
            zip(parts[0].items(), parts[1].values(), strict=True)}  # fmt: skip
    padded = {n: np.concatenate([g, g[-1:]]) for n, g in kept.items()}
    rows = run(dialects.torch(**TORCH), params, padded).params
    theirs = {n: np.concatenate([p[:7], p[6:16]]) for n, p in rows.items()}
    change = only(compare.runs(changed(base, params=theirs), base), "skipped_step")
    assert change.theirs == (6,)


def test_a_state_that_begins_anew(base):
    _, grads = data(4)
    tx = dialects.torch(**TORCH)
    half = {n: g[8:] for n, g in grads.items()}
    later = {n: np.concatenate([g, g]) for n, g in half.items()}
    again = run(tx, {n: p[8] for n, p in base.params.items()}, later).params
    theirs = {n: np.concatenate([p[:8], again[n][:9]]) for n, p in base.params.items()}
    assert only(compare.runs(changed(base, params=theirs), base), "reset").theirs == 8


def carried(tx):
    """A run that begins with the state of six steps before."""
    params, grads = data(4)
    before = {n: np.concatenate([g[:6], g])[:STEPS] for n, g in grads.items()}
    whole = run(tx, params, before)
    return changed(
        whole, params={n: p[6:] for n, p in whole.params.items()},
        grads={n: g[6:] for n, g in before.items()}, steps=np.arange(STEPS - 6),
    )  # fmt: skip


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_that_is_carried_over(x64, momentum):
    tx = dialects.torch(**TORCH | {"momentum": momentum})
    theirs = carried(tx)
    ours = run(tx, {n: p[0] for n, p in theirs.params.items()}, data(4)[1])
    assert only(compare.runs(theirs, ours), "carried_state")


@pytest.mark.slow
def test_a_state_that_is_carried_over_beside_another_rule(x64):
    theirs = carried(dialects.keras(**KERAS, momentum=0.9))
    ours = run(dialects.torch(**TORCH), {n: p[0] for n, p in theirs.params.items()}, data(4)[1])
    found = compare.runs(theirs, ours)
    assert set(found.causes[0].names) == {"carried_state", "denominator"}, str(found)
    assert found.causes[0].left == 0


@pytest.mark.parametrize("buffer", [True, False])
@pytest.mark.parametrize("kind", [_model.NO_DECAY, _model.L2, _model.DECOUPLED])
@pytest.mark.parametrize(
    "denominator", [_model.INSIDE, _model.OUTSIDE, _model.FLOOR], ids=["in", "out", "floor"]
)
def test_a_state_of_any_numbers_is_solved_for(denominator, kind, buffer):
    truth = _model.rules(
        [[0.01, 0.1, 1e-3, 0.0, 0.8, 0.05, 1.0, np.inf]], denominator, buffer=buffer, kind=kind
    )
    rng = np.random.default_rng(22)
    grads, params = rng.normal(size=(14, 9)), rng.normal(size=(1, 9))
    rates = np.linspace(1.0, 0.5, 14)
    for t in range(1, 15):  # a rule sees the parameters that it made
        run = _model.run_of(np.concatenate([params, params[-1:]]), grads[:t], rates[:t])
        params = np.concatenate([params, params[-1:] + _model.simulate(truth, run)[0, -1:]])
    run = _model.run_of(params[5:], grads[5:], rates[5:])
    side = _sides.side_of(run).replace(carried=True)
    assert _sides.held_by(truth, side).all()
    assert not _sides.held_by(truth, side.replace(carried=False)).any()
    other = truth.of(truth.numbers * np.array([[1, 1.001, 1, 1, 1, 1, 1, 1]]))
    assert not _sides.held_by(other, side).any()


CENTERED = {"eps": 1e-3, "eps_in_sqrt": False, "centered": True, "bias_correction": True}


def test_a_first_step_that_rounding_decides_hides_no_change():
    """Optax divides the first gradient by the rounding of 0, and momentum keeps that step."""
    rules = (optax.rmsprop(1e-3, decay, momentum=0.9, **CENTERED) for decay in (0.95, 0.9))
    assert only(compare.steps(*rules, *data(20, np.float32)), "decay").theirs == pytest.approx(0.95)


def test_the_first_step_of_a_centred_and_corrected_rule_is_a_change_of_its_own():
    rules = (
        make(1e-2, momentum=0.9, **CENTERED) for make in (optax.rmsprop, optax_rmsprop.rmsprop)
    )
    change = only(compare.steps(*rules, *data(21)), "first_step")
    assert (change.theirs, change.ours) == (False, True)


def test_a_group_without_decay():
    options = {**KERAS, "momentum": 0.9}
    theirs = optax.chain(
        optax.add_decayed_weights(0.05, mask=kernels), dialects.keras(**options)
    )  # fmt: skip
    ours = optax.chain(optax.add_decayed_weights(0.05), dialects.keras(**options))
    found = compare.steps(theirs, ours, *data(7))
    assert set(only(found, "weight_decay_of_leaf").leaves) == {"a/bias", "b/bias"}


def test_a_group_without_the_decay_that_one_alone_has():
    decayed = optax.masked(optax.add_decayed_weights(0.05), kernels)
    theirs = optax.chain(decayed, dialects.torch(**TORCH))
    found = compare.steps(theirs, dialects.torch(**TORCH), *data(8)).causes[0]
    assert found.left == 0 and found.names == ("weight_decay_kind", "weight_decay_of_leaf"), found
    text = "theirs does not decay 'a/bias', 'b/bias', as it does the other leaves"
    assert found.changes[1].text == text


def test_a_group_with_another_rate():
    theirs = optax.chain(dialects.keras(**KERAS), optax.masked(optax.scale(2.0), biases))
    found = compare.steps(theirs, dialects.keras(**KERAS), *data(8))
    change = only(found, "rate_of_leaf")
    assert set(change.leaves) == {"a/bias", "b/bias"} and change.theirs == pytest.approx(2.0)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_warm_up_that_is_off_by_one(x64, recorded):
    params, grads = data(10)
    both = [
        run(dialects.torch(**TORCH | {"lr": warm_up(shift)}), params, grads,
            np.array([warm_up(shift)(k) for k in range(STEPS)]) if recorded else None)
        for shift in (1, 2)
    ]  # fmt: skip
    change = only(compare.runs(*both), "schedule")
    assert "one step behind" in change.text and change.theirs == 1


def cosine(shift):
    return lambda count: 1e-3 * (1 + jnp.cos(jnp.pi * jnp.maximum(count - shift, 0) / 40))


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_a_schedule_that_was_not_recorded_beside_a_decay_that_it_scales(dtype):
    theirs, ours = (dialects.keras(cosine(shift), weight_decay=0.01) for shift in (1, 0))
    change = only(compare.steps(theirs, ours, *data(0, dtype)), "schedule")
    assert "one step behind" in change.text


@pytest.mark.parametrize("seed", [0, 1])
def test_a_decay_at_a_constant_rate_is_the_one_that_most_have(seed):
    """Scaled by the rate, by its square or not at all, it is the same one."""
    theirs, ours = dialects.keras(1e-3, weight_decay=0.01), dialects.keras(1e-3)
    change = only(compare.steps(theirs, ours, *data(seed)), "weight_decay_kind")
    assert change.theirs == ("decoupled weight decay, scaled by the rate", pytest.approx(0.01))


@pytest.mark.parametrize("bound", [1.0, pytest.param(2.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("by_leaf", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_norm_that_clips_before_the_decay_or_after_it(bound, by_leaf):
    clip = dialects.clip_by_norm(bound, together=not by_leaf)
    links = [optax.add_decayed_weights(0.05), clip]
    theirs, ours = (optax.chain(*x, optax_rmsprop.rmsprop(1e-3)) for x in (links, links[::-1]))
    change = only(compare.steps(theirs, ours, *data(0)), "clip")
    assert "norm, after weight decay of" in change.text
    assert change.theirs[1] == change.ours[1] == pytest.approx(bound)


@pytest.mark.parametrize("jump", [1e-3, 1e-4])
def test_one_number_that_jumps_is_no_rounding(base, jump):
    theirs = {n: x.copy() for n, x in base.params.items()}
    theirs["a/kernel"][5:, 0, 0] += jump
    found = compare.runs(changed(base, params=theirs), base)
    assert found.unexplained and (found.first.step, found.first.leaf) == (4, "a/kernel")
    assert all(cause.left > 0 for cause in found.causes)


@pytest.mark.parametrize("rounded", [True, False])  # the recorded rates, to float32
def test_the_place_of_the_rate(x64, rounded):
    params, grads = data(11)
    rates = np.array([warm_up(1)(jnp.int32(k) if rounded else k) for k in range(STEPS)])
    theirs = dialects.pfrl(warm_up(1), alpha=0.9, momentum=0.9, eps=1e-2)
    ours = dialects.keras(**KERAS | {"learning_rate": warm_up(1)}, momentum=0.9)
    found = compare.runs(*(run(tx, params, grads, rates) for tx in (theirs, ours)))
    change = only(found, "rate_in_buffer")
    assert (change.theirs, change.ours) == (False, True)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_schedule_beside_a_constant_rate_says_nothing_of_its_place(x64, recorded):
    params, grads = data(18)
    ours = run(dialects.torch(**TORCH), params, grads, np.full(STEPS, 0.01) if recorded else None)
    rates = np.array([warm_up(1)(jnp.int32(k)) for k in range(STEPS)]) if recorded else None
    theirs = run(dialects.torch(**TORCH | {"lr": warm_up(1)}), params, grads, rates)
    change = only(compare.runs(theirs, ours), "schedule")
    assert "theirs warms the learning rate up for 7 steps" in change.text


def test_parameters_that_are_rounded():
    params, grads = data(12, np.float32)
    tx = dialects.torch(**TORCH)
    ours = run(tx, params, grads)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("standard"):
        theirs = run(tx, half, grads)
    theirs.params = {n: p.astype(np.float32) for n, p in theirs.params.items()}
    begun = {n: p[0] for n, p in theirs.params.items()}
    change = only(compare.runs(theirs, run(tx, begun, grads)), "precision")
    assert (change.theirs, change.ours) == ("bfloat16", "float32")
    assert ours.params.keys() == theirs.params.keys()


@pytest.mark.slow
def test_another_optimizer_is_no_guess():
    found = compare.steps(optax.adam(0.01), dialects.torch(**TORCH), *data(13))
    assert found.first is not None and "RMSprop" in found.unexplained
    assert all(cause.left > 0.01 for cause in found.causes)
    assert "Unexplained" in str(found)


@pytest.mark.api
def test_sgd_is_no_rmsprop():
    ours = dialects.torch(**TORCH)
    found = compare.steps(optax.sgd(0.1, momentum=0.9), ours, *data(13))
    assert "theirs is SGD" in found.unexplained and not found.causes
    assert (found.first.step, found.first.what) == (0, "parameter")
    found = compare.steps(optax.sgd(0.1), optax.sgd(0.2), *data(13))
    assert "neither" in found.unexplained and not found.causes


@pytest.mark.api
def test_a_black_box_and_a_transformation(x64):
    def start(params):
        p, nu = params.copy(), np.zeros_like(params)

        def step(g):
            nonlocal p, nu
            nu = 0.9 * nu + 0.1 * g * g
            p = p - 0.01 * g / (np.sqrt(nu) + 1e-2)
            return p

        return step

    params, grads = data(14)
    ours = dialects.torch(0.01, alpha=0.9, eps=1e-2)
    assert compare.steps(start, ours, params, grads).first is None
    rows = [{n: g[t] for n, g in grads.items()} for t in range(STEPS)]
    assert compare.steps(start, ours, params, rows).first is None
    found = compare.steps(start, dialects.torch(0.02, alpha=0.9, eps=1e-2), params, grads)
    assert only(found, "learning_rate").theirs == pytest.approx(0.01)


def test_settings_are_put_back():
    before = jax.config.jax_enable_x64
    params, grads = data(15)
    compare.steps(dialects.torch(0.1), dialects.torch(0.1), params, grads)
    assert jax.config.jax_enable_x64 == before


def test_steps_that_are_not_finite_end_the_comparison(base):
    params, grads = data(4)
    grads = {n: np.where(np.arange(STEPS).reshape(-1, *[1] * (g.ndim - 1)) == 5, np.nan, g)
             for n, g in grads.items()}  # fmt: skip
    theirs = run(dialects.torch(**TORCH), params, grads)
    change = only(compare.runs(theirs, base), "nonfinite")
    assert change.step == 5 and "theirs" in change.text
    ours = run(dialects.keras(**KERAS, momentum=0.9), params, grads)
    found = compare.runs(theirs, ours)
    only(found, "denominator")
    assert found.notes == tuple(
        f"the gradients of step 5 are not finite in 'a/bias' of {who}" for who in ("theirs", "ours")
    )


def test_noise_of_fewer_digits_is_one_change(base):
    params, grads = data(4)
    rng = np.random.default_rng(0)
    params, grads = leaf(params, scale=np.ones(())), leaf(grads, scale=rng.normal(size=STEPS))
    noisy = {n: g * (1 + 1e-6 * rng.normal(size=g.shape)) for n, g in grads.items()}
    tx = dialects.torch(**TORCH)
    found = compare.runs(run(tx, params, noisy), run(tx, params, grads))
    assert "noise of" in only(found, "gradient_precision").text and len(found.causes) == 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_runs(base, steps):
    def short(recorded):
        return changed(
            recorded, steps=np.arange(steps),
            params={n: p[: steps + 1] for n, p in recorded.params.items()},
            grads={n: g[:steps] for n, g in recorded.grads.items()},
        )  # fmt: skip

    assert compare.runs(short(base), base) == compare.Difference(None)
    theirs = run(dialects.torch(**TORCH | {"lr": 0.02}), *data(4))
    found = compare.runs(short(theirs), base)
    assert found.first.step == 0 and found.causes[0].left == 0
    assert ("learning_rate",) in [cause.names for cause in found.causes if cause.left == 0]


def test_trees_of_lists_and_leaves_without_numbers(x64):
    rng = np.random.default_rng(0)
    params = [{"w": rng.normal(size=(4, 3))}, [np.zeros(3), np.ones(())], np.zeros((0, 2))]
    grads = jax.tree.map(lambda p: 0.1 * rng.normal(size=(STEPS, *p.shape)), params)
    theirs, ours = dialects.torch(0.01, eps=1e-2), dialects.keras(0.01, rho=0.99, epsilon=1e-2)
    found = compare.steps(theirs, ours, params, grads)
    only(found, "denominator")
    assert found.first.leaf in ("0/w", "1/0", "1/1")
    assert compare.steps(theirs, theirs, params, grads).first is None


def test_parameters_in_bfloat16(base):
    params, grads = data(4, jnp.bfloat16)
    rules = dialects.torch(**TORCH), dialects.keras(**KERAS, momentum=0.9)
    theirs, ours = (run(tx, params, grads) for tx in rules)
    assert compare.runs(ours, ours).first is None
    found = compare.runs(theirs, ours)
    assert ("denominator",) in [cause.names for cause in found.causes if cause.left == 0]


@pytest.mark.parametrize(
    ["fields", "error", "words"],
    [
        ({"params": {}, "grads": {}}, ValueError, "theirs.params is empty"),
        ({"params": [1.0]}, TypeError, "theirs.params must be a mapping"),
        ({"params": {"w": np.ones((3, 2))}, "grads": {"v": np.ones((2, 2))}}, ValueError, "'v'"),
        ({"params": {"w": np.ones((3, 2), int)}, "grads": {"w": np.ones((2, 2))}}, TypeError,
         r"theirs.params\['w'\]"),
        ({"params": {"w": np.ones((3, 2), complex)}, "grads": {"w": np.ones((2, 2))}}, TypeError,
         "complex"),
        ({"params": {"w": np.ones((2, 2))}, "grads": {"w": np.ones((2, 2))}}, ValueError,
         "rows are needed"),
        ({"steps": np.arange(3, 3 + STEPS)}, ValueError, "first step"),
        ({"learning_rates": np.ones(3)}, ValueError, "learning_rates"),
    ],
)  # fmt: skip
def test_wrong_runs_are_refused_by_name(base, fields, error, words):
    with pytest.raises(error, match=words):
        compare.runs(changed(base, **fields), base)


def test_leaves_that_one_run_has_alone_are_refused_by_name(base):
    other = changed(base, params={f"x.{n}": p for n, p in base.params.items()},
                    grads={f"x.{n}": g for n, g in base.grads.items()})  # fmt: skip
    with pytest.raises(ValueError, match=r"x\.a/bias"):
        compare.runs(other, base)
    with pytest.raises(ValueError, match="'nothing'"):
        compare.runs(other, base, {"nothing": "a/bias"})
    with pytest.raises(ValueError, match="two leaves"):
        compare.runs(other, base, lambda name: "a/bias")
    found = compare.runs(other, base, lambda name: name.removeprefix("x."))
    assert found.first is None


@pytest.mark.parametrize(
    ["theirs", "params", "grads", "error"],
    [
        (3, np.ones(2), np.ones((4, 2)), TypeError),
        (optax.sgd(0.1), np.ones(2, int), np.ones((4, 2)), TypeError),
        (optax.sgd(0.1), np.ones(2), np.ones((4, 3)), ValueError),
        (optax.sgd(0.1), np.ones(2), [{"w": np.ones(2)}], ValueError),
        (lambda p: lambda g: np.ones(3), np.ones(2), np.ones((4, 2)), ValueError),
    ],
)
def test_wrong_steps_are_refused_by_name(theirs, params, grads, error):
    with pytest.raises(error, match=r"compare\.steps"):
        compare.steps(theirs, optax.sgd(0.1), params, grads)


def test_a_difference_is_data():
    found = compare.steps(dialects.torch(0.02), dialects.torch(0.01), *data(16))
    plain = dataclasses.asdict(found)
    assert plain["first"]["leaf"] in SHAPES and plain["causes"][0]["changes"][0]["theirs"] == 0.02
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.first.step = 3


def digits(dtype=np.float32):
    """Batches of handwritten digits in [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    x, y = x[: STEPS * 32] / 16, y[: STEPS * 32]
    return x.reshape(STEPS, 32, -1).astype(dtype), y.reshape(STEPS, 32)


@pytest.fixture(scope="module")
def flax_run():
    """A network in Flax, recorded while it trains."""
    tx = dialects.torch(3e-3, alpha=0.9, eps=1e-3, weight_decay=0.01)
    tx = recording.record(tx, STEPS)
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 12, rngs=rngs), nnx.tanh, nnx.Linear(12, 10, rngs=rngs))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for x, y in zip(*digits(), strict=True):
        step(model, optimizer, x, y)
    return recording.Run.of(optimizer.opt_state, tx)


def numpy_run(params, inside=False, summed=False, decayed=("kernel", "bias")):
    """The same network with PyTorch's RMSprop and weight decay, by hand, its sums in another order.

    The kernels lie as PyTorch has them.
    """
    f32, names = np.float32, ["0.weight", "0.bias", "1.weight", "1.bias"]
    kept, seen, nu = [dict(zip(names, params, strict=True))], [], dict.fromkeys(names, 0)
    for x, y in zip(*digits(), strict=True):
        x, y, p = x[::-1], y[::-1], kept[-1]
        h = np.tanh(x @ p["0.weight"].T + p["0.bias"])
        odds = np.exp(h @ p["1.weight"].T + p["1.bias"])
        delta = odds / odds.sum(1, keepdims=True) - np.eye(10, dtype=f32)[y]
        delta = delta if summed else delta / f32(len(y))
        before = (delta @ p["1.weight"]) * (1 - h * h)
        parts = (before.T @ x, before.sum(0), delta.T @ h, delta.sum(0))
        seen.append(dict(zip(names, parts, strict=True)))
        new = {}
        for n, g in seen[-1].items():
            g = g + f32(0.01) * p[n] * (("bias" if "bias" in n else "kernel") in decayed)
            nu[n] = f32(0.9) * nu[n] + f32(0.1) * g * g
            root = np.sqrt(nu[n] + f32(1e-3)) if inside else np.sqrt(nu[n]) + f32(1e-3)
            new[n] = p[n] - f32(3e-3) * g / root
        kept.append(new)
    stacked = ({n: np.stack([row[n] for row in rows]) for n in names} for rows in (kept, seen))
    return recording.Run(*stacked, np.arange(STEPS))


@pytest.mark.parametrize(
    ["fault", "name"],
    [
        ({}, None),
        ({"inside": True}, "denominator"),
        ({"summed": True}, "gradient_factor"),
        ({"decayed": ("kernel",)}, "weight_decay_of_leaf"),
    ],
)
def test_a_network_of_another_framework(flax_run, fault, name):
    ours = flax_run
    first = {path: x[0] for path, x in ours.params.items()}
    paths = [next(p for p in first if f"{i}" in p and kind in p)
             for i in (0, 2) for kind in ("kernel", "bias")]  # fmt: skip
    theirs = numpy_run([first[p].T for p in paths], **fault)
    found = compare.runs(theirs, ours, dict(zip(theirs.params, paths, strict=True)))
    if name is None:
        assert found.first is None and not found.causes and not found.unexplained, str(found)
    else:
        only(found, name)


@pytest.mark.slow
def test_a_leaf_that_stands_still_is_not_rounded():
    """Coarse rounding hides steps of a parameter near 1, and is no reason for what stands still."""
    params, grads = data(20, np.float32)
    params = leaf(params, a_bias=np.ones(5, np.float32))
    theirs = run(dialects.torch(lr=0.01, alpha=0.9, eps=1e-3), params, grads)
    still = theirs.params["a/bias"].copy()
    still[6:] = still[5]
    found = compare.runs(theirs, changed(theirs, params=leaf(theirs.params, a_bias=still)))
    assert found.first is not None and found.first.leaf == "a/bias"
    assert not any("precision" in cause.names for cause in found.causes), str(found)


@pytest.mark.slow
def test_what_cannot_be_compared_is_not_called_equal():
    """Gradients of different models leave nothing to say about two optimizers that are unknown."""
    (params, grads), (_, others) = data(22), data(23)
    theirs = run(optax.adam(0.01), params, grads)
    double = leaf(params, a_kernel=2 * params["a/kernel"])
    found = compare.runs(theirs, run(optax.adam(0.02), double, others))
    assert "differ too much" in found.unexplained
    assert all(cause.left > 0 for cause in found.causes)


@pytest.mark.parametrize("frozen", ["theirs", "ours"])
@pytest.mark.parametrize("tx", [optax.set_to_zero(), dialects.keras(0.0)], ids=["none", "rate 0"])
def test_a_run_that_does_not_move(frozen, tx, x64):
    params, grads = data(24)
    moving, still = run(dialects.torch(**TORCH), params, grads), run(tx, params, grads)
    pair = (still, moving) if frozen == "theirs" else (moving, still)
    found = compare.runs(*pair)
    change = only(found, "frozen")
    assert (change.theirs, change.ours) == (frozen == "theirs", frozen == "ours")
    assert change.text.startswith(f"{frozen} does not move")
    assert found.first.step == 0 and found.first.theirs != found.first.ours
    assert compare.runs(still, changed(still, grads={n: 2 * g for n, g in grads.items()})).causes
    assert str(compare.runs(still, still)) == "The runs agree to rounding."


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_steps_of_parameters_in_half_precision(dtype):
    grads = np.sin(np.arange(64.0).reshape(16, 4))
    same = compare.steps(dialects.keras(0.1), dialects.keras(0.1), jnp.ones(4, dtype), grads)
    assert same.first is None and not same.causes
    other = compare.steps(dialects.keras(0.1), dialects.keras(0.3), jnp.ones(4, dtype), grads)
    assert other.first is not None and other.first.step == 0
