"""`lsgm convert` makes runs from official files, for sampling and evaluation; files that do not fit are refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.data.pipeline import training_batches
from lsgm_jax.data.points import PointSpec
from lsgm_jax.interop.ncsnpp import ncsnpp_state
from lsgm_jax.interop.nvae import nvae_state
from lsgm_jax.locks import Lock
from lsgm_jax.sampling.run import Run
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.loop import run_stage
from lsgm_jax.training.sharding import whole
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.stage import Course, Stage
from lsgm_jax.training.step import EMA
from tests.interop.test_official import listed, official_state, optimiser, wrapped
from tests.interop.write_torch import write_zip
from tests.tiny import ROOT, assert_trees_equal

LSGM_FILE = f"{ROOT}/configs/lsgm_mnist.py:quick"
LSGM_FIELDS = [
    "--config.data.image_shape=(16,16,1)",
    "--config.autoencoder.pre_cells=1",
    "--config.autoencoder.post_cells=1",
    "--config.score.channels=4",
]
CLD_FILE = f"{ROOT}/configs/cld_toy.py:quick"
CLD_FIELDS = ["--config.score.hidden=(128,128,128,128)", "--config.score.time_octaves=0"]


def convert(path, workdir, file, fields, *more):
    return cli.main(
        ["convert", f"--config={file}", f"--checkpoint={path}", f"--workdir={workdir}", *fields, *more]
    )


@pytest.fixture(scope="module")
def lsgm():
    """Returns a model, two draws of its parameters, and the official state dicts of both."""
    model = experiment(load_config(LSGM_FILE, LSGM_FIELDS)).model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32)
    # All channels are active, as in evaluation by the official code.
    active = {"state": {"active": np.ones(model.latent_shape[-1], np.float32)}}
    both = [jax.tree.map(draw, shapes) | active for _ in range(2)]
    return model, both, [official(model, params) for params in both]


def official(model, params):
    vae = {"params": params["vae"]["net"], **params["vae"]["state"]}
    dae = ncsnpp_state({"params": params["score_net"]}, model.prior.net.module, model.latent_shape)
    dae["mixing_logit"] = np.asarray(params["mixing_logit"]).reshape(1, -1, 1, 1)
    return nvae_state(vae, model.vae.backbone.net), dae


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_a_second_stage_becomes_a_run(tmp_path, capsys, lsgm, weights):
    """The run has the parameters of the file, and samples without its data set."""
    _, (last, average), ((vae, dae), (_, ema)) = lsgm
    opt = optimiser([ema[name] for name in dae])
    write_zip(tmp_path / "lsgm.pt", {"vae": wrapped(vae), "dae": dae, "dae_opt": opt, "epoch": 9})
    workdir = tmp_path / "run"
    assert convert(tmp_path / "lsgm.pt", workdir, LSGM_FILE, LSGM_FIELDS, f"--weights={weights}") == 0
    assert "epoch 9; score network: " in capsys.readouterr().out
    run = Run.open(workdir)
    params, step = run.best()
    assert step == run.config.train.steps
    score = average if weights == "ema" else last
    assert_trees_equal(params, {**score, "vae": last["vae"]})
    if weights == "ema":
        assert cli.main(["sample", f"--workdir={workdir}", "--solver=Euler", "--steps=1", "--count=1"]) == 0
        assert np.isfinite(np.load(workdir / "samples.npz")["x"]).all()


def test_a_first_stage_becomes_the_vae_of_a_run(tmp_path, lsgm):
    _, (last, _), ((vae, _), _) = lsgm
    write_zip(tmp_path / "vae.pt", {"state_dict": vae})
    assert convert(tmp_path / "vae.pt", tmp_path / "run", LSGM_FILE, LSGM_FIELDS) == 0
    params, _ = Run.open(tmp_path / "run").best("vae")
    assert_trees_equal(params, last["vae"])


def test_a_finished_stage_is_not_trained_again(tmp_path):
    """Training therefore resumes after a converted first stage."""
    with Checkpoints(tmp_path / "checkpoints" / "vae") as checkpoints:
        checkpoints.save_finished(7, {"w": np.full(3, 2.0, np.float32)}, {})
    never = lambda *_: pytest.fail("the stage is finished")
    stage = Stage(
        name="vae",
        init=lambda key, before: {"w": jnp.zeros(3)},
        loss=never,
        optimiser=optax.sgd(0.1),
        ema=EMA(0.9),
        steps=7,
        validate=never,
        draw=never,
    )
    batches = training_batches(PointSpec(source="swiss_roll").open("test"), seed=0)
    course = Course(train=TrainSpec(steps=7), launcher=whole(), lock=Lock(tmp_path, None), config={})
    params = run_stage(stage, course, None, batches, jax.random.key(0), jax.random.key(1))
    np.testing.assert_array_equal(params["w"], 2.0)


def test_a_network_of_cld_becomes_a_run(tmp_path, capsys):
    """It samples, it is evaluated, and `train` finds it finished."""
    state = official_state("cld_mlp")[1]
    write_zip(tmp_path / "cld.pth", {"model": wrapped(state), "ema": listed(state.values()), "step": 5})
    workdir = tmp_path / "run"
    assert convert(tmp_path / "cld.pth", workdir, CLD_FILE, CLD_FIELDS) == 0
    assert cli.main(["sample", f"--workdir={workdir}", "--solver=Heun", "--steps=2", "--count=50"]) == 0
    assert cli.main(["evaluate", f"--workdir={workdir}", "--metrics=nelbo"]) == 0
    report = json.loads((workdir / "report.json").read_text())
    assert np.isfinite(report["nelbo_sgm"])
    assert "nelbo_sgm_bpd" not in report  # points are continuous
    capsys.readouterr()
    assert cli.main(["train", f"--config={CLD_FILE}", f"--workdir={workdir}", *CLD_FIELDS]) == 0
    assert "validation chose step 40" in capsys.readouterr().out
    assert not (workdir / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (CLD_FILE, [CLD_FIELDS[1], "--config.score.hidden=(64,)"], "cld.pth: tensors unknown: main.4"),
        (f"{ROOT}/configs/cld_cifar10.py:quick", [], "cld.pth: tensors missing: all_modules.0.W"),
        (
            LSGM_FILE,
            LSGM_FIELDS,
            "cld.pth: .*tensors missing: all_modules|cld.pth: holds a score network but no",
        ),
        (f"{ROOT}/configs/digits.py", [], "cld.pth: no official score network is a UNet: use a config with"),
        (
            CLD_FILE,
            ["--config.objective.mixed_score=nope"],
            "objective.mixed_score='nope' is none of none, gaussian",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_without_a_run(tmp_path, capsys, file, fields, message):
    write_zip(tmp_path / "cld.pth", official_state("cld_mlp")[1])
    assert convert(tmp_path / "cld.pth", tmp_path / "run", file, fields) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_and_an_existing_run_are_named(tmp_path, capsys):
    state = official_state("cld_mlp")[1]
    write_zip(tmp_path / "cld.pth", state)
    content = (tmp_path / "cld.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    assert convert(tmp_path / "cut.pth", tmp_path / "run", CLD_FILE, CLD_FIELDS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("cut.pth") == 1
    assert "damaged" in line
    assert convert(tmp_path / "cld.pth", tmp_path / "run", CLD_FILE, CLD_FIELDS) == 0
    capsys.readouterr()
    assert convert(tmp_path / "cld.pth", tmp_path / "run", CLD_FILE, CLD_FIELDS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds a run already: choose another --workdir" in line
