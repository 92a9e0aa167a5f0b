"""The trajectories: our rules against the definition in float64, and against Optax."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from tests import reference
from tests.cases import cases, essential, slow

pytestmark = pytest.mark.device

STEPS = 1000


def gradients(steps, shape, seed=0):
    """Normal gradients with a scale for each coordinate, one that is always zero."""
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, *shape)) * np.exp(rng.normal(size=shape))
    grads[..., 0] = 0.0
    return grads


def run(tx, grads, params):
    """The updates for given gradients, all steps in one scan."""

    def step(carry, g):
        state, params = carry
        update, state = tx.update(g, state, params)
        return (state, optax.apply_updates(params, update)), update

    return jax.jit(lambda g, p: jax.lax.scan(step, (tx.init(p), p), g)[1])(grads, params)


def comparable(case, x):
    """All coordinates, but where L2 decay is all that moves a weight.

    Its step does not shrink with it, so that it is thrown from one side of zero to the other, and
    the least rounding grows.
    """
    return x[..., 1:] if case.couples else x


@cases()
def test_float64_equals_the_definition(case, x64):
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    grads = {"w": gradients(STEPS, (3, 4)), "b": gradients(STEPS, (5,))}
    got = run(case(), jax.tree.map(jnp.asarray, grads), jax.tree.map(jnp.asarray, params))
    for leaf in params:
        expected = reference.updates(grads[leaf], params[leaf], **case.hyper, **case.reference)
        got_leaf, expected = comparable(case, got[leaf]), comparable(case, expected)
        # The parameters themselves, since errors in the updates could add up.
        np.testing.assert_allclose(np.cumsum(got_leaf, 0), np.cumsum(expected, 0), atol=1e-12)
        np.testing.assert_allclose(got_leaf, expected, rtol=1e-12, atol=1e-15)


@cases(rounding=0.0)
def test_float32_is_within_a_few_ulp_a_step(case):
    rng = np.random.default_rng(2)
    params = rng.normal(size=7).astype(np.float32)
    grads = gradients(STEPS, (7,)).astype(np.float32)
    got = run(case(), jnp.asarray(grads), jnp.asarray(params))
    expected = reference.updates(
        grads.astype(float), params.astype(float), **case.hyper, **case.reference
    )
    got, expected, params = (comparable(case, np.asarray(x)) for x in (got, expected, params))
    # Rounding is 3 half-ulp a step in nu, remembered for 1/(1-decay) steps, and the same again for
    # the rounding of decay itself; the root halves it. Centring subtracts once more. With momentum
    # and weight decay terms cancel, so that the largest so far, for 1/(1-mu) steps, is the scale;
    # and the parameters lose half an ulp a step, of which the decay shows its share.
    ulp = np.finfo(np.float32).eps
    memory = 1 / (1 - case.hyper.get("decay", 0.0)) * (2 if case.centered else 1)
    mu = case.hyper.get("momentum", 0.0)
    cancels = mu > 0 or case.decays_weights
    scale = np.maximum.accumulate(np.abs(expected), 0) / (1 - mu) if cancels else np.abs(expected)
    lost = STEPS / 2 * np.abs(params + np.cumsum(expected, 0)).max()
    share = case.hyper.get("weight_decay", 0.0) * case.hyper.get("learning_rate", 1.0)
    bound = ulp * ((3 * memory + 4) * scale + share * lost)
    assert (np.abs(np.asarray(got, float) - expected) <= bound + np.finfo(np.float32).tiny).all()


def relaxed(f):
    """Optax's own code relies on JAX's standard promotion of dtypes."""

    @functools.wraps(f)
    def call(*args):
        with jax.numpy_dtype_promotion("standard"):
            return f(*args)

    return call


OPTIONS = [
    {"centered": c, "eps_in_sqrt": e, "initial_scale": i, "bias_correction": b, **m}
    for c, e, i, b, m in itertools.product(
        (False, True),
        (True, False),
        (0.0, 1.0),
        (False, True),
        ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    )
]


def _name(options):
    return "-".join(f"{k}={v:g}" for k, v in options.items())


@pytest.mark.parametrize("rate", ["schedule", *slow("constant")])
@pytest.mark.parametrize("options", OPTIONS, ids=_name)
def test_rmsprop_is_optax_rmsprop(options, rate, x64):
    grads, params = gradients(STEPS, (6,)), np.ones(6)
    grads[:, 0] = 0.3 * np.cos(np.arange(STEPS))  # Optax's centred form is 0/0 at a zero gradient
    schedule = relaxed(optax.cosine_decay_schedule(0.01, STEPS, 0.1))
    # One sample has no variance: there Optax divides by the root of eps, or of a rounding error,
    # and ours by |g|. A documented difference, which the definition below has too.
    differs = options["centered"] and options["bias_correction"] and options["initial_scale"] == 0.0
    rate = schedule if rate == "schedule" else 0.01
    got = np.asarray(run(ours.rmsprop(rate, **options), jnp.asarray(grads), jnp.asarray(params)))
    assert np.isfinite(got).all()
    if differs:
        rates = jax.vmap(schedule)(jnp.arange(STEPS)) if callable(rate) else rate
        expected = reference.updates(
            grads, params, learning_rate=rates, decay=0.9, eps=1e-8, **options
        )
    else:
        tx = optax.rmsprop(rate, **options)
        expected = np.asarray(relaxed(run)(tx, jnp.asarray(grads), jnp.asarray(params)))
    np.testing.assert_allclose(np.cumsum(got, 0), np.cumsum(expected, 0), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [o for o in OPTIONS if not o["centered"]], ids=_name)
def test_rmsprop_is_optax_rmsprop_in_float32(options):
    grads, params = jnp.asarray(gradients(STEPS, (6,)), jnp.float32), jnp.ones(6)
    got, expected = (
        np.asarray(relaxed(run)(make(0.01, **options), grads, params), float)
        for make in (ours.rmsprop, optax.rmsprop)
    )
    # Both stay within the few ulp a step of the test above from the definition, decay being 0.9.
    scale = np.abs(expected)
    if "momentum" in options:
        scale = np.maximum.accumulate(scale, 0) / (1 - options["momentum"])
    assert (np.abs(got - expected) <= 2 * 34 * np.finfo(np.float32).eps * scale).all()


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_corrected_centred_rmsprop_is_optax_after_the_first_step(eps_in_sqrt, x64):
    grads = jnp.asarray(gradients(50, (6,))[:, 1:])
    options = {"centered": True, "bias_correction": True, "eps_in_sqrt": eps_in_sqrt}
    got = run(ours.rmsprop(0.01, **options), grads, jnp.ones(5))
    expected = relaxed(run)(optax.rmsprop(0.01, **options), grads, jnp.ones(5))
    np.testing.assert_allclose(got[1:], expected[1:], rtol=1e-9)  # Optax's second step cancels
    g, eps = np.asarray(grads[0]), 1e-8
    alone = g / (np.sqrt(g**2 + eps) if eps_in_sqrt else np.abs(g) + eps)
    np.testing.assert_allclose(got[0], -0.01 * alone, rtol=1e-12)


@cases()
def test_complex_equals_the_definition(case, x64):
    rng = np.random.default_rng(3)
    grads = rng.normal(size=(60, 4, 2)) @ np.array([1, 1j])
    params = rng.normal(size=(4, 2)) @ np.array([1, 1j])
    got = run(case(), jnp.asarray(grads), jnp.asarray(params))
    if case.splits_complex:
        real, imag = (
            reference.updates(part(grads), part(params), **case.hyper, **case.reference)
            for part in (np.real, np.imag)
        )
        expected = real + 1j * imag
    else:
        expected = reference.updates(grads, params, **case.hyper, **case.reference)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@essential()
def test_jit_scan_and_eager_agree(case):
    grads, params = gradients(20, (5,)).astype(np.float32), jnp.ones(5)
    tx = case()
    state, update = tx.init(params), jax.jit(tx.update)
    eager_state, jitted, eager = state, [], []
    for g in grads:
        u, state = update(g, state, params)
        jitted.append(u)
        u, eager_state = tx.update(g, eager_state, params)
        eager.append(u)
    # The parameters stay where they are, as the loop above leaves them.
    scanned = jax.jit(
        lambda s, g: jax.lax.scan(lambda s, g: tx.update(g, s, params)[::-1], s, g)[1]
    )(tx.init(params), grads)
    ulp = np.finfo(np.float32).eps * np.abs(scanned).max()
    chex.assert_trees_all_close(jnp.stack(jitted), scanned, atol=4 * ulp, rtol=0)
    # Compiled code may contract a product and a sum; the difference lives 1/(1-decay) steps.
    chex.assert_trees_all_close(jnp.stack(eager), scanned, atol=20 * ulp, rtol=0)
