"""JAX's coordination service in a process of its own, which outlives process 0.

`jax.distributed.initialize` starts the service inside process 0. If that dies, JAX aborts all others at once, with a
page and signal 6. Here process 0 dies like any other process: those that live have the time to say so in a line.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import time
from typing import IO

from lsgm_jax.distributed.place import Place
from lsgm_jax.errors import ClusterError
from lsgm_jax.jax_internals import coordination_service

# An address for the service that `jax.distributed.initialize` starts in process 0 all the same; nobody calls it.
IDLE_ADDRESS = "localhost:0"
READY = b"ready\n"
END = b"end\n"
SECONDS_AFTER_END = 0.5  # in which the last answers arrive
SECONDS_AFTER_DEATH = 15.0  # in which the others notice the death of process 0 and end


def start(place: Place, heartbeat: int) -> None:
    """Starts the service; it ends with this process.

    Args:
        place: of process 0.
        heartbeat: seconds without a sign of life until JAX considers a process dead.

    Raises:
        ClusterError: if the service cannot listen at its address.
    """
    command = [sys.executable, "-m", __name__, place.bind, str(place.processes), str(heartbeat)]
    paths = os.pathsep.join(path for path in sys.path if path)
    service = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,  # ends with this process
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # signals to this process, such as Ctrl-C, are not for the service
    )
    assert service.stdin is not None
    assert service.stdout is not None
    atexit.register(_release, service.stdin)  # before JAX's handler, so it runs after
    if service.stdout.readline() != READY:
        raise ClusterError(
            f"JAX's coordination service cannot listen at {place.bind}: choose another coordinator"
        )


def _release(stdin: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        stdin.write(END)
        stdin.close()


def serve(address: str, processes: int, heartbeat: int) -> None:
    """Serves until process 0 has ended, and until the others have noticed that."""
    service = coordination_service(address, processes, heartbeat)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    orderly = sys.stdin.buffer.read(len(END)) == END
    time.sleep(SECONDS_AFTER_END if orderly else SECONDS_AFTER_DEATH)
    service.shutdown()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
