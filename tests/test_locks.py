"""A folder has one writer: the second is refused in one line, and the lock of a dead process does not stay."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from lsgm_jax import files, locks
from lsgm_jax.errors import LockedError
from lsgm_jax.locks import Lock, locked

HOLD = """
import fcntl, json, os, socket, sys, time
file = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
json.dump({"doing": "trained", "process": os.getpid(), "host": socket.gethostname()}, file)
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def lock(folder):
    return locked(folder, "trained", "choose another --workdir")


def refused(folder):
    """Returns the message with which the folder is refused."""
    with pytest.raises(LockedError) as caught, lock(folder):
        pass
    return str(caught.value)


@pytest.fixture(params=["flock", "no flock"])
def file_system(request, monkeypatch):
    """With locks of the kernel, and without."""

    def unsupported(descriptor, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", unsupported)
        monkeypatch.setattr(locks, "SECONDS_TO_SETTLE", 0.0)
    return request.param


def write_holder(folder, **changed):
    here = {"doing": "trained", "process": os.getpid(), "host": socket.gethostname()}
    (folder / ".lock").write_text(json.dumps(here | changed))


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_is_refused_and_the_first_goes_on(tmp_path, file_system):
    by = f"process {os.getpid()} on {socket.gethostname()}"
    expected = f"{tmp_path} is being trained by {by}: wait until it ends, or choose another --workdir"
    if file_system == "no flock":
        expected += f", or delete {tmp_path}/.lock if that process has ended"
    with lock(tmp_path) as first:
        assert [refused(tmp_path), refused(tmp_path)] == [expected, expected]
        first.check()
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path):
        pass


def test_the_kernel_frees_the_lock_of_a_killed_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert f"process {holder.pid} on {socket.gethostname()}" in refused(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / ".lock").exists()
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}', "\0" * 100])
def test_a_file_without_a_holder_does_not_lock(tmp_path, file_system, content):
    (tmp_path / ".lock").write_text(content)
    with lock(tmp_path):
        assert "is being trained" in refused(tmp_path)


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, file_system, dead):
    """Also of one that had our number, before a reboot."""
    for number in (dead, os.getpid()):
        write_holder(tmp_path, process=number)
        with lock(tmp_path):
            assert "is being trained" in refused(tmp_path)


def test_without_flock_a_process_of_another_host_is_believed(tmp_path, monkeypatch):
    """The message says what to delete. With flock, the kernel knows better."""
    write_holder(tmp_path, host="elsewhere", process=7)
    with lock(tmp_path):
        pass
    write_holder(tmp_path, host="elsewhere", process=7)
    monkeypatch.setattr(locks, "_has_flock", lambda descriptor: False)
    message = refused(tmp_path)
    assert "is being trained by process 7 on elsewhere" in message
    assert message.endswith(f"or delete {tmp_path}/.lock if that process has ended")


def test_without_flock_the_last_of_two_that_claim_at_once_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_has_flock", lambda descriptor: False)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: write_holder(tmp_path, process=1))
    assert "is being trained by process 1 on" in refused(tmp_path)


@pytest.mark.parametrize("change", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
def test_a_folder_that_is_moved_or_deleted_is_noticed(tmp_path, change):
    with lock(tmp_path / "run") as held:
        held.check()
        change(tmp_path / "run")
        with pytest.raises(LockedError, match=r"/run has been moved or deleted"):
            held.check()
        (tmp_path / "run").mkdir()  # another one in its place
        (tmp_path / "run" / ".lock").touch()
        with pytest.raises(LockedError, match=r"/run has been moved or deleted"):
            held.check()
    assert (tmp_path / "run" / ".lock").exists()


def test_a_new_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    found = refused(tmp_path / "file" / "run")
    assert re.fullmatch(r"cannot write to \S+/file/run \(Not a directory\): choose another --workdir", found)


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "is_first", lambda: False)
    with lock(tmp_path / "run") as held:
        assert held == Lock(tmp_path / "run", None)
        held.check()
    assert files.is_first()
    assert list(tmp_path.iterdir()) == []
