"""Decoding of image files to pixels of a given size and number of channels."""

import dataclasses
import io

import numpy as np
from jaxtyping import UInt
from PIL import Image, ImageOps

from lsgm_jax.errors import DataError

Pixels = UInt[np.ndarray, "height width channels"]  # uint8, or uint16 for label maps of many classes

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
NPY = b"\x93NUMPY"
FITS = ("exact", "crop", "resize")
KINDS = ("grey", "classes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The size, channels and kind of a decoded image.

    Attributes:
        height, width: size in pixels; None keeps that of the file.
        channels: 1 or 3; None decodes grey images to 1 channel and others to 3.
        fit: treatment of images of another size. "exact" refuses them; "crop" scales the image until it just covers
            the size and cuts the excess equally at both ends; "resize" scales without keeping the proportions.
        kind: "grey" for intensities, or "classes" for a label map. Classes are never interpolated: scaling takes the
            nearest pixel, and the indices of a palette are the classes.
    """

    height: int | None
    width: int | None
    channels: int | None
    fit: str = "exact"
    kind: str = "grey"


def decode(encoded: bytes, layout: Layout, origin: str) -> Pixels:
    """Decodes a PNG, JPEG, WebP, BMP or NPY file to pixels [height, width, channels].

    Grey becomes colour by repetition, and colour becomes grey by luma (ITU-R 601). Of 16 bits the upper 8 remain, and
    an alpha channel is dropped. Grey levels are scaled by a bicubic filter that is as wide as the reduction.

    Args:
        encoded: the content of the file.
        layout: the required size, channels and kind.
        origin: name of the image in errors.

    Raises:
        DataError: if the image is damaged, or has another size and `layout.fit` is "exact".
    """
    try:
        with _open(encoded) as image:
            if layout.height is not None and layout.width is not None and layout.fit != "exact":
                # JPEG's decoder reduces by powers of two at little cost; twice the size is enough for the filter.
                image.draft(None, (2 * layout.width, 2 * layout.height))
            pixels = _classes(image, layout) if layout.kind == "classes" else _levels(image, layout)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot decode {origin}: remove or replace the file ({error})") from error
    found, wanted = pixels.shape[:2], (layout.height, layout.width)
    if layout.height is not None and found != wanted:
        raise DataError(
            f"{origin} has {found[0]} x {found[1]} pixels, not {wanted[0]} x {wanted[1]}: "
            "set config.data.image_shape, or config.data.fit to 'crop' or 'resize'"
        )
    return pixels


def encode(pixels: Pixels) -> bytes:
    """Encodes pixels [height, width, 1 or 3] as a PNG file."""
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(png, format="PNG")
    return png.getvalue()


def as_file(encoded: bytes) -> bytes:
    """Converts an NPY file to PNG, which every library reads; other files are returned unchanged."""
    if not encoded.startswith(NPY):
        return encoded
    png = io.BytesIO()
    _open(encoded).save(png, format="PNG")
    return png.getvalue()


def _open(encoded: bytes) -> Image.Image:
    if not encoded.startswith(NPY):
        return Image.open(io.BytesIO(encoded))
    array = np.load(io.BytesIO(encoded), allow_pickle=False)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype not in (np.uint8, np.uint16) or (array.ndim != 2 and array.shape[2:] != (3,)):
        raise ValueError(
            f"{array.dtype} {list(array.shape)} is no image: uint8 [h, w], [h, w, 3] or uint16 [h, w]"
        )
    return Image.fromarray(array)


def _levels(image: Image.Image, layout: Layout) -> Pixels:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    channels = layout.channels or (1 if image.mode in GREY_MODES else 3)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(_fitted(image, layout, Image.Resampling.BICUBIC))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _classes(image: Image.Image, layout: Layout) -> Pixels:
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise ValueError(f"mode {image.mode} is no label map, which has one number per pixel")
    if layout.channels == 3:
        raise ValueError("a label map has one channel, not 3: set config.data.image_shape")
    pixels = np.asarray(_fitted(image, layout, Image.Resampling.NEAREST))
    return pixels.astype(np.uint16 if image.mode.startswith("I") else np.uint8)[..., None]


def _fitted(image: Image.Image, layout: Layout, resampling: Image.Resampling) -> Image.Image:
    if layout.height is None or layout.width is None or image.size == (layout.width, layout.height):
        return image
    if layout.fit == "crop":
        return ImageOps.fit(image, (layout.width, layout.height), resampling)
    if layout.fit == "resize":
        return image.resize((layout.width, layout.height), resampling)
    return image
