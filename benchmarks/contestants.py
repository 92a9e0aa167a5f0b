"""Steps that are timed beside each other on a CPU: those of JAX's programs, PyTorch and Keras."""

import importlib
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.gpu import models
from benchmarks.gpu.turns import Call
from benchmarks.gpu.update import arrays, stepper

COPIED = 1 << 27  # bytes, more than a cache holds
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Contestant(NamedTuple):
    """A step under its name, and what XLA says of its program, in bytes a parameter."""

    name: str
    call: Call
    temporary: float | None = None
    accessed: float | None = None
    least: float | None = None  # bytes that must move in a step


def of_program(name: str, step: Callable, params: Any, state: Any, grads: list) -> Contestant:
    """Return the contestant of a jitted step, which donates its parameters and state.

    The gradients alternate: centred second moments of equal ones would vanish.
    """
    program = step.lower(params, state, grads[0]).compile()
    parameters = sum(p.size for p in jax.tree.leaves(params))
    carry, turns = [params, state], itertools.cycle(grads)

    def call(k: int) -> None:
        for _ in range(k):
            carry[:] = jax.block_until_ready(program(*carry, next(turns)))

    temporary = program.memory_analysis().temp_size_in_bytes
    accessed = program.cost_analysis()["bytes accessed"]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, state)]
    least = 3 * sizes[0] + 2 * sizes[1]
    return Contestant(name, call, temporary / parameters, accessed / parameters, least)


def of_copy() -> Contestant:
    """Return the contestant that copies `COPIED` bytes."""
    arrays = [jnp.zeros(COPIED // 4), jnp.ones(COPIED // 4)]
    copy = jax.jit(lambda into, x: x + 0.0, donate_argnums=0, keep_unused=True)

    def call(k: int) -> None:
        for _ in range(k):
            arrays[0] = jax.block_until_ready(copy(*arrays))

    return Contestant("copy", call)


def of_optax(
    name: str, tx: optax.GradientTransformation, shapes: models.Shapes, dtype: str = "float32"
) -> Contestant:
    """Return the contestant of a transformation."""
    params = arrays(shapes, dtype, 1, seed=0)
    grads = [arrays(shapes, dtype, sign, seed=1) for sign in (1, -1)]
    return of_program(name, stepper(tx, 1), params, jax.jit(tx.init)(params), grads)


def of_keras(shapes: models.Shapes, **arguments: float) -> list[Contestant]:
    """Return the contestant of Keras's own RMSprop, with JAX as its backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    keras = importlib.import_module("keras")
    params = list(arrays(shapes, "float32", 1, seed=0).values())
    grads = [list(arrays(shapes, "float32", sign, seed=1).values()) for sign in (1, -1)]
    optimizer = keras.optimizers.RMSprop(**arguments)
    optimizer.build([keras.Variable(p) for p in params])

    def step(params: Any, state: Any, grads: Any) -> Any:
        return optimizer.stateless_apply(state, grads, params)

    state = [v.value for v in optimizer.variables]
    program = jax.jit(step, donate_argnums=(0, 1))
    return [of_program("Keras with the JAX backend", program, params, state, grads)]


def of_torch(shapes: models.Shapes, compiled: bool, **arguments: float) -> list[Contestant]:
    """Return the contestants of PyTorch's RMSprop: the ways in which it runs on a CPU.

    Args:
      shapes: Of the parameters.
      compiled: Whether to try `torch.compile` too, which takes a C++ compiler and its time.
      **arguments: Of the optimizer.
    """
    torch = importlib.import_module("torch")

    def contestant(way: str, threads: int) -> Contestant:
        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes.values()]
        for p in params:
            p.grad = torch.randn_like(p)  # The same at all steps, which takes as long as others.
        step = torch.optim.RMSprop(params, foreach=way != "foreach=False", **arguments).step
        if way == "compiled":
            step = torch.compile(step)
            step()  # An error of its compiler comes here.

        def call(k: int) -> None:
            torch.set_num_threads(threads)
            for _ in range(k):
                step()

        return Contestant(f"PyTorch, {way}, threads: {threads}", call)

    # XLA takes all cores; one thread waits for no other on a machine that has more to do.
    ways = [(way, n) for way in ("foreach=False", "foreach=True") for n in (CORES, 1)]
    found = [contestant(*way) for way in dict.fromkeys(ways)]
    if compiled:
        try:
            found.append(contestant("compiled", CORES))
        except Exception as error:  # Whatever its compiler raises.
            print(f"torch.compile failed: {error}".splitlines()[0])
    return found
