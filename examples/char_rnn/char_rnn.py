"""A character model with the RMSprop of char-rnn, in Flax NNX.

python -m examples.char_rnn                           # Python's reference documentation
python -m examples.char_rnn --text shakespeare.txt    # any text in UTF-8
python -m examples.char_rnn --epochs 20               # a run goes on where it ended or was killed
python -m examples.char_rnn --batch 50 --layers 2 --epochs 50      # char-rnn's own setting
python -m examples.char_rnn --help

Karpathy, The unreasonable effectiveness of recurrent neural networks, 2015. The text is cut into as
many streams as a batch has rows. The network reads all streams at once, and is updated after every
`length` characters. Its memory goes on to the next update, its gradient ends there.
"""

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from orbax.checkpoint import v1 as ocp
from rich import progress

from examples.char_rnn.text import encode, read, split, streams
from optax_rmsprop import recipes

Memory = list[tuple[jax.Array, jax.Array]]  # of each layer: cells and outputs, [rows, units]


class State(NamedTuple):
    """All that training changes."""

    params: Any
    opt_state: optax.OptState
    memory: Memory


class Log(NamedTuple):
    """Of an epoch, bits per character."""

    training: float
    held_out: float


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw weights as char-rnn does."""
    return jax.random.uniform(key, shape, dtype, -0.08, 0.08)


class LSTM(nnx.Module):
    """A layer of long short-term memory."""

    def __init__(self, inputs: int, units: int, rngs: nnx.Rngs):
        def remembering(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return uniform(key, shape, dtype).at[units : 2 * units].set(1.0)  # the forget gate

        linear = functools.partial(nnx.Linear, kernel_init=uniform, rngs=rngs)
        self.input = linear(inputs, 4 * units, bias_init=remembering)
        self.recurrent = linear(units, 4 * units, use_bias=False)

    def __call__(self, xs: jax.Array, memory: tuple[jax.Array, jax.Array]) -> tuple:
        """Read [time, rows, inputs]; return the outputs of all times, and the memory."""

        def step(memory: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple:
            cells, outputs = memory
            i, f, o, g = jnp.split(x + self.recurrent(outputs), 4, axis=-1)
            cells = nnx.sigmoid(f) * cells + nnx.sigmoid(i) * jnp.tanh(g)
            outputs = nnx.sigmoid(o) * jnp.tanh(cells)
            return (cells, outputs), outputs

        # The inputs of all times are multiplied at once, which leaves one product to each step.
        memory, outputs = jax.lax.scan(step, memory, self.input(xs))
        return outputs, memory


class Network(nnx.Module):
    """Layers of LSTM, and the logits of the next character."""

    def __init__(self, alphabet: int, units: int, layers: int, rngs: nnx.Rngs):
        self.alphabet, self.units = alphabet, units
        inputs = [alphabet] + [units] * (layers - 1)
        self.layers = nnx.List([LSTM(n, units, rngs) for n in inputs])
        self.head = nnx.Linear(units, alphabet, kernel_init=uniform, bias_init=uniform, rngs=rngs)

    def __call__(self, characters: jax.Array, memory: Memory) -> tuple[jax.Array, Memory]:
        """Map characters, [time, rows], to logits, [time, rows, alphabet]."""
        xs, kept = jax.nn.one_hot(characters, self.alphabet), []
        for layer, before in zip(self.layers, memory, strict=True):
            xs, after = layer(xs, before)
            kept.append(after)
        return self.head(xs), kept

    def nothing(self, rows: int) -> Memory:
        """Return the memory of a network that has read nothing."""
        return [(jnp.zeros((rows, self.units)),) * 2 for _ in self.layers]


def loss(
    graphdef: nnx.GraphDef, params: Any, memory: Memory, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, Memory]:
    """Return the cross-entropy, a sum over time and a mean over the rows, and the memory."""
    logits, memory = nnx.merge(graphdef, params)(inputs, memory)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.sum(0).mean(), memory


@functools.partial(jax.jit, static_argnums=(0, 1))
def update(
    graphdef: nnx.GraphDef, tx: optax.GradientTransformation, state: State, inputs, targets
) -> tuple[State, jax.Array]:
    """Learn from a part of every stream; return also the loss."""
    value_and_grad = jax.value_and_grad(functools.partial(loss, graphdef), has_aux=True)
    (value, memory), grads = value_and_grad(state.params, state.memory, inputs, targets)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state, memory), value


@functools.partial(jax.jit, static_argnums=0)
def bits_per_character(graphdef: nnx.GraphDef, params: Any, inputs, targets) -> jax.Array:
    """Return the mean over a text of [time, rows] that was not learnt."""
    memory = nnx.merge(graphdef, params).nothing(inputs.shape[1])
    return loss(graphdef, params, memory, inputs, targets)[0] / (len(inputs) * math.log(2))


@functools.partial(jax.jit, static_argnums=(0, 4))
def sample(graphdef: nnx.GraphDef, params: Any, key, prompts, length: int) -> jax.Array:
    """Continue prompts, [time, rows], by `length` characters."""
    network = nnx.merge(graphdef, params)
    logits, memory = network(prompts, network.nothing(prompts.shape[1]))

    def step(carry: tuple[jax.Array, Memory], key: jax.Array) -> tuple:
        logits, memory = carry
        characters = jax.random.categorical(key, logits)
        logits, memory = network(characters[None], memory)
        return (logits[0], memory), characters

    return jax.lax.scan(step, (logits[-1], memory), jax.random.split(key, length))[1]


OPTIMIZERS: dict[str, Callable[[recipes.Recipe], optax.GradientTransformation]] = {
    "char_rnn": recipes.build,
    "adam": lambda recipe: optax.chain(recipe.clip, optax.adam(recipe.learning_rate)),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a character model, and print text that it writes."""

    text: Path | None = None
    """A file in UTF-8; by default Python's reference documentation."""
    epochs: int = 10
    """A longer run than the one in the workdir goes on from it."""
    optimizer: Literal["char_rnn", "adam"] = "char_rnn"
    """The recipe, or Adam with its schedule and clipping."""
    learning_rate: float = 2e-3
    """At first; the default is the recipe's."""
    units: int = 128
    layers: int = 1
    batch: int = 16
    """Streams into which the text is cut."""
    length: int = 50
    """Characters of every stream in an update."""
    seed: int = 0
    """Of the first weights, and of the text that is written."""
    prompt: str = "The "
    """What the text that is written begins with."""
    write: int = 500
    """Characters to write in the end."""
    workdir: Path = Path("runs/char_rnn")
    """Folder of the checkpoint, one an epoch."""

    def check(self) -> None:
        """Refuse what cannot be."""
        for name, least in (
            ("epochs", 1), ("units", 1), ("layers", 1), ("batch", 1), ("length", 1), ("write", 0),
            ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if not self.prompt:
            raise ValueError("--prompt must not be empty")

    def setting(self, text: str) -> dict[str, Any]:
        """Return what two parts of one run have in common."""
        names = "optimizer", "learning_rate", "units", "layers", "batch", "length", "seed"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return {"text": digest} | {name: getattr(self, name) for name in names}


def restore(orbax: ocp.training.Checkpointer, setting: dict, like: State) -> tuple[State, list]:
    """Return the state and the log of the run in a workdir; of none, `like` and an empty log."""
    if orbax.latest is None:
        return like, []
    about = orbax.metadata().custom_metadata
    before = about["setting"]
    differing = [
        f"{name} was {before.get(name)} and is now {value}"
        for name, value in setting.items()
        if before.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"--workdir {orbax.directory.parent} holds another run ({'; '.join(differing)}): "
            "give another"
        )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    return orbax.load(None, abstract), [Log(*row) for row in about["log"]]


def train(
    options: Options, text: str, report: Callable[[int, int, int, float], None] = lambda *_: None
) -> Iterator[tuple[nnx.GraphDef, Any, list[Log]]]:
    """Train up to an epoch, beginning with what the workdir has, and keep every epoch there.

    Args:
        options: As on the command line.
        text: What is learnt, and at its end held out.
        report: Called after each update with the epoch, the update in it, the updates of an epoch,
            and the training's bits per character so far in the epoch.

    Yields:
        What is kept, if any is, and then after every epoch: the network, its parameters, and a row
        for each epoch so far.
    """
    options.check()
    alphabet = "".join(sorted({*text}))
    learnt, held_out = (encode(part, alphabet) for part in split(text))
    inputs, targets = streams(learnt, options.batch, options.length)
    rows = min(options.batch, len(held_out) - 1)
    after = [x[0] for x in streams(held_out, rows, (len(held_out) - 1) // rows)]

    network = Network(len(alphabet), options.units, options.layers, nnx.Rngs(options.seed))
    memory = network.nothing(options.batch)
    graphdef, params = nnx.split(network)
    params = nnx.to_pure_dict(params)
    published = recipes.record("char_rnn", steps_per_epoch=len(inputs))
    rates = dataclasses.replace(published.learning_rate, learning_rate=options.learning_rate)
    tx = OPTIMIZERS[options.optimizer](dataclasses.replace(published, learning_rate=rates))
    setting, state = options.setting(text), State(params, tx.init(params), memory)
    with ocp.training.Checkpointer(
        options.workdir.absolute() / "checkpoints",
        preservation_policy=ocp.training.preservation_policies.LatestN(1),
        cleanup_tmp_directories=True,
    ) as orbax:
        state, log = restore(orbax, setting, state)
        if log:
            yield graphdef, state.params, log
        for epoch in range(len(log) + 1, options.epochs + 1):
            total = 0.0
            for i, batch in enumerate(zip(inputs, targets, strict=True), start=1):
                state, value = update(graphdef, tx, state, *batch)
                total += float(value) / (options.length * math.log(2))
                report(epoch, i, len(inputs), total / i)
            held = float(bits_per_character(graphdef, state.params, *after))
            log.append(Log(total / len(inputs), held))
            orbax.save(epoch, state, custom_metadata={"setting": setting, "log": log}, force=True)
            yield graphdef, state.params, log


def main(options: Options) -> int:
    """Train with a progress bar and a line for each epoch, write text; return the exit code."""
    columns = "{task.description}", progress.BarColumn(), progress.TimeRemainingColumn()
    try:
        options.check()
        text = read(options.text)
        alphabet = "".join(sorted({*text}))
        prompt = encode(options.prompt, alphabet)
        with progress.Progress(*columns, disable=not sys.stdout.isatty()) as bar:
            item = bar.add_task("compiling", total=None)

            def report(epoch: int, done: int, of: int, bits: float) -> None:
                line = f"epoch {epoch}/{options.epochs}  {bits:.3f} bits per character"
                bar.update(item, description=line, completed=done, total=of)

            for trained in train(options, text, report):
                graphdef, params, log = trained
                bits = f"training {log[-1].training:.3f}  held out {log[-1].held_out:.3f}"
                line = f"epoch {len(log):>3}/{options.epochs}  bits per character: {bits}"
                bar.console.print(line, highlight=False)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on after the last epoch", file=sys.stderr)
        return 130
    key = jax.random.key(options.seed)
    written = sample(graphdef, params, key, prompt[:, None], options.write)[:, 0]
    print(f"\n{options.prompt}{''.join(alphabet[place] for place in written)}")
    return 0
