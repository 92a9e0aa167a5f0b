"""The dialects against the frameworks: fresh gradients, the same arguments on both sides."""

import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop
from optax_rmsprop.links import add_decayed_weights
from tests.live import needed
from tests.test_goldens import single_precision
from tools.conformance import PATHS, RATE, error_of, inputs, options_of, rounded
from tools.frameworks import (
    FRAMEWORKS,
    stable_baselines3_optimizer,
    their_own_world,
    timm_optimizer,
)
from tools.recorded import trajectory
from tools.truth import ROWS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def every(settings=lambda framework: framework.settings):
    pairs = [(f, s) for f in FRAMEWORKS for s in settings(f)]
    return pytest.mark.parametrize(
        "framework, setting", pairs, ids=[f"{f.name}-{s}" for f, s in pairs]
    )


@every()
def test_float64_is_equal_to_rounding(framework, setting):
    needed(*framework.modules)
    assert error_of(framework, setting) <= 1e-12


def test_every_live_row_of_the_truth_table_is_run():
    assert {row.live for row in ROWS if row.live} == {framework.name for framework in FRAMEWORKS}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda f: f.name)
def test_the_defaults_are_the_frameworks_own(framework):
    """Not one argument on either side, where the framework needs none."""
    needed(*framework.modules)
    (row,) = (row for row in ROWS if row.live == framework.name)
    required = row.defaults[0] == "required"
    given = {framework.rate: RATE} if required else {}
    with their_own_world():
        params, grads = inputs()
        theirs = framework.run(given, params, grads, None)
        mine, *_ = trajectory(
            row.made() if not required else framework.dialect(**given), params, grads
        )
    # The rounding of the defaults themselves, half an ulp of float32, moves a step by as much,
    # and ten times as much where it is 1 − ρ that is rounded.
    loss = 1e-12 if not framework.rounds else 20 * 2.0**-24 * np.abs(np.diff(mine, axis=0)).sum(0)
    assert (np.abs(mine - theirs) <= loss + 1e-12).all()


def _signatures():
    """The constructors, but for what is first in all: the object and the parameters."""
    import keras
    import tensorflow as tf
    import tf_keras
    import torch
    import torchopt

    return {
        "torch": torch.optim.RMSprop,
        "timm": timm_optimizer(),
        "stable_baselines3": stable_baselines3_optimizer(),
        "torchopt": torchopt.rmsprop,
        "tensorflow1": tf.compat.v1.train.RMSPropOptimizer,
        "keras2": tf_keras.optimizers.legacy.RMSprop,
        "tf_keras": tf_keras.optimizers.RMSprop,
        "keras": keras.optimizers.RMSprop,
    }


def test_the_arguments_are_the_frameworks_own_in_their_order_with_their_defaults():
    needed(*{module for framework in FRAMEWORKS for module in framework.modules})
    clips = {"clipnorm", "clipvalue", "global_clipnorm"}
    ours_alone = {"timm": {"lr_max"}, "keras2": {"decay", *clips}}  # the latter are its **kwargs
    for name, theirs in _signatures().items():
        (framework,) = (f for f in FRAMEWORKS if f.name == name)
        found = inspect.signature(theirs).parameters
        arguments = [p for p in found.values() if p.name not in ("self", "params")]
        mine = [
            p
            for p in inspect.signature(framework.dialect).parameters.values()
            if p.name not in {"mask"} | ours_alone.get(name, set())
        ]
        for ours_, theirs_ in zip(mine, arguments, strict=False):
            if ours_.kind is ours_.KEYWORD_ONLY:
                break
            assert ours_.name == theirs_.name, name
        for parameter in mine:
            default = found[parameter.name].default
            if parameter.default is None:  # No link, as for the number that has no effect.
                assert default in (None, 0.0), (name, parameter.name)
            else:
                assert parameter.default == default, (name, parameter.name)


def described(framework, row, options):
    """The setting in the switches of the truth table."""
    names = {switch: a for switch, a in row.arguments.items() if isinstance(a, str)}
    defaults = dict(zip(("lr", "decay", "momentum", "eps"), row.defaults, strict=True))
    run = {s: options.get(names.get(s, s), d) for s, d in defaults.items()}
    run["momentum"] = run["momentum"] or 0.0
    run["centered"] = options.get("centered", False)
    run["weight_decay"] = options.get("weight_decay", 0.0)
    fixed = {switch: v(run) if callable(v) else v for switch, v in row.switch.items()}
    kind = fixed["weight_decay_kind"] if run["weight_decay"] else "none"
    if framework.name == "timm" and run["weight_decay"]:
        kind = "coupled_l2"
    return run | {"eps_mode": fixed["eps_mode"], "weight_decay_kind": kind}


SINGLE = ("default", "eps", "momentum", "decay", "centered-momentum")


@every(lambda framework: [s for s in SINGLE if s in framework.settings])
def test_float32_is_within_a_few_ulp_a_step(framework, setting):
    """Theirs and ours, each against the exact rule: the bound of `single_precision`."""
    needed(*framework.modules)
    (row,) = (row for row in ROWS if row.live == framework.name)
    options, *_ = options_of(framework, setting)
    params, grads = inputs(np.float32)
    with their_own_world():
        theirs = framework.run(options, params, grads, None)
        mine = {k: v for k, v in options.items() if k not in PATHS}
        single, *_ = trajectory(framework.dialect(**mine), params, grads)
        decay = next(name for name in ("alpha", "rho", "decay") if name in _names(framework))
        exact = {
            k: rounded(v) if isinstance(v, float) and k != decay else v for k, v in mine.items()
        }
        if framework.decay_in_single:
            exact[decay] = rounded(exact.get(decay, row.defaults[1]))
        after, nu, mu = trajectory(
            framework.dialect(**exact), params.astype(float), grads.astype(float)
        )
        ours_exactly, *_ = trajectory(
            framework.dialect(**exact | {decay: mine.get(decay, row.defaults[1])}),
            params.astype(float),
            grads.astype(float),
        )
    run = described(framework, row, exact)
    bound = single_precision(run, after, grads.astype(float), run["lr"], nu, mu)
    assert theirs.dtype == np.float32
    assert (np.abs(theirs - after) <= bound).all(), (np.abs(theirs - after) / bound)[1:].max()
    assert (np.abs(single - ours_exactly) <= bound).all()


def _names(framework):
    return inspect.signature(framework.dialect).parameters


@pytest.mark.parametrize("setting", ["default", "centered-momentum", "decay"])
def test_torch_splits_complex_parameters(setting):
    (framework,) = (f for f in FRAMEWORKS if f.complex_too)
    needed(*framework.modules)
    options, _, ours_too, _ = options_of(framework, setting)
    params, grads = inputs()
    params, grads = params + 1j * params[::-1], grads + 1j * grads[:, ::-1]
    with their_own_world():
        theirs = framework.run(options, params, grads, None)
        tx = framework.dialect(**ours_too)
        state, p = tx.init(jnp.asarray(params)), jnp.asarray(params)
        for g, expected in zip(grads, theirs[1:], strict=True):
            updates, state = tx.update(jnp.asarray(g), state, p)
            p = optax.apply_updates(p, updates)
            np.testing.assert_allclose(p, expected, atol=1e-12, rtol=0)


# What a port gets wrong, each as another chain; and the setting in which it must be seen.
WRONG = {
    "epsilon": "eps",
    "start": "eps",
    "rate": "schedule-momentum",
    "decay": "decay",
}


def rebuilt(run, rates, wrong=None):
    """A framework's rule from the links, with one switch turned."""
    inside, start = run["eps_mode"] == "inside", run["v_init"]
    in_buffer, coupled = run["lr_place"] == "inside", run["weight_decay_kind"] == "coupled_l2"
    inside ^= wrong == "epsilon"
    start = 1.0 - start if wrong == "start" else start
    in_buffer ^= wrong == "rate"
    coupled ^= wrong == "decay"
    rate, buffer = optax_rmsprop.scale_by_learning_rate(rates), optax_rmsprop.trace(run["momentum"])
    return optax.chain(
        optax.add_decayed_weights(run["weight_decay"] if coupled else 0.0),
        optax_rmsprop.scale_by_rms(run["decay"], run["eps"], start, inside),
        *((rate, buffer) if in_buffer else (buffer, rate)),
        add_decayed_weights(0.0 if coupled else run["weight_decay"], rates),
    )


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "framework", [f for f in FRAMEWORKS if "decay" in f.settings], ids=lambda f: f.name
)
def test_a_wrong_rule_is_caught(framework, wrong):
    needed(*framework.modules)
    setting = WRONG[wrong]
    (row,) = (row for row in ROWS if row.live == framework.name)
    with their_own_world():
        options, rates, ours_too, _ = options_of(framework, setting)
        params, grads = inputs()
        theirs = framework.run(options, params, grads, rates)
        run = described(framework, row, ours_too)
        run |= {k: row.switch[k] for k in ("v_init", "lr_place")}
        rate = run["lr"]
        right, *_ = trajectory(rebuilt(run, rate), params, grads)
        other, *_ = trajectory(rebuilt(run, rate, wrong), params, grads)
    assert np.abs(right - theirs).max() <= 1e-12
    assert np.abs(other - theirs).max() > 1e-3
