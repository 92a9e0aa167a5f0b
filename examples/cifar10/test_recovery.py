"""Nothing lost: runs that are stopped, killed, damaged, or that diverge."""

import dataclasses
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from examples.cifar10 import checkpoint, configs, data, devices, loop, optimizer, report, train
from examples.cifar10 import main as cli
from examples.cifar10.configs import Options, UserError
from examples.cifar10.conftest import SMALL, train_small

CLI = "--dataset synthetic --epochs 2 --batch-size 32 --widths 24 24 24 --image-sizes 32".split()


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, train.Carry]:
    """Two checkpoints, and what is in both."""
    carry = train.Carry(
        {"w": jax.random.normal(jax.random.key(0), (64, 64))},
        {"mean": jnp.ones(8, jnp.bfloat16)},
        (jnp.int32(3), jnp.arange(9, dtype=jnp.uint8)),
        None,
    )
    workdir = tmp_path_factory.mktemp("saved")
    with checkpoint.Checkpoints(workdir) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, carry, [{"kind": "train", "step": step, "loss": 1 / 3}])
    return workdir, carry


@pytest.mark.api
@pytest.mark.filterwarnings("ignore")  # Orbax warns of what it finds damaged.
@pytest.mark.parametrize("seed", range(12))
def test_flipped_bit_is_noticed_or_without_effect(saved, seed, tmp_path):
    rng, said = random.Random(seed), []
    workdir, carry = shutil.copytree(saved[0], tmp_path / "copy"), saved[1]
    files = [f for f in (workdir / "checkpoints" / "2").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    path = largest if seed % 2 else rng.choice([f for f in files if f.stat().st_size])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        got, step, metrics = checkpoints.restore(carry, said.append)
    chex.assert_trees_all_equal(got, carry)
    assert metrics == [{"kind": "train", "step": step, "loss": 1 / 3}]
    assert step == 2 or "checkpoints/2 cannot be read and is skipped" in said[0]
    if path == largest:
        assert step == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("where", [".params['w']", ".opt_state[1]", "the step and the metrics"])
def test_what_is_not_as_it_was_written_is_named(where, saved, monkeypatch, tmp_path):
    digests, said = checkpoint._digests, []
    workdir, carry = shutil.copytree(saved[0], tmp_path / "copy"), saved[1]
    monkeypatch.setattr(checkpoint, "_digests", lambda *args: digests(*args) | {where: "other"})
    with checkpoint.Checkpoints(workdir) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(carry, said.append)
    assert f"the SHA-256 of {where} is not the one" in said[0]
    assert f"remove {workdir} or" in str(error.value)


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


def test_resume_refuses_other_data_of_the_same_name(finished):
    made_up = data.synthetic()
    labels = made_up.test_labels.copy()
    labels[0] += 1
    other = dataclasses.replace(made_up, test_labels=labels)
    with pytest.raises(UserError, match=r"data_sha256 was \w{64} and is now \w{64}"):
        loop.train_and_evaluate(SMALL, other, finished, True, devices.layout(Options(SMALL)))


DAMAGED = ["", "{", "[1]", "3", '"x"', "null", "true", "[" * 100_000, "\x80"]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        checkpoint.claim(tmp_path, {"epochs": 2}, {}, resume=True)


@pytest.mark.parametrize("text", [*DAMAGED, "{}", '{"step": 1}'])
def test_damaged_metrics_are_named(text, tmp_path):
    report.write_metrics(tmp_path, [{"kind": "train", "step": 1}])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + text.encode("latin1") + b"\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        report.read_metrics(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="line 1 is damaged"):
        report.read_metrics(tmp_path)


@pytest.mark.slow
def test_metrics_come_from_the_checkpoint(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    path = workdir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[2:]))
    (workdir / "metrics.jsonl.tmp").write_text("what a killed run left")
    train_small(workdir, resume=True)
    assert rows(workdir) == rows(finished)
    assert not list(workdir.glob("*.tmp"))


def test_one_run_at_a_time_has_a_workdir(tmp_path):
    barrier, config = threading.Barrier(8), {"epochs": 2}

    def claim(resume):
        barrier.wait()
        try:
            return checkpoint.claim(tmp_path, config, {}, resume)
        except UserError as error:
            return str(error)

    for resume in (False, True):
        with futures.ThreadPoolExecutor(8) as pool:
            runs = list(pool.map(claim, [resume] * 8))
        (run,) = (run for run in runs if not isinstance(run, str))
        assert all("another process trains" in said for said in runs if said is not run)
        run.close()
    with pytest.raises(UserError, match="already holds a run"):
        checkpoint.claim(tmp_path, config, {}, resume=False)


def test_a_killed_run_locks_nothing(tmp_path):
    code = (
        "import os, pathlib, signal\n"
        "from examples.cifar10 import checkpoint\n"
        f"run = checkpoint.claim(pathlib.Path({str(tmp_path)!r}), {{}}, {{}}, False)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with checkpoint.claim(tmp_path, {}, {}, resume=True):
        pass


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
