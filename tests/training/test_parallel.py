"""Every launcher trains the same parameters on one device and on eight, simulated on CPU."""

import jax
import numpy as np
import pytest

from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.training.sharding import Sharded, bytes_per_device, whole
from tests import on_one_machine, tiny
from tests.training.launchers import CASES, MODEL

LOSSES = ("separable", "noisy")  # prefixes of cases; the noise-free loss has none


def launch(out, devices, *cases):
    """Returns the parameters after a few steps, by case and name."""
    on_one_machine.run_alone("tests.training.launchers", out, *cases, devices=devices)
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("one") / "out.npz", 1, "data", "separable data", "noisy data")


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("eight") / "out.npz", 8)


def of_case(arrays, case):
    return {
        name.removeprefix(f"{case}: "): leaf for name, leaf in arrays.items() if name.startswith(f"{case}: ")
    }


@pytest.mark.parametrize("case", [case for case in CASES if case != "noisy pmap"])
def test_one_device_equals_eight(one, eight, case):
    """Also for losses with random times and noise, except under `pmap`, whose devices have independent noise."""
    loss = next((f"{loss} " for loss in LOSSES if case.startswith(loss)), "")
    expected, found = of_case(one, f"{loss}data"), of_case(eight, case)
    assert expected.keys() == found.keys()
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_parameters_have_moved(one):
    """Otherwise the cases would agree trivially."""
    start = MODEL.init(jax.random.key(0))["vae"]["net"]["encode"]
    for case in ("data", "separable data", "noisy data"):
        assert np.abs(of_case(one, case)["[0]['vae']['net']['encode']"] - start).max() > 1e-2


def test_pmap_draws_other_noise_on_every_device(one, eight):
    first, second = of_case(one, "noisy data"), of_case(eight, "noisy pmap")
    assert max(float(np.abs(leaf - second[name]).max()) for name, leaf in first.items()) > 1e-3
    assert all(np.isfinite(leaf).all() for leaf in second.values())


# Sharding of the state


@pytest.mark.parametrize(
    ("shape", "shards", "spec"),
    [
        ((3, 3, 64, 128), 8, (None, None, None, "shards")),  # the longest axis
        ((3, 3, 128, 64), 8, (None, None, "shards")),
        ((3, 3, 64, 64), 8, (None, None, None, "shards")),  # the last of several
        ((3, 3, 64, 90), 8, (None, None, "shards")),  # the longest that 8 divides
        ((9, 9, 9, 9), 8, ()),
        ((512,), 8, ()),  # fewer than `smallest` elements
        ((3, 3, 64, 128), 1, ()),
    ],
    ids=str,
)
def test_the_longest_divisible_axis_is_sharded(shape, shards, spec):
    assert tuple(Sharded().spec(shape, shards)) == spec


def test_each_of_eight_devices_holds_an_eighth_of_the_published_state():
    state = tiny.training_state(load_config(str(tiny.ROOT / "configs" / "lsgm_cifar10.py"), []))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert bytes_per_device(state, Sharded(), 1) == total
    assert bytes_per_device(state, whole(), 8) == total
    assert total / 8 <= bytes_per_device(state, Sharded(), 8) <= 1.15 * total / 8
    assert bytes_per_device(state, Sharded(shards=2), 8) > total / 2


def test_a_number_of_shards_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(
        ValueError, match="shards=3 does not divide 1 devices: choose a divisor, or 0 for all"
    ):
        _ = Sharded(shards=3).mesh


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "parallel.name=fdsp",
            "config.parallel.name='fdsp' is none of data, fsdp, pmap; did you mean 'fsdp'?",
        ),
        ("parallel.shards=2", "config.parallel.shards does not exist"),
    ],
)
def test_unknown_launchers_and_fields_are_refused(override, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        tiny.config("", f"--config.{override}")
