"""Promise 4: centred mode stays finite, bounded and accurate where ν − μ² cancels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rmsprop as ours
from tests.cases import cases

pytestmark = pytest.mark.device

GRADIENTS = {
    "constant": lambda rng, n: np.tile(rng.uniform(0.5, 2, 256), (n, 1)),
    "large and constant": lambda rng, n: np.tile(rng.uniform(1e3, 1e4, 256), (n, 1)),
    "mean 1, noise 1e-3": lambda rng, n: 1 + 1e-3 * rng.normal(size=(n, 256)),
    "mean 100, noise 1e-3": lambda rng, n: 100 + 1e-3 * rng.normal(size=(n, 256)),
    "mean 0, noise 1": lambda rng, n: rng.normal(size=(n, 256)),
}


def gradients(name, steps=2000):
    return np.float32(GRADIENTS[name](np.random.default_rng(0), steps))


def scan(tx, grads):
    update = lambda s, g: tx.update(g, s, g)[::-1]  # noqa: E731
    return jax.jit(lambda g: jax.lax.scan(update, tx.init(g[0]), g)[1])(grads)


@cases(centered=True, decays_weights=False)
@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_steady_gradients_stay_finite_and_within_the_bound(case, name, decay):
    grads = gradients(name)
    updates = np.asarray(scan(case(decay=decay), jnp.asarray(grads)))
    assert np.isfinite(updates).all()
    eps, rate = case.hyper["eps"], case.hyper.get("learning_rate", 1.0)
    mu = case.hyper.get("momentum", 0.0)
    floor = np.sqrt(eps) if case.reference.get("eps_in_sqrt", True) else eps
    bound = rate * np.abs(grads).max() / floor / (1 - mu)
    assert np.abs(updates).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in GRADIENTS if "large" not in name])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
def test_the_denominator_is_that_of_exact_arithmetic(name, decay):
    """Median relative error at most 1e-3, largest 2e-2: the conditioning of the recurrence.

    The mean stops an ulp or so short of a constant gradient. Where the square of that exceeds eps,
    |g| above 1e3 here, the denominator is too large and the step too short, never too long.
    """
    grads, tx = gradients(name), ours.scale_by_stddev(decay)
    got = grads / np.asarray(scan(tx, jnp.asarray(grads)), float)
    with jax.enable_x64(True):
        exact = grads / np.asarray(scan(tx, jnp.asarray(grads, jnp.float64)))
    error = np.abs(got / exact - 1)
    assert np.median(error) <= 1e-3
    assert error.max() <= 2e-2


@cases(centered=True)
@pytest.mark.parametrize("name", ["constant", "mean 100, noise 1e-3", "mean 0, noise 1"])
def test_jit_and_scan_agree_bit_for_bit(case, name):
    grads = jnp.asarray(gradients(name, 100))
    tx = case()
    update, state = jax.jit(lambda g, s: tx.update(g, s, g)), tx.init(grads[0])
    stepped = []
    for g in grads:
        u, state = update(g, state)
        stepped.append(u)
    chex.assert_trees_all_equal(jnp.stack(stepped), scan(tx, grads))


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_the_first_corrected_step_is_sane(eps_in_sqrt):
    g = jax.random.normal(jax.random.key(0), (100_000,))
    tx = ours.rmsprop(1e-3, eps_in_sqrt=eps_in_sqrt, centered=True, bias_correction=True)
    u, state = tx.update(g, tx.init(g))
    assert jnp.isfinite(u).all()
    assert jnp.abs(u).max() <= 1e-3 * (1 + 1e-6)
    np.testing.assert_allclose(jnp.median(jnp.abs(u)), 1e-3, rtol=1e-6)
    # From the second step on there is a spread to divide by.
    u, _ = tx.update(-g, state)
    assert jnp.abs(u).max() < 2e-3


def test_the_state_holds_the_variance():
    rng = np.random.default_rng(1)
    grads = jnp.asarray(rng.normal(size=(50, 4)), jnp.float32)
    for corrected in (False, True):
        rms = ours.scale_by_rms(bias_correction=corrected)
        stddev = ours.scale_by_stddev(bias_correction=corrected)
        r, s = rms.init(grads[0]), stddev.init(grads[0])
        for t, g in enumerate(grads, 1):
            r, s = rms.update(g, r)[1], stddev.update(g, s)[1]
            correction = 1 - 0.9**t if corrected else 1.0
            chex.assert_trees_all_close(r.nu, s.var + s.mu**2 / correction, rtol=2e-5)
