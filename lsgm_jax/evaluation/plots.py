"""Samples as PNG files: images in a grid, points in the plane as a density."""

import colorsys
import math
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from lsgm_jax.errors import NumericalError
from lsgm_jax.files import replacing

MINIMUM_SIDE = 48  # pixels; images of less height are enlarged
GAP = 2  # pixels between images
MOST_COLUMNS, MOST_PIXELS = 20, 4096  # of a picture of many images, and of its width
MOST_POINTS = 100_000


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Converts values in [-1, 1] to uint8, clipped and rounded, as image files store them.

    Raises:
        NumericalError: for values that are not finite, which would become black.
    """
    if not np.isfinite(x).all():
        raise NumericalError(f"{np.size(x) - np.isfinite(x).sum()} values of images are not finite")
    return np.round((np.clip(np.asarray(x, np.float32), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def to_pixels(x: np.ndarray, labels: int = 0) -> np.ndarray:
    """Converts images in [-1, 1] to uint8 with three channels.

    Args:
        x: images [n, h, w, c].
        labels: number of classes of label maps, each drawn in its own colour; 0 for grey levels and colours.
    """
    if labels:
        return _colours(labels)[np.round((x[..., 0] + 1.0) * 0.5 * (labels - 1)).astype(int)]
    pixels = to_bytes(x)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _colours(count: int) -> np.ndarray:
    """Returns well separated colours [count, 3], uint8; the first is black."""
    hues = [(0.618034 * index) % 1.0 for index in range(1, count)]
    colours = [colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * (index % 2), 0.95) for index, hue in enumerate(hues)]
    return np.round(255.0 * np.array([(0.0, 0.0, 0.0), *colours])).astype(np.uint8)


def most_shown(shape: tuple[int, ...]) -> int:
    """Returns how many samples of this shape a picture shows at most, so that its size is bounded."""
    if len(shape) == 1:
        return MOST_POINTS
    height, width, _ = shape
    zoom = max(1, math.ceil(MINIMUM_SIDE / height))
    columns = MOST_PIXELS // (max(height, width) * zoom + GAP)
    return max(1, min(columns, MOST_COLUMNS)) ** 2


def picture(x: np.ndarray, labels: int = 0) -> np.ndarray:
    """Draws samples [n, h, w, c] or [n, 2] as one image [H, W, 3], uint8; `labels` as in `to_pixels`."""
    return density(x) if x.ndim == 2 else grid(x, labels=labels)


def grid(x: np.ndarray, columns: int | None = None, labels: int = 0) -> np.ndarray:
    """Arranges images [n, h, w, c] in [-1, 1] in a grid [H, W, 3], uint8; small images are enlarged."""
    pixels = to_pixels(x, labels)
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    zoom = max(1, math.ceil(MINIMUM_SIDE / height))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    canvas = np.full(
        (rows * (height * zoom + GAP) - GAP, columns * (width * zoom + GAP) - GAP, channels), 64, np.uint8
    )
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height * zoom + GAP), (index % columns) * (width * zoom + GAP)
        canvas[top : top + height * zoom, left : left + width * zoom] = image
    return canvas


def density(points: np.ndarray) -> np.ndarray:
    """Draws the density of points [n, 2] in the square [-2.5, 2.5]^2, dark where it is high; ignores points outside."""
    cells = int(np.clip(2.0 * math.sqrt(len(points)), 40, 200))
    counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], bins=cells, range=[[-2.5, 2.5]] * 2)
    shade = 255.0 * (1.0 - np.sqrt(counts / max(counts.max(), 1.0)))
    zoom = math.ceil(320 / cells)
    return np.repeat(shade.astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)[..., None], 3, axis=-1)


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Puts images next to each other, each under its title."""
    title, margin = 24, 16
    height = max(panel.shape[0] for panel in panels.values()) + title
    width = sum(panel.shape[1] + margin for panel in panels.values()) - margin
    canvas = Image.new("RGB", (width, height), "white")
    left = 0
    for name, panel in panels.items():
        ImageDraw.Draw(canvas).text((left, 4), name, fill="black", font_size=14)
        canvas.paste(Image.fromarray(panel), (left, title))
        left += panel.shape[1] + margin
    return np.asarray(canvas)


def save_png(path: pathlib.Path, picture: np.ndarray) -> None:
    """Writes a PNG atomically."""
    with replacing(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
