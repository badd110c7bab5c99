"""Time and memory of a training step with each option of precision, memory and parallelism.

    python benchmarks/training_step.py [--config=FILE[:ARG]] [--steps=N] [--json] [--config.SECTION.KEY=VALUE ...]

The step is that of the config's last stage on a random batch. Options are measured in turns, and the fastest of several
turns counts, because disturbances only ever slow a measurement. Memory is XLA's count of the temporary buffers of the
compiled step, without its arguments.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lsgm_jax.arrays import Key
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.config.registry import Config
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.devices import place
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.state import TrainState
from lsgm_jax.training.step import make_step, scan_steps

TURNS = 5
OPTIONS = {
    "as configured": (),
    "bfloat16": ("compute.dtype=bfloat16",),
    "remat": ("compute.remat=True",),
    "bfloat16, remat": ("compute.dtype=bfloat16", "compute.remat=True"),
    "2 micro-batches": ("train.grad_accum_steps=2",),
    "4 steps per call": ("train.steps_per_call=4",),
    "pmap": ("parallel.name=pmap",),
    "fsdp": ("parallel.name=fsdp",),
}
COLUMNS = ("option", "ms_per_step", "images_per_second", "compile_seconds", "temporary_mib")


def main() -> None:
    """Measures all options and prints a table in Markdown, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args()
    rows = measure(options.config, overrides, options.steps)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    if options.json:
        print(json.dumps({"config": options.config, "devices": devices, "rows": rows}, allow_nan=False))
        return
    print(f"{options.config} {' '.join(overrides)}: {devices}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {row['option']} | " + " | ".join(f"{row[name]:.4g}" for name in COLUMNS[1:]) + " |")


def measure(path: str, overrides: list[str], steps: int) -> list[dict[str, Any]]:
    """Measures every option and returns a row for each."""
    trials = {}
    for name, changes in tqdm(OPTIONS.items(), desc="compiling", leave=False):
        config = load_config(path, [*overrides, *(f"--config.{change}" for change in changes)])
        trials[name] = Trial(Planned(config))
    seconds: dict[str, list[float]] = {name: [] for name in trials}
    for _ in tqdm(range(TURNS), desc="turns", leave=False):
        for name, trial in trials.items():
            seconds[name].append(trial.seconds_per_step(steps))
    return [
        {
            "option": name,
            "ms_per_step": 1e3 * min(seconds[name]),
            "images_per_second": trial.batch_size / min(seconds[name]),
            "compile_seconds": trial.compile_seconds,
            "temporary_mib": trial.temporary_bytes / 2**20,
        }
        for name, trial in trials.items()
    ]


class Planned:
    """The training step of a config's stage on one random batch of binary values; nothing is compiled.

    Attributes:
        step: (state, batches, key) -> (state, metrics), of `arguments`.
        like: shapes of the state.
        init: initialises the parameters from a key.
    """

    def __init__(self, config: Config, stage: str | None = None):
        """Plans the step of the named stage, or of the last one."""
        planned = experiment(config)
        model, self.launcher, train = planned.model, planned.parallel, planned.training.train
        stages = {each.name: each for each in planned.training.stages(Data.without(model.data_shape))}
        self._stage = stages[stage or list(stages)[-1]]
        self.batch_size, self.per_call = planned.data.batch_size, train.steps_per_call
        self.init = planned.training.init(self._stage.name)
        key = place(self.launcher.mesh, jax.random.key(0))
        self.like = jax.eval_shape(self._begin, key)
        loss, accumulated = self.launcher.spread(self._stage.loss), train.grad_accum_steps
        step = make_step(loss, self._stage.optimiser, self._stage.ema, grad_accum_steps=accumulated)
        self.step = scan_steps(step, self.per_call)
        shape = (self.batch_size, *model.data_shape)
        x = np.where(np.random.default_rng(0).random(shape) < 0.5, -1.0, 1.0).astype(np.float32)
        self.arguments = self.launcher.put([Batch(x)] * self.per_call), key

    def _begin(self, key: Key) -> TrainState:
        return self._stage.first_state(self.init(key), key)

    def first_state(self) -> TrainState:
        """Returns a fresh state on the devices."""
        begin = jax.jit(self._begin, out_shardings=self.launcher.shardings(self.like))
        return begin(self.arguments[1])


class Trial:
    """A compiled step with its state."""

    def __init__(self, planned: Planned):
        self.batch_size, self._per_call = planned.batch_size, planned.per_call
        call = planned.launcher.compile(planned.step, planned.like)
        self._arguments, self._state = planned.arguments, planned.first_state()
        start = time.monotonic()
        compiled = call.lower(self._state, *self._arguments).compile()
        self.compile_seconds = time.monotonic() - start
        self.temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
        self._call: Callable[..., Any] = compiled

    def seconds_per_step(self, steps: int) -> float:
        """Returns the mean time of a step over so many steps, after one call that is not timed."""
        self.take(1)
        calls = max(steps // self._per_call, 1)
        start = time.monotonic()
        self.take(calls)
        return (time.monotonic() - start) / (calls * self._per_call)

    def take(self, calls: int) -> None:
        """Makes so many calls, and waits for them."""
        for _ in range(calls):
            self._state, metrics = self._call(self._state, *self._arguments)
        jax.block_until_ready((self._state, metrics))


if __name__ == "__main__":
    main()
