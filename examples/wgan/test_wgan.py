"""The Wasserstein GAN: its parts by hand, its optimizer is the recipe, and it learns."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from examples.wgan import wgan
from examples.wgan.__main__ import Options, main
from optax_rmsprop import dialects, recipes

RING, DIGITS = (wgan.TASKS[name]() for name in ("ring", "digits"))
SMALL = RING._replace(hidden=(8,), held_out=RING.held_out[:64])
LINEAR = RING._replace(hidden=(), data=np.float32([[1.0, -2.0]]), bound=0.1)
STEP = 10 * wgan.RATE  # RMSprop's first: g / √(0.01 g²) = ±10


def linear(key=0):
    """A game of linear players, whose gradients are known."""
    return wgan.start(LINEAR, wgan.rmsprop, wgan.RATE, jax.random.key(key))


def test_the_optimizers_are_the_recipe_and_what_differs_from_it():
    assert wgan.rmsprop(wgan.RATE) == recipes.wgan() == wgan.RULES["rmsprop"](5e-5)
    heavy = dialects.torch(lr=1e-3, momentum=0.9)
    assert wgan.RULES["rmsprop-momentum-0.9"](1e-3) == heavy != wgan.rmsprop(1e-3)
    assert wgan.BATCH == 64 and recipes.record("wgan").beside.startswith("batch 64, 5 updates")


def test_the_data_are_as_said_and_none_is_held_out_twice():
    radius = np.linalg.norm(RING.data, axis=1)
    assert radius.std() == pytest.approx(0.02, rel=0.05) and abs(radius.mean() - 1) < 1e-3
    sector = np.round(np.arctan2(*RING.data.T[::-1]) / (np.pi / 4)).astype(int) % 8
    # Five deviations of a count of 10,000 / 8.
    assert np.abs(np.bincount(sector) - 1250).max() < 5 * (1250 * 7 / 8) ** 0.5
    assert DIGITS.data.shape == (1285, 64) and DIGITS.held_out.shape == (512, 64)
    assert DIGITS.data.min() == -1 and DIGITS.data.max() == 1 and DIGITS.data.dtype == np.float32
    for task in (RING, DIGITS):
        assert not {*map(bytes, task.data)} & {*map(bytes, task.held_out)}


def test_the_critic_is_clamped_then_updated_by_the_difference_of_means():
    game = linear()
    weight = jnp.array([[0.3], [-0.05]])
    critic = game.critic._replace(params=[(weight, jnp.array([0.2]))])
    key = jax.random.key(1)
    tx = wgan.rmsprop(wgan.RATE)
    new, log = wgan.learn_critic(LINEAR, tx, critic, game.generator.params, key)
    fake = wgan.generate(LINEAR, game.generator.params, jax.random.split(key)[1]).mean(0)
    apart = LINEAR.data[0] - fake
    clamped = np.array([0.1, -0.05])
    assert float(log.estimate) == pytest.approx(float(apart @ clamped), rel=1e-5)
    np.testing.assert_allclose(new.params[0][0][:, 0], clamped + STEP * np.sign(apart), rtol=1e-5)
    assert float(new.params[0][1][0]) == pytest.approx(0.1)  # The bias has no gradient.
    cosine = np.abs(apart).sum() / (2**0.5 * np.linalg.norm(apart))
    assert float(log.cosine) == pytest.approx(float(cosine), rel=1e-5) and log.uphill == 0


def test_the_generator_goes_to_where_the_critic_that_was_left_unclamped_is_high():
    game, key = linear(), jax.random.key(2)
    critic = [(jnp.array([[0.7], [-0.4]]), jnp.zeros(1))]
    new = wgan.learn_generator(LINEAR, wgan.rmsprop(wgan.RATE), critic, game.generator, key)
    (_, before), (_, after) = game.generator.params[0], new.params[0]
    np.testing.assert_allclose(after - before, [STEP, -STEP], rtol=1e-3)


def test_a_turn_is_the_loop_of_the_authors():
    game = wgan.start(SMALL, optax.sgd, 0.1, jax.random.key(3))
    tx, keys = optax.sgd(0.1), jax.random.split(game.key, 3)
    critic = game.critic
    for i in range(5):
        critic, log = wgan.learn_critic(
            SMALL, tx, critic, game.generator.params, jax.random.fold_in(keys[0], i)
        )
    generator = wgan.learn_generator(SMALL, tx, critic.params, game.generator, keys[1])
    new, mean = jax.jit(functools.partial(wgan.turn, SMALL, optax.sgd))(game, 0.1, 25)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (new.critic, new.generator), (critic, generator))
    assert float(log.cosine) == pytest.approx(1) and float(mean.cosine) == pytest.approx(1)
    # Clamping is the first thing of an update, so the last update may go beyond.
    assert max(float(jnp.abs(p).max()) for p in jax.tree.leaves(new.critic.params)) > SMALL.bound


def test_an_update_against_the_gradient_is_counted():
    game = linear()
    up = optax.scale(0.1)
    log = wgan.learn_critic(
        LINEAR, up, game.critic._replace(opt_state=up.init(0)), game.generator.params, game.key
    )[1]
    assert float(log.cosine) == pytest.approx(-1) and log.uphill == 1


def test_the_critic_learns_more_at_the_start_and_every_500th_step():
    counts = np.asarray(wgan.critic_updates(jnp.arange(1001)))
    assert set(np.flatnonzero(counts == 100)) == {*range(25), 500, 1000}
    assert (np.delete(counts, [*range(25), 500, 1000]) == 5).all()


def test_the_distance_is_exact():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100, 1))
    expected = stats.wasserstein_distance(a[:, 0], b[:, 0])
    assert wgan.distance(a, b) == pytest.approx(expected)
    rows = rng.normal(size=(50, 7))
    assert wgan.distance(rows, rng.permutation(rows) + 0.5) == pytest.approx(0.5 * 7**0.5)
    assert wgan.distance(rows, rng.permutation(rows)) == 0


@pytest.mark.slow
def test_trainings_of_one_program_are_those_of_their_own():
    def last(rates, seeds):
        return [*wgan.train(SMALL, wgan.rmsprop, rates, seeds, 30, 2)][-1]

    together, alone = last([1e-3, 1e-4, 1e-3], [0, 1, 1]), last([1e-3], [1])
    # A product of matrices may be summed in another order.
    np.testing.assert_allclose(together[0][2], alone[0][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(together[2][2], alone[2][0], rtol=1e-3)
    assert len({float(d) for d in together[2]}) == 3


@pytest.mark.api
def test_the_generator_learns():
    task = SMALL._replace(hidden=(32, 32))
    parts = [*wgan.train(task, wgan.rmsprop, [5e-4] * 2, [0, 1], 300, 3)]
    first, *_, last = (distances for _, _, distances in parts)
    assert (last < 0.55).all() and (last < 0.8 * first).all()
    assert all(np.isfinite(log.estimate).all() and (log.cosine > 0).all() for _, log, _ in parts)


def test_steps_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="steps must be a multiple of 3, the parts, got 10"):
        next(wgan.train(SMALL, wgan.rmsprop, [1e-3], [0], 10, 3))


@pytest.mark.parametrize("name", ["ring", pytest.param("digits", marks=pytest.mark.slow)])
def test_the_program_prints_a_line_for_each_tenth_and_draws(name, monkeypatch, capsys, tmp_path):
    task = wgan.TASKS[name]()
    small = task._replace(hidden=(8,), held_out=task.held_out[:64])
    monkeypatch.setitem(wgan.TASKS, name, lambda: small)
    assert main(Options(name, "adam-0.5", seeds=2, steps=40, workdir=tmp_path / "new")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:10]] == [str(4 * (i + 1)) for i in range(10)]
    assert all("estimate" in line and "±" in line for line in lines[:10])
    (picture,) = (tmp_path / "new").iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ["options", "message"],
    [
        ({"steps": 0}, "--steps must be a multiple of 40, got 0"),
        ({"steps": 1001}, "--steps must be a multiple of 40, got 1001"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"learning_rate": -1.0}, "--learning-rate must be greater than 0 and finite, got -1.0"),
        ({"bound": float("nan")}, "--bound must be greater than 0 and finite, got nan"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(options, message, capsys):
    assert main(Options(**options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_starts():
    root = Path(wgan.__file__).parents[2]
    run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True)
    shown = run([sys.executable, "-m", "examples.wgan", "--help"], check=True)
    assert "--learning-rate" in shown.stdout and "adam-0.9" in shown.stdout
    refused = run([sys.executable, "-m", "examples.wgan", "--task", "faces"])
    assert refused.returncode == 2 and "faces" in refused.stderr
