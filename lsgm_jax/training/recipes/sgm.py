"""The stage of an SGM: its score."""

from lsgm_jax.arrays import Scalar
from lsgm_jax.config.build_running import build_optimiser
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Aux, Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.recipes.parts import (
    PREVIEW,
    Data,
    ema,
    model_drawer,
    model_terms,
    penalised,
    validator,
)
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import Context


def score_stage(config: Config, model: SGM, data: Data) -> Stage:
    """Score matching on the data themselves."""

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, context.key)

    count = PREVIEW if len(model.data_shape) > 1 else 8 * PREVIEW
    return Stage(
        name="score",
        init=lambda key, before: model.init(key),
        optimiser=build_optimiser(config, "score"),
        ema=ema(build("train", config)),
        steps=config.train.steps,
        validate=validator(model_terms(model), data.validation, config.data.batch_size),
        draw=model_drawer(model, data, count),
        **penalised(loss, {"prior": build("penalty", config)}, model),
    )
