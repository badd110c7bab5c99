"""How the one training step (`step.py`) runs on all devices.

There are two launchers. `Sharded` is `jit` over arrays that know their devices: the batch is split, the state is whole
on every device or divided among them, and the numbers are those of one device. `Replicated` is `pmap`: every device
runs the step on its part of the batch, with noise of its own, and gradients are averaged.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lsgm_jax.nn.network import Params
from lsgm_jax.training.devices import data_mesh, replicated
from lsgm_jax.training.state import TrainState
from lsgm_jax.training.step import Context, Loss, Step

AXES = ("data", "shards")
WHOLE = PartitionSpec()


@runtime_checkable
class Launcher(Protocol):
    """How a training step runs on all devices."""

    @property
    def mesh(self) -> Mesh:
        """All devices of all processes."""
        ...

    def shardings(self, tree: Any) -> Any:
        """Where each array of a state, or of parameters, lives; of the arrays the shapes suffice."""
        ...

    def spread(self, loss: Loss) -> Loss:
        """The loss as a step of this launcher calls it."""
        ...

    def put(self, batches: Sequence[Any]) -> Any:
        """This process's shares of one batch, or of several for one call, on the devices.

        Raises:
            ValueError: if the devices cannot share a batch evenly.
        """
        ...

    def compile(self, step: Step, like: TrainState) -> Step:
        """The step for states of these shapes. The old state's memory is reused."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharded:
    """`jit`: the batch split over all devices, the state divided within groups of devices ("fully sharded").

    An array of the state is divided along its longest axis that `shards` divides, the last of several; arrays with no
    such axis, and those with fewer than `smallest` numbers, are whole on every device. Parameters are gathered for the
    step's loss and their gradients scattered, so that what lasts is divided and what is computed is not.

    Attributes:
        shards: devices in a group; 0 for all devices. With 1 the whole state is on every device.
        smallest: numbers of the smallest arrays that are worth a message.
    """

    shards: int = 0
    smallest: int = 1024

    def __post_init__(self):
        if self.shards < 0:
            raise ValueError(f"shards={self.shards}: give a number of devices, or 0 for all")
        if self.smallest < 1:
            raise ValueError(f"smallest={self.smallest}: give a positive number")

    @property
    def mesh(self) -> Mesh:
        """All devices of all processes, groups of neighbours along "shards".

        Raises:
            ValueError: if the devices do not make whole groups.
        """
        devices = data_mesh().devices
        shards = self.shards or devices.size
        if devices.size % shards:
            raise ValueError(
                f"shards={shards} does not divide {devices.size} devices: choose a divisor, or 0 for all"
            )
        return Mesh(devices.reshape(-1, shards), AXES, axis_types=(AxisType.Auto,) * 2)

    def spec(self, shape: tuple[int, ...], shards: int) -> PartitionSpec:
        """How an array of this shape is divided."""
        fitting = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
        if shards == 1 or not fitting or np.prod(shape) < self.smallest:
            return WHOLE
        _, longest = max(fitting)
        return PartitionSpec(*(None,) * longest, "shards")

    def shardings(self, tree: Any, mesh: Mesh | AbstractMesh | None = None) -> Any:
        """See `Launcher`; on another mesh than that of the devices at hand if there is one."""
        mesh = self.mesh if mesh is None else mesh
        shards = mesh.shape["shards"]
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self.spec(leaf.shape, shards)), tree)

    def spread(self, loss: Loss) -> Loss:
        """The loss of gathered parameters."""
        mesh = self.mesh
        if mesh.shape["shards"] == 1:
            return loss
        gather = _gather_from(mesh, lambda tree: self.shardings(tree, mesh))

        def gathered(params: Params, batch: Any, context: Context) -> Any:
            return loss(gather(params), batch, context._replace(ema_params=gather(context.ema_params)))

        return gathered

    def put(self, batches: Sequence[Any]) -> Any:
        """Joins the processes' shares to arrays split over all devices."""
        _check_rows(batches[0], self.mesh.size)
        if len(batches) == 1:
            return _join(batches[0], NamedSharding(self.mesh, PartitionSpec(AXES)))
        return _join(_stack(batches), NamedSharding(self.mesh, PartitionSpec(None, AXES)))

    def compile(self, step: Step, like: TrainState) -> Step:
        """Compiled for all devices at once; keys and metrics are whole on each."""
        whole, state = NamedSharding(self.mesh, WHOLE), self.shardings(like)
        return jax.jit(
            step, in_shardings=(state, None, whole), out_shardings=(state, whole), donate_argnums=0
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicated:
    """`pmap`: the whole state on every device, each of which takes the step on its part of the batch."""

    @property
    def mesh(self) -> Mesh:
        """All devices of all processes."""
        return data_mesh()

    def shardings(self, tree: Any) -> Any:
        """Whole on every device."""
        whole = replicated(self.mesh)
        return jax.tree.map(lambda _: whole, tree)

    def spread(self, loss: Loss) -> Loss:
        """The loss itself: `step.py` averages over devices."""
        return loss

    def put(self, batches: Sequence[Any]) -> Any:
        """[devices of this process, rows, ...], or [devices, batches, rows, ...]; `pmap` puts them in their places."""
        devices = jax.local_device_count()
        _check_rows(batches[0], jax.device_count())
        if len(batches) == 1:
            return jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batches[0])

        def split(leaf: np.ndarray) -> np.ndarray:
            return np.moveaxis(leaf.reshape(len(leaf), devices, -1, *leaf.shape[2:]), 1, 0)

        return jax.tree.map(split, _stack(batches))

    def compile(self, step: Step, like: TrainState) -> Step:
        """One program per device."""
        call = jax.pmap(step, axis_name="data", in_axes=(None, 0, None), out_axes=None, donate_argnums=0)
        if jax.process_count() == 1:
            return call
        whole = replicated(self.mesh)

        def widened(leaf: jax.Array) -> jax.Array:
            """What `pmap` gives a process is on its own devices; all processes hold the same."""
            copies = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, whole, copies)

        return lambda state, batch, key: jax.tree.map(widened, call(state, batch, key))


def whole() -> Sharded:
    """The batch split, the state whole on every device."""
    return Sharded(shards=1)


def bytes_per_device(tree: Any, launcher: Sharded, devices: int) -> int:
    """What one of so many devices holds of a state, of which the shapes suffice; nothing is allocated."""
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
    """Identity that makes arrays whole on every device, and divides their gradients as the arrays were."""

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
