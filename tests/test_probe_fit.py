"""The numbers of a rule: how near a fit comes to them, and what it says of their spread."""

import numpy as np
import pytest

from optax_rmsprop.probe import _finish as finish
from optax_rmsprop.probe import _fit, _model
from optax_rmsprop.probe._search import fitted, shortest, weighed


def rules(*numbers):
    return _model.rules([[*numbers, 0.0, 0.0, 1.0, np.inf]])


def run_of(rules, size=40, steps=10):
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(steps, size)) * np.exp2(np.linspace(-40, 20, size))
    still = _model.run_of(np.zeros((steps + 1, size)), grads)
    changes = _model.simulate(rules, still)[0]
    return _model.run_of(np.concatenate([np.zeros((1, size)), changes.cumsum(0)]), grads)


def test_a_small_epsilon_beside_a_large_start_is_found_from_afar():
    """A valley: rate, decay, ε and ν₀ make up for each other but for the last digits."""
    truth = rules(0.3571656691377033, 0.9993958262072061, 1.86e-8, 1.0)
    run = run_of(truth)
    found = fitted(rules(0.357165667, 0.999395826, 4e-10, 1.00000001), run, 60)
    np.testing.assert_allclose(found.rules.numbers[0, :2], truth.numbers[0, :2], rtol=1e-11)
    np.testing.assert_allclose(found.rules.numbers[0, 2], 1.86e-8, rtol=1e-3)


def test_the_truth_lies_within_the_spread():
    truth = rules(0.01, 0.95, 1e-6, 0.0)
    run = weighed(run_of(truth), truth)
    found = fitted(rules(0.02, 0.9, 1e-4, 0.0), run, 60)
    ranges = finish._ranges(found, run.unit)
    assert ((ranges[:, 0] <= truth.numbers[0]) & (truth.numbers[0] <= ranges[:, 1])).all()


def test_a_fit_ends_where_nothing_is_left(monkeypatch):
    truth = rules(0.01, 0.95, 1e-6, 0.0)
    run, count = weighed(run_of(truth), truth), []
    monkeypatch.setattr(_fit, "_move", lambda *a, move=_fit._move: count.append(1) or move(*a))
    fitted(truth, run, 200)
    assert len(count) < 40


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (1.4e-14, 1.5e-6, [1.4e-14, 1.5e-6]),
        (0.0, 0.98549, [0.0, 0.99]),
        (0.1234567, 0.1234599, [0.1234567, 0.1234599]),
        (0.12345671, 0.12345999, [0.1234567, 0.12346]),
    ],
)
def test_intervals_are_rounded_outwards(low, high, expected):
    found = finish._rounded_outwards(low, high)
    assert found[0] <= low and high <= found[1]
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0)
    assert (found[0] == 0) == (low == 0)


def test_the_shortest_number_may_be_one_that_was_rounded_to_float32():
    value = float(np.float32(0.9))
    assert shortest(value * (1 + 1e-15), value * (1 - 1e-14), value * (1 + 1e-14)) == value
    assert shortest(0.9000001, 0.89, 0.91) == 0.9
