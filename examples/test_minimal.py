"""The example that people copy: it learns, and so it does with every line that it offers."""

import re
import subprocess
import sys
from pathlib import Path

import optax
import pytest
from flax import nnx

import optax_rmsprop
from examples import minimal

SWAPS = re.findall(r"# tx = (.*)", Path(minimal.__file__).read_text())


def write_cifar10(folder: Path, records: int) -> None:
    """Write images without red, of the classes 0 to 9 in turn, in the binary layout."""
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = (bytes([i % 10]) + bytes(1024) + bytes([i] * 2048) for i in range(records))
        (folder / name).write_bytes(b"".join(rows))


@pytest.mark.api
def test_one_epoch_learns_the_digits(capsys):
    accuracy = minimal.main(epochs=1)
    assert accuracy > 0.8
    assert f"test accuracy {accuracy:.2%}  learning rate" in capsys.readouterr().out


@pytest.mark.api
@pytest.mark.parametrize("line", SWAPS)
def test_every_line_to_swap_in_takes_the_place(line):
    schedule = optax.constant_schedule(1e-3)
    names = {"schedule": schedule, "optax_rmsprop": optax_rmsprop}
    tx = eval(line.partition("  #")[0], names | {"tx": optax_rmsprop.rmspropw(schedule)})
    model = minimal.Network(1, 10, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    optimizer.update(model, grads)
    rate = optax.tree.get(optimizer.opt_state, "last_learning_rate")
    assert float(rate[...]) == pytest.approx(1e-3)


def test_five_lines_are_offered():
    assert len(SWAPS) == 5


def test_binary_cifar10_is_read(tmp_path):
    write_cifar10(tmp_path, 10)
    images, labels, test_images, test_labels = minimal.load(tmp_path)
    assert images.shape == (50, 32, 32, 3) and test_images.shape == (10, 32, 32, 3)
    assert (images[..., 0] == 0).all() and (images[9, :, :, 1:] == 9).all()
    assert list(labels) == 5 * list(range(10)) and list(test_labels) == list(range(10))


@pytest.mark.parametrize("command", [["-m", "examples.minimal"], ["examples/minimal.py"]])
def test_both_commands_start(command):
    root = Path(minimal.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "--data-dir" in done.stdout
