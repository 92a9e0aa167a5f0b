"""The study of momentum in a Wasserstein GAN: it goes on where it was, and counts rightly."""

import json
import re

import numpy as np
import pytest

from examples.wgan import wgan as example
from experiments import wgan


def made_up(trial):
    """A row whose distances are 3 and then 1, and in the end 1 more for each later rate or seed."""
    pairs = len(trial.rates) * (trial.seeds[1] - trial.seeds[0])
    start = [3.0] * 20 + [1.0] * 16
    return {
        **trial._asdict(),
        "distance": [start + [1.0 + i] * 4 for i in range(pairs)],
        "estimate": [list(np.arange(40.0)[::-1])] * pairs,
        "cosine": [[0.5] * 40] * pairs, "uphill": [[0.25] * 20 + [0.0] * 20] * pairs,
        "samples": [[0.0] * (2 if trial.task == "ring" else 64)] * 64, "cpu_seconds": 3,
        "date": "2026-01-02", "device": "cpu", "processor": "P", "versions": "V",
    }  # fmt: skip


@pytest.fixture
def made(monkeypatch):
    """The trials that were run."""
    trials = []
    monkeypatch.setattr(wgan, "run", lambda trial: trials.append(trial) or made_up(trial))
    monkeypatch.setattr(wgan, "floors", lambda task: ["Floors."])
    return trials


def study(folder, *arguments):
    with pytest.raises(SystemExit) as left:
        wgan.main(["--results", str(folder), *arguments])
    return left.value.code


def test_a_killed_study_goes_on_after_its_last_whole_line(tmp_path, made):
    assert study(tmp_path) == 0
    file, page = tmp_path / "wgan.jsonl", (tmp_path / "wgan.md").read_text("utf-8")
    assert [trial.seeds for trial in made] == [(0, 8)] * 8 + [(0, 5)] * 7
    rates = [5e-5] * 5 + [5e-6, 5e-4]
    assert [trial.rates[0] for trial in made] == pytest.approx([*rates, 5e-5, *rates])
    assert [trial.bound for trial in made] == [0.1] * 7 + [0.01] * 8
    whole, last = file.read_text("utf-8"), made[-1]
    file.write_text(whole[:-5], "utf-8")
    made.clear()
    assert study(tmp_path) == 0 and made == [last]
    assert file.read_text("utf-8") == whole and (tmp_path / "wgan.md").read_text("utf-8") == page
    assert (tmp_path / "wgan.png").read_bytes().startswith(b"\x89PNG")
    made.clear()
    assert study(tmp_path, "--steps", "80") == 0
    assert len(made) == 15  # Nor do longer trials stand for shorter ones.


def test_other_seeds_choose_the_rate(tmp_path, made):
    assert study(tmp_path, "--tasks", "digits", "--tune", "digits") == 0
    chosen = [trial for trial in made if trial.seeds == (100, 103)]
    assert len(chosen) == 5 and all(len(trial.rates) == 5 for trial in chosen)
    # The later rates are worse in the made-up rows, so that the first is the best.
    measured = [t for t in made if t.seeds == (0, 5) and t.rates == (wgan.RATES[0],)]
    assert len(measured) == 5 and len(made) == 5 + 2 + 5 + 4
    page = (tmp_path / "wgan.md").read_text("utf-8")
    assert "| RMSprop, as published | 2.00 | 5.00 | 8.00 | 11.00 | 14.00 |" in page
    assert "CPU seconds of all trials: 48" in page


def test_a_line_of_the_table_has_means_and_spreads():
    trial = wgan.Trial("ring", "adam-0", (5e-5,), (0, 2), 40, 0.1)
    row, other = made_up(trial), made_up(trial)
    other["distance"] = [[1.0] * 40, [4.0] * 40]
    # Two seeds that end at 1 and 2, from a least of 1: the standard deviation is √½.
    # The differences from the other are 0 and -2, with a standard error of 1.
    line = wgan.line("Adam", row, other)
    assert line.startswith("| Adam | 5e-05 | 2 | 1.50 ± 0.71 | -1.00 ± 1.00 | 2.00 | 0.50 ± 0.71 |")
    assert line.endswith(" | 0.50 ± 0.00 | 12.5 % |")
    assert "| 1.50 ± 0.71 | – | 2.00 |" in wgan.line("Adam", row, row)
    row["distance"] = [list(np.arange(40.0)), list(-np.arange(40.0))]
    np.testing.assert_allclose(wgan.agreement(row), [-1, 1])


@pytest.mark.slow
def test_a_trial_keeps_a_curve_of_each_training(monkeypatch):
    task = example.TASKS["ring"]()
    small = task._replace(hidden=(8,), held_out=task.held_out[:64])
    monkeypatch.setitem(example.TASKS, "ring", lambda: small)
    row = wgan.run(wgan.Trial("ring", "rmsprop", (1e-4, 1e-3), (3, 5), 40, 0.1))
    assert json.loads(json.dumps(row)) == {**row, "rates": [1e-4, 1e-3], "seeds": [3, 5]}
    assert all(np.shape(row[key]) == (4, 40) for key in ("distance", *example.Log._fields))
    assert np.shape(row["samples"]) == (64, 2)


@pytest.mark.parametrize(
    ["arguments", "message"],
    [
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--steps", "0"], "--steps must be a multiple of 40, got 0"),
        (["--steps", "50"], "--steps must be a multiple of 40, got 50"),
    ],
)
def test_a_wrong_option_is_refused(arguments, message, capsys, tmp_path):
    assert study(tmp_path, *arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not [*tmp_path.iterdir()]
