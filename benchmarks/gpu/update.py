"""What an update costs: time, bytes and memory, beside Optax's, PyTorch's and a copy's."""

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rmsprop
from benchmarks.gpu import models
from benchmarks.gpu.part import Part
from benchmarks.gpu.turns import Call, tell
from optax_rmsprop import dialects, storage

INSIDE = 20  # steps of the program that has several
FOR_TORCH = 75  # seconds of the part
CAPTIONS = {
    "update": """\
A step is `params, state = step(params, state, grads)` with `optax.apply_updates`, jitted, params
and state donated; PyTorch's is `optimizer.step()`. A measurement is a loop of steps from Python
that waits once, at its end, and takes 20 ms at least (2 ms if small): median and quartiles of n.
All rows of a model and a dtype take turns, PyTorch's in a process of their own. In bytes a
parameter: what must move (params and state read and written, gradients read); what XLA says that
the program accesses; its temporary memory; the most memory at a step, as XLA plans and as the
device counts. The fraction is that of the copy's bandwidth at which what must move has moved. A
step that is shorter than its call from Python takes the time of the call: see below.""",
    "dispatch": f"""\
A step of many leaves: waited for each time, as by a loop that reads each loss; in a loop from
Python, as above; and inside one program of {INSIDE} steps, without Python, from which the
fraction is.""",
    "copy": "The copies that took turns with each model: bytes read and written, by time.",
}

# The formats of the state, by name, with the momentum at which they are timed.
STORED = {
    "uint16": (None, (storage.uint16(),)),
    "uint8": (None, (storage.uint8(),)),
    "uint16, int16": (0.9, (storage.uint16(), storage.int16())),
    "uint8, int8": (0.9, (storage.uint8(), storage.int8())),
}


def transformations() -> dict[tuple[str, str], optax.GradientTransformation]:
    """Return what is timed, by setting and by whose it is; Optax's first."""
    arguments = {"learning_rate": 1e-3, "decay": 0.99}
    found = {}
    for name, more in (
        ("momentum", {"momentum": 0.9}), ("plain", {}), ("centred", {"centered": True})
    ):  # fmt: skip
        found[name, "optax"] = optax.rmsprop(**arguments, **more)
        found[name, "optax_rmsprop"] = optax_rmsprop.rmsprop(**arguments, **more)
    for name, (momentum, codecs) in STORED.items():
        tx = storage.stored_as(optax_rmsprop.rmsprop(**arguments, momentum=momentum), *codecs)
        found[name, "optax_rmsprop"] = tx
    found["dialects.torch", "optax"] = optax.rmsprop(**arguments, eps_in_sqrt=False)
    found["dialects.torch", "optax_rmsprop"] = dialects.torch(1e-3, 0.99)
    return found


def arrays(shapes: models.Shapes, dtype: str, sign: float, seed: int) -> dict[str, jax.Array]:
    """Return normal numbers in the shapes; a million of them, repeated."""
    block = sign * np.random.default_rng(seed).standard_normal(1 << 20)
    block = block.astype(jnp.dtype(dtype))
    return {name: jax.device_put(np.resize(block, shape)) for name, shape in shapes.items()}


def stepper(tx: optax.GradientTransformation, steps: int) -> Callable:
    """Return the jitted step, or a program of several."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def several(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            # A gradient of its own for each step, so that nothing is computed before the loop.
            sign = 1 - 2 * (i % 2)
            return step(*carry, jax.tree.map(lambda g: g * sign.astype(g.dtype), grads))

        return jax.lax.fori_loop(0, steps, body, (params, state))

    return jax.jit(step if steps == 1 else several, donate_argnums=(0, 1))


def size(tree: Any) -> int:
    """Return the bytes of the arrays; scalars, such as the count, are none."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.ndim)


def known(program: Any, params: Any, state: Any, before: dict) -> dict[str, float | None]:
    """Return what must move, is accessed, and is needed besides, in bytes a parameter.

    `before` is what the device told before the first step.
    """
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes
    planned += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    after, counted = jax.devices()[0].memory_stats() or {}, None
    # The device tells the peak of the process, which is the step's only if that raised it.
    if after.get("peak_bytes_in_use", 0) > before.get("peak_bytes_in_use", 0):
        counted = after["peak_bytes_in_use"] - after["bytes_in_use"]
        counted += 2 * size(params) + size(state)
    parameters = sum(p.size for p in params.values())
    found = {
        "must move": 3 * size(params) + 2 * size(state), "accessed": cost.get("bytes accessed"),
        "temporary": memory.temp_size_in_bytes, "peak, planned": planned, "peak, counted": counted,
    }  # fmt: skip
    found = {name: x if x is None else x / parameters for name, x in found.items()}
    return found | {"parameters": parameters}


def copies(elements: int) -> dict[tuple[str, str], Call]:
    """Return a copy to another array, and a change in place."""
    held = jnp.arange(elements, dtype=jnp.float32)
    copy, negate = jax.jit(jnp.copy), jax.jit(jnp.negative, donate_argnums=0)

    def out_of_place(k: int) -> None:
        for _ in range(k):
            new = copy(held)
        new.block_until_ready()

    def in_place(k: int) -> None:
        nonlocal held
        for _ in range(k):
            held = negate(held)
        held.block_until_ready()

    return {("copy", "XLA, to another array"): out_of_place, ("copy", "XLA, in place"): in_place}


def measure(part: Part, where: dict[str, str], shapes: models.Shapes, dispatch: bool) -> None:
    """Time every transformation on a model, and add its rows."""
    txs, small, dtype = transformations(), part.options.small, where["dtype"]
    params = arrays(shapes, dtype, 1, seed=0)  # of all: each step hands them to the next
    grads = [arrays(shapes, dtype, sign, seed=1) for sign in (1, -1)]  # with a variance
    states, rows, calls, programs = {}, {}, {}, {}

    def caller(key: Any, program: Any, waiting: bool = False) -> Call:
        def wait() -> None:  # All that a program returns is there at once.
            next(iter(params.values())).block_until_ready()

        def call(k: int) -> None:
            nonlocal params
            for i in range(k):
                params, states[key] = program(params, states[key], grads[i % 2])
                if waiting:
                    wait()
            wait()

        return call

    with ThreadPoolExecutor() as pool:
        for key, tx in txs.items():
            given = params, jax.eval_shape(tx.init, params), grads[0]
            lowered = {"init": jax.jit(tx.init).lower(params), "step": stepper(tx, 1).lower(*given)}
            if dispatch:
                lowered["inside"] = stepper(tx, INSIDE).lower(*given)
            programs[key] = {kind: pool.submit(each.compile) for kind, each in lowered.items()}
    for key in txs:
        init, step, *inside = (program.result() for program in programs[key].values())
        states[key] = jax.block_until_ready(init(params))
        before = jax.devices()[0].memory_stats() or {}
        calls[key, "loop"] = caller(key, step)
        calls[key, "loop"](1)
        rows[key] = known(step, params, states[key], before)
        if dispatch:
            calls[key, "waiting"] = caller(key, step, waiting=True)
            calls[key, "inside"] = caller(key, *inside)
    elements = 1 << 20 if small else 1 << 28
    say = functools.partial(add, part)
    tell(say, where, rows, calls | copies(elements), 8 * elements, small, INSIDE)


def add(part: Part, table: str, row: dict[str, Any]) -> None:
    """Add a row, and how its time compares to Optax's."""
    names = ("model", "dtype", "setting")
    same = [row.get(name) for name in names]
    if same[2] in STORED:
        same[2] = "momentum" if STORED[same[2]][0] else "plain"
    for other in part.tables["update"] if "step, µs" in row else ():
        if other["by"] == "optax" and [other[name] for name in names] == same:
            row["× Optax"] = row["step, µs"][1] / other["step, µs"][1]
    part.add(table, row)


def torch(part: Part) -> None:
    """Run PyTorch's rows in a process of their own, and add them as they come."""
    if util.find_spec("torch") is None:
        part.add("update", {"by": "PyTorch", "error": "is not installed"})
        return
    command = [sys.executable, "-m", "benchmarks.gpu.torch_update", f"{part.left()}"]
    command += ["--small"] if part.options.small else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = threading.Timer(part.left() + 8, process.kill)
    end.start()
    last = ""
    for line in process.stdout or ():
        if line.startswith("{"):
            row = json.loads(line)
            add(part, row.pop("table"), row)
        else:
            last = line.strip() or last
    if process.wait():
        part.add("update", {"by": "PyTorch", "error": f"ended early: {last[:100]}"})
    end.cancel()


def main() -> None:
    """Time the models, the most important first, until the time is over."""
    part = Part("update", "What an update costs", CAPTIONS)
    shapes = models.models(part.options.small)
    for model, dtype in ((x, y) for y in models.DTYPES for x in shapes):
        where = {"model": model, "dtype": dtype}
        if part.left() < FOR_TORCH + 15:
            part.add("update", where | {"by": "all", "error": "no time left"})
            continue
        try:
            measure(part, where, shapes[model], models.calls_matter(shapes[model], dtype))
        except jax.errors.JaxRuntimeError as error:
            part.failed = True
            reason = str(error).splitlines()[0][:100]
            part.add("update", where | {"by": "all", "error": reason})
    torch(part)
    part.finish()


if __name__ == "__main__":
    main()
