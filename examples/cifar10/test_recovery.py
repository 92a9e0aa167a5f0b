"""Nothing lost: runs that are stopped, killed, damaged, or that diverge."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from examples.cifar10 import checkpoint, configs, data, devices, loop, optimizer, report, train
from examples.cifar10 import main as cli
from examples.cifar10.configs import Options, UserError
from examples.cifar10.conftest import SMALL, train_small

CLI = "--dataset synthetic --epochs 2 --batch-size 32 --widths 24 24 24 --sides 32".split()


def rows(workdir: Path) -> list[dict]:
    # The clock is no part of what repeats.
    return [
        {k: v for k, v in row.items() if "second" not in k} for row in report.read_metrics(workdir)
    ]


def latest(workdir: Path) -> train.Carry:
    tx, _ = optimizer.optimizer(SMALL, 1)
    layout = devices.layout(Options(SMALL))
    _, like = train.create(SMALL, data.synthetic(), tx, layout)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(like, pytest.fail)[0]


def test_a_checkpoint_is_written_though_the_one_before_is_under_way(tmp_path):
    tx, _ = optimizer.optimizer(SMALL, 1)
    _, carry = train.create(SMALL, data.synthetic(), tx, devices.layout(Options(SMALL)))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, carry)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, without its result."""
    workdir = shutil.copytree(finished, tmp_path / "copy")
    report.write_metrics(workdir, report.read_metrics(workdir)[:-1])
    return workdir


@pytest.mark.slow
def test_stopped_in_the_middle_of_an_epoch_it_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "steps_per_call", lambda steps: 4)
    whole = train_small(tmp_path / "whole")
    step = report.Progress.step

    def press_ctrl_c(progress, row):
        if row["step"] == 20:
            os.kill(os.getpid(), signal.SIGINT)
        step(progress, row)

    with monkeypatch.context() as patch, pytest.raises(configs.InterruptedRun, match="20 of 32"):
        patch.setattr(report.Progress, "step", press_ctrl_c)
        train_small(tmp_path / "stopped")
    assert train_small(tmp_path / "stopped", resume=True)["accuracy"] == whole["accuracy"]
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    chex.assert_trees_all_equal(latest(tmp_path / "stopped"), latest(tmp_path / "whole"))
    # How many steps a call runs decides nothing.
    chex.assert_trees_all_close(latest(tmp_path / "whole"), latest(finished), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stopped_before_its_first_checkpoint_it_starts_again(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report.Progress, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_small(tmp_path)
    train_small(tmp_path, resume=True)
    assert rows(tmp_path) == rows(finished)


# Orbax leaves tasks of the failed reading behind, and they fail in its thread at any time later.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_truncated_checkpoint_is_named_and_skipped(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    files = (workdir / "checkpoints" / "32").rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    train_small(workdir, resume=True)
    said = capsys.readouterr().out
    assert re.search(r"checkpoints/32 cannot be read and is skipped: \S+", said)
    assert (workdir / "unreadable-checkpoints" / "32-0").is_dir()
    assert rows(workdir) == rows(finished)
    chex.assert_trees_all_equal(latest(workdir), latest(finished))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_foreign_checkpoint_is_named_and_skipped(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    with ocp.training.Checkpointer((workdir / "checkpoints").absolute()) as checkpointer:
        checkpointer.save(999, {"weights": jnp.ones(3)})
    train_small(workdir, resume=True)
    assert "checkpoints/999 cannot be read and is skipped" in capsys.readouterr().out
    assert rows(workdir) == rows(finished)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_no_checkpoint_can_be_read_nothing_is_made_up(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    for folder in (workdir / "checkpoints").iterdir():
        shutil.rmtree(folder / "state")
    with pytest.raises(UserError, match="no whole checkpoint"):
        train_small(workdir, resume=True)


def test_resume_refuses_another_config_and_a_folder_without_a_run(finished, tmp_path):
    other = dataclasses.replace(SMALL, epochs=3)
    with pytest.raises(UserError, match="epochs was 2 and is now 3"):
        train_small(finished, other, resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        train_small(finished)
    with pytest.raises(UserError, match="no run to resume"):
        train_small(tmp_path, resume=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        train_small(tmp_path, resume=True)


def test_metrics_whose_last_line_was_cut_are_read(tmp_path):
    report.write_metrics(tmp_path, [{"step": 1}, {"step": 2}])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UserError, match="line 2"):
        report.read_metrics(tmp_path)


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_with_step_rate_and_advice(tmp_path, capsys):
    flags = [*CLI, "--learning-rate", "1e30", "--workdir", str(tmp_path / "run")]
    assert cli.main(flags) == 1
    said = capsys.readouterr().err
    assert re.search(r"the loss is nan at step 2, where the learning rate is \d\.\d+e\+29", said)
    assert "smaller --learning-rate" in said
    logs = train.Logs(np.array([2.0, np.nan]), np.zeros(2), np.array([0.1, 0.25]))
    with pytest.raises(configs.DivergedError, match=r"nan at step 8, .* 0\.25"):
        loop.check_finite(logs, 6, SMALL)


@pytest.mark.slow
def test_full_disk_is_one_line_and_what_was_saved_is_whole(tmp_path, capfd):
    workdir, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # as good as a full disk
    try:
        assert cli.main([*CLI, "--workdir", str(workdir)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capfd.readouterr()
    assert "cannot write a checkpoint" in said.err and "File too large" in said.err
    assert "Traceback" not in said.err + said.out
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 2
    assert [r["kind"] for r in report.read_metrics(workdir)] == ["train", "epoch"] * 2
    assert cli.main([*CLI, "--workdir", str(workdir), "--resume"]) == 0
