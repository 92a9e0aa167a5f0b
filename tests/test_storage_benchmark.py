"""What `benchmarks.storage` and `benchmarks.end_to_end` compare is what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rmsprop as ours
from benchmarks import end_to_end, quantized, storage


@pytest.mark.parametrize("name", quantized.DESIGNS)
def test_a_design_has_as_many_numbers_as_codes(name):
    design = quantized.DESIGNS[name]
    for rounding in (design.second, design.first):
        if isinstance(rounding, quantized.Blocks):
            numbers = rounding.numbers
            assert len(numbers) == 2**rounding.bits and (np.diff(numbers) > 0).all()
            assert numbers[-1] == 1 and numbers[0] > -1
    assert design.bytes_a_parameter == {
        "torchao's 8 bits": 2 * (1 + 4 / 256), "torchao's 4 bits": 2 * (0.5 + 4 / 128),
        "bitsandbytes": 1 + 4 / 256, "MLX's bfloat16": 2, "Optax's bfloat16": 4,
    }[name]  # fmt: skip


def test_the_dynamic_tree_has_its_known_numbers():
    signed, unsigned = quantized.dynamic(8, 7, True), quantized.dynamic(8, 7, False)
    # The last decade has 64 parts, or 128: middles from 0.1 + 0.45/64 on.
    assert (signed > 0.1).sum() == 65 and (unsigned > 0.1).sum() == 129
    np.testing.assert_allclose(signed[signed > 0.1][0], 0.1 + 0.45 / 64, rtol=1e-6)
    np.testing.assert_allclose(signed[signed > 0][0], 0.55e-6, rtol=1e-6)
    assert 0 in signed and 0 in unsigned and unsigned.min() == 0


def test_a_block_is_rounded_to_the_nearest_number():
    rounding = quantized.DESIGNS["torchao's 8 bits"].first
    x = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    got = np.asarray(rounding(jnp.asarray(x)))
    largest = np.abs(x).max(1, keepdims=True)
    apart = np.abs(x[..., None] / largest[..., None] - rounding.numbers)
    np.testing.assert_allclose(np.abs(x - got) / largest, apart.min(-1), atol=1e-6)
    small = jnp.asarray(x[:1])
    assert rounding(small) is small
    x = jnp.asarray(x)
    np.testing.assert_array_equal(quantized.Bfloat16()(x), x.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["torchao's 4 bits", "Optax's bfloat16"])
def test_moments_are_rounded_after_the_step(name):
    inner = ours.rmsprop(0.1, momentum=0.9)
    design = quantized.DESIGNS[name]
    tx, g = quantized.stored_as(inner, design), jax.random.normal(jax.random.key(0), (64, 128))
    updates, state = tx.update(g, tx.init(g))
    expected, exact = inner.update(g, inner.init(g))
    np.testing.assert_array_equal(updates, expected)
    for got, unrounded, rounding in (
        (state[0].nu, exact[0].nu, design.second), (state[2].trace, exact[2].trace, design.first)
    ):  # fmt: skip
        np.testing.assert_array_equal(got, rounding(unrounded))
        assert not np.array_equal(got, unrounded)


def test_formats_hold_what_their_names_say():
    held = {name: round(storage.held(name), 3) for name in storage.FORMATS}
    assert held == {
        "float32": 4, "uint16": 2, "uint8": 1.008, "bitsandbytes": 1.016, "float32, momentum": 8,
        "uint16, momentum in float32": 6, "uint8, momentum in float32": 5.008,
        "uint16, int16": 4, "uint8, int16": 3.008, "uint8, int8": 2.016,
        "torchao's 8 bits": 2.031, "torchao's 4 bits": 1.062, "MLX's bfloat16": 2,
        "Optax's bfloat16": 4,
    }  # fmt: skip


@pytest.mark.slow
def test_tables_of_small_trials_have_every_format():
    rows = [line.split(" | ") for line in storage.errors(20) if line.startswith("| ")][1:]
    errors = {row[0].removeprefix("| "): float(row[2].rstrip("%")) for row in rows}
    assert errors.keys() == storage.FORMATS.keys() - set(storage.REFERENCE.values())
    assert 0 < errors["uint16"] < errors["uint8"] < 10 and errors["uint16, int16"] < 1
    timed = [line for line in storage.memory_and_time(3, side=128) if line.startswith("| ")][1:]
    assert len(timed) == sum(each.ours for each in storage.FORMATS.values())


@pytest.mark.slow
def test_every_optimizer_is_timed_in_turn():
    example = end_to_end.recurrent(alphabet=4, rows=2, length=3)
    times = end_to_end.measured(example, repeats=3)
    assert times.keys() == end_to_end.OPTIMIZERS.keys()
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in times.values())
    rows = end_to_end.table(example, times)[2:]
    assert len(rows) == len(times) and "| 1.000 |" in rows[0]
