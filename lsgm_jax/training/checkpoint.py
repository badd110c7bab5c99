"""Checkpoints of one training stage: the newest few and the best by validation, written atomically by orbax."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lsgm_jax.arrays import Params
from lsgm_jax.errors import CheckpointError, first_line, reason
from lsgm_jax.files import is_first
from lsgm_jax.training.logs import warn
from lsgm_jax.training.state import TrainState

FORMAT = 3
STATE = "state"  # key of non-trainable state in trees of parameters
STATE_KEYS = {1: "carried", 2: "carried", FORMAT: STATE}  # the same by format
RESUMABLE = (2, FORMAT)  # formats whose training state can be restored; EMA parameters can be from all
METRIC = "nelbo"  # key of the validation metric in checkpoints, whichever metric a stage is judged by
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # part of the name of a folder that orbax is writing
DAMAGED = "damaged"  # folder next to those of the stages, for unreadable checkpoints

T = TypeVar("T")


class _UnreadableError(Exception):
    """One checkpoint is damaged or belongs to another model; an older one may be readable."""


class Checkpoints:
    """The checkpoints of one stage in one folder.

    A checkpoint has three items: `state` (step, parameters, optimiser state), `ema` (the EMA parameters, the only item
    that sampling reads) and `meta` (format, config, position in the data). Its metric is the validation NELBO, or
    another score. Converted checkpoints have no `state` and no metric; those written on SIGTERM have no metric.

    Arrays are saved with their global shapes, however they are sharded, and restored with the shardings of the
    caller's tree.

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
        unknown = self._forget_damaged_scores()
        best = BestN(
            get_metric_fn=lambda metrics: -metrics[METRIC], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            read_only=read_only,
            # A read-only folder keeps its damaged metrics. Skip them all then; the newest counts as the best.
            lightweight_initialize=read_only and unknown,
        )
        if not read_only:
            self._clear_half_written()
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
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state.replace(ema=None)),
            ema=ocp.args.StandardSave(state.ema),
            meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
        )
        metrics = None if score is None else {METRIC: score}
        with self._writing():
            self._manager.save(int(state.step), args=items, metrics=metrics)

    def save_finished(self, step: int, ema: Params, meta: dict[str, Any]) -> None:
        """Writes a checkpoint of EMA parameters alone, as the last step of a finished stage."""
        items = ocp.args.Composite(
            ema=ocp.args.StandardSave(ema), meta=ocp.args.JsonSave({"format": FORMAT, **meta})
        )
        with self._writing():
            self._manager.save(step, args=items)

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
        abstract = _abstract(like)

        def read(step: int) -> tuple[TrainState, dict[str, Any]]:
            meta = self._meta(step, RESUMABLE)
            state, ema = self._trees(step, meta, state=abstract.replace(ema=None), ema=abstract.ema)
            return state.replace(ema=ema), meta

        return self._first_readable(sorted(self._manager.all_steps(), reverse=True), read)[0]

    def restore_best(self, like: Params) -> tuple[Params, int]:
        """Restores the EMA parameters with the lowest validation metric, and returns them with their step.

        Falls back to the newest readable ones if none has been validated or the best cannot be read.

        Args:
            like: shapes and shardings of the parameters.

        Raises:
            CheckpointError: as `restore`.
        """
        abstract = _abstract(like)

        def read(step: int) -> Params:
            (ema,) = self._trees(step, self._meta(step, tuple(STATE_KEYS)), ema=abstract)
            return ema

        best, newest = self._manager.best_step(), sorted(self._manager.all_steps(), reverse=True)
        order = newest if best is None else [best, *(step for step in newest if step != best)]
        return self._first_readable(order, read)

    def _first_readable(self, steps: Iterable[int], read: Callable[[int], T]) -> tuple[T, int]:
        """Returns the result of `read` for the first step that it can read, and that step."""
        damaged: dict[int, _UnreadableError] = {}
        for step in steps:
            try:
                found = read(step)
            except _UnreadableError as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                moved = "" if self._read_only else f", and moved to {self._set_aside(bad)}"
                warn(f"checkpoint {self.folder / str(bad)} is damaged ({error}){moved}; step {step} is taken")
            return found, step
        if not damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder}: run  lsgm train  with this --workdir first"
            )
        step, error = next(iter(damaged.items()))
        raise CheckpointError(
            f"checkpoint {self.folder / str(step)} cannot be read, nor any other (damaged, or of another model): "
            f"delete {self.folder} to train this stage again ({error})"
        ) from error

    def _meta(self, step: int, formats: tuple[int, ...]) -> dict[str, Any]:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if meta.get("format") not in formats:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} has format {meta.get('format')}, this version reads "
                f"{', '.join(map(str, formats))}: use the version of lsgm that wrote it"
            )
        return meta

    def _trees(self, step: int, meta: dict[str, Any], **like: Any) -> list[Any]:
        """Reads items in the shapes and shardings of `like`, whatever key their format has for non-trainable state."""
        key = STATE_KEYS[meta["format"]]
        items = {name: ocp.args.StandardRestore(_rename(tree, STATE, key)) for name, tree in like.items()}
        found = self._read(step, **items)
        return [_rename(found[name], key, STATE) for name in like]

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> dict[str, Any]:
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        # orbax, tensorstore and the JSON reader each raise types of their own for unreadable files.
        except Exception as error:
            raise _UnreadableError(first_line(error)) from error

    def _set_aside(self, step: int) -> pathlib.Path:
        """Moves a damaged checkpoint away, so that training can write this step again; returns its new path."""
        target = self.folder.parent / DAMAGED / f"{self.folder.name}-{step}"
        if is_first():
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        ocp.multihost.sync_global_processes(f"{target.name} was moved")
        self._manager.reload()
        return target

    def _forget_damaged_scores(self) -> bool:
        """Deletes unreadable metrics, with which orbax would not open the folder; returns whether there were any."""
        damaged = [path for path in self.folder.glob("[0-9]*/metrics/metrics") if not _is_json(path)]
        for path in damaged:
            warn(f"{path} is damaged: that checkpoint counts as not validated")
            if not self._read_only and is_first():
                path.unlink()
        return bool(damaged)

    def _clear_half_written(self) -> None:
        """Deletes checkpoints that a killed process was writing.

        Orbax would do so in the background, in a race with anything that lists the folder.
        """
        if is_first():
            for path in self.folder.glob(f"*{HALF_WRITTEN}*"):
                shutil.rmtree(path, ignore_errors=True)
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


def _abstract(like: Any) -> Any:
    """Returns shapes with shardings; an array without sharding goes to the first device, wherever it was saved."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        leaf = ocp.utils.to_shape_dtype_struct(leaf)
        return leaf if leaf.sharding is not None else leaf.update(sharding=here)

    return jax.tree.map(place, like)


def _rename(tree: Any, old: str, new: str) -> Any:
    """Renames a key in every dictionary of a pytree, at any depth."""

    def rename(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {new if key == old else key: _rename(value, old, new) for key, value in node.items()}

    return jax.tree.map(rename, tree, is_leaf=lambda node: isinstance(node, dict))


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
