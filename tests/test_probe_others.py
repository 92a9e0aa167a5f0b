"""What is no RMSprop is named, with its numbers; what is one is not explained by anything else."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop
from optax_rmsprop import dialects
from optax_rmsprop.probe import _optimizers as table
from optax_rmsprop.probe import _others, identify_log
from optax_rmsprop.probe._model import run_of
from optax_rmsprop.probe._others import LIMIT, others

STEPS, SIZE = 25, 30


def gradients(rng, dtype, size=SIZE, steps=STEPS):
    """A parameter and gradients of many sizes, with a mean that momentum can follow."""
    sizes = np.exp(rng.normal(size=size))
    mean = 0.3 * rng.normal(size=size)
    return rng.normal(size=size).astype(dtype), (
        (mean + rng.normal(size=(steps, size))) * sizes
    ).astype(dtype)


def recorded(optimizer, rng, dtype, rates=None, **shape):
    """A run of an Optax transformation, or of a generator of steps in NumPy."""
    p, grads = gradients(rng, dtype, **shape)
    if isinstance(optimizer, optax.GradientTransformation):
        step = of_optax(optimizer, p)
    else:
        step = optimizer(p)
    params = [p]
    for g in grads:
        p = step(p, g).astype(dtype)
        params.append(p)
    unit = float(np.finfo(dtype).eps) / 2
    return run_of(np.asarray(params, float), grads.astype(float), rates, unit=unit)


def of_optax(tx, p):
    with jax.enable_x64(True):
        state = tx.init(jnp.asarray(p))

    @jax.jit
    def update(p, g, state):
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    def step(p, g):
        nonlocal state
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            p, state = update(jnp.asarray(p), jnp.asarray(g), state)
        return np.asarray(p)

    return step


# What other frameworks compute, in the precision of the parameters.


def torch_sgd(lr, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, maximize=False):
    def start(p):
        buffer = None

        def step(p, g):
            nonlocal buffer
            g = (-g if maximize else g) + weight_decay * p
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            return p - lr * (g + momentum * buffer if nesterov else buffer)

        return step

    return start


def keras_sgd(lr, momentum, nesterov=False, rates=None):
    def start(p):
        velocity, steps = np.zeros_like(p), iter(np.ones(STEPS) if rates is None else rates)

        def step(p, g):
            nonlocal velocity
            rate = lr * float(next(steps))
            velocity = momentum * velocity - rate * g
            return p + (momentum * velocity - rate * g if nesterov else velocity)

        return step

    return start


def adam(lr, b1, b2, eps, weight_decay=0.0, decoupled=False, amsgrad=False, place="torch"):
    def start(p):
        m, v, most, t = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), 0

        def step(p, g):
            nonlocal m, v, most, t
            t += 1
            if decoupled:
                p = p * (1 - lr * weight_decay)
            else:
                g = g + weight_decay * p
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            most = np.maximum(most, v)
            used = most if amsgrad else v
            first, second = 1 - b1**t, 1 - b2**t
            if place == "keras":
                return p - lr * second**0.5 / first * m / (np.sqrt(used) + eps)
            if place == "biased":
                return p - lr * m / (np.sqrt(used) + eps)
            return p - lr / first * m / (np.sqrt(used) / second**0.5 + eps)

        return step

    return start


def torch_adagrad(lr, eps, first=0.0, lr_decay=0.0):
    def start(p):
        total, t = np.full_like(p, first), 0

        def step(p, g):
            nonlocal total, t
            total, t = total + g * g, t + 1
            return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(total) + eps)

        return step

    return start


def torch_nadam(lr, b1, b2, eps, momentum_decay):
    def start(p):
        m, v, product, t = np.zeros_like(p), np.zeros_like(p), 1.0, 0

        def step(p, g):
            nonlocal m, v, product, t
            t += 1
            now = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
            after = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
            product *= now
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            root = np.sqrt(v / (1 - b2**t)) + eps
            p = p - lr * (1 - now) / (1 - product) * g / root
            return p - lr * after / (1 - product * after) * m / root

        return step

    return start


def torch_rprop(lr, minus, plus, least=1e-6, most=50.0):
    def start(p):
        old, size = np.zeros_like(p), np.full_like(p, lr)

        def step(p, g):
            nonlocal old, size
            same = np.sign(g * old)
            factor = np.where(same > 0, plus, np.where(same < 0, minus, 1.0)).astype(p.dtype)
            size = np.clip(size * factor, least, most)
            old = np.where(same < 0, np.zeros_like(g), g)
            return p - np.sign(old) * size

        return step

    return start


def lookup(rng):
    """Every optimizer with random numbers: what makes it, its name, and its numbers."""
    log = lambda low, high: float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")  # noqa: E731
    lr, eps = log(1e-3, 0.1), log(1e-4, 1e-2)
    b1, b2 = round(rng.uniform(0.4, 0.97), 3), round(rng.uniform(0.8, 0.999), 3)
    decay, rest = log(0.01, 0.3), {"lr": lr, "b1": b1, "b2": b2}
    full = rest | {"eps": eps}
    chain, l2 = optax.chain, optax.add_decayed_weights(decay)
    buffer = {"lr": lr, "momentum": b1}
    nesterov, signum = "SGD with Nesterov momentum", "sign descent with momentum (Signum)"
    return {
        "sgd": (optax.sgd(lr), "SGD", {"lr": lr}),
        "ascent": (torch_sgd(lr, maximize=True), "SGD", {"lr": lr}),
        "momentum": (optax.sgd(lr, b1), "SGD with momentum", buffer),
        "nesterov": (optax.sgd(lr, b1, True), nesterov, buffer),
        "keras": (keras_sgd(lr, b1), "SGD with momentum", buffer),
        "keras_nesterov": (keras_sgd(lr, b1, True), nesterov, buffer),
        "dampening": (
            torch_sgd(lr, b1, 0.3), "SGD with momentum", buffer | {"dampening": 0.3}
        ),
        "l2": (
            torch_sgd(lr, b1, nesterov=True, weight_decay=decay), nesterov,
            buffer | {"weight_decay": decay},
        ),
        "sgdw": (
            chain(optax.trace(b1), l2, optax.scale(-lr)), "SGD with momentum",
            buffer | {"weight_decay": decay},
        ),
        "clip": (
            chain(optax.clip(0.5), optax.sgd(lr)), "SGD", {"lr": lr, "clip_value": 0.5}
        ),
        "clip_norm": (
            chain(optax.clip_by_global_norm(9.0), optax.sgd(lr, b1)), "SGD with momentum",
            buffer | {"clip_norm": 9.0},
        ),
        "clip_l2": (
            chain(optax.clip(0.7), l2, optax.sgd(lr, b1)), "SGD with momentum",
            buffer | {"clip_value": 0.7, "weight_decay": decay},
        ),
        "normalized": (
            chain(optax.normalize_by_update_norm(), optax.sgd(lr)), "normalized SGD", {"lr": lr}
        ),
        "sign": (optax.sign_sgd(lr), "sign descent", {"lr": lr}),
        "signum": (
            chain(optax.ema(b1, debias=False), optax.scale_by_sign(), optax.scale(-lr)), signum,
            {"lr": lr},
        ),
        "lion": (optax.lion(lr, b1, b2, weight_decay=0.0), "Lion", {"lr": lr}),
        "lion_decay": (
            optax.lion(lr, b1, b2, weight_decay=decay), "Lion", {"lr": lr, "weight_decay": decay}
        ),
        "adagrad": (
            optax.adagrad(lr, 0.2, eps=0.0), "Adagrad", {"lr": lr, "initial_accumulator_value": 0.2}
        ),
        "torch_adagrad": (torch_adagrad(lr, eps), "Adagrad", {"lr": lr, "eps": eps}),
        "adagrad_momentum": (
            optax.chain(optax.scale_by_rss(0.2, 0.0), optax.trace(0.8), optax.scale(-lr)),
            "Adagrad with momentum", {"lr": lr, "momentum": 0.8, "initial_accumulator_value": 0.2},
        ),
        "adagrad_both": (
            torch_adagrad(lr, eps, 0.1), "Adagrad",
            {"lr": lr, "eps": eps, "initial_accumulator_value": 0.1},
        ),
        "adagrad_decay": (
            torch_adagrad(lr, eps, 0.0, 0.05), "Adagrad", {"lr": lr, "eps": eps, "lr_decay": 0.05}
        ),
        "adadelta": (
            optax.adadelta(lr, b2, eps), "Adadelta", {"lr": lr, "rho": b2, "eps": eps}
        ),
        "adam": (optax.adam(lr, b1, b2, eps), "Adam", full),
        "adam_tiny": (optax.adam(lr, b1, b2, 1e-8), "Adam", rest | {"eps": 1e-8}),
        "adam_inside": (optax.adam(lr, b1, b2, 0.0, eps), "Adam", full),
        "torch_adam": (adam(lr, b1, b2, eps, decay), "Adam", full | {"weight_decay": decay}),
        "keras_adam": (adam(lr, b1, b2, eps, place="keras"), "Adam", full),
        "adamw": (
            optax.adamw(lr, b1, b2, eps, weight_decay=decay), "AdamW",
            full | {"weight_decay": decay},
        ),
        "torch_adamw": (
            adam(lr, b1, b2, 1e-8, decay, True), "AdamW",
            rest | {"eps": 1e-8, "weight_decay": decay},
        ),
        "biased": (
            adam(lr, b1, b2, eps, place="biased"),
            "Adam without bias correction", full,
        ),
        "biased_as_bert": (
            adam(lr, 0.9, 0.999, 1e-8, place="biased"), "Adam without bias correction",
            {"lr": lr, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
        ),
        "adam_clipped": (
            optax.chain(optax.clip_by_global_norm(9.0), optax.adam(lr, b1, b2, 1e-8)), "Adam",
            rest | {"eps": 1e-8, "clip_norm": 9.0},
        ),
        "adamw_clipped": (
            optax.chain(
                optax.clip_by_global_norm(9.0), optax.adamw(lr, b1, b2, 1e-8, weight_decay=decay)
            ),
            "AdamW", rest | {"eps": 1e-8, "weight_decay": decay, "clip_norm": 9.0},
        ),
        "nadam": (optax.nadam(lr, b1, b2, eps), "Nadam", full),
        "torch_nadam": (
            torch_nadam(lr, b1, b2, eps, 0.004), "Nadam", full | {"momentum_decay": 0.004}
        ),
        "amsgrad": (optax.amsgrad(lr, b1, 0.8, eps), "AMSGrad", full | {"b2": 0.8}),
        "torch_amsgrad": (
            adam(lr, b1, 0.8, eps, amsgrad=True), "AMSGrad", full | {"b2": 0.8}
        ),
        "adamax": (optax.adamax(lr, b1, b2, eps), "Adamax", full),
        "adabelief": (optax.adabelief(lr, b1, b2, eps, eps_root=0.0), "AdaBelief", full),
        "yogi": (
            optax.yogi(lr, b1, b2, eps), "Yogi", full | {"initial_accumulator_value": 1e-6}
        ),
        "radam": (optax.radam(lr, b1, b2, eps), "RAdam", full),
        "radam_usual": (optax.radam(1e-3), "RAdam", {"lr": 1e-3, "b1": 0.9, "b2": 0.999}),
        "rprop": (
            torch_rprop(lr, 0.45, 1.3), "Rprop", {"lr": lr, "eta_minus": 0.45, "eta_plus": 1.3}
        ),
        "optax_rprop": (
            optax.rprop(lr, 0.45, 1.3), "Rprop", {"lr": lr, "eta_minus": 0.45, "eta_plus": 1.3}
        ),
        "bounded_rprop": (
            torch_rprop(lr, 0.5, 1.2, lr / 8, 2 * lr), "Rprop",
            {"lr": lr, "eta_minus": 0.5, "eta_plus": 1.2, "min_step": lr / 8, "max_step": 2 * lr},
        ),
    }  # fmt: skip


NAMES = sorted(lookup(np.random.default_rng(0)))
DTYPES = [np.float64, np.float32]
BOTH_IF_SLOW = [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)]
# What single precision may hide, where it is as small as here.
SMALL = {"eps": 1e-7, "initial_accumulator_value": 1e-4, "momentum_decay": 0.01}


@pytest.mark.parametrize("dtype", BOTH_IF_SLOW)
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_named_with_its_numbers(name, dtype, seed=0):
    rng = np.random.default_rng([seed, NAMES.index(name)])
    optimizer, expected, numbers = lookup(rng)[name]
    found, *more = others(recorded(optimizer, rng, dtype))
    assert found.explains and found.name == expected, (found, more)
    assert not any(other.name == expected for other in more)
    single = dtype == np.float32
    for number, value in numbers.items():
        if not single:
            np.testing.assert_allclose(found.numbers[number], value, 1e-6, err_msg=found.text)
        elif value > SMALL.get(number, 0.0):
            rtol = 0.05 if number in SMALL else 5e-3
            np.testing.assert_allclose(found.numbers[number], value, rtol, err_msg=found.text)


def test_what_a_run_cannot_tell_apart_is_named_with_both_names():
    """A second moment that only grows is its own maximum."""
    grads = 1.2 ** np.arange(12)[:, None] * np.array([0.1, -0.2, 0.3, 0.05])
    step, params = adam(1e-3, 0.9, 0.99, 1e-6, place="biased")(np.ones(4)), [np.ones(4)]
    for g in grads:
        params.append(step(params[-1], g))
    (text,) = identify_log(np.array(params), grads).contradictions
    assert "Adam without bias correction(" in text and "; or AMSGrad(" in text


def test_two_optimizers_that_differ_in_one_number_are_told_apart():
    """A rate of Lion's second average that is its first is Signum's."""
    rng = np.random.default_rng(0)
    (found,) = others(recorded(optax.lion(0.01, 0.8, 0.8, weight_decay=0.0), rng, np.float64))
    assert found.name == "sign descent with momentum (Signum)"
    assert found.numbers == {"lr": 0.01, "momentum": 0.8}


RMSPROPS = {
    "torch": dialects.torch(1e-2, momentum=0.9),
    "torch_plain": dialects.torch(1e-2, alpha=0.95),
    "torch_centered": dialects.torch(1e-2, centered=True, eps=1e-3),
    "torch_l2": dialects.torch(1e-2, weight_decay=0.1),
    "tensorflow": dialects.tensorflow1(1e-2, momentum=0.9, centered=True),
    "keras": dialects.keras(1e-2, weight_decay=0.05),
    "clipped": dialects.keras(1e-2, clipvalue=0.5),
    "heavyball": dialects.heavyball(1e-2),
    "nesterov": optax_rmsprop.rmsprop(1e-2, momentum=0.9, nesterov=True),
    "corrected": optax.rmsprop(1e-2, decay=0.95, bias_correction=True),
    "corrected_momentum": optax_rmsprop.rmsprop(1e-2, momentum=0.5, bias_correction=True),
    "hinton": dialects.hinton(1e-2, momentum=0.8),
    "floor": optax_rmsprop.rmsprop(
        1e-2, eps=0.5, eps_in_sqrt=lambda root, nu, eps: jnp.maximum(root(nu), eps)
    ),
    "large_eps": dialects.torch(1.0, eps=10.0),
    "short_memory": dialects.torch(1e-2, alpha=0.05),
    "long_memory": dialects.torch(1e-3, alpha=0.999),
    "adam": optax.adam(1e-2, b1=0.0, b2=0.9),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RMSPROPS)
def test_an_rmsprop_is_not_explained_by_anything_else(name, dtype):
    rng = np.random.default_rng(len(name))
    assert not [x for x in others(recorded(RMSPROPS[name], rng, dtype)) if x.explains]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ["optimizer", "name", "numbers"],
    [
        (dialects.torch(1e17, eps=1e19), "SGD", {"lr": 0.01}),
        (
            dialects.tensorflow1(1e18, epsilon=1e40, momentum=0.9), "SGD with momentum",
            {"lr": 0.01, "momentum": 0.9},
        ),
        (dialects.torch(0.01, alpha=0.0, eps=0.0), "sign descent", {"lr": 0.01}),
        (dialects.torch(0.01, alpha=0.0, eps=0.1), "sign descent", {"lr": 0.01, "eps": 0.1}),
        (
            dialects.torch(0.01, alpha=0.0, eps=0.1, momentum=0.8),
            "sign descent with momentum of the signs", {"lr": 0.01, "eps": 0.1, "momentum": 0.8},
        ),
    ],
)  # fmt: skip
def test_an_rmsprop_whose_second_moment_has_no_influence_is_explained(
    optimizer, name, numbers, dtype
):
    if dtype == np.float32 and "SGD" in name:
        optimizer = dialects.torch(1e11, eps=1e13, momentum=numbers.get("momentum"))
    found, *_ = others(recorded(optimizer, np.random.default_rng(1), dtype))
    assert found.explains and found.name == name
    assert found.numbers == pytest.approx(numbers, rel=1e-4 if dtype == np.float32 else 1e-9)


def test_a_rate_that_changes_is_part_of_the_run():
    rng = np.random.default_rng(2)
    rates = np.linspace(1.0, 0.2, STEPS)
    schedule = optax.adam(lambda count: 0.01 * jnp.asarray(rates)[count], eps=1e-3)
    with jax.enable_x64(True):
        (found, *_) = others(recorded(schedule, rng, np.float64, rates))
    assert found.explains and found.name == "Adam" and found.numbers["lr"] == 0.01
    (found, *_) = others(recorded(keras_sgd(0.1, 0.9, rates=rates), rng, np.float64, rates))
    assert found.explains and found.text == (
        "SGD with momentum(lr=0.1, momentum=0.9), the learning rate in the momentum buffer"
    )


def test_what_is_not_to_be_explained_is_not_seen():
    rng = np.random.default_rng(3)
    run = recorded(optax.adam(0.01, eps=1e-3), rng, np.float64)
    params, grads = run.params.copy(), run.grads.copy()
    grads[:, :3] = 0.0
    params[:, :3] = params[0, :3]
    grads[4, 5], params[5:, 5] = np.nan, np.nan
    grads[9, 6] = np.inf
    params[3, 7] = np.nan
    (found, *_) = others(run_of(params, grads))
    assert found.explains and found.text == "Adam(lr=0.01, b1=0.9, b2=0.999, eps=0.001)"


def test_a_run_without_movement_and_one_that_only_decays():
    rng = np.random.default_rng(4)
    (found,) = others(recorded(lambda p: lambda p, g: p, rng, np.float64))
    assert (found.name, found.explains, found.numbers) == ("no movement at all", True, {})
    (found,) = others(recorded(lambda p: lambda p, g: p - 0.01 * p, rng, np.float64))
    assert (found.name, found.explains) == ("plain decay only", True)
    assert found.numbers == {"lr*weight_decay": 0.01}


@pytest.mark.parametrize("column", [0, 11])
def test_a_run_in_which_one_parameter_moves_once_has_a_report(column):
    """As of bfloat16, where most steps are too small to be seen."""
    params, grads = gradients(np.random.default_rng(5), np.float64)
    params = np.tile(params, (STEPS + 1, 1))
    params[12:, column] *= 1 + 2**-7
    assert len(others(run_of(params, grads))) == 3
    report = identify_log(params.astype(np.float32), grads.astype(np.float32))
    assert not report.calls and report.contradictions


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_nothing_explains_has_three_that_come_close(dtype):
    rng = np.random.default_rng(5)
    run = recorded(optax.adam(0.01, eps=1e-3), rng, dtype)
    params = run.params + 1e-4 * rng.normal(size=run.params.shape)
    found = others(dataclasses.replace(run, params=params))
    assert len(found) == 3 and not any(other.explains for other in found)
    assert all(1e-4 < other.error < 1 for other in found)


def test_one_wrong_step_is_not_explained():
    run = recorded(optax.sgd(0.01, 0.9), np.random.default_rng(6), np.float64)
    (found,) = others(run)
    assert found.explains and LIMIT >= 1
    params = run.params.copy()
    params[7:, 3] += 1e-12
    assert not any(other.explains for other in others(dataclasses.replace(run, params=params)))


@pytest.mark.parametrize("shape", [{"size": 1}, {"size": 2000}, {"size": 3, "steps": 300}])
def test_runs_of_other_shapes(shape):
    run = recorded(optax.adam(0.01, eps=1e-3), np.random.default_rng(7), np.float64, **shape)
    found, *_ = others(run)
    assert found.explains and found.text == "Adam(lr=0.01, b1=0.9, b2=0.999, eps=0.001)"


@pytest.mark.parametrize(("rates", "share", "text"), [
    (np.full(STEPS, 0.01), 1.0, "SGD(lr=0.01)"), (np.full(STEPS, 0.01), 0.5, "SGD(lr=0.005)"),
    (np.linspace(1e-3, 0.02, STEPS), 1.0, "SGD(lr=learning_rates)"),
    (np.linspace(1e-3, 0.02, STEPS), 0.5, "SGD(lr=0.5*learning_rates)"),
])  # fmt: skip
def test_the_rate_of_another_is_in_terms_of_those_that_are_given(rates, share, text):
    p, grads = gradients(np.random.default_rng(0), np.float64)
    moved = np.cumsum(share * rates[:, None] * grads, 0)
    (reason,) = identify_log(np.concatenate([p[None], p - moved]), grads, rates).contradictions
    assert text in reason


def test_what_the_signs_of_lion_leave_open_is_told():
    grads = np.random.default_rng(5).normal(size=(5, 30))
    log = [np.random.default_rng(0).normal(size=30)]
    mean = np.zeros(30)
    for g in grads:
        log.append(log[-1] - 1e-3 * np.sign(0.9 * mean + 0.1 * g))
        mean = 0.99 * mean + 0.01 * g
    report = identify_log(np.array(log), grads)
    ends = re.findall(r"(b\d) is anywhere from (\S+) to ([\d.]+)", report.contradictions[0])
    assert [name for name, *_ in ends] == ["b1", "b2"], report
    for (_, low, high), truth in zip(ends, (0.9, 0.99), strict=True):
        assert float(low) <= truth <= float(high)


def test_a_clip_that_adam_does_not_need_is_none():
    run = recorded(
        optax.chain(optax.add_decayed_weights(1e-3), optax.adam(1e-3)),
        np.random.default_rng(0), np.float32,
    )  # fmt: skip
    start = {table.LR: 1e-3, table.B1: 0.9, table.B2: 0.999, table.EPS: 1e-8, table.SIGN: 1.0,
             table.LAMBDA: 1e-3, table.BOUND: 1e3}  # fmt: skip
    numbers = np.zeros((1, len(table.COLUMNS)))
    numbers[0, list(start)] = list(start.values())
    clipped = table.Option(table.L2, table.CLIP_LEAF)
    found = _others._explaining(table.Hypotheses(table.ADAM, clipped, numbers), run, run)
    assert [fitted.hypotheses.option for fitted in found] == [table.Option(table.L2)]
