"""What a config may say. Names that other rooms use."""

from lsgm_jax.schema.errors import ConfigError, did_you_mean, look_up
from lsgm_jax.schema.specs import (
    FEWEST_SAMPLES,
    KLSpec,
    ObjectiveSpec,
    PerceptualSpec,
    SGMObjectiveSpec,
    VQSpec,
)
from lsgm_jax.schema.tables import (
    DEFAULT_NAMES,
    FIXED_PARTS,
    MATCHINGS,
    MODELS,
    NORMS,
    SPREADS,
    WEIGHTINGS,
    Config,
    Sections,
    schema,
    section_target,
    sections,
)

__all__ = [
    "DEFAULT_NAMES",
    "FEWEST_SAMPLES",
    "FIXED_PARTS",
    "MATCHINGS",
    "MODELS",
    "NORMS",
    "SPREADS",
    "WEIGHTINGS",
    "Config",
    "ConfigError",
    "KLSpec",
    "ObjectiveSpec",
    "PerceptualSpec",
    "SGMObjectiveSpec",
    "Sections",
    "VQSpec",
    "did_you_mean",
    "look_up",
    "schema",
    "section_target",
    "sections",
]
