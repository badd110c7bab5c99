"""Stored pixels become the right values: levels, binarised draws, mirrored images and borders."""

import itertools

import numpy as np
import pytest

from lsgm_jax.data import pixels
from lsgm_jax.data.pixels import quantise


@pytest.mark.parametrize("levels", [2, 17, 32, 256])
def test_quantise_covers_all_levels_evenly(levels):
    values = np.arange(256, dtype=np.uint8)
    steps = (quantise(values, levels) + 1) / 2 * (levels - 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    counts = np.bincount(np.round(steps).astype(int), minlength=levels)
    assert counts.max() - counts.min() <= 1
    assert quantise(values, levels)[[0, -1]].tolist() == [-1.0, 1.0]


def test_five_bits_are_an_integer_shift():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose((quantise(values, 32) + 1) / 2 * 31, values >> 3, atol=1e-5)


def test_classes_have_the_values_of_grey_levels():
    """Class k of n has the value of the k-th of n grey levels."""
    for count in (2, 17, 256):
        greys = quantise(np.arange(256, dtype=np.uint8), count)
        np.testing.assert_array_equal(pixels.class_values(count), np.unique(greys))


def test_a_bit_is_one_with_the_probability_of_its_grey_level():
    """256 pixels of each grey level, drawn 400 times: every frequency within five standard errors of value / 255."""
    images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 16, 16, 1))
    rng, draws = np.random.default_rng(0), 400
    bits = (pixels.bits(images, pixels.thresholds(rng, images.shape)) for _ in range(draws))
    ones = sum(drawn.astype(int) // 255 for drawn in bits).sum(axis=(1, 2, 3))
    trials, expected = draws * 256, np.arange(256) / 255
    errors = np.sqrt(trials * expected * (1 - expected))
    assert (np.abs(ones - trials * expected) <= 5 * errors).all()
    assert ones[[0, -1]].tolist() == [0, trials]


def test_fixed_thresholds_depend_on_the_image_not_on_the_batch():
    indices, shape = np.arange(12), (6, 6, 1)
    together = pixels.fixed_thresholds(indices, shape)
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(pixels.fixed_thresholds(indices[order], shape), together[order])
    draws = pixels.bits(np.full((12, *shape), 128, np.uint8), together)
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_selected_images_are_mirrored_and_the_others_unchanged():
    rng = np.random.default_rng(0)
    images, which = rng.integers(0, 256, (20, 3, 5, 3), dtype=np.uint8), rng.random(20) < 0.5
    before = images.copy()
    mirrored = pixels.mirror(images, which)
    np.testing.assert_array_equal(mirrored[which], np.flip(before[which], axis=2))
    np.testing.assert_array_equal(mirrored[~which], before[~which])
    np.testing.assert_array_equal(images, before)


def test_padding_adds_zeros_around():
    images = np.full((2, 3, 4, 1), 7, np.uint8)
    padded = pixels.pad(images, 2)
    assert padded.shape == (2, 7, 8, 1)
    np.testing.assert_array_equal(padded[:, 2:-2, 2:-2], images)
    assert padded.sum() == images.sum()
