"""One device, eight, and two processes of four: the same losses."""

import dataclasses
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from examples.cifar10 import data, devices, optimizer, report, train
from examples.cifar10.configs import Options
from examples.cifar10.conftest import SMALL, train_small


def losses(workdir) -> list[float]:
    return [row["loss"] for row in report.read_metrics(workdir) if row["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("shard_state", [False, True])
def test_eight_devices_train_as_one_does(shard_state, finished, tmp_path):
    # Test-time augmentation takes as long as the training: once is enough.
    recipe = dataclasses.replace(SMALL, no_tta=shard_state)
    train_small(tmp_path, recipe, devices=8, shard_state=shard_state)
    np.testing.assert_allclose(losses(tmp_path), losses(finished), rtol=1e-3)


@pytest.mark.slow
def test_zero1_keeps_an_eighth_of_the_state_on_each_device():
    tx, rate = optimizer.optimizer(SMALL, 32)
    layout = devices.layout(Options(SMALL, devices=8, shard_state=True))
    graphdef, carry = train.create(SMALL, data.synthetic(), tx, layout)
    step = train.make_step(graphdef, tx, rate, SMALL, layout, 32)
    run = train.make_steps(step, SMALL, layout, mirror=True)
    made_up = data.synthetic()
    images, labels = layout.put((made_up.train_images, made_up.train_labels))
    before = jax.tree.map(lambda leaf: leaf.sharding, carry)
    with jax.set_mesh(layout.mesh):
        compiled = run.lower(carry, images, labels, np.int32(0), np.int32(0)).compile()
        after, _ = compiled(carry, images, labels, np.int32(0), np.int32(0))
    for tree in (after.params, after.opt_state):
        arrays = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
        whole = sum(leaf.nbytes for leaf in arrays)
        shards = [leaf.addressable_shards[0].data.nbytes for leaf in arrays]
        assert 8 * sum(shards) == whole > 100_000
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == before


@pytest.mark.slow
def test_two_processes_of_four_devices_train_as_one_device_does(finished, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (
        "--dataset synthetic --no-tta --epochs 2 --batch-size 32 --widths 24 24 24 "
        f"--image-sizes 32 --devices 8 --shard-state --distributed {address} --num-processes 2 "
        f"--workdir {tmp_path / 'run'}"
    ).split()
    command = [sys.executable, "-m", "examples.cifar10.main", *flags, "--process-id"]
    both = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(2)
    ]
    said = [process.communicate(timeout=900)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "test accuracy" in said[0] and "epoch" not in said[1]  # only one speaks
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(finished), rtol=1e-3)
