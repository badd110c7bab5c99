"""Where arrays live: batches are split over all devices, the state is on each of them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lsgm_jax.training.step import Step


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, "data".

    The axis type is Auto: under the default Explicit type diffrax and sampling scans raise.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Joins the processes' shares of a batch of host arrays into global arrays.

    Raises:
        ValueError: if the devices cannot share the batch evenly.
    """
    rows = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    if rows % mesh.size:
        raise ValueError(
            f"a batch of {rows} images does not divide over {mesh.size} devices: change data.batch_size"
        )
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(split_batch(mesh), np.asarray(leaf)), batch
    )


def compile_step(step: Step, mesh: Mesh) -> Step:
    """Compiles a step: state and key replicated, batch split, the old state's memory reused."""
    whole, split = replicated(mesh), split_batch(mesh)
    return jax.jit(step, in_shardings=(whole, split, whole), out_shardings=whole, donate_argnums=0)
