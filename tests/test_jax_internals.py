"""The private names of JAX that the package uses exist in every supported version, 0.10 to 0.12.

This file has to pass with a new version of JAX before the range in `pyproject.toml` is widened.
"""

import itertools
import pathlib
import re
import subprocess
import sys
import tomllib

import jax

from lsgm_jax import jax_internals
from lsgm_jax.jax_internals import coordination_client, detect_cluster, process_id
from tests.on_one_machine import free_port

FIRST, BEYOND = (0, 10), (0, 13)  # supported are versions from FIRST on and below BEYOND
# `initialize` raises if a backend has been started. The client's methods are those that `distributed/` calls.
CLIENT = """
import jax
from lsgm_jax.jax_internals import coordination_client, process_id

assert process_id() == 0
assert coordination_client() is None
jax.distributed.initialize("localhost:{port}", num_processes=1, process_id=0)
assert process_id() == 0
client = coordination_client()
client.key_value_set("folder/0", "value")
client.wait_at_barrier("folder", 10_000)
assert client.key_value_dir_get("folder") == [("folder/0", "value")]
assert client.blocking_key_value_get("folder/0", 10_000) == "value"
try:
    client.key_value_set("folder/0", "other")
except jax.errors.JaxRuntimeError:
    print("a key is set once")
jax.distributed.shutdown()
assert coordination_client() is None
"""


def test_the_version_is_in_the_supported_range():
    assert FIRST <= jax.__version_info__[:2] < BEYOND


def test_the_project_requires_this_range():
    project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *itertools.chain(*extras)]
    ranges = [found[2] for line in lines if (found := re.fullmatch(r"jax(\[\w+\])? (.*)", line))]
    assert len(ranges) == 3
    assert set(ranges) == {">= {}.{}, < {}.{}".format(*FIRST, *BEYOND)}


def test_the_names_exist():
    assert type(jax_internals.global_state.process_id) is int
    assert hasattr(jax_internals.global_state, "client")
    assert callable(jax_internals.ClusterEnv.auto_detect_unset_distributed_params)
    assert callable(jax_internals._jax.get_distributed_runtime_service)


def test_a_single_process_has_index_0_and_no_client():
    assert process_id() == jax.process_index() == 0
    assert coordination_client() is None
    assert not jax.distributed.is_initialized()


def test_the_process_id_starts_no_backend_and_the_client_has_the_methods_used():
    program = CLIENT.format(port=free_port())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a key is set once\n"


def test_the_service_runs_apart_from_the_processes():
    """A client of another process finds it; that of process 0 listens in vain."""
    port = free_port()
    service = jax_internals.coordination_service(f"localhost:{port}", 1, 30)
    program = CLIENT.format(port=port).replace(
        "process_id=0)", "process_id=0, coordinator_bind_address='localhost:0')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    service.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a key is set once\n"


def test_without_a_cluster_nothing_is_detected(monkeypatch):
    monkeypatch.setattr(jax_internals.ClusterEnv, "_cluster_types", [])
    assert detect_cluster(1) == (None, None, None, None)


def test_the_variables_of_slurm_are_detected(monkeypatch):
    environment = {
        "SLURM_JOB_ID": "7000",
        "SLURM_STEP_NODELIST": "node[3-4]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = detect_cluster(1)
    assert (found.num_processes, found.process_id, found.local_device_ids) == (2, 1, [0])
    assert re.fullmatch(r"node3:\d+", str(found.coordinator_address))
