"""Shared fixtures. Tests choose their precision: theorems run in float64, what users run in float32."""

import collections
import gc
import os
import pathlib
import shutil

# As the `lsgm` command sets it, and before the first import of Equinox: programs with its checks cannot be cached.
os.environ.setdefault("EQX_ON_ERROR", "nan")

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
        # So is one piece of code per program, where two workers share the cores, by a seventh.
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
# Compiled programs are kept until the end: to look through them for garbage, again and again, is a tenth of the time.
gc.set_threshold(50_000, 20, 50)
CACHE_BYTES = 2 * 2**30
# Modules of more than a minute each.
LONG = (
    "test_request.py",
    "test_main.py",
    "test_precision.py",
    "test_cld.py",
    "test_own_solvers.py",
    "test_resume.py",
)

# Written by `durations.py`: test functions, and single cases.
SLOW = frozenset(pathlib.Path(__file__).with_name("slow.txt").read_text().split())


def pytest_itemcollected(item):
    """Marks the tests that were measured to be slow, unless they are slow by nature."""
    if SLOW & {item.nodeid, item.nodeid.split("[")[0]} and item.get_closest_marker("slow") is None:
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.listed)


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


def pytest_configure(config):
    """Workers, the commands that they start, and later sessions share one cache of compiled programs.

    Its keys are the programs and the options of the compiler, so that it is right for any state of the package.
    `--cache-clear` empties it, and so does a session that finds more than `CACHE_BYTES` in it.
    """
    if not hasattr(config, "cache") or hasattr(config, "workerinput"):  # workers inherit the environment
        return
    folder = config.cache.mkdir("xla")
    if sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) > CACHE_BYTES:
        shutil.rmtree(folder)
        folder.mkdir()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(scope="session", autouse=True)
def compilation_cache():
    """The cache of `pytest_configure`, which JAX has been imported too early to find by itself."""
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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


def scope_of(nodeid):
    """Modules stay on one worker, for their tests share what they train; those of parity share nothing."""
    module = nodeid.split("::")[0]
    return nodeid if module.endswith("test_oracles.py") else module


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """On workers, modules that take long go first, then the others by the number of their tests."""
    if hasattr(config, "workerinput"):
        tests = collections.Counter(scope_of(item.nodeid) for item in items)
        items.sort(key=lambda item: (item.path.name not in LONG, -tests[scope_of(item.nodeid)]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers take scopes in the order of their first tests."""
    from xdist.scheduler import LoadFileScheduling

    class ByScope(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid)

    config.option.loadscopereorder = False
    return ByScope(config, log)
