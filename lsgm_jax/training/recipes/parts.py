"""What stages are made of: averages, penalties, validation scores, and pictures of samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lsgm_jax.arrays import Key, State
from lsgm_jax.data.pipeline import Samples
from lsgm_jax.evaluation.estimators import PerImage, evaluate_images
from lsgm_jax.evaluation.plots import picture
from lsgm_jax.models.conditional import Condition
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.model import Model
from lsgm_jax.nn.network import Params
from lsgm_jax.objectives.bound import Batch, Bound
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, draw_noise
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.penalty import Penalty, first_memory, penalise
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.step import EMA, Loss

PREVIEW = 64  # samples in TensorBoard's pictures
VALIDATION_DRAWS = 4
# A preview needs to look right, not to be exact: twenty evaluations instead of a hundred.
PREVIEW_SAMPLER = Sampler(method=METHODS["Heun"](), steps=Linear(steps=10), t_min=1e-3)

Named = dict[str, jax.Array]


class Data(NamedTuple):
    """What the stages see of the data beside their batches."""

    training: Samples | None  # None to measure a stage without running it
    validation: Batch  # on which checkpoints are judged


def ema(settings: TrainSpec, decay: float | None = None, skip: tuple[str, ...] = ()) -> EMA:
    """The moving average that the config asks for."""
    decay = settings.ema_decay if decay is None else decay
    return EMA(decay, settings.ema_warmup, skip)


def penalised(loss: Loss, penalties: dict[str, Penalty], model: Model) -> dict[str, Any]:
    """A stage's loss and what it finds in the first step."""
    example = jax.eval_shape(lambda: Batch(jnp.zeros((1, *model.data_shape))))
    return dict(loss=penalise(loss, penalties), memory=first_memory(loss, penalties, example))


def model_terms(model: Model) -> PerImage:
    """The bound of the model."""

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
        return named(model.bound(params, batch, key, stratum))

    return terms


def named(bound: Bound) -> Named:
    """Terms and sum of a bound, by name."""
    return {**bound._asdict(), "nelbo": bound.nelbo}


def validator(
    per_image: PerImage, batch: Batch, batch_size: int, draws: int = VALIDATION_DRAWS
) -> Callable[[Params], dict[str, float]]:
    """Means over the images of a split, which every process has as a whole."""
    compiled = OverDevices(per_image)

    def validate(params: Params) -> dict[str, float]:
        # The same key every time: what changes between two validations is the model alone.
        key = jax.random.key(0)
        values = evaluate_images(compiled, params, batch, key, draws=draws, batch_size=batch_size)
        return {name: float(value.mean()) for name, value in values.items()}

    return validate


def model_drawer(model: Model, data: Data, count: int) -> Callable[[Params], np.ndarray]:
    """Pictures of the model's samples, of conditions, or parts of images, of the validation split."""

    def noise(key: Key) -> tuple[State, Condition]:
        shared = shared_count(count)
        z_1 = draw_noise(PREVIEW_SAMPLER, model.process, key, (shared, *model.latent_shape))
        if isinstance(model, LDM) and model.task is not None:
            return z_1, model.task.draw(key, jnp.asarray(first_rows(data.validation.x, shared)))
        return z_1, first_rows(data.validation.condition, shared)

    def decode(params: Params, given: tuple[State, Condition], key: Key) -> Array:
        z_1, condition = given
        return model.decode(params, z_1, key, PREVIEW_SAMPLER, condition)[0]

    return drawer(model, noise, decode, count)


def first_rows(tree: Any, count: int) -> Any:
    """The first rows of host arrays, from the beginning again where they do not suffice."""
    return jax.tree.map(lambda rows: np.resize(rows, (count, *rows.shape[1:])), tree)


def drawer(
    model: Model,
    noise: Callable[[Key], Any],
    decode: Callable[[Params, Any, Key], Array],
    count: int,
) -> Callable[[Params], np.ndarray]:
    """Pictures of `count` samples: the same noise every time, decoded on all devices."""
    compiled = OverDevices(decode)

    def draw(params: Params) -> np.ndarray:
        k_noise, k_decode = jax.random.split(jax.random.key(0))
        return picture(compiled(params, noise(k_noise), k_decode)[:count], model.labels)

    return draw
