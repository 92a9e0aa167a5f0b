"""Promise 5: derivatives through the optimizer, by gradients and by every hyperparameter."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import optax_rmsprop as ours
from optax_rmsprop import dialects
from tests.cases import cases, essential, slow

pytestmark = pytest.mark.device

STEPS = 5


def trajectory(case, hyper, grads):
    """The parameters after a few given gradients."""
    tx = case(**hyper)

    def step(carry, g):
        params, state = carry
        update, state = tx.update(g, state, params)
        return (optax.apply_updates(params, update), state), None

    params = jnp.full(grads[0].shape, 0.5)
    return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]


def gradients(seed):
    grads = np.random.default_rng(seed).normal(size=(STEPS, 2, 3))
    grads[:, 0, 0] = 0.0  # a unit that is dead
    grads[2, 0, 1] = 0.0  # and one that sleeps for a step
    return jnp.asarray(grads)


@cases(is_chain=False)
def test_both_modes_equal_finite_differences(case, x64):
    # A large eps and a small step: with eps outside, the slope itself has a kink at 0.
    hyper = case.hyper | ({"eps": 0.5} if case.divides else {})
    run = jax.jit(lambda h, g: trajectory(case, h, g))
    check_grads(run, (hyper, gradients(0)), 1, ["fwd", "rev"], eps=1e-6, rtol=2e-6)


@cases(is_chain=False)
def test_both_modes_are_finite_at_a_small_eps(case, x64):
    at = jax.tree.map(jnp.asarray, case.hyper), gradients(1)

    @jax.jit
    def both(*at):
        run = lambda *at: trajectory(case, *at)  # noqa: E731
        after, forward = jax.jvp(run, at, jax.tree.map(jnp.ones_like, at))
        return forward, jax.vjp(run, *at)[1](jnp.ones_like(after))

    chex.assert_tree_all_finite(both(*at))


@essential(is_chain=False)
def test_forward_equals_reverse(case, x64):
    run = lambda h, g: trajectory(case, h, g).ravel()  # noqa: E731
    both = lambda *at: [jac(run, argnums=(0, 1))(*at) for jac in (jax.jacfwd, jax.jacrev)]  # noqa: E731
    forward, reverse = jax.jit(both)(jax.tree.map(jnp.asarray, case.hyper), gradients(1))
    chex.assert_tree_all_finite(forward)
    chex.assert_trees_all_close(forward, reverse, rtol=1e-12, atol=1e-12)


@essential(is_chain=False)
def test_second_derivatives_are_finite(case, x64):
    run = lambda h, g: trajectory(case, h, g).ravel()  # noqa: E731
    hyper = jax.tree.map(jnp.asarray, case.hyper)
    chex.assert_tree_all_finite(jax.jit(jax.hessian(run))(hyper, gradients(1)))


@pytest.mark.parametrize("eps_in_sqrt, slope", [(True, 1e4), (False, 1e8)])
@pytest.mark.parametrize("centered", [False, True])
def test_the_slope_at_a_zero_gradient(eps_in_sqrt, slope, centered):
    make = ours.scale_by_stddev if centered else ours.scale_by_rms
    step = lambda tx: jax.grad(lambda g: tx.update(g, tx.init(g))[0].sum())  # noqa: E731
    derivative = step(make(eps=1e-8, eps_in_sqrt=eps_in_sqrt))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(derivative[0], slope, rtol=1e-6)
    # With eps = 0 the update is 0 at 0 by definition, and so is its derivative.
    assert step(make(eps=0.0, eps_in_sqrt=eps_in_sqrt))(jnp.zeros(1)) == 0


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("eps", [1e-8, 1e-20, 1e-30])
@pytest.mark.parametrize("make", [ours.scale_by_rms, ours.scale_by_stddev])
def test_a_tiny_eps_outside_leaves_derivatives_finite_and_right(make, eps, mode):
    g = jnp.array([0.0, 1.0])

    def step(eps):
        tx = make(0.75, eps=eps, eps_in_sqrt=False)
        return tx.update(g, tx.init(g))[0]

    # d/dε of g/(r+ε) is -g/(r+ε)², and r is half of g, or 0.75^0.5 of half of it.
    root = 0.5 if make is ours.scale_by_rms else 0.75**0.5 * 0.5
    np.testing.assert_allclose(mode(step)(eps), [0.0, -1 / (root + eps) ** 2], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_no_derivative_by_a_decay_of_zero_is_infinite(steps):
    def last(decay):
        tx = ours.scale_by_stddev(decay, 0.5, bias_correction=True)
        g = jnp.array([2.0, 0.0])
        return jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(g), jnp.stack(steps * [g]))[
            1
        ]

    chex.assert_tree_all_finite([jax.jacfwd(last)(0.0), jax.jacrev(last)(0.0)])


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.3, 0.5, 0.9])
def test_the_derivative_of_a_corrected_average_by_its_decay(decay, mode, x64):
    gradients = jnp.array([1.0, 2.0, 3.0])

    def last(decay):
        tx = ours.scale_by_rms(decay, 0.0, bias_correction=True)
        state = tx.init(gradients[0])
        for g in gradients:
            u, state = tx.update(g, state)
        return u

    def exact(decay):  # the weights of the average, written out
        weights = jnp.stack([decay * decay, decay, 1 + 0 * decay])
        weights = weights / weights.sum()
        return gradients[-1] / jnp.sqrt(weights @ gradients**2)

    np.testing.assert_allclose(last(decay), exact(decay), rtol=1e-12)
    np.testing.assert_allclose(mode(last)(decay), mode(exact)(decay), rtol=1e-10)


NORMS = {"each": {"clipnorm": 1.0}, "all": {"global_clipnorm": 1.0}}


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("clip", NORMS.values(), ids=NORMS)
def test_a_dead_layer_stops_no_derivative_of_a_clipped_run(clip, mode):
    grads = {"dead": jnp.zeros(3), "alive": jnp.array([3.0, 4.0])}

    def moved(rate):
        tx = dialects.keras(rate, rho=0.75, epsilon=0.0, **clip)
        return tx.update(grads, tx.init(grads))[0]

    slope = mode(moved)(0.5)  # -g/√(g²/4) at the first step, however short g is
    np.testing.assert_allclose(slope["alive"], [-2.0, -2.0], rtol=1e-6)
    np.testing.assert_array_equal(slope["dead"], jnp.zeros(3))


@pytest.mark.parametrize("clip", NORMS.values(), ids=NORMS)
def test_the_derivatives_of_a_norm_are_those_of_its_formula(clip, x64):
    together = "global_clipnorm" in clip
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3 + 0.4j])}
    tx = dialects.clip_by_norm(1.0, together)
    clipped = lambda g: tx.update(g, tx.init(g))[0]  # noqa: E731
    check_grads(clipped, (grads,), 2, ["fwd", "rev"])


def test_the_derivatives_of_a_share_of_a_norm_are_those_of_its_formula(x64):
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.03 + 0.04j])}
    tx = dialects.adaptive_clip_by_norm(0.25)
    clipped = lambda g, p: tx.update(g, tx.init(p), p)[0]  # noqa: E731
    check_grads(clipped, (grads, jax.tree.map(lambda g: 0.5 * g, grads)), 2, ["fwd", "rev"])
    dead = jax.jacrev(clipped, argnums=(0, 1))(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_array_equal(dead[0], jnp.eye(2))  # shorter than the bound
    np.testing.assert_array_equal(dead[1], jnp.zeros((2, 2)))


@pytest.mark.parametrize("eps_in_sqrt", [True, *slow(False)])
@pytest.mark.parametrize("theta", ["learning_rate", "decay", "eps", "momentum"])
def test_hypergradients_follow_their_own_recursion(theta, eps_in_sqrt, x64):
    """A recursion for the derivatives, written by hand, is an oracle apart from autodiff."""
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(20, 6)), rng.integers(0, 2, 20) * 2.0 - 1
    features[:, 5] = 0.0  # the sixth parameter never has a gradient
    hyper = {"learning_rate": 0.05, "decay": 0.9, "eps": 1e-3, "momentum": 0.8}

    def loss(w):
        return jnp.mean(jnp.log1p(jnp.exp(-labels * (features @ w)))) + 0.1 * jnp.sum(w[:5] ** 4)

    def train(value):
        h = hyper | {theta: value}
        # The rate outside the buffer, as in the recursion below.
        tx = optax.chain(
            ours.scale_by_rms(h["decay"], h["eps"], eps_in_sqrt=eps_in_sqrt),
            ours.trace(h["momentum"]),
            ours.scale_by_learning_rate(h["learning_rate"]),
        )

        def step(carry, _):
            w, state = carry
            update, state = tx.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, update), state), None

        w = jnp.full(6, 0.3)
        return jax.lax.scan(step, (w, tx.init(w)), length=25)[0][0]

    slope, curvature = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    lr, beta, eps, mu = (hyper[k] for k in ("learning_rate", "decay", "eps", "momentum"))
    is_ = {name: float(name == theta) for name in hyper}
    w, nu, b = np.full(6, 0.3), np.zeros(6), np.zeros(6)
    zw, znu, zb = np.zeros(6), np.zeros(6), np.zeros(6)
    for _ in range(25):
        g, h = np.asarray(slope(w)), np.asarray(curvature(w))
        zg = h @ zw
        znu = beta * znu + 2 * (1 - beta) * g * zg + is_["decay"] * (nu - g**2)
        nu = beta * nu + (1 - beta) * g**2
        if eps_in_sqrt:
            d = np.sqrt(nu + eps)
            zd = (znu + is_["eps"]) / (2 * d)
        else:
            d = np.sqrt(nu) + eps
            zd = np.divide(znu, 2 * np.sqrt(nu), out=np.zeros(6), where=nu > 0) + is_["eps"]
        zb = mu * zb + zg / d - g * zd / d**2 + is_["momentum"] * b
        b = mu * b + g / d
        zw = zw - lr * zb - is_["learning_rate"] * b
        w = w - lr * b

    np.testing.assert_allclose(train(hyper[theta]), w, rtol=1e-12)
    np.testing.assert_allclose(jax.jacfwd(train)(hyper[theta]), zw, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(jax.jacrev(train)(hyper[theta]), zw, rtol=1e-10, atol=1e-14)
