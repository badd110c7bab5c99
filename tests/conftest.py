"""Shared fixtures. Tests choose their precision: theorems run in float64, what users run in float32."""

import gc
import os
import pathlib

import jax
import jaxlib
import pytest

jax.config.update("jax_platforms", "cpu")
# Most programs here run once, and the compiler would spend more time on improving them than they take. Without that
# numbers change by rounding alone. Subprocesses inherit it; `make test-all` says 0, and tests what users run.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    jax.config.update("jax_disable_most_optimizations", True)
    # The older code generator is twice as quick. Other versions may not know the flag, and XLA dies of unknown ones.
    if jaxlib.__version__.startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
# Compiled programs are kept until the end: to look through them for garbage, again and again, is a tenth of the time.
gc.set_threshold(50_000, 20, 50)


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
    """Tests that train the same tiny model share its compiled programs; so do the commands that they start."""
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Forgets compiled programs after a module that left more than 5 GiB in memory: two workers share the machine."""
    yield
    if resident_bytes() > 5 * 2**30:
        jax.clear_caches()
        gc.collect()


def resident_bytes():
    """Memory of this process; 0 where the system does not say."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A cache directory in which the digits are prepared once."""
    return tmp_path_factory.mktemp("data")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Modules stay on one worker, for their tests share what they train; those of parity share nothing.

    Scopes of many tests go first, so that what is alone in its scope comes last.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByModule(LoadFileScheduling):
        def _split_scope(self, nodeid):
            module = super()._split_scope(nodeid)
            return nodeid if module.endswith("test_oracles.py") else module

    return ByModule(config, log)
