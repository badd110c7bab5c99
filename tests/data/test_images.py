"""Decoding of images: values change only by the documented conversions, which compute what they say."""

import io

import numpy as np
import pytest
from PIL import Image

from lsgm_jax.data.images import Layout, decode, encode
from lsgm_jax.errors import DataError

ANY = Layout(height=None, width=None, channels=None)
GREY = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format=form, **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "npy"])
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_pixels_are_those_of_the_file(form, image):
    channels = 1 if image.ndim == 2 else 3
    file = (
        npy(image) if form == "npy" else saved(image, form, **({"lossless": True} if form == "WEBP" else {}))
    )
    layout = Layout(height=5, width=7, channels=channels)
    np.testing.assert_array_equal(decode(file, layout, "it"), image.reshape(5, 7, channels))


@pytest.mark.parametrize("pixels", [GREY[..., None], COLOUR, GREY[..., None].astype(np.uint16) * 257])
def test_decode_inverts_encode(pixels):
    values = "classes" if pixels.dtype == np.uint16 else "grey"
    layout = Layout(height=None, width=None, channels=None, kind=values)
    decoded = decode(encode(pixels), layout, "it")
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)],
)
def test_every_mode_is_grey_or_colour(mode, channels):
    image = decode(saved(Image.new(mode, (4, 6)), "TIFF" if mode == "CMYK" else "PNG"), ANY, "it")
    assert image.shape == (6, 4, channels)
    assert image.dtype == np.uint8


def test_grey_as_colour_repeats_and_colour_as_grey_is_luma():
    grey = Layout(height=None, width=None, channels=1)
    colour = Layout(height=None, width=None, channels=3)
    np.testing.assert_array_equal(decode(saved(GREY), colour, "it"), np.repeat(GREY[..., None], 3, axis=-1))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(decode(saved(COLOUR), grey, "it")[..., 0] - luma).max() <= 0.51


def test_sixteen_bits_lose_the_lower_eight():
    deep = np.random.default_rng(2).integers(0, 2**16, (5, 7), dtype=np.uint16)
    np.testing.assert_array_equal(decode(saved(deep), ANY, "it")[..., 0], deep // 256)


def test_crop_is_the_middle_of_the_image():
    """A wide image of the right height keeps its middle columns, unchanged."""
    image = np.random.default_rng(3).integers(0, 256, (8, 14), dtype=np.uint8)
    layout = Layout(height=8, width=8, channels=1, fit="crop")
    np.testing.assert_array_equal(decode(saved(image), layout, "it")[..., 0], image[:, 3:11])
    tall = decode(saved(image.T), layout, "it")[..., 0]
    np.testing.assert_array_equal(tall, image.T[3:11])


def test_crop_keeps_proportions_and_resize_does_not():
    """A disc in a wide image stays a disc when cropped, and becomes narrower by a third when resized."""
    y, x = np.mgrid[:120, :180]
    disc = (np.hypot(y - 59.5, x - 89.5) < 40).astype(np.uint8) * 255
    cropped, resized = (
        decode(saved(disc), Layout(height=60, width=60, channels=1, fit=fit), "it")[..., 0] > 127
        for fit in ("crop", "resize")
    )
    assert np.ptp(np.nonzero(cropped.any(axis=0))) == np.ptp(np.nonzero(cropped.any(axis=1)))
    assert cropped.sum() == pytest.approx(np.pi * 20**2, rel=0.02)
    assert resized.sum() == pytest.approx(np.pi * 20**2 / 1.5, rel=0.02)


def test_reduction_averages():
    """The filter is as wide as the reduction: a fine checkerboard becomes its mean."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(saved(board), Layout(height=8, width=8, channels=1, fit="resize"), "it")
    assert np.abs(small.astype(int) - 127.5).max() < 2


def test_large_jpegs_are_reduced_as_others_are():
    """The reduction within the JPEG decoder does not show in the result."""
    y, x = np.mgrid[:512, :512] / 512
    smooth = (127 + 100 * np.stack([np.sin(6 * x), np.cos(5 * y), np.sin(4 * x * y)], axis=-1)).astype(
        np.uint8
    )
    layout = Layout(height=32, width=32, channels=3, fit="resize")
    jpeg, png = (decode(saved(smooth, *form), layout, "it").astype(int) for form in (("JPEG",), ("PNG",)))
    assert np.abs(jpeg - png).max() <= 6


def test_classes_are_never_interpolated():
    """A scaled label map has no new values; the indices of a palette count, not the colours."""
    labels = np.random.default_rng(4).choice([3, 200, 77], (30, 40)).astype(np.uint8)
    layout = Layout(height=11, width=13, channels=1, fit="crop", kind="classes")
    assert set(np.unique(decode(saved(labels), layout, "it"))) <= {3, 77, 200}
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette(np.random.default_rng(5).integers(0, 256, 768, dtype=np.uint8).tobytes())
    exact = Layout(height=30, width=40, channels=1, kind="classes")
    np.testing.assert_array_equal(decode(saved(palette), exact, "it")[..., 0], labels)


@pytest.mark.parametrize(
    ("file", "layout", "message"),
    [
        (saved(GREY)[:40], ANY, "cannot decode it: remove or replace the file"),
        (saved(COLOUR, "JPEG")[:-200], ANY, "cannot decode it: .*[Tt]runcated"),
        (b"", ANY, "cannot decode it"),
        (b"no image", ANY, "cannot decode it"),
        (npy(np.zeros((4, 4))), ANY, "cannot decode it: .*float64"),
        (npy(np.zeros((4, 4), np.uint8))[:100], ANY, "cannot decode it"),
        (
            saved(GREY),
            Layout(height=7, width=5, channels=1),
            "it has 5 x 7 pixels, not 7 x 5: set config.data.image",
        ),
        (saved(COLOUR), Layout(height=5, width=7, channels=1, kind="classes"), "mode RGB is no label map"),
        (saved(GREY), Layout(height=5, width=7, channels=3, kind="classes"), "has one channel, not 3"),
    ],
)
def test_an_image_that_does_not_fit_is_named(file, layout, message):
    with pytest.raises(DataError, match=message):
        decode(file, layout, "it")
