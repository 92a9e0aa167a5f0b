"""A small transformer on the characters of Python's own manual, which every Python carries."""

import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

WIDTH, HEADS, CONTEXT, BATCH = 128, 4, 64, 32


def text() -> np.ndarray:
    """Return the corpus as codes from 0 on."""
    characters = "\n".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore")
    return np.unique(np.frombuffer(characters, np.uint8), return_inverse=True)[1].astype(np.int32)


class Model(nnx.Module):
    """Embedding, two blocks of attention and a perceptron, logits."""

    def __init__(self, vocabulary: int, rngs: nnx.Rngs):
        """Draw the parameters."""
        self.embed = nnx.Embed(vocabulary, WIDTH, rngs=rngs)
        self.position_embed = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, vocabulary, rngs=rngs)

    def __call__(self, codes: jax.Array) -> jax.Array:
        """Map codes [batch, context] to logits of the next ones."""
        x = self.embed(codes) + self.position_embed(jnp.arange(CONTEXT))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nnx.Module):
    """Attention to what came before, then a perceptron."""

    def __init__(self, rngs: nnx.Rngs):
        """Draw the parameters."""
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [batch, context, width] to the same."""
        mask = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


def train(tx: optax.GradientTransformation, seed: int, steps: int) -> tuple[np.ndarray, float]:
    """Return the training losses, and the loss on the last tenth of the text, not trained on."""
    codes = text()
    model = Model(int(codes.max()) + 1, nnx.Rngs(seed))
    graphdef, params = nnx.split(model)
    cut = len(codes) * 9 // 10
    parts = jnp.asarray(codes[:cut]), jnp.asarray(codes[cut:])

    def loss_fn(params, starts, source):
        windows = source[starts[:, None] + jnp.arange(CONTEXT + 1)]
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    @jax.jit
    def run(params, state):
        def step(carry, count):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), count)
            starts = jax.random.randint(key, (BATCH,), 0, cut - CONTEXT - 1)
            loss, grads = jax.value_and_grad(loss_fn)(params, starts, parts[0])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, state), jnp.arange(steps))
        starts = jnp.arange(0, len(parts[1]) - CONTEXT - 1, CONTEXT)
        starts = starts[: len(starts) // BATCH * BATCH].reshape(-1, BATCH)
        held_out = jax.lax.map(lambda s: loss_fn(params, s, parts[1]), starts).mean()
        return losses, held_out

    losses, held_out = run(params, tx.init(params))
    return np.asarray(losses), float(held_out)
