"""Recipes: their numbers against a second copy, their rates step by step, and what they train with.

The second copy was typed from the repositories by itself. Rates are compared with the formulas of
the sources in rational numbers, at every step around which they change.
"""

import dataclasses
import inspect
import math
import pickle
import re
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop import dialects, interop, recipes, storage
from optax_rmsprop.recipes import Linear, Ramp, Stages, Staircase, WarmUp
from tests import reference
from tools.recipes import GROUPS, PAGE, page

pytestmark = pytest.mark.api

IMAGENET = 1281167
PUBLIC = {
    name: f
    for name, f in vars(recipes).items()
    if inspect.isfunction(f)
    and f.__module__ == recipes.__name__
    and not name.startswith("_")
    and name not in ("record", "build")
}
# For what a source does not say.
NEEDED = {"num_envs": 16, "steps_per_epoch": 5004.5}


def required(name):
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    return {p.name: NEEDED[p.name] for p in parameters if p.default is p.empty}


def called(name, **arguments):
    return PUBLIC[name](**(required(name) | arguments))


def recorded(name, **arguments):
    return recipes.record(name, **(required(name) | arguments))


everyone = pytest.mark.parametrize("name", PUBLIC)


# The optimizers as the sources call them, by the words of their lines; the rates are below.
def tpu(eps, *, weight_decay=None, but="", axes=0):
    """tf.train.RMSPropOptimizer(learning_rate, RMSPROP_DECAY, momentum=..., epsilon=...)"""

    def make(rate):
        step = dialects.tensorflow1(rate, 0.9, 0.9, eps)
        if weight_decay is None:
            return step
        mask = recipes.Decays(axes, but)
        return ours.chain(ours.add_decayed_weights(weight_decay, mask=mask), step)

    return make


def clipped(norm, make):
    return lambda rate: ours.chain(dialects.clip_by_norm(norm, together=True), make(rate))


def timm(rate):
    """--opt rmsproptf --opt-eps .001 --weight-decay 1e-5; momentum .9 is the script's default"""
    mask = recipes.Decays(axes=2, but="bias")
    return ours.chain(
        ours.add_decayed_weights(1e-5, mask=mask), dialects.timm(rate, momentum=0.9, eps=0.001)
    )


BATCH_NORM = r"batch_?norm|(?<![a-z])(bn|norm)(?![a-z])"
EFFICIENTNET = tpu(0.001, weight_decay=1e-5, but=BATCH_NORM)
INCEPTION = tpu(1.0, weight_decay=0.00004, axes=2)
TPU, TIMM = ("tensorflow/tpu", "7dc921f8"), ("huggingface/pytorch-image-models", "aa4b5850")
DQN_ZOO = ("google-deepmind/dqn_zoo", "45061f4b")
BASELINES = ("openai/baselines", "ea25b9e8")

SECOND_COPY = {
    "efficientnet": (EFFICIENTNET, *TPU),
    "mnasnet": (EFFICIENTNET, *TPU),
    "mixnet": (EFFICIENTNET, *TPU),
    "mobilenet_v1_tpu": (tpu(1.0), *TPU),
    "inception_v2_tpu": (INCEPTION, *TPU),
    "inception_v3_tpu": (INCEPTION, *TPU),
    "inception_v4_tpu": (INCEPTION, *TPU),
    "amoebanet_d_tpu": (INCEPTION, *TPU),
    "timm_efficientnet_b0": (timm, *TIMM),
    "timm_efficientnet_b2": (timm, *TIMM),
    "timm_efficientnet_es": (timm, *TIMM),
    "timm_mixnet_xl": (timm, *TIMM),
    "timm_mobilenetv3_large_100": (timm, *TIMM),
    # (g²-ḡ²+0.01)^½ of the decays 0.95 and 0.05, and deltas:mul(0)
    "dqn": (lambda lr: dialects.graves(lr, 0.95, 0, 0.01), "google-deepmind/dqn", "9d9b1d13"),
    # optax.rmsprop(learning_rate, decay=0.95, eps=0.01 / 32**2, centered=True)
    "dqn_zoo": (lambda lr: ours.rmsprop(lr, 0.95, 0.01 / 1024, centered=True), *DQN_ZOO),
    "double_dqn": (lambda lr: ours.rmsprop(lr, 0.95, 0.01 / 1024, centered=True), *DQN_ZOO),
    "prioritized_dqn": (lambda lr: ours.rmsprop(lr, 0.95, 0.01 / 16384, centered=True), *DQN_ZOO),
    # tf.train.RMSPropOptimizer(0.00025, decay=0.95, momentum=0.0, epsilon=0.00001, centered=True)
    "dqn_dopamine": (
        lambda lr: dialects.tensorflow1(lr, 0.95, 0.0, 0.00001, centered=True),
        "google/dopamine", "5873f549",
    ),
    # optim.RMSprop(..., lr=step_size, alpha=SQUARED_GRAD_MOMENTUM, centered=True, eps=0.01)
    "minatar_dqn": (
        lambda lr: dialects.torch(lr, alpha=0.95, centered=True, eps=0.01),
        "kenjyoung/MinAtar", "4241f246",
    ),
    # tf.train.RMSPropOptimizer(learning_rate=LR, decay=alpha, epsilon=epsilon)
    "a2c": (clipped(0.5, lambda lr: dialects.tensorflow1(lr, 0.99, epsilon=1e-5)), *BASELINES),
    "acer": (clipped(10, lambda lr: dialects.tensorflow1(lr, 0.99, epsilon=1e-5)), *BASELINES),
    "a2c_sb3": (
        clipped(0.5, lambda lr: dialects.torch(lr, alpha=0.99, eps=1e-5, weight_decay=0)),
        "DLR-RM/stable-baselines3", "e05d2dbe",
    ),
    "a2c_sb3_atari": (
        clipped(0.5, lambda lr: dialects.stable_baselines3(lr, eps=1e-5)),
        "DLR-RM/rl-baselines3-zoo", "22e3ff24",
    ),
    # RMSPropOptimizer(learning_rate, FLAGS.decay, FLAGS.momentum, FLAGS.epsilon)
    "impala": (
        lambda lr: dialects.tensorflow1(lr, 0.99, 0.0, 0.1),
        "google-deepmind/scalable_agent", "6c0c8a70",
    ),
    "torchbeast": (
        clipped(40, lambda lr: dialects.torch(lr, momentum=0, eps=0.01, alpha=0.99)),
        "facebookresearch/torchbeast", "0af07b05",
    ),
    # rmsprop_pytorch_style(learning_rate=linear_schedule, eps=0.01, decay=0.99)
    "cleanba": (
        clipped(40, lambda lr: dialects.torch(lr, eps=0.01, alpha=0.99)),
        "vwxyzjn/cleanba", "d1f8979c",
    ),
    "pymarl": (
        clipped(10, lambda lr: dialects.torch(lr, alpha=0.99, eps=0.00001)),
        "oxwhirl/pymarl", "c971afdc",
    ),
    "dreamer_v3": (
        lambda lr: ours.chain(
            dialects.adaptive_clip_by_norm(0.3, 1e-3),
            ours.chain(
                ours.scale_by_rms(0.999, 1e-20, eps_in_sqrt=False, bias_correction=True),
                ours.ema(0.9), ours.scale_by_learning_rate(lr),
            ),
        ),
        "danijar/dreamerv3", "e3f02248",
    ),
    # getattr(torch.optim, 'RMSprop')(self.policy.parameters(), lr=self.config.lr)
    "dpo": (
        clipped(10, dialects.torch),
        "eric-mitchell/direct-preference-optimization", "f8b8c0f4",
    ),
    "wgan": (dialects.torch, "martinarjovsky/WassersteinGAN", "f7a01e82"),
    "char_rnn": (
        lambda lr: ours.chain(dialects.clip(5.0), dialects.torch(lr, alpha=0.95)),
        "karpathy/char-rnn", "6f9487a6",
    ),
    "dnc": (clipped(50, dialects.tensorflow1), "google-deepmind/dnc", "f5981c66"),
    "show_attend_tell": (dialects.graves, "kelvinxu/arctic-captions", "f4565bfe"),
}  # fmt: skip


@everyone
def test_a_recipe_is_its_sources_line_with_its_rate(name):
    make, repository, commit = SECOND_COPY[name]
    assert called(name) == make(recorded(name).learning_rate)
    source = recorded(name).source
    assert source.repository == repository and source.commit.startswith(commit)
    assert re.fullmatch("[0-9a-f]{40}", source.commit) and source.path and source.paper


# What stands beside the optimizer, again from the sources.
LOSSES = {"dqn", "impala", "torchbeast", "cleanba", "char_rnn"}  # which are sums
AVERAGES = {
    **dict.fromkeys(["efficientnet", "mnasnet", "mixnet", "amoebanet_d_tpu"], Ramp(0.9999)),
    **dict.fromkeys(
        ["mobilenet_v1_tpu", "inception_v2_tpu", "inception_v3_tpu", "inception_v4_tpu"],
        Ramp(0.995),
    ),
    **dict.fromkeys(
        ["timm_efficientnet_b0", "timm_efficientnet_b2", "timm_mixnet_xl",
         "timm_mobilenetv3_large_100"], 0.9999,
    ),
}  # fmt: skip


@everyone
def test_what_stands_beside_the_optimizer(name):
    recipe = recorded(name)
    assert recipe.loss == ("sum" if name in LOSSES else "mean")
    assert recipe.average == AVERAGES.get(name)


def test_every_recipe_is_here_and_in_the_documentation():
    assert set(PUBLIC) == set(recipes.RECORDS) == set(SECOND_COPY)
    assert sorted(PUBLIC) == sorted(name for names in GROUPS.values() for name in names)
    assert page() == PAGE.read_text("utf-8"), "python -m tools.recipes"


# The rates, in the words of the sources and in rational numbers where they are compared.
def floor(x):
    return x.numerator // x.denominator


def google(base, factor, epochs, batch, epoch, warm=0):
    def rate(t):
        start = base * batch / 256
        steps = int(warm * epoch)
        falls = floor(t / (Fraction(epochs) * epoch))
        return start * t / steps if t < steps else start * factor**falls

    return rate


def inception(batch, every):
    start = 0.165 * batch / 256
    return lambda t: max(start * 0.94 ** (t // every), 1e-4 * start)


def inception_v4(batch, epoch):
    start = 0.15 * (batch / 256) / 0.94**1.5

    def rate(t):
        passed = floor(t / epoch)
        late = max(start * 0.94 ** (t // int(2 * epoch)), 1e-4 * start)
        return 0.001 if passed < 1 else passed * start / 3 if passed < 3 else late

    return rate


def amoeba(start, factor, epoch, warm):
    steps = int(warm * epoch)

    def rate(t):
        return max(start * t / steps if t < steps else start * factor ** (t // epoch), 1e-4 * start)

    return rate


def by_epochs(start, factor, epoch, warm):
    def rate(t):
        e = floor(t / epoch)
        return 1e-6 + e * (start - 1e-6) / warm if e < warm else start * factor ** (e * 10 // 24)

    return rate


def char_rnn(epoch):
    return lambda t: 2e-3 * 0.97 ** max(0, floor(t / epoch) + 1 - 10)


E = Fraction(IMAGENET, 2048), Fraction(IMAGENET, 4096), Fraction(IMAGENET, 1024)
# Of 7.4 and 8.3 steps in an epoch some multiples are whole, and in floating point a little more.
ODD = Fraction(626), Fraction(5, 2), Fraction(97), Fraction(37, 5), Fraction(83, 10)
RATES = {
    "efficientnet": ("efficientnet", {}, google(0.016, 0.97, "2.4", 2048, E[0], 5)),
    "efficientnet-4096": (
        "efficientnet", {"batch_size": 4096}, google(0.016, 0.97, "2.4", 4096, E[1], 5),
    ),
    "efficientnet-whole": (
        "efficientnet", {"batch_size": 256, "steps_per_epoch": 626},
        google(0.016, 0.97, "2.4", 256, ODD[0], 5),
    ),
    "efficientnet-short": (
        "efficientnet", {"batch_size": 256, "steps_per_epoch": 2.5},
        google(0.016, 0.97, "2.4", 256, ODD[1], 5),
    ),
    "efficientnet-off": (
        "efficientnet", {"batch_size": 256, "steps_per_epoch": 7.4},
        google(0.016, 0.97, "2.4", 256, ODD[3], 5),
    ),
    "mnasnet": ("mnasnet", {}, google(0.016, 0.97, "2.4", 1024, E[2], 5)),
    "mixnet": ("mixnet", {}, google(0.016, 0.97, "2.4", 1024, E[2], 5)),
    "mobilenet_v1_tpu": ("mobilenet_v1_tpu", {}, inception(1024, 3 * (IMAGENET // 1024))),
    "mobilenet_v1_tpu-640": (  # where it is not int(3 · 1281167 / 640)
        "mobilenet_v1_tpu", {"batch_size": 640}, inception(640, 3 * (IMAGENET // 640)),
    ),
    "inception_v2_tpu": ("inception_v2_tpu", {}, inception(1024, int(3 * IMAGENET / 1024))),
    "inception_v3_tpu-640": (
        "inception_v3_tpu", {"batch_size": 640}, inception(640, int(3 * IMAGENET / 640)),
    ),
    "inception_v3_tpu": ("inception_v3_tpu", {}, inception(1024, int(3 * IMAGENET / 1024))),
    "inception_v4_tpu": ("inception_v4_tpu", {}, inception_v4(256, Fraction(IMAGENET, 256))),
    "amoebanet_d_tpu": ("amoebanet_d_tpu", {}, amoeba(0.64, 0.9, IMAGENET // 256, 3)),
    "amoebanet_d_tpu-fast": (
        "amoebanet_d_tpu",
        {
            "steps_per_epoch": 1251.5, "learning_rate": 2.56, "epoch_factor": 0.88,
            "warmup_epochs": 0.35,
        },
        amoeba(2.56, 0.88, 1251, 0.35),
    ),
    "timm_efficientnet_b0": (
        "timm_efficientnet_b0", {"steps_per_epoch": 97}, by_epochs(0.048, 0.97, ODD[2], 3),
    ),
    "timm_efficientnet_b2": (
        "timm_efficientnet_b2", {"steps_per_epoch": 1}, by_epochs(0.016, 0.97, Fraction(1), 3),
    ),
    "timm_efficientnet_es": (
        "timm_efficientnet_es", {"steps_per_epoch": 2.5, "warmup_epochs": 5},
        by_epochs(0.064, 0.97, ODD[1], 5),
    ),
    "timm_efficientnet_b2-off": (
        "timm_efficientnet_b2", {"steps_per_epoch": 8.3}, by_epochs(0.016, 0.97, ODD[4], 3),
    ),
    "timm_mixnet_xl-off": (
        "timm_mixnet_xl", {"steps_per_epoch": 7.4}, by_epochs(0.016, 0.969, ODD[3], 3),
    ),
    "timm_mixnet_xl": (
        "timm_mixnet_xl", {"steps_per_epoch": 97}, by_epochs(0.016, 0.969, ODD[2], 3),
    ),
    "timm_mobilenetv3_large_100": (
        "timm_mobilenetv3_large_100", {"steps_per_epoch": 97}, by_epochs(0.064, 0.973, ODD[2], 3),
    ),
    "char_rnn": ("char_rnn", {"steps_per_epoch": 423}, char_rnn(Fraction(423))),
    "char_rnn-short": ("char_rnn", {"steps_per_epoch": 2.5}, char_rnn(ODD[1])),
    "dqn": ("dqn", {}, lambda t: 0.00025),
    "dqn_zoo": ("dqn_zoo", {}, lambda t: 0.00025),
    "double_dqn": ("double_dqn", {}, lambda t: 0.00025),
    "prioritized_dqn": ("prioritized_dqn", {}, lambda t: 0.00025 / 4),
    "dqn_dopamine": ("dqn_dopamine", {}, lambda t: 0.00025),
    "minatar_dqn": ("minatar_dqn", {}, lambda t: 0.00025),
    # The scheduler is advanced once for each of 5 · 16 transitions, and the last value is used.
    "a2c": ("a2c", {}, lambda t: 7e-4 * max(0, 1 - ((t + 1) * 80 - 1) / 80e6)),
    "a2c-short": (
        "a2c", {"num_envs": 1, "total_steps": 5000},
        lambda t: 7e-4 * max(0, 1 - ((t + 1) * 5 - 1) / 5000),
    ),
    "acer": ("acer", {}, lambda t: 7e-4),
    "a2c_sb3": ("a2c_sb3", {}, lambda t: 7e-4),
    "a2c_sb3_atari": ("a2c_sb3_atari", {}, lambda t: 7e-4),
    # polynomial_decay(learning_rate, num_env_frames, total_environment_frames, 0)
    "impala": ("impala", {}, lambda t: 4.8e-4 * (1 - min(t * 2 * 100 * 4, 1e9) / 1e9)),
    "impala-dmlab": (
        "impala",
        {"learning_rate": 0.00031866995608948655, "batch_size": 32, "total_frames": 1e10},
        lambda t: 0.00031866995608948655 * (1 - min(t * 32 * 100 * 4, 1e10) / 1e10),
    ),
    "torchbeast": ("torchbeast", {}, lambda t: 4.8e-4 * (1 - min(t * 80 * 8, 1e5) / 1e5)),
    "torchbeast-pong": (
        "torchbeast", {"learning_rate": 4e-4, "batch_size": 4, "total_steps": 3e7},
        lambda t: 4e-4 * (1 - min(t * 80 * 4, 3e7) / 3e7),
    ),
    # 1.0 - (count // args.num_minibatches) / args.num_updates
    "cleanba": ("cleanba", {}, lambda t: 0.0006 * max(0, 1 - (t // 4) / (50_000_000 // 2560))),
    "pymarl": ("pymarl", {}, lambda t: 0.0005),
    "dreamer_v3": ("dreamer_v3", {}, lambda t: 4e-5 * min(t, 1000) / 1000),
    # min(1.0, (step + 1) / (self.config.warmup_steps + 1))
    "dpo": ("dpo", {}, lambda t: 5e-7 * min(1.0, (t + 1) / (150 + 1))),
    "wgan": ("wgan", {}, lambda t: 5e-5),
    "dnc": ("dnc", {}, lambda t: 1e-4),
    "show_attend_tell": ("show_attend_tell", {}, lambda t: 1e-4),
}  # fmt: skip


def differ(schedule, rate, steps):
    """The steps where a schedule is another than a source's formula, beyond float32's rounding."""
    if not callable(schedule):
        return [t for t in steps if schedule != rate(t)]
    found = jax.jit(jax.vmap(schedule))(jnp.array(steps, jnp.int32))
    expected = np.array([float(rate(t)) for t in steps])
    # Near the end of a line the rounding of the whole is left.
    wrong = np.abs(found - expected) > 3e-7 * expected + 1e-7 * expected.max()
    return [steps[i] for i in np.flatnonzero(wrong)]


def steps_to_try(schedule):
    """Around everything that happens, and in between."""
    end = 400_000
    every = {0, 1, 2, end}
    for part in [schedule, getattr(schedule, "after", None)]:
        if isinstance(part, Staircase):
            epoch = part.unit if part.unit != 1 else part.every
            falls = [part.hold + k * x for k in range(1, 400) for x in {part.every, epoch}]
            every |= {math.floor(x) + i for x in falls for i in (-1, 0, 1, 2)}
        elif isinstance(part, Stages):
            stages = [k * part.every for k in range(1, len(part.rates) + 1)]
            every |= {math.floor(x) + i for x in stages for i in (-1, 0, 1, 2)}
        elif isinstance(part, WarmUp):
            every |= {part.steps + i for i in (-2, -1, 0, 1)}
        elif isinstance(part, Linear):
            every |= {round(part.steps * x) + i for x in (0.1, 0.5, 0.9, 1) for i in (-3, -1, 0, 4)}
    every |= {int(t) for t in np.random.default_rng(0).integers(0, end, 300)}
    return sorted(t for t in every if 0 <= t < 2**31)


@pytest.mark.parametrize("curve", RATES)
def test_a_rate_is_its_sources_at_every_step(curve):
    name, arguments, rate = RATES[curve]
    schedule = recorded(name, **arguments).learning_rate
    assert differ(schedule, rate, steps_to_try(schedule)) == []


def test_every_recipe_has_a_rate_here():
    assert {name for name, _, _ in RATES.values()} == set(PUBLIC)


# Values that were computed in float64, apart from these formulas.
VALUES = {
    "efficientnet": {
        0: 0.0, 1: 4.09338024e-5, 3126: 0.127959066, 3127: 0.1204352, 4504: 0.1204352,
        4505: 0.116822144, 218_948: 0.001545651,
    },
    "efficientnet-4096": {
        1: 1.63787588e-4, 1562: 0.255836212, 1563: 0.2408704, 109_473: 0.00309130,
    },
    "mnasnet": {1: 1.02318145e-5, 6254: 0.0639897682, 6255: 0.0602176, 437_897: 7.72825498e-4},
    "inception_v3_tpu": {
        3752: 0.66, 3753: 0.6204, 37_530: 0.355485975, 149 * 3753: 6.6e-5, 8_000_000: 6.6e-5,
    },
    "inception_v4_tpu": {
        5004: 0.001, 5005: 0.0548628322, 10_010: 0.109725664, 15_014: 0.154713187,
        20_018: 0.145430396, 79_999: 0.106731952,
    },
    "amoebanet_d_tpu": {
        0: 6.4e-5, 1: 6.4e-5, 15_011: 0.639957367, 15_012: 0.46656, 20_016: 0.419904,
    },
    "timm_efficientnet_b2": {
        0: 1e-6, 1: 0.005334, 2: 0.010667, 3: 0.01552, 4: 0.01552, 5: 0.0150544, 7: 0.0150544,
        8: 0.0146028, 449: 5.37569e-5,
    },
    "a2c": {0: 6.9999930875e-4, 1: 6.9999860875e-4},
    "impala-dmlab": {0: 0.00031866995608948655},
    "torchbeast-pong": {0: 4e-4, 1: 3.99995733e-4},
}  # fmt: skip


@pytest.mark.parametrize("curve", VALUES)
def test_a_rate_has_the_values_of_the_report(curve):
    name, arguments, _ = RATES[curve]
    schedule = recorded(name, **arguments).learning_rate
    for t, value in VALUES[curve].items():
        np.testing.assert_allclose(schedule(t), value, rtol=4e-6)  # their digits


def test_impala_ends_at_zero():
    rate = recorded("impala", batch_size=32).learning_rate
    np.testing.assert_allclose(rate(1), 4.79993856e-4, rtol=2e-7)
    assert rate(78_124) > 0 and rate(78_125) == rate(10**9) == 0


ROUNDED = {
    "an interval to whole steps": lambda s: dataclasses.replace(s, every=round(s.every)),
    "an interval up": lambda s: dataclasses.replace(s, every=math.ceil(s.every)),
    "a whole epoch first": lambda s: dataclasses.replace(s, every=2.4 * 625),
    "whole epochs": lambda s: dataclasses.replace(s, unit=IMAGENET / 2048),
    "a step late": lambda s: dataclasses.replace(s, hold=1.0),
    "another factor": lambda s: dataclasses.replace(s, factor=0.969),
}


@pytest.mark.parametrize("change", ROUNDED.values(), ids=ROUNDED)
def test_the_search_for_a_wrong_rate_can_fail(change):
    name, arguments, rate = RATES["efficientnet"]
    warm = recorded(name, **arguments).learning_rate
    wrong = dataclasses.replace(warm, after=change(warm.after))
    assert differ(wrong, rate, steps_to_try(warm))
    for other in (dataclasses.replace(warm, steps=3128), dataclasses.replace(warm, start=1e-6)):
        assert differ(other, rate, steps_to_try(warm))


def test_a_quotient_in_float32_would_miss_steps():
    """Why falls are counted in whole numbers."""
    stairs = recorded("mnasnet").learning_rate.after
    steps = jnp.array(steps_to_try(stairs), jnp.int32)
    divided = jnp.floor(steps.astype(jnp.float32) / jnp.float32(stairs.every))
    right = jax.vmap(stairs)(steps)
    assert (jnp.abs(stairs.learning_rate * stairs.factor**divided - right) > 1e-3 * right).any()


def test_a_rate_is_the_same_in_float64_and_far_away(x64):
    for name, arguments, rate in RATES.values():
        schedule = recorded(name, **arguments).learning_rate
        if callable(schedule):
            steps = [0, 5, 700, 44_444]
            found = jax.vmap(schedule)(jnp.array([*steps, 2**31 - 1], jnp.int32))
            assert found.dtype == jnp.float64 and 0 <= found[-1] < 1
            expected = [float(rate(t)) for t in steps]
            np.testing.assert_allclose(found[:-1], expected, rtol=1e-12, atol=1e-15)


def test_the_decay_of_an_average_of_weights_rises():
    ramp = Ramp(0.9999)
    np.testing.assert_allclose([ramp(0), ramp(90), ramp(10**6)], [0.1, 0.91, 0.9999], rtol=1e-7)
    assert ramp(89_000) < ramp(89_991) == np.float32(0.9999)


# What they train with.
@everyone
def test_a_recipe_is_a_value_and_shown_as_a_call(name):
    tx, recipe = called(name), recorded(name)
    public = {key: value for key, value in vars(ours).items() if not key.startswith("_")}
    assert eval(repr(tx), public) == tx == pickle.loads(pickle.dumps(tx)) == recipes.build(recipe)
    assert called(name) == tx and hash(called(name)) == hash(tx)
    twin = pickle.loads(pickle.dumps(recipe))
    assert twin == recipe and hash(twin) == hash(recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.eps = 1.0


PARAMS = {
    "Conv_0": {"kernel": np.linspace(-1, 1, 12).reshape(3, 4), "bias": np.array([0.5, -0.25])},
    "BatchNorm_0": {"scale": np.array([1.0, 2.0])},
}
DECAYING = {
    "Google": {"Conv_0": {"kernel": True, "bias": True}, "BatchNorm_0": {"scale": False}},
    "kernels": {"Conv_0": {"kernel": True, "bias": False}, "BatchNorm_0": {"scale": False}},
}


@pytest.mark.parametrize("name", [n for n in PUBLIC if recorded(n).weight_decay])
def test_what_a_recipe_decays(name):
    kind = "Google" if name in ("efficientnet", "mnasnet", "mixnet") else "kernels"
    assert recorded(name).mask(PARAMS) == DECAYING[kind]


@pytest.mark.parametrize(
    ["path", "decays"],
    [
        ("batch_normalization_3", False), ("BatchNorm_0", False), ("bn1", False),
        ("stem_bn", False), ("batchnorm", False), ("batch_norm", False), ("conv", True),
        ("norm", False), ("Norm2", False), ("abnormal", True), ("normal", True), ("subnet", True),
        ("bias", True),
    ],
)  # fmt: skip
def test_batch_normalization_is_known_by_its_name(path, decays):
    assert recorded("efficientnet").mask({path: np.ones(2)}) == {path: decays}


def test_a_leaf_without_a_path_decays():
    assert recorded("efficientnet").mask(np.ones(2)) is True
    assert recorded("inception_v3_tpu").mask(np.ones((2, 2))) is True
    assert recorded("inception_v3_tpu").mask({"a": None, "b": np.ones(2)}) == {
        "a": None,
        "b": False,
    }


def test_a_population_of_rates_is_trained_at_once():
    g = jnp.ones((2, 3))

    def last(rate):
        tx = recipes.torchbeast(learning_rate=rate, total_steps=3000)
        step = lambda state, _: tx.update(g, state, g)[::-1]  # noqa: E731
        return jax.lax.scan(step, tx.init(g), length=3)[1][-1]

    together = jax.vmap(last)(jnp.array([1e-3, 2e-3]))
    np.testing.assert_allclose(together, jnp.stack([last(1e-3), last(2e-3)]), rtol=1e-6)


def shortened(g, p, clip):
    """The gradients of a step, clipped by the formula of their kind."""
    arguments = {} if clip is None else clip.init.call.arguments
    if "together" in arguments:
        c, length = arguments["norm"], np.sqrt(sum((x**2).sum() for x in g.values()))
        return {k: x * min(1.0, c / length) for k, x in g.items()}
    if "clipping" in arguments:
        most = {k: 0.3 * max(1e-3, np.linalg.norm(x)) for k, x in p.items()}
        return {k: x / max(1.0, np.linalg.norm(x) / most[k]) for k, x in g.items()}
    return {k: np.clip(x, -5, 5) if arguments else x for k, x in g.items()}


RULES = {
    "torch": {"eps_in_sqrt": False, "rate_after": True},
    "tensorflow1": {"initial_scale": 1.0},
    "timm": {"initial_scale": 1.0},
    "stable_baselines3": {"initial_scale": 1.0},
    "rmsprop": {},
    "graves": {"centered": True},
    "laprop": {
        "eps_in_sqrt": False, "bias_correction": True, "average": True, "debias": True,
        "rate_after": True,
    },
}  # fmt: skip
SHORT = {  # so that 40 steps see a warm-up, its end and some falls
    "steps_per_epoch": 2.3, "warmup_epochs": 3.0, "num_envs": 2.0, "total_steps": 500.0,
    "total_frames": 1e5,
}  # fmt: skip


@everyone
def test_a_run_is_that_of_the_definition_in_float64(name, x64):
    known = inspect.signature(PUBLIC[name]).parameters
    arguments = {k: v for k, v in SHORT.items() if k in known}
    if name == "cleanba":
        arguments = {"total_steps": 500.0, "batch_size": 50.0}
    recipe, tx = recorded(name, **arguments), called(name, **arguments)
    rng = np.random.default_rng(1)
    start = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    grads = [{k: 4 * rng.normal(size=p.shape) for k, p in start.items()} for _ in range(40)]
    rates = recipe.learning_rate  # which another test compares with the sources
    rates = jax.vmap(rates)(jnp.arange(40)) if callable(rates) else np.full(40, rates)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, start)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    params = jax.lax.scan(step, (params, tx.init(params)), stacked)[0][0]

    expected, seen = dict(start), []
    for t, g in enumerate(grads):
        seen.append(shortened(g, expected, recipe.clip))
        for k in start:
            decays = recipe.mask is not None and recipe.mask(start)[k]
            entered = np.stack([x[k] for x in seen])
            if decays and t:
                continue  # all at once below
            if decays:
                entered = np.stack([x[k] for x in grads])
            found = reference.updates(
                entered, start[k], learning_rate=rates[: len(entered)], decay=recipe.decay,
                eps=recipe.eps, momentum=recipe.momentum or None, coupled=bool(decays),
                weight_decay=recipe.weight_decay if decays else 0.0,
                **({"centered": recipe.centered} | RULES[recipe.dialect]),
            )  # fmt: skip
            expected[k] = start[k] + found.sum(0)
    chex.assert_trees_all_close(params, expected, rtol=1e-11, atol=1e-13)


def test_the_lua_code_and_dqn_zoo_are_one_optimizer_to_the_last_bit():
    """A sum over 32 transitions against their mean: ε is scaled by 32², a power of two."""
    grads = np.random.default_rng(0).normal(size=(300, 50)).astype(np.float32)
    grads *= np.exp(np.random.default_rng(1).normal(size=50)).astype(np.float32)

    def run(tx, scale):
        step = lambda state, g: tx.update(g * scale, state)[::-1]  # noqa: E731
        return jax.lax.scan(step, tx.init(grads[0]), jnp.asarray(grads))[1]

    lua = run(recipes.dqn(), np.float32(1))
    np.testing.assert_array_equal(lua, run(recipes.dqn_zoo(), np.float32(1 / 32)))
    assert not np.allclose(lua, run(recipes.dqn_dopamine(), np.float32(1 / 32)), rtol=1e-3)
    plain, prioritized = recorded("dqn_zoo"), recorded("prioritized_dqn")
    assert prioritized.learning_rate / math.sqrt(prioritized.eps) == pytest.approx(
        plain.learning_rate / math.sqrt(plain.eps), rel=1e-12
    )


def test_dreamers_optimizer_in_its_own_words(x64):
    """`embodied/jax/opt.py`, written again in NumPy."""
    rng = np.random.default_rng(2)
    params = {"a": rng.normal(size=(4, 3)), "b": np.zeros(3)}
    tx, p = recipes.dreamer_v3(), jax.tree.map(jnp.asarray, params)
    state, nu, mu = tx.init(p), dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for t in range(30):
        g = {k: rng.normal(size=x.shape) * 10.0 ** rng.integers(-9, 2) for k, x in params.items()}
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        for k, w in params.items():
            upper = 0.3 * max(1e-3, np.linalg.norm(w))
            u = g[k] * (1 / max(1.0, np.linalg.norm(g[k]) / upper))
            nu[k] = 0.999 * nu[k] + (1 - 0.999) * u * u
            u = u / (np.sqrt(nu[k] / (1 - 0.999 ** (t + 1))) + 1e-20)
            mu[k] = 0.9 * mu[k] + (1 - 0.9) * u
            params[k] = w - 4e-5 * t / 1000 * mu[k] / (1 - 0.9 ** (t + 1))
    chex.assert_trees_all_close(p, params, rtol=1e-12)


def test_a_record_can_be_changed():
    recipe = dataclasses.replace(recorded("impala"), eps=0.01, learning_rate=1e-3)
    assert recipes.build(recipe) == dialects.tensorflow1(1e-3, decay=0.99, epsilon=0.01)
    mine = {"kernel": True, "bias": False}
    tx = recipes.build(dataclasses.replace(recorded("efficientnet"), mask=mine))
    assert f"mask={mine}" in repr(tx)


def test_the_decay_is_a_part_of_the_gradient_that_is_clipped():
    recipe = dataclasses.replace(recorded("a2c_sb3"), weight_decay=2.0, learning_rate=1.0)
    tx, p = recipes.build(recipe), jnp.array([3.0, 4.0])
    update, _ = tx.update(jnp.zeros(2), tx.init(p), p)  # 2p, shortened to 0.5
    nu = 0.01 * np.array([0.3, 0.4]) ** 2
    np.testing.assert_allclose(update, -np.array([0.3, 0.4]) / (np.sqrt(nu) + 1e-5), rtol=1e-6)


@everyone
def test_half_precision_and_one_compilation(name):
    tx = called(name)
    p = {"kernel": jnp.ones((3, 4), jnp.bfloat16), "bias": jnp.full(4, 0.5, jnp.bfloat16)}
    state = tx.init(p)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(lambda *args: tx.update(*args), 1))
    for c in (0.0, 1.0, 1e-3):
        g = jax.tree.map(lambda x, c=c: (c * x).astype(jnp.bfloat16), p)
        updates, after = step(g, state, p)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        chex.assert_trees_all_equal_dtypes(updates, p)
        chex.assert_tree_all_finite((updates, after))
        state = after


def test_the_state_of_an_average_is_carried_stored_and_not_exported():
    tx, g = recipes.dreamer_v3(), {"w": jnp.full((64, 64), 0.5)}
    state = tx.init(g)
    for _ in range(2):
        _, state = tx.update(g, state, g)
    carried, unfilled, unused = interop.transfer(state, tx.init(g))
    chex.assert_trees_all_equal(carried, state)
    assert not unfilled and not unused
    stored = storage.stored_as(tx, storage.uint16())
    moved, _, unused = interop.transfer(state, stored.init(g))
    assert not unused
    pair = stored.update(g, moved, g)[0], tx.update(g, state, g)[0]
    chex.assert_trees_all_close(*pair, rtol=2**-8)
    fresh = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    with pytest.raises(ValueError, match=r"no RMSprop of another framework has a place for .*ema"):
        interop.to_torch(state, fresh, dict, names=["w"])
    torch = dialects.torch(0.1)
    _, source = torch.update(g, torch.init(g), g)
    theirs = interop.to_torch(source, fresh, dict, names=["w"])
    with pytest.raises(ValueError, match=r"^from_torch: the source has no average of steps for "):
        interop.from_torch(theirs, tx.init(g), dict, names=["w"])


# Words.
@everyone
def test_a_recipe_documents_what_it_is_its_arguments_and_its_source(name):
    function, doc = PUBLIC[name], inspect.getdoc(PUBLIC[name])
    head = doc.partition("\n")[0]
    assert len(head) <= 100 and head.endswith(".")
    described = re.findall(r"^    ([\w, ]+): ", doc.partition("Args:")[2], re.MULTILINE)
    named = [each for line in described for each in line.split(", ")]
    signature = inspect.signature(function)
    assert named == list(signature.parameters)
    assert signature.return_annotation is optax.GradientTransformationExtraArgs
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    source = recorded(name).source
    assert doc.endswith(f"Source: {source.paper}; {source.repository}, {source.path}.")


@pytest.mark.parametrize(
    ["name", "parameter"],
    [(name, p) for name, f in PUBLIC.items() for p in inspect.signature(f).parameters],
)
def test_every_argument_is_greater_than_zero(name, parameter):
    for value in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^{name}: {parameter} must be in .*, got {value}$"):
            called(name, **{parameter: value})
        with pytest.raises(ValueError, match=rf"^{name}: {parameter} must be in"):
            recorded(name, **{parameter: value})
    with pytest.raises(TypeError, match=rf"^{name}: {parameter} must be"):
        called(name, **{parameter: "many"})


STAIRS = Staircase(0.1, 0.5, 10)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda x: Staircase(x, 0.5, 10), "Staircase: learning_rate"),
        (lambda x: Staircase(0.1, 0.5, x), "Staircase: every"),
        (lambda x: Stages((0.1, x), 5, STAIRS), "Stages: rates[1]"),
        (lambda x: Stages((0.1,), x, STAIRS), "Stages: every"),
        (lambda x: WarmUp(x, 5), "WarmUp: after"),
        (lambda x: WarmUp(0.1, x), "WarmUp: steps"),
        (lambda x: WarmUp(STAIRS, 5, start=x), "WarmUp: start"),
        (lambda x: WarmUp(STAIRS, 5, least=x), "WarmUp: least"),
        (lambda x: Linear(x, 5), "Linear: learning_rate"),
        (lambda x: Linear(0.1, x), "Linear: steps"),
        (lambda x: Ramp(x), "Ramp: decay"),
    ],
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_schedule_of_a_negative_number_is_refused(make, argument, value):
    with pytest.raises(ValueError, match=rf"^{re.escape(argument)} must be in .*, got {value}$"):
        make(value)


def test_a_schedule_of_zero_is_one():
    assert [float(x(3)) for x in (Linear(0.0, 5), WarmUp(0.0, 5), Stages((0.0,), 5, STAIRS))] == [
        0.0, 0.0, 0.0,
    ]  # fmt: skip
    assert float(Ramp(1.0)(90)) == pytest.approx(0.91)


def test_wrong_use_is_told_by_name():
    with pytest.raises(ValueError, match=r"^record: there is no recipe 'mobilenet_v3'; there are "):
        recipes.record("mobilenet_v3")
    with pytest.raises(TypeError, match=r"^a2c: missing a required argument: 'num_envs'"):
        recipes.a2c()
    with pytest.raises(TypeError, match=r"^dqn: got an unexpected keyword argument 'momentum'"):
        recipes.dqn(momentum=0.95)
    with pytest.raises(ValueError, match=r"^build: dialect must be one of .*, got 'adam'"):
        recipes.build(dataclasses.replace(recorded("dqn"), dialect="adam"))
    tx, g = recipes.dreamer_v3(), jnp.ones(2)
    with pytest.raises(ValueError, match=r"^adaptive_clip_by_norm: needs update\(grads, state, p"):
        tx.update(g, tx.init(g))
