"""Several real processes on one machine: rendezvous, barriers, agreement, errors, and batches split over processes."""

import re
import socket
import threading

import numpy as np
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.cli import parser as command_line
from lsgm_jax.data.pipeline import training_batches
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.distributed import launch, rendezvous
from lsgm_jax.distributed.rendezvous import Place
from lsgm_jax.errors import ClusterError
from tests.on_one_machine import JOIN, free_port, run_lsgm, run_program

TRAIN = ["train", "--config=configs/digits.py:quick"]
MET = """
import numpy as np
from jax.experimental import multihost_utils
from lsgm_jax.data.pipeline import training_batches
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.sharding import whole

assert launch.joined()
assert launch.is_first() == (process == 0)
launch.barrier("start")
launch.agree("weather", "fine")
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)

train = DataSpec(source="digits", image_shape=(10, 10, 1), levels=2, binarise="dynamic", flip=True, pad=1,
                 batch_size=16, data_dir={data_dir!r}).open("train")
batches = training_batches(train, 3)
for number in range(3):
    mine = next(batches)["x"]
    assert mine.shape == (8, 10, 10, 1)
    together = whole().put([Batch(mine)])
    np.save({data_dir!r} + f"/{{process}}-{{number}}", multihost_utils.process_allgather(together.x, tiled=True))

with launch.others_silent():
    print("heard from", process)
    print("warned by", process, file=sys.stderr)
try:
    launch.agree("number", str(process))
except launch.ClusterError as error:
    print(error, file=sys.stderr)
try:
    if process == 0:
        launch.barrier("meeting", timeout=1)
except launch.ClusterError as error:
    print(error, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def met(data_dir):
    """Two finished processes of two devices each that ran `MET`, and the folder of their batches."""
    (data_dir / "met").mkdir()
    return run_program(MET.format(data_dir=str(data_dir / "met"))), data_dir / "met"


def test_two_processes_meet(met):
    finished, _ = met
    assert [process.status for process in finished] == [0, 0], finished


def test_batches_of_two_processes_are_those_of_one(met):
    """Compares global batches, bit for bit."""
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


def test_only_the_first_process_prints(met):
    first, second = met[0]
    assert "heard from 0" in first.out
    assert "warned by 0" in first.err
    assert "heard from" not in second.out
    assert "warned by" not in second.err


def test_a_process_that_disagrees_is_named_in_all(met):
    for process in met[0]:
        assert "process 1 of 2 has another number than process 0: give all the same" in process.err


def test_a_process_missing_at_a_barrier_is_named(met):
    first, second = met[0]
    assert "process 1 of 2 did not arrive at the meeting within 1 s: see its output" in first.err
    assert "did not arrive" not in second.err


# Errors of the command, as users see them


def error_lines(process):
    return [line for line in process.err.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("present", "processes", "missing"),
    [((1,), 2, "process 0 of 2"), ((0, 2), 4, "processes 1, 3 of 4")],
)
def test_processes_missing_at_the_start_are_named_soon(tmp_path, present, processes, missing):
    """In one line of each present process, long before JAX's runtime would abort it."""
    arguments = [*TRAIN, f"--workdir={tmp_path}", "--timeout=2"]
    for process in run_lsgm(arguments, processes=processes, present=present, timeout=60):
        assert process.status == 2
        (line,) = error_lines(process)
        assert line.startswith(f"lsgm: error: {missing} did not arrive at localhost:")
        assert "within 2 s: see its output, or wait longer by --timeout" in line


def test_an_error_of_all_is_printed_once(tmp_path):
    first, second = run_lsgm([*TRAIN, f"--workdir={tmp_path}", "--config.data.batch_size=6"], timeout=60)
    assert first.status == second.status == 2
    assert error_lines(first) == ["lsgm: error: config.data.batch_size=6 does not divide over 4 devices"]
    assert error_lines(second) == []


FAILS = """
try:
    if process == 1:
        raise launch.ClusterError("this disk is full")
    launch.barrier("disks", timeout=60)
except launch.ClusterError as error:
    launch.stop(f"lsgm: error: {error}", 2)
"""


def test_an_error_of_one_ends_all_soon():
    """Processes that wait for the failed one end too; both print its line."""
    for process in run_program(FAILS):
        assert process.status == 2
        assert error_lines(process) == ["lsgm: error: this disk is full (in process 1 of 2)"]
        assert process.seconds < 30


DIES = """
import os, signal
from jax.experimental import multihost_utils

multihost_utils.sync_global_devices("here")
if process == {victim}:
    os.kill(os.getpid(), signal.{number})
try:
    multihost_utils.sync_global_devices("there")
except Exception as error:  # of JAX; its type depends on when the collective breaks
    launch.stop(f"lsgm: error: {{launch.lost(error)}}", 1)
"""


@pytest.mark.parametrize(("victim", "processes"), [(1, 2), (0, 3)])
def test_a_process_that_dies_in_a_collective_is_named_by_those_that_live(victim, processes):
    """Process 0 too, with which JAX alone would abort the others."""
    finished = run_program(DIES.format(victim=victim, number="SIGKILL"), processes=processes, devices=1)
    assert finished.pop(victim).status < 0
    for process in finished:
        assert process.status == 1
        (line,) = error_lines(process)
        assert line.startswith(f"lsgm: error: process {victim} of {processes} ended, or hangs (")
        assert process.seconds < 60


def test_an_exception_that_a_death_causes_ends_with_its_name():
    """In a program that does not catch it."""
    program = "from jax.experimental import multihost_utils as utils; utils.sync_global_devices('here')\n"
    died = "import os, signal; process or os.kill(os.getpid(), signal.SIGKILL)\n"
    _, second = run_program(program + died + "utils.sync_global_devices('there')", devices=1)
    assert second.status == 1
    assert error_lines(second)[-1].startswith("lsgm: error: process 0 of 2 ended, or hangs (")


@pytest.mark.slow
def test_a_process_that_hangs_in_a_collective_is_named_by_those_that_live():
    join = JOIN.replace("timeout=60", "timeout=10")
    program = DIES.format(victim=1, number="SIGSTOP")
    finished = run_program(program, processes=3, devices=1, join=join, timeout=50)
    finished.pop(1)
    for process in finished:
        assert process.status == 1
        (line,) = error_lines(process)
        assert line.startswith("lsgm: error: process 1 of 3 ended, or hangs (no sign of life for 10 s)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator=localhost:1"], "--coordinator goes with --processes and --process"),
        (["--process=0", "--processes=2"], "--processes goes with --coordinator"),
        (["--distributed", "--process=0"], "--distributed .*: .* --process"),
        (["--distributed", "--timeout=0"], "--timeout=0: give a positive number of seconds"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "processes are 0 to 1"),
        (
            ["--coordinator=localhost:70000", "--processes=2", "--process=0"],
            "'localhost:70000': give HOST:PORT",
        ),
        (["--coordinator=localhost", "--processes=2", "--process=1"], "'localhost': give HOST:PORT"),
        (["--distributed"], "found neither SLURM nor Open MPI nor a TPU's metadata: give --coordinator="),
    ],
)
def test_mistakes_in_the_options_are_one_line(options, message, capsys):
    assert cli.main([*TRAIN, "--workdir=none", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lsgm: error: ")
    assert re.search(message, line)


def test_commands_of_a_single_process_refuse_options_of_several():
    with pytest.raises(command_line.UsageError, match="does not know --distributed"):
        command_line.parse(["params", "--config=configs/digits.py", "--distributed"])


# The rendezvous alone


def meet(*places, timeout=1.0):
    """Runs the rendezvous of all places in threads; returns the error of each, or None."""
    outcomes = [None] * len(places)

    def wait(index, place):
        try:
            rendezvous.wait_for_all(place, timeout)
        except ClusterError as error:
            outcomes[index] = str(error)

    threads = [threading.Thread(target=wait, args=pair) for pair in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.fixture
def coordinator():
    return f"localhost:{free_port()}"


def test_any_number_of_processes_meets(coordinator):
    for count in (1, 2, 5):
        assert meet(*[Place(coordinator, count, number) for number in range(count)]) == [None] * count


def test_an_index_given_twice_is_refused_by_all(coordinator):
    places = [Place(coordinator, 3, number) for number in (0, 1, 1)]
    assert meet(*places) == ["process 1 of 3 was started twice: give each a number of its own"] * 3


def test_different_numbers_of_processes_are_refused_by_all(coordinator):
    error = "process 1 was started as one of 3, process 0 as one of 2: give all the same number"
    assert meet(Place(coordinator, 2, 0), Place(coordinator, 3, 1)) == [error, error]


def test_a_port_in_use_is_named(coordinator):
    port = int(coordinator.rpartition(":")[2])
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        (error,) = meet(Place(coordinator, 1, 0))
    assert re.match(rf"cannot listen on port {port} \(.*in use\): choose another coordinator", error)


def test_a_host_that_does_not_exist_is_named():
    (error,) = meet(Place("nowhere.invalid:1234", 2, 1), timeout=0.1)
    assert error.startswith(
        "process 0 of 2 did not arrive at nowhere.invalid:1234 within 0.1 s: see its output"
    )


def test_other_connections_to_the_port_do_not_count(coordinator):
    """After a port scan process 1 is still the missing one."""
    port = int(coordinator.rpartition(":")[2])

    def visit():
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"lsgm one two\n", b""):
            with socket.create_connection(("localhost", port), timeout=5) as connection:
                connection.sendall(words)

    visitor = threading.Timer(0.3, visit)
    visitor.start()
    (error,) = meet(Place(coordinator, 2, 0), timeout=1.5)
    visitor.join()
    assert error.startswith(f"process 1 of 2 did not arrive at {coordinator} within 1.5 s")


# Detection of the place of a process


def test_the_place_is_detected_from_slurm(monkeypatch):
    environment = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = launch.detect(1.0)
    assert (place.processes, place.process, place.devices) == (8, 5, (1,))
    assert place.address[0] == "gpu03"


def test_a_single_process_does_not_wait():
    assert launch.is_first()
    assert not launch.joined()
    launch.barrier("anywhere")
    launch.agree("anything", "goes")
