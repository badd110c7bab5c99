"""The published configs build the published networks: parameter counts, by shapes alone."""

import pathlib

import jax
import pytest

from lsgm_jax.config.factory import Sections, experiment
from lsgm_jax.config.load import differences, load_config
from lsgm_jax.evaluation.model_size import count_parameters
from lsgm_jax.nn.network import trainable
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# Autoencoder, and score network with its mixing logits, as the originals count them.
PUBLISHED = {
    "lsgm_mnist.py": (3_005_822, 63_774_544),
    "lsgm_omniglot.py": (5_384_190, 97_804_152),
    "lsgm_cifar10.py:fid": (100_867_740, 375_561_064),
    "lsgm_cifar10.py:balanced": (100_867_740, 375_561_064),
    "lsgm_cifar10.py:nll": (130_622_772, 375_561_064),
    "lsgm_celebahq256.py:quantitative": (51_296_572, 408_367_680),
    "lsgm_celebahq256.py:qualitative": (17_789_540, 440_116_368),
    "lsgm_celebahq256.py:qualitative_stage3": (17_789_540, 680_827_984),
}
CLD = {
    "cld_cifar10.py": 107_593_859,
    "cld_celebahq256.py:paper": 65_466_371,
    "cld_celebahq256.py:post_paper": 103_073_795,
}
# Millions, of the denoiser, the first stage and the conditioner; and the rate of learning, where it is known.
LDM = {
    "celebahq256": (274.1, 55.3, 0.0, 9.6e-5),
    "ffhq256": (274.1, 55.3, 0.0, 8.4e-5),
    "bedrooms256": (274.1, 55.3, 0.0, 9.6e-5),
    "churches256": (295.0, 83.7, 0.0, 5e-5),
    "imagenet256": (395.0, 67.7, 0.5, 6.4e-5),
    "imagenet256_guided": (400.9, 55.3, 0.5, 1e-4),
    "text2img": (872.3, 83.7, 542.9, 1e-4),
    "text2img256": (403.6, 55.3, 166.6, 5.6e-5),
    "upscaling": (113.6, 55.3, 0.0, 6.4e-5),
    "inpainting": (387.3, 53.2, 0.0, None),
}
# Millions; the batch of the published model.
LDM_FIRST_STAGES = {
    "kl-f4": (55.3, 10),
    "kl-f8": (83.7, 4),
    "kl-f16": (69.6, 6),
    "kl-f32": (103.9, 6),
    "vq-f4": (55.3, 8),
    "vq-f4-noattn": (53.2, 8),
    "vq-f8": (67.7, 10),
    "vq-f8-n256": (67.7, 10),
    "vq-f16": (69.6, 14),
}
QUICK = [
    "lsgm_mnist.py:quick",
    "lsgm_mnist.py:cld,quick",
    "lsgm_cifar10.py:fid,quick",
    "lsgm_celebahq256.py:qualitative,quick",
]
# LSGM-CLD, and the config with VPSDE that it comes from.
LSGM_CLD = {
    "digits.py:cld": "digits.py",
    "lsgm_mnist.py:cld": "lsgm_mnist.py",
    "lsgm_cifar10.py:cld": "lsgm_cifar10.py:fid",
}


@pytest.mark.parametrize(
    "config",
    [name if name == "lsgm_mnist.py" else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED],
)
def test_published_configs_have_the_published_size(config):
    model = experiment(load_config(str(CONFIGS / config), [])).model
    params = trainable(jax.eval_shape(model.init, jax.random.key(0)))
    counts = (
        count_parameters(params["vae"]),
        count_parameters([params["score_net"], params["mixing_logit"]]),
    )
    assert counts == PUBLISHED[config]


@pytest.mark.parametrize("config", [pytest.param(name, marks=pytest.mark.slow) for name in CLD])
def test_published_cld_configs_have_the_published_size(config):
    """Of what is trained; the Fourier frequencies of CIFAR-10's network are not."""
    params = jax.eval_shape(experiment(load_config(str(CONFIGS / config), [])).model.init, jax.random.key(0))
    assert count_parameters(trainable(params)) == CLD[config]


@pytest.mark.parametrize(
    ("config", "added"),
    [("cld_cifar10.py", 1e-9), ("cld_celebahq256.py:paper", 1e-6), ("cld_celebahq256.py:post_paper", 1e-6)],
)
def test_published_cld_configs_have_the_published_numerical_eps(config, added):
    """So do the runs of converted checkpoints, whose networks were trained with it."""
    assert load_config(str(CONFIGS / config), []).process.numerical_eps == added


def ldm(variant):
    return load_config(f"{CONFIGS}/ldm.py:{variant}", [])


def millions(params):
    """To the digit that is known, which of inpainting's denoiser (387,245,827) is rounded twice."""
    return pytest.approx(count_parameters(trainable(params)) / 1e6, abs=0.055)


@pytest.mark.parametrize(
    "variant", [name if name == "upscaling" else pytest.param(name, marks=pytest.mark.slow) for name in LDM]
)
def test_published_priors_of_latents_have_the_published_size(variant):
    params = jax.eval_shape(experiment(ldm(variant)).model.init, jax.random.key(0))
    conditioner = params.get("conditioner", {})
    sizes = (millions(params["score_net"]), millions(params["first_stage"]), millions(conditioner))
    assert LDM[variant][:3] == sizes
    if variant.startswith("imagenet"):  # a token per class, and one for none of them
        assert count_parameters(conditioner) == 1001 * 512


@pytest.mark.parametrize("variant", LDM)
def test_published_priors_of_latents_learn_at_the_published_rate(variant):
    """What the authors' code makes of a base rate, the batch and a schedule."""
    config = ldm(variant)
    optimiser, published = config.optimiser, LDM[variant][3]
    rate = Sections(config)("optimiser").schedule(config.train.steps)
    # Schedules are float32.
    at = lambda step: pytest.approx(float(rate(step)), rel=1e-5, abs=1e-6 * optimiser.learning_rate)
    if variant == "inpainting":  # multiples of a base rate
        assert [1e-6 * 128 * factor for factor in (1e-3, 0.1, 1e-4, 1e-4)] == [
            at(step) for step in (0, 1000, 50_000, config.train.steps)
        ]
    elif variant == "churches256":
        assert [at(step) for step in (0, 10_000, 400_000)] == [1e-6 * 5e-5, 5e-5, 5e-5]
    else:
        assert [published, published] == [at(step) for step in (0, config.train.steps)]


@pytest.mark.parametrize("variant", LDM_FIRST_STAGES)
def test_published_first_stages_have_the_published_size_and_rate(variant):
    config, (size, batch) = ldm(variant), LDM_FIRST_STAGES[variant]
    params = jax.eval_shape(experiment(config).model.first_stage.init, jax.random.key(0))
    assert size == millions(params)
    assert config.first_stage.learning_rate == pytest.approx(4.5e-6 * batch)
    assert config.data.batch_size == batch


@pytest.mark.parametrize(
    "variant", ["churches256", "imagenet256_guided", "text2img", "upscaling", "inpainting"]
)
def test_quick_variants_of_latent_diffusion_trace_through_all_stages(variant):
    config = ldm(f"{variant},quick")
    model = experiment(config).model
    key = jax.eval_shape(lambda: jax.random.key(0))
    training = experiment(config).training.adversarial
    x = jax.ShapeDtypeStruct((2, *model.data_shape), "float32")
    step = lambda p, x, k: training.loss(p, Batch(x), k, 0)[0]
    assert jax.eval_shape(step, jax.eval_shape(training.init, key), x, key).shape == ()
    params = jax.eval_shape(model.init, key)
    condition = None if model.task else model.prior.conditioning.null(2)
    assert jax.eval_shape(model.loss, params, Batch(x, condition), key)[0].shape == ()
    sampler = Sampler(method=METHODS["DDIM"](), steps=Linear(steps=2), t_min=1e-3)
    images, _ = jax.eval_shape(lambda p, k: model.sample(p, k, 2, sampler), params, key)
    assert images.shape == x.shape


LDM_CONFIGS = [f"ldm.py:{variant}" for variant in (*LDM, *LDM_FIRST_STAGES)]


@pytest.mark.parametrize("config", [*PUBLISHED, *CLD, *LSGM_CLD, *LDM_CONFIGS, "cld_toy.py", "digits.py"])
def test_every_config_builds_and_has_a_quick_variant(config):
    """The quick one has the same model at other sizes, and trains for at most a hundred steps."""
    published = load_config(str(CONFIGS / config), [])
    quick = load_config(str(CONFIGS / config) + (",quick" if ":" in config else ":quick"), [])
    assert type(experiment(published).model) is type(experiment(quick).model)
    assert quick.train.steps <= 100 < published.train.steps
    for section in ("process", "density", "objective", "solver", "steps", "sampling"):
        assert quick[section].to_dict() == published[section].to_dict()


@pytest.mark.parametrize(
    ("config", "origin"), [*LSGM_CLD.items(), ("lsgm_mnist.py:cld,small", "lsgm_mnist.py:small")]
)
def test_lsgm_cld_differs_in_its_process_alone(config, origin):
    """And in the fixed part that its network is given."""
    config, origin = (load_config(str(CONFIGS / name), []) for name in (config, origin))
    changed = {text.split("=")[0] for text in differences(origin, config)}
    assert {"process.name", "objective.mixed_score"} <= changed
    assert all(key.startswith(("process.", "objective.mixed_score")) for key in changed)
    assert experiment(config).model.prior.fixed_part is gaussian_eps


@pytest.mark.parametrize("config", ["cld_cifar10.py:quick", "cld_celebahq256.py:post_paper,quick"])
def test_quick_variants_of_cld_trace_through_loss_and_sample(config):
    model = experiment(load_config(str(CONFIGS / config), [])).model
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)
    x = jax.ShapeDtypeStruct((2, *model.data_shape), "float32")
    assert jax.eval_shape(model.loss, params, Batch(x), key)[0].shape == ()
    sampler = Sampler(method=METHODS["Euler"](), steps=Linear(steps=2))
    images, _ = jax.eval_shape(lambda p, k: model.sample(p, k, 2, sampler), params, key)
    assert images.shape == x.shape


@pytest.mark.parametrize("config", QUICK)
def test_quick_variants_trace_through_loss_and_sample(config):
    """Shapes alone: NVAE, its statistics, the prior on its smallest scale, and samples back through the decoder."""
    model = experiment(load_config(str(CONFIGS / config), [])).model
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)
    x = jax.ShapeDtypeStruct((2, *model.vae.image_shape), "float32")
    value, aux = jax.eval_shape(model.loss, params, Batch(x), key)
    assert value.shape == ()
    assert jax.tree.structure(aux.state["vae"]["state"]) == jax.tree.structure(params["vae"]["state"])
    sampler = Sampler(method=METHODS["Euler"](), steps=Linear(steps=2))
    images, _ = jax.eval_shape(lambda p, k: model.sample(p, k, 2, sampler), params, key)
    assert images.shape == x.shape
