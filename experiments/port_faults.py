"""Does `compare` name what was changed in one of two trainings, and nothing else?

    python -m experiments.port_faults --workdir runs/port_faults

Ours and theirs train the same small network on handwritten digits with an RMSprop in NumPy, whose
rule and numbers are drawn. Theirs sums its batches in another order, as another framework would.
A fault changes one thing in theirs; a pair changes two. It is named if the first of `causes` leaves
rounding alone, and is that change and no other. A trial that is in `--workdir` is not made again.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from examples.cifar10.main import exit_code
from experiments import common
from optax_rmsprop import compare
from tools import environment

STEPS, BATCH = 20, 32
SIZES = (64, 12, 12, 10)
KERNELS = [f"layer_{i}/kernel" for i in range(len(SIZES) - 1)]
BIASES = [f"layer_{i}/bias" for i in range(len(SIZES) - 1)]

Trial: TypeAlias = tuple[tuple[str, ...], int]  # the faults, and a seed

TEXT = """Two trainings of a network of 64, 12, 12 and 10 units by a random RMSprop in NumPy: a
rule, its numbers, float32 or float64, and a schedule are drawn for each. One of the two sums its
batches in another order, as another framework does, and has the faults of the row. They are named
if the first of `causes` leaves rounding alone and is these changes and no others; without a fault,
if nothing at all is found.
"""


@dataclasses.dataclass(frozen=True)
class Training:
    """All of a training: the rule of its optimizer, its data, and what may be wrong with them."""

    seed: int = 0
    dtype: str = "float32"
    eps: float = 1e-3
    inside: bool = True
    decay: float = 0.9
    momentum: float = 0.0
    nesterov: bool = False
    rate_in_buffer: bool = True
    start: float = 0.0
    centered: bool = False
    corrected: bool = False
    sign: float = 1.0
    weight_decay: float = 0.0
    decoupled: bool = False
    scaled_decay: bool = True
    decayed: Callable[[str], bool] = bool
    clip: str = ""  # "value", "value after decay", "leaf", "global"
    bound: float = 0.0
    schedule: Callable[[int], float] = lambda step: 1e-3
    recorded: bool = False
    gain: Callable[[str], float] = lambda name: 1.0
    # The gradients, before they are recorded and after.
    gradient: Callable[[int, dict, dict], dict] = lambda step, grads, params: grads
    unseen: Callable[[int, dict], dict] = lambda step, grads: grads
    initial: Callable[[dict], dict] = dict
    batch: Callable[[int], int] = lambda step: step
    frozen: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()
    restart: int = -1
    carried: int = 0
    rounding: str = ""
    noise: bool = False


def images() -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data / 16.0, data.target


def begin(seed: int, dtype: Any) -> dict[str, np.ndarray]:
    """Draw the weights."""
    rng = np.random.default_rng(seed)
    params = dict[str, np.ndarray]()
    for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
        params[KERNELS[i]] = (rng.normal(size=(a, b)) / np.sqrt(a)).astype(dtype)
        params[BIASES[i]] = (0.1 * rng.normal(size=b)).astype(dtype)
    return params


def gradients(params: dict, x: np.ndarray, y: np.ndarray) -> dict:
    """Backpropagate the mean cross-entropy of two hidden layers of tanh."""
    layers = [x]
    for kernel, bias in zip(KERNELS, BIASES, strict=True):
        z = layers[-1] @ params[kernel] + params[bias]
        layers.append(np.tanh(z) if kernel != KERNELS[-1] else z)
    odds = np.exp(layers[-1] - layers[-1].max(1, keepdims=True))
    delta = odds / odds.sum(1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    grads = dict[str, np.ndarray]()
    for i in reversed(range(len(KERNELS))):
        grads[KERNELS[i]], grads[BIASES[i]] = layers[i].T @ delta, delta.sum(0)
        delta = (delta @ params[KERNELS[i]].T) * (1 - layers[i] ** 2)
    return {name: grads[name].astype(x.dtype) for name in params}


def train(t: Training) -> Any:
    """Train, and return what a recording has."""
    x, y = images()
    dtype = np.dtype(t.dtype)
    rows = np.random.default_rng(t.seed).permutation(len(x))
    order = np.random.default_rng(1).permutation(BATCH) if t.noise else np.arange(BATCH)
    params = {n: _rounded(p, t) for n, p in t.initial(begin(t.seed, dtype)).items()}
    state = {n: _State(p, t) for n, p in params.items()}
    kept, seen = [params], list[dict]()
    count = 0
    for step in range(-t.carried, STEPS):
        if step == t.restart:
            state, count = {n: _State(p, t) for n, p in params.items()}, 0
        chosen = rows[(t.batch(step) % 40) * BATCH :][:BATCH][order]
        grads = t.gradient(step, gradients(params, x[chosen].astype(dtype), y[chosen]), params)
        grads = {n: g.astype(dtype) for n, g in grads.items()}
        if step in t.skipped:
            new = params
        else:
            new, count = _update(t, params, t.unseen(step, grads), state, count, step), count + 1
        if step >= 0:
            kept.append(new)
            seen.append(grads)
            params = new
    return types.SimpleNamespace(
        params={n: np.stack([row[n] for row in kept]) for n in params},
        grads={n: np.stack([row[n] for row in seen]) for n in params},
        steps=np.arange(STEPS),
        learning_rates=np.array([t.schedule(k) for k in range(STEPS)]) if t.recorded else None,
        settings={},
    )


class _State:
    """The accumulators of a leaf."""

    def __init__(self, p: np.ndarray, t: Training) -> None:
        self.nu = np.full_like(p, t.start)
        self.mu, self.buffer = np.zeros_like(p), np.zeros_like(p)


def _update(
    t: Training, params: dict, grads: dict, state: dict, count: int, step: int
) -> dict[str, np.ndarray]:
    """One step of RMSprop, in the precision of the parameters."""
    f = np.dtype(t.dtype).type
    rate, decay, keep = f(t.schedule(max(step, 0))), f(t.decay), f(1 - t.decay)
    norms = {n: np.sqrt((g.astype(float) ** 2).sum()) for n, g in grads.items()}
    total = np.sqrt(sum(x**2 for x in norms.values()))
    new = dict[str, np.ndarray]()
    for n, p in params.items():
        g, s = f(t.sign) * grads[n], state[n]
        weight = f(t.weight_decay if t.decayed(n) else 0.0)
        if t.clip in ("leaf", "global"):
            g = g * f(min(1.0, t.bound / (norms[n] if t.clip == "leaf" else total)))
        if t.clip == "value":
            g = np.clip(g, -f(t.bound), f(t.bound))
        if not t.decoupled:
            g = g + weight * p
        if t.clip == "value after decay":
            g = np.clip(g, -f(t.bound), f(t.bound))
        s.nu = decay * s.nu + keep * g * g
        nu = s.nu
        if t.centered:
            s.mu = decay * s.mu + keep * g
        done = f(1 - t.decay ** (count + 1) if t.corrected else 1.0)
        nu, mu = nu / done, s.mu / done
        nu = np.maximum(nu - mu * mu, 0)
        u = g / (np.sqrt(nu + f(t.eps)) if t.inside else np.sqrt(nu) + f(t.eps))
        into = rate * u if t.rate_in_buffer else u
        s.buffer = f(t.momentum) * s.buffer + into
        move = into + f(t.momentum) * s.buffer if t.nesterov else s.buffer
        move = move if t.rate_in_buffer else rate * move
        if t.decoupled:
            move = move + (rate * weight if t.scaled_decay else weight) * p
        move = move * f(t.gain(n))
        new[n] = p if n in t.frozen else _rounded(p - move, t)
    return new


def _rounded(p: np.ndarray, t: Training) -> np.ndarray:
    if not t.rounding:
        return p
    import jax.numpy as jnp

    return p.astype(jnp.dtype(t.rounding)).astype(p.dtype)


# Schedules are functions of the step.
def cosine(rate: float) -> Callable[[int], float]:
    """Return a cosine schedule to a tenth."""
    return lambda k: rate * (0.55 + 0.45 * np.cos(np.pi * k / STEPS))


def warm_up(rate: float, steps: int = 8) -> Callable[[int], float]:
    """Return a linear warm-up."""
    return lambda k: rate * min(1.0, (k + 1) / steps)


def drawn(rng: np.random.Generator, seed: int, **fixed: Any) -> Training:
    """Draw a rule and its numbers."""
    rate = 10 ** rng.uniform(-3, -2)
    momentum = float(rng.choice([0.0, 0.8, 0.9]))
    weight = float(rng.choice([0.0, 10 ** rng.uniform(-3, -1)]))
    schedule, recorded = [
        (lambda k: rate, False),
        (lambda k: rate, True),
        (cosine(rate), True),
        (warm_up(rate), True),
    ][rng.integers(4)]
    values = {
        "dtype": str(rng.choice(["float32", "float32", "float64"])),
        "eps": 10 ** rng.uniform(-5, -3),
        "inside": bool(rng.integers(2)),
        "decay": float(rng.choice([0.9, 0.95, 0.99])),
        "momentum": momentum,
        "nesterov": bool(momentum) and bool(rng.integers(2)),
        "rate_in_buffer": bool(rng.integers(2)),
        "start": float(rng.choice([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])),
        "centered": bool(rng.integers(4) == 0),
        "corrected": False,
        "weight_decay": weight,
        "decoupled": bool(weight) and bool(rng.integers(2)),
        "schedule": schedule,
        "recorded": recorded,
    }
    values |= fixed
    if values["start"] == 0 and "corrected" not in fixed:
        values["corrected"] = bool(rng.integers(4) == 0)
    return Training(seed, **values)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What it is called in a `Change`, what it needs of ours, and what it changes in theirs."""

    name: str
    change: Callable[[np.random.Generator, Training], dict]
    needs: Callable[[np.random.Generator], dict] = lambda rng: {}
    domain: str = "rule"


def _pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[rng.integers(len(values))]


def _swapped(a: str, b: str) -> Callable[[dict], dict]:
    return lambda p: {**p, a: p[b], b: p[a]}


def _norm(t: Training, leaf: bool) -> float:
    """Return a bound that about half of the gradients exceed."""
    grads = train(dataclasses.replace(t, clip="")).grads
    norms = np.array([np.linalg.norm(g.reshape(STEPS, -1), axis=1) for g in grads.values()])
    return float(np.quantile(norms if leaf else np.linalg.norm(norms, axis=0), 0.5))


def _value(t: Training) -> float:
    """Return a bound that a tenth of the gradients exceed."""
    grads = train(dataclasses.replace(t, clip="")).grads
    return float(np.quantile(np.abs(np.concatenate([g.ravel() for g in grads.values()])), 0.9))


MOMENTUM = {"momentum": 0.9}
L2 = {"weight_decay": 0.03, "decoupled": False}
SCHEDULED = {"schedule": cosine(4e-3), "recorded": True}
HIDDEN = {"schedule": warm_up(4e-3), "recorded": False, "corrected": False, "centered": False,
          "weight_decay": 0.0}  # fmt: skip
SIMPLE = {"nesterov": False, "centered": False, "corrected": False}

FAULTS = {
    "epsilon across the root": Fault("denominator", lambda r, t: {"inside": not t.inside},
                                     lambda r: {"eps": 10 ** r.uniform(-4, -2), "start": 0.0}),
    "epsilon": Fault("eps", lambda r, t: {"eps": t.eps * 10 ** _pick(r, -2, -1, 1, 2)},
                     lambda r: {"eps": 10 ** r.uniform(-4, -2)}),
    "decay of nu": Fault("decay", lambda r, t: {"decay": 0.8 if t.decay == 0.9 else 0.9}),
    "momentum's value": Fault("momentum", lambda r, t: {"momentum": _pick(r, 0.5, 0.85, 0.95)},
                              lambda r: MOMENTUM),
    "no momentum": Fault("momentum", lambda r, t: {"momentum": 0.0}, lambda r: MOMENTUM),
    "momentum in theirs alone": Fault("momentum", lambda r, t: {"momentum": 0.9},
                                      lambda r: {"momentum": 0.0, "nesterov": False}),
    "learning rate": Fault(
        "learning_rate",
        lambda r, t: {"schedule": (lambda c: lambda k: c * t.schedule(k))(_pick(r, 0.1, 0.5, 3))}),
    "sum in place of mean": Fault(
        "gradient_factor",
        lambda r, t: {"gradient": lambda k, g, p: {n: np.float32(32) * x for n, x in g.items()}},
        domain="gradients"),
    "loss not unscaled": Fault(
        "gradient_factor",
        lambda r, t: {"unseen": lambda k, g: {n: x * np.float32(128) for n, x in g.items()}},
        lambda r: {"eps": 10 ** r.uniform(-4, -2), "start": 1.0, **L2}),
    "gradients negated": Fault(
        "gradient_factor",
        lambda r, t: {"gradient": lambda k, g, p: {n: -x for n, x in g.items()}},
        domain="gradients"),
    "maximized": Fault("maximize", lambda r, t: {"sign": -1.0}),
    "clipped after the decay": Fault(
        "clip", lambda r, t: {"clip": "value after decay"},
        lambda r: {**L2, "weight_decay": 0.3, "clip": "value", "bound": -1.0}),
    "not clipped": Fault("clip", lambda r, t: {"clip": ""},
                         lambda r: {"clip": _pick(r, "value", "global"), "bound": -1.0}),
    "clipped by value, not by norm": Fault(
        "clip", lambda r, t: {"clip": "value", "bound": t.bound},
        lambda r: {"clip": "global", "bound": 0.1}),
    "each leaf's norm clipped": Fault("clip", lambda r, t: {"clip": "leaf"},
                                      lambda r: {"clip": "global", "bound": -1.0}),
    "bound of clipping": Fault("clip_value", lambda r, t: {"bound": 2 * t.bound},
                               lambda r: {"clip": "value", "bound": -1.0}),
    "schedule off by one": Fault(
        "schedule", lambda r, t: {"schedule": lambda k: t.schedule(k + 1)}, lambda r: SCHEDULED),
    "warm-up off by one, unrecorded": Fault(
        "schedule", lambda r, t: {"schedule": lambda k: t.schedule(k - 1)}, lambda r: HIDDEN),
    "no warm-up": Fault(
        "schedule", lambda r, t: {"schedule": lambda k: 4e-3},
        lambda r: {"schedule": warm_up(4e-3), "recorded": True}),
    "schedule by epochs": Fault(
        "schedule", lambda r, t: {"schedule": lambda k: t.schedule(5 * (k // 5))},
        lambda r: SCHEDULED),
    "schedule missing, unrecorded": Fault(
        "schedule", lambda r, t: {"schedule": cosine(4e-3)},
        lambda r: {"schedule": lambda k: 4e-3, "recorded": False, "decoupled": False}),
    "parameters swapped": Fault("swapped", lambda r, t: {"initial": _swapped(*BIASES[:2])},
                                domain="layout"),
    "kernel transposed": Fault(
        "transposed", lambda r, t: {"initial": lambda p: {**p, KERNELS[1]: p[KERNELS[1]].T.copy()}},
        domain="layout"),
    "flattened in another order": Fault(
        "permuted",
        lambda r, t: {"initial": lambda p: {
            **p, KERNELS[0]: p[KERNELS[0]].reshape(4, 16, -1).swapaxes(0, 1).reshape(64, -1)}},
        domain="layout"),
    "other initial parameters": Fault(
        "initial_params", lambda r, t: {"initial": lambda p: {**p, KERNELS[2]: 2 * p[KERNELS[2]]}},
        domain="layout"),
    "rate after the buffer": Fault(
        "rate_in_buffer", lambda r, t: {"rate_in_buffer": not t.rate_in_buffer},
        lambda r: {**MOMENTUM, **SCHEDULED}),
    "Nesterov": Fault("nesterov", lambda r, t: {"nesterov": not t.nesterov}, lambda r: MOMENTUM),
    "decoupled decay": Fault("weight_decay_kind", lambda r, t: {"decoupled": not t.decoupled},
                             lambda r: {"weight_decay": 0.05, "decoupled": bool(r.integers(2))}),
    "decay missing": Fault("weight_decay_kind", lambda r, t: {"weight_decay": 0.0},
                           lambda r: {"weight_decay": 0.05, "decoupled": bool(r.integers(2))}),
    "weight decay's value": Fault(
        "weight_decay", lambda r, t: {"weight_decay": t.weight_decay * _pick(r, 0.1, 5)},
        lambda r: {"weight_decay": 0.05, "decoupled": bool(r.integers(2))}),
    "decay not scaled by the rate": Fault(
        "weight_decay_kind", lambda r, t: {"scaled_decay": False},
        lambda r: {"weight_decay": 0.05, "decoupled": True}),
    "biases not decayed": Fault(
        "weight_decay_of_leaf", lambda r, t: {"decayed": lambda n: "bias" not in n},
        lambda r: {**L2, "decoupled": bool(r.integers(2))}),
    "nu starts elsewhere": Fault("initial_scale", lambda r, t: {"start": 1.0 - t.start},
                                 lambda r: {"corrected": False}),
    "bias correction": Fault("bias_correction", lambda r, t: {"corrected": not t.corrected},
                             lambda r: {"start": 0.0}),
    "centred": Fault("centered", lambda r, t: {"centered": not t.centered}),
    "a leaf not trained": Fault("frozen", lambda r, t: {"frozen": (_pick(r, *KERNELS, *BIASES),)}),
    "a gradient missing": Fault(
        "missing_gradient",
        lambda r, t: {"gradient": (lambda name: lambda k, g, p: {**g, name: 0 * g[name]})(
            _pick(r, *KERNELS, *BIASES))}, lambda r: {"weight_decay": 0.0}, domain="gradients"),
    "rate of the biases": Fault("rate_of_leaf",
                                lambda r, t: {"gain": lambda n: 2.0 if "bias" in n else 1.0}),
    "gradients swapped in the optimizer": Fault(
        "swapped",
        lambda r, t: {"unseen": lambda k, g: {**g, BIASES[0]: g[BIASES[1]],
                                              BIASES[1]: g[BIASES[0]]}}),
    "an update skipped": Fault("skipped_step", lambda r, t: {"skipped": (int(r.integers(2, 9)),)}),
    "state begun anew": Fault("reset", lambda r, t: {"restart": int(r.integers(4, 12))}),
    "state carried over": Fault("carried_state", lambda r, t: {"carried": 5}, lambda r: SIMPLE),
    "other data": Fault(
        "data", lambda r, t: {"batch": lambda k: k + 20 * (k >= 0)}, domain="gradients"),
    "other data from a step on": Fault(
        "data", lambda r, t: {"batch": lambda k: k + 20 * (k >= 4)}, domain="gradients"),
    "L2 in the loss": Fault(
        "weight_decay",
        lambda r, t: {"gradient": lambda k, g, p: {n: x + np.float32(0.01) * p[n]
                                                   for n, x in g.items()}}, domain="gradients"),
    "parameters in bfloat16": Fault("precision", lambda r, t: {"rounding": "bfloat16"},
                                    lambda r: {"schedule": lambda k: 1e-2, "recorded": True}),
    "computed in float32": Fault("precision", lambda r, t: {"dtype": "float32"},
                                 lambda r: {"dtype": "float64"}),
}  # fmt: skip


def planted(names: Sequence[str], seed: int) -> tuple[Training, Training]:
    """Return theirs, with the faults, and ours."""
    rng = np.random.default_rng([seed, *map(ord, "".join(names))])
    needs = dict[str, Any]()
    for name in names:
        needs |= FAULTS[name].needs(rng)
    ours = drawn(rng, seed, **needs)
    if ours.bound < 0:
        by_value = "value" in ours.clip
        bound = _value(ours) if by_value else _norm(ours, False)
        ours = dataclasses.replace(ours, bound=bound)
    changes = dict[str, Any]()
    for name in names:
        changes |= FAULTS[name].change(rng, dataclasses.replace(ours, **changes))
    return dataclasses.replace(ours, noise=True, **changes), ours


def judged(names: Sequence[str], seed: int) -> dict[str, Any]:
    """Return whether the faults are named, what is, and the seconds of a processor that it took."""
    runs = [train(training) for training in planted(names, seed)]
    begun = time.process_time()
    found = compare.runs(*runs)
    seconds = time.process_time() - begun
    named = is_named(found, sorted(FAULTS[name].name for name in names))
    said = str(found.causes[0]) if found.causes else found.unexplained or "the runs agree"
    return {"faults": list(names), "seed": seed, "named": named, "said": said, "seconds": seconds}


def is_named(found: compare.Difference, wanted: list[str]) -> bool:
    """Return whether the first cause is these changes, no others, and leaves rounding alone."""
    if not wanted:
        return found == compare.Difference(None, notes=found.notes)
    best = found.causes[0] if found.causes else compare.Cause((), 1.0)
    return best.left == 0 and sorted(best.names) == wanted and not found.unexplained


def pairs(count: int) -> list[tuple[str, str]]:
    """Return a sample of the pairs of faults that do not touch the same thing."""
    fits = [
        (a, b)
        for a, b in itertools.combinations(FAULTS, 2)
        if FAULTS[a].name != FAULTS[b].name and not _clash(a, b)
    ]
    order = np.random.default_rng(0).permutation(len(fits))[:count]
    return [fits[i] for i in sorted(order)]


def _clash(a: str, b: str) -> bool:
    """Whether both set the same thing, or one hides the other."""
    rng = np.random.default_rng(0)
    base = Training(momentum=0.9, weight_decay=0.05, clip="value", bound=0.1)
    keys = [{*FAULTS[n].change(rng, base), *FAULTS[n].needs(rng)} for n in (a, b)]
    hides = {"other data", "other data from a step on", "other initial parameters"}
    layouts = [FAULTS[n].domain == "layout" for n in (a, b)]
    gradient = [FAULTS[n].domain == "gradients" for n in (a, b)]
    hidden = bool(hides & {a, b}) and any(gradient)
    return bool(keys[0] & keys[1]) or hidden or (any(layouts) and any(gradient)) or all(layouts)


def trials(seeds: int, sample: int) -> list[Trial]:
    """Return what to plant: every fault, nothing, and a sample of pairs."""
    singles = [((name,), seed) for seed in range(seeds) for name in FAULTS]
    return [*singles, *(((), seed) for seed in range(10 * seeds)), *((p, 0) for p in pairs(sample))]


def run(path: Path, wanted: list[Trial], workers: int) -> list[dict[str, Any]]:
    """Make the trials that are missing in a file, and return those that are wanted."""
    rows = common.finished(path)
    done = {(tuple(row["faults"]), row["seed"]) for row in rows}
    missing = [trial for trial in wanted if trial not in done]
    with (
        multiprocessing.get_context("spawn").Pool(workers) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for i, row in enumerate(pool.imap_unordered(_judged, missing), 1):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            words = "" if row["named"] else f": {', '.join(row['faults'])} is not named"
            print(f"{i} of {len(missing)}{words}", flush=True)
    return [row for row in rows if (tuple(row["faults"]), row["seed"]) in set(wanted)]


def _judged(trial: Trial) -> dict[str, Any]:
    return judged(*trial)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the tables, and what was not named."""
    yield "| | trainings | named, and nothing else | share | CPU seconds, median (largest) |"
    yield "|---|--:|--:|--:|--:|"
    for count, title in enumerate(("no fault", "one fault", "two faults")):
        group = [row for row in rows if len(row["faults"]) == count]
        if group:
            good, seconds = sum(r["named"] for r in group), [r["seconds"] for r in group]
            yield (
                f"| {title} | {len(group)} | {good} | {100 * good / len(group):.1f} % | "
                f"{statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
            )
    yield from ("", "| fault | named |", "|---|--:|")
    for name in FAULTS:
        group = [row["named"] for row in rows if row["faults"] == [name]]
        yield f"| {name} | {sum(group)} of {len(group)} |"
    yield from ("", "What was not named:", "")
    missed = [row for row in rows if not row["named"]]
    for row in missed:
        yield f"- {' and '.join(row['faults']) or 'no fault'}, seed {row['seed']}: {row['said']}"
    if not missed:
        yield "- nothing"


def study(
    results: Path, workdir: Path, seeds: int, sample: int, workers: int,
    arguments: Sequence[str] = (),
) -> None:  # fmt: skip
    """Plant every fault, and a sample of pairs, and write `port_faults.md`."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = run(workdir / "trials.jsonl", trials(seeds, sample), workers)
    lines = environment.heading(
        "Planted faults", "experiments.port_faults", arguments,
        data=f"handwritten digits of scikit-learn; {STEPS} steps of {BATCH}",
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    environment.write_text(
        results / "port_faults.md", "\n".join([*lines, TEXT, *table(rows)]) + "\n"
    )


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.port_faults", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each fault")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of faults")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT", help="no table")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the table")
    given = parser.parse_args(arguments)
    if given.only:
        for name, seed in itertools.product(given.only, range(given.seeds)):
            print(json.dumps(judged((name,), seed)), flush=True)
        return
    call = lambda: study(  # noqa: E731
        given.results, given.workdir, given.seeds, given.pairs, given.workers, arguments
    )
    sys.exit(exit_code(call))


if __name__ == "__main__":
    main(sys.argv[1:])
