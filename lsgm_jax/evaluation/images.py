"""Grids of images as PNG files."""

import math
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from lsgm_jax.files import replacing

MINIMUM_SIDE = 48


def to_pixels(x: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8 with three channels."""
    pixels = np.round((np.clip(np.asarray(x, np.float32), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def grid(x: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arranges images [n, h, w, c] in [-1, 1] as one picture [H, W, 3], uint8; small images are enlarged."""
    pixels = to_pixels(x)
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    zoom = max(1, math.ceil(MINIMUM_SIDE / height))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gap = 2
    canvas = np.full(
        (rows * (height * zoom + gap) - gap, columns * (width * zoom + gap) - gap, channels), 64, np.uint8
    )
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height * zoom + gap), (index % columns) * (width * zoom + gap)
        canvas[top : top + height * zoom, left : left + width * zoom] = image
    return canvas


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Puts pictures of one height next to each other, each under its title."""
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
    """Writes a PNG in one step."""
    with replacing(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
