"""The `lsgm` command: how it starts, and how it ends, whatever happens."""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import NoReturn

from lsgm_jax.cli.console import plain
from lsgm_jax.cli.parser import TOGETHER, parse, place
from lsgm_jax.errors import UsageError, UserError, first_line, printable


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 2 for what the user can mend, 1 for results that are not finite.

    Args:
        arguments: None for those of this process, which then ends after a failure.
    """
    with plain():
        status = _status(sys.argv[1:] if arguments is None else arguments)
    if status and arguments is None:
        _leave(status)
    return status


def _leave(status: int) -> NoReturn:
    """Ends the process without waiting for threads of libraries, some of which wait for minutes after a failure."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _status(arguments: list[str]) -> int:
    _quieten()
    try:
        _find_modules_here()
        options = parse(arguments)
        _keep_compiled()
        return _run(options)
    except UserError as error:
        return _fail(error)
    except KeyboardInterrupt:
        goes_on = "starts again" if arguments[:1] == ["data"] else "continues from the last checkpoint"
        return _end(f"lsgm: interrupted; the same command {goes_on}", 130)


def _find_modules_here() -> None:
    """Import paths of a config may name modules of the current folder, after all installed ones."""
    with contextlib.suppress(FileNotFoundError):  # the folder has been deleted
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)


def _run(options: argparse.Namespace) -> int:
    # Here and below, not at the top: --help and usage errors should not wait for JAX.
    from lsgm_jax.cli.commands import COMMANDS
    from lsgm_jax.distributed import launch
    from lsgm_jax.distributed.preemption import StoppedError, ended_by_second_signal

    try:
        with ended_by_second_signal(), _processes(options):
            COMMANDS[options.command](options)
    except UserError as error:
        return _fail(error)
    except StoppedError as error:
        return _end(f"lsgm: {error}", 128 + error.number)
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except Exception as error:
        _refuse_platform()
        if not launch.joined():
            raise
        if (line := launch.lost(error)) is not None:
            return _end(f"lsgm: error: {line}", 1)
        traceback.print_exc()
        return _end(f"lsgm: error: {type(error).__name__}, see above", 1)
    return 0


def _refuse_platform() -> None:
    """Explains an error that only follows from JAX having no device.

    Raises:
        UsageError: if JAX has none.
    """
    import jax

    try:
        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS") or "(not set)"
        reason = f" ({first_line(error)})" if str(error) else ""
        raise UsageError(
            f"JAX_PLATFORMS={platforms}: JAX finds no such device here{reason}: install JAX for it, "
            "or set JAX_PLATFORMS=cpu"
        ) from error


@contextlib.contextmanager
def _processes(options: argparse.Namespace) -> Iterator[None]:
    """Makes this process one of several where the options say so; then the first one speaks for all."""
    if options.command not in TOGETHER or (place(options) is None and not options.distributed):
        yield
        return
    from lsgm_jax.distributed import launch

    given = place(options)
    where, saves = launch.Place(**given) if given else None, options.command == "train"
    launch.join(where, options.timeout, notes_sigterm=saves)
    same = {name: str(value) for name, value in vars(options).items() if name != "process"}
    launch.agree("command", json.dumps(same))
    with launch.others_silent():
        yield
    launch.barrier("end")


def _quieten() -> None:
    """Libraries' chatter would drown the one line that matters."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "asyncio", "matplotlib"):  # what they call an error is raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="tensorflow_datasets")
    # A full disk is reported by the command; threads and exit handlers that meet it too would add their tracebacks.
    threading.excepthook = lambda args: _is_echo(args.exc_value) or threading.__excepthook__(args)
    sys.unraisablehook = lambda args: None  # what nobody can catch, nobody waits for
    sys.excepthook = lambda kind, error, trace: _is_echo(error) or sys.__excepthook__(kind, error, trace)


def _keep_compiled() -> None:
    """What took long to compile is kept for the next command, in JAX's own cache, which the user may have chosen."""
    if "jax" in sys.modules:  # which reads it once
        return
    # JAX keeps no program that calls back to Python. Equinox's checks, of fixed steps among others, do so to raise an
    # error; as "nan" they make the samples NaN instead, which is reported as every failure of a solver is.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    try:
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = caches / "lsgm_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: nothing is kept
        return
    if os.access(folder, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))


def _is_echo(error: BaseException | None) -> bool:
    """Whether an error that nobody caught only follows from one that is reported: of files, and what waits for them."""
    return isinstance(error, OSError) or str(error) == "Event loop is closed"


def _fail(error: object) -> int:
    return _end(f"lsgm: error: {error}", getattr(error, "status", UserError.status))


def _end(line: str, status: int) -> int:
    """Prints the line and returns the status; one of several processes ends the others with it."""
    line = printable(line)
    launch = sys.modules.get("lsgm_jax.distributed.launch")  # usage errors should not wait for it
    if launch is not None and launch.joined():
        launch.stop(line, status)
    print(line, file=sys.stderr)
    return status
