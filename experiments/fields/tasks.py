"""The tasks: of each its data, its network, its loss, and its score on validation and on test.

All data are made here, or come with the standard library and with installed packages. Every score
is a loss, so lower is better. Rows of a batch are drawn with replacement.
"""

import dataclasses
import functools
import importlib
import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from examples.a2c import a2c
from examples.cifar10.configs import UserError
from experiments.fields import layers as nn

Arrays = tuple[np.ndarray, ...]
Parts = Sequence[Arrays]  # to train, to choose a rate by, to report
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Field(NamedTuple):
    """What a task is once its data are there. The memory is what a loss keeps from step to step."""

    init: Callable[[jax.Array], tuple[Any, Any]]
    """Maps a key to parameters and a memory."""
    loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    """Maps parameters, a memory and a key to the loss of a batch and the next memory."""
    validation: Callable[[Any], jax.Array]
    """Maps parameters to a score, by which a rate is chosen."""
    test: Callable[[Any], jax.Array]
    """Maps parameters to the score that is reported."""


Make = Callable[[Any], optax.GradientTransformation]
Trainer = Callable[[Any, jax.Array], Any]
"""Maps a rate and seeds to the late loss and the two scores of each seed."""
Ready = Callable[[Make, int], Trainer]
"""Maps a rule and a number of steps to what trains with them."""


class Task(NamedTuple):
    """A task before its data are there."""

    title: str
    measure: str
    steps: int
    tolerance: float  # of a score: a rate that is this much worse than the best is still good
    clip: float | None  # the largest norm of a gradient, as is the custom of the field
    field: Callable[[], Field | Ready]


TASKS: dict[str, Task] = {}


def task(
    title: str, measure: str, steps: int, tolerance: float, clip: float | None = None
) -> Callable[[Callable[[], Field]], Callable[[], Field]]:
    """Enter a task under its function's name."""

    def enter(make: Callable[[], Field]) -> Callable[[], Field]:
        name = make.__name__.replace("_", "-")
        TASKS[name] = Task(title, measure, steps, tolerance, clip, make)
        return make

    return enter


def supervised(
    parts: Parts,
    init: Callable[[jax.Array], Any],
    loss: Callable[..., jax.Array],
    score: Callable[..., jax.Array],
    batch: int,
) -> Field:
    """Return a field whose loss and score map parameters and arrays to a number."""
    train, validation, test = (tuple(map(jnp.asarray, part)) for part in parts)

    def of_batch(p: Any, memory: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        rows = jax.random.randint(key, (batch,), 0, len(train[0]))
        return loss(p, *(x[rows] for x in train)), memory

    return Field(
        lambda key: (init(key), ()), of_batch, lambda p: score(p, *validation),
        lambda p: score(p, *test),
    )  # fmt: skip


def classification(
    parts: Parts,
    init: Callable[[jax.Array], Any],
    network: Callable[[Any, jax.Array], jax.Array],
    batch: int,
) -> Field:
    """Return a field of inputs and labels; its score is the error in percent."""
    return supervised(
        parts, init,
        lambda p, x, y: cross_entropy(network(p, x), y).mean(),
        lambda p, x, y: 100 * (network(p, x).argmax(-1) != y).mean(),
        batch,
    )  # fmt: skip


def split(arrays: Arrays, validation: int, test: int) -> Parts:
    """Shuffle rows, always alike, and split them."""
    order = np.random.default_rng(0).permutation(len(arrays[0]))
    rows = np.split(order, [len(order) - validation - test, len(order) - test])
    return [tuple(x[part] for x in arrays) for part in rows]


@functools.cache
def digits() -> Parts:
    """Return scikit-learn's handwritten digits, 8 × 8, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return split((np.float32(images / 16).reshape(-1, 8, 8, 1), np.int32(labels)), 400, 400)


@task("Handwritten digits, CNN", "error, %", steps=600, tolerance=1.0)
def digits_cnn() -> Field:
    """Two convolutions on scikit-learn's digits."""

    def init(key: jax.Array) -> Any:
        k1, k2, k3 = jax.random.split(key, 3)
        return [nn.dense_init(k1, 9, 12), nn.dense_init(k2, 108, 24), nn.dense_init(k3, 96, 10)]

    def network(p: Any, x: jax.Array) -> jax.Array:
        for layer in p[:2]:
            x = jax.nn.relu(nn.dense(layer, nn.patches(x, stride=2)))
        return nn.dense(p[2], x.reshape(len(x), -1))

    return classification(digits(), init, network, batch=32)


@functools.cache
def mnist1d() -> Parts:
    """Return MNIST-1D (Greydanus, 2020), sequences of 40, as its package generates it."""
    try:
        generator = importlib.import_module("mnist1d.data")
    except ImportError as error:
        raise UserError(f"the tasks of MNIST-1D need the package mnist1d: {error}") from error
    known = generator.make_dataset()
    train, test = (
        (np.float32(known[f"x{end}"]), np.int32(known[f"y{end}"])) for end in ("", "_test")
    )
    return [*split(train, 1000, 0)[:2], test]


@task("MNIST-1D, MLP", "error, %", steps=3000, tolerance=2.0)
def mnist1d_mlp() -> Field:
    """Two hidden layers of 100, as in the data's own baselines."""
    return classification(
        mnist1d(), lambda key: nn.stack_init(key, 40, 100, 100, 10), nn.stack, batch=64
    )


@task("MNIST-1D, CNN", "error, %", steps=1000, tolerance=2.0)
def mnist1d_cnn() -> Field:
    """Three convolutions of width 5 and stride 2."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 4)
        shapes = (5, 24), (120, 24), (120, 24), (120, 10)
        return [nn.dense_init(key, *shape) for key, shape in zip(keys, shapes, strict=True)]

    def network(p: Any, x: jax.Array) -> jax.Array:
        x = x[..., None]
        for layer in p[:3]:
            x = jax.nn.relu(nn.dense(layer, nn.windows(x, 5, stride=2)))
        return nn.dense(p[3], x.reshape(len(x), -1))

    return classification(mnist1d(), init, network, batch=64)


@task("MNIST-1D, GRU", "error, %", steps=500, tolerance=2.0, clip=1.0)
def mnist1d_gru() -> Field:
    """A layer of 32 gated recurrent units, read at its end."""

    def init(key: jax.Array) -> Any:
        k1, k2 = jax.random.split(key)
        return {"gru": nn.recurrent_init(k1, 1, 32, 3), "out": nn.dense_init(k2, 32, 10)}

    def network(p: Any, x: jax.Array) -> jax.Array:
        states = nn.run(nn.gru, p["gru"], jnp.zeros((len(x), 32)), x[..., None])
        return nn.dense(p["out"], states[:, -1])

    return classification(mnist1d(), init, network, batch=32)


CANVAS, CELL, SIZES = 24, 8, (8, 12)


def canvases(images: np.ndarray, labels: np.ndarray, count: int, seed: int) -> Arrays:
    """Return canvases of one to three digits that do not overlap, and what each cell has to say.

    A cell says whether a centre is in it; where, and the logarithm of the size, in cells; and which
    digit it is. Digits are at least as large as a cell, so no two centres are in one.
    """
    rng, cells = np.random.default_rng(seed), CANVAS // CELL
    drawn = np.zeros((count, CANVAS, CANVAS, 1), np.float32)
    present, digit = np.zeros((count, cells, cells)), np.zeros((count, cells, cells), np.int32)
    box = np.zeros((count, cells, cells, 3), np.float32)
    for n in range(count):
        taken = np.zeros((CANVAS, CANVAS), bool)
        for _ in range(rng.integers(1, 4)):
            size, which = rng.choice(SIZES), rng.integers(len(images))
            i, j = 4 * rng.integers(0, (CANVAS - size) // 4 + 1, 2)
            where = np.s_[i : i + size, j : j + size]
            if taken[where].any():
                continue
            taken[where] = True
            nearest = np.arange(size) * 8 // size
            drawn[n][where] = images[which][nearest][:, nearest]
            y, x = (i + size / 2) / CELL, (j + size / 2) / CELL
            at = n, int(y), int(x)
            present[at], digit[at] = 1, labels[which]
            box[at] = y - at[1] - 0.5, x - at[2] - 0.5, np.log(size / CELL)
    return drawn, np.float32(present), box, digit


def corners(box: jax.Array) -> jax.Array:
    """Return boxes [..., cells, cells, 3] as their two corners, [..., cells², 4], in cells."""
    cells = box.shape[-2]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(cells), jnp.arange(cells), indexing="ij"), -1) + 0.5
    half = jnp.exp(jnp.clip(box[..., 2:], -4, 4)) / 2
    centre = box[..., :2] + grid
    return jnp.concatenate([centre - half, centre + half], -1).reshape(*box.shape[:-3], -1, 4)


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return intersection over union of boxes [..., 4] and boxes [..., 4]."""
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.maximum(sides, 0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def mean_average_precision(
    chance: jax.Array, found: jax.Array, truth: jax.Array, wanted: jax.Array
) -> jax.Array:
    """Return mean average precision at an intersection over union of 0.5, in percent.

    Args:
        chance: [n, boxes, classes], how sure it is that a box is one of a class.
        found: [n, boxes, 4], the corners of the boxes.
        truth: [n, boxes, 4], the corners of what is there.
        wanted: [n, boxes, classes], 1 where there is something, and of which class.
    """
    near = overlap(found[:, :, None], truth[:, None]) >= 0.5

    def of_class(chance: jax.Array, wanted: jax.Array) -> jax.Array:
        # The surest box of those near an object finds it, and all others are false.
        hits = near & (wanted[:, None] > 0)
        rivals = jnp.where(hits, chance[:, :, None], -1.0)
        first = hits & (rivals == rivals.max(1, keepdims=True))
        right = first.any(2).ravel()[jnp.argsort(-chance.ravel())].astype(float)
        precision = right.cumsum() / jnp.arange(1, right.size + 1)
        best_later = jax.lax.cummax(precision, reverse=True)
        return (best_later * right).sum() / wanted.sum()

    return 100 * jax.vmap(of_class, -1)(chance, wanted).mean()


@task("Digits on a canvas, one-shot detector", "100 % - mAP at IoU 0.5", steps=800, tolerance=3.0)
def detection() -> Field:
    """Four convolutions, whose last says for each of 3 × 3 cells what is in it."""
    drawn = [
        canvases(*part, count, seed)
        for part, count, seed in zip(digits(), (2000, 250, 250), range(3), strict=True)
    ]
    channels = 1, 12, 24, 32, 32

    def init(key: jax.Array) -> Any:
        *keys, last = jax.random.split(key, 5)
        shapes = itertools.pairwise(channels)
        hidden = [nn.dense_init(k, 9 * n, m) for k, (n, m) in zip(keys, shapes, strict=True)]
        return [*hidden, nn.dense_init(last, channels[-1], 14)]

    def network(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        for layer, stride in zip(p[:-1], (2, 2, 2, 1), strict=True):
            x = jax.nn.relu(nn.dense(layer, nn.patches(x, stride)))
        said = nn.dense(p[-1], x)
        return said[..., 0], said[..., 1:4], said[..., 4:]

    def loss(p: Any, x: jax.Array, present: jax.Array, box: jax.Array, digit: Any) -> jax.Array:
        presence, where, which = network(p, x)
        there = optax.sigmoid_binary_cross_entropy(presence, present)
        named = cross_entropy(which, digit) + 5 * optax.huber_loss(where, box, delta=0.1).sum(-1)
        return (there + present * named).sum() / present.sum()

    def score(p: Any, x: jax.Array, present: jax.Array, box: jax.Array, digit: Any) -> jax.Array:
        presence, where, which = network(p, x)
        flat = lambda x: x.reshape(len(x), -1, 10)  # noqa: E731
        chance = jax.nn.sigmoid(presence)[..., None] * jax.nn.softmax(which)
        wanted = present[..., None] * jax.nn.one_hot(digit, 10)
        found = corners(where), corners(box)
        return 100 - mean_average_precision(flat(chance), *found, flat(wanted))

    return supervised(drawn, init, loss, score, batch=16)


@functools.cache
def text() -> list[np.ndarray]:
    """Return Python's help on its language as codes: the first 80 %, and twice 10 %.

    It is what `help()` shows and comes with Python, so another version of it has another text.
    """
    whole = "".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(whole.encode("ascii", "replace"), np.uint8).astype(np.int32)
    return np.split(codes, [len(codes) * 8 // 10, len(codes) * 9 // 10])


CHARACTERS, LENGTH = 128, 32


def characters(
    init: Callable[[jax.Array], Any], network: Callable[[Any, jax.Array], jax.Array], batch: int
) -> Field:
    """Return a field in which each character of a text is told from those before it, in a window.

    Its score is in bits of a character, over windows beside each other.
    """
    train, *others = text()
    validation, test = (part[: 128 * (LENGTH + 1)].reshape(128, LENGTH + 1) for part in others)
    train = jnp.asarray(train)

    def bits(p: Any, window: jax.Array) -> jax.Array:
        return cross_entropy(network(p, window[:, :-1]), window[:, 1:]).mean() / jnp.log(2)

    def loss(p: Any, memory: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        starts = jax.random.randint(key, (batch, 1), 0, len(train) - LENGTH)
        return bits(p, train[starts + jnp.arange(LENGTH + 1)]), memory

    return Field(
        lambda key: (init(key), ()), loss, lambda p: bits(p, validation), lambda p: bits(p, test)
    )


@task("Text by characters, LSTM", "bits a character", steps=500, tolerance=0.1, clip=1.0)
def char_lstm() -> Field:
    """A layer of 64 units of long short-term memory."""

    def init(key: jax.Array) -> Any:
        k1, k2, k3 = jax.random.split(key, 3)
        table = jax.random.normal(k1, (CHARACTERS, 32))
        cell = nn.recurrent_init(k2, 32, 64, 4)
        return {"table": table, "lstm": cell, "out": nn.dense_init(k3, 64, CHARACTERS)}

    def network(p: Any, x: jax.Array) -> jax.Array:
        states = nn.run(nn.lstm, p["lstm"], jnp.zeros((len(x), 128)), p["table"][x])
        return nn.dense(p["out"], states[..., :64])

    return characters(init, network, batch=8)


@task("Text by characters, transformer", "bits a character", steps=400, tolerance=0.1, clip=1.0)
def char_transformer() -> Field:
    """Two blocks of width 32 with four heads."""
    width = 32

    def init(key: jax.Array) -> Any:
        k1, k2, k3, *keys = jax.random.split(key, 5)
        return {
            "table": jax.random.normal(k1, (CHARACTERS, width)),
            "place": jax.random.normal(k2, (LENGTH, width)) / 4,
            "blocks": [nn.block_init(key, width) for key in keys],
            "scale": {"scale": jnp.ones(width)},
            "out": nn.dense_init(k3, width, CHARACTERS),
        }

    def network(p: Any, x: jax.Array) -> jax.Array:
        x = p["table"][x] + p["place"]
        for block in p["blocks"]:
            x = nn.block(block, x, heads=4)
        return nn.dense(p["out"], nn.normalized(p["scale"], x))

    return characters(init, network, batch=8)


WORDS, SENTENCE, SUBJECTS = 2048, 24, 12


def sentences() -> Parts:
    """Return the sentences of the longest topics of Python's help, words as hashes, and which."""
    longest = sorted(sorted(topics), key=lambda name: -len(topics[name]))[:SUBJECTS]
    rows = []
    for label, name in enumerate(longest):
        for sentence in re.split(r"(?<=[.:])\s", topics[name]):
            words = re.findall(r"\w+", sentence.lower())[:SENTENCE]
            if len(words) >= 4:
                codes = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words]
                rows.append((codes + [0] * (SENTENCE - len(words)), label))
    codes, labels = zip(*dict.fromkeys((tuple(c), label) for c, label in rows), strict=True)
    return split((np.array(codes, np.int32), np.array(labels, np.int32)), 500, 500)


@task("Sentences by subject, CNN on words", "error, %", steps=600, tolerance=2.0)
def sentences_cnn() -> Field:
    """Vectors of words, a convolution of width 3, and the largest of each feature (Kim, 2014)."""

    def init(key: jax.Array) -> Any:
        k1, k2, k3 = jax.random.split(key, 3)
        table = jax.random.normal(k1, (WORDS, 24)) / 4
        return {"table": table, "in": nn.dense_init(k2, 72, 48), "out": nn.dense_init(k3, 48, 12)}

    def network(p: Any, x: jax.Array) -> jax.Array:
        seen = jnp.where(x[..., None] > 0, p["table"][x], 0.0)
        features = jax.nn.relu(nn.dense(p["in"], nn.windows(seen, 3)))
        return nn.dense(p["out"], features.max(1))

    return classification(sentences(), init, network, batch=32)


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
VOCABULARY = ["", *ONES, *TENS, "hundred", "and", "thousand"]


def in_words(n: int) -> list[str]:
    """Return the English words of a number below a million.

    Example:
        >>> print(*in_words(342_007))
        three hundred and forty two thousand and seven
    """
    if n < 20:
        return [ONES[n]]
    if n < 100:
        return [TENS[n // 10 - 2], *(in_words(n % 10) if n % 10 else ())]
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    rest = in_words(n % unit) if n % unit else []
    return [*in_words(n // unit), name, *(["and"] if rest and n % unit < 100 else ()), *rest]


def numbers(count: int) -> Parts:
    """Return numbers below a million: codes of their words, and their six digits."""
    chosen = np.random.default_rng(0).choice(10**6, count, replace=False)
    words = [in_words(int(n)) for n in chosen]
    longest = max(map(len, words))
    codes = [[0] * (longest - len(row)) + [VOCABULARY.index(word) for word in row] for row in words]
    figures = chosen[:, None] // 10 ** np.arange(5, -1, -1) % 10
    return split((np.array(codes, np.int32), figures.astype(np.int32)), 500, 500)


@task("Numbers from words, GRU to GRU", "sequences not exact, %", 400, tolerance=3.0, clip=1.0)
def numbers_gru() -> Field:
    """An encoder, and a decoder that attends to its states (Bahdanau et al., 2015)."""
    size = 48

    def init(key: jax.Array) -> Any:
        k1, k2, k3, k4, k5 = jax.random.split(key, 5)
        return {
            "words": jax.random.normal(k1, (len(VOCABULARY), 24)),
            "figures": jax.random.normal(k2, (11, 24)),
            "encoder": nn.recurrent_init(k3, 24, size, 3),
            "decoder": nn.recurrent_init(k4, 24 + size, size, 3),
            "out": nn.dense_init(k5, 2 * size, 10),
        }

    def start(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = nn.run(nn.gru, p["encoder"], jnp.zeros((len(x), size)), p["words"][x])
        return states, states[:, -1]

    def step(p: Any, states: jax.Array, h: jax.Array, before: jax.Array) -> Any:
        def seen(h: jax.Array) -> jax.Array:
            weights = jax.nn.softmax(jnp.einsum("nlc,nc->nl", states, h) / size**0.5)
            return jnp.einsum("nl,nlc->nc", weights, states)

        inputs = jnp.concatenate([p["figures"][before], seen(h)], -1)
        h = nn.gru(p["decoder"], h, inputs)
        return h, nn.dense(p["out"], jnp.concatenate([h, seen(h)], -1))

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        states, h = start(p, x)
        before = jnp.pad(y[:, :-1], ((0, 0), (1, 0)), constant_values=10).T
        _, said = jax.lax.scan(lambda h, y: step(p, states, h, y), h, before)
        return cross_entropy(said, y.T).mean()

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def follow(carry: tuple[jax.Array, jax.Array], _: None) -> Any:
            h, said = step(p, states, *carry)
            return (h, said.argmax(-1)), said.argmax(-1)

        states, h = start(p, x)
        first = h, jnp.full(len(x), 10)
        said = jax.lax.scan(follow, first, length=y.shape[1])[1].T
        return 100 * (said != y).any(1).mean()

    return supervised(numbers(20_000), init, loss, score, batch=32)


@task("Handwritten digits, VAE", "negative ELBO, nats", steps=2000, tolerance=0.2)
def digits_vae() -> Field:
    """A variational autoencoder with a code of 8 (Kingma & Welling, 2014); grey is a chance."""
    train, validation, test = ((x.reshape(len(x), 64),) for x, _ in digits())

    def init(key: jax.Array) -> Any:
        k1, k2 = jax.random.split(key)
        return {"in": nn.stack_init(k1, 64, 64, 16), "out": nn.stack_init(k2, 8, 64, 64)}

    def negative_elbo(p: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        mean, log_std = jnp.split(nn.stack(p["in"], x), 2, -1)
        code = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        missed = optax.sigmoid_binary_cross_entropy(nn.stack(p["out"], code), x).sum(-1)
        divergence = (mean**2 + jnp.exp(2 * log_std) - 1 - 2 * log_std).sum(-1) / 2
        return (missed + divergence).mean()

    images = jnp.asarray(train[0])

    def loss(p: Any, memory: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        k1, k2 = jax.random.split(key)
        rows = jax.random.randint(k1, (32,), 0, len(images))
        return negative_elbo(p, images[rows], k2), memory

    def score(p: Any, x: np.ndarray) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), 16)
        return jax.lax.map(lambda key: negative_elbo(p, jnp.asarray(x), key), keys).mean()

    return Field(
        lambda key: (init(key), ()),
        loss,
        lambda p: score(p, *validation),
        lambda p: score(p, *test),
    )


@task("CartPole, A2C", "500 - return", steps=2500, tolerance=25.0, clip=a2c.MAX_NORM)
def a2c_cartpole() -> Field:
    """A2C as in the example, 100,000 steps; a score is of 10 episodes without exploration."""
    setting = dataclasses.replace(
        a2c.TASKS["CartPole-v1"], steps=100_000, orthogonal=False
    )  # Decompositions of many seeds at once may block, as the example says.

    def init(key: jax.Array) -> Any:
        agent = a2c.start(setting, optax.identity(), key)
        return agent.params, agent.worlds

    def loss(p: Any, worlds: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        acting, nothing = jax.lax.stop_gradient(p), jnp.zeros((setting.copies, 0))
        act = functools.partial(a2c.interact, setting, acting, nothing)
        worlds, seen = jax.lax.scan(act, worlds, jax.random.split(key, setting.rollout))
        return a2c.loss(p, setting, seen), worlds

    def score(p: Any, seed: int) -> jax.Array:
        key = jax.random.key(0)
        worlds = a2c.start(setting, optax.identity(), key).worlds
        agents = jax.tree.map(lambda x: x[None], a2c.Agent(p, (), worlds, key))
        return (500 - a2c.evaluate(setting, agents, jnp.array([seed]), 10)).mean()

    return Field(init, loss, lambda p: score(p, 0), lambda p: score(p, 1))
