"""Everything that the package takes from `jax._src`, for JAX 0.10 to 0.12.

JAX has no public counterpart: `jax.process_index` starts a backend, which is too early before
`jax.distributed.initialize`; the client of the coordination service, the service apart from a process of the run, and
the detection of a cluster are not exported.
`tests/test_jax_internals.py` checks that these names exist and behave as described here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]


def process_id() -> int:
    """Returns the index of this process, 0 if it is the only one. Starts no backend."""
    return global_state.process_id


def coordination_client() -> Any:
    """Returns the client of JAX's coordination service (key-value store and barriers).

    None before `jax.distributed.initialize` and after `jax.distributed.shutdown`.
    """
    return global_state.client


def coordination_service(address: str, processes: int, heartbeat: int) -> Any:
    """Starts JAX's coordination service in this process, and returns it; it serves while it is referenced.

    Args:
        address: HOST:PORT to listen at.
        processes: number of processes of the run.
        heartbeat: seconds without a sign of life until a process counts as dead.
    """
    return _jax.get_distributed_runtime_service(address, processes, heartbeat_timeout=heartbeat)


class DetectedCluster(NamedTuple):
    """The arguments of `jax.distributed.initialize`; None for those that the environment does not define."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    local_device_ids: Sequence[int] | None


def detect_cluster(timeout: int) -> DetectedCluster:
    """Returns what JAX detects from SLURM, Open MPI, Kubernetes or the metadata of a TPU.

    Args:
        timeout: seconds to wait for the coordinator's address, which a TPU looks up by name.
    """
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    return DetectedCluster(*found)
