"""The study of fields: tasks learn, rates are chosen fairly, and a killed one goes on."""

import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fields import __main__ as program
from experiments.fields import cifar10, page, study, tasks

SCORES = {-8: 9.0, -6: 5.0, -4: 1.0, -2: 3.0, 0: math.inf}


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.slow
def test_a_task_is_learnt(name):
    task, rule = tasks.TASKS[name], study.OPTIMIZERS["RMSprop"]
    train = study.ready(task)(rule.make, task.steps)
    before, after = (np.array(train(rate, jnp.arange(2))[1:]).mean(1) for rate in (0.0, 1e-2))
    assert (after < 0.9 * before).all()


def test_the_rate_is_searched_until_both_ends_are_worse():
    assert study.missing({}, range(-6, -1, 2), 0.5) == [-6, -4, -2]
    assert study.missing({-6: 1.0, -4: 5.0}, range(-6, -3, 2), 0.5) == [-8]
    assert study.missing({-6: 5.0, -4: 1.0}, range(-6, -3, 2), 0.5) == [-2]
    assert study.missing({-6: 1.4, -4: 1.0, -2: 3.0}, range(-6, -1, 2), 0.5) == [-8]
    # Then beside the best, which is not looked for again when it is one of these.
    assert study.missing(SCORES, range(-6, -1, 2), 0.5) == [-5, -3]
    assert study.missing(SCORES | {-5: 2.0, -3: 0.8}, range(-6, -1, 2), 0.5) == []
    # Nowhere finite: the search has an end.
    most = {study.MOST: math.inf, study.FEWEST: math.inf}
    assert not {study.MOST + 2, study.FEWEST - 2} & {*study.missing(most, range(0), 0.5)}


def test_the_width_is_where_the_score_crosses_the_tolerance():
    # From 1 to 3 over half a decade, and from 5 to 1: half of the one, a quarter of the other.
    assert study.width(SCORES, 1.0) == (0.375, True)
    assert study.width({-2: 1.0, 0: 1.5, 2: math.inf}, 1.0) == (0.5, False)
    assert study.width({-2: 9.0, 0: 1.0, 2: math.inf}, 2.0) == (0.125, True)


def made_up(trials, optimizer, exponent, seeds):
    """A row of scores with the best on validation at 10^(-7/4), and on test at 1e-1."""
    on_validation, on_test = abs(exponent + 7) / 2, abs(exponent + 4) / 2
    spread = np.sin(np.arange(seeds.start, seeds.stop) + len(optimizer)) / 10
    return {
        "optimizer": optimizer, "quarter_decades": exponent, "seeds": [seeds.start, seeds.stop],
        "steps": trials.steps, "loss": [0.0] * len(seeds), "cpu_seconds": 1.0,
        "validation": list(on_validation + spread), "test": list(on_test + spread),
        "device": "cpu", "processor": "made up", "versions": "jax 1", "date": "2026-01-01",
    }  # fmt: skip


def test_the_rate_is_chosen_on_validation_and_judged_by_other_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Trials, "train", made_up)
    trials = study.Trials(tmp_path / "a.jsonl", "digits-cnn", 2)
    trials.search("RMSprop")
    chosen = trials.fresh("RMSprop")
    assert [row["quarter_decades"] for row in chosen] == [-7, -7]
    assert [row["seeds"] for row in chosen] == [[2, 4], [4, 6]]
    assert np.allclose(page.scores(chosen), 1.5, atol=0.1)


def test_a_killed_study_goes_on_and_writes_the_same_page(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Trials, "train", made_up)
    names = ["digits-cnn", "mnist1d-cnn"]
    program.study(tmp_path, names, 2)
    text, file = (tmp_path / "fields.md").read_text(), tmp_path / "fields" / "mnist1d-cnn.jsonl"
    assert "jax 1" in text and (tmp_path / "fields.png").read_bytes().startswith(b"\x89PNG")
    whole = file.read_text()
    file.write_text(whole[:-5])
    made = []
    monkeypatch.setattr(study.Trials, "train", lambda *a: made.append(a[1:]) or made_up(*a))
    program.study(tmp_path, names, 2)
    last = json.loads(whole.splitlines()[-1])
    assert made == [(last["optimizer"], last["quarter_decades"], range(*last["seeds"]))]
    assert file.read_text() == whole and (tmp_path / "fields.md").read_text() == text
    # Other numbers of steps or seeds are other trainings.
    assert study.Trials(file, "mnist1d-cnn", 2).rows
    assert not study.Trials(file, "mnist1d-cnn", 2, steps=7).rows
    assert not study.Trials(file, "mnist1d-cnn", 3).rows


def test_a_table_of_raw_results(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Trials, "train", made_up)
    trials = study.Trials(tmp_path / "a.jsonl", "digits-cnn", 2)
    for rule in study.OPTIMIZERS:
        trials.search(rule)
    rows = page.lines({"digits-cnn": trials})
    row = next(line for line in rows if line.startswith("| RMSprop | 0.018 "))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    mean, spread = cells[1].split(" ± ")
    tests = page.scores(trials.fresh("RMSprop"))
    assert float(mean) == pytest.approx(np.mean(tests), abs=0.006) and cells[3] == "4"
    assert float(spread) == pytest.approx(np.std(tests, ddof=1), abs=0.006)
    assert cells[6] == "1.0" and cells[7] == "0.00032 to 0.32"
    # Five optimizers beside RMSprop and four beside Adam.
    assert any("all 9 comparisons" in " ".join(rows[n : n + 2]) for n in range(len(rows)))


def test_a_seed_that_is_lost_is_told_and_not_compared():
    assert page.shown([1.0, 3.0, math.inf]) == "2.00 ± 1.41, 1 lost"
    found = {"a": {"RMSprop": [1.0, 2.0], "Adam": [1.0, math.inf], "SGD": [3.0, 4.0]}}
    assert list(page.comparisons(found)) == [("a", "SGD", "RMSprop")]


def test_a_difference_that_is_seen_is_counted_once(tmp_path, monkeypatch):
    def better_adam(trials, optimizer, exponent, seeds):
        row = made_up(trials, optimizer, exponent, seeds)
        spread = np.sin([seed**2 * (1 + len(optimizer)) for seed in seeds]) / 10
        return row | {"test": list(spread + (0.0 if optimizer == "Adam" else 1.0))}

    monkeypatch.setattr(study.Trials, "train", better_adam)
    trials = study.Trials(tmp_path / "a.jsonl", "digits-cnn", 5)
    for rule in study.OPTIMIZERS:
        trials.search(rule)
    rows = page.lines({"digits-cnn": trials})
    assert "| RMSprop | Adam | 1 | 0 | 0 |" in rows
    assert "| RMSprop | RMSprop, centred | 0 | 0 | 1 |" in rows
    assert "| Adam | RMSprop, centred | 0 | 1 | 0 |" in rows
    assert not [row for row in rows if row.startswith("| Adam | RMSprop |")]


def test_holms_correction():
    pairs = {("a", "b", str(n)): np.array([1.0, 1.0 + n, 0.5]) for n in (1, 4)}
    plain = [page._probability(values) for values in pairs.values()]
    assert list(page.adjusted(pairs).values()) == pytest.approx(
        [2 * min(plain), max(*plain, 2 * min(plain))]
    )
    same = {("a", "b", "c"): np.zeros(4), ("a", "b", "d"): np.ones(4)}
    assert page.adjusted(same) == {("a", "b", "d"): 0.0, ("a", "b", "c"): 1.0}


def test_mean_average_precision_by_hand():
    box = jnp.array([[[0.0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 6, 6]]])
    truth = jnp.array([[[0.0, 0, 1, 1], [9, 9, 10, 10], [0, 0, 0.1, 0.1]]])
    wanted = jnp.array([[[1.0], [1.0], [0.0]]])

    def precision(*chances):
        return float(
            tasks.mean_average_precision(jnp.array([chances])[..., None], box, truth, wanted)
        )

    # One of two objects is found, by the surest box, by the second, or by none.
    assert precision(0.9, 0.5, 0.1) == pytest.approx(50.0)
    assert precision(0.5, 0.4, 0.9) == pytest.approx(25.0)
    box = box + 20.0
    assert precision(0.9, 0.5, 0.1) == 0.0


def test_a_canvas_says_where_its_digits_are():
    images = np.ones((3, 8, 8, 1), np.float32)
    drawn, present, box, digit = tasks.canvases(images, np.array([4, 5, 6]), 20, seed=0)
    found = np.asarray(tasks.corners(jnp.asarray(box))) * tasks.CELL
    for n, (i, j) in enumerate(itertools.product(range(3), range(3))):
        for canvas in range(20):
            if present[canvas, i, j]:
                top, left, bottom, right = np.rint(found[canvas, n]).astype(int)
                inside = drawn[canvas, top:bottom, left:right]
                assert inside.min() == 1 and bottom - top in tasks.SIZES
                assert digit[canvas, i, j] in (4, 5, 6)
    assert drawn.sum() == (present * (np.exp(box[..., 2]) * tasks.CELL) ** 2).sum()


@pytest.mark.parametrize(
    ["number", "words"],
    [
        (0, "zero"),
        (19, "nineteen"),
        (80, "eighty"),
        (110, "one hundred and ten"),
        (1_001, "one thousand and one"),
        (999_999, "nine hundred and ninety nine thousand nine hundred and ninety nine"),
    ],
)
def test_numbers_in_words(number, words):
    assert " ".join(tasks.in_words(number)) == words


def test_wrong_numbers_are_named(capsys):
    with pytest.raises(SystemExit):
        program.main(["--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_cifar10_is_learnt_and_a_training_repeats_its_numbers():
    task = cifar10.task(["--dataset", "synthetic"])
    train = study.ready(task)(study.OPTIMIZERS["RMSprop"].make, 40)
    first, still, again = (list(train(rate, jnp.arange(1))) for rate in (1e-3, 0.0, 1e-3))
    assert first == again
    assert all(after < before for (after,), (before,) in zip(first, still, strict=True))


def test_cifar10_is_not_tried_without_its_data(capsys):
    with pytest.raises(SystemExit):
        program.main(["--tasks", "cifar10-small"])
    assert "needs the --data-dir" in capsys.readouterr().err
