"""The studies, on made-up data: they run, go on where they were, and write what they promise."""

import dataclasses
import json

import chex
import numpy as np
import pytest

from experiments import (
    a2c,
    common,
    crowded_valley,
    eps_ladder,
    five_rules,
    kills,
    port_faults,
    storage,
    tuning,
)
from experiments import probe as probe_study
from optax_rmsprop import compare

TINY = "--dataset synthetic --widths 24 24 24 --batch-size 64 --train-images 64".split()
TINY += ["--epochs", "1"]


@pytest.mark.slow
def test_study_writes_its_table_and_runs_nothing_twice(tmp_path, monkeypatch, capsys):
    few = {name: eps_ladder.TRIALS[name] for name in ("optax.sgd", "eps = 1")}
    monkeypatch.setattr(eps_ladder, "TRIALS", few)
    monkeypatch.setattr(eps_ladder, "EPSILONS", (1.0,))
    arguments = [*TINY, "--workdir", str(tmp_path / "runs"), "--seed", "1"]
    eps_ladder.study(tmp_path, arguments)
    assert (tmp_path / "eps_ladder.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "eps_ladder.md").read_text()
    assert "- versions: jax" in text and "| optax.sgd | 1 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| eps = 1 |"))
    assert float(row.split("|")[-2]) < 1e-4  # at epsilon 1 the two coincide
    monkeypatch.setattr("examples.cifar10.loop.train_and_evaluate", pytest.fail)
    eps_ladder.study(tmp_path, arguments)
    assert (tmp_path / "eps_ladder.md").read_text() == text


def made_up_run(seed: int, epochs: int) -> list[dict]:
    result = {"kind": "result", "seed": seed, "data": "made up", "split": "test", "seconds": 2.0}
    rows = [{"kind": "epoch", "accuracy": 0.1 * (epoch + 1)} for epoch in range(epochs)]
    rows.append({"kind": "train", "loss": 1.5 + seed})
    return [*rows, result | {"accuracy": 0.5, "accuracy_tta": 0.6}]


@pytest.mark.slow
@pytest.mark.parametrize("study", [crowded_valley, tuning, storage])
def test_table_of_finished_runs(study, tmp_path, monkeypatch):
    runs = [made_up_run(0, 10), made_up_run(1, 10)]
    monkeypatch.setattr(common, "run", lambda trials, _: dict.fromkeys(trials, runs))
    blocks_fit = ["--widths", "32", "32", "32"]
    study.study(tmp_path, [*TINY, *blocks_fit, "--workdir", "/a/runs"])
    name = study.__name__.rpartition(".")[2]
    text = (tmp_path / f"{name}.md").read_text()
    assert "--workdir runs" in text and "made up, test images" in text
    if study is crowded_valley:
        assert "| crowded-valley, here | 1 | 10.0 | 20.0 |" in text
        assert "| crowded-valley-tuned, published | 42 | 39.5 |" in text
        assert (tmp_path / "crowded_valley.png").read_bytes().startswith(b"\x89PNG")
    elif study is storage:
        assert "| uint8 | 2 | 2.0000 ± 0.7071 | 50.00 ± 0.00 | 60.00 ± 0.00 |" in text
        state = [float(row.split("|")[-3]) for row in text.splitlines() if "±" in row]
        assert state[0] == 8  # with the momentum's buffer
        assert state[0] - 2 <= state[1] < state[0] - 1  # small leaves stay in float32
        assert state[1] - 1 <= state[2] < state[1]
        study.study(tmp_path, [*TINY, *blocks_fit, "--both", "--workdir", "/a/runs"])
        text = (tmp_path / "storage_both.md").read_text()
        assert "--both --workdir runs" in text and "| uint8, int8 | 2 | 2.0000" in text
    else:
        assert "| 2 | 50.00 ± 0.00 | 60.00 ± 0.00 |" in text


@pytest.mark.slow
def test_five_rules_part_in_an_epoch(tmp_path):
    five_rules.study(tmp_path, seeds=2, epochs=1)
    rows = (tmp_path / "five_rules.md").read_text().splitlines()[-5:]
    assert [row.split("|")[1].strip() for row in rows] == list(five_rules.RULES)
    assert len({row.split("|")[2] for row in rows}) == 5
    assert (tmp_path / "five_rules.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    (line,) = kills.compare(tmp_path, runs=1, kills=1, seed=0)
    assert line.startswith("| 0 |") and line.endswith("| yes |")


def made_up_trial(cell, index):
    precision, steps = cell
    known = {"precision": precision, "steps": steps, "index": index, "open": 1, "seconds": 2.0}
    return known | {"outcome": "right" if steps else "none"}


def test_a_killed_probe_goes_on_after_its_last_whole_line(tmp_path, monkeypatch):
    monkeypatch.setattr(probe_study, "trial", made_up_trial)
    probe_study.study(tmp_path, tmp_path, 2)
    text, file = (tmp_path / "probe.md").read_text(), tmp_path / "trials.jsonl"
    assert "| float32 | 25 | 2 | 2 | 0 | 0 | 0 | 1.0 | 2.0 (2.0) |" in text
    assert "| bfloat16 | `identify` | 2 | 0 | 0 | 2 | 0 | – | 2.0 (2.0) |" in text
    whole = file.read_text()
    file.write_text(whole[:-5])
    made = []
    monkeypatch.setattr(probe_study, "trial", lambda *a: made.append(a) or made_up_trial(*a))
    probe_study.study(tmp_path, tmp_path, 2)
    assert made == [(("bfloat16", 50), 1)]
    assert file.read_text() == whole and (tmp_path / "probe.md").read_text() == text


def test_a_trial_of_the_probe_is_judged():
    for cell in (("float64", 5), ("float32", 5)):
        row = probe_study.trial(cell, 0)
        assert row["outcome"] in ("right", "alike") and row["call"].startswith("dialects.torch(")


@pytest.mark.slow
def test_a_killed_study_of_faults_goes_on_after_its_last_whole_line(tmp_path, monkeypatch):
    few = {name: port_faults.FAULTS[name] for name in ("learning rate", "a leaf not trained")}
    monkeypatch.setattr(port_faults, "FAULTS", few)
    rows = [
        {"faults": list(faults), "seed": seed, "named": True, "said": "", "seconds": 2.0}
        for faults, seed in port_faults.trials(1, 0)
    ]
    assert [row["faults"] for row in rows] == [[name] for name in few] + [[]] * 10
    file = tmp_path / "trials.jsonl"
    lines = [json.dumps(row | {"named": row["faults"] != ["learning rate"]}) for row in rows]
    file.write_text("\n".join([*lines[:-1], lines[-1][:-5]]))
    port_faults.study(tmp_path, tmp_path, 1, 0, 1)
    text = (tmp_path / "port_faults.md").read_text()
    assert "| no fault | 10 | 10 | 100.0 % | 2.0 (2.0) |" in text
    assert "| one fault | 2 | 1 | 50.0 % | 2.0 (2.0) |" in text
    assert "- learning rate, seed 0: " in text
    assert file.read_text().count("\n") == 12


@pytest.mark.parametrize("fault", ["learning rate", "a leaf not trained", "kernel transposed"])
def test_a_fault_is_judged(fault):
    found = port_faults.judged((fault,), 0)
    assert found["named"] and found["said"].endswith("(leaves rounding alone)")


def test_what_is_named():
    cause = compare.Cause((compare.Change("eps", "epsilon differs"),))
    found = compare.Difference(None, (cause,))
    assert port_faults.is_named(found, ["eps"]) and not port_faults.is_named(found, ["decay"])
    assert not port_faults.is_named(found, []) and not port_faults.is_named(found, ["eps", "decay"])
    part = dataclasses.replace(found, causes=(dataclasses.replace(cause, left=0.5),))
    assert not port_faults.is_named(part, ["eps"])
    assert port_faults.is_named(compare.Difference(None, notes=("short",)), [])


@pytest.mark.parametrize(
    "trials",
    [*(study.TRIALS for study in (crowded_valley, eps_ladder, storage, tuning)), storage.BOTH],
)
def test_every_trial_has_flags_that_are_right(trials):
    from examples.cifar10 import configs, optimizer

    for flags in trials.values():
        options = configs.parse([*flags, "--epochs", "10"])
        optimizer.optimizer(options.recipe, 10)


def test_mean_and_spread():
    assert common.mean_and_spread([1.0]) == "1.00"
    assert common.mean_and_spread([1.0, 3.0], 1) == "2.0 ± 1.4"


@pytest.mark.slow
def test_a2c_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    short = dataclasses.replace(a2c.a2c.TASKS["CartPole-v1"], steps=2000)
    monkeypatch.setitem(a2c.a2c.TASKS, "CartPole-v1", short)
    monkeypatch.setattr(a2c, "CHUNK", 2)
    rows = [("CartPole-v1", "torch", 3), ("CartPole-v1", "sgd", 2)]
    monkeypatch.setattr(a2c, "plan", lambda seeds: rows)
    monkeypatch.setattr(a2c, "RULES", ("torch", "sgd"))
    a2c.main(["--results", str(tmp_path / "whole"), "--tasks", "CartPole-v1"])
    extend, calls = a2c.extend, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        extend(*args)

    monkeypatch.setattr(a2c, "extend", stopped)
    with pytest.raises(KeyboardInterrupt):
        a2c.main(["--results", str(tmp_path / "parts"), "--tasks", "CartPole-v1"])
    a2c.main(["--results", str(tmp_path / "parts"), "--tasks", "CartPole-v1"])
    assert [(rule, [*seeds]) for _, _, rule, seeds in calls] == [
        ("torch", [0, 1]), ("sgd", [0, 1]), ("torch", [2]), ("torch", [2])
    ]  # fmt: skip
    for rule in ("torch", "sgd"):
        found = (
            a2c.read(tmp_path / name / "a2c" / "CartPole-v1" / f"{rule}.npz")
            for name in ("whole", "parts")
        )
        chex.assert_trees_all_equal(*found)
    assert (tmp_path / "parts" / "a2c.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "parts" / "a2c.md").read_text()
    assert (
        "| `torch` | 3 |" in text
        and "| `sgd` | 2 |" in text
        and "| CartPole-v1 | 500.0 ± 0.0 |" in text
    )


def test_where_a_run_falls_is_counted_after_the_threshold_was_reached():
    nan = np.nan
    returns = [
        [1, 9, 9, 9, 9],
        [9, 1, 9, 9, 9],
        [1, nan, 9, 1, 1],
        [1, 1, 1, 2, 2],
        [9, 9, 9, 9, 5],
    ]
    reached, ends, fell = a2c.falls({"episode_return": np.array(returns, float)}, 8.0)
    assert [*reached] == [2, 1, 3, np.inf, 1]
    assert [*ends] == [False, False, True, False, True]  # by the mean of the last two parts
    assert [*fell] == [False, True, True, False, True]
