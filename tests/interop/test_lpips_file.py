"""LPIPS from published files, at the real widths of VGG16, and as a term of a first stage's error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError, ConversionError
from lsgm_jax.interop.ldm_autoencoder import lpips_state
from lsgm_jax.interop.lpips_file import read_lpips
from lsgm_jax.interop.tables import as_float32
from tests import tiny
from tests.interop.write_torch import write_legacy, write_zip
from tests.tiny import ROOT, assert_trees_equal

# Where torchvision's VGG16 has its convolutions, by the groups of LPIPS.
LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def weights():
    """Returns variables, and their official state dict."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    fresh = jax.jit(LPIPS().init)(jax.random.key(0), jnp.zeros(image.shape), jnp.zeros(image.shape))
    heads = {
        name: np.random.default_rng(0).random(part.shape, np.float32)
        for name, part in fresh["params"].items()
        if name.startswith("head")
    }
    variables = as_float32({**fresh, "params": fresh["params"] | heads})
    return variables, lpips_state(variables, LPIPS())


@pytest.fixture(scope="module")
def lpips_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.pth"
    write_zip(path, weights[1])
    return path


def heads_of(state):
    return {name: tensor for name, tensor in state.items() if name.startswith("lin")}


def torchvision_of(state):
    """Returns the state dict of torchvision, with a classifier."""
    features = {"classifier.0.bias": np.zeros(4, np.float32)}
    for group, layers in enumerate(LAYERS):
        for layer in layers:
            for kind in ("weight", "bias"):
                features[f"features.{layer}.{kind}"] = state[f"net.slice{group + 1}.{layer}.{kind}"]
    return features


def test_one_file_or_the_checkpoint_of_a_first_stage_is_read(weights, lpips_file, tmp_path):
    """The checkpoint lacks the constants, which are known."""
    variables, state = weights
    assert_trees_equal(read_lpips(str(lpips_file)), variables)
    learned = {f"loss.perceptual_loss.{n}": t for n, t in state.items() if not n.startswith("scaling")}
    other = {"encoder.conv_in.weight": np.ones(3, np.float32), "loss.logvar": np.zeros((), np.float32)}
    write_legacy(tmp_path / "model.ckpt", {"state_dict": learned | other, "epoch": 3})
    assert_trees_equal(read_lpips(str(tmp_path / "model.ckpt")), variables)


@pytest.mark.parametrize("swapped", [False, True])
def test_two_files_with_torchvisions_network_and_the_heads_are_read(weights, tmp_path, swapped):
    variables, state = weights
    write_zip(tmp_path / "vgg16.pth", torchvision_of(state))
    write_zip(tmp_path / "vgg.pth", heads_of(state))
    paths = [f"{tmp_path}/vgg16.pth", f"{tmp_path}/vgg.pth"]
    assert_trees_equal(read_lpips(", ".join(reversed(paths) if swapped else paths)), variables)


def test_missing_weights_are_named(weights, tmp_path):
    _, state = weights
    for name, content in {
        "vgg16": torchvision_of(state),
        "heads": heads_of(state),
        "other": {"weight": np.ones(3, np.float32)},
        "cut": {name: t for name, t in state.items() if "slice5" not in name},
    }.items():
        write_zip(tmp_path / f"{name}.pth", content)
    for name, message in {
        "vgg16.pth": "vgg16.pth: holds VGG16 without the heads",
        "heads.pth": "heads.pth: holds heads without VGG16",
        "other.pth": "other.pth: holds no LPIPS: no tensor is called",
        "cut.pth": "cut.pth: tensors missing: net.slice5.24.bias",
        "none.pth": "none.pth: cannot be read",
        "vgg16.pth,": "are no paths of one file or two",
    }.items():
        with pytest.raises(ConversionError, match=message) as caught:
            read_lpips(f"{tmp_path}/{name}")
        assert len(str(caught.value).splitlines()) == 1


def training_of(*fields):
    config = load_config(f"{ROOT}/configs/ldm.py:kl-f8,quick", list(fields))
    return config, experiment(config).training.adversarial


def test_the_error_of_a_first_stage_includes_the_distance(weights, lpips_file):
    """At every pixel, with its weight, and with the gradient of the distance."""
    _, training = training_of(f"--config.perceptual.weights={lpips_file}", "--config.perceptual.weight=2.0")
    x, x_hat = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1.0)

    def total(measure):
        return jax.jit(jax.value_and_grad(lambda y: (measure(x, y).sum(), measure(x, y)), has_aux=True))(
            x_hat
        )

    (_, distance), apart = total(lambda x, y: LPIPS().apply(weights[0], x, y))
    (_, error), pull = total(training.error)
    expected = jnp.abs(x - x_hat) + 2.0 * distance[:, None, None, None]
    np.testing.assert_allclose(error, expected, rtol=1e-5)
    np.testing.assert_allclose(pull, jnp.sign(x_hat - x) + 2.0 * x[0].size * apart, rtol=1e-3, atol=1e-3)


def test_training_without_weights_warns(capsys):
    """Unless the weight of the distance is 0."""
    for fields, warnings in (((), 1), (("--config.perceptual.weight=0.0",), 0)):
        config, training = training_of(*fields)
        assert training.perceptual is None
        tiny.bare_stages(config)[0].adapt({})
        said = capsys.readouterr().err
        assert said.count("no perceptual weights, config.perceptual.weights") == warnings
        assert len(said.splitlines()) == warnings


def test_a_missing_file_is_an_error_of_the_config(tmp_path):
    """It is raised only when the weights are needed: sampling of the trained run does without them."""
    config, training = training_of(f"--config.perceptual.weights={tmp_path}/none.pth")
    tiny.bare_stages(config)[0].adapt({})
    with pytest.raises(ConfigError, match=r"config.perceptual.weights: .*none.pth: cannot be read"):
        training.error(jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 32, 32, 3)))
