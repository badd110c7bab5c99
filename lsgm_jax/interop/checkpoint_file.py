"""Reads checkpoints of every layout to dictionaries of numpy arrays, without PyTorch and without running code."""

import contextlib
import mmap
import os
import pathlib
import pickle
from collections.abc import Iterator
from typing import Any

from lsgm_jax.errors import ConversionError, first_line, in_one_line
from lsgm_jax.interop.diffusers_folder import alone, is_state, read_folder
from lsgm_jax.interop.safetensors_file import read_safetensors
from lsgm_jax.interop.torch_file import read_legacy, read_zip


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Returns the content of a file of `torch.save` or of safetensors, or of a folder in diffusers' layout.

    The first bytes of a file say which it is. Names of diffusers become those of latent diffusion.

    These are dictionaries, lists and numbers, with read-only numpy arrays for tensors. Arrays of zip files and of
    safetensors are memory-mapped: a file of 3 GB takes as much memory as the tensors that are used, and has to stay in
    place while they are in use. An `argparse.Namespace` becomes a `types.SimpleNamespace`; devices and dtypes become
    strings.

    Raises:
        ConversionError: if the file does not exist, is damaged or of another format, or if its pickle names anything
            that state dictionaries do not need. No code from the file runs.
    """
    path = pathlib.Path(path)
    with _about(path):
        if path.is_dir():
            return read_folder(path, _read)
        content = _read(path)
        return alone(content) if is_state(content) else content


def _read(path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
        if start[:4] == b"PK\x03\x04":
            return read_zip(file)
        if start[8:] == b"{":
            return read_safetensors(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if start[:1] == b"\x80":  # first byte of a pickle since protocol 2
            return read_legacy(file)
    raise ConversionError(
        "not a file of torch.save, neither a zip nor a pickle, nor of safetensors: give the path of a .pt, .ckpt "
        "or .safetensors file"
    )


@contextlib.contextmanager
def _about(path: pathlib.Path) -> Iterator[None]:
    """Converts every error of reading a file to one line that begins with its path."""
    try:
        yield
    except (ConversionError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{path}: {in_one_line(str(error))}") from error
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    # Headers and directories of damaged files can raise anything.
    except Exception as error:
        raise ConversionError(
            f"{path}: damaged, or no checkpoint ({first_line(error)}): download it again"
        ) from error
