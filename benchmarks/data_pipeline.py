"""Throughput of the data pipeline in training: images per second, shuffled, decoded, quantised and batched.

    python benchmarks/data_pipeline.py [--seconds=2] [--json]

The images are crops of the two photographs in scikit-learn, prepared as by `lsgm data prepare folder`. Pipelines are
measured in turns, and the fastest of several turns counts, because disturbances only ever slow a measurement.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from lsgm_jax.data.pipeline import READ_AHEAD, training_batches
from lsgm_jax.data.prepare import Job, prepare
from lsgm_jax.data.spec import DataSpec, Split

TURNS = 3
ALL = ("train+validation+test",) * 3
SMALL = dict(source="small", splits=ALL, batch_size=128)
LARGE = dict(source="large", image_shape=(256, 256, 3), splits=ALL, batch_size=32)
# name -> fields of `DataSpec`, and whether images are decoded once into memory.
PIPELINES: dict[str, tuple[dict[str, Any], bool]] = {
    "32 x 32 x 3 in memory": (SMALL | dict(image_shape=(32, 32, 3)), True),
    "32 x 32 x 3 in memory, mirrored": (SMALL | dict(image_shape=(32, 32, 3), flip=True), True),
    "28 x 28 in memory, padded, binarised anew": (
        SMALL | dict(image_shape=(32, 32, 1), pad=2, fit="crop", levels=2, binarise="dynamic"),
        True,
    ),
    "32 x 32 x 3 PNG, decoded": (SMALL | dict(image_shape=(32, 32, 3), flip=True), False),
    "256 x 256 x 3 JPEG, decoded, 5 bits, mirrored": (LARGE | dict(levels=32, flip=True), False),
}


def main() -> None:
    """Measures all pipelines and prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_sets(pathlib.Path(folder))
        rows = measure(folder, options.seconds)
    if options.json:
        print(
            json.dumps({"pipelines": rows, "cores": os.cpu_count(), "threads": READ_AHEAD}, allow_nan=False)
        )
        return
    print(f"{os.cpu_count()} cores, {READ_AHEAD} threads where images are decoded")
    print(f"{'pipeline':50s}{'images/s':>10s}{'ms per batch':>14s}")
    for row in rows:
        print(f"{row['name']:50s}{row['images_per_second']:10.0f}{row['milliseconds_per_batch']:14.2f}")


def make_sets(folder: pathlib.Path) -> None:
    """Writes 4,000 PNG files of 32 x 32, and 512 JPEG files of 256 x 256 at quality 95."""
    for name, count, side, suffix in (("small", 4000, 32, ".png"), ("large", 512, 256, ".jpg")):
        files = folder / "files" / name
        files.mkdir(parents=True)
        for index, tile in enumerate(tiles(count, side)):
            Image.fromarray(tile).save(files / f"{index}{suffix}", quality=95)
        prepare(Job(kind="folder", source=files, data_dir=folder, name=name))


def tiles(count: int, side: int) -> list[np.ndarray]:
    """Crops squares from random places of the two photographs."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    chosen = []
    for index in range(count):
        image = photographs[index % len(photographs)]
        top, left = (rng.integers(0, length - side) for length in image.shape[:2])
        chosen.append(image[top : top + side, left : left + side])
    return chosen


def measure(data_dir: str, seconds: float) -> list[dict[str, Any]]:
    """Measures every pipeline and returns a row for each."""
    best = dict.fromkeys(PIPELINES, 0.0)
    for _ in range(TURNS):
        for name, (fields, in_memory) in PIPELINES.items():
            best[name] = max(
                best[name], batches_per_second(DataSpec(**fields, data_dir=data_dir), in_memory, seconds)
            )
    return [
        {
            "name": name,
            "images_per_second": best[name] * fields["batch_size"],
            "milliseconds_per_batch": 1e3 / best[name],
        }
        for name, (fields, _) in PIPELINES.items()
    ]


def batches_per_second(spec: DataSpec, in_memory: bool, seconds: float) -> float:
    """Measures the batches per second in training, after the read-ahead batches are used up."""
    samples = Split(spec, "train", decode=in_memory)
    batches, count = training_batches(samples, seed=0), 0
    for _ in range(2 * READ_AHEAD):
        next(batches)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
