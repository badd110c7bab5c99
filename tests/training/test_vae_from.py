"""A run with the VAE of another run: what it takes and refuses, and that it resumes and is evaluated like any run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import save_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.sampling.run import Run
from lsgm_jax.training import train as training
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.train import train
from tests import tiny
from tests.training.test_resume import final_state

FROZEN = (
    "--config.train.freeze_vae=True",
    "--config.train.steps=4",
    "--config.train.log_every=2",
    "--config.train.eval_every=2",
    "--config.joint_vae.weight_decay=0.5",
    "--config.objective.inactive_kl=1e-4",
)


def donated(config):
    """What the first stage of a run finds."""
    return training._donated(experiment(config), config)


def save(workdir, stage, params):
    with Checkpoints(workdir / "checkpoints" / stage) as checkpoints:
        checkpoints.save_finished(7, params, {"config": {}, "data": {}})


def silenced(vae, channel=0):
    """Makes the encoder draw this channel from N(0, 1) for every image."""
    layer = vae["encoder"]["posterior"]
    channels = layer["bias"].size // 2  # means, then standard deviations
    silent = jnp.arange(2 * channels) % channels == channel
    layer = jax.tree.map(lambda leaf: jnp.where(silent, 0.0, leaf), layer)
    return vae | {"encoder": vae["encoder"] | {"posterior": layer}}


@pytest.fixture(scope="module")
def donor(tmp_path_factory, data_dir):
    """A finished run whose stages have different VAEs, and its parameters."""
    workdir, config = tmp_path_factory.mktemp("donor"), tiny.config(data_dir)
    params = jax.jit(experiment(config).model.init)(jax.random.key(5))
    params["vae"] = silenced(params["vae"])
    save_config(workdir / "config.json", config)
    save(workdir, "joint", params)
    save(workdir, "vae", jax.tree.map(jnp.zeros_like, params["vae"]))
    return workdir, params


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, data_dir, donor):
    """A run that trains a prior for the donor's VAE, without its inactive channel."""
    workdir = tmp_path_factory.mktemp("frozen")
    train(config(data_dir, donor), workdir)
    return workdir


def config(data_dir, donor, *overrides):
    return tiny.config(data_dir, f"--config.train.vae_from={donor[0]}", *FROZEN, *overrides)


def test_the_vae_is_the_donors_and_the_prior_learns(frozen, donor):
    assert [path.name for path in (frozen / "checkpoints").iterdir()] == ["joint"]
    state, ema, _ = final_state(frozen)
    for params in (state["params"], ema):
        tiny.assert_trees_equal(params["vae"], donor[1]["vae"])
    moments = state["opt_state"]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(moments) if np.ndim(leaf) > 1)
    last = ema["score_net"]["eps"]["kernel"]  # zero in a fresh network
    assert np.any(last)


def test_the_inactive_channel_is_masked(frozen):
    """In the EMA parameters, which the other commands open."""
    params, _ = Run.open(frozen).best()
    np.testing.assert_array_equal(params["state"]["active"], [0, 1])
    assert params["mixing_logit"][0] < -14.0 < params["mixing_logit"][1]


def test_it_resumes(frozen, donor, data_dir, tmp_path):
    """Bit for bit: inactive channels are restored, not detected again."""
    shutil.copytree(frozen, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "joint" / "4")
    train(config(data_dir, donor), tmp_path / "again")
    tiny.assert_trees_equal(final_state(frozen), final_state(tmp_path / "again"))


def test_it_is_sampled_and_evaluated(frozen, capsys):
    few = ["--solver=Heun", "--steps=2"]
    assert cli.main(["sample", f"--workdir={frozen}", *few, "--count=2"]) == 0
    assert cli.main(["evaluate", f"--workdir={frozen}", "--metrics=nelbo", "--config.eval.draws=1"]) == 0
    report = json.loads((frozen / "report.json").read_text())
    assert np.isfinite([report["nelbo_lsgm"], report["nelbo_lsgm_vae_gaussian_prior"]]).all()
    # There is no first stage to compare with.
    assert not any(name.startswith(("nelbo_vae", "improvement")) for name in report)
    capsys.readouterr()


def test_a_run_of_the_first_stage_alone_is_a_donor(donor, data_dir, tmp_path):
    """If the donor has both stages, the VAE is that of the last one."""
    assert np.any(taken_from(donor[0], data_dir)["decoder"]["stem"]["kernel"])
    shutil.copy(donor[0] / "config.json", tmp_path)
    shutil.copytree(donor[0] / "checkpoints" / "vae", tmp_path / "checkpoints" / "vae")
    assert not np.any(taken_from(tmp_path, data_dir)["decoder"]["stem"]["kernel"])


def taken_from(workdir, data_dir):
    return donated(tiny.config(data_dir, f"--config.train.vae_from={workdir}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("autoencoder.latent_channels=3", r"holds a run with autoencoder.latent_channels=2, not 3"),
        ("data.levels=16", r"holds a run with data.levels=17, not 16"),
        ("likelihood.name=discretised_logistic", r"holds a run with likelihood.name='categorical', not"),
        (
            "train.vae_from=/nowhere",
            r"no run in /nowhere: there is no config.json; train one with  lsgm train",
        ),
    ],
)
def test_another_vae_is_refused(donor, data_dir, tmp_path, override, message):
    """Before anything is written, and in one line."""
    with pytest.raises(ConfigError, match=message) as error:
        train(config(data_dir, donor, f"--config.{override}"), tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
