"""Checkpoints of the official LSGM and CLD-SGM: finds their networks and converts them to our parameters.

The names of the networks vary between official files, so networks are recognised by their tensors: an NVAE by
`prior_ftr0`, NCSN++ by `all_modules.*` and the MLP of CLD-SGM by `main.*`.
"""

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Float

from lsgm_jax.arrays import Params
from lsgm_jax.autoencoders.backbones import Backbone, Hierarchical
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.ema import fitting_ema, is_ema, numbered_emas
from lsgm_jax.interop.ncsnpp import Shape, mixing_logit, mlp_variables, ncsnpp_variables
from lsgm_jax.interop.nvae import nvae_variables
from lsgm_jax.interop.search import Found, containers, state_dicts
from lsgm_jax.interop.tables import State, as_float32, listing
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp

VAE = re.compile(r"(.*\.)?prior_ftr0")
SCORE_NET = re.compile(r"(.*?\.)?(?:all_modules\.\d+\..+|main\.\d+\.(?:weight|bias))")
ARGUMENTS = ("args", "arguments", "config", "hyper_parameters")
COUNTERS = ("global_step", "step", "epoch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks in a checkpoint, None for missing ones. Names in state dicts have no prefix `module.`."""

    vae: State | None
    score_net: State | None  # LSGM's with `mixing_logit`
    score_net_average: State | None  # EMA of `score_net`, with all of its tensors
    arguments: Mapping[str, Any] | None  # of the training command
    counters: Mapping[str, int]  # those of `COUNTERS` in the file

    def require_vae(self) -> State:
        """Returns the NVAE.

        Raises:
            ConversionError: if the checkpoint has none.
        """
        if self.vae is None:
            raise ConversionError("holds a score network but no NVAE: give a checkpoint of LSGM")
        return self.vae

    def require_score_net(self) -> State:
        """Returns the score network without EMA.

        Raises:
            ConversionError: if the checkpoint has none.
        """
        if self.score_net is None:
            raise ConversionError("holds an NVAE but no score network: give the second stage's checkpoint")
        return self.score_net


def find_parts(checkpoint: Any) -> Parts:
    """Finds the networks in the result of `read_checkpoint`.

    The only state dict of a kind is the network, whatever its name; among several, names with "ema" are EMAs.

    Raises:
        ConversionError: if there is no network, more than one of a kind, or an EMA that does not fit the score network.
    """
    found = containers(checkpoint)
    vae = only("NVAEs", list(state_dicts(found, VAE)))
    nets = list(state_dicts(found, SCORE_NET))
    score_net = only("score networks", [net for net in nets if not is_ema(net)] or nets)
    if vae is None and score_net is None:
        raise ConversionError(
            f"holds no network of LSGM or CLD-SGM, only {contents(checkpoint)}: "
            "no tensor is called prior_ftr0 (NVAE), all_modules.* (NCSN++) or main.* (MLP)"
        )
    return Parts(
        vae=vae.value if vae else None,
        score_net=score_net.value if score_net else None,
        score_net_average=_ema(found, nets, score_net) if score_net else None,
        arguments=_arguments(found),
        counters=counters(checkpoint),
    )


def contents(checkpoint: Any) -> str:
    """Returns the outermost keys, for a message."""
    if isinstance(checkpoint, Mapping) and checkpoint:
        return listing([Found((str(key),), None).place for key in checkpoint])
    return f"a {type(checkpoint).__name__}"


def only(what: str, candidates: Sequence[Found]) -> Found | None:
    """Returns the only candidate, None if there is none.

    Args:
        what: plural noun for the candidates, for the error.
        candidates: what a search has found.

    Raises:
        ConversionError: if there are several.
    """
    if len(candidates) > 1:
        places = ", ".join(candidate.place for candidate in candidates)
        raise ConversionError(f"holds {len(candidates)} {what}, {places}: save it again with one of them")
    return candidates[0] if candidates else None


def _ema(found: Sequence[Found], nets: Sequence[Found], score_net: Found) -> State | None:
    named = [net for net in nets if net is not score_net]
    return fitting_ema([*named, *numbered_emas(found, score_net.value)], score_net.value)


def _arguments(found: Sequence[Found]) -> dict[str, Any] | None:
    """Returns the outermost namespace, or mapping with a name in `ARGUMENTS`; None if there is none."""
    for keys, value in found:
        if isinstance(value, types.SimpleNamespace):
            return dict(vars(value))
        if isinstance(value, Mapping) and keys and keys[-1] in ARGUMENTS:
            return {str(key): argument for key, argument in value.items()}
    return None


def counters(checkpoint: Any) -> dict[str, int]:
    """Returns the `COUNTERS` at the top level of a checkpoint."""
    top = checkpoint if isinstance(checkpoint, Mapping) else {}
    numbers = {name: np.asarray(top[name]) for name in COUNTERS if name in top}
    return {name: int(n) for name, n in numbers.items() if n.shape == () and n.dtype.kind in "iu"}


def official_params(parts: Parts, model: LSGM | SGM, *, ema: bool) -> Params:
    """Returns all parameters of `model`, float32 copies.

    Args:
        parts: networks of the checkpoint.
        model: the model with the settings of the checkpoint.
        ema: take the EMA of the score network, if the checkpoint has one.

    Raises:
        ConversionError: if a network is missing, or a tensor is missing, unknown or of another shape than the model's.
    """
    raw = parts.require_score_net()
    state = parts.score_net_average if ema and parts.score_net_average is not None else raw
    *sides, channels = model.latent_shape
    shape = (*sides, channels * len(model.prior.process.prior_variance()))
    score_net = {"score_net": score_params(state, model.prior.net.module, shape)}
    if model.autoencoder is None:
        return score_net
    # The official code has all channels active in sampling and evaluation; only their mixing logits remain.
    active = {"state": {"active": np.ones(channels, np.float32)}} if model.prior.inactive_kl else {}
    return {
        "vae": vae_params(parts.require_vae(), model.autoencoder.backbone),
        "mixing_logit": mixing_logits(state),
        **score_net,
        **active,
    }


def vae_params(state: State, backbone: Backbone) -> Params:
    """Returns the parameters of `backbone`, float32 copies: {"net", "state": {"batch_stats"}}.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape, or the backbone is not an NVAE.
    """
    if not isinstance(backbone, Hierarchical):
        raise ConversionError("holds an NVAE, and the model has another autoencoder: use a config with nvae")
    variables = as_float32(nvae_variables(state, backbone.net, backbone.image_shape))
    return {"net": variables.pop("params"), "state": variables}


def score_params(state: State, module: nn.Module, shape: Shape) -> Params:
    """Returns the parameters of the `Network` of `module`, float32 copies; Fourier frequencies are in "state".

    Args:
        state: of the network or its EMA; LSGM's mixing logits are ignored, see `mixing_logits`.
        module: the network with the settings of the checkpoint.
        shape: of one input, with all coordinates of the process: (height, width, channels), or (features,) for the MLP.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape, or the module of another kind.
    """
    if isinstance(module, MLP):
        variables = as_float32(mlp_variables(state, module, *shape))
    elif isinstance(module, NCSNpp):
        variables = as_float32(ncsnpp_variables(state, module, shape))
    else:
        kind = type(module).__name__
        raise ConversionError(f"no official score network is a {kind}: use a config with ncsnpp or mlp")
    params = variables.pop("params")
    return {**params, "state": variables} if variables else params


def mixing_logits(state: State) -> Float[np.ndarray, "channels"]:
    """Returns LSGM's mixing logits, float32; those of inactive latents are -15.

    Raises:
        ConversionError: if there are none, because the network was trained without mixing.
    """
    return as_float32(mixing_logit(state))
