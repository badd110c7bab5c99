"""Paths from noise to data as pictures: frames of an animation, and stills.

Colours are Okabe and Ito's: they can be told apart without seeing red or green.
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
)  # one per path followed
BOLD = COLOURS[:3]  # of those, in a still
CLOUD, FAINT = "#44546a", "#c3ccd6"
RECENT = 0.12  # time that a path was followed in full colour
LINES = 40  # of a still
DPI = 100
WIDEST = 800  # frames of images, in pixels

GoTo = Callable[[int], None]  # moves what is drawn to an index of time


class PlanePaths(NamedTuple):
    """Points of the plane on their way from noise to data."""

    times: np.ndarray  # [times], decreasing
    x: np.ndarray  # [times, n, 2]
    v: np.ndarray | None  # their velocities, if the process has them
    test: np.ndarray | None  # points of the data [m, 2], if they are at hand
    unit: str = ""  # of x, as axes say it


def plane_frames(paths: PlanePaths, count: int) -> Iterator[np.ndarray]:
    """Frames [H, W, 3], uint8: the cloud, and beside it one coordinate of a few paths.

    That is against the velocity if there is one, otherwise against time.
    """
    figure, (plane, beside) = _figure(1, 2, (7.2, 3.75))
    draw_beside = _draw_over_time if paths.v is None else _draw_phase_space
    panels = _draw_plane(plane, paths), draw_beside(beside, paths)
    beside.set_box_aspect(1)
    plane.set_title("t", fontsize=10)
    for _ in range(2):  # the first time, labels find out how much room they need
        figure.canvas.draw()
    figure.set_layout_engine("none")  # axes that move by a pixel would tremble
    for index in np.round(np.linspace(0, len(paths.times) - 1, count)).astype(int).tolist():
        for go_to in panels:
            go_to(index)
        plane.set_title(f"t = {paths.times[index]:.2f}", fontsize=10)
        yield _pixels(figure)


def plane_still(paths: PlanePaths) -> np.ndarray:
    """One coordinate over time, and its velocity if there is one: thin lines from noise, left, to data, right."""
    kinds = [(f"position $x_1${paths.unit}", paths.x[:, :LINES, 0])]
    if paths.v is not None:
        kinds.append(("velocity $v_1$", paths.v[:, :LINES, 0]))
    figure, axes = _figure(
        len(kinds), 2, (7.2, 0.8 + 2.2 * len(kinds)), width_ratios=(7, 1), sharex="col", squeeze=False
    )
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
    """Frames [H, W, 3], uint8, of images [times, n, h, w, c]; `labels` as in `plots.to_pixels`."""
    for t, images in zip(times, x, strict=True):
        frame = Image.fromarray(plots.side_by_side({f"t = {t:.2f}": plots.grid(images, labels=labels)}))
        frame.thumbnail((WIDEST, WIDEST))
        yield np.asarray(frame)


def image_still(times: np.ndarray, x: np.ndarray, labels: int) -> np.ndarray:
    """A column per time, a row per sample."""
    columns = zip(times, x, strict=True)
    return plots.side_by_side(
        {f"t = {t:.2f}": plots.grid(images, columns=1, labels=labels) for t, images in columns}
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **layout)


def _draw_plane(axes: Any, paths: PlanePaths) -> GoTo:
    """The cloud, and in it the samples whose paths are followed."""
    reach = _reach(paths.x)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel=f"$x_1${paths.unit}", ylabel=f"$x_2${paths.unit}")
    cloud, heads = _add_cloud(axes, paths.x, CLOUD), _add_heads(axes, paths.x)

    def go_to(index: int) -> None:
        cloud.set_offsets(paths.x[index])
        heads.set_offsets(paths.x[index, : len(COLOURS)])

    return go_to


def _draw_phase_space(axes: Any, paths: PlanePaths) -> GoTo:
    """A faint cloud, and paths that fade behind the samples: they turn around and around."""
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
    """The paths alone."""
    reach = _reach(paths.x[..., 0])
    axes.set(xlim=(1.02, -0.02), ylim=(-reach, reach), xlabel="time t, from noise to data")
    axes.set_title(f"$x_1${paths.unit}", fontsize=10)
    states = np.stack(np.broadcast_arrays(paths.times[:, None], paths.x[..., 0]), axis=-1)
    return _add_curves(axes, states, np.zeros(len(paths.times), int))


def _add_cloud(axes: Any, states: np.ndarray, colour: str) -> Any:
    """Points [times, n, 2] as they are at first."""
    return axes.scatter(*states[0].T, s=1.6, color=colour, linewidths=0)


def _add_heads(axes: Any, states: np.ndarray) -> Any:
    """Dots in colour for the samples that are followed."""
    followed = states[0, : len(COLOURS)]
    colours = COLOURS[: len(followed)]
    return axes.scatter(*followed.T, s=22, zorder=3, c=colours, edgecolors="white", linewidths=0.6)


def _add_curves(axes: Any, states: np.ndarray, recent: np.ndarray) -> GoTo:
    """The paths of the samples that are followed, up to an index of time.

    Args:
        states: [times, n, 2].
        recent: [times], the index from which on a path is drawn in full colour; what is before is faint.
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
    """Half the side of axes that hold all but a few values."""
    return 1.05 * float(np.quantile(np.abs(values), 0.997))


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
