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
        "to_keras: the state has no momentum, the optimizer in `like` has one",
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
        "to_tensorflow1: the optimizer in `like` is centred, the state is not",
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


ONE, TWO = np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)
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
