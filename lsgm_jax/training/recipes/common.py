"""What recipes share: EMA, penalties, validation, and previews of samples."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lsgm_jax.arrays import Condition, Key, Params, State
from lsgm_jax.evaluation.estimators import PerImage, evaluate_images
from lsgm_jax.evaluation.plots import picture
from lsgm_jax.models.protocol import Model
from lsgm_jax.objectives.bound import Batch, Bound
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, draw_noise
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.penalty import Penalty, first_memory, penalise
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.step import EMA, Loss

PREVIEW = 64  # samples in TensorBoard
VALIDATION_DRAWS = 4
# A preview has to look right, not to be exact: 20 network evaluations instead of 100.
PREVIEW_SAMPLER = Sampler(method=METHODS["Heun"](), steps=Linear(steps=10), t_min=1e-3)

Named = Mapping[str, Array]


def ema(train: TrainSpec, decay: float | None = None, skip: tuple[str, ...] = ()) -> EMA:
    """Returns the EMA of the config's section `train`.

    Args:
        decay: None for that of the section.
        skip: see `EMA`.
    """
    return EMA(train.ema_decay if decay is None else decay, train.ema_warmup, skip)


def penalised(loss: Loss, penalties: dict[str, Penalty], shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the fields `loss` and `memory` of a stage with penalties on its networks.

    Args:
        shape: of one sample of the data.
    """
    example = jax.eval_shape(lambda: Batch(jnp.zeros((1, *shape))))
    return dict(loss=penalise(loss, penalties), memory=first_memory(loss, penalties, example))


def bound_terms(bound: Callable[..., Bound]) -> PerImage:
    """Returns the terms of a model's bound as a function for `evaluate_images`.

    Args:
        bound: (params, batch, key, stratum) -> `Bound`.
    """

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
        return bound(params, batch, key, stratum).terms()

    return terms


def vae_terms(bound: Callable[..., Bound]) -> PerImage:
    """Returns the terms of the bound of a VAE, (params, batch, key) -> `Bound`, in the same way."""
    return bound_terms(lambda params, batch, key, stratum: bound(params, batch, key))


def validator(
    per_image: PerImage, data: Data, draws: int = VALIDATION_DRAWS
) -> Callable[[Params], dict[str, float]]:
    """Returns a function from parameters to means over the validation split, which every process has as a whole."""
    compiled = OverDevices(per_image)

    def validate(params: Params) -> dict[str, float]:
        # The same key every time: between two validations nothing changes but the model.
        key = jax.random.key(0)
        values = evaluate_images(
            compiled, params, data.validation, key, draws=draws, batch_size=data.batch_size
        )
        return {name: float(value.mean()) for name, value in values.items()}

    return validate


def sample_preview(model: Model, data: Data, count: int = PREVIEW) -> Callable[[Params], np.ndarray]:
    """Returns a function from parameters to a figure of samples, with conditions of the validation split."""

    def noise(params: Params, key: Key) -> tuple[State, Condition]:
        shared = shared_count(count)
        k_noise, k_task = jax.random.split(key)
        z_1 = draw_noise(PREVIEW_SAMPLER, model.process(params), k_noise, (shared, *model.latent_shape))
        if model.task is not None:
            return z_1, model.task.draw(k_task, jnp.asarray(first_rows(data.validation.x, shared)))
        return z_1, first_rows(data.validation.condition, shared)

    def decode(params: Params, given: tuple[State, Condition], key: Key) -> Array:
        z_1, condition = given
        return model.decode(params, z_1, key, PREVIEW_SAMPLER, condition)[0]

    return preview(noise, decode, count, model.labels)


def preview(
    noise: Callable[[Params, Key], Any],
    decode: Callable[[Params, Any, Key], Array],
    count: int,
    labels: int = 0,
) -> Callable[[Params], np.ndarray]:
    """Returns a function from parameters to a figure of `count` images: the same noise every time, on all devices.

    Args:
        labels: see `plots.picture`.
    """
    compiled = OverDevices(decode)

    def draw(params: Params) -> np.ndarray:
        k_noise, k_decode = jax.random.split(jax.random.key(0))
        x = compiled(params, noise(params, k_noise), k_decode)[:count]
        # A preview of a model that diverges shows black images: validation judges it, not a picture.
        return picture(np.nan_to_num(x, nan=-1.0, posinf=1.0, neginf=-1.0), labels)

    return draw


def first_rows(tree: Any, count: int) -> Any:
    """Returns the first `count` rows of host arrays, repeated where there are fewer."""
    return jax.tree.map(lambda rows: np.resize(rows, (count, *rows.shape[1:])), tree)
