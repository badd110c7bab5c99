"""Checkpoints of one training stage: the newest two and the best by validation, written atomically by orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lsgm_jax.models.network import Params
from lsgm_jax.training.state import TrainState

FORMAT = 1


class CheckpointError(Exception):
    """There is no usable checkpoint; the message says where and what to do."""


class Checkpoints:
    """The checkpoints of one stage in one folder.

    A checkpoint has three items: `state` (step, parameters, optimiser), `ema` (the averaged parameters, so that
    sampling reads nothing else) and `meta` (format, config, position in the data). Its metric is the validation NELBO.
    What has been converted from elsewhere has no `state` and no metric.
    """

    def __init__(self, folder: pathlib.Path, *, read_only: bool = False):
        self.folder = folder.absolute()
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder}: run  lsgm train  with this --workdir first")
        keep = [LatestN(n=2), BestN(get_metric_fn=lambda metrics: -metrics["nelbo"], n=1)]
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics["nelbo"],
            best_mode="min",
            preservation_policy=AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "ema", "meta")
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any], nelbo: float) -> None:
        """Writes a checkpoint in the background; `nelbo` is the validation score of the averaged parameters."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state.replace(ema=None)),
            ema=ocp.args.StandardSave(state.ema),
            meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
        )
        self._manager.save(int(state.step), args=items, metrics={"nelbo": nelbo})

    def save_finished(self, step: int, ema: Params, meta: dict[str, Any]) -> None:
        """Writes averaged parameters alone, as the stage's last step: there is nothing to train from or to choose."""
        items = ocp.args.Composite(
            ema=ocp.args.StandardSave(ema), meta=ocp.args.JsonSave({"format": FORMAT, **meta})
        )
        self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest checkpoint into the shapes and shardings of `like`.

        Raises:
            CheckpointError: if it is damaged, of an unknown format, or belongs to another model.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = self._read(
            self._existing(self.latest_step),
            state=ocp.args.StandardRestore(abstract.replace(ema=None)),
            ema=ocp.args.StandardRestore(abstract.ema),
            meta=ocp.args.JsonRestore(),
        )
        return items["state"].replace(ema=items["ema"]), items["meta"]

    def restore_best(self, like: Params) -> tuple[Params, int]:
        """Averaged parameters with the lowest validation NELBO, in the shapes and shardings of `like`; their step.

        The newest, if none has been validated.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        step = self._existing(self._manager.best_step() or self.latest_step)
        items = self._read(step, ema=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        return items["ema"], step

    def _existing(self, step: int | None) -> int:
        if step is None:
            raise CheckpointError(
                f"no checkpoint in {self.folder}: run  lsgm train  with this --workdir first"
            )
        return step

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> dict[str, Any]:
        path = self.folder / str(step)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        # orbax, tensorstore and the JSON reader each raise types of their own for unreadable files.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise CheckpointError(
                f"checkpoint {path} cannot be read (damaged, or of another model): "
                f"delete that folder to fall back to an older one ({reason})"
            ) from error
        if restored["meta"]["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has format {restored['meta']['format']}, this version reads {FORMAT}"
            )
        return dict(restored.items())
