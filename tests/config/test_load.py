"""Configs: every mistake ends in one line that names the key, what is allowed, and the nearest match."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from lsgm_jax.config.factory import Sections, experiment
from lsgm_jax.config.load import differences, load_config, override, read_config, save_config
from lsgm_jax.config.registry import LIKELIHOODS
from lsgm_jax.errors import ConfigError
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.weightings import unweighted
from lsgm_jax.solvers.grids import Quadratic
from tests.tiny import CONFIG, model


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.scroe.name=x", "config.scroe does not exist: there are .*did you mean 'score'"),
        ("--config.train.stesp=5", "config.train.stesp does not exist: train takes .*did you mean 'steps'"),
        (
            "--config.score.name=unte",
            "config.score.name='unte' is none of unet, ncsnpp, ldm, dit, mlp; did you mean 'unet'",
        ),
        ("--config.train.steps=many", "config.train.steps=many"),
        ("--config.train.steps=1.5", "config.train.steps=1.5"),
        ("--config.train.steps=0", "config.train: steps=0: give a positive number"),
        ("--config.train.steps", "has no value"),
        ("--config.process.beta_min=-1", "config.process: .*needs 0 < beta_min <= beta_max"),
        ("--config.score.channels=()", "config.score: channels=\\(\\): give one positive width"),
        (
            "--config.score.channels=(8,8,8,8)",
            "config.score: a latent of shape \\(4, 4, 4\\): 4 levels need sides divisible by 8; give fewer levels",
        ),
        ("--config.autoencoder.dropout=1.5", "config.autoencoder: dropout=1.5"),
        ("--config.density.t_min=0", "config.density.t_min=0.0: the process has no noise there"),
        ("--config.eval.draws=0", "config.eval: draws=0"),
        ("--config.data=3", "config.data is a section: set one of batch_size"),
        ("--config.objective.weighting=liklihood", "is none of .*did you mean 'likelihood'"),
        ("--config.data.image_shape=(9,8,1)", "cannot be halved 1 times"),
        ("--config.data.image_shape=(8,8)", "config.data: image_shape=.*give .height, width, channels"),
        ("--config.data.splits=('train','test')", "config.data: splits=.*one each"),
        ("--config.likelihood.name=bernoulli", "2 grey levels, got levels=17: set data.levels=2"),
        (
            "--config.likelihood.name=mixture_of_logistics",
            "config.likelihood: .* cannot describe 1-channel images: use discretised_logistic",
        ),
        ("--config.solver.name=Dopri6", "config.solver.name='Dopri6' is none of .*did you mean 'Dopri8'"),
        ("--config.solver.name=Euler", "config.sampling: solver 'Euler' has no error estimate"),
        ("--config.steps.name=linear", "config.steps.steps is missing"),
        ("--config.steps.per=image", "config.steps: per='image' is none of sample, batch, hardest"),
        ("--config.sampling.denoise=once", "config.sampling: denoise='once' is none of"),
        ("--config.solver.eta=0.5", "config.solver.eta does not exist: solver takes name"),
        ("--config.divergence.probes=0", "config.divergence: probes=0"),
        (
            "--config.objective.encoder_uses_ema=True",
            "encoder_uses_ema=True needs a separate t for the encoder: set config.encoder_density.name",
        ),
        ("--config.objective.inactive_kl=-1.0", "inactive_kl=-1.0: give nats, or 0 to keep all channels"),
        ("--config.train.vae_steps=0", "config.train: vae_steps=0: give a positive number of steps"),
        ("--config.train.ema_decay=1.0", "config.train: ema_decay=1.0: give a decay rate in"),
        ("--config.joint_vae_penalty.weight=-1.0", "config.joint_vae_penalty: weight=-1.0: a penalty needs"),
        ("--config.joint_kl.steps=-1", "config.joint_kl: constant=0, steps=-1: give numbers of steps"),
        ("--config.joint_prior.clip=-1.0", "config.joint_prior: clip=-1.0: give the greatest norm"),
    ],
)
def test_mistakes_get_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        experiment(load_config(CONFIG, [override]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return {}", "does not load"),
        ("import nosuchmodule", "does not load: ModuleNotFoundError"),
        ("def get_config(:", "does not load: SyntaxError"),
        (
            "def get_config(): raise ValueError('no such variant')",
            "does not load: ValueError: no such variant",
        ),
        ("def get_config(): raise ValueError", "does not load: ValueError"),
    ],
)
def test_config_files_that_do_not_load_are_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(path), [])
    assert "broken.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_config_file_lists_those_there(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent.parent)
    with pytest.raises(
        ConfigError, match=r"no config file configs/digit\.py: there are .*did you mean 'configs/digits.py'"
    ):
        load_config("configs/digit.py", [])


def test_overrides_keep_the_type_of_the_field():
    config = load_config(
        CONFIG, ["--config.train.steps=7", "--config.autoencoder.channels=(4,8)", "--config.seed=3"]
    )
    assert (config.train.steps, config.autoencoder.channels, config.seed) == (7, (4, 8), 3)


def test_defaults_are_filled_in_from_the_target():
    config = load_config(CONFIG, [])
    assert config.process.beta_max == 20.0
    assert config.solver.name == "Tsit5"


def test_another_name_resets_its_section():
    config = load_config(CONFIG, ["--config.process.sigma2_max=0.99", "--config.process.name=geometric_vp"])
    assert config.process.to_dict() == {
        "name": "geometric_vp",
        "sigma2_min": 3e-5,
        "sigma2_max": 0.99,
        "sigma2_0": None,
    }
    assert Sections(config)("process").sigma2_max == 0.99


def test_a_number_that_may_be_left_out_can_be_set():
    config = load_config(CONFIG, ["--config.process.name=cld", "--config.process.friction=1.5"])
    assert Sections(config)("process").friction == 1.5
    config = load_config(CONFIG, ["--config.process.name=cld"])
    assert Sections(config)("process").friction is None


@pytest.mark.parametrize(
    ("override", "value"), [("embedding_dim=16", 16), ("fir=(1.0,2.0,1.0)", (1.0, 2.0, 1.0))]
)
def test_what_may_be_left_out_keeps_its_type(override, value):
    """A whole number stays one, and an optional tuple can be set."""
    mnist = CONFIG.replace("digits.py:quick", "lsgm_mnist.py:quick")
    config = load_config(mnist, [f"--config.score.{override}"])
    given = config.score[override.split("=")[0]]
    assert given == value
    assert type(given) is type(value)


def test_a_learning_rate_may_start_and_end_where_one_wants():
    """An optional number of steps is an integer; without `final` the rate is constant."""
    lines = ("name=adam", "learning_rate=1e-4", "b1=0.5", "start=1e-6", "decay_steps=500", "final=1e-5")
    config = load_config(CONFIG, [f"--config.joint_prior.{line}" for line in lines])
    assert config.joint_prior.to_dict() == {
        **dict(name="adam", learning_rate=1e-4, final=1e-5, warmup=100, start=1e-6, decay_steps=500),
        **dict(clip=50.0, b1=0.5, b2=0.999, eps=1e-8),
    }
    experiment(config)
    with pytest.raises(
        ConfigError, match=r"config\.joint_prior: decay_steps=50: give more than the warmup=100"
    ):
        experiment(load_config(CONFIG, ["--config.joint_prior.decay_steps=50"]))


def test_a_density_names_its_weighting():
    config = load_config(CONFIG, ["--config.density.name=optimal", "--config.density.weighting=unweighted"])
    assert experiment(config).model.prior.objective.density.weighting is unweighted
    config = load_config(CONFIG, ["--config.density.name=optimal", "--config.density.weighting=unweigted"])
    with pytest.raises(ConfigError, match=r"density: .*'unweigted' is none of .*did you mean 'unweighted'"):
        experiment(config)
    other = ["--config.encoder_density.name=optimal", "--config.encoder_density.weighting=unweigted"]
    with pytest.raises(ConfigError, match=r"config\.encoder_density: weighting='unweigted'"):
        experiment(load_config(CONFIG, other))


def test_runs_from_before_a_section_existed_still_load(tmp_path):
    tree = load_config(CONFIG, []).to_dict()
    del tree["encoder_density"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert experiment(read_config(tmp_path / "config.json")).model.prior.objective.encoder_density is None


def test_solver_steps_can_be_set():
    """A number of steps has no default, but takes an override as if it had one."""
    config = load_config(CONFIG, ["--config.steps.name=quadratic", "--config.steps.steps=20"])
    assert experiment(config).sampler.steps == Quadratic(steps=20)
    with pytest.raises(ConfigError, match="steps=few: give int"):
        load_config(CONFIG, ["--config.steps.name=quadratic", "--config.steps.steps=few"])


def test_only_sampling_and_scoring_change_after_training():
    config = override(load_config(CONFIG, []), ["--config.solver.name=Heun", "--config.steps.rtol=0.1"])
    assert (config.solver.name, config.steps.rtol) == ("Heun", 0.1)
    with pytest.raises(ConfigError, match=r"config.seed belongs to what was trained: only solver, steps, "):
        override(config, ["--config.seed=1"])


def test_saving_and_reading_is_lossless(tmp_path):
    config = load_config(CONFIG, [])
    save_config(tmp_path / "config.json", config)
    assert differences(config, read_config(tmp_path / "config.json")) == []


def test_differences_name_the_keys():
    old, new = load_config(CONFIG, []), load_config(CONFIG, ["--config.data.batch_size=8"])
    assert differences(old, new) == ["data.batch_size=64, not 8"]


@pytest.mark.parametrize("name", [7, None, ["Heun"], {"a": 1}])
def test_a_name_in_a_saved_config_that_is_no_text_is_refused(tmp_path, name):
    tree = load_config(CONFIG, []).to_dict()
    tree["solver"]["name"] = name
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"config\.solver"):
        read_config(tmp_path / "config.json")


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_fits_a_model(name):
    """The decoder emits as many features as the likelihood reads."""
    levels = 2 if "bernoulli" in name else 32
    channels = 3 if "mixture" in name else 1
    shape = f"--config.data.image_shape=(8,8,{channels})"
    vae = model(f"--config.likelihood.name={name}", f"--config.data.levels={levels}", shape).vae
    assert getattr(vae.likelihood, "levels", levels) == levels
    x = jnp.ones((2, 8, 8, channels))
    loss, _ = vae.loss(vae.init(jax.random.key(0)), Batch(x), jax.random.key(1))
    assert jnp.isfinite(loss)


def test_a_border_must_leave_pixels():
    overrides = ["likelihood.name=cropped_bernoulli", "likelihood.border=4", "data.levels=2"]
    with pytest.raises(ConfigError, match=r"config\.likelihood: border=4 leaves nothing of 8 x 8 pixels"):
        experiment(load_config(CONFIG, [f"--config.{override}" for override in overrides]))
