"""THE truth table: every framework and version, its rule, its defaults, and the call for it.

The pages (`python -m tools.tables`), the tests on recorded trajectories and the live tests are all
made from these rows, so that none of them can drift from the others.
"""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import optax_rmsprop
from optax_rmsprop import dialects

REQUIRED = "required"
RUN, NUMBERS, READ, TOLD = "run", "numbers", "read", "told"
KNOWN = {
    RUN: "it was executed, and the rule gives its trajectory",
    NUMBERS: "not executed; the rule gives the numbers that its own tests print",
    READ: "its source was read, not executed",
    TOLD: "from other texts or from code that cites it",
}

# What a step is where a row says nothing else.
NEUTRAL: dict[str, Any] = {
    "eps_mode": "inside",
    "v_init": 0.0,
    "lr_place": "inside",
    "centered": False,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "weight_decay_kind": "none",
    "bias_correction": False,
    "maximize": False,
    "caution": False,
    "clip_value": None,
    "clip_norm": None,
    "clip_weights": None,
    "gradient_scale": None,
    "debias": "none",
}


NAMES = {"optax": optax, "optax_rmsprop": optax_rmsprop, "dialects": dialects, "jnp": jnp}


@dataclasses.dataclass(frozen=True)
class Row:
    """A framework and its rule; the tests say what each field must agree with."""

    framework: str
    known: str
    call: str  # evaluated; `learning_rate` is the user's where there is no default
    defaults: tuple[Any, Any, Any, Any]  # η, ρ, μ, ε: a number, REQUIRED, or None: it has no such
    switches: dict[str, Any]  # what differs from NEUTRAL; a callable depends on the configuration
    arguments: dict[str, Any]  # switch -> the call's argument, or (argument, conversion)
    centered: str = "no"
    decay: str = "no"
    clips: str = ""  # before or after L2, where clipping is part of the optimizer
    note: str = ""
    goldens: tuple[str, ...] = ()  # patterns of the recorded trajectories
    before: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)  # hooks
    first_count: int = 0  # what a schedule sees at the first update
    live: str = ""  # the name of the live test

    @property
    def switch(self) -> dict[str, Any]:
        """All switches of the rule."""
        return NEUTRAL | self.switches

    def made(self) -> optax.GradientTransformation:
        """The call, with a rate of 0.25 where the framework has no default."""
        return eval(self.call, NAMES | {"learning_rate": 0.25})

    def translated(self, run: dict[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        """The call for one configuration, given in the switches of `NEUTRAL`, `decay` and `eps`."""
        given, hooks = {}, []
        for switch, value in (run | {"lr": learning_rate}).items():
            target = self.arguments.get(switch)
            if switch in self.before and value:
                hooks.append(self.before[switch](value))
            elif switch == "weight_decay_kind" and target:
                given.update(target[value])
            elif isinstance(target, tuple):
                given[target[0]] = value if value is None else target[1](value)
            elif target:
                given[target] = value
            elif switch in NEUTRAL:
                fixed = self.switch[switch]
                fixed = fixed(run) if callable(fixed) else fixed
                kind = switch == "weight_decay_kind" and not run["weight_decay"]
                place = switch == "lr_place" and not run["momentum"]
                if value != fixed and not kind and not place:
                    raise ValueError(f"{self.framework} has {switch}={fixed}, the run has {value}")
        factory = eval(self.call.partition("(")[0], NAMES)
        tx = factory(**{k: v for k, v in given.items() if v is not None})
        return optax.chain(*hooks, tx) if hooks else tx


def row_of(golden: str) -> Row:
    """The row that a recorded trajectory belongs to."""
    (row,) = (r for r in ROWS if any(fnmatch.fnmatch(golden, pattern) for pattern in r.goldens))
    return row


TORCH = {
    "lr": "lr", "decay": "alpha", "eps": "eps", "momentum": "momentum", "centered": "centered",
    "weight_decay": "weight_decay",
}  # fmt: skip
L2 = {"weight_decay_kind": "coupled_l2"}
DECOUPLED = {"weight_decay_kind": "decoupled"}
OUTSIDE = {"eps_mode": "outside"}
ONES = {"v_init": 1.0}
AFTER = {"lr_place": "outside"}
NO_BUFFER = {"lr_place": "none"}
MAXIMIZE = {"maximize": "maximize"}
TENSORFLOW = {
    "lr": "learning_rate", "decay": "decay", "eps": "epsilon", "momentum": "momentum",
    "centered": "centered",
}  # fmt: skip
KERAS = TENSORFLOW | {"decay": "rho"}
GRAVES = {"lr": "lr", "decay": "alpha", "eps": "eps", "momentum": "momentum"}
OURS = {
    "lr": "learning_rate", "decay": "decay", "eps": "eps", "momentum": "momentum",
    "centered": "centered", "nesterov": "nesterov", "bias_correction": "bias_correction",
    "v_init": "initial_scale", "eps_mode": ("eps_in_sqrt", lambda mode: mode == "inside"),
}  # fmt: skip
# A call that is a chain: what its links have as arguments.
OF_LINKS = {
    "lr": "learning_rate", "decay": "decay", "momentum": "momentum",
    "weight_decay": "weight_decay",
}  # fmt: skip
PLAIN = {name: OURS[name] for name in ("lr", "decay", "eps")}
PLAIN_OUTSIDE = PLAIN | {"eps_mode": OURS["eps_mode"]}
MXNET = {
    "lr": "learning_rate", "decay": "gamma1", "momentum": "gamma2", "eps": "epsilon",
    "centered": "centered", "weight_decay": "wd", "clip_value": "clip_gradient",
    "clip_weights": "clip_weights", "gradient_scale": "rescale_grad",
}  # fmt: skip


def _by_momentum(run: dict[str, Any]) -> str:
    return "inside" if run["momentum"] else "outside"


def _by_centering(run: dict[str, Any]) -> str:
    return "inside" if run["centered"] else "outside"


def _subtracted_if_centered(run: dict[str, Any]) -> str:
    return "inside_minus" if run["centered"] else "inside"


ROWS = [
    Row(
        "PyTorch 2.13", RUN, "dialects.torch()", (1e-2, 0.99, 0.0, 1e-8),
        OUTSIDE | AFTER | L2, TORCH | MAXIMIZE, "option", "L2",
        goldens=("torch/*", "torch_foreach/*"), live="torch",
        note="complex: real and imaginary part apart; 2.15.0 was read and computes the same",
    ),
    Row(
        "PyTorch 2.15's torch.optim.functional.rmsprop", READ, "dialects.torch(lr=learning_rate)",
        (REQUIRED, 0.99, 0.0, 1e-8), OUTSIDE | AFTER | L2, TORCH | MAXIMIZE, "option", "L2",
        live="torch_function",
        note="it has no defaults, these are the class's; it wraps torch.optim.rmsprop.rmsprop, "
        "which the live tests run in 2.13",
    ),
    Row(
        "LuaTorch optim", NUMBERS, "dialects.torch()", (1e-2, 0.99, None, 1e-8), OUTSIDE | L2,
        TORCH, "no", "L2", note="its initialMean, here 0, is `initial_scale` of `torchopt`",
    ),
    Row(
        "TensorFlow 1 (2.21's compat.v1)", RUN, "dialects.tensorflow1(learning_rate)",
        (REQUIRED, 0.9, 0.0, 1e-10), ONES, TENSORFLOW, "option", goldens=("tf1/*",),
        live="tensorflow1", note="sparse gradients move their rows only: see below",
    ),
    Row(
        "tf.keras 2.0-2.10, tf_keras 2.21 legacy", RUN, "dialects.keras2()",
        (1e-3, 0.9, 0.0, 1e-7), {"eps_mode": _by_momentum}, KERAS, "option",
        goldens=("tfk_legacy/*",), live="keras2", note="outside if μ = 0, inside if μ > 0",
    ),
    Row(
        "Keras 2.3", READ, "dialects.keras2()", (1e-3, 0.9, 0.0, 1e-7),
        {"eps_mode": _by_momentum}, KERAS, "option, ignored if μ = 0",
        note="outside if μ = 0, inside if μ > 0",
    ),
    Row(
        "Keras 1.x-2.2", READ, "dialects.keras2()", (None, None, None, None),
        OUTSIDE | NO_BUFFER, KERAS, note="defaults not read: the call has those of 2.3",
    ),
    Row(
        "Keras 2.11-2.15, tf_keras 2.21", RUN, "dialects.keras()", (1e-3, 0.9, 0.0, 1e-7),
        DECOUPLED, KERAS | {"weight_decay": "weight_decay"}, "option", "decoupled",
        clips="before the decay", goldens=("tfk_new/*",), live="tf_keras",
    ),
    Row(
        "Keras 3.15 (JAX, TensorFlow, PyTorch)", RUN, "dialects.keras()", (1e-3, 0.9, 0.0, 1e-7),
        DECOUPLED,
        KERAS
        | {"weight_decay": "weight_decay", "clip_value": "clipvalue", "clip_norm": "clipnorm"},
        "option", "decoupled", clips="before the decay",
        goldens=("keras_jax/*", "keras_tensorflow/*", "keras_torch/*"), live="keras",
    ),
    Row(
        "Optax 0.2.8", RUN, "optax_rmsprop.rmsprop(learning_rate)", (REQUIRED, 0.9, 0.0, 1e-8), {},
        OURS, "option", goldens=("optax/*",), live="optax",
        note="options for ε outside, ν₀, Nesterov, bias correction; complex: |g|²",
    ),
    Row(
        "jax.example_libraries rmsprop", RUN, "optax_rmsprop.rmsprop(learning_rate)",
        (REQUIRED, 0.9, None, 1e-8), {}, PLAIN, goldens=("jaxex/default",), live="jax_example",
    ),
    Row(
        "jax.example_libraries rmsprop_momentum", RUN,
        "optax_rmsprop.rmsprop(learning_rate, momentum=0.9)", (REQUIRED, 0.9, 0.9, 1e-8), {},
        PLAIN | {"momentum": "momentum"}, goldens=("jaxex/*mom",), live="jax_example_momentum",
        note="before 2019-10 with ε outside: `eps_in_sqrt=False`",
    ),
    Row(
        "flax.optim 0.5.3", RUN, "optax_rmsprop.rmsprop(learning_rate, eps_in_sqrt=False)",
        (REQUIRED, 0.9, None, 1e-8), OUTSIDE, PLAIN_OUTSIDE | {"centered": "centered"}, "option",
        goldens=("flaxoptim/*",), note="η may be given at each step instead",
    ),
    Row(
        "Sonnet 2.0.2", RUN, "dialects.sonnet(learning_rate)", (REQUIRED, 0.9, 0.0, 1e-10), {},
        TENSORFLOW, "option", goldens=("sonnet/*",), note="users of Sonnet 1 expect ν₀ = 1",
    ),
    Row(
        "timm 1.0.31 RMSpropTF", RUN, "dialects.timm()", (1e-2, 0.9, 0.0, 1e-10), ONES,
        TORCH
        | {
            "caution": "caution",
            "lr_place": ("lr_in_momentum", lambda place: place == "inside"),
            "lr_max": "lr_max",
            "weight_decay_kind": {
                "none": {},
                "coupled_l2": {},
                "decoupled": {"decoupled_decay": True},
                "decoupled_corrected": {
                    "decoupled_decay": True, "corrected_weight_decay": True,
                },
            },
        },
        "option", "L2, decoupled or ·η²/η_max", goldens=("timm/*", "timm_foreach/*"), live="timm",
        note="options for the place of η, caution",
    ),
    Row(
        "timm 1.0.31, factory name `rmsprop`", READ, "dialects.torch(alpha=0.9)",
        (1e-2, 0.9, 0.0, 1e-8), OUTSIDE | AFTER | L2, TORCH, "option", "L2",
        note="PyTorch's class with another α",
    ),
    Row(
        "Stable-Baselines3 2.9.2", RUN, "dialects.stable_baselines3()", (1e-2, 0.99, 0.0, 1e-8),
        ONES | AFTER | L2, TORCH, "option", "L2", goldens=("sb3/*",), live="stable_baselines3",
    ),
    Row(
        "pfrl 0.4.0", RUN, "dialects.pfrl()", (1e-2, 0.99, 0.0, 1e-8), AFTER | L2, TORCH,
        "option", "L2", note="A3C: `dialects.pfrl(lr=7e-4, eps=0.1)`",
    ),
    Row(
        "chainerrl, asynchronous", READ, "dialects.pfrl(lr=7e-4, eps=0.1)",
        (7e-4, 0.99, None, 0.1), {}, TORCH, note="its docstring says outside; its code is inside",
    ),
    Row(
        "A3C paper, shared RMSProp", TOLD, "dialects.pfrl(lr=7e-4, eps=0.1)",
        (None, None, None, None), NO_BUFFER, TORCH,
        note="from two implementations, one with ν₀ = 1; the call has pfrl's numbers",
    ),
    Row(
        "A3C on TensorFlow (async_deep_reinforce)", READ,
        "dialects.tensorflow1(learning_rate, decay=0.99, epsilon=0.1)",
        (REQUIRED, 0.99, 0.0, 0.1), ONES, TENSORFLOW, note="after clip_by_norm(40) per variable",
    ),
    Row(
        "IMPALA (scalable_agent)", RUN,
        "dialects.tensorflow1(learning_rate, decay=0.99, epsilon=0.1)",
        (REQUIRED, 0.99, 0.0, 0.1), ONES, TENSORFLOW,
        note="η falls from 4.8e-4 to 0 with the environment's frames",
    ),
    Row(
        "Dopamine 4.1.2, TensorFlow", READ,
        "dialects.tensorflow1(2.5e-4, decay=0.95, epsilon=1e-5, centered=True)",
        (2.5e-4, 0.95, 0.0, 1e-5), ONES, TENSORFLOW, "always",
        note="its constants were run as TensorFlow 1's",
    ),
    Row(
        "Dopamine 4.1.2, JAX", READ,
        "optax_rmsprop.rmsprop(6.25e-5, decay=0.999, eps=1.5e-4)",
        (6.25e-5, 0.999, None, 1.5e-4), {}, OURS, "option", note="ν₀ is 0, in TensorFlow's 1",
    ),
    Row(
        "TorchOpt 0.7.3", RUN, "dialects.torchopt()", (1e-2, 0.99, 0.0, 1e-8),
        OUTSIDE | AFTER | L2,
        TORCH | MAXIMIZE | {"nesterov": "nesterov", "v_init": "initial_scale"}, "option", "L2",
        goldens=("torchopt/*",), live="torchopt", note="options for ν₀ and Nesterov",
    ),
    Row(
        "bitsandbytes 0.50.2, 32 bit", RUN, "dialects.torch()", (1e-2, 0.99, None, 1e-8),
        OUTSIDE | L2, TORCH, "raises", "L2", goldens=("bnb/*",),
        note="momentum is accepted and ignored",
    ),
    Row(
        "HeavyBall 3.2.1", RUN, "dialects.heavyball()", (2.5e-3, 0.99, None, 1e-6),
        {"eps_mode": "max", "debias": "ema"} | AFTER | DECOUPLED,
        {
            "lr": "lr", "decay": ("betas", lambda decay: (0.9, decay)), "eps": "eps",
            "weight_decay": "weight_decay",
        },
        "no", "decoupled", goldens=("heavyball/*",), note="ν is bias-corrected",
    ),
    Row(
        "MXNet 0.8", READ,
        "optax_rmsprop.chain(optax_rmsprop.scale_by_stddev(0.95, 1e-4), "
        "optax_rmsprop.scale_by_learning_rate(2e-3), optax_rmsprop.trace(0.9))",
        (2e-3, 0.95, 0.9, 1e-4), {"centered": True, "weight_decay_kind": "in_buffer"},
        OF_LINKS, "always", "inside the buffer", clips="before the decay",
        note="weight decay: add_decayed_weights between the first two links; ε is fixed; η, ρ and "
        "μ were read in an earlier version",
    ),
    Row(
        "MXNet 0.9.5", READ,
        "optax_rmsprop.chain(optax_rmsprop.scale_by_rms(0.9, 1e-8, eps_in_sqrt=False), "
        "optax_rmsprop.scale_by_learning_rate(learning_rate))",
        (None, None, None, None), OUTSIDE | L2,
        OF_LINKS | {"eps": "eps", "centered": "centered"}, "option, with μ", "L2",
        note="ε is outside in both forms; centred, with momentum: scale_by_stddev and trace; "
        "weight decay: add_decayed_weights first; the numbers here are those of 1.9",
    ),
    Row(
        "MXNet 0.10-1.9", RUN, "dialects.mxnet()", (1e-3, 0.9, 0.9, 1e-8),
        {"clip_order": "after_l2"} | L2 | {"momentum": lambda run: run["momentum"]}, MXNET,
        "option, with μ", "L2", clips="after L2", goldens=("mxnet/*",), first_count=1,
        note="momentum only if centred; a schedule sees 1 first",
    ),
    Row(
        "MXNet 2.0", READ, "dialects.mxnet2()", (1e-3, 0.9, 0.9, 1e-8),
        {"eps_mode": _by_centering} | L2,
        MXNET | {"decay": "rho", "momentum": "momentum"}, "option, with μ", "L2",
        clips="before L2", first_count=1,
        note="outside, but inside if centred; momentum only if centred",
    ),
    Row(
        "PaddlePaddle 3.3.1", RUN, "dialects.paddle(learning_rate)", (REQUIRED, 0.95, 0.0, 1e-6),
        L2,
        KERAS | {"weight_decay": "weight_decay", "clip_value": ("grad_clip", optax.clip)},
        "option", "L2", clips="before L2", goldens=("paddle/*",),
    ),
    Row(
        "MindSpore 2.10 nn.RMSProp", RUN, "dialects.mindspore()", (0.1, 0.9, 0.0, 1e-10),
        ONES | L2,
        TENSORFLOW
        | {
            "weight_decay": "weight_decay",
            "gradient_scale": ("loss_scale", lambda scale: 1.0 / scale),
        },
        "option", "L2", goldens=("mindspore/*",),
        note="the CPU's vector lanes have ε outside",
    ),
    Row(
        "MindSpore 2.10 experimental.optim", READ, "dialects.torch()", (1e-2, 0.99, 0.0, 1e-8),
        OUTSIDE | AFTER | L2, TORCH | MAXIMIZE, "option", "L2",
    ),
    Row(
        "Chainer 7.8.1 RMSprop", RUN, "dialects.chainer()", (1e-2, 0.99, None, 1e-8),
        OUTSIDE | L2,
        {
            "lr": "lr", "decay": "alpha", "eps": "eps",
            "eps_mode": ("eps_inside_sqrt", lambda mode: mode == "inside"),
        },
        "no", "L2 by a hook", goldens=("chainer/default", "chainer/inside", "chainer/wd"),
        before={"weight_decay": optax.add_decayed_weights},
        note="option for ε inside; raises if ε vanishes in float16",
    ),
    Row(
        "Chainer 7.8.1 RMSpropGraves", RUN, "dialects.graves()", (1e-4, 0.95, 0.9, 1e-4),
        {"centered": True}, GRAVES, "always", "L2 by a hook", goldens=("chainer/graves*",),
    ),
    Row(
        "Graves 2013", TOLD, "dialects.graves()", (1e-4, 0.95, 0.9, 1e-4), {"centered": True},
        GRAVES, "always", note="ν₀ is not stated; run as Chainer's",
    ),
    Row(
        "DQN (Nature, 2015), Lua", READ, "dialects.graves(lr=2.5e-4, momentum=0.0, eps=0.01)",
        (2.5e-4, 0.95, None, 0.01), {"centered": True}, GRAVES, "always", "L2, of 0",
        note="the gradient it takes points uphill; the paper's gradient momentum is ρ",
    ),
    Row(
        "Lasagne", RUN, "dialects.chainer(lr=1.0, alpha=0.9, eps=1e-6, eps_inside_sqrt=True)",
        (1.0, 0.9, None, 1e-6), {},
        {
            "lr": "lr", "decay": "alpha", "eps": "eps",
            "eps_mode": ("eps_inside_sqrt", lambda mode: mode == "inside"),
        },
        goldens=("lasagne/*",),
    ),
    Row(
        "MLX 0.32.4", RUN, "dialects.torch(lr=learning_rate)", (REQUIRED, 0.99, None, 1e-8),
        OUTSIDE, TORCH, goldens=("mlx/*",),
    ),
    Row(
        "tinygrad 0.2-0.3", READ, "dialects.torch(lr=1e-3, alpha=0.9)",
        (1e-3, 0.9, None, 1e-8), OUTSIDE, TORCH,
    ),
    Row(
        "Burn", NUMBERS, "dialects.torch(lr=learning_rate, momentum=0.9, eps=1e-5)",
        (REQUIRED, 0.99, 0.9, 1e-5), OUTSIDE | AFTER | L2, TORCH, "option", "L2",
    ),
    Row(
        "dfdx", NUMBERS, "dialects.stable_baselines3(alpha=0.9)", (1e-2, 0.9, None, 1e-8),
        ONES | AFTER | L2, TORCH, "option", "L2 or decoupled",
        note="a tensor that is first used late starts at ν = 0",
    ),
    Row(
        "candle-optimisers", READ, "dialects.torch()", (1e-2, 0.99, 0.0, 1e-8),
        OUTSIDE | AFTER | L2, TORCH, "option", "L2",
    ),
    Row(
        "R torch", READ, "dialects.torch()", (1e-2, 0.99, 0.0, 1e-8), OUTSIDE | AFTER | L2, TORCH,
        "option", "L2", note="its formula shows ε inside, its note outside",
    ),
    Row(
        "Optimisers.jl", READ, "optax_rmsprop.rmsprop(1e-3, eps_in_sqrt=False)",
        (1e-3, 0.9, None, 1e-8), OUTSIDE, PLAIN_OUTSIDE | {"centered": "centered"}, "option",
        note="complex: |g|²",
    ),
    Row(
        "Flux ≤ 0.12", READ, "optax_rmsprop.rmsprop(learning_rate, eps_in_sqrt=False)",
        (None, None, None, None), OUTSIDE | NO_BUFFER, PLAIN_OUTSIDE,
        note="one commit; defaults not read",
    ),
    Row(
        "Caffe", READ, "dialects.torch(lr=learning_rate)", (REQUIRED, 0.99, 0.0, 1e-8),
        OUTSIDE | L2 | NO_BUFFER, TORCH, "no", "L2", clips="before L2", note="momentum is refused",
    ),
    Row(
        "Caffe2", READ, "dialects.keras(learning_rate, epsilon=1e-5)",
        (REQUIRED, 0.9, 0.0, 1e-5), {}, KERAS, note="ν₀ is the caller's",
    ),
    Row(
        "DL4J, ND4J", READ,
        "optax_rmsprop.rmsprop(0.1, 0.95, 1e-8, initial_scale=1e-8, eps_in_sqrt=False)",
        (0.1, 0.95, None, 1e-8), OUTSIDE | {"v_init": "ε"},
        PLAIN_OUTSIDE | {"v_init": "initial_scale"}, "no", "L2 or decoupled",
        note="ν₀ is ε; before the native operation ε was inside",
    ),
    Row(
        "TensorFlow.js 4.22", RUN, "dialects.tensorflowjs(learning_rate)",
        (REQUIRED, 0.9, 0.0, 1e-7), {"eps_mode": _subtracted_if_centered},
        TENSORFLOW | {"lr": "learningRate"}, "option, √(ν−m²−ε)", goldens=("tfjs/*",),
        note="ε is the backend's; NaN where the variance is below ε",
    ),
    Row(
        "pylearn2", READ,
        "optax_rmsprop.rmsprop(learning_rate, eps=1e-5, "
        "eps_in_sqrt=lambda root, nu, eps: jnp.maximum(root(nu), eps))",
        (REQUIRED, 0.9, None, 1e-5), {"eps_mode": "max"}, {},
    ),
    Row(
        "blocks BasicRMSProp", READ,
        "optax_rmsprop.rmsprop(learning_rate, eps=1e-5, "
        "eps_in_sqrt=lambda root, nu, eps: jnp.maximum(root(nu), eps))",
        (REQUIRED, 0.9, None, 1e-5), {"eps_mode": "max"}, {},
        note="its constructor was read; the form is pylearn2's",
    ),
    Row(
        "neon", READ,
        "optax_rmsprop.rmsprop(learning_rate, "
        "eps_in_sqrt=lambda root, nu, eps: root(nu + eps) + eps)",
        (None, None, None, None), {"eps_mode": "both"} | NO_BUFFER, {}, note="defaults not read",
    ),
    Row(
        "climin", READ,
        "optax_rmsprop.rmsprop(learning_rate, initial_scale=1.0, momentum=0.9, nesterov=True)",
        (REQUIRED, 0.9, 0.0, 1e-8), ONES | {"nesterov": True}, OURS,
        note="called here with μ = 0.9; our p is its point ahead of the jump; its step adaptation "
        "by sign is not RMSprop",
    ),
    Row(
        "Hinton, lecture 6e", TOLD, "dialects.hinton(learning_rate)",
        (None, 0.9, None, None), {"eps_mode": "none", "nesterov": True},
        {"lr": "learning_rate", "decay": "decay", "momentum": "momentum"},
        note="no ε, ν₀ or η is given; the correction is divided, not the jump",
    ),
    Row(
        "SMORMS3 (Chainer 7.8.1)", RUN, "", (1e-3, None, None, 1e-16), {}, {},
        goldens=("chainer/smorms3",),
        note="no call: each weight has a memory of its own, outside this family",
    ),
    Row(
        "CNTK", READ, "", (None, None, None, None), {}, {},
        note="no call: ν₀ = g₁² and steps that adapt to the sign, outside this family",
    ),
    Row(
        "No RMSprop of their own", READ, "", (None, None, None, None), {}, {},
        note="no call: torch_optimizer 0.3.0, pytorch_optimizer 4.1.0 (PyTorch's), apex, DeepSpeed "
        "0.19.8, ColossalAI 0.5.0, ONNX 1.23, tinygrad today, candle itself",
    ),
]  # fmt: skip
