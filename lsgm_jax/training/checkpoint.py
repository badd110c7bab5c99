"""Checkpoints of one training stage: the newest few and the best by validation, written atomically by orbax."""

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lsgm_jax.errors import CheckpointError
from lsgm_jax.files import is_first
from lsgm_jax.nn.network import Params
from lsgm_jax.training.logs import warn
from lsgm_jax.training.state import TrainState

FORMAT = 2
JUDGED = "nelbo"  # what a checkpoint calls its validation score, whatever that is
READABLE = (1, 2)  # of which the averaged parameters are the same
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # in names of folders, while orbax writes them
DAMAGED = "damaged"  # folder beside the stages', for what could not be read

T = TypeVar("T")


class _UnreadableError(Exception):
    """One checkpoint is damaged, or of another model; an older one may do."""


class Checkpoints:
    """The checkpoints of one stage in one folder.

    A checkpoint has three items: `state` (step, parameters, optimiser), `ema` (the averaged parameters, so that
    sampling reads nothing else) and `meta` (format, config, position in the data). Its metric is the validation NELBO.
    What has been converted from elsewhere has no `state` and no metric; what a signal made a run save, no metric.

    Arrays are saved whole, whatever devices hold them, and restored to the shardings that are asked for.

    Args:
        keep: newest ones that stay; the best one does as well.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2, read_only: bool = False):
        self.folder, self._read_only = folder.absolute(), read_only
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder}: run  lsgm train  with this --workdir first")
        unknown = self._forget_damaged_scores()
        best = BestN(
            get_metric_fn=lambda metrics: -metrics[JUDGED], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[JUDGED],
            best_mode="min",
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            read_only=read_only,
            # Where nothing can be mended, all scores are left alone, and the newest is taken for the best.
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
    def way_on(self) -> str:
        """What the same command will do next time, by what is completely written."""
        saved = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
        return f"goes on from step {max(saved)}, which is saved" if saved else "starts this stage again"

    def save(self, state: TrainState, meta: dict[str, Any], score: float | None) -> None:
        """Writes a checkpoint in the background.

        Args:
            score: of the averaged parameters on the validation split, less being better; None for a checkpoint that is
                to go on from, not to choose.

        Raises:
            CheckpointError: if it, or the one before, cannot be written.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state.replace(ema=None)),
            ema=ocp.args.StandardSave(state.ema),
            meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
        )
        metrics = None if score is None else {JUDGED: score}
        with self._writing():
            self._manager.save(int(state.step), args=items, metrics=metrics)

    def save_finished(self, step: int, ema: Params, meta: dict[str, Any]) -> None:
        """Writes averaged parameters alone, as the stage's last step: there is nothing to train from or to choose."""
        items = ocp.args.Composite(
            ema=ocp.args.StandardSave(ema), meta=ocp.args.JsonSave({"format": FORMAT, **meta})
        )
        with self._writing():
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            CheckpointError: if it cannot be.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest checkpoint that can be read into the shapes and shardings of `like`.

        Damaged newer ones are moved to the folder `damaged`, with a warning.

        Raises:
            CheckpointError: if all are damaged, of an unknown format, or belong to another model.
        """
        abstract = _somewhere(like)
        state, ema = abstract.replace(ema=None), abstract.ema

        def read(step: int) -> tuple[TrainState, dict[str, Any]]:
            meta = self._meta(step, (FORMAT,))
            items = self._read(step, state=ocp.args.StandardRestore(state), ema=ocp.args.StandardRestore(ema))
            return items["state"].replace(ema=items["ema"]), meta

        return self._first_readable(sorted(self._manager.all_steps(), reverse=True), read)[0]

    def restore_best(self, like: Params) -> tuple[Params, int]:
        """Averaged parameters with the lowest validation NELBO, in the shapes and shardings of `like`; their step.

        The newest, if none has been validated, or the best cannot be read.
        """
        abstract = _somewhere(like)

        def read(step: int) -> Params:
            self._meta(step, READABLE)
            return self._read(step, ema=ocp.args.StandardRestore(abstract))["ema"]

        best, newest = self._manager.best_step(), sorted(self._manager.all_steps(), reverse=True)
        order = newest if best is None else [best, *(step for step in newest if step != best)]
        return self._first_readable(order, read)

    def _first_readable(self, steps: Iterable[int], read: Callable[[int], T]) -> tuple[T, int]:
        """What `read` makes of the first step that it can, and that step."""
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
                f"{' and '.join(map(str, formats))}: use the version of lsgm that wrote it"
            )
        return meta

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> dict[str, Any]:
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        # orbax, tensorstore and the JSON reader each raise types of their own for unreadable files.
        except Exception as error:
            raise _UnreadableError(_first_line(error)) from error

    def _set_aside(self, step: int) -> pathlib.Path:
        """Where the checkpoint lies from now on; training writes another of this number."""
        target = self.folder.parent / DAMAGED / f"{self.folder.name}-{step}"
        if is_first():
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        ocp.multihost.sync_global_processes(f"{target.name} is set aside")
        self._manager.reload()
        return target

    def _forget_damaged_scores(self) -> bool:
        """Whether there are any; orbax would not open a folder with one."""
        damaged = [path for path in self.folder.glob("[0-9]*/metrics/metrics") if not _is_json(path)]
        for path in damaged:
            warn(f"{path} is damaged: that checkpoint counts as not validated")
            if not self._read_only and is_first():
                path.unlink()
        return bool(damaged)

    def _clear_half_written(self) -> None:
        """Of what a kill has left. Orbax would do it in the background, where it meets whoever lists the folder."""
        if is_first():
            for path in self.folder.glob(f"*{HALF_WRITTEN}*"):
                shutil.rmtree(path, ignore_errors=True)
        ocp.multihost.sync_global_processes(f"{self.folder.name} is clear")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # What could not be written in the background is reported by whatever comes next, in types of many libraries.
        except Exception as error:
            saved = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
            goes_on = (
                f"goes on from step {max(saved)}, which is saved" if saved else "starts this stage again"
            )
            raise CheckpointError(
                f"cannot write checkpoints to {self.folder} ({_reason(error)}): "
                f"with that mended the same command {goes_on}"
            ) from error


def _somewhere(like: Any) -> Any:
    """Shapes with shardings: where there is none, the first device, whatever devices the checkpoint was saved from."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        leaf = ocp.utils.to_shape_dtype_struct(leaf)
        return leaf if leaf.sharding is not None else leaf.update(sharding=here)

    return jax.tree.map(place, like)


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """What the system said, as far as that can be found in an error of another library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = re.search(r": ([^:]+?)(?: to file \d+)? \[os_error_code", str(error))
    before = error.__cause__ or error.__context__
    return said[1] if said else _reason(before) if before else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
