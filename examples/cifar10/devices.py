"""One device, many, or many processes: where every array lies."""

import dataclasses
import logging

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from examples.cifar10.configs import Options, UserError


def start(options: Options) -> None:
    """Join the other processes and set the number of CPU devices, before JAX's first use."""
    # What Orbax cannot write or read it logs with a traceback, and raises too: that is shown.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    processes = options.num_processes or 1
    if options.devices is not None:
        if options.devices % processes:
            raise UserError(
                f"--devices {options.devices} must be a multiple of --num-processes {processes}"
            )
        jax.config.update("jax_num_cpu_devices", options.devices // processes)
    if options.distributed is not None:
        address = None if options.distributed == "auto" else options.distributed
        try:
            jax.distributed.initialize(address, options.num_processes, options.process_id)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"--distributed {options.distributed}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with one axis, "data", over which every batch is split.

    With `shard_state`, each parameter and each array of the optimizer's state is split over it
    too, along its last axis that divides (ZeRO-1: Rajbhandari et al. 2020,
    https://arxiv.org/abs/1910.02054).
    """

    mesh: Mesh
    shard_state: bool = False

    def batch(self, tree):
        """Split arrays along their first axis."""
        return jax.lax.with_sharding_constraint(tree, self._at(PartitionSpec("data")))

    def whole(self, tree):
        """Give every device all of it."""
        return jax.lax.with_sharding_constraint(tree, self._at(PartitionSpec()))

    def state(self, tree):
        """Split as the state is, or give every device all of it."""
        return jax.lax.with_sharding_constraint(tree, self.of_state(tree))

    def of_state(self, tree):
        """Return the shardings of parameters or state."""
        return jax.tree.map(lambda x: self._at(self._spec(x.shape)), tree)

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(shape) if size % self.mesh.size == 0]
        if not (self.shard_state and axes):
            return PartitionSpec()
        return PartitionSpec(*[None] * axes[-1], "data")

    def _at(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def put(self, tree, state: bool = False):
        """Bring arrays that every process has alike to all devices, or as the state lies."""

        def put(x, sharding):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        if state:
            return jax.tree.map(put, tree, self.of_state(tree))
        return jax.tree.map(lambda x: put(x, self._at(PartitionSpec())), tree)


def layout(options: Options) -> Layout:
    """Lay the mesh over as many devices as the options ask for."""
    devices = jax.devices()
    count = options.devices or (1 if options.distributed is None else len(devices))
    if count > len(devices):
        raise UserError(f"--devices {count}: this machine has {len(devices)}")
    if options.recipe.batch_size % count:
        raise UserError(
            f"--batch-size {options.recipe.batch_size} does not divide among {count} devices"
        )
    mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=devices[:count])
    return Layout(mesh, options.shard_state)


def first_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(tree):
    """Return every array whole, in NumPy, in every process."""
    return multihost_utils.process_allgather(tree, tiled=True)


def agree(value: bool) -> bool:
    """Return the first process's value in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))
