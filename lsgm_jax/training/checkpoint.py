"""Checkpoints of one training stage: the newest few and the best by validation, written atomically by orbax."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lsgm_jax.arrays import Params
from lsgm_jax.errors import CheckpointError, first_line, reason
from lsgm_jax.files import is_first
from lsgm_jax.sealed import array_sums
from lsgm_jax.training.checkpoint_record import (
    METRIC,
    RESUMABLE,
    STATE,
    STATE_KEYS,
    UnreadableError,
    as_abstract,
    make_record,
    mend,
    read_record,
    renamed,
    score_of,
)
from lsgm_jax.training.logs import note, warn
from lsgm_jax.training.state import TrainState

DAMAGED = "damaged"  # folder next to those of the stages, for unreadable checkpoints
LOOKS = 10  # how often a reader looks for a checkpoint that a training deletes meanwhile
SECONDS_TO_DELETE = 1.0  # in which a checkpoint that is being deleted is gone

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one stage in one folder.

    A checkpoint has three items: `state` (step, parameters, optimiser state), `ema` (the EMA parameters, the only item
    that sampling reads) and `meta`, its record (format, config, position in the data, score, the SHA-256 of each array
    and of itself). Its score is the validation NELBO, or another metric. Converted checkpoints have no `state` and no
    score; those written on SIGTERM have no score.

    A reader may read while a training writes to the same folder and deletes older checkpoints. Arrays are saved with
    their global shapes, however they are sharded, and restored with the shardings of the caller's tree.

    Args:
        folder: of this stage.
        keep: number of newest checkpoints that are not deleted; the best one is not deleted either.
        read_only: refuses a missing folder and never writes to an existing one.

    Raises:
        CheckpointError: if the folder is missing (`read_only`) or cannot be written.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2, read_only: bool = False):
        self.folder, self._read_only = folder.absolute(), read_only
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder}: run  lsgm train  with this --workdir first")
        best = BestN(
            get_metric_fn=lambda metrics: -metrics[METRIC], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            read_only=read_only,
            lightweight_initialize=read_only,  # reads no scores, of checkpoints that may just be deleted
        )
        if not read_only:
            self._tidy()
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=("state", "ema", "meta")
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(CheckpointError) if kind else contextlib.nullcontext(), self._writing():
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def resume_message(self) -> str:
        """The end of a sentence that says from which complete checkpoint the same command resumes."""
        saved = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
        return f"goes on from step {max(saved)}, which is saved" if saved else "starts this stage again"

    def save(self, state: TrainState, meta: dict[str, Any], score: float | None) -> None:
        """Writes a checkpoint in the background.

        Args:
            state: the state to save, under its step.
            meta: config and position in the data.
            score: metric of the EMA parameters on the validation split, lower is better; None for a checkpoint to
                resume from that is never chosen as the best.

        Raises:
            CheckpointError: if this checkpoint, or the one before, cannot be written.
        """
        self._save(int(state.step), {"state": state.replace(ema=None), "ema": state.ema}, meta, score)

    def save_finished(self, step: int, ema: Params, meta: dict[str, Any]) -> None:
        """Writes a checkpoint of EMA parameters alone, as the last step of a finished stage."""
        self._save(step, {"ema": ema}, meta, None)

    def _save(self, step: int, trees: dict[str, Any], meta: dict[str, Any], score: float | None) -> None:
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        record = ocp.args.JsonSave(make_record(meta, trees, score))
        metrics = None if score is None else {METRIC: score}
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items, meta=record), metrics=metrics)

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
            CheckpointError: if one cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest readable checkpoint.

        Damaged newer ones are moved to the folder `damaged`, with a warning.

        Args:
            like: shapes and shardings of the state.

        Returns:
            The state, and the `meta` it was saved with.

        Raises:
            CheckpointError: if all are damaged, of an unknown format, or belong to another model.
        """
        abstract = as_abstract(like)

        def read(step: int) -> tuple[TrainState, dict[str, Any]]:
            record = self._record(step, RESUMABLE)
            if "converted" in record:
                raise CheckpointError(
                    f"checkpoint {self._path(step)} was converted from {record['converted']} and has no state of an "
                    f"optimiser: it cannot be trained further"
                )
            state, ema = self._trees(step, record, state=abstract.replace(ema=None), ema=abstract.ema)
            return state.replace(ema=ema), record

        return self._first_readable(self._newest_first, read)[0]

    def restore_best(self, like: Params) -> tuple[Params, int]:
        """Restores the EMA parameters with the lowest validation metric, and returns them with their step.

        Falls back to the newest readable ones if none has been validated or the best cannot be read.

        Args:
            like: shapes and shardings of the parameters.

        Raises:
            CheckpointError: as `restore`.
        """
        abstract = as_abstract(like)

        def read(step: int) -> Params:
            (ema,) = self._trees(step, self._record(step, tuple(STATE_KEYS)), ema=abstract)
            return ema

        return self._first_readable(self._best_first, read)

    def _newest_first(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def _best_first(self) -> list[int]:
        """Returns all steps: the one with the lowest score, if there are scores, and the others, newest first.

        Steps whose record is damaged come before: each may be the best, and trying to read it says that it is damaged.
        """
        steps, known, damaged = self._newest_first(), {}, []
        for step in steps:
            try:
                known[step] = score_of(self._path(step))
            except UnreadableError:
                damaged.append(step)
        scores = {step: score for step, score in known.items() if score is not None}
        best = [min(scores, key=lambda step: (scores[step], -step))] if scores else []
        return damaged + best + [step for step in steps if step not in damaged + best]

    def _first_readable(self, order: Callable[[], list[int]], read: Callable[[int], T]) -> tuple[T, int]:
        """Returns the result of `read` for the first step of an order that it can read, and that step."""
        if not self._read_only:
            self.wait()
        damaged: dict[int, UnreadableError] = {}
        for _ in range(LOOKS if self._read_only else 1):
            damaged = {}
            for step in order():
                try:
                    found = read(step)
                except UnreadableError as error:
                    damaged[step] = error
                    if self._vanishes(step):
                        break
                else:
                    self._set_all_aside(damaged, step)
                    return found, step
            if damaged and all(self._path(step).exists() for step in damaged):
                break
            # A training has deleted it, or a newer one is just taking the place of the others.
            time.sleep(SECONDS_TO_DELETE / LOOKS)
            self._manager.reload()
        raise CheckpointError(self._none_readable(damaged)) from next(iter(damaged.values()), None)

    def _vanishes(self, step: int) -> bool:
        """Returns whether a checkpoint that could not be read is being deleted by a training."""
        end = time.monotonic() + SECONDS_TO_DELETE
        while self._read_only and self._path(step).exists() and time.monotonic() < end:
            time.sleep(0.05)
        return not self._path(step).exists()

    def _set_all_aside(self, damaged: dict[int, UnreadableError], taken: int) -> None:
        for bad, error in damaged.items():
            moved = "" if self._read_only else f", and moved to {self._set_aside(bad)}"
            warn(f"checkpoint {self._path(bad)} is damaged ({error}){moved}; step {taken} is taken")

    def _none_readable(self, damaged: dict[int, UnreadableError]) -> str:
        if not damaged:
            return f"no checkpoint in {self.folder}: run  lsgm train  with this --workdir first"
        step, error = next(iter(damaged.items()))
        return (
            f"checkpoint {self._path(step)} cannot be read, nor any other (damaged, or of another model): "
            f"rename {self.folder}, and  lsgm train  trains this stage again ({error})"
        )

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def _record(self, step: int, formats: tuple[int, ...]) -> dict[str, Any]:
        record = read_record(self._path(step))
        if record.get("format") not in formats:
            raise CheckpointError(
                f"checkpoint {self._path(step)} has format {record.get('format')}, this version reads "
                f"{', '.join(map(str, formats))}: use the version of lsgm that wrote it"
            )
        if "sha256" not in record:
            note(f"checkpoint {self._path(step)} is of an older version: it has no checksums of its arrays")
        return record

    def _trees(self, step: int, record: dict[str, Any], **like: Any) -> list[Any]:
        """Reads items in the shapes and shardings of `like`, whatever key their format has for non-trainable state."""
        key = STATE_KEYS[record["format"]]
        items = {name: ocp.args.StandardRestore(renamed(tree, STATE, key)) for name, tree in like.items()}
        found = self._read(step, **items)
        for name in like if "sha256" in record else ():
            if (sums := array_sums(found[name])) != (expected := record["sha256"][name]):
                changed = [path for path in sums | expected if sums.get(path) != expected.get(path)]
                raise UnreadableError(f"{len(changed)} arrays of {name} are not what was saved: {changed[0]}")
        return [renamed(found[name], key, STATE) for name in like]

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> dict[str, Any]:
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        # orbax, tensorstore and the JSON reader each raise types of their own for unreadable files.
        except Exception as error:
            raise UnreadableError(first_line(error)) from error

    def _set_aside(self, step: int) -> pathlib.Path:
        """Moves a damaged checkpoint away, so that training can write this step again; returns its new path."""
        target = self.folder.parent / DAMAGED / f"{self.folder.name}-{step}"
        if is_first():
            target.parent.mkdir(exist_ok=True)
            self._path(step).rename(target)
        ocp.multihost.sync_global_processes(f"{target.name} was moved")
        self._manager.reload()
        return target

    def _tidy(self) -> None:
        """Mends the folder before orbax opens it."""
        if is_first():
            for warning in mend(self.folder):
                warn(warning)
        ocp.multihost.sync_global_processes(f"{self.folder.name} is clear")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # A failure in the background is raised by the next call, as a type of one of many libraries.
        except Exception as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self.folder} ({reason(error)}): "
                f"with that fixed the same command {self.resume_message}"
            ) from error
