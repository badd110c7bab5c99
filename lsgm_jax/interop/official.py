"""Checkpoints of the official LSGM and CLD-SGM: the networks that one holds, and their tensors as our parameters.

Official files name their parts in several ways, so parts are known by their tensors: an NVAE by `prior_ftr0`, NCSN++ by
`all_modules.*` and CLD-SGM's MLP by `main.*`.
"""

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Float

from lsgm_jax.autoencoders.backbones import Backbone, Hierarchical
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.ema import fitting_average, is_average, numbered_averages
from lsgm_jax.interop.ncsnpp import Shape, mixing_logit, mlp_variables, ncsnpp_variables
from lsgm_jax.interop.nvae import nvae_variables
from lsgm_jax.interop.search import Found, containers, state_dicts
from lsgm_jax.interop.tables import State, as_float32, listing
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.network import Params

VAE = re.compile(r"(.*\.)?prior_ftr0")
SCORE_NET = re.compile(r"(.*?\.)?(?:all_modules\.\d+\..+|main\.\d+\.(?:weight|bias))")
ARGUMENTS = ("args", "arguments", "config", "hyper_parameters")
COUNTERS = ("global_step", "step", "epoch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a checkpoint holds; None for what it does not. State dicts have the names of a network on one device."""

    vae: State | None
    score_net: State | None  # LSGM's with `mixing_logit`
    score_net_average: State | None  # every tensor of `score_net`, averaged where it was trained
    arguments: Mapping[str, Any] | None  # the training command's
    counters: Mapping[str, int]  # those of COUNTERS that the file has

    def require_vae(self) -> State:
        """The NVAE.

        Raises:
            ConversionError: if there is none.
        """
        if self.vae is None:
            raise ConversionError("holds a score network but no NVAE: give a checkpoint of LSGM")
        return self.vae

    def require_score_net(self) -> State:
        """The score network as trained.

        Raises:
            ConversionError: if there is none.
        """
        if self.score_net is None:
            raise ConversionError("holds an NVAE but no score network: give the second stage's checkpoint")
        return self.score_net


def find_parts(checkpoint: Any) -> Parts:
    """The networks in what `read_torch` has read. Whatever its names, a lone state dict of a kind is the network.

    Raises:
        ConversionError: if there is no network, or more than one of a kind of which no name says that it is an
            average, or an average that is not the score network's.
    """
    found = containers(checkpoint)
    vae = only("NVAEs", list(state_dicts(found, VAE)))
    nets = list(state_dicts(found, SCORE_NET))
    score_net = only("score networks", [net for net in nets if not is_average(net)] or nets)
    if vae is None and score_net is None:
        raise ConversionError(
            f"holds no network of LSGM or CLD-SGM, only {contents(checkpoint)}: "
            "no tensor is called prior_ftr0 (NVAE), all_modules.* (NCSN++) or main.* (MLP)"
        )
    return Parts(
        vae=vae.value if vae else None,
        score_net=score_net.value if score_net else None,
        score_net_average=_average(found, nets, score_net) if score_net else None,
        arguments=_arguments(found),
        counters=counters(checkpoint),
    )


def contents(checkpoint: Any) -> str:
    """The outermost keys, for a message."""
    if isinstance(checkpoint, Mapping) and checkpoint:
        return listing([Found((str(key),), None).place for key in checkpoint])
    return f"a {type(checkpoint).__name__}"


def only(what: str, candidates: Sequence[Found]) -> Found | None:
    """The one candidate, or None.

    Raises:
        ConversionError: if there are more.
    """
    if len(candidates) > 1:
        places = ", ".join(candidate.place for candidate in candidates)
        raise ConversionError(f"holds {len(candidates)} {what}, {places}: save it again with one of them")
    return candidates[0] if candidates else None


def _average(found: Sequence[Found], nets: Sequence[Found], score_net: Found) -> State | None:
    named = [net for net in nets if net is not score_net]
    return fitting_average([*named, *numbered_averages(found, score_net.value)], score_net.value)


def _arguments(found: Sequence[Found]) -> dict[str, Any] | None:
    """Those furthest out: a namespace is nothing else, a mapping has to be called so."""
    for keys, value in found:
        if isinstance(value, types.SimpleNamespace):
            return dict(vars(value))
        if isinstance(value, Mapping) and keys and keys[-1] in ARGUMENTS:
            return {str(key): argument for key, argument in value.items()}
    return None


def counters(checkpoint: Any) -> dict[str, int]:
    """Counters stand beside the networks, at the top level."""
    top = checkpoint if isinstance(checkpoint, Mapping) else {}
    numbers = {name: np.asarray(top[name]) for name in COUNTERS if name in top}
    return {name: int(n) for name, n in numbers.items() if n.shape == () and n.dtype.kind in "iu"}


def official_params(parts: Parts, model: LSGM | SGM, *, averaged: bool) -> Params:
    """All parameters of `model`.

    Args:
        averaged: take the score network's moving average, where the checkpoint has one.

    Raises:
        ConversionError: if a network is missing, or a tensor is missing, unknown or of another shape than the model's.
    """
    raw = parts.require_score_net()
    state = parts.score_net_average if averaged and parts.score_net_average is not None else raw
    *sides, channels = model.latent_shape
    shape = (*sides, channels * len(model.process.prior_variance()))
    score_net = {"score_net": score_params(state, model.score_net.module, shape)}
    if isinstance(model, SGM):
        return score_net
    # The original forgets which channels are inactive when it samples and scores; their mixing logits remain.
    active = {"state": {"active": np.ones(channels, np.float32)}} if model.inactive_kl else {}
    return {
        "vae": vae_params(parts.require_vae(), model.vae.backbone),
        "mixing_logit": mixing_logits(state),
        **score_net,
        **active,
    }


def vae_params(state: State, backbone: Backbone) -> Params:
    """Parameters of `backbone`, float32 copies: {"net", "state": {"batch_stats"}}.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape, or the backbone is no NVAE.
    """
    if not isinstance(backbone, Hierarchical):
        raise ConversionError("holds an NVAE, and the model has another autoencoder: use a config with nvae")
    variables = as_float32(nvae_variables(state, backbone.net, backbone.image_shape))
    return {"net": variables.pop("params"), "state": variables}


def score_params(state: State, module: nn.Module, shape: Shape) -> Params:
    """Parameters of the `Network` of `module`, float32 copies; frequencies of Fourier features lie under "state".

    Args:
        state: of the network as trained, or averaged; LSGM's mixing logits are passed over, see `mixing_logits`.
        module: the network with the settings of the checkpoint.
        shape: of one input, all coordinates: (height, width, channels), or (features,) for the MLP.

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
    """LSGM's mixing logits, float32; those of latents that were found inactive are -15.

    Raises:
        ConversionError: if there are none, because the network was trained without mixing.
    """
    return as_float32(mixing_logit(state))
