"""The probe names the frameworks themselves, as boxes."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_rmsprop import probe
from tests.live import needed
from tools.boxes import evaluate, rule, wrong
from tools.conformance import RATE, inputs, options_of
from tools.frameworks import (
    FRAMEWORKS,
    stable_baselines3_optimizer,
    their_own_world,
    timm_optimizer,
)
from tools.recorded import trajectory
from tools.truth import ROWS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def torch_like(make):
    def start(options, params):
        import torch

        p = torch.nn.Parameter(torch.tensor(params))
        optimizer = make()([p], **options)

        def step(gradient):
            p.grad = torch.tensor(gradient)
            optimizer.step()
            return p.detach().numpy()  # the box's own memory

        return step

    return start


def torch_optimizer():
    import torch

    return torch.optim.RMSprop


def torch_function(options, params):
    import torch
    from torch.optim.rmsprop import rmsprop

    usual = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0}
    options = usual | {"centered": False} | options
    p = torch.tensor(params)
    state = [[torch.zeros_like(p)] for _ in range(3)]

    def step(gradient):
        rmsprop([p], [torch.tensor(gradient)], *state, [torch.tensor(0.0)], **options)
        return p.numpy()

    return step


def torchopt_box(options, params):
    import torch
    import torchopt

    tx = torchopt.rmsprop(**{"lr": 1e-2, **options})
    p = (torch.tensor(params),)
    state = tx.init(p)

    def step(gradient):
        nonlocal p, state
        updates, state = tx.update((torch.tensor(gradient),), state, params=p, inplace=False)
        p = torchopt.apply_updates(p, updates, inplace=False)
        return p[0].numpy()

    return step


def tensorflow_like(make):
    def start(options, params):
        import tensorflow as tf

        optimizer, p = make(options), tf.Variable(params)

        def step(gradient):
            optimizer.apply_gradients([(tf.constant(gradient), p)])
            return p.numpy()

        return step

    return start


def tensorflow1(options):
    import tensorflow as tf

    return tf.compat.v1.train.RMSPropOptimizer(**options)


def keras2(options):
    import tf_keras

    return tf_keras.optimizers.legacy.RMSprop(**options)


def tf_keras_optimizer(options):
    import tf_keras

    return tf_keras.optimizers.RMSprop(jit_compile=False, **options)


def keras_box(options, params):
    import keras

    optimizer = keras.optimizers.RMSprop(**options)
    p = keras.Variable(params, dtype=str(params.dtype))

    def step(gradient):
        optimizer.apply([jnp.asarray(gradient)], [p])
        return np.array(p.value)

    return step


def jax_example(momentum):
    def start(options, params):
        from jax.example_libraries import optimizers

        names = {"decay": "gamma", "eps": "eps", "learning_rate": "step_size"}
        options = {names[name]: value for name, value in options.items()}
        make = optimizers.rmsprop_momentum if momentum else optimizers.rmsprop
        init, update, get = make(**options)
        state, count = init(jnp.asarray(params)), 0

        def step(gradient):
            nonlocal state, count
            state, count = update(count, jnp.asarray(gradient), state), count + 1
            return np.asarray(get(state))

        return step

    return start


BOXES = {
    "torch": torch_like(torch_optimizer),
    "torch_function": torch_function,
    "timm": torch_like(timm_optimizer),
    "stable_baselines3": torch_like(stable_baselines3_optimizer),
    "torchopt": torchopt_box,
    "tensorflow1": tensorflow_like(tensorflow1),
    "keras2": tensorflow_like(keras2),
    "tf_keras": tensorflow_like(tf_keras_optimizer),
    "keras": keras_box,
    "jax_example": jax_example(momentum=False),
    "jax_example_momentum": jax_example(momentum=True),
}
# A box has no schedule, and a rate that falls is no constant one.
CASES = [
    (framework, setting)
    for framework in FRAMEWORKS
    for setting, options in framework.settings.items()
    if not options.get("rates") and (framework.name, setting) != ("keras2", "falling rate")
]
TWO_CLIPS = {("keras2", "clipped")}  # by value, and then by norm: no rule that is searched


def truth_of(framework, setting):
    """The switches of the truth table's row with the options of a setting."""
    (row,) = (row for row in ROWS if row.live == framework.name)
    options, switch = framework.settings[setting], row.switch
    _, decay, momentum, eps = row.defaults
    run = {"momentum": options.get("momentum", momentum or 0.0)}
    run["centered"] = options.get("centered", False)
    place = switch["eps_mode"](run) if callable(switch["eps_mode"]) else switch["eps_mode"]
    weight = options.get("weight_decay", 0.0)
    decoupled = options.get("decoupled_decay") or switch["weight_decay_kind"] == "decoupled"
    return rule(
        denominator="outside" if options.get("eps_in_sqrt") is False else place,
        eps=options.get("eps", options.get("epsilon", eps)) or 1e-7,  # Keras 2: 0 is the default
        decay=options.get("decay", decay),
        learning_rate=RATE,
        initial_scale=options.get("initial_scale", switch["v_init"]),
        rate_in_buffer=switch["lr_place"] == "inside" and options.get("lr_in_momentum", True),
        nesterov=options.get("nesterov", False),
        bias_correction=options.get("bias_correction", False),
        weight_decay=weight,
        weight_decay_kind="none" if not weight else "decoupled" if decoupled else "l2",
        clip_value=options.get("clipvalue"),
        caution=options.get("caution", False),
        maximize=options.get("maximize", False),
        **run,
    ).switches


@functools.cache
def report_of(framework, setting, dtype):
    options = {framework.rate: RATE, **framework.settings[setting]}
    with their_own_world():
        if framework.name == "optax":
            return probe.identify(optax.rmsprop(**options))
        start = BOXES[framework.name]

        def typed(params):
            step = start(options, params.astype(dtype))
            return lambda gradient: step(gradient.astype(dtype))

        return probe.identify(typed)


def continued(report, framework, setting):
    """The error of the best call beside the framework's own run."""
    options, *_ = options_of(framework, setting)
    params, grads = inputs()
    with their_own_world():
        expected = framework.run(options, params, grads, None)
        runs = [trajectory(evaluate(call), params, grads)[0] for call in report.calls]
    size = np.abs(np.diff(expected, axis=0)).max()
    return min(np.abs(run - expected).max() for run in runs) / size


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.proof)])
@pytest.mark.parametrize(
    "framework, setting",
    [
        pytest.param(
            f, s, id=f"{f.name}-{s}", marks=() if s in ("default", "decay") else pytest.mark.proof
        )
        for f, s in CASES
    ],
)
def test_a_framework_is_named(framework, setting, dtype):
    needed(*framework.modules)
    report = report_of(framework, setting, dtype)
    if (framework.name, setting) in TWO_CLIPS:
        assert not report.calls
        return
    assert report.calls, str(report)
    tolerance = {"float64": 1e-6, "float32": 1e-3}[dtype]
    assert not wrong(report, truth_of(framework, setting), tolerance), str(report)
    assert continued(report, framework, setting) <= 10 * tolerance


@pytest.mark.parametrize(
    "framework", [f for f in FRAMEWORKS if "default" in f.settings], ids=lambda f: f.name
)
def test_the_row_of_the_truth_table_agrees(framework):
    needed(*framework.modules)
    (row,) = (row for row in ROWS if row.live == framework.name)
    report = report_of(framework, "default", "float64")
    assert row.framework in report.frameworks, (row.framework, report.frameworks)


@pytest.mark.proof
def test_a_rate_that_falls_inside_the_box_is_named():
    needed("tf_keras", "tensorflow")
    (framework,) = (f for f in FRAMEWORKS if f.name == "keras2")
    report = report_of(framework, "falling rate", "float64")
    assert "dialects.InverseTime(" in report.calls[0]
