"""Numbers of a running state: read, set and unset, without a compilation or a lost schedule."""

import copy
import functools
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_rmsprop as ours
from optax_rmsprop import dialects, storage
from optax_rmsprop._run import _compiled
from optax_rmsprop.retuning import RetunableState, retunable, retuned, settings
from tests.cases import BALL, CASES, Everywhere, cases
from tests.test_dialects import CHAINS

pytestmark = pytest.mark.api

OLD = {"learning_rate": 0.1, "decay": 0.9, "eps": 1e-8, "momentum": 0.5, "weight_decay": 0.01}
NEW = {"learning_rate": 0.03, "decay": 0.9999, "eps": 1e-3, "momentum": 0.93, "weight_decay": 0.3}
FORMS = [
    {}, {"eps_in_sqrt": False}, {"centered": True}, {"bias_correction": True}, {"nesterov": True},
    {"centered": True, "bias_correction": True}, {"centered": True, "eps_in_sqrt": False},
]  # fmt: skip
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form) or "plain")


def params(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(8, 16)), dtype), "b": jnp.asarray(np.ones(5), dtype)}


def gradients(n, dtype=np.float32):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), dtype), params())
        for _ in range(n)
    ]


def run(tx, state=None, n=4, jit=True):
    p = params()
    state = tx.init(p) if state is None else state
    update = jax.jit(tx.update) if jit else tx.update
    for g in gradients(n):
        updates, state = update(g, state, p)
        # Outside: in one program the compiler may round a product and this addition at once.
        p = optax.apply_updates(p, updates)
    return p, state


def everything(**options):
    return ours.rmspropw(**OLD, **options)


def run_injected(factory, names, **arguments):
    """A run in which these numbers are arrays that the compiler does not know, as if set."""
    static = tuple(name for name in arguments if name not in names)
    tx = optax.inject_hyperparams(factory, static_args=static)(**arguments)
    p, state = run(tx)
    return p, state.inner_state


RETUNABLE = {name: tx for name, (tx, _) in CHAINS.items()}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", RETUNABLE)
def test_a_dialect_in_which_nothing_is_set_is_bit_equal(name, jit):
    tx = RETUNABLE[name]
    with jax.numpy_dtype_promotion("standard"):  # for schedules of integers
        p, state = run(retunable(tx), jit=jit)
        chex.assert_trees_all_equal((p, state.inner_state), run(tx, jit=jit))


@cases()
def test_every_row_in_which_nothing_is_set_is_bit_equal(case):
    p, state = run(retunable(case()))
    chex.assert_trees_all_equal((p, state.inner_state), run(case()))


SCHEDULES = {
    "constants": lambda x: x,
    "Python numbers": lambda x: lambda count: x,
    "arrays": lambda x: lambda count: jnp.float32(x) * (1 - count / 100),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@forms
def test_every_form_in_which_nothing_is_set_is_bit_equal(form, kind):
    numbers = {name: SCHEDULES[kind](x) for name, x in OLD.items()}
    tx = ours.rmspropw(**numbers, **form)
    p, state = run(retunable(tx))
    chex.assert_trees_all_equal((p, state.inner_state), run(tx))


def test_in_float64_too(x64):
    tx = everything(centered=True)
    p, state = run(retunable(tx))
    chex.assert_trees_all_equal((p, state.inner_state), run(tx))
    state = retuned(retunable(tx).init(params()), **NEW)
    assert float(settings(retunable(tx), state)["decay"]) == 0.9999


@pytest.mark.parametrize("tx", [ours.rmsprop(0.1), ours.rmspropw(**OLD), ours.scale_by_rms(0.9)])
def test_a_fused_step_differs_by_one_rounding_of_the_update_at_most(tx):
    def step(tx, state, g):
        updates, state = tx.update(g, state, params())
        return optax.apply_updates(params(), updates), updates, state

    def fused(tx):
        new = jax.jit(lambda state, g: step(tx, state, g)[::2])
        return new(tx.init(params()), *gradients(1))

    (p, state), (expected, inner_state) = fused(retunable(tx)), fused(tx)
    chex.assert_trees_all_equal(state.inner_state, inner_state)
    updates = step(tx, tx.init(params()), *gradients(1))[1]
    for x, y, u in zip(*map(jax.tree.leaves, (p, expected, updates)), strict=True):
        assert (np.abs(x - y) <= np.spacing(np.abs(u)) + np.spacing(np.abs(y))).all()


@pytest.mark.parametrize(
    "tx",
    [everything(centered=True, bias_correction=True), dialects.torch(0.1, momentum=0.5)],
    ids=["rmspropw", "torch"],
)
def test_in_a_scan_no_state_changes_and_no_update_but_by_its_rounding(tx):
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients(5))

    def states_and_updates(tx):
        def body(state, g):
            updates, state = tx.update(g, state, params())
            return state, updates

        return jax.jit(lambda state: jax.lax.scan(body, state, stacked))(tx.init(params()))

    (state, updates), (inner_state, expected) = map(states_and_updates, (retunable(tx), tx))
    chex.assert_trees_all_equal(state.inner_state, inner_state)
    # A sum of products is rounded once or twice, as the compiler fuses it with what stacks it.
    chex.assert_trees_all_close(updates, expected, rtol=0, atol=2.0**-24)


@forms
def test_a_state_with_numbers_set_is_updated_as_by_the_call_with_them_injected(form):
    tx = retunable(everything(**form))
    p, state = run(tx, retuned(tx.init(params()), **NEW))
    expected = run_injected(ours.rmspropw, NEW, **NEW, **form)
    # Of two programs the compiler may round a product and a sum at once in one: a last bit a step.
    chex.assert_trees_all_close((p, state.inner_state), expected, rtol=2.0**-21, atol=2.0**-21)


@pytest.mark.parametrize("name", OLD)
def test_one_number_is_set_and_the_others_stay(name):
    tx = retunable(everything())
    state = retuned(tx.init(params()), **{name: NEW[name]})
    p, new_state = run(tx, state)
    expected = run_injected(ours.rmspropw, [name], **OLD | {name: NEW[name]})
    chex.assert_trees_all_equal((p, new_state.inner_state), expected)
    assert not np.allclose(p["w"], run(everything())[0]["w"], rtol=0, atol=4e-5)
    found = {name: float(np.float32(x)) for name, x in (OLD | {name: NEW[name]}).items()}
    assert {k: float(x) for k, x in settings(tx, state).items()} == found


# The argument of each dialect that is one of the five numbers.
NAMES = {
    "learning_rate": ["lr", "learning_rate", "learningRate"],
    "decay": ["alpha", "rho", "decay", "gamma1"],
    "eps": ["eps", "epsilon"],
    "momentum": ["momentum"],
    "weight_decay": ["weight_decay", "wd"],
}


@pytest.mark.parametrize("argument_of", NAMES)
@pytest.mark.parametrize(
    "name",
    ["torch", "tensorflow1", "keras", "timm", "stable_baselines3", "pfrl", "graves", "mxnet2",
     "paddle", "sonnet", "torchopt", "mindspore", "tensorflowjs", "heavyball", "chainer"],
)  # fmt: skip
def test_the_names_are_the_same_for_every_dialect(name, argument_of):
    factory = getattr(dialects, name)
    arguments = inspect.signature(factory).parameters
    own = {k: a for k, names in NAMES.items() for a in names if a in arguments}
    if (name, argument_of) in {("keras2", "decay"), ("heavyball", "decay")}:
        pytest.skip("betas, or another decay")
    if argument_of not in own:
        pytest.skip("the dialect has no such number")
    options = {"centered": True} if name.startswith("mxnet") else {}
    old, new = ({own[k]: x[k] for k in own} for x in (OLD, OLD | {argument_of: NEW[argument_of]}))
    tx = retunable(factory(**old, **options))
    state = retuned(tx.init(params()), **{argument_of: NEW[argument_of]})
    expected, _ = run_injected(factory, [own[argument_of]], **new, **options)
    # Betas are not injected, and 1 - β is then rounded from double precision.
    atol = 2e-6 if name == "heavyball" else 0
    chex.assert_trees_all_close(run(tx, state)[0], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("decay", [0.9, 0.3])
@pytest.mark.parametrize("form", [{}, {"centered": True}, {"bias_correction": True}])
def test_a_whole_step_in_which_nothing_is_set_is_bit_equal(form, decay):
    tx = ours.rmspropw(0.1, decay, momentum=0.93, weight_decay=0.013, **form)

    def steps(tx):
        @jax.jit
        def step(p, state, g):
            updates, state = tx.update(g, state, p)
            return optax.apply_updates(p, updates), state

        p, state = params(), tx.init(params())
        for g in gradients(4):
            p, state = step(p, state, g)
        return p, state

    p, state = steps(retunable(tx))
    # Below 1/2 an average is a sum of two products, and which of them is rounded at once with the
    # sum differs by compiler and processor: jax 0.10.2 differs on an AMD EPYC, and not on a Xeon.
    tolerance = 2.0**-20 if decay < 0.5 and jax.__version_info__ < (0, 12) else 0
    chex.assert_trees_all_close((p, state.inner_state), steps(tx), rtol=tolerance, atol=tolerance)


def test_what_is_not_set_keeps_its_precision():
    tx = retunable(ours.scale_by_rms(decay=0.9999))
    _, state = tx.update(params(), retuned(tx.init(params()), eps=0.5))
    expected = ours.scale_by_rms(decay=0.9999).update(params(), tx.init(params()).inner_state)[1]
    chex.assert_trees_all_equal(state.inner_state, expected)


def test_a_decay_of_0_forgets_at_once():
    tx = retunable(ours.scale_by_rms(decay=0.99))
    _, state = tx.update(jnp.float32(1e8), tx.init(jnp.float32(0)))
    _, state = jax.jit(tx.update)(jnp.float32(3), retuned(state, decay=0.0))
    assert state.inner_state.nu == 9


def test_a_decoupled_decay_follows_the_set_rate():
    zeros = jax.tree.map(jnp.zeros_like, params())
    corrected = {"decoupled_decay": True, "corrected_weight_decay": True, "lr_max": 0.5}
    for tx, share in [
        (dialects.keras(0.5, weight_decay=0.1), 0.25 * 0.1),
        (dialects.timm(0.5, weight_decay=0.1, decoupled_decay=True), 0.25 * 0.1),
        (dialects.timm(0.5, weight_decay=0.1, **corrected), 0.25**2 / 0.5 * 0.1),
        (dialects.heavyball(0.5, weight_decay=0.1), 0.25 * 0.1),
    ]:
        tx = retunable(tx)
        state = retuned(tx.init(params()), learning_rate=0.25)
        updates, _ = tx.update(zeros, state, params())
        chex.assert_trees_all_close(
            updates, jax.tree.map(lambda p, share=share: -share * p, params()), rtol=1e-6
        )
        again, _ = tx.update(zeros, retuned(state, learning_rate=None), params())
        chex.assert_trees_all_close(
            again, jax.tree.map(lambda p: -0.5 * 0.1 * p, params()), rtol=1e-6
        )


def halving(count):
    return jnp.exp2(-jnp.asarray(count, jnp.float32))


def test_a_set_value_holds_until_unset_and_the_schedule_goes_on():
    tx = retunable(ours.rmsprop(halving))
    state, rates = tx.init(params()), []
    for i, g in enumerate(gradients(6)):
        if i == 2:
            state = retuned(state, learning_rate=0.75)
        if i == 4:
            state = retuned(state, learning_rate=None)
        rates.append(float(settings(tx, state)["learning_rate"]))
        _, state = tx.update(g, state)
        assert float(optax.tree.get(state, "last_learning_rate")) == rates[-1]
    assert rates == [1, 0.5, 0.75, 0.75, 0.0625, 0.03125]
    assert int(optax.tree.get(state, "count")) == 6


def test_only_the_next_steps_change_and_nothing_is_compiled_again():
    tx = retunable(everything())
    state, inner_state = tx.init(params()), everything().init(params())
    update = jax.jit(tx.update, donate_argnums=1)
    plain = jax.jit(everything().update)
    grads = gradients(5)
    for g in grads[:3]:
        updates, state = update(g, state, params())
        expected, inner_state = plain(g, inner_state, params())
        chex.assert_trees_all_equal(updates, expected)
    state = retuned(retuned(state, **OLD), **{name: None for name in OLD})
    updates, state = update(grads[3], state, params())
    expected, inner_state = plain(grads[3], inner_state, params())
    chex.assert_trees_all_equal((updates, state.inner_state), (expected, inner_state))
    for value in (np.float32(0.5), jnp.float32(0.25), 1, np.array(2.0), None):
        _, state = update(grads[4], retuned(state, eps=value), params())
    assert update._cache_size() == 1


def test_a_plateau_scheduler_by_hand_in_a_scan():
    tx = retunable(dialects.torch(lr=0.5))

    def body(carry, loss):
        p, state, best, bad = carry
        bad = jnp.where(loss < best, 0, bad + 1)
        rate = settings(tx, state)["learning_rate"]
        state = retuned(state, learning_rate=jnp.where(bad >= 2, rate / 2, rate))
        updates, state = tx.update(p, state, p)
        p = optax.apply_updates(p, updates)
        carry = p, state, jnp.minimum(loss, best), jnp.where(bad >= 2, 0, bad)
        return carry, optax.tree.get(state, "last_learning_rate")

    losses = jnp.array([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    start = params(), tx.init(params()), jnp.float32(np.inf), jnp.int32(0)
    _, rates = jax.jit(lambda start: jax.lax.scan(body, start, losses))(start)
    np.testing.assert_array_equal(rates, [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.0625])


def test_a_state_may_be_mapped_over_values():
    tx = retunable(ours.rmsprop(0.5, decay=0.5, eps=0.0))
    state = tx.init(jnp.zeros(2))
    rates = jnp.array([0.25, 1.0])
    set_to = lambda rate: tx.update(jnp.ones(2), retuned(state, learning_rate=rate))[0]  # noqa: E731
    np.testing.assert_allclose(jax.vmap(set_to)(rates)[:, 0], -rates * 2**0.5, rtol=1e-6)
    slope = jax.grad(lambda rate: set_to(rate).sum())(0.25)
    np.testing.assert_allclose(slope, -2 * 2**0.5, rtol=1e-6)


WRAPPERS = {
    "optax.chain": lambda tx: optax.chain(optax.clip(10.0), retunable(tx)),
    "chain": lambda tx: ours.chain(optax.clip(10.0), retunable(tx)),
    "retunable chain": lambda tx: retunable(ours.chain(optax.clip(10.0), tx, optax.identity())),
    "masked": lambda tx: optax.masked(retunable(tx), True),
    "partition": lambda tx: optax.partition({"all": retunable(tx)}, {"w": "all", "b": "all"}),
    "MultiSteps": lambda tx: optax.MultiSteps(retunable(tx), 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(retunable(tx), 3),
    "in chain of chains": lambda tx: ours.chain(ours.chain(retunable(tx))),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_of_a_retunable_transformation(wrap):
    tx = wrap(ours.rmsprop(0.1, momentum=0.5))
    state = retuned(tx.init(params()), learning_rate=0.25, momentum=0.75)
    expected, _ = run(ours.rmsprop(0.25, momentum=0.75))
    with jax.numpy_dtype_promotion("standard"):  # which `optax.MultiSteps` needs
        chex.assert_trees_all_close(run(tx, state)[0], expected, rtol=0, atol=1e-6)
        chex.assert_trees_all_equal(run(tx)[0], run(wrap_plain(wrap))[0])


def wrap_plain(wrap):
    """The same in a wrapper whose link cannot be set: it must be equal where nothing is set."""
    plain = ours.rmsprop(0.1, momentum=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wrap.__globals__, "retunable", lambda tx: tx)
        return wrap(plain)


@pytest.mark.parametrize("codec", [storage.uint16(), storage.uint8()], ids=["uint16", "uint8"])
def test_stored_moments_and_the_numbers_within(codec):
    def stored(*numbers):
        return storage.stored_as(ours.rmsprop(*numbers), Everywhere(codec))

    tx = retunable(stored(0.1))
    chex.assert_trees_all_equal(run(tx)[0], run(stored(0.1))[0])
    state = retuned(tx.init(params()), decay=0.5, eps=1e-3)
    expected, _ = run(stored(0.1, 0.5, 1e-3))
    chex.assert_trees_all_close(run(tx, state)[0], expected, rtol=0, atol=1e-6)
    outside = storage.stored_as(retunable(ours.rmsprop(0.1)), Everywhere(codec))
    p, state = run(outside)
    chex.assert_trees_all_equal(p, run(stored(0.1))[0])
    assert settings(retunable(ours.rmsprop(0.1)), state)["decay"] == np.float32(0.9)


def test_groups_have_numbers_of_their_own():
    groups = {"w": retunable(ours.rmsprop(0.1)), "b": retunable(ours.rmsprop(0.1, momentum=0.5))}
    tx = optax.partition(groups, {"w": "w", "b": "b"})
    state = retuned(tx.init(params()), learning_rate=0.25, momentum=0.75)
    assert float(settings(groups["b"], state.inner_states["b"])["momentum"]) == 0.75
    _, state = tx.update(params(), state, params())
    rates = [x for _, x in optax.tree.get_all_with_path(state, "last_learning_rate")]
    assert rates == [0.25, 0.25]
    with pytest.raises(TypeError, match="holds 2"):
        settings(groups["b"], state)


def test_training_states_of_flax():
    tx = retunable(dialects.torch(0.1))
    state = TrainState.create(apply_fn=None, params=params(), tx=tx)
    state = retuned(state, learning_rate=0.5).apply_gradients(grads=params())
    assert float(optax.tree.get(state.opt_state, "last_learning_rate")) == 0.5
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    loss = lambda model: jnp.mean(model(jnp.ones((4, 2))) ** 2)  # noqa: E731
    train = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model)))
    train(model, optimizer)
    optimizer.opt_state = retuned(optimizer.opt_state, learning_rate=0.25)
    train(model, optimizer)
    assert float(optax.tree.get(optimizer.opt_state, "last_learning_rate")[...]) == 0.25
    assert float(settings(tx, optimizer.opt_state)["learning_rate"]) == 0.25


@pytest.mark.device
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
def test_on_a_mesh_one_program_serves_all_values(kind, grid):
    mesh = jax.make_mesh(grid, ("x", "y"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        p = {"w": jax.device_put(params()["w"], NamedSharding(mesh, P("x", "y")))}
        plain = dialects.torch(0.1, momentum=0.5, weight_decay=0.1)
        tx, inner_state = retunable(plain), plain.init(p)
        update, state = jax.jit(tx.update), tx.init(p)
        for _ in range(2):
            updates, state = update(p, state, p)
            expected, inner_state = jax.jit(plain.update)(p, inner_state, p)
        chex.assert_trees_all_equal((updates, state.inner_state), (expected, inner_state))
        assert " all-" not in update.lower(p, state, p).compile().as_text()
        compiled = update._cache_size()
        for rate in (0.25, 0.5, None):
            state = retuned(state, learning_rate=rate)
            assert state.inner_state[1].nu["w"].sharding.spec == P("x", "y")
            updates, state = update(p, state, p)
        assert update._cache_size() == compiled


@pytest.mark.parametrize(
    ["values", "error", "words"],
    [
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be in [0, inf), got -0.1"),
        ({"decay": 1.0}, ValueError, "decay must be in [0, 1.0), got 1.0"),
        ({"momentum": jnp.float32(1.5)}, ValueError, "momentum must be in [0, 1.0)"),
        ({"eps": np.nan}, ValueError, "eps must be in [0, inf), got nan"),
        ({"eps": np.inf}, ValueError, "eps must be in [0, inf), got inf"),
        (
            {"decay": 1 - 1e-9},
            ValueError,
            "decay must not be 0.999999999, which float32 has as 1.0",
        ),
        ({"learning_rate": 1e39}, ValueError, "learning_rate must not be 1e+39, which float32 has"),
        ({"eps": 1e-60}, ValueError, "eps must not be 1e-60, which float32 has as 0.0"),
        ({"eps": True}, TypeError, "eps must be a number"),
        ({"eps": jnp.ones(2)}, TypeError, "eps must be a number"),
        ({"learning_rate": halving}, TypeError, "learning_rate must be a number, not a schedule"),
        ({"rho": 0.5}, ValueError, "'rho': there are decay, eps, learning_rate, momentum"),
        ({"weight_decay": 0.5}, ValueError, "'weight_decay': there are decay, eps,"),
        ({"decay": 0.5, "lr": None}, ValueError, "'lr': there are"),
    ],
)
def test_a_wrong_value_or_name_is_refused_by_name(values, error, words):
    state = retunable(ours.rmsprop(0.1, momentum=0.5)).init(params())
    before = copy.deepcopy(state)
    with pytest.raises(error) as caught:
        retuned(state, **values)
    assert words in str(caught.value)
    chex.assert_trees_all_equal(state, before)


def test_what_cannot_be_retuned_is_refused():
    for inner in (optax.sgd(0.1), optax.chain(ours.rmsprop(0.1)), ours.chain(optax.clip(1.0))):
        with pytest.raises(TypeError, match=r"retunable: inner must be .* wrap the part"):
            retunable(inner)
    with pytest.raises(TypeError, match="retunable already"):
        retunable(ours.chain(retunable(ours.rmsprop(0.1))))
    with pytest.raises(TypeError, match="holds none"):
        retuned(ours.rmsprop(0.1).init(params()), decay=0.5)
    with pytest.raises(TypeError, match="settings: tx must be"):
        settings(optax.sgd(0.1), None)
    tx = retunable(ours.rmsprop(0.1, momentum=0.5))
    with pytest.raises(TypeError, match="the state has no number 'learning_rate'"):
        settings(tx, retunable(ours.scale_by_rms()).init(params()))
    with pytest.raises(TypeError, match="a chain of 3 links has another state"):
        settings(ours.rmsprop(0.1, momentum=0.5), ours.rmsprop(0.1).init(params()))
    with pytest.raises(TypeError, match=r"expected RetunableState\(overrides, inner_state\)"):
        retunable(ours.rmsprop(0.1)).update(params(), ours.rmsprop(0.1).init(params()))


def test_it_is_a_value_and_its_state_is_of_finite_arrays():
    make = lambda: retunable(dialects.keras(weight_decay=0.1))  # noqa: E731
    tx = make()
    assert tx == make() == pickle.loads(pickle.dumps(tx)) and hash(tx) == hash(make())
    public = {"chain": ours.chain, "retuning": ours.retuning} | vars(ours)
    assert eval(repr(tx), public) == tx
    state = tx.init(params())
    assert isinstance(state, RetunableState) and set(state.overrides) == set(OLD) - {"momentum"}
    # NaN would stop whoever looks for it with jax_debug_nans.
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert len(settings(ours.trace(0.5), ours.trace(0.5).init(params()))) == 1


def test_the_table_has_rows_of_every_kind():
    assert {name for case in CASES for name in case.hyper} == set(OLD) and set(BALL) < set(OLD)


def test_a_step_needs_no_temporary_memory_and_is_in_place():
    if jax.default_backend() != "cpu":
        pytest.skip("a claim about programs for a CPU")

    def step(tx, p, state, g):
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    p = {"w": jnp.ones((512, 512))}
    for plain in (ours.rmsprop(0.1), dialects.torch(0.1, momentum=0.5, weight_decay=0.1)):
        tx = retunable(plain)
        jitted = jax.jit(functools.partial(step, tx), donate_argnums=(0, 1))
        memory = jitted.lower(p, tx.init(p), p).compile().memory_analysis()
        wide = [x.nbytes for x in jax.tree.leaves(tx.init(p)) if x.ndim]
        assert memory.temp_size_in_bytes < 2000
        assert memory.alias_size_in_bytes >= p["w"].nbytes + sum(wide)


def test_without_jit_a_value_is_no_constant_of_a_program():
    tx = retunable(ours.rmsprop(0.1))
    state = tx.init(params())
    for rate in (0.25, 0.5, None):  # the first time and what is unset are compiled
        _, state = tx.update(params(), retuned(state, learning_rate=rate))
    programs = _compiled.cache_info().misses
    for rate in (0.75, 1.5, 0.125):
        _, state = tx.update(params(), retuned(state, learning_rate=rate))
    assert _compiled.cache_info().misses == programs
