"""Promises 1 and 2: float32 or wider inside, the gradient's dtype outside, and types that stay."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_rmsprop import storage
from tests.cases import cases, crossed

pytestmark = [pytest.mark.api, pytest.mark.device]

HALF = [jnp.bfloat16, jnp.float16]
FLOATS = [*HALF, jnp.float32]
KINDS = {
    "python": float,
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.ndarray": np.asarray,
    "jnp": lambda x: jnp.asarray(x, jnp.float32),
    "half": lambda x: jnp.asarray(x, jnp.bfloat16),
    "weak": jnp.asarray,
    "schedule": lambda x: lambda count: x,
    "array schedule": lambda x: lambda count: x * (1 + 0 * count.astype(jnp.float32)),
}


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), jax.tree.map(jnp.asarray, tree))


def named(state):
    """The accumulators of all links, by the names of their fields."""
    state = storage.decoded(state)
    state = state.inner_state if isinstance(state, storage.StoredAsState) else state
    parts = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "_fields"))
    fields = {name: value for part in parts for name, value in part._asdict().items()}
    return {name: x for name, x in fields.items() if "count" not in name and "rate" not in name}


def second_moment(state, correction):
    moments = named(state)
    return moments["nu"] if "nu" in moments else moments["var"] + moments["mu"] ** 2 / correction


def steps(case, params, grads, **overrides):
    """The types of the state at init and after an update, and of the update."""
    tx = case(**overrides)

    def init_and_update(params, grads):
        state = tx.init(params)
        return state, *tx.update(grads, state, params)

    # Weak types are lost by eval_shape's outputs in a tree, but not by jit's avals.
    state, update, after = jax.eval_shape(init_and_update, params, grads)
    return state, update, after


def assert_promised(case, params_dtype, grads_dtype, **overrides):
    params, grads = jnp.ones((2, 3), params_dtype), jnp.ones((2, 3), grads_dtype)
    state, update, after = steps(case, params, grads, **overrides)
    chex.assert_trees_all_equal_structs(state, after)
    assert jax.tree.leaves(state) == jax.tree.leaves(after)
    assert not any(x.weak_type for x in jax.tree.leaves((state, update, after)))
    assert update.dtype == grads_dtype
    for x in jax.tree.leaves(state):
        if case.rounding and x.dtype in (jnp.uint8, jnp.uint16):
            continue
        assert x.dtype == jnp.int32 or jnp.finfo(x.dtype).bits >= 32
        if x.shape:
            wide = jnp.finfo(params_dtype).dtype if params_dtype not in HALF else jnp.float32
            assert jnp.finfo(x.dtype).dtype == wide


@crossed("kind", KINDS)
def test_types_stay_whatever_the_scalars_are(case, kind):
    hyper = {name: kind(value) for name, value in case.hyper.items()}
    for params, grads in itertools.product(FLOATS, FLOATS):
        assert_promised(case, params, grads, **hyper)


@crossed("kind", KINDS)
def test_types_stay_in_64_bit_jax(case, kind, x64):
    hyper = {name: kind(value) for name, value in case.hyper.items()}
    pairs = [(jnp.float64, jnp.float64), (jnp.float32, jnp.float64), (jnp.float64, jnp.float32)]
    for params, grads in [*pairs, (jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32)]:
        assert_promised(case, params, grads, **hyper)


@cases()
def test_types_stay_where_64_bits_are_switched_on_after_init(case):
    """As where a state of 32 bits is restored into such a program."""
    tx, p = case(), jnp.ones(3)
    state = tx.init(p)
    with jax.enable_x64(True):
        after = jax.eval_shape(tx.update, p, state, p)[1]
    chex.assert_trees_all_equal_dtypes(state, after)


@cases()
def test_types_stay_for_complex_parameters(case, x64):
    for dtype in (jnp.complex64, jnp.complex128):
        assert_promised(case, dtype, dtype)
        for name, moment in named(case().init(jnp.ones(2, dtype))).items():
            complex_too = name in ("mu", "trace", "ema") and not case.splits_complex
            assert jnp.iscomplexobj(moment) == complex_too, name


@cases()
def test_types_stay_for_traced_hyperparameters(case):
    def step(hyper, grads):
        tx = case(**hyper)
        state = tx.init(grads)
        return state, tx.update(grads, state, grads)[1]

    hyper = {name: jnp.full(3, value) for name, value in case.hyper.items()}
    for dtype in FLOATS:
        before, after = jax.eval_shape(
            jax.vmap(step, in_axes=(0, None)), hyper, jnp.ones((2, 3), dtype)
        )
        assert jax.tree.leaves(before) == jax.tree.leaves(after)


@cases()
def test_weakly_typed_leaves_do_not_make_weak_states(case):
    weak = jnp.asarray(1.0)
    assert weak.weak_type
    tx = case()
    state = tx.init(weak)
    update, after = tx.update(weak, state, weak)
    assert types(state) == types(after)
    assert not update.weak_type
    assert types(tx.init(1.0)) == types(state)


@cases()
def test_one_compilation_and_a_scan_for_bfloat16_parameters(case):
    params, grads = jnp.ones((4, 4), jnp.bfloat16), jnp.full((4, 4), 0.5, jnp.float32)
    tx = case()
    step = jax.jit(chex.assert_max_traces(lambda g, s, p: tx.update(g, s, p), 1))
    state = tx.init(params)
    for _ in range(3):
        update, state = step(grads, state, params)
    last, updates = jax.lax.scan(
        lambda s, g: tx.update(g, s, params)[::-1], tx.init(params), jnp.stack([grads] * 3)
    )
    chex.assert_trees_all_close((update, state), (updates[-1], last), rtol=1e-6)
    chex.clear_trace_counter()


@cases()
def test_donation_reuses_every_byte_of_the_state(case):
    params = {"w": jnp.ones((64, 64), jnp.bfloat16), "b": jnp.ones(64, jnp.bfloat16)}
    tx = case()
    state = tx.init(params)
    grads = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    # The last rate is written and not read: without keep_unused its 4 bytes are not passed at all.
    step = jax.jit(tx.update, donate_argnums=1, keep_unused=True)
    aliased = step.lower(grads, state, params).compile().memory_analysis().alias_size_in_bytes
    assert aliased == sum(x.nbytes for x in jax.tree.leaves(state))


@cases()
def test_half_precision_follows_float32(case):
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.normal(size=(50, 4, 4)), jnp.bfloat16)

    def run(tx, grads, like):
        params = jnp.full((4, 4), 0.5, like)
        update = lambda s, g: tx.update(g, s, params)[::-1]  # noqa: E731
        return jax.lax.scan(update, tx.init(params), grads)[1]

    hyper = {"decay": 0.999} if "decay" in case.hyper else {}
    half = run(case(**hyper), grads, jnp.bfloat16)
    full = run(case(**hyper), grads.astype(jnp.float32), jnp.float32)
    # One rounding to bfloat16, of relative size 2^-8, and float32's own.
    chex.assert_trees_all_close(half.astype(jnp.float32), full, rtol=2**-8 + 1e-4, atol=1e-7)


@cases(divides=True, rounding=0.0)
def test_the_accumulator_of_a_bfloat16_parameter_does_not_stagnate(case):
    decay, steps = 0.9999, 20_000
    tx = case(decay=decay)
    g = jnp.ones(2, jnp.bfloat16)
    run = jax.jit(lambda s: jax.lax.fori_loop(0, steps, lambda _, s: tx.update(g, s, g)[1], s))
    state = run(tx.init(g))
    correction = 1 - decay**steps if case.reference.get("bias_correction") else 1.0
    square = (1 + case.hyper["weight_decay"]) ** 2 if case.couples else 1.0
    exact = square + (second_moment(tx.init(g), 1.0) - square) * decay**steps
    chex.assert_trees_all_close(second_moment(state, correction), exact, rtol=2e-3)
