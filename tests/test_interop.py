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


def moments(state):
    """The leaves of the second moments, with their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    texts = [(jax.tree_util.keystr(path), x) for path, x in leaves]
    return [(text, x) for text, x in texts if ".nu" in text]


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


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_leaf_without_gradients_is_not_carried(setting):
    tx = dialects.torch(**SETTINGS[setting])
    params = jax.tree.map(jnp.asarray, PARAMS)
    saved = interop.to_torch(trained(tx), fresh_torch(), same, names=NAMES)
    like = tx.init(params | {"steps": jnp.arange(3)})
    state = interop.from_torch(saved, like, same, names=NAMES)
    assert optax.tree.get(state, "count") == 5
    chex.assert_trees_all_equal_shapes_and_dtypes(state, like)
    back = interop.to_torch(state, fresh_torch(), same, names=NAMES)
    chex.assert_trees_all_close(back, saved, rtol=1e-6)
    for source, target in (state, dialects.keras(0.01).init(params)), (trained(tx), like):
        _, unfilled, unused = interop.transfer(source, target)
        assert not any("steps" in path for path in unfilled + unused)


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


def centred_without(index):
    state = trained(dialects.torch(centered=True))
    saved = interop.to_torch(state, fresh_torch(centered=True), same, names=NAMES)
    del saved["state"][index]
    return saved


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


def groups(a, b):
    """One RMSprop for the weights, and another for the biases."""
    of = {"a": dialects.torch(**a), "b": dialects.torch(**b)}
    return optax.partition(of, {"w": "a", "b": "b"})


def ours_with(centered=False, **fields):
    """A state with other numbers in all leaves of some fields."""
    state = dialects.torch(momentum=0.9, centered=centered).init(PARAMS)
    for name, x in fields.items():
        old = optax.tree.get(state, name)
        new = {n: np.full(p.shape, x) for n, p in PARAMS.items()} if isinstance(old, dict) else x
        state = optax.tree.set(state, **{name: new})
    return state


class Head(NamedTuple):
    """Parameters of which one has the name that Flax's variables have for theirs."""

    policy: Any
    value: Any


ONE, TWO = np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)
RMS, TRACE = ours.scale_by_rms(0.9), ours.trace(0.9)
FIRST = optax.chain(ours.trace(0.9), ours.rmsprop(0.1))
TWICE = optax.chain(ours.scale_by_rms(), dialects.torch(momentum=0.9))


VALUE, GRAPH = "/.ATTRIBUTES/VARIABLE_VALUE", "_CHECKPOINTABLE_OBJECT_GRAPH"
SLOTS = ["w/RMSProp", "w/RMSProp_1", "w/RMSProp_2", "w/RMSProp_3"]


class Known:
    """A variable that knows its path, as one of Keras."""

    def __init__(self, path, value):
        self.path, self.value = path, np.asarray(value)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype)


class Group(dict):
    """A group of an HDF5 file."""

    def __init__(self, entries, **attrs):
        super().__init__(entries)
        self.attrs = attrs


def graph(names):
    """The object graph of a checkpoint: each key's full name."""

    def message(*fields):
        return b"".join(bytes([8 * number + 2, len(x)]) + x for number, x in fields)

    return message(
        *((1, message((2, message((2, name.encode()), (3, key.encode()))))) for key, name in names)
    )


def keras(variables, convert=same, momentum=0.0, centered=False, **options):
    tx = dialects.keras(momentum=momentum, centered=centered)
    return interop.from_keras(variables, tx.init({"a": jnp.zeros(2)}), convert, **options)


BAD = {
    "no state": (
        lambda: from_torch(changed(lambda s: s["state"].pop(1))),
        ValueError,
        r"no second moment for .*nu\['b'\]: torch has no state for 'b', .* missing_ok=True",
    ),
    "no state where there is a mean": (
        lambda: from_torch(centred_without(1), dialects.torch(centered=True).init(PARAMS)),
        ValueError,
        r"no mean for .*mu\['b'\]: torch has no state for 'b', .* missing_ok=True",
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
    "two second moments, filled": (
        lambda: from_torch(torch_saved(), TWICE.init(PARAMS)),
        ValueError,
        r"from_torch: \[0\] \(ScaleByRmsState\) and \[1\]\[0\] \(ScaleByRmsState\) are of the same",
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
    "an accumulation that is not complete": (
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
    "Keras variables by their numbers": (
        lambda: keras({0: 1, 1: np.ones(2)}), TypeError, "from_keras: expected variables by name",
    ),
    "a Keras iteration that is an array": (
        lambda: keras({"o/iteration": np.ones(2), "o/a_velocity": np.ones(2)}),
        ValueError,
        r"from_keras: 'o/iteration' has shape \(2,\), expected \(\)",
    ),
    "Adam's Keras variables by its name": (
        lambda: keras(dict.fromkeys(["adam_1/iteration", "adam_1/w_velocity"], 1)),
        TypeError,
        "from_keras: no variables of Keras's RMSprop, but of 'adam_1'",
    ),
    "Adam's Keras variables by their order": (
        lambda: keras(dict.fromkeys(["gen/a_momentum", "gen/a_velocity"], np.ones(2))),
        TypeError,
        "from_keras: 'gen/a_momentum' comes before 'gen/a_velocity', as in Adam",
    ),
    "Adam's slots": (
        lambda: keras({f"m/.OPTIMIZER_SLOT/o/{kind}{VALUE}": np.ones(2) for kind in "mv"}),
        TypeError,
        r"from_keras: no variables of Keras's RMSprop: \['optimizer/m/m', 'optimizer/m/v'\]",
    ),
    "Adam's file": (
        lambda: keras(Group({"0": 1, "1": np.ones(2)}, name="adam"), names=["a"]),
        TypeError,
        "from_keras: no variables of Keras's RMSprop, but of 'adam'",
    ),
    "a file": (
        lambda: keras({"layers": {}, "optimizer": {"inner_optimizer": {"vars": {"0": 1}}}}),
        TypeError,
        "from_keras: .*give its group 'optimizer/inner_optimizer/vars'",
    ),
    "a file's optimizer": (
        lambda: keras({"vars": {"0": 1}}), TypeError, "from_keras: .*give its group 'vars'",
    ),
    "a whole model's file": (
        lambda: keras({"model_weights": {}, "optimizer_weights": {"o": {}}}),
        TypeError,
        "from_keras: .*give its group 'optimizer_weights'",
    ),
    "a model's state tree": (
        lambda: keras({"o": {"iteration": 1}}), TypeError, "from_keras: .*give its group 'o'",
    ),
    "Keras variables of two optimizers": (
        lambda: keras(dict.fromkeys(["o/iteration", "p/iteration", "o/a_velocity"], 1)),
        ValueError,
        r"from_keras: variables of several optimizers, .* \['o/iteration', 'p/iteration'\]",
    ),
    "two Keras variables of one name": (
        lambda: keras([Known("o/iteration", 1), *[Known("o/a_velocity", np.ones(2))] * 2]),
        ValueError,
        "from_keras: two variables are called 'a'; .*names=",
    ),
    "one that overwrote the other": (
        lambda: keras({"o/iteration": 1, "o/a_velocity": np.ones(2)}, names=["a", "b"]),
        ValueError,
        r"from_keras: missing \['b'\]",
    ),
    "a name twice": (
        lambda: keras([1, *[np.ones(2)] * 2], names=["a", "a"]), ValueError, "names has 'a' twice",
    ),
    "names that are one": (
        lambda: keras([1, np.ones(2)], names="a"), TypeError, "names must be a list of names",
    ),
    "half an accumulation": (
        lambda: keras(dict.fromkeys(["o/a_gradient_accumulator", "o/a_velocity"], np.ones(2))),
        ValueError,
        "from_keras: 'o/a_gradient_accumulator' is in the midst of an accumulation",
    ),
    "averaged weights in the place of v": (
        lambda: keras([1, np.array([1.0, -1.0]), np.ones(2)], momentum=0.9, names=["a"]),
        ValueError,
        "from_keras: the second moment of 'a' is negative",
    ),
    "accumulated gradients in the place of v": (
        lambda: keras([7, 0 * ONE, ONE], momentum=0.9, names=["a"]),
        ValueError,
        "every second moment is 0 after 7 steps, .* of use_ema, of gradient_accumulation_steps or "
        r".* by name, `\{v\.path: v for v in optimizer\.variables\}`",
    ),
    "averaged weights that are positive in the place of v": (
        lambda: keras([7, TWO, ONE], momentum=0.9, names=["a"]),
        ValueError,
        r"may be .*\(second moment, momentum\) or .*\(averaged weight, second moment\)",
    ),
    "averages, or half an accumulation, before v": (
        lambda: keras([7, -AVERAGE, ONE], names=["a"]),
        ValueError,
        r"may be \(accumulated gradient, second moment\) or \(averaged weight, second moment\)",
    ),
    "half an accumulation before the first step, in order": (
        lambda: keras([1, -AVERAGE, 0 * ONE], names=["a"]),
        ValueError,
        "from_keras: 'a' is in the midst of an accumulation",
    ),
    "a momentum that is not wanted, in order": (
        lambda: keras([7, ONE, -TWO], names=["a"]),
        ValueError,
        "from_keras: 3 variables, expected the iteration, perhaps the rate, and second moment of 1",
    ),
    "new variables of another setting, in order": (
        lambda: interop.to_keras(
            dialects.keras().init({"a": ONE}), [0, 0 * ONE, 0 * ONE], same, names=["a"]
        ),
        ValueError,
        "to_keras: the 2 variables of each parameter have no names, and may be .*use_ema",
    ),
    "momentum in the place of a mean": (
        lambda: keras([1, np.full(2, 0.1), np.full(2, -1.0)], centered=True, names=["a"]),
        ValueError,
        "from_keras: the mean of 'a' is larger than",
    ),
    "Adam's order of variables": (
        lambda: keras([1, *map(np.ones, (2, 2, 3, 3))], momentum=0.9, names=["a", "b"]),
        ValueError,
        r"from_keras: a variable of 'a' has shape \(3,\)",
    ),
    "Keras's loss scale in order": (
        lambda: keras([0, 0.1, 0, 1.0, 3, 0.1, np.ones(2)], names=["a"]),
        ValueError,
        "from_keras: 7 variables, expected .*`optimizer.inner_optimizer.variables`",
    ),
    "a variable that is no array": (
        lambda: keras({"o/a_velocity": "one"}), TypeError, "from_keras: 'o/a_velocity' has no num",
    ),
    "two optimizers in a checkpoint": (
        lambda: keras({f"{o}/_variables/1{VALUE}": np.ones(2) for o in ("gen", "dis")}),
        ValueError,
        r"from_keras: give optimizer=, one of \['dis', 'gen'\]",
    ),
    "another optimizer in a checkpoint": (
        lambda: keras({f"gen/_variables/1{VALUE}": np.ones(2)}, optimizer="dis"),
        TypeError,
        r"from_keras: no variables of the optimizer 'dis' in the checkpoint, only of \['gen'\]",
    ),
    "an optimizer of no checkpoint": (
        lambda: keras({"o/a_velocity": np.ones(2)}, optimizer="o"),
        ValueError,
        "from_keras: optimizer='o' is for a checkpoint",
    ),
    "a checkpoint without an optimizer": (
        lambda: keras({f"w{VALUE}": np.ones(2)}), TypeError, "no variables of the optimizer",
    ),
    "a broken checkpoint": (
        lambda: keras({f"o/_variables/0{VALUE}": 1, GRAPH: b"\x0a\x7f"}),
        ValueError,
        f"from_keras: {GRAPH} is no object graph",
    ),
    "a Keras optimizer with momentum": (
        lambda: interop.to_keras(trained(dialects.keras()), fresh_keras(centered=False), same),
        ValueError,
        "to_keras: the state has no momentum for 'w', and the optimizer in `like` has one",
    ),
    "other names than Keras's": (
        lambda: interop.to_keras(
            trained(dialects.keras()), fresh_keras(False, False), same, names=["x", "b"]
        ),
        ValueError,
        r"to_keras: missing \['x'\], surplus \['w'\]",
    ),
    "too large for a Keras variable": (
        lambda: interop.to_keras(
            dialects.keras().init({"a": jnp.zeros(1)})[0]._replace(nu={"a": jnp.full(1, 1e6)}),
            {"o/iteration": 0, "o/a_velocity": np.zeros(1, np.float16)},
            same,
        ),
        ValueError,
        r"to_keras: 'o/a_velocity': 1e\+06 is too large for float16",
    ),
    "two TensorFlow 1 optimizers": (
        lambda: interop.from_tensorflow1({"w/RMSProp": 1, "v/rmsprop_gen": 1}, LIKE, same),
        ValueError,
        r"from_tensorflow1: several optimizers, give slot=, of \['RMSProp', 'rmsprop_gen'\]",
    ),
    "two on one variable": (
        lambda: interop.from_tensorflow1(dict.fromkeys(SLOTS, np.ones(2)), LIKE, same),
        ValueError,
        "from_tensorflow1: 'w' has 4 slots, expected 2 or 3; .* give slot=.*'w/RMSProp_2'",
    ),
    "Adam's TensorFlow 1 slots": (
        lambda: interop.from_tensorflow1({"w/Adam": 1, "w/Adam_1": 1}, LIKE, same, slot="Adam"),
        TypeError,
        "from_tensorflow1: no slot <variable>/Adam of an RMSProp",
    ),
    "a centred TensorFlow 1 optimizer": (
        lambda: interop.to_tensorflow1(
            trained(dialects.tensorflow1(0.1)), fresh_tensorflow1(True), same
        ),
        ValueError,
        r"to_tensorflow1: the state has no mean \(it is not centred\) for 'b', and the optimizer",
    ),
    "momentum in one of two groups": (
        lambda: from_torch(torch_saved(), groups(a=dict(momentum=0.9), b={}).init(PARAMS)),
        ValueError,
        "the source has momentum of 'b', and `like` has no place for it",
    ),
    "a mean, and groups that are not centred": (
        lambda: from_torch(
            to_torch(trained(dialects.torch(centered=True))), groups(a={}, b={}).init(PARAMS)
        ),
        ValueError,
        "the source has mu of 'b', and `like` has no place for it",
    ),
    "a momentum that only its own link masks": (
        lambda: from_torch(
            torch_saved(),
            optax.chain(RMS, optax.masked(TRACE, {"w": True, "b": False})).init(PARAMS),
        ),
        ValueError,
        "the source has momentum of 'b', and `like` has no place for it",
    ),
    "momentum in two groups of Keras": (
        lambda: interop.from_keras(
            fresh_keras(centered=False), groups(a={}, b={}).init(PARAMS), same
        ),
        ValueError,
        "the source has momentum of 'b', and `like` has no place for it",
    ),
    "a stale momentum of Keras": (
        lambda: interop.to_keras(
            groups(a=dict(momentum=0.9), b={}).init(PARAMS), fresh_keras(centered=False), same
        ),
        ValueError,
        "to_keras: the state has no momentum for 'b', and the optimizer in `like` has one",
    ),
    "a stale momentum of TensorFlow 1": (
        lambda: interop.to_tensorflow1(
            groups(a=dict(momentum=0.9), b={}).init(PARAMS), fresh_tensorflow1(False), same,
            learning_rate=0.1,
        ),
        ValueError,
        "to_tensorflow1: the state has no momentum for 'b', and the optimizer in `like` has one",
    ),
    "what a conversion drops, though some may be missing": (
        lambda: interop.from_torch(
            torch_saved(), LIKE, lambda named: {"w": named["w"]}, names=NAMES, missing_ok=True
        ),
        ValueError,
        "from_torch: convert drops 'b'; missing_ok is for parameters without a state",
    ),
    "all that a layout passes over, though some may be missing": (
        lambda: interop.from_torch(
            torch_saved(), LIKE, interop.layout(PARAMS, subset=True).to_flax,
            names=["net.w", "net.b"], missing_ok=True,
        ),
        ValueError,
        "from_torch: convert drops 'net.b', 'net.w'",
    ),
    "a parameter that is called value": (
        lambda: interop.from_torch(
            changed(misshaped), dialects.torch(momentum=0.9).init(Head(PARAMS["b"], PARAMS["w"])),
            lambda named: Head(named["b"], named["w"]), names=NAMES,
        ),
        ValueError,
        r"nu.value has shape \(3, 2\), expected \(2, 3\)",
    ),
    **{
        f"{name}, {way}": (
            lambda state=state, call=call: call(state), ValueError, f"{way}: .*{says}",
        )
        for name, state, says in (
            ("a second moment below zero", ours_with(nu=-1.0), r"nu\['b'\]: .* negative: -1"),
            ("a second moment that is NaN", ours_with(nu=np.nan), "moment is not finite: nan"),
            ("a momentum that is NaN", ours_with(trace=np.nan), "momentum is not finite: nan"),
            ("a count that wraps", ours_with(count=np.int64(3e9)), "count must be .* 3000000000"),
            ("a count that is no whole number", ours_with(count=7.9), "count must be .* 7.9"),
            ("a rate that is NaN", ours_with(last_learning_rate=np.nan), "rate must be finite"),
        )
        for way, call in (
            ("transfer", lambda state: interop.transfer(state, LIKE)),
            ("to_torch", lambda state: to_torch(state)),
        )
    },
    "a variance below zero": (
        lambda: interop.transfer(
            ours_with(centered=True, var=-1.0), dialects.torch().init(PARAMS)
        ),
        ValueError,
        r"transfer: \[0\].var\['b'\]: a variance is negative: -1",
    ),
    "another's count that wraps": (
        lambda: interop.transfer(
            optax.ScaleByAdamState(np.int64(3e9), *[jnp.zeros(2)] * 2), optax.adam(0.1).init(ONE)[0]
        ),
        ValueError,
        "transfer: .count: a number of the source is none of int32",
    ),
    **{
        f"{argument} as {value!r}": (
            lambda call=call, value=value: call(value),
            TypeError,
            f"{argument} must be True or False, got",
        )
        for argument, call in {
            "from_torch: rate_in_buffer": lambda x: interop.from_torch(
                torch_saved(), LIKE, same, names=NAMES, rate_in_buffer=x
            ),
            "to_torch: rate_in_buffer": lambda x: interop.to_torch(
                LIKE, fresh_torch(), same, names=NAMES, rate_in_buffer=x
            ),
            "from_torch: missing_ok": lambda x: interop.from_torch(
                torch_saved(), LIKE, same, names=NAMES, missing_ok=x
            ),
            "to_torch: lr_in_momentum": lambda x: interop.to_torch(
                LIKE, fresh_torch(lr_in_momentum=x), same, names=NAMES
            ),
            "layout: subset": lambda x: interop.layout(PARAMS, subset=x),
        }.items()
        for value in ("False", 1, [True])
    },
    "Adam's Keras variables under RMSprop's name, in a list": (
        lambda: keras(
            [Known(f"rmsprop/{x}", ONE) for x in ("a_momentum", "a_velocity")], momentum=0.9
        ),
        TypeError,
        "from_keras: 'rmsprop/a_momentum' comes before 'rmsprop/a_velocity', as in Adam",
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
    "a new plateau": lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau()),
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
    steps = 0 if "new" in wrapper else 5
    state = trained(optax.with_extra_args_support(tx), steps, value=1.0)
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


RATE = ours.scale_by_learning_rate(0.25)
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
    "only a nameless link before, of Optax": (
        optax.chain(optax.scale_by_rms(), optax.scale(-0.25), optax.trace(0.9)), "steps",
    ),
    "only a nameless link before": (optax.chain(RMS, optax.scale(-0.25), TRACE), None),
    "only clipping before": (optax.chain(RMS, optax.clip(1e9), TRACE), None),
    "only a schedule before": (
        optax.chain(RMS, optax.scale_by_schedule(lambda count: 0.25), TRACE), None,
    ),
    "no rate": (ours.chain(RMS, TRACE), "directions"),
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
        frameworks = (
            interop.from_keras(fresh_keras(centered=False), like, same, momentum=told),
            interop.from_tensorflow1(
                fresh_tensorflow1(False), like, same, count=0, learning_rate=0.25, momentum=told
            ),
        )
        if "average" not in chain:
            options = {"learning_rate": 0.25, "momentum": told}
            for made in (
                interop.to_keras(state, fresh_keras(centered=False), same, **options),
                interop.to_tensorflow1(state, fresh_tensorflow1(False), same, **options),
            ):
                (steps,) = (
                    x for n, x in made.items() if n in ("rmsprop/w_momentum", "w/RMSProp_1")
                )
                np.testing.assert_allclose(steps, 0.25 * directions["w"], rtol=1e-5)
        assert all(not optax.tree.get(x, "trace")["w"].any() for x in frameworks)
    if holds:
        other = ({"steps", "directions"} - {holds}).pop()
        with pytest.raises(ValueError, match=f"momentum='{other}', and the links of the state"):
            interop.from_torch(saved, like, same, names=NAMES, momentum=other)


def test_of_two_second_moments_none_is_taken_for_the_one():
    one, two = dialects.torch(), optax.chain(optax.identity(), RMS, dialects.torch())
    for source, target, paths in (
        (one, two, ["[1].nu['b']", "[1].nu['w']", "[2][0].nu['b']", "[2][0].nu['w']"]),
        (two, one, ["[0].nu['b']", "[0].nu['w']"]),
    ):
        state, unfilled, unused = interop.transfer(trained(source), target.init(PARAMS))
        assert unfilled == paths
        assert sorted(unused) == sorted(f for f, x in moments(trained(source)))
        assert not any(x.any() for _, x in moments(state))


def test_buffers_at_one_place_may_hold_different_things():
    inside, outside = (CHAINS[name][0] for name in ("rate, momentum", "identity between"))
    state = trained(inside)
    moved = interop.transfer(state, outside.init(PARAMS)).state
    expected = jax.tree.map(lambda x: x / -0.25, state[2].trace)
    chex.assert_trees_all_close(moved[2].trace, expected, rtol=1e-6)


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


def test_a_parameter_without_elements_and_one_of_another_rate_are_carried():
    params = {"w": jnp.zeros(2), "b": jnp.zeros((0, 3))}
    saved = {
        "state": {i: {"step": 1.0 + i, "square_avg": np.ones(params[n].shape)} for i, n in
                  enumerate(NAMES)},
        "param_groups": [{"lr": 0.5, "params": [0]}, {"lr": 0.25, "params": [1]}],
    }  # fmt: skip
    state = from_torch(saved, dialects.torch().init(params))
    assert int(state[0].count) == 1 and float(state[1].last_learning_rate) == 0.5


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_parameters_are_carried_in_both_directions(setting):
    like = dialects.torch(**SETTINGS[setting]).init({})
    fresh = {"state": {}, "param_groups": [{"lr": 0.1, "params": []}]}
    chex.assert_trees_all_equal(interop.from_torch(fresh, like, same, names=[]), like)
    assert interop.to_torch(like, fresh, same, names=[]) == fresh


def test_a_group_without_parameters_has_no_number_of_steps():
    of = {n: dialects.torch(momentum=0.9) for n in (*NAMES, "none")}
    like = optax.partition(of, {n: n for n in NAMES}).init(PARAMS)
    state = from_torch(changed(uneven), like)
    counts = {n: int(s.inner_state[0].count) for n, s in state.inner_states.items()}
    assert counts == {"w": 5, "b": 4, "none": 0}
    back = interop.to_torch(state, fresh_torch(), same, names=NAMES)
    assert [float(back["state"][i]["step"]) for i in range(2)] == [5, 4]


def test_a_field_called_value_is_one_of_the_parameters():
    group = dialects.torch(momentum=0.9)
    tx = optax.partition({"a": group, "b": group}, Head({"value": "b"}, "a"))
    like = tx.init(Head({"value": jnp.zeros(3)}, jnp.zeros((2, 3))))
    saved = changed(uneven)
    state = from_torch(saved, like, lambda named: Head({"value": named["b"]}, named["w"]))
    assert [int(state.inner_states[n].inner_state[0].count) for n in "ab"] == [5, 4]
    back = lambda tree: {"b": tree.policy["value"], "w": tree.value}  # noqa: E731
    again = interop.to_torch(state, fresh_torch(), back, names=NAMES)
    chex.assert_trees_all_close(again, saved)


def test_complex_parameters_are_pairs_here_and_complex_again_there():
    params = {n: jnp.zeros(2, complex) for n in NAMES}
    like = dialects.torch(momentum=0.9).init(params)
    state = jax.tree.map(lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), like)
    joined = lambda tree: {n: x[..., 0] + 1j * x[..., 1] for n, x in tree.items()}  # noqa: E731
    saved = interop.to_torch(state, fresh_torch(), joined, names=NAMES)
    chex.assert_trees_all_equal(interop.to_torch(state, saved, same, names=NAMES), saved)
    back = from_torch(saved, like)
    chex.assert_trees_all_close(back[:2], state[:2])
    assert np.iscomplexobj(saved["state"][0]["momentum_buffer"])


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


AVERAGE = np.array([-5.0, 6.0], np.float32)
RATE = np.float32(0.5)


def numbered(optimizer, *names, start=0, **more):
    """A checkpoint of an optimizer that numbers its variables, and knows their names."""
    keys = [f"{optimizer}/_variables/{start + i}{VALUE}" for i, _ in enumerate(names)]
    labels = zip(keys, [name for name, _ in names], strict=True)
    return (
        dict(reversed([*zip(keys, [x for _, x in names], strict=True)]))
        | more
        | {GRAPH: graph(labels)}
    )


# Two parameters of one shape: a swap is nobody's error. What is not RMSprop's is not read.
KERAS = {
    "a list that knows its names": [
        Known("gen/iteration", 7), Known("gen/learning_rate", RATE),
        Known("gen/b_velocity", TWO), Known("gen/a_velocity", ONE),
    ],
    "averaged weights in a list": [
        Known("o/iteration", 7), Known("o/a_average", AVERAGE), Known("o/b_average", AVERAGE),
        Known("o/a_velocity", ONE), Known("o/b_velocity", TWO),
    ],
    "averages and accumulators by name": {
        "o/iteration": 7, "o/a_average": AVERAGE, "o/b_average": AVERAGE,
        "o/a_gradient_accumulator": 0 * ONE, "o/b_gradient_accumulator": 0 * ONE,
        "o/b_velocity": TWO, "o/a_velocity": ONE,
    },
    "an optimizer for mixed precision": {
        "scale/iteration": 0, "scale/learning_rate": np.float32(0), "scale/step_counter": 3,
        "scale/dynamic_scale": np.float32(8), "o/iteration": 7, "o/learning_rate": RATE,
        "scale/o/b_velocity": TWO, "scale/o/a_velocity": ONE,
    },
    "tf_keras": {
        "average/b:0": AVERAGE, "iteration:0": 7, "velocity/b:0": TWO, "velocity/a:0": ONE,
    },
    "tf_keras's legacy optimizer, in a scope": {
        "cond_1/RMSprop/iter:0": 7, "cond_1/RMSprop/b/rms:0": TWO, "cond_1/RMSprop/a/rms:0": ONE,
    },
    "a whole model's file": Group(
        {"o/a_velocity": ONE, "o/b_velocity": TWO, "o/iteration": 7},
        weight_names=np.array([b"o/iteration", b"o/a_velocity", b"o/b_velocity"]),
    ),
    "slots of a checkpoint": {
        f"opt/momentum{VALUE}": RATE, f"opt/iter{VALUE}": 7, f"other{VALUE}": AVERAGE,
        f"b/.OPTIMIZER_SLOT/opt/rms{VALUE}": TWO, f"a/.OPTIMIZER_SLOT/opt/rms{VALUE}": ONE,
    },
    "slots of variables that have names": {
        f"opt/iter{VALUE}": 7, "save_counter": 1, GRAPH: graph([
            (f"l0{VALUE}", "b"), (f"l1{VALUE}", "a"),
            (f"l0/.OPTIMIZER_SLOT/opt/rms{VALUE}", "c/RMSprop/b/rms"),
        ]),
        f"l0/.OPTIMIZER_SLOT/opt/rms{VALUE}": TWO, f"l1/.OPTIMIZER_SLOT/opt/rms{VALUE}": ONE,
    },
    "numbered variables of a checkpoint": numbered(
        "opt", ("RMSprop/velocity/b", TWO), ("RMSprop/velocity/a", ONE), start=9,
        **{f"opt/_iterations{VALUE}": 7, f"opt/_current_learning_rate{VALUE}": RATE},
    ),
    "more than nine": numbered(
        "model/optimizer", *[(f"o/{n}_average", AVERAGE) for n in "ba"],
        ("o/b_velocity", TWO), ("o/a_velocity", ONE), start=8,
        **{f"model/optimizer/_iterations{VALUE}": 7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", KERAS)
@pytest.mark.parametrize("names", [None, ["a", "b"]], ids=["", "names"])
def test_a_keras_variable_is_known_by_its_own_name(form, names):
    saved = KERAS[form]
    like = dialects.keras().init({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    state = interop.from_keras(saved, like, same, names=names)
    assert int(state[0].count) == 7
    chex.assert_trees_all_equal(state[0].nu, {"a": ONE, "b": TWO})
    # Back into a new optimizer: the same, and what is not RMSprop's as it was there.
    back = interop.to_keras(state, saved, same, names=["a", "b"])
    pairs = enumerate(back) if isinstance(saved, list) else back.items()
    for key, x in pairs:
        np.testing.assert_array_equal(x, saved[key])
        old = saved[key].value if isinstance(saved, list) else np.asarray(saved[key])
        assert x.dtype == old.dtype and x.flags.writeable and not np.shares_memory(x, old)


@pytest.mark.parametrize("setting", [*SETTINGS, "centered"])
@pytest.mark.parametrize("before", [[], [0.0], [-5.0, 0.0]], ids=["", "sums", "averages and sums"])
@pytest.mark.parametrize("rate", [[], [RATE]], ids=["", "rate"])
def test_what_stands_before_the_second_moments_of_unnamed_variables(setting, before, rate):
    options = SETTINGS.get(setting, {"centered": True})
    own = {"o/a_velocity": ONE, "o/b_velocity": TWO}
    if "momentum" in options:
        own |= {"o/a_momentum": -ONE, "o/b_momentum": TWO}
    if "centered" in options:
        own |= {"o/a_average_gradient": -ONE / 8, "o/b_average_gradient": TWO / 8}
    first = [np.full_like(ONE, x) for x in before for _ in "ab"]
    saved = [np.int32(7), *rate, *first, *own.values()]
    tx = dialects.keras(0.5, **options)
    like = tx.init({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    told = {"names": ["a", "b"], "learning_rate": 0.5}
    state = interop.from_keras(saved, like, same, **told)
    chex.assert_trees_all_equal(
        state, interop.from_keras({"o/iteration": 7, **own}, like, same, **told)
    )
    # Others have changed meanwhile, and stay; RMSprop's own are written over.
    changed = [x / 2 if x.ndim and np.any(x) else x for x in saved]
    back = interop.to_keras(state, changed, same, **told)
    kept = 1 + len(rate) + len(first)
    for i, x in enumerate(back):
        np.testing.assert_allclose(x, changed[i] if i < kept else saved[i], rtol=1e-6)


def test_variables_of_one_name_are_told_apart_by_their_order():
    saved = [Known("o/iteration", 7), Known("o/w_velocity", ONE), Known("o/w_velocity", TWO)]
    like = dialects.keras().init({"x/w": jnp.zeros(2), "y/w": jnp.zeros(2)})
    state = interop.from_keras(saved, like, same, names=["x/w", "y/w"])
    chex.assert_trees_all_equal(state[0].nu, {"x/w": ONE, "y/w": TWO})
    # Two variables of one kind and name, and only one is left: as a dictionary has them.
    with pytest.raises(ValueError, match="from_keras: missing"):
        interop.from_keras({x.path: x for x in saved}, like, same, names=["x/w", "y/w"])


def test_numbered_variables_without_names_are_in_the_order_of_their_numbers():
    numbers = [7, 0.5, *range(9)]
    saved = {f"o/_variables/{i}{VALUE}": np.float32(x) for i, x in enumerate(numbers)}
    names = [f"{i}" for i in range(9)]
    like = dialects.keras().init(dict.fromkeys(names, jnp.zeros(())))
    state = interop.from_keras(dict(sorted(saved.items())), like, same, names=names)
    chex.assert_trees_all_equal(state[0].nu, {name: np.float32(name) for name in names})


@pytest.mark.parametrize("kind", ["momentum", "velocity"])
def test_a_layer_may_be_called_as_a_variable_is(kind):
    like = dialects.keras(momentum=0.9).init({f"{kind}/w": jnp.zeros(2)})
    parameter = f"{kind}/w"
    forms = [
        {"iteration": 7, f"velocity/{parameter}": ONE, f"momentum/{parameter}": TWO},
        {"R/iter": 7, f"R/{parameter}/rms": ONE, f"R/{parameter}/momentum": TWO},
        {"o/iteration": 7, f"o/{kind}_w_velocity": ONE, f"o/{kind}_w_momentum": TWO},
    ]
    for saved in forms:
        state = interop.from_keras(saved, like, same, names=[parameter])
        np.testing.assert_array_equal(state[0].nu[parameter], ONE)
        np.testing.assert_array_equal(state[2].trace[parameter], -TWO)


def test_a_decay_of_keras_2_leaves_no_rate():
    like = dialects.keras(momentum=0.9).init({"w": jnp.zeros(2)})
    saved = {f"o/iter{VALUE}": 7, f"o/learning_rate{VALUE}": RATE, f"o/decay{VALUE}": 0.0} | {
        f"w/.OPTIMIZER_SLOT/o/{kind}{VALUE}": ONE for kind in ("rms", "momentum")
    }
    for decay, rate in ((0.0, 0.5), (0.1, 0.001)):
        state = interop.from_keras(saved | {f"o/decay{VALUE}": decay}, like, same)
        np.testing.assert_allclose(optax.tree.get(state, "last_learning_rate"), rate)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_half_precision_variable_stays_one(half):
    state = trained(dialects.keras(momentum=0.9))
    fresh = {k: np.asarray(x).astype(half) for k, x in fresh_keras(centered=False).items()}
    fresh["rmsprop/iteration"] = np.int64(0)
    for like in (fresh, [Known(key, x) for key, x in fresh.items()]):
        saved = interop.to_keras(state, like, same)
        for got, old in zip(
            saved.values() if like is fresh else saved, fresh.values(), strict=True
        ):
            assert got.dtype == old.dtype and got.flags.writeable and got.flags.owndata
    slots = {k: x.astype(half) for k, x in fresh_tensorflow1(False).items()} | {
        "w": np.ones(3, half)
    }
    tx = dialects.tensorflow1(0.1, momentum=0.9)
    for got, old in zip(
        interop.to_tensorflow1(trained(tx), slots, same).values(), slots.values(), strict=True
    ):
        assert got.dtype == old.dtype and got.flags.writeable and got.flags.owndata


def test_a_bfloat16_dataset_is_two_bytes():
    saved = {"0": 7, "1": np.asarray(ONE, jnp.bfloat16).view("V2")}
    like = dialects.keras().init({"a": jnp.zeros(2)})
    state = interop.from_keras(saved, like, same, names=["a"])
    np.testing.assert_array_equal(state[0].nu["a"], ONE)
    assert interop.to_keras(state, saved, same, names=["a"])[1].dtype == jnp.bfloat16


FOUR = {key: np.full(2, 1.0 + i, np.float32) for i, key in enumerate(SLOTS)}
TENSORFLOW1 = {
    "its own name": ({"w/gen_rmsprop": ONE, "w/gen_rmsprop_1": TWO}, None, (ONE, TWO)),
    "a name without rmsprop": ({"w/gen": ONE, "w/gen_1": TWO, "w/Adam": TWO}, "gen", (ONE, TWO)),
    "a name that ends with a number": ({"w/gen_2": ONE, "w/gen_2_1": TWO}, "gen_2", (ONE, TWO)),
    "one of two": ({"w/gen": ONE, "w/gen_1": TWO, "v/RMSProp": TWO}, "gen", (ONE, TWO)),
    "the first of two on one variable": (FOUR, "RMSProp", (FOUR[SLOTS[0]], FOUR[SLOTS[1]])),
    "the second of two on one variable": (FOUR, "RMSProp_2", (FOUR[SLOTS[2]], FOUR[SLOTS[3]])),
}


@pytest.mark.parametrize("case", TENSORFLOW1)
def test_a_tensorflow1_optimizer_may_have_a_name(case):
    saved, slot, (nu, step) = TENSORFLOW1[case]
    like = dialects.tensorflow1(0.1, momentum=0.9).init({"w": jnp.zeros(2)})
    state = interop.from_tensorflow1(saved | {"w": nu}, like, same, count=7, slot=slot)
    np.testing.assert_array_equal(state[0].nu["w"], nu)
    np.testing.assert_array_equal(state[2].trace["w"], -step)
    back = interop.to_tensorflow1(state, saved, same, slot=slot)
    chex.assert_trees_all_equal(back, saved)


def test_a_slot_that_tensorflow_does_not_read_holds_no_momentum():
    tx = dialects.tensorflow1(0.5)
    state = trained(tx)
    slots = {key: x + 0.3 for key, x in fresh_tensorflow1(False).items()}
    saved = interop.to_tensorflow1(state, slots, same)
    np.testing.assert_array_equal(saved["w/RMSProp"], state[0].nu["w"])
    assert not saved["w/RMSProp_1"].any()
