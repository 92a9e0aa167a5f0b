"""The study of centring and momentum in DQN: it goes on where it was, and counts rightly."""

import json
import re

import numpy as np
import pytest

from examples.dqn import dqn as example
from experiments import dqn

SMALL = example.TASKS["cartpole"]._replace(
    hidden=(8,), capacity=64, fill=50, exploration=100, target_every=50
)


def made_up(name, rule, seeds, frames):
    """A row of two parts, in which every seed's episodes return its number and the rule's."""
    number = [*dqn.RULES].index(rule)
    count = len(seeds)
    return {
        "task": name, "rule": rule, "seeds": [seeds.start, seeds.stop], "frames": frames,
        "episodes": [[4, 2]] * count, "returns": [[4, 2 * (10 * number + seed)] for seed in seeds],
        "cpu_seconds": 3, "date": "2026-01-02", "device": "cpu", "processor": "P", "versions": "V",
    }  # fmt: skip


def test_a_killed_study_goes_on_after_its_last_whole_line(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(dqn, "trial", lambda *a: made.append(a) or made_up(*a))
    study = lambda: dqn.study(tmp_path, ["cartpole"], 10, 1_000)  # noqa: E731
    study()
    file, page = tmp_path / "dqn.jsonl", (tmp_path / "dqn.md").read_text()
    assert [a[:3] for a in made] == [
        ("cartpole", rule, chunk) for chunk in (range(8), range(8, 10)) for rule in dqn.RULES
    ]
    whole = file.read_text()
    file.write_text(whole[:-5])
    made.clear()
    study()
    assert made == [("cartpole", [*dqn.RULES][-1], range(8, 10), 1_000)]
    assert file.read_text() == whole and (tmp_path / "dqn.md").read_text() == page
    assert (tmp_path / "dqn.png").read_bytes().startswith(b"\x89PNG")
    made.clear()
    dqn.study(tmp_path, ["cartpole"], 10, 900)
    assert len(made) == 2 * len(dqn.RULES)  # Nor do longer runs stand for shorter ones.


def test_the_table_has_means_spreads_and_errors():
    rows = [made_up("cartpole", rule, range(2), 1_000) for rule in dqn.RULES]
    lines = [*dqn.table(rows, "cartpole")]
    # The last part is the last tenth. Two seeds, 0 and 1: the standard deviation is √½, the
    # standard error of a mean ½, and that of a difference √½.
    assert lines[2].endswith("| 2 | 0.50 ± 0.71 | – | 0.00, 1.00 | 0.83 ± 0.24 | 3 |")
    assert "| 2 | 10.50 ± 0.71 | +10.00 ± 0.71 | 10.00, 11.00 |" in lines[3]


def test_parts_of_unequal_length_end_where_they_do():
    row = made_up("cartpole", next(iter(dqn.RULES)), range(2), 50_000)
    frames = dqn.ends("cartpole", [row])
    assert len(frames) == 40 and list(frames[[0, 19, 20, -1]]) == [1_500, 30_000, 31_000, 50_000]
    assert (frames > 0.9 * frames[-1]).sum() == 5  # A thousand frames each.


@pytest.mark.slow
def test_a_trial_adds_up_all_episodes(monkeypatch):
    monkeypatch.setitem(example.TASKS, "cartpole", SMALL)
    row = dqn.trial("cartpole", next(iter(dqn.RULES)), range(2), 2_100)
    episodes, returns = np.array(row["episodes"]), np.array(row["returns"])
    assert episodes.shape == returns.shape == (2, 40) and json.loads(json.dumps(row)) == row
    # Every step is rewarded, so what returns sum to is the frames, but for the episodes at the
    # start, begun before, and at the end, unfinished.
    assert (abs(returns.sum(1) - 2_100) < 100).all()


def test_the_rules_differ_as_they_say():
    built = {name: example.optimizer(**change) for name, change in dqn.RULES.items()}
    assert len(set(map(repr, built.values()))) == len(built)
    assert built[next(iter(dqn.RULES))] == example.optimizer("dqn_zoo")


@pytest.mark.parametrize("flag", ["--seeds", "--steps"])
def test_a_wrong_option_is_refused(flag, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        dqn.main(["--results", str(tmp_path), flag, "0"])
    assert re.search(f"{flag} must be at least 1, got 0", capsys.readouterr().err)
    assert not [*tmp_path.iterdir()]
