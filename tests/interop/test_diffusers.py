"""Folders in diffusers' layout become the runs that the same networks under latent diffusion's names become."""

import jax
import numpy as np
import pytest

from lsgm_jax.config.factory import experiment
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.diffusers_names import unet_state
from tests.interop import write_diffusers
from tests.interop.test_convert_ldm import WORDS, convert, drawn, official, tiny
from tests.interop.write_diffusers import write_folder, write_network
from tests.interop.write_safetensors import safetensors

SCHEDULER = dict(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, num_train_timesteps=1000)
# Two blocks a level and several heads, so that a confusion of either shows.
LAYERS = ["--config.score.blocks=2", "--config.score.head_width=8"]
PIECES = ["--config.conditioning.pieces=7", "--config.conditioning.layers=2"]


def checkpoint(variant, *fields):
    config = tiny(variant, *fields)
    params = drawn(jax.eval_shape(experiment(config).model.init, jax.random.key(0)), 0)
    state = official(config, params)
    state = {name: tensor for name, tensor in state.items() if ".loss." not in name}
    return config, state


def below(prefix, state):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def networks(config, state, era="new"):
    unet = below("model.diffusion_model.", state)
    levels, blocks = len(config.score.channel_mult), config.score.blocks
    made = write_diffusers.unet(unet, levels=levels, blocks=blocks, head_width=8, era=era)
    stage = below("first_stage_model.", state)
    stage = write_diffusers.first_stage(stage, levels=len(config.autoencoder.channel_mult), era=era)
    kind = "VQModel" if "quantize.embedding.weight" in stage else "AutoencoderKL"
    return {
        "unet": ("UNet2DModel", {"attention_head_dim": 8}, made),
        "vqvae" if kind == "VQModel" else "vae": (kind, {}, stage),
    }


def assert_states_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("variant", "era"), [("celebahq256", "old"), ("imagenet256", "new"), ("kl-f8", "new")]
)
def test_a_pipeline_has_the_tensors_of_the_checkpoint(tmp_path, variant, era):
    """Of both namings of attention; with a codebook, with attention in the first stage, and with KL."""
    fields = ["--config.conditioning.name=none"] if variant == "imagenet256" else []
    config, state = checkpoint(variant, *LAYERS, *fields)
    write_folder(tmp_path / "pipeline", networks(config, state, era), SCHEDULER)
    found = read_checkpoint(tmp_path / "pipeline")["state_dict"]
    np.testing.assert_allclose(found.pop("betas"), state.pop("betas"), rtol=1e-5)
    assert_states_equal(found, state)


def test_a_pipeline_of_texts_has_the_tensors_of_the_checkpoint(tmp_path):
    config, state = checkpoint("text2img", *WORDS, *PIECES, "--config.score.blocks=2")
    made = networks(config, state)
    bert = write_diffusers.text_encoder(below("cond_stage_model.", state), layers=2)
    write_folder(tmp_path / "pipeline", made | {"bert": ("LDMBertModel", {}, bert)})
    del state["betas"]
    assert_states_equal(read_checkpoint(tmp_path / "pipeline")["state_dict"], state)


def test_a_folder_becomes_a_run(tmp_path, capsys):
    config, state = checkpoint("celebahq256", *LAYERS)
    write_folder(tmp_path / "pipeline", networks(config, state), SCHEDULER)
    assert convert(tmp_path / "pipeline", tmp_path / "run", "celebahq256", *LAYERS) == 0
    other = [LAYERS[0], "--config.score.head_width=16"]  # of which the tensors show nothing
    assert convert(tmp_path / "pipeline", tmp_path / "other", "celebahq256", *other) == 2
    assert (
        "its denoiser has head_width=8, the config's 16: set config.score.head_width=8"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("suffix", "whole"), [("safetensors", True), ("bin", False)])
def test_a_first_stage_alone_is_read_from_its_folder_or_file(tmp_path, suffix, whole):
    config, state = checkpoint("kl-f8")
    stage = below("first_stage_model.", state)
    made = write_diffusers.first_stage(stage, levels=len(config.autoencoder.channel_mult), era="old")
    write_network(tmp_path / "vae", "AutoencoderKL", {}, made, suffix)
    found = read_checkpoint(
        tmp_path / "vae" if whole else tmp_path / "vae" / f"diffusion_pytorch_model.{suffix}"
    )
    assert_states_equal(found["state_dict"] if whole else found, stage)


def test_published_names_of_diffusers_are_known():
    """Names as they stand in published pipelines, and the counterparts in the published checkpoints."""
    pairs = {
        "down_blocks.1.attentions.0.query.weight": "input_blocks.4.1.qkv.weight",
        "down_blocks.0.resnets.1.time_emb_proj.bias": "input_blocks.2.0.emb_layers.1.bias",
        "down_blocks.2.downsamplers.0.conv.weight": "input_blocks.9.0.op.weight",
        "mid_block.attentions.0.proj_attn.weight": "middle_block.1.proj_out.weight",
        "mid_block.resnets.1.conv2.weight": "middle_block.2.0.out_layers.3.weight".replace(".2.0.", ".2."),
        "up_blocks.0.attentions.2.group_norm.weight": "output_blocks.2.1.norm.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
        "time_embedding.linear_2.weight": "time_embed.2.weight",
    }
    state = {name: np.ones((2, 2)) for name in pairs}
    for part in ("key", "value"):
        state[f"down_blocks.1.attentions.0.{part}.weight"] = np.ones((2, 2))
    assert unet_state(state, None).keys() == set(pairs.values())


def refusal(path):
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    assert str(error.value).isprintable()
    return str(error.value)


def test_what_is_not_supported_is_named(tmp_path, capsys):
    config, state = checkpoint("celebahq256", *LAYERS)
    made = networks(config, state)
    kind, fields, unet = made["unet"]
    write_network(tmp_path / "alone", kind, fields, unet)
    for path in (tmp_path / "alone", tmp_path / "alone" / "diffusion_pytorch_model.safetensors"):
        assert "diffusers' layout, and a denoiser alone: give the folder of the whole pipeline" in refusal(
            path
        )
    write_folder(tmp_path / "no stage", {"unet": made["unet"]})
    assert "without unet and vae or vqvae" in refusal(tmp_path / "no stage")
    (tmp_path / "alone" / "diffusion_pytorch_model.safetensors").unlink()
    assert "without alone/diffusion_pytorch_model.safetensors" in refusal(tmp_path / "alone")
    (tmp_path / "alone" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "an index of several files is not supported" in refusal(tmp_path / "alone")
    unknown = unet | {"add_embedding.linear_1.weight": np.ones(2, np.float32)}
    write_folder(tmp_path / "other", made | {"unet": (kind, fields, unknown)})
    assert "add_embedding.linear_1.weight are in no network of latent diffusion" in refusal(
        tmp_path / "other"
    )
    write_folder(tmp_path / "v", made, SCHEDULER | {"prediction_type": "v_prediction"})
    assert "'v_prediction', not latent diffusion's" in refusal(tmp_path / "v")
    (tmp_path / "empty").mkdir()
    assert "not one in diffusers' layout" in refusal(tmp_path / "empty")
    for content in (b"[]", b"{" * 10**5, b"", b" " * (2**20 + 1)):
        (tmp_path / "v" / "model_index.json").write_bytes(content)
        refusal(tmp_path / "v")


def test_clip_in_a_pipeline_is_named(tmp_path, capsys):
    config, state = checkpoint("celebahq256", *LAYERS)
    write_folder(tmp_path / "sd", networks(config, state), SCHEDULER)
    index = '{"unet": 0, "vqvae": 0, "text_encoder": 0}'
    (tmp_path / "sd" / "model_index.json").write_text(index)
    (tmp_path / "sd" / "text_encoder").mkdir()
    tensors = {"text_model.embeddings.token_embedding.weight": np.ones((2, 2), np.float32)}
    (tmp_path / "sd" / "text_encoder" / "model.safetensors").write_bytes(safetensors(tensors))
    assert convert(tmp_path / "sd", tmp_path / "run", "celebahq256", *LAYERS) == 2
    assert "CLIP, as in Stable Diffusion, which is not supported" in capsys.readouterr().err
