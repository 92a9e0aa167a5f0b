"""Eight CPU devices, and a small run that the tests share."""

import os
from pathlib import Path

import jax
import pytest

from examples.cifar10 import data, devices, loop
from examples.cifar10.configs import Network, Options, Recipe

if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", 8)

SMALL = Recipe(Network(widths=(24, 24, 24)), epochs=2, batch_size=32, no_tta=True)


def train_small(workdir: Path, recipe: Recipe = SMALL, resume: bool = False, **options) -> dict:
    """Train on made-up images."""
    layout = devices.layout(Options(recipe, **options))
    return loop.train_and_evaluate(recipe, data.synthetic(), workdir, resume, layout)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    train_small(workdir)
    return workdir
