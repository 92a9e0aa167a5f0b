"""PyTorch's rows of the update, as JSON lines, in a process that has no JAX on the card."""

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.turns import Call, tell

SETTINGS = {"momentum": {"momentum": 0.9}, "plain": {}, "centred": {"centered": True}}
FOREACH, COMPILED = "PyTorch, foreach", "PyTorch, compiled"
CUDA = torch.cuda.is_available()


def say(table: str, row: dict[str, Any]) -> None:
    """Print a row."""
    print(json.dumps({"table": table} | row), flush=True)


def wait() -> None:
    """Wait for the card."""
    if CUDA:
        torch.cuda.synchronize()


def caller(step: Any, waiting: bool = False) -> Call:
    """Return a function that does as many steps as it is told, and waits at their end."""

    def call(k: int) -> None:
        for _ in range(k):
            step()
            if waiting:
                wait()
        wait()

    return call


def prepare(params: list[torch.nn.Parameter], setting: str, by: str) -> tuple[Any, dict[str, Any]]:
    """Return a step of an optimizer, and what is known of it, in bytes a parameter."""
    optimizer = torch.optim.RMSprop(params, lr=1e-3, alpha=0.99, foreach=True, **SETTINGS[setting])
    step = optimizer.step
    if by == COMPILED:
        torch.compiler.reset()

        @torch.compile
        def step() -> None:
            optimizer.step()

    step()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    step()
    tensors = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    state, size = sum(t.nbytes for t in tensors), sum(p.nbytes for p in params)
    parameters = sum(p.numel() for p in params)
    row = {"parameters": parameters, "must move": (3 * size + 2 * state) / parameters}
    if CUDA:
        more = torch.cuda.max_memory_allocated() - before
        row["peak, counted"] = (2 * size + state + more) / parameters
    return step, row


def measure(where: dict[str, str], shapes: models.Shapes, small: bool, end: float) -> None:
    """Time the optimizers on a model, and say its rows."""
    kind = {"device": "cuda" if CUDA else "cpu", "dtype": getattr(torch, where["dtype"])}
    params = [torch.nn.Parameter(torch.randn(shape, **kind)) for shape in shapes.values()]
    for p in params:
        p.grad = torch.randn_like(p)  # The same at all steps, which takes as long as others.
    rows, calls = {}, {}
    # One setting is compiled: it takes long.
    for key in [*((setting, FOREACH) for setting in SETTINGS), ("momentum", COMPILED)]:
        try:
            if key[1] == COMPILED and time.monotonic() > end - 25:
                raise TimeoutError("no time left")
            step, rows[key] = prepare(params, *key)
        except Exception as error:  # Whatever its compiler raises.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            say("update", where | {"setting": key[0], "by": key[1], "error": reason})
            continue
        calls[key, "loop"] = caller(step)
        if models.calls_matter(shapes, where["dtype"]):
            calls[key, "waiting"] = caller(step, waiting=True)
    source = torch.randn(1 << 20 if small else 1 << 28, device=kind["device"])
    target = torch.empty_like(source)
    calls["copy", "PyTorch"] = caller(lambda: target.copy_(source))
    tell(say, where, rows, calls, 2 * source.nbytes, small)


def main() -> None:
    """Time the models until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    for dtype in models.DTYPES:
        for model, shapes in models.models(options.small).items():
            where = {"model": model, "dtype": dtype}
            try:
                if time.monotonic() > end - 10:
                    raise TimeoutError("no time left")
                measure(where, shapes, options.small, end)
            except (TimeoutError, torch.OutOfMemoryError) as error:
                say("update", where | {"by": "PyTorch", "error": str(error).splitlines()[0][:100]})


if __name__ == "__main__":
    main()
