"""Launchers, which run the training step (`step.py`) on all devices.

`Sharded` is `jit` over sharded arrays: the batch is split, the state is replicated or sharded, and the results are
those of one device. `Replicated` is `pmap`: every device runs the step on its part of the batch, with independent
noise, and gradients are averaged.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lsgm_jax.arrays import Params
from lsgm_jax.training.devices import data_mesh, replicated
from lsgm_jax.training.state import TrainState
from lsgm_jax.training.step import Context, Loss, Step

AXES = ("data", "shards")
REPLICATED = PartitionSpec()


@runtime_checkable
class Launcher(Protocol):
    """Runs a training step on all devices."""

    @property
    def mesh(self) -> Mesh:
        """The mesh of all devices that share the batch."""
        ...

    def shardings(self, tree: Any) -> Any:
        """Returns the sharding of each array of a state or of parameters, given arrays or shapes."""
        ...

    def spread(self, loss: Loss) -> Loss:
        """Returns the loss as a step of this launcher calls it."""
        ...

    def put(self, batches: Sequence[Any]) -> Any:
        """Puts this process's share of one batch, or of several for one call, on the devices.

        Raises:
            ValueError: if a batch does not divide evenly over the devices.
        """
        ...

    def compile(self, step: Step, like: TrainState) -> Step:
        """Compiles the step for states of these shapes. The buffers of its input state are donated."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharded:
    """Launches by `jit`: the batch is split over all devices, the state is sharded within groups of devices (FSDP).

    An array of the state is sharded along its longest axis that `shards` divides, the last one if several are as long.
    Arrays without such an axis, and those with fewer than `smallest` elements, are replicated. Parameters are gathered
    for the loss and their gradients scattered: storage is sharded, the computation of a sample is not.

    Attributes:
        shards: devices per group; 0 for all devices; 1 to replicate the state.
        smallest: minimum number of elements of an array that is sharded.
        devices: those of the mesh, such as a topology's to compile ahead of time; None for all of all processes.
    """

    shards: int = 0
    smallest: int = 1024
    devices: tuple[Any, ...] | None = None

    def __post_init__(self):
        if self.shards < 0:
            raise ValueError(f"shards={self.shards}: give a number of devices, or 0 for all")
        if self.smallest < 1:
            raise ValueError(f"smallest={self.smallest}: give a positive number")

    @property
    def mesh(self) -> Mesh:
        """The mesh of the devices, with neighbours along the axis "shards".

        Raises:
            ValueError: if `shards` does not divide the number of devices.
        """
        devices = data_mesh().devices if self.devices is None else np.asarray(self.devices)
        shards = self.shards or devices.size
        if devices.size % shards:
            raise ValueError(
                f"shards={shards} does not divide {devices.size} devices: choose a divisor, or 0 for all"
            )
        return Mesh(devices.reshape(-1, shards), AXES, axis_types=(AxisType.Auto,) * 2)

    def spec(self, shape: tuple[int, ...], shards: int) -> PartitionSpec:
        """Returns the partition of an array of this shape."""
        fitting = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
        if shards == 1 or not fitting or np.prod(shape) < self.smallest:
            return REPLICATED
        _, longest = max(fitting)
        return PartitionSpec(*(None,) * longest, "shards")

    def shardings(self, tree: Any, mesh: Mesh | AbstractMesh | None = None) -> Any:
        """Returns the sharding of each array, on `mesh` or else the mesh of the available devices."""
        mesh = self.mesh if mesh is None else mesh
        shards = mesh.shape["shards"]
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self.spec(leaf.shape, shards)), tree)

    def spread(self, loss: Loss) -> Loss:
        """Returns the loss of gathered parameters."""
        mesh = self.mesh
        if mesh.shape["shards"] == 1:
            return loss
        gather = _gather_from(mesh, lambda tree: self.shardings(tree, mesh))

        def gathered(params: Params, batch: Any, context: Context) -> Any:
            return loss(gather(params), batch, context._replace(ema_params=gather(context.ema_params)))

        return gathered

    def put(self, batches: Sequence[Any]) -> Any:
        """Joins the shares of all processes to arrays split over all devices."""
        _check_rows(batches[0], self.mesh.size)
        if len(batches) == 1:
            return _join(batches[0], NamedSharding(self.mesh, PartitionSpec(AXES)))
        return _join(_stack(batches), NamedSharding(self.mesh, PartitionSpec(None, AXES)))

    def compile(self, step: Step, like: TrainState) -> Step:
        """Compiles one program for all devices; keys and metrics are replicated."""
        everywhere, state = NamedSharding(self.mesh, REPLICATED), self.shardings(like)
        return jax.jit(
            step, in_shardings=(state, None, everywhere), out_shardings=(state, everywhere), donate_argnums=0
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicated:
    """Launches by `pmap`: the state is replicated, and every device takes the step on its part of the batch."""

    @property
    def mesh(self) -> Mesh:
        """The mesh of all devices of all processes."""
        return data_mesh()

    def shardings(self, tree: Any) -> Any:
        """Returns replicated shardings."""
        everywhere = replicated(self.mesh)
        return jax.tree.map(lambda _: everywhere, tree)

    def spread(self, loss: Loss) -> Loss:
        """Returns the loss itself, because `step.py` averages over devices."""
        return loss

    def put(self, batches: Sequence[Any]) -> Any:
        """Returns host arrays [local devices, rows, ...], or [local devices, batches, rows, ...], as `pmap` takes."""
        devices = jax.local_device_count()
        _check_rows(batches[0], jax.device_count())
        if len(batches) == 1:
            return jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batches[0])

        def split(leaf: np.ndarray) -> np.ndarray:
            return np.moveaxis(leaf.reshape(len(leaf), devices, -1, *leaf.shape[2:]), 1, 0)

        return jax.tree.map(split, _stack(batches))

    def compile(self, step: Step, like: TrainState) -> Step:
        """Compiles one program per device."""
        call = jax.pmap(step, axis_name="data", in_axes=(None, 0, None), out_axes=None, donate_argnums=0)
        if jax.process_count() == 1:
            return call
        everywhere = replicated(self.mesh)

        def to_global(leaf: jax.Array) -> jax.Array:
            """Joins the arrays that `pmap` puts on the devices of each process; all processes hold the same."""
            copies = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, copies)

        return lambda state, batch, key: jax.tree.map(to_global, call(state, batch, key))


def whole() -> Sharded:
    """Returns the launcher that splits the batch and replicates the state."""
    return Sharded(shards=1)


def bytes_per_device(tree: Any, launcher: Sharded, devices: int) -> int:
    """Returns the bytes of a state that each of this many devices holds; allocates nothing.

    Args:
        tree: the state, or its shapes.
        launcher: decides the shardings.
        devices: number of devices.
    """
    shards = launcher.shards or devices
    mesh = AbstractMesh((devices // shards, shards), AXES)
    parts = jax.tree.map(
        lambda leaf, sharding: (
            np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
        ),
        tree,
        launcher.shardings(tree, mesh),
    )
    return int(sum(jax.tree.leaves(parts)))


def _gather_from(mesh: Mesh, shardings: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns an identity function that replicates arrays and, in its backward pass, shards their gradients."""

    @jax.custom_vjp
    def gather(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    def backward(_: None, gradient: Any) -> tuple[Any]:
        return (jax.lax.with_sharding_constraint(gradient, shardings(gradient)),)

    gather.defvjp(lambda tree: (gather(tree), None), backward)
    return gather


def _check_rows(batch: Any, devices: int) -> None:
    rows = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    if rows % devices:
        raise ValueError(
            f"a batch of {rows} images does not divide over {devices} devices: change data.batch_size"
        )


def _stack(batches: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _join(batch: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )
