"""State dicts of diffusers' layout under the names of latent diffusion.

Diffusers counts blocks by level, residual blocks and attention apart; latent diffusion counts the blocks of a tower one
after the other, with attention inside. Queries, keys and values of plain attention are one tensor there.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.tables import State, listing

Rule = tuple[str, Callable[[re.Match[str]], str]]  # a pattern of diffusers' names -> the other name
UNET_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "query": "q",
    "key": "k",
    "value": "v",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "proj_attn": "proj_out",
}
AUTOENCODER_LEAVES = {
    **{name: UNET_LEAVES[name] for name in list(UNET_LEAVES)[6:]},
    "conv_shortcut": "nin_shortcut",
}
TEXT_LEAVES = {
    "self_attn_layer_norm": "0 0",  # which of the two layers, then the name in it
    "self_attn.q_proj": "0 1.to_q",
    "self_attn.k_proj": "0 1.to_k",
    "self_attn.v_proj": "0 1.to_v",
    "self_attn.out_proj": "0 1.to_out",
    "final_layer_norm": "1 0",
    "fc1": "1 1.net.0.0",
    "fc2": "1 1.net.2",
}
KINDS = {"resnets": "block", "attentions": "attn"}
IGNORED = re.compile(r".*position_ids")


def is_unet(state: State) -> bool:
    """Returns whether the names are those of a U-Net of diffusers."""
    return "down_blocks.0.resnets.0.conv1.weight" in state


def is_autoencoder(state: State) -> bool:
    """Returns whether the names are those of a first stage of diffusers."""
    return "encoder.down_blocks.0.resnets.0.conv1.weight" in state


def unet_state(state: State, head_width: int | None) -> dict[str, np.ndarray]:
    """Returns the state dict of a denoiser.

    Args:
        state: of a UNet2DModel or UNet2DConditionModel.
        head_width: channels per head of plain attention; None for one head.

    Raises:
        ConversionError: if a tensor has no counterpart.
    """
    blocks = _count(state, r"down_blocks\.0\.resnets\.(\d+)\..*")
    attending = {match[1] for name in state if (match := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    renamed = _renamed(state, _unet_rules(blocks + 1, attending))
    joined = [name for name in renamed if name.endswith((".q.weight", ".q.bias"))]
    for name in joined:
        before, _, leaf = name.rpartition(".q.")
        parts = [renamed.pop(f"{before}.{part}.{leaf}") for part in "qkv"]
        renamed[f"{before}.qkv.{leaf}"] = _by_head(parts, head_width)
    for name, tensor in renamed.items():
        if name.endswith(".1.proj_out.weight") and tensor.ndim == 2 and f"{name[:-15]}qkv.weight" in renamed:
            renamed[name] = tensor[:, :, None]
    return renamed


def _by_head(parts: list[np.ndarray], head_width: int | None) -> np.ndarray:
    """Returns queries, keys and values as one tensor, those of each head together."""
    channels = len(parts[0])
    width = head_width or channels
    if channels % width:
        raise ConversionError(f"diffusers' layout: attention of {channels} channels has no heads of {width}")
    split = [part.reshape(channels // width, width, *part.shape[1:]) for part in parts]
    joined = np.concatenate(split, axis=1).reshape(3 * channels, *parts[0].shape[1:])
    return joined[:, :, None] if joined.ndim == 2 else joined


def _unet_rules(per_level: int, attending: Iterable[str]) -> list[Rule]:
    within = {"resnets": 0, "attentions": 1}
    at = lambda match: int(match[1]) * per_level
    return [
        (r"conv_in\.(.+)", lambda m: f"input_blocks.0.0.{m[1]}"),
        (r"time_embedding\.linear_([12])\.(.+)", lambda m: f"time_embed.{2 * int(m[1]) - 2}.{m[2]}"),
        (r"conv_norm_out\.(.+)", lambda m: f"out.0.{m[1]}"),
        (r"conv_out\.(.+)", lambda m: f"out.2.{m[1]}"),
        (
            r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)",
            lambda m: f"input_blocks.{1 + at(m) + int(m[3])}.{within[m[2]]}.{_leaf(m[4], UNET_LEAVES)}",
        ),
        (
            r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)",
            lambda m: f"input_blocks.{at(m) + per_level}.0.op.{m[2]}",
        ),
        (
            r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)",
            lambda m: f"middle_block.{2 * int(m[2]) + within[m[1]]}.{_leaf(m[3], UNET_LEAVES)}",
        ),
        (
            r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)",
            lambda m: f"output_blocks.{at(m) + int(m[3])}.{within[m[2]]}.{_leaf(m[4], UNET_LEAVES)}",
        ),
        (
            r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)",
            lambda m: f"output_blocks.{at(m) + per_level - 1}.{1 + (m[1] in attending)}.conv.{m[2]}",
        ),
    ]


def autoencoder_state(state: State) -> dict[str, np.ndarray]:
    """Returns the state dict of a first stage, from that of an AutoencoderKL or VQModel.

    Raises:
        ConversionError: if a tensor has no counterpart.
    """
    last = _count(state, r"decoder\.up_blocks\.(\d+)\..*") - 1
    level = lambda tower, index: int(index) if tower == "down" else last - int(index)
    rules: list[Rule] = [
        (r"((?:quant_conv|post_quant_conv|quantize|(?:en|de)coder\.conv_(?:in|out))\..+)", lambda m: m[1]),
        (r"(encoder|decoder)\.conv_norm_out\.(.+)", lambda m: f"{m[1]}.norm_out.{m[2]}"),
        (
            r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)",
            lambda m: (
                f"{m[1]}.{m[2]}.{level(m[2], m[3])}.{KINDS[m[4]]}.{m[5]}.{_leaf(m[6], AUTOENCODER_LEAVES)}"
            ),
        ),
        (
            r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv\.(.+)",
            lambda m: f"{m[1]}.{m[2]}.{level(m[2], m[3])}.{m[2]}sample.conv.{m[4]}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)",
            lambda m: f"{m[1]}.mid.{KINDS[m[2]]}_{int(m[3]) + 1}.{_leaf(m[4], AUTOENCODER_LEAVES)}",
        ),
    ]
    is_pointwise = re.compile(r".*\.attn[._]\d+\.(q|k|v|proj_out)\.weight")
    return {
        name: tensor[:, :, None, None] if is_pointwise.fullmatch(name) and tensor.ndim == 2 else tensor
        for name, tensor in _renamed(state, rules).items()
    }


def text_state(state: State) -> dict[str, np.ndarray]:
    """Returns the state dict of latent diffusion's text encoder, from that of an LDMBertModel.

    Raises:
        ConversionError: if a tensor has no counterpart.
    """

    def layer(match: re.Match[str]) -> str:
        place, _, rest = _leaf(match[2], TEXT_LEAVES).partition(" ")
        return f"transformer.attn_layers.layers.{2 * int(match[1]) + int(place)}.{rest}"

    rules: list[Rule] = [
        (r"model\.embed_tokens\.(.+)", lambda m: f"transformer.token_emb.{m[1]}"),
        (r"model\.embed_positions\.(.+)", lambda m: f"transformer.pos_emb.emb.{m[1]}"),
        (r"model\.layer_norm\.(.+)", lambda m: f"transformer.norm.{m[1]}"),
        (r"model\.layers\.(\d+)\.((?:" + "|".join(map(re.escape, TEXT_LEAVES)) + r")\..+)", layer),
        (r"to_logits\.(.+)", lambda m: f"transformer.to_logits.{m[1]}"),
    ]
    return _renamed(state, rules)


def _leaf(name: str, leaves: Mapping[str, str]) -> str:
    """Returns the name within a block; that of a tensor in a spatial transformer is the same."""
    module, _, kind = name.rpartition(".")
    return f"{leaves.get(module, module)}.{kind}"


def _count(state: State, pattern: str) -> int:
    """Returns 1 plus the largest number that the first group of a pattern matches."""
    return 1 + max((int(match[1]) for name in state if (match := re.fullmatch(pattern, name))), default=-1)


def _renamed(state: State, rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    renamed, unknown = {}, []
    for name, tensor in state.items():
        found = (rename(match) for pattern, rename in rules if (match := re.fullmatch(pattern, name)))
        if (other := next(found, None)) is not None:
            renamed[other] = tensor
        elif not IGNORED.fullmatch(name):
            unknown.append(name)
    if unknown:
        raise ConversionError(
            f"diffusers' layout: {listing(unknown)} are in no network of latent diffusion: give the original checkpoint"
        )
    return renamed
