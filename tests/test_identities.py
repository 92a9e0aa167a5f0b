"""Exact identities, symmetries, closed forms and bounds: oracles that need no other code."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import optax_rmsprop as ours
from tests.cases import cases, essential

GRADIENTS = arrays.arrays(
    np.float32,
    (12, 4),
    elements=st.floats(-1e6, 1e6, width=32).map(lambda x: np.float32(x if abs(x) > 1e-6 else 0.0)),
)
# Derandomised: the same examples in every run.
examples = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)


@functools.lru_cache
def runner(case, overrides=()):
    tx = case(**dict(overrides))
    update = lambda s, g: tx.update(g, s, jnp.zeros(4))[::-1]  # noqa: E731
    run = jax.jit(lambda g: jax.lax.scan(update, tx.init(jnp.zeros(4)), g))
    return lambda g: jax.tree.map(np.asarray, run(g))


def scan(tx, grads, params=None):
    params = jnp.zeros_like(grads[0]) if params is None else params
    update = lambda s, g: tx.update(g, s, params)[::-1]  # noqa: E731
    return jax.lax.scan(update, tx.init(params), grads)[1]


def normal(steps=100, n=5, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(steps, n)))


@cases()
@examples
@hypothesis.given(GRADIENTS)
def test_sign_symmetry(case, grads):
    np.testing.assert_array_equal(runner(case)(-grads)[1], -runner(case)(grads)[1])


@cases(rounding=0.0)
@examples
@hypothesis.given(GRADIENTS, st.permutations(range(4)))
def test_permutation_equivariance(case, grads, order):
    permuted, straight = runner(case)(grads[:, order])[1], runner(case)(grads)[1][:, order]
    # The compiler may contract a product and a sum in some lanes of a vector and not in others:
    # half an ulp a step, for the memory of the averages. Centring cancels where g is steady.
    memory = 1 / (1 - case.hyper.get("decay", 0.0)) / (1 - case.hyper.get("momentum", 0.0))
    tolerance = 2**-23 * memory * (1e3 if case.centered else 1)
    np.testing.assert_allclose(
        permuted, straight, rtol=tolerance, atol=tolerance * np.abs(straight).max()
    )


@essential(divides=True, fixed_start=False)
@examples
@hypothesis.given(GRADIENTS, st.sampled_from([-20, -3, 20]))
def test_scale_invariance(case, grads, k):
    """g → c·g with ε and ν₀ in proportion changes no bit, for c a power of two."""
    c = 2.0**k
    inside = case.reference.get("eps_in_sqrt", True)
    scaled = {"eps": case.hyper["eps"] * (c * c if inside else c)}
    if "initial_scale" in case.reference:
        scaled["initial_scale"] = case.reference["initial_scale"] * c * c
    if case.couples:  # the decay is a part of the gradient
        scaled["weight_decay"] = case.hyper["weight_decay"] * c
    expected = runner(case)(grads)[1]
    np.testing.assert_array_equal(
        runner(case, tuple(scaled.items()))(grads * np.float32(c))[1], expected
    )


@cases()
@examples
@hypothesis.given(GRADIENTS)
def test_accumulators_of_squares_are_never_negative_and_updates_are_bounded(case, grads):
    state, updates = runner(case)(grads)
    for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "_fields")):
        for field in {"nu", "var"} & set(part._fields):
            assert (getattr(part, field) >= 0).all()
    if case.bound is not None:
        mu = case.hyper.get("momentum", 0.0)
        nesterov = 1 + mu if case.reference.get("nesterov") else 1
        # (1 + 1e-5): rounding of nu, halved by the root, for 1/(1 - decay) = 10 steps.
        assert (np.abs(updates) <= case.bound * nesterov * (1 + 1e-5)).all()


@cases(signed=True, decays_weights=False)
def test_doubling_the_rate_doubles_the_updates_bit_for_bit(case):
    grads = jnp.asarray(normal(), jnp.float32)
    once = scan(case(), grads)
    twice = scan(case(learning_rate=2 * case.hyper["learning_rate"]), grads)
    chex.assert_trees_all_equal(twice, 2 * once)


def test_adam_without_first_moment(x64):
    with jax.numpy_dtype_promotion("standard"):
        adam = scan(optax.scale_by_adam(b1=0.0, b2=0.99, eps=1e-6), normal())
    rms = scan(ours.scale_by_rms(0.99, 1e-6, eps_in_sqrt=False, bias_correction=True), normal())
    np.testing.assert_allclose(rms, adam, rtol=1e-12)


@pytest.mark.parametrize(
    "options", [{"decay": 0.0}, {"decay": 0.9, "bias_correction": True}], ids=["decay 0", "first"]
)
def test_sign_descent(options):
    grads = normal(1).at[0, 0].set(0.0)
    updates = scan(ours.rmsprop(0.125, eps=0.0, **options), grads)
    np.testing.assert_allclose(updates, -0.125 * jnp.sign(grads), rtol=3e-7)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_large_eps_is_sgd_with_momentum(eps_in_sqrt, nesterov, x64):
    """With rate η·√ε (or η·ε) and ν/ε below 1e-12, the denominator is constant."""
    eps = 1e16
    rate = 0.1 * (np.sqrt(eps) if eps_in_sqrt else eps)
    tx = ours.rmsprop(rate, eps=eps, eps_in_sqrt=eps_in_sqrt, momentum=0.9, nesterov=nesterov)
    with jax.numpy_dtype_promotion("standard"):
        sgd = scan(optax.sgd(0.1, momentum=0.9, nesterov=nesterov), normal())
    np.testing.assert_allclose(scan(tx, normal()), sgd, rtol=1e-12)


def test_the_corrected_average_is_a_running_average(x64):
    """ν/(1−βᵗ) moves by (1−β)/(1−βᵗ) of the way to g²."""
    beta, grads = 0.999, normal(300)
    tx, nu = ours.scale_by_rms(beta, eps=0.0, bias_correction=True), jnp.zeros(5)
    updates = scan(tx, grads)
    for t, g in enumerate(grads, 1):
        nu = nu + (1 - beta) / (1 - beta**t) * (g**2 - nu)
        np.testing.assert_allclose(updates[t - 1], g / jnp.sqrt(nu), rtol=1e-12)


def test_the_rate_inside_or_outside_the_buffer_is_the_same_while_it_is_constant(x64):
    inside = ours.rmsprop(0.1, momentum=0.9)
    outside = optax.chain(ours.scale_by_rms(), ours.trace(0.9), ours.scale_by_learning_rate(0.1))
    np.testing.assert_allclose(scan(inside, normal()), scan(outside, normal()), rtol=1e-12)
    halving = lambda count: 0.1 * 0.5 ** (count // 20).astype(jnp.float32)  # noqa: E731
    inside = ours.rmsprop(halving, momentum=0.9)
    outside = optax.chain(
        ours.scale_by_rms(), ours.trace(0.9), ours.scale_by_learning_rate(halving)
    )
    difference = jnp.cumsum(scan(inside, normal()) - scan(outside, normal()), 0)
    assert jnp.abs(difference).max() > 0.1


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"centered": True}])
def test_no_weight_decay_is_rmsprop_bit_for_bit(options):
    grads, params = jnp.asarray(normal(), jnp.float32), jnp.full(5, 3.0)
    plain = scan(ours.rmsprop(0.1, **options), grads, params)
    for tx in (
        ours.rmspropw(0.1, weight_decay=0.0, **options),
        ours.rmspropw(0.1, weight_decay=0.5, mask=False, **options),
    ):
        chex.assert_trees_all_equal(scan(tx, grads, params), plain)


def test_weight_decay_follows_the_rate_and_the_mask():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    rate = lambda count: 0.5 / (1 + count.astype(jnp.float32))  # noqa: E731
    mask = {"kernel": True, "bias": False}
    tx = ours.rmspropw(rate, momentum=0.9, weight_decay=0.25, mask=mask)
    by_rule = ours.rmspropw(
        rate, momentum=0.9, weight_decay=0.25, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    )
    state = tx.init(params)
    for t in range(3):
        expected = {"kernel": jnp.full((2, 2), -0.5 / (1 + t) * 0.25), "bias": jnp.zeros(2)}
        chex.assert_trees_all_close(by_rule.update(zero, state, params)[0], expected)
        update, state = tx.update(zero, state, params)
        chex.assert_trees_all_close(update, expected)


@pytest.mark.parametrize("h", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("beta", [0.9, 0.99])
def test_without_eps_a_quadratic_ends_in_a_two_cycle(h, beta, x64):
    """f = ½hx²: |x| = η/2 and ν = (hη/2)², whatever h is."""
    x, state = descend(ours.rmsprop(0.1, beta, 0.0), h, 0.05 * 1.01, beta)
    np.testing.assert_allclose(abs(x), 0.05, rtol=1e-12)
    np.testing.assert_allclose(state[0].nu, (h * 0.05) ** 2, rtol=1e-11)


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("h", [1.0, 10.0])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.1])
def test_eps_shrinks_the_cycle_and_above_a_threshold_ends_it(share, h, eps_in_sqrt, x64):
    """Inside: x² = η²/4 − ε/h²; outside: |x| = η/2 − ε/h; nothing above ε = (ηh/2)², or ηh/2."""
    eta, beta = 0.1, 0.9
    threshold = (eta * h / 2) ** (2 if eps_in_sqrt else 1)
    eps = share * threshold
    square = eta**2 / 4 - eps / h**2
    amplitude = np.sqrt(max(square, 0.0)) if eps_in_sqrt else max(eta / 2 - eps / h, 0.0)
    start = 1.01 * amplitude if amplitude else 0.01
    tx = ours.rmsprop(eta, beta, eps, eps_in_sqrt=eps_in_sqrt)
    x, _ = descend(tx, h, start, beta, lengths=200)
    np.testing.assert_allclose(abs(x), amplitude, rtol=1e-12, atol=1e-50)


@pytest.mark.parametrize("mu", [0.5, 0.9])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_with_nesterov_the_cycle_has_its_own_amplitude(mu, beta, x64):
    """|x| = η(1+2μ)/(2(1+μ))."""
    tx = ours.rmsprop(0.1, beta, 0.0, momentum=mu, nesterov=True)
    amplitude = 0.1 * (1 + 2 * mu) / (2 * (1 + mu))
    x, _ = descend(tx, 1.0, amplitude * 1.01, beta, lengths=100)
    np.testing.assert_allclose(abs(x), amplitude, rtol=1e-11)


def test_the_loss_floor_of_a_quadratic(x64):
    """Σ hᵢη²/8, over four decades of curvature."""
    h = np.logspace(-2, 2, 7)
    x, _ = descend(ours.rmsprop(0.1, 0.9, 0.0), h, np.full(7, 0.05 * 1.01), 0.9)
    np.testing.assert_allclose((h * x**2 / 2).sum(), (h * 0.1**2 / 8).sum(), rtol=1e-12)


@pytest.mark.parametrize("C, threshold", [(3, 0.472313), (6, 0.187480)])
def test_the_online_counter_example_turns_at_its_threshold(C, threshold, x64):
    """Gradients C, −1, −1 on [−1, 1]: below β* RMSprop goes to the worst point (Reddi et al. 2018).

    β* is the root of −C/√ν_a + 1/√ν_b + 1/√ν_c with the periodic ν of the three gradients.
    """

    def end(beta):
        tx = ours.rmsprop(lambda t: 0.1 / jnp.sqrt(1.0 + t.astype(float)), beta, eps=0.0)

        def step(carry, t):
            x, state = carry
            u, state = tx.update(jnp.where(t % 3 == 0, float(C), -1.0), state)
            return (jnp.clip(x + u, -1.0, 1.0), state), None

        x = jnp.zeros(())
        return jax.lax.scan(step, (x, tx.init(x)), jnp.arange(9000))[0][0]

    assert end(threshold - 0.03) > 0
    assert end(threshold + 0.03) < 0


def descend(tx, h, x, beta, lengths=60):
    """Gradient descent on ½hx² from a state on the cycle's square, for 60/(1−β) steps: √β each."""
    x = jnp.asarray(x)
    state = tx.init(x)
    state = (state[0]._replace(nu=(h * x) ** 2), *state[1:])

    def step(carry, _):
        x, state = carry
        u, state = tx.update(h * x, state)
        return (x + u, state), None

    return jax.lax.scan(step, (x, state), length=round(lengths / (1 - beta)))[0]
