"""Promise 6: every hyperparameter a number, an array, a schedule or a traced value."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_rmsprop as ours
from optax_rmsprop import _run, dialects, storage
from tests import reference
from tests.cases import cases, crossed

STEPS = 60


def run(tx, grads, params):
    """The updates for given gradients at parameters that stay."""
    update = lambda s, g: tx.update(g, s, params)[::-1]  # noqa: E731
    return jax.lax.scan(update, tx.init(params), grads)[1]


def gradients(seed=0):
    return np.random.default_rng(seed).normal(size=(STEPS, 2, 3))


@crossed("dtype", [jnp.bfloat16, jnp.float32], is_chain=False)
def test_a_constant_and_a_constant_schedule_are_bit_equal(case, dtype):
    grads, params = jnp.asarray(gradients(), dtype), jnp.ones((2, 3), dtype)
    constant = jax.jit(lambda g: run(case(), g, params))(grads)
    schedules = {name: lambda count, v=value: v for name, value in case.hyper.items()}
    scheduled = jax.jit(lambda g: run(case(**schedules), g, params))(grads)
    chex.assert_trees_all_equal(constant, scheduled)


@cases(is_chain=False)
def test_every_hyperparameter_follows_its_schedule(case, x64):
    grads, params = gradients(), np.random.default_rng(1).normal(size=(2, 3))
    for name, value in case.hyper.items():
        if name == "decay" and case.reference.get("bias_correction"):
            continue  # 1 - decay**t is the correction of a constant decay: see the next test
        values = value * (1 - 0.9 * np.arange(STEPS) / STEPS)
        schedule = lambda count, v=values: jnp.asarray(v)[count]  # noqa: E731

        def moving(g, tx):
            def step(carry, g):
                state, p = carry
                u, state = tx.update(g, state, p)
                return (state, p + u), u

            return jax.lax.scan(step, (tx.init(jnp.asarray(params)), jnp.asarray(params)), g)[1]

        got = jax.jit(moving, static_argnums=1)(jnp.asarray(grads), case(**{name: schedule}))
        expected = reference.updates(
            grads, params, **(case.hyper | {name: values}), **case.reference
        )
        np.testing.assert_allclose(got, expected, rtol=1e-11, err_msg=name)


@pytest.mark.parametrize("make", [ours.scale_by_rms, ours.scale_by_stddev])
def test_a_scheduled_decay_with_bias_correction_stays_sane(make):
    """The correction is that of the current decay: exact when it lasts, bounded while it moves."""
    tx = make(lambda count: jnp.where(count < 5, 0.5, 0.95), bias_correction=True)
    grads = jnp.asarray(gradients(), jnp.float32)
    updates = run(tx, grads, grads[0])
    chex.assert_tree_all_finite(updates)
    settled = run(make(0.95, bias_correction=True), grads, grads[0])
    np.testing.assert_allclose(updates[-1], settled[-1], rtol=0.1)


@crossed("dtype", [jnp.float32, jnp.bfloat16], is_chain=False)
def test_a_population_equals_a_loop(case, dtype):
    grads, params = jnp.asarray(gradients(), dtype), jnp.ones((2, 3), dtype)
    factors = np.array([0.5, 1.0])
    population = {name: jnp.asarray(value * factors) for name, value in case.hyper.items()}
    train = lambda hyper: run(case(**hyper), grads, params)  # noqa: E731
    together = jax.jit(jax.vmap(chex.assert_max_traces(train, 1)))(population)
    chex.clear_trace_counter()
    # A traced decay is rounded to float32 before it is taken from 1, a Python one after: a relative
    # 2^-24 / (1 - decay) of the average. Centring and momentum remember it.
    memory = 1 / (1 - case.hyper.get("decay", 0.0)) / (1 - case.hyper.get("momentum", 0.0))
    tolerance = 2**-22 * memory * (4 if case.centered else 1) + case.rounding  # a code may tip
    for i, factor in enumerate(factors):
        hyper = {name: float(value * factor) for name, value in case.hyper.items()}
        alone = train(hyper)
        scale = float(jnp.abs(alone).max())
        half = 2**-8 if dtype == jnp.bfloat16 else 0.0  # the same number may round two ways
        np.testing.assert_allclose(
            np.asarray(together[i], float), np.asarray(alone, float),
            rtol=half + tolerance, atol=tolerance * scale,
        )  # fmt: skip


def test_a_schedule_sees_0_first_and_the_state_shows_the_rate_just_used():
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.5**count

    tx = ours.rmsprop(schedule, decay=0.75, eps=0.0)
    g = jnp.ones(())
    state = tx.init(g)
    assert optax.tree.get(state, "last_learning_rate") == 1.0
    for t in range(4):
        seen.clear()
        u, state = tx.update(g, state)
        assert set(seen) == {t}
        rate = optax.tree.get(state, "last_learning_rate")
        assert rate == 0.5**t
        # nu is 1 - 0.75^(t+1) after t + 1 gradients of 1
        np.testing.assert_allclose(u, -rate / np.sqrt(1 - 0.75 ** (t + 1)), rtol=1e-6)


@cases()
def test_a_number_and_a_schedule_have_the_same_state(case):
    params = jnp.ones((2, 3))
    schedules = {name: lambda count, v=value: v for name, value in case.hyper.items()}
    chex.assert_trees_all_equal(case().init(params), case(**schedules).init(params))


def test_bfloat16_parameters_follow_a_schedule_near_one():
    """Where a decay rounded to bfloat16 would be 1 and freeze the accumulator."""
    grads = jnp.full((STEPS, 1), 0.5)
    schedule = lambda count: 0.999 - 1e-5 * count.astype(jnp.float32)  # noqa: E731
    full = run(ours.rmsprop(1e-3, schedule, momentum=0.9), grads, jnp.ones(1))
    half = run(
        ours.rmsprop(1e-3, schedule, momentum=0.9),
        grads.astype(jnp.bfloat16),
        jnp.ones(1, jnp.bfloat16),
    )
    np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=2**-8 + 1e-6)


def test_nothing_traced_is_kept():
    """The compiled function of a leaf outlives a trace, and must not hold what the trace had."""

    def train(rate, decay, start, eps):
        tx = ours.rmsprop(
            rate, decay, eps, start, momentum=0.9, eps_in_sqrt=lambda root, nu, _: root(nu) + eps
        )
        step = lambda s, g: tx.update(g, s)[::-1]  # noqa: E731
        return jax.lax.scan(step, tx.init(jnp.ones(2)), jnp.ones((3, 2)))[1].sum()

    numbers = (0.1, 0.9, 0.5, 1e-3)
    with jax.checking_leaks():
        once = jax.jit(train)(*numbers)
        derivatives = jax.grad(train, argnums=(0, 1, 2, 3))(*numbers)
        both = jax.vmap(train)(*(jnp.array([n, n / 2]) for n in numbers))
    # `checking_leaks` raises; what was computed is right, too.
    np.testing.assert_allclose(once, train(*numbers), rtol=1e-5)
    assert np.isfinite(derivatives).all() and np.all(np.asarray(derivatives) != 0)
    halves = train(*(n / 2 for n in numbers))
    np.testing.assert_allclose(both, [once, halves], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Falling:
    """A schedule that is a value, as of what it falls from."""

    start: Any

    def __call__(self, count):
        return self.start * 0.5 ** jnp.asarray(count, jnp.float32)


@jax.tree_util.register_pytree_node_class
class Node(Falling):
    """The same as a tree, whose leaf is an array."""

    tree_flatten = lambda self: ((self.start,), None)  # noqa: E731
    tree_unflatten = classmethod(lambda cls, _, leaves: cls(*leaves))


@jax.jit
def linen_step(state, grads):
    return state.apply_gradients(grads=grads)


def of_linen(tx):
    state = TrainState.create(apply_fn=lambda: None, params={"w": jnp.ones(3)}, tx=tx)
    return linen_step(state, state.params).params["w"].sum()


@nnx.jit
def nnx_step(model, optimizer):
    optimizer.update(model, nnx.grad(lambda model: (model(jnp.ones((1, 3))) ** 2).sum())(model))


def of_nnx(tx):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    nnx_step(model, nnx.Optimizer(model, tx, wrt=nnx.Param))
    return (model(jnp.ones((1, 3))) ** 2).sum()


def scanned(state, _):
    return state.apply_gradients(grads=state.params), None


def of_scan(tx):
    state = TrainState.create(apply_fn=lambda: None, params={"w": jnp.ones(3)}, tx=tx)
    return jax.lax.scan(scanned, state, length=2)[0].params["w"].sum()


@functools.partial(jax.jit, static_argnums=0)
def static_step(tx, p):
    return tx.update(p, tx.init(p))[0].sum()


def of_static(tx):
    return static_step(tx, jnp.ones(3))


MAKERS = {
    "rmsprop": ours.rmsprop,
    "chain": lambda rate: ours.chain(ours.scale_by_rms(), ours.scale_by_learning_rate(rate)),
    "stored": lambda rate: storage.stored_as(ours.rmsprop(rate), storage.uint8()),
    "dialect": lambda rate: dialects.torch(lr=rate, momentum=0.9),
    "schedule": lambda rate: ours.rmsprop(Falling(rate)),
    "tree": lambda rate: ours.rmsprop(Node(jnp.asarray(rate))),
}


@pytest.mark.api
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("train", [of_linen, of_nnx, of_scan, of_static])
def test_a_traced_number_is_no_constant_where_a_transformation_is_static(train, make):
    """JAX compares transformations in its caches, where a tracer must not equal its value."""
    final = lambda rate: train(make(rate))  # noqa: E731
    optax_derivative = jax.grad(lambda rate: train(optax.rmsprop(rate)))(0.1)
    first = final(0.1)
    derivative = jax.grad(final)(0.1)
    if make is MAKERS["rmsprop"]:
        np.testing.assert_allclose(derivative, optax_derivative, rtol=1e-4)
    assert abs(derivative) > 1e-3 and jax.grad(final)(0.1) == derivative
    for rates in ([0.1, 0.2], [0.1, 0.2], [0.3, 0.2, 0.1]):
        found = jax.vmap(final)(jnp.array(rates))
        np.testing.assert_allclose(found, [final(rate) for rate in rates], rtol=1e-5)
    assert final(0.1) == first and len({float(first), float(final(0.3))}) == 2


def test_equal_calls_are_equal_but_for_what_has_no_value():
    rate = jnp.asarray(0.1)
    pairs = [(make(0.1), make(0.1)) for name, make in MAKERS.items() if name != "tree"]
    assert all(a == b and hash(a) == hash(b) for a, b in pairs)
    one = ours.rmsprop(Node(rate))
    assert one == ours.rmsprop(Node(rate)) and hash(one) == hash(ours.rmsprop(Node(rate)))
    assert one != ours.rmsprop(Node(jnp.asarray(0.1))) and one != ours.rmsprop(Falling(0.1))
    assert ours.rmsprop(0.1) != ours.rmsprop(0.2) and ours.rmsprop(0.1) != ours.rmspropw(0.1)


def test_a_denominator_that_changed_is_not_remembered():
    class Denominator:
        added = 1.0

        def __call__(self, root, nu, eps):
            return root(nu) + self.added

    denominator = Denominator()
    tx = ours.scale_by_rms(0.0, eps_in_sqrt=denominator)
    g = jnp.ones(2)
    for added in (1.0, 3.0):
        denominator.added = added
        update = jax.jit(lambda g, added: tx.update(g, tx.init(g))[0], static_argnums=1)(g, added)
        np.testing.assert_allclose(update, 1 / (1 + added))
        np.testing.assert_allclose(tx.update(g, tx.init(g))[0], 1 / (1 + added))


def test_functions_of_leaves_do_not_pile_up():
    g = jnp.ones(3)
    limit = _run._compiled.cache_info().maxsize
    for i in range(limit + 10):
        tx = ours.scale_by_rms(0.5 + i / 1000)
        jax.eval_shape(tx.update, g, tx.init(g))
    assert _run._compiled.cache_info().currsize <= limit
