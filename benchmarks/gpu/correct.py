"""Whether the package computes on this device what it computes on a CPU."""

import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rmsprop
from benchmarks.gpu.part import Part
from optax_rmsprop import _formats, dialects, storage

CODECS = {
    "uint16": storage.uint16(), "uint8": storage.uint8(),
    "int16": storage.int16(), "int8": storage.int8(),
}  # fmt: skip
DECAY, STEPS, ELEMENTS = 0.9, 20, 4096
# In ulp, with |g| from 1/2 to 1 and signs that alternate. A second moment is a sum of positive
# terms, and a step rounds four times: half an ulp each. The mean of a centred one is wrong by 3
# half-ulps of 1 at most, which is 21 of the square of g - mu, as that is above 0.4 here. An update
# has half of its relative error, and rounds in a root (1 ulp), a division (2), a sum and a product.
# Both devices may be wrong by as much.
BOUNDS = {"second moment": 21 + 4 * STEPS, "update": (21 + 4 * STEPS) / 2 + 8}
CAPTIONS = {
    "codes": """\
Codes made on both, and what they decode to, from zeros, subnormals, all exponents, infinity, NaN
and random bits. `_formats` encodes once; `stored_as` is an `init`, and where rounding is stochastic
two updates.""",
    "trajectories": f"""\
The largest difference in {STEPS} steps of {ELEMENTS} elements, in ulp (epsilon times the value),
and its bound.""",
    "tests": "`pytest -m 'device and not slow'`, by file.",
    "failures": "What failed.",
}


def everything(rows: int) -> np.ndarray:
    """Return float32 bits of every kind, in their order and then shuffled: [rows, 300]."""
    random = np.random.default_rng(0)
    ends = np.array([0, 1, 2, 0x7FFFFF, 0x400000], np.uint32)
    exponents = (np.arange(512, dtype=np.uint32)[:, None] << 23) + ends  # the signs too
    special = np.array([0x7FC00000, 0xFFC00000, 0x7F7FFFFF], np.uint32)
    bits = np.concatenate([exponents.ravel(), special])
    bits = np.append(bits, random.integers(0, 2**32, 150 * rows - len(bits), np.uint32))
    return np.append(np.sort(bits), random.permutation(bits)).reshape(rows, 300).view(np.float32)


def on_both(function: Callable, *arrays: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the leaves that a function gives on the CPU and on the default device."""
    found = []
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        with jax.default_device(device):
            result = jax.jit(function)(*jax.device_put(arrays, device))
            found.append([np.asarray(leaf) for leaf in jax.tree.leaves(result)])
    return found[0], found[1]


def codes(part: Part) -> None:
    """Compare codes bit for bit."""
    values = everything(64 if part.options.small else 8192)
    # Moments that are whatever `update` got: no arithmetic touches them.
    carriers = {
        kind: optax.GradientTransformation(state, lambda g, _, params=None, s=state: (g, s(g)))
        for kind, state in (("u", optax.ScaleByRmsState), ("i", optax.TraceState))
    }

    def encoded(codec: storage.Codec, stochastic: bool) -> Callable:
        def function(v: jax.Array) -> Any:
            word = _formats.words(v.shape, "['w']", jnp.int32(7)) if stochastic else None
            cell = codec.encode(v, word)
            return cell, codec.decode(cell)

        return function

    def stored(codec: storage.Codec, stochastic: bool) -> Callable:
        kind, everywhere = repr(codec).removeprefix("storage.")[0], lambda path, leaf: codec
        formats = (everywhere, None) if kind == "u" else (None, everywhere)
        tx = storage.stored_as(carriers[kind], *formats)

        def function(v: jax.Array) -> Any:
            state = tx.init({"w": v})
            for _ in range(2 * stochastic):
                state = tx.update({"w": v}, state)[1]
            return state, storage.decoded(state)

        return function

    for name, codec in CODECS.items():
        for through, make in (("`_formats`", encoded), ("`stored_as`", stored)):
            for stochastic in (False, True):
                pairs = zip(*on_both(make(codec, stochastic), values), strict=True)
                different = sum(int((bits(a) != bits(b)).sum()) for a, b in pairs)
                rounding = "stochastic" if stochastic else "to nearest"
                row = {"format": name, "through": through, "rounding": rounding}
                part.add("codes", row | {"elements": values.size, "different": different})
                part.failed |= different > 0


def bits(x: np.ndarray) -> np.ndarray:
    """Return an array as integers, in which a NaN equals itself."""
    return x.view(f"u{x.dtype.itemsize}")


def trajectories(part: Part) -> None:
    """Compare second moments and updates over some steps."""
    magnitudes = np.random.default_rng(1).uniform(0.5, 1, (STEPS, ELEMENTS))
    gradients = magnitudes * (-1.0) ** np.arange(STEPS)[:, None]
    transformations = {
        "rmsprop": optax_rmsprop.rmsprop(1e-3, DECAY),
        "rmsprop, centred": optax_rmsprop.rmsprop(1e-3, DECAY, centered=True),
        "dialects.torch": dialects.torch(1e-3, DECAY),
        "dialects.torch, centred": dialects.torch(1e-3, DECAY, centered=True),
    }
    for dtype in ("float32", "float64"):
        for name, tx in transformations.items():

            def run(gradients: jax.Array, tx: optax.GradientTransformation = tx) -> Any:
                def step(state: Any, g: jax.Array) -> Any:
                    update, state = tx.update(g, state)
                    return state, (storage.second_moments(state)[0], update)

                return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1]

            with jax.enable_x64(dtype == "float64"):
                pairs = zip(*on_both(run, gradients.astype(dtype)), strict=True)
            for (a, b), (of, bound) in zip(pairs, BOUNDS.items(), strict=True):
                ulp = float(np.max(np.abs(a / b - 1))) / float(np.finfo(a.dtype).eps)
                row = {"transformation": f"`{name}`", "dtype": dtype, "of": of}
                part.add("trajectories", row | {"ulp": ulp, "bound": bound})
                part.failed |= not (ulp <= bound and b.dtype == dtype)


def tests(part: Part) -> None:
    """Run the tests that a device can break, and tabulate them by file."""
    # Of the plugins that happen to be installed, only those that the tests need: the others' own
    # warnings would be errors. The workers share the card.
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "XLA_CLIENT_MEM_FRACTION": "0.06"
    }  # fmt: skip
    environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    small = ["-k", "test_extremes and rmsprop-everything"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        junit = Path(folder, "junit.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "device and not slow",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        command += ["-p", "xdist", "-p", "hypothesispytest", f"--junitxml={junit}"]
        command += small if part.options.small else ["-n", "12"]
        # Left out is what needs the packages of the notebooks, and no device. The recordings and
        # the codes come first, should the time be over before the rest.
        command += ["--continue-on-collection-errors"]
        command += [f"--ignore=tests/test_{name}.py" for name in ("documents", "release")]
        command += ["tests/test_goldens.py", "tests/test_storage.py", "tests"]
        # Where it is ignored, as in a shell's background, pytest would ignore it too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        stopped = ""
        try:
            code = process.wait(part.left() - 10)
        except subprocess.TimeoutExpired:
            stopped = ", stopped because the time was over"
            process.send_signal(signal.SIGINT)  # It writes what it has.
            code = process.wait(20)
        output.seek(0)
        last = (output.read().strip().splitlines() or [""])[-1]
        tabulate(part, junit)
    if code:
        part.failed = True
        found = f"exit code {code}{stopped}: {last}"
        part.add("failures", {"test": "pytest", "assertion": found})


def tabulate(part: Part, junit: Path) -> None:
    """Add a row for every file of the tests, and one for every failure."""
    counts: dict[str, Counter] = {}
    cases = xml.etree.ElementTree.parse(junit).iter("testcase") if junit.exists() else []
    failures = []
    for case in cases:
        # The name of the class is the module's; a module that cannot be imported is the case.
        whole = f"{case.get('classname')}.{case.get('name')}"
        file = next((name for name in whole.split(".") if name.startswith("test_")), "")
        if not file:  # It was running when the time was over.
            continue
        broken = case.find("failure") if case.find("error") is None else case.find("error")
        outcome = "skipped" if case.find("skipped") is not None else "passed"
        counts.setdefault(file, Counter())["failed" if broken is not None else outcome] += 1
        if broken is not None:
            lines = (broken.text or broken.get("message", "")).splitlines()
            first = next((x[1:].strip() for x in lines if x.startswith("E ")), "")
            failures.append({"test": f"{file}: {case.get('name')}", "assertion": first[:200]})
    for file, count in sorted(counts.items()):
        row = {outcome: count[outcome] for outcome in ("passed", "failed", "skipped")}
        part.add("tests", {"file": file} | row)
    for failure in failures:
        part.add("failures", failure)


def main() -> None:
    """Compare, then test."""
    part = Part("correct", "Correctness on the device", CAPTIONS)
    if jax.default_backend() == "cpu":
        part.facts["device"] += ", which is compared with itself"
    codes(part)
    trajectories(part)
    tests(part)
    part.finish()


if __name__ == "__main__":
    main()
