"""Samples whose solve failed: how many, and why. Nothing is made of them, neither pictures nor figures."""

from typing import Any, NamedTuple

import numpy as np

from lsgm_jax.errors import NumericalError, OutOfStepsError


class Failures(NamedTuple):
    """The numbers of samples that were drawn, and of those that failed.

    Attributes:
        drawn: all of them.
        not_finite: those that are NaN or infinite.
        out_of_steps: others, which the solver gave up.
    """

    drawn: int = 0
    not_finite: int = 0
    out_of_steps: int = 0

    @classmethod
    def among(cls, success: Any, *values: Any) -> "Failures":
        """Counts the failures among samples.

        Args:
            success: what the solver says of them, [n].
            values: their values, such as data and latents, [n, ...] each.
        """
        finite = are_finite(*values)
        return cls(len(finite), int((~finite).sum()), int((finite & ~np.asarray(success)).sum()))

    def and_of(self, others: "Failures") -> "Failures":
        """Returns the numbers of both."""
        return Failures(*(mine + theirs for mine, theirs in zip(self, others, strict=True)))

    @property
    def total(self) -> int:
        """The number of samples that failed."""
        return self.not_finite + self.out_of_steps

    def error(self, what: str = "samples", consequence: str = "") -> NumericalError:
        """Returns the error that says how many failed, and what helps.

        Args:
            what: a name for the samples.
            consequence: what follows, after a colon.
        """
        parts = []
        if self.not_finite:
            parts.append(
                f"{self.not_finite} of {self.drawn} {what} are not finite{consequence}: take more steps, another "
                "solver or a larger --t_min; if none helps, training has diverged"
            )
        if self.out_of_steps:
            parts.append(
                f"{self.out_of_steps} of {self.drawn} {what} ran out of steps{'' if parts else consequence}: "
                "raise --config.steps.max_steps or --rtol"
            )
        return (NumericalError if self.not_finite else OutOfStepsError)("; ".join(parts))


def are_finite(*values: Any) -> np.ndarray:
    """Returns for each row of arrays [n, ...] whether all its values are finite, [n]."""
    each = [np.isfinite(np.asarray(rows)).reshape(len(rows), -1).all(axis=1) for rows in values]
    return np.logical_and.reduce(each)
