"""The rendezvous against silent, slow, mistaken and hostile visitors and servers; threads stand for processes."""

import contextlib
import socket
import threading
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from lsgm_jax.distributed import handshake, port, rendezvous
from lsgm_jax.distributed.handshake import Hello, Outcome
from lsgm_jax.distributed.place import Place
from lsgm_jax.errors import ClusterError
from tests.on_one_machine import free_port


@pytest.fixture
def address():
    return "127.0.0.1", free_port()


def place(address, process, processes=2):
    return Place(f"{address[0]}:{address[1]}", processes, process)


class Waiting(threading.Thread):
    """A process that waits for the others; `outcome` is its error, or None."""

    def __init__(self, where, timeout, token=""):
        super().__init__()
        self.arguments, self.outcome, self.seconds, self.connections = (where, timeout, token), None, 0.0, {}
        self.start()

    def run(self):
        begin = time.monotonic()
        try:
            self.connections = rendezvous.wait_for_all(*self.arguments)
        except ClusterError as error:
            self.outcome = str(error)
        self.seconds = time.monotonic() - begin

    def ended(self):
        self.join()
        for connection in self.connections.values():
            connection.close()
        return self.outcome


def visit(address):
    """Connects as soon as the port is open."""
    until = time.monotonic() + 10.0
    while True:
        try:
            return socket.create_connection(address, timeout=5.0)
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.02)


def say(address, *, process, processes, token=""):
    """Introduces itself as a process; returns the connection, and what it knows of the other side."""
    connection = visit(address)
    theirs, mine = handshake.read_greeting(connection.recv(100)), handshake.challenge()
    connection.sendall(handshake.hello(Hello(process, processes, mine), theirs, token))
    return connection, mine, theirs


def dribble(connection, text, pause, until):
    """Sends a byte at a time."""
    with contextlib.suppress(OSError):
        for byte in text:
            connection.sendall(bytes([byte]))
            if until.wait(pause):
                return


# Visitors of process 0


def test_fifty_silent_visitors_delay_nobody(address):
    first = Waiting(place(address, 0), 20.0)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(visit(address))
        assert Waiting(place(address, 1), 20.0).ended() is None
        assert first.ended() is None
    assert first.seconds < 10.0


def test_more_visitors_than_the_port_holds_dismiss_the_oldest(address, monkeypatch):
    monkeypatch.setattr(port, "MOST_VISITORS", 4)
    first = Waiting(place(address, 0), 20.0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(visit(address)) for _ in range(9)]
        assert Waiting(place(address, 1), 20.0).ended() is None
        assert first.ended() is None
        assert silent[0].recv(100).startswith(b"lsgm ")  # the greeting
        assert silent[0].recv(100) == b""


@pytest.mark.parametrize("text", [b"lsgm 0123456789abcdef" * 9, b"x" * 10_000])
def test_the_deadline_holds_while_a_visitor_speaks_slowly(address, text):
    over = threading.Event()
    first = Waiting(place(address, 0), 1.0)
    slow = threading.Thread(target=dribble, args=(visit(address), text, 0.1, over))
    slow.start()
    assert first.ended().startswith("process 1 of 2 did not arrive")
    over.set()
    slow.join()
    assert first.seconds < 2.5


def test_a_visitor_that_says_too_much_is_dismissed(address):
    first = Waiting(place(address, 0), 20.0)
    with visit(address) as connection, contextlib.suppress(ConnectionResetError):
        connection.sendall(b"x" * 1000)
        while connection.recv(1000):
            pass
    assert Waiting(place(address, 1), 20.0).ended() is None
    assert first.ended() is None


def test_random_bytes_do_not_count(address):
    """The process arrives among them."""
    first = Waiting(place(address, 0), 30.0)

    @hypothesis.settings(max_examples=30, deadline=None)
    @hypothesis.given(st.one_of(st.binary(max_size=600), st.from_regex(rb"lsgm [0-9a-f ]*\n")))
    def babble(text):
        with visit(address) as connection, contextlib.suppress(OSError):
            connection.sendall(text)

    babble()
    assert first.is_alive()
    assert Waiting(place(address, 1), 30.0).ended() is None
    assert first.ended() is None


@pytest.mark.parametrize(("process", "processes"), [(0, 2), (2, 2), (9_999_999, 2)])
def test_a_process_that_cannot_be_does_not_count(address, process, processes):
    first = Waiting(place(address, 0), 20.0)
    connection, _, _ = say(address, process=process, processes=processes)
    with connection:
        assert connection.recv(100) == b""
    assert Waiting(place(address, 1), 20.0).ended() is None
    assert first.ended() is None


def test_a_process_that_is_started_again_counts_once(address):
    first = Waiting(place(address, 0, 3), 20.0)
    say(address, process=1, processes=3)[0].close()
    time.sleep(0.3)
    again = Waiting(place(address, 1, 3), 20.0)
    assert Waiting(place(address, 2, 3), 20.0).ended() is None
    assert (again.ended(), first.ended()) == (None, None)


def test_the_port_is_open_at_the_coordinators_address_alone(address):
    first = Waiting(place(address, 0), 1.0)
    visit(address).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", address[1]), timeout=1.0)
    first.ended()


def test_a_coordinator_elsewhere_is_refused_by_process_0():
    outcome = Waiting(Place("192.0.2.1:1234", 2, 0), 1.0).ended()
    assert outcome.startswith("cannot listen at 192.0.2.1, which is no address of this machine")


def test_the_address_to_listen_at_may_be_another_one(address, monkeypatch):
    """Behind a translation of addresses, say, by JAX's own variable."""
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"127.0.0.2:{address[1]}")
    first = Waiting(place(address, 0), 1.0)
    visit(("127.0.0.2", address[1])).close()
    assert first.ended().startswith("process 1 of 2 did not arrive")


# The token


def test_processes_with_the_same_token_meet(address):
    first = Waiting(place(address, 0), 20.0, "secret")
    assert Waiting(place(address, 1), 20.0, "secret").ended() is None
    assert first.ended() is None


@pytest.mark.parametrize("token", ["", "Secret", "secrets"])
def test_a_process_with_another_token_is_refused_and_the_others_go_on(address, token):
    first = Waiting(place(address, 0), 20.0, "secret")
    outcome = Waiting(place(address, 1), 20.0, token).ended()
    assert "has another LSGM_CLUSTER_TOKEN" in outcome
    assert Waiting(place(address, 1), 20.0, "secret").ended() is None
    assert first.ended() is None


def test_a_recorded_introduction_is_useless_later(address):
    first = Waiting(place(address, 0), 1.5, "secret")
    with visit(address) as connection:
        connection.recv(100)
        connection.sendall(handshake.hello(Hello(1, 2, "0" * 32), "0" * 32, "secret"))
        assert connection.recv(100) == handshake.REFUSED
    assert first.ended().startswith("process 1 of 2 did not arrive")


def test_the_token_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    assert handshake.cluster_token() == ""
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("LSGM_CLUSTER_TOKEN_FILE", str(tmp_path / "token"))
    assert handshake.cluster_token() == "from a file"
    monkeypatch.setenv("LSGM_CLUSTER_TOKEN", "from a variable")
    assert handshake.cluster_token() == "from a variable"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_token_that_protects_nothing_is_refused(tmp_path, content, monkeypatch):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    monkeypatch.setenv("LSGM_CLUSTER_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ClusterError, match="LSGM_CLUSTER_TOKEN_FILE="):
        handshake.cluster_token()


@pytest.mark.parametrize(
    ("host", "token", "warned"),
    [("localhost", "", 0), ("127.0.0.1", "", 0), ("0.0.0.0", "", 1), ("0.0.0.0", "s", 0)],
)
def test_a_port_for_other_machines_without_a_token_is_warned_of(host, token, warned, capsys):
    Waiting(Place(f"{host}:{free_port()}", 2, 0), 0.1, token).ended()
    assert capsys.readouterr().err.count("lsgm: warning: without LSGM_CLUSTER_TOKEN") == warned


# What a process accepts from the other side


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    st.one_of(st.binary(max_size=600), st.from_regex(rb"lsgm [a-z0-9, ]{0,200}\n", fullmatch=True)), st.text()
)
def test_no_random_line_is_an_outcome(line, token):
    mine, theirs = handshake.challenge(), handshake.challenge()
    assert handshake.read_outcome(line, mine, theirs, token) is None
    try:
        assert handshake.read_hello(line, mine, token) is None
    except PermissionError:
        assert line.startswith(b"lsgm ")


@hypothesis.given(
    st.sampled_from(
        [
            Outcome("complete"),
            Outcome("missing", (2, 1, 4)),
            Outcome("twice", (7,)),
            Outcome("differs", (1, 3, 2)),
        ]
    ),
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
)
def test_an_outcome_arrives_as_it_was_sent(outcome, token):
    mine, theirs = handshake.challenge(), handshake.challenge()
    line = handshake.outcome_line(outcome, mine, theirs, token)
    assert len(line) <= handshake.LONGEST_LINE
    assert handshake.read_outcome(line, mine, theirs, token) == outcome
    assert handshake.read_outcome(line, mine, theirs, token + "x") is None
    assert handshake.read_outcome(line, theirs, mine, token) is None


@pytest.fixture
def server(address):
    """A server at the coordinator's address that sends what a test wants."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(address))
        over = threading.Event()
        stack.callback(over.set)

        def serve(*texts, pause=0.0):
            def run():
                with contextlib.suppress(OSError):
                    while not over.is_set():
                        connection, _ = listener.accept()
                        with connection:
                            connection.settimeout(2.0)
                            for text in texts:
                                dribble(connection, text, pause, over) if pause else connection.sendall(text)
                                connection.recv(1000)

            threading.Thread(target=run, daemon=True).start()

        yield serve


GREETING = b"lsgm " + b"0" * 32 + b"\n"
HOSTILE = b"\x1b]0;owned\x07\x1b[2J\r\nlsgm: error: run rm -rf\n"


@pytest.mark.parametrize(
    "texts",
    [
        (HOSTILE,),
        (GREETING, HOSTILE),
        (GREETING, b"lsgm missing 1,1 " + b"0" * 64 + b"\n"),
        (GREETING, b"lsgm differs 1 " + b"0" * 64 + b"\n"),
        (GREETING, b"x" * 5000),
    ],
)
def test_nothing_that_a_server_sends_is_printed(address, server, texts):
    server(*texts)
    outcome = Waiting(place(address, 1), 1.0).ended()
    assert outcome.isprintable()
    assert "owned" not in outcome
    assert "rm" not in outcome


@pytest.mark.parametrize("texts", [(b"lsgm " + b"0" * 500,), (GREETING, b"lsgm " + b"0" * 500)])
def test_the_deadline_holds_while_a_server_speaks_slowly(address, server, texts, monkeypatch):
    monkeypatch.setattr(rendezvous, "SECONDS_TO_SPEAK", 0.5)
    server(*texts, pause=0.03)
    process = Waiting(place(address, 1), 2.0)
    assert process.ended() is not None
    assert process.seconds < 6.0
