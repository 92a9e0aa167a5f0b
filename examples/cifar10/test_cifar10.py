"""Training on made-up data: the step, the networks, the augmentation, what a run leaves."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import matplotlib.colors
import matplotlib.figure
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import optax_rmsprop
from examples.cifar10 import (
    augment,
    configs,
    data,
    devices,
    fast_cpu,
    layers,
    model,
    optimizer,
    report,
    train,
)
from examples.cifar10.configs import Network, Optimization, Options, Recipe
from examples.cifar10.conftest import SMALL, train_small
from optax_rmsprop import storage

pytestmark = pytest.mark.api


def test_loss_falls_and_files_are_left(finished):
    rows = report.read_metrics(finished)
    steps = [row for row in rows if row["kind"] == "train"]
    assert steps[-1]["loss"] < 0.95 * steps[0]["loss"]  # smoothed labels keep it above 1.6
    result = rows[-1]
    assert result["kind"] == "result" and result["accuracy"] > 0.5
    assert all(row["data"] == "synthetic" for row in rows)
    assert json.loads((finished / "config.json").read_text())["epochs"] == 2
    for name in ("curves", "confusion", "worst"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_unverified_files_are_named_in_the_caption_not_in_the_title(
    finished, tmp_path, monkeypatch
):
    figures = []
    figure_class = matplotlib.figure.Figure
    monkeypatch.setattr(figure_class, "savefig", lambda figure, *_, **__: figures.append(figure))
    made_up = dataclasses.replace(data.synthetic(), unverified=("test_batch.bin",))
    logits = np.zeros((len(made_up.test_labels), 10))
    report.curves(tmp_path / "curves.png", report.read_metrics(finished), made_up)
    report.confusion(tmp_path / "confusion.png", logits, made_up)
    report.worst(tmp_path / "worst.png", logits, made_up)
    assert len(figures) == 3
    for figure in figures:
        assert figure.get_supxlabel() == made_up.label
        titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
        assert not any(made_up.label in title for title in titles)


def test_sparkline_goes_from_empty_to_full():
    assert report.sparkline([0.0, 0.5, 1.0]) == "▁▅█"


def some_steps(tx, recipe, count=2):
    """Return a training step, where it starts, and two batches."""
    made_up = data.synthetic(2 * recipe.batch_size, 1)
    layout = devices.layout(Options(recipe))
    graphdef, carry = train.create(recipe, made_up, tx, layout)
    rate = optax.constant_schedule(0.1)  # to be shown; tx has its own
    step = train.make_step(graphdef, tx, rate, recipe, layout, total_steps=10)
    pairs = made_up.train_images, made_up.train_labels
    images, labels = (a.reshape(2, recipe.batch_size, *a.shape[1:])[:count] for a in pairs)
    keys = jax.random.split(jax.random.key(0), count)
    batch = train.Batch(jnp.asarray(images), jnp.asarray(labels), keys, jnp.arange(count))
    return step, carry, batch


@pytest.mark.slow
def test_rmsprop_with_a_large_eps_is_sgd():
    root, momentum = 1e6, {"momentum": 0.85, "nesterov": True}
    ours = optax_rmsprop.rmsprop(0.1 * root, eps=root**2, **momentum)
    recipe = dataclasses.replace(SMALL, batch_size=16)
    params = []
    for tx in (ours, optax.sgd(0.1, **momentum)):
        step, carry, batches = some_steps(tx, recipe)
        params.append(jax.jit(functools.partial(lax.scan, step))(carry, batches)[0].params)
    chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "side", "size", "padding"),
    [
        (8, 7, 3, "SAME"),
        pytest.param(5, 3, 3, "VALID", marks=pytest.mark.slow),
        pytest.param(6, 8, 5, "VALID", marks=pytest.mark.slow),
        pytest.param(6, 6, 5, "SAME", marks=pytest.mark.slow),
    ],
)
def test_conv_has_the_automatic_gradient(batch, side, size, padding):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 5))
    y, gradient = jax.vjp(lambda x, k: fast_cpu._conv(x, k, padding), x, kernel)
    y_auto, gradient_auto = jax.vjp(lambda x, k: layers.convolve(x, k, padding), x, kernel)
    dy = jax.random.normal(keys[2], y.shape)
    chex.assert_trees_all_equal(y, y_auto)
    chex.assert_trees_all_close(gradient(dy), gradient_auto(dy), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "side", [7, *(pytest.param(side, marks=pytest.mark.slow) for side in (28, 12, 6))]
)
def test_max_pool3_is_the_pool_of_the_library(side):
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, side, side, 3)))
    expected = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
    chex.assert_trees_all_equal(layers.max_pool3(x), expected)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        # Each without the frozen whitening, which has 288 numbers.
        (Network(), 146_136 - 24),
        (Network(widths=(64, 256, 256), whitening_bias_epochs=3), 1_971_352),
        (Network(widths=(128, 384, 384), whitening_bias_epochs=3), 4_604_440),
        (Network(widths=(128, 384, 512), depth=3, whitening_bias_epochs=3), 9_915_416),
        (Network("keras"), 1_250_858),
        (Network("deepobs"), 895_210),
    ],
)
def test_network_has_its_published_size(network, parameters):
    images = data.synthetic(20, 1).train_images
    abstract = nnx.eval_shape(lambda: model.create(network, images, 10, jnp.float32, nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(abstract, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["keras-cnn", "crowded-valley"])
def test_other_networks_take_a_step(preset):
    recipe = dataclasses.replace(configs.PRESETS[preset], batch_size=4)
    step, carry, batches = some_steps(optax_rmsprop.rmsprop(1e-3), recipe, count=1)
    before = jax.tree.map(np.asarray, carry.params)
    carry, logs = jax.jit(step)(carry, jax.tree.map(lambda a: a[0], batches))
    # The cross-entropy of ten equal classes, and half of 0.002 times the sum of squares: 1.26.
    expected = np.log(10) + (1.26 if preset == "crowded-valley" else 0)
    np.testing.assert_allclose(logs.loss, expected, atol=0.35)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), carry.params, before)
    assert all(jax.tree.leaves(moved))


def test_loss_of_deepobs_has_its_penalty():
    recipe = configs.PRESETS["crowded-valley"]
    images = data.synthetic(20, 1).train_images
    network = model.create(recipe.network, images, 10, jnp.float32, nnx.Rngs(0))
    kernels = [p for p in jax.tree.leaves(nnx.state(network, nnx.Param)) if p.ndim > 1]
    penalty = recipe.optimization.l2 / 2 * sum(float((p**2).sum()) for p in kernels)
    np.testing.assert_allclose(penalty, 3.5976 - np.log(10), rtol=0.05)  # the published logs'


def test_lookahead_is_the_recursion_of_airbench():
    rng = np.random.default_rng(0)
    total, slow = 12, np.zeros(3, np.float32)
    average, fast = {"params": {"w": slow}, "rest": {}}, slow
    expected_average, expected = slow, slow
    for count in range(total):
        step = rng.normal(size=3).astype(np.float32)
        params, _, average = train.lookahead(
            {"w": jnp.asarray(fast + step)}, {}, average, jnp.int32(count), total
        )
        fast = np.asarray(params["w"])
        expected = expected + step
        if (count + 1) % 5 == 0:
            keep = 0.95**5 * (count / total) ** 3
            expected = expected_average = keep * expected_average + (1 - keep) * expected
        if count + 1 == total:
            expected = expected_average
        np.testing.assert_allclose(fast, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "momentum", "codes"),
    [("float32", "float32", (None, None)), ("uint16", "int16", ("e8m8", "se8m7")),
     ("uint8", "float32", ("e5m3", None)), ("uint8", "int8", ("e5m3", "se4m3")),
     ("float32", "int8", (None, "se4m3"))],
)  # fmt: skip
def test_storage_is_that_of_the_moments(name, momentum, codes):
    optimization = Optimization(storage=name, momentum_storage=momentum)
    tx, _ = optimizer.optimizer(Recipe(optimization=optimization, epochs=1), total_steps=4)
    state = tx.init({"kernel": jnp.ones((64, 64))})
    for field, code in zip(("nu", "trace"), codes, strict=True):
        moment = optax.tree.get(state, field)
        assert isinstance(moment, storage.Stored) == (code is not None)
        found = getattr(moment, code) if code else moment
        assert found["kernel"].shape == (64, 64)


def test_whitening_bias_moves_in_its_first_epochs_only():
    network = Network(widths=(24, 24, 24), whitening_bias_epochs=1)
    recipe = dataclasses.replace(SMALL, network=network)
    tx, _ = optimizer.optimizer(recipe, total_steps=4)
    params = {"whitening_bias": jnp.zeros(2), "kernel": jnp.zeros((1, 1, 2, 2))}
    state, moves = tx.init(params), []
    for _ in range(4):
        update, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        moves.append(bool(update["whitening_bias"].any()))
        assert update["kernel"].all()
    assert moves == [True, True, False, False]


def test_whitened_patches_have_unit_variance_and_no_correlation():
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    images = ((images.astype(int) + np.roll(images, 1, axis=2)) // 2).astype(np.uint8)
    mean, std, kernel = model.whitening(images, regularizer=0)
    x = (images / 255 - mean) / std
    y = layers.convolve(jnp.float32(x), jnp.float32(kernel), "VALID").reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12], -y[:, 12:], atol=1e-5)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=1e-3)


def test_translate_is_a_crop_of_the_reflected_image_then_a_flip():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    rows, columns, flip = np.array([-2, 0, 1, 2]), np.array([2, 0, -1, 1]), np.arange(4) % 2 == 1
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    crops = [
        p[2 + i : 10 + i, 2 + j : 10 + j] for p, i, j in zip(padded, rows, columns, strict=True)
    ]
    want = [crop[:, ::-1] if f else crop for crop, f in zip(crops, flip, strict=True)]
    got = augment.translate(jnp.asarray(images), jnp.asarray(rows), jnp.asarray(columns), flip)
    np.testing.assert_array_equal(got, np.stack(want))


def test_every_image_is_seen_both_ways_in_two_epochs():
    even, odd, next_even = (augment.alternating_flip(jax.random.key(0), 100, e) for e in range(3))
    np.testing.assert_array_equal(even, ~odd)
    np.testing.assert_array_equal(even, next_even)
    assert 30 < even.sum() < 70


def test_cutout_blanks_one_square():
    images = jnp.zeros((20, 32, 32, 3), jnp.uint8)
    blank = np.asarray(augment.cut_out(jax.random.key(0), images, 12))[..., 0] == 128
    assert (blank.sum((1, 2)) == 144).all()
    assert (blank.any(1).sum(1) == 12).all() and (blank.any(2).sum(1) == 12).all()
    assert len({b.tobytes() for b in blank}) > 10
    chex.assert_trees_all_equal(augment.cut_out(jax.random.key(0), images, 0), images)


def test_keras_shifts_by_fractions_and_repeats_the_edge():
    """A ramp stays a ramp, moved by up to a tenth of the side and flat at the end it left."""
    ramp = jnp.broadcast_to(jnp.arange(32.0)[:, None], (50, 32, 32))[..., None].repeat(3, -1)
    for images, axis in ((ramp, 1), (ramp.swapaxes(1, 2), 2)):
        flip = jnp.zeros(50, bool)
        got = np.asarray(augment.keras(jax.random.key(0), images, flip))
        line = got.mean(3).mean(3 - axis)
        shift = line[:, 16] - 16
        assert 2 < np.abs(shift).max() <= 3.2 and (shift % 1 > 0.01).any()
        expected = np.clip(np.arange(32) + shift[:, None], 0, 31)
        np.testing.assert_allclose(line, expected, atol=1e-4)
    mirrored = augment.keras(jax.random.key(0), images, ~flip)
    assert float(jnp.diff(mirrored[0, 16, :, 0]).max()) <= 0


def test_saturation_is_that_of_the_colour_space():
    pixels = np.random.default_rng(0).uniform(0, 1, (50, 1, 1, 3))
    for factor in (0.5, 1.5):
        hsv = matplotlib.colors.rgb_to_hsv(pixels)
        hsv[..., 1] = np.minimum(hsv[..., 1] * factor, 1)
        expected = matplotlib.colors.hsv_to_rgb(hsv)
        got = augment.saturate(jnp.asarray(pixels), factor)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_deepobs_crops_and_keeps_the_mean_of_a_grey_image():
    grey = jnp.full((20, 32, 32, 3), 100, jnp.uint8)
    got = np.asarray(augment.deepobs(jax.random.key(0), grey, jnp.arange(20) % 2 == 0))
    # Where the crop lies inside, contrast finds nothing to change; zeros come in at the edge.
    inside = [image for image in got if np.ptp(image) < 1e-3]
    assert all(np.allclose(image, 100) for image in inside) and len(inside) < 20
    standard = np.asarray(model.standardize(jnp.asarray(got[:1] + np.arange(32)[:, None, None])))
    np.testing.assert_allclose([standard.mean(), standard.std()], [0, 1], atol=1e-4)  # of 100


@pytest.mark.slow
def test_progressive_resizing_trains(tmp_path):
    sizes = configs.Augmentation(image_sizes=(16, 32))
    result = train_small(tmp_path, dataclasses.replace(SMALL, augmentation=sizes))
    assert result["accuracy"] > 0.3
