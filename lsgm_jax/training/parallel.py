"""Where arrays live: batches are split over all devices, the state is on each of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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


def over_devices(function: Callable[..., Any], mesh: Mesh | None = None) -> Callable[..., Any]:
    """Compiles `function(params, batch, *rest)` over all devices, for scores and samples: batch in, batch out.

    Args:
        function: pure; returns a tree of arrays. It sees the whole batch and one key, so its numbers do not depend on
            the devices but by rounding.
        mesh: `data_mesh` if left out.

    Returns:
        The same function of host arrays, with numpy arrays for results. Every process gives the whole batch and gets
        the whole result. Parameters that lie on the mesh already (`place`) are not copied.

    Raises:
        ValueError: when called, if the devices cannot share the batch evenly.
    """
    mesh = data_mesh() if mesh is None else mesh
    compiled = jax.jit(function, out_shardings=replicated(mesh))

    def call(params: Any, batch: Any, *rest: Any) -> Any:
        results = compiled(place(mesh, params), _spread(mesh, batch), *place(mesh, rest))
        return jax.tree.map(np.asarray, results)

    return call


def place(mesh: Mesh, tree: Any) -> Any:
    """A whole copy of every array on every device. What processes hand over has to be the same in all."""
    whole = replicated(mesh)

    def copy(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            return jax.device_put(leaf, whole)
        if leaf.sharding == whole:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, whole)
        data = jax.device_put(jax.random.key_data(leaf), whole)  # keys themselves do not cross processes
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(copy, tree)


def _spread(mesh: Mesh, batch: Any) -> Any:
    """A batch that every process holds, split over the devices."""
    rows = len(jax.tree.leaves(batch)[0])
    if rows % mesh.size:
        raise ValueError(f"a batch of {rows} does not divide over {mesh.size} devices")

    def spread(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, split_batch(mesh), lambda index: host[index])

    return jax.tree.map(spread, batch)
