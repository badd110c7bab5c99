"""Shared fixtures. Tests choose their precision: theorems run in float64, what users run in float32."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def x64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """Runs a test in both precisions; gives the name."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A cache directory in which the digits are prepared once."""
    return tmp_path_factory.mktemp("data")
