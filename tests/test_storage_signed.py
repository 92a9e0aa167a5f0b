"""First moments in two bytes or one: what `storage.int16` and `storage.int8` keep of them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest

import optax_rmsprop as ours
from optax_rmsprop import _formats, _run, dialects, recording, retuning, storage
from tests.cases import slow
from tests.test_storage import everywhere, from_bits, gradients, steps, there_and_back, tree

pytestmark = [pytest.mark.api, pytest.mark.device]

I16, I8 = storage.int16(), storage.int8()
SIGNED = pytest.mark.parametrize("codec", [I16, I8], ids=["int16", "int8"])
BITS = {I16: 7, I8: 3}
# The mean square of a rounding, over that of what is rounded, if that is log-uniform.
NOISE = {codec: 4.0**-bits / 6 * (3 / 8) / np.log(2) for codec, bits in BITS.items()}


def both(inner, codec, second=None):
    """A transformation whose first moments are all stored."""
    return storage.stored_as(inner, second and everywhere(second), everywhere(codec))


def first_moments(state):
    return storage.moments_of(storage.FIRST, state)


@SIGNED
def test_an_error_is_within_its_bound_and_signs_stay(codec):
    rng = np.random.default_rng(0)
    v = rng.choice([-1, 1], (64, 256)) * 2.0 ** rng.uniform(-14, 0, (64, 256))
    v = (v * 10.0 ** rng.uniform(-30, 30, (64, 1))).astype(np.float32)
    spacing = 2.0 ** -BITS[codec]
    for word, bound in ((None, spacing / 2), (0, spacing), (0xFFFFFFFF, spacing)):
        words = None if word is None else jnp.full(v.shape, word, jnp.uint32)
        back = np.asarray(there_and_back(codec, v, words))
        assert np.abs(back / v - 1).max() <= bound
        assert (np.sign(back) == np.sign(v)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_int16_is_unbiased_over_every_word(sign):
    words = jnp.arange(1 << 16, dtype=jnp.uint32) << 16
    for v in np.float32([1.2345678, 3.0000001e-20, 1.9999999, 1e38, 2.0**-126]):
        back = there_and_back(I16, jnp.full(1 << 16, sign * v), words)
        assert np.asarray(back, float).mean() == sign * float(v)


def test_int8_is_unbiased_over_every_word_down_to_nothing():
    rng = np.random.default_rng(1)
    v = rng.choice([-1, 1], 16) * 2.0 ** -rng.uniform(0, 30, 16)
    v = v.astype(np.float32)
    v[:2] = 1, 0
    codec = storage.int8(16)
    back = jax.jit(jax.vmap(lambda word: there_and_back(codec, v, jnp.full(16, word))))
    # The middles of 2²⁰ equal parts of the words: what is finer than them is off by one part.
    words = (np.arange(1 << 20, dtype=np.uint32).reshape(16, -1) << 12) + np.uint32(1 << 11)
    mean = np.mean([np.asarray(back(w), float).mean(0) for w in words], axis=0)
    np.testing.assert_allclose(mean, v, rtol=1e-6, atol=2.0**-17 / 2**20)
    assert (mean[np.abs(v) > 2.0**-37] != 0).sum() == 15  # far below the least number, 2⁻¹⁷


@SIGNED
def test_zero_stays_zero_and_special_values_stay_what_they_are(codec):
    for word in (None, 0xFFFFFFFF):
        words = lambda shape, w=word: None if w is None else jnp.full(shape, w, jnp.uint32)  # noqa: E731
        for zero in (0.0, -0.0, 1e-45):
            back = there_and_back(codec, jnp.full((3, 128), zero, jnp.float32), words((3, 128)))
            assert not np.asarray(back).view(np.uint32).any() or zero == 1e-45
        for pattern in (0x7F7FFFFF, 0xFF7FFFFF):
            back = there_and_back(codec, from_bits([pattern]), words(1))
            assert np.isfinite(back).all() and abs(float(back[0])) > 3.1e38
        for sign in (1, -1):
            back = there_and_back(codec, jnp.array([sign * np.inf]), words(1))[0]
            assert back == sign * np.inf if codec == I16 else np.isnan(back)
        for nan in (0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7F800001):
            assert np.isnan(there_and_back(codec, from_bits([nan]), words(1))[0]), hex(nan)


@SIGNED
def test_a_number_of_the_format_stays_what_it_is_under_any_word(codec):
    rng = np.random.default_rng(2)
    v = rng.choice([-1, 1], (8, 300)) * rng.lognormal(0, 4, (8, 300))
    value = there_and_back(codec, v)
    for word in (0, 1 << 31, 0xFFFFFFFF):
        words = jnp.full(v.shape, word, jnp.uint32)
        np.testing.assert_array_equal(there_and_back(codec, value, words), value)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (129,), (3, 200), (2, 3, 257)])
@pytest.mark.parametrize("codec", [I16, I8, storage.int8(16)], ids=repr)
def test_an_array_of_any_shape_says_its_format(codec, shape):
    v = jnp.asarray(np.random.default_rng(3).uniform(1, 2, shape), jnp.float32)
    cell = codec.encode(-v, None)
    found = _formats.format_of(cell)
    assert type(found) is type(codec)
    chex.assert_trees_all_equal(found.encode(-v, None), cell)
    np.testing.assert_allclose(_formats.read(cell), -v, rtol=2.0 ** -BITS.get(codec, 3) / 2)


def test_a_block_knows_no_other():
    v = np.full((2, 256), 1e-6, np.float32)
    v[0, 0] = -1e8
    back = np.asarray(there_and_back(I8, v))
    np.testing.assert_array_equal(back[0, 1:128], 0)  # to nearest; the mean of roundings is 1e-6
    np.testing.assert_allclose(back[0, 128:], 1e-6, rtol=2**-4)
    np.testing.assert_allclose(back[1], 1e-6, rtol=2**-4)


@SIGNED
def test_what_is_not_finite_spoils_its_own_element_alone(codec):
    """In the states of Optax, which keep it."""
    inner = optax.trace(0.9)
    tx, g = both(inner, codec), jnp.ones((1, 128))
    state, exact = tx.init(g), inner.init(g)
    for bad in (1.0, np.nan, 1.0, 1.0):
        updates, state = tx.update(g.at[0, 0].set(bad), state)
        expected, exact = inner.update(g.at[0, 0].set(bad), exact)
    np.testing.assert_allclose(updates[0, 1:], expected[0, 1:], rtol=2.0 ** -BITS[codec])
    assert np.isnan(updates[0, 0])


INNER = {
    "momentum": ours.rmsprop(0.1, momentum=0.9),
    "nesterov": ours.rmsprop(0.1, momentum=0.9, nesterov=True),
    "centered": ours.rmsprop(0.1, centered=True, momentum=0.9),
    "clip within": ours.chain(
        ours.scale_by_rms(), ours.chain(optax.clip_by_global_norm(1.0), ours.trace(0.9))
    ),
    "beside optax": ours.chain(optax.scale_by_adam(), ours.trace(0.9)),
    "laprop": ours.chain(ours.scale_by_rms(), ours.ema(0.9, debias=True)),
    "torch": dialects.torch(0.1, momentum=0.9, weight_decay=1e-3),
    "tensorflow1": dialects.tensorflow1(0.1, momentum=0.9),
    "keras": dialects.keras(0.1, momentum=0.9),
    "timm": dialects.timm(0.1, momentum=0.9),
    "optax.adam": optax.adam(0.1),
    "optax.lion": optax.lion(0.1),
    "optax.sgd": optax.sgd(0.1, momentum=0.9),
    "optax.amsgrad": optax.amsgrad(0.1),
    "optax.adabelief": optax.adabelief(0.1),
    "optax.novograd": optax.novograd(0.1),
    "optax.ema": optax.ema(0.9),
    "optax.adan": optax.adan(0.1),
    "optax.ademamix": optax.contrib.ademamix(0.1),
    "optax.muon": optax.contrib.muon(0.1),
}


def test_every_known_class_is_tried():
    kinds = set[str]()
    for inner in INNER.values():
        jax.tree.leaves(inner.init(jnp.ones(2)), is_leaf=lambda x: kinds.add(type(x).__name__))
    assert {name.rpartition(".")[2] for name in storage._FIRST_MOMENTS} <= kinds


@SIGNED
@pytest.mark.parametrize(
    "inner",
    ["momentum", "optax.adam", *slow(*(k for k in INNER if k not in ("momentum", "optax.adam")))],
)
def test_steps_are_near_the_wrapped_ones_and_nothing_else_is_stored(inner, codec):
    tx, inner = both(INNER[inner], codec), INNER[inner]
    with jax.numpy_dtype_promotion("standard"):  # which Optax's own rely on
        found, state = steps(tx)
        exact, inner_state = steps(inner)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        # By the size of the whole: an average of noise is near zero here and there.
        bound = 8 * np.sqrt(NOISE[codec]) * np.linalg.norm(b)
        assert np.linalg.norm(np.asarray(a) - b) <= bound or inner is INNER["optax.lion"]
    moments = first_moments(state)
    assert moments and all(isinstance(x, storage.Stored) for x in moments)
    assert not any(isinstance(x, storage.Stored) for x in storage.second_moments(state))
    plain = storage.decoded(state).inner_state
    chex.assert_trees_all_equal_shapes_and_dtypes(plain, inner_state)
    chex.assert_trees_all_equal_structs(plain, inner_state)


@SIGNED
def test_the_step_is_taken_from_the_buffer_as_it_is_stored(codec):
    tx = both(ours.trace(0.9), codec)
    found, state = steps(tx, 3)
    chex.assert_trees_all_equal(found[-1], storage.decoded(state).inner_state.trace)


@SIGNED
def test_a_clip_within_is_a_clip_outside(codec):
    clip, inner = optax.clip_by_global_norm(0.5), INNER["momentum"]
    found, state = steps(both(ours.chain(clip, inner), codec, storage.uint8()), 3)
    expected, (_, outside) = steps(ours.chain(clip, both(inner, codec, storage.uint8())), 3)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal(state.inner_state[1], outside.inner_state)


@SIGNED
def test_links_that_another_parts_have_random_bits_of_their_own(codec):
    """The same as without it."""
    tx = storage.stored_as(ours.chain(ours.ema(0.9), ours.ema(0.9)), None, codec)
    parted = storage.stored_as(
        ours.chain(ours.ema(0.9), optax.identity(), ours.chain(ours.ema(0.9))), None, codec
    )
    (found, state), (expected, parted_state) = steps(tx, 3), steps(parted, 3)
    first, _, (second,) = parted_state.inner_state
    codes = [storage.decoded(x) for x in (state.inner_state, (first, second))]
    for pair in ((found, expected), codes):
        # A multiplication and a sum may be fused.
        chex.assert_trees_all_close(*pair, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):  # of the same bits it would be
        apart = optax.chain(*(storage.stored_as(ours.ema(0.9), None, codec),) * 2)
        chex.assert_trees_all_close(steps(apart, 3)[0], expected, rtol=1e-6, atol=1e-6)


@SIGNED
@pytest.mark.parametrize(
    "wrapped",
    [
        retuning.retunable,
        dialects.split_complex,
        lambda inner: recording.record(inner, 3),
        lambda inner: ours.chain(retuning.retunable(inner), optax.identity()),
    ],
    ids=["retunable", "split_complex", "record", "in a chain"],
)
def test_in_a_wrapper_of_this_package_codes_stay_codes(wrapped, codec):
    inner = ours.chain(optax.clip_by_global_norm(0.5), INNER["momentum"])
    found, _ = steps(both(wrapped(inner), codec, storage.uint8()), 3)
    expected, _ = steps(both(inner, codec, storage.uint8()), 3)
    chex.assert_trees_all_equal(found, expected)


def averaged(codec, decay, count, start=0.0, target=1.0, shape=(8, 128)):
    """An average that goes from the start to the target, over the exact one, at the last step."""
    tx = both(ours.ema(decay), codec)
    state = tx.init(jnp.zeros(shape))
    cell = codec.encode(jnp.full(shape, start), None)
    ema = state.inner_state.ema
    kept = storage.Stored(*(new if jax.tree.leaves(new) else old
                            for old, new in zip(ema, cell, strict=True)))  # fmt: skip
    state = state._replace(inner_state=state.inner_state._replace(ema=kept))
    g = jnp.full(shape, target)
    run = jax.jit(lambda s: jax.lax.fori_loop(0, count, lambda i, s: tx.update(g, s)[1], s))
    exact = target + (start - target) * decay**count
    return np.asarray(storage.decoded(run(state)).inner_state.ema) / exact


@SIGNED
def test_a_slow_average_arrives_in_the_mean(codec):
    """A decay of 0.999, which changes a value by a hundredth of int8's spacing."""
    for count, target in ((2_000, 1.0), (3_000, 0.0)):
        found = averaged(codec, 0.999, count, start=-1.0, target=target)
        assert abs(found.mean() - 1) < 4 * found.std() / np.sqrt(found.size)
        assert found.std() < 10 * np.sqrt(NOISE[codec] / (1 - 0.999**2))


@pytest.mark.slow
@SIGNED
def test_the_mean_over_a_hundred_thousand_steps_is_exact(codec):
    tx = both(ours.ema(0.999), codec)
    shape = (8, 128)

    def step(carry, i):
        state, total = carry
        g = 1 + jax.random.normal(jax.random.fold_in(jax.random.key(0), i), shape)
        updates, state = tx.update(g, state)
        return (state, total + jnp.where(i < 10_000, 0, updates - 1)), None

    start = (tx.init(jnp.zeros(shape)), jnp.zeros(shape))
    (_, total), _ = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(100_000)))(start)
    mean = float(total.mean()) / 90_000
    # A gradient's noise is 1, and a rounding's moves the sum of what comes later a thousand times.
    variance = (1 + NOISE[codec] * 1000**2) / (90_000 * 1024)
    assert abs(mean) < 4 * np.sqrt(variance)


def test_rounded_to_nearest_a_slow_average_stalls(monkeypatch):
    half = jnp.uint32(1 << 31)
    jax.clear_caches()  # of what was traced with other words
    monkeypatch.setattr(_run, "words", lambda shape, *_: jnp.full(shape, half))
    assert averaged(I8, 0.999, 2_000, start=-1.0).mean() < 0
    jax.clear_caches()


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("momentum", [0.9, 0.99])
@SIGNED
def test_noise_of_a_heavy_ball_is_as_derived(codec, momentum, mean):
    """The share that the docstring of `stored_as` states, of the variance of the distance."""
    shape, count = (64, 128), round(20 / (1 - momentum))
    inner = ours.trace(momentum)
    txs = both(inner, codec), inner

    def step(carry, i):
        states, error = carry
        g = mean + jax.random.normal(jax.random.fold_in(jax.random.key(1), i), shape)
        (a, s), (b, t) = (tx.update(g, s) for tx, s in zip(txs, states, strict=True))
        return ((s, t), error + a - b), None

    start = (tuple(tx.init(jnp.zeros(shape)) for tx in txs), jnp.zeros(shape))
    (_, error), _ = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(count)))(start)
    # The sum of n steps of noise 1 has the variance n / (1−μ)².
    share = float(jnp.var(error)) * (1 - momentum) ** 2 / count
    square = 1 / (1 - momentum**2) + (mean / (1 - momentum)) ** 2  # of the buffer
    # Where all of the buffer is near one number, the noise is that of its place between two codes.
    assert (0.6 if mean == 0 else 0.1) < share / (NOISE[codec] * square) < 1.6
    assert abs(float(error.mean())) < 4 * float(error.std()) / np.sqrt(error.size)


def test_bytes_of_a_parameter():
    params = {"w": jnp.ones((512, 1024))}

    def held(*formats):
        state = storage.stored_as(ours.rmsprop(0.1, momentum=0.9), *formats).init(params)
        return sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim) / params["w"].size

    assert held(storage.uint16(), I16) == 4
    assert held(storage.uint8(), I8) == 2 + 2 / 128 <= 2.05
    assert held(storage.uint16()) == 6 and held(None, I8) == 5 + 1 / 128


@pytest.mark.parametrize("inner", ["momentum", "nesterov", *slow("centered", "laprop", "torch")])
@pytest.mark.parametrize(
    ("formats", "bound"), [((storage.uint16(), I16), 0.01), ((storage.uint8(), I8), 1.25)],
    ids=["16", "8"],
)  # fmt: skip
def test_an_update_needs_no_temporary_memory_and_gives_every_byte_back(inner, formats, bound):
    params = {f"layer {i}": jnp.ones((256, 512)) for i in range(8)}
    size = sum(p.size for p in params.values())
    tx = storage.stored_as(INNER[inner], *formats)
    state = tx.init(params)

    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    program = jax.jit(step, donate_argnums=(0, 1), keep_unused=True)
    program = program.lower(params, state, params).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes <= bound * size
    held = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes == held


@SIGNED
def test_small_leaves_and_embeddings_stay_wide_and_short_rows_have_no_blocks(codec):
    state = storage.stored_as(ours.trace(0.9), None, codec).init(tree())
    found = {
        name: type(_formats.format_of(storage.Stored(*(x[name] for x in state.inner_state.trace))))
        for name in tree()
    }
    assert found == {
        "w": type(codec), "v": type(codec), "short": storage.Int16, "embedding": type(None),
        "b": type(None),
    }  # fmt: skip


def test_a_first_and_a_second_moment_are_rounded_independently():
    tx = both(ours.chain(ours.scale_by_rms(0.5), ours.trace(0.5)), I16, storage.uint16())
    shape, words = (64, 128), []

    class Spy:
        def __call__(self, *args):
            words.append(_formats.words(*args))
            return words[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "words", Spy())
        with jax.disable_jit():
            tx.update(jnp.ones(shape), tx.init(jnp.ones(shape)))
    first, second = (np.asarray(w).ravel() / 2.0**32 for w in words)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(first.size)


@SIGNED
def test_scan_loop_and_vmap_agree(codec):
    tx, shape = both(INNER["momentum"], codec, storage.uint8()), (2, 300)
    gs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, *shape)), jnp.float32)

    def run(gs):
        state, found = tx.init(gs[0]), []
        for g in gs:
            updates, state = tx.update(g, state)
            found.append(updates)
        return jnp.stack(found), state

    def scanned(gs):
        def step(state, g):
            updates, state = tx.update(g, state)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(gs[0]), gs)
        return updates, state

    alone = [jax.jit(run)(g) for g in gs]
    together = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    chex.assert_trees_all_equal(jax.jit(jax.vmap(run))(gs), together)
    chex.assert_trees_all_equal(jax.jit(jax.vmap(scanned))(gs), together)


@pytest.mark.parametrize("codec", [I16, storage.int8(16)], ids=["int16", "int8"])
def test_on_any_mesh_it_is_the_same_to_the_bit(codec, eight_devices):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    second = storage.uint16() if codec == I16 else storage.uint8(16)
    tx, g = both(INNER["momentum"], codec, second), gradients(0, tree())["w"]

    def run(g):
        state = tx.init(g)
        for _ in range(3):
            updates, state = tx.update(g, state)
        return updates, state

    expected = jax.device_get(jax.jit(run)(g))
    found = jax.jit(run, in_shardings=split)(jax.device_put(g, split))
    chex.assert_trees_all_equal(jax.device_get(found), expected)


@SIGNED
def test_a_derivative_through_codes_is_refused_and_others_pass(codec):
    g = jnp.ones((4, 200))

    def loss(rate, momentum, g):
        tx = both(ours.rmsprop(rate, momentum=momentum), codec)
        state = tx.init(g)
        for _ in range(2):
            updates, state = tx.update(g, state)
        return updates.sum()

    def first_step(inner):
        tx = both(inner, codec)
        return tx.update(g, tx.init(g))[0].sum()

    refused = "no derivative passes through the codes of a first moment"
    for argument in (1, 2):
        with pytest.raises(TypeError, match=refused):
            jax.grad(loss, argument)(0.1, 0.9, g)
    # The rate comes before the buffer in TensorFlow's rule, and after it in PyTorch's.
    with pytest.raises(TypeError, match=refused):
        jax.grad(loss)(0.1, 0.9, g) if False else jax.grad(
            lambda rate: (
                both(dialects.tensorflow1(rate, momentum=0.9), codec)
                .update(g, both(dialects.tensorflow1(rate, momentum=0.9), codec).init(g))[0]
                .sum()
            )
        )(0.1)

    def torch(rate):
        tx = both(dialects.torch(rate, momentum=0.9), codec)
        return tx.update(g, tx.init(g))[0].sum()

    np.testing.assert_allclose(jax.grad(torch)(0.1), torch(1.0), rtol=1e-5)


def test_a_checkpoint_continues_and_is_not_read_as_another_format(tmp_path):
    inner = INNER["momentum"]
    tx = both(inner, I8, storage.uint8())
    whole, last = steps(tx, 4)
    _, state = steps(tx, 2)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, tree()))
        for other in (both(inner, I16, storage.uint8()), both(inner, storage.int8(64))):
            try:
                found = checkpointer.restore(tmp_path / "state", other.init(tree()))
            except ValueError:
                continue
            with pytest.raises(TypeError, match="is in none of its formats"):
                other.update(tree(), found)
    found, continued = steps(tx, 2, state=again, first=2)
    chex.assert_trees_all_equal(found, whole[2:])
    chex.assert_trees_all_equal(continued, last)


def test_mistakes_are_named():
    inner = ours.rmsprop(0.1, momentum=0.9)
    for block in (0, 96, True):
        with pytest.raises(ValueError, match="int8: block must be a power of two, got"):
            storage.int8(block)
    with pytest.raises(TypeError, match="codec and first_moments are both None"):
        storage.stored_as(inner, None)
    for codec in ("int8", storage.uint8(), 3):
        with pytest.raises(TypeError, match=r"first_moments must be int16\(\), int8\(\) or"):
            storage.stored_as(inner, storage.uint8(), codec)
    with pytest.raises(TypeError, match=r"codec must be uint16\(\), uint8\(\) or a function, got"):
        storage.stored_as(inner, I8)
    with pytest.raises(TypeError, match=r"first_moments must be a call: storage.int8\(\)"):
        storage.stored_as(inner, None, storage.int8)
    with pytest.raises(TypeError, match=r"first_moments must return int16\(\), int8\(\) or None"):
        storage.stored_as(inner, None, everywhere(storage.uint8())).init(tree())
    for without in (ours.rmsprop(0.1), optax.scale_by_stddev(), optax.adadelta(0.1)):
        with pytest.raises(TypeError, match="has no first moment that is known here, its state"):
            storage.stored_as(without, storage.uint8(), I8).init(tree())
    with pytest.raises(TypeError, match="trace: trace holds codes"):
        inner.update(tree(), both(inner, I8).init(tree()).inner_state)


def test_it_is_known_by_its_call():
    tx = storage.stored_as(ours.trace(0.9), None, storage.int8(64))
    names = {"storage": storage, "trace": ours.trace}
    assert eval(repr(tx), names) == tx != storage.stored_as(ours.trace(0.9), None, I16)
    assert "first_moments=storage.int8(64)" in repr(tx)


@SIGNED
def test_a_buffer_keeps_its_promises_where_a_gradient_is_none(codec):
    """What is not finite is not kept, and the update says so."""
    tx = both(INNER["momentum"], codec)
    g = jnp.ones((2, 128)).at[0, 0].set(np.nan)
    updates, state = jax.jit(tx.update)(g, tx.init(g))
    kept = functools.reduce(np.add, jax.tree.leaves(storage.decoded(state).inner_state[2].trace))
    assert np.isnan(updates[0, 0]) and np.isfinite(kept).all()
    assert np.isfinite(updates[0, 1:]).all()
