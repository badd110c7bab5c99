"""Shared fixtures. Tests choose their precision: theorems run in float64, what users run in float32."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")


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


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Tests that train the same tiny model share its compiled programs."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A cache directory in which the digits are prepared once."""
    return tmp_path_factory.mktemp("data")
