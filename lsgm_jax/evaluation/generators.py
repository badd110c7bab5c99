"""What is compared with the data: images of the model, of the VAE with its Gaussian prior, and reconstructions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Condition, Images, Key, Params, PerSample, State, draw_array
from lsgm_jax.conditioning.request import ConditionRequest
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.features import fingerprint
from lsgm_jax.models.first_stage import psnr
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.sampler import draw_noise
from lsgm_jax.training.devices import OverDevices

DISTANCES = ("fid", "kid", "pr")
SAMPLING_CHOICES = ("solver", "steps", "sampling")  # sections of a config that images depend on


@dataclasses.dataclass(frozen=True)
class Generator:
    """Images from noise.

    Attributes:
        params: the first argument of `decode`.
        step: training step at which they were chosen.
        of: what the images depend on besides the noise; the key of the cache.
        noise: draws the noise of a batch, for a key.
        request: the conditions of the images.
        decode: noise and conditions to images [batch, h, w, c] and values of each, [batch]; over all devices.
        of_classes: whether conditions are classes, which a classifier can check.
    """

    params: Params
    step: int
    of: dict[str, Any]
    noise: Callable[[Key], State]
    request: ConditionRequest
    decode: Callable[[Params, tuple[State, Condition], Key], tuple[np.ndarray, dict[str, np.ndarray]]]
    of_classes: bool = False


def model_generator(run: Run) -> Generator:
    """Returns the generator of the run's model."""
    model, sampler, settings = run.model, run.experiment.sampler, run.experiment.evaluation
    params, step = run.best(everywhere=True)
    process, shape = model.process(params), (settings.batch_size, *model.latent_shape)

    def decode(
        params: Params, given: tuple[State, Condition], key: Key
    ) -> tuple[Images, dict[str, jax.Array]]:
        z_1, condition = given
        x, solution = model.decode(params, z_1, key, sampler, condition)
        return x, {"nfe": jnp.full(len(x), solution.nfe), "success": solution.success}

    return Generator(
        params=params,
        step=step,
        of=run.identity(params, SAMPLING_CHOICES),
        noise=lambda key: draw_noise(sampler, process, key, shape),
        request=run.conditions.request(settings.samples),
        of_classes=run.conditions.of_labels,
        decode=OverDevices(decode),
    )


def vae_generator(run: Run) -> Generator:
    """Returns the generator of the VAE that the first stage left, with its standard Gaussian prior."""
    vae: Any = run.model.autoencoder
    batch_size = run.experiment.evaluation.batch_size
    params, step = run.best(run.model.stages[0], everywhere=True)
    return Generator(
        params=params,
        step=step,
        of=run.identity(params, ()),
        noise=lambda key: draw_array(jax.random.normal, key, (batch_size, *vae.latent_shape)),
        request=lambda rows: None,
        decode=OverDevices(lambda params, given, key: (vae.decode(params, given[0], key), {})),
    )


def reconstructor(run: Run) -> Generator:
    """Returns reconstructions of the test split by an LDM's first stage: no prior can do better."""
    first_stage: Any = run.model.autoencoder
    stage, batch_size = run.model.stages[0], run.experiment.evaluation.batch_size
    params, step = run.best(everywhere=True)
    data = images_of(run)
    samples = data.open("test")

    def decode(
        params: Params, given: tuple[State, Condition], key: Key
    ) -> tuple[Images, dict[str, PerSample]]:
        _, x = given
        x_hat = first_stage.autoencode(params[stage], x, key).x_hat
        return x_hat, {"psnr": psnr(x, x_hat)}

    return Generator(
        params=params,
        step=step,
        of=run.identity(params, ()) | {"images": fingerprint(data, "test")},
        noise=lambda key: jnp.zeros(batch_size),
        request=lambda rows: samples.batch(rows % len(samples))["x"],
        decode=OverDevices(decode),
    )


def images_of(run: Run) -> DataSpec:
    """Returns the run's data, if they are images.

    Raises:
        ConfigError: if not.
    """
    data = run.experiment.data
    if not isinstance(data, DataSpec):
        raise ConfigError(
            f"samples of shape {data.shape} are no images, which {', '.join(DISTANCES)} compare: skip these"
        )
    return data
