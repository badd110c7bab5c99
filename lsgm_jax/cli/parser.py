"""What the command line says: its commands, their options, and the overrides of a config they stand for."""

import argparse
import pathlib
import re
from collections.abc import Callable
from typing import Any, NoReturn

from lsgm_jax import __version__
from lsgm_jax.errors import UsageError, printable

USAGE = """lsgm COMMAND [options] | --help | --version

  lsgm train    --config=FILE[:ARG] --workdir=DIR [--profile] [--config.SECTION.KEY=VALUE ...]
  lsgm sample   --workdir=DIR [SAMPLER] [--count=N] [--seed=N] [--label=CLASS,... | --prompt=TEXT]
  lsgm evaluate --workdir=DIR [SAMPLER] [--metrics=nelbo,ode,iw,fid,kid,pr,time] [--split=test|validation] [--seed=N]
                [--samples=N] [--inception=FILE.pth]
  lsgm inpaint  --workdir=DIR --image=FILE --mask=FILE [SAMPLER] [--count=N] [--seed=N] [--out=FILE.png]
  lsgm upscale  --workdir=DIR --image=FILE [SAMPLER] [--count=N] [--seed=N] [--out=FILE.png]
  lsgm interpolate --workdir=DIR [SAMPLER] [--between=noise|test] [--pairs=N] [--points=N] [--seed=N]
                [--label=CLASS,... | --prompt=TEXT]
  lsgm animate  --workdir=DIR [SAMPLER] [--count=N] [--frames=N] [--seed=N] [--label=CLASS,... | --prompt=TEXT]
  lsgm study    --workdir=DIR [--solvers=NAME,...] [--nfe=N,...] [--rtol=X,...] [--grid=NAME] [--count=N] [--seed=N]
  lsgm params   --config=FILE[:ARG] [--config.SECTION.KEY=VALUE ...]
  lsgm convert  --config=FILE[:ARG] --checkpoint=FILE.pt --workdir=DIR [--weights=ema|last]
                [--config.SECTION.KEY=VALUE ...]
  lsgm data prepare mnist|omniglot|cifar10|celebahq256|imagenet32|imagenet64|folder --source=PATH
                [--data_dir=DIR] [--name=NAME] [--size=N] [--skip_bad]

  Several processes train, sample or evaluate as one:  --distributed | --coordinator=HOST:PORT --processes=N --process=I
                [--timeout=SECONDS]
  SAMPLER: [--solver=NAME] [--steps=N [--grid=linear|quadratic|log_snr|edm] | --rtol=X [--atol=X]] [--t_min=X]
           [--denoise=none|euler|mean] [--temperature=X] [--guidance=X]
           [--config.solver.KEY=VALUE ...]
"""
SOLVERS = "Euler,Heun,Tsit5,Dopri5,DDIM,DEIS,DPMSolverPP,UniPC,EulerMaruyama,Ancestral"  # of a study
METRICS = ("nelbo", "ode", "iw", "fid", "kid", "pr", "time")
TOGETHER = ("train", "sample", "evaluate")  # commands that several processes may run as one
CONFIGURED = ("train", "params", "convert")  # commands that take a config
OVERRIDDEN = (
    *CONFIGURED,
    "sample",
    "inpaint",
    "upscale",
    "evaluate",
    "study",
    "interpolate",
    "animate",
)  # and those that change one


MOST_SEED = 2**32 - 1  # JAX's keys take 32 bits of it
MOST_INT, MOST_FLOAT = 2**31 - 1, 3.4e38  # JAX computes with 32 bits
_INT = re.compile(r"[+-]?[0-9]{1,40}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class _Parser(argparse.ArgumentParser):
    """Reports errors as one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see  lsgm --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, "--config." overrides among them.

    Raises:
        UsageError: for a command or an option that does not exist, or is missing.
        SystemExit: for --help and --version.
    """
    options, rest = _make_parser().parse_known_args(arguments)
    options.overrides = [argument for argument in rest if argument.startswith("--config.")]
    strangers = [argument for argument in rest if argument not in options.overrides]
    if strangers or (options.overrides and options.command not in OVERRIDDEN):
        raise UsageError(
            f"lsgm {options.command} does not know {(strangers or options.overrides)[0]}; see  lsgm --help"
        )
    return options


def _make_parser() -> _Parser:
    parser = _Parser(prog="lsgm", usage=USAGE, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lsgm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(name: str) -> _Parser:
        return commands.add_parser(name, allow_abbrev=False)

    for name in CONFIGURED:
        command(name).add_argument("--config", required=True, type=_word)
    train, convert = commands.choices["train"], commands.choices["convert"]
    sample, evaluate, study, interpolate, animate, inpaint, upscale = map(
        command, ("sample", "evaluate", "study", "interpolate", "animate", "inpaint", "upscale")
    )
    for name in TOGETHER:
        _add_processes(commands.choices[name])
    for each in (train, convert, sample, evaluate, study, interpolate, animate, inpaint, upscale):
        each.add_argument("--workdir", required=True, type=_path)
    for each in (sample, evaluate, interpolate, animate, inpaint, upscale):
        _add_sampler(each)
    for each in (sample, evaluate, interpolate, animate, study, inpaint, upscale):
        _add_ends(each)
        each.add_argument("--seed", type=whole(0, MOST_SEED), default=0)
    train.add_argument("--profile", action="store_true")
    convert.add_argument("--checkpoint", required=True, type=_path)
    convert.add_argument("--weights", choices=("ema", "last"), default="ema")
    sample.add_argument("--count", type=whole(1), default=64)
    for each in (sample, animate, interpolate):
        condition = each.add_mutually_exclusive_group()
        condition.add_argument("--label", type=_word)
        condition.add_argument("--prompt")
    for each in (inpaint, upscale):
        each.add_argument("--image", required=True, type=_path)
        each.add_argument("--count", type=whole(1), default=4)
        each.add_argument("--out", type=_path)
    inpaint.add_argument("--mask", required=True, type=_path)
    evaluate.add_argument("--metrics", type=_word, default="nelbo,ode")
    evaluate.add_argument("--split", choices=("test", "validation"), default="test")
    evaluate.add_argument("--samples", type=whole(1))
    evaluate.add_argument("--inception", type=_path)
    interpolate.add_argument("--between", choices=("noise", "test"), default="noise")
    interpolate.add_argument("--pairs", type=whole(1), default=6)
    interpolate.add_argument("--points", type=whole(2), default=10)
    animate.add_argument("--count", type=whole(1))
    animate.add_argument("--frames", type=whole(2), default=48)
    study.add_argument("--solvers", type=_word, default=SOLVERS)
    study.add_argument("--nfe", default="5,10,20,50")
    study.add_argument("--rtol", default="1e-2,1e-3,1e-4")
    study.add_argument("--grid", type=_word, default="default")
    study.add_argument("--count", type=whole(2), default=256)
    _add_data(command("data"))
    return parser


def whole(least: int, most: int = MOST_INT) -> Callable[[str], int]:
    """Returns a reader of whole numbers from `least` to `most`, in digits of ASCII."""

    def read(text: str) -> int:
        if not _INT.fullmatch(text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"invalid int value: {text!r}: give {least} to {most}")
        return int(text)

    return read


def real(text: str) -> float:
    """Returns a finite number."""
    if not _FLOAT.fullmatch(text) or not abs(float(text)) <= MOST_FLOAT:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}: give a finite number")
    return float(text)


def _path(text: str) -> pathlib.Path:
    """Returns the path with `~` for the home folder, which shells leave as it is in `--workdir=~/runs`."""
    try:
        if text and "\0" not in text:
            return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: the home folder is not known") from error
    raise argparse.ArgumentTypeError(f"{text!r} is no path")


def _word(text: str) -> str:
    """Returns a text that says something."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} says nothing")
    return text


def _add_sampler(parser: _Parser) -> None:
    parser.add_argument("--solver", type=_word)
    parser.add_argument("--rtol", type=real)
    parser.add_argument("--atol", type=real)
    parser.add_argument("--steps", type=whole(1))
    parser.add_argument("--grid", type=_word)


def _add_ends(parser: _Parser) -> None:
    parser.add_argument("--t_min", type=real)
    parser.add_argument("--denoise", type=_word)
    parser.add_argument("--temperature", type=real)
    parser.add_argument("--guidance", type=real)


def _add_processes(parser: _Parser) -> None:
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator", type=_word)
    parser.add_argument("--processes", type=whole(1))
    parser.add_argument("--process", type=whole(0))
    parser.add_argument("--timeout", type=real, default=300.0)


def _add_data(parser: _Parser) -> None:
    parser.add_argument("action", choices=("prepare",))
    parser.add_argument("kind", metavar="NAME", type=_word)
    parser.add_argument("--source", required=True, type=_path)
    parser.add_argument("--data_dir", type=_path)
    parser.add_argument("--name", type=_word)
    parser.add_argument("--size", type=whole(1))
    parser.add_argument("--skip_bad", action="store_true")


def place(options: argparse.Namespace) -> dict[str, Any] | None:
    """Where options say that this process stands among others; None if they do not, or leave it to be found out.

    Raises:
        UsageError: for some of the options without the others.
    """
    names = ("coordinator", "processes", "process")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    missing = [f"--{name}" for name in names if name not in given]
    if given and options.distributed:
        raise UsageError(
            f"--distributed finds out the place of a process: use it without --{next(iter(given))}"
        )
    if given and missing:
        raise UsageError(f"--{next(iter(given))} goes with {' and '.join(missing)}; see  lsgm --help")
    if options.timeout <= 0:
        raise UsageError(f"--timeout={options.timeout:g}: give a positive number of seconds")
    return given or None


def numbers(kind: Callable[[str], Any], options: argparse.Namespace, name: str) -> list[Any]:
    """The numbers of an option that takes several; `kind` is `whole(least)` or `real`."""
    text = getattr(options, name)
    try:
        return [kind(part) for part in text.split(",") if part]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--{name}={printable(text)}: {error}, with commas between") from error


def ends(options: argparse.Namespace) -> dict[str, Any]:
    """How sampling starts and ends, as far as the options say."""
    given = {name: getattr(options, name) for name in ("t_min", "denoise", "temperature", "guidance")}
    return {name: value for name, value in given.items() if value is not None}


def sampler_overrides(options: argparse.Namespace) -> list[str]:
    """The short options as overrides of the config. A number of steps without a grid means the solver's own grid."""
    grid = options.grid or (None if options.steps is None else "default")
    # A tolerance given alone is meant for both, as in the literature.
    atol = options.rtol if options.atol is None else options.atol
    adaptive = None if atol is None else "adaptive"
    if grid and adaptive:
        raise UsageError("give either a number of steps or tolerances")
    named = {
        "solver.name": options.solver,
        "steps.name": grid or adaptive,
        "steps.steps": options.steps,
        "steps.rtol": options.rtol,
        "steps.atol": atol,
        **{f"sampling.{name}": value for name, value in ends(options).items()},
    }
    return [f"--config.{key}={value}" for key, value in named.items() if value is not None]
