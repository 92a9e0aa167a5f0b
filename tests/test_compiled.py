"""What XLA makes of an update: bytes of temporary memory, and bytes accessed, beside Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop import dialects

pytestmark = [pytest.mark.api, pytest.mark.device]

BALL = {"momentum": 0.9}
# The same rule in both, and in bytes a parameter the temporary memory that ours may need.
PAIRS = {
    "plain": (lambda r: ours.rmsprop(r), lambda r: optax.rmsprop(r), 0),
    "outside": (
        lambda r: ours.rmsprop(r, eps_in_sqrt=False),
        lambda r: optax.rmsprop(r, eps_in_sqrt=False),
        0,
    ),
    "corrected": (
        lambda r: ours.rmsprop(r, bias_correction=True),
        lambda r: optax.rmsprop(r, bias_correction=True),
        0,
    ),
    "centred": (
        lambda r: ours.rmsprop(r, centered=True),
        lambda r: optax.rmsprop(r, centered=True),
        0,
    ),
    "decayed": (
        lambda r: ours.rmspropw(r),
        lambda r: optax.chain(
            optax.scale_by_rms(),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(r),
        ),
        0,
    ),
    "torch": (
        lambda r: dialects.torch(r),
        lambda r: optax.rmsprop(r, 0.99, eps_in_sqrt=False),
        0,
    ),
    # The step is needed twice, for the buffer and for the parameter, and is written once.
    "momentum": (lambda r: ours.rmsprop(r, **BALL), lambda r: optax.rmsprop(r, **BALL), 4),
    "nesterov": (
        lambda r: ours.rmsprop(r, nesterov=True, **BALL),
        lambda r: optax.rmsprop(r, nesterov=True, **BALL),
        4,
    ),
    "centred momentum": (
        lambda r: ours.rmsprop(r, centered=True, **BALL),
        lambda r: optax.rmsprop(r, centered=True, **BALL),
        4,
    ),
}
RATES = {"number": 0.1, "schedule": lambda count: 0.1 / (1.0 + count.astype(jnp.float32))}


def cost(tx, dtype=jnp.float32):
    """Temporary memory and bytes accessed of a donated step, in bytes a parameter."""
    params = {name: jnp.ones(n, dtype) for name, n in (("a", 1 << 14), ("b", 3 << 12))}
    state, size = tx.init(params), sum(p.size for p in params.values())

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # which Optax's own rely on
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory, accessed = compiled.memory_analysis(), compiled.cost_analysis()["bytes accessed"]
    return memory.temp_size_in_bytes / size, accessed / size


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize(("mine", "theirs", "needed"), PAIRS.values(), ids=PAIRS)
def test_an_update_needs_no_more_memory_and_moves_no_more_bytes(mine, theirs, needed, rate):
    temporary, accessed = cost(mine(rate))
    temporary_theirs, accessed_theirs = cost(theirs(rate))
    assert temporary <= max(needed, temporary_theirs) + 0.02  # the scalars
    assert accessed <= (1.5 if needed else 1.0) * accessed_theirs + 0.02


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("mine", "theirs", "needed"), PAIRS.values(), ids=PAIRS)
def test_half_precision_parameters_need_no_wide_copies(mine, theirs, needed, dtype):
    del theirs  # whose accumulators are half as wide
    temporary, accessed = cost(mine(0.1), dtype)
    assert temporary <= needed + 0.02
    assert accessed < cost(mine(0.1))[1]


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("make", [ours.scale_by_rms, ours.scale_by_stddev])
def test_a_long_average_is_a_random_walk_of_its_roundings(make, decay):
    """A median of 0.2/√(1−β) ulp after 20,000 steps: one rounding a step, and no drift."""
    grads = np.random.default_rng(0).normal(size=(20_000, 500)).astype(np.float32)

    def last(dtype):
        tx = make(decay)
        step = lambda state, g: (tx.update(g.astype(dtype), state)[1], None)  # noqa: E731
        run = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0].astype(dtype)), g)[0])
        state = run(jnp.asarray(grads))
        return np.asarray(getattr(state, "nu", None) if make is ours.scale_by_rms else state.var)

    got = last(jnp.float32)
    with jax.enable_x64(True):
        exact = last(jnp.float64)
    assert exact.dtype == np.float64
    error = np.abs(got - exact) / np.spacing(got)
    assert np.median(error) <= max(1.0, 0.2 / np.sqrt(1 - decay))


@pytest.mark.parametrize(
    "decay", [0.0, 1e-40, np.float32(0.0), lambda count: 0.0 * count.astype(jnp.float32)]
)
def test_without_a_past_the_average_is_the_last_square(decay):
    def last(make):
        tx = make(decay)
        state = tx.init(jnp.zeros(2))
        for g in ([1e3, -2.0], [1e-3, 3.0]):  # small after large: nothing of the large one stays
            updates, state = jax.jit(tx.update)(jnp.array(g), state)
        return updates, state

    updates, state = last(ours.scale_by_rms)
    np.testing.assert_array_equal(state.nu, np.float32([1e-3, 3.0]) ** 2)
    np.testing.assert_allclose(updates, np.float32([1e-3, 3.0]) / np.sqrt([1e-6 + 1e-8, 9 + 1e-8]))
    _, state = last(ours.scale_by_stddev)
    np.testing.assert_array_equal(state.var, 0.0)


def test_a_decay_below_a_half_is_averaged_as_well():
    grads = np.random.default_rng(1).normal(size=(200, 50)) * 10.0 ** -(
        np.arange(200)[:, None] ** 0.5
    )
    for decay in (0.01, 0.3, lambda count: 0.3 + 0.0 * count.astype(jnp.float32)):
        tx = ours.scale_by_rms(decay)
        step = lambda s, g, tx=tx: (tx.update(g, s)[1], None)  # noqa: E731
        nu = jax.lax.scan(step, tx.init(jnp.zeros(50)), jnp.asarray(grads, jnp.float32))[0].nu
        beta = decay if isinstance(decay, float) else 0.3
        weights = (1 - beta) * beta ** np.arange(200)[::-1]
        np.testing.assert_allclose(nu, (weights[:, None] * grads**2).sum(0), rtol=2e-6)
