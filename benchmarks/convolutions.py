"""Time of convolutions and their gradients on this machine, as the networks compute them and by `jax.lax` alone.

    python -m benchmarks.convolutions [--turns=3] [--json]

Three tables: single convolutions, outside of loops; six layers in a row, unrolled and as a scan; and what noise takes
to compile, drawn as a matrix and with the axes of the maps. Milliseconds of CPU time of all threads, the least of
several turns, in which both versions alternate.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import draw_array
from lsgm_jax.nn.convolution import convolve

# name -> maps, window, whether depthwise, output channels
CONVOLUTIONS = {
    "depthwise 5x5, 16x8x8x768": ((16, 8, 8, 768), 5, True, 768),
    "depthwise 5x5, 16x16x16x384": ((16, 16, 16, 384), 5, True, 384),
    "depthwise 5x5, 16x32x32x192": ((16, 32, 32, 192), 5, True, 192),
    "depthwise 5x5, 4x4x4x16": ((4, 4, 4, 16), 5, True, 16),
    "1x1, 16x8x8x128 to 768": ((16, 8, 8, 128), 1, False, 768),
    "1x1, 16x32x32x128 to 384": ((16, 32, 32, 128), 1, False, 384),
    "3x3, 16x16x16x256 to 256": ((16, 16, 16, 256), 3, False, 256),
}
LAYERS, LAYER_MAPS = 6, (16, 16, 16, 128)
NOISE = (64, 4, 4, 64)
Conv = Callable[[Any, Any, int], jax.Array]


def main() -> None:
    """Measures and prints the tables in Markdown, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tables = {
        "convolution": single(options.turns),
        "layers": in_a_row(options.turns),
        "noise": compile_noise(options.turns),
    }
    if options.json:
        print(json.dumps({"tables": tables, "jax": jax.__version__}, allow_nan=False))
        return
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, ms of CPU time: ours, lax")
    for title, rows in tables.items():
        columns = list(next(iter(rows.values())))
        print(f"\n| {title} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for name, row in rows.items():
            cells = (f"{ours:.2f}, {theirs:.2f}" for ours, theirs in (row[column] for column in columns))
            print(f"| {name} | {' | '.join(cells)} |")


def by_lax(h: Any, kernel: Any, groups: int) -> jax.Array:
    """Convolves by `jax.lax`."""
    return jax.lax.conv_general_dilated(
        h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def ours(h: Any, kernel: Any, groups: int) -> jax.Array:
    """Convolves as the networks do."""
    return convolve(h, kernel, groups=groups)


def normal(*shape: int) -> jax.Array:
    """Draws standard Gaussian numbers, always the same."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def output(conv: Conv, groups: int) -> Callable[..., Any]:
    """Returns the convolution as a function of maps, kernel and output gradient."""
    return lambda h, kernel, g: conv(h, kernel, groups)


def gradient_of_maps(conv: Conv, groups: int) -> Callable[..., Any]:
    """Returns the gradient of the maps as a function of the same."""
    return lambda h, kernel, g: jax.vjp(lambda h: conv(h, kernel, groups), h)[1](g)


def gradient_of_kernel(conv: Conv, groups: int) -> Callable[..., Any]:
    """Returns the gradient of the kernel as a function of the same."""
    return lambda h, kernel, g: jax.vjp(lambda kernel: conv(h, kernel, groups), kernel)[1](g)


PASSES = {
    "output": output,
    "gradient of the maps": gradient_of_maps,
    "gradient of the kernel": gradient_of_kernel,
}


def single(turns: int) -> dict[str, dict[str, list[float]]]:
    """Measures the output and both gradients of every convolution."""
    rows = {}
    for name, (shape, window, depthwise, outputs) in CONVOLUTIONS.items():
        inputs, groups = (1, shape[-1]) if depthwise else (shape[-1], 1)
        h, kernel = normal(*shape), normal(window, window, inputs, outputs)
        g = normal(*shape[:3], outputs)
        rows[name] = {
            title: milliseconds(
                [jax.jit(run(conv, groups)) for conv in (ours, by_lax)], (h, kernel, g), turns
            )
            for title, run in PASSES.items()
        }
    return rows


def in_a_row(turns: int) -> dict[str, dict[str, list[float]]]:
    """Measures the gradients of several 3x3 layers in a row."""
    channels = LAYER_MAPS[-1]
    h, kernels = normal(*LAYER_MAPS), 0.03 * normal(LAYERS, 3, 3, channels, channels)

    def layer(conv: Conv, h: jax.Array, kernel: jax.Array) -> jax.Array:
        return h + jax.nn.swish(conv(h, kernel, 1))

    def unrolled(conv: Conv) -> Callable[..., Any]:
        def loss(h: jax.Array, kernels: jax.Array) -> jax.Array:
            for kernel in kernels:
                h = layer(conv, h, kernel)
            return jnp.sum(h**2)

        return jax.jit(jax.grad(loss, (0, 1)))

    def scanned(conv: Conv) -> Callable[..., Any]:
        def loss(h: jax.Array, kernels: jax.Array) -> jax.Array:
            h, _ = jax.lax.scan(lambda h, kernel: (layer(conv, h, kernel), None), h, kernels)
            return jnp.sum(h**2)

        return jax.jit(jax.grad(loss, (0, 1)))

    return {
        f"{LAYERS} of 3x3, gradients, {name}": {
            "step": milliseconds([way(ours), way(by_lax)], (h, kernels), turns)
        }
        for name, way in (("unrolled", unrolled), ("scan", scanned))
    }


def compile_noise(turns: int) -> dict[str, dict[str, list[float]]]:
    """Measures what dropout and Gaussian noise take to compile, and to draw."""
    rows, key = {}, jax.random.key(0)
    keep = lambda key, shape, dtype: jax.random.bernoulli(key, 0.9, shape)
    for name, sampler in (("dropout mask", keep), ("Gaussian", jax.random.normal)):
        as_matrix = jax.jit(lambda key, s=sampler: draw_array(s, key, NOISE, jnp.float32))
        with_axes = jax.jit(lambda key, s=sampler: s(key, NOISE, jnp.float32))
        rows[f"{name}, {'x'.join(map(str, NOISE))}"] = {
            "compile": [
                1e3 * min(compile_seconds(f, key) for _ in range(turns)) for f in (as_matrix, with_axes)
            ],
            "draw": milliseconds([as_matrix, with_axes], (key,), turns),
        }
    return rows


def compile_seconds(function: Any, *arguments: Any) -> float:
    """Returns the CPU seconds of one compilation."""
    jax.clear_caches()
    lowered = function.lower(*arguments)
    start = time.process_time()
    lowered.compile()
    return time.process_time() - start


def milliseconds(functions: list[Callable[..., Any]], arguments: Any, turns: int) -> list[float]:
    """Returns the least CPU time of a call of each function, which take turns."""
    jax.block_until_ready([function(*arguments) for function in functions])
    best = [float("inf")] * len(functions)
    for _ in range(turns):
        for index, function in enumerate(functions):
            start, calls = time.process_time(), 0
            while time.process_time() - start < 0.2:
                jax.block_until_ready(function(*arguments))
                calls += 1
            best[index] = min(best[index], 1e3 * (time.process_time() - start) / calls)
    return best


if __name__ == "__main__":
    main()
