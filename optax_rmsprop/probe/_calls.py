"""The call that has a rule: of a dialect where one has it, else a chain of links."""

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

from .. import dialects
from .._rmsprop import rmsprop, rmspropw
from . import _model as model


@dataclasses.dataclass(frozen=True)
class Rule:
    """One hypothesis by name: switches, and Python floats that a call can hold."""

    denominator: int
    centered: bool
    corrected: bool
    buffer: bool
    nesterov: bool
    maximize: bool
    kind: int
    clip: int
    caution: bool
    alone: bool  # centred and corrected: the first step divides by |g|, not by √ε as Optax's
    lr: float
    decay: float
    eps: float
    scale: float
    momentum: float
    weight: float
    bound: float
    box: float
    rate: str = ""  # how the call writes a rate that is no number
    largest_rate: float = 0.0  # of a schedule

    @property
    def features(self) -> set[str]:
        """What a factory must have for this rule."""
        has = {
            "centered": self.centered, "corrected": self.corrected, "maximize": self.maximize,
            "nesterov": self.nesterov and self.momentum > 0, "momentum": self.momentum > 0,
            "caution": self.caution and self.momentum > 0, "box": self.box < float("inf"),
            "l2": self.kind == model.L2, "decoupled": self.kind == model.DECOUPLED,
            "unscaled": self.kind == model.DECOUPLED_UNSCALED,
            "squared": self.kind == model.DECOUPLED_SQUARED,
            "biased start": self.centered and self.corrected and not self.alone,
            "clip": self.clip in (model.CLIP_BEFORE, model.CLIP_AFTER) and self.kind != model.L2,
            "clip, l2": self.clip == model.CLIP_BEFORE and self.kind == model.L2,
            "l2, clip": self.clip == model.CLIP_AFTER and self.kind == model.L2,
            "clip leaf": self.clip == model.CLIP_LEAF, "clip all": self.clip == model.CLIP_ALL,
            "l2, norm": self.clip in (model.CLIP_LEAF_AFTER, model.CLIP_ALL_AFTER),
        }  # fmt: skip
        return {name for name, value in has.items() if value}

    @property
    def weight_decay(self) -> float:
        """The weight decay in a call: timm's corrected one is relative to its largest rate."""
        if self.kind == model.NO_DECAY:
            return 0.0
        if self.kind != model.DECOUPLED_SQUARED:
            return self.weight
        return float(f"{self.weight * (self.largest_rate or self.lr):.12g}")

    @property
    def rate_text(self) -> str:
        """The learning rate in a call."""
        return self.rate or repr(self.lr)


@dataclasses.dataclass(frozen=True)
class Factory:
    """What a public factory can do, and its names."""

    name: str
    denominators: tuple[int, ...]
    scale: float | None  # ν₀; None where it is an argument
    buffer: bool | None  # the rate in the buffer; None where it is an argument
    can: frozenset[str]
    names: dict[str, str]
    must: frozenset[str] = frozenset()

    def arguments(self, rule: Rule) -> dict[str, str] | None:
        """The arguments for a rule, or None where the factory does not have it."""
        features = rule.features
        if rule.denominator not in self.denominators or not self.must <= features <= self.can:
            return None
        if self.scale is not None and rule.scale != self.scale:
            return None
        if rule.momentum > 0 and self.buffer not in (None, rule.buffer):
            return None
        numbers = {
            "decay": rule.decay, "eps": rule.eps, "momentum": rule.momentum,
            "weight": rule.weight_decay, "bound": rule.bound, "box": rule.box, "scale": rule.scale,
        }  # fmt: skip
        needed = {
            "decay": True, "eps": "eps" in self.names, "momentum": rule.momentum > 0,
            "weight": rule.kind != model.NO_DECAY, "bound": rule.clip != model.NO_CLIP,
            "box": "box" in features, "scale": self.scale is None and rule.scale != 0,
        }  # fmt: skip
        given = {self.names["lr"]: rule.rate_text}
        for name, number in numbers.items():
            if needed[name] and (name != "bound" or name in self.names):
                given[self.names[name]] = repr(number)
        for feature in ("centered", "nesterov", "corrected", "maximize", "caution"):
            if feature in features and feature in self.names:
                given[self.names[feature]] = "True"
        return given | _special(self.name, rule)


def _special(name: str, rule: Rule) -> dict[str, str]:
    """Arguments that one factory alone writes so."""
    extra: dict[str, str] = {}
    inside = rule.denominator == model.INSIDE
    if name in ("rmsprop", "rmspropw", "optax.rmsprop") and not inside:
        extra["eps_in_sqrt"] = _eps_in_sqrt(rule)
    if name == "dialects.chainer" and inside:
        extra["eps_inside_sqrt"] = "True"
    if name == "dialects.timm":
        if rule.momentum > 0 and not rule.buffer:
            extra["lr_in_momentum"] = "False"
        if rule.kind in (model.DECOUPLED, model.DECOUPLED_SQUARED):
            extra["decoupled_decay"] = "True"
        if rule.kind == model.DECOUPLED_SQUARED:
            largest = rule.largest_rate or rule.lr
            extra["corrected_weight_decay"] = "True"
            if rule.rate:
                extra["lr_max"] = repr(largest)
    if name == "dialects.keras" and rule.clip != model.NO_CLIP:
        names = {model.CLIP_LEAF: "clipnorm", model.CLIP_ALL: "global_clipnorm"}
        extra[names.get(rule.clip, "clipvalue")] = repr(rule.bound)
    if name == "dialects.paddle" and rule.clip != model.NO_CLIP:
        clips = {
            model.CLIP_LEAF: f"dialects.clip_by_norm({rule.bound!r}, together=False)",
            model.CLIP_ALL: f"optax.clip_by_global_norm({rule.bound!r})",
        }
        extra["grad_clip"] = clips.get(rule.clip, f"optax.clip({rule.bound!r})")
    if name == "dialects.heavyball":
        extra["betas"] = f"(0.9, {rule.decay!r})"
    return extra


_TORCH = {
    "lr": "lr", "decay": "alpha", "eps": "eps", "momentum": "momentum", "weight": "weight_decay",
    "centered": "centered", "maximize": "maximize", "nesterov": "nesterov",
    "scale": "initial_scale", "caution": "caution",
}  # fmt: skip
_TENSORFLOW = {
    "lr": "learning_rate", "decay": "decay", "eps": "epsilon", "momentum": "momentum",
    "centered": "centered", "weight": "weight_decay",
}  # fmt: skip
_KERAS = _TENSORFLOW | {"decay": "rho"}
_OURS = {
    "lr": "learning_rate", "decay": "decay", "eps": "eps", "momentum": "momentum",
    "centered": "centered", "nesterov": "nesterov", "corrected": "bias_correction",
    "scale": "initial_scale", "weight": "weight_decay",
}  # fmt: skip
_MXNET = {
    "lr": "learning_rate", "decay": "gamma1", "momentum": "gamma2", "eps": "epsilon",
    "centered": "centered", "weight": "wd", "bound": "clip_gradient", "box": "clip_weights",
}  # fmt: skip
_OURS_BY_NAME = {"rmsprop": rmsprop, "rmspropw": rmspropw}
_BALL = {"momentum", "centered"}


def _can(*names: str) -> frozenset[str]:
    return frozenset(names)


_IN, _OUT, _ALL = (model.INSIDE,), (model.OUTSIDE,), (model.INSIDE, model.OUTSIDE, model.FLOOR)
# The first that has a rule is the one that most users know.
FACTORIES = [
    Factory("dialects.torch", _OUT, 0.0, False, _can(*_BALL, "l2", "maximize"), _TORCH),
    Factory("dialects.tensorflow1", _IN, 1.0, True, _can(*_BALL), _TENSORFLOW),
    Factory(
        "dialects.keras", _IN, 0.0, True,
        _can(*_BALL, "decoupled", "clip", "clip leaf", "clip all"), _KERAS,
    ),
    Factory(
        "rmsprop", _ALL, None, True, _can(*_BALL, "nesterov", "corrected"), _OURS,
    ),
    Factory("dialects.stable_baselines3", _IN, 1.0, False, _can(*_BALL, "l2"), _TORCH),
    Factory(
        "dialects.timm", _IN, 1.0, None, _can(*_BALL, "l2", "decoupled", "squared", "caution"),
        _TORCH,
    ),
    Factory("dialects.pfrl", _IN, 0.0, False, _can(*_BALL, "l2"), _TORCH),
    Factory(
        "rmspropw", _ALL, None, True, _can(*_BALL, "nesterov", "corrected", "decoupled"), _OURS,
        must=_can("decoupled"),
    ),
    Factory(
        "dialects.torchopt", _OUT, None, False, _can(*_BALL, "l2", "maximize", "nesterov"), _TORCH
    ),
    Factory(
        "dialects.heavyball", (model.FLOOR,), 0.0, None, _can("decoupled", "corrected"),
        {name: _TORCH[name] for name in ("lr", "eps", "weight")}, must=_can("corrected"),
    ),
    Factory(
        "dialects.paddle", _IN, 0.0, True,
        _can(*_BALL, "l2", "clip", "clip, l2", "clip leaf", "clip all"), _KERAS,
    ),
    Factory("dialects.mindspore", _IN, 1.0, True, _can(*_BALL, "l2"), _TENSORFLOW),
    Factory(
        "dialects.mxnet", _IN, 0.0, True, _can("l2", "clip", "l2, clip", "box"), _MXNET
    ),
    Factory(
        "dialects.mxnet", _IN, 0.0, True, _can(*_BALL, "l2", "clip", "l2, clip", "box"), _MXNET,
        must=_can("centered", "momentum"),
    ),
    Factory(
        "dialects.mxnet2", _OUT, 0.0, True, _can("l2", "clip", "clip, l2", "box"),
        _MXNET | {"decay": "rho", "momentum": "momentum"},
    ),
    Factory(
        "dialects.mxnet2", _IN, 0.0, True, _can(*_BALL, "l2", "clip", "clip, l2", "box"),
        _MXNET | {"decay": "rho", "momentum": "momentum"}, must=_can("centered", "momentum"),
    ),
    Factory(
        "dialects.tensorflowjs", (model.SUBTRACTED,), 0.0, True, _can(*_BALL),
        _TENSORFLOW | {"lr": "learningRate"}, must=_can("centered"),
    ),
    Factory(
        "optax.rmsprop", (model.INSIDE, model.OUTSIDE), None, True,
        _can(*_BALL, "nesterov", "corrected", "biased start"), _OURS, must=_can("biased start"),
    ),
]  # fmt: skip


def calls(rule: Rule) -> Iterator[tuple[int, str]]:
    """Every call that has the rule, with its rank; the last is a chain."""
    for rank, factory in enumerate(FACTORIES):
        if _first_count(factory.name) and rule.rate:
            continue  # its schedule is called one step ahead
        arguments = factory.arguments(rule)
        if arguments is not None:
            yield rank, f"{factory.name}({', '.join(f'{k}={v}' for k, v in arguments.items())})"
    yield len(FACTORIES), chain_of(rule)


def _first_count(name: str) -> int:
    return int(name.startswith("dialects.mxnet"))


def default_eps(rule: Rule) -> float | None:
    """The ε that users of this rule have where they name none, or of the same without options."""
    bare = dataclasses.replace(
        rule, kind=model.NO_DECAY, clip=model.NO_CLIP, maximize=False, caution=False, weight=0.0
    )
    for either, factory in itertools.product((rule, bare), FACTORIES):
        if factory.arguments(either) is None or "eps" not in factory.names:
            continue
        module, _, name = factory.name.rpartition(".")
        made: Any = (
            getattr(dialects, name, None) if module == "dialects" else _OURS_BY_NAME.get(name)
        )
        if made is not None:
            return inspect.signature(made).parameters[factory.names["eps"]].default
    return None


def _eps_in_sqrt(rule: Rule) -> str:
    return {
        model.INSIDE: "True",
        model.OUTSIDE: "False",
        model.FLOOR: "denominators.eps_floor",
        model.SUBTRACTED: "denominators.eps_subtracted",
        model.BOTH: "lambda root, nu, eps: root(nu + eps) + eps",
    }[rule.denominator]


def chain_of(rule: Rule) -> str:
    """The links of a rule, which no factory need have."""
    features = rule.features
    scale = "scale_by_stddev" if rule.centered else "scale_by_rms"
    scale = f"optax.{scale}" if "biased start" in features else scale
    options = [repr(rule.decay), repr(rule.eps)]
    options += [f"initial_scale={rule.scale!r}"] * (rule.scale != 0)
    options += [f"eps_in_sqrt={_eps_in_sqrt(rule)}"] * (rule.denominator != model.INSIDE)
    options += ["bias_correction=True"] * rule.corrected
    step = [f"{scale}({', '.join(options)})"]
    rate = f"scale_by_learning_rate({rule.rate_text})"
    if rule.momentum > 0:
        trace = f"trace({rule.momentum!r}{', nesterov=True' * rule.nesterov})"
        step += [rate, trace] if rule.buffer else [trace, rate]
    else:
        step.append(rate)
    if "caution" in features:
        step = [f"dialects.cautious(chain({', '.join(step)}))"]
    links = ["dialects.multiply(-1.0)"] * rule.maximize
    clip = {
        model.CLIP_LEAF: f"dialects.clip_by_norm({rule.bound!r}, together=False)",
        model.CLIP_ALL: f"dialects.clip_by_norm({rule.bound!r}, together=True)",
    }.get(model.BEFORE.get(rule.clip, rule.clip), f"dialects.clip({rule.bound!r})")
    coupled = [f"add_decayed_weights({rule.weight!r})"] * (rule.kind == model.L2)
    if rule.clip in model.BEFORE:
        links += [*coupled, clip]
    else:
        links += [*[clip] * (rule.clip != model.NO_CLIP), *coupled]
    links += step
    largest = rule.largest_rate or rule.lr
    links += {
        model.DECOUPLED: [f"add_decayed_weights({rule.weight!r}, {rule.rate_text})"],
        model.DECOUPLED_UNSCALED: [f"optax.add_decayed_weights({-rule.weight!r})"],
        model.DECOUPLED_SQUARED: [
            f"add_decayed_weights({rule.weight_decay!r}, "
            f"dialects.Corrected({rule.rate_text}, {largest!r}))"
        ],
    }.get(rule.kind, [])
    links += [f"dialects.clip_weights({rule.box!r})"] * ("box" in features)
    return f"chain({', '.join(links)})"
