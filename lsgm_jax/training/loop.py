"""Trains one stage: resume, step, validate, log, checkpoint."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lsgm_jax.arrays import Key
from lsgm_jax.models.bound import Batch
from lsgm_jax.models.network import Params
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.logs import MetricsLog, progress_bar
from lsgm_jax.training.parallel import compile_step, data_mesh, put_batch, replicated
from lsgm_jax.training.state import TrainState, create_state
from lsgm_jax.training.step import Average, Loss, Metrics, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is optimised, how, for how long, and how its progress is judged.

    Attributes:
        init: fresh parameters from a key and the best ones of the stage before, which the first stage lacks.
        adapt: changes fresh parameters by what the data say.
        memory: what the loss finds in the first step, from parameters and a key (see `Aux.memory`).
        validate: scores averaged parameters on the validation split; must return "nelbo", in nats.
        draw: a picture [h, w, c], uint8, of what averaged parameters generate.
    """

    name: str
    init: Callable[[Key, Params | None], Params]
    loss: Loss
    optimiser: optax.GradientTransformation
    average: Average
    steps: int
    validate: Callable[[Params], dict[str, float]]
    draw: Callable[[Params], np.ndarray]
    adapt: Callable[[Params], Params] = lambda params: params
    memory: Callable[[Params, Key], Any] = lambda params, key: ()


class TrainingError(Exception):
    """Training cannot go on; the message says what was saved and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Length and rhythm of training, in steps.

    Attributes:
        ema_decay: of the averaged parameters, which are the ones validated, sampled and kept as best.
        ema_warmup: see `Average`.
        log_every: scalars; reading them waits for the device.
        eval_every: validation, picture and checkpoint.
    """

    steps: int
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    log_every: int = 50
    eval_every: int = 1000

    def __post_init__(self):
        for name in ("steps", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number of steps")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay}: an average needs a decay in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStageSpec(TrainSpec):
    """The same for an LSGM, whose `steps` are those of the second stage: VAE and score prior together.

    Attributes:
        vae_steps: first stage, the VAE with its Normal prior.
        vae_from: folder of another run whose VAE is taken in place of a first stage; "" for none.
        freeze_vae: train the prior alone in the second stage.
        average_vae: whether the VAE is averaged like the prior; the published runs average the prior alone.
    """

    vae_steps: int
    vae_from: str = ""
    freeze_vae: bool = False
    average_vae: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.vae_steps < 1:
            raise ValueError(f"vae_steps={self.vae_steps}: give a positive number of steps")


def run_stage(
    stage: Stage,
    train: TrainSpec,
    params: Params,
    batches: grain.DatasetIterator,
    key: Key,
    workdir: pathlib.Path,
    config: dict,
) -> Params:
    """Trains `stage` from `params`, or from its newest checkpoint, and returns the best averaged parameters.

    A stage whose last step has a checkpoint is finished, and only read.

    Args:
        batches: this process's batches {"x": ...}; its position is saved with each checkpoint.
        key: the same for the whole stage.
        workdir: gets `checkpoints/<stage>`, `metrics.csv` and `tensorboard/<stage>`.
        config: what each checkpoint remembers of the run.
    """
    mesh = data_mesh()
    with Checkpoints(workdir / "checkpoints" / stage.name) as checkpoints:
        if checkpoints.latest_step == stage.steps:
            return checkpoints.restore_best(params)[0]
        state = _begin_or_resume(stage, params, batches, key, checkpoints, mesh)
        step = compile_step(make_step(stage.loss, stage.optimiser, stage.average), mesh)
        key = jax.device_put(key, replicated(mesh))
        first = int(state.step)
        speed = _Speed(first)
        with (
            MetricsLog(workdir, stage.name, first) as log,
            progress_bar(stage.name, first, stage.steps) as bar,
        ):
            for number in range(first + 1, stage.steps + 1):
                batch = put_batch(mesh, Batch(next(batches)["x"]))
                state, metrics = step(state, batch, key)
                bar.update()
                to_log = number % train.log_every == 0
                to_save = number % train.eval_every == 0 or number == stage.steps
                values = _to_host(metrics) if to_log or to_save else {}
                _require_finite(stage, number, values, checkpoints)
                if to_log:
                    values["images_per_second"] = speed.read(number) * len(batch.x)
                    log.scalars(number, "train", values)
                    shown = "loss {loss:.2f}, NELBO {nelbo:.2f}, {images_per_second:.0f} images/s"
                    bar.set_postfix_str(shown.format(**values), refresh=False)
                if to_save:
                    with speed.paused():
                        scores = stage.validate(state.ema)
                        _require_finite(stage, number, scores, checkpoints)
                        log.scalars(number, "validation", scores)
                        log.image(number, "samples", stage.draw(state.ema))
                        checkpoints.save(
                            state, {"config": config, "data": batches.get_state()}, scores["nelbo"]
                        )
        return checkpoints.restore_best(params)[0]


def _begin_or_resume(
    stage: Stage,
    params: Params,
    batches: grain.DatasetIterator,
    key: Key,
    checkpoints: Checkpoints,
    mesh: Mesh,
) -> TrainState:
    """The state before the next step on every device, with `batches` where it left off."""
    begin = checkpoints.latest_step is None
    params = stage.adapt(params) if begin else params
    memory = stage.memory(params, jax.random.fold_in(key, stage.steps))  # a number that no step folds in
    state = jax.device_put(create_state(params, stage.optimiser, memory), replicated(mesh))
    if not begin:
        state, meta = checkpoints.restore(state)
        batches.set_state(meta["data"])
    return state


def _to_host(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _require_finite(stage: Stage, step: int, values: dict[str, float], checkpoints: Checkpoints) -> None:
    """Stops before anything that is not a number is saved."""
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        saved = checkpoints.latest_step
        goes_on = f"goes on from step {saved}, which is saved" if saved else "starts this stage again"
        raise TrainingError(
            f"{broken[0]}={values[broken[0]]} at step {step} of stage {stage.name}: training has diverged; "
            f"with smaller learning rates the same command {goes_on}"
        )


class _Speed:
    """Steps per second since the last reading, time spent on validation left out."""

    def __init__(self, step: int):
        self.step, self.since = step, time.monotonic()

    def read(self, step: int) -> float:
        """Steps per second since the last call."""
        now = time.monotonic()
        rate = (step - self.step) / (now - self.since)
        self.step, self.since = step, now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin
