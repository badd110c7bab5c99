"""Paths from noise to data as pictures: frames of an animation, and stills.

Colours are Okabe and Ito's, and cividis: they can be told apart without seeing red or green.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lsgm_jax.evaluation import pictures
from lsgm_jax.files import replacing

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # one per path followed
CLOUD, FAINT = "#44546a", "#c3ccd6"
RECENT = 0.12  # time that a path was followed in full colour
LINES = 40  # of a still
DPI = 100
WIDEST = 800  # frames of images, in pixels


class PlanePaths(NamedTuple):
    """Points of the plane on their way from noise to data."""

    times: np.ndarray  # [times], decreasing
    x: np.ndarray  # [times, n, 2]
    v: np.ndarray | None  # their velocities, if the process has them
    test: np.ndarray | None  # points of the data [m, 2], if they are at hand


def plane_frames(paths: PlanePaths, count: int) -> Iterator[np.ndarray]:
    """Frames [H, W, 3], uint8: the cloud, and beside it one coordinate of a few paths.

    That is against the velocity if there is one, otherwise against time.
    """
    figure, (plane, beside) = _figure(1, 2, (7.2, 3.75))
    cloud, dots = _draw_plane(plane, paths)
    if paths.v is None:
        across, along = np.broadcast_to(paths.times[:, None], paths.x.shape[:2]), paths.x[..., 0]
        _draw_time_axes(beside, paths)
        points = None
    else:
        across, along = paths.x[..., 0], paths.v[..., 0]
        points = _draw_phase_space(beside, across, along)
    followed = range(min(len(COLOURS), paths.x.shape[1]))
    trails = [beside.plot([], [], color=COLOURS[index], linewidth=0.7, alpha=0.25)[0] for index in followed]
    curves = [beside.plot([], [], color=COLOURS[index], linewidth=1.4)[0] for index in followed]
    heads = beside.scatter(
        [0.0] * len(followed), [0.0] * len(followed), s=22, zorder=3, **_heads(len(followed))
    )
    for index in np.round(np.linspace(0, len(paths.times) - 1, count)).astype(int):
        recent = int(np.argmax(paths.times <= paths.times[index] + RECENT))
        cloud.set_offsets(paths.x[index])
        dots.set_offsets(paths.x[index, : len(followed)])
        if points is not None:
            points.set_offsets(np.stack([across[index], along[index]], axis=-1))
        for which, (trail, curve) in enumerate(zip(trails, curves, strict=True)):
            trail.set_data(across[: index + 1, which], along[: index + 1, which])
            curve.set_data(across[recent : index + 1, which], along[recent : index + 1, which])
        heads.set_offsets(np.stack([across[index], along[index]], axis=-1)[: len(followed)])
        plane.set_title(f"t = {paths.times[index]:.2f}", fontsize=10)
        yield _pixels(figure)


def plane_still(paths: PlanePaths) -> np.ndarray:
    """One coordinate over time, and its velocity if there is one: thin lines from noise, left, to data, right."""
    import matplotlib

    kinds = [("position x", paths.x[..., 0])] + ([] if paths.v is None else [("velocity v", paths.v[..., 0])])
    figure, rows = _figure(len(kinds), 2, (7.2, 0.8 + 2.2 * len(kinds)), width_ratios=(6, 1), sharex="col")
    order = np.argsort(paths.x[-1, :LINES, 0])
    shades = matplotlib.colormaps["cividis"](np.linspace(0.0, 0.92, len(order)))
    for (name, values), (lines, margin) in zip(kinds, np.atleast_2d(rows), strict=True):
        for shade, which in zip(shades, order, strict=True):
            lines.plot(paths.times, values[:, which], color=shade, linewidth=0.6)
        reach = 1.05 * np.abs(values[:, :LINES]).max()
        lines.set(xlim=(1.0, 0.0), ylim=(-reach, reach), ylabel=name)
        margin.set(ylim=(-reach, reach))
        margin.axis("off")
    last, margin = np.atleast_2d(rows)[-1, 0], np.atleast_2d(rows)[0, 1]
    last.set_xlabel("time t: noise at 1, data at 0")
    if paths.test is not None:
        margin.hist(paths.test[:, 0], bins=60, orientation="horizontal", color=FAINT, density=True)
        margin.set_title("held-out data", fontsize=8)
    return _pixels(figure)


def image_frames(times: np.ndarray, x: np.ndarray, labels: int) -> Iterator[np.ndarray]:
    """Frames [H, W, 3], uint8, of images [times, n, h, w, c]; `labels` as in `pictures.to_pixels`."""
    for t, images in zip(times, x, strict=True):
        frame = Image.fromarray(pictures.side_by_side({f"t = {t:.2f}": pictures.grid(images, labels=labels)}))
        frame.thumbnail((WIDEST, WIDEST))
        yield np.asarray(frame)


def image_still(times: np.ndarray, x: np.ndarray, labels: int) -> np.ndarray:
    """A column per time, a row per sample."""
    columns = zip(times, x, strict=True)
    return pictures.side_by_side(
        {f"t = {t:.2f}": pictures.grid(images, columns=1, labels=labels) for t, images in columns}
    )


def save_gif(path: pathlib.Path, frames: Sequence[np.ndarray], seconds: float, pause: float) -> None:
    """Writes an animation that runs for ever.

    Args:
        seconds: of all frames but the last.
        pause: seconds of the last.
    """
    palette = _shared_palette(frames)
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
    )
    each = round(1000 * seconds / max(len(others), 1))
    durations = [each] * len(others) + [round(1000 * pause)]
    with replacing(path) as partial:
        first.save(
            partial,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=durations,
            loop=0,
            optimize=True,
        )


def _shared_palette(frames: Sequence[np.ndarray]) -> Image.Image:
    """256 colours for all frames, so that of each only what changes is stored; white stays white."""
    some = np.concatenate([frames[index] for index in (0, len(frames) // 2, -1)])
    palette = Image.fromarray(some).quantize(256)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    # Pillow looks colours up in boxes of four values a side: no other may lie near white.
    colours[colours.min(axis=1) >= 244] = 255
    palette.putpalette(colours.tobytes())
    return palette


def _figure(rows: int, columns: int, size: tuple[float, float], **layout: Any) -> tuple[Any, Any]:
    """A figure that needs no screen, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        return plt.subplots(rows, columns, figsize=size, dpi=DPI, layout="constrained", **layout)


def _draw_plane(axes: Any, paths: PlanePaths) -> tuple[Any, Any]:
    """Axes of the plane, with the cloud and the dots of the paths that are followed."""
    reach = _reach(paths.x)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    cloud = axes.scatter(*paths.x[0].T, s=1.2, color=CLOUD, linewidths=0)
    followed = paths.x[0, : len(COLOURS)]
    return cloud, axes.scatter(*followed.T, s=22, zorder=3, **_heads(len(followed)))


def _draw_phase_space(axes: Any, x: np.ndarray, v: np.ndarray) -> Any:
    across, along = _reach(x), _reach(v)
    axes.set(xlim=(-across, across), ylim=(-along, along), xlabel="position $x_1$", ylabel="velocity $v_1$")
    axes.set_title("phase space", fontsize=10)
    return axes.scatter(x[0], v[0], s=1.2, color=FAINT, linewidths=0)


def _draw_time_axes(axes: Any, paths: PlanePaths) -> None:
    reach = _reach(paths.x[..., 0])
    axes.set(xlim=(paths.times[0], paths.times[-1]), ylim=(-reach, reach), xlabel="time t", ylabel="$x_1$")
    axes.set_title("paths", fontsize=10)


def _heads(count: int) -> dict[str, Any]:
    return {"c": COLOURS[:count], "edgecolors": "white", "linewidths": 0.6}


def _reach(values: np.ndarray) -> float:
    """Half the side of axes that hold all but a few values."""
    return 1.05 * float(np.quantile(np.abs(values), 0.999))


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
