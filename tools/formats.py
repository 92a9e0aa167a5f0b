"""Test vectors of the formats of `storage`: `python -m tools.formats` writes docs/formats.json.

Each case is a row of float32 numbers with the random word of each, and the codes, the shared
exponents and the numbers that come back. Numbers are the bits of float32.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_rmsprop import storage
from optax_rmsprop._formats import array_of, read
from tools import environment

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "formats.json"
VERSION = 1
BLOCK = 8
CODECS = {
    "UE8M8": storage.uint16(),
    "UE5M3": storage.uint8(BLOCK),
    "SE8M7": storage.int16(),
    "SE4M3": storage.int8(BLOCK),
}
NEAREST = 1 << 31  # the word that rounds to nearest, halves away from zero


def rows() -> dict[str, np.ndarray]:
    """Return numbers that try every rule of the formats, a row of three blocks each."""
    rng = np.random.default_rng(0)
    size = 3 * BLOCK - 3  # the last block is shorter
    spread = rng.lognormal(0, 6, size)
    tiny = np.float32(2.0**-126) * rng.uniform(0, 40, size)
    ladder = 2.0 ** -np.arange(size) * np.linspace(1, 1.9999, size)
    special = np.resize([0.0, np.inf, 1.0, np.nan, 3.4028235e38, 1e-30, 2.0**-149], size)
    return {
        "spread over many powers of two": spread,
        "equal": np.full(size, 1.1),
        "from a block's largest to below its least": ladder,
        "near the least normal number": tiny,
        "zeros": np.zeros(size),
        "infinity, NaN, the largest number, subnormal numbers": special,
        "a negative number among others": np.resize([2.0, 0.25, 1.0, -69285.4, 3.0], size),
        "carried into the next power of two": np.resize([1.99999, 0.999999, 3e-3], size),
    }


def vectors() -> dict[str, Any]:
    """Return the test vectors of every format."""
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {"version": VERSION, "block": BLOCK, "formats": {}}
    for name, codec in CODECS.items():
        cases = []
        for row, numbers in rows().items():
            signs = np.resize([1, -1, -1], numbers.size) if name.startswith("S") else 1
            v = (numbers * signs).astype(np.float32)
            random = rng.integers(0, 1 << 32, v.size, dtype=np.uint32)
            for words in (np.full_like(random, NEAREST), random):
                cases.append({"row": row} | case(codec, v, words))
        found["formats"][name] = cases
    return found


def case(codec: Any, v: np.ndarray, words: np.ndarray) -> dict[str, list[int]]:
    """Return a case: what goes in, and what a format makes of it."""
    cell = jax.jit(codec.encode)(jnp.asarray(v), jnp.asarray(words))
    back = np.asarray(jax.jit(read)(cell)).view(np.uint32)
    exponents = jax.tree.leaves(cell.exponents)  # none, where nothing is shared
    return {
        "numbers": v.view(np.uint32).tolist(),
        "words": words.tolist(),
        "codes": np.asarray(array_of(cell)).tolist(),
        **({"exponents": np.asarray(exponents[0]).tolist()} if exponents else {}),
        "decoded": back.tolist(),
    }


def text() -> str:
    """Return the file, a case a line."""
    found = vectors()
    formats = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]"
        for name, cases in found["formats"].items()
    ]
    head = f'{{"version": {found["version"]}, "block": {found["block"]}, "formats": {{\n'
    return head + ",\n".join(formats) + "\n}}\n"


if __name__ == "__main__":
    environment.write_text(PATH, text())
