"""Signals: the first one is a request, the second one ends the process whatever it does."""

import signal
import subprocess
import sys
import time

import pytest

from lsgm_jax.distributed.preemption import Termination, ended_by_second_signal

HANGS = """
import threading
from lsgm_jax.distributed.preemption import Termination, ended_by_second_signal
with ended_by_second_signal(), Termination():
    print("ready", flush=True)
    lock = threading.Lock()
    lock.acquire()
    while True:
        lock.acquire()  # for ever; a handler of Python runs, and it waits again
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted(number):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with ended_by_second_signal(), Termination() as termination:
        assert not termination.due()
        signal.raise_signal(number)
        assert termination.due()
        assert termination.number is number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_the_second_signal_ends_a_process_that_hangs(numbers):
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(numbers[0])
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(numbers[1])
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + numbers[1]
    assert err.strip() == f"lsgm: ended by a second signal, {numbers[1].name}; what is not saved is lost"


def test_signals_of_one_command_do_not_count_for_the_next():
    for _ in range(3):
        with ended_by_second_signal(), Termination() as termination:
            signal.raise_signal(signal.SIGINT)
            assert termination.due()
