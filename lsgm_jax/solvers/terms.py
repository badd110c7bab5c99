"""The terms that diffrax integrates: reverse dynamics from noise to data, in the increasing time tau = 1 - t.

tau increases because some stochastic solvers of diffrax are silently wrong with negative steps. States are batches, and
the network is evaluated on the full batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import EpsNet, Key, Latents, Scalar, State, as_state, coordinates, draw_array
from lsgm_jax.processes.linear import Process, probability_flow, reverse_drift

Time = Float[Array | np.ndarray, ""] | float | int  # diffrax's `RealScalarLike`
Index = Int[Array, ""]


@runtime_checkable
class Noise(Protocol):
    """Source of unit noise for every step of a fixed grid."""

    def draw(self, step: Index, part: int, like: Any) -> Any:
        """Returns standard Gaussian noise like the state `like`, the same for equal step and part."""
        ...


@dataclasses.dataclass(frozen=True)
class KeyedNoise:
    """Noise from a key, into which step and part are folded."""

    key: Key

    def draw(self, step: Index, part: int, like: State) -> State:
        """Returns standard Gaussian noise like `like`."""
        k_part = jax.random.fold_in(jax.random.fold_in(self.key, step), part)
        values = coordinates(like)
        keys = jax.random.split(k_part, len(values))
        return as_state(
            [draw_array(jax.random.normal, k, z.shape, z.dtype) for k, z in zip(keys, values, strict=True)]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A sampling problem. It is no pytree: diffrax passes it on unchanged, including its tracers."""

    process: Process
    eps_net: EpsNet
    noise: Noise  # for stochastic solvers
    steps: int | None = None  # number of fixed steps; None if it is not known

    def eps(self, z_t: State, t: Time) -> Latents:
        """Returns eps_hat of the batch at one time."""
        return self.eps_net(z_t, times_like(z_t, t))


class Reverse(diffrax.ODETerm):
    """The term of ODE solvers, the probability flow, and of the `ReverseSolver`s, which use its `problem`."""

    problem: Problem

    def __init__(self, problem: Problem):
        self.problem = problem
        self.vector_field = _backward(problem, probability_flow)


def reverse_drift_term(problem: Problem) -> diffrax.ODETerm:
    """Returns the drift of the reverse SDE as a term (D4)."""
    return diffrax.ODETerm(_backward(problem, reverse_drift))


def _backward(problem: Problem, rate: Callable[..., State]) -> Callable[[Time, State, Any], State]:
    """Returns dz/dtau for a given dz/dt. diffrax's `args` is the noise prediction, which vmap maps over samples."""

    def vector_field(tau: Time, z_t: State, eps_net: EpsNet) -> State:
        t = times_like(z_t, 1.0 - tau)
        velocity = rate(problem.process, z_t, eps_net(z_t, t), t)
        return jax.tree.map(jnp.negative, velocity)

    return vector_field


class Diffusion(diffrax.AbstractTerm):
    """The noise of the reverse SDE, g dw in the last coordinate."""

    problem: Problem
    path: diffrax.AbstractBrownianPath

    def vf(self, t: Time, y: State, args: Any) -> Scalar:
        """Returns g at the time tau = `t`."""
        return self.problem.process.diffusion(jnp.asarray(1.0 - t))

    def contr(self, t0: Time, t1: Time, **kwargs: Any) -> Any:
        """Returns the increment of the Brownian path, like the last coordinate."""
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: Scalar, control: Latents) -> State:
        """Returns g dw for the last coordinate, and zero for the others."""
        if len(self.problem.process.prior_variance()) == 1:
            return vf * control
        return as_state([jnp.zeros_like(control), vf * control])


class GridPath(diffrax.AbstractBrownianPath):
    """Brownian increments over the intervals of a grid, each drawn by the index of its interval.

    It is as fast as `UnsafeBrownianPath`, and independent of rounding errors of the times. It has no increments over
    parts of an interval, so it is for fixed grids only.
    """

    taus: Float[Array, "nodes"]
    problem: Problem
    like: Any = eqx.field(static=True)  # a `jax.ShapeDtypeStruct` of the last coordinate
    levy_area: Any = eqx.field(static=True, default=diffrax.SpaceTimeLevyArea)
    t0: Any = -jnp.inf
    t1: Any = jnp.inf

    def evaluate(self, t0: Time, t1: Time | None = None, left: bool = True, use_levy: bool = False) -> Any:
        """Returns the increment from t0 to t1, neighbours on the grid, and its Levy area if `use_levy`."""
        assert t1 is not None
        interval = jnp.searchsorted(self.taus, 0.5 * (t0 + t1)) - 1
        dt, like = t1 - t0, jnp.zeros(self.like.shape, self.like.dtype)
        increment = jnp.sqrt(dt) * self.problem.noise.draw(interval, 0, like)
        if not use_levy:
            return increment
        area = jnp.sqrt(dt / 12.0) * self.problem.noise.draw(interval, 1, like)
        return diffrax.SpaceTimeLevyArea(dt=dt, W=increment, H=area)


def by_rows(eps_net: EpsNet) -> Partial:
    """Returns the noise prediction as a pytree, an argument of diffrax's terms; its arrays, if any, are [batch, ...].

    Arrays in a closure would not be mapped where a solve is mapped over samples.
    """
    return eps_net if isinstance(eps_net, Partial) else Partial(eps_net)


def times_like(z_t: State, t: Time) -> Float[Array, "batch"]:
    """Returns the time t for every sample, [batch]."""
    first = coordinates(z_t)[0]
    return jnp.full(len(first), t, first.dtype)
