"""Random rules of every dialect: as a call, as a NumPy box, and as a recorded run.

The boxes are written from the formulas, and share no code with the package.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rmsprop

Array = np.ndarray[Any, Any]
Start = Callable[[Array], Callable[[Array], Array]]

NEUTRAL: dict[str, Any] = {
    "denominator": "inside", "eps": 1e-8, "initial_scale": 0.0, "decay": 0.9,
    "learning_rate": 1e-2, "rate_in_buffer": None, "momentum": 0.0, "nesterov": None,
    "centered": False, "bias_correction": False, "weight_decay": 0.0, "weight_decay_kind": "none",
    "clip_value": None, "clip_before_decay": None, "caution": None, "maximize": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rule:
    """A call and what it does: the switches of a report, and what no switch of it has."""

    call: str
    switches: dict[str, Any]
    clip_norm: float | None = None  # of the one leaf that a run has
    clip_weights: float | None = None

    def transformation(self, learning_rates: Any = None) -> Any:
        """The call, evaluated."""
        return evaluate(self.call, learning_rates)


def evaluate(call: str, learning_rates: Any = None) -> Any:
    """A call with the names in reach that a report may use, and no others."""
    public = {k: v for k, v in vars(optax_rmsprop).items() if not k.startswith("_")}
    names = {"optax_rmsprop": optax_rmsprop, "optax": optax, "jax": jax, "jnp": jnp, "np": np}
    return eval(call, {**names, **public, "learning_rates": learning_rates})


def rule(**switches: Any) -> Rule:
    """A rule from switches: those that momentum or clipping brings are set."""
    clip_norm, clip_weights = (switches.pop(name, None) for name in ("clip_norm", "clip_weights"))
    values = NEUTRAL | switches
    if values["momentum"]:
        for name in ("rate_in_buffer", "nesterov", "caution"):
            values[name] = bool(values[name])
    else:
        values |= dict.fromkeys(("rate_in_buffer", "nesterov", "caution"))
    if values["weight_decay_kind"] == "none":
        values["weight_decay"] = 0.0
    if values["clip_value"] is None or values["weight_decay_kind"] != "l2":
        values["clip_before_decay"] = None
    return Rule("", values, clip_norm, clip_weights)


def box(rule: Rule, dtype: Any = np.float64, rates: Any = None, stored: Any = None) -> Start:
    """The rule as `start(params) -> step`, computed in `dtype`; parameters are kept in `stored`."""
    s, kind = rule.switches, np.dtype(dtype).type
    numbers = ("decay", "eps", "momentum", "weight_decay")
    decay, eps, mu, weight = (kind(s[name]) for name in numbers)

    def start(params: Array) -> Callable[[Array], Array]:
        p = params.astype(stored or dtype).astype(dtype)
        nu = np.full_like(p, s["initial_scale"])
        mean, buffer = np.zeros_like(p), np.zeros_like(p)
        count = 0

        def step(gradient: Array) -> Array:
            nonlocal p, nu, mean, buffer, count
            rate = kind(s["learning_rate"] if rates is None else rates[count])
            count += 1
            g = -gradient.astype(dtype) if s["maximize"] else gradient.astype(dtype)
            coupled = weight * p if s["weight_decay_kind"] == "l2" else kind(0)
            g = _clipped(rule, g, coupled)
            nu = decay * nu + (1 - decay) * g * g
            mean = decay * mean + (1 - decay) * g
            u = _divided(s, g, nu, mean, 1 - decay ** kind(count), eps, count)
            inside = s["rate_in_buffer"] is not False
            u = rate * u if inside else u
            buffer = mu * buffer + u
            u = u + mu * buffer if s["nesterov"] else buffer
            if s["caution"]:
                taken = (u * g > 0).astype(dtype)
                u = u * taken / np.maximum(taken.mean(), kind(1e-3))
            u = u if inside else rate * u
            shrink = rate * weight * p if s["weight_decay_kind"] == "decoupled" else kind(0)
            p = p - u - shrink
            if rule.clip_weights is not None:
                p = np.clip(p, -kind(rule.clip_weights), kind(rule.clip_weights))
            p = p.astype(stored or dtype).astype(dtype)
            return p

        return step

    return start


def _clipped(rule: Rule, g: Array, coupled: Any) -> Array:
    bound, kind = rule.switches["clip_value"], g.dtype.type
    if rule.clip_norm is not None:
        g = g * kind(rule.clip_norm) / np.maximum(np.linalg.norm(g), kind(rule.clip_norm))
    if bound is None:
        return g + coupled
    if rule.switches["clip_before_decay"] is False:
        return np.clip(g + coupled, -kind(bound), kind(bound))
    return np.clip(g, -kind(bound), kind(bound)) + coupled


def _divided(
    s: dict[str, Any], g: Array, nu: Array, mean: Array, seen: Any, eps: Any, count: int
) -> Array:
    if s["bias_correction"]:
        nu, mean = nu / seen, mean / seen
    square = nu - mean * mean if s["centered"] else nu
    if s["centered"] and s["bias_correction"] and count == 1 and not s["initial_scale"]:
        square = g * g  # one sample has no variance
    square = np.maximum(square, 0)
    root = {
        "inside": lambda: np.sqrt(square + eps),
        "outside": lambda: np.sqrt(square) + eps,
        "floor": lambda: np.maximum(np.sqrt(square), eps),
        "other": lambda: np.sqrt(np.maximum(square - eps, 0)),  # TensorFlow.js, centred
    }[s["denominator"]]()
    return np.where(root > 0, g / np.where(root > 0, root, 1), 0).astype(g.dtype)


def played(start: Start, params: Array, grads: Array) -> Array:
    """Parameters before the first step and after each."""
    step, after = start(params.copy()), [np.array(params)]
    for g in grads:
        after.append(np.array(step(g.copy())))
    return np.stack(after)


def continued(tx: Any, params: Array, grads: Array) -> Array:
    """The same of a transformation, in the dtype of the parameters."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        p = jnp.asarray(params)
        state, after = tx.init(p), [np.asarray(p)]
        update = jax.jit(tx.update)
        for g in grads:
            updates, state = update(jnp.asarray(g, p.dtype), state, p)
            p = optax.apply_updates(p, updates)
            after.append(np.asarray(p))
    return np.stack(after)


def inputs(rng: np.random.Generator, steps: int = 25, size: int = 30) -> tuple[Array, Array]:
    """Parameters [size] and gradients [steps, size], with a scale for each coordinate."""
    scale = 10 ** rng.uniform(-2, 1) * np.exp(rng.normal(size=size))
    return rng.normal(size=size), rng.normal(size=(steps, size)) * scale


# Of each dialect: the switches that are fixed, what of them a draw may change, and the names.
_TORCH = {
    "learning_rate": "lr", "decay": "alpha", "eps": "eps", "momentum": "momentum",
    "weight_decay": "weight_decay",
}  # fmt: skip
_TENSORFLOW = _TORCH | {"learning_rate": "learning_rate", "decay": "decay", "eps": "epsilon"}
_KERAS = _TENSORFLOW | {"decay": "rho"}
_OURS = _TENSORFLOW | {"eps": "eps"}
_MXNET = {
    "learning_rate": "learning_rate", "decay": "gamma1", "eps": "epsilon", "momentum": "gamma2",
    "weight_decay": "wd", "clip_value": "clip_gradient", "clip_weights": "clip_weights",
}  # fmt: skip
_BALL = "momentum centered"
_TF1, _AFTER = {"initial_scale": 1.0, "rate_in_buffer": True}, {"rate_in_buffer": False}
_IN = {"rate_in_buffer": True}
DIALECTS: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "torch": ({"denominator": "outside", **_AFTER}, f"{_BALL} l2 maximize", _TORCH),
    "tensorflow1": (_TF1, _BALL, _TENSORFLOW),
    "keras": (_IN, f"{_BALL} decoupled clipvalue clipnorm global_clipnorm", _KERAS),
    "keras2": (_IN, f"{_BALL} clipvalue clipnorm global_clipnorm", _KERAS),
    "timm": (_TF1, f"{_BALL} l2 decoupled corrected after caution", _TORCH),
    "stable_baselines3": ({"initial_scale": 1.0, **_AFTER}, f"{_BALL} l2", _TORCH),
    "pfrl": (_AFTER, f"{_BALL} l2", _TORCH),
    "graves": ({"centered": True, **_IN}, "momentum", _TORCH),
    "hinton": ({"eps": 0.0, "nesterov": True, **_IN}, "momentum", _TENSORFLOW),
    "mxnet": (_IN, "centered l2 clip_after clip_weights", _MXNET),
    "mxnet2": (
        {"denominator": "outside", **_IN}, "centered l2 clip_before clip_weights",
        _MXNET | {"decay": "rho", "momentum": "momentum"},
    ),
    "paddle": (_IN, f"{_BALL} l2 grad_clip grad_norm", _KERAS),
    "chainer": ({"denominator": "outside"}, "inside", _TORCH),
    "sonnet": (_IN, _BALL, _TENSORFLOW),
    "torchopt": (
        {"denominator": "outside", **_AFTER}, f"{_BALL} l2 maximize nesterov scale", _TORCH
    ),
    "mindspore": (_TF1, f"{_BALL} l2", _TENSORFLOW),
    "heavyball": ({"denominator": "floor", "bias_correction": True}, "decoupled", _TORCH),
    "tensorflowjs": (_IN, _BALL, _TENSORFLOW | {"learning_rate": "learningRate"}),
    "rmsprop": (_IN, f"{_BALL} nesterov scale correct outside floor", _OURS),
    "rmspropw": (
        {"weight_decay_kind": "decoupled", **_IN},
        f"{_BALL} nesterov scale correct outside floor", _OURS,
    ),
}  # fmt: skip


def draw(name: str, rng: np.random.Generator, grads: Array) -> Rule:
    """A dialect with random options and hyperparameters; these gradients show its clipping."""
    fixed, can, names = DIALECTS[name]
    chosen = {option for option in can.split() if rng.random() < 0.4}
    switches = NEUTRAL | fixed | _numbers(rng)
    extra: dict[str, str] = {}
    norms: dict[str, float] = {}
    if "eps" in fixed:
        switches["eps"] = fixed["eps"]
    for option in can.split():  # in the order of the table, so that the last of two kinds wins
        if option in chosen:
            _choose(option, switches, extra, norms, rng, grads)
    _settle(name, switches, extra)
    given = {key: switches[key] for key in ("learning_rate", "decay") if name != "heavyball"}
    if name == "heavyball":
        given, extra["betas"] = {"learning_rate": switches["learning_rate"]}, (
            f"(0.9, {switches['decay']!r})"
        )  # fmt: skip
    if name != "hinton":
        given["eps"] = switches["eps"]
    if switches["momentum"] or name == "graves":
        given["momentum"] = switches["momentum"]
    if switches["weight_decay_kind"] != "none":
        given["weight_decay"] = switches["weight_decay"]
    if "clip_value" in names and switches["clip_value"] is not None:
        given["clip_value"] = switches["clip_value"]
    texts = {names[key]: repr(value) for key, value in given.items()} | extra
    made = rule(**switches, **norms)
    prefix = "" if name in ("rmsprop", "rmspropw") else "dialects."
    call = f"{prefix}{name}({', '.join(f'{key}={text}' for key, text in texts.items())})"
    return dataclasses.replace(made, call=call)


def _numbers(rng: np.random.Generator) -> dict[str, float]:
    return {
        "learning_rate": _digits(10 ** rng.uniform(-5, 0), rng),
        "decay": _digits(1 - 10 ** rng.uniform(-3.5, -0.3), rng),
        "eps": _digits(10 ** rng.uniform(-16, 0), rng),
        "weight_decay": _digits(10 ** rng.uniform(-4, -0.3), rng),
    }


def _digits(value: float, rng: np.random.Generator) -> float:
    """A number as someone would write it, or one that nobody would."""
    return float(f"{value:.{rng.choice([4, 16])}g}")


def _choose(
    option: str, switches: dict[str, Any], extra: dict[str, str], norms: dict[str, float],
    rng: np.random.Generator, grads: Array,
) -> None:  # fmt: skip
    bound = _digits(float(np.quantile(np.abs(grads), rng.uniform(0.3, 0.95))), rng)
    norm = _digits(float(np.quantile(np.linalg.norm(grads, axis=1), rng.uniform(0.3, 0.7))), rng)
    clips = {"clipvalue", "clipnorm", "global_clipnorm", "grad_clip", "grad_norm"}
    if option in clips:
        for other in clips:
            extra.pop(other, None)
        switches["clip_value"] = None
        norms.pop("clip_norm", None)
    match option:
        case "momentum":
            switches["momentum"] = _digits(rng.uniform(0.3, 0.99), rng)
        case "centered" | "maximize" | "nesterov" | "caution":
            switches[option] = True
            extra[option] = "True"
        case "correct":
            switches["bias_correction"], extra["bias_correction"] = True, "True"
        case "scale":
            switches["initial_scale"] = _digits(
                float((grads**2).mean()) * 10 ** rng.uniform(-2, 1), rng
            )
            extra["initial_scale"] = repr(switches["initial_scale"])
        case "l2":
            switches["weight_decay_kind"] = "l2"
        case "decoupled":
            switches["weight_decay_kind"], extra["decoupled_decay"] = "decoupled", "True"
        case "corrected":
            extra["corrected_weight_decay"] = "True"
        case "after":
            switches["rate_in_buffer"], extra["lr_in_momentum"] = False, "False"
        case "inside":
            switches["denominator"], extra["eps_inside_sqrt"] = "inside", "True"
        case "outside":
            switches["denominator"], extra["eps_in_sqrt"] = "outside", "False"
        case "floor":
            switches["denominator"] = "floor"
            extra["eps_in_sqrt"] = "optax_rmsprop.denominators.eps_floor"
        case "clipvalue":
            switches["clip_value"], extra["clipvalue"] = bound, repr(bound)
        case "clip_before" | "clip_after":
            switches["clip_value"] = bound
            switches["clip_before_decay"] = option == "clip_before"
        case "grad_clip":
            switches["clip_value"], switches["clip_before_decay"] = bound, True
            extra["grad_clip"] = f"optax.clip({bound!r})"
        case "grad_norm":
            norms["clip_norm"] = norm
            extra["grad_clip"] = f"optax.clip_by_global_norm({norm!r})"
        case "clipnorm" | "global_clipnorm":
            norms["clip_norm"], extra[option] = norm, repr(norm)
        case "clip_weights":
            norms["clip_weights"] = _digits(rng.uniform(1.0, 2.0), rng)
            extra["clip_weights"] = repr(norms["clip_weights"])


def _settle(name: str, switches: dict[str, Any], extra: dict[str, str]) -> None:
    """What one choice of a dialect brings or forbids."""
    if name == "keras2":
        switches["denominator"] = "inside" if switches["momentum"] else "outside"
    if name in ("mxnet", "mxnet2") and switches["centered"]:
        switches["momentum"], switches["denominator"] = 0.9, "inside"
    if name == "tensorflowjs" and switches["centered"]:
        switches["denominator"] = "other"
    if name in ("keras", "heavyball"):
        extra.pop("decoupled_decay", None)
    if not switches["momentum"] and name.startswith("rmsprop"):
        extra.pop("nesterov", None)
    if extra.get("decoupled_decay") is None:
        extra.pop("corrected_weight_decay", None)
    if name in ("mxnet", "mxnet2") and switches["clip_value"] is not None:
        switches["clip_before_decay"] = name == "mxnet2"


@functools.cache
def names() -> tuple[str, ...]:
    """Every dialect, and the two factories of the package."""
    return tuple(DIALECTS)


def wrong(report: Any, truth: dict[str, Any], relative: float) -> dict[str, Any]:
    """The switches of a report that are neither the truth nor said to be open: name -> found."""
    found = {}
    for name, value in truth.items():
        if name == "denominator" and truth["eps"] == 0:
            continue  # 0 stands nowhere
        remaining = report.undetermined.get(name, [])
        if not (_equal(report.rule[name], value, relative) or _among(value, remaining, relative)):
            found[name] = (report.rule[name], value, remaining)
    return found


def _equal(one: Any, other: Any, relative: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return bool(abs(one - other) <= relative * abs(other))
    return one is other or (type(one) is type(other) and one == other)


def _among(value: Any, remaining: list[Any], relative: float) -> bool:
    if any(_equal(x, value, relative) for x in remaining):
        return True
    numbers = [x for x in remaining if isinstance(x, float)]
    if not isinstance(value, float) or len(numbers) < 2:
        return False
    return bool(min(numbers) * (1 - 1e-6) - 1e-300 <= value <= max(numbers) * (1 + 1e-6))
