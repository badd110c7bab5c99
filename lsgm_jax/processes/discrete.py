"""The discrete-time diffusion of DDPM and LDM as a variance-preserving process in continuous time."""

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
    """DDPM's Markov chain of T transitions (Ho et al. 2020), with int_beta linear between its nodes (D16).

    t = 0 is the data, and t = (i + 1) / T is the chain's timestep i, counted from 0. A time that differs from a node by
    rounding error is that node, so transitions between nodes equal those of the chain.

    Attributes:
        betas: variances of the transitions, [T].

    Raises:
        ValueError: if betas is empty, or one is not between 0 and 1.
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        if not self.betas or not all(0.0 < beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas={self.betas[:3]}...: give at least one, each between 0 and 1")

    def beta(self, t: Scalars) -> Scalars:
        """Returns the noise rate, -T log(1 - beta_i) within step i; at a node that of the step before it."""
        index = jnp.clip(jnp.ceil(self._position(t)).astype(int) - 1, 0, len(self.betas) - 1)
        return len(self.betas) * self._losses(t)[index]

    def int_beta(self, s: Scalars, t: Scalars) -> Scalars:
        """Returns the integral of beta from s to t, summed over the part of each step in between: nothing cancels."""
        steps = jnp.arange(len(self.betas), dtype=t.dtype)
        passed = lambda time: jnp.clip(self._position(time)[..., None] - steps, 0.0, 1.0)
        return jnp.sum(self._losses(t) * (passed(t) - passed(s)), axis=-1)

    def start(self) -> float:
        """Returns 0: no noise is added to the data at time 0."""
        return 0.0

    def _losses(self, like: Scalars) -> Scalars:
        """Returns the integral of beta over each step, [T]."""
        return jnp.asarray(-np.log1p(-np.asarray(self.betas)), like.dtype)

    def _position(self, t: Scalars) -> Scalars:
        """Returns T t, exact at the nodes."""
        return in_steps(t, len(self.betas))


def discrete_vp(
    *,
    schedule: str = "linear",
    steps: int = 1000,
    first: float = 0.0015,
    last: float = 0.0195,
    offset: float = 0.008,
) -> DiscreteVP:
    """Builds the chain of a published schedule.

    The names are LDM's. Two of them mislead: LDM calls betas "linear" whose square roots are linear.

    Args:
        schedule: "linear" (`root_linear_betas`), "sqrt_linear" (`linear_betas`), "sqrt" (`root_betas`), or "cosine".
        steps: number of transitions T.
        first: variance of the first transition; its square for "sqrt"; unused for "cosine".
        last: variance of the last transition; its square for "sqrt"; unused for "cosine".
        offset: used for "cosine" alone.

    Raises:
        ValueError: if the schedule is unknown, or its variances are not between 0 and 1.
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
    """Returns variances with equally spaced square roots, LDM's "linear" (Rombach et al. 2022)."""
    return tuple((np.linspace(first**0.5, last**0.5, steps) ** 2).tolist())


def linear_betas(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Returns equally spaced variances (Ho et al. 2020), LDM's "sqrt_linear"."""
    return tuple(np.linspace(first, last, steps).tolist())


def root_betas(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Returns the square roots of equally spaced values, LDM's "sqrt"."""
    return tuple(np.sqrt(np.linspace(first, last, steps)).tolist())


def cosine_betas(steps: int, offset: float) -> tuple[float, ...]:
    """Returns the betas, at most 0.999, of the cosine schedule (Nichol and Dhariwal 2021).

    alpha^2 is proportional to cos^2((t + offset) / (1 + offset) pi / 2).
    """
    angle = 0.5 * np.pi * (np.linspace(0.0, 1.0, steps + 1) + offset) / (1.0 + offset)
    return betas_of_alphas_cumprod(np.cos(angle[1:]) ** 2 / np.cos(angle[0]) ** 2, most=0.999)


def betas_of_alphas_cumprod(alphas_cumprod: np.ndarray, most: float = 1.0) -> tuple[float, ...]:
    """Returns the variances of the transitions, each at most `most`, from the cumulative products of 1 - beta, [T]."""
    betas = 1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
    return tuple(np.minimum(betas, most).tolist())
