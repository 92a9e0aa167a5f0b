"""Preference optimization: the loss is the paper's, the memory is counted, and models learn."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from examples.char_rnn import char_rnn
from examples.char_rnn.text import encode
from examples.dpo import __main__ as program
from examples.dpo import dpo, report
from optax_rmsprop import recipes, storage

TEXT = "The cat sat on the MAT, and 100 dogs sat by the DOOR (or not). " * 60


@pytest.fixture(scope="module")
def model():
    """A network that knows nothing, with an alphabet of the text."""
    alphabet = "".join(sorted({*TEXT}))
    graphdef, params = nnx.split(char_rnn.Network(len(alphabet), 16, 1, nnx.Rngs(0)))
    characters = jnp.asarray(encode(TEXT, alphabet))
    return dpo.Model(graphdef, nnx.to_pure_dict(params), alphabet, characters, characters[:500])


@pytest.fixture(scope="module")
def pairs(model):
    return dpo.draw(model, jax.random.key(0), model.learnt, 64)


def moved(model, key=1):
    """Other parameters."""
    leaves, tree = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    other = [p + jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    return tree.unflatten(other)


def test_a_pair_begins_alike_and_the_one_with_more_lower_case_letters_is_chosen(model, pairs):
    assert pairs.chosen.shape == pairs.rejected.shape == (dpo.PROMPT + dpo.CONTINUATION, 64)
    np.testing.assert_array_equal(pairs.chosen[: dpo.PROMPT], pairs.rejected[: dpo.PROMPT])
    prompt = "".join(model.alphabet[place] for place in pairs.chosen[: dpo.PROMPT, 0])
    assert prompt in TEXT
    for chosen, rejected in zip(pairs.chosen.T, pairs.rejected.T, strict=True):
        more, fewer = (
            sum(model.alphabet[place].islower() for place in characters[dpo.PROMPT :])
            for characters in (chosen, rejected)
        )
        assert more > fewer


def test_the_loss_is_the_papers(model, pairs):
    """In float64: log-probabilities character by character, each read from a network of its own."""
    params, network = moved(model), functools.partial(nnx.merge, model.graphdef)

    def log_probability(params, characters):
        logits, _ = network(params)(characters[:-1, None], network(params).nothing(1))
        logits = np.asarray(logits[:, 0], np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return sum(logits[i - 1, characters[i]] for i in range(dpo.PROMPT, len(characters)))

    losses = []
    for chosen, rejected in zip(pairs.chosen.T[:4], pairs.rejected.T[:4], strict=True):
        chosen_ratio, rejected_ratio = (
            log_probability(params, x) - log_probability(model.params, x)
            for x in (chosen, rejected)
        )
        losses.append(math.log1p(math.exp(-0.1 * (chosen_ratio - rejected_ratio))))
    few = jax.tree.map(lambda x: x[..., :4], pairs)
    assert float(dpo.loss(model.graphdef, params, few)) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(dpo.loss(model.graphdef, model.params, few)) == pytest.approx(math.log(2))


def test_the_rmsprop_is_the_recipe_with_another_rate():
    rules = dpo.rules(5e-7)
    assert rules["rmsprop"].tx == recipes.dpo()
    assert rules["uint8"].tx == storage.stored_as(recipes.dpo(), storage.uint8())
    grads, rates = jnp.ones(4), []
    for name in ("rmsprop", "adamw"):
        tx = dpo.rules(1e-3)[name].tx
        update = jax.jit(tx.update)
        state = tx.init(grads)
        for _ in range(200):
            updates, state = update(grads, state, jnp.zeros(4))
        rates.append(float(-updates[0]))
    # The step of constant gradients is the rate over √(1 - 0.99²⁰⁰), or the rate.
    np.testing.assert_allclose(rates, [1e-3 / (1 - 0.99**200) ** 0.5, 1e-3], rtol=1e-3)


def test_the_bytes_are_those_of_the_arrays():
    params = {"w": jnp.ones((256, 256))}
    sizes = {}
    for name, rule in dpo.rules(1e-4).items():
        cast = jax.tree.map(lambda p, rule=rule: p.astype(rule.dtype), params)
        sizes[name] = [round(dpo.size(x) / 256**2, 2) for x in (cast, rule.tx.init(cast))]
    assert sizes["adamw"] == [4, 8] and sizes["rmsprop"] == [4, 4]
    assert sizes["uint8"] == sizes["nearest"] == [2, 1.01]


def test_small_steps_are_lost_only_where_they_are_rounded_to_nearest(model, pairs):
    far = {}
    for name in ("uint8", "nearest"):
        rule = dpo.rules(1e-5)[name]
        params = jax.tree.map(lambda p: (p + 1).astype(jnp.bfloat16), model.params)
        after, state = dpo.learn(model.graphdef, rule, params, rule.tx.init(params), 0, pairs)
        assert int(optax.tree.get(state, "count")) == 64 // dpo.BATCH
        assert {x.dtype.name for x in jax.tree.leaves(after)} == {"bfloat16"}
        distances = jax.tree.map(lambda a, b: jnp.abs(a - b).sum(), after, params)
        far[name] = sum(map(float, jax.tree.leaves(distances)))
    assert far["nearest"] == 0 < far["uint8"]


def test_a_part_is_a_step_for_each_batch_with_bits_of_its_own(model, pairs):
    rule = dpo.rules(1e-2)["uint8"]
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), model.params)
    state = rule.tx.init(params)
    together, _ = dpo.learn(model.graphdef, rule, params, state, 7, pairs)
    grad = jax.grad(functools.partial(dpo.loss, model.graphdef))
    for i in range(4):
        batch = jax.tree.map(lambda x, i=i: x[..., 16 * i : 16 * (i + 1)], pairs)
        updates, state = rule.tx.update(grad(dpo.widened(params), batch), state, params)
        params = storage.apply_updates(params, updates, 7 + i)
    same = jax.tree.map(lambda a, b: (a == b).ravel(), together, params)
    # Gradients are summed in another order, and a rounding may fall to the other side.
    assert float(jnp.concatenate(jax.tree.leaves(same)).mean()) > 0.98


def test_the_divergence_is_an_expectation_of_log_ratios(model):
    """The sum over the alphabet is the mean over what the model writes."""
    params, count = jax.tree.map(lambda p: 20 * p, model.params), 2_000
    prompt = jnp.zeros((dpo.PROMPT, count), int)
    written = char_rnn.sample(model.graphdef, params, jax.random.key(0), prompt, dpo.CONTINUATION)
    characters = jnp.concatenate([prompt, written])
    exact = dpo.divergence(model.graphdef, params, model.params, characters)
    ours, theirs = (
        dpo.log_probability(model.graphdef, p, characters) / dpo.CONTINUATION
        for p in (params, model.params)
    )
    ratios = np.asarray(ours - theirs)
    error = float(ratios.std()) / count**0.5
    assert float(exact) == pytest.approx(float(ratios.mean()), abs=4 * error) and exact > 10 * error
    assert float(dpo.divergence(model.graphdef, params, params, characters[:, :9])) == 0


def test_before_tuning_half_is_right_and_nothing_diverges(model, pairs):
    measured = dpo.measure(model, model.params, jax.random.key(0), pairs)
    assert measured.accuracy == pytest.approx(0.5, abs=0.02) and abs(measured.kl) < 1e-6
    lower = sum(character.islower() for character in model.alphabet) / len(model.alphabet)
    assert measured.letters == pytest.approx(lower, abs=0.05)


@pytest.mark.api
@pytest.mark.parametrize("name", dpo.rules(1e-3))
def test_every_rule_learns_the_style(model, pairs, name):
    rule = dpo.rules(1e-2)[name]
    steps = dpo.tune(model, rule, 0, pairs, [pairs] * 12)
    measured = [step[2] for step in steps]
    assert measured[-1].accuracy > 0.75 and measured[-1].kl > measured[0].kl
    assert measured[-1].letters > measured[0].letters + 0.1


def result(*ends):
    return report.Result(400, 800, np.array([[[0.5, 0.0, 0.6], end] for end in ends]))


def test_the_table_has_bytes_means_and_spreads(tmp_path):
    results = {"adamw": result([0.7, 0.1, 0.8], [0.8, 0.3, 0.8])}
    heading, row = report.rows(results, 100)
    assert len(heading) == len(row)
    assert row == [
        "AdamW, all in float32", "4.00", "8.00", "12.00", "75.0 ± 7.1", "0.2000 ± 0.1414",
        "80.0 ± 0.0",
    ]  # fmt: skip
    assert report.rows({"adamw": result([0.7, 0.1, 0.8])}, 100)[1][4] == "70.0"
    report.draw(tmp_path / "new" / "curves.png", results, 32)
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]


@pytest.mark.slow
def test_the_program_trains_the_character_model_first(tmp_path, capsys, monkeypatch):
    small = functools.partial(char_rnn.Options, units=8, batch=4, length=10, epochs=1)
    monkeypatch.setattr(char_rnn, "Options", small)
    monkeypatch.setattr(dpo, "PART", 2)
    monkeypatch.setattr(dpo, "TESTED", 8)
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    options = program.Options(
        path, tmp_path / "model", ("adamw", "uint8"), updates=3, workdir=tmp_path / "dpo"
    )
    assert program.main(options) == 0
    out = capsys.readouterr().out
    assert out.startswith("character model, epoch 1") and "uint8, seed 0, update 4: " in out
    assert (tmp_path / "dpo" / "curves.png").exists()
    assert program.main(dataclasses.replace(options, rules=("nearest",))) == 0


@pytest.mark.parametrize(
    ["changed", "message"],
    [
        ({"updates": 0}, "--updates must be at least 1, got 0"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"rules": ("adam",)}, "--rules must be some of adamw, rmsprop, uint8, nearest, got"),
        ({"rules": ()}, "--rules must be some of adamw, rmsprop, uint8, nearest, got none"),
        ({"learning_rate": -1.0}, "--learning-rate must be in (0, inf), got -1.0"),
        ({"text": Path("missing.txt")}, "No such file"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(changed, message, capsys, tmp_path):
    options = program.Options(model=tmp_path, **changed)
    assert program.main(options) == 2
    assert message in capsys.readouterr().err


def test_a_text_without_letters_has_no_pairs(model):
    numbers = model._replace(alphabet=model.alphabet.upper())
    with pytest.raises(ValueError, match="too few lower-case letters"):
        dpo.draw(numbers, jax.random.key(0), model.learnt, 64)
