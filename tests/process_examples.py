"""The processes on which theorems are tested; `CosineVP` is an example of a user's own process."""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP, VariancePreserving


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineVP(VariancePreserving):
    """Nichol and Dhariwal's schedule, alpha proportional to cos((t + s) / (1 + s) end pi / 2)."""

    shift: float = 0.008
    end: float = 0.99

    def _angle(self, t):
        return 0.5 * jnp.pi * self.end * (t + self.shift) / (1.0 + self.shift)

    def beta(self, t):
        return jnp.pi * self.end / (1.0 + self.shift) * jnp.tan(self._angle(t))

    def int_beta(self, s, t):  # -2 log(cos b / cos a), by cos b / cos a = 1 - ... without cancellation
        a, b = self._angle(s), self._angle(t)
        gap = 0.5 * jnp.pi * self.end * (t - s) / (1.0 + self.shift)
        lost = 2.0 * jnp.sin(0.5 * gap) * jnp.sin(0.5 * (a + b)) / jnp.cos(b)
        return 2.0 * jnp.log1p(lost)

    def start(self):
        return 0.0


PROCESSES = {
    "vp": VP(),
    "vp_other_betas": VP(beta_min=0.5, beta_max=7.0),
    "vp_initial_variance": VP(sigma2_0=0.01),
    "geometric": GeometricVP(),
    "geometric_initial_variance": GeometricVP(sigma2_min=1e-4, sigma2_max=0.9, sigma2_0=0.02),
    "sub_vp": SubVP(),
    "sub_vp_initial_variance": SubVP(sigma2_0=0.01),
    "ve": VE(),
    "ve_initial_variance": VE(sigma2_min=1e-3, sigma2_max=50.0, sigma2_0=0.01),
    "cld": CLD(),
    "cld_linear_beta": CLD(beta_min=0.1, beta_max=7.0, mass=1.0, v0_var_scale=1.0),
    "cld_overdamped": CLD(friction=3.0),
    "cld_underdamped": CLD(friction=0.7),
    "cosine": CosineVP(),
}
MAIN = {name: PROCESSES[name] for name in ("vp", "geometric", "sub_vp", "ve", "cld", "cosine")}
