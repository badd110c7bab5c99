"""Decoding of image files to pixels of a given size and number of channels."""

import dataclasses
import io
import warnings

import numpy as np
from jaxtyping import UInt
from PIL import Image, ImageFile, ImageOps

from lsgm_jax.errors import DataError
from lsgm_jax.numpy_files import read_npy

Pixels = UInt[np.ndarray, "height width channels"]  # uint8, or uint16 for label maps of many classes

# Pillow's other readers are for files without a magic number, or run other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
FILE_BYTES = 2**30  # the most that an encoded image may have
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
JPEGS = ("JPEG", "MPO")
NPY = b"\x93NUMPY"
FITS = ("exact", "crop", "resize")
KINDS = ("grey", "classes")
ORIENTATION = 0x0112  # the tag of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Factors by which Pillow spreads the grey levels of few bits over 0 to 255; classes are the stored levels.
SPREAD = {"L;2": 85, "L;2I": 85, "L;4": 17, "L;4I": 17}
PIXELS = 178_956_970  # Pillow refuses larger images
# Pillow warns from half of them on, on whatever thread decodes; they are meant.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged metadata


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
        pixels: the most that an image may have.
    """

    height: int | None
    width: int | None
    channels: int | None
    fit: str = "exact"
    kind: str = "grey"
    pixels: int = PIXELS


def decode(encoded: bytes, layout: Layout, origin: str) -> Pixels:
    """Decodes a file of one of `FORMATS` or NPY to pixels [height, width, channels].

    The first image of an animation or a document counts. It is turned upright by its EXIF orientation. Grey becomes
    colour by repetition, and colour becomes grey by luma (ITU-R 601). Of 16 bits the upper 8 remain; floats are 0 to 1,
    integers of 32 bits 0 to 255. Alpha channels are dropped, colour profiles are ignored. Grey levels are scaled by a
    bicubic filter that is as wide as the reduction.

    Args:
        encoded: the content of the file.
        layout: the required size, channels and kind.
        origin: name of the image in errors.

    Raises:
        DataError: if the image is damaged, larger than `layout.pixels`, or has another size and `layout.fit` is
            "exact".
    """
    try:
        with _open(encoded, origin) as image:
            if image.width * image.height > layout.pixels:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {layout.pixels}")
            pixels = _classes(image, layout) if layout.kind == "classes" else _levels(image, layout)
    # Pillow's errors for damaged files are not documented, and of any kind.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot decode {origin}: remove or replace the file ({reason})") from error
    check_shape(pixels.shape[:2], layout, origin)
    return pixels


def check_shape(found: tuple[int, ...], layout: Layout, origin: str) -> None:
    """Checks the height and width of an image.

    Raises:
        DataError: if they are others than those of `layout`.
    """
    wanted = (layout.height, layout.width)
    if layout.height is not None and found != wanted:
        raise DataError(
            f"{origin} has {found[0]} x {found[1]} pixels, not {wanted[0]} x {wanted[1]}: "
            "set config.data.image_shape, or config.data.fit to 'crop' or 'resize'"
        )


def encode(pixels: Pixels) -> bytes:
    """Encodes pixels [height, width, 1 or 3] as a PNG file."""
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(png, format="PNG")
    return png.getvalue()


def as_file(encoded: bytes, origin: str) -> bytes:
    """Converts an NPY file to PNG, which every library reads; other files are returned unchanged."""
    if not encoded.startswith(NPY):
        return encoded
    png = io.BytesIO()
    _open(encoded, origin).save(png, format="PNG")
    return png.getvalue()


def _open(encoded: bytes, origin: str) -> Image.Image:
    if not encoded.startswith(NPY):
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    array = read_npy(io.BytesIO(encoded), len(encoded), origin)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype not in (np.uint8, np.uint16) or (array.ndim != 2 and array.shape[2:] != (3,)):
        raise ValueError(
            f"{array.dtype} {list(array.shape)} is no image: uint8 [h, w], [h, w, 3] or uint16 [h, w]"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if there is none, or the EXIF data are damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # as `decode`; every viewer shows such images
        return 1


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height of an image once it is upright."""
    width, height = image.size
    return (width, height) if _orientation(image) < 5 else (height, width)


def _levels(image: Image.Image, layout: Layout) -> Pixels:
    turn = _orientation(image) if image.format in JPEGS else 1
    if layout.height is not None and layout.width is not None and layout.fit != "exact":
        # JPEG's decoder reduces by powers of two at little cost; twice the size is enough for the filter.
        width, height = 2 * layout.width, 2 * layout.height
        image.draft(None, (width, height) if turn < 5 else (height, width))
    image.load()
    turn = _orientation(image)  # of PNG it may follow the pixels; Pillow itself turns TIFF
    image = _eight_bits(image)
    channels = layout.channels or (1 if image.mode in GREY_MODES else 3)
    if image.mode not in GREY_MODES:
        image = image.convert("RGB")
    image = _upright(image.convert("L" if channels == 1 else "RGB"), turn)
    pixels = np.asarray(_fitted(image, layout, Image.Resampling.BICUBIC))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Reduces 16 bits, 32 bits and floats to 8 bits."""
    if image.mode.startswith("I;16") or _spans_sixteen_bits(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values, white = np.asarray(image), 255 if image.mode == "I" else 1
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(
            f"values from {values.min()} to {values.max()}: of "
            f"{'integers of 32 bits' if white == 255 else 'floats'} 0 is black and {white} is white; convert it"
        )
    return Image.fromarray(np.rint(values * (255 // white)).astype(np.uint8))


def _spans_sixteen_bits(image: Image.Image) -> bool:
    """Returns whether Pillow stores 16 bits in 32, which it does for some formats."""
    return image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000")


def _classes(image: Image.Image, layout: Layout) -> Pixels:
    if image.format in JPEGS:
        raise ValueError("JPEG changes the values of a label map: save it as PNG")
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise ValueError(f"mode {image.mode} is no label map, which has one number per pixel")
    if layout.channels == 3:
        raise ValueError("a label map has one channel, not 3: set config.data.image_shape")
    spread, stored = _spread(image)
    image.load()
    turn = _orientation(image)
    values = np.rint(np.asarray(image, np.float64) * stored / spread)
    if not (values.min() >= 0 and values.max() < 2**16):
        raise ValueError(f"classes from {values.min():.0f} to {values.max():.0f} are not within 0 and 65535")
    # Images of 32 bits are turned and scaled by pixel as any other, those of 16 bits are not.
    labels = _upright(Image.fromarray(values.astype(np.int32)), turn)
    pixels = np.asarray(_fitted(labels, layout, Image.Resampling.NEAREST))
    return pixels.astype(np.uint16 if image.mode.startswith("I") else np.uint8)[..., None]


def _spread(image: Image.Image) -> tuple[int, int]:
    """Returns the ratio of levels as Pillow has them, spread over 8 or 16 bits, to the stored ones."""
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if tile is None:
        return 1, 1
    if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple) and len(tile.args) == 2:
        return (65535 if image.mode == "I" else 255), int(tile.args[1])
    rawmode = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else None
    return SPREAD.get(str(rawmode), 1), 1


def _upright(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(UPRIGHT[turn]) if turn in UPRIGHT else image


def _fitted(image: Image.Image, layout: Layout, resampling: Image.Resampling) -> Image.Image:
    if layout.height is None or layout.width is None or image.size == (layout.width, layout.height):
        return image
    size = (layout.width, layout.height)
    if layout.fit == "crop":
        return _cropped(image, size, resampling)
    return image.resize(size, resampling) if layout.fit == "resize" else image


def _cropped(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Returns the middle of an image: the pixels themselves if one side has the right length, otherwise scaled.

    Of an odd surplus, right and bottom lose one pixel more.
    """
    surplus = (image.width - size[0], image.height - size[1])
    if min(surplus) != 0:
        return ImageOps.fit(image, size, resampling)
    left, top = surplus[0] // 2, surplus[1] // 2
    return image.crop((left, top, left + size[0], top + size[1]))
