"""The published configs build the published networks: parameter counts, by shapes alone."""

import pathlib

import jax
import pytest

from lsgm_jax.build import build_lsgm, build_model
from lsgm_jax.config import differences, load_config
from lsgm_jax.diffusions.linear import normal_eps
from lsgm_jax.evaluation.count import count_parameters
from lsgm_jax.models.bound import Batch
from lsgm_jax.models.network import trainable
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
    model = build_lsgm(load_config(str(CONFIGS / config), []))
    params = trainable(jax.eval_shape(model.init, jax.random.key(0)))
    counts = (
        count_parameters(params["vae"]),
        count_parameters([params["score_net"], params["mixing_logit"]]),
    )
    assert counts == PUBLISHED[config]


@pytest.mark.parametrize("config", [pytest.param(name, marks=pytest.mark.slow) for name in CLD])
def test_published_cld_configs_have_the_published_size(config):
    """Of what is trained; the Fourier frequencies of CIFAR-10's network are not."""
    params = jax.eval_shape(build_model(load_config(str(CONFIGS / config), [])).init, jax.random.key(0))
    assert count_parameters(trainable(params)) == CLD[config]


@pytest.mark.parametrize("config", [*PUBLISHED, *CLD, *LSGM_CLD, "cld_toy.py", "digits.py"])
def test_every_config_builds_and_has_a_quick_variant(config):
    """The quick one has the same model at other sizes, and trains for at most a hundred steps."""
    published = load_config(str(CONFIGS / config), [])
    quick = load_config(str(CONFIGS / config) + (",quick" if ":" in config else ":quick"), [])
    assert type(build_model(published)) is type(build_model(quick))
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
    assert build_lsgm(config).fixed_part is normal_eps


@pytest.mark.parametrize("config", ["cld_cifar10.py:quick", "cld_celebahq256.py:post_paper,quick"])
def test_quick_variants_of_cld_trace_through_loss_and_sample(config):
    model = build_model(load_config(str(CONFIGS / config), []))
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
    model = build_lsgm(load_config(str(CONFIGS / config), []))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)
    x = jax.ShapeDtypeStruct((2, *model.vae.image_shape), "float32")
    value, aux = jax.eval_shape(model.loss, params, Batch(x), key)
    assert value.shape == ()
    assert jax.tree.structure(aux.carried["vae"]["carried"]) == jax.tree.structure(params["vae"]["carried"])
    sampler = Sampler(method=METHODS["Euler"](), steps=Linear(steps=2))
    images, _ = jax.eval_shape(lambda p, k: model.sample(p, k, 2, sampler), params, key)
    assert images.shape == x.shape
