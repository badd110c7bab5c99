"""Checkpoints of the official latent diffusion: finds their networks and converts them to our parameters.

In a checkpoint of a full model, names of tensors begin with `model.diffusion_model.` (denoiser), `model_ema.` (its EMA,
with names without dots), `first_stage_model.` or `cond_stage_model.`. In one of a first stage they have no such prefix.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from lsgm_jax.arrays import Params
from lsgm_jax.conditioning.images import ConcatMaps
from lsgm_jax.conditioning.labels import Labels
from lsgm_jax.conditioning.text import Texts
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.diffusers_folder import HEADS
from lsgm_jax.interop.ldm_first_stage import about, first_stage_params
from lsgm_jax.interop.ldm_text import text_encoder_variables
from lsgm_jax.interop.ldm_unet import ldm_unet_variables
from lsgm_jax.interop.official import contents, counters, only
from lsgm_jax.interop.search import Found, containers, state_dicts
from lsgm_jax.interop.tables import State, as_float32
from lsgm_jax.models.ldm import LDM
from lsgm_jax.nn.ldm import LDMUNet
from lsgm_jax.processes.discrete import DiscreteVP

# The first group of each is the prefix of the network's names.
DENOISER = re.compile(r"(model\.diffusion_model\.).*")
EMA = re.compile(r"(model_ema\.).*")
FIRST_STAGE = re.compile(r"(first_stage_model\.|)encoder\.conv_in\.weight")
DISCRIMINATOR = re.compile(r"((?:first_stage_model\.)?loss\.discriminator\.).*")
CONDITIONER = re.compile(r"(cond_stage_model\.|conditioner\.).*")  # the second is Stable Diffusion XL's
BUFFERS = re.compile(r"()(?:betas|scale_factor)")
# Prefixes of other tensors among those of a first stage.
NOT_FIRST_STAGE = ("loss.", "model_ema.")
STEM = "input_blocks.0.0.weight"
TO_CONTEXT = re.compile(r".*\.attn2\.to_k\.weight")
# A tensor of a conditioner -> its kind.
KINDS = {
    "embedding.weight": "classes",
    "transformer.token_emb.weight": "a text encoder",
    "encoder.conv_in.weight": "an autoencoder",
}
# The names of transformers (Stable Diffusion 1), of OpenCLIP (2), and of two encoders (XL).
CLIP = re.compile(
    r"(embedders\.\d+\.)?(transformer\.(text|vision)_model|model\.(transformer|token_emb|visual)).*"
)
NO_CLIP = (
    "its conditions come from CLIP, as in Stable Diffusion, which is not supported: no config fits; the models of "
    "texts that are supported have latent diffusion's own encoder (configs/ldm.py:text2img)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDMParts:
    """The state dicts of the networks in a checkpoint, {} for missing ones; names are without prefixes."""

    first_stage: State
    discriminator: State
    denoiser: State
    average: State  # EMA of the denoiser; names as stored, without dots
    conditioner: State
    buffers: State
    heads: Mapping[str, Any]  # fields of the denoiser that its tensors do not show, where a file says them
    counters: Mapping[str, int]  # those of `COUNTERS` in the file


def find_ldm_parts(checkpoint: Any) -> LDMParts:
    """Finds the networks in the result of `read_checkpoint`.

    Raises:
        ConversionError: if there is no first stage, or more than one network of a kind.
    """
    found = containers(checkpoint)

    def part(what: str, name: re.Pattern[str]) -> State:
        one: Found | None = only(what, list(state_dicts(found, name)))
        return one.value if one else {}

    first_stage, denoiser = part("first stages", FIRST_STAGE), part("denoisers", DENOISER)
    if not first_stage:
        raise ConversionError(
            f"holds no first stage of latent diffusion, only {contents(checkpoint)}: "
            "no tensor is called encoder.conv_in.weight, or first_stage_model.encoder.conv_in.weight"
        )
    return LDMParts(
        first_stage={n: t for n, t in first_stage.items() if not n.startswith(NOT_FIRST_STAGE)},
        discriminator=part("discriminators", DISCRIMINATOR),
        denoiser=denoiser,
        average=part("EMAs", EMA) if denoiser else {},
        conditioner=part("conditioners", CONDITIONER),
        buffers=part("schedules", BUFFERS),
        heads=checkpoint.get(HEADS, {}) if isinstance(checkpoint, Mapping) else {},
        counters=counters(checkpoint),
    )


def ldm_params(parts: LDMParts, model: LDM, *, ema: bool) -> Params:
    """Returns all parameters of `model`, float32 copies.

    Args:
        parts: networks of the checkpoint.
        model: the model with the settings of the checkpoint.
        ema: take the EMA of the denoiser, if the checkpoint has one; the other networks have no EMA.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape than the model's, or if the noise schedule
            or the scale of the latents differ.
    """
    if not parts.denoiser:
        raise ConversionError("holds a first stage but no denoiser: it has no tensor model.diffusion_model.*")
    if any(CLIP.fullmatch(name) for name in parts.conditioner):
        raise ConversionError(NO_CLIP)
    first_stage = first_stage_params(parts.first_stage, model.first_stage)
    conditioner = _conditioner(parts, model)
    state = _ema(parts.denoiser, parts.average) if ema and parts.average else parts.denoiser
    score_net = _denoiser(state, model)
    _require_heads(parts.heads, model)
    _require_schedule(parts.buffers, model)
    params = {"first_stage": first_stage, "scale": _scale(parts.buffers, model), "score_net": score_net}
    return {**params, "conditioner": conditioner} if conditioner else params


def _denoiser(state: State, model: LDM) -> Params:
    module = model.prior.net.module
    if not isinstance(module, LDMUNet):
        raise ConversionError(
            f"no official denoiser is a {type(module).__name__}: set config.score.name='ldm'"
        )
    channels = model.latent_shape[-1] + _concatenated_channels(model)
    _require_inputs(state, module, channels)
    with about("its denoiser is not that of config.score"):
        return as_float32(ldm_unet_variables(state, module, channels))["params"]


def _require_heads(heads: Mapping[str, Any], model: LDM) -> None:
    """Checks how attention is divided into heads, which the shapes of the tensors do not say."""
    for field, value in heads.items():
        ours = getattr(model.prior.net.module, field)
        if value is not None and value != ours:
            raise ConversionError(
                f"its denoiser has {field}={value}, the config's {ours}: set config.score.{field}={value}"
            )


def _concatenated_channels(model: LDM) -> int:
    conditioning = model.prior.conditioning
    return conditioning.shape[-1] if isinstance(conditioning, ConcatMaps) else 0


def _require_inputs(state: State, module: LDMUNet, channels: int) -> None:
    """Checks input channels and context width, where another kind of condition shows first."""
    if STEM in state and state[STEM].ndim == 4 and state[STEM].shape[1] != channels:
        raise ConversionError(
            f"its denoiser takes maps of {state[STEM].shape[1]} channels, the config's {channels}: "
            "look at config.conditioning.name, 'inpainting' and 'upscaling' give more, and config.autoencoder"
        )
    widths = {tensor.shape[-1] for name, tensor in state.items() if TO_CONTEXT.fullmatch(name)}
    given = {module.context_width} if module.context_width else set()
    if widths and widths != given:
        ours = f"is {module.context_width} wide" if given else "has none"
        raise ConversionError(
            f"its denoiser looks at a context that is {min(widths)} wide, the config's {ours}: "
            "look at config.conditioning, its name and width"
        )


def _ema(denoiser: State, average: State) -> State:
    """Returns the EMA of the denoiser under the names of the denoiser."""
    stored = {name: f"diffusion_model{name.replace('.', '')}" for name in denoiser}
    missing = [short for short in stored.values() if short not in average]
    if missing:
        raise ConversionError(
            f"has an EMA, but not of its denoiser (model_ema.{missing[0]} is missing): take  --weights=last"
        )
    return {name: average[short] for name, short in stored.items()}


def _conditioner(parts: LDMParts, model: LDM) -> Params:
    """Returns the parameters of the conditioning; {} if it has none."""
    conditioning, state = model.prior.conditioning, parts.conditioner
    found = _kind(state)
    wanted = {Labels: "classes", Texts: "a text encoder"}.get(type(conditioning), "")
    if model.task is not None and found == "an autoencoder":
        _require_copy(state, parts.first_stage)
    elif found != wanted:
        raise ConversionError(
            f"its conditions are {found or 'none'}, the config's {wanted or 'none'}: set config.conditioning.name"
        )
    if isinstance(conditioning, Labels):
        return {"table": {"embedding": _class_tokens(state["embedding.weight"], conditioning)}}
    if isinstance(conditioning, Texts):
        with about("its text encoder is not that of config.conditioning"):
            return as_float32(text_encoder_variables(state, conditioning.net))["params"]
    return {}


def _kind(state: State) -> str:
    """Returns the kind of a conditioner; "" for one without tensors."""
    unknown = f"of an unknown kind ({next(iter(state))})" if state else ""
    return next((kind for name, kind in KINDS.items() if name in state), unknown)


def _require_copy(state: State, first_stage: State) -> None:
    for name, tensor in first_stage.items():
        if name in state and not np.array_equal(state[name], tensor):
            raise ConversionError(
                f"its condition images are encoded by another autoencoder than its first stage: {name} differs"
            )


def _class_tokens(table: np.ndarray, conditioning: Labels) -> Float[np.ndarray, "tokens width"]:
    """Returns the embedding table. Without a trained null class, the mean of all tokens stands in for it."""
    rows, width = table.shape
    if width != conditioning.width or rows not in (conditioning.classes, conditioning.classes + 1):
        raise ConversionError(
            f"its classes are {rows} tokens of width {width}: set config.conditioning.width to {width}, classes to "
            f"{rows}, or to {rows - 1} if the last stands for none of them"
        )
    tokens: np.ndarray = as_float32(table)
    if rows == conditioning.classes:
        return np.concatenate([tokens, tokens.mean(axis=0, keepdims=True)])
    return tokens


def _require_schedule(buffers: State, model: LDM) -> None:
    """Checks that the process has the noise schedule of the checkpoint, if the file has one."""
    betas = buffers.get("betas")
    if betas is None:
        return
    if not isinstance(model.prior.process, DiscreteVP):
        raise ConversionError(f"its process has {len(betas)} steps: set config.process.name='discrete_vp'")
    ours = np.asarray(model.prior.process.betas)
    if ours.shape != betas.shape or not np.allclose(ours, betas, rtol=1e-4):
        described = [
            f"{len(values)} variances from {values[0]:.4g} to {values[-1]:.4g}" for values in (betas, ours)
        ]
        raise ConversionError(f"its process has {described[0]}, not {described[1]}: look at config.process")


def _scale(buffers: State, model: LDM) -> Float[np.ndarray, ""]:
    """Returns the factor of the latents; files have it only if training estimated it from data."""
    stored = buffers.get("scale_factor")
    if stored is None and not model.scale:
        raise ConversionError("does not say the scale of its latents: give config.objective.latent_scale")
    if stored is not None and model.scale and not np.isclose(stored, model.scale, rtol=1e-4):
        raise ConversionError(
            f"its latents have the scale {float(stored):.6g}, not config.objective.latent_scale={model.scale}"
        )
    return np.asarray(model.scale if stored is None else stored, np.float32)
