"""Decoding of images: values change only by the documented conversions, which compute what they say."""

import dataclasses
import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

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


# Every kind of file, pixel by pixel: the table of docs/howto/data.md


def classes(height=None, width=None, fit="exact"):
    return Layout(height=height, width=width, channels=1, fit=fit, kind="classes")


def pnm(header, values):
    return header.encode() + np.ascontiguousarray(values).tobytes()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels, bits, colour=0, interlaced=False):
    """Encodes grey levels (`colour` 0) or indices (3) of few bits, as Pillow cannot."""
    height, width = pixels.shape
    rows = b""
    for x, y, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        for row in pixels[y::down, x::right]:
            if len(row):
                digits = "".join(f"{value:0{bits}b}" for value in row)
                digits += "0" * (-len(digits) % 8)
                rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
RNG = np.random.default_rng(6)
DEEP = RNG.integers(0, 2**16, (5, 7), dtype=np.uint16)
RGBA = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
LA = np.ascontiguousarray(RGBA[..., :2])
FLOATS = RNG.random((5, 7), dtype=np.float32)
PALETTE = Image.fromarray(GREY % 16, mode="P")
PALETTE.putpalette(bytes(range(48)))
CMYK = Image.fromarray(RGBA, mode="CMYK")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (saved(GREY, "GIF"), GREY[..., None].repeat(3, axis=-1)),  # it has a palette
        (saved(GREY, "TIFF"), GREY),
        (saved(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR),
        (saved(GREY, "PPM"), GREY),
        (saved(COLOUR, "PPM"), COLOUR),
        (saved(COLOUR, "JPEG2000", irreversible=False), COLOUR),
        (saved(DEEP), DEEP >> 8),
        (saved(DEEP, "TIFF"), DEEP >> 8),
        (pnm("P5 7 5 65535\n", DEEP.astype(">u2")), DEEP >> 8),
        (npy(DEEP), DEEP >> 8),
        (npy(np.asfortranarray(COLOUR)), COLOUR),
        (saved(GREY.astype(np.int32), "TIFF"), GREY),
        (saved(FLOATS, "TIFF"), np.rint(255 * FLOATS)),
        (saved(RGBA), RGBA[..., :3]),
        (saved(Image.fromarray(LA, mode="LA")), LA[..., 0]),
        (saved(PALETTE), np.arange(48).reshape(16, 3)[GREY % 16]),
        (saved(PALETTE, transparency=3), np.arange(48).reshape(16, 3)[GREY % 16]),
        (saved(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB"))),
        (png(GREY % 2, 1), GREY % 2 * 255),
        (png(GREY % 4, 2), GREY % 4 * 85),
        (png(GREY % 16, 4, interlaced=True), GREY % 16 * 17),
        (png(GREY, 8, interlaced=True), GREY),
        (
            saved(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            GREY[..., None].repeat(3, axis=-1),
        ),
        (saved(Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(255 - GREY)]), GREY),
        (
            saved(
                Image.fromarray(COLOUR), "TIFF", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]
            ),
            COLOUR,
        ),
        (
            saved(COLOUR, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
            COLOUR,
        ),
    ],
)
def test_every_file_has_the_pixels_of_the_table(file, expected):
    expected = expected.reshape(5, 7, -1)
    np.testing.assert_array_equal(decode(file, ANY, "it"), expected)


def test_a_jpeg_of_four_inks_is_converted_as_pillow_does():
    file = saved(CMYK, "JPEG", quality=100)
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(decode(file, ANY, "it"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            saved(DEEP.astype(np.int32), "TIFF"),
            "of integers of 32 bits 0 is black and 255 is white; convert it",
        ),
        (saved(-GREY.astype(np.int32), "TIFF"), "of integers of 32 bits 0 is black"),
        (saved(255 * FLOATS, "TIFF"), "of floats 0 is black and 1 is white; convert it"),
        (saved(np.full((5, 7), np.nan, np.float32), "TIFF"), "of floats 0 is black"),
    ],
)
def test_values_without_an_agreed_white_are_refused(file, message):
    with pytest.raises(DataError, match=message):
        decode(file, ANY, "it")


def turned(tag, image, form, **options):
    exif = Image.Exif()
    exif[0x0112] = tag
    return saved(image, form, exif=exif, **options)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_images_are_upright_as_every_viewer_shows_them(tag, form):
    file = turned(tag, COLOUR, form, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(io.BytesIO(file)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(file, ANY, "it"), upright)
    assert upright.shape[:2] == ((5, 7) if tag < 5 else (7, 5))
    height, width = upright.shape[:2]
    cut = decode(file, Layout(height=height, width=3, channels=3, fit="crop"), "it")
    np.testing.assert_array_equal(cut, upright[:, (width - 3) // 2 :][:, :3])


@pytest.mark.parametrize("tag", range(1, 9))
def test_label_maps_are_upright_too(tag):
    with Image.open(io.BytesIO(turned(tag, GREY, "PNG"))) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(turned(tag, GREY, "PNG"), classes(), "it")[..., 0], upright)


def test_damaged_exif_leaves_an_image_as_it_is():
    file = saved(COLOUR, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(decode(file, ANY, "it"), COLOUR)


def test_a_large_turned_jpeg_is_reduced_as_others_are():
    """The reduction within the decoder takes the sides as they are stored."""
    y, x = np.mgrid[:512, :256] / 256
    smooth = (127 + 100 * np.sin(3 * x + 2 * y)).astype(np.uint8)
    layout = Layout(height=32, width=64, channels=1, fit="resize")
    jpeg, plain = (decode(turned(6, smooth, form), layout, "it").astype(int) for form in ("JPEG", "PNG"))
    assert np.abs(jpeg - plain).max() <= 6


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("interlaced", [False, True])
def test_label_maps_of_few_bits_hold_their_classes(bits, colour, interlaced):
    labels = GREY % 2 ** min(bits, 4)
    file = png(labels, bits, colour, interlaced)
    found = decode(file, classes(), "it")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], labels)


@pytest.mark.parametrize("most", [1, 3, 100, 254, 255, 999, 65535])
def test_label_maps_of_pnm_hold_their_classes(most):
    labels = RNG.integers(0, most + 1, (5, 7))
    file = pnm(f"P5 7 5 {most}\n", labels.astype(np.uint8 if most < 256 else ">u2"))
    np.testing.assert_array_equal(decode(file, classes(), "it")[..., 0], labels)


def test_label_maps_of_sixteen_bits_are_scaled_by_pixel():
    labels = RNG.choice([3, 300, 60000], (30, 40)).astype(np.uint16)
    found = decode(saved(labels), classes(11, 13, "crop"), "it")
    assert found.dtype == np.uint16
    assert set(np.unique(found)) <= {3, 300, 60000}
    np.testing.assert_array_equal(
        decode(saved(labels), classes(30, 31, "crop"), "it")[..., 0], labels[:, 4:35]
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (saved(GREY, "JPEG"), "JPEG changes the values of a label map: save it as PNG"),
        (
            saved(np.full((5, 7), 70000, np.int32), "TIFF"),
            "classes from 70000 to 70000 are not within 0 and 65535",
        ),
        (saved(-np.ones((5, 7), np.int32), "TIFF"), "classes from -1 to -1"),
        (saved(FLOATS, "TIFF"), "mode F is no label map"),
    ],
)
def test_what_is_no_label_map_is_refused(file, message):
    with pytest.raises(DataError, match=message):
        decode(file, classes(), "it")


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_a_crop_without_scaling_has_the_pixels_of_the_middle(side, surplus, tall):
    """Also of an odd surplus: right and bottom lose the pixel more."""
    image = np.random.default_rng(side).integers(0, 256, (side, side + surplus), dtype=np.uint8)
    expected = image[:, surplus // 2 : surplus // 2 + side]
    file, expected = (saved(image.T), expected.T) if tall else (saved(image), expected)
    found = decode(file, Layout(height=side, width=side, channels=1, fit="crop"), "it")
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_images_of_any_shape_take_the_size(shape, fit):
    image = np.full(shape, 77, np.uint8)
    for file in (saved(image), saved(image, "JPEG", quality=100)):
        found = decode(file, Layout(height=8, width=6, channels=1, fit=fit), "it")
        assert found.shape == (8, 6, 1)
        assert np.abs(found.astype(int) - 77).max() <= 1


def test_a_decompression_bomb_is_refused_before_it_expands():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(2**20)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"cannot decode it: remove or replace the file .*3600000000 pixels"):
        decode(bomb, ANY, "it")
    with pytest.raises(DataError, match="7 x 5 pixels are more than 34"):
        decode(saved(GREY), dataclasses.replace(ANY, pixels=34), "it")
    huge = npy(GREY).replace(b"(5, 7)", b"(5000000000000, 7)")
    with pytest.raises(DataError, match="cannot decode it"):
        decode(huge, ANY, "it")


FORMS = [saved(COLOUR, form) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")] + [
    npy(GREY),
    saved(PALETTE),
]


@settings(max_examples=200)
@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([ANY, Layout(height=4, width=4, channels=1, fit="crop"), classes()]),
)
def test_a_mutated_image_is_decoded_or_refused_in_one_line(file, changes, end, truncated, layout):
    content = bytearray(file)
    for position, value in changes:
        content[position % len(content)] = value
    start = time.process_time()
    try:
        pixels = decode(bytes(content[: end % len(content)] if truncated else content), layout, "it")
        assert pixels.ndim == 3
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert time.process_time() - start < 5
