"""The training of an SGM: one stage, score matching on the data."""

import dataclasses
from collections.abc import Callable

import optax

from lsgm_jax.arrays import Key, Params, Scalar
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.penalty import Penalty
from lsgm_jax.training.recipes.common import PREVIEW, bound_terms, ema, penalised, sample_preview, validator
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGMRecipe:
    """Trains an SGM; the stage "score"."""

    model: SGM
    train: TrainSpec
    optimiser: optax.GradientTransformation
    penalty: Penalty
    donor = None

    def stages(self, data: Data) -> list[Stage]:
        """Returns the only stage."""
        model = self.model

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
            return model.loss(params, batch, context.key)

        return [
            Stage(
                name="score",
                init=lambda key, before: model.init(key),
                optimiser=self.optimiser,
                ema=ema(self.train),
                steps=self.train.steps,
                validate=validator(bound_terms(model.bound), data),
                draw=sample_preview(model, data, PREVIEW if len(model.data_shape) > 1 else 8 * PREVIEW),
                **penalised(loss, {"prior": self.penalty}, model.data_shape),
            )
        ]

    def steps(self, stage: str) -> int:
        """Returns the number of steps of a stage."""
        return self.train.steps

    def init(self, stage: str) -> Callable[[Key], Params]:
        """Returns a function that makes fresh parameters."""
        return self.model.init
