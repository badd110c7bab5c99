"""Folders in diffusers' layout: pipelines of latent diffusion, and first stages alone.

A pipeline is a folder with `model_index.json`, and a folder for each network with `config.json` and the weights.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.diffusers_names import (
    autoencoder_state,
    is_autoencoder,
    is_unet,
    text_state,
    unet_state,
)
from lsgm_jax.interop.tables import State

Read = Callable[[pathlib.Path], Any]  # a file of weights -> its tensors by name
LARGEST_JSON = 2**20
HEADS = "heads of the denoiser"  # {field of LDMUNet: value}, beside the state dict
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
WHOLE = "give the folder of the whole pipeline, which has model_index.json, or the original checkpoint"
SCHEDULES = {
    "scaled_linear": lambda first, last, steps: np.linspace(first**0.5, last**0.5, steps) ** 2,
    "linear": np.linspace,
}


def read_folder(folder: pathlib.Path, read: Read) -> dict[str, Any]:
    """Returns the checkpoint of a pipeline, or of a first stage alone, under the names of latent diffusion.

    Raises:
        ConversionError: if the folder is none in diffusers' layout, or has other networks than latent diffusion.
    """
    if (folder / "model_index.json").exists():
        return _pipeline(folder, _json(folder / "model_index.json"), read)
    if (folder / "config.json").exists():
        return {"state_dict": alone(_weights(folder, read))}
    raise ConversionError(
        "is a folder, and not one in diffusers' layout, which has model_index.json or config.json: give a file"
    )


def is_state(content: Any) -> bool:
    """Returns whether a file holds tensors by name, and nothing else."""
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in content.items()
    )


def alone(state: State) -> State:
    """Returns a state dict, that of a first stage in diffusers' layout under the names of latent diffusion.

    Raises:
        ConversionError: if it is a denoiser in diffusers' layout, which is useless without its first stage.
    """
    if is_unet(state):
        raise ConversionError(f"diffusers' layout, and a denoiser alone: {WHOLE}")
    return autoencoder_state(state) if is_autoencoder(state) else state


def _heads_of(config: Mapping[str, Any]) -> str:
    """Returns our name of what diffusers call attention_head_dim, which means two things."""
    return "heads" if config.get("_class_name") == "UNet2DConditionModel" else "head_width"


def _pipeline(folder: pathlib.Path, index: Any, read: Read) -> dict[str, Any]:
    first_stage = next((name for name in ("vqvae", "vae") if name in index), None)
    if "unet" not in index or first_stage is None:
        raise ConversionError(f"diffusers' layout, without unet and vae or vqvae: {WHOLE}")
    config = _json(folder / "unet" / "config.json")
    kind, heads = _heads_of(config), config.get("attention_head_dim")
    unet = unet_state(_weights(folder / "unet", read), heads if kind == "head_width" else None)
    parts = {
        "model.diffusion_model": unet,
        "first_stage_model": autoencoder_state(_weights(folder / first_stage, read)),
    }
    if "bert" in index:
        parts["cond_stage_model"] = text_state(_weights(folder / "bert", read))
    if "text_encoder" in index:
        texts = _weights(folder / "text_encoder", read)
        parts["cond_stage_model"] = {f"transformer.{name}": tensor for name, tensor in texts.items()}
    named = {f"{prefix}.{name}": tensor for prefix, state in parts.items() for name, tensor in state.items()}
    betas = _betas(folder / "scheduler" / "scheduler_config.json")
    return {"state_dict": named | betas, HEADS: {kind: heads}}


def _betas(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the variances of the process; {} if the pipeline does not say them."""
    if not path.exists():
        return {}
    config = _json(path)
    schedule, kind = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if schedule not in SCHEDULES or kind != "epsilon":
        raise ConversionError(
            f"diffusers' layout, with {schedule!r} and {kind!r}, not latent diffusion's: no config fits"
        )
    ends = (float(config[name]) for name in ("beta_start", "beta_end"))
    return {"betas": SCHEDULES[schedule](*ends, min(int(config["num_train_timesteps"]), LARGEST_JSON))}


def _weights(folder: pathlib.Path, read: Read) -> State:
    found = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if found is None:
        several = " (an index of several files is not supported)" if any(folder.glob("*.index.json")) else ""
        raise ConversionError(
            f"diffusers' layout, without {folder.name}/{WEIGHTS[0]} or .bin{several}: download it again"
        )
    state = read(found)
    if not is_state(state):
        raise ConversionError(
            f"diffusers' layout, and {folder.name}/{found.name} is no state dict: download it again"
        )
    return state


def _json(path: pathlib.Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_JSON:
        raise ConversionError(f"{path.name} is too large for a config: download it again")
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ConversionError(f"{path.name} is no config: download it again")
    return content
