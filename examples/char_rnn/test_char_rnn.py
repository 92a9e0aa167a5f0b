"""The character model: the network is an LSTM, the update char-rnn's, and a run goes on."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from examples.char_rnn import char_rnn
from examples.char_rnn import text as texts
from optax_rmsprop import recipes

TEXT = "The cat sat on the mat, and the dog sat by the door. " * 40
SMALL = char_rnn.Options(epochs=2, units=8, batch=4, length=10, write=20)


@pytest.fixture
def options(tmp_path):
    return dataclasses.replace(SMALL, workdir=tmp_path / "run")


def last(options, text=TEXT):
    *_, found = char_rnn.train(options, text)
    return found


@pytest.mark.api
def test_the_documentation_is_long_and_has_every_paragraph_once():
    text = texts.documentation()
    assert 300_000 < len(text) < 1_000_000
    paragraphs = text.split("\n\n")
    assert len({*paragraphs}) == len(paragraphs)
    learnt, held_out = texts.split(text)
    assert learnt + held_out == text and len(held_out) == pytest.approx(len(text) / 20, abs=1)


def test_without_documentation_a_file_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="give a file as --text"):
        texts.read(None)


def test_streams_go_on_from_update_to_update_and_targets_follow():
    inputs, targets = texts.streams(np.arange(32), rows=3, length=5)
    assert inputs.shape == targets.shape == (2, 5, 3)
    np.testing.assert_array_equal(inputs.transpose(2, 0, 1).reshape(3, 10)[1], np.arange(10, 20))
    np.testing.assert_array_equal(targets, inputs + 1)
    with pytest.raises(ValueError, match=r"3 rows of 11 characters and one more.* which has 33"):
        texts.streams(np.arange(33), rows=3, length=11)


@pytest.mark.api
def test_the_layer_is_flaxs():
    layer = char_rnn.LSTM(5, 7, nnx.Rngs(0))
    flax = nnx.LSTMCell(5, 7, rngs=nnx.Rngs(1))
    # Ours has the gates in char-rnn's order, in one matrix, and the bias at the input.
    for i, gate in enumerate(("i", "f", "o", "g")):
        part = slice(7 * i, 7 * (i + 1))
        getattr(flax, "if_" if gate == "f" else f"i{gate}").kernel[...] = layer.input.kernel[
            :, part
        ]
        getattr(flax, f"h{gate}").kernel[...] = layer.recurrent.kernel[:, part]
        getattr(flax, f"h{gate}").bias[...] = layer.input.bias[part]
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(6, 3, 5)), jnp.float32)
    memory = tuple(jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.float32))
    outputs, after = layer(xs, memory)
    for x, output in zip(xs, outputs, strict=True):
        memory, expected = flax(memory, x)
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(after[0], memory[0], rtol=0, atol=1e-6)


def test_weights_begin_as_those_of_char_rnn():
    layer = char_rnn.LSTM(50, 40, nnx.Rngs(0))
    kernel, bias = layer.input.kernel[...], layer.input.bias[...]
    assert 0.079 < float(jnp.abs(kernel).max()) <= 0.08
    assert (bias[40:80] == 1).all()
    assert (jnp.abs(jnp.delete(bias, slice(40, 80))) <= 0.08).all()


def network(layers=2):
    return char_rnn.Network(5, 8, layers, nnx.Rngs(0))


def test_two_parts_are_read_as_one_text():
    model, characters = network(), np.random.default_rng(0).integers(5, size=(10, 3))
    whole, _ = model(characters, model.nothing(3))
    first, memory = model(characters[:6], model.nothing(3))
    second, _ = model(characters[6:], memory)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, rtol=0, atol=1e-6)


def test_the_loss_is_a_sum_over_time_and_bits_are_a_mean():
    graphdef, params = nnx.split(network())
    params = jax.tree.map(jnp.zeros_like, nnx.to_pure_dict(params))  # all characters equally likely
    characters = np.zeros((10, 3), int)
    memory = network().nothing(3)
    value, _ = char_rnn.loss(graphdef, params, memory, characters, characters)
    assert float(value) == pytest.approx(10 * math.log(5))
    bits = char_rnn.bits_per_character(graphdef, params, characters, characters)
    assert float(bits) == pytest.approx(math.log2(5))


def test_the_first_update_is_the_recipes():
    """From an average of zero it is ±η/√(1 - 0.95), as clipping keeps the signs."""
    graphdef, params = nnx.split(network())
    params, tx = nnx.to_pure_dict(params), recipes.char_rnn(100)
    memory = network().nothing(3)
    characters = np.random.default_rng(0).integers(5, size=(10, 3))
    state = char_rnn.State(params, tx.init(params), memory)
    after, _ = char_rnn.update(graphdef, tx, state, characters, characters)
    step = np.abs(np.asarray(after.params["head"]["bias"] - params["head"]["bias"]))
    np.testing.assert_allclose(step, 2e-3 / 0.05**0.5, rtol=1e-3)


@pytest.mark.api
@pytest.mark.parametrize("optimizer", char_rnn.OPTIMIZERS)
def test_it_learns_a_sentence(options, optimizer):
    options = dataclasses.replace(options, epochs=6, units=32, optimizer=optimizer, batch=2)
    *_, log = last(options)
    assert [row.held_out for row in log] == sorted((row.held_out for row in log), reverse=True)
    assert log[0].held_out > 3 > 1.5 > log[-1].held_out


def test_what_is_written_has_the_probabilities_of_the_network():
    graphdef, params = nnx.split(network(layers=1))
    params = jax.tree.map(lambda p: 10 * p, nnx.to_pure_dict(params))
    prompts = jnp.zeros((3, 20_000), int)
    found = char_rnn.sample(graphdef, params, jax.random.key(0), prompts, 2)
    model = nnx.merge(graphdef, params)
    logits, _ = model(prompts[:, :1], model.nothing(1))
    expected = np.asarray(jax.nn.softmax(logits[-1, 0]))
    share = np.bincount(found[0], minlength=5) / 20_000
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(share, expected, rtol=0, atol=4 * 0.5 / 20_000**0.5)
    # What was written is read: the second character follows the first.
    for first in range(5):
        logits, _ = model(jnp.array([[0], [0], [0], [first]]), model.nothing(1))
        seconds = np.asarray(found[1])[np.asarray(found[0]) == first]
        share = np.bincount(seconds, minlength=5) / len(seconds)
        bound = 4 * 0.5 / len(seconds) ** 0.5
        np.testing.assert_allclose(share, jax.nn.softmax(logits[-1, 0]), rtol=0, atol=bound)


@pytest.mark.api
def test_a_run_goes_on_bit_for_bit(options, tmp_path):
    assert len(last(dataclasses.replace(options, epochs=1))[-1]) == 1
    went_on = [*char_rnn.train(options, TEXT)]
    assert len(went_on) == 2  # what was there, and an epoch more
    straight = last(dataclasses.replace(options, workdir=tmp_path / "straight"))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), went_on[-1][1], straight[1])
    assert all(jax.tree.leaves(same)) and went_on[-1][2] == straight[2]
    # All was there: nothing is trained again.
    assert len([*char_rnn.train(options, TEXT)]) == 1


@pytest.mark.api
def test_another_run_is_not_written_over(options):
    last(dataclasses.replace(options, epochs=1))
    with pytest.raises(ValueError, match=r"holds another run \(units was 8 and is now 9"):
        last(dataclasses.replace(options, units=9))
    with pytest.raises(ValueError, match=r"holds another run \(text was"):
        last(options, TEXT.upper())


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, options):
    """The process is killed in some epoch after the first; what it had is not lost."""
    path, root = tmp_path / "text.txt", Path(char_rnn.__file__).parents[2]
    path.write_text(TEXT)
    command = [sys.executable, "-m", "examples.char_rnn", "--text", str(path), "--units", "8"]
    command += ["--batch", "4", "--length", "10", "--workdir", str(options.workdir)]
    with subprocess.Popen(
        [*command, "--epochs", "1000"], cwd=root, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and "1/1000" in run.stdout.readline()
        time.sleep(0.5)
        os.kill(run.pid, signal.SIGKILL)
    done = len(next(char_rnn.train(dataclasses.replace(options, epochs=1), TEXT))[-1])
    assert 1 <= done < 1000
    more = dataclasses.replace(options, epochs=done + 1)
    straight = last(dataclasses.replace(more, workdir=tmp_path / "straight"))
    assert last(more)[-1] == straight[-1]


def test_the_program_prints_an_epoch_a_line_and_writes(options, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    assert char_rnn.main(dataclasses.replace(options, text=path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["1/2", "2/2"]
    assert "held out" in lines[0] and lines[3].startswith("The ") and len(lines[3]) == 24


@pytest.mark.parametrize(
    ["changed", "message"],
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"units": 0}, "--units must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"prompt": ""}, "--prompt must not be empty"),
        ({"prompt": "Ωμέγα"}, "the model's text has no 'Ωέαγμ'"),
        ({"text": Path("missing.txt")}, "No such file"),
        ({"length": 1000}, "4 rows of 1000 characters and one more are needed"),
        ({"learning_rate": -1.0}, "learning_rate must be in (0, inf), got -1.0"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(options, changed, message, capsys, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    assert char_rnn.main(dataclasses.replace(options, **({"text": path} | changed))) == 2
    assert message in capsys.readouterr().err


def test_a_file_in_another_encoding_is_refused(options, tmp_path, capsys):
    path = tmp_path / "latin.txt"
    path.write_bytes("straße".encode("latin-1"))
    assert char_rnn.main(dataclasses.replace(options, text=path)) == 2
    assert "--text must be a file in UTF-8, got" in capsys.readouterr().err


def test_adam_has_the_schedule_and_the_clipping_of_the_recipe():
    record = recipes.record("char_rnn", steps_per_epoch=10)
    tx = char_rnn.OPTIMIZERS["adam"](record)
    grads = jnp.array([100.0, 5.0])
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates, -2e-3, rtol=1e-5)
    _, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(optax.tree.get(state, "mu"), 0.5, rtol=1e-6)
