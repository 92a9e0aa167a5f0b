"""Direct preference optimization with RMSprop, in three bytes a parameter.

python -m examples.dpo                     # trains the character model first, if there is none
python -m examples.dpo --rules uint8       # one of the four rules
python -m examples.dpo --help

Rafailov et al., Direct preference optimization, 2023. The character model of `examples/char_rnn`
continues prompts from its text, each twice. The continuation with more lower-case letters is
preferred: it is nearer to plain prose, and further from code. A copy of the model is tuned on such
pairs, by the optimizer of the authors' code in several memories, and by AdamW.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.char_rnn import char_rnn
from examples.char_rnn.text import encode, read
from examples.dpo import report
from optax_rmsprop import recipes, storage

PROMPT, CONTINUATION = 32, 32  # characters
BATCH, PART = 16, 32  # pairs of an update, updates between two measurements
TESTED = 512  # held-out pairs
BETA = 0.1


class Model(NamedTuple):
    """The character model before it is tuned."""

    graphdef: nnx.GraphDef
    params: Any
    alphabet: str
    learnt: jax.Array  # the characters that it was trained on
    held_out: jax.Array


class Pairs(NamedTuple):
    """Prompts with their continuations, [characters, pairs]."""

    chosen: jax.Array
    rejected: jax.Array
    reference: jax.Array  # the log-odds of the choice under the model before it is tuned, [pairs]


class Rule(NamedTuple):
    """How a step is made from gradients in float32, and added to the parameters."""

    tx: optax.GradientTransformation
    dtype: str  # of the parameters
    add: Callable[[optax.Params, optax.Updates, jax.Array], optax.Params]


class Measured(NamedTuple):
    """What a tuned model does with prompts from the held-out text."""

    accuracy: float  # the share of pairs whose log-odds have risen; unchanged ones count half
    kl: float  # from the model before, in nats per character
    letters: float  # the share of lower-case letters in what it writes


def rules(learning_rate: float) -> dict[str, Rule]:
    """Return the rules, which have their rate, warm-up and clipping in common."""
    published = recipes.record("dpo")
    rate = dataclasses.replace(
        published.learning_rate, after=learning_rate, start=learning_rate / 151
    )
    rmsprop = recipes.build(dataclasses.replace(published, learning_rate=rate))
    adamw = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(rate, weight_decay=0.01))
    small = storage.stored_as(rmsprop, storage.uint8())
    nearest = lambda params, updates, count: optax.apply_updates(params, updates)  # noqa: E731
    return {
        "adamw": Rule(adamw, "float32", nearest),
        "rmsprop": Rule(rmsprop, "float32", nearest),
        "uint8": Rule(small, "bfloat16", storage.apply_updates),
        "nearest": Rule(small, "bfloat16", nearest),
    }


def log_probability(graphdef: nnx.GraphDef, params: Any, characters: jax.Array) -> jax.Array:
    """Return that of the continuations of their prompts, [rows]."""
    network = nnx.merge(graphdef, params)
    logits, _ = network(characters[:-1], network.nothing(characters.shape[1]))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, characters[1:])
    return -losses[PROMPT - 1 :].sum(0)


def log_odds(graphdef: nnx.GraphDef, params: Any, chosen, rejected) -> jax.Array:
    """Return the difference of the log-probabilities of two continuations, [pairs]."""
    both = jnp.concatenate([chosen, rejected], axis=1)
    return jnp.subtract(*jnp.split(log_probability(graphdef, params, both), 2))


def loss(graphdef: nnx.GraphDef, params: Any, pairs: Pairs) -> jax.Array:
    """Return the mean of -log σ(β (log-odds - those of the reference))."""
    odds = log_odds(graphdef, params, pairs.chosen, pairs.rejected)
    return -jax.nn.log_sigmoid(BETA * (odds - pairs.reference)).mean()


def prompts(key: jax.Array, characters: jax.Array, count: int) -> jax.Array:
    """Return parts of a text, [PROMPT, count]."""
    firsts = jax.random.randint(key, (count,), 0, len(characters) - PROMPT)
    return characters[firsts + jnp.arange(PROMPT)[:, None]]


def written(model: Model, characters: jax.Array) -> np.ndarray:
    """Return the share of lower-case letters in each continuation, [rows]."""
    letters = np.array([character.islower() for character in model.alphabet])
    return letters[np.asarray(characters)[PROMPT:]].mean(0)


def draw(model: Model, key: jax.Array, characters: jax.Array, count: int) -> Pairs:
    """Let the model continue prompts from a text twice, and choose."""
    prompt_key, *keys = jax.random.split(key, 3)
    begun = prompts(prompt_key, characters, count + count // 4)  # some will be equal
    both = [
        jnp.concatenate(
            [begun, char_rnn.sample(model.graphdef, model.params, k, begun, CONTINUATION)]
        )
        for k in keys
    ]
    shares = [written(model, continued) for continued in both]
    kept = np.flatnonzero(shares[0] != shares[1])[:count]
    if len(kept) < count:
        raise ValueError("--text has too few lower-case letters: most continuations are equal")
    first = jnp.asarray(shares[0] > shares[1])
    chosen, rejected = (jnp.where(x, *both)[:, kept] for x in (first, ~first))
    reference = jax.jit(log_odds, static_argnums=0)(model.graphdef, model.params, chosen, rejected)
    return Pairs(chosen, rejected, reference)


def widened(params: Any) -> Any:
    """Return the parameters in float32, in which everything is computed."""
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def learn(graphdef: nnx.GraphDef, rule: Rule, params: Any, state: Any, first: int, pairs: Pairs):
    """Update the parameters once for each batch of the pairs; `first` is the first one's number."""

    def update(carry: tuple, batch: tuple) -> tuple:
        (params, state), (count, pairs) = carry, batch
        grads = jax.grad(functools.partial(loss, graphdef))(widened(params), pairs)
        updates, state = rule.tx.update(grads, state, params)
        return (rule.add(params, updates, count), state), None

    batches = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], -1, BATCH), -2, 0), pairs
    )
    counts = first + jnp.arange(len(batches.reference))
    return jax.lax.scan(update, (params, state), (counts, batches))[0]


@functools.partial(jax.jit, static_argnums=0)
def divergence(graphdef: nnx.GraphDef, params: Any, reference: Any, characters) -> jax.Array:
    """Return the KL divergence from the reference, summed over the alphabet at each character."""

    def log_probabilities(params: Any) -> jax.Array:
        network = nnx.merge(graphdef, params)
        logits, _ = network(characters[:-1], network.nothing(characters.shape[1]))
        return jax.nn.log_softmax(logits[PROMPT - 1 :])

    ours, theirs = log_probabilities(params), log_probabilities(reference)
    return (jnp.exp(ours) * (ours - theirs)).sum(-1).mean()


def measure(model: Model, params: Any, key: jax.Array, pairs: Pairs) -> Measured:
    """Look at a tuned model: on held-out pairs, and on what it writes itself."""
    params = widened(params)
    odds = jax.jit(log_odds, static_argnums=0)(model.graphdef, params, pairs.chosen, pairs.rejected)
    begun = pairs.chosen[:PROMPT]
    continued = char_rnn.sample(model.graphdef, params, key, begun, CONTINUATION)
    characters = jnp.concatenate([begun, continued])
    return Measured(
        float(((1 + jnp.sign(odds - pairs.reference)) / 2).mean()),
        float(divergence(model.graphdef, params, model.params, characters)),
        float(written(model, characters).mean()),
    )


def pairs_of(model: Model, seed: int, updates: int) -> tuple[Pairs, list[Pairs]]:
    """Return held-out pairs, and for each part of the updates those that are learnt."""
    test_key, key = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(key, -(-updates // PART))
    learnt = [draw(model, key, model.learnt, PART * BATCH) for key in keys]
    return draw(model, test_key, model.held_out, TESTED), learnt


def tune(
    model: Model, rule: Rule, seed: int, tested: Pairs, learnt: list[Pairs]
) -> Iterator[tuple[Any, optax.OptState, Measured]]:
    """Tune a copy of the model; before and after each part yield it, its state and measurements."""
    params = jax.tree.map(lambda p: p.astype(rule.dtype), model.params)
    state, key = rule.tx.init(params), jax.random.key(seed)
    yield params, state, measure(model, params, key, tested)
    for part, pairs in enumerate(learnt):
        params, state = learn(model.graphdef, rule, params, state, part * PART, pairs)
        yield params, state, measure(model, params, key, tested)


def size(tree: Any) -> int:
    """Return the bytes of all arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def start(options: char_rnn.Options, said: Callable[[str], None]) -> Model:
    """Return the model of a run of the other example, after training what is missing."""
    text = read(options.text)
    alphabet = "".join(sorted({*text}))
    for trained in char_rnn.train(options, text):
        graphdef, params, log = trained
        said(f"character model, epoch {len(log)}: {log[-1].held_out:.3f} bits per character")
    parts = (jnp.asarray(encode(part, alphabet)) for part in char_rnn.split(text))
    return Model(graphdef, params, alphabet, *parts)


def compare(
    model: Model, chosen: dict[str, Rule], seeds: int, updates: int, said: Callable[[str], None]
) -> tuple[dict[str, report.Result], dict[str, Any]]:
    """Tune with every rule and seed; return the results, and the parameters of the last seed."""
    tuned, sizes = {}, {}
    curves: dict[str, list] = {name: [] for name in chosen}
    for seed in range(seeds):
        said(f"seed {seed}: drawing pairs")
        tested, learnt = pairs_of(model, seed, updates)
        for name, rule in chosen.items():
            curve = []
            for params, state, measured in tune(model, rule, seed, tested, learnt):
                tuned[name], sizes[name] = widened(params), (size(params), size(state))
                curve.append(measured)
                shown = ", ".join(f"{k} {v:.3f}" for k, v in measured._asdict().items())
                said(f"{name}, seed {seed}, update {PART * (len(curve) - 1)}: {shown}")
            curves[name].append(curve)
    results = {name: report.Result(*sizes[name], np.array(curves[name])) for name in chosen}
    return results, tuned


def example(model: Model, params: Any) -> str:
    """Return text that a model writes after the first words of the held-out text."""
    begun = model.held_out[:PROMPT, None]
    text = char_rnn.sample(model.graphdef, params, jax.random.key(0), begun, 200)
    return "".join(model.alphabet[place] for place in np.concatenate([begun, text])[:, 0])
