"""Carried states: what is filled, what is refused and by which words. Frameworks: tests/live."""

import copy
import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_rmsprop as ours
from optax_rmsprop import dialects, interop

pytestmark = pytest.mark.api

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=3)}
NAMES = ["w", "b"]
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered-momentum": {"centered": True, "momentum": 0.9},
}
same = lambda tree: tree  # noqa: E731


def trained(tx, steps=5, params=PARAMS, seed=1, **extra):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    with jax.numpy_dtype_promotion("standard"):  # which Optax's links need
        state = tx.init(params)
        for _ in range(steps):
            grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
            updates, state = tx.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
    return state


def fresh_torch(**options):
    return {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1], **options}]}


def fresh_keras(momentum=True, centered=True):
    kinds = ["velocity"] + ["momentum"] * momentum + ["average_gradient"] * centered
    variables = {"rmsprop/iteration": np.int32(0), "rmsprop/learning_rate": np.float32(0.01)}
    for kind in kinds:
        variables |= {f"rmsprop/{n}_{kind}": np.zeros_like(PARAMS[n]) for n in NAMES}
    return variables


def fresh_tensorflow1(centered=True):
    slots = ["RMSProp", "RMSProp_1"] + ["RMSProp_2"] * centered
    return {f"{n}/{slot}": np.zeros_like(PARAMS[n]) for n in NAMES for slot in slots}


ROUND_TRIPS = {
    "torch": (
        dialects.torch,
        lambda state, **o: interop.to_torch(state, fresh_torch(**o), same, names=NAMES),
        lambda saved, like: interop.from_torch(saved, like, same, names=NAMES),
    ),
    "keras": (
        dialects.keras,
        lambda state, **o: interop.to_keras(
            state, fresh_keras("momentum" in o, "centered" in o), same
        ),
        lambda saved, like: interop.from_keras(saved, like, same),
    ),
    "tensorflow1": (
        lambda **o: dialects.tensorflow1(0.01, **o),
        lambda state, **o: interop.to_tensorflow1(state, fresh_tensorflow1("centered" in o), same),
        lambda saved, like: interop.from_tensorflow1(saved, like, same, count=5),
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("framework", ROUND_TRIPS)
def test_there_and_back_is_the_same_state(framework, setting):
    make, there, back = ROUND_TRIPS[framework]
    tx = make(**SETTINGS[setting])
    state = trained(tx)
    carried = back(there(state, **SETTINGS[setting]), trained(tx, seed=2))
    chex.assert_trees_all_equal_shapes_and_dtypes(carried, state)
    # A variance goes as ν and comes back as ν − m², with the rounding of ν.
    tolerance = 1e-6 if "centered" in setting else 0.0
    chex.assert_trees_all_close(carried, _with_rate(state, carried), rtol=tolerance, atol=tolerance)


def _with_rate(state, like):
    """The rate is the framework's own, which none of the round trips changes."""
    rate = optax.tree.get(like, "last_learning_rate")
    return optax.tree.set(state, last_learning_rate=rate)


def test_the_momentum_changes_sign_and_takes_the_rate_with_it():
    step, direction = dialects.keras(0.25, momentum=0.9), dialects.pfrl(0.25, momentum=0.9)
    directions = {"w": np.full((2, 3), 8.0), "b": np.full(3, -4.0)}
    saved = fresh_torch(lr=0.25)
    saved["state"] = {
        i: {"step": 1.0, "square_avg": np.ones_like(PARAMS[n]), "momentum_buffer": directions[n]}
        for i, n in enumerate(NAMES)
    }
    into_steps = interop.from_torch(saved, step.init(PARAMS), same, names=NAMES)
    into_directions = interop.from_torch(saved, direction.init(PARAMS), same, names=NAMES)
    for name, value in directions.items():
        np.testing.assert_array_equal(optax.tree.get(into_steps, "trace")[name], -0.25 * value)
        np.testing.assert_array_equal(optax.tree.get(into_directions, "trace")[name], value)
    back = interop.to_torch(into_steps, saved, same, names=NAMES)
    np.testing.assert_array_equal(back["state"][0]["momentum_buffer"], directions["w"])
    keras = interop.to_keras(into_directions, fresh_keras(centered=False), same, names=NAMES)
    # Keras's own rate: the buffer is multiplied by what will be used on it.
    np.testing.assert_allclose(keras["rmsprop/w_momentum"], 0.01 * directions["w"], rtol=1e-6)


def test_counts_rates_and_wrappers_are_found_wherever_they_are():
    tx = optax.MultiSteps(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.masked(
                dialects.torch(optax.constant_schedule(0.5), momentum=0.9, weight_decay=0.1),
                {"w": True, "b": True},
            ),
        ),
        every_k_schedule=2,
    )
    like = tx.init(jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS))
    saved = interop.to_torch(
        trained(dialects.torch(momentum=0.9)), fresh_torch(), same, names=NAMES
    )
    state = interop.from_torch(saved, like, same, names=NAMES)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, like)
    inner = state.inner_opt_state
    assert {int(x) for x in jax.tree.leaves(inner) if x.dtype == jnp.int32} == {5}
    np.testing.assert_allclose(optax.tree.get(inner, "last_learning_rate"), 0.01)
    np.testing.assert_array_equal(optax.tree.get(inner, "nu")["w"], saved["state"][0]["square_avg"])


def test_a_leaf_without_gradients_keeps_its_empty_accumulator():
    params = PARAMS | {"steps": np.arange(3)}
    like = dialects.torch().init(jax.tree.map(jnp.asarray, params))
    saved = interop.to_torch(trained(dialects.torch()), fresh_torch(), same, names=NAMES)
    state = interop.from_torch(saved, like, same, names=NAMES)
    assert optax.tree.get(state, "nu")["steps"].shape == (0,)


def torch_saved():
    state = trained(dialects.torch(momentum=0.9))
    return interop.to_torch(state, fresh_torch(), same, names=NAMES)


LIKE = dialects.torch(momentum=0.9).init(jax.tree.map(jnp.asarray, PARAMS))


def changed(change):
    saved = copy.deepcopy(torch_saved())
    change(saved)
    return saved


def from_torch(saved, like=LIKE, convert=same, names=NAMES):
    return interop.from_torch(saved, like, convert, names=names)


def pop(saved):
    del saved["state"][1]["momentum_buffer"]


def surplus(saved):
    saved["state"][7] = saved["state"][0]


def uneven(saved):
    saved["state"][1]["step"] = np.float32(4)


def misshaped(saved):
    saved["state"][0]["square_avg"] = np.ones((3, 2))


def record(saved):
    saved["param_groups"][0]["param_names"] = ["b", "w"]


def entry(**changes):
    """Another entry of the second parameter."""
    return lambda saved: saved["state"][1].update(changes)


def to_torch(state):
    return interop.to_torch(state, fresh_torch(), same, names=NAMES)


FIRST = optax.chain(ours.trace(0.9), ours.rmsprop(0.1))
BAD = {
    "no state": (
        lambda: from_torch(changed(lambda s: s["state"].pop(1))),
        ValueError,
        r"no second moment for .*nu\['b'\]: torch has no state for 'b', .* missing_ok=True",
    ),
    "an entry is missing": (
        lambda: from_torch(changed(pop)),
        ValueError,
        r"no momentum for .*trace\['b'\]: 'b' has no momentum_buffer",
    ),
    "a parameter of no group": (
        lambda: from_torch(changed(surplus)), ValueError, r"parameters \[7\] of no group",
    ),
    "uneven steps": (
        lambda: from_torch(changed(uneven)), ValueError, "differ in their number of steps",
    ),
    "another shape": (
        lambda: from_torch(changed(misshaped)),
        ValueError,
        r"from_torch: .*nu\['w'\] has shape \(3, 2\), expected \(2, 3\)",
    ),
    "another order": (
        lambda: from_torch(torch_saved(), names=["b", "w"]), ValueError, "has shape",
    ),
    "not the recorded order": (
        lambda: from_torch(changed(record)), ValueError, "names has 'w' where torch recorded 'b'",
    ),
    "no names": (
        lambda: from_torch(torch_saved(), names=None), ValueError, "torch keeps no names for 2",
    ),
    "too few names": (
        lambda: from_torch(torch_saved(), names=["w"]), ValueError, "1 names for 2 parameters",
    ),
    "a model's weights": (
        lambda: from_torch(PARAMS), TypeError, "expected optimizer.state_dict.*dict of w, b",
    ),
    "another optimizer, with two rates": (
        lambda: from_torch({
            "state": {i: {"step": 1.0, "exp_avg_sq": PARAMS[n]} for i, n in enumerate(NAMES)},
            "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}],
        }),
        ValueError,
        "from_torch: the state of 'w' has exp_avg_sq, which RMSprop has not",
    ),
    "a path": (
        lambda: from_torch("run.pt"), TypeError, "expected optimizer.state_dict.*'run.pt'",
    ),
    "no place for momentum": (
        lambda: from_torch(torch_saved(), dialects.torch().init(PARAMS)),
        ValueError,
        "the source has momentum of 'b', and `like` has no place",
    ),
    "no momentum": (
        lambda: from_torch(
            interop.to_torch(trained(dialects.torch()), fresh_torch(), same, names=NAMES)
        ),
        ValueError,
        r"the source has no momentum for .*trace\['b'\]",
    ),
    "not centred": (
        lambda: from_torch(torch_saved(), dialects.torch(momentum=0.9, centered=True).init(PARAMS)),
        ValueError,
        "the source has no mean",
    ),
    "a parameter that the weights' conversion drops": (
        lambda: from_torch(torch_saved(), convert=lambda named: {"w": named["w"]}),
        ValueError,
        r"the source has no second moment for .*nu\['b'\]",
    ),
    "a parameter that the target has not": (
        lambda: from_torch(torch_saved(), convert=lambda named: named | {"c": named["b"]}),
        ValueError,
        "has nu of 'c'",
    ),
    "an optimizer without momentum": (
        lambda: interop.to_torch(
            trained(dialects.torch(momentum=0.9)), fresh_torch(momentum=0), same, names=NAMES
        ),
        ValueError,
        "to_torch: the optimizer has momentum=0, and the state a momentum",
    ),
    "a centred optimizer": (
        lambda: interop.to_torch(
            trained(dialects.torch()), fresh_torch(centered=True), same, names=NAMES
        ),
        ValueError,
        "to_torch: the optimizer has centered=True, and the state no mean",
    ),
    "names that the conversion does not give": (
        lambda: interop.to_torch(
            trained(dialects.torch()), fresh_torch(), lambda tree: {"w": tree["w"]}, names=NAMES
        ),
        ValueError,
        r"to_torch: missing \['b'\], surplus \[\]",
    ),
    "a second moment below zero": (
        lambda: from_torch(changed(entry(square_avg=-np.ones(3)))),
        ValueError,
        "from_torch: 'b': a second moment is negative: -1",
    ),
    "a second moment that is not finite": (
        lambda: from_torch(changed(entry(square_avg=np.full(3, np.nan)))),
        ValueError,
        "from_torch: 'b': a second moment is not finite",
    ),
    "a momentum that is not finite": (
        lambda: from_torch(changed(entry(momentum_buffer=np.full(3, np.inf)))),
        ValueError,
        "from_torch: 'b': a momentum is not finite",
    ),
    "half a step": (
        lambda: from_torch(changed(entry(step=7.9))),
        ValueError,
        r"the step of 'b' must be a whole number in \[0, 2\*\*31\), got 7.9",
    ),
    "a step below zero": (
        lambda: from_torch(changed(entry(step=-5.0))), ValueError, "the step of 'b' .* got -5",
    ),
    "a step that wraps": (
        lambda: from_torch(changed(entry(step=3e9))), ValueError, "the step of 'b' .* got 30000000",
    ),
    "a step that is not finite": (
        lambda: from_torch(changed(entry(step=np.nan))), ValueError, "the step of 'b' .* got nan",
    ),
    "a step of None": (
        lambda: from_torch(changed(entry(step=None))),
        TypeError,
        "the step of 'b' is no array of numbers: NoneType",
    ),
    "a step of text": (
        lambda: from_torch(changed(entry(step="5"))), TypeError, "the step of 'b' is no array of",
    ),
    "no step": (
        lambda: from_torch(changed(lambda s: s["state"][1].pop("step"))),
        ValueError,
        "'b' has no step: give count=",
    ),
    "a count below zero": (
        lambda: interop.from_torch(torch_saved(), LIKE, same, names=NAMES, count=-1),
        ValueError,
        "from_torch: count must be a whole number",
    ),
    "a rate that is not finite": (
        lambda: from_torch(changed(lambda s: s["param_groups"][0].update(lr=np.nan))),
        ValueError,
        "the lr of 'w' must be finite and >= 0, got nan",
    ),
    "Adadelta's state": (
        lambda: from_torch(changed(entry(acc_delta=np.ones(3)))),
        ValueError,
        "the state of 'b' has acc_delta, which RMSprop has not",
    ),
    "an object among the arrays": (
        lambda: from_torch(changed(entry(square_avg=object()))),
        TypeError,
        "the square_avg of 'b' is no array of numbers",
    ),
    "a list of states": (
        lambda: from_torch({**torch_saved(), "state": [{}]}),
        TypeError,
        "'state' must be a dictionary, got list",
    ),
    "an entry that is a list": (
        lambda: from_torch({**torch_saved(), "state": {0: [1.0], 1: {}}}),
        TypeError,
        "the state of 'w' is list",
    ),
    "a group without a rate": (
        lambda: from_torch(changed(lambda s: s["param_groups"][0].pop("lr"))),
        TypeError,
        r"'param_groups'\[0\] has no 'lr'",
    ),
    "a group without parameters": (
        lambda: from_torch(changed(lambda s: s["param_groups"][0].pop("params"))),
        TypeError,
        r"'param_groups'\[0\] has no 'params'",
    ),
    "a state in half precision that has no place for a number": (
        lambda: from_torch(
            changed(entry(square_avg=np.full(3, 1e6))),
            jax.tree.map(lambda x: x.astype(jnp.float16) if x.ndim else x, LIKE),
        ),
        ValueError,
        r"nu\['b'\]: a number of the source is too large for float16",
    ),
    "momentum before the division, filled": (
        lambda: from_torch(torch_saved(), FIRST.init(PARAMS)),
        ValueError,
        r"the momentum at \[0\] \(TraceState\) comes before the division",
    ),
    "momentum before the division, read": (
        lambda: to_torch(FIRST.init(PARAMS)),
        ValueError,
        r"the momentum at \[0\] \(TraceState\) comes before the division",
    ),
    "momentum without a second moment": (
        lambda: to_torch(
            optax.partition(
                {"a": dialects.torch(), "b": optax.sgd(0.1, momentum=0.9)}, {"w": "a", "b": "b"}
            ).init(PARAMS)
        ),
        ValueError,
        "has no second moment of RMSprop",
    ),
    "two second moments": (
        lambda: to_torch(optax.chain(ours.rmsprop(0.1), ours.scale_by_rms()).init(PARAMS)),
        ValueError,
        r"\[0\]\[0\] \(ScaleByRmsState\) and \[1\] \(ScaleByRmsState\) are of the same parameters",
    ),
    "two momenta": (
        lambda: to_torch(optax.chain(dialects.torch(momentum=0.9), ours.trace(0.9)).init(PARAMS)),
        ValueError,
        r"\[0\]\[1\] \(TraceState\) and \[1\] \(TraceState\) are of the same parameters",
    ),
    "an average beside it": (
        lambda: to_torch(trained(optax.chain(dialects.torch(), optax.ema(0.9)))),
        ValueError,
        r"has a place for \[1\].ema\['b'\]: give the part of the state",
    ),
    "half an accumulation": (
        lambda: to_torch(trained(optax.MultiSteps(dialects.torch(), 3))),
        ValueError,
        r"has a place for .acc_grads\['b'\]",
    ),
    "a told meaning that is none": (
        lambda: interop.from_torch(torch_saved(), LIKE, same, names=NAMES, momentum="step"),
        ValueError,
        'momentum must be "steps", "directions" or None, got \'step\'',
    ),
    "members of a population": (
        lambda: to_torch(jax.vmap(dialects.torch().init)({n: jnp.zeros((3, 2)) for n in NAMES})),
        ValueError,
        r"to_torch: .*count has shape \(3,\), expected \(\)",
    ),
    "an abstract state": (
        lambda: to_torch(jax.eval_shape(dialects.torch().init, LIKE[0].nu)),
        TypeError,
        r"to_torch: \[0\].count is no array of numbers: ShapeDtypeStruct",
    ),
    "a traced state": (
        lambda: jax.jit(to_torch)(LIKE), TypeError, r"to_torch: .* is traced: call this outside of",
    ),
    "a conversion that returns a list": (
        lambda: interop.to_torch(LIKE, fresh_torch(), list, names=NAMES),
        TypeError,
        "to_torch: convert must return a dictionary of named arrays",
    ),
    "an array of another shape in the optimizer": (
        lambda: interop.to_torch(
            LIKE, changed(entry(square_avg=np.ones(4))), same, names=NAMES
        ),
        ValueError,
        r"to_torch: the square_avg of 'b' has shape \(3,\), expected \(4,\)",
    ),
    "transfer from a file's name": (
        lambda: interop.transfer("run.msgpack", LIKE), TypeError, "transfer: nothing in str",
    ),
    "transfer from another optimizer": (
        lambda: interop.transfer(trained(optax.adamax(0.1)), LIKE),
        TypeError,
        "transfer: nothing in tuple .ScaleByAdamState",
    ),
    **{
        f"{name} has no second moment of RMSprop": (
            lambda tx=tx: to_torch(tx.init(LIKE[0].nu)),
            TypeError,
            "to_torch: there is no second moment of RMSprop in",
        )
        for name, tx in {
            "sgd with momentum": optax.sgd(0.1, momentum=0.9), "lion": optax.lion(0.1),
            "a buffer": ours.trace(0.9), "Adam": optax.adam(0.1), "Adamax": optax.adamax(0.1),
            "SM3": optax.sm3(0.1), "Adagrad": optax.adagrad(0.1), "an average": optax.ema(0.9),
        }.items()
    },
    "no RMSprop": (
        lambda: interop.to_torch(optax.sgd(0.1).init(PARAMS), fresh_torch(), same, names=NAMES),
        TypeError,
        "there is no second moment of RMSprop in a state of EmptyState",
    ),
    "a rate of zero": (
        lambda: interop.from_torch(
            changed(lambda s: s["param_groups"][0].update(lr=0.0)),
            dialects.keras(momentum=0.9).init(PARAMS),
            same,
            names=NAMES,
        ),
        ValueError,
        "no learning rate to move in or out of the momentum",
    ),
    "Keras in order without names": (
        lambda: interop.from_keras([0, 0.1, PARAMS["w"], PARAMS["b"]], LIKE, same),
        ValueError,
        "need names=",
    ),
    "too few Keras variables": (
        lambda: interop.from_keras([0, 0.1, PARAMS["w"]], LIKE, same, names=NAMES),
        ValueError,
        "3 variables, expected the iteration, perhaps the rate, and second moment, momentum of 2",
    ),
    "Adam's variables": (
        lambda: interop.from_keras({"adam/iteration": 0, "adam/w_velocity_hat": 0}, LIKE, same),
        TypeError,
        "from_keras: no variables of Keras's RMSprop",
    ),
    "a Keras model": (
        lambda: interop.from_keras("model.keras", LIKE, same), TypeError, "'model.keras'",
    ),
    "a Keras parameter missing": (
        lambda: interop.from_keras(
            {k: v for k, v in fresh_keras(centered=False).items() if "b_mom" not in k},
            dialects.keras(momentum=0.9).init(PARAMS),
            same,
        ),
        ValueError,
        r"from_keras: missing \['b'\]",
    ),
    "a checkpoint without slots": (
        lambda: interop.from_tensorflow1(PARAMS, LIKE, same, count=0),
        TypeError,
        "no slot <variable>/RMSProp in a dict of w, b",
    ),
    "a slot missing": (
        lambda: interop.from_tensorflow1({"w/RMSProp": PARAMS["w"]}, LIKE, same, count=0),
        ValueError,
        "'w' has 1 slots, expected 2 or 3",
    ),
    "no count": (
        lambda: interop.from_tensorflow1(
            fresh_tensorflow1(False), dialects.tensorflow1(0.1, momentum=0.9).init(PARAMS), same
        ),
        ValueError,
        "no number of steps: give count=",
    ),
    "no rate": (
        lambda: interop.from_tensorflow1(fresh_tensorflow1(False), LIKE, same, count=0),
        ValueError,
        "no learning rate to move in or out of the momentum",
    ),
    "an optimizer that is not centred": (
        lambda: interop.to_tensorflow1(
            trained(dialects.tensorflow1(0.1, centered=True)), fresh_tensorflow1(False), same
        ),
        ValueError,
        "the optimizer in `like` has no mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name(name):
    call, error, says = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert re.search(says, str(caught.value)), caught.value


def test_an_error_in_the_weights_conversion_says_what_it_was_given():
    with pytest.raises(KeyError) as caught:
        from_torch(torch_saved(), convert=lambda named: {"w": named["w.weight"]})
    assert caught.value.__notes__ == ["from_torch: convert was called with ['b', 'w']"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_state_of_optax_becomes_ours(setting):
    options = SETTINGS[setting]
    theirs = trained(optax.rmsprop(0.1, **options))
    tx = ours.rmsprop(0.1, **options)
    expected, like = trained(tx), tx.init(jax.tree.map(jnp.asarray, PARAMS))
    state, unfilled, unused = interop.transfer(theirs, like)
    assert unused == []
    # Optax has no count without a schedule or a correction, and keeps no rate.
    assert all(path.endswith(("count", ".last_learning_rate")) for path in unfilled)
    for field in ("nu", "mu", "var", "trace"):
        got = optax.tree.get(state, field)
        if got is not None:
            made = optax.tree.get(expected, field)
            chex.assert_trees_all_close(got, made, rtol=1e-5, atol=1e-7)
    assert (optax.tree.get(state, "mu") is not None) == options.get("centered", False)


def test_a_state_moves_to_another_configuration_and_says_what_is_left():
    plain = trained(dialects.torch())
    momentum = dialects.torch(momentum=0.9).init(PARAMS)
    state, unfilled, unused = interop.transfer(plain, momentum)
    assert unfilled == ["[1].trace['b']", "[1].trace['w']"] and unused == []
    chex.assert_trees_all_equal(optax.tree.get(state, "nu"), optax.tree.get(plain, "nu"))
    assert int(state[1].trace_count) == 5

    state, unfilled, unused = interop.transfer(trained(dialects.torch(momentum=0.9)), plain)
    assert unfilled == [] and unused == ["[1].trace['b']", "[1].trace['w']"]

    centered = trained(dialects.torch(centered=True))
    state, unfilled, unused = interop.transfer(centered, plain)
    assert unfilled == [] and unused == ["[0].mu['b']", "[0].mu['w']"]
    second = jax.tree.map(lambda v, m: v + m**2, centered[0].var, centered[0].mu)
    chex.assert_trees_all_close(state[0].nu, second, rtol=1e-6)


def test_a_state_moves_to_the_other_order_of_rate_and_buffer():
    inside, outside = dialects.keras(0.25, momentum=0.9), dialects.pfrl(0.25, momentum=0.9)
    source = trained(inside)
    state, unfilled, unused = interop.transfer(source, outside.init(PARAMS))
    assert (unfilled, unused) == ([], [])
    expected = jax.tree.map(lambda b: b / -0.25, optax.tree.get(source, "trace"))
    chex.assert_trees_all_close(optax.tree.get(state, "trace"), expected)
    back = interop.transfer(state, inside.init(PARAMS)).state
    chex.assert_trees_all_close(back, jax.tree.map(jnp.asarray, source))
    # Optax's own links have no names: what stands between the division and the buffer is the rate.
    for order, steps in (((1, 2), True), ((2, 1), False)):
        links = [optax.scale_by_rms(), optax.scale_by_learning_rate(0.5), optax.trace(0.9)]
        tx = optax.chain(links[0], *(links[i] for i in order))
        theirs = trained(tx)
        like = (inside if steps else outside).init(PARAMS)
        trace = optax.tree.get(interop.transfer(theirs, like).state, "trace")
        chex.assert_trees_all_close(trace, optax.tree.get(theirs, "trace"))
        other = (outside if steps else inside).init(PARAMS)
        assert interop.transfer(theirs, other).unused  # the rate is not known


def test_a_state_by_name_has_the_order_that_its_dictionary_has():
    links = {"rms": ours.scale_by_rms(), "rate": ours.scale_by_learning_rate(0.5)}
    state = trained(optax.named_chain(*links.items(), ("buffer", ours.trace(0.9))))
    like = dialects.keras(0.5, momentum=0.9).init(PARAMS)
    moved = interop.transfer(state, like).state
    chex.assert_trees_all_equal(moved[2].trace, state["buffer"].trace)
    with pytest.raises(ValueError, match="nothing in the state tells whether the momentum at"):
        interop.transfer(dict(state), like)
    moved = interop.transfer(dict(state), like, momentum="steps").state
    chex.assert_trees_all_equal(moved[2].trace, state["buffer"].trace)


def test_what_was_free_to_move_stays_free_and_what_was_placed_stays_placed():
    saved = torch_saved()
    free = from_torch(saved)
    assert not any(x.committed for x in jax.tree.leaves(free))
    there = jax.device_put(LIKE, jax.devices()[3])
    placed = from_torch(saved, there)
    assert all(x.devices() == {jax.devices()[3]} for x in jax.tree.leaves(placed))


SURGERY = {  # what became of {"w": (2, 3), "b": (3,)}: what is unfilled, and what unused
    "removed": ({"w": (2, 3)}, [], ["['b']"]),
    "added": ({"w": (2, 3), "b": (3,), "c": (1,)}, ["['c']"], []),
    "renamed": ({"w": (2, 3), "c": (3,)}, ["['c']"], ["['b']"]),
    "resized": ({"w": (2, 4), "b": (3,)}, ["['w']"], ["['w']"]),
}


@pytest.mark.parametrize("change", SURGERY)
@pytest.mark.parametrize("centered", [False, True])
def test_each_leaf_that_has_no_counterpart_is_named_on_its_side(change, centered):
    shapes, new, old = SURGERY[change]
    source = trained(dialects.torch(centered=centered, momentum=0.9))
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    like = dialects.torch(centered=centered, momentum=0.9).init(params)
    state, unfilled, unused = interop.transfer(source, like)
    fields = ["[0].mu", "[0].var", "[1].trace"] if centered else ["[0].nu", "[1].trace"]
    assert unfilled == [field + leaf for field in fields for leaf in new]
    assert unused == [field + leaf for field in fields for leaf in old]
    for name in shapes.keys() & PARAMS.keys():
        if "['" + name + "']" not in new:
            chex.assert_trees_all_equal(state[1].trace[name], source[1].trace[name])


WRAPPED = {
    "ema": lambda tx: optax.chain(tx, optax.ema(0.9)),
    "plateau": lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau()),
    "half an accumulation": lambda tx: optax.MultiSteps(tx, 3),
    "noise": lambda tx: optax.chain(optax.add_noise(0.1, 0.1, 0), tx),
    "two second moments": lambda tx: optax.chain(ours.scale_by_rms(0.5), tx),
    "Adam beside it": lambda tx: optax.partition(
        {"a": tx, "b": optax.adam(0.1)}, {"w": "a", "b": "b"}
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "momentum first": lambda tx: optax.chain(ours.trace(0.5), tx),
    "a population": lambda tx: optax.GradientTransformation(
        lambda p: jax.vmap(lambda _: tx.init(p))(jnp.arange(2)),
        lambda g, s, p: (g, jax.vmap(lambda s: tx.update(g, s, p)[1])(s)),
    ),
    "stored": lambda tx: ours.storage.stored_as(tx, lambda path, leaf: ours.storage.uint16()),
    "schedule-free": lambda tx: optax.contrib.schedule_free(tx, 0.1),
    "no RMSprop": lambda tx: optax.chain(optax.adam(0.1), optax.sgd(0.1, momentum=0.5)),
    "injected": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate))
    )(rate=optax.linear_schedule(1.0, 0.5, 9)),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_state_moves_whole_to_the_same_configuration(wrapper):
    tx = WRAPPED[wrapper](dialects.torch(0.1, momentum=0.9, centered=True))
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
    state = trained(optax.with_extra_args_support(tx), value=1.0)
    moved, unfilled, unused = interop.transfer(state, tx.init(params))
    assert (unfilled, unused) == ([], [])
    chex.assert_trees_all_equal(moved, state)


def test_an_injected_number_stays_and_is_named_where_it_differs():
    old, new = (
        optax.inject_hyperparams(dialects.torch, static_args=("momentum", "weight_decay"))(lr=lr)
        for lr in (0.5, 0.25)
    )
    state, unfilled, unused = interop.transfer(trained(old), new.init(LIKE[0].nu))
    assert unfilled == unused == [".hyperparams['lr']"]
    assert float(state.hyperparams["lr"]) == 0.25 and int(state.count) == 5


class Pair(NamedTuple):
    """Parameters that have the names of states' fields."""

    nu: Any
    mu: Any
    var: Any
    trace: Any
    count: Any
    learning_rate: Any


@pytest.mark.parametrize("wrapper", ["half an accumulation", "ema", "stored"])
def test_a_field_of_the_parameters_is_no_field_of_a_state(wrapper):
    params = Pair(*(jnp.full(2, float(i)) for i in range(1, 7)))
    tx = WRAPPED[wrapper](dialects.torch(0.1, momentum=0.9))
    state = trained(tx, params=params)
    moved, unfilled, unused = interop.transfer(state, tx.init(params))
    assert (unfilled, unused) == ([], [])
    chex.assert_trees_all_equal(moved, state)
    named = lambda tree: tree._asdict()  # noqa: E731
    if wrapper == "stored":
        fresh = {"state": {}, "param_groups": [{"lr": 0.1, "params": list(range(6))}]}
        saved = interop.to_torch(state, fresh, named, names=Pair._fields)
        like = tx.init(params)
        back = interop.from_torch(saved, like, lambda n: Pair(**n), names=Pair._fields)
        chex.assert_trees_all_equal(back.inner_state[1], state.inner_state[1])


RMS, TRACE, RATE = ours.scale_by_rms(0.9), ours.trace(0.9), ours.scale_by_learning_rate(0.25)
CHAINS = {  # what the buffer holds, or None where nothing in the state tells
    "rate, momentum": (optax.chain(RMS, RATE, TRACE), "steps"),
    "momentum, rate": (optax.chain(RMS, TRACE, RATE), "directions"),
    "nested, then momentum": (optax.chain(ours.rmsprop(0.25), TRACE), "steps"),
    "momentum in a nested one": (optax.chain(optax.chain(RMS, TRACE), RATE), "directions"),
    "both in a nested one": (optax.chain(RMS, optax.chain(TRACE, RATE)), "directions"),
    "identity between": (optax.chain(RMS, optax.identity(), TRACE, RATE), "directions"),
    "decay between": (optax.chain(RMS, ours.add_decayed_weights(0.0), TRACE, RATE), "directions"),
    "clipping before and after": (
        optax.chain(optax.clip(1e9), RMS, RATE, TRACE, optax.clip(1e9)), "steps",
    ),
    "masked": (
        optax.chain(RMS, optax.masked(optax.chain(TRACE, RATE), {"w": True, "b": True})),
        "directions",
    ),
    "in MultiSteps": (optax.MultiSteps(optax.chain(RMS, TRACE, RATE), 1), "directions"),
    "stored": (
        ours.storage.stored_as(optax.chain(RMS, TRACE, RATE), ours.storage.uint16()), "directions",
    ),
    "only a nameless link before": (optax.chain(RMS, optax.scale(-0.25), TRACE), "steps"),
    "only a nameless link after": (optax.chain(RMS, TRACE, optax.scale(-0.25)), "directions"),
    "a schedule after": (
        optax.chain(RMS, TRACE, optax.scale_by_learning_rate(lambda count: 0.25)), "directions",
    ),
    "Optax's rmsprop": (optax.rmsprop(0.25, momentum=0.9), "steps"),
    "Optax's, with a schedule": (optax.rmsprop(lambda count: 0.25, momentum=0.9), "steps"),
    "Optax's, clipped": (
        optax.chain(optax.clip(1e9), optax.rmsprop(0.25, momentum=0.9)), "steps",
    ),
    "Optax's, injected": (
        optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.25, momentum=0.9), "steps",
    ),
    "Optax's, with an average": (
        optax.chain(optax.rmsprop(0.25, momentum=0.9), optax.ema(0.5)), "steps",
    ),
    "clipping, momentum, scale": (
        optax.chain(RMS, optax.clip(1e9), TRACE, optax.scale(-0.25)), None,
    ),
    "identity, momentum, scale": (
        optax.chain(RMS, optax.identity(), TRACE, optax.scale(-0.25)), None,
    ),
    "decay, momentum, scale": (
        optax.chain(RMS, optax.add_decayed_weights(0.0), TRACE, optax.scale(-0.25)), None,
    ),
    "scale, momentum, clipping": (
        optax.chain(RMS, optax.scale(-0.25), TRACE, optax.clip(1e9)), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_the_order_of_the_links_tells_what_a_momentum_buffer_holds(chain):
    tx, holds = CHAINS[chain]
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
    like, fresh = tx.init(params), fresh_torch(lr=0.25)
    saved = interop.to_torch(trained(dialects.torch(0.25, momentum=0.9)), fresh, same, names=NAMES)
    directions = {n: saved["state"][i]["momentum_buffer"] for i, n in enumerate(NAMES)}
    if holds is None:
        with pytest.raises(
            ValueError, match=r'nothing in the state tells .* give momentum="steps"'
        ):
            from_torch(saved, like)
    for told in {holds, None} if holds else {"steps", "directions"}:
        state = interop.from_torch(saved, like, same, names=NAMES, momentum=told)
        factor = -0.25 if (holds or told) == "steps" else 1.0
        for name, x in directions.items():
            np.testing.assert_allclose(optax.tree.get(state, "trace")[name], factor * x, rtol=1e-6)
        if "average" not in chain:
            back = interop.to_torch(state, fresh, same, names=NAMES, momentum=told, count=5)
            chex.assert_trees_all_close(back, saved, rtol=1e-5 if chain != "stored" else 1e-2)
    if holds:
        other = ({"steps", "directions"} - {holds}).pop()
        with pytest.raises(ValueError, match=f"momentum='{other}', and the links of the state"):
            interop.from_torch(saved, like, same, names=NAMES, momentum=other)


@pytest.mark.parametrize("framework", ROUND_TRIPS)
def test_what_leaves_is_a_copy_that_may_be_written_to(framework):
    make, there, _ = ROUND_TRIPS[framework]
    state = trained(make(momentum=0.9, centered=True))
    before = jax.tree.map(lambda x: np.array(x), state)
    for array in jax.tree.leaves(there(state, momentum=0.9, centered=True)):
        if isinstance(array, np.ndarray) and array.size:
            array += 1
    chex.assert_trees_all_equal(state, before)


def test_a_layout_makes_copies_both_ways():
    tree = jax.tree.map(jnp.asarray, {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}})
    both = interop.layout(tree)
    named = both.to_torch(tree)
    back = both.to_flax(named)
    for array in (*named.values(), *jax.tree.leaves(back)):
        array += 1
    assert all((x == 1).all() for x in jax.tree.leaves(tree))
    assert all((x == 2).all() for x in (*named.values(), *jax.tree.leaves(back)))


GROUPED = {  # the head is listed first, and both parameters have one shape
    "keyed by name": lambda lr: {
        "state": {n: {"step": 1.0, "square_avg": np.full(2, x)} for n, x in (("b", 2), ("a", 1))},
        "param_groups": [{"lr": lr, "params": ["b"]}, {"lr": lr, "params": ["a"]}],
    },
    "flattened": lambda lr: {
        "state.b.step": 1.0, "state.b.square_avg": np.full(2, 2), "param_groups.b.lr": lr,
        "state.a.step": 1.0, "state.a.square_avg": np.full(2, 1), "param_groups.a.lr": lr,
    },
    "with the names beside": lambda lr: {
        "state": {i: {"step": 1.0, "square_avg": np.full(2, x)} for i, x in enumerate((2, 1))},
        "param_groups": [
            {"lr": lr, "params": [0], "param_names": ["b"]},
            {"lr": lr, "params": [1], "param_names": ["a"]},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", GROUPED)
def test_names_that_the_source_carries_go_before_those_that_are_given(kind):
    saved, like = GROUPED[kind](0.5), dialects.torch().init(dict.fromkeys("ab", jnp.zeros(2)))
    state = interop.from_torch(saved, like, same)
    np.testing.assert_array_equal(state[0].nu["a"], [1, 1])
    assert float(state[1].last_learning_rate) == 0.5
    back = interop.to_torch(state, saved, same)
    assert back.keys() == saved.keys()
    chex.assert_trees_all_equal(back, saved)
    with pytest.raises(ValueError, match="names"):
        interop.from_torch(saved, like, same, names=["b", "c"])
    if "names" in kind:
        with pytest.raises(ValueError, match="names has 'a' where torch recorded 'b'"):
            interop.from_torch(saved, like, same, names=["a", "b"])
    else:
        given = interop.from_torch(saved, like, same, names=["a", "b"])
        chex.assert_trees_all_equal(given, state)


def test_what_timm_says_of_its_buffer_is_read_and_not_contradicted():
    saved = changed(lambda s: s["param_groups"][0].update(lr_in_momentum=True))
    like = dialects.keras(momentum=0.9).init(PARAMS)
    state = from_torch(saved, like)
    np.testing.assert_array_equal(state[2].trace["w"], -saved["state"][0]["momentum_buffer"])
    with pytest.raises(ValueError, match=r"lr_in_momentum=\[True\], and rate_in_buffer=False"):
        interop.from_torch(saved, like, same, names=NAMES, rate_in_buffer=False)


FROZEN = {
    "partition": lambda tx: optax.partition(
        {"on": tx, "off": optax.set_to_zero()}, {"body": "off", "head": "on"}
    ),
    "masked": lambda tx: optax.masked(tx, {"body": False, "head": True}),
}


@pytest.mark.parametrize("listed", [True, False], ids=["in the optimizer", "out of it"])
@pytest.mark.parametrize("by", FROZEN)
def test_a_frozen_part_is_not_carried_in_either_direction(by, listed):
    params = {"body": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones((3, 1))}}
    tx, both = FROZEN[by](dialects.torch(momentum=0.9)), interop.layout(params)
    names = ["body.weight", "head.weight"] if listed else ["head.weight"]
    fresh = {"state": {}, "param_groups": [{"lr": 0.1, "params": list(range(len(names)))}]}
    state = trained(tx, params=params)
    saved = interop.to_torch(state, fresh, both.to_torch, names=names)
    assert list(saved["state"]) == [names.index("head.weight")]
    back = interop.from_torch(saved, tx.init(params), both.to_flax, names=names)
    nu, expected = (jax.tree.leaves(optax.tree.get(s, "nu")) for s in (back, state))
    chex.assert_trees_all_equal(nu, expected)
    if not listed:
        return
    # What torch has of the frozen part, from before it was frozen, is not carried.
    used = copy.deepcopy(saved)
    used["state"][0] = {"step": 2.0} | dict.fromkeys(
        ("square_avg", "momentum_buffer"), np.ones((3, 2))
    )
    with pytest.raises(ValueError, match="differ in their number of steps"):
        interop.from_torch(
            used, dialects.torch(momentum=0.9).init(params), both.to_flax, names=names
        )
    again = interop.from_torch(used, tx.init(params), both.to_flax, names=names)
    chex.assert_trees_all_equal(again, back)
    # Where JAX trains it, it starts anew if that is asked for.
    like = dialects.torch(momentum=0.9).init(params)
    with pytest.raises(ValueError, match="torch has no state for 'body"):
        interop.from_torch(saved, like, both.to_flax, names=names)
    thawed = interop.from_torch(saved, like, both.to_flax, names=names, missing_ok=True)
    np.testing.assert_array_equal(thawed[0].nu["body"]["kernel"], like[0].nu["body"]["kernel"])
    np.testing.assert_array_equal(jax.tree.leaves(thawed[0].nu["head"]), expected)
    assert int(thawed[0].count) == 5


def test_steps_that_differ_are_the_groups_own_or_given():
    saved = changed(uneven)
    assert int(interop.from_torch(saved, LIKE, same, names=NAMES, count=7)[0].count) == 7
    groups = {n: dialects.torch(momentum=0.9) for n in NAMES}
    like = optax.partition(groups, {n: n for n in NAMES}).init(PARAMS)
    state = from_torch(saved, like)
    counts = {n: int(state.inner_states[n].inner_state[0].count) for n in NAMES}
    assert counts == {"w": 5, "b": 4}
    back = interop.to_torch(state, fresh_torch(), same, names=NAMES)
    assert [float(back["state"][i]["step"]) for i in range(2)] == [5, 4]


def test_a_rate_that_is_given_moves_the_momentum_where_the_groups_have_none():
    saved = changed(lambda s: s["param_groups"][0].update(lr=0.0))
    like = dialects.keras(momentum=0.9).init(PARAMS)
    state = interop.from_torch(saved, like, same, names=NAMES, learning_rate=0.5)
    np.testing.assert_allclose(state[2].trace["w"], -0.5 * saved["state"][0]["momentum_buffer"])
    back = interop.to_torch(state, saved, same, names=NAMES, learning_rate=0.5)
    chex.assert_trees_all_close(back, saved, rtol=1e-6)
    inside = trained(optax.rmsprop(0.5, momentum=0.9, eps_in_sqrt=False))
    moved = interop.transfer(inside, LIKE, learning_rate=0.5)
    chex.assert_trees_all_close(
        moved.state[1].trace, jax.tree.map(lambda x: x / -0.5, inside[2].trace), rtol=1e-6
    )


def test_leaves_of_two_rates_have_none():
    like = dialects.torch(0.125).init({"w": jnp.zeros((2, 3))})
    saved = {
        "state": {i: {"step": 1.0, "square_avg": np.ones(3)} for i in range(2)},
        "param_groups": [{"lr": 0.5, "params": [0]}, {"lr": 0.25, "params": [1]}],
    }
    stack = lambda named: {"w": np.stack([named["a"], named["b"]])}  # noqa: E731
    state = interop.from_torch(saved, like, stack, names=["a", "b"])
    assert float(state[1].last_learning_rate) == 0.125


def test_the_state_of_an_nnx_optimizer_goes_both_ways_and_trains_on():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    make = lambda momentum: nnx.Optimizer(  # noqa: E731
        model, dialects.torch(0.1, momentum=momentum), wrt=nnx.Param
    )
    optimizer, both = make(0.9), interop.layout(nnx.state(model, nnx.Param))
    shapes = {"weight": (2, 3), "bias": (2,)}
    saved = {
        "state": {
            i: {"step": np.float32(3)}
            | {key: np.full(s, i + 1, np.float32) for key in ("square_avg", "momentum_buffer")}
            for i, s in enumerate(shapes.values())
        },
        "param_groups": [{"lr": 0.1, "params": [0, 1]}],
    }
    filled = interop.from_torch(saved, optimizer.opt_state, both.to_flax, names=list(shapes))
    chex.assert_trees_all_equal_structs(filled, optimizer.opt_state)
    back = interop.to_torch(filled, saved, both.to_torch, names=list(shapes))
    chex.assert_trees_all_equal(back, saved)
    moved, unfilled, unused = interop.transfer(filled, make(None).opt_state)
    assert unfilled == [] and unused == ["[1].trace['bias']", "[1].trace['kernel']"]
    chex.assert_trees_all_equal_structs(moved, make(None).opt_state)
    optimizer.opt_state = filled
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    assert int(optimizer.opt_state[0].count[...]) == 4
    assert float(optimizer.opt_state[0].nu["bias"][0]) == np.float32(0.99 * 2 + 0.01)


TREE = {
    "conv": {"kernel": np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5), "bias": np.arange(5.0)},
    "line": {"kernel": np.arange(2 * 4 * 5.0).reshape(2, 4, 5)},
    "norm": {"scale": np.arange(5.0), "bias": np.arange(5.0)},
    "words": {"embedding": np.arange(12.0).reshape(4, 3)},
    "head": {"Dense_0": {"kernel": np.arange(30.0).reshape(30, 1)}},
    "temperature": np.arange(2.0),
}


def test_a_layout_is_its_own_inverse_and_has_torchs_axes():
    both = interop.layout(
        TREE, rename={"head.Dense_0": "head"}, flattened={"head.Dense_0": (5, 2, 3)}
    )
    named = both.to_torch(TREE)
    chex.assert_trees_all_equal(both.to_flax(named), TREE)
    assert sorted(named) == [
        "conv.bias", "conv.weight", "head.weight", "line.weight", "norm.bias", "norm.weight",
        "temperature", "words.weight",
    ]  # fmt: skip
    # out, in, height, width
    assert named["conv.weight"][4, 3, 1, 2] == TREE["conv"]["kernel"][1, 2, 3, 4]
    assert named["line.weight"][4, 3, 1] == TREE["line"]["kernel"][1, 3, 4]
    # An image of 5 channels, 2 by 3: torch's 7th of the flattened is channel 1, row 0, column 1.
    image = TREE["head"]["Dense_0"]["kernel"].reshape(2, 3, 5)
    assert named["head.weight"][0, 7] == image[0, 1, 1]
    upper = interop.layout(TREE, rename=str.upper).to_torch(TREE)
    assert "NORM.weight" in upper and "temperature" in upper


@pytest.mark.parametrize("message, change", [
    ("missing ['norm.bias'], surplus ['norm.shift']",
     lambda named: named.update({"norm.shift": named.pop("norm.bias")})),
    ("missing [], surplus ['norm.num']; layout(..., subset=True) passes over them",
     lambda named: named.update({"norm.num": 1})),
    ("layout: conv.weight has shape (3, 2, 4, 5), expected (2, 3, 4, 5)",
     lambda named: named.update({"conv.weight": named["conv.weight"].swapaxes(2, 3)})),
])  # fmt: skip
def test_a_layout_refuses_by_name(message, change):
    both = interop.layout(TREE)
    named = dict(both.to_torch(TREE))
    change(named)
    with pytest.raises(ValueError, match=re.escape(message)):
        both.to_flax(named)


@pytest.mark.parametrize("message, tree, options", [
    ("flattened has ['Line'], the modules are", TREE, {"flattened": {"Line": (5, 2, 3)}}),
    ("flattened has ['head.weight'],", TREE, {"flattened": {"head.weight": (5, 2, 3)}}),
    ("flattened has 'head.Dense_0': (5, 2, 2), and its kernel has shape (30, 1)", TREE,
     {"flattened": {"head.Dense_0": (5, 2, 2)}}),
    ("flattened has 'conv': (2, 1), and its kernel has shape (2, 3, 4, 5)", TREE,
     {"flattened": {"conv": (2, 1)}}),
    ("flattened has 'norm': (5,), and its kernel is missing", TREE, {"flattened": {"norm": (5,)}}),
    ("rename has ['Conv'], the modules are", TREE, {"rename": {"Conv": "c"}}),
    ("conv.bias and norm.bias are both 'x.bias'", TREE, {"rename": {"conv": "x", "norm": "x"}}),
    ("a.kernel and a.scale are both 'a.weight'",
     {"a": {"kernel": np.ones((2, 3)), "scale": np.ones(3)}}, {}),
    ("are both 'a.b.bias'", {"a.b": {"bias": np.ones(1)}, "a": {"b": {"bias": np.ones(1)}}}, {}),
])  # fmt: skip
def test_a_layout_is_checked_when_it_is_made(message, tree, options):
    with pytest.raises(ValueError, match=re.escape(message)):
        interop.layout(tree, **options)


def test_a_layout_refuses_another_tree_by_its_paths():
    with pytest.raises(ValueError, match=re.escape("layout: missing ['norm.bias'], surplus []")):
        interop.layout(TREE).to_torch(TREE | {"norm": {"scale": np.arange(5.0)}})


def test_a_layout_knows_running_statistics_and_takes_a_subset_on_request():
    statistics = {"norm": {"mean": np.arange(3.0), "var": np.ones(3)}}
    weights = {
        "norm": {"scale": np.ones(3), "bias": np.zeros(3)},
        "words": {"embedding": np.ones((4, 3))},
    }
    model = {
        "norm.weight": np.ones(3), "norm.bias": np.zeros(3), "norm.num_batches_tracked": 7,
        "norm.running_mean": np.arange(3.0), "norm.running_var": np.ones(3),
        "words.weight": np.ones((4, 3)), "head.weight": np.ones((4, 3)),  # tied
    }  # fmt: skip
    for tree in (statistics, weights):
        both = interop.layout(tree, subset=True)
        chex.assert_trees_all_equal(both.to_flax(model), tree)
        assert both.to_torch(tree).keys() <= model.keys()
        with pytest.raises(ValueError, match="missing"):
            both.to_flax({name: x for name, x in model.items() if "norm" not in name})
    alone = interop.layout({"gaussian": {"mean": np.ones(3)}})  # a parameter, no statistic
    assert list(alone.to_torch({"gaussian": {"mean": np.ones(3)}})) == ["gaussian.mean"]


def test_the_second_slot_of_a_centred_tensorflow1_optimizer_is_the_mean():
    saved = {
        "w/RMSProp": np.full(1, 5.0),
        "w/RMSProp_1": np.full(1, 2.0),
        "w/RMSProp_2": np.ones(1),
    }
    like = dialects.tensorflow1(0.1, momentum=0.9, centered=True).init({"w": jnp.zeros(1)})
    state = interop.from_tensorflow1(saved, like, same, count=1)
    fields = {f: float(optax.tree.get(state, f)["w"][0]) for f in ("mu", "var", "trace")}
    assert fields == {"mu": 2.0, "var": 1.0, "trace": -1.0}
