"""Every option of every command with values that nobody means: one line, status 2, no traceback."""

import argparse
import subprocess
import sys

import jax
import pytest

import lsgm_jax
from lsgm_jax.cli import commands
from lsgm_jax.cli import main as cli
from lsgm_jax.cli import parser as command_line
from lsgm_jax.errors import UsageError

HOSTILE = ["", "-1", "12345678901234567890", "nan", "²", "a\nb\r\x1b[2J\udcff"]
NOT_A_NUMBER = ["", "nan", "inf", "-inf", "1e999", "9" * 5000, "1_000", "0x10", "²", "٣", "ten", "a\nb", ","]
# Options that a command needs, with values that end it before it does anything.
NEEDED = {
    "--config": "nowhere.py",
    "--workdir": "nowhere",
    "--image": "nowhere.png",
    "--mask": "nowhere.png",
    "--checkpoint": "nowhere.pt",
    "--source": "nowhere",
}
POSITIONAL = {"data": ["prepare", "folder"]}


PARSER = command_line._make_parser()


@pytest.fixture(autouse=True)
def one_parser(monkeypatch):
    """Makes the parser once."""
    monkeypatch.setattr(command_line, "_make_parser", lambda: PARSER)


def subcommands():
    (found,) = (action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


def takes_value(action):
    return bool(action.option_strings) and action.nargs != 0


OPTIONS = [
    (name, action.option_strings[0])
    for name, parser in subcommands().items()
    for action in parser._actions
    if takes_value(action)
]
NUMBERS = [
    (name, action.option_strings[0])
    for name, parser in subcommands().items()
    for action in parser._actions
    if takes_value(action) and action.type not in (None, command_line._path, command_line._word)
]


def arguments(name, option, value):
    needed = {
        each: NEEDED[each]
        for action in subcommands()[name]._actions
        for each in action.option_strings
        if action.required and each in NEEDED
    }
    return [
        name,
        *POSITIONAL.get(name, ()),
        *(f"{key}={text}" for key, text in (needed | {option: value}).items()),
    ]


def error_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("lsgm: error: ")
    assert line.isprintable()
    return line


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_hostile_value_is_one_line(name, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in HOSTILE:
        assert cli.main(arguments(name, option, value)) == 2, value
        error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_what_is_no_finite_number_of_ascii_digits_is_refused_by_the_option(name, option):
    for value in NOT_A_NUMBER:
        with pytest.raises(UsageError, match=f"argument {option}: invalid "):
            command_line.parse(arguments(name, option, value))


@pytest.mark.parametrize("command", sorted({name for name, option in OPTIONS if option == "--seed"}))
@pytest.mark.parametrize("seed", ["-1", str(2**32), "12345678901234567890"])
def test_a_seed_has_32_bits(command, seed):
    with pytest.raises(UsageError, match=f"argument --seed: .*'{seed}': give 0 to 4294967295"):
        command_line.parse(arguments(command, "--seed", seed))


@pytest.mark.parametrize("seed", [0, 2**31, command_line.MOST_SEED])
def test_every_seed_is_one_of_jax(seed):
    key = jax.random.key_data(jax.random.key(seed))
    assert int(key[1]) == seed


@pytest.mark.parametrize("option", ["--nfe", "--rtol"])
def test_lists_of_numbers_are_read_by_the_same_rule(option):
    options = command_line.parse(["study", "--workdir=x", f"{option}=5,nan"])
    kind = {"--nfe": command_line.whole(1), "--rtol": command_line.real}[option]
    with pytest.raises(UsageError, match=f"{option}=5,nan: invalid .* with commas between"):
        command_line.numbers(kind, options, option[2:])


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lsgm {lsgm_jax.__version__}\n"


# The machine


NOBODY = """
import os, pwd, sys

def nobody(number):
    raise KeyError(number)

pwd.getpwuid = nobody  # as for a user without an entry in /etc/passwd
for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
    os.environ.pop(name, None)
from lsgm_jax.cli.main import _keep_compiled, main

_keep_compiled()
assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
sys.exit(main(["--help"]))
"""


def test_help_needs_no_home():
    done = subprocess.run([sys.executable, "-c", NOBODY], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lsgm train" in done.stdout


@pytest.mark.parametrize("home", ["/proc/nope", "/dev/null", "\x01"])
def test_a_home_that_cannot_be_written_keeps_nothing(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", f"{home}/cache" if home.startswith("/") else "/dev/null/x")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delitem(sys.modules, "jax")
    cli._keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in cli.os.environ


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': no\nmore")]
)
def test_a_platform_that_is_not_there_is_one_line(error, capsys, monkeypatch):
    """JAX says so by an assertion somewhere in a computation, or by a message of several lines."""

    def fail(*_):
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setitem(commands.COMMANDS, "params", fail)
    assert cli.main(["params", "--config=x"]) == 2
    assert "JAX_PLATFORMS=cuda: JAX finds no such device here" in error_line(capsys)


def test_an_error_of_our_own_is_still_raised(monkeypatch):
    def fail(_):
        raise AssertionError("ours")

    monkeypatch.setitem(commands.COMMANDS, "params", fail)
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["params", "--config=x"])
