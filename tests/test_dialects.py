"""The dialects: which links each is, and what only they have. Trajectories are in test_goldens.py.

Transformations are values, so that a dialect can be compared with the chain that it is said to be.
"""

import inspect
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop import dialects
from optax_rmsprop._framework_links import (
    cautious,
    clip,
    clip_by_norm,
    clip_weights,
    multiply,
    split_complex,
)
from optax_rmsprop._link import Hyperparameter
from optax_rmsprop.denominators import eps_floor, eps_subtracted
from optax_rmsprop.links import add_decayed_weights, chain
from tools.tables import denominator
from tools.truth import REQUIRED, ROWS

pytestmark = pytest.mark.api

rms, stddev = ours.scale_by_rms, ours.scale_by_stddev
rate, trace, l2 = ours.scale_by_learning_rate, ours.trace, add_decayed_weights
OUT = {"eps_in_sqrt": False}

DIALECTS = {
    name: f
    for name, f in vars(dialects).items()
    if inspect.isfunction(f) and f.__module__ == dialects.__name__ and not name.startswith("_")
}


def halving(count):
    return 0.5**count


# The first update of each by hand: the call, the gradient, the update, and the parameter if not 0.
FIRST_UPDATES = {
    # ν = ¼·4² = 4,  −½·4 / (√4+2)
    "torch": (dialects.torch(lr=0.5, alpha=0.75, eps=2.0), 4.0, -0.5),
    # ν = ¾·1 + ¼·5² = 7,  −½·5 / √(7+2)
    "tensorflow1": (dialects.tensorflow1(0.5, decay=0.75, epsilon=2.0), 5.0, -0.8333333),
    # ν = 4,  −½·4 / √(4+12)
    "keras": (dialects.keras(0.5, rho=0.75, epsilon=12.0), 4.0, -0.5),
    # ν = 4,  −4 / (√4+6)
    "keras2": (dialects.keras2(1.0, rho=0.75, epsilon=6.0), 4.0, -0.5),
    # ν = 4,  −4 / √(4+12)
    "keras2-momentum": (
        dialects.keras2(1.0, rho=0.75, momentum=0.9, epsilon=12.0), 4.0, -1.0,
    ),
    # g = 4 + ½·2 = 5,  ν = ¾·1 + ¼·5² = 7,  −½·5 / √(7+2)
    "timm": (dialects.timm(0.5, alpha=0.75, eps=2.0, weight_decay=0.5), 4.0, -0.8333333, 2.0),
    # ν = ¾·1 + ¼·5² = 7,  −½·5 / √(7+2)
    "stable_baselines3": (
        dialects.stable_baselines3(0.5, alpha=0.75, eps=2.0), 5.0, -0.8333333,
    ),
    # ν = 4,  −½·4 / √(4+12)
    "pfrl": (dialects.pfrl(0.5, alpha=0.75, eps=12.0), 4.0, -0.5),
    # ν = ½·8² = 32,  m = ½·8 = 4,  −½·8 / √(32−16+9)
    "graves": (dialects.graves(0.5, alpha=0.5, eps=9.0), 8.0, -0.8),
    # ν = 4,  d = ½·4 / √4 = 1,  −(d + ½·d)
    "hinton": (dialects.hinton(0.5, decay=0.75, momentum=0.5), 4.0, -1.5),
    # g = ¼·16 = 4,  ν = 4,  −½·4 / √(4+12)
    "mxnet": (dialects.mxnet(0.5, gamma1=0.75, epsilon=12.0, rescale_grad=0.25), 16.0, -0.5),
    # ν = 4,  −½·4 / (√4+2)
    "mxnet2": (dialects.mxnet2(0.5, rho=0.75, epsilon=2.0), 4.0, -0.5),
    # ν = 4,  −½·4 / √(4+12)
    "paddle": (dialects.paddle(0.5, rho=0.75, epsilon=12.0), 4.0, -0.5),
    # ν = 4,  −½·4 / (√4+2)
    "chainer": (dialects.chainer(0.5, alpha=0.75, eps=2.0), 4.0, -0.5),
    # ν = 4,  −½·4 / √(4+12)
    "sonnet": (dialects.sonnet(0.5, decay=0.75, epsilon=12.0), 4.0, -0.5),
    # ν = 4,  d = 4 / (√4+2) = 1,  −½·(d + ½·d)
    "torchopt": (
        dialects.torchopt(0.5, alpha=0.75, eps=2.0, momentum=0.5, nesterov=True), 4.0, -0.75,
    ),
    # g = 20/4 = 5,  ν = ¾·1 + ¼·5² = 7,  −½·5 / √(7+2)
    "mindspore": (
        dialects.mindspore(0.5, decay=0.75, epsilon=2.0, loss_scale=4.0), 20.0, -0.8333333,
    ),
    # ν/(1−β) = g²,  −½·4 / max(4, 2)  and  −½·1 / max(1, 2)
    "heavyball": (dialects.heavyball(0.5, eps=2.0), [4.0, 1.0], [-0.5, -0.25], [0.0, 0.0]),
    # ν = ½·8² = 32,  m = ½·8 = 4,  −½·8 / √(32−16−7)
    "tensorflowjs": (
        dialects.tensorflowjs(0.5, decay=0.5, epsilon=7.0, centered=True), 8.0, -1.3333334,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_UPDATES)
def test_the_first_update_is_what_it_is_by_hand(name):
    tx, g, expected, *rest = FIRST_UPDATES[name]
    params = jnp.array(rest[0] if rest else 0.0)
    update, _ = tx.update(jnp.array(g), tx.init(params), params)
    # To the last bit: these are the numbers that a float32 prints.
    np.testing.assert_array_equal(update, np.array(expected, np.float32))


def test_every_dialect_has_a_chain_and_a_first_update():
    for table in (CHAINS, FIRST_UPDATES):
        assert {name.partition("-")[0] for name in table} == set(DIALECTS)


CHAINS = {
    "torch": (dialects.torch(), split_complex(chain(rms(0.99, **OUT), rate(1e-2)))),
    "torch-everything": (
        dialects.torch(0.1, 0.8, 1e-3, 0.2, 0.7, centered=True, maximize=True),
        split_complex(
            chain(multiply(-1.0), l2(0.2), stddev(0.8, 1e-3, **OUT), trace(0.7), rate(0.1))
        ),
    ),
    "tensorflow1": (
        dialects.tensorflow1(0.1, momentum=0.7),
        chain(rms(0.9, 1e-10, 1.0), rate(0.1), trace(0.7)),
    ),
    "keras": (dialects.keras(), chain(rms(0.9, 1e-7), rate(1e-3))),
    "keras-everything": (
        dialects.keras(0.1, 0.8, 0.7, 1e-3, True, 0.2, clipnorm=3.0),
        chain(
            clip_by_norm(3.0, together=False), stddev(0.8, 1e-3), rate(0.1), trace(0.7),
            l2(0.2, 0.1),
        ),
    ),
    "keras-clipvalue": (
        dialects.keras(clipvalue=0.5), chain(clip(0.5), rms(0.9, 1e-7), rate(1e-3)),
    ),
    "keras-global_clipnorm": (
        dialects.keras(global_clipnorm=2.0),
        chain(clip_by_norm(2.0, together=True), rms(0.9, 1e-7), rate(1e-3)),
    ),
    "keras2": (dialects.keras2(), chain(rms(0.9, 1e-7, **OUT), rate(1e-3))),
    "keras2-momentum": (
        dialects.keras2(momentum=0.7), chain(rms(0.9, 1e-7), rate(1e-3), trace(0.7)),
    ),
    "keras2-scheduled momentum": (
        dialects.keras2(momentum=halving), chain(rms(0.9, 1e-7), rate(1e-3), trace(halving)),
    ),
    "keras2-epsilon of 0": (dialects.keras2(epsilon=0.0), dialects.keras2(epsilon=1e-7)),
    "timm": (dialects.timm(), chain(chain(rms(0.9, 1e-10, 1.0), rate(1e-2)))),
    "timm-caution": (
        dialects.timm(weight_decay=0.2, momentum=0.7, caution=True),
        chain(l2(0.2), cautious(chain(rms(0.9, 1e-10, 1.0), rate(1e-2), trace(0.7)))),
    ),
    "timm-caution without momentum": (dialects.timm(caution=True), dialects.timm()),
    "timm-after": (
        dialects.timm(momentum=0.7, lr_in_momentum=False, weight_decay=0.2, decoupled_decay=True),
        chain(chain(rms(0.9, 1e-10, 1.0), trace(0.7), rate(1e-2)), l2(0.2, 1e-2)),
    ),
    "stable_baselines3": (
        dialects.stable_baselines3(momentum=0.7, weight_decay=0.2),
        chain(l2(0.2), rms(0.99, 1e-8, 1.0), trace(0.7), rate(1e-2)),
    ),
    "pfrl": (
        dialects.pfrl(momentum=0.7, weight_decay=0.2),
        chain(l2(0.2), rms(0.99, 1e-8), trace(0.7), rate(1e-2)),
    ),
    "graves": (dialects.graves(), chain(stddev(0.95, 1e-4), rate(1e-4), trace(0.9))),
    "graves-DQN": (
        dialects.graves(lr=2.5e-4, momentum=0.0, eps=0.01), chain(stddev(0.95, 0.01), rate(2.5e-4)),
    ),
    "hinton": (
        dialects.hinton(0.1, momentum=0.7),
        ours.rmsprop(0.1, 0.9, eps=0.0, momentum=0.7, nesterov=True),
    ),
    "mxnet": (
        dialects.mxnet(wd=0.2, clip_gradient=3.0, clip_weights=2.0, rescale_grad=0.5),
        chain(multiply(0.5), l2(0.2), clip(3.0), rms(0.9, 1e-8), rate(1e-3), clip_weights(2.0)),
    ),
    "mxnet-centered": (
        dialects.mxnet(centered=True), chain(stddev(0.9, 1e-8), rate(1e-3), trace(0.9)),
    ),
    "mxnet2": (
        dialects.mxnet2(wd=0.2, clip_gradient=3.0),
        chain(clip(3.0), l2(0.2), rms(0.9, 1e-8, **OUT), rate(1e-3)),
    ),
    "mxnet2-centered": (
        dialects.mxnet2(centered=True), chain(stddev(0.9, 1e-8), rate(1e-3), trace(0.9)),
    ),
    "paddle": (
        dialects.paddle(0.1, momentum=0.7, weight_decay=0.2),
        chain(l2(0.2), rms(0.95, 1e-6), rate(0.1), trace(0.7)),
    ),
    "chainer": (dialects.chainer(), chain(rms(0.99, 1e-8, **OUT), rate(0.01))),
    "chainer-inside": (
        dialects.chainer(eps_inside_sqrt=True), chain(rms(0.99, 1e-8), rate(0.01)),
    ),
    "sonnet": (
        dialects.sonnet(0.1, momentum=0.7), chain(rms(0.9, 1e-10), rate(0.1), trace(0.7)),
    ),
    "torchopt": (
        dialects.torchopt(momentum=0.7, nesterov=True, initial_scale=0.5, maximize=True),
        chain(multiply(-1.0), rms(0.99, 1e-8, 0.5, **OUT), trace(0.7, True), rate(1e-2)),
    ),
    "mindspore": (
        dialects.mindspore(weight_decay=0.2, loss_scale=4.0, momentum=0.7),
        chain(multiply(0.25), l2(0.2), rms(0.9, 1e-10, 1.0), rate(0.1), trace(0.7)),
    ),
    "heavyball": (
        dialects.heavyball(weight_decay=0.2),
        chain(
            rms(0.99, 1e-6, eps_in_sqrt=eps_floor, bias_correction=True), rate(0.0025),
            l2(0.2, 0.0025),
        ),
    ),
    "tensorflowjs": (dialects.tensorflowjs(0.1), dialects.sonnet(0.1, epsilon=1e-7)),
    "tensorflowjs-centered": (
        dialects.tensorflowjs(0.1, centered=True, momentum=0.7),
        chain(stddev(0.9, 1e-7, eps_in_sqrt=eps_subtracted), rate(0.1), trace(0.7)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_dialect_is_this_chain(name):
    dialect, links = CHAINS[name]
    assert dialect == links, f"\n{dialect}\n{links}"


WITH_SCHEDULES = [
    dialects.keras2(0.1, decay=0.5),
    dialects.keras2(halving, decay=0.5),
    dialects.mxnet(halving),
    dialects.timm(halving, weight_decay=0.1, decoupled_decay=True, corrected_weight_decay=True,
                  lr_max=0.5),
]  # fmt: skip


@pytest.mark.parametrize("dialect", [*(tx for tx, _ in CHAINS.values()), *WITH_SCHEDULES])
def test_a_dialect_is_shown_as_a_call_of_public_names(dialect):
    public = {name: value for name, value in vars(ours).items() if not name.startswith("_")}
    assert eval(repr(dialect), public | {"halving": halving}) == dialect
    assert not re.search(r"\b_[a-z]", repr(dialect), re.IGNORECASE)


def test_the_chains_tell_dialects_apart():
    assert len({dialect for dialect, _ in CHAINS.values()}) == len(CHAINS) - 3  # three are aliases


def links(tx):
    """The links of a chain by name, with their hyperparameters."""
    call = tx.init.call
    inner = [*call.arguments.get("links", ()), *filter(None, [call.arguments.get("inner")])]
    if inner:
        return {k: v for link in inner for k, v in links(link).items()}
    return {call.name: types.SimpleNamespace(**call.arguments)}


PLACES = {"inside": True, "outside": False, "none": True, "max": False, "both": False}


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.call and "optax.chain" not in r.call], ids=lambda r: r.framework
)
def test_the_truth_table_says_what_its_call_does(row):
    found = links(row.made())
    scale = found.get("scale_by_rms") or found["scale_by_stddev"]
    rate, decay, momentum, eps = row.defaults
    if row.defaults != (None,) * 4:  # else the note says whose numbers the call has
        expected = (0.25 if rate in (REQUIRED, None) else rate, decay, 0.0 if eps is None else eps)
        assert (found["scale_by_learning_rate"].learning_rate, scale.decay, scale.eps) == expected
    if "climin" in row.framework:
        momentum = 0.9  # as its note says
    used = momentum if row.centered == "always" or "MXNet" not in row.framework else None
    assert getattr(found.get("trace"), "decay", 0.0) == (used or 0.0)

    plain = {"centered": "scale_by_stddev" in found, "momentum": used or 0.0}
    switch = {k: v(plain) if callable(v) else v for k, v in row.switch.items()}
    start = scale.eps if switch["v_init"] == "ε" else switch["v_init"]
    assert scale.initial_scale == start
    assert scale.bias_correction == (switch["debias"] == "ema" or switch["bias_correction"])
    if callable(scale.eps_in_sqrt):
        value = scale.eps_in_sqrt(jnp.sqrt, jnp.array(4.0), jnp.array(12.0))
        assert value == {"max": 12.0, "both": 16.0}[switch["eps_mode"]]
    else:
        assert scale.eps_in_sqrt == PLACES[switch["eps_mode"]]
    assert ("scale_by_stddev" in found) == (row.centered == "always")
    order = [name for name in found if name in ("trace", "scale_by_learning_rate")]
    if len(order) == 2:
        assert (order[0] == "trace") == (switch["lr_place"] == "outside")
        assert found["trace"].nesterov == switch["nesterov"]


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.call and "optax.chain" not in r.call], ids=lambda r: r.framework
)
def test_a_printed_denominator_is_what_the_call_divides_by(row):
    """The text of the table, read as a formula, against the first step of the call."""
    found, g = links(row.made()), 3.0
    scale = found.get("scale_by_rms") or found["scale_by_stddev"]
    tx, centered = row.made(), "scale_by_stddev" in found
    update, state = tx.update(jnp.array(g), tx.init(jnp.array(0.0)), jnp.array(0.0))
    state = {name: optax.tree.get(state, name) for name in ("nu", "var", "last_learning_rate")}
    nu = float(state["var" if centered else "nu"])
    nu = nu / (1 - scale.decay) if scale.bias_correction else nu
    printed = denominator(row).partition(";")[0].partition(" if")[0]
    code = re.sub(r"√(\([^)]*\)|ν)", r"(\1)**0.5", printed)
    divisor = eval(code, {"ν": nu, "ε": scale.eps, "max": max})
    buffer = found.get("trace")
    ahead = 1 + buffer.decay if buffer and buffer.nesterov else 1
    np.testing.assert_allclose(
        -update / state["last_learning_rate"], ahead * g / divisor, rtol=1e-5
    )


def test_every_dialect_and_every_golden_framework_is_in_the_truth_table():
    called = {row.call.partition("(")[0] for row in ROWS}
    public = {f"dialects.{name.partition('-')[0]}" for name in CHAINS}
    assert public <= called
    assert len({row.framework for row in ROWS}) == len(ROWS)


def after(tx, params, *grads):
    """The parameters after each step."""
    state, history = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


GRADS = [jnp.array([4.0, -1.0, 0.5]), jnp.array([-2.0, 3.0, 0.5]), jnp.array([1.0, 1.0, -4.0])]
PARAMS = jnp.array([1.0, -2.0, 0.5])


def test_keras2_divides_the_rate_by_time():
    tx = dialects.keras2(0.1, decay=0.5)
    by_hand = dialects.keras2(lambda count: 0.1 / (1.0 + 0.5 * count.astype(float)))
    chex.assert_trees_all_close(after(tx, PARAMS, *GRADS), after(by_hand, PARAMS, *GRADS))
    both = dialects.keras2(halving, decay=0.5)
    by_hand = dialects.keras2(lambda count: halving(count) / (1.0 + 0.5 * count.astype(float)))
    chex.assert_trees_all_close(after(both, PARAMS, *GRADS), after(by_hand, PARAMS, *GRADS))
    assert dialects.keras2(halving, decay=0.5) == both != dialects.keras2(halving, decay=0.25)


def test_an_mxnet_schedule_sees_one_first():
    seen = []
    for make in (dialects.mxnet, dialects.mxnet2, dialects.keras):
        counts = []
        tx = make(lambda count, counts=counts: counts.append(int(count)) or 0.1)
        after(tx, PARAMS, *GRADS)
        seen.append(counts[-3:])
    assert seen == [[1, 2, 3], [1, 2, 3], [0, 1, 2]]


def test_corrected_decay_is_the_square_of_the_rate_over_the_largest():
    zeros = [jnp.zeros(3)] * 2
    options = {"weight_decay": 0.1, "decoupled_decay": True, "corrected_weight_decay": True}
    tx = dialects.timm(halving, **options, lr_max=2.0)
    got = after(tx, PARAMS, *zeros)
    expected = [PARAMS * (1 - 0.1 / 2), PARAMS * (1 - 0.1 / 2) * (1 - 0.1 * 0.25 / 2)]
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    constant = dialects.timm(0.5, **options)
    assert constant == dialects.timm(0.5, weight_decay=0.1, decoupled_decay=True)
    assert dialects.timm(halving, **options, lr_max=2.0) == tx
    # In timm it has no effect on L2.
    alone = dialects.timm(halving, weight_decay=0.1, corrected_weight_decay=True)
    assert alone == dialects.timm(halving, weight_decay=0.1)


def test_maximizing_climbs_and_still_decays():
    down = dialects.torch(0.1, momentum=0.5)
    up = dialects.torch(0.1, momentum=0.5, maximize=True)
    negative = [-g for g in GRADS]
    chex.assert_trees_all_equal(after(up, PARAMS, *GRADS), after(down, PARAMS, *negative))
    up = dialects.torch(0.1, weight_decay=0.5, maximize=True)
    (shrunk,) = after(up, PARAMS, jnp.zeros(3))
    assert (jnp.sign(shrunk - PARAMS) == -jnp.sign(PARAMS)).all()


def test_caution_takes_what_goes_against_the_gradient_and_makes_up_for_the_rest():
    plain = dialects.timm(0.1, momentum=0.9)
    careful = dialects.timm(0.1, momentum=0.9, caution=True)
    state, careful_state = plain.init(PARAMS), careful.init(PARAMS)
    for g in GRADS[:2]:
        u, state = plain.update(g, state)
        v, careful_state = careful.update(g, careful_state)
        against = np.asarray(u * g < 0)
        np.testing.assert_allclose(v, np.where(against, u, 0) / against.mean(), rtol=1e-6)
        chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(careful_state))
    assert not against.all()
    # Where nothing goes against it, nothing is taken; the least share is a thousandth.
    u, _ = careful.update(jnp.zeros(3), careful_state)
    assert (u == 0).all()
    many = jnp.ones(10_000).at[1:].set(0.0)
    u, _ = careful.update(many, careful.init(many))
    v, _ = plain.update(many, plain.init(many))
    np.testing.assert_allclose(u[0], 1e3 * v[0], rtol=1e-6)
    empty = jnp.zeros((0, 3))
    assert careful.update(empty, careful.init(empty))[0].shape == (0, 3)


def test_weights_stay_where_they_are_clipped_to():
    tx = dialects.mxnet(0.5, clip_weights=1.0)
    for params in after(tx, jnp.array([0.9, -0.9, 0.0]), *GRADS):
        assert (jnp.abs(params) <= 1.0 + 1e-7).all()
    with pytest.raises(ValueError, match="clip_weights: needs update"):
        tx.update(GRADS[0], tx.init(PARAMS))


@pytest.mark.parametrize("options", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}], ids=str)
def test_gradients_are_shortened_one_by_one_or_together(options):
    tx = dialects.keras(0.1, epsilon=1.0, **options)
    tree = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0]), "c": None}
    norms = {"clipnorm": {"a": 5.0, "b": 12.0}, "global_clipnorm": {"a": 13.0, "b": 13.0}}
    shortened = {
        name: None if g is None else g / norms[next(iter(options))][name]
        for name, g in tree.items()
    }
    plain = dialects.keras(0.1, epsilon=1.0)
    got, expected = (
        jax.tree.leaves(t.update(g, t.init(g))[0]) for t, g in ((tx, tree), (plain, shortened))
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    short = jax.tree.map(lambda g: g / 100, tree)
    chex.assert_trees_all_equal(
        tx.update(short, tx.init(short))[0], plain.update(short, plain.init(short))[0]
    )
    for dtype in (jnp.bfloat16, jnp.float16):
        u, _ = tx.update(jnp.full(3, 1e4, dtype), tx.init(jnp.zeros(3, dtype)))
        assert u.dtype == dtype and jnp.isfinite(u).all() and (u != 0).all()


def test_tensorflowjs_takes_no_step_where_the_variance_is_below_epsilon():
    tx = dialects.tensorflowjs(0.1, epsilon=1.0, centered=True)
    u, state = tx.update(jnp.array([4.0, 1e-3, 0.0]), tx.init(PARAMS))
    # nu = 1.6 and m = 0.4: the variance is 1.44.
    np.testing.assert_allclose(u, [-0.4 / np.sqrt(0.44), 0.0, 0.0], rtol=1e-5)
    chex.assert_tree_all_finite(state)


def test_hintons_parameter_is_the_point_that_the_jump_leads_to(x64):
    """Sutskever's form, with w before the jump and s the jump, is the same sequence."""
    mu, lr, decay = 0.7, 0.1, 0.9
    curvature = np.array([1.0, 10.0, 0.1])
    gradient = lambda p: curvature * p  # noqa: E731
    tx = dialects.hinton(lr, decay, mu)
    p = jnp.asarray(PARAMS, jnp.float64)
    state = tx.init(p)
    w, s, nu = np.asarray(p), np.zeros(3), np.zeros(3)
    for _ in range(20):
        updates, state = tx.update(jnp.asarray(gradient(np.asarray(p))), state)
        p = p + updates
        jump = w - mu * s
        g = gradient(jump)
        nu = decay * nu + (1 - decay) * g**2
        s = mu * s + lr * g / np.sqrt(nu)
        w = w - s
        np.testing.assert_allclose(p, w - mu * s, rtol=1e-12)


@pytest.mark.parametrize("centered", [False, True])
def test_the_parts_of_a_complex_parameter_are_averaged_apart(centered):
    tx = dialects.torch(0.1, momentum=0.9, weight_decay=0.1, centered=centered)
    real, imag = {"a": PARAMS, "b": GRADS[0]}, {"a": GRADS[1], "b": GRADS[2]}
    params = jax.tree.map(jax.lax.complex, real, imag)
    updates, state = tx.update(params, tx.init(params), params)
    apart = [tx.update(part, tx.init(part), part)[0] for part in (real, imag)]
    chex.assert_trees_all_equal(updates, jax.tree.map(jax.lax.complex, *apart))
    nu = optax.tree.get(state, "var" if centered else "nu")
    assert nu["a"].shape == (3, 2) and nu["a"].dtype == jnp.float32
    abstract = jax.eval_shape(lambda: params)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(abstract), state)


def test_real_and_complex_leaves_live_in_one_tree():
    tx = dialects.torch(0.1)
    params = {"r": PARAMS, "c": jax.lax.complex(PARAMS, PARAMS), "n": None, "i": jnp.arange(3)}
    grads = params | {"i": np.zeros(3, jax.dtypes.float0)}
    updates, state = jax.jit(tx.update)(grads, tx.init(params))
    assert updates["r"].dtype == jnp.float32 and updates["c"].dtype == jnp.complex64
    assert updates["n"] is None and updates["i"].dtype == jax.dtypes.float0
    chex.assert_tree_all_finite((updates["r"], updates["c"], state))


BAD = {
    "torch: alpha must be in [0, 1.0), got 1.5": lambda: dialects.torch(alpha=1.5),
    "torch: lr must be in [0, inf), got -1.0": lambda: dialects.torch(lr=-1.0),
    "keras: rho must be in [0, 1.0), got 1.0": lambda: dialects.keras(rho=1.0),
    "keras: weight_decay must be in [0, inf), got -1": lambda: dialects.keras(weight_decay=-1),
    "keras: clipnorm must be in (0, inf), got 0": lambda: dialects.keras(clipnorm=0),
    "keras: only one kind of clipping": lambda: dialects.keras(clipnorm=1.0, clipvalue=1.0),
    "keras2: decay must be in [0, inf), got -0.5": lambda: dialects.keras2(decay=-0.5),
    "keras2: got clipnorm=1.0 and global_clipnorm=2.0": lambda: dialects.keras2(
        clipnorm=1.0, global_clipnorm=2.0
    ),
    "clip_weights: bound must be in (0, inf), got -1.0": lambda: dialects.clip_weights(-1.0),
    "multiply: factor must be in (-inf, inf), got nan": lambda: dialects.multiply(np.nan),
    "timm: corrected_weight_decay with a schedule or an array": lambda: dialects.timm(
        halving, decoupled_decay=True, corrected_weight_decay=True
    ),
    "timm: corrected_weight_decay with a schedule or an array as lr needs lr_max": lambda: (
        dialects.timm(
            np.float32(0.1), weight_decay=0.1, decoupled_decay=True, corrected_weight_decay=True
        )
    ),
    "timm: lr_max must be in (0, inf), got 0.0": lambda: dialects.timm(lr_max=0.0),
    "mxnet: gamma2 must be in [0, 1.0), got 1": lambda: dialects.mxnet(gamma2=1),
    "mxnet2: rescale_grad must be in (0, inf), got 0": lambda: dialects.mxnet2(rescale_grad=0),
    "mxnet: clip_weights must be in (0, inf), got -1": lambda: dialects.mxnet(clip_weights=-1),
    "mindspore: loss_scale must be in (0, inf), got 0": lambda: dialects.mindspore(loss_scale=0),
    "heavyball: betas[1] must be in [0, 1.0), got 1.0": lambda: dialects.heavyball(
        betas=(0.9, 1.0)
    ),
    "tensorflowjs: learningRate must be in [0, inf)": lambda: dialects.tensorflowjs(-1.0),
    "torchopt: initial_scale must be in [0, inf), got -1": lambda: dialects.torchopt(
        initial_scale=-1
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_number_is_refused_by_the_name_that_the_user_gave_it(message):
    with pytest.raises(ValueError) as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)


NO_NUMBER = {
    "torch: lr must be a number, a scalar array or a schedule, got None": lambda: dialects.torch(
        lr=None
    ),
    "tensorflow1: learning_rate must be a number": lambda: dialects.tensorflow1("0.1"),
    "tensorflow1: missing a required argument: 'learning_rate'": lambda: dialects.tensorflow1(),
    "keras: got an unexpected keyword argument 'alpha'": lambda: dialects.keras(alpha=0.9),
    "keras: clipnorm must be a number, not a schedule": lambda: dialects.keras(clipnorm=halving),
    "keras2: decay must be a number, not a schedule": lambda: dialects.keras2(decay=halving),
    "keras2: decay must be a number or scalar array, got None": lambda: dialects.keras2(decay=None),
    "mxnet: rescale_grad must be a number or scalar array, got '2'": lambda: dialects.mxnet(
        rescale_grad="2"
    ),
    "mindspore: loss_scale must be a number or scalar": lambda: dialects.mindspore(loss_scale="4"),
    "heavyball: betas[1] must be a number": lambda: dialects.heavyball(betas=(0.9, None)),
    "heavyball: betas must be a pair of hyperparameters": lambda: dialects.heavyball(betas=0.9),
    "heavyball: betas must be a pair of hyperparameters, got ()": lambda: dialects.heavyball(
        betas=()
    ),
    "keras2: momentum must be a Python number or a schedule": lambda: dialects.keras2(
        momentum=np.float32(0.9)
    ),
    "paddle: grad_clip must be an Optax transformation": lambda: dialects.paddle(
        0.1, grad_clip=1.0
    ),
    "clip: bound must be a number or scalar array": lambda: dialects.clip(None),
    "clip_by_norm: together must be True or False": lambda: dialects.clip_by_norm(1.0, 1),
    "multiply: factor must be a number": lambda: dialects.multiply("-1"),
    "cautious: inner must be an Optax transformation": lambda: dialects.cautious(dialects.torch),
    "split_complex: inner must be an Optax": lambda: dialects.split_complex(None),
    "torchopt: initial_scale must be a number": lambda: dialects.torchopt(initial_scale=halving),
    "torch: centered must be True or False, got 0.9": lambda: dialects.torch(
        1e-3, 0.99, 1e-8, 0.0, 0.0, 0.9
    ),
}


@pytest.mark.parametrize("message", NO_NUMBER)
def test_what_is_no_number_is_refused_by_the_name_that_the_user_gave_it(message):
    with pytest.raises(TypeError) as caught:
        NO_NUMBER[message]()
    assert str(caught.value).startswith(message)


def parameters(annotation):
    """All parameters of the dialects with this annotation, or with it and None."""
    found = [
        pytest.param(dialect, parameter.name, id=f"{dialect}-{parameter.name}")
        for dialect, function in DIALECTS.items()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation in (annotation, annotation | None)
    ]
    assert found
    return pytest.mark.parametrize(["dialect", "name"], found)


def called(dialect, name, value):
    needed = {p.name: 0.1 for p in REQUIRED_BY[dialect]}
    return DIALECTS[dialect](**(needed | {name: value}))


REQUIRED_BY = {
    dialect: [p for p in inspect.signature(f).parameters.values() if p.default is p.empty]
    for dialect, f in DIALECTS.items()
}
RATES = {"lr", "learning_rate", "learningRate", "eps", "epsilon"}
WEIGHTS_OF_THE_PAST = {"alpha", "rho", "decay", "gamma1"}
MOMENTA, WEIGHT_DECAYS = {"momentum", "gamma2"}, {"weight_decay", "wd"}


@parameters(Hyperparameter)
def test_every_hyperparameter_of_a_dialect_has_its_range(dialect, name):
    assert name in RATES | WEIGHTS_OF_THE_PAST | MOMENTA | WEIGHT_DECAYS
    below = "1.0" if name in WEIGHTS_OF_THE_PAST | MOMENTA else "inf"
    for value in [-1.0, np.float32("nan"), jnp.inf] + ([1.0] if below == "1.0" else []):
        with pytest.raises(ValueError) as caught:
            called(dialect, name, value)
        assert str(caught.value) == f"{dialect}: {name} must be in [0, {below}), got {value}"
    for kind in (np.float32, np.asarray, jnp.asarray):
        assert called(dialect, name, kind(0.5)) == called(dialect, name, 0.5)
        assert hash(called(dialect, name, kind(0.5))) == hash(called(dialect, name, 0.5))
    assert called(dialect, name, halving) == called(dialect, name, halving)


@parameters(Hyperparameter)
def test_none_is_zero_where_it_means_that_there_is_no_such_link(dialect, name):
    if name in MOMENTA | WEIGHT_DECAYS:
        assert called(dialect, name, None) == called(dialect, name, 0.0)
    else:
        with pytest.raises(TypeError, match=rf"^{dialect}: {name} must be a number.*got None"):
            called(dialect, name, None)


@parameters(bool)
def test_every_switch_of_a_dialect_is_true_or_false(dialect, name):
    for value in (0.9, 1, 0, None, "no", np.array(True), jnp.array(False)):
        with pytest.raises(TypeError) as caught:
            called(dialect, name, value)
        assert str(caught.value) == f"{dialect}: {name} must be True or False, got {value!r}"
    for value in (True, False):
        tx = called(dialect, name, np.bool_(value))
        assert tx == called(dialect, name, value) and repr(tx) == repr(called(dialect, name, value))


@parameters(float)
def test_every_bound_and_scale_of_a_dialect_is_greater_than_zero(dialect, name):
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"^{dialect}: {name} must be in .*, got {value}$"):
            called(dialect, name, value)
    assert called(dialect, name, 0.5) == called(dialect, name, jnp.float32(0.5))
    assert hash(called(dialect, name, 0.5)) == hash(called(dialect, name, jnp.float32(0.5)))
    traced = jax.jit(lambda value: called(dialect, name, value).init(PARAMS))(0.5)
    chex.assert_trees_all_equal(traced, called(dialect, name, 0.5).init(PARAMS))


def test_a_momentum_of_none_or_zero_has_no_buffer_and_an_array_has():
    for momentum in (None, 0, 0.0):
        plain = dialects.torch(momentum=momentum).init(PARAMS)
        assert optax.tree.get(plain, "trace", None) is None
    traced = jax.eval_shape(lambda mu: dialects.torch(momentum=mu).init(PARAMS), jnp.zeros(()))
    assert optax.tree.get(traced, "trace").shape == (3,)
    for momentum in (np.float32(0.0), jnp.zeros(()), optax.constant_schedule(0.0)):
        kept = dialects.torch(momentum=momentum).init(PARAMS)
        chex.assert_trees_all_equal_structs(kept, traced)


def test_a_denominator_is_any_function_of_the_moment_and_epsilon():
    both = lambda root, nu, eps: root(nu + eps) + eps  # noqa: E731
    tx = ours.rmsprop(0.5, decay=0.75, eps=12.0, eps_in_sqrt=both)
    u, _ = tx.update(jnp.array(16.0), tx.init(jnp.array(0.0)))
    np.testing.assert_allclose(u, -0.5 * 16 / (np.sqrt(64 + 12) + 12), rtol=1e-6)
    # The root that it is given has no infinite slope at 0.
    slope = jax.grad(lambda g: tx.update(g, tx.init(g))[0])(jnp.array(0.0))
    assert jnp.isfinite(slope)
