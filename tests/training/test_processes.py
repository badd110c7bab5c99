"""Processes that compute together: they join, wait, agree, fail, and make one batch; real ones, on this machine."""

import pytest

from tests.on_one_machine import run_program

TRAIN = ["train", "--config=configs/digits.py:quick"]
MET = """
import numpy as np
from jax.experimental import multihost_utils
from lsgm_jax.data.pipeline import training_batches
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.models.bound import Batch
from lsgm_jax.training import parallel

assert cluster.joined()
assert cluster.is_first() == (process == 0)
cluster.barrier("start")
cluster.agree("weather", "fine")
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)

train = DataSpec(source="digits", image_shape=(10, 10, 1), levels=2, binarise="dynamic", flip=True, pad=1,
                 batch_size=16, data_dir={data_dir!r}).open("train")
batches, mesh = training_batches(train, 3), parallel.data_mesh()
for number in range(3):
    mine = next(batches)["x"]
    assert mine.shape == (8, 10, 10, 1)
    whole = parallel.put_batch(mesh, Batch(mine))
    np.save({data_dir!r} + f"/{{process}}-{{number}}", multihost_utils.process_allgather(whole.x, tiled=True))

with cluster.others_silent():
    print("heard from", process)
    print("warned by", process, file=sys.stderr)
try:
    cluster.agree("number", str(process))
except cluster.ClusterError as error:
    print(error, file=sys.stderr)
try:
    if process == 0:
        cluster.barrier("meeting", timeout=1)
except cluster.ClusterError as error:
    print(error, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def met(data_dir):
    """Two processes of two devices each that have run `MET`, and where they left their batches."""
    (data_dir / "met").mkdir()
    return run_program(MET.format(data_dir=str(data_dir / "met"))), data_dir / "met"


def test_two_processes_meet(met):
    finished, _ = met
    assert [process.status for process in finished] == [0, 0], finished


def test_batches_of_two_processes_are_those_of_one(met):
    """As all devices hold them together, bit for bit."""
    import numpy as np

    from lsgm_jax.data.pipeline import training_batches
    from lsgm_jax.data.spec import DataSpec

    spec = DataSpec(
        source="digits",
        image_shape=(10, 10, 1),
        levels=2,
        binarise="dynamic",
        flip=True,
        pad=1,
        batch_size=16,
        data_dir=str(met[1]),
    )
    alone = training_batches(spec.open("train"), 3)
    for number in range(3):
        expected = next(alone)["x"]
        for process in range(2):
            np.testing.assert_array_equal(np.load(met[1] / f"{process}-{number}.npy"), expected)


def test_the_first_process_speaks_for_all(met):
    first, second = met[0]
    assert "heard from 0" in first.out
    assert "warned by 0" in first.err
    assert "heard from" not in second.out
    assert "warned by" not in second.err


def test_who_disagrees_is_named_in_all(met):
    for process in met[0]:
        assert "process 1 of 2 has another number than process 0: give all the same" in process.err


def test_who_is_not_at_a_barrier_is_named(met):
    first, second = met[0]
    assert "process 1 of 2 did not arrive at the meeting within 1 s: see its output" in first.err
    assert "did not arrive" not in second.err
