"""Variance-preserving diffusion in T steps, as DDPM and LDM have it, as a process in continuous time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import in_steps
from lsgm_jax.processes.matrices import Scalars
from lsgm_jax.processes.vp import VariancePreserving


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("betas",))
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteVP(VariancePreserving):
    """DDPM's chain of T transitions (Ho et al. 2020), int_beta interpolated linearly between its nodes (D16).

    t = 0 is the data and t = (i + 1) / T the chain's timestep i, counted from 0. Times are taken to be a node if they
    differ from it by rounding, so transitions between nodes are those of the chain.

    Attributes:
        betas: variances of the transitions.

    Raises:
        ValueError: unless there are betas, all between 0 and 1.
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        if not self.betas or not all(0.0 < beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas={self.betas[:3]}...: give at least one, each between 0 and 1")

    def beta(self, t: Scalars) -> Scalars:
        """Noise rate: T times the step's -log(1 - beta), constant within a step; at a node that of the step before."""
        index = jnp.clip(jnp.ceil(self._position(t)).astype(int) - 1, 0, len(self.betas) - 1)
        return len(self.betas) * self._losses(t)[index]

    def int_beta(self, s: Scalars, t: Scalars) -> Scalars:
        """Integral of beta from s to t: every step counts by the part of it that lies between, so nothing cancels."""
        steps = jnp.arange(len(self.betas), dtype=t.dtype)
        passed = lambda time: jnp.clip(self._position(time)[..., None] - steps, 0.0, 1.0)
        return jnp.sum(self._losses(t) * (passed(t) - passed(s)), axis=-1)

    def start(self) -> float:
        """No variance at time 0."""
        return 0.0

    def _losses(self, like: Scalars) -> Scalars:
        """int_beta over each step, [T]."""
        return jnp.asarray(-np.log1p(-np.asarray(self.betas)), like.dtype)

    def _position(self, t: Scalars) -> Scalars:
        """Time in steps, exact at the nodes."""
        return in_steps(t, len(self.betas))


def discrete_vp(
    *,
    schedule: str = "linear",
    steps: int = 1000,
    first: float = 0.0015,
    last: float = 0.0195,
    offset: float = 0.008,
) -> DiscreteVP:
    """The chain of a published schedule, by the names that LDM gives them, of which two mislead.

    Args:
        schedule: "linear" (`root_linear_betas`), "sqrt_linear" (`linear_betas`), "sqrt" (`root_betas`), or "cosine".
        first, last: of all but "cosine": the variances between which its rule leads; under "sqrt" their squares.
        offset: of "cosine" alone.

    Raises:
        ValueError: if there is no such schedule, or its numbers make no variances.
    """
    schedules = {
        "linear": lambda: root_linear_betas(steps, first, last),
        "cosine": lambda: cosine_betas(steps, offset),
        "sqrt_linear": lambda: linear_betas(steps, first, last),
        "sqrt": lambda: root_betas(steps, first, last),
    }
    if schedule not in schedules:
        raise ValueError(f"schedule={schedule!r} is none of {', '.join(schedules)}")
    if steps < 1:
        raise ValueError(f"steps={steps}: give a positive number of steps")
    if not 0.0 < first <= last < 1.0:
        raise ValueError(f"first={first}, last={last}: variances grow between 0 and 1, 0 < first <= last < 1")
    if offset < 0.0:
        raise ValueError(f"offset={offset}: give a number that is not negative")
    return DiscreteVP(betas=schedules[schedule]())


def root_linear_betas(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Squares of equally spaced roots, which LDM calls "linear" (Rombach et al. 2022)."""
    return tuple((np.linspace(first**0.5, last**0.5, steps) ** 2).tolist())


def linear_betas(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Equally spaced variances (Ho et al. 2020), which LDM calls "sqrt_linear"."""
    return tuple(np.linspace(first, last, steps).tolist())


def root_betas(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Roots of equally spaced numbers: LDM's "sqrt"."""
    return tuple(np.sqrt(np.linspace(first, last, steps)).tolist())


def cosine_betas(steps: int, offset: float) -> tuple[float, ...]:
    """What keeps alpha^2 at cos^2((t + offset) / (1 + offset) pi / 2), to 0.999 at most (Nichol and Dhariwal 2021)."""
    angle = 0.5 * np.pi * (np.linspace(0.0, 1.0, steps + 1) + offset) / (1.0 + offset)
    return betas_of_alphas_cumprod(np.cos(angle[1:]) ** 2 / np.cos(angle[0]) ** 2, most=0.999)


def betas_of_alphas_cumprod(alphas_cumprod: np.ndarray, most: float = 1.0) -> tuple[float, ...]:
    """The transitions' variances, each at most `most`, from the products of what they leave, [T]."""
    betas = 1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
    return tuple(np.minimum(betas, most).tolist())
