"""Device meshes, placement of arrays, and functions computed on all devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


@functools.cache
def data_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, with one axis, "data".

    The axis type is Auto: under the default Explicit type diffrax and sampling scans raise.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shapes_on(tree: Any, sharding: NamedSharding) -> Any:
    """Returns the shapes of arrays with a sharding, to compile for devices that are not at hand."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


class OverDevices:
    """Computes `function(params, batch, *rest)` on all devices, for evaluation and sampling.

    Arguments and results are host arrays. Every process passes the global batch and gets the global result. Parameters
    that are already on all devices, replicated or sharded, are not copied.

    Args:
        function: pure; returns a tree of arrays. It sees the global batch and one key, so its values depend on the
            number of devices only by rounding.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._jitted: dict[Mesh, Any] = {}

    def __call__(self, params: Any, batch: Any, *rest: Any) -> Any:
        """Returns the result; compiles on the first call.

        Raises:
            ValueError: if the batch does not divide evenly over the devices.
        """
        mesh = _mesh_of(params)
        return jax.tree.map(np.asarray, self._jit(mesh)(*_arguments(mesh, params, batch, rest)))

    def compile(self, params: Any, batch: Any, *rest: Any) -> Callable[..., Any]:
        """Compiles now, for arguments of these shapes, and returns the compiled call."""
        mesh = _mesh_of(params)
        compiled = self._jit(mesh).lower(*_arguments(mesh, params, batch, rest)).compile()

        def call(params: Any, batch: Any, *rest: Any) -> Any:
            return jax.tree.map(np.asarray, compiled(*_arguments(mesh, params, batch, rest)))

        return call

    def trace(self, mesh: Mesh, params: Any, batch: Any, *rest: Any) -> jax.stages.Traced:
        """Traces the call for the devices of a mesh, given shapes of the arguments; parameters are replicated."""
        everywhere, split = replicated(mesh), NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        shaped = [shapes_on(params, everywhere), shapes_on(batch, split), *shapes_on(rest, everywhere)]
        return self._jit(mesh).trace(*shaped)

    def _jit(self, mesh: Mesh) -> Any:
        if mesh not in self._jitted:
            everywhere = replicated(mesh)

            def gathered(params: Any, *rest: Any) -> Any:
                return self._function(jax.lax.with_sharding_constraint(params, everywhere), *rest)

            self._jitted[mesh] = jax.jit(gathered, out_shardings=everywhere)
        return self._jitted[mesh]


def shared_count(count: int) -> int:
    """Rounds a count up to a multiple of the number of devices."""
    return count + -count % jax.device_count()


def _arguments(mesh: Mesh, params: Any, batch: Any, rest: tuple[Any, ...]) -> tuple[Any, ...]:
    return place(mesh, params), _spread(mesh, batch), *place(mesh, rest)


def _mesh_of(tree: Any) -> Mesh:
    """Returns the mesh of the arrays if there is one and it has all devices; otherwise `data_mesh()`."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    meshes = {sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)}
    meshes = {mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.size == jax.device_count()}
    return meshes.pop() if len(meshes) == 1 else data_mesh()


def place(mesh: Mesh, tree: Any) -> Any:
    """Replicates every array on the devices of the mesh; arrays already on the mesh keep their sharding.

    Args:
        mesh: of all devices.
        tree: arrays, the same in all processes.
    """
    everywhere = replicated(mesh)

    def copy(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            return jax.device_put(leaf, everywhere)
        if isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, everywhere)
        # `device_put` of keys fails across processes.
        data = jax.device_put(jax.random.key_data(leaf), everywhere)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(copy, tree)


def _spread(mesh: Mesh, batch: Any) -> Any:
    """Splits a batch that every process holds over the devices."""
    rows = len(jax.tree.leaves(batch)[0])
    if rows % mesh.size:
        raise ValueError(f"a batch of {rows} does not divide over {mesh.size} devices")
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def spread(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, split, lambda index: host[index])

    return jax.tree.map(spread, batch)
