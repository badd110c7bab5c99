"""What a config can describe."""

from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM

Model = LSGM | SGM | LDM
