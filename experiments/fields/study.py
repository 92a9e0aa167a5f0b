"""The optimizers, how a rate is chosen for each, and the file that keeps what is trained."""

import functools
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_rmsprop
from experiments import common
from experiments.fields.tasks import TASKS, Field, Make, Ready, Task, Trainer
from tools import environment


class Optimizer(NamedTuple):
    """A rule with a learning rate that is open, and the rates that are tried at first."""

    make: Make
    first: range  # of quarter-decades: 10 ** (k / 4)


def rmsprop(*first: int, **switches: Any) -> Optimizer:
    """Return RMSprop with the package's defaults, but for some switches."""
    return Optimizer(lambda rate: optax_rmsprop.rmsprop(rate, **switches), range(*first, 2))


def mvn_grad(**switches: Any) -> Optimizer:
    """Return momentum on variance-normalized gradients: centred RMSprop, and a mean of its steps.

    Both averages of the centred link have one decay, where its authors have two.
    """

    def make(rate: Any) -> optax.GradientTransformation:
        return optax_rmsprop.chain(
            optax_rmsprop.scale_by_stddev(**switches),
            optax_rmsprop.ema(0.9),
            optax_rmsprop.scale_by_learning_rate(rate),
        )

    return Optimizer(make, range(-14, -5, 2))


OPTIMIZERS = {
    "SGD, Nesterov 0.9": Optimizer(
        functools.partial(optax.sgd, momentum=0.9, nesterov=True), range(-8, 1, 2)
    ),
    "Adam": Optimizer(optax.adam, range(-12, -3, 2)),
    "RMSprop": rmsprop(-14, -5),
    "RMSprop, momentum 0.9": rmsprop(-16, -7, momentum=0.9),
    "RMSprop, centred": rmsprop(-14, -5, centered=True),
    "MVN-Grad": mvn_grad(),
}
SWITCHES = {
    "RMSprop, bias correction": rmsprop(-14, -5, bias_correction=True),
    "RMSprop, ν from 1": rmsprop(-14, -5, initial_scale=1.0),
    "RMSprop, decay 0.99": rmsprop(-14, -5, decay=0.99),
    "MVN-Grad, bias correction": mvn_grad(bias_correction=True),
}
SWITCHED = "mnist1d-cnn", "sentences-cnn"  # tasks on which the switches are tried, too
FEWEST, MOST = -28, 16  # quarter-decades: beyond, no rate is looked for


def optimizers(name: str) -> dict[str, Optimizer]:
    """Return the optimizers that are tried on a task."""
    return OPTIMIZERS | (SWITCHES if name in SWITCHED else {})


def ready(task: Task) -> Ready:
    """Make a task's data, and return what trains on them."""
    field = task.field()
    return functools.partial(trainer, task, field) if isinstance(field, Field) else field


def trainer(task: Task, field: Field, make: Make, steps: int) -> Trainer:
    """Train all seeds at once.

    The rate falls to 0 by half a cosine. The late loss is the mean of the last tenth of the steps.
    """
    shape = optax.cosine_decay_schedule(1.0, steps)

    def train(rate: Any, seed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tx = make(lambda count: rate * shape(count))
        if task.clip:
            tx = optax.chain(optax.clip_by_global_norm(task.clip), tx)

        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            p, memory, state = carry
            (loss, memory), g = jax.value_and_grad(field.loss, has_aux=True)(p, memory, key)
            updates, state = tx.update(g, state, p)
            return (optax.apply_updates(p, updates), memory, state), loss

        start, key = jax.random.split(jax.random.key(seed))
        p, memory = field.init(start)
        carry = p, memory, tx.init(p)
        (p, _, _), losses = jax.lax.scan(step, carry, jax.random.split(key, steps))
        return losses[-max(steps // 10, 1) :].mean(), field.validation(p), field.test(p)

    # It halves the time to compile, of which there is more than of training, and costs none.
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(jax.vmap(train, (None, 0)), compiler_options=options)


Row = dict[str, Any]  # a line of a task's file: an optimizer, a rate and some seeds


class Trials:
    """The trainings of a task, each kept in a file as soon as it is done."""

    def __init__(self, path: Path, name: str, seeds: int, steps: int | None = None):
        """Read the file, and cut off what a kill left of a last line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.name, self.seeds, self.task = path, name, seeds, TASKS[name]
        self.steps = steps or self.task.steps
        self.rows = {
            _key(row): row
            for row in common.finished(path)
            if row["steps"] == self.steps and row["seeds"][1] - row["seeds"][0] == seeds
        }
        self._ready: Ready | None = None
        self._trainers: dict[str, Trainer] = {}

    def get(self, optimizer: str, exponent: int, seeds: range) -> Row:
        """Return the row of a training, which is trained if it is not there."""
        key = optimizer, exponent, seeds.start, seeds.stop
        if key not in self.rows:
            row = self.train(optimizer, exponent, seeds)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.rows[key] = row
        return self.rows[key]

    def train(self, optimizer: str, exponent: int, seeds: range) -> Row:
        """Train some seeds at a rate; the data and the programs are made once."""
        self._ready = self._ready or ready(self.task)
        if optimizer not in self._trainers:
            make = optimizers(self.name)[optimizer].make
            self._trainers[optimizer] = self._ready(make, self.steps)
        began = time.process_time()
        found = self._trainers[optimizer](10 ** (exponent / 4), jnp.asarray(seeds))
        loss, validation, test = ([_short(float(x)) for x in values] for values in found)
        return {
            "optimizer": optimizer, "quarter_decades": exponent, "seeds": [seeds.start, seeds.stop],
            "steps": self.steps, "loss": loss, "validation": validation, "test": test,
            "cpu_seconds": round(time.process_time() - began, 1), "date": time.strftime("%Y-%m-%d"),
            **environment.facts(),
        }  # fmt: skip

    def curve(self, optimizer: str) -> dict[int, float]:
        """Return, of every rate that is tried with the first seeds, the mean validation score."""
        known = [row for key, row in self.rows.items() if key[0] == optimizer and key[2] == 0]
        scores = {row["quarter_decades"]: mean(row["validation"]) for row in known}
        return {exponent: scores[exponent] for exponent in sorted(scores)}

    def fresh(self, optimizer: str) -> list[Row]:
        """Return the rows of the chosen rate and seeds that took no part in the choice."""
        chosen = best(self.curve(optimizer))
        chunks = [range(n * self.seeds, (n + 1) * self.seeds) for n in (1, 2)]
        return [self.get(optimizer, chosen, chunk) for chunk in chunks]

    def search(self, optimizer: str) -> None:
        """Try rates until both ends are worse than the best by more than the tolerance.

        The best one's neighbours are tried, too. Then train the best with twice as many seeds, none
        of which took part in the choice.
        """
        first = optimizers(self.name)[optimizer].first
        while new := missing(self.curve(optimizer), first, self.task.tolerance):
            for exponent in new:
                self.get(optimizer, exponent, range(self.seeds))
        self.fresh(optimizer)


def _key(row: Row) -> tuple[str, int, int, int]:
    return row["optimizer"], row["quarter_decades"], *row["seeds"]


def _short(value: float) -> float | None:
    """Return five digits of a number, and None for one that is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def mean(scores: list[float | None]) -> float:
    """Return the mean of scores, infinite if one of them is missing: that seed was lost."""
    return math.inf if None in scores else statistics.fmean(scores)


def missing(scores: dict[int, float], first: range, tolerance: float) -> list[int]:
    """Return the rates to be tried next, in quarter-decades.

    They are the first ones; then half a decade beyond an end that is within the tolerance of the
    best; then those a quarter beside the best.
    """
    untried = [exponent for exponent in first if exponent not in scores]
    if untried:
        return untried
    good = min(scores.values()) + tolerance
    beyond = (min(scores), -2), (max(scores), 2)
    further = [
        end + way for end, way in beyond if scores[end] <= good and FEWEST <= end + way <= MOST
    ]
    beside = best(scores) - 1, best(scores) + 1
    return further or [exponent for exponent in beside if exponent not in scores]


def best(scores: dict[int, float]) -> int:
    """Return the rate with the lowest score."""
    return min(scores, key=scores.__getitem__)


def width(scores: dict[int, float], tolerance: float) -> tuple[float, bool]:
    """Return how many decades of rates are within a tolerance of the best, and if both ends show.

    It is the stretch around the best, and the score between two rates is taken to be on a line.
    """
    rates, good = sorted(scores), min(scores.values()) + tolerance
    place = rates.index(best(scores))
    sides = rates[place::-1], rates[place:]
    ends = [_crossing([(rate, scores[rate]) for rate in side], good) for side in sides]
    return abs(ends[1][0] - ends[0][0]) / 4, ends[0][1] and ends[1][1]


def _crossing(points: list[tuple[int, float]], good: float) -> tuple[float, bool]:
    for (near, low), (far, high) in itertools.pairwise(points):
        if high > good:
            share = 0.0 if math.isinf(high) else (good - low) / (high - low)
            return near + share * (far - near), True
    return points[-1][0], False
