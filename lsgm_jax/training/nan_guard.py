"""Detects steps with a non-finite loss or gradient, reports them, and writes the failing batch to a file."""

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from lsgm_jax.arrays import Key
from lsgm_jax.files import replacing
from lsgm_jax.training.logs import warn
from lsgm_jax.training.step import Metrics


class Call(NamedTuple):
    """One call of the compiled step."""

    last: int  # its last step
    batches: Sequence[Any]  # the share of this process of each step's batch
    metrics: Metrics  # of the last step


class DivergedError(Exception):
    """Training has diverged and has to roll back to its last checkpoint. The message says why.

    Attributes:
        call: the last failing call; None if validation was not finite.
    """

    def __init__(self, why: str, call: Call | None = None):
        super().__init__(why)
        self.call = call


FAR_WORSE = 1000.0  # times the first loss


def require_sound(scores: Mapping[str, float], judged_by: str, first: float | None, where: str) -> None:
    """Checks that a validation is finite, and not so far above the first step that only divergence leads there.

    A learning rate that is much too large need not end in NaN: tanh and normalisations keep all values finite.

    Args:
        scores: means over the validation split.
        judged_by: the metric that selects a checkpoint; lower is better.
        first: that metric in the first step; None if it is not known.
        where: which validation it is, for the message.

    Raises:
        DivergedError: if not.
    """
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DivergedError(f"{where} has {name}={value}")
    score = scores[judged_by]
    if first is not None and score - first > FAR_WORSE * max(abs(first), 1.0):
        raise DivergedError(f"{where} has {judged_by}={score:.4g}, after {first:.4g} in the first step")


class NaNGuard:
    """Checks the metrics of every call for skipped steps, one call late so that the devices never wait.

    Args:
        stage: name of the stage, for messages.
        patience: consecutive non-finite steps at which training counts as diverged.
    """

    def __init__(self, stage: str, patience: int):
        self._stage, self._patience = stage, patience
        self._unseen: collections.deque[Call] = collections.deque()
        self._skipping = False

    def watch(self, call: Call) -> None:
        """Queues a call and checks the one before.

        Raises:
            DivergedError: if `patience` consecutive steps were skipped.
        """
        self._unseen.append(call)
        while len(self._unseen) > 1:
            self._look(self._unseen.popleft())

    def catch_up(self) -> None:
        """Checks all queued calls; waits for the last one.

        Raises:
            DivergedError: if `patience` consecutive steps were skipped.
        """
        while self._unseen:
            self._look(self._unseen.popleft())

    def _look(self, call: Call) -> None:
        skipped = int(call.metrics["skipped_in_a_row"])
        if skipped >= self._patience:
            raise DivergedError(
                f"{skipped} steps in a row to step {call.last} of stage {self._stage} had a non-finite loss or "
                f"gradient ({_why(call)})",
                call,
            )
        if skipped and not self._skipping:
            warn(f"step {call.last} of stage {self._stage} is skipped ({_why(call)})")
        self._skipping = skipped > 0


def _why(call: Call) -> str:
    return f"loss={float(call.metrics['loss'])}, gradient norm={float(call.metrics['gradient_norm'])}"


def keep_batch(folder: pathlib.Path, stage: str, call: Call, key: Key) -> pathlib.Path:
    """Writes the batches of a failing call to an .npz file and returns its path.

    The file has `x`, the other fields of `Batch` that are set, `step`, and `key`, the key data of the last step.

    Args:
        folder: gets the file; created if missing.
        stage: name of the stage, for the file name.
        call: the failing call.
        key: random key of the stage.
    """
    path = folder / f"{stage}-{call.last}.npz"
    folder.mkdir(exist_ok=True)
    k_step = jax.random.fold_in(key, call.last - 1)  # see `make_step`
    fields = [batch._asdict() for batch in call.batches]
    shares = {name: [batch[name] for batch in fields] for name, rows in fields[0].items() if rows is not None}
    arrays = {
        name: np.concatenate([multihost_utils.process_allgather(share, tiled=True) for share in of_steps])
        for name, of_steps in shares.items()
    }
    with replacing(path) as partial, partial.open("wb") as file:
        arrays |= {"key": np.asarray(jax.random.key_data(k_step)), "step": np.asarray(call.last)}
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return path
