"""The three lines of the rendezvous, and the token that signs them.

    process 0 to a visitor:  lsgm CHALLENGE
    the visitor's reply:     lsgm CHALLENGE PROCESS PROCESSES SIGNATURE
    process 0, at the end:   lsgm OUTCOME NUMBER,NUMBER,... SIGNATURE

Each signature is an HMAC-SHA256 over both challenges, so neither side sends the token, a line of one connection is
useless in another, and each side knows that the other one has the token. Without a token the key is empty: the lines
then only keep out what is no process of a run. What arrives is parsed into words and numbers of this module; no text
from the network is ever printed.
"""

import hmac
import os
import pathlib
import re
import secrets
from typing import NamedTuple

from lsgm_jax.errors import ClusterError, reason

TOKEN, TOKEN_FILE = "LSGM_CLUSTER_TOKEN", "LSGM_CLUSTER_TOKEN_FILE"
LONGEST_LINE = 512  # bytes
_GREETING = re.compile(rb"lsgm ([0-9a-f]{32})\n")
_HELLO = re.compile(rb"lsgm ([0-9a-f]{32}) ([0-9]{1,7}) ([0-9]{1,7}) ([0-9a-f]{64})\n")
_NUMBERS = {"complete": "", "missing": "N(?:,N){1,16}", "twice": "N", "differs": "N,N,N"}
_OUTCOME = re.compile(
    "lsgm (?P<outcome>{}) (?P<signature>[0-9a-f]{{64}})\n".format(
        "|".join(f"{word} {numbers}" for word, numbers in _NUMBERS.items()).replace("N", "[0-9]{1,7}")
    ).encode()
)
REFUSED = b"lsgm refused\n"  # to a visitor whose signature is of another token


class Hello(NamedTuple):
    """What a visitor says of itself."""

    process: int
    processes: int
    challenge: str


class Outcome(NamedTuple):
    """How a rendezvous ended.

    Attributes:
        word: "complete"; "missing", with how many processes did not arrive and the first 16 of them; "twice", with the
            process that arrived twice; "differs", with a process, and the numbers of processes that it and process 0
            were started with.
        numbers: see there.
    """

    word: str
    numbers: tuple[int, ...] = ()


def cluster_token() -> str:
    """Returns the token of the environment, that all processes of a run share; "" without one.

    Raises:
        ClusterError: for an empty token, or a file that cannot be read.
    """
    path = os.environ.get(TOKEN_FILE)
    token, name = os.environ.get(TOKEN), TOKEN
    if token is None and path is not None:
        name = f"{TOKEN_FILE}={path}"
        try:
            token = pathlib.Path(path).expanduser().read_text()
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise ClusterError(f"{name} cannot be read: {reason(error)}") from error
    if token is not None and not token.strip():
        raise ClusterError(f"{name} is empty: give all processes the same secret, or none")
    return (token or "").strip()


def challenge() -> str:
    """Returns a random text that is signed once."""
    return secrets.token_hex(16)


def greeting(mine: str) -> bytes:
    """Returns the line with which process 0 greets a visitor."""
    return f"lsgm {mine}\n".encode()


def read_greeting(line: bytes) -> str | None:
    """Returns the challenge of process 0; None if the line is no greeting."""
    found = _GREETING.fullmatch(line)
    return found and found[1].decode()


def hello(said: Hello, theirs: str, token: str) -> bytes:
    """Returns the line with which a process introduces itself.

    Args:
        theirs: the challenge of process 0.
    """
    words = [said.challenge, str(said.process), str(said.processes)]
    return f"lsgm {' '.join(words)} {_sign(token, 'hello', theirs, *words)}\n".encode()


def read_hello(line: bytes, mine: str, token: str) -> Hello | None:
    """Returns what a visitor says; None if the line is none of a run.

    Args:
        mine: the challenge of process 0, which greeted it.

    Raises:
        PermissionError: if the line is signed with another token.
    """
    if (found := _HELLO.fullmatch(line)) is None:
        return None
    *words, signature = (word.decode() for word in found.groups())
    if not hmac.compare_digest(signature, _sign(token, "hello", mine, *words)):
        raise PermissionError
    said = Hello(int(words[1]), int(words[2]), words[0])
    return said if 0 < said.process < said.processes else None


def outcome_line(outcome: Outcome, theirs: str, mine: str, token: str) -> bytes:
    """Returns the line that ends the rendezvous.

    Args:
        theirs: the challenge of the process that gets the line.
        mine: the challenge of process 0.
    """
    said = f"{outcome.word} {','.join(map(str, outcome.numbers))}"
    return f"lsgm {said} {_sign(token, 'outcome', theirs, mine, said)}\n".encode()


def read_outcome(line: bytes, mine: str, theirs: str, token: str) -> Outcome | None:
    """Returns how the rendezvous ended; None if the line does not say so, or is signed with another token."""
    if (found := _OUTCOME.fullmatch(line)) is None:
        return None
    said, signature = found["outcome"].decode(), found["signature"].decode()
    if not hmac.compare_digest(signature, _sign(token, "outcome", mine, theirs, said)):
        return None
    word, _, numbers = said.partition(" ")
    return Outcome(word, tuple(int(number) for number in numbers.split(",") if number))


def _sign(token: str, *words: str) -> str:
    return hmac.new(token.encode(), " ".join(words).encode(), "sha256").hexdigest()
