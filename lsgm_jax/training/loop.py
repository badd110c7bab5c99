"""Trains one stage: resume, step, validate, log, checkpoint; and goes back where numbers end."""

import math
from collections.abc import Callable
from typing import Any

import grain
import jax

from lsgm_jax.arrays import Key
from lsgm_jax.distributed.preemption import StoppedError, Termination
from lsgm_jax.errors import TrainingError
from lsgm_jax.nn.network import Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.devices import place
from lsgm_jax.training.logs import MetricsLog, Speed, progress_bar, warn
from lsgm_jax.training.nan_guard import Call, DivergedError, NaNGuard, keep_batch
from lsgm_jax.training.stage import Course, Stage
from lsgm_jax.training.state import TrainState
from lsgm_jax.training.step import Metrics, make_step, scan_steps
from lsgm_jax.training.trace import Trace


def run_stage(
    stage: Stage, course: Course, before: Params | None, batches: grain.DatasetIterator, k_init: Key, key: Key
) -> Params:
    """Trains `stage` afresh, or from its newest checkpoint, and returns the best averaged parameters.

    A stage whose last step has a checkpoint is finished, and only read.

    Args:
        before: the best parameters of the stage before.
        batches: this process's batches, the fields of `Batch`; its position is saved with each checkpoint.
        k_init: of fresh parameters.
        key: of everything else, the same for the whole stage.

    Raises:
        TrainingError: if training diverges, or something cannot be written.
        StoppedError: if SIGTERM came.
        CheckpointError: if checkpoints cannot be read or written.
    """
    with Checkpoints(course.workdir / "checkpoints" / stage.name, keep=course.train.keep) as checkpoints:
        training = _Training(stage, course, checkpoints, before, batches, k_init, key)
        if checkpoints.latest_step != stage.steps:
            try:
                training.to_the_end()
            except OSError as error:
                raise TrainingError(
                    f"{error.filename or course.workdir}: {error.strerror}; with that mended the same command "
                    f"{checkpoints.way_on}"
                ) from error
        return checkpoints.restore_best(training.params_like)[0]


class _Training:
    """One stage on its way."""

    def __init__(
        self,
        stage: Stage,
        course: Course,
        checkpoints: Checkpoints,
        before: Params | None,
        batches: grain.DatasetIterator,
        k_init: Key,
        key: Key,
    ):
        self.stage, self.course, self.train, self.launcher = stage, course, course.train, course.launcher
        self.checkpoints, self.before, self.batches = checkpoints, before, batches
        self.k_init, self.key = k_init, key
        self.params_like = self._living(jax.eval_shape(stage.init, k_init, before))
        # A number that no step folds in.
        self.k_memory = jax.random.fold_in(key, stage.steps)
        self.state_like = self._living(jax.eval_shape(stage.first_state, self.params_like, self.k_memory))
        loss = self.launcher.spread(stage.loss)
        self.step = make_step(loss, stage.optimiser, stage.ema, grad_accum_steps=self.train.grad_accum_steps)
        self._calls: dict[int, Callable[..., tuple[TrainState, Metrics]]] = {}

    def to_the_end(self) -> None:
        """Trains to the last step, and where numbers end goes back as often as the run allows."""
        state = self._resume()
        for rollback in range(self.train.rollbacks + 1):
            try:
                return self._train_from(state)
            except DivergedError as fault:
                self._report(fault, rollback)
                state = self._go_back()

    def _resume(self) -> TrainState:
        """The state before the next step on every device, with the data where they were left."""
        if self.checkpoints.latest_step is None:
            return self._begin()
        state, meta = self.checkpoints.restore(self.state_like)
        self.batches.set_state(meta["data"])
        return state

    def _go_back(self) -> TrainState:
        """The last state that is saved. The data go on: other batches than those that failed."""
        if self.checkpoints.latest_step is None:
            return self._begin()
        return self.checkpoints.restore(self.state_like)[0]

    def _begin(self) -> TrainState:
        mesh = self.launcher.mesh
        init = jax.jit(self.stage.init, out_shardings=_shardings(self.params_like))
        first_state = jax.jit(self.stage.first_state, out_shardings=_shardings(self.state_like))
        params = self.stage.adapt(init(place(mesh, self.k_init), self.before))
        return first_state(params, place(mesh, self.k_memory))

    def _living(self, tree: Any) -> Any:
        """Shapes, with where the launcher has them."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            self.launcher.shardings(tree),
        )

    def _train_from(self, state: TrainState) -> None:
        stage, train, number = self.stage, self.train, int(state.step)
        speed, sentinel, key = (
            Speed(number),
            NaNGuard(stage.name, train.patience),
            place(self.launcher.mesh, self.key),
        )
        with (
            Termination() as termination,
            Trace(self.course.workdir / "profile" / stage.name, number, wanted=self.course.trace) as trace,
            MetricsLog(self.course.workdir, stage.name, number) as log,
            progress_bar(stage.name, number, stage.steps) as bar,
        ):
            while number < stage.steps:
                count = self._steps_at_once(number)
                batches = [Batch(**next(self.batches)) for _ in range(count)]
                state, metrics = self._call(count)(state, self.launcher.put(batches), key)
                number += count
                bar.update(count)
                sentinel.watch(Call(number, batches, metrics))
                trace.step(number, metrics)
                to_save = number % train.eval_every == 0 or number == stage.steps
                if to_save or number % train.log_every == 0:
                    sentinel.catch_up()
                if number % train.log_every == 0:
                    values = _finite(metrics)
                    rows = len(batches[0].x) * jax.process_count()
                    values["images_per_second"] = speed.read(number) * rows
                    log.scalars(number, "train", values)
                    bar.set_postfix_str(_shown(values), refresh=False)
                if to_save:
                    with speed.paused():
                        self._validate_and_save(state, number, metrics, log)
                if termination.due():
                    self._save_and_stop(state, number, saved=to_save)

    def _validate_and_save(self, state: TrainState, number: int, metrics: Metrics, log: MetricsLog) -> None:
        """Judges the averaged parameters, and saves them, unless steps are being skipped: who knows what is wrong."""
        scores = self.stage.validate(state.ema)
        broken = [f"{name}={value}" for name, value in scores.items() if not math.isfinite(value)]
        if broken:
            raise DivergedError(f"validation at step {number} of stage {self.stage.name} has {broken[0]}")
        log.scalars(number, "validation", scores)
        log.image(number, "samples", self.stage.draw(state.ema))
        if number == self.stage.steps or not int(metrics["skipped_in_a_row"]):
            self.checkpoints.save(state, self._meta(), scores[self.stage.judged_by])

    def _save_and_stop(self, state: TrainState, number: int, *, saved: bool) -> None:
        """Without validation, for which there may be no time."""
        if not saved:
            self.checkpoints.save(state, self._meta(), None)
        self.checkpoints.wait()
        raise StoppedError(
            f"stopped by SIGTERM; step {number} of stage {self.stage.name} is saved, and the same command goes on"
        )

    def _meta(self) -> dict[str, Any]:
        return {"config": self.course.config, "data": self.batches.get_state()}

    def _report(self, fault: DivergedError, rollback: int) -> None:
        """Says what went wrong and what is done about it; gives up if nothing is left to try."""
        kept = ""
        if fault.call is not None:
            path = keep_batch(self.course.workdir / "faults", self.stage.name, fault.call, self.key)
            kept = f"; their batch is kept in {path}"
        self.checkpoints.wait()
        if rollback == self.train.rollbacks:
            raise TrainingError(
                f"training has diverged: {fault}{kept}; with smaller learning rates the same command "
                f"{self.checkpoints.way_on}"
            ) from fault
        saved = self.checkpoints.latest_step
        back = f"step {saved}, with the next batches" if saved else "the beginning, with other batches"
        warn(f"{fault}{kept}; going back to {back} ({rollback + 1} of {self.train.rollbacks} times)")

    def _steps_at_once(self, number: int) -> int:
        """As many as a call may take, but none past a step that is looked at."""
        rhythm = (self.train.log_every, self.train.eval_every)
        return min(
            self.train.steps_per_call,
            self.stage.steps - number,
            *(every - number % every for every in rhythm),
        )

    def _call(self, count: int) -> Callable[..., tuple[TrainState, Metrics]]:
        """The compiled call of `count` steps."""
        if count not in self._calls:
            self._calls[count] = self.launcher.compile(scan_steps(self.step, count), self.state_like)
        return self._calls[count]


def _shardings(like: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, like)


def _finite(metrics: Metrics) -> dict[str, float]:
    """Those that are numbers: a skipped step has few."""
    values = {name: float(value) for name, value in metrics.items() if name != "skipped_in_a_row"}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _shown(values: dict[str, float]) -> str:
    shown = {"loss": "loss {:.2f}", "nelbo": "NELBO {:.2f}", "images_per_second": "{:.0f} images/s"}
    parts = [form.format(values[name]) for name, form in shown.items() if name in values]
    return ", ".join(parts + [f"{values['skipped']:.0f} skipped"] * bool(values["skipped"]))
