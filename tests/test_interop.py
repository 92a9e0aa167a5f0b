"""Carried states: what is filled, what is refused and by which words. Frameworks: tests/live."""

import copy
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


def trained(tx, steps=5, params=PARAMS, seed=1):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = tx.init(params)
    for _ in range(steps):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = tx.update(grads, state, params)
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


BAD = {
    "no state": (
        lambda: from_torch(changed(lambda s: s["state"].pop(1))),
        ValueError,
        "from_torch: no state for 'b': it never had a gradient",
    ),
    "an entry is missing": (
        lambda: from_torch(changed(pop)), ValueError, "from_torch: 'b' has no momentum_buffer",
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
        "from_torch: the source has no second moment for .*b",
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
    "no RMSprop": (
        lambda: interop.to_torch(optax.sgd(0.1).init(PARAMS), fresh_torch(), same, names=NAMES),
        TypeError,
        "there is no state of RMSprop",
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
    with jax.numpy_dtype_promotion("standard"):
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
    assert unfilled == [] and unused == ["[1].trace"]

    centered = trained(dialects.torch(centered=True))
    state, unfilled, unused = interop.transfer(centered, plain)
    assert unfilled == [] and unused == ["[0].mu"]
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
        with jax.numpy_dtype_promotion("standard"):
            theirs = trained(tx)
        like = (inside if steps else outside).init(PARAMS)
        trace = optax.tree.get(interop.transfer(theirs, like).state, "trace")
        chex.assert_trees_all_close(trace, optax.tree.get(theirs, "trace"))
        other = (outside if steps else inside).init(PARAMS)
        assert interop.transfer(theirs, other).unused  # the rate is not known


def test_a_state_by_name_has_no_order():
    links = {"rms": ours.scale_by_rms(), "buffer": ours.trace(0.9)}
    state = trained(optax.named_chain(*links.items()))
    with pytest.raises(ValueError, match="a state by name does not tell"):
        interop.transfer(state, LIKE)


def test_what_was_free_to_move_stays_free_and_what_was_placed_stays_placed():
    saved = torch_saved()
    free = from_torch(saved)
    assert not any(x.committed for x in jax.tree.leaves(free))
    there = jax.device_put(LIKE, jax.devices()[3])
    placed = from_torch(saved, there)
    assert all(x.devices() == {jax.devices()[3]} for x in jax.tree.leaves(placed))


def test_a_shape_that_differs_is_refused_by_its_path():
    other = dialects.torch().init({"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match=re.escape("transfer: [0].nu['w'] has shape (2, 3)")):
        interop.transfer(trained(dialects.torch()), other)


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
    ("layout: conv.weight has shape (3, 2, 4, 5), expected (2, 3, 4, 5)",
     lambda named: named.update({"conv.weight": named["conv.weight"].swapaxes(2, 3)})),
])  # fmt: skip
def test_a_layout_refuses_by_name(message, change):
    both = interop.layout(TREE)
    named = dict(both.to_torch(TREE))
    change(named)
    with pytest.raises(ValueError, match=re.escape(message)):
        both.to_flax(named)


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
