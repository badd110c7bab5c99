"""Renames state dicts of latent diffusion as diffusers does, and writes its folders. For tests only.

Written from the direction of diffusers' own conversion, block by block; the reader has patterns of the other direction.
"""

import json
import re

import numpy as np

from tests.interop.write_safetensors import safetensors
from tests.interop.write_torch import write_zip

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
ATTENTION = {
    "old": {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
    "new": {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
}


def moved(state, before, after, leaves):
    """The tensors below `before`, with names of their modules in `leaves`, below `after`."""
    found = {}
    for name, tensor in state.items():
        if name.startswith(f"{before}."):
            module, _, kind = name.removeprefix(f"{before}.").rpartition(".")
            found[".".join(filter(None, (after, leaves.get(module, module), kind)))] = tensor
    return found


def unet(state, *, levels, blocks, head_width, era):
    """The state dict of a UNet2DModel, or UNet2DConditionModel where attention is in spatial transformers."""
    found = {}
    for before, after in ENDS.items():
        found |= moved(state, before, after, {})
    places = [
        ("middle_block.0", "mid_block.resnets.0"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("middle_block.2", "mid_block.resnets.1"),
    ]
    for level in range(levels):
        for block in range(blocks):
            index = 1 + level * (blocks + 1) + block
            places.append((f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{block}"))
            places.append((f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{block}"))
        places.append(
            (f"input_blocks.{(level + 1) * (blocks + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
        )
        for block in range(blocks + 1):
            index = level * (blocks + 1) + block
            places.append((f"output_blocks.{index}.0", f"up_blocks.{level}.resnets.{block}"))
            for step in (1, 2):
                places.append((f"output_blocks.{index}.{step}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
            places.append((f"output_blocks.{index}.1", f"up_blocks.{level}.attentions.{block}"))
    for before, after in places:
        part = moved(state, before, after, RESNET if "resnets" in after else {})
        part = {
            name: tensor for name, tensor in part.items() if not re.search(r"attentions\.\d+\.conv", name)
        }
        if "attentions" in after and f"{before}.qkv.weight" in state:
            part = attention(state, before, after, head_width, ATTENTION[era])
        if "resnets" in after:  # downsampling is in a block of its own
            part = {name: tensor for name, tensor in part.items() if ".op." not in name}
        found |= part
    return found


def attention(state, before, after, head_width, names):
    found = moved(state, f"{before}.norm", f"{after}.{names['norm']}", {})
    for kind in ("weight", "bias"):
        joined = state[f"{before}.qkv.{kind}"]
        channels = len(joined) // 3
        by_head = joined.reshape(channels // head_width, 3, head_width, *joined.shape[1:2])
        for index, name in enumerate("qkv"):
            shape = (channels, channels) if kind == "weight" else (channels,)
            found[f"{after}.{names[name]}.{kind}"] = by_head[:, index].reshape(shape)
        out = state[f"{before}.proj_out.{kind}"]
        found[f"{after}.{names['proj_out']}.{kind}"] = out[:, :, 0] if kind == "weight" else out
    return found


def first_stage(state, *, levels, era):
    """The state dict of an AutoencoderKL or VQModel."""
    names = {"nin_shortcut": "conv_shortcut", **ATTENTION[era]}
    found = {}
    for module in ("quant_conv", "post_quant_conv", "quantize"):
        found |= moved(state, module, module, {})
    for half, tower in (("encoder", "down"), ("decoder", "up")):
        for before, after in (
            ("conv_in", "conv_in"),
            ("norm_out", "conv_norm_out"),
            ("conv_out", "conv_out"),
        ):
            found |= moved(state, f"{half}.{before}", f"{half}.{after}", {})
        places = [(f"mid.block_{n + 1}", f"mid_block.resnets.{n}") for n in range(2)]
        places.append(("mid.attn_1", "mid_block.attentions.0"))
        for level in range(levels):
            other = level if tower == "down" else levels - 1 - level
            for block in range(9):
                places.append((f"{tower}.{level}.block.{block}", f"{tower}_blocks.{other}.resnets.{block}"))
                places.append((f"{tower}.{level}.attn.{block}", f"{tower}_blocks.{other}.attentions.{block}"))
            places.append(
                (f"{tower}.{level}.{tower}sample.conv", f"{tower}_blocks.{other}.{tower}samplers.0.conv")
            )
        for before, after in places:
            found |= moved(state, f"{half}.{before}", f"{half}.{after}", names)
    is_matrix = lambda name, tensor: "attentions" in name and tensor.ndim == 4
    return {name: tensor[:, :, 0, 0] if is_matrix(name, tensor) else tensor for name, tensor in found.items()}


def text_encoder(state, *, layers):
    """The state dict of an LDMBertModel."""
    places = [("token_emb", "embed_tokens"), ("pos_emb.emb", "embed_positions"), ("norm", "layer_norm")]
    for n in range(layers):
        first, second, layer = (
            f"attn_layers.layers.{2 * n}",
            f"attn_layers.layers.{2 * n + 1}",
            f"layers.{n}",
        )
        places += [
            (f"{first}.0", f"{layer}.self_attn_layer_norm"),
            (f"{second}.0", f"{layer}.final_layer_norm"),
        ]
        places += [(f"{first}.1.to_{x}", f"{layer}.self_attn.{x}_proj") for x in ("q", "k", "v", "out")]
        places += [(f"{second}.1.net.0.0", f"{layer}.fc1"), (f"{second}.1.net.2", f"{layer}.fc2")]
    found = moved(state, "transformer.to_logits", "to_logits", {})
    for before, after in places:
        found |= moved(state, f"transformer.{before}", f"model.{after}", {})
    return found


def write_folder(folder, networks, scheduler=None):
    """Writes a pipeline: for each network its class, config and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {
        "_class_name": "LDMPipeline",
        **{name: ["diffusers", kind] for name, (kind, _, _) in networks.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, (kind, config, state) in networks.items():
        write_network(folder / name, kind, config, state)
    if scheduler is not None:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def write_network(folder, kind, config, state, suffix="safetensors"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": kind, **config}))
    path = folder / f"diffusion_pytorch_model.{suffix}"
    state = {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}
    if suffix == "safetensors":
        path.write_bytes(safetensors(state))
    else:
        write_zip(path, state)
