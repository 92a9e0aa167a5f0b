"""Promise 3: zero, tiny, huge and broken gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop import dialects, storage
from tests.cases import cases, crossed

pytestmark = pytest.mark.device

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


def magnitudes(dtype):
    info = jnp.finfo(dtype)
    exponents = np.linspace(np.log2(float(info.tiny)), np.log2(float(info.max)) - 1, 40)
    special = [0.0, float(info.smallest_subnormal), float(info.tiny), float(info.max)]
    return jnp.asarray(np.concatenate([special, 2.0**exponents]), dtype)


@crossed("eps", [0.0, 1e-30, 1e-8], divides=True, decays_weights=False)
def test_any_gradient_gives_a_finite_update_and_state(case, eps, x64):
    tx = case(eps=eps)
    update = jax.jit(tx.update)
    g = {dtype.__name__: magnitudes(dtype) for dtype in DTYPES}
    state = tx.init(g)
    for _ in range(3):
        u, state = update(g, state)
        chex.assert_trees_all_equal_dtypes(u, g)
        chex.assert_tree_all_finite((u, state))
        assert all(leaf[0] == 0 for leaf in u.values())


@cases(decays_weights=False)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_gradient_gives_a_zero_update(case, dtype, x64):
    for eps in (0.0, 1e-8):
        tx = case(**({"eps": eps} if "eps" in case.hyper else {}))
        g = jnp.zeros((2, 2), dtype)
        state = tx.init(g)
        for _ in range(2):
            u, state = tx.update(g, state)
            chex.assert_trees_all_equal(u, g)


@crossed("huge", [np.inf, 1e20, 1e38], divides=True)
def test_one_huge_gradient_is_forgotten(case, huge):
    """After ln(2^124) = 86 time constants of exact decay from the saturated square."""
    decay = case.hyper["decay"]
    tx = case()
    ones = jnp.ones((2, 2))

    @functools.partial(jax.jit, static_argnums=1)
    def after(first, steps):
        state = tx.init(ones)
        for g in (ones, first, -ones):
            _, state = tx.update(g, state, ones)
        signs = jnp.tile(jnp.array([1.0, -1.0]), steps // 2)
        step = lambda s, sign: tx.update(sign * ones, s, ones)[::-1]  # noqa: E731
        return jax.lax.scan(step, state, signs)

    state, updates = after(huge * ones, round(100 / (1 - decay)))
    chex.assert_tree_all_finite((state, updates))
    undisturbed = after(ones, round(100 / (1 - decay)))[1]
    chex.assert_trees_all_close(updates[-2:], undisturbed[-2:], rtol=0.01)


@cases(divides=True, centered=False, rounding=0.0)
def test_the_accumulator_decays_from_saturation_as_exact_arithmetic_would(case):
    decay = case.hyper["decay"]
    tx = case()
    g = jnp.full((1, 1), jnp.inf)
    _, state = tx.update(g, tx.init(g), g)
    zero = jnp.zeros_like(g)

    def step(state, _):
        _, state = tx.update(zero, state, zero)
        return state, _nu(state)

    exact = float(_nu(state)) * decay ** np.arange(1, 200)
    _, nu = jax.lax.scan(step, state, length=199)
    # Three half-ulp a step: the product, and decay itself, rounded.
    assert (np.abs(nu - exact) <= np.arange(1, 200) * 2e-7 * exact).all()


@cases(divides=True, centered=False, decays_weights=False)
def test_a_huge_gradient_steps_no_further_than_the_bound(case):
    tx = case()
    state = tx.init(jnp.zeros(3))
    for g in ([1e20, jnp.inf, -jnp.inf], [1.0, 1.0, -3.4e38]):
        u, state = tx.update(jnp.array(g), state)
        mu = case.hyper.get("momentum", 0.0)
        nesterov = 1 + mu if case.reference.get("nesterov") else 1
        assert (jnp.abs(u) <= case.bound * nesterov * (1 + 1e-6)).all()


NORMS = {"each": "clipnorm", "all": "global_clipnorm"}
LONG = {
    "infinite": [np.inf, 1.0, 0.0],
    "minus infinite": [-np.inf, -1.0, 0.0],
    "huge": [1e20, 1.0, 0.0],
    "largest": [3.4e38, -3.4e38, 3.4e38],
    "half": [60000.0, 60000.0, 1.0],
    "a square that underflows": [1e-30, 0.0, 0.0],
    "zeros": [0.0, 0.0, 0.0],
    "plain": [3.0, 4.0, 0.0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("g", LONG.values(), ids=LONG)
@pytest.mark.parametrize("argument", NORMS.values(), ids=NORMS)
def test_a_gradient_of_any_length_is_shortened_to_the_norm(argument, g, dtype, x64):
    g = jnp.asarray(g).astype(dtype)
    grads, bound = {"a": g, "b": jnp.full(2, 0.25, dtype)}, 0.5
    tx = dialects.clip_by_norm(bound, together=argument == "global_clipnorm")
    clipped, _ = tx.update(grads, tx.init(grads))
    width = np.float64 if dtype == jnp.float64 else np.float32
    largest = float(np.finfo(width).max)
    exact = {
        k: np.clip(np.float64(x), -largest, largest).astype(np.longdouble) for k, x in grads.items()
    }
    norms = {k: np.sqrt((x**2).sum()) for k, x in exact.items()}
    if argument == "global_clipnorm":
        norms = dict.fromkeys(norms, np.hypot(norms["a"], norms["b"]))
    for k, x in exact.items():
        expected = np.float64(x * (bound / max(norms[k], bound)))
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        tiny = float(jnp.finfo(dtype).tiny)
        np.testing.assert_allclose(np.float64(clipped[k]), expected, tolerance, tiny)

    step = dialects.keras(1e-3, **{argument: bound})
    update, state = step.update(grads, step.init(grads))
    chex.assert_tree_all_finite((update, state))


PARAMETERS = {
    "plain": [3.0, 4.0, 0.0],
    "zeros": [0.0, 0.0, 0.0],
    "tiny": [1e-30, 0.0, 0.0],
    "huge": [1e30, -1e30, 1.0],
    "largest": [3.4e38, -3.4e38, 3.4e38],
    "infinite": [np.inf, 1.0, 0.0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("g", LONG.values(), ids=LONG)
def test_a_gradient_of_any_length_is_shortened_to_a_share_of_any_parameters(g, p, dtype, x64):
    g, p = (jnp.asarray(x).astype(dtype) for x in (g, p))
    tx = dialects.adaptive_clip_by_norm(0.25, 1e-3)
    clipped, _ = jax.jit(tx.update)(g, tx.init(p), p)
    width = np.float64 if dtype == jnp.float64 else np.float32
    largest = float(np.finfo(width).max)
    x, w = (np.clip(np.float64(x), -largest, largest).astype(np.longdouble) for x in (g, p))
    most = 0.25 * np.clip(np.sqrt((w**2).sum()), np.longdouble(1e-3), largest)
    expected = np.float64(x * (most / max(np.sqrt((x**2).sum()), most)))
    limit = float(jnp.finfo(dtype).max)
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    np.testing.assert_allclose(np.float64(clipped), np.clip(expected, -limit, limit), 4 * eps, tiny)


@pytest.mark.parametrize("eps", [1e-8, 1e-20, 1e-30])
@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_a_huge_steady_gradient_without_variance_gives_a_finite_step(eps, rate):
    tx = dialects.torch(rate, 0.5, eps, momentum=0.9, centered=True)
    g = jnp.array([1e20, -1.0, 0.0])
    state, updates = jax.lax.scan(
        lambda state, _: tx.update(g, state)[::-1], tx.init(g), length=400
    )
    chex.assert_tree_all_finite((state, updates))
    assert (updates[:, 0] <= 0).all() and (updates[:, 2] == 0).all()


@cases()
def test_a_nan_is_shown_and_not_kept(case):
    tx = case()
    params = jnp.ones((1, 2))
    ones, broken = jnp.ones((1, 2)), jnp.array([[1.0, jnp.nan]])
    _, before = tx.update(ones, tx.init(params), params)
    u, after = tx.update(broken, before, params)
    assert jnp.isnan(u[0, 1]) and not jnp.isnan(u[0, 0])
    chex.assert_tree_all_finite(after)
    kept = [jax.tree.leaves(storage.decoded(state)) for state in (before, after)]
    for old, new in zip(*kept, strict=True):
        if old.ndim:
            assert old[0, 1] == new[0, 1]
    u, _ = tx.update(ones, after, params)
    chex.assert_tree_all_finite(u)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@cases(signed=True)
def test_a_rate_that_is_not_finite_is_shown_and_not_kept(case, value):
    tx = case(learning_rate=lambda count: jnp.where(count == 1, value, 0.125))
    ones = jnp.ones((1, 2))
    state = tx.init(ones)
    for count in range(3):
        update, state = jax.jit(tx.update)(ones, state, ones)
        assert np.isfinite(update).all() == (count != 1)
        chex.assert_tree_all_finite([x for x in jax.tree.leaves(state) if x.ndim])


def test_a_decay_that_is_not_a_number_is_shown_and_forgotten():
    tx = ours.rmsprop(0.1, lambda count: jnp.where(count == 1, jnp.nan, 0.9), momentum=0.9)
    state = tx.init(jnp.zeros(2))
    found = []
    for _ in range(3):
        update, state = jax.jit(tx.update)(jnp.ones(2), state)
        found.append(np.isfinite(update).all())
    assert found == [True, False, True]


@pytest.mark.parametrize(
    ("links", "g"),
    [
        ([ours.trace(0.9), ours.scale_by_rms()], -np.inf),  # not kept, so it must show
        ([ours.trace(0.9)], np.inf),
        ([ours.ema(0.9), ours.scale_by_rms()], -np.inf),
        ([ours.ema(0.9)], np.inf),
        ([ours.scale_by_rms(eps_in_sqrt=lambda root, nu, eps: nu * jnp.nan), ours.trace(0.9)], 1.0),
    ],
)
def test_what_a_buffer_does_not_keep_it_shows(links, g):
    tx = ours.chain(*links)
    g = jnp.array([g, 1.0])
    update, state = tx.update(g, tx.init(g))
    assert np.isnan(update[0])
    buffers = [optax.tree.get(state, name, None) for name in ("trace", "ema")]
    chex.assert_tree_all_finite([buffer for buffer in buffers if buffer is not None])


def _nu(state):
    parts = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "nu"))
    return next(part.nu for part in parts if hasattr(part, "nu"))[0, 0]
