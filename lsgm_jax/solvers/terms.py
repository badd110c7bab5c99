"""What diffrax integrates: the ways back from noise to data, in tau = 1 - t, which increases.

Time never runs backward: some stochastic solvers of diffrax are silently wrong with negative steps. States are whole
batches, and the network is called on the whole batch.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import EpsNet, Key, Latents, State, as_state, coordinates
from lsgm_jax.diffusions.linear import Process, probability_flow, reverse_drift

Clock = Float[Array, ""]  # a time, t or tau
Index = Int[Array, ""]


@runtime_checkable
class Noise(Protocol):
    """Unit noise for every step of a fixed grid."""

    def draw(self, step: Index, part: int, like: State) -> State:
        """Standard Normal numbers like `like`; the same for the same step and part."""
        ...


@dataclasses.dataclass(frozen=True)
class KeyedNoise:
    """Noise from a key: step and part are folded in."""

    key: Key

    def draw(self, step: Index, part: int, like: State) -> State:
        """Standard Normal numbers like `like`."""
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

    def eps(self, z_t: State, t: Clock) -> Latents:
        """eps_hat at one time for the whole batch."""
        return self.eps_net(z_t, times_like(z_t, t))


class Reverse(diffrax.AbstractTerm):
    """The way back for our own solvers, which look at the problem.

    As a term it is the probability flow, which is all that diffrax's own ODE solvers ask for.
    """

    problem: Problem

    def vf(self, t: Clock, y: State, args: Any) -> State:
        """dz/dtau of the probability flow (S1); `t` is tau."""
        t = 1.0 - t
        velocity = probability_flow(self.problem.process, y, self.problem.eps(y, t), times_like(y, t))
        return jax.tree.map(jnp.negative, velocity)

    def contr(self, t0: Clock, t1: Clock, **kwargs: Any) -> Clock:
        """The length of the step."""
        return t1 - t0

    def prod(self, vf: State, control: Clock) -> State:
        """A step along the flow."""
        return jax.tree.map(lambda value: control * value, vf)


class ReverseDrift(Reverse):
    """The drift of the reverse SDE (D4)."""

    def vf(self, t: Clock, y: State, args: Any) -> State:
        """-(F z - g^2 e_k score); `t` is tau."""
        t = 1.0 - t
        drift = reverse_drift(self.problem.process, y, self.problem.eps(y, t), times_like(y, t))
        return jax.tree.map(jnp.negative, drift)


class Diffusion(diffrax.AbstractTerm):
    """The noise of the reverse SDE, g dw on the last coordinate."""

    problem: Problem
    path: diffrax.AbstractBrownianPath

    def vf(self, t: Clock, y: State, args: Any) -> Clock:
        """g; `t` is tau."""
        return self.problem.process.diffusion(1.0 - t)

    def contr(self, t0: Clock, t1: Clock, **kwargs: Any) -> Any:
        """Increment of the Brownian path, like the last coordinate."""
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: Clock, control: Latents) -> State:
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

    @property
    def t0(self) -> Clock:
        """Start of the grid."""
        return self.taus[0]

    @property
    def t1(self) -> Clock:
        """End of the grid."""
        return self.taus[-1]

    def evaluate(self, t0: Clock, t1: Clock | None = None, left: bool = True, use_levy: bool = False) -> Any:
        """The increment from t0 to t1, which have to be neighbours on the grid; with its area on request."""
        assert t1 is not None
        interval = jnp.searchsorted(self.taus, 0.5 * (t0 + t1)) - 1
        dt, like = t1 - t0, jnp.zeros(self.like.shape, self.like.dtype)
        increment = jnp.sqrt(dt) * self.problem.noise.draw(interval, 0, like)
        if not use_levy:
            return increment
        area = jnp.sqrt(dt / 12.0) * self.problem.noise.draw(interval, 1, like)
        return diffrax.SpaceTimeLevyArea(dt=dt, W=increment, H=area)


def times_like(z_t: State, t: Clock) -> Float[Array, "batch"]:
    """The time of every sample."""
    first = coordinates(z_t)[0]
    return jnp.full(len(first), t, first.dtype)
