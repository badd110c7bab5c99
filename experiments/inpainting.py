"""Inpainting and super-resolution of held-out images, against baselines that do not use a model.

python -m experiments.inpainting --inpainting=runs/inpainting --upscaling=runs/upscaling --held=runs/ldm

The metric is the peak signal-to-noise ratio in dB, mean over images ± standard error; for inpainting over the holes
alone. The baselines are the mean colour of the known pixels, and bicubic interpolation. `held` is a model trained
without masks; the sampler replaces its known pixels before every step. The reconstruction error of the first stage
limits both tasks. The mean of several samples has a higher PSNR than one sample, because PSNR favours the mean. Writes
inpainting.csv, .png and .md.
"""

import argparse
import csv
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.conditioning.images import Inpainting, rectangles, reduced
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.evaluation import plots
from lsgm_jax.files import replacing
from lsgm_jax.sampling.inpaint import inpaint, upscale
from lsgm_jax.sampling.run import Run

SHOWN = 8  # images in the figure
BATCH = 64


def decibels(x: np.ndarray, x_hat: np.ndarray, where: np.ndarray | float = 1.0) -> np.ndarray:
    """Computes the PSNR of every image in [-1, 1], in dB, over the elements where `where` is 1."""
    weight = np.broadcast_to(np.asarray(where, np.float64), x.shape)
    squared = weight * (x - np.clip(x_hat, -1.0, 1.0)) ** 2
    axes = tuple(range(1, x.ndim))
    return 10.0 * np.log10(4.0 * weight.sum(axes) / np.maximum(squared.sum(axes), 1e-12))


def mean_fill(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills the holes of every image with the mean colour of its known pixels."""
    known = 1.0 - mask
    colour = (known * x).sum(axis=(1, 2), keepdims=True) / known.sum(axis=(1, 2), keepdims=True)
    return known * x + mask * colour


def in_batches(restore: Callable[[slice], np.ndarray], count: int) -> np.ndarray:
    """Applies `restore` to all rows, in batches."""
    return np.concatenate([restore(slice(start, start + BATCH)) for start in range(0, count, BATCH)])


def draw(restore: Callable[[slice, jax.Array], np.ndarray], count: int, draws: int, seed: int) -> np.ndarray:
    """Applies `restore` to all rows with several keys; returns [draws, images, ...]."""
    keys = jax.random.split(jax.random.key(seed), draws)
    return np.stack([in_batches(lambda rows, key=key: restore(rows, key), count) for key in keys])


def fill(run: Run, x: np.ndarray, mask: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Inpaints the images several times; returns [draws, images, ...]."""
    params, _ = run.best()
    return draw(lambda rows, key: inpaint(run, params, x[rows], mask[rows], key)[0], len(x), draws, seed)


def enlarge(run: Run, small: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Upscales the images several times; returns [draws, images, ...]."""
    params, _ = run.best()
    return draw(lambda rows, key: upscale(run, params, small[rows], key)[0], len(small), draws, seed)


def reconstruct(run: Run, x: np.ndarray) -> np.ndarray:
    """Reconstructs images by the first stage alone."""
    first_stage, params = run.model.autoencoder, run.best()[0][run.model.stages[0]]
    assert first_stage is not None
    code = jax.jit(lambda x, key: first_stage.autoencode(params, x, key, train=False)[1])
    return in_batches(lambda rows: np.asarray(code(jnp.asarray(x[rows]), jax.random.key(0))), len(x))


def holes(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Evaluates inpainting; returns the rows of the table and the columns of the figure."""
    run = Run.open(options.inpainting)
    x = whole_split(run.experiment.data, "test", limit=options.count)
    task = Inpainting()
    mask = np.asarray(
        rectangles(jax.random.key(options.seed), x.shape, task.rectangles, task.smallest, task.largest)
    )
    trained = fill(run, x, mask, options.draws, options.seed)
    found = {"mean of the rest": mean_fill(x, mask), "inpainting, a sample": trained[0]}
    found[f"inpainting, mean of {options.draws}"] = trained.mean(axis=0)
    if options.held is not None:
        found["held, a sample"] = fill(Run.open(options.held), x, mask, 1, options.seed)[0]
    found["first stage (limit)"] = reconstruct(run, x)
    rows = [row("inpainting", name, decibels(x, x_hat, mask)) for name, x_hat in found.items()]
    samples = [x_hat for name, x_hat in found.items() if "sample" in name]
    return rows, [x, (1.0 - mask) * x, mean_fill(x, mask), *samples]


def large(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Evaluates super-resolution, with the same results as `holes`."""
    run = Run.open(options.upscaling)
    x = whole_split(run.experiment.data, "test", limit=options.count)
    height, width, _ = run.model.latent_shape
    small = np.asarray(reduced(jnp.asarray(x), height, width))
    bicubic = np.asarray(reduced(jnp.asarray(small), *x.shape[1:3]))
    drawn = enlarge(run, small, options.draws, options.seed)
    blocks = small.repeat(x.shape[1] // height, axis=1).repeat(x.shape[2] // width, axis=2)
    found = {
        "bicubic": bicubic,
        "upscaling, a sample": drawn[0],
        f"upscaling, mean of {options.draws}": drawn.mean(axis=0),
        "first stage (limit)": reconstruct(run, x),
    }
    rows = [row("super-resolution", name, decibels(x, x_hat)) for name, x_hat in found.items()]
    return rows, [x, blocks, bicubic, drawn[0]]


def row(task: str, method: str, values: np.ndarray) -> dict[str, Any]:
    """Returns a row of the table: mean and standard error over images."""
    stderr = values.std(ddof=1) / math.sqrt(len(values))
    return {"task": task, "method": method, "psnr": values.mean(), "stderr": stderr, "images": len(values)}


def conclude(rows: list[dict[str, Any]]) -> str:
    """Returns a sentence per task that compares the best row of a model with the baseline, the first row."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        baseline, *others = [row for row in rows if row["task"] == task and "limit" not in row["method"]]
        best = max(others, key=lambda row: row["psnr"])
        gain = best["psnr"] - baseline["psnr"]
        verb = "above" if gain > 0 else "below"
        lines.append(f"{task}: {best['method']} is {abs(gain):.2f} dB {verb} {baseline['method']}")
    return "; ".join(lines) + "."


def main() -> None:
    """Runs both tasks and writes table, figure and conclusion."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("inpainting", "upscaling"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--held", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/inpainting_study"))
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (hole_rows, hole_panels), (large_rows, large_panels) = holes(options), large(options)
    rows = hole_rows + large_rows
    with replacing(options.out / "inpainting.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = [panel[:SHOWN] for panel in (*hole_panels, *large_panels)]
    figure = plots.grid(np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:]), len(columns))
    plots.save_png(options.out / "inpainting.png", figure)
    table = ["| task | method | PSNR, dB |", "|---|---|---|"]
    table += [f"| {r['task']} | {r['method']} | {r['psnr']:.2f} ± {r['stderr']:.2f} |" for r in rows]
    text = "\n".join([*table, "", conclude(rows), ""])
    with replacing(options.out / "inpainting.md") as partial:
        partial.write_text(text)
    print(text)
    print(f"wrote {options.out}/inpainting.csv, inpainting.md and inpainting.png")


if __name__ == "__main__":
    main()
