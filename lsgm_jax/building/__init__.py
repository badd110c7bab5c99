"""Config -> objects. What other rooms build is named here."""

from lsgm_jax.building.autoencoders import build_adversarial_training
from lsgm_jax.building.models import build_lsgm, build_model
from lsgm_jax.building.running import build_optimiser, build_sampler
from lsgm_jax.building.section import build

__all__ = [
    "build",
    "build_adversarial_training",
    "build_lsgm",
    "build_model",
    "build_optimiser",
    "build_sampler",
]
