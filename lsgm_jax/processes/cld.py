"""Critically-damped Langevin diffusion (Dockhorn, Vahdat, Kreis 2022), where noise enters the velocity alone.

    dx = beta v / M dt,      dv = -beta (x + Gamma v / M) dt + sqrt(2 Gamma beta) dw                    (D12)

With velocity in units of sqrt(M), time tau = int beta / sqrt(M) and zeta = Gamma / (2 sqrt(M)), this is the damped
oscillator x'' + 2 zeta x' + x = noise, critically damped for zeta = 1. Written in y = 2 zeta tau and gap = 1 / zeta^2,
its mean and covariance have forms without cancellation, also for strong damping (D13).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Latents, Phase, Times, expand
from lsgm_jax.processes.linear import Number, Process, Transition, kernel
from lsgm_jax.processes.matrices import Matrix, Scalars, as_matrix
from lsgm_jax.processes.schedules import LinearBeta, require


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CLD(LinearBeta):
    """CLD on the state `Phase(x, v)`: x is the data at time 0, and v starts as N(0, v0_var_scale * mass).

    Attributes:
        mass: M.
        friction: Gamma; None for critical damping, 2 sqrt(mass).
        v0_var_scale: gamma. 0 gives the kernel of plain denoising score matching, for a known initial velocity.
        numerical_eps: what the original code adds to both variances of every kernel. The kernel here needs none; a
            network that was trained with it does, as its outputs are in units of that noise.

    Raises:
        ValueError: unless all are positive (v0_var_scale and numerical_eps may be 0) and beta_min <= beta_max.
    """

    beta_min: Number = 4.0
    beta_max: Number = 4.0
    mass: Number = 0.25
    friction: Number | None = None
    v0_var_scale: Number = 0.04
    numerical_eps: float = dataclasses.field(default=0.0, metadata=dict(static=True))

    def __post_init__(self):
        require(
            self,
            "positive numbers, beta_min <= beta_max, v0_var_scale >= 0 and numerical_eps >= 0",
            lambda: (
                0.0 < self.beta_min <= self.beta_max
                and self.mass > 0.0
                and self.damping() > 0.0
                and self.v0_var_scale >= 0.0
                and self.numerical_eps >= 0.0
            ),
        )

    def damping(self) -> Number:
        """Returns the friction Gamma."""
        return 2.0 * self.mass**0.5 if self.friction is None else self.friction

    def drift(self, t: Scalars) -> Matrix:
        """Returns F (D12)."""
        beta = self.beta(t)
        return as_matrix([[jnp.zeros_like(t), beta / self.mass], [-beta, -self.damping() / self.mass * beta]])

    def diffusion(self, t: Scalars) -> Scalars:
        """Returns g = sqrt(2 Gamma beta), the rate of the noise of the velocity."""
        return jnp.sqrt(2.0 * self.damping() * self.beta(t))

    def transition(self, s: Scalars, t: Scalars) -> Transition:
        """Returns mean map and noise of the damped oscillator from s to t (D13)."""
        root = self.mass**0.5
        zeta = 0.5 * self.damping() / root
        y = self.damping() / self.mass * self.int_beta(s, t)
        mean, noise = _oscillator(zeta, y)
        (a_xx, a_xv), (a_vx, a_vv) = mean
        (l_xx, _), (l_vx, l_vv) = noise
        return Transition(
            as_matrix([[a_xx, a_xv / root], [root * a_vx, a_vv]]),
            as_matrix([[l_xx, jnp.zeros_like(l_xx)], [root * l_vx, root * l_vv]]),
        )

    def initial_variance(self) -> tuple[Number, Number]:
        """Returns 0 for the position, which is data, and gamma M for the velocity."""
        return (0.0, self.v0_var_scale * self.mass)

    def prior_variance(self) -> tuple[Number, Number]:
        """Returns the variances of the stationary distribution: x ~ N(0, 1), v ~ N(0, M)."""
        return (1.0, self.mass)


def velocity_eps(process: Process, z_t: Phase, t: Times) -> Latents:
    """Returns L_vv v / S_vv: the best noise prediction from the velocity alone, for data at the origin.

    CLD's mixed score adds the network's output to this fixed part (CLD section 3.2; D3).
    """
    noise = kernel(process, t).noise
    scale = noise[:, 1, 1] / (noise[:, 1, 0] ** 2 + noise[:, 1, 1] ** 2)
    return expand(scale, z_t.v) * z_t.v


Rows = tuple[tuple[Scalars, Scalars], tuple[Scalars, Scalars]]


def _oscillator(zeta: Number, y: Scalars) -> tuple[Rows, Rows]:
    """Returns mean map and Cholesky factor of x' = v, v' = -x - 2 zeta v + 2 sqrt(zeta) dw/dtau, at y = 2 zeta tau."""
    tau, gap = y / (2.0 * zeta), 1.0 / zeta**2
    sine, cosine, slowed = _damped(y, gap)
    mean = ((cosine + 0.5 * y * sine, tau * sine), (-tau * sine, slowed))
    p, root_y = _position_variance(y, gap, sine, cosine), jnp.sqrt(y)
    c_1, c_2 = sine * cosine, 0.5 * sine**2
    l_vv2 = _share_entered(y) + c_1 - y * c_2 - c_2**2 / p
    noise = (
        (y * root_y * jnp.sqrt(p) / zeta, jnp.zeros_like(y)),
        (root_y * c_2 / jnp.sqrt(p), root_y * jnp.sqrt(l_vv2)),
    )
    return mean, noise


def _damped(y: Scalars, gap: Number) -> tuple[Scalars, Scalars, Scalars]:
    """Returns exp(-y/2) times sinh(h) / h, cosh(h) and cosh(h) - (y/2) sinh(h) / h, for h^2 = (1 - gap) y^2 / 4.

    Below critical damping h^2 < 0, and the hyperbolic functions become circular.
    """
    q = (1.0 - gap) * y**2  # (2 h)^2
    near, above, decay = jnp.abs(q) < 1.0, q > 0.0, jnp.exp(-0.5 * y)
    x = jnp.sqrt(jnp.where(near, 1.0, jnp.abs(q)))  # avoids the root of zero, whose gradient is infinite

    series = decay * _even_series(0.25 * q, 1), decay * _even_series(0.25 * q, 0)
    slow = jnp.exp(-0.5 * gap * y**2 / (y + x))  # exp((x - y) / 2) without the difference
    hyperbolic = slow * -jnp.expm1(-x) / x, 0.5 * slow * (1.0 + jnp.exp(-x))
    circular = decay * jnp.sin(0.5 * x) / (0.5 * x), decay * jnp.cos(0.5 * x)
    sine, cosine = (
        jnp.where(near, a, jnp.where(above, b, c))
        for a, b, c in zip(series, hyperbolic, circular, strict=True)
    )
    overdamped = 0.5 * slow * ((1.0 + y / x) * jnp.exp(-x) - gap * y**2 / (x * (x + y)))
    return sine, cosine, jnp.where(near | ~above, cosine - 0.5 * y * sine, overdamped)


def _position_variance(y: Scalars, gap: Number, sine: Scalars, cosine: Scalars) -> Scalars:
    """Returns (1 - e^-y - y sine cosine - y^2 sine^2 / 2) / (gap y^3), the variance of x over y^3 / zeta^2 (D13).

    A power series replaces the formula where its difference would cancel.
    """
    r = 1.0 - gap
    near = jnp.maximum(1.0, jnp.abs(r)) * y**2 < 4.0
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 2.0, y)
    total, partial, power = jnp.zeros_like(y), 0.0, jnp.ones_like(y)
    for m in range(1, 13):
        partial = 1.0 + r * partial  # 1 + r + ... + r^(m - 1)
        total += partial * power * (1 / math.factorial(2 * m + 1) + small * (1 / math.factorial(2 * m + 2)))
        power *= small**2
    direct = (-jnp.expm1(-large) - large * sine * cosine - 0.5 * large**2 * sine**2) / (gap * large**3)
    return jnp.where(near, jnp.exp(-small) * total, direct)


def _even_series(q: Scalars, shift: int) -> Scalars:
    """Returns the sum of q^m / (2 m + shift)! for small q = x^2: cosh(x) for shift 0, sinh(x) / x for shift 1."""
    return sum((q**m * (1 / math.factorial(2 * m + shift)) for m in range(1, 9)), start=jnp.ones_like(q))


def _share_entered(y: Scalars) -> Scalars:
    """Returns (1 - e^-y) / y, and 1 at y = 0."""
    safe = jnp.where(y == 0.0, 1.0, y)
    return jnp.where(y == 0.0, 1.0, -jnp.expm1(-safe) / safe)
