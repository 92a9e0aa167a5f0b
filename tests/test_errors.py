"""Wrong use is told early and by name: the argument and its value, or the path of the leaf."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rmsprop as ours
from optax_rmsprop import storage
from tests.cases import CASES, cases

pytestmark = pytest.mark.api

ONES = np.ones(2, np.float32)
TREE = {"a": ONES, "b": {"c": ONES}}
BELOW_ONE = ("decay", "momentum")


class Bad(NamedTuple):
    """A call, the error that it raises, and what the message says."""

    call: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]


def check(bad: Bad) -> None:
    with pytest.raises(bad.error) as caught:
        bad.call()
    # One exact type: TypePromotionError and the like are subclasses of what is promised.
    assert caught.type is bad.error, repr(caught.value)
    for words in bad.says:
        assert words in str(caught.value)


def rows(table: dict[str, Bad]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bad", list(table.values()), ids=list(table))


def of(chosen: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


# Rows whose state has an array for each parameter, against which a gradient can be checked.
accumulating = of([case for case in CASES if case.divides or "momentum" in case.hyper])
# Rows that see whether a parameter is complex; a second moment is real in either case.
complex_aware = of(
    [
        case
        for case in CASES
        if (case.centered or case.decays_weights or "momentum" in case.hyper)
        and not case.splits_complex
    ]
)


def out_of_range(name: str) -> list[float]:
    return [-1.0, math.nan, math.inf] + ([1.0, 1.5] if name in BELOW_ONE else [])


def spoken(case, name: str) -> str:
    """What the user wrote: a buffer by itself is called with a decay."""
    if list(case.hyper) == ["momentum"]:
        return f"{case.make.func.__name__.lstrip('_')}: decay"
    return f"{_argument(case, name)} must be in [0, "


def _argument(case, name: str) -> str:
    """Of HeavyBall's pair of betas it is the second."""
    argument = case.arguments.get(name, name)
    return "betas[1]" if "heavyball" in case.name and argument == "decay" else argument


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
@cases()
def test_a_number_out_of_range_is_refused_by_name_before_any_state(case, kind):
    for name in case.hyper:
        for value in out_of_range(name):
            check(Bad(lambda n=name, v=value: case(**{n: kind(v)}), ValueError, (
                spoken(case, name), f"got {kind(value)}",
            )))  # fmt: skip


@cases()
def test_what_is_no_number_is_refused_by_name(case):
    bad = [{"a": 0.5}, [0.5], "0.5", 0.5j, np.ones(3), jnp.ones(1)]
    for name in case.hyper:
        for value in bad:
            words = spoken(case, name).removesuffix("in [0, ")
            check(Bad(lambda n=name, v=value: case(**{n: v}), TypeError, (words, repr(value))))


@cases()
def test_the_ends_of_the_ranges_are_allowed(case):
    one = jnp.ones(2)
    for name in case.hyper:
        for value in (0.0, 0, math.nextafter(1.0, 0.0)):
            tx = case(**{name: value})
            update, _ = tx.update(one, tx.init(one), one)
            assert jnp.isfinite(update).all(), (name, value)


CONSTRUCTION = {
    "decay above one": Bad(lambda: ours.rmsprop(0.1, 1.5), ValueError, ("decay", "1.5")),
    "a switch that is a word": Bad(
        lambda: ours.rmsprop(0.1, centered="no"), TypeError, ("centered must be", "'no'")
    ),
    "a switch that is a number": Bad(
        lambda: ours.trace(0.9, nesterov=1), TypeError, ("nesterov must be", "1")
    ),
    "no argument": Bad(lambda: ours.trace(), TypeError, ("trace", "decay")),
    "an unknown argument": Bad(
        lambda: ours.scale_by_rms(beta=0.9), TypeError, ("scale_by_rms", "beta")
    ),
    "decay of one": Bad(lambda: ours.scale_by_rms(1.0), ValueError, ("decay", "1.0")),
    "decay below zero": Bad(lambda: ours.scale_by_stddev(-0.1), ValueError, ("decay", "-0.1")),
    "decay not a number": Bad(lambda: ours.scale_by_rms(math.nan), ValueError, ("decay", "nan")),
    "eps below zero": Bad(lambda: ours.rmsprop(0.1, eps=-1.0), ValueError, ("eps", "-1.0")),
    "eps infinite": Bad(lambda: ours.rmspropw(0.1, eps=math.inf), ValueError, ("eps", "inf")),
    "learning_rate below zero": Bad(
        lambda: ours.rmsprop(-1.0), ValueError, ("learning_rate", "-1.0")
    ),
    "learning_rate not a number": Bad(
        lambda: ours.scale_by_learning_rate(math.nan), ValueError, ("learning_rate", "nan")
    ),
    "learning_rate None": Bad(lambda: ours.rmsprop(None), TypeError, ("learning_rate", "None")),
    "learning_rate by leaf": Bad(
        lambda: ours.rmsprop({"a": 0.1, "b": 0.2}),
        TypeError,
        ("learning_rate", "{'a': 0.1, 'b': 0.2}", "optax.partition"),
    ),
    # `decay` is an argument of rmsprop too: it would be looked at in vain.
    "momentum of one": Bad(
        lambda: ours.rmsprop(0.1, momentum=1.0), ValueError, ("momentum must be", "1.0")
    ),
    "momentum below zero": Bad(
        lambda: ours.rmspropw(0.1, momentum=-0.5), ValueError, ("momentum must be", "-0.5")
    ),
    "momentum a word": Bad(
        lambda: ours.rmsprop(0.1, momentum="0.9"), TypeError, ("momentum must be", "'0.9'")
    ),
    "weight_decay below zero": Bad(
        lambda: ours.rmspropw(0.1, weight_decay=-1.0), ValueError, ("weight_decay", "-1.0")
    ),
    "initial_scale below zero": Bad(
        lambda: ours.scale_by_rms(initial_scale=-1.0), ValueError, ("initial_scale", "-1.0")
    ),
    "initial_scale not a number": Bad(
        lambda: ours.scale_by_stddev(initial_scale=math.nan), ValueError, ("initial_scale", "nan")
    ),
    "initial_scale scheduled": Bad(
        lambda: ours.rmsprop(0.1, initial_scale=optax.constant_schedule(1.0)),
        TypeError,
        ("initial_scale", "not a schedule"),
    ),
    "initial_scale a vector": Bad(
        lambda: ours.rmsprop(0.1, initial_scale=np.ones(2)), TypeError, ("initial_scale", "1.")
    ),
    "decay complex": Bad(
        lambda: ours.scale_by_rms(np.complex64(0.5)), TypeError, ("decay must be", "0.5+0j")
    ),
    "decay a complex array": Bad(
        lambda: ours.scale_by_rms(jnp.complex64(0.5)), TypeError, ("decay must be", "0.5+0.j")
    ),
    "nesterov without momentum": Bad(
        lambda: ours.rmsprop(0.1, nesterov=True), ValueError, ("nesterov=True", "momentum=None")
    ),
    "nesterov without momentum, decayed": Bad(
        lambda: ours.rmspropw(0.1, nesterov=True), ValueError, ("nesterov=True", "momentum=None")
    ),
}


NO_NUMBERS = [
    True, np.True_, jnp.asarray(True), None, "0.1", b"0", [0.1], (0.1,), {"a": 0.1}, 0.1j,
    np.ones(1), np.array("0.1"), np.array(0.1, object), jax.random.key(0),
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@cases()
def test_what_is_no_number_is_no_hyperparameter(case, value):
    for name in case.hyper:
        if value is None and name in ("momentum", "weight_decay"):
            continue  # of dialects and of rmsprop: no momentum, no decay
        words = spoken(case, name).removesuffix("in [0, ")
        check(Bad(lambda n=name: case(**{n: value}), TypeError, (words,)))


@cases()
def test_a_number_too_large_for_a_float_is_refused_by_name(case):
    for name in case.hyper:
        says = (spoken(case, name), "got 1000")
        check(Bad(lambda n=name: case(**{n: 10**400}), ValueError, says))


@rows(CONSTRUCTION)
def test_static_mistakes_are_told_at_construction(bad):
    check(bad)


@cases()
def test_a_schedule_that_returns_no_number_is_refused_by_name(case):
    for name in case.hyper:
        # What rmsprop calls momentum is the decay of its trace, and the link is named.
        alone = list(case.hyper) == ["momentum"]
        words = spoken(case, name) if alone else "trace: decay" if name == "momentum" else name
        for wrong in [np.ones(3), jnp.ones(3), [0.5, 0.5], None, "0.5"]:
            with pytest.raises((ValueError, TypeError)) as caught:
                tx = case(**{name: lambda count, wrong=wrong: wrong})
                tx.update(TREE, tx.init(TREE), TREE)
            shape = str(wrong.shape) if hasattr(wrong, "shape") else repr(wrong)
            for part in (words, "schedule", shape):
                assert part in str(caught.value)


def stepped(tx, grads, params=TREE) -> Any:
    return tx.update(grads, tx.init(params), params)


# The gradients for parameters TREE, and what the message says of them.
GRADIENTS = {
    "missing leaf": ({"a": ONES, "b": {}}, ValueError, "['b']['c']"),
    "missing branch": ({"a": ONES}, ValueError, "['b']['c']"),
    "surplus leaf": ({"a": ONES, "b": {"c": ONES, "d": ONES}}, ValueError, "['b']['d']"),
    "renamed leaf": ({"a": ONES, "b": {"z": ONES}}, ValueError, "['b']['c']"),
    "another container": ({"a": ONES, "b": [ONES]}, ValueError, "['b']['c']"),
    "a branch for a leaf": ({"a": {"q": ONES}, "b": {"c": ONES}}, ValueError, "['a']"),
    "a leaf for a branch": ({"a": ONES, "b": ONES}, ValueError, "['b']"),
    "a scalar for a branch": ({"a": ONES, "b": np.float32(1)}, ValueError, "['b']"),
    "a leaf for the tree": (ONES, ValueError, "the root"),
    "nothing": ({}, ValueError, "['a']"),
}


@pytest.mark.parametrize(["grads", "error", "path"], list(GRADIENTS.values()), ids=list(GRADIENTS))
@accumulating
def test_a_gradient_tree_that_is_not_inits_is_refused_by_path(case, grads, error, path):
    check(Bad(lambda: stepped(case(), grads), error, (path,)))


@accumulating
def test_a_gradient_of_another_shape_is_refused_by_path_and_shapes(case):
    for shape in [(3,), (1,), (), (2, 1), (1, 2)]:
        grads = {"a": ONES, "b": {"c": np.ones(shape, np.float32)}}
        words = ("['b']['c']", f"has shape {shape}", "expected (2,) from init")
        check(Bad(lambda g=grads: stepped(case(), g), ValueError, words))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
@cases()
def test_a_gradient_that_is_not_floating_point_is_refused_by_path_and_dtype(case, dtype):
    grads = {"a": ONES, "b": {"c": np.ones(2, dtype)}}
    says = ("the gradient at ['b']['c'] has dtype", np.dtype(dtype).name)
    check(Bad(lambda: stepped(case(), grads), TypeError, says))


@cases()
def test_a_missing_tree_of_gradients_is_refused(case):
    """A forgotten `return` in the loss."""
    tx = case()
    check(Bad(lambda: tx.update(None, tx.init(TREE), TREE), TypeError, ("update got None",)))
    check(Bad(lambda: tx.update(None, tx.init(ONES), ONES), TypeError, ("update got None",)))


NO_ARRAYS = [jax.nn.relu, "relu", object(), np.array("a"), np.array([None]), jnp.float32]


@pytest.mark.parametrize("leaf", NO_ARRAYS, ids=lambda leaf: type(leaf).__name__)
@accumulating
def test_a_leaf_that_is_no_array_is_refused_by_path(case, leaf):
    tx, mixed = case(), {"a": ONES, "b": {"c": leaf}}
    check(Bad(lambda: tx.init(mixed), TypeError, ("init", "['b']['c'] is no array")))
    check(Bad(lambda: stepped(tx, mixed), TypeError, ("the gradient at ['b']['c'] is no array",)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@accumulating
def test_a_state_that_was_cast_is_refused_by_link_field_and_path(case, dtype):
    """It would go on in half precision, where a float16 gradient of 300 saturates."""
    tx = case()
    state = tx.init(TREE)
    real = lambda x: x.ndim and jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    narrow = jax.tree.map(lambda x: x.astype(dtype) if real(x) else x, state)
    for update in (tx.update, jax.jit(tx.update)):
        says = ("the gradient at ['a'] has a", np.dtype(dtype).name, "float32 or wider")
        check(Bad(lambda u=update: u(TREE, narrow, TREE), TypeError, says))


@complex_aware
def test_complex_for_a_real_parameter_and_the_reverse_are_refused_by_path(case):
    mixed = {"a": ONES, "b": {"c": ONES.astype(np.complex64)}}
    says = ("the gradient at ['b']['c'] is complex", "real at init")
    check(Bad(lambda: stepped(case(), mixed), TypeError, says))
    says = ("the gradient at ['b']['c'] is real", "complex at init")
    check(Bad(lambda: stepped(case(), TREE, mixed), TypeError, says))


@accumulating
def test_a_gradient_for_an_integer_or_absent_parameter_is_refused_by_path(case):
    integer = {"a": ONES, "b": {"c": np.arange(2)}}
    says = ("['b']['c']", "was its parameter an integer at init?")
    check(Bad(lambda: stepped(case(), TREE, integer), TypeError, says))
    absent = {"a": ONES, "b": {"c": None}}
    says = ("['b']['c']", "init saw no parameter there")
    check(Bad(lambda: stepped(case(), TREE, absent), ValueError, says))


@cases(decays_weights=True)
def test_missing_params_name_the_link_that_needs_them(case):
    tx = case()
    state = tx.init(TREE)
    says = ("add_decayed_weights", "update(grads, state, params)")
    check(Bad(lambda: tx.update(TREE, state), ValueError, says))
    check(Bad(lambda: jax.jit(tx.update)(TREE, state), ValueError, says))


MASKS = {
    "missing branch": {"a": True},
    "another key": {"a": True, "b": {"z": True}},
    "a list": [True, True],
    "a word": "all",
    "a number": {"a": True, "b": {"c": 3}},
    "a function of it": lambda params: {"a": True},
}


@pytest.mark.parametrize("mask", list(MASKS.values()), ids=list(MASKS))
def test_a_mask_that_does_not_fit_is_refused_by_name(mask):
    tx = ours.rmspropw(0.1, mask=mask)
    with pytest.raises((ValueError, TypeError), match=r"add_decayed_weights: mask\b"):
        stepped(tx, TREE)


def _states() -> dict[Any, Any]:
    """One state of every structure that the table has; formats of codes make none of their own."""
    found: dict[Any, Any] = {}
    for case in CASES:
        state = case().init(TREE)
        found.setdefault(jax.tree.structure(storage.decoded(state)), state)
    return found


@cases()
def test_the_state_of_another_transformation_is_refused(case):
    tx = case()
    own = jax.tree.structure(storage.decoded(tx.init(TREE)))
    others = [state for tree, state in _states().items() if tree != own]
    assert len(others) > 5
    for state in others:
        with pytest.raises((TypeError, ValueError), match=r"expected .*, got .*this transform"):
            tx.update(TREE, state, TREE)


@cases()
def test_a_state_that_lost_its_types_is_refused_by_the_type_expected(case):
    tx = case()
    state = tx.init(TREE)
    plain = _without_types(state)
    says = ("expected", "restored from a checkpoint with that state as its target?")
    check(Bad(lambda: tx.update(TREE, plain, TREE), TypeError, says))


def _without_types(state: Any) -> Any:
    """As a checkpoint without a target gives it back."""
    if isinstance(state, dict):
        return state
    if hasattr(state, "_asdict"):
        return {name: _without_types(value) for name, value in state._asdict().items()}
    return [_without_types(part) for part in state] if isinstance(state, tuple) else state


def test_optaxs_own_state_of_the_same_name_is_told_apart():
    grads = jnp.ones(2)
    state = optax.scale_by_rms().init(grads)
    with pytest.raises(TypeError, match=r"got optax\..*ScaleByRmsState"):
        ours.scale_by_rms().update(grads, state)


@cases()
def test_errors_are_the_same_under_jit(case):
    tx = case()
    grads = {"a": ONES, "b": {"c": np.ones(2, np.int32)}}
    with pytest.raises(TypeError) as eager:
        tx.update(grads, tx.init(TREE), TREE)
    with pytest.raises(TypeError) as jitted:
        jax.jit(tx.update)(grads, tx.init(TREE), TREE)
    assert str(eager.value) == str(jitted.value)
    assert re.search(r"\['b'\]\['c'\]", str(jitted.value))


@cases()
def test_traced_hyperparameters_pass(case):
    grads = {"a": jnp.ones(2), "b": {"c": jnp.full(2, 0.5)}}
    names = list(case.hyper)

    def step(values):
        tx = case(**dict(zip(names, values, strict=True)))
        return tx.update(grads, tx.init(grads), grads)[0]

    values = jnp.array(list(case.hyper.values()), jnp.float32)
    jitted = jax.jit(step)(values)
    # No range is checked here: what is traced is not known.
    batch = jnp.stack([values, values + 2.0])
    swept = jax.vmap(step)(batch)
    first = jax.tree.map(lambda u: u[0], swept)
    chex.assert_tree_all_finite(first)
    # Both compute the same ~10 roundings in float32, in an order of the compiler's choice.
    chex.assert_trees_all_close(first, jitted, rtol=20 * 2**-24)
