"""Promise 7: the same numbers inside every wrapper, framework and tree."""

import inspect

import chex
import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import optax_rmsprop as ours
from optax_rmsprop import dialects, retuning, storage
from tests.cases import cases, crossed
from tests.test_compiled import ROWS

pytestmark = pytest.mark.api

PARAMS = {"w": np.float32([[1.0, -2.0], [0.5, 4.0]]), "b": np.float32([3.0, -1.0])}
GRADS = [jax.tree.map(lambda p, c=c: p * np.float32(c), PARAMS) for c in (0.5, -0.25, 2.0, 1.0)]


@pytest.fixture(autouse=True)
def relaxed_promotion(strict_promotion):
    """The code of the libraries around ours relies on JAX's standard promotion of dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(tx, params=PARAMS, grads=GRADS, wrap=lambda update: update, **extra):
    """The parameters after steps with given gradients, and the last state."""
    params = jax.tree.map(jnp.asarray, params)
    state, update = tx.init(params), wrap(tx.update)
    for g in grads:
        updates, state = update(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def close(actual, expected, rounding=0.0):
    """Equal but for the order of roundings, fewer than 32 of which differ when it is compiled.

    And but for `rounding` of ν, whose dither differs where a leaf's path does: half of it for each
    of four steps, none of which is longer than 2.
    """
    chex.assert_trees_all_close(actual, expected, rtol=32 * 2**-24, atol=4 * rounding)


@cases()
def test_extra_arguments_are_ignored(case):
    plain = run(case())
    names = ("value", "grad", "value_fn", "eps", "decay", "learning_rate", "first")
    chex.assert_trees_all_equal(run(case(), **dict.fromkeys(names, 7.0)), plain)


@cases()
def test_in_a_chain(case):
    tx = optax.chain(optax.scale(0.5), case(), optax.scale(2.0))
    halved = [jax.tree.map(lambda g: 0.5 * g, g) for g in GRADS]

    def doubled(updates):
        return jax.tree.map(lambda u: 2.0 * u, updates)

    state = inner = case().init(PARAMS)
    outer = tx.init(PARAMS)
    for g, half in zip(GRADS, halved, strict=True):
        expected, inner = case().update(half, inner, PARAMS)
        updates, outer = tx.update(g, outer, PARAMS)
        chex.assert_trees_all_equal(updates, doubled(expected))
    chex.assert_trees_all_equal_structs(state, outer[1])


@cases()
def test_masked_and_partitioned_leaves_follow_their_own_rules(case):
    # Alone, so that a mask by rank decides as in the whole tree.
    alone, _ = run(case(), {"w": PARAMS["w"]}, [{"w": g["w"]} for g in GRADS])
    tx = optax.partition(
        {"ours": case(), "frozen": optax.set_to_zero()}, {"w": "ours", "b": "frozen"}
    )
    params, state = run(tx)
    close(params, alone | {"b": PARAMS["b"]})
    # Freezing costs nothing: no accumulator has the frozen leaf's shape.
    assert all(np.shape(x) != PARAMS["b"].shape for x in jax.tree.leaves(state))

    masked = optax.masked(case(), {"w": True, "b": False})
    updates, _ = masked.update(GRADS[0], masked.init(PARAMS), PARAMS)
    expected, _ = case().update(
        {"w": GRADS[0]["w"]}, case().init({"w": PARAMS["w"]}), {"w": PARAMS["w"]}
    )
    close(updates["w"], expected["w"])
    chex.assert_trees_all_equal(updates["b"], GRADS[0]["b"])


@cases()
def test_accumulated_over_two_micro_batches(case):
    twice = [g for g in GRADS for _ in range(2)]
    # Compiled once: a conditional outside jit is compiled anew at each step.
    params, _ = run(optax.MultiSteps(case(), 2), grads=twice, wrap=jax.jit)
    close(params, run(case())[0])


@cases()
def test_a_step_that_is_not_finite_is_skipped(case):
    params = {"w": jnp.asarray(PARAMS["w"], jnp.bfloat16), "b": jnp.asarray(PARAMS["b"])}
    broken = jax.tree.map(lambda p: np.full_like(p, np.nan), PARAMS)
    tx = optax.apply_if_finite(case(), 3)
    grads = [*GRADS[:2], broken, *GRADS[2:]]
    close(run(tx, params, grads, wrap=jax.jit)[0], run(case(), params, wrap=jax.jit)[0])


@cases()
def test_injected_hyperparameters_can_be_replaced(case):
    static = [name for name, value in case.reference.items() if callable(value)]
    tx = optax.inject_hyperparams(case.make, static_args=static)(**case.hyper)
    name, value = next(iter(case.hyper.items()))
    state = tx.init(PARAMS)
    state.hyperparams[name] = jnp.asarray(0.5 * value)
    updates, _ = tx.update(GRADS[0], state, PARAMS)
    expected, _ = case(**{name: 0.5 * value}).update(GRADS[0], case().init(PARAMS), PARAMS)
    # An injected decay is rounded before it is taken from one: 2^-24 / (1 - decay) of ν.
    chex.assert_trees_all_close(updates, expected, rtol=2e-5)


def static(factory, options):
    """The arguments that are no hyperparameters, or on whose value the rule depends."""
    names = {name for name, value in options.items() if callable(value)}
    return names | ({"momentum"} if factory is dialects.keras2 else set())


@pytest.mark.parametrize("name", list(ROWS))
def test_every_factory_with_every_option_is_the_same_under_inject_hyperparams(name):
    """Optax makes arrays of all numbers, known in an eager `init` and traced in a jitted update."""
    row = ROWS[name]
    options = row.options | {next(iter(inspect.signature(row.factory).parameters)): 0.1}
    injected = optax.inject_hyperparams(row.factory, static_args=static(row.factory, options))
    tx, plain = injected(**options), row.factory(**options)
    start = jax.tree.map(jnp.asarray, PARAMS)
    expected, own = run(plain, wrap=jax.jit)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(start)
        chex.assert_trees_all_equal_structs(state.inner_state, own)
        for update in (jax.jit(tx.update), tx.update):
            params, after = start, state
            for g in GRADS:
                updates, after = update(g, after, params)
                params = optax.apply_updates(params, updates)
            chex.assert_trees_all_equal_structs(after, state)
            # An injected decay is rounded before it is taken from one: 2^-24 / (1 - decay) of ν.
            chex.assert_trees_all_close(params, expected, rtol=2e-5, atol=1e-6)


@cases()
def test_a_structure_does_not_depend_on_whether_a_number_is_known(case):
    expected = jax.tree.structure(case().init(PARAMS))
    for name, value in case.hyper.items():
        traced = jax.eval_shape(lambda x, n=name: case(**{n: x}).init(PARAMS), jnp.float32(value))
        assert jax.tree.structure(traced) == expected
        for known in (np.float32(value), jnp.asarray(value), optax.constant_schedule(value)):
            assert jax.tree.structure(case(**{name: known}).init(PARAMS)) == expected


@cases(is_chain=False)
def test_one_count_and_one_rate_are_found_by_name(case):
    """Each by one name in our states, and the rate by another in those of Optax's wrapper."""
    state = run(case())[1]
    counts = optax.tree.get_all_with_path(state, "count")
    assert [int(count) for _, count in counts] == [len(GRADS)] * case.divides
    with pytest.raises(KeyError):
        optax.tree.set(state, learning_rate=jnp.float32(1.0))
    if "learning_rate" in case.hyper:
        assert optax.tree.get(state, "last_learning_rate") == case.hyper["learning_rate"]
        injected = optax.inject_hyperparams(case.make)(**case.hyper)
        state = injected.init(PARAMS)
        assert optax.tree.get(state, "learning_rate") == case.hyper["learning_rate"]
        faster = optax.tree.set(state, learning_rate=2 * optax.tree.get(state, "learning_rate"))
        update, twice = (injected.update(GRADS[0], s, PARAMS)[0] for s in (state, faster))
        if not case.decays_weights:
            chex.assert_trees_all_close(twice, jax.tree.map(lambda u: 2 * u, update), rtol=1e-6)
        else:
            assert not np.allclose(twice["w"], update["w"])


RISING, RMS = ours.scale_by_learning_rate(lambda count: 1.0 * count), ours.scale_by_rms()
BESIDE = optax.identity()


@pytest.mark.parametrize(
    "tx",
    [
        ours.chain(RMS, ours.chain(BESIDE, RISING)),
        ours.chain(RMS, dialects.cautious(ours.chain(BESIDE, RISING))),
        storage.stored_as(ours.chain(RMS, ours.chain(BESIDE, RISING)), storage.uint8()),
        ours.chain(storage.stored_as(ours.chain(RMS), storage.uint8()), RISING),
        ours.chain(retuning.retunable(ours.chain(BESIDE, RMS)), RISING),
    ],
    ids=["chain", "cautious", "stored", "stored inside", "retunable inside"],
)
def test_all_links_go_by_the_count_of_the_second_moment(tx):
    params = jnp.ones((64, 128))
    state = optax.tree.set(tx.init(params), count=jnp.int32(7))
    _, state = tx.update(params, state, params)
    assert optax.tree.get(state, "last_learning_rate") == 7.0


def test_a_chain_takes_gradients_of_numpy_without_a_warning():
    tx, grads = ours.chain(BESIDE, ours.rmsprop(0.1)), np.ones(3)
    updates, _ = tx.update(grads, tx.init(grads))
    assert updates.dtype == jnp.float32


@cases(divides=True)
def test_to_set_the_count_restarts_every_schedule(case):
    """As `optax.tree.set` does in Optax's states, for a warm restart."""
    falling = {name: lambda count, x=x: x / (1.0 + count) for name, x in case.hyper.items()}
    tx = case(**falling)
    fresh, (params, state) = tx.init(PARAMS), run(tx)
    restarted = optax.tree.set(state, count=jnp.zeros([], jnp.int32))
    accumulators = lambda s: [x for x in jax.tree.leaves(s) if x.ndim]  # noqa: E731
    leaves, tree = jax.tree.flatten(fresh)
    old = iter(accumulators(state))
    expected = tree.unflatten([next(old) if x.ndim else x for x in leaves])
    if isinstance(state, storage.StoredAsState):  # its count is that of the random bits
        expected = expected._replace(rounding_count=state.rounding_count)
    after = [tx.update(GRADS[0], s, params) for s in (restarted, expected)]
    chex.assert_trees_all_equal(*after)


@cases(decays_weights=False)
def test_flattened(case):
    close(run(optax.flatten(case()))[0], run(case())[0], case.rounding)


@cases(signed=True)
def test_lookahead(case):
    tx = optax.lookahead(case(), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(jax.tree.map(jnp.asarray, PARAMS))
    state = tx.init(params)
    fast, inner = PARAMS, case().init(PARAMS)
    slow = PARAMS
    for t, g in enumerate(GRADS):
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        u, inner = case().update(g, inner, fast)
        fast = optax.apply_updates(fast, u)
        if t % 2 == 1:
            slow = fast = jax.tree.map(lambda s, f: s + 0.5 * (f - s), slow, fast)
    chex.assert_trees_all_close(params.fast, fast, rtol=1e-5)


@cases()
def test_map_params_visits_each_accumulator_leaf_once(case):
    tx = case()
    state = tx.init(PARAMS)
    marked = optax.tree.map_params(
        tx, lambda x: "param", state, transform_non_params=lambda x: "other"
    )
    chex.assert_trees_all_equal_structs(
        jax.tree.map(lambda _: 0, marked), jax.tree.map(lambda _: 0, state)
    )
    marks = jax.tree.leaves(marked)
    for (path, x), mark in zip(jax.tree_util.tree_leaves_with_path(state), marks, strict=True):
        assert mark == ("param" if x.ndim else "other"), path


@cases()
def test_the_rate_and_the_accumulators_are_found_by_name(case):
    state = storage.decoded(run(case())[1])
    assert optax.tree.get(state, "last_learning_rate", None) == case.hyper.get("learning_rate")
    for field in ("nu", "var", "mu", "trace"):
        found = optax.tree.get(state, field, None)
        if found is not None:
            chex.assert_trees_all_equal_shapes(found, PARAMS)


@crossed("wrap", {"jit": jax.jit, "eager": lambda update: update})
def test_the_rate_in_the_state_is_the_one_just_used(case, wrap):
    rates = np.float32([0.5, 0.3, 0.2, 0.1])
    own = {
        name: lambda count: jnp.asarray(rates)[count]
        for name in case.hyper.keys() & {"learning_rate"}
    }
    tx = case(**own)
    state, update = tx.init(PARAMS), wrap(tx.update)
    for rate, g in zip(rates, GRADS, strict=True):
        _, state = update(g, state, PARAMS)
        assert optax.tree.get(state, "last_learning_rate", None) == (rate if own else None)


class Callable(eqx.Module):
    """A model that is called, as one of booleans can be too."""

    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.w @ x + self.b


DECAYING = [
    pytest.param(factory, name, id=factory.__name__)
    for factory in {row.factory: None for row in ROWS.values()}
    for name in inspect.signature(factory).parameters
    if name in ("weight_decay", "wd")
]


@pytest.mark.parametrize(["factory", "name"], DECAYING)
def test_a_mask_says_which_weights_decay(factory, name):
    """As a tree, as a prefix, as a function, and as a model, which could be called."""
    model = Callable(**jax.tree.map(jnp.asarray, PARAMS))
    grads = [Callable(**jax.tree.map(jnp.asarray, g)) for g in GRADS]
    decayed, plain = (run(factory(0.1, **{name: x}), model, grads)[0] for x in (0.5, 0.0))
    assert not np.allclose(decayed.w, plain.w)
    masks = [
        Callable(True, False),
        jax.tree.map(lambda p: p.ndim > 1, model),
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ]
    for mask in masks:
        masked, _ = run(factory(0.1, **{name: 0.5, "mask": mask}), model, grads)
        close(masked, Callable(decayed.w, plain.b))


class Layer(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.asarray(PARAMS["w"]))
        self.b = nnx.Param(jnp.asarray(PARAMS["b"]))


@cases()
def test_in_nnx(case):
    model = Layer()
    optimizer = nnx.Optimizer(model, case(), wrt=nnx.Param)
    for g in GRADS:
        grads = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(grads, jax.tree.map(jnp.asarray, g))
        optimizer.update(model, grads)
    expected, _ = run(case())
    close({"w": model.w[...], "b": model.b[...]}, expected)


@cases()
def test_in_linens_train_state(case):
    state = TrainState.create(
        apply_fn=linen.Dense(2).apply, params=jax.tree.map(jnp.asarray, PARAMS), tx=case()
    )
    step = jax.jit(lambda state, g: state.apply_gradients(grads=g))
    for g in GRADS:
        state = step(state, g)
    close(state.params, run(case())[0])


class Net(eqx.Module):
    w: jax.Array
    b: jax.Array
    steps: int
    activation: object = eqx.field(static=True)

    def __call__(self):
        return self.activation(self.w @ self.b)


@cases()
def test_in_equinox(case):
    net = Net(jnp.asarray(PARAMS["w"]), jnp.asarray(PARAMS["b"]), 3, jnp.sum)
    tx = case()
    state = tx.init(eqx.filter(net, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(net, state):
        grads = eqx.filter_grad(lambda net: net())(net)
        updates, state = tx.update(grads, state, eqx.filter(net, eqx.is_inexact_array))
        return eqx.apply_updates(net, updates), state

    params = jax.tree.map(jnp.asarray, PARAMS)
    plain = tx.init(params)
    for _ in range(3):
        net, state = step(net, state)
        grads = jax.grad(lambda p: jnp.sum(p["w"] @ p["b"]))(params)
        updates, plain = tx.update(grads, plain, params)
        params = optax.apply_updates(params, updates)
    assert net.steps == 3
    close({"w": net.w, "b": net.b}, params, case.rounding)


@cases()
def test_a_checkpoint_continues_bit_for_bit(case, tmp_path):
    params, state = run(case(), grads=GRADS[:2])
    expected = run_on(case(), params, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", case().init(PARAMS))
    chex.assert_trees_all_equal(run_on(case(), params, restored), expected)
    raw = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(case().init(PARAMS), raw)
    restored = jax.tree.map(jnp.asarray, restored)
    chex.assert_trees_all_equal(run_on(case(), params, restored), expected)


def run_on(tx, params, state):
    for g in GRADS[2:]:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@cases()
def test_a_none_gradient_leaves_its_leaf_alone(case):
    tx = case()
    _, state = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    updates, after = tx.update(GRADS[1] | {"b": None}, state, PARAMS)
    assert updates["b"] is None
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    for path, x in jax.tree_util.tree_leaves_with_path(after):
        if jax.tree_util.DictKey("b") in path:
            before = dict(jax.tree_util.tree_leaves_with_path(state))[path]
            chex.assert_trees_all_equal(x, before)
    chex.assert_tree_all_finite(tx.update(GRADS[2], after, PARAMS))


@cases()
def test_none_in_both_trees_empty_trees_and_zero_size_leaves(case):
    odd = {"none": None, "empty": {}, "nothing": np.zeros((0, 3), np.float32), **PARAMS}
    grads = [g | {"none": None, "empty": {}, "nothing": odd["nothing"]} for g in GRADS]
    params, _ = run(case(), odd, grads)
    close({k: params[k] for k in PARAMS}, run(case())[0])
    for tree in ({}, (), []):
        updates, _ = case().update(tree, case().init(tree), tree)
        assert updates == tree


@cases()
def test_python_and_numpy_numbers_are_parameters_like_arrays(case):
    numbers = {"w": np.float64([2.0, -0.5]), "b": 3.0}
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), numbers)
    tx = case()
    chex.assert_trees_all_equal(tx.init(numbers), tx.init(arrays))
    expected = tx.update(arrays, tx.init(arrays), arrays)
    chex.assert_trees_all_equal(tx.update(numbers, tx.init(numbers), numbers), expected)


@crossed(
    "build",
    {
        "named tuple": lambda x: ours.TraceState(*x),
        "tuple": tuple,
        "list": list,
        "nested": lambda x: {"a": {"b": x}},
    },
)
def test_any_tree_of_the_same_leaves_gives_the_same_numbers(case, build):
    leaves = lambda tree: build([tree["w"], tree["b"]])  # noqa: E731
    params, _ = run(case(), leaves(PARAMS), [leaves(g) for g in GRADS])
    expected, _ = run(case())
    params, expected = jax.tree.leaves(params), jax.tree.leaves(leaves(expected))
    if case.rounding:
        close(params, expected, case.rounding)
    else:
        chex.assert_trees_all_equal(params, expected)


@cases()
def test_abstract_parameters_are_enough_for_init(case):
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    chex.assert_trees_all_equal(case().init(abstract), case().init(PARAMS))
    shapes = jax.eval_shape(case().init, abstract)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, case().init(PARAMS))


@cases()
def test_float0_gradients_of_integer_leaves_pass_through(case):
    floats = {k: jnp.asarray(p) for k, p in PARAMS.items()}
    params = floats | {"step": jnp.arange(3), "key": jax.random.key(0)}
    tx = case()
    state = tx.init(params)
    loss = lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"])  # noqa: E731
    grads = jax.grad(loss, allow_int=True)(params)
    assert grads["step"].dtype == jax.dtypes.float0
    updates, after = jax.jit(tx.update)(grads, state, params)
    assert updates["step"].dtype == updates["key"].dtype == jax.dtypes.float0
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    expected, _ = tx.update({k: grads[k] for k in PARAMS}, tx.init(floats), floats)
    close({k: updates[k] for k in PARAMS}, expected)
