"""Estimates average over draws with correct standard errors; figures show all images; reports merge entries."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lsgm_jax.config.load import load_config
from lsgm_jax.evaluation import plots, report
from lsgm_jax.evaluation.estimators import bits_per_dimension, estimate, evaluate_images, importance_bound
from lsgm_jax.evaluation.model_size import count_parameters, describe, flops, multiply_add_flops
from lsgm_jax.objectives.bound import Batch
from tests import tiny


def test_estimates_average_draws_and_keep_the_order_of_images():
    x = np.arange(10, dtype=np.float32)[:, None]

    def per_image(params, batch, key, stratum):
        return {"value": params * batch.x[:, 0] + stratum.draw}

    values = evaluate_images(per_image, 2.0, Batch(x), jax.random.key(0), draws=4, batch_size=4)
    np.testing.assert_allclose(values["value"], 2.0 * np.arange(10) + 1.5)


def test_every_draw_and_batch_has_its_own_key():
    per_image = lambda params, batch, key, stratum: {"noise": jax.random.normal(key, (len(batch.x),))}
    x = np.zeros((8, 1), np.float32)
    noise = evaluate_images(per_image, None, Batch(x), jax.random.key(0), draws=1, batch_size=4)["noise"]
    other = evaluate_images(per_image, None, Batch(x), jax.random.key(0), draws=2, batch_size=4)["noise"]
    assert len(set(noise)) == 8
    assert not np.isclose(noise, other).any()


def test_standard_error_shrinks_as_the_root_of_the_count():
    values = np.random.default_rng(0).normal(3.0, 2.0, 40_000)
    mean, stderr = estimate(values)
    np.testing.assert_allclose(stderr, 2.0 / 200, rtol=0.02)
    assert abs(mean - 3.0) < 5 * stderr


def test_bits_per_dimension_of_a_uniform_code():
    np.testing.assert_allclose(bits_per_dimension(np.array([64 * np.log(16)]), 64), 4.0)


def test_grid_shows_every_image_in_reading_order(tmp_path):
    x = np.stack([np.full((8, 8, 1), value) for value in np.linspace(-1, 1, 5)])
    image = plots.grid(x, columns=3)
    cell = 8 * 6 + 2
    centres = [image[row * cell + 24, column * cell + 24, 0] for row in range(2) for column in range(3)][:5]
    assert centres == [0, 64, 128, 191, 255]
    plots.save_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_panels_are_side_by_side_under_their_titles():
    panels = {"left": np.full((20, 30, 3), 10, np.uint8), "right": np.full((20, 40, 3), 200, np.uint8)}
    image = plots.side_by_side(panels)
    assert image.shape == (44, 86, 3)
    assert (image[24:, :30] == 10).all()
    assert (image[24:, 46:] == 200).all()
    assert image[:24].min() < 128  # titles


def test_reports_merge_entries(tmp_path):
    report.add_to_report(tmp_path, nfe=10, nelbo=1.5)
    assert report.add_to_report(tmp_path, nfe=20) == {"nfe": 20, "nelbo": 1.5}
    assert json.loads((tmp_path / "report.json").read_text()) == {"nfe": 20, "nelbo": 1.5}


def test_reports_are_strict_json(tmp_path):
    """NaN is refused before the file is touched; of an older report it is read as None."""
    report.add_to_report(tmp_path, nfe=10)
    before = (tmp_path / "report.json").read_bytes()
    for value in (np.nan, np.inf, {"deeper": -np.inf}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            report.add_to_report(tmp_path, nelbo=value)
        assert (tmp_path / "report.json").read_bytes() == before
    older = tmp_path / "older"
    older.mkdir()
    (older / "report.json").write_text('{"nelbo": NaN, "nfe": 3}')
    assert report.read_report(older) == {"nelbo": None, "nfe": 3}


def test_a_mean_of_what_is_not_finite_is_not_known():
    """A single image has a mean, and no standard error."""
    single = estimate(np.array([2.5]))
    assert (single.mean, np.isnan(single.stderr)) == (2.5, True)
    for bad in (np.nan, np.inf):
        assert np.isnan(estimate(np.array([1.0, bad, 2.0]))).all()


def test_a_table_says_what_is_not_known():
    names = ("nelbo_sgm", "reconstruction_sgm", "entropy_sgm", "cross_entropy_sgm")
    entries = dict.fromkeys(names, 0.0) | {f"{name}_stderr": None for name in names}
    entries |= {"nelbo_sgm": 1.25, "cross_entropy_sgm": None, "test_images": 1, "chosen_step": 3}
    table = report.likelihood_table(entries)
    assert re.search(r"nelbo +1\.2500$", table, re.MULTILINE)
    assert re.search(r"cross_entropy +not finite$", table, re.MULTILINE)
    assert "reconstruction" not in table  # data without an autoencoder


def test_flops_of_a_matrix_product():
    a, b = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    assert flops(lambda a, b: a @ b, a, b) == 2 * 8 * 16 * 4


def test_description_counts_the_parameters_of_the_model():
    config = load_config(tiny.CONFIG, tiny.OVERRIDES)
    model = tiny.model()
    stage = tiny.bare_stages(config)[-1]
    described = describe(model, stage, batch_size=16)
    params = jax.jit(model.init)(jax.random.key(0))
    assert described["parameters"]["autoencoder"] == count_parameters(params["vae"])
    total = sum(described["parameters"].values())
    assert total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert described["latent_shape"] == [4, 4, 2]
    # The backward pass costs twice the forward pass.
    forward = described["flops_per_image"]["autoencoder"] + described["flops_per_image"]["score_net"]
    assert described["flops_per_image"]["train_step"] == pytest.approx(3 * forward, rel=0.35)


def test_multiply_adds_are_counted_as_in_papers():
    """The count includes padding, nested programs and grouped convolutions, and excludes elementwise operations."""

    def program(x, dense, depthwise):
        convolve = lambda x, kernel, groups: jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        h = jax.jit(lambda x: jnp.exp(convolve(x, dense, 1)))(x)
        return convolve(h, depthwise, 6) @ jnp.ones((6, 5))

    shapes = [(1, 8, 8, 4), (3, 3, 4, 6), (5, 5, 1, 6)]
    count = multiply_add_flops(program, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert count == 2 * (4 * 4 * 6 * 3 * 3 * 4 + 2 * 2 * 6 * 5 * 5 + 2 * 2 * 6 * 5)


def test_the_importance_bound_is_the_log_of_the_mean_weight():
    """For log-normal weights it is known in closed form; it never exceeds the mean of the bounds of single draws."""
    x = np.zeros((6, 1), np.float32)
    weight = lambda params, batch, key, stratum: {"log_weight": jax.random.normal(key, (len(batch.x),))}
    key = jax.random.key(0)
    bound = importance_bound(weight, None, Batch(x), key, draws=4000, batch_size=4)
    np.testing.assert_allclose(bound, -0.5, atol=5 * np.sqrt((np.e - 1) / 4000))
    few = importance_bound(weight, None, Batch(x), key, draws=5, batch_size=4)
    assert (few <= -evaluate_images(weight, None, Batch(x), key, draws=5, batch_size=4)["log_weight"]).all()
