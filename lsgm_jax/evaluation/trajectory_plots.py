"""Figures of sampling trajectories from noise to data: frames of an animation, and stills.

The colours are the palette of Okabe and Ito, which is safe for colour-blind readers.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lsgm_jax.evaluation import plots
from lsgm_jax.files import replacing

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # one per highlighted trajectory
BOLD = COLOURS[:3]  # highlighted in a still
CLOUD, FAINT = "#44546a", "#c3ccd6"
RECENT = 0.12  # span of time before t that is drawn in full colour
LINES = 40  # trajectories in a still
DPI = 100
WIDEST = 800  # pixels, largest width and height of frames of images

GoTo = Callable[[int], None]  # moves a panel to a time index


class PlanePaths(NamedTuple):
    """Sampling trajectories of points in the plane."""

    times: np.ndarray  # [times], decreasing
    x: np.ndarray  # [times, n, 2]
    v: np.ndarray | None  # [times, n, 2], velocities; None for processes without them
    test: np.ndarray | None  # [m, 2], points of the test split, if available
    unit: str = ""  # appended to the labels of the axes


def plane_frames(paths: PlanePaths, count: int) -> Iterator[np.ndarray]:
    """Yields `count` frames [H, W, 3], uint8: all points, and next to them one coordinate of a few trajectories.

    The coordinate is drawn against its velocity if there is one, otherwise against time.
    """
    figure, (plane, coordinate) = _figure(1, 2, (7.2, 3.75))
    draw_coordinate = _draw_over_time if paths.v is None else _draw_phase_space
    panels = _draw_plane(plane, paths), draw_coordinate(coordinate, paths)
    coordinate.set_box_aspect(1)
    plane.set_title("t", fontsize=10)
    for _ in range(2):  # the first pass measures the labels
        figure.canvas.draw()
    figure.set_layout_engine("none")  # otherwise the axes move by a pixel between frames
    for index in np.round(np.linspace(0, len(paths.times) - 1, count)).astype(int).tolist():
        for go_to in panels:
            go_to(index)
        plane.set_title(f"t = {paths.times[index]:.2f}", fontsize=10)
        yield _pixels(figure)


def plane_still(paths: PlanePaths) -> np.ndarray:
    """Draws one coordinate over time, and its velocity if there is one, from noise (left) to data (right)."""
    kinds = [(f"position $x_1${paths.unit}", paths.x[:, :LINES, 0])]
    if paths.v is not None:
        kinds.append(("velocity $v_1$", paths.v[:, :LINES, 0]))
    size = (7.2, 0.8 + 2.2 * len(kinds))
    figure, axes = _figure(len(kinds), 2, size, width_ratios=(7, 1), sharex="col")
    axes = np.atleast_2d(axes)  # one row of axes comes without its dimension
    for (name, values), (lines, margin) in zip(kinds, axes, strict=True):
        lines.plot(paths.times, values[:, len(BOLD) :], color=FAINT, linewidth=0.6)
        for index, colour in enumerate(BOLD[: values.shape[1]]):
            lines.plot(paths.times, values[:, index], color=colour, linewidth=1.2)
        reach = 1.05 * np.abs(values).max()
        lines.set(xlim=(1.0, 0.0), ylim=(-reach, reach), ylabel=name)
        margin.set(ylim=(-reach, reach))
        margin.axis("off")
    axes[-1, 0].set_xlabel("time t, from noise to data")
    if paths.test is not None:
        axes[0, 1].hist(paths.test[:, 0], bins=50, orientation="horizontal", color=CLOUD, alpha=0.6)
        axes[0, 1].set_title("held-out data", fontsize=8)
    return _pixels(figure)


def image_frames(times: np.ndarray, x: np.ndarray, labels: int) -> Iterator[np.ndarray]:
    """Yields frames [H, W, 3], uint8, of images [times, n, h, w, c]; `labels` as in `plots.to_pixels`."""
    for t, images in zip(times, x, strict=True):
        frame = Image.fromarray(plots.side_by_side({f"t = {t:.2f}": plots.grid(images, labels=labels)}))
        frame.thumbnail((WIDEST, WIDEST))
        yield np.asarray(frame)


def image_still(times: np.ndarray, x: np.ndarray, labels: int) -> np.ndarray:
    """Draws images [times, n, h, w, c] in a grid, with a column per time and a row per sample."""
    columns = zip(times, x, strict=True)
    return plots.side_by_side(
        {f"t = {t:.2f}": plots.grid(images, columns=1, labels=labels) for t, images in columns}
    )


def save_gif(path: pathlib.Path, frames: Sequence[np.ndarray], seconds: float, pause: float) -> None:
    """Writes an animation as a GIF that loops.

    Args:
        path: the GIF.
        frames: images [H, W, 3], uint8, of one size.
        seconds: duration of all frames but the last.
        pause: duration of the last frame, seconds.
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
    """Computes 256 colours for all frames, so that a GIF stores only the changes between them; white stays white."""
    some = np.concatenate([frames[index] for index in (0, len(frames) // 2, -1)])
    palette = Image.fromarray(some).quantize(256)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    # Pillow looks up colours in cells of four values per channel: no other colour may share the cell of white.
    colours[colours.min(axis=1) >= 244] = 255
    palette.putpalette(colours.tobytes())
    return palette


def _figure(rows: int, columns: int, size: tuple[float, float], **layout: Any) -> tuple[Any, Any]:
    """Creates a figure that needs no display, and its axes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **layout)


def _draw_plane(axes: Any, paths: PlanePaths) -> GoTo:
    """Draws all samples, with the highlighted ones in colour."""
    reach = _reach(paths.x)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel=f"$x_1${paths.unit}", ylabel=f"$x_2${paths.unit}")
    cloud, heads = _add_cloud(axes, paths.x, CLOUD), _add_heads(axes, paths.x)

    def go_to(index: int) -> None:
        cloud.set_offsets(paths.x[index])
        heads.set_offsets(paths.x[index, : len(COLOURS)])

    return go_to


def _draw_phase_space(axes: Any, paths: PlanePaths) -> GoTo:
    """Draws position against velocity: all samples in a faint colour, and trajectories that fade behind the samples."""
    assert paths.v is not None
    states = np.stack([paths.x[..., 0], paths.v[..., 0]], axis=-1)
    across, along = _reach(states[..., 0]), _reach(states[..., 1])
    axes.set(xlim=(-across, across), ylim=(-along, along))
    axes.set(xlabel=f"position $x_1${paths.unit}", ylabel="velocity $v_1$")
    axes.set_title("phase space", fontsize=10)
    cloud = _add_cloud(axes, states, FAINT)
    recent = np.searchsorted(-paths.times, -(paths.times + RECENT))
    lengthen = _add_curves(axes, states, recent)

    def go_to(index: int) -> None:
        cloud.set_offsets(states[index])
        lengthen(index)

    return go_to


def _draw_over_time(axes: Any, paths: PlanePaths) -> GoTo:
    """Draws the highlighted trajectories over time."""
    reach = _reach(paths.x[..., 0])
    axes.set(xlim=(1.02, -0.02), ylim=(-reach, reach), xlabel="time t, from noise to data")
    axes.set_title(f"$x_1${paths.unit}", fontsize=10)
    states = np.stack(np.broadcast_arrays(paths.times[:, None], paths.x[..., 0]), axis=-1)
    return _add_curves(axes, states, np.zeros(len(paths.times), int))


def _add_cloud(axes: Any, states: np.ndarray, colour: str) -> Any:
    """Draws the points [times, n, 2] at the first time."""
    return axes.scatter(*states[0].T, s=1.6, color=colour, linewidths=0)


def _add_heads(axes: Any, states: np.ndarray) -> Any:
    """Draws dots in colour for the highlighted samples."""
    highlighted = states[0, : len(COLOURS)]
    colours = COLOURS[: len(highlighted)]
    return axes.scatter(*highlighted.T, s=22, zorder=3, c=colours, edgecolors="white", linewidths=0.6)


def _add_curves(axes: Any, states: np.ndarray, recent: np.ndarray) -> GoTo:
    """Draws the highlighted trajectories up to a time index.

    Args:
        axes: where to draw.
        states: points [times, n, 2].
        recent: [times], the index from which a trajectory is drawn in full colour; the part before is faint.
    """
    heads = _add_heads(axes, states)
    colours = COLOURS[: states.shape[1]]
    old = [axes.plot([], [], color=colour, linewidth=0.7, alpha=0.25)[0] for colour in colours]
    new = [axes.plot([], [], color=colour, linewidth=1.4)[0] for colour in colours]

    def go_to(index: int) -> None:
        for which, (before, since) in enumerate(zip(old, new, strict=True)):
            before.set_data(*states[: index + 1, which].T)
            since.set_data(*states[recent[index] : index + 1, which].T)
        heads.set_offsets(states[index, : len(COLOURS)])

    return go_to


def _reach(values: np.ndarray) -> float:
    """Returns the limit of symmetric axes that show all but 0.3 % of the values."""
    return 1.05 * float(np.quantile(np.abs(values), 0.997))


def _pixels(figure: Any) -> np.ndarray:
    """Renders the figure as [H, W, 3], uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
