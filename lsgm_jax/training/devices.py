"""Where arrays live: meshes of all devices, and functions that are computed on all of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


@functools.cache
def data_mesh() -> Mesh:
    """All devices of all processes along one axis, "data".

    The axis type is Auto: under the default Explicit type diffrax and sampling scans raise.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


class OverDevices:
    """`function(params, batch, *rest)` over all devices, for scores and samples: batch in, batch out.

    It takes and gives host arrays; every process gives the whole batch and gets the whole result. Parameters that lie
    on all devices already, whole or divided, are not copied.

    Args:
        function: pure; returns a tree of arrays. It sees the whole batch and one key, so its numbers do not depend on
            the devices but by rounding.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._jitted: dict[Mesh, Any] = {}

    def __call__(self, params: Any, batch: Any, *rest: Any) -> Any:
        """The result, compiled when it is needed first.

        Raises:
            ValueError: if the devices cannot share the batch evenly.
        """
        mesh = _mesh_of(params)
        return jax.tree.map(np.asarray, self._jit(mesh)(*_arguments(mesh, params, batch, rest)))

    def compile(self, params: Any, batch: Any, *rest: Any) -> Callable[..., Any]:
        """The call for arguments like these, compiled at once."""
        mesh = _mesh_of(params)
        compiled = self._jit(mesh).lower(*_arguments(mesh, params, batch, rest)).compile()

        def call(params: Any, batch: Any, *rest: Any) -> Any:
            return jax.tree.map(np.asarray, compiled(*_arguments(mesh, params, batch, rest)))

        return call

    def _jit(self, mesh: Mesh) -> Any:
        if mesh not in self._jitted:
            whole = replicated(mesh)

            def gathered(params: Any, *rest: Any) -> Any:
                return self._function(jax.lax.with_sharding_constraint(params, whole), *rest)

            self._jitted[mesh] = jax.jit(gathered, out_shardings=whole)
        return self._jitted[mesh]


def shared_count(count: int) -> int:
    """At least so many, in numbers that all devices can share."""
    return count + -count % jax.device_count()


def _arguments(mesh: Mesh, params: Any, batch: Any, rest: tuple[Any, ...]) -> tuple[Any, ...]:
    return place(mesh, params), _spread(mesh, batch), *place(mesh, rest)


def _mesh_of(tree: Any) -> Mesh:
    """The one on which the arrays lie, if that is of all devices; otherwise `data_mesh`."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    meshes = {sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)}
    meshes = {mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.size == jax.device_count()}
    return meshes.pop() if len(meshes) == 1 else data_mesh()


def place(mesh: Mesh, tree: Any) -> Any:
    """Every array on every device of the mesh: a whole copy, unless it lies there already, whole or divided.

    What processes hand over has to be the same in all.
    """
    whole = replicated(mesh)

    def copy(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            return jax.device_put(leaf, whole)
        if isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh:
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
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def spread(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, split, lambda index: host[index])

    return jax.tree.map(spread, batch)
