"""Steps that are no numbers: noticed while the devices are at work, reported, and kept for whoever asks why."""

import collections
import pathlib
from collections.abc import Sequence
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

    last: int  # number of its last step
    batches: Sequence[Any]  # this process's shares, one per step
    metrics: Metrics  # of the last step


class DivergedError(Exception):
    """Training has to go back to its last checkpoint. The message says why.

    Attributes:
        call: the last of the calls that failed; None if it is the validation that failed.
    """

    def __init__(self, why: str, call: Call | None = None):
        super().__init__(why)
        self.call = call


class NaNGuard:
    """Looks at every call one call late, so that the devices never wait for it.

    Args:
        stage: what reports call the stage.
        patience: steps in a row that may fail.
    """

    def __init__(self, stage: str, patience: int):
        self._stage, self._patience = stage, patience
        self._unseen: collections.deque[Call] = collections.deque()
        self._skipping = False

    def watch(self, call: Call) -> None:
        """Takes note of a call, and looks at the one before.

        Raises:
            DivergedError: if too many steps in a row were skipped.
        """
        self._unseen.append(call)
        while len(self._unseen) > 1:
            self._look(self._unseen.popleft())

    def catch_up(self) -> None:
        """Looks at all calls; waits for the last one.

        Raises:
            DivergedError: as `watch`.
        """
        while self._unseen:
            self._look(self._unseen.popleft())

    def _look(self, call: Call) -> None:
        skipped = int(call.metrics["skipped_in_a_row"])
        if skipped >= self._patience:
            raise DivergedError(
                f"{skipped} steps in a row to step {call.last} of stage {self._stage} were no numbers ({_why(call)})",
                call,
            )
        if skipped and not self._skipping:
            warn(f"step {call.last} of stage {self._stage} is skipped ({_why(call)})")
        self._skipping = skipped > 0


def _why(call: Call) -> str:
    return f"loss={float(call.metrics['loss'])}, gradient norm={float(call.metrics['gradient_norm'])}"


def keep_batch(folder: pathlib.Path, stage: str, call: Call, key: Key) -> pathlib.Path:
    """Writes what a failing call was given: `x`, the rows of its batches, what else is known of them, and a key.

    `condition` is there if batches have one; `key` is the data of the last step's key.

    Args:
        key: of the stage.
    """
    path = folder / f"{stage}-{call.last}.npz"
    folder.mkdir(exist_ok=True)
    k_step = jax.random.fold_in(key, call.last - 1)  # as `make_step` has it
    given = [batch._asdict() for batch in call.batches]
    known = {name: [batch[name] for batch in given] for name, rows in given[0].items() if rows is not None}
    whole = {
        name: np.concatenate([multihost_utils.process_allgather(part, tiled=True) for part in parts])
        for name, parts in known.items()
    }
    with replacing(path) as partial, partial.open("wb") as file:
        whole |= {"key": np.asarray(jax.random.key_data(k_step)), "step": np.asarray(call.last)}
        np.savez_compressed(file, **whole)  # pyright: ignore[reportArgumentType]
    return path
