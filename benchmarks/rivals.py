"""Optimizer states of few bits with the kernels of the libraries that have them, beside ours.

    python -m benchmarks.rivals

writes `results/rivals.md`: what a step takes on a CPU, and how far the steps on given gradients are
from those in float32. What is not installed is left out, and the page says so: PyTorch,
bitsandbytes, torchao and MLX.
"""

import argparse
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import quantized
from benchmarks.contestants import CORES
from benchmarks.gpu.turns import quartiles, timed
from benchmarks.gpu.update import stepper
from optax_rmsprop import dialects, storage
from tools import environment

SIDE, SMALL = 2048, (128, 256)
RMSPROP = {"lr": 1e-3, "alpha": 0.99, "eps": 1e-8}
RATE = {"lr": RMSPROP["lr"]}  # all libraries have the same defaults of Adam

CAPTION = """\
A step moves parameters and state by a gradient: jitted and donated in JAX, `optimizer.step()` in
PyTorch and in what is made for it, `apply_gradients` in MLX. The leaf is of {side} x {side} in
float32, and in bfloat16 where the state is bfloat16; all take turns, each after a step without a
clock. RMSprop has a decay of 0.99, ε of 1e-8 outside the root and no momentum; Adam has 0.9, 0.999
and 1e-8. The bytes are those of the arrays of the state, without what is one for all parameters.

The error is that of the distance gone in {steps} steps on given gradients, relative, in norm, to
float32's in JAX: they are Gaussian with a mean of a tenth of their standard deviation, whose
logarithm is Gaussian with a standard deviation of 1.4, for 128 x 256 parameters. Lines without a
time compute a library's format from its source, in float32 arrays."""


class Running(NamedTuple):
    """An optimizer of one leaf that has begun."""

    give: Callable[[np.ndarray], Any]  # a gradient as the library has it
    step: Callable[[Any], object]  # with such a gradient, waited for
    params: Callable[[], np.ndarray]
    held: Callable[[], int]  # bytes of the moments, with their scales


class Entrant(NamedTuple):
    """A library's optimizer in a format."""

    algorithm: str
    maker: str
    format: str
    begin: Callable[[np.ndarray], Running]
    computed: bool = False  # from a library's source, in float32: it has an error and no time


def of_optax(tx: optax.GradientTransformation) -> Callable[[np.ndarray], Running]:
    """Return a transformation as what begins at parameters."""

    def begin(params: np.ndarray) -> Running:
        carry = [jnp.asarray(params), jax.jit(tx.init)(params)]
        program = stepper(tx, 1)

        def step(grads: jax.Array) -> None:
            carry[:] = jax.block_until_ready(program(*carry, grads))

        def held() -> int:
            return sum(x.nbytes for x in jax.tree.leaves(carry[1]) if x.ndim)

        return Running(jnp.asarray, step, lambda: np.asarray(carry[0]), held)

    return begin


def of_torch(kind: Callable, compiled: bool = False, **numbers: float) -> Callable:
    """Return an optimizer of PyTorch's kind as what begins at parameters."""

    def begin(params: np.ndarray) -> Running:
        torch = importlib.import_module("torch")
        torch.set_num_threads(CORES)
        leaf = torch.nn.Parameter(torch.from_numpy(params.copy()))
        optimizer = kind([leaf], **numbers)
        run = torch.compile(optimizer.step) if compiled else optimizer.step

        def step(grads: Any) -> None:
            leaf.grad = grads
            run()

        def tensors(x: Any) -> Iterator[Any]:
            for name in x.__tensor_flatten__()[0] if hasattr(x, "__tensor_flatten__") else ():
                yield name, getattr(x, name)

        def held() -> int:
            parts = [
                part
                for name, x in optimizer.state[leaf].items()
                if isinstance(x, torch.Tensor)
                for part in (list(tensors(x)) or [(name, x)])
            ]
            # A map from codes to numbers is one for all parameters.
            moments = [x for name, x in parts if x.ndim and not name.startswith("qmap")]
            return sum(x.numel() * x.element_size() for x in moments)

        give = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
        return Running(give, step, lambda: leaf.detach().numpy().copy(), held)

    return begin


def of_mlx(kind: Callable, dtype: str, **numbers: Any) -> Callable[[np.ndarray], Running]:
    """Return an optimizer of MLX as what begins at parameters."""

    def begin(params: np.ndarray) -> Running:
        mx = importlib.import_module("mlx.core")
        give = lambda x: mx.array(x).astype(getattr(mx, dtype))  # noqa: E731
        optimizer, carry = kind(**numbers), [{"w": give(params)}]

        def step(grads: Any) -> None:
            carry[0] = optimizer.apply_gradients({"w": grads}, carry[0])
            mx.eval(carry[0], optimizer.state)

        def held() -> int:
            return sum(x.nbytes for x in optimizer.state["w"].values())

        return Running(give, step, lambda: np.array(carry[0]["w"].astype(mx.float32)), held)

    return begin


def in_jax() -> Iterator[Entrant]:
    """Yield float32 of each algorithm, our formats, and those of others as their sources say."""
    rmsprop, adam = dialects.torch(**RMSPROP), optax.adam(RMSPROP["lr"])
    yield Entrant("RMSprop", "optax_rmsprop", "float32", of_optax(rmsprop))
    for name, codec in (("uint16", storage.uint16()), ("uint8", storage.uint8())):
        stored = storage.stored_as(rmsprop, codec)
        yield Entrant("RMSprop", "optax_rmsprop", name, of_optax(stored))
    yield Entrant("Adam", "Optax", "float32", of_optax(adam))
    for name, codecs in (
        ("uint16, int16", (storage.uint16(), storage.int16())),
        ("uint8, int8", (storage.uint8(), storage.int8())),
    ):
        stored = storage.stored_as(adam, *codecs)
        yield Entrant("Adam", "optax_rmsprop", name, of_optax(stored))
    for name, design in quantized.DESIGNS.items():
        if isinstance(design.second, quantized.Blocks):
            algorithm, tx = ("RMSprop", rmsprop) if design.first is None else ("Adam", adam)
            begin = of_optax(quantized.stored_as(tx, design))
            yield Entrant(algorithm, "computed here", name, begin, computed=True)


def in_torch() -> Iterator[Entrant]:
    """Yield PyTorch's fastest ways on a CPU, in float32."""
    optim = importlib.import_module("torch.optim")
    compiled = of_torch(optim.RMSprop, compiled=True, **RMSPROP)
    yield Entrant("RMSprop", "PyTorch, compiled", "float32", compiled)
    fused = of_torch(functools.partial(optim.Adam, fused=True), **RATE)
    yield Entrant("Adam", "PyTorch, fused", "float32", fused)


def in_bitsandbytes() -> Iterator[Entrant]:
    """Yield its two optimizers in 32 and in 8 bits."""
    optim = importlib.import_module("bitsandbytes.optim")
    yield Entrant("RMSprop", "bitsandbytes", "float32", of_torch(optim.RMSprop, **RMSPROP))
    yield Entrant("RMSprop", "bitsandbytes", "8 bits", of_torch(optim.RMSprop8bit, **RMSPROP))
    yield Entrant("Adam", "bitsandbytes", "float32", of_torch(optim.Adam, **RATE))
    yield Entrant("Adam", "bitsandbytes", "8 bits", of_torch(optim.Adam8bit, **RATE))


def in_torchao() -> Iterator[Entrant]:
    """Yield its Adam in 8 and in 4 bits; it has no RMSprop."""
    optim = importlib.import_module("torchao.optim")
    yield Entrant("Adam", "torchao", "8 bits", of_torch(optim.Adam8bit, **RATE))
    yield Entrant("Adam", "torchao", "4 bits", of_torch(optim.Adam4bit, **RATE))


def in_mlx() -> Iterator[Entrant]:
    """Yield its optimizers for parameters of two dtypes, which are those of the state."""
    optim = importlib.import_module("mlx.optimizers")
    rate = RMSPROP["lr"]
    for dtype in ("float32", "bfloat16"):
        numbers = {"learning_rate": rate, "alpha": RMSPROP["alpha"], "eps": RMSPROP["eps"]}
        yield Entrant("RMSprop", "MLX", dtype, of_mlx(optim.RMSprop, dtype, **numbers))
        adam = of_mlx(optim.Adam, dtype, learning_rate=rate, bias_correction=True)
        yield Entrant("Adam", "MLX", dtype, adam)


LIBRARIES = {
    "torch": in_torch, "bitsandbytes": in_bitsandbytes, "torchao": in_torchao, "mlx": in_mlx,
}  # fmt: skip


def entrants() -> Iterator[Entrant]:
    """Yield all that can take part here."""
    yield from in_jax()
    for package, found in LIBRARIES.items():
        if util.find_spec(package):
            yield from found()


def gradients(steps: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield Gaussian gradients with sizes that differ by powers of ten, and a mean of a tenth."""
    rng = np.random.default_rng(5)
    scale = rng.lognormal(0, 1.4, shape)
    for _ in range(steps):
        yield (scale * (rng.normal(size=shape) + 0.1)).astype(np.float32)


def gone(entrant: Entrant, steps: int) -> np.ndarray:
    """Return the distance that parameters go from 0 on the gradients."""
    running = entrant.begin(np.zeros(SMALL, np.float32))
    for each in gradients(steps, SMALL):
        running.step(running.give(each))
    return running.params()


def measured(everyone: list[Entrant], repeats: int, steps: int, side: int) -> list[str]:
    """Return the lines of the table."""
    begun = {e: e.begin(np.ones((side, side), np.float32)) for e in everyone if not e.computed}
    (grads,) = gradients(1, (side, side))
    given = {entrant: running.give(grads) for entrant, running in begun.items()}

    def call(entrant: Entrant) -> Callable[[int], None]:
        def steps(k: int) -> None:
            for _ in range(k):
                begun[entrant].step(given[entrant])

        return steps

    times = timed({e: call(e) for e in begun}, repeats, side < SIDE, before=1)
    milliseconds = {e: [1e3 * s for s in quartiles(found)] for e, found in times.items()}
    lines = [
        "| algorithm | library | state | bytes a parameter | step, ms (quartiles) "
        "| over JAX's float32 | error of the distance |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    exact: dict[str, tuple[float, np.ndarray]] = {}  # of the first of each algorithm
    for entrant in sorted(everyone, key=lambda e: e.algorithm, reverse=True):
        far, cells = gone(entrant, steps), ["", "", ""]
        if not entrant.computed:
            low, middle, high = milliseconds[entrant]
            reference, true = exact.setdefault(entrant.algorithm, (middle, far))
            held = f"{begun[entrant].held() / side**2:.3f}"
            time_ = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            cells = [held, time_, f"{middle / reference:.2f}"]
        true = exact[entrant.algorithm][1]
        error = np.linalg.norm(far - true) / np.linalg.norm(true)
        names = entrant.algorithm, entrant.maker, entrant.format
        lines.append(f"| {' | '.join((*names, *cells, f'{error:.2%}'))} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="of the timed step, 2 or more")
    parser.add_argument("--steps", type=int, default=1000, help="on the given gradients")
    parser.add_argument("--side", type=int, default=SIDE, help="of the leaf that is timed")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    flags = ["--repeats", str(options.repeats), "--steps", str(options.steps)]
    flags += ["--side", str(options.side)]
    theirs = {name: metadata.version(name) if util.find_spec(name) else "" for name in LIBRARIES}
    heading = environment.heading(
        "States of few bits, with each library's kernels", "benchmarks.rivals", flags,
        libraries=", ".join(f"{name} {v or 'not installed'}" for name, v in theirs.items()),
        threads=str(CORES), date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    lines = [*heading, CAPTION.format(side=options.side, steps=options.steps), ""]
    lines += measured(list(entrants()), options.repeats, options.steps, options.side)
    environment.write_text(options.results / "rivals.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
