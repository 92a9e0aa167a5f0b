"""THE table: every public factory with its traits. A new factory is a row here and gets every test.

`make` is called with the row's `hyper`, any of which a test may replace by an array, a schedule or
a traced value. Exceptions to a promise are traits of a row, never a condition on its name.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop import dialects, storage


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, to key caches
class Case:
    name: str
    make: Callable[..., optax.GradientTransformationExtraArgs]
    hyper: dict[str, float]  # the schedulable hyperparameters, with the values that the tests use
    reference: dict[str, Any]  # the same rule in the words of tests/reference.py
    divides: bool = True  # by a root of second moments
    centered: bool = False  # by that of the variance: no bound, ill-conditioned at steady g
    decays_weights: bool = False  # needs params, and a zero gradient moves them
    signed: bool = True  # steps against the gradient
    couples: bool = False  # the decay is a part of the gradient, which is averaged
    fixed_start: bool = False  # the initial ν is a part of the rule
    is_chain: bool = (
        False  # of links that other rows test, equal to it as a value: see test_dialects
    )
    splits_complex: bool = False  # the parts of a complex parameter are two real ones
    rounding: float = 0.0  # of ν between steps, relative to it, by a dither for each leaf's path
    arguments: dict[str, str] = dataclasses.field(default_factory=dict)  # if they differ from ours

    def __call__(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        return self.make(**(self.hyper | overrides))

    @property
    def bound(self) -> float | None:
        """The largest update that any gradients can cause, where there is one."""
        if not self.divides or self.centered or self.decays_weights:
            return None
        mu = self.hyper.get("momentum", 0.0)
        rate = self.hyper.get("learning_rate", 1.0)
        return rate / (1 - self.hyper["decay"]) ** 0.5 / (1 - mu)


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A factory with Optax's names in place of its own, for tests that go over the table."""

    func: Callable[..., Any]
    names: tuple[tuple[str, str], ...]  # Optax's, the factory's
    options: tuple[tuple[str, Any], ...]

    def __call__(self, **hyper: Any) -> Any:
        names = dict(self.names)
        return self.func(**{names[k]: v for k, v in hyper.items()}, **dict(self.options))

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name, kind) for name, _ in self.names])


@dataclasses.dataclass(frozen=True)
class Everywhere:
    """A codec for every leaf, also the small ones that all tests have."""

    codec: storage.Codec

    def __call__(self, path: str, leaf: Any) -> storage.Codec:
        return self.codec


@dataclasses.dataclass(frozen=True)
class Stored:
    """A factory whose second moments are stored in a codec."""

    func: Callable[..., Any]
    codec: storage.Codec

    def __call__(self, **hyper: Any) -> Any:
        return storage.stored_as(self.func(**hyper), Everywhere(self.codec))

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.func)


RMS = {"decay": 0.9, "eps": 1e-8}
STEP = {"learning_rate": 0.125, **RMS}
BALL = {**STEP, "momentum": 0.75}
BUFFER = {"momentum": 0.75}


def _trace(momentum, nesterov=False):
    return ours.trace(momentum, nesterov)


def _ema(momentum, debias=False):
    return ours.ema(momentum, debias)


def _row(name, factory, hyper, divides=True, signed=True, **options):
    traits = {"centered": options.get("centered", False) or factory is ours.scale_by_stddev}
    traits["decays_weights"] = "weight_decay" in hyper
    reference = options | {"centered": traits["centered"]}
    make = functools.partial(factory, **options)
    return Case(name, make, hyper, reference, divides=divides, signed=signed, **traits)


TORCH = {"learning_rate": "lr", "decay": "alpha"}
KERAS = {"decay": "rho", "eps": "epsilon"}
TENSORFLOW = {"eps": "epsilon"}


def _dialect(name, factory, hyper, names, reference, traits=(), **options):
    arguments = {standard: names.get(standard, standard) for standard in hyper}
    make = Renamed(factory, tuple(arguments.items()), tuple(options.items()))
    if "weight_decay" in hyper:
        reference = {"coupled": "couples" in traits, **reference}
    return Case(
        f"dialect-{name}", make, hyper, reference, centered=options.get("centered", False),
        decays_weights="weight_decay" in hyper, arguments=arguments, is_chain=True,
        **dict.fromkeys(traits, True),
    )  # fmt: skip


def _heavyball(lr, decay, eps, weight_decay):
    return dialects.heavyball(lr, (0.9, decay), eps, weight_decay)


def _mask(params):
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


CASES = [
    _row("scale_by_rms", ours.scale_by_rms, RMS, signed=False),
    _row("scale_by_rms-outside", ours.scale_by_rms, RMS, signed=False, eps_in_sqrt=False),
    _row("scale_by_rms-ones", ours.scale_by_rms, RMS, signed=False, initial_scale=1.0),
    _row("scale_by_rms-corrected", ours.scale_by_rms, RMS, signed=False, bias_correction=True),
    _row("scale_by_stddev", ours.scale_by_stddev, RMS, signed=False),
    _row("scale_by_stddev-outside", ours.scale_by_stddev, RMS, signed=False, eps_in_sqrt=False),
    _row(
        "scale_by_stddev-corrected", ours.scale_by_stddev, RMS, signed=False, bias_correction=True,
    ),
    _row("trace", _trace, BUFFER, divides=False, signed=False),
    _row("trace-nesterov", _trace, BUFFER, divides=False, signed=False, nesterov=True),
    dataclasses.replace(
        _row("ema", _ema, BUFFER, divides=False, signed=False), reference={"average": True},
    ),
    dataclasses.replace(
        _row("ema-debiased", _ema, BUFFER, divides=False, signed=False, debias=True),
        reference={"average": True, "debias": True},
    ),
    _row("scale_by_learning_rate", ours.scale_by_learning_rate, {"learning_rate": 0.125}, False),
    dataclasses.replace(
        _row("add_decayed_weights", ours.add_decayed_weights, {"weight_decay": 0.01}, False, False),
        couples=True, reference={"coupled": True},
    ),
    _row("rmsprop", ours.rmsprop, STEP),
    _row("rmsprop-momentum", ours.rmsprop, BALL),
    _row("rmsprop-nesterov", ours.rmsprop, BALL, nesterov=True),
    _row("rmsprop-outside", ours.rmsprop, BALL, eps_in_sqrt=False),
    _row("rmsprop-corrected", ours.rmsprop, BALL, bias_correction=True),
    _row("rmsprop-centered", ours.rmsprop, STEP, centered=True),
    _row("rmsprop-centered-momentum", ours.rmsprop, BALL, centered=True),
    _row(
        "rmsprop-everything", ours.rmsprop, BALL, centered=True, nesterov=True,
        bias_correction=True, initial_scale=1.0, eps_in_sqrt=False,
    ),
    _row("rmspropw", ours.rmspropw, STEP | {"weight_decay": 0.01}),
    _row("rmspropw-momentum", ours.rmspropw, BALL | {"weight_decay": 0.01}, nesterov=True),
    _row("rmspropw-masked", ours.rmspropw, STEP | {"weight_decay": 0.01}, mask=_mask),
    dataclasses.replace(
        _row("stored-uint16", ours.rmsprop, BALL),
        make=Stored(ours.rmsprop, storage.uint16()), rounding=2**-8,
    ),
    dataclasses.replace(  # Blocks of one fit the shards of all tests.
        _row("stored-uint8", ours.rmsprop, BALL),
        make=Stored(ours.rmsprop, storage.uint8(1)), rounding=2**-3,
    ),
    # The other dialects are equal, as values, to chains of the same links: tests/test_dialects.py.
    _dialect(
        "torch", dialects.torch, BALL | {"weight_decay": 0.01}, TORCH,
        {"eps_in_sqrt": False, "rate_after": True}, ("couples", "splits_complex"),
    ),
    _dialect(
        "torch-centered", dialects.torch, BALL, TORCH,
        {"eps_in_sqrt": False, "rate_after": True, "centered": True}, ("splits_complex",),
        centered=True,
    ),
    _dialect(
        "tensorflow1", dialects.tensorflow1, BALL, TENSORFLOW, {"initial_scale": 1.0},
        ("fixed_start",),
    ),
    _dialect("keras", dialects.keras, BALL | {"weight_decay": 0.01}, KERAS, {}),
    _dialect("keras2", dialects.keras2, STEP, KERAS, {"eps_in_sqrt": False}),
    _dialect(
        "timm", dialects.timm, BALL | {"weight_decay": 0.01}, TORCH,
        {"initial_scale": 1.0, "rate_after": True}, ("fixed_start",),
        decoupled_decay=True, lr_in_momentum=False,
    ),
    _dialect(
        "stable_baselines3", dialects.stable_baselines3, STEP | {"weight_decay": 0.01}, TORCH,
        {"initial_scale": 1.0}, ("couples", "fixed_start"),
    ),
    _dialect(
        "heavyball", _heavyball, STEP | {"weight_decay": 0.01}, {"learning_rate": "lr"},
        {"eps_in_sqrt": False, "floor": True, "bias_correction": True},
    ),
]  # fmt: skip


# Every link, both wrappers, and momentum, decay and mask are in these.
ESSENTIAL = {
    "scale_by_rms", "scale_by_stddev-corrected", "trace-nesterov", "ema-debiased",
    "scale_by_learning_rate", "rmsprop-everything", "rmspropw-masked", "stored-uint8",
    "dialect-torch",
}  # fmt: skip


assert {case.name for case in CASES} >= ESSENTIAL


def cases(**traits: Any) -> pytest.MarkDecorator:
    """Parametrise a test over the rows that have all the given traits."""
    return pytest.mark.parametrize("case", _chosen(traits), ids=lambda case: case.name)


def crossed(name: str, values: Any, **traits: Any) -> pytest.MarkDecorator:
    """Parametrise over rows and the values of `name`, a sequence or a dictionary of names.

    The first value meets every row in both lanes, and every value the essential rows.
    """
    values = values if isinstance(values, dict) else {_name(value): value for value in values}
    first = next(iter(values))
    pairs = [
        pytest.param(case, value, id=f"{case.name}-{label}", marks=_slow(case, label == first))
        for case in _chosen(traits)
        for label, value in values.items()
    ]
    return pytest.mark.parametrize(["case", name], pairs)


def essential(**traits: Any) -> pytest.MarkDecorator:
    """Parametrise over the rows of the traits: those that are not essential are slow."""
    pairs = [pytest.param(case, id=case.name, marks=_slow(case, False)) for case in _chosen(traits)]
    return pytest.mark.parametrize("case", pairs)


def slow(*values: Any) -> list[Any]:
    """Values of a parameter that only the thorough lane tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def _chosen(traits: dict[str, Any]) -> list[Case]:
    chosen = [case for case in CASES if all(getattr(case, k) == v for k, v in traits.items())]
    assert chosen, f"no row of the table has {traits}"
    return chosen


def _slow(case: Case, quick: bool) -> Any:
    return () if quick or case.name in ESSENTIAL else pytest.mark.slow


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)
