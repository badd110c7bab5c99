"""From a published checkpoint's file to our parameters: the state dicts of the fixtures, written as .pt files."""

import jax
import numpy as np
import pytest

from lsgm_jax.interop.errors import ConversionError
from lsgm_jax.interop.ncsnpp import ncsnpp_variables
from lsgm_jax.interop.nvae import nvae_variables
from lsgm_jax.interop.torch_file import read_torch
from tests.interop.write_torch import write_legacy, write_zip
from tests.parity.fixture import FOLDER, load
from tests.parity.nvae import nvae_module
from tests.parity.scores import image_side, lsgm_net

NVAES = sorted(path.stem for path in FOLDER.glob("lsgm_nvae_*.json"))
NETS = sorted(path.stem for path in FOLDER.glob("lsgm_ncsnpp_*.json"))


def official_state(name):
    fixture = load(name)
    state = {key.removeprefix("param/"): a for key, a in fixture.arrays.items() if key.startswith("param/")}
    return fixture, state


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("name", NVAES)
def test_an_nvae_survives_its_file(tmp_path, name, write):
    """Same variables from the file as from the arrays, of which test_oracles.py knows the outputs."""
    fixture, state = official_state(name)
    write(tmp_path / "vae.pt", {"epoch": 3, "vae_state_dict": state})
    read = read_torch(tmp_path / "vae.pt")["vae_state_dict"]
    height, width, channels = np.moveaxis(fixture.arrays["in/x"], 1, -1).shape[1:]
    module = nvae_module(fixture.spec["hyper_parameters"], state)
    convert = lambda state: nvae_variables(state, module, (height, width, channels))
    jax.tree.map(np.testing.assert_array_equal, convert(read), convert(state))


@pytest.mark.parametrize("name", NETS)
def test_a_score_network_survives_its_file(tmp_path, name):
    fixture, state = official_state(name)
    write_zip(tmp_path / "dae.pt", state)
    read, h = read_torch(tmp_path / "dae.pt"), fixture.spec["hyper_parameters"]
    side = image_side(h["dataset"]) // 2 ** (h["num_preprocess_blocks"] + h["num_latent_scales"] - 1)
    module, shape = lsgm_net(h), (side, side, h["num_input_channels"])
    convert = lambda state: ncsnpp_variables(state, module, shape)
    jax.tree.map(np.testing.assert_array_equal, convert(read), convert(state))


def test_the_file_of_another_model_is_refused(tmp_path):
    """An NVAE is no score network: one line that names the tensors."""
    write_zip(tmp_path / "vae.pt", official_state(NVAES[0])[1])
    h = load(NETS[0]).spec["hyper_parameters"]
    with pytest.raises(ConversionError, match="tensors missing: all_modules") as error:
        ncsnpp_variables(read_torch(tmp_path / "vae.pt"), lsgm_net(h), (16, 16, h["num_input_channels"]))
    assert "\n" not in str(error.value)
