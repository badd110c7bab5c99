"""What diffrax integrates: the ways back from noise to data, in tau = 1 - t, which increases.

Time never runs backward: some stochastic solvers of diffrax are silently wrong with negative steps. States are whole
batches, and the network is called on the whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import EpsNet, Key, Latents, State, as_state, coordinates
from lsgm_jax.processes.linear import Process, probability_flow, reverse_drift

Time = Any  # a time as diffrax has it: a float or a scalar array
Index = Int[Array, ""]


@runtime_checkable
class Noise(Protocol):
    """Unit noise for every step of a fixed grid."""

    def draw(self, step: Index, part: int, like: Any) -> Any:
        """Standard Gaussian numbers like the state `like`; the same for the same step and part."""
        ...


@dataclasses.dataclass(frozen=True)
class KeyedNoise:
    """Noise from a key: step and part are folded in."""

    key: Key

    def draw(self, step: Index, part: int, like: State) -> State:
        """Standard Gaussian numbers like `like`."""
        k_part = jax.random.fold_in(jax.random.fold_in(self.key, step), part)
        values = coordinates(like)
        keys = jax.random.split(k_part, len(values))
        return as_state([jax.random.normal(k, z.shape, z.dtype) for k, z in zip(keys, values, strict=True)])


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is to be solved. Not a pytree: diffrax hands it on as it is, tracers included."""

    process: Process
    eps_net: EpsNet
    noise: Noise  # for solvers that draw some

    def eps(self, z_t: State, t: Time) -> Latents:
        """eps_hat at one time for the whole batch."""
        return self.eps_net(z_t, times_like(z_t, t))


class Reverse(diffrax.ODETerm):
    """The way back for our own solvers, which look at the problem; for diffrax's ODE solvers, the probability flow."""

    problem: Problem

    def __init__(self, problem: Problem):
        self.problem = problem
        self.vector_field = _backward(problem, probability_flow)


def reverse_drift_term(problem: Problem) -> diffrax.ODETerm:
    """The drift of the reverse SDE (D4)."""
    return diffrax.ODETerm(_backward(problem, reverse_drift))


def _backward(problem: Problem, rate: Callable[..., State]) -> Callable[[Time, State, Any], State]:
    """dz/dtau for a given dz/dt; diffrax's `args` is the noise prediction, so that its rows go with the samples."""

    def vector_field(tau: Time, z_t: State, eps_net: EpsNet) -> State:
        t = times_like(z_t, 1.0 - tau)
        velocity = rate(problem.process, z_t, eps_net(z_t, t), t)
        return jax.tree.map(jnp.negative, velocity)

    return vector_field


class Diffusion(diffrax.AbstractTerm):
    """The noise of the reverse SDE, g dw on the last coordinate."""

    problem: Problem
    path: diffrax.AbstractBrownianPath

    def vf(self, t: Time, y: State, args: Any) -> Time:
        """g; `t` is tau."""
        return self.problem.process.diffusion(1.0 - t)

    def contr(self, t0: Time, t1: Time, **kwargs: Any) -> Any:
        """Increment of the Brownian path, like the last coordinate."""
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: Time, control: Latents) -> State:
        """G dw, and nothing for the coordinates that noise does not enter."""
        if len(self.problem.process.prior_variance()) == 1:
            return vf * control
        return as_state([jnp.zeros_like(control), vf * control])


class GridPath(diffrax.AbstractBrownianPath):
    """Brownian increments over the intervals of a grid, each drawn by the interval's index.

    As fast as `UnsafeBrownianPath`, but the same number whatever rounding does to the times. It knows no increments
    over parts of an interval, so it is for fixed grids only.
    """

    taus: Float[Array, "nodes"]
    problem: Problem
    like: Any = eqx.field(static=True)  # a `jax.ShapeDtypeStruct` of the last coordinate
    levy_area: Any = eqx.field(static=True, default=diffrax.SpaceTimeLevyArea)
    t0: Any = -jnp.inf
    t1: Any = jnp.inf

    def evaluate(self, t0: Time, t1: Time | None = None, left: bool = True, use_levy: bool = False) -> Any:
        """The increment from t0 to t1, which have to be neighbours on the grid; with its area on request."""
        assert t1 is not None
        interval = jnp.searchsorted(self.taus, 0.5 * (t0 + t1)) - 1
        dt, like = t1 - t0, jnp.zeros(self.like.shape, self.like.dtype)
        increment = jnp.sqrt(dt) * self.problem.noise.draw(interval, 0, like)
        if not use_levy:
            return increment
        area = jnp.sqrt(dt / 12.0) * self.problem.noise.draw(interval, 1, like)
        return diffrax.SpaceTimeLevyArea(dt=dt, W=increment, H=area)


def by_rows(eps_net: EpsNet) -> Partial:
    """The noise prediction as a pytree, whose leaves, if any, have a row per sample: an argument of diffrax's terms.

    A closure's arrays would stay those of the whole batch where a solve is mapped over its samples.
    """
    return eps_net if isinstance(eps_net, Partial) else Partial(eps_net)


def times_like(z_t: State, t: Time) -> Float[Array, "batch"]:
    """The time of every sample."""
    first = coordinates(z_t)[0]
    return jnp.full(len(first), t, first.dtype)
