"""What `benchmarks.storage`, `rivals` and `end_to_end` compare is what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rmsprop as ours
from benchmarks import end_to_end, quantized, rivals, storage


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


@pytest.mark.slow
def test_formats_of_others_stand_beside_ours_in_each_algorithm():
    with jax.numpy_dtype_promotion("standard"):  # which Optax's Adam needs
        lines = rivals.measured([*rivals.in_jax()], repeats=2, steps=20, side=256)[2:]
    rows = {
        tuple(cells[:3]): cells[3:]
        for cells in ([*map(str.strip, x[1:-1].split("|"))] for x in lines)
    }
    held = {name[2]: float(cells[0]) for name, cells in rows.items() if cells[0]}
    assert held == {
        "float32": 8, "uint16": 2, "uint8": 1.008, "uint16, int16": 4, "uint8, int8": 2.016
    }  # fmt: skip
    errors = {name: float(cells[-1].rstrip("%")) for name, cells in rows.items()}
    for algorithm, exact, *formats, theirs in (
        ("RMSprop", "float32", "uint16", "uint8", "bitsandbytes"),
        ("Adam", "float32", "uint16, int16", "uint8, int8", "torchao's 8 bits"),
    ):
        of = {name: error for (kind, _, name), error in errors.items() if kind == algorithm}
        assert of[exact] == 0 < of[formats[0]] < of[formats[1]] < 10 < of[theirs]
        assert all(rows[algorithm, "computed here", theirs][i] == "" for i in range(3))


@pytest.mark.parametrize("algorithm", ["RMSprop", "Adam"])
@pytest.mark.slow
def test_a_librarys_float32_goes_as_far_as_ours(algorithm):
    torch = pytest.importorskip("torch")
    (exact, *_) = (e for e in rivals.in_jax() if (e.algorithm, e.format) == (algorithm, "float32"))
    (theirs,) = (e for e in rivals.in_torch() if e.algorithm == algorithm)
    if algorithm == "RMSprop":  # without a compiler
        theirs = theirs._replace(begin=rivals.of_torch(torch.optim.RMSprop, **rivals.RMSPROP))
    with jax.numpy_dtype_promotion("standard"):
        expected, got = rivals.gone(exact, 20), rivals.gone(theirs, 20)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 1e-3
