"""The workdir: which run it holds, and where that run can go on."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from examples.cifar10 import report
from examples.cifar10.configs import UserError
from examples.cifar10.train import Carry


def claim(workdir: Path, config: dict, environment: dict, resume: bool) -> None:
    """Write the config into a new workdir, or see that the run to resume has an equal one."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if not resume:
        if path.exists():
            raise UserError(f"{workdir} already holds a run: give --resume or another --workdir")
        report.write_text(path, json.dumps(config | environment, indent=2) + "\n")
        return
    if not path.exists():
        raise UserError(f"there is no run to resume in {workdir}")
    before, now = json.loads(path.read_text()), json.loads(json.dumps(config))
    differing = [
        f"{name} was {before.get(name)} and is now {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if differing:
        raise UserError(f"the run in {workdir} has another config: {'; '.join(differing)}")


@contextlib.contextmanager
def checkpoints(workdir: Path) -> Iterator[ocp.training.Checkpointer]:
    """Open the run's checkpoints, of which the latest is kept."""
    latest = ocp.training.preservation_policies.LatestN(1)
    folder = workdir.absolute() / "checkpoints"
    with ocp.training.Checkpointer(folder, preservation_policy=latest) as checkpointer:
        yield checkpointer


def restore(checkpointer: ocp.training.Checkpointer, like: Carry) -> tuple[Carry, int]:
    """Return what the latest checkpoint holds, and the number of epochs behind it."""
    latest = checkpointer.latest
    if latest is None:
        raise UserError("there is no checkpoint to resume from: no epoch was finished")
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    return checkpointer.load(latest.step, abstract), latest.step
