"""Encoded images to pixels of the size and the channels that are asked for."""

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
    """What a decoded image has to be.

    Attributes:
        height, width: its size; None for that of the file.
        channels: 1 or 3; None for grey images as grey, others as colour.
        fit: what is done with images of another size. "exact" refuses them; "crop" scales the image until it just
            covers the size and cuts off what reaches beyond, equally at both ends; "resize" gives up the proportions.
        kind: "grey" levels, or "classes" of a label map, which are never mixed: scaling takes the nearest pixel, and
            a palette's indices are the classes.
    """

    height: int | None
    width: int | None
    channels: int | None
    fit: str = "exact"
    kind: str = "grey"


def decode(encoded: bytes, layout: Layout, origin: str) -> Pixels:
    """The pixels of a PNG, JPEG, WebP, BMP or NPY file, [height, width, channels].

    Grey becomes colour by repetition, colour grey by luma (ITU-R 601), 16 bits 8 by leaving out the lower ones; an
    alpha channel is left out. Scaling of grey levels is bicubic, with a filter as wide as the reduction.

    Args:
        origin: what an error calls the image.

    Raises:
        DataError: if it is damaged, or of another size and `layout` does not say how to fit it.
    """
    try:
        with _open(encoded) as image:
            if layout.height is not None and layout.width is not None and layout.fit != "exact":
                # JPEG's decoder reduces by powers of two almost for nothing; twice the size leaves the filter its due.
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
    """The pixels as a PNG file, [height, width, 1 or 3]."""
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(png, format="PNG")
    return png.getvalue()


def as_file(encoded: bytes) -> bytes:
    """An image that every library reads: an NPY file as PNG, others as they are."""
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
