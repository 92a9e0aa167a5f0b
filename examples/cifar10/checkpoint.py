"""The workdir: which run it holds, and where that run can go on."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock
import jax
from orbax.checkpoint import v1 as ocp

from examples.cifar10 import devices, report
from examples.cifar10.configs import UserError
from examples.cifar10.train import Carry

KEPT = 3
# Reading a damaged checkpoint leaves tasks behind whose errors nobody asks for; the first is told.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def claim(
    workdir: Path, config: dict, environment: dict, resume: bool
) -> contextlib.AbstractContextManager:
    """Write the config into a new workdir, or see that the run to resume has an equal one.

    Return a context that keeps other processes out of the workdir until its end.
    """
    path = workdir / "config.json"
    if resume and not path.exists():
        raise UserError(f"there is no run to resume in {workdir}")
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as run:
        run.enter_context(_lock(workdir))
        if resume:
            _compare(path, config)
        elif path.exists():
            raise UserError(f"{workdir} already holds a run: give --resume or another --workdir")
        else:
            devices.meet("claim")  # Nobody writes before all have looked.
            report.write_text(path, json.dumps(config | environment, indent=2) + "\n")
            devices.meet("claimed")
        return run.pop_all()


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[None]:
    """Keep other runs out; the system unlocks what a killed process had locked."""
    lock, free = filelock.FileLock(workdir / "run.lock"), True
    if devices.first_process():
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            free = False
    if not devices.agree(free):
        raise UserError(f"another process trains in {workdir}: stop it, or give another --workdir")
    try:
        yield
    finally:
        lock.release()


def _compare(path: Path, config: dict) -> None:
    before = report.read_object(path.read_bytes(), str(path))
    now = json.loads(json.dumps(config))
    differing = [
        f"{name} was {before.get(name)} and is now {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if differing:
        raise UserError(f"the run in {path.parent} has another config: {'; '.join(differing)}")


class Checkpoints:
    """The run's checkpoints, of which the newest are kept; leaving waits for the last writing."""

    def __init__(self, workdir: Path):
        """Open them, and clear away what a killed run left half written."""
        self.folder = workdir.absolute() / "checkpoints"
        self.orbax = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(self, *_) -> None:
        """Wait until everything is written."""
        with self._failing_clearly():
            self.orbax.close()

    def save(self, step: int, carry: Carry, rows: Sequence[dict] = ()) -> None:
        """Write a checkpoint in the background, whole or not at all, with the metrics so far."""
        about = json.dumps({"metrics": rows, "sha256": _digests(step, carry, rows)})
        with self._failing_clearly():
            # Orbax would skip it while the one before is being written.
            self.orbax.save_checkpointables_async(
                step, {"state": carry, "about": about}, overwrite=True, force=True
            )

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax passes on whatever its storage raises.
            raise UserError(
                f"cannot write a checkpoint into {self.folder}: {_first_line(error)}. "
                "Those before it are whole: --resume goes on from there"
            ) from error

    def restore(self, like: Carry, say: Callable[[str], None]) -> tuple[Carry, int, list[dict]]:
        """Return what the newest whole checkpoint holds, the steps behind it, and their metrics.

        One that cannot be read, or not as it was written, is named, and moved aside. A run that
        was stopped before its first checkpoint starts again.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        steps = sorted((c.step for c in self.orbax.checkpoints), reverse=True)
        if not steps:
            say("there is no checkpoint yet: starting from the beginning")
            return like, 0, []
        for step in steps:
            try:
                loaded = self.orbax.load_checkpointables(step, {"state": abstract, "about": ""})
                carry, about = loaded["state"], json.loads(loaded["about"])
                rows, written = about["metrics"], about["sha256"]
                for name, digest in _digests(step, carry, rows).items():
                    if written.get(name) != digest:
                        raise ValueError(f"the SHA-256 of {name} is not the one that was written")
                return carry, step, rows
            except Exception as error:  # What a damaged file raises is nowhere said.
                path = self.folder / str(step)
                say(f"checkpoint {path} cannot be read and is skipped: {_first_line(error)}")
                self._move_aside(path)
        raise UserError(
            f"there is no whole checkpoint to resume from in {self.folder}: remove "
            f"{self.folder.parent} or give another --workdir, and start again"
        )

    def _move_aside(self, path: Path) -> None:
        if devices.first_process():
            aside = path.parent.with_name("unreadable-checkpoints")
            aside.mkdir(exist_ok=True)
            os.replace(path, aside / f"{path.name}-{len(list(aside.iterdir()))}")
        devices.meet(f"moved {path.name}")
        self.orbax.reload()


def _digests(step: int, carry: Carry, rows: Sequence[dict]) -> dict[str, str]:
    """Return the SHA-256 of every leaf by its path, and of what is no leaf."""
    parts = {"the step and the metrics": json.dumps([step, rows]).encode()}
    for path, leaf in jax.tree.leaves_with_path(devices.gather(carry)):
        parts[jax.tree_util.keystr(path)] = leaf.tobytes()
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def _first_line(error: BaseException) -> str:
    """Say what is behind it all, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.300}"
