"""`lsgm convert` of latent diffusion: our variables, written under their official names, become runs."""

import re

import jax
import numpy as np
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.conditioning.labels import Labels
from lsgm_jax.conditioning.text import Texts
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.interop.ldm_autoencoder import AutoencoderParts, discriminator_state, first_stage_state
from lsgm_jax.interop.ldm_text import text_encoder_state
from lsgm_jax.interop.ldm_unet import ldm_unet_state
from lsgm_jax.sampling.run import Run
from tests.interop.write_torch import write_zip
from tests.tiny import ROOT, assert_trees_equal

FILE = f"{ROOT}/configs/ldm.py"
TINY = [
    "--config.data.image_shape=(16,16,3)",
    "--config.discriminator.channels=4",
    "--config.discriminator.layers=2",
]
CLASSES = ["--config.conditioning.classes=10", "--config.conditioning.width=8"]
WORDS = ["--config.conditioning.length=6", "--config.conditioning.width=16"]


def tiny(variant, *fields):
    return load_config(f"{FILE}:{variant},quick", [*TINY, *fields])


def convert(path, workdir, variant, *fields):
    given = [f"--config={FILE}:{variant},quick", f"--checkpoint={path}", f"--workdir={workdir}"]
    return cli.main(["convert", *given, *TINY, *fields])


def drawn(shapes, seed):
    """Returns parameters with distinct values."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32), shapes)


def first_stage_of(model, params):
    """Returns the official state dict of a first stage."""
    stage = model.first_stage
    parts = AutoencoderParts(
        stage.encoder.module, stage.decoder.module, getattr(stage.bottleneck, "quantiser", None)
    )
    variables = {name: part if name == "codebook" else {"params": part} for name, part in params.items()}
    return first_stage_state(variables, parts)


def denoiser_of(model, params):
    channels = params["down_0_0"]["kernel"].shape[2]
    return ldm_unet_state({"params": params}, model.prior.net.module, channels)


def conditioner_of(model, params):
    conditioning = model.prior.conditioning
    if isinstance(conditioning, Labels):
        return {"embedding.weight": params["table"]["embedding"]}
    if isinstance(conditioning, Texts):
        logits = {"transformer.to_logits.weight": np.ones((3, 3), np.float32)}
        return text_encoder_state({"params": params}, conditioning.net) | logits
    return {}


def below(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def official(config, params, average=None):
    """Returns the state dict that Lightning would store, with the other entries of such files."""
    model = experiment(config).model
    other = {
        "loss.logvar": np.zeros((), np.float32),
        "loss.discriminator.main.0.bias": np.ones(4, np.float32),
    }
    state = below("model.diffusion_model.", denoiser_of(model, params["score_net"]))
    if average is not None:
        names = {name.replace(".", ""): t for name, t in denoiser_of(model, average["score_net"]).items()}
        state |= below("model_ema.diffusion_model", names)
        state |= {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(7)}
        state = {name: np.asarray(tensor) for name, tensor in state.items()}
    state |= below("first_stage_model.", first_stage_of(model, params["first_stage"]) | other)
    state |= below("cond_stage_model.", conditioner_of(model, params.get("conditioner")))
    return state | {"betas": np.asarray(model.prior.process.betas, np.float32)}


def written(path, state):
    write_zip(path, {"state_dict": state, "global_step": 5, "epoch": 2, "callbacks": {"best": 1.0}})


@pytest.fixture(scope="module")
def guided():
    """Returns the config of a class-conditional model, two draws of its parameters, and their state dict."""
    config = tiny("imagenet256_guided", *CLASSES)
    shapes = jax.eval_shape(experiment(config).model.init, jax.random.key(0))
    last, average = drawn(shapes, 0), drawn(shapes, 1)
    for params in (last, average):
        params["scale"] = np.float32(1.0)
    return config, last, average, official(config, last, average)


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_a_class_conditional_model_becomes_a_run(tmp_path, capsys, guided, weights):
    """Only the denoiser has an EMA."""
    _, last, average, state = guided
    written(tmp_path / "model.ckpt", state)
    workdir = tmp_path / "run"
    fields = [*CLASSES, f"--weights={weights}"]
    assert convert(tmp_path / "model.ckpt", workdir, "imagenet256_guided", *fields) == 0
    said = capsys.readouterr().out
    assert (
        "global_step 5, epoch 2; score network: "
        + {"ema": "EMA", "last": "weights of the last step"}[weights]
        in said
    )
    run = Run.open(workdir)
    params, step = run.best()
    assert step == run.config.train.steps
    expected = last | {"score_net": (average if weights == "ema" else last)["score_net"]}
    assert_trees_equal(params, expected)


def test_a_converted_run_samples(tmp_path, guided):
    written(tmp_path / "model.ckpt", guided[3])
    workdir = tmp_path / "run"
    assert convert(tmp_path / "model.ckpt", workdir, "imagenet256_guided", *CLASSES) == 0
    assert cli.main(["sample", f"--workdir={workdir}", "--steps=1", "--count=2", "--label=3"]) == 0
    assert np.load(workdir / "samples.npz")["x"].shape == (2, 16, 16, 3)


def test_an_estimated_scale_comes_from_the_file(tmp_path, guided):
    written(tmp_path / "model.ckpt", guided[3] | {"scale_factor": np.full((), 0.25, np.float32)})
    fields = [*CLASSES, "--config.objective.latent_scale=0.0"]
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", "imagenet256_guided", *fields) == 0
    assert Run.open(tmp_path / "run").best()[0]["scale"] == 0.25


def test_the_null_class_is_the_mean_if_the_file_has_none(tmp_path, guided):
    _, last, _, state = guided
    table = "cond_stage_model.embedding.weight"
    written(tmp_path / "model.ckpt", state | {table: np.ascontiguousarray(state[table][:10])})
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", "imagenet256_guided", *CLASSES) == 0
    tokens = Run.open(tmp_path / "run").best()[0]["conditioner"]["table"]["embedding"]
    np.testing.assert_array_equal(tokens[:10], last["conditioner"]["table"]["embedding"][:10])
    np.testing.assert_allclose(tokens[10], tokens[:10].mean(axis=0), rtol=1e-6)


def test_a_text_conditional_model_needs_its_vocabulary(tmp_path, capsys):
    """This one has a scale of its latents, and a head for logits that is ignored."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    fields = [*WORDS, f"--config.conditioning.pieces={len(words)}"]
    config = tiny("text2img", *fields)
    params = drawn(jax.eval_shape(experiment(config).model.init, jax.random.key(0)), 0)
    params["scale"] = np.float32(0.18215)
    written(tmp_path / "model.ckpt", official(config, params))
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", "text2img", *fields) == 2
    assert "config.conditioning.vocabulary has to be that of the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    fields.append(f"--config.conditioning.vocabulary={tmp_path}/vocab.txt")
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", "text2img", *fields) == 0
    run = Run.open(tmp_path / "run")
    assert_trees_equal(run.best()[0], params)
    pieces = run.conditions.request(1, prompt="A dog")(np.arange(1))
    np.testing.assert_array_equal(pieces, [[2, 5, 6, 3, 0, 0]])


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.model.visual.conv1.weight",
    ],
)
@pytest.mark.parametrize("variant", ["imagenet256_guided", "celebahq256"])
def test_clip_is_named_as_what_is_not_supported(tmp_path, capsys, guided, name, variant):
    """Whatever the config is, for none of them fits: no field of it is suggested."""
    state = {key: tensor for key, tensor in guided[3].items() if not key.startswith("cond_stage_model.")}
    written(tmp_path / "model.ckpt", state | {name: np.ones((3, 2), np.float32)})
    fields = CLASSES if variant == "imagenet256_guided" else []
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", variant, *fields) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "CLIP, as in Stable Diffusion, which is not supported" in line
    assert "conditioning.name" not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["inpainting", "upscaling"])
def test_models_of_inpainting_and_super_resolution_become_runs(tmp_path, capsys, variant):
    """The file of inpainting has the first stage twice; two different ones are refused."""
    config = tiny(variant)
    params = drawn(jax.eval_shape(experiment(config).model.init, jax.random.key(0)), 0)
    params["scale"] = np.float32(1.0)
    state = official(config, params)
    copy = {name.replace("first_stage_model", "cond_stage_model"): t for name, t in state.items()}
    copy = {name: t for name, t in copy.items() if name.startswith("cond_stage_model.")}
    full = state | (copy if variant == "inpainting" else {})
    written(tmp_path / "model.ckpt", full)
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", variant) == 0
    assert_trees_equal(Run.open(tmp_path / "run").best()[0], params)
    if variant == "inpainting":
        name = "cond_stage_model.encoder.conv_in.weight"
        written(tmp_path / "other.ckpt", full | {name: 2.0 * full[name]})
        assert convert(tmp_path / "other.ckpt", tmp_path / "other", variant) == 2
        assert "encoder.conv_in.weight differs" in capsys.readouterr().err


@pytest.mark.parametrize("with_discriminator", [True, False])
@pytest.mark.parametrize("variant", ["kl-f8", "vq-f4-noattn"])
def test_a_first_stage_becomes_the_first_stage_of_a_run(tmp_path, capsys, variant, with_discriminator):
    config = tiny(variant)
    model = experiment(config).model
    training = experiment(config).training.adversarial
    params = drawn(jax.eval_shape(training.init, jax.random.key(0)), 0)
    opponent = params["discriminator"]
    state = first_stage_of(model, params["first_stage"]) | {"loss.logvar": np.zeros((), np.float32)}
    if with_discriminator:
        variables = {"params": opponent["net"], **opponent["state"]}
        state |= below("loss.discriminator.", discriminator_state(variables, training.discriminator.module))
        state["loss.discriminator.main.3.num_batches_tracked"] = np.full((), 3)
    written(tmp_path / "model.ckpt", state)
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", variant) == 0
    assert "converted the first stage, global_step 5, epoch 2: train the second" in capsys.readouterr().out
    found, step = Run.open(tmp_path / "run").best("first_stage")
    assert step == config.train.first_stage_steps
    assert_trees_equal(found["first_stage"], params["first_stage"])
    if with_discriminator:
        assert_trees_equal(found["discriminator"], opponent)


REFUSED = {
    "no condition": (
        "celebahq256",
        [],
        "its conditions are classes, the config's none: set config.conditioning.name",
    ),
    "another width": (
        "imagenet256_guided",
        [CLASSES[0], "--config.conditioning.width=16"],
        "its classes are 11 tokens of width 8: set config.conditioning.width to 8",
    ),
    "another number of classes": (
        "imagenet256_guided",
        [CLASSES[1], "--config.conditioning.classes=7"],
        "its classes are 11 tokens of width 8: set config.conditioning.width to 8, classes to 11, or to 10",
    ),
    "texts for classes": (
        "text2img256",
        ["--config.conditioning.width=8", "--config.conditioning.pieces=9"],
        "its conditions are classes, the config's a text encoder",
    ),
    "another kind of first stage": (
        "text2img",
        [],
        r"its first stage has a codebook \(vq\), not a narrow Gaussian \(kl\): set config.autoencoder.name",
    ),
    "another first stage": (
        "imagenet256_guided",
        [*CLASSES, "--config.autoencoder.entries=32"],
        r"its first stage is not that of config.autoencoder: tensors of another shape: quantize.embedding.weight "
        r"\(64, 3\), not \(32, 3\)",
    ),
    "another denoiser": (
        "imagenet256_guided",
        [*CLASSES, "--config.score.blocks=2"],
        "its denoiser is not that of config.score: tensors missing: input_blocks",
    ),
    "another network": (
        "imagenet256_guided",
        [
            *CLASSES,
            "--config.score.name=unet",
        ],
        "no official denoiser is a UNet: set config.score.name='ldm'",
    ),
    "another schedule": (
        "imagenet256_guided",
        [*CLASSES, "--config.process.last=0.012"],
        "its process has 1000 variances from 0.0015 to 0.0195, not 1000 variances from 0.0015 to 0.012",
    ),
    "another process": (
        "imagenet256_guided",
        [*CLASSES, "--config.process.name=vp", "--config.density.name=uniform"],
        "its process has 1000 steps: set config.process.name='discrete_vp'",
    ),
    "no scale": (
        "imagenet256_guided",
        [*CLASSES, "--config.objective.latent_scale=0.0"],
        "does not say the scale of its latents: give config.objective.latent_scale",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path, capsys, guided, fault):
    variant, fields, message = REFUSED[fault]
    written(tmp_path / "model.ckpt", guided[3])
    assert convert(tmp_path / "model.ckpt", tmp_path / "run", variant, *fields) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_inconsistent_checkpoints_are_refused_in_one_line(tmp_path, capsys, guided):
    state = guided[3]
    one = next(name for name in state if name.startswith("model_ema.diffusion_model"))
    without = lambda start: {name: t for name, t in state.items() if not name.startswith(start)}
    odd = [
        (
            "imagenet256_guided",
            without(one),
            f"has an EMA, but not of its denoiser ({one} is missing): take  --weights=last",
        ),
        (
            "imagenet256_guided",
            state | {"scale_factor": np.full((), 0.5, np.float32)},
            "its latents have the scale 0.5, not config.objective.latent_scale=1.0",
        ),
        (
            "imagenet256_guided",
            without("first_stage_model"),
            "holds no first stage of latent diffusion, only state_dict, global_step, epoch, callbacks",
        ),
        ("celebahq256", without("cond_stage"), "looks at a context that is 8 wide, the config's has none"),
        ("upscaling", without("cond_stage"), "its denoiser takes maps of 3 channels, the config's 6"),
    ]
    for variant, content, message in odd:
        written(tmp_path / "odd.ckpt", content)
        fields = CLASSES if variant.startswith("imagenet") else []
        assert convert(tmp_path / "odd.ckpt", tmp_path / "run", variant, *fields) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
