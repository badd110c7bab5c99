"""Trains one stage: resumes, steps, validates, logs, saves checkpoints, and rolls back when training diverges."""

import contextlib
import math
import signal
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax

from lsgm_jax.arrays import Key, Params
from lsgm_jax.distributed.preemption import StoppedError, Termination
from lsgm_jax.errors import CheckpointError, TrainingError
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.devices import place
from lsgm_jax.training.logs import MetricsLog, Speed, compiling, progress_bar, warn
from lsgm_jax.training.nan_guard import Call, DivergedError, NaNGuard, keep_batch, require_sound
from lsgm_jax.training.stage import Course, Stage
from lsgm_jax.training.state import TrainState
from lsgm_jax.training.step import Metrics, make_step, scan_steps
from lsgm_jax.training.trace import Trace


def run_stage(
    stage: Stage, course: Course, before: Params | None, batches: grain.DatasetIterator, k_init: Key, key: Key
) -> Params:
    """Trains `stage` from the beginning or from its newest checkpoint, and returns its best EMA parameters.

    A stage with a checkpoint of its last step is finished: its checkpoints are only read.

    Args:
        stage: the stage to train.
        course: settings of the run.
        before: the best EMA parameters of the stage before; None for the first stage.
        batches: batches of this process, dictionaries of the fields of `Batch`. The position of the iterator is saved
            with each checkpoint.
        k_init: random key of the initial parameters.
        key: random key of everything else, the same for the whole stage.

    Raises:
        TrainingError: if training diverges, or a file cannot be written.
        StoppedError: after SIGTERM or SIGINT.
        CheckpointError: if checkpoints cannot be read or written.
        LockedError: if the folder of the run has been moved or deleted.
    """
    try:
        return _run_stage(stage, course, before, batches, k_init, key)
    except (TrainingError, CheckpointError):
        course.lock.check()  # a folder that is gone is the cause
        raise


def _run_stage(
    stage: Stage, course: Course, before: Params | None, batches: grain.DatasetIterator, k_init: Key, key: Key
) -> Params:
    with Checkpoints(course.workdir / "checkpoints" / stage.name, keep=course.train.keep) as checkpoints:
        training = _Training(stage, course, checkpoints, before, batches, k_init, key)
        if checkpoints.latest_step != stage.steps:
            try:
                training.to_the_end()
            except OSError as error:
                raise TrainingError(
                    f"{error.filename or course.workdir}: {error.strerror}; with that fixed the same command "
                    f"{checkpoints.resume_message}"
                ) from error
        return checkpoints.restore_best(training.params_like)[0]


class _Training:
    """One stage in training."""

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
        self.params_like = self._with_shardings(jax.eval_shape(stage.init, k_init, before))
        # Steps fold in 0 to stage.steps - 1, so this key is independent of theirs.
        self.k_memory = jax.random.fold_in(key, stage.steps)
        self.state_like = self._with_shardings(
            jax.eval_shape(stage.first_state, self.params_like, self.k_memory)
        )
        loss = self.launcher.spread(stage.loss)
        self.step = make_step(loss, stage.optimiser, stage.ema, grad_accum_steps=self.train.grad_accum_steps)
        self._calls: dict[int, Callable[..., tuple[TrainState, Metrics]]] = {}
        self._first: float | None = None  # what validation judges by, in the first call

    def to_the_end(self) -> None:
        """Trains to the last step; rolls back when training diverges, at most `rollbacks` times."""
        state = self._resume()
        for rollback in range(self.train.rollbacks + 1):
            try:
                return self._train_from(state)
            except DivergedError as fault:
                self._report(fault, rollback)
                state = self._roll_back()

    def _resume(self) -> TrainState:
        """Returns the state before the next step, and restores the position in the data."""
        if self.checkpoints.latest_step is None:
            return self._begin()
        state, meta = self.checkpoints.restore(self.state_like)
        self.batches.set_state(meta["data"])
        return state

    def _roll_back(self) -> TrainState:
        """Returns the last saved state. The position in the data is not restored, so the next batches differ."""
        if self.checkpoints.latest_step is None:
            return self._begin()
        return self.checkpoints.restore(self.state_like)[0]

    def _begin(self) -> TrainState:
        mesh = self.launcher.mesh
        once = _compiled_quickly()
        init = jax.jit(self.stage.init, out_shardings=_shardings(self.params_like), compiler_options=once)
        first_state = jax.jit(
            self.stage.first_state, out_shardings=_shardings(self.state_like), compiler_options=once
        )
        with (
            progress_bar(self.stage.name, 0, self.stage.steps, leave=False) as bar,
            compiling(bar, " initial parameters"),
        ):
            params = self.stage.adapt(init(place(mesh, self.k_init), self.before))
            return first_state(params, place(mesh, self.k_memory))

    def _with_shardings(self, tree: Any) -> Any:
        """Returns the shapes of a tree with the launcher's shardings."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            self.launcher.shardings(tree),
        )

    def _train_from(self, state: TrainState) -> None:
        stage, train, number = self.stage, self.train, int(state.step)
        speed, guard, key = (
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
                count = self._steps_in_call(number)
                batches = [Batch(**next(self.batches)) for _ in range(count)]
                with contextlib.nullcontext() if count in self._calls else compiling(bar):
                    state, metrics = self._call(count)(state, self.launcher.put(batches), key)
                number += count
                if self._first is None:
                    self._first = float(metrics.get(stage.judged_by, math.nan))
                bar.update(count)
                guard.watch(Call(number, batches, metrics))
                trace.step(number, metrics)
                to_save = number % train.eval_every == 0 or number == stage.steps
                if to_save or number % train.log_every == 0:
                    guard.catch_up()
                    self.course.lock.check()
                if number % train.log_every == 0:
                    values = _finite(metrics)
                    rows = len(batches[0].x) * jax.process_count()
                    values["images_per_second"] = speed.read(number) * rows
                    log.scalars(number, "train", values)
                    bar.set_postfix_str(_shown(values, stage.shown), refresh=False)
                if to_save:
                    with speed.paused():
                        self._validate_and_save(state, number, metrics, log)
                if termination.due():
                    self._save_and_stop(state, number, termination.number, saved=to_save)

    def _validate_and_save(self, state: TrainState, number: int, metrics: Metrics, log: MetricsLog) -> None:
        """Validates the EMA parameters and saves the state, except while steps are being skipped."""
        scores = self.stage.validate(state.ema)
        where = f"validation at step {number} of stage {self.stage.name}"
        require_sound(scores, self.stage.judged_by, self._first, where)
        log.scalars(number, "validation", scores)
        log.image(number, "samples", self.stage.draw(state.ema))
        if number == self.stage.steps or not int(metrics["skipped_in_a_row"]):
            self.checkpoints.save(state, self._meta(), scores[self.stage.judged_by])

    def _save_and_stop(self, state: TrainState, number: int, by: signal.Signals, *, saved: bool) -> None:
        """Saves without validation, for which there may be no time after SIGTERM."""
        if not saved:
            self.course.lock.check()
            self.checkpoints.save(state, self._meta(), None)
        self.checkpoints.wait()
        raise StoppedError(
            f"stopped by {by.name}; step {number} of stage {self.stage.name} is saved, and the same command goes on",
            by,
        )

    def _meta(self) -> dict[str, Any]:
        return {"config": self.course.config, "data": self.batches.get_state()}

    def _report(self, fault: DivergedError, rollback: int) -> None:
        """Warns about a rollback, or raises `TrainingError` if no rollback is left."""
        kept = ""
        if fault.call is not None:
            path = keep_batch(self.course.workdir / "faults", self.stage.name, fault.call, self.key)
            kept = f"; their batch is kept in {path}"
        self.course.lock.check()
        self.checkpoints.wait()
        if rollback == self.train.rollbacks:
            raise TrainingError(
                f"training has diverged: {fault}{kept}; with smaller learning rates the same command "
                f"{self.checkpoints.resume_message}"
            ) from fault
        saved = self.checkpoints.latest_step
        where = f"step {saved}, with the next batches" if saved else "the beginning, with other batches"
        warn(f"{fault}{kept}; rolling back to {where} ({rollback + 1} of {self.train.rollbacks} times)")

    def _steps_in_call(self, number: int) -> int:
        """Returns the number of steps of the next call, which ends at the next logged or validated step at most."""
        intervals = (self.train.log_every, self.train.eval_every)
        return min(
            self.train.steps_per_call,
            self.stage.steps - number,
            *(every - number % every for every in intervals),
        )

    def _call(self, count: int) -> Callable[..., tuple[TrainState, Metrics]]:
        """Returns the compiled call of `count` steps."""
        if count not in self._calls:
            self._calls[count] = self.launcher.compile(scan_steps(self.step, count), self.state_like)
        return self._calls[count]


def _compiled_quickly() -> dict[str, int] | None:
    """Returns options of the compiler for programs that run once.

    On CPUs, LLVM compiles initial parameters faster at its first level, and no bit of them changes.
    """
    whole = jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations")
    return None if whole else {"xla_backend_optimization_level": 1}


def _shardings(like: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, like)


def _finite(metrics: Metrics) -> dict[str, float]:
    """Returns the finite metrics; in a skipped step few are."""
    values = {name: float(value) for name, value in metrics.items() if name != "skipped_in_a_row"}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _shown(values: dict[str, float], names: Mapping[str, str]) -> str:
    """Formats metrics for the progress bar.

    Args:
        names: those that the stage shows, with the names to show them by.
    """
    parts = [f"{title} {_number(values[name])}" for name, title in names.items() if name in values]
    parts += [f"{values['images_per_second']:.0f} images/s"]
    return ", ".join(parts + [f"{values['skipped']:.0f} skipped"] * bool(values["skipped"]))


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.2e}"
