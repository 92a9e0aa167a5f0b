"""The update of a large model, compiled for many devices without having one.

    python -m benchmarks.plan

writes `results/plan.md`: bytes of state on a device, collectives, and the time of compilation.
"""

import argparse
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_rmsprop
from optax_rmsprop import sharding, storage
from tools import environment

# A decoder of 128 layers, stacked as `jax.lax.scan` takes them: 10^11 parameters.
LAYERS, WIDTH, VOCABULARY = 128, 8192, 131_072
SHAPES = {
    "embedding": ((VOCABULARY, WIDTH), P("model", "data")),
    "attention_in": ((LAYERS, WIDTH, 3 * WIDTH), P(None, "data", "model")),
    "attention_out": ((LAYERS, WIDTH, WIDTH), P(None, "model", "data")),
    "mlp_in": ((LAYERS, WIDTH, 4 * WIDTH), P(None, "data", "model")),
    "mlp_out": ((LAYERS, 4 * WIDTH, WIDTH), P(None, "model", "data")),
    "norm": ((LAYERS, WIDTH), P(None, "data")),
}
COLLECTIVE = re.compile(r"\b(all-\w+|reduce-scatter|collective-\w+|ragged-all-to-all)(-start)?\(")


def everywhere(codec: storage.Codec) -> storage.Choice:
    """A codec for the embedding too."""
    return lambda path, leaf: codec


def transformations() -> dict[str, optax.GradientTransformation]:
    """The rows of the table."""
    inner = optax_rmsprop.rmsprop(1e-3, bias_correction=True)
    return {
        "`rmsprop`": inner,
        "`rmsprop`, `uint16()`": storage.stored_as(inner, everywhere(storage.uint16())),
        "`rmsprop`, `uint8()`": storage.stored_as(inner, everywhere(storage.uint8())),
        "`optax.adam`": optax.adam(1e-3),
    }


def plan(tx: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> tuple[int, list[str], float]:
    """Return the bytes of state on a device, the collectives, and the seconds of compiling."""
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for name, (shape, spec) in SHAPES.items()
    }
    shardings = sharding.state_shardings(tx, params)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        shardings,
    )
    places = jax.tree.map(lambda p: p.sharding, params), shardings
    update = jax.jit(tx.update, donate_argnums=1, out_shardings=places, keep_unused=True)
    lowered = update.lower(params, state, params)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    found = sorted({match.group(1) for match in COLLECTIVE.finditer(compiled.as_text())})
    # What is donated and given back is the state, all of it.
    return compiled.memory_analysis().alias_size_in_bytes, found, seconds


def main() -> None:
    """Compile for every transformation, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=512, help="a multiple of 8")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    # An automatic mesh, because there the partitioner decides, and could communicate.
    mesh = jax.make_mesh(
        (options.devices // 8, 8), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )
    count = sum(jnp.prod(jnp.array(shape, float)) for shape, _ in SHAPES.values())
    lines = [
        f"# The update of {count:.3g} parameters on {options.devices} devices, compiled ahead",
        "",
        f"    python -m benchmarks.plan --devices {options.devices}",
        "",
        f"- mesh: data {options.devices // 8}, model 8; matrices split over both, norms over data",
        f"- compiled for {options.devices} CPU devices on one machine",
        *(f"- {name}: {value}" for name, value in environment.facts().items()),
        "",
        "| transformation | state, MiB a device | bytes a parameter | collectives | compiling, s |",
        "|---|--:|--:|---|--:|",
    ]
    for name, tx in transformations().items():
        size, collectives, seconds = plan(tx, mesh)
        each = size * options.devices / float(count)
        lines.append(
            f"| {name} | {size / 2**20:,.1f} | {each:.3f} | {', '.join(collectives) or 'none'} | "
            f"{seconds:.1f} |"
        )
        print(lines[-1], flush=True)
    options.results.mkdir(exist_ok=True)
    environment.write_text(options.results / "plan.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
