"""Interrupted evaluations resume from the cache and end with the results of uninterrupted ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.evaluation import cache as module
from lsgm_jax.evaluation.cache import Cache, accumulate, digest
from lsgm_jax.evaluation.estimators import evaluate_images, importance_bound
from lsgm_jax.evaluation.features import Extractor, describe_images
from lsgm_jax.objectives.bound import Batch


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def save_every_job(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(module, "SHARE_OF_SAVING", np.inf)


def interrupted(function, after):
    """Returns the function, which raises after so many calls, and the list of its calls."""
    calls = []

    def call(*args):
        if len(calls) == after:
            raise Interrupted
        calls.append(args)
        return function(*args)

    return call, calls


def square(job, results):
    results["sum"] = np.asarray(results.get("sum", 0) + job**2)


def test_jobs_resume_where_they_were_interrupted(tmp_path):
    cache = Cache(tmp_path / "deeper" / "a.npz", {"seed": 0})
    first, _ = interrupted(square, 4)
    with pytest.raises(Interrupted):
        accumulate({}, 10, first, cache=cache)
    second, calls = interrupted(square, 100)
    assert accumulate({}, 10, second, cache=cache)["sum"] == 285
    assert [job for job, _ in calls] == [4, 5, 6, 7, 8, 9]
    third, calls = interrupted(square, 0)
    assert accumulate({}, 10, third, cache=cache)["sum"] == 285
    assert [path.name for path in cache.path.parent.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("of", [{"seed": 1}, {"seed": 0, "draws": 2}])
def test_results_of_other_inputs_are_ignored(tmp_path, of):
    path = tmp_path / "a.npz"
    accumulate({}, 3, square, cache=Cache(path, {"seed": 0}))
    assert Cache(path, of).read() == (0, {})
    assert Cache(path, {"seed": 0}).read() == (3, {"sum": 5})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_a_damaged_file_is_ignored(tmp_path, content):
    cache = Cache(tmp_path / "a.npz", {})
    cache.path.write_bytes(content)
    assert cache.read() == (0, {})
    assert accumulate({}, 3, square, cache=cache)["sum"] == 5


def test_a_flipped_bit_is_noticed(tmp_path):
    """Wherever it is: results are read as they were written, or are computed again."""
    cache = Cache(tmp_path / "a.npz", {"seed": 0})
    cache.write(3, {"sum": np.arange(8.0), "other": np.ones(2)})
    content = cache.path.read_bytes()
    read = 0
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        cache.path.write_bytes(changed)
        done, results = cache.read()
        if done:
            np.testing.assert_equal(results, {"sum": np.arange(8.0), "other": np.ones(2)})
        assert done in (0, 3)
        read += done == 3
    assert read < 0.5 * len(content) / 7  # what zip files do not use


@pytest.mark.parametrize("change", ["format", "package"])
def test_results_of_another_version_are_ignored(tmp_path, monkeypatch, change):
    """Half of an evaluation by each would be a number of neither."""
    cache = Cache(tmp_path / "a.npz", {})
    cache.write(3, {"sum": np.ones(2)})
    if change == "format":
        monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    else:
        monkeypatch.setattr(module, "version", lambda name: "0.0.0")
    assert cache.read() == (0, {})


def test_a_digest_depends_on_every_value_and_name():
    tree = {"a": np.zeros((2, 3), np.float32), "b": jnp.ones(2)}
    assert digest(tree) == digest(jax.tree.map(jnp.asarray, tree))
    others = [
        {"a": np.zeros((3, 2), np.float32), "b": jnp.ones(2)},
        {"a": np.zeros((2, 3), np.float64), "b": jnp.ones(2)},
        {"c": np.zeros((2, 3), np.float32), "b": jnp.ones(2)},
        {"a": np.full((2, 3), 1e-30, np.float32), "b": jnp.ones(2)},
    ]
    assert len({digest(other) for other in (tree, *others)}) == 5


# Estimators

X = np.linspace(-1.0, 1.0, 10, dtype=np.float32)[:, None]
KEY = jax.random.key(0)


def noisy(params, batch, key, stratum):
    noise = jax.random.normal(key, (len(batch.x),))
    return {"nelbo": batch.x[:, 0] + noise + stratum.draw, "log_weight": noise}


@pytest.mark.parametrize("evaluate", [evaluate_images, importance_bound])
@pytest.mark.parametrize("after", [1, 4, 8])
def test_interrupted_evaluations_equal_uninterrupted_ones(tmp_path, evaluate, after):
    """Interrupted within the first draw, within the second, and before the last batch; bit for bit."""
    how = {"draws": 3, "batch_size": 4}
    cache = Cache(tmp_path / "bounds.npz", {})
    first, _ = interrupted(noisy, after)
    with pytest.raises(Interrupted):
        evaluate(first, None, Batch(X), KEY, **how, cache=cache)
    second, calls = interrupted(noisy, 9 - after)
    found = evaluate(second, None, Batch(X), KEY, **how, cache=cache)
    assert len(calls) == 9 - after
    np.testing.assert_equal(found, evaluate(noisy, None, Batch(X), KEY, **how))


# Image sets

IMAGES = np.random.default_rng(0).uniform(-1, 1, (10, 4, 4, 1)).astype(np.float32)
LINEAR = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
EXTRACTOR = Extractor(
    "a linear map", "1", 3, jnp.asarray(LINEAR), lambda w, x: x.reshape(len(x), -1).astype(jnp.float32) @ w
)


def batches(job):
    rows = np.resize(np.arange(4 * job, min(4 * job + 4, 10)), 4)
    return IMAGES[rows], {"row": rows}


def test_statistics_of_an_image_set_do_not_depend_on_the_batches():
    """The padding of the last batch is ignored; features are those of images rounded to 8 bits."""
    found = describe_images(EXTRACTOR, batches, 10, 4)
    stored = np.round((IMAGES + 1) * 127.5).reshape(10, 16)
    features = stored @ LINEAR.astype(np.float64)
    assert found.moments.size == 10
    np.testing.assert_allclose(found.features, features, rtol=1e-5)
    np.testing.assert_allclose(found.moments.mean, features.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.moments.covariance, np.cov(features, rowvar=False), rtol=1e-5)
    assert found.means == {"row": 4.5}


def test_interrupted_statistics_equal_uninterrupted_ones(tmp_path):
    cache = Cache(tmp_path / "set.npz", {})
    first, _ = interrupted(batches, 2)
    with pytest.raises(Interrupted):
        describe_images(EXTRACTOR, first, 10, 4, cache=cache)
    second, calls = interrupted(batches, 1)
    np.testing.assert_equal(
        describe_images(EXTRACTOR, second, 10, 4, cache=cache), describe_images(EXTRACTOR, batches, 10, 4)
    )
    assert len(calls) == 1


def test_moments_cover_all_images_however_few_features_are_stored(monkeypatch):
    full = describe_images(EXTRACTOR, batches, 10, 4)
    monkeypatch.setattr("lsgm_jax.evaluation.features.MOST_FEATURES", 5)
    limited = describe_images(EXTRACTOR, batches, 10, 4)
    np.testing.assert_array_equal(limited.features, full.features[:5])
    np.testing.assert_equal(limited.moments, full.moments)
